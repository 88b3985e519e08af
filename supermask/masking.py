"""Masks on any `nn.Module`: plan its layers, draw their weights, attach a strategy, bake the result.

A strategy's masker is registered as a parametrization of each weight (torch.nn.utils.parametrize), so a module needs
no special layers and computes with the masked weight wherever it reads `weight`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from supermask.bitpack import pack
from supermask.config import WeightDistribution, WeightsConfig
from supermask.draw import Distribution, draw
from supermask.errors import UsageError
from supermask.randomness import derive, generator
from supermask.strategy import Masker, Strategy

MASKABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
WEIGHT_NAMES = ("weight", "in_proj_weight")
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

DRAWN_AS: dict[WeightDistribution, Distribution] = {
    "signed-constant": "signed-constant",
    "kaiming-normal": "normal",
    "kaiming-uniform": "uniform",
    "xavier-normal": "normal",
    "xavier-constant": "signed-constant",
    "unsigned-constant": "constant",
}


@dataclass(frozen=True)
class Layer:
    """One weight that is drawn from the seed: its `state_dict` key, shape, draw, and whether it is masked."""

    name: str
    shape: tuple[int, ...]
    distribution: Distribution
    std: float
    masked: bool

    @property
    def n(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


def plan(model: nn.Module, weights: WeightsConfig, density: float = 1.0) -> list[Layer]:
    """The layers of `model`, in `state_dict` order: every weight of its linear, convolution and attention modules.

    Args:
        model: plain, no strategy attached.
        weights: the distribution, and which layers stay whole.
        density: fraction of weights kept, by which `weights.scaled` scales.

    Raises:
        UsageError: the model has no such weight, or two modules share one.
    """
    owners: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in owners:
            raise UsageError(f"{owners[id(value)]} and {name} are one shared tensor, which an artifact cannot keep")
        owners[id(value)] = name
    layers = []
    for name, weight in _weights(model):
        shape = tuple(weight.shape)
        std = standard_deviation(shape, weights.distribution) * (math.sqrt(1 / density) if weights.scaled else 1.0)
        layers.append(Layer(name, shape, DRAWN_AS[weights.distribution], std, masked=True))
    if not layers:
        raise UsageError(f"{type(model).__name__} has no linear, convolution or attention weight to mask")
    if weights.first_layer_dense:
        layers[0] = replace(layers[0], masked=False)
    if weights.last_layer_dense:
        layers[-1] = replace(layers[-1], masked=False)
    return layers


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    owned = {
        f"{prefix}.{weight}" if prefix else weight
        for prefix, module in model.named_modules()
        if isinstance(module, MASKABLE)
        for weight in WEIGHT_NAMES
    }
    for name, value in model.state_dict(keep_vars=True).items():
        if name in owned and isinstance(value, nn.Parameter):
            yield name, value


def standard_deviation(shape: tuple[int, ...], distribution: WeightDistribution) -> float:
    """sqrt(2 / fan_in), or Xavier's sqrt(2 / (fan_in + fan_out)), of a weight [out, in, ...]."""
    field = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * field, shape[0] * field
    return math.sqrt(2 / (fan_in + fan_out if distribution.startswith("xavier") else fan_in))


def draw_weights(model: nn.Module, layers: list[Layer], seed: int) -> None:
    """Set every layer's weight to its draw under `seed`, layers' biases to 0, norms' scales to 1 and shifts to 0.

    Parameters of any other kind (a class token, an embedding, a recurrent cell) keep what they have.
    """
    for module in model.modules():
        starts = {"bias": 0.0, "in_proj_bias": 0.0} if isinstance(module, MASKABLE) else {}
        starts = {"weight": 1.0, "bias": 0.0} if isinstance(module, NORMS) else starts
        for part, start in starts.items():
            value = getattr(module, part, None)
            if value is not None:
                nn.init.constant_(value, start)
    with torch.no_grad():
        for layer in layers:
            model.get_parameter(layer.name).copy_(torch.from_numpy(drawn(layer, seed)))


def drawn(layer: Layer, seed: int):  # type: ignore[no-untyped-def]
    """The layer's weights under `seed`: float32 of its shape."""
    return draw(seed, layer.name, layer.shape, layer.distribution, layer.std)


Maskers = dict[str, Masker]


def attach(model: nn.Module, layers: list[Layer], strategy: Strategy, seed: int) -> Maskers:
    """Put a masker of `strategy` on every masked layer, and say what is trained.

    Weights require gradients where the strategy trains them; parameters that are not layers (biases, norms' scales and
    shifts, embeddings, ..., where the module has them) are trained beside the masks.

    Returns:
        The maskers by layer name.
    """
    maskers: Maskers = {}
    for layer in layers:
        path, _, part = layer.name.rpartition(".")
        weight = model.get_parameter(layer.name).requires_grad_(strategy.trains_weights)
        if layer.masked:
            masker = strategy.attach(weight.detach(), generator(seed, "attach", layer.name))
            parametrize.register_parametrization(model.get_submodule(path), part, masker, unsafe=True)
            maskers[layer.name] = masker
    return maskers


def reseed(maskers: Maskers, device: torch.device, seed: int, *purpose: str | int) -> None:
    """Seed the generator that each masker samples from, for one step; alike on every process."""
    for name, masker in maskers.items():
        if masker.generator is None:
            masker.generator = torch.Generator(device)
        masker.generator.manual_seed(derive(seed, "sample", name, *purpose))


def original(model: nn.Module, name: str) -> Tensor:
    """The weight `name` beneath its masker: as drawn, or as trained so far."""
    path, _, part = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, part):
        weights: Tensor = module.parametrizations[part].original  # type: ignore[index, union-attr]
        return weights.detach()
    return getattr(module, part).detach()  # type: ignore[no-any-return]


@torch.no_grad()
def masks(model: nn.Module, maskers: Maskers) -> dict[str, Tensor]:
    """The mask that each masker keeps: bool, on the CPU."""
    return {name: masker.mask(original(model, name)).cpu() for name, masker in maskers.items()}


def hash_of(masks: dict[str, Tensor]) -> str:
    """SHA-256 of masks: equal for equal masks."""
    total = hashlib.sha256()
    for name, mask in masks.items():
        total.update(name.encode() + pack(mask.numpy()).tobytes())
    return total.hexdigest()


def plain_state(model: nn.Module, layers: list[Layer]) -> dict[str, Tensor]:
    """The persistent state beside the layers, as the plain architecture's `state_dict` names it, on the CPU."""
    names = {layer.name for layer in layers}
    return {
        key: value.detach().cpu()
        for key, value in model.state_dict().items()
        if ".parametrizations." not in f".{key}" and key not in names
    }
