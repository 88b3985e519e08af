"""Folders of pictures: PATH/train/CLASS/* and PATH/val/CLASS/* (or test), torchvision's ImageFolder layout."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from supermask.datasets import Dataset, Files, Request, cached
from supermask.errors import CorruptPictureError, NotFoundError
from supermask.torchvision_import import ensure_torchvision

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

log = logging.getLogger(__name__)

# Above this size of the decoded pictures a folder streams through worker processes.
MEMORY_BYTES = 2 * 2**30
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What decoding a damaged or dishonest file raises.
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)


def folder(path: str, request: Request) -> Dataset:
    """Pictures in class folders: PATH/train and PATH/val or PATH/test.

    Pictures are brought to one square size (the request's, or that of the first picture's shorter side). Sets that take
    at most 2 GiB decoded are kept in memory, cached under a key of their files' names, sizes and times; larger ones
    stream. Grey pictures stay grey if the first one is.

    Raises:
        NotFoundError: a folder is not there, or a class folder is empty or missing.
        CorruptPictureError: a picture does not decode (unless `skip_corrupt`).
    """
    root = Path(path)
    train, test = _open(root / "train"), _open(_evaluation_folder(root))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        here, there = (train.root, test.root) if odd in train.classes else (test.root, train.root)
        raise NotFoundError(f"class folder {odd!r} is in {here} but not in {there}; both need the same classes")
    first = _decode_first(train)
    size, channels = request.image_size or min(first.size), 1 if first.mode in {"1", "L"} else 3
    if (len(train) + len(test)) * channels * size * size > MEMORY_BYTES:
        return _streaming(f"folder:{path}", train, test, request, size)

    def build() -> Dataset:
        (pictures, names), (test_pictures, _) = (
            (decode_all(part, size, channels, request.skip_corrupt), part.classes) for part in (train, test)
        )
        return Dataset.from_arrays(f"folder:{path}", names, pictures, test_pictures, augment="crop-flip")

    listing = hashlib.sha256(repr([_listing(part) for part in (train, test)]).encode()).hexdigest()
    return cached(f"folder {root.resolve()} {size} {channels} {request.skip_corrupt} {listing}", build)


def imagenet(request: Request) -> Dataset:
    """ImageNet-1k in ROOT/imagenet/train/SYNSET and ROOT/imagenet/val/SYNSET, at 224 pixels; streams.

    Raises:
        NotFoundError: the folders are not there; ImageNet must be fetched by hand.
    """
    root = request.root / "imagenet"
    if not root.is_dir():
        raise NotFoundError(
            f"imagenet is not in {root}, and cannot be downloaded without an account at image-net.org; put its class "
            f"folders into {root / 'train'} and {root / 'val'}, or name the folder with --data folder:PATH"
        )
    return _streaming(
        "imagenet", _open(root / "train"), _open(_evaluation_folder(root)), request, request.image_size or 224
    )


def _streaming(name: str, train: ImageFolder, test: ImageFolder, request: Request, size: int) -> Dataset:
    parts = [
        Files(
            tuple(path for path, _ in part.samples),
            torch.tensor(part.targets),
            size,
            request.skip_corrupt,
            request.workers,
        )
        for part in (train, test)
    ]
    mean, std = IMAGENET_STATISTICS
    return Dataset(name, tuple(train.classes), parts[0], parts[1], mean, std, augment="crop-flip")


def _evaluation_folder(root: Path) -> Path:
    for name in ("val", "test"):
        if (root / name).is_dir():
            return root / name
    raise NotFoundError(f"{root} has neither val/ nor test/; give the folder that holds train/ and one of these")


def _open(root: Path) -> ImageFolder:
    ensure_torchvision()
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise NotFoundError(f"no folder {root}; expected class folders of pictures in it")
    try:
        return ImageFolder(str(root))
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].split(" Supported")[0].rstrip(".")
        raise NotFoundError(f"{root}: {reason[0].lower()}{reason[1:]}; each class folder needs a picture") from error


def _listing(part: ImageFolder) -> list[tuple[str, int, int]]:
    # Names, sizes and times, as git's index judges: reading 60,000 small files takes 4 s, asking for these 0.3 s.
    stats = [(path, Path(path).stat()) for path, _ in part.samples]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _decode_first(part: ImageFolder) -> Image.Image:
    """The first picture that opens, to take size and mode from."""
    for path, _ in part.samples:
        try:
            with Image.open(path) as picture:
                return picture
        except UNREADABLE:
            continue  # named and counted when all are decoded
    raise CorruptPictureError(f"none of the {len(part)} pictures in {part.root} can be opened")


def decode(path: str, size: int, channels: int) -> Tensor | str:
    """One picture as uint8 [channels, size, size], shorter side resized and the centre cut out, or why not."""
    try:
        with Image.open(path) as picture:
            return square(picture, size, channels)
    except UNREADABLE as error:
        return why(error)


def square(picture: Image.Image, size: int, channels: int) -> Tensor:
    """uint8 [channels, size, size]: the largest square in the middle, resized."""
    fitted = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).reshape(size, size, channels).permute(2, 0, 1)


def why(error: Exception) -> str:
    """Why a picture does not decode, in one line without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a kind that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def decode_all(part: ImageFolder, size: int, channels: int, skip_corrupt: bool) -> tuple[Tensor, Tensor]:
    """Every picture of a folder: uint8 [N, channels, size, size] and labels int64 [N].

    Raises:
        CorruptPictureError: pictures do not decode, and `skip_corrupt` is false.
    """
    log.info("decoding %d pictures of %s", len(part), part.root)
    images = torch.empty(len(part), channels, size, size, dtype=torch.uint8)
    good = torch.ones(len(part), dtype=torch.bool)
    bad = []
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda sample: decode(sample[0], size, channels), part.samples)
        for i, picture in enumerate(decoded):
            if isinstance(picture, str):
                good[i] = False
                bad.append(f"{part.samples[i][0]} ({picture})")
            else:
                images[i] = picture
    if bad:
        refuse_or_name(bad, skip_corrupt)
    if len(bad) == len(part):
        raise CorruptPictureError(f"none of the {len(part)} pictures in {part.root} decodes")
    return images[good], torch.tensor(part.targets)[good]


def refuse_or_name(bad: list[str], skip_corrupt: bool) -> None:
    """Raise for pictures that do not decode, or name and count them where they are to be skipped."""
    count = "1 picture does" if len(bad) == 1 else f"{len(bad)} pictures do"
    if not skip_corrupt:
        raise CorruptPictureError(
            f"{count} not decode, the first: {bad[0]}; mend or remove it, or leave such pictures out with "
            "--skip-corrupt"
        )
    log.warning("%s not decode, left out: %s", count, ", ".join(bad))
