"""The selection against `torch.kthvalue` and a full sort, on scores that drift as those of a search do."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from supermask.bench.timing import Action, Measurement, compare
from supermask.select import top_k_mask

DRIFT = 1e-3  # of the scores' standard deviation, each step
STEPS = 3


def select(small: bool, device: torch.device | None = None) -> list[Measurement]:
    """Seconds to select half of the scores: 2 M and 25 M of them, or 50 k if `small`."""
    device = device or torch.device("cpu")
    rows = []
    for n, rounds in [(50_000, 3)] if small else [(2_000_000, 41), (25_000_000, 11)]:
        steps = _drifting(n, device)
        kept = n // 2

        def of_next(way: Callable[[Tensor], object], steps: list[Tensor] = steps) -> Action:
            turn = itertools.cycle(steps)
            return lambda: way(next(turn))

        ways = {
            "torch.kthvalue": of_next(lambda scores, rank=n - kept + 1: torch.kthvalue(scores, rank)),  # type: ignore[misc]
            "torch.sort": of_next(torch.sort),
            "supermask": of_next(lambda scores, kept=kept: top_k_mask(scores, kept)),  # type: ignore[misc]
        }
        rows += compare(f"select {n // 1000} k scores", ways, rounds, device)
    return rows


def _drifting(n: int, device: torch.device) -> list[Tensor]:
    """|scores| [n] of consecutive steps."""
    generator = torch.Generator().manual_seed(0)
    first, change = (torch.randn(n, generator=generator) for _ in range(2))
    return [(first + step * DRIFT * change).abs().to(device) for step in range(STEPS)]
