"""A search that is killed, interrupted or out of disk, and goes on as if nothing had happened."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands import QUICK, kept, records, started, stopped, supermask, wait_until


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = supermask("search", *QUICK, "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("moment", range(3))
def test_resume_after_kill_ends_with_the_same_mask(uninterrupted: Path, tmp_path: Path, moment: int) -> None:
    run = tmp_path / "run"
    process = started("search", *QUICK, "--run-dir", str(run))
    wait_until((run / "checkpoint.pt").exists, process)
    time.sleep(random.uniform(0, 1.0))
    stopped(process, signal.SIGKILL)
    stood = torch.load(run / "checkpoint.pt", weights_only=True)
    done = supermask("search", "--resume", "--run-dir", str(run))
    assert done.returncode == 0, (moment, stood["epoch"], stood["step"], done.stderr)
    assert kept(run) == kept(uninterrupted), (moment, stood["epoch"], stood["step"])
    assert records(run) == records(uninterrupted)


# A search whose process dies with half of its second checkpoint on the disk: nothing else that it writes exceeds 1 MB.
DIES_WRITING = """
import os, signal, sys
from supermask.cli import main

fsync, checkpoints = os.fsync, []

def fails(file):
    size = os.fstat(file).st_size
    checkpoints.extend([size] * (size > 10**6))
    if len(checkpoints) == 2:
        os.ftruncate(file, size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = fails
main(sys.argv[1:])
"""


def test_a_kill_during_a_write_leaves_the_checkpoint_before(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", DIES_WRITING, "search", *QUICK, "--run-dir", str(run)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] == 0
    done = supermask("search", "--resume", "--run-dir", str(run))
    assert done.returncode == 0, done.stderr
    assert kept(run) == kept(uninterrupted)
    assert records(run) == records(uninterrupted)


def test_a_run_killed_before_its_first_checkpoint_starts_over(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started("search", *QUICK, "--run-dir", str(run))
    wait_until((run / "config.toml").exists, process)
    stopped(process, signal.SIGKILL)
    (run / "checkpoint.pt").unlink(missing_ok=True)
    assert supermask("search", "--resume", "--run-dir", str(run)).returncode == 0
    assert kept(run) == kept(uninterrupted)


def test_ctrl_c_saves_says_how_to_resume_and_exits_130(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started("search", *QUICK, "--run-dir", str(run))
    wait_until((run / "checkpoint.pt").exists, process)
    status, out, err = stopped(process, signal.SIGINT)
    assert status == 130
    assert out == ""
    (line,) = err.splitlines()
    command = f"supermask search --resume --run-dir {run}"
    assert line.startswith("stopped in epoch ")
    assert line.endswith(command)
    assert supermask(*command.split()[1:]).returncode == 0
    assert kept(run) == kept(uninterrupted)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="sees in /proc how far a process has come")
def test_ctrl_c_before_there_is_anything_to_save_is_one_word() -> None:
    process = started("search")
    wait_until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    status, out, err = stopped(process, signal.SIGINT)
    assert (status, out, err) == (130, "", "interrupted\n")


def test_a_full_disk_loses_nothing_already_written(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started_run = started("search", *QUICK, "--run-dir", str(run))
    wait_until((run / "metrics.jsonl").exists, started_run)
    stopped(started_run, signal.SIGTERM)
    before = (run / "checkpoint.pt").read_bytes()
    lines = records(run)

    def small_disk() -> None:
        # No file may grow beyond 1 MB: a checkpoint of this search takes 3 MB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))

    done = supermask("search", "--resume", "--run-dir", str(run), preexec_fn=small_disk)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: cannot write {run / 'checkpoint.pt'}: ")
    assert "--resume" in line
    assert (run / "checkpoint.pt").read_bytes() == before
    assert records(run)[: len(lines)] == lines
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint.pt",
        "config.toml",
        "environment.json",
        "metrics.jsonl",
    ]
    assert supermask("search", "--resume", "--run-dir", str(run)).returncode == 0
    assert kept(run) == kept(uninterrupted)


def test_a_finished_run_resumes_to_the_same_end(uninterrupted: Path) -> None:
    before = kept(uninterrupted), records(uninterrupted)
    assert supermask("search", "--resume", "--run-dir", str(uninterrupted)).returncode == 0
    assert (kept(uninterrupted), records(uninterrupted)) == before


def test_repeating_the_command_with_resume_is_allowed_and_changing_it_is_not(uninterrupted: Path) -> None:
    again = ["search", *QUICK, "--run-dir", str(uninterrupted), "--resume"]
    assert supermask(*again).returncode == 0
    other = supermask(*again, "--k", "0.3")
    assert other.returncode == 2
    assert "strategy.options.k = 0.5, not 0.3" in other.stderr


def test_a_second_run_in_the_same_folder_is_refused(uninterrupted: Path) -> None:
    done = supermask("search", "--run-dir", str(uninterrupted))
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_resuming_where_there_is_no_run_is_exit_3(tmp_path: Path) -> None:
    done = supermask("search", "--resume", "--run-dir", str(tmp_path / "nowhere"))
    assert done.returncode == 3
    assert "nowhere" in done.stderr


DAMAGE: list[tuple[str, bytes]] = [
    ("checkpoint.pt", b"garbage"),
    ("checkpoint.pt", b""),
    ("config.toml", b"\xff"),
    ("config.toml", b"epochs = "),
    ("config.toml", b"epochs = 0"),
    ("config.toml", b""),
]


@pytest.mark.parametrize(("name", "content"), DAMAGE, ids=str)
def test_a_damaged_run_is_refused_by_file(uninterrupted: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for file in ("config.toml", "checkpoint.pt"):
        (tmp_path / file).write_bytes((uninterrupted / file).read_bytes())
    (tmp_path / name).write_bytes(content)
    done = supermask("search", "--resume", "--run-dir", str(tmp_path))
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / (name if content else "checkpoint.pt")) in line


def test_a_configuration_altered_behind_the_checkpoints_back_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((uninterrupted / "checkpoint.pt").read_bytes())
    altered = (
        (uninterrupted / "config.toml").read_text().replace("seed = 0", "seed = 7").replace("epochs = 4", "epochs = 5")
    )
    (tmp_path / "config.toml").write_text(altered)
    done = supermask("search", "--resume", "--run-dir", str(tmp_path))
    assert done.returncode == 4
    assert "it is of a search with seed = 0, not 7" in done.stderr


def test_where_a_run_computes_may_change(uninterrupted: Path) -> None:
    before = kept(uninterrupted)
    moved = ["--device", "auto", "--set", "precision=auto", "--data-root", "elsewhere", "--set", "data.workers=0"]
    done = supermask("search", "--resume", "--run-dir", str(uninterrupted), *moved)
    assert done.returncode == 0, done.stderr
    assert kept(uninterrupted) == before
