"""The most memory that a process ever had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak() -> int:
    """Bytes that this process had at most so far."""
    if STATUS.exists():
        # Not getrusage's figure, which on Linux a process inherits from the one that started it.
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def of(program: str, *words: str) -> int:
    """The number that a Python program prints, in a process of its own."""
    return int(subprocess.run([sys.executable, "-c", program, *words], check=True, stdout=subprocess.PIPE).stdout)
