"""Checkpoints: everything a search needs to go on as if it had never stopped, replaced atomically."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch

from supermask.errors import IntegrityError, StorageError
from supermask.files import write_atomically

Checkpoint = dict[str, Any]


class Writer:
    """Writes checkpoints while training goes on, one at a time; none is under way when its context ends."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.thread.shutdown()

    def save(self, path: Path, checkpoint: Checkpoint) -> None:
        """Take the checkpoint as it is now; begin to replace the one at `path` once no write is under way.

        Raises:
            StorageError: the one before could not be written.
        """
        self.wait()
        # The serialised form is the snapshot: a copy of the tensors would have to be serialised too, and take memory.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self.pending = self.thread.submit(_write, path, buffer)

    def busy(self) -> bool:
        """Whether a write is under way.

        Raises:
            StorageError: it has failed.
        """
        if self.pending is not None and self.pending.done():
            self.wait()
        return self.pending is not None

    def wait(self) -> None:
        """Return when everything saved is on the disk.

        Raises:
            StorageError: it cannot be written; the checkpoint before is intact.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def _write(path: Path, buffer: io.BytesIO) -> None:
    try:
        write_atomically(path, buffer.getbuffer())
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}; everything written before is intact: free space, then continue "
            f"with supermask search --resume --run-dir {path.parent}"
        ) from error


def load(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, tensors on the CPU; None if there is none yet.

    Raises:
        IntegrityError: the file is not a checkpoint.
    """
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise damaged(path, error) from error
    return checkpoint


def damaged(path: Path, error: Exception | str) -> IntegrityError:
    """What to say of a file that is no checkpoint, or not this run's."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return IntegrityError(f"{path} is not a checkpoint of this run ({reason}); delete it to start the run anew")
