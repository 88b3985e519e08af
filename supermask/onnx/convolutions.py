"""Layers with weights, padding and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from supermask.onnx.operators import At, Value, emits, length, places, require


@emits(nn.Linear, F.linear)
def linear(at: At, x: Value, weight: Value, bias: Value | None = None) -> str:
    """x W^T + b."""
    if len(x.shape) == 2:
        return at.graph.op("Gemm", x.name, weight.name, *([bias.name] if bias else []), transB=1)
    transposed = at.graph.op("Transpose", weight.name, perm=[1, 0])
    product = at.graph.op("MatMul", x.name, transposed)
    return at.graph.op("Add", product, bias.name) if bias else product


@emits(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d)
def convolution(
    at: At,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> str:
    """Convolution of any number of dimensions and groups; padding by zeros, reflection or the edge."""
    kernel = [length(n) for n in weight.shape[2:]]
    n = len(kernel)
    dilations = places(dilation, n)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = [0] * 2 * n if padding == "valid" else places(padding, n) * 2
    name = x.name
    if padding_mode != "zeros":
        name, pads = _padded(at, name, pads, padding_mode), [0] * 2 * n
    return at.graph.op(
        "Conv",
        name,
        weight.name,
        *([bias.name] if bias else []),
        kernel_shape=kernel,
        strides=places(stride, n),
        pads=pads,
        dilations=dilations,
        group=groups,
    )


@emits(
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
def transposed_convolution(
    at: At,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> str:
    """Transposed convolution of any number of dimensions and groups."""
    kernel = [length(n) for n in weight.shape[2:]]
    n = len(kernel)
    return at.graph.op(
        "ConvTranspose",
        x.name,
        weight.name,
        *([bias.name] if bias else []),
        kernel_shape=kernel,
        strides=places(stride, n),
        pads=places(padding, n) * 2,
        output_padding=places(output_padding, n),
        dilations=places(dilation, n),
        group=groups,
    )


PAD_MODES = {"zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _padded(at: At, x: str, pads: list[int], mode: str, value: float = 0.0) -> str:
    """x with its last dimensions padded: `pads` are all starts, then all ends."""
    require(mode in PAD_MODES, f"pads in the mode {mode!r}")
    n, rank = len(pads) // 2, len(at.shape)
    whole = [*[0] * (rank - n), *pads[:n], *[0] * (rank - n), *pads[n:]]
    return at.graph.op("Pad", x, at.graph.integers(*whole), at.graph.constant(value, np.float32), mode=PAD_MODES[mode])


@emits(F.pad)
def pad(at: At, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> str:
    """Padding of the last dimensions, given as PyTorch does: the last one's start and end first."""
    pads = [*reversed(pad[0::2]), *reversed(pad[1::2])]
    return _padded(at, x.name, pads, mode, value or 0.0)


@emits(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def constant_pad(at: At, x: Value, padding: Sequence[int], value: float = 0.0) -> str:
    """Padding by a constant."""
    return str(pad(at, x, padding, "constant", value))


@emits(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
def reflection_pad(at: At, x: Value, padding: Sequence[int]) -> str:
    """Padding by reflection."""
    return str(pad(at, x, padding, "reflect"))


@emits(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
def replication_pad(at: At, x: Value, padding: Sequence[int]) -> str:
    """Padding by the edge."""
    return str(pad(at, x, padding, "replicate"))


def _window(at: At, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """The attributes of a pool; where its last window hangs over (`ceil_mode`), the padding at the end is larger."""
    n = len(at.shape) - 2
    kernels, strides, starts, dilations = (
        places(value, n) for value in (kernel, kernel if stride in (None, []) else stride, padding, dilation)
    )
    ends = []
    for size, out, k, s, p, d in zip(x.shape[2:], at.shape[2:], kernels, strides, starts, dilations, strict=True):
        reach = (length(out) - 1) * s + d * (k - 1) + 1
        ends.append(max(p, reach - length(size) - p))
    return {"kernel_shape": kernels, "strides": strides, "pads": starts + ends, "dilations": dilations}


@emits(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d)
def max_pool(
    at: At,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> str:
    """The maximum of each window."""
    require(not return_indices, "returns indices")
    return at.graph.op("MaxPool", x.name, **_window(at, x, kernel_size, stride, padding, dilation))


@emits(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def average_pool(
    at: At,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    """The mean of each window; what hangs over the padding never counts, the padding itself by `count_include_pad`."""
    require(divisor_override is None, "overrides the divisor")
    window = _window(at, x, kernel_size, stride, padding, 1)
    n = len(window["kernel_shape"])
    name, pads = x.name, window["pads"]
    if count_include_pad and any(pads[:n]):
        name = _padded(at, name, pads[:n] * 2, "zeros")
        pads = [0] * n + [end - start for start, end in zip(pads[:n], pads[n:], strict=True)]
    return at.graph.op("AveragePool", name, kernel_shape=window["kernel_shape"], strides=window["strides"], pads=pads)


@emits(
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)
def adaptive_average_pool(at: At, x: Value, output_size: Any) -> str:
    """The means of a given number of windows, which together cover the picture."""
    before, after = [length(n) for n in x.shape[2:]], [length(n) for n in at.shape[2:]]
    if all(n == 1 for n in after):
        return at.graph.op("GlobalAveragePool", x.name)
    kernel = _even(before, after)
    if kernel:
        return at.graph.op("AveragePool", x.name, kernel_shape=kernel, strides=kernel)
    # Windows of several sizes: a matrix from the left for each row of windows, one from the right for each column.
    require(len(after) <= 2, f"pools {before} into {after}")
    columns = at.graph.constant(_windows(before[-1], after[-1]).T)
    name = at.graph.op("MatMul", x.name, columns)
    return at.graph.op("MatMul", at.graph.constant(_windows(before[0], after[0])), name) if len(after) == 2 else name


@emits(
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)
def adaptive_max_pool(at: At, x: Value, output_size: Any, return_indices: bool = False) -> str:
    """The maxima of a given number of windows of one size."""
    require(not return_indices, "returns indices")
    before, after = [length(n) for n in x.shape[2:]], [length(n) for n in at.shape[2:]]
    if all(n == 1 for n in after):
        return at.graph.op("GlobalMaxPool", x.name)
    kernel = _even(before, after)
    require(bool(kernel), f"pools {before} into {after}")
    return at.graph.op("MaxPool", x.name, kernel_shape=kernel, strides=kernel)


def _even(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The size of windows where all have one, else nothing."""
    if any(n % m for n, m in zip(before, after, strict=True)):
        return []
    return [n // m for n, m in zip(before, after, strict=True)]


def _windows(n: int, m: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 [m, n]: row i averages window i, from floor(i n/m) to ceil((i+1) n/m)."""
    matrix = np.zeros((m, n), dtype=np.float32)
    for i in range(m):
        start, end = i * n // m, -(-(i + 1) * n // m)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
