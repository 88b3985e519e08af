"""The exact top-k selection: the hot spot of edge-popup and DNW."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]

# Below this, ranking every value takes 30 microseconds, as the detour through a sample does.
SMALL = 2**15
# One value in so many is sampled: 1.7% of the others then fall into the bracket around the median of 2 M.
STRIDE = 64
NOWHERE: Places = np.empty(0, np.intp)

# Values compared at once: they and what comes of them stay in a core's second cache.
COMPARED = 2**16
# Weights computed at once. Beside time, blocks save memory: a temporary of all the weights is new memory at every step,
# and the kernel's zeroing of it takes longer than the arithmetic.
BLOCK = 2**18


def kept_count(n: int, k: float) -> int:
    """How many of n weights a fraction k keeps: n - int((1-k) * n), the count of Ramanujan et al.'s Algorithm 1."""
    return n - int((1 - k) * n)


def top_k_mask(values: Tensor, kept: int) -> Tensor:
    """The mask of the `kept` largest magnitudes |value|.

    Exactly the mask of a full stable ascending sort whose last `kept` places are kept: of equal magnitudes, those later
    in C order are kept first. Works by selection (no sort) and, on an accelerator, without waiting for it.

    Args:
        values: float32 of any shape, none of them NaN.
        kept: 0 <= kept <= n.

    Returns:
        bool of the same shape and device, with exactly `kept` true.
    """
    values = values.detach()
    if kept in (0, values.numel()):
        return torch.full_like(values, kept > 0, dtype=torch.bool)
    if values.device.type != "cpu":
        return _mask_on_device(values, kept)
    threshold, ties = _cut(values.reshape(-1).numpy(), kept)
    mask = torch.empty_like(values, dtype=torch.bool)
    for part, of_values in blocks(mask, values):
        torch.gt(of_values.abs(), threshold, out=part)
    if ties.size:
        mask[_at(ties, values)] = True
    return mask


def keep_top_k(weight: Tensor, scores: Tensor, kept: int) -> Tensor:
    """`weight` where |score| is among the `kept` largest, as `top_k_mask` has it, and 0 elsewhere.

    Args:
        weight: float32 of any shape.
        scores: float32 of the same shape and device.
        kept: 0 <= kept <= n.

    Returns:
        The shape of `weight`, in the type that autocast computes in on its device, where autocast is on.
    """
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if device == "cpu":
        masked: Tensor = _kept_on_cpu(weight, scores, kept, dtype)
        return masked
    return torch.where(top_k_mask(scores, kept), weight, 0.0).to(dtype)


# An operator of its own: torch.compile cannot trace NumPy's selection, and takes this as it is.
@torch.library.custom_op("supermask::keep_top_k", mutates_args=())
def _kept_on_cpu(weight: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    masked = torch.empty_like(weight, dtype=dtype)
    threshold, ties = _cut(scores.detach().reshape(-1).numpy(), kept)
    for part, of_weight, of_scores in blocks(masked, weight, scores):
        # The derivative of hard shrinkage, grad * (|x| > lambda), is this very product, in one pass. A product with a
        # bool tensor converts that first, and `where` branches on every weight: five times as long on a CPU.
        part.copy_(torch.ops.aten.hardshrink_backward(of_weight, of_scores, threshold))
    if ties.size:
        at = _at(ties, weight)
        masked[at] = weight[at].to(dtype)
    return masked


@_kept_on_cpu.register_fake
def _(weight: Tensor, scores: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(weight, dtype=dtype)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors of one shape that belong together, small enough for a processor's cache; whole on a device."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        return iter([tensors])
    rows = max(1, BLOCK // first[0].numel())
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _mask_on_device(values: Tensor, kept: int) -> Tensor:
    magnitudes = values.abs().reshape(-1)
    dropped = magnitudes.numel() - kept
    # Not kthvalue, which gives CUDA's whole row to one block of threads: 20 times slower than a sort (pytorch/pytorch
    # issue 75599).
    if kept <= dropped:
        threshold = magnitudes.topk(kept, sorted=False).values.amin()
    else:
        threshold = magnitudes.topk(dropped + 1, largest=False, sorted=False).values.amax()
    mask = magnitudes >= threshold
    # The same rule for ties without waiting for the device's count: a running number for each.
    surplus = torch.count_nonzero(mask) - kept
    ties = magnitudes == threshold
    mask &= ~(ties & (torch.cumsum(ties, 0) <= surplus))
    return mask.view_as(values)


def _cut(values: Values, kept: int) -> tuple[float, Places]:
    """A magnitude above which all are kept, and the places of those equal to it that are kept too.

    Floyd and Rivest's SELECT (CACM 18, 1975): a sample brackets the magnitude, so that few of them are ranked.
    """
    if values.size >= SMALL:
        low, high = _bracket(values, kept)
        above, places = _compared(values, low, high)
        if 0 < kept - above <= places.size:  # else the sample misled
            threshold, ties = _ranked(np.abs(values[places]), kept - above)
            return threshold, places[ties]
    return _ranked(np.abs(values), kept)


def _ranked(magnitudes: Values, kept: int) -> tuple[float, Places]:
    last = max(magnitudes.size - kept - 1, 0)
    threshold = np.partition(magnitudes, last)[last]
    ties = kept - np.count_nonzero(magnitudes > threshold)
    # Most often none: what is not kept is below what is.
    return float(threshold), np.flatnonzero(magnitudes == threshold)[-ties:] if ties else NOWHERE


def _bracket(values: Values, kept: int) -> tuple[float, float]:
    """Two magnitudes between which, most probably, the `kept`-th largest is."""
    sample = np.abs(values[::STRIDE])
    middle = sample.size * (1 - kept / values.size)
    # Three standard errors of the threshold's place in a random sample.
    slack = 3 * math.sqrt(middle * kept / values.size) + 1
    first, last = max(int(middle - slack), 0), min(int(middle + slack), sample.size - 1)
    sample.partition(first)
    return float(sample[first]), float(np.partition(sample[first:], last - first)[last - first])


def _compared(values: Values, low: float, high: float) -> tuple[int, Places]:
    """How many magnitudes are above `high`, and the places of those from `low` to `high`."""
    room = min(COMPARED, values.size)
    magnitudes, above, within = np.empty(room, np.float32), np.empty(room, np.bool_), np.empty(room, np.bool_)
    total, places = 0, []
    for start in range(0, values.size, room):
        part = values[start : start + room]
        there = slice(0, part.size)
        np.abs(part, out=magnitudes[there])
        np.greater(magnitudes[there], high, out=above[there])
        np.greater_equal(magnitudes[there], low, out=within[there])
        within ^= above
        total += int(np.count_nonzero(above[there]))
        places.append(np.flatnonzero(within[there]) + start)
    return total, np.concatenate(places)


def _at(places: Places, tensor: Tensor) -> tuple[Tensor, ...]:
    """Indices of `tensor` at these places in C order."""
    return tuple(torch.from_numpy(index) for index in np.unravel_index(places, tensor.shape))
