"""Checkpoints: everything a search needs to go on as if it had never stopped, replaced atomically."""

from __future__ import annotations

import io
from pathlib import Path
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
        write_atomically(path, buffer.getvalue())
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
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntegrityError(f"{path} is not a checkpoint ({reason}); delete it to start the run anew") from error
    return checkpoint
