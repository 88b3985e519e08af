"""Shapes, parts, sums and what leaves a tensor alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from supermask.onnx.operators import At, Value, emits, length, operand, require


@emits(
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    # Stochastic depth, by name since it is torchvision's: importing that costs half a second.
    "torchvision.ops.stochastic_depth.stochastic_depth",
    "contiguous",
    "clone",
    "detach",
    "float",
    torch.clone,
    torch.detach,
)
def nothing(at: At, x: Value, p: float = 0.5, mode: str = "", training: bool = False, inplace: bool = False) -> str:
    """What leaves a picture alone in evaluation."""
    require(training is not True, "stays random in evaluation")
    return at.graph.op("Identity", x.name)


@emits(
    nn.Flatten,
    nn.Unflatten,
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    torch.unflatten,
    "flatten",
    "reshape",
    "squeeze",
    "unflatten",
    "unsqueeze",
    "view",
)
def reshaped(at: At, x: Value, *how: Any, **more: Any) -> str:
    """The same values in another shape, which tracing found out."""
    return at.like(x.name)


@emits(torch.permute, "permute")
def permuted(at: At, x: Value, *dims: Any) -> str:
    """Dimensions in another order."""
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return at.graph.op("Transpose", x.name, perm=[dim % len(x.shape) for dim in order])


@emits(torch.transpose, "transpose")
def transposed(at: At, x: Value, dim0: int, dim1: int) -> str:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return at.graph.op("Transpose", x.name, perm=order)


@emits(torch.cat, torch.concat)
def concatenated(at: At, tensors: Sequence[Value], dim: int = 0) -> str:
    """Tensors one after another."""
    return at.graph.op("Concat", *(tensor.name for tensor in tensors), axis=dim % len(at.shape))


@emits(torch.stack)
def stacked(at: At, tensors: Sequence[Value], dim: int = 0) -> str:
    """Tensors one after another along a new dimension."""
    axis = dim % len(at.shape)
    parts = [at.graph.op("Unsqueeze", tensor.name, at.graph.integers(axis)) for tensor in tensors]
    return at.graph.op("Concat", *parts, axis=axis)


@emits(torch.chunk, torch.split, "chunk", "split")
def parted(at: At, x: Value, size: Any, dim: int = 0) -> list[str]:
    """Parts along a dimension, whose lengths tracing found out."""
    axis = dim % len(x.shape)
    lengths = at.graph.integers(*(length(shape[axis]) for shape in at.shapes))
    names = [f"{at.graph.scope}.{part}" for part in range(len(at.shapes))]
    return at.graph.ops("Split", [x.name, lengths], names, axis=axis)


@emits(operator.getitem)
def item(at: At, x: Value, index: Any) -> str:
    """Numbers and slices, of every dimension but the batch."""
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        place, named = indices.index(Ellipsis), sum(i is not None for i in indices) - 1
        indices[place : place + 1] = [slice(None)] * (len(x.shape) - named)
    indices = [i for i in indices if i is not None]  # a new dimension of length one: in the shape already
    starts: list[int] = []
    ends: list[int] = []
    steps: list[int] = []
    axes: list[int] = []
    for axis, i in enumerate(indices):
        require(isinstance(i, int | slice), "is indexed by a tensor")
        if i == slice(None):
            continue
        n = length(x.shape[axis])
        bounds = range(n)[i] if isinstance(i, slice) else range(i % n, i % n + 1)
        for parts, part in zip((starts, ends, steps), (bounds.start, bounds.stop, bounds.step), strict=True):
            parts.append(part)
        axes.append(axis)
    name = x.name
    if axes:
        name = at.graph.op("Slice", name, *(at.graph.integers(*part) for part in (starts, ends, axes, steps)))
    return at.like(name)


def _reduced(at: At, x: Value, dim: Any) -> list[int]:
    dims = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = sorted(d % len(x.shape) for d in dims)
    require(all(x.shape[axis] is not None for axis in axes), "works along the batch")
    return axes


@emits(torch.mean, "mean")
def mean(at: At, x: Value, dim: Any = None, keepdim: bool = False) -> str:
    """The mean over some dimensions."""
    return at.graph.mean(x.name, _reduced(at, x, dim), keepdim)


@emits(torch.sum, "sum")
def total(at: At, x: Value, dim: Any = None, keepdim: bool = False) -> str:
    """The sum over some dimensions."""
    return at.graph.op("ReduceSum", x.name, at.graph.integers(*_reduced(at, x, dim)), keepdims=int(keepdim))


@emits(nn.PixelShuffle, F.pixel_shuffle)
def pixel_shuffle(at: At, x: Value, upscale_factor: int) -> str:
    """Channels to squares of pixels."""
    return at.graph.op("DepthToSpace", x.name, blocksize=upscale_factor, mode="CRD")


def _binary(kind: str, *keys: Any) -> None:
    @emits(*keys)
    def binary(at: At, x: Value | float, other: Value | float, *, alpha: float = 1, out: None = None) -> str:
        require(alpha == 1, "scales what it adds")
        return at.graph.op(kind, operand(at, x), operand(at, other))


_binary("Add", operator.add, operator.iadd, torch.add, "add", "add_")
_binary("Sub", operator.sub, operator.isub, torch.sub, "sub", "sub_")
_binary("Mul", operator.mul, operator.imul, torch.mul, "mul", "mul_")
_binary("Div", operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")
_binary("Pow", operator.pow, torch.pow, "pow")
_binary("MatMul", operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")
_binary("Max", torch.maximum, "maximum")
_binary("Min", torch.minimum, "minimum")
