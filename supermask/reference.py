"""Checkpoints of the papers' public code, as artifacts.

Such a file holds a `state_dict` with keys like `module.layer2.0.conv1.weight` and `module.layer2.0.conv1.scores`. It
knows no seed, so an artifact keeps what is left: the signs of the kept weights where they are one constant, their
values otherwise.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supermask import artifact as artifacts
from supermask import registry
from supermask.artifact import Artifact
from supermask.config import WeightsConfig, make_strategy
from supermask.errors import IntegrityError, NotFoundError, UsageError, did_you_mean
from supermask.manifest import UNHASHED, ArchEntry, ArtifactConfig, InputEntry, LayerEntry, StrategyEntry
from supermask.masking import plan
from supermask.select import kept_count, top_k_mask


@dataclass(frozen=True)
class _Input:
    """What the reference code feeds its networks for one data set: sizes, and its normalisation."""

    channels: int
    image_size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fits(self, inputs: int, classes: int) -> bool:
        """Whether a network with so many inputs (channels or, if it begins fully connected, pixels) is of this data."""
        return classes == self.classes and inputs in {self.channels, self.channels * self.image_size**2}


INPUTS = {
    "mnist": _Input(1, 28, 10, (0.1307,), (0.3081,)),
    "cifar10": _Input(3, 32, 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": _Input(3, 32, 100, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "imagenet": _Input(3, 224, 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def import_checkpoint(
    file: Path | str,
    *,
    arch: str,
    strategy: str,
    k: float,
    data: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
) -> Artifact:
    """A checkpoint of the reference code as an artifact.

    The mask of a layer that has scores keeps its n - int((1-k) * n) largest |scores| (Ramanujan et al., Algorithm 1); a
    layer without scores is kept whole. Weights are matched by name or, where the code names them otherwise, by order.

    Args:
        file: written by `torch.save`, on whatever device: a `state_dict`, or a dictionary that holds one by that name.
            Only tensors and plain values are loaded from it; nothing in it is run.
        arch: the installed architecture that was trained.
        strategy: what found the mask.
        k: the fraction of weights kept, which the file does not tell.
        data: what it was trained on: mnist, cifar10, cifar100 or imagenet; by default the one that fits its shapes.
        arch_args: of the architecture, beside what follows from the data.

    Raises:
        NotFoundError: no such file.
        IntegrityError: it is no such checkpoint, or holds numbers that are none.
        UsageError: an unknown name or value, or an architecture whose weights are others.
    """
    file = Path(file)
    options = make_strategy(strategy, {"k": k}).model_dump(mode="json")
    theirs = _state(file)
    if not any(key.endswith(".scores") for key in theirs):
        raise IntegrityError(
            f"{file}: no layer has scores, so it is no checkpoint of a mask search: it has {_few(theirs)}"
        )
    weights = [value for key, value in theirs.items() if key.endswith(".weight") and value.dim() > 1]
    if not weights:
        raise IntegrityError(f"{file}: no layer has a weight: it has {_few(theirs)}")
    first, last = weights[0], weights[-1]
    name = data or next((name for name, entry in INPUTS.items() if entry.fits(first.shape[1], len(last))), "")
    if name not in INPUTS:
        asked = f"data {name!r}" if data else f"{first.shape[1]} inputs and {len(last)} classes fit no data set"
        raise UsageError(f"{asked}: {did_you_mean(name, INPUTS)}; say which with --data")
    entry = INPUTS[name]
    if not entry.fits(first.shape[1], len(last)):
        raise UsageError(
            f"data {name!r} does not fit a checkpoint with {first.shape[1]} inputs and {len(last)} classes"
        )
    args = {
        **(arch_args or {}),
        "in_channels": entry.channels,
        "image_size": entry.image_size,
        "num_classes": len(last),
    }
    if any(key.endswith(".running_mean") and f"{key[:-13]}.weight" in theirs for key in theirs):
        args["affine"] = True
    # Its names and shapes alone are of interest.
    with torch.device("meta"):
        model = registry.build(arch, args)
    ours = _matched(model, theirs, arch)
    layers, masks, values = [], {}, {}
    names = [layer.name for layer in plan(model, WeightsConfig())]
    for layer in names:
        weight, scores = ours[layer], ours.get(f"{layer.removesuffix('.weight')}.scores")
        mask = torch.ones_like(weight, dtype=torch.bool)
        if scores is not None:
            mask = top_k_mask(scores, kept_count(weight.numel(), k))
        layers.append(_entry(layer, weight, mask, masked=scores is not None))
        masks[layer], values[layer] = mask, weight
    config = ArtifactConfig(
        arch=ArchEntry(name=arch, args=args),
        seed=0,
        strategy=StrategyEntry(name=strategy, options=options),
        layers=layers,
        input=InputEntry(
            shape=[entry.channels, entry.image_size, entry.image_size], mean=list(entry.mean), std=list(entry.std)
        ),
        # The file does not name its classes either.
        labels=[str(label) for label in range(len(last))],
        provenance={
            "dataset": name,
            "origin": f"Imported from a checkpoint of the reference code, SHA-256 {_sha256(file)}.",
            "supermask": version("supermask"),
            "torch": torch.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        sha256=UNHASHED,
    )
    state = {key: ours[key] for key in model.state_dict() if key not in names}
    return artifacts.encode(config, masks, values, state)


def _state(file: Path) -> dict[str, Tensor]:
    """The tensors of the file, on the CPU, by key without `module.`."""
    try:
        stream = file.open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"no checkpoint {file}") from error
    except OSError as error:
        raise NotFoundError(f"checkpoint {file} cannot be read ({error.strerror})") from error
    with stream:
        try:
            # weights_only: tensors and plain values; whatever else the pickle asks for is refused, unrun.
            content = torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise IntegrityError(
                f"{file} holds more than tensors and plain values, which would have to be run to be read, or is no "
                "file of torch.save; where it was made, save its state_dict alone"
            ) from error
        # What the documentation of pickle says a damaged file may raise besides, and torch's own.
        except (AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, ValueError) as error:
            raise IntegrityError(f"{file} is no complete file of torch.save ({type(error).__name__})") from error
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise IntegrityError(f"{file}: no state_dict: a dictionary of tensors, or one that holds it, was expected")
    state = {str(key).removeprefix("module."): value.detach() for key, value in found.items()}
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta:
            raise IntegrityError(f"{file}: {key} is no plain tensor of numbers")
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise IntegrityError(f"{file}: {key} holds numbers that are infinite, too large for float32, or none")
    return state


def _matched(model: nn.Module, theirs: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Their tensors, and scores, under the names of `model`, in its shapes: by name, or else the n-th for the n-th.

    The reference code has 1x1 convolutions for linear layers, whose shapes end in ones.
    """
    expected: Mapping[str, Tensor] = model.state_dict()
    given = {key: value for key, value in theirs.items() if not key.endswith(".scores")}
    names = {key: key for key in expected} if set(expected) == set(given) else _by_order(expected, given, arch)
    ours: dict[str, Tensor] = {}
    for key, tensor in expected.items():
        their = names[key]
        ours[key] = _shaped(given[their], tensor, key, their, arch)
        scores = theirs.get(f"{their.removesuffix('.weight')}.scores")
        if scores is not None and key.endswith(".weight"):
            ours[f"{key.removesuffix('.weight')}.scores"] = _shaped(scores, tensor, key, f"scores of {their}", arch)
    return ours


def _by_order(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], arch: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for kind in dict.fromkeys(map(_kind, expected.items())):
        mine = [key for key, tensor in expected.items() if _kind((key, tensor)) == kind]
        their = [key for key, tensor in given.items() if _kind((key, tensor)) == kind]
        if len(mine) != len(their):
            raise UsageError(
                f"{arch} has {len(mine)} tensors like {mine[0]}, the checkpoint {len(their)}: {_few(their)}"
            )
        names |= zip(mine, their, strict=True)
    unknown = set(given) - set(names.values())
    if unknown:
        raise UsageError(f"the checkpoint has {_few(sorted(unknown))}, for which {arch} has no place")
    return names


def _kind(item: tuple[str, Tensor]) -> tuple[str, bool]:
    """What a tensor is: the last part of its name, and whether it is a layer's (more than one dimension)."""
    key, tensor = item
    return key.rpartition(".")[2], tensor.dim() > 1


def _shaped(tensor: Tensor, expected: Tensor, key: str, their: str, arch: str) -> Tensor:
    shape = list(tensor.shape)
    while len(shape) > expected.dim() and shape[-1] == 1:
        shape.pop()
    if shape != list(expected.shape):
        raise UsageError(f"{arch} has {key} {list(expected.shape)}, the checkpoint {their} {list(tensor.shape)}")
    return tensor.reshape(shape).to(expected.dtype).contiguous()


def _entry(name: str, weight: Tensor, mask: Tensor, *, masked: bool) -> LayerEntry:
    magnitudes = weight[mask].abs()
    constant = float(magnitudes[0]) if len(magnitudes) else 0.0
    one = bool((magnitudes == constant).all()) and constant > 0
    return LayerEntry(
        name=name,
        shape=list(weight.shape),
        masked=masked,
        kept=int(mask.sum()),
        values="signs" if one else "stored",
        std=constant if one else None,
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _few(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")
