"""The model card: what the Hub reads in it, what people read in it, and that both are true."""

from __future__ import annotations

import io
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import supermask
from supermask import Dataset, store
from supermask import artifact as artifacts
from supermask.card import CARD, CURVE, FILTERS, HUB_DATASETS
from supermask.manifest import CONFIG, TENSORS
from supermask.reference import import_checkpoint
from tests.commands import run_here
from tests.hub_server import HubServer
from tests.hub_store import card_errors
from tests.test_artifact import alter, make_artifact

# See test_push.py.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


ODD_INDEX = """model-index:
- name: odd
  results:
  - task:
      type: image-classification
    dataset:
      name: d
      type: d
    metrics:
    - type: {}
"""


@pytest.fixture(scope="module")
def files(found: Path) -> dict[str, bytes]:
    """What a push of the short search puts on the Hub."""
    return store.package(found, "ada/conv2")


def card_of(path: Path) -> str:
    return store.package(path, "ada/net")[CARD].decode()


def figures(card: str) -> dict[str, str]:
    """The table: what each figure is, and the figure."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_the_hub_reads_task_data_accuracy_licence_tags_and_library(hub: HubServer, found: Path) -> None:
    store.push(found, "ada/conv2", license="mit")
    card, metrics = ModelCard.load("ada/conv2"), supermask.read(found).config.metrics
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "mit",
        "supermask",
        "image-classification",
    )
    assert {"supermask", "edge-popup", "conv2"} <= set(card.data.tags)
    assert card.data.model_name == "conv2"
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_split) == ("image-classification", "digits", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", metrics["test_accuracy"])
    card.validate()


def test_data_that_the_hub_has_are_linked_under_its_name(tmp_path: Path) -> None:
    artifacts.write(make_artifact(), tmp_path)
    for ours, theirs in HUB_DATASETS.items():
        alter(tmp_path, partial(name_data, ours))
        card = ModelCard(card_of(tmp_path))
        data: Any = card.data
        assert data.datasets == [theirs]
        assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_name) == (theirs, ours)
        assert card_errors(str(card)) == ([], [])


def name_data(name: str, config: dict[str, Any]) -> None:
    config["provenance"]["dataset"] = name


def test_the_table_tells_the_figures_of_the_artifact(found: Path, files: dict[str, bytes]) -> None:
    metrics, shown = supermask.read(found).config.metrics, figures(files[CARD].decode())
    size = sum((found / "artifact" / name).stat().st_size for name in (CONFIG, TENSORS))
    assert shown["accuracy on 359 test pictures of digits"] == f"{metrics['test_accuracy']:.2%}"
    assert shown["the untouched random network"] == f"{metrics['random_network_accuracy']:.2%}"
    assert shown["a random mask that keeps as many"] == f"{metrics['random_mask_accuracy']:.2%}"
    assert shown["k, the fraction of weights kept"] == "0.5"
    assert shown["weights kept"] == "183,840 of 367,680"
    assert shown["size"] == f"{size:,} bytes, {8 * size / 367_680:.2f} bits a weight"
    assert shown["the same network as float32"].startswith(f"{4 * 367_680:,} bytes, {4 * 367_680 / size:.1f} times")


SEARCHES: dict[str, list[str]] = {
    "the default": [],
    "a strategy with options": [
        *("--strategy", "bernoulli", "--arch", "fc", "--distribution", "kaiming-normal", "--seed", "3"),
        *("--set", "strategy.options.rescale=true", "--set", "strategy.options.logit_init=-0.5"),
        *("--set", "arch.args.widths=[20, 10]", "--set", "arch.args.bias=true", "--lr", "12.5"),
    ],
    "a recipe's worth of settings": [
        *("--arch", "conv4", "--k", "0.3", "--batch-size", "64", "--set", "accumulate=2", "--set", "keep=best"),
        *("--set", "arch.args.width=0.125", "--set", "data.validation=0.2", "--set", "data.image_size=16"),
        *("--set", "optimizer.name=adam", "--set", "optimizer.weight_decay=0.0", "--set", "schedule.name=constant"),
        *("--set", "weights.scaled=true", "--set", "weights.first_layer_dense=true"),
    ],
    "trained weights": [
        *(
            "--epochs",
            "2",
            "--strategy",
            "dnw",
            "--arch",
            "fc",
            "--set",
            "label_smoothing=0.1",
            "--set",
            "schedule.warmup_epochs=1",
        ),
        *("--set", "data.augment=crop-flip", "--set", "optimizer.momentum=0.0", "--set", "weights.last_layer_dense=1"),
    ],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_command_in_the_card_makes_the_same_artifact_again(capsys: pytest.CaptureFixture[str], name: str) -> None:
    made_again(capsys, *SEARCHES[name])


def test_the_command_in_the_card_quotes_awkward_words(capsys: pytest.CaptureFixture[str]) -> None:
    awkward = 'it\'s "mine"; $(touch x) & so'
    for part in ("train", "val"):
        for label, grey in (("no", 0), ("yes", 255)):
            (Path(awkward) / part / label).mkdir(parents=True)
            Image.new("L", (8, 8), grey).save(Path(awkward) / part / label / "1.png")
    made_again(capsys, "--data", f"folder:{awkward}", "--arch", "fc", "--batch-size", "2")


def made_again(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Search with these words, and with those in the card of what was found: configuration and artifact are equal."""
    status, _, err = run_here(capsys, "search", "--epochs", "1", *words, "--run-dir", "first")
    assert status == 0, err
    (line,) = re.findall(r"```console\n\$ (supermask search .*)\n```", card_of(Path("first")))
    assert run_here(capsys, *shlex.split(line)[1:], "--run-dir", "second")[0] == 0
    first, second = (tomllib.loads((Path(run) / "config.toml").read_text()) for run in ("first", "second"))
    assert first == second
    assert (Path("first/artifact") / TENSORS).read_bytes() == (Path("second/artifact") / TENSORS).read_bytes()


def test_a_search_of_ones_own_pictures_has_no_command_line(tmp_path: Path) -> None:
    part = (torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8), torch.arange(20) % 2)
    data = Dataset.from_arrays("mine", ["no", "yes"], part, part)
    supermask.search("fc", data, run_dir=tmp_path / "run", epochs=1, batch_size=4)
    card = card_of(tmp_path / "run")
    assert "supermask search " not in card
    assert "By `supermask.search` in Python" in card


def test_the_lines_that_load_it_run_as_they_stand(hub: HubServer, found: Path, files: dict[str, bytes]) -> None:
    hub.add_repo("ada/conv2", files)
    (snippet,) = re.findall(r"```python\n(.*?)```", ModelCard.load("ada/conv2").text, re.DOTALL)
    assert len(snippet.splitlines()) == 3
    pictures = torch.rand(2, 1, 8, 8)
    names: dict[str, Any] = {"pictures": pictures}
    exec(snippet, names)
    assert torch.equal(names["logits"], supermask.load(found)(pictures))


def test_the_same_artifact_gets_the_same_bytes(found: Path, files: dict[str, bytes]) -> None:
    assert store.package(found / "artifact", "ada/conv2") == files


def test_pictures_are_pictures_and_the_card_shows_them(files: dict[str, bytes]) -> None:
    for name in (CURVE, FILTERS):
        with Image.open(io.BytesIO(files[name])) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert "Software" not in picture.info  # another version of it would make another file
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 2  # not a blank one
        assert f"({name})" in files[CARD].decode()


def test_without_its_run_an_artifact_has_no_training_curve(found: Path) -> None:
    artifacts.write(supermask.read(found), Path("bare"))
    files = store.package("bare", "ada/net")
    assert set(files) == {CONFIG, TENSORS, CARD, FILTERS}
    assert CURVE not in files[CARD].decode()


class Tiny(nn.Module):
    """A network of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(64, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.only(pictures.flatten(1))
        return logits


def own_module(folder: Path) -> None:
    supermask.save(supermask.search(Tiny(), epochs=1), folder)


def imported(folder: Path) -> None:
    weight = torch.where(torch.rand(10, 784) < 0.5, 0.1, -0.1)
    torch.save({"state_dict": {"module.1.weight": weight, "module.1.scores": torch.rand(10, 784)}}, "theirs.pth")
    found = import_checkpoint("theirs.pth", arch="fc", strategy="edge-popup", k=0.3, arch_args={"widths": []})
    artifacts.write(found, folder)


def searched(arch: str, strategy: str) -> Callable[[Path], None]:
    return lambda folder: supermask.save(supermask.search(arch, strategy=strategy, epochs=1, batch_size=256), folder)


KINDS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "fc": (searched("fc", "edge-popup"), False),
    "conv2": (searched("conv2", "bernoulli"), False),
    "dense": (searched("fc", "dense"), True),
    "dnw": (searched("fc", "dnw"), True),
    "an own module": (own_module, False),
    "an imported one": (imported, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_artifact_gets_a_card_that_claims_only_what_is_so(kind: str) -> None:
    make, trained = KINDS[kind]
    make(Path("net"))
    files = store.package("net", "ada/net")
    card = files[CARD].decode()
    assert card_errors(card) == ([], [])
    assert ("nobody trained" in card) != trained
    assert ("Their values are stored" in card) == trained
    assert FILTERS in files
    config = supermask.read("net").config
    shown = figures(card)
    kept, weights = (sum(getattr(layer, field) for layer in config.layers) for field in ("kept", "n"))
    assert shown["weights kept"] == f"{kept:,} of {weights:,}"
    assert any(key.startswith("accuracy on") for key in shown) == ("test_accuracy" in config.metrics)


def test_the_card_of_an_own_module_says_how_to_load_it(hub: HubServer) -> None:
    own_module(Path("net"))
    store.push("net", "ada/net")
    card = ModelCard.load("ada/net").text
    assert 'supermask.load("ada/net", model=YourModule())' in card
    assert "By `supermask.search` in Python" in card
    assert supermask.load("ada/net", model=Tiny())


def test_the_card_of_an_import_names_its_checkpoint_and_claims_no_accuracy() -> None:
    imported(Path("net"))
    card = card_of(Path("net"))
    assert re.search(r"Imported from a checkpoint of the reference code, SHA-256 [0-9a-f]{64}\.", card)
    assert "model-index" not in card
    assert "holds the seed" not in card
    assert "one more for the sign" in card


@pytest.mark.parametrize("data", ["folder:pictures", "folder:my pets/of 2024", "torchvision", "Größe: 3"])
def test_data_of_any_name_make_a_card_that_the_hub_takes(tmp_path: Path, data: str) -> None:
    def rename(config: dict[str, Any]) -> None:
        config["provenance"]["dataset"] = data

    artifacts.write(make_artifact(), tmp_path)
    alter(tmp_path, rename)
    assert card_errors(card_of(tmp_path)) == ([], [])


def test_artifacts_on_the_hub_are_listed_with_their_accuracy_the_most_downloaded_first(
    hub: HubServer, capsys: pytest.CaptureFixture[str], found: Path, files: dict[str, bytes]
) -> None:
    for name, downloads in (("ada/net", 3), ("bob/net", 12)):
        hub.add_repo(name, files, downloads=downloads)
    hub.add_repo("bob/bare", {"README.md": b"---\ntags:\n- supermask\n---\n"})
    hub.add_repo("bob/bert", {"README.md": b"---\ntags:\n- bert\n---\n"})
    for number, value in enumerate(
        ["f1\n      value: 0.5", "accuracy\n      value: .nan", "accuracy\n      value: 95.5"]
    ):
        index = ODD_INDEX.format(value).encode()
        hub.add_repo(f"bob/odd{number}", {"README.md": b"---\ntags:\n- supermask\n" + index + b"---\n"})
    accuracy = supermask.read(found).config.metrics["test_accuracy"]
    status, text, _ = run_here(capsys, "zoo", "--hub", "--json")
    assert status == 0
    rows = [(row["name"], row["accuracy"], row["data"], row["downloads"]) for row in json.loads(text)["hub"]]
    shown = f"{accuracy:.2%}"
    assert rows[:2] == [("bob/net", shown, "digits", 12), ("ada/net", shown, "digits", 3)]
    unknown = ("bob/bare", "bob/odd0", "bob/odd1", "bob/odd2")
    assert sorted(rows[2:]) == [(name, "", "", 0) for name in unknown]
    _, table, _ = run_here(capsys, "zoo", "--hub")
    assert [line.split()[:3] for line in table.split("\n\n")[-1].splitlines()[1:3]] == [
        ["bob/net", shown, "digits"],
        ["ada/net", shown, "digits"],
    ]
