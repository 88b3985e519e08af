"""Timing two or more ways of doing one thing, in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

WARM_UP = 2

Action = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """One way of doing something, against a baseline.

    Attributes:
        what: the thing done, with its size.
        way: how it was done.
        baseline: the way it is compared with.
        seconds: median over `rounds`.
        spread: the interquartile range of the seconds, as a share of the median.
        ratio: median over rounds of (seconds of this way / seconds of the baseline in the same round).
        rounds: how often each way ran, after two runs that do not count.
    """

    what: str
    way: str
    baseline: str
    seconds: float
    spread: float
    ratio: float
    rounds: int


def compare(
    what: str, ways: Mapping[str, Action], rounds: int, device: torch.device | None = None
) -> list[Measurement]:
    """Time `ways` in turn, A B C A B C ...; the first one is the baseline of all.

    Args:
        what: named in the results.
        ways: each an action that takes milliseconds at least; what it returns is dropped outside the time taken.
        rounds: of all ways, after two that do not count; at least 2.
        device: where the actions compute, if they return before they are done.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(WARM_UP + rounds):
        for way, action in ways.items():
            taken = _timed(action, device)
            if number >= WARM_UP:
                seconds[way].append(taken)
    baseline = next(iter(ways))
    return [
        Measurement(
            what=what,
            way=way,
            baseline=baseline,
            seconds=statistics.median(taken),
            spread=_interquartile_range(taken) / statistics.median(taken),
            ratio=statistics.median(own / other for own, other in zip(taken, seconds[baseline], strict=True)),
            rounds=rounds,
        )
        for way, taken in seconds.items()
    ]


def _timed(action: Action, device: torch.device | None) -> float:
    _settle(device)
    began = time.perf_counter()
    result = action()
    _settle(device)
    taken = time.perf_counter() - began
    del result  # its memory is given back outside the time taken
    return taken


def _settle(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _interquartile_range(values: list[float]) -> float:
    quarters = statistics.quantiles(values, n=4)
    return quarters[2] - quarters[0]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The p for which seconds grow as sizes to the power of p: the slope of a line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What the figures were measured on."""
    runtime: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if device is not None and device.type == "cuda":
        runtime["gpu"] = torch.cuda.get_device_name(device)
    return runtime


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
