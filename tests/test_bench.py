"""The benchmarks work and say what they compared; how fast things are is not for a test to say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from supermask.bench import memory
from supermask.bench.step import AlgorithmOne
from supermask.bench.timing import compare, exponent, machine
from supermask_strategies import EdgePopup
from tests.commands import NEEDS_COMPILER, run_here

WAYS = {
    "step": {
        "dense",
        "edge-popup",
        "Algorithm 1",
        "Algorithm 1 in float32, in a process of its own",
        "a batch, cropped and flipped",
    },
    "compiled": {"dense", "dense, compiled", "edge-popup", "edge-popup, compiled"},
    "select": {"torch.kthvalue", "torch.sort", "supermask"},
    "codec": {"dense file, copied", "seed and mask", "pack", "unpack"},
    "startup": {"supermask --help", "supermask search, until a checkpoint of it is written"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_COMPILER) if name == "compiled" else name for name in WAYS]
)
def test_a_benchmark_times_every_way_against_its_baseline(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run_here(capsys, "bench", name, "--small", "--json")
    result: dict[str, Any] = json.loads(out)
    assert (status, result["benchmark"], result["machine"]["torch"]) == (0, name, torch.__version__)
    assert WAYS[name] <= {row["way"] for row in result["results"]}
    for row in result["results"]:
        assert row["seconds"] > 0
        assert math.isfinite(row["spread"])
        assert row["ratio"] == 1 if row["way"] == row["baseline"] else row["ratio"] > 0


def test_the_table_of_exports_goes_into_the_page_at_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- bench export -->\nold figures\n<!-- end -->\n\nafter\n<!-- end -->\n")
    status, out, _ = run_here(capsys, "bench", "export", "--small", "--into", str(page))
    text = page.read_text()
    assert status == 0
    assert text.startswith("before\n\n<!-- bench export -->\n`supermask bench export`, 2")
    assert text.endswith(" |\n<!-- end -->\n\nafter\n<!-- end -->\n")
    assert "old figures" not in text
    for form in ("dense", "ternary", "seed"):
        line = next(line for line in text.splitlines() if line.startswith(f"| conv2 | {form} |"))
        size = line.split(" | ")[2]
        assert any(form in row and size in row for row in out.splitlines())


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["steps"], 2, "did you mean 'step'?"),
        (["select", "--small", "--into", "nowhere.md"], 3, "nowhere.md cannot be read"),
        (["select", "--small", "--into", "page.md"], 2, "put the lines <!-- bench select --> and <!-- end --> there"),
        (["codec", "--device", "quantum"], 2, "quantum"),
    ],
)
def test_wrong_words_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    Path("page.md").write_text("no place\n")
    found, out, err = run_here(capsys, "bench", *words)
    assert (found, out) == (status, "")
    assert said in err
    assert Path("page.md").read_text() == "no place\n"


def test_the_exponent_is_that_of_a_power_law() -> None:
    assert exponent([1, 10, 100], [3 * size**1.5 for size in (1, 10, 100)]) == pytest.approx(1.5)


def test_peak_memory_is_that_of_the_process_alone() -> None:
    held = torch.ones(60_000_000)  # 240 MB here
    program = "from supermask.bench.memory import peak; before = peak(); b = bytearray(10**8); print(peak() - before)"
    assert len(held) > 0
    assert 0.9e8 < memory.of(program) < 1.5e8


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
