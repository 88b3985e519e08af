"""The exact top-k selection: the hot spot of edge-popup and DNW."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def kept_count(n: int, k: float) -> int:
    """How many of n weights a fraction k keeps: n - int((1-k) * n), the count of Ramanujan et al.'s Algorithm 1."""
    return n - int((1 - k) * n)


def top_k_mask(magnitudes: Tensor, kept: int) -> Tensor:
    """The mask of the `kept` largest magnitudes.

    Exactly the mask of a full stable ascending sort whose last `kept` places are kept: of equal magnitudes, those later
    in C order are kept first. Works by one selection (no sort) and, on an accelerator, without waiting for it.

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
        # NumPy's partition is vectorised: 1.4 ms for 2 M float32 where torch.kthvalue takes 30 ms (AVX-512, one core).
        threshold = float(np.partition(flat.numpy(), n - kept)[n - kept])
        mask = flat >= threshold
        # Among 2 M float32 scores a tie at the threshold is common, so the count is always checked (0.5 ms).
        surplus = int(torch.count_nonzero(mask)) - kept
        if surplus > 0:
            mask[torch.nonzero(flat == threshold)[:surplus]] = False
    else:
        threshold_on_device = torch.kthvalue(flat, n - kept + 1).values
        mask = flat >= threshold_on_device
        # The same rule without waiting for the device's count: a running number for each tie.
        ties = flat == threshold_on_device
        surplus_on_device = torch.count_nonzero(mask) - kept
        mask &= ~(ties & (torch.cumsum(ties, 0) <= surplus_on_device))
    return mask.view_as(magnitudes)
