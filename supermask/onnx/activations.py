"""Norms and activations, written as `operators` writes the rest.

Those that ONNX got after opset 13 are put together from older ones: one graph serves every opset.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from supermask.onnx.operators import At, Value, emits, length, operand, per_channel, require


@emits(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm, torch.batch_norm)
def batch_norm(
    at: At,
    x: Value,
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> str:
    """A scale and a shift of each channel, folded in float64; not folded into a convolution, whose weights stay."""
    if running_mean is None or running_var is None or training is True:
        require(False, "uses the statistics of the batch")
    mean, variance = (_numbers(value) for value in (running_mean, running_var))
    scale = (_numbers(weight) if weight else 1.0) / np.sqrt(variance + eps)
    shift = (_numbers(bias) if bias else 0.0) - mean * scale
    rank = len(x.shape)
    product = at.graph.op("Mul", x.name, per_channel(at, scale, rank))
    return at.graph.op("Add", product, per_channel(at, shift, rank))


def _numbers(value: Value | None) -> Any:
    """A parameter or buffer as float64."""
    if value is None or value.tensor is None:
        require(False, "has statistics or parameters that are computed")
    return value.tensor.detach().double().numpy()  # type: ignore[union-attr]


def _scaled(at: At, x: str, weight: Value | None, bias: Value | None, shape: Sequence[int]) -> str:
    """x times `weight` plus `bias`, both brought to `shape`."""
    for kind, value in (("Mul", weight), ("Add", bias)):
        if value:
            x = at.graph.op(kind, x, at.graph.constant(_numbers(value).reshape(shape), np.float32))
    return x


@emits(nn.GroupNorm, F.group_norm)
def group_norm(
    at: At, x: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5
) -> str:
    """Each group of channels to mean 0 and variance 1, as the norm of one instance with as many channels as groups."""
    channels, size = length(x.shape[1]), math.prod(length(n) for n in x.shape[1:])
    groups = at.like(x.name, (None, num_groups, size // num_groups))
    ones, zeros = np.ones(num_groups), np.zeros(num_groups)
    constants = (at.graph.constant(values, np.float32) for values in (ones, zeros))
    normal = at.like(at.graph.op("InstanceNormalization", groups, *constants, epsilon=eps))
    return _scaled(at, normal, weight, bias, [channels, *[1] * (len(x.shape) - 2)])


@emits(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, F.instance_norm)
def instance_norm(
    at: At,
    x: Value,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> str:
    """Each channel of each picture to mean 0 and variance 1, or by the statistics of training if it keeps them."""
    if running_mean is not None:
        return str(batch_norm(at, x, running_mean, running_var, weight, bias, eps=eps))
    return str(group_norm(at, x, length(x.shape[1]), weight, bias, eps))


@emits(nn.LayerNorm, F.layer_norm, torch.layer_norm)
def layer_norm(
    at: At,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> str:
    """The last dimensions to mean 0 and variance 1."""
    rank = len(x.shape)
    axes = list(range(rank - len(normalized_shape), rank))
    centred = at.graph.op("Sub", x.name, at.graph.mean(x.name, axes))
    variance = at.graph.mean(at.graph.op("Mul", centred, centred), axes)
    deviation = at.graph.op("Sqrt", at.graph.op("Add", variance, at.graph.constant(eps, np.float32)))
    return _scaled(at, at.graph.op("Div", centred, deviation), weight, bias, list(normalized_shape))


@emits(nn.LocalResponseNorm, F.local_response_norm)
def local_response_norm(at: At, x: Value, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> str:
    """Krizhevsky et al. 2012, section 3.3."""
    return at.graph.op("LRN", x.name, size=size, alpha=alpha, beta=beta, bias=k)


def _plain(kind: str, *keys: Any) -> None:
    @emits(*keys)
    def plain(at: At, x: Value, inplace: bool = False) -> str:
        return at.graph.op(kind, x.name)


_plain("Relu", nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
_plain("Sigmoid", nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid")
_plain("Tanh", nn.Tanh, F.tanh, torch.tanh, "tanh")
_plain("Selu", nn.SELU, F.selu, torch.selu)
_plain("Softsign", nn.Softsign, F.softsign)
_plain("Exp", torch.exp, "exp")
_plain("Sqrt", torch.sqrt, "sqrt")
_plain("Abs", torch.abs, "abs")
_plain("Neg", operator.neg, torch.neg, "neg")


@emits(torch.clamp, torch.clip, "clamp", "clip")
def clamped(at: At, x: Value, min: float | None = None, max: float | None = None) -> str:
    """x, no less than `min` and no more than `max`; None is no bound."""
    return at.graph.op("Clip", x.name, *("" if bound is None else operand(at, bound) for bound in (min, max)))


@emits(nn.ReLU6, F.relu6)
def relu6(at: At, x: Value, inplace: bool = False) -> str:
    """min(max(x, 0), 6)."""
    return str(clamped(at, x, 0.0, 6.0))


@emits(nn.Hardtanh, F.hardtanh)
def hardtanh(at: At, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> str:
    """min(max(x, min_val), max_val)."""
    return str(clamped(at, x, min_val, max_val))


@emits(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(at: At, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> str:
    """x, or negative_slope * x below zero."""
    return at.graph.op("LeakyRelu", x.name, alpha=negative_slope)


@emits(nn.ELU, F.elu)
def elu(at: At, x: Value, alpha: float = 1.0, inplace: bool = False) -> str:
    """x, or alpha * (exp(x) - 1) below zero."""
    return at.graph.op("Elu", x.name, alpha=alpha)


@emits(nn.CELU, F.celu)
def celu(at: At, x: Value, alpha: float = 1.0, inplace: bool = False) -> str:
    """x, or alpha * (exp(x / alpha) - 1) below zero."""
    return at.graph.op("Celu", x.name, alpha=alpha)


@emits(nn.PReLU, F.prelu, torch.prelu)
def prelu(at: At, x: Value, weight: Value) -> str:
    """x, or a learned slope times x below zero."""
    return at.graph.op("PRelu", x.name, per_channel(at, _numbers(weight), max(len(x.shape), 2)))


@emits(nn.GELU, F.gelu)
def gelu(at: At, x: Value, approximate: str = "none") -> str:
    """x times the normal distribution function, or the approximation by tanh (Hendrycks and Gimpel 2016)."""
    op, number = at.graph.op, at.graph.constant
    half, one = number(0.5, np.float32), number(1, np.float32)
    if approximate == "tanh":
        cube = op("Mul", op("Mul", op("Mul", x.name, x.name), x.name), number(0.044715, np.float32))
        inner = op("Mul", op("Add", x.name, cube), number(math.sqrt(2 / math.pi), np.float32))
        bent = op("Tanh", inner)
    else:
        bent = op("Erf", op("Div", x.name, number(math.sqrt(2), np.float32)))
    return op("Mul", op("Mul", x.name, op("Add", bent, one)), half)


@emits(nn.SiLU, F.silu)
def silu(at: At, x: Value, inplace: bool = False) -> str:
    """x times its sigmoid."""
    return at.graph.op("Mul", x.name, at.graph.op("Sigmoid", x.name))


@emits(nn.Mish, F.mish)
def mish(at: At, x: Value, inplace: bool = False) -> str:
    """x * tanh(log(1 + exp(x)))."""
    return at.graph.op("Mul", x.name, at.graph.op("Tanh", at.graph.op("Softplus", x.name)))


@emits(nn.Hardsigmoid, F.hardsigmoid)
def hardsigmoid(at: At, x: Value, inplace: bool = False) -> str:
    """x / 6 + 1/2, between 0 and 1."""
    return at.graph.op("HardSigmoid", x.name, alpha=1 / 6, beta=0.5)


@emits(nn.Hardswish, F.hardswish)
def hardswish(at: At, x: Value, inplace: bool = False) -> str:
    """x times its hard sigmoid."""
    return at.graph.op("Mul", x.name, str(hardsigmoid(at, x)))


@emits(nn.Softplus, F.softplus)
def softplus(at: At, x: Value, beta: float = 1.0, threshold: float = 20.0) -> str:
    """log(1 + exp(beta x)) / beta."""
    scale = at.graph.constant(beta, np.float32)
    return at.graph.op("Div", at.graph.op("Softplus", at.graph.op("Mul", x.name, scale)), scale)


def _along(kind: str, *keys: Any) -> None:
    @emits(*keys)
    def along(at: At, x: Value, dim: int | None = None, **more: Any) -> str:
        if dim is None:  # PyTorch's own choice, which it warns about
            dim = 0 if len(x.shape) in (0, 1, 3) else 1
        require(x.shape[dim] is not None, "works along the batch")
        return at.graph.op(kind, x.name, axis=dim % len(x.shape))


_along("Softmax", nn.Softmax, F.softmax, torch.softmax, "softmax")
_along("LogSoftmax", nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax")
