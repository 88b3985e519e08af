"""What a search is told: one frozen tree, written whole into every run.

Layers: default < strategy's defaults < recipe < flags and `--set key=value`. The keys are those of `config.toml` in a
run folder, and, for `arch` and `strategy`, those of an artifact's `config.json`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from supermask import registry
from supermask.draw import MAX_SEED
from supermask.errors import NotFoundError, UsageError, did_you_mean

if TYPE_CHECKING:
    from supermask.strategy import Strategy

WeightDistribution = Literal[
    "signed-constant", "kaiming-normal", "kaiming-uniform", "xavier-normal", "xavier-constant", "unsigned-constant"
]
WEIGHT_DISTRIBUTIONS: tuple[WeightDistribution, ...] = get_args(WeightDistribution)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArchConfig(_Table):
    """The architecture and its arguments; in_channels, image_size and num_classes come from the data."""

    name: str = "conv2"
    args: dict[str, Any] = {}


class StrategyConfig(_Table):
    """The strategy and its options."""

    name: str = "edge-popup"
    options: dict[str, Any] = {}


class WeightsConfig(_Table):
    """How weights are drawn, and which layers stay whole.

    Standard deviations (fan-in mode, gain sqrt 2): sqrt(2 / fan_in) for Kaiming's and the constants,
    sqrt(2 / (fan_in + fan_out)) for Xavier's (Ramanujan et al., section 4.5).
    """

    distribution: WeightDistribution = "signed-constant"
    scaled: Annotated[bool, Field(description="standard deviation times sqrt(1/k)")] = False
    first_layer_dense: Annotated[bool, Field(description="keep every (untrained) weight of the first layer")] = False
    last_layer_dense: Annotated[bool, Field(description="keep every (untrained) weight of the last layer")] = False


class DataConfig(_Table):
    """The data and what is done to pictures."""

    name: str = "digits"
    root: Annotated[str, Field(description="folder of downloaded data")] = "data"
    image_size: Annotated[
        int | None, Field(gt=0, le=4096, description="pixels; default: what data and net agree on")
    ] = None
    augment: Annotated[Literal["auto", "none", "crop-flip"], Field(description="auto: what suits the data set")] = (
        "auto"
    )
    validation: Annotated[float, Field(ge=0, lt=1, description="fraction of the training pictures held out")] = 0.0
    skip_corrupt: bool = False
    workers: Annotated[int, Field(ge=0, description="processes that decode pictures of large data sets")] = 2


class OptimizerConfig(_Table):
    """The optimiser of scores (and of weights, where the strategy trains them)."""

    name: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="SGD only")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4


class ScheduleConfig(_Table):
    """The learning rate over epochs."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0


def _known_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError("expected auto, cpu, mps, cuda or cuda:N")
    return name


class SearchConfig(_Table):
    """Everything that a search depends on."""

    recipe: Annotated[str, Field(description="where the settings came from; says nothing by itself")] = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1, description="pictures per optimiser step, over all processes")] = 32
    accumulate: Annotated[int, Field(ge=1, description="passes that a step is split into, to save memory")] = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    keep: Annotated[Literal["last", "best"], Field(description="the epoch kept; best needs data.validation")] = "last"
    device: Annotated[str, AfterValidator(_known_device)] = "auto"
    checkpoint_seconds: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="between checkpoints; a slower disk takes longer")
    ] = 60.0
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Field(description="of activations")] = "auto"
    compile: Annotated[bool, Field(description="train what torch.compile makes of the network")] = False
    arch: ArchConfig = ArchConfig()
    strategy: StrategyConfig = StrategyConfig()
    weights: WeightsConfig = WeightsConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}")
        if self.keep == "best" and not self.data.validation:
            raise ValueError("keep = best needs data.validation > 0: nothing is ever selected on the test set")
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs:
            raise ValueError(
                f"schedule.warmup_epochs = {self.schedule.warmup_epochs} must be below epochs = {self.epochs}"
            )
        return self


Layer = Mapping[str, Any]


def resolve(*layers: Layer, base: Layer | None = None) -> SearchConfig:
    """The configuration of nested settings, later layers over earlier ones, over `base` or else the defaults.

    Strategy options come back complete, so that the result says everything.

    Raises:
        UsageError: an unknown key, strategy or option, or a value out of range.
    """
    asked = merged(base or {}, *layers)
    config = _validated(asked)
    if base is None:
        defaults = registry.strategy_class(config.strategy.name).optimizer_defaults
        config = _validated(merged({"optimizer": defaults}, asked))
    strategy = make_strategy(config.strategy.name, config.strategy.options)
    table = StrategyConfig(name=config.strategy.name, options=strategy.model_dump(mode="json"))
    return config.model_copy(update={"strategy": table})


def _validated(asked: Layer) -> SearchConfig:
    try:
        return SearchConfig.model_validate(asked)
    except ValidationError as error:
        raise UsageError(explain(error, SearchConfig, "", "a search")) from error


def make_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy `name` with `options`, validated.

    Raises:
        UsageError: an unknown strategy, option or value.
    """
    chosen = registry.strategy_class(name)
    try:
        return chosen(**options)
    except ValidationError as error:
        raise UsageError(explain(error, chosen, "strategy.options", f"strategy {name}")) from error


def merged(*layers: Layer) -> dict[str, Any]:
    """Nested dictionaries merged, later ones winning.

    Another `arch.name` or `strategy.name` drops what was said to the one named before.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            if not isinstance(value, Mapping) or not isinstance(old, Mapping):
                result[key] = merged(value) if isinstance(value, Mapping) else value
            elif key in {"arch", "strategy"} and "name" in old and value.get("name", old["name"]) != old["name"]:
                result[key] = merged(value)
            else:
                result[key] = merged(old, value)
    return result


def setting(text: str) -> dict[str, Any]:
    """One `--set` argument, `key.key=value`, as a nested layer; the value is TOML, or else plain text.

    Raises:
        UsageError: there is no `=`.
    """
    path, equals, value_text = text.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"--set {text}: write key=value, such as --set optimizer.lr=0.1")
    try:
        value, *more = tomllib.loads(f"value = {value_text}").values()
    except tomllib.TOMLDecodeError:
        value, more = value_text.strip(), []
    if more:
        raise UsageError(f"--set {path.strip()}: one setting at a time")
    for key in reversed(path.strip().split(".")):
        value = {key: value}
    return dict(value)


def parse(text: str, where: str) -> dict[str, Any]:
    """TOML text as a layer; `where` names it in errors."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}") from error


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """An installed recipe by name, or a TOML file by path.

    Raises:
        NotFoundError: there is no such file.
        UsageError: no installed package has the recipe, or the file is not TOML.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise NotFoundError(f"no recipe file {path}; `supermask recipes` lists the installed ones")
        where = str(path)
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{where} is not TOML: it is not UTF-8 text") from error
    else:
        text, where = registry.recipe(name_or_path), f"recipe {name_or_path}"
    return {"recipe": name_or_path, **parse(text, where)}


def to_toml(config: SearchConfig) -> str:
    """The configuration as TOML, absent values left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    # pydantic's exclude_none leaves the None in a strategy's options or an architecture's arguments where it is.
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def first_difference(ours: SearchConfig, theirs: SearchConfig) -> str | None:
    """The first key on which two configurations differ, as "key = a, not b"; None if they are equal."""

    def walk(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str) -> str | None:
        for key in {**a, **b}:
            x, y = a.get(key), b.get(key)
            if isinstance(x, Mapping) and isinstance(y, Mapping):
                inner = walk(x, y, f"{prefix}{key}.")
                if inner:
                    return inner
            elif x != y:
                return f"{prefix}{key} = {x}, not {y}"
        return None

    return walk(ours.model_dump(), theirs.model_dump(), "")


def explain(error: ValidationError, model: type[BaseModel], prefix: str, subject: str) -> str:
    """The first fault that pydantic found, as one line that names the key, the value and the next step."""
    fault = error.errors()[0]
    parents, last = [str(part) for part in fault["loc"][:-1]], str(fault["loc"][-1]) if fault["loc"] else ""
    key = ".".join(part for part in [prefix, *parents, last] if part)
    if fault["type"] == "extra_forbidden":
        table: Any = model
        for parent in parents:
            table = table.model_fields[parent].annotation
        known = list(table.model_fields)
        hint = did_you_mean(last, known) if known else "it has none"
        owner = f"{subject} has no option {last!r}" if prefix else f"unknown setting {key!r}"
        return f"{owner}; {hint}"
    if fault["type"] == "missing":
        return f"{key} is not set, and has no default"
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {fault['input']!r}: {message[0].lower()}{message[1:]}"
