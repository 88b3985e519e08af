"""The scripts in benchmarks/: the GPU script in its small form on the CPU, and codes that are honest about length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.masks import code_lengths
from benchmarks.summary import failures
from supermask.bitpack import entropy_bits
from supermask.draw import draw
from supermask.manifest import LayerEntry

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu.sh"


def test_the_small_form_of_the_gpu_script_leaves_its_results_in_one_folder(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "WHEELS"}
    # The Python of the tests, whatever the shell's is.
    environment |= {"OUT": str(tmp_path / "out"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([GPU, "--small"], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: step["status"] for name, step in summary["steps"].items()} == dict.fromkeys(
        ["tests", "select", "step", "conv6", "resnet18-cifar"], 0
    )
    assert summary["machine"]["torch"] == summary["versions"]["torch"]
    assert summary["tests"]["passed"] > 0
    assert summary["tests"]["failed"] == []
    assert any("edge-popup" in line for line in summary["benchmarks"]["step"])
    assert any("supermask" in line for line in summary["benchmarks"]["select"])
    for found in summary["searches"].values():
        assert (found["ended"], found["epochs"], found["data"]) == (True, 1, "digits")
        assert 0 <= found["test_accuracy"] <= 1
        assert found["seconds_of_epochs"] > 0


@pytest.mark.parametrize("words", [["--smal"], ["--small", "again"]])
def test_other_words_than_small_are_refused(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run([GPU, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: benchmarks/gpu.sh [--small]\n")


def test_without_its_data_the_gpu_script_says_what_it_wants_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SUPERMASK_DATA"}
    done = subprocess.run([GPU], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "SUPERMASK_DATA: names the folder with CIFAR-10" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_search_stopped_in_time_is_no_failure_but_a_stopped_benchmark_is() -> None:
    taken = {
        "conv6": {"status": 124},
        "resnet18-cifar": {"status": 124},
        "step": {"status": 124},
        "select": {"status": 0},
    }
    assert failures(taken) == ["step"]
    assert failures({"conv6": {"status": 1}}) == ["conv6"]


SHAPE = [64, 32, 3, 3]
N = 64 * 32 * 9


def lengths(mask: np.ndarray) -> dict[str, float]:
    layer = LayerEntry(
        name="w",
        shape=SHAPE,
        masked=True,
        kept=int(mask.sum()),
        values="seed",
        distribution="signed-constant",
        std=0.1,
    )
    bound = entropy_bits(layer.kept, layer.n)
    return {name: bits / bound for name, bits in code_lengths(7, layer, mask).items()}


@pytest.mark.parametrize("k", [0.5, 0.1])
def test_no_code_writes_a_random_mask_in_fewer_bits_than_the_bound(k: float) -> None:
    mask = np.random.default_rng(1).random(SHAPE) < k
    # An honest code saves b bits with probability 2^-b at most (Markov, Kraft): 20 of 18,432 H(k).
    assert min(lengths(mask).values()) > 1 - 20 / entropy_bits(int(mask.sum()), N)


def test_a_mask_that_follows_the_drawn_signs_is_written_by_them() -> None:
    positive = draw(7, "w", SHAPE, "signed-constant", 0.1) > 0
    mask = np.random.default_rng(1).random(SHAPE) < np.where(positive, 0.9, 0.1)
    found = lengths(mask)
    split = sum(entropy_bits(int(mask[part].sum()), int(part.sum())) for part in (positive, ~positive))
    ideal = split / entropy_bits(int(mask.sum()), N)
    # A code that learns two probabilities comes to within some tens of 18,432 bits, and never below.
    assert ideal < found["the drawn weight"] < ideal + 0.01
    assert found["all together"] < ideal + 0.01
    assert found["each layer's density"] > 0.99


def test_a_mask_of_whole_outputs_is_written_by_their_density() -> None:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[::2] = True
    found = lengths(mask)
    assert found["each output's density"] < 0.1
    assert found["all together"] < 0.1
    assert found["the drawn weight"] > 0.99
