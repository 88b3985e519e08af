"""The registry: third parties plug in with entry points alone, and every wrong name gets an answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch

from supermask import registry
from supermask.config import load_recipe, resolve, to_toml
from supermask.errors import UsageError
from supermask.strategy import Strategy

STRATEGY = """
import torch
from supermask.strategy import K, Masker, Strategy

class FirstRows(Strategy):
    k: K = 0.25
    limit: int | None = None

    @property
    def density(self) -> float:
        return self.k

    def attach(self, weight, generator):
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[: round(self.k * weight.numel())] = True
        return FirstRowsMasker(mask.reshape(weight.shape))

class FirstRowsMasker(Masker):
    def __init__(self, kept):
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight):
        return torch.where(self.kept, weight, 0.0)

    def mask(self, weight):
        return self.kept

class Needy(FirstRows):
    target: int
"""

ARCHITECTURES = """
from torch import nn

def linear(*, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes, bias=False))

def deep(depth, *, in_channels, image_size, num_classes):
    if not depth.isdigit():
        raise LookupError(depth, ["one", "two"])
    return nn.Sequential(linear(in_channels=in_channels, image_size=image_size, num_classes=num_classes))

def needs_a_package(*, in_channels, image_size, num_classes):
    import a_package_that_nobody_has

def broken(*, in_channels, image_size, num_classes):
    return {}["a bug of its author"]
"""

DATASETS = """
import torch
from supermask.datasets import Dataset

def grey(request):
    images = torch.full((4, 1, 2, 2), 128, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    return Dataset.from_arrays("grey", ["a", "b"], (images, labels), (images, labels))

def shade(level, request):
    images = torch.full((4, 1, 2, 2), int(level), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    return Dataset.from_arrays(f"shade:{level}", ["a", "b"], (images, labels), (images, labels))
"""


class Install(Protocol):
    def __call__(self, package: str, code: str = "", /, **groups: dict[str, str]) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package as pip leaves it: a module and its metadata, in a folder on the path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    modules: list[str] = []

    def installed(package: str, code: str = "", /, **groups: dict[str, str]) -> None:
        module = package.replace("-", "_")
        modules.append(module)
        (site / module).mkdir()
        (site / module / "__init__.py").write_text(code)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [
            line
            for group, points in groups.items()
            for line in (f"[supermask.{group}]", *(f"{name} = {value}" for name, value in points.items()))
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    yield installed
    for module in modules:
        sys.modules.pop(module, None)


def test_a_third_partys_strategy_plugs_in_with_an_entry_point_alone(install: Install) -> None:
    install("rows-plugin", STRATEGY, strategies={"first-rows": "rows_plugin:FirstRows"})
    config = resolve({"strategy": {"name": "first-rows", "options": {"k": 0.5}}})
    strategy = registry.strategy_class("first-rows")(**config.strategy.options)
    assert isinstance(strategy, Strategy)
    assert registry.strategy_name(strategy) == "first-rows"
    masker = strategy.attach(torch.ones(2, 4), torch.Generator())
    assert masker(torch.ones(2, 4)).tolist() == [[1.0] * 4, [0.0] * 4]


def test_a_third_partys_option_may_be_absent_and_its_run_is_still_written(install: Install) -> None:
    install("absent-plugin", STRATEGY, strategies={"first-rows": "absent_plugin:FirstRows"})
    config = resolve({"strategy": {"name": "first-rows"}})
    assert config.strategy.options == {"k": 0.25, "limit": None}
    assert "limit" not in to_toml(config)


def test_a_third_partys_option_without_a_default_is_asked_for(install: Install) -> None:
    install("needy-plugin", STRATEGY, strategies={"needy": "needy_plugin:Needy"})
    with pytest.raises(UsageError, match=r"^strategy\.options\.target is not set, and has no default$"):
        resolve({"strategy": {"name": "needy"}})


def test_a_strategy_that_no_package_offers_is_named_by_where_it_lies(install: Install) -> None:
    install("private-plugin", STRATEGY, strategies={"first-rows": "private_plugin:FirstRows"})
    base = registry.strategy_class("first-rows")
    private = type("Private", (base,), {"__module__": "notebook"})
    assert registry.strategy_name(private()) == "notebook:Private"


def test_a_third_partys_architecture_plugs_in(install: Install) -> None:
    install("net-plugin", ARCHITECTURES, architectures={"linear": "net_plugin:linear", "deep:DEPTH": "net_plugin:deep"})
    args = {"in_channels": 3, "image_size": 4, "num_classes": 5}
    assert registry.build("linear", args)(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert registry.build("deep:3", args)(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    with pytest.raises(UsageError, match=r"^unknown architecture 'deep:twoo'; did you mean 'deep:two'\?$"):
        registry.build("deep:twoo", args)
    with pytest.raises(UsageError, match=r"^unknown architecture 'deep:xyz'; deep has none with such a name$"):
        registry.build("deep:xyz", args)


def test_an_architecture_that_needs_a_missing_package_says_which(install: Install) -> None:
    install("poor-plugin", ARCHITECTURES, architectures={"poor": "poor_plugin:needs_a_package"})
    with pytest.raises(UsageError, match=r"architecture poor needs the package (\w+): pip install \1$"):
        registry.build("poor", {"in_channels": 1, "image_size": 1, "num_classes": 2})


def test_a_bug_in_an_architecture_is_not_taken_for_a_wrong_name(install: Install) -> None:
    install("buggy-plugin", ARCHITECTURES, architectures={"buggy": "buggy_plugin:broken"})
    with pytest.raises(KeyError, match="a bug of its author"):
        registry.build("buggy", {"in_channels": 1, "image_size": 1, "num_classes": 2})


def test_a_third_partys_data_set_and_family_plug_in(install: Install) -> None:
    install("data-plugin", DATASETS, datasets={"grey": "data_plugin:grey", "shade:LEVEL": "data_plugin:shade"})
    assert registry.open_dataset("grey").classes == ("a", "b")
    # 51 of 255.
    assert registry.open_dataset("shade:51").mean == (0.2,)
    with pytest.raises(UsageError, match=r"^unknown data set 'shade:'; did you mean 'shade:LEVEL'\?$"):
        registry.open_dataset("shade:")


def test_a_third_partys_recipes_are_found_by_name(install: Install, tmp_path: Path) -> None:
    install("recipe-plugin", recipes={"theirs": "recipe_plugin"})
    (tmp_path / "site" / "recipe_plugin" / "tiny.toml").write_text("# tiny\nepochs = 2\n")
    (tmp_path / "site" / "recipe_plugin" / "notes.txt").write_text("no recipe")
    assert load_recipe("tiny") == {"recipe": "tiny", "epochs": 2}
    assert "notes" not in registry.recipes()


def test_a_recipe_offered_by_two_packages_names_both(install: Install, tmp_path: Path) -> None:
    install("twin-recipes", recipes={"theirs": "twin_recipes"})
    (tmp_path / "site" / "twin_recipes" / "conv4-cifar10.toml").write_text("epochs = 2\n")
    with pytest.raises(UsageError, match="recipe 'conv4-cifar10' is offered by both ") as caught:
        registry.recipes()
    assert {"supermask", "twin-recipes"} <= set(str(caught.value).replace(";", "").split())


@pytest.mark.parametrize(
    ("group", "name", "words"),
    [
        ("strategies", "edge-popup", "strategy 'edge-popup' is offered by both "),
        ("architectures", "conv4", "architecture 'conv4' is offered by both "),
        ("datasets", "digits", "data set 'digits' is offered by both "),
        # One family, though its member is called otherwise.
        ("datasets", "folder:DIRECTORY", " is offered by both "),
        ("recipes", "zoo", "package of recipes 'zoo' is offered by both "),
    ],
)
def test_one_name_from_two_packages_is_an_error_that_names_both(
    install: Install, group: str, name: str, words: str
) -> None:
    install(f"rival-{group}", **{group: {name: f"rival_{group}:thing"}})
    with pytest.raises(UsageError, match=words) as caught:
        registry.installed(group)
    assert "uninstall one" in str(caught.value)
    assert {"supermask", f"rival-{group}"} <= set(str(caught.value).split())


def test_the_same_thing_declared_by_two_packages_is_no_conflict(install: Install) -> None:
    install("fork", strategies={"edge-popup": "supermask_strategies.edge_popup:EdgePopup"})
    assert registry.strategy_class("edge-popup").__name__ == "EdgePopup"


def _build(name: str) -> object:
    return registry.build(name, {"in_channels": 1, "image_size": 28, "num_classes": 10})


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (registry.strategy_class, "edge-pop", "unknown strategy 'edge-pop'; did you mean 'edge-popup'?"),
        (registry.open_dataset, "minst", "unknown data set 'minst'; did you mean 'mnist'?"),
        (registry.recipe, "conv4-cifar11", "no recipe 'conv4-cifar11'; did you mean 'conv4-cifar10'?"),
        (_build, "resnet-50", "unknown architecture 'resnet-50'; did you mean 'resnet50'?"),
        (
            _build,
            "torchvision:vgg_11",
            "unknown architecture 'torchvision:vgg_11'; did you mean 'torchvision:vgg11'?",
        ),
        (
            _build,
            "timm:convnext_ato",
            "unknown architecture 'timm:convnext_ato'; did you mean 'timm:convnext_atto'?",
        ),
        (
            registry.strategy_class,
            "zzz",
            "unknown strategy 'zzz'; known: bernoulli, dense, dnw, edge-popup, random-subnet",
        ),
    ],
)
def test_an_unknown_name_suggests_the_nearest(find: Callable[[str], object], name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(name)
    assert str(caught.value) == message


def test_an_unknown_argument_of_an_architecture_suggests_the_nearest() -> None:
    args = {"in_channels": 1, "image_size": 28, "num_classes": 10, "widht": 0.5}
    with pytest.raises(UsageError, match=r"^architecture conv2 has no argument 'widht'; did you mean 'width'\?$"):
        registry.build("conv2", args)


def test_listing_imports_nothing() -> None:
    script = """
import sys
from supermask import registry
for kind in ("strategies", "architectures", "datasets", "recipes"):
    for name, point in registry.installed(kind).items():
        print(name, registry.package_of(point))
foreign = {"torch", "torchvision", "timm", "sklearn", "pydantic", "supermask_strategies", "supermask_zoo"}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "edge-popup supermask" in ran.stdout.splitlines()
    assert "torchvision:NAME supermask" in ran.stdout.splitlines()
