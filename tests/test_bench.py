"""The benchmarks work and say what they compared; how fast things are is not for a test to say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch

from supermask.bench.codec import codec
from supermask.bench.select import select
from supermask.bench.step import AlgorithmOne, step
from supermask.bench.timing import Measurement, compare, machine
from supermask_strategies import EdgePopup

BENCHMARKS: list[tuple[Callable[[bool], list[Measurement]], set[str]]] = [
    (step, {"dense", "edge-popup", "Algorithm 1", "Algorithm 1 in float32"}),
    (select, {"torch.kthvalue", "torch.sort", "supermask"}),
    (codec, {"dense file, copied", "seed and mask", "pack", "unpack"}),
]


@pytest.mark.parametrize(("benchmark", "ways"), BENCHMARKS)
def test_a_benchmark_times_every_way_against_its_baseline(
    benchmark: Callable[[bool], list[Measurement]], ways: set[str]
) -> None:
    rows = benchmark(True)
    assert ways <= {row.way for row in rows}
    for row in rows:
        assert row.seconds > 0
        assert math.isfinite(row.spread)
        assert row.ratio == 1 if row.way == row.baseline else row.ratio > 0
    assert json.loads(json.dumps([row.as_dict() for row in rows]))[0]["what"] == rows[0].what


def test_the_ways_take_turns_and_two_rounds_do_not_count() -> None:
    calls: list[str] = []
    rows = compare("x", {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" * 5
    assert [(row.way, row.baseline, row.rounds) for row in rows] == [("a", "a", 3), ("b", "a", 3)]


def test_algorithm_1_keeps_and_trains_what_edge_popup_does() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    maskers = [strategy.attach(weight, torch.Generator().manual_seed(1)) for strategy in (AlgorithmOne(), EdgePopup())]
    assert torch.equal(maskers[0].mask(weight), maskers[1].mask(weight))
    for masker in maskers:
        (masker(weight) * weight).sum().backward()
    assert [masker.get_parameter("scores").grad is None for masker in maskers] == [False, False]
    torch.testing.assert_close(*(masker.get_parameter("scores").grad for masker in maskers), rtol=0, atol=0)


def test_the_machine_is_described() -> None:
    about = machine()
    assert about["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert about["processor"]
