"""The run folder: config.toml, environment.json, metrics.jsonl, checkpoint.pt and artifact/."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from supermask.config import SearchConfig, parse, resolve, to_toml
from supermask.errors import IntegrityError, NotFoundError, StorageError, UsageError
from supermask.files import write_atomically

log = logging.getLogger(__name__)

RUNS = Path("runs")
LATEST = RUNS / "latest"

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where training stands."""
        return self.path / "checkpoint.pt"

    @property
    def artifact(self) -> Path:
        """The folder of the result."""
        return self.path / "artifact"

    def config(self) -> SearchConfig:
        """The resolved configuration of the run.

        Raises:
            NotFoundError: there is no run in this folder.
            IntegrityError: it is not what a search wrote.
        """
        file = self.path / "config.toml"
        if not file.is_file():
            raise NotFoundError(f"no run in {self.path}: config.toml is not there; start one without --resume")
        try:
            return resolve(parse(file.read_text("utf-8"), str(file)))
        except (UnicodeDecodeError, UsageError) as error:
            raise IntegrityError(f"{file} was altered ({error}); restore it, or start another run") from error

    def append(self, record: Record) -> None:
        """One line of metrics.jsonl, flushed."""
        with _reported(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[Record]:
        """What was written for each epoch; nothing where there is no metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def forget_after(self, epochs: int) -> None:
        """Drop the records of epochs that a resumed run will make again, `epochs` and later."""
        file = self.path / "metrics.jsonl"
        if file.is_file():
            # A line cut short by a kill belongs to such an epoch, since a checkpoint follows its record.
            lines = file.read_bytes().splitlines(keepends=True)[:epochs]
            with _reported(self.path):
                write_atomically(file, b"".join(lines))


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write to {path}: {error.strerror}; everything written before is intact: free space, or name "
            "another folder with --run-dir"
        ) from error


def create(config: SearchConfig, path: Path | None = None) -> Run:
    """A new run folder for `config`: `path`, or one named after the time and the search, to which runs/latest points.

    Raises:
        UsageError: a run is there already.
        StorageError: the folder cannot be written.
    """
    named = path is not None
    if path is None:
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        words = [stamp, config.strategy.name, config.arch.name, config.data.name, f"seed{config.seed}"]
        path = RUNS / "-".join("".join(c if c.isalnum() else "-" for c in word).strip("-") for word in words)
    if (path / "config.toml").exists() and named:
        raise UsageError(f"there is a run in {path} already; continue it with --resume, or name another with --run-dir")
    with _reported(path):
        if named:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path = _new_folder(path)
        (path / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        write_atomically(path / "config.toml", to_toml(config).encode())
    if not named:
        _point_latest_to(path)
    return Run(path)


def _new_folder(path: Path) -> Path:
    """`path`, or the next of path-2, path-3, ... that no search which began in the same second has made."""
    folder, number = path, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")
        else:
            return folder


def _point_latest_to(path: Path) -> None:
    pointer = RUNS / f".latest.{os.getpid()}"
    try:
        pointer.symlink_to(path.name)
        pointer.replace(LATEST)
    except OSError as error:
        # A convenience only: a file system without links, or a folder of that name, must not stop a search.
        log.warning("%s could not be pointed to the new run (%s)", LATEST, error.strerror)
        pointer.unlink(missing_ok=True)


def environment() -> Record:
    """The software, the machine and the command that a run was made with."""
    import torch

    packages = ("supermask", "torch", "torchvision", "numpy", "safetensors")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {package: version(package) for package in packages},
    }
