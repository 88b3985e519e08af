"""The selection against `torch.kthvalue` and a full sort, on scores that drift as those of a search do."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from supermask.bench.report import Report, of_measurements
from supermask.bench.timing import Action, Measurement, compare, exponent
from supermask.select import top_k_mask

DRIFT = 1e-3  # of the scores' standard deviation, each step
STEPS = 3


# (scores, rounds)
SIZES = [(1_000_000, 41), (2_000_000, 41), (10_000_000, 21), (25_000_000, 11), (100_000_000, 5)]
SMALL_SIZES = [(20_000, 3), (50_000, 3)]
# A full sort of more takes seconds.
SORTED = 2_000_000


def select(small: bool, device: torch.device) -> Report:
    """Seconds to select half of 1 M to 100 M scores, or of some thousands if `small`."""
    rows: list[Measurement] = []
    for n, rounds in SMALL_SIZES if small else SIZES:
        steps = _drifting(n, device)
        kept = n // 2

        def of_next(way: Callable[[Tensor], object], steps: list[Tensor] = steps) -> Action:
            turn = itertools.cycle(steps)
            return lambda: way(next(turn))

        ways = {
            "torch.kthvalue": of_next(lambda scores, rank=n - kept + 1: torch.kthvalue(scores, rank)),  # type: ignore[misc]
            "supermask": of_next(lambda scores, kept=kept: top_k_mask(scores, kept)),  # type: ignore[misc]
        }
        if n <= SORTED:
            ways["torch.sort"] = of_next(torch.sort)
        rows += compare(f"select from {n / 1e6:g} M scores", ways, rounds, device)
    own = [row.seconds for row in rows if row.way == "supermask"]
    grown = exponent([n for n, _ in (SMALL_SIZES if small else SIZES)], own)
    return of_measurements(rows, [f"Seconds grow as the number of scores to the power of {grown:.2f}."])


def _drifting(n: int, device: torch.device) -> list[Tensor]:
    """|scores| [n] of consecutive steps."""
    generator = torch.Generator().manual_seed(0)
    first, change = (torch.randn(n, generator=generator) for _ in range(2))
    return [(first + step * DRIFT * change).abs().to(device) for step in range(STEPS)]
