"""Pictures to labels: finding them, preparing them as evaluation does, and asking a network in ONNX Runtime."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from supermask.data import View, centre
from supermask.errors import CorruptPictureError, NotFoundError, SupermaskError, UsageError
from supermask.folder import IMAGENET_STATISTICS, UNREADABLE, square, why
from supermask.onnx.check import Arrays
from supermask.onnx.run import Runtime
from supermask.torchvision_import import ensure_torchvision

AT_ONCE = 32  # pictures in memory; Wide ResNet-50 at 224 pixels takes 1 GB for these

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Picture:
    """A picture to read.

    Attributes:
        name: to show, without what cannot be printed.
        file: its path, or its content.
    """

    name: str
    file: str | bytes


@dataclass(frozen=True)
class Prediction:
    """What a network sees in a picture.

    Attributes:
        picture: its name.
        best: labels and their probabilities, the most probable first.
    """

    picture: str
    best: tuple[tuple[str, float], ...]


def find(names: Iterable[str], standard_input: BinaryIO) -> Iterator[Picture | SupermaskError]:
    """Every picture that is named, or why a name gives none.

    A folder gives all that lie in it at any depth, sorted, by the suffixes that `folder:PATH` knows. `-` reads standard
    input: names, one a line, if it is text (UTF-8 without NUL, which no usual kind of picture is), else one picture.
    """
    for name in names:
        if name == STANDARD_INPUT:
            yield from _given(standard_input.read())
        else:
            yield from _at(name)


def _given(content: bytes) -> Iterator[Picture | SupermaskError]:
    if not content:
        yield NotFoundError("nothing came on standard input; pipe a picture there, or names of pictures")
        return
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        yield Picture(STANDARD_INPUT, content)
        return
    for line in text.splitlines():
        if line:
            yield from _at(line)


def _at(name: str) -> Iterator[Picture | SupermaskError]:
    shown, path = printable(name), Path(name)
    if path.is_dir():
        ensure_torchvision()
        from torchvision.datasets.folder import is_image_file

        found = sorted(str(file) for file in path.rglob("*") if is_image_file(file.name) and file.is_file())
        yield from (Picture(printable(file), file) for file in found)
        if not found:
            yield NotFoundError(f"no picture in the folder {shown}; name one that holds .png, .jpg or the like")
    elif path.exists():
        yield Picture(shown, name)
    else:
        yield NotFoundError(f"no file or folder {shown}")


def printable(name: str) -> str:
    """A file's name as it can be printed: one line of UTF-8."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def predict(
    runtime: Runtime, pictures: Sequence[Picture | SupermaskError], top: int
) -> Iterator[Prediction | SupermaskError]:
    """The `top` most probable labels of each picture, in order, or why there are none; 32 pictures are read at once.

    Each is seen as in evaluation on the network's own data: the largest square in the middle, brought to the network's
    size, in grey or RGB; with ImageNet's mean and standard deviation, the usual centre of it. Orientations in EXIF and
    transparency are not looked at, there as here.

    Raises:
        UsageError: the network does not take grey or RGB pictures.
    """
    channels = runtime.input.shape[0]
    if channels not in (1, 3):
        raise UsageError(f"the network takes {channels} channels; pictures have 1 (grey) or 3 (RGB)")
    ensure_torchvision()
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pictures), AT_ONCE):
            some = pictures[start : start + AT_ONCE]
            seen = list(pool.map(lambda picture: _seen(picture, runtime), some))
            good = [tensor.numpy() for tensor in seen if isinstance(tensor, Tensor)]
            rows: Iterator[Arrays] = iter(runtime.probabilities(np.stack(good)) if good else ())
            for picture, tensor in zip(some, seen, strict=True):
                if isinstance(picture, Picture) and isinstance(tensor, Tensor):
                    row = next(rows)
                    # The first of equal ones comes first, as in evaluation.
                    order = np.argsort(-row, kind="stable")[:top]
                    yield Prediction(picture.name, tuple((runtime.labels[i], float(row[i])) for i in order))
                else:
                    assert isinstance(tensor, SupermaskError)
                    yield tensor


def _seen(picture: Picture | SupermaskError, runtime: Runtime) -> Tensor | SupermaskError:
    """A picture as the network takes it: float32 [C, H, W], or uint8 [H, W, C]."""
    if isinstance(picture, SupermaskError):
        return picture
    entry = runtime.input
    channels, size, _ = entry.shape
    mean, std = tuple(entry.mean), tuple(entry.std)
    try:
        with Image.open(picture.file if isinstance(picture.file, str) else io.BytesIO(picture.file)) as opened:
            if (mean, std) == IMAGENET_STATISTICS:
                # What streams has these, and is evaluated with a margin.
                pixels = centre(opened.convert("RGB"), size)
            else:
                # Smaller pictures are enlarged below, in float32, as a data set's are.
                pixels = square(opened, size if entry.type == "uint8" else min(size, *opened.size), channels)
    except UNREADABLE as error:
        return CorruptPictureError(f"cannot read {picture.name} ({why(error)})")
    if entry.type == "uint8":
        return pixels.permute(1, 2, 0)
    return View(size, mean, std, torch.device("cpu")).of(pixels[None])[0]
