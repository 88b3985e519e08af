"""An artifact as an ONNX file, checked before it is put in place."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from supermask.artifact import Artifact
from supermask.data import View
from supermask.errors import StorageError, UsageError, did_you_mean
from supermask.files import write_atomically
from supermask.network import load_into, own_copy
from supermask.onnx.builder import Builder
from supermask.onnx.check import Agreement, Batch, check
from supermask.onnx.fallback import by_torch
from supermask.onnx.graph import add_network
from supermask.onnx.operators import UnsupportedError
from supermask.onnx.weights import DTYPES, FORMS, OPSETS, Dtype, Form, Weights, add_weights, form_of

log = logging.getLogger(__name__)

Input = Literal["float", "uint8"]
INPUTS: tuple[Input, ...] = get_args(Input)
GIVEN = "pictures"

CHECKED_AT_ONCE = 16
RANDOM_BATCHES = (1, 3)  # of two sizes, since the batch is dynamic


@dataclass(frozen=True)
class Layout:
    """What an ONNX file holds.

    Attributes:
        weights: in which form.
        dtype: in which dense weights are stored; arithmetic is float32.
        input: `float` takes normalised float32 [N, C, H, W]; `uint8` takes pictures [N, H, W, C] and normalises them.
        softmax: give probabilities instead of logits.
    """

    weights: Form
    dtype: Dtype = "float32"
    input: Input = "float"
    softmax: bool = False


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        layout: what it holds.
        size: bytes.
        parameters: weights that were drawn or masked, kept or not.
        agreement: how it agreed with torch; None where that was not checked.
    """

    path: Path
    layout: Layout
    size: int
    parameters: int
    agreement: Agreement | None


def export_onnx(  # noqa: PLR0913 - all but two are keywords that say what the file is to hold
    artifact: Artifact,
    path: Path | str,
    *,
    model: nn.Module | None = None,
    weights: Form | None = None,
    dtype: Dtype = "float32",
    input: Input = "float",
    softmax: bool = False,
    check: bool = True,
    pictures: Tensor | None = None,
) -> Exported:
    """Write an artifact as an ONNX file that gives logits [N, classes] for any number N of pictures.

        supermask.export_onnx(supermask.read("my-artifact"), "model.onnx")

    Args:
        artifact: what `supermask.read` gives.
        path: the file.
        model: a module of the searched architecture, where that is not an installed one.
        weights: `seed` holds one bit a weight and draws the signs again, `ternary` 1.6 bits, `dense` all of `dtype`;
            by default the smallest that the artifact allows.
        dtype: float32, or float16 (dense weights alone: halves the file, arithmetic stays float32).
        input: `float`: normalised float32 [N, C, H, W]; `uint8`: pictures [N, H, W, C], normalised in the file.
        softmax: give probabilities instead of logits.
        check: compare with torch, and small forms with the dense one, before the file is put in place.
        pictures: to compare on beside random ones, uint8 [N, C, H, W] of any size.

    Raises:
        UsageError: the artifact cannot be written so; names the layer or the operator.
        ArtifactError: the architecture is not installed, or the weights' hash is wrong.
        ExportError: the file does not compute what torch computes; nothing was written.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    for option, value, known in (
        ("weights", FORMS[0] if weights is None else weights, FORMS),
        ("dtype", dtype, DTYPES),
        ("input", input, INPUTS),
    ):
        if value not in known:
            raise UsageError(f"--{option} {value}: {did_you_mean(value, known)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the file, such as {path / 'model.onnx'}")
    network = load_into(artifact, None if model is None else own_copy(model))
    if dtype == "float16":
        weights = weights or "dense"
        _round_to_float16(artifact, network)
    form = form_of(artifact, weights_of(artifact, network), weights)
    if dtype == "float16" and form != "dense":
        raise UsageError(f"--dtype float16 is for --weights dense; {form} weights have no dtype")
    layout = Layout(form, dtype, input, softmax)
    content = build(artifact, network, layout).SerializeToString()
    agreement = _checked(artifact, network, layout, content, pictures) if check else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free space or name another") from error
    return Exported(path, layout, len(content), sum(layer.n for layer in artifact.config.layers), agreement)


def weights_of(artifact: Artifact, network: nn.Module) -> Weights:
    """The weights of every layer in a network that was filled from the artifact."""
    state = network.state_dict()
    return {layer.name: state[layer.name].numpy() for layer in artifact.config.layers}


def build(artifact: Artifact, network: nn.Module, layout: Layout) -> onnx.ModelProto:
    """The ONNX model of an artifact.

    Args:
        artifact: masks, seed, input and labels.
        network: filled from it, in evaluation mode on the CPU.
        layout: with a form that the artifact allows.

    Raises:
        UnsupportedError: an operator has no counterpart; names it and its place.
    """
    try:
        model = _built(artifact, network, layout)
    except UnsupportedError as error:
        if layout.weights != "dense":
            raise UnsupportedError(f"{error}; take --weights dense, which torch's own exporter can write") from error
        log.info("%s; torch's own exporter writes the file", error)
        if layout.dtype != "float32":
            raise UnsupportedError(f"{error}, and torch's own exporter writes float32 alone") from error
        model = by_torch(_whole(artifact, network, layout), _example(artifact, layout), GIVEN, _output(layout), error)
    helper.set_model_props(model, _metadata(artifact, layout))
    return model


def _built(artifact: Artifact, network: nn.Module, layout: Layout) -> onnx.ModelProto:
    config = artifact.config
    graph = Builder(OPSETS[layout.weights])
    add_weights(graph, artifact, weights_of(artifact, network), layout.weights, layout.dtype)
    graph.scope = "/normalised"
    pictures = _normalised(graph, artifact) if layout.input == "uint8" else GIVEN
    logits = add_network(graph, network, config.input.shape, pictures, [layer.name for layer in config.layers])
    if layout.softmax:
        graph.op("Softmax", logits.name, axis=1, name=_output(layout))
    else:
        graph.op("Identity", logits.name, name=_output(layout))
    channels, height, width = config.input.shape
    given = ("N", height, width, channels) if layout.input == "uint8" else ("N", channels, height, width)
    element = TensorProto.UINT8 if layout.input == "uint8" else TensorProto.FLOAT
    opsets = [helper.make_opsetid("", graph.opset)]
    return helper.make_model(
        graph.graph(
            config.arch.name,
            [helper.make_tensor_value_info(GIVEN, element, given)],
            [helper.make_tensor_value_info(_output(layout), TensorProto.FLOAT, ("N", logits.shape[1]))],
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="supermask",
        producer_version=version("supermask"),
    )


def _output(layout: Layout) -> str:
    return "probabilities" if layout.softmax else "logits"


def _view(artifact: Artifact) -> View:
    entry = artifact.config.input
    return View(entry.shape[1], tuple(entry.mean), tuple(entry.std), torch.device("cpu"))


def _normalised(graph: Builder, artifact: Artifact) -> str:
    """float32 [N, C, H, W] of uint8 [N, H, W, C]: what `supermask.data.View` computes, bit for bit."""
    mean, std = (graph.constant(values.numpy()) for values in _view(artifact).statistics)
    pixels = graph.cast(graph.op("Transpose", GIVEN, perm=[0, 3, 1, 2]), TensorProto.FLOAT)
    return graph.op("Div", graph.op("Sub", pixels, mean), std)


def _metadata(artifact: Artifact, layout: Layout) -> dict[str, str]:
    """What a reader of the file alone must know, by string as ONNX has it; lists and objects as JSON."""
    config = artifact.config
    weights, kept = (sum(getattr(layer, field) for layer in config.layers) for field in ("n", "kept"))
    about = {
        "version": version("supermask"),
        "arch": config.arch.name,
        "seed": str(config.seed),
        "k": repr(kept / weights),
        "weights": layout.weights,
        "weights_sha256": config.sha256.weights,
        "input": json.dumps({"type": layout.input, **config.input.model_dump(mode="json")}),
        "labels": json.dumps(config.labels, ensure_ascii=False),
    }
    return {f"supermask.{key}": value for key, value in about.items()}


class _Whole(nn.Module):
    """The network with what the layout adds before and after, for comparison and for torch's exporter."""

    def __init__(self, network: nn.Module, view: View | None, softmax: bool) -> None:
        super().__init__()
        self.network, self.view, self.softmax = network, view, softmax

    def forward(self, pictures: Tensor) -> Tensor:
        seen = self.view.of(pictures.permute(0, 3, 1, 2)) if self.view else pictures
        logits: Tensor = self.network(seen)
        return logits.softmax(1) if self.softmax else logits


def _whole(artifact: Artifact, network: nn.Module, layout: Layout) -> nn.Module:
    return _Whole(network, _view(artifact) if layout.input == "uint8" else None, layout.softmax).eval()


def _example(artifact: Artifact, layout: Layout) -> Tensor:
    channels, height, width = artifact.config.input.shape
    if layout.input == "uint8":
        return torch.zeros(2, height, width, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, height, width)


def _round_to_float16(artifact: Artifact, network: nn.Module) -> None:
    """Round the layers' weights in place, so that torch computes with those that are stored."""
    state = network.state_dict()
    for layer in artifact.config.layers:
        weights = state[layer.name]
        if not bool((weights.abs() <= torch.finfo(torch.float16).max).all()):
            raise UsageError(f"--dtype float16: layer {layer.name} has weights above 65504; take float32")
        weights.copy_(weights.half())


def _checked(
    artifact: Artifact, network: nn.Module, layout: Layout, content: bytes, pictures: Tensor | None
) -> Agreement:
    dense = None
    if layout.weights != "dense":
        dense = build(artifact, network, Layout("dense", "float32", layout.input, layout.softmax)).SerializeToString()
    whole = _whole(artifact, network, Layout(layout.weights, softmax=layout.softmax))
    return check(content, dense, whole, _batches(artifact, layout, pictures))


def _batches(artifact: Artifact, layout: Layout, pictures: Tensor | None) -> Iterator[Batch]:
    channels, size, _ = artifact.config.input.shape
    view, random = _view(artifact), torch.Generator().manual_seed(artifact.config.seed)
    for n in RANDOM_BATCHES:
        name, shape = f"{n} random pictures", (n, channels, size, size)
        if layout.input == "uint8":
            noise = torch.randint(256, shape, generator=random, dtype=torch.uint8)
            yield Batch(name, _channels_last(noise), view.of(noise))
        else:
            seen = torch.randn(shape, generator=random)
            yield Batch(name, seen.numpy(), seen)
    for start in range(0, 0 if pictures is None else len(pictures), CHECKED_AT_ONCE):
        assert pictures is not None
        some = pictures[start : start + CHECKED_AT_ONCE]
        name = f"real pictures {start} to {start + len(some) - 1}"
        if layout.input == "uint8":
            some = _resized(some, size)
            yield Batch(name, _channels_last(some), view.of(some))
        else:
            seen = view.of(some).contiguous()
            yield Batch(name, seen.numpy(), seen)


def _resized(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-1] == size:
        return pictures
    pixels = F.interpolate(pictures.float(), size=(size, size), mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _channels_last(pictures: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
