"""Several processes, started by the real torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import QUICK, kept, records, supermask, wait_until

# Three steps of 360 pictures in float32, so that the sums of two halves differ from the whole by rounding alone.
FEW_STEPS = ["--batch-size", "360", "--epochs", "1", "--set", "precision=float32"]


TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "supermask"
]  # fmt: skip


def torchrun(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TORCHRUN, *args], capture_output=True, text=True, check=False, timeout=120)


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
        torch.testing.assert_close(two_state[name], value, rtol=1e-3, atol=1e-5)
    for one, two_ in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert one["train_loss"] == pytest.approx(two_["train_loss"], rel=1e-4)


def test_the_first_process_alone_prints_and_writes(tmp_path: Path) -> None:
    done = torchrun("search", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test_pictures"] == 359
    assert len([path for path in (tmp_path / "runs").iterdir() if not path.is_symlink()]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="finds torchrun's workers in /proc")
def test_two_processes_that_were_killed_resume_to_the_same_mask(tmp_path: Path) -> None:
    args = ["search", *QUICK, "--run-dir"]
    done = torchrun(*args, str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen([*TORCHRUN, *args, str(killed)], stderr=subprocess.DEVNULL, text=True)
    wait_until((killed / "checkpoint.pt").exists, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, workers)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    again = torchrun("search", "--resume", "--run-dir", str(killed))
    assert again.returncode == 0, again.stderr
    assert kept(killed) == kept(tmp_path / "whole")
    assert records(killed) == records(tmp_path / "whole")


def test_short_epochs_are_saved_and_stopped_between(tmp_path: Path) -> None:
    args = ["search", "--batch-size", "360", "--epochs", "4000", "--set", "checkpoint_seconds=0"]
    process = subprocess.Popen(
        [*TORCHRUN, *args, "--run-dir", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True
    )
    wait_until((tmp_path / "run" / "checkpoint.pt").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert f"continue with: supermask search --resume --run-dir {tmp_path / 'run'}" in err


def test_a_batch_that_does_not_divide_among_processes_is_refused() -> None:
    done = torchrun("search", "--batch-size", "33")
    assert done.returncode != 0
    assert "batch_size = 33 does not divide into 2 processes" in done.stderr
