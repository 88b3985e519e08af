"""What every test has: a cache and a working folder of its own, and the real data where it was unpacked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib import reload
from pathlib import Path

import pytest

from tests.hub_server import HubServer


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


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub of the test's own and an empty cache; Ada is logged in, in this process and in those that it starts."""
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # public, says its page

    disable_progress_bars()
    with HubServer() as server, pytest.MonkeyPatch.context() as environment:
        for name in os.environ:
            if name.startswith(("HF_", "HUGGING")):  # the user's own token, cache and settings
                environment.delenv(name)
        environment.setenv("HF_ENDPOINT", server.url)
        environment.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        environment.setenv("HF_TOKEN", "hf_tokenOfAda")
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
            environment.setenv(name, "1")
        # The client reads its environment once, when it is imported.
        reload(constants)
        yield server
    close_session()
    reload(constants)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that this process would have slept, such as between two tries; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a search of two epochs, the default one otherwise. Tests read it, and leave it as it is."""
    from supermask import search

    folder = tmp_path_factory.mktemp("found") / "run"
    search(epochs=2, run_dir=folder)
    return folder
