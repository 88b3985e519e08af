"""The recipes against the table of the paper."""

from __future__ import annotations

import tomllib
from typing import Any, NamedTuple

import pytest
import torch

from supermask import registry
from supermask.config import SearchConfig, load_recipe, resolve


class Settings(NamedTuple):
    """One row of the table: what the papers say."""

    strategy: str
    arch: str
    data: str
    k: float | None
    optimizer: str
    lr: float
    momentum: float | None
    weight_decay: float
    batch_size: int
    schedule: str = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    distribution: str = "signed-constant"
    epochs: int = 100


def _subnet(arch: str, data: str, k: float = 0.5) -> Settings:
    return Settings("edge-popup", arch, data, k, "sgd", 0.1, 0.9, 1e-4, 128)


def _imagenet(arch: str) -> Settings:
    row = Settings("edge-popup", arch, "imagenet", 0.3, "sgd", 0.256, 0.875, 2**-15, 256)
    return row._replace(warmup_epochs=5, label_smoothing=0.1)


def _resnet18(strategy: str, k: float | None) -> Settings:
    return Settings(strategy, "resnet18-cifar", "cifar10", k, "sgd", 0.1, 0.9, 5e-4, 256)


def _dense_sgd(arch: str) -> Settings:
    return Settings("dense", arch, "cifar10", None, "sgd", 0.01, 0.9, 1e-4, 128, distribution="kaiming-normal")


def _dense_adam(arch: str, data: str, lr: float) -> Settings:
    row = Settings("dense", arch, data, None, "adam", lr, None, 0.0, 60)
    return row._replace(schedule="constant", distribution="kaiming-normal")


def _bernoulli(arch: str, lr: float, batch_size: int = 128) -> Settings:
    row = Settings("bernoulli", arch, "cifar10", None, "sgd", lr, 0.9, 0.0, batch_size)
    # Zhou et al.: signed constants of each layer's standard deviation, which is Xavier's.
    return row._replace(distribution="xavier-constant")


TABLE = {
    **{f"{conv}-cifar10": _subnet(conv, "cifar10") for conv in ("conv2", "conv4", "conv6", "conv8")},
    "fc-mnist": _subnet("fc", "mnist"),
    "fc250-mnist": _subnet("fc", "mnist")._replace(epochs=12),
    "resnet18-cifar10": _resnet18("edge-popup", 0.3),
    "resnet18-cifar10-dense-sgd": _resnet18("dense", None)._replace(distribution="kaiming-normal"),
    "resnet50-imagenet": _imagenet("resnet50"),
    "resnet101-imagenet": _imagenet("resnet101"),
    "wrn50-imagenet": _imagenet("wide-resnet50"),
    **{f"{conv}-cifar10-dense-sgd": _dense_sgd(conv) for conv in ("conv2", "conv4", "conv6", "conv8")},
    "conv2-cifar10-dense-adam": _dense_adam("conv2", "cifar10", 2e-4),
    **{f"{conv}-cifar10-dense-adam": _dense_adam(conv, "cifar10", 3e-4) for conv in ("conv4", "conv6", "conv8")},
    "fc-mnist-dense-adam": _dense_adam("fc", "mnist", 1.2e-3),
    **{f"{conv}-cifar10-bernoulli": _bernoulli(conv, 200) for conv in ("conv2", "conv4", "conv6")},
    "conv8-cifar10-bernoulli": _bernoulli("conv8", 800),
    "resnet18-cifar10-bernoulli": _bernoulli("resnet18-cifar", 400, batch_size=256),
}
# Channels, pixels and classes of the data sets.
PICTURES = {"mnist": (1, 28, 10), "cifar10": (3, 32, 10), "imagenet": (3, 224, 1000)}


def settings_of(config: SearchConfig) -> Settings:
    options: dict[str, Any] = config.strategy.options
    return Settings(
        strategy=config.strategy.name,
        arch=config.arch.name,
        data=config.data.name,
        k=options.get("k"),
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        momentum=config.optimizer.momentum if config.optimizer.name == "sgd" else None,
        weight_decay=config.optimizer.weight_decay,
        batch_size=config.batch_size,
        schedule=config.schedule.name,
        warmup_epochs=config.schedule.warmup_epochs,
        label_smoothing=config.label_smoothing,
        distribution=config.weights.distribution,
        epochs=config.epochs,
    )


def test_every_row_of_the_papers_table_is_a_recipe_and_every_recipe_a_row() -> None:
    assert set(registry.recipes()) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_says_what_the_paper_says(name: str) -> None:
    config = resolve(load_recipe(name))
    assert settings_of(config) == TABLE[name]
    assert config.recipe == name
    # The paper's accuracy is that of the last epoch, on pictures augmented as suits the data set.
    assert (config.keep, config.data.validation, config.data.augment) == ("last", 0.0, "auto")
    assert not config.weights.scaled


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_builds_its_network_for_its_data_and_opens_with_a_line_about_itself(name: str) -> None:
    config = resolve(load_recipe(name))
    channels, size, classes = PICTURES[config.data.name]
    args = {"in_channels": channels, "image_size": size, "num_classes": classes, **config.arch.args}
    with torch.device("meta"):
        model = registry.build(config.arch.name, args)
        assert model(torch.empty(2, channels, size, size)).shape == (2, classes)
    assert registry.recipe(name).startswith("# ")


def test_the_practitioners_network_has_two_hidden_layers_of_250() -> None:
    assert resolve(load_recipe("fc250-mnist")).arch.args == {"widths": [250, 250]}


def test_the_dense_resnet_is_the_usual_one_with_affine_norms() -> None:
    assert resolve(load_recipe("resnet18-cifar10-dense-sgd")).arch.args == {"affine": True, "bias": True}


def test_flags_go_over_a_recipe() -> None:
    config = resolve(load_recipe("conv4-cifar10"), {"epochs": 10, "strategy": {"options": {"k": 0.3}}})
    expected = TABLE["conv4-cifar10"]._replace(epochs=10, k=0.3)
    assert settings_of(config) == expected


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_names_its_strategy_and_architecture_so_that_flags_can_replace_them(name: str) -> None:
    tables = tomllib.loads(registry.recipe(name))
    assert {"name"} <= set(tables["arch"])
    assert (
        resolve(load_recipe(name), {"strategy": {"name": "random-subnet"}, "arch": {"name": "conv2"}}).arch.args == {}
    )
