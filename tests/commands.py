"""Running the real command line, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supermask.cli import main

# A search of two or three seconds, most of them imports; a checkpoint after every step.
QUICK = ["--epochs", "4", "--set", "checkpoint_seconds=0"]

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def supermask(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `supermask ARGS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "supermask", *args], capture_output=True, text=True, check=False, timeout=300, **more
    )


def run_here(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """`supermask ARGS` in this process: exit status, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(args)
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


def started(*args: str) -> subprocess.Popen[str]:
    """Start `supermask ARGS`."""
    return subprocess.Popen(
        [sys.executable, "-m", "supermask", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while the process lives."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal, wait, and return exit status, stdout and stderr."""
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def kept(run: Path) -> tuple[str, str]:
    """The hashes of a run's masks and of its masked weights."""
    hashes = json.loads((run / "artifact" / "config.json").read_text())["sha256"]
    return hashes["model.safetensors"], hashes["weights"]


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without the time that each epoch took."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]
