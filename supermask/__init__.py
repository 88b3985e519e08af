"""Find, keep and ship the subnetworks that work inside networks nobody trained.

What needs torch is imported on first use, so that the command line does not pay for it before it must.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from supermask.errors import (
    ArtifactError,
    ConflictError,
    CorruptPictureError,
    DeviceMemoryError,
    ExportError,
    HubError,
    IntegrityError,
    Interrupted,
    NonFiniteLossError,
    NotFoundError,
    StorageError,
    SupermaskError,
    UsageError,
)

if TYPE_CHECKING:
    from supermask.api import Result, search
    from supermask.artifact import Artifact
    from supermask.datasets import Dataset
    from supermask.onnx.export import export_onnx
    from supermask.reference import import_checkpoint
    from supermask.store import compress, load, pull, push, read, save

__all__ = [
    "Artifact",
    "ArtifactError",
    "ConflictError",
    "CorruptPictureError",
    "Dataset",
    "DeviceMemoryError",
    "ExportError",
    "HubError",
    "IntegrityError",
    "Interrupted",
    "NonFiniteLossError",
    "NotFoundError",
    "Result",
    "StorageError",
    "SupermaskError",
    "UsageError",
    "compress",
    "export_onnx",
    "import_checkpoint",
    "load",
    "pull",
    "push",
    "read",
    "save",
    "search",
]

_HOMES = {
    "Artifact": "artifact",
    "Dataset": "datasets",
    "Result": "api",
    "compress": "store",
    "export_onnx": "onnx.export",
    "import_checkpoint": "reference",
    "load": "store",
    "pull": "store",
    "push": "store",
    "read": "store",
    "save": "store",
    "search": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'supermask' has no attribute {name!r}")
    value = getattr(import_module(f"supermask.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
