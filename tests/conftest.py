"""What every test has: a cache and a working folder of its own, and the real data where it was unpacked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Shared by the tests and their subprocesses, not with the user's own.
    os.environ["SUPERMASK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the unpacked data sets; tests that want it skip where it is absent."""
    root = Path(os.environ.get("SUPERMASK_DATA") or Path(__file__).parents[1] / "data")
    if not (root / "MNIST").is_dir() or not (root / "cifar10-jpeg75").is_dir():
        pytest.skip(f"no MNIST and CIFAR-10 (JPEG-75) in {root}; unpack them there or set SUPERMASK_DATA")
    return root
