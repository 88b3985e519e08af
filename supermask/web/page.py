"""An artifact as a static page: the ONNX file, ONNX Runtime Web, and a few files of our own."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from supermask.artifact import Artifact
from supermask.errors import StorageError, UsageError
from supermask.files import write_atomically
from supermask.folder import IMAGENET_STATISTICS
from supermask.onnx.export import Exported, export_onnx
from supermask.onnx.weights import Dtype, Form
from supermask.web.runtime import VERSION, runtime

ABOUT, NETWORK, FIRST = "page.json", "model.onnx", "index.html"
OURS = ("app.js", "style.css", FIRST)

# How data sets place a digit: its longest side as a share of the picture's, and what stands in the middle.
# MNIST fits it into 20 of 28 pixels and centres its mass (http://yann.lecun.com/exdb/mnist); each of scikit-learn's
# fills all 8 rows.
STROKES: dict[str, dict[str, Any]] = {
    "mnist": {"fill": 20 / 28, "centre": "mass"},
    "digits": {"fill": 1.0, "centre": "box"},
}


@dataclass(frozen=True)
class Page:
    """A page that was written.

    Attributes:
        folder: holds all that it needs.
        size: bytes of all its files.
        network: its ONNX file.
    """

    folder: Path
    size: int
    network: Exported


def export_page(
    artifact: Artifact,
    folder: Path,
    *,
    weights: Form | None = None,
    dtype: Dtype = "float32",
    check: bool = True,
    pictures: Tensor | None = None,
) -> Page:
    """Write a page that runs an artifact in the browser and asks no other server for anything.

    Args:
        artifact: what `supermask.read` gives.
        folder: a new or empty one, or one that holds an earlier page, which is replaced.
        weights: as for `export_onnx`.
        dtype: likewise.
        check: likewise.
        pictures: likewise.

    Raises:
        UsageError: the folder holds something else.
        NotFoundError: npm does not get ONNX Runtime Web.
        StorageError: the folder cannot be written.
        SupermaskError: whatever `export_onnx` raises; nothing was written then.
    """
    _refuse_unless_ours(folder)
    engine = runtime()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / NETWORK
        network = export_onnx(
            artifact, path, weights=weights, dtype=dtype, input="uint8", softmax=True, check=check, pictures=pictures
        )
        content = path.read_bytes()
    network = replace(network, path=folder / NETWORK)
    static = files("supermask.web") / "static"
    about = json.dumps(_about(artifact, network), indent=2, ensure_ascii=False)
    # page.json comes first, since it tells a half-written page of ours from a user's files; index.html last, since
    # without it no browser takes the folder for a page.
    page = {
        ABOUT: f"{about}\n".encode(),
        NETWORK: content,
        **engine,
        **{name: (static / name).read_bytes() for name in OURS},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FIRST).unlink(missing_ok=True)
        for name, file in page.items():
            write_atomically(folder / name, file)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}; free space or name another") from error
    return Page(folder, sum(map(len, page.values())), network)


def _refuse_unless_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--web {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder / ABOUT):
        raise UsageError(f"--web {folder} holds files that are no page of supermask's; name a new folder")


def _is_ours(about: Path) -> bool:
    try:
        return "supermask" in json.loads(about.read_bytes())["generator"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _about(artifact: Artifact, network: Exported) -> dict[str, Any]:
    """What the page says of the network, and what it must know to feed it."""
    config = artifact.config
    dataset = str(config.provenance.get("dataset", ""))
    return {
        "generator": f"supermask {version('supermask')}",
        "runtime": VERSION,
        # Of a folder's path the name alone: the rest is the user's own.
        "title": f"{config.arch.name} on {Path(dataset).name}" if dataset else config.arch.name,
        "shape": config.input.shape,
        "labels": config.labels,
        "strokes": STROKES.get(dataset),
        # Of a picture's shorter side; those that streamed were cut so, and normalised by ImageNet's statistics.
        "centre": 224 / 256 if (tuple(config.input.mean), tuple(config.input.std)) == IMAGENET_STATISTICS else 1,
        "seed": config.seed,
        "weights": network.parameters,
        "drawn": sum(layer.n for layer in config.layers if layer.values == "seed"),
        "kept": sum(layer.kept for layer in config.layers),
        "bytes": network.size,
        "float32_bytes": 4 * network.parameters,
        "accuracy": config.metrics.get("test_accuracy"),
    }
