"""Checkpoints: everything a search needs to go on as if it had never stopped, replaced atomically."""

from __future__ import annotations

import io
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from supermask.errors import IntegrityError, StorageError
from supermask.files import write_atomically

Checkpoint = dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path`.

    Raises:
        StorageError: it cannot be written; the one before is intact.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
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
