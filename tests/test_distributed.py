"""Several processes, started by the real torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import records, supermask

# Three steps of 360 pictures in float32, so that the sums of two halves differ from the whole by rounding alone.
FEW_STEPS = ["--batch-size", "360", "--epochs", "1", "--set", "precision=float32"]


def torchrun(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    return subprocess.run(
        [*command, "-m", "supermask", *args], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("strategy", ["edge-popup", "bernoulli", "dense"])
def test_one_process_and_two_agree_after_several_steps(tmp_path: Path, strategy: str) -> None:
    args = ["search", "--strategy", strategy, *FEW_STEPS, "--run-dir"]
    two = torchrun(*args, str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    assert supermask(*args, str(tmp_path / "one")).returncode == 0
    one_state, two_state = (
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["state"] for run in ("one", "two")
    )
    assert one_state.keys() == two_state.keys()
    for name, value in one_state.items():
        torch.testing.assert_close(two_state[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    for one, two_ in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert one["train_loss"] == pytest.approx(two_["train_loss"], rel=1e-4)


def test_the_first_process_alone_prints_and_writes(tmp_path: Path) -> None:
    done = torchrun("search", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test_pictures"] == 359
    assert len([path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]) == 1


def test_two_processes_resume_where_they_stood(tmp_path: Path) -> None:
    # The same four epochs, in one go and stopped by an epoch's end that a kill cannot tell from a pause.
    args = ["search", *FEW_STEPS[:2], "--epochs", "2", *FEW_STEPS[4:], "--set", "checkpoint_seconds=0", "--run-dir"]
    assert torchrun(*args, str(tmp_path / "whole")).returncode == 0
    first = ["search", *FEW_STEPS[:2], "--epochs", "2", *FEW_STEPS[4:], "--set", "checkpoint_seconds=0"]
    assert torchrun(*first, "--run-dir", str(tmp_path / "again")).returncode == 0
    again = torchrun("search", "--resume", "--run-dir", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert records(tmp_path / "again") == records(tmp_path / "whole")


def test_a_batch_that_does_not_divide_among_processes_is_refused() -> None:
    done = torchrun("search", "--batch-size", "33")
    assert done.returncode != 0
    assert "batch_size = 33 does not divide into 2 processes" in done.stderr
