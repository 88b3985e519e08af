"""From an architecture's name to a module: built for the data, and rebuilt from an artifact."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from supermask import registry
from supermask.artifact import Artifact
from supermask.config import SearchConfig
from supermask.datasets import Dataset
from supermask.errors import ArtifactError, NotFoundError, UsageError
from supermask.manifest import CONFIG, TENSORS, LayerEntry
from supermask.randomness import derive

log = logging.getLogger(__name__)

# What stands before the class of a searched module that is no installed architecture: only its author can build it.
OWN_MODULE = "module:"

# Sizes that architectures of the field are made for; 299 is Inception's.
USUAL_SIZES = (16, 32, 64, 128, 224, 256, 299, 384)


def for_data(config: SearchConfig, dataset: Dataset) -> tuple[nn.Module, dict[str, Any]]:
    """The configured architecture built for `dataset`, and its complete arguments.

    Pictures keep their size, or take the configured one. If the architecture refuses the data's own size, the next
    larger usual size that it takes is chosen, and pictures are upsampled.

    Raises:
        UsageError: an unknown architecture or argument, or no size fits.
    """
    own = {"in_channels": dataset.channels, "num_classes": len(dataset.classes)}
    for key in {*own, "image_size"} & set(config.arch.args):
        raise UsageError(f"arch.args.{key} comes from the data; set the picture size with --set data.image_size=...")
    sizes = [config.data.image_size or dataset.image_size]
    if config.data.image_size is None:
        sizes += [size for size in USUAL_SIZES if size > dataset.image_size]
    refusal: UsageError | None = None
    for size in sizes:
        args = {**config.arch.args, **own, "image_size": size}
        try:
            # What a network has beside its layers (embeddings of places, say) starts from the framework's generator.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(config.seed, "architecture"))
                model = registry.build(config.arch.name, args)
        except UsageError as error:
            if not isinstance(error.__cause__, ValueError):
                raise
            refusal = refusal or error
            continue
        if size != sizes[0]:
            log.info(
                "upsampling %s from %d to %d pixels, which %s needs", dataset.name, sizes[0], size, config.arch.name
            )
        return model, args
    assert refusal is not None
    raise refusal


def admit(module: nn.Module, dataset: Dataset, image_size: int) -> None:
    """Check that a user's module can be searched, before anything is trained.

    Raises:
        UsageError: it has weights that a parametrization makes or whose shape is not known yet, or it does not map two
            of the data set's pictures to logits [2, classes].
    """
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            raise UsageError(f"{name or type(part).__name__} has a parametrized weight; search the module without it")
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UsageError(f"{name} has no shape yet; call the (lazy) module on some pictures first")
    pictures = torch.zeros(2, dataset.channels, image_size, image_size)
    trial, expected = copy.deepcopy(module).eval(), (2, len(dataset.classes))
    try:
        with torch.no_grad():
            logits = trial(pictures)
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"the module cannot take pictures {list(pictures.shape)} ({reason})") from error
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if given != expected:
        raise UsageError(f"the module gives {given} for two pictures; expected logits {expected} for {dataset.name}")


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of a user's module, in float32 on the CPU.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module).cpu().float()
    except RuntimeError as error:  # torch.nn.utils.weight_norm, of old, leaves tensors that cannot be copied
        raise UsageError(f"{type(module).__name__} cannot be copied ({error})") from error


def load_into(artifact: Artifact, model: nn.Module | None = None) -> nn.Module:
    """The artifact's subnetwork as a module in evaluation mode: plain weights, those not kept zero.

    Args:
        artifact: as read.
        model: the module to fill, for an architecture that is not installed; by default a new one is built.

    Raises:
        NotFoundError: the architecture is not installed.
        ArtifactError: it has other weights, or the weights' hash is wrong.
    """
    if model is None:
        # First without memory, so that an artifact that lies about its size is refused before any is taken.
        try:
            with torch.device("meta"):
                check_shapes(artifact, _build(artifact))
        except ArtifactError as error:
            # Some networks read values while they are built, which "meta" tensors do not have (RegNet's does).
            if "meta tensor" not in str(error):
                raise
        with _NoRandomFill():
            model = _build(artifact)
    check_shapes(artifact, model)
    # The model's own, since some (MNASNet) read in it which version they are.
    state = model.state_dict()
    state.update(artifact.state)
    for layer, weights in artifact.weights():
        state[layer.name] = torch.from_numpy(weights)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def check(artifact: Artifact) -> None:
    """Check what reading leaves open: the weights' hash, and the shapes, unless the module is its author's own.

    Raises:
        NotFoundError: the architecture is not installed.
        ArtifactError: a rule of docs/format.md is broken.
    """
    if artifact.config.arch.name.startswith(OWN_MODULE):
        for _ in artifact.weights():
            pass
    else:
        load_into(artifact)


def _build(artifact: Artifact) -> nn.Module:
    arch = artifact.config.arch
    if arch.name.startswith(OWN_MODULE):
        raise NotFoundError(
            f"{CONFIG}: arch: {arch.name} is its author's own module, not an installed architecture: give one to "
            "supermask.load(..., model=...) in Python"
        )
    try:
        registry.find("architectures", arch.name)
    except UsageError as error:
        raise NotFoundError(f"{CONFIG}: arch: {error}; if a package brings it, install that") from error
    try:
        return registry.build(arch.name, arch.args)
    except UsageError as error:
        raise ArtifactError(f"{CONFIG}: arch: {error}") from error


def check_shapes(artifact: Artifact, model: nn.Module) -> None:
    """Raise ArtifactError unless the artifact has exactly the model's state, layers in its order."""
    theirs: Mapping[str, Tensor] = model.state_dict()
    layers: dict[str, LayerEntry] = {layer.name: layer for layer in artifact.config.layers}
    arch = artifact.config.arch.name
    for name, layer in layers.items():
        if name not in theirs or list(theirs[name].shape) != layer.shape:
            expected = list(theirs[name].shape) if name in theirs else "no such weight"
            raise ArtifactError(f"{CONFIG}: layer {name}: {arch} has {expected}, not {layer.shape}")
    if list(layers) != [name for name in theirs if name in layers]:
        raise ArtifactError(f"{CONFIG}: layers: not in the order of the state_dict of {arch}")
    for key, value in artifact.state.items():
        if key in layers or key not in theirs:
            raise ArtifactError(f"{TENSORS}: tensor state/{key}: {arch} has no such state")
        if (value.shape, value.dtype) != (theirs[key].shape, theirs[key].dtype):
            expected = f"{theirs[key].dtype} {list(theirs[key].shape)}"
            raise ArtifactError(
                f"{TENSORS}: tensor state/{key}: {expected} expected, not {value.dtype} {list(value.shape)}"
            )
    for key in theirs:
        if key not in layers and key not in artifact.state:
            raise ArtifactError(f"{TENSORS}: tensor state/{key}: missing, {arch} has it")


class _NoRandomFill(TorchFunctionMode):
    """Skips random initialisation: every value it would set is set from the artifact."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {Tensor.uniform_, Tensor.normal_}:
            return args[0]
        return func(*args, **(kwargs or {}))
