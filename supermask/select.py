"""The exact top-k selection: the hot spot of edge-popup and DNW."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Below this, ranking every value takes 30 microseconds, as the detour through a sample does.
SMALL = 2**15
# One value in so many is sampled: 1.7% of the others then fall into the bracket around the median of 2 M.
STRIDE = 64


def kept_count(n: int, k: float) -> int:
    """How many of n weights a fraction k keeps: n - int((1-k) * n), the count of Ramanujan et al.'s Algorithm 1."""
    return n - int((1 - k) * n)


def top_k_mask(magnitudes: Tensor, kept: int) -> Tensor:
    """The mask of the `kept` largest magnitudes.

    Exactly the mask of a full stable ascending sort whose last `kept` places are kept: of equal magnitudes, those later
    in C order are kept first. Works by selection (no sort) and, on an accelerator, without waiting for it.

    Args:
        magnitudes: float32 of any shape, none of them NaN.
        kept: 0 <= kept <= n.

    Returns:
        bool of the same shape and device, with exactly `kept` true.
    """
    n = magnitudes.numel()
    if kept == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    if kept == n:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    flat = magnitudes.detach().reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(_by_sample(flat.numpy(), kept)).view_as(magnitudes)
    threshold = torch.kthvalue(flat, n - kept + 1).values
    mask = flat >= threshold
    # The same rule for ties without waiting for the device's count: a running number for each.
    surplus = torch.count_nonzero(mask) - kept
    ties = flat == threshold
    mask &= ~(ties & (torch.cumsum(ties, 0) <= surplus))
    return mask.view_as(magnitudes)


def _by_sample(values: Values, kept: int) -> Mask:
    """Floyd and Rivest's SELECT (CACM 18, 1975): a sample brackets the threshold, so that few values are ranked."""
    if values.size < SMALL:
        return _by_partition(values, kept)
    sample = values[::STRIDE].copy()
    middle = sample.size * (1 - kept / values.size)
    # Three standard errors of the threshold's place in a random sample.
    slack = 3 * math.sqrt(middle * kept / values.size) + 1
    first, last = max(int(middle - slack), 0), min(int(middle + slack), sample.size - 1)
    sample.partition(first)
    low = sample[first]
    high = np.partition(sample[first:], last - first)[last - first]
    mask: Mask = values > high
    # Every value outside the bracket is decided; those within it are ranked in C order, as the rule for ties wants.
    bracketed = values >= low
    bracketed ^= mask
    within = np.flatnonzero(bracketed)
    missing = kept - int(np.count_nonzero(mask))
    if not 0 <= missing <= within.size:  # the sample misled
        return _by_partition(values, kept)
    mask[within] = _by_partition(values[within], missing)
    return mask


def _by_partition(values: Values, kept: int) -> Mask:
    if kept == 0:
        return np.zeros(values.size, dtype=np.bool_)
    threshold = np.partition(values, values.size - kept)[values.size - kept]
    mask: Mask = values >= threshold
    # Among 2 M float32 scores a tie at the threshold is common.
    surplus = np.count_nonzero(mask) - kept
    if surplus:
        mask[np.flatnonzero(values == threshold)[:surplus]] = False
    return mask
