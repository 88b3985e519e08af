"""What a search is told: the order of the layers, the words of every refusal, and TOML there and back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from supermask import config as configs
from supermask.config import SearchConfig, load_recipe, merged, parse, resolve, setting, to_toml
from supermask.errors import NotFoundError, SupermaskError, UsageError

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=6)
LAYERS = st.dictionaries(KEYS, VALUES, max_size=3)


def refusal(*layers: dict[str, Any], error: type[SupermaskError] = UsageError) -> str:
    with pytest.raises(error) as caught:
        resolve(*layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leaves(layer: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is no table, under its path."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in layer.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def test_each_layer_wins_over_the_one_before() -> None:
    recipe = {"optimizer": {"lr": 3.0}, "epochs": 7}
    flags = {"optimizer": {"lr": 4.0}}
    assert resolve().optimizer.lr == 0.1
    assert resolve({"strategy": {"name": "bernoulli"}}).optimizer.lr == 200.0
    assert resolve(recipe, {"strategy": {"name": "bernoulli"}}).optimizer.lr == 3.0
    both = resolve(recipe, flags, {"strategy": {"name": "bernoulli"}})
    assert (both.optimizer.lr, both.epochs) == (4.0, 7)
    # What the strategy asks for and nobody named stays.
    assert both.optimizer.weight_decay == 0.0


def test_the_result_says_every_option_of_the_strategy() -> None:
    assert resolve().strategy.options == {"k": 0.5, "score_init": "kaiming-uniform"}
    assert resolve({"strategy": {"options": {"k": 0.3}}}).strategy.options["k"] == 0.3


def test_another_architecture_or_strategy_drops_what_the_recipe_said_to_the_one_before() -> None:
    recipe = {"arch": {"name": "fc", "args": {"widths": [250]}}, "strategy": {"name": "dnw", "options": {"k": 0.1}}}
    chosen = resolve(recipe, {"arch": {"name": "conv4"}, "strategy": {"name": "bernoulli"}})
    assert chosen.arch.args == {}
    assert chosen.strategy.options == {"logit_init": 0.0, "rescale": False}
    # The same name again changes nothing.
    assert resolve(recipe, {"arch": {"name": "fc"}}).arch.args == {"widths": [250]}


def test_an_option_given_before_the_strategy_is_named_is_not_dropped() -> None:
    chosen = resolve({"strategy": {"options": {"k": 0.3}}}, {"strategy": {"name": "dnw"}})
    assert chosen.strategy.options == {"k": 0.3}


@given(LAYERS, LAYERS)
def test_merging_takes_every_later_value_and_keeps_those_it_does_not_replace(
    a: dict[str, Any], b: dict[str, Any]
) -> None:
    def replaced(path: tuple[str, ...]) -> bool:
        return any(path == later[: len(path)] or later == path[: len(later)] for later in leaves(b))

    kept = {path: value for path, value in leaves(a).items() if not replaced(path)}
    assert leaves(merged(a, b)) == kept | leaves(b)


@given(LAYERS, LAYERS, LAYERS)
def test_merging_goes_layer_by_layer_and_leaves_its_arguments_alone(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    before = repr((a, b, c))
    assert merged(a, b, c) == merged(merged(a, b), c)
    merged(a)["a"] = {"changed": 1}
    assert repr((a, b, c)) == before


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("optimizer.lr=0.1", {"optimizer": {"lr": 0.1}}),
        ("epochs=3", {"epochs": 3}),
        ("weights.scaled=true", {"weights": {"scaled": True}}),
        ("arch.args.widths=[250, 250]", {"arch": {"args": {"widths": [250, 250]}}}),
        ("data.name=folder:my pictures", {"data": {"name": "folder:my pictures"}}),
        ("data.name='digits'", {"data": {"name": "digits"}}),
        ("data.name=folder:a=b", {"data": {"name": "folder:a=b"}}),
        (" epochs = 3 ", {"epochs": 3}),
        ("recipe=", {"recipe": ""}),
    ],
)
def test_set_takes_toml_values_and_plain_words(text: str, layer: dict[str, Any]) -> None:
    assert setting(text) == layer


@pytest.mark.parametrize("text", ["epochs", "=3", " =3", ""])
def test_set_without_key_and_value_shows_how_to_write_it(text: str) -> None:
    with pytest.raises(UsageError, match=r"--set .*: write key=value, such as --set optimizer\.lr=0\.1"):
        setting(text)


TOML_VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.lists(st.integers(-9, 9)),
    st.text("ab c"),
)


@given(path=st.lists(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), min_size=1, max_size=4), value=TOML_VALUES)
def test_set_reads_back_what_toml_writes(path: list[str], value: Any) -> None:
    written = tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
    inner: Any = setting(f"{'.'.join(path)}={written}")
    for key in path:
        inner = inner[key]
    assert inner == value


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"optimiser": {"lr": 1}}, "unknown setting 'optimiser'; did you mean 'optimizer'?"),
        ({"optimizer": {"lrr": 1}}, "unknown setting 'optimizer.lrr'; did you mean 'lr'?"),
        ({"schedule": {"x": 1}}, "unknown setting 'schedule.x'; known: name, warmup_epochs"),
        ({"strategy": {"options": {"kk": 1}}}, "strategy edge-popup has no option 'kk'; did you mean 'k'?"),
        ({"strategy": {"name": "edgepopup"}}, "unknown strategy 'edgepopup'; did you mean 'edge-popup'?"),
        (
            {"strategy": {"name": "bernoulli", "options": {"k": 0.5}}},
            "strategy bernoulli has no option 'k'; known: logit_init, rescale",
        ),
        ({"strategy": {"name": "dense", "options": {"k": 1}}}, "strategy dense has no option 'k'; it has none"),
    ],
)
def test_an_unknown_word_is_named_with_the_nearest_known_one(layer: dict[str, Any], message: str) -> None:
    assert refusal(layer) == message


@pytest.mark.parametrize("strategy", ["edge-popup", "dnw", "random-subnet"])
@pytest.mark.parametrize("k", [0, -0.1, 1.0001, 30, "half", float("nan")])
def test_k_outside_0_to_1_is_refused(strategy: str, k: object) -> None:
    words = refusal({"strategy": {"name": strategy, "options": {"k": k}}})
    assert words.startswith(f"strategy.options.k = {k!r}: input should be ")


@pytest.mark.parametrize("k", [1, 1.0, 1e-9, 0.5])
def test_k_may_be_anything_above_0_up_to_1(k: float) -> None:
    assert resolve({"strategy": {"options": {"k": k}}}).strategy.options["k"] == k


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed=-1", "greater than or equal to 0"),
        (f"seed={2**53}", f"less than or equal to {2**53 - 1}"),
        ("epochs=0", "greater than or equal to 1"),
        ("epochs=1.5", "valid integer"),
        ("epochs=ten", "valid integer"),
        ("batch_size=0", "greater than or equal to 1"),
        ("accumulate=0", "greater than or equal to 1"),
        ("label_smoothing=1", "less than 1"),
        ("label_smoothing=-0.1", "greater than or equal to 0"),
        ("keep=first", "'last' or 'best'"),
        ("device=gpu", "expected auto, cpu, mps, cuda or cuda:N"),
        ("checkpoint_seconds=-1", "greater than or equal to 0"),
        ("checkpoint_seconds=inf", "finite number"),
        ("precision=float16", "'auto', 'float32' or 'bfloat16'"),
        ("data.image_size=0", "greater than 0"),
        ("data.image_size=5000", "less than or equal to 4096"),
        ("data.augment=flip", "'auto', 'none' or 'crop-flip'"),
        ("data.validation=1", "less than 1"),
        ("data.validation=-0.1", "greater than or equal to 0"),
        ("data.workers=-1", "greater than or equal to 0"),
        ("data.skip_corrupt=perhaps", "valid boolean"),
        ("optimizer.name=rmsprop", "'sgd' or 'adam'"),
        ("optimizer.lr=0", "greater than 0"),
        ("optimizer.lr=inf", "finite number"),
        ("optimizer.momentum=1", "less than 1"),
        ("optimizer.momentum=nan", "less than 1"),
        ("optimizer.weight_decay=-1", "greater than or equal to 0"),
        ("schedule.name=step", "'cosine' or 'constant'"),
        ("schedule.warmup_epochs=-1", "greater than or equal to 0"),
        ("weights.distribution=normal", "'signed-constant', 'kaiming-normal', 'kaiming-uniform'"),
        ("strategy.name=3", "valid string"),
        ("strategy=edge-popup", "valid dictionary"),
        ("arch=conv4", "valid dictionary"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_would_do(text: str, words: str) -> None:
    message = refusal(setting(text))
    assert message.startswith(f"{text.partition('=')[0]} = ")
    assert words in message


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"batch_size": 32, "accumulate": 5}, "accumulate = 5 does not divide batch_size = 32"),
        ({"keep": "best"}, "keep = best needs data.validation > 0: nothing is ever selected on the test set"),
        (
            {"epochs": 5, "schedule": {"warmup_epochs": 5}},
            "schedule.warmup_epochs = 5 must be below epochs = 5",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(layer: dict[str, Any], message: str) -> None:
    assert refusal(layer) == message


def test_the_best_epoch_may_be_kept_where_a_part_is_held_out() -> None:
    assert resolve({"keep": "best", "data": {"validation": 0.1}}).keep == "best"


CONFIGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**53 - 1),
        "epochs": st.integers(1, 1000),
        "label_smoothing": st.floats(0, 0.9),
        "recipe": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-300, 1e300)}),
        "data": st.fixed_dictionaries({"image_size": st.none() | st.integers(1, 4096)}),
        "arch": st.fixed_dictionaries(
            {"name": st.just("fc"), "args": st.fixed_dictionaries({"widths": st.lists(st.integers(1, 999))})}
        ),
        "strategy": st.fixed_dictionaries({"options": st.fixed_dictionaries({"k": st.floats(1e-6, 1)})}),
    }
)


@given(CONFIGS)
@settings(max_examples=60, deadline=None)
def test_a_configuration_written_as_toml_resolves_to_itself(asked: dict[str, Any]) -> None:
    config = resolve(asked)
    assert resolve(parse(to_toml(config), "config.toml")) == config


@pytest.mark.parametrize("name", ["edge-popup", "bernoulli", "dnw", "dense", "random-subnet"])
def test_every_strategys_configuration_survives_toml(name: str) -> None:
    config = resolve({"strategy": {"name": name}})
    assert resolve(parse(to_toml(config), "config.toml")) == config


def test_a_value_that_is_absent_is_left_out_of_toml_at_every_depth() -> None:
    config = SearchConfig.model_validate({"arch": {"name": "mine", "args": {"depth": None, "width": {"a": None}}}})
    written = tomllib.loads(to_toml(config))
    assert written["arch"] == {"name": "mine", "args": {"width": {}}}
    assert "image_size" not in written["data"]


def test_a_recipe_file_is_read_and_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 3\n")
    assert load_recipe(str(file)) == {"recipe": str(file), "epochs": 3}


def test_a_recipe_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no recipe file absent\.toml; `supermask recipes` lists"):
        load_recipe("absent.toml")
    with pytest.raises(UsageError, match=r"no recipe 'conv4-cifar'; did you mean 'conv4-cifar10'\?"):
        load_recipe("conv4-cifar")
    file = tmp_path / "bad.toml"
    file.write_text("epochs = \n")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML: .*line 1"):
        load_recipe(str(file))
    file.write_bytes("epochs = 3 # größer".encode("latin-1"))
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML: it is not UTF-8 text"):
        load_recipe(str(file))


def test_the_first_difference_of_two_configurations_is_named() -> None:
    ours = resolve()
    assert configs.first_difference(ours, resolve()) is None
    theirs = resolve({"strategy": {"options": {"k": 0.3}}, "weights": {"scaled": True}})
    assert configs.first_difference(ours, theirs) == "strategy.options.k = 0.5, not 0.3"
