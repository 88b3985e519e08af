"""What a person waits for before anything happens."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from supermask.bench.report import Report, of_measurements
from supermask.bench.timing import compare


def startup(small: bool) -> Report:
    """Seconds of `supermask --help` and of `supermask search` until its first step, each in processes of its own."""
    rounds = 3 if small else 15
    python = [sys.executable]
    rows = compare(
        "help",
        {
            'python -c "import typer"': lambda: _run([*python, "-c", "import typer"]),
            "supermask --help": lambda: _run([*python, "-m", "supermask", "--help"]),
        },
        rounds,
    )
    rows += compare(
        "first step",
        {
            'python -c "import torch"': lambda: _run([*python, "-c", "import torch"]),
            "supermask search, until a checkpoint of it is written": _first_step,
        },
        rounds,
    )
    return of_measurements(rows)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _first_step() -> None:
    """Search on the digits that come along, until the first step's checkpoint is there."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["search", "--run-dir", str(run), "--set", "checkpoint_seconds=0"]
        with subprocess.Popen([sys.executable, "-m", "supermask", *words], stdout=subprocess.DEVNULL) as process:
            while not (run / "checkpoint.pt").exists() and process.poll() is None:
                time.sleep(0.002)
            process.kill()
