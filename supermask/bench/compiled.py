"""The steps of a search and of dense training, plain and as torch.compile makes them."""

from __future__ import annotations

import torch

from supermask.bench.report import Report, of_measurements
from supermask.bench.step import NETWORKS, SMALL_NETWORKS, of_network
from supermask.bench.timing import Measurement, compare
from supermask.device import without_compiler
from supermask.errors import UsageError


def compiled(small: bool, device: torch.device) -> Report:
    """Seconds of one step for the networks of `supermask bench step`; compiling them is not counted.

    Raises:
        UsageError: torch.compile does not work here.
    """
    if fault := without_compiler(device):
        raise UsageError(f"{fault}; there is nothing to measure")
    rows: list[Measurement] = []
    for network in SMALL_NETWORKS if small else NETWORKS:
        ways = {
            way + (", compiled" if compile_ else ""): of_network(network, way, device, compile=compile_)
            for way in ("dense", "edge-popup")
            for compile_ in (False, True)
        }
        rows += compare(network.what, ways, network.rounds, device)
    return of_measurements(rows)
