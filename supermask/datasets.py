"""Named data sets, small ones decoded once to uint8 and cached on disk under a key of their content.

A data set is an entry point in the group `supermask.datasets`: a function of a `Request` (and, for a family such as
`folder:PATH`, of the part after the colon first) that returns a `Dataset`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from supermask.errors import IntegrityError, NotFoundError, UsageError
from supermask.torchvision_import import ensure_torchvision

log = logging.getLogger(__name__)

Augment = Literal["none", "crop-flip"]


@dataclass(frozen=True)
class Request:
    """How a data set is asked for.

    Attributes:
        root: folder of downloaded data.
        image_size: pixels that pictures of varying size are brought to; None leaves it to the data set.
        skip_corrupt: leave out pictures that do not decode instead of refusing.
        workers: processes that decode pictures of large data sets.
        download: fetch what is not there; otherwise that is an error.
    """

    root: Path = Path("data")
    image_size: int | None = None
    skip_corrupt: bool = False
    workers: int = 2
    download: bool = True


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], class numbers.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Pictures:
        """The pictures at `indices`, int64 [M]."""
        return Pictures(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Files:
    """Picture files, decoded by worker processes each time they are needed.

    Attributes:
        paths: N files.
        labels: int64 [N], class numbers.
        image_size: pixels, height and width after decoding.
        skip_corrupt: leave out (in training: replace) pictures that do not decode.
        workers: decoding processes; 0 decodes in this one.
    """

    paths: tuple[str, ...]
    labels: Tensor
    image_size: int
    skip_corrupt: bool
    workers: int

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> Files:
        """The files at `indices`, int64 [M]."""
        return replace(self, paths=tuple(self.paths[i] for i in indices.tolist()), labels=self.labels[indices])


Split = Pictures | Files


@dataclass(frozen=True)
class Dataset:
    """A classification data set.

    Attributes:
        name: as in `--data`.
        classes: the labels' names, in the order of their numbers.
        train: pictures to search on.
        test: pictures to measure on.
        mean: of each channel, in units of full brightness (0 to 1).
        std: of each channel, likewise.
        augment: what suits the pictures in training.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = "none"

    @property
    def channels(self) -> int:
        """Channels of each picture."""
        return len(self.mean)

    @property
    def image_size(self) -> int:
        """Height and width of each picture, pixels."""
        return self.train.image_size if isinstance(self.train, Files) else self.train.images.shape[-1]

    @staticmethod
    def from_arrays(
        name: str,
        classes: Sequence[str],
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        augment: Augment = "none",
    ) -> Dataset:
        """A data set of your own pictures; mean and std are those of the training pictures.

        Args:
            name: written into runs and artifacts.
            classes: names of the classes.
            train: (uint8 [N, C, H, W] with H = W, int64 [N]).
            test: likewise.
            augment: in training.

        Raises:
            UsageError: a wrong dtype or shape, no pictures, or a label that names no class.
        """
        for part, (images, labels) in {"train": train, "test": test}.items():
            shape = tuple(images.shape)
            if images.dtype != torch.uint8 or len(shape) != 4 or shape[2] != shape[3]:
                raise UsageError(
                    f"{name}: {part} images are {images.dtype} {list(shape)}; expected torch.uint8 [N, C, H, H]"
                )
            if labels.dtype != torch.int64 or labels.shape != shape[:1]:
                raise UsageError(
                    f"{name}: {part} labels are {labels.dtype} {list(labels.shape)}; expected torch.int64 [{shape[0]}]"
                )
            if not images.numel():
                raise UsageError(f"{name}: there are no {part} pictures: images are {list(shape)}")
            first, last = int(labels.min()), int(labels.max())
            if first < 0 or last >= len(classes):
                raise UsageError(
                    f"{name}: {part} labels run from {first} to {last}; the {len(classes)} classes are 0 to "
                    f"{len(classes) - 1}"
                )
        if train[0].shape[1:] != test[0].shape[1:]:
            raise UsageError(
                f"{name}: train pictures are {tuple(train[0].shape[1:])}, test pictures {tuple(test[0].shape[1:])}"
            )
        mean, std = statistics(train[0])
        return Dataset(name, tuple(classes), Pictures(*train), Pictures(*test), mean, std, augment)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in units of 255, to four decimals.

    Counted in integers, so that the result is the same on every machine.
    """
    values = torch.arange(256, dtype=torch.float64)
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten().int(), minlength=256).double()
        m = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - m) ** 2).sum() / counts.sum())
        mean.append(round(m / 255, 4))
        # A channel that never varies would divide by zero.
        std.append(round(variance**0.5 / 255, 4) or 1.0)
    return tuple(mean), tuple(std)


def cache_folder() -> Path:
    """Where decoded data sets are kept: SUPERMASK_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SUPERMASK_CACHE") or platformdirs.user_cache_path("supermask"))


def cached(key: str, build: Callable[[], Dataset]) -> Dataset:
    """The data set that was cached under `key`, or the one that `build` makes (both splits in memory), now cached."""
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    try:
        return _stored(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        # The cache only saves time: what cannot be read is decoded again.
        log.warning("the cached data set %s cannot be read (%s); decoding it again", path, error)
    dataset = build()
    _store(path, dataset)
    return dataset


def _stored(path: Path) -> Dataset:
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["dataset"])
        train, test = (
            Pictures(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels")) for part in ("train", "test")
        )
    for field in ("classes", "mean", "std"):
        about[field] = tuple(about[field])
    return Dataset(train=train, test=test, **about)


def _store(path: Path, dataset: Dataset) -> None:
    assert isinstance(dataset.train, Pictures)
    assert isinstance(dataset.test, Pictures)
    about = {field: getattr(dataset, field) for field in ("name", "classes", "mean", "std", "augment")}
    tensors = {
        "train.images": dataset.train.images,
        "train.labels": dataset.train.labels,
        "test.images": dataset.test.images,
        "test.labels": dataset.test.labels,
    }
    half_written = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, half_written, {"dataset": json.dumps(about)})
        half_written.replace(path)
    except (OSError, SafetensorError) as error:
        # The cache only saves time: without it the set is decoded again next time.
        log.warning("the decoded data set could not be cached in %s (%s)", path.parent, error)
        with suppress(OSError):
            half_written.unlink()


def content_key(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of a few large files."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def digits(request: Request) -> Dataset:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships; every fifth one is a test picture."""

    def build() -> Dataset:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        # Sixteen grey levels, 0 to 16, stretched to 0 to 255.
        pictures = torch.from_numpy(images * (255 / 16)).round().to(torch.uint8).reshape(-1, 1, 8, 8)
        numbers = torch.from_numpy(labels).long()
        # The pictures come writer by writer, so every fifth one leaves each writer in both parts.
        test = torch.arange(len(numbers)) % 5 == 4
        return Dataset.from_arrays(
            "digits",
            [str(digit) for digit in range(10)],
            (pictures[~test], numbers[~test]),
            (pictures[test], numbers[test]),
        )

    return cached(f"digits of scikit-learn {version('scikit-learn')}", build)


def mnist(request: Request) -> Dataset:
    """MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels."""
    return _torchvision_set(request, "mnist", "MNIST", "MNIST/raw/*-ubyte", [str(digit) for digit in range(10)])


def fashion_mnist(request: Request) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 pieces of clothing of 28x28 pixels."""
    return _torchvision_set(request, "fashion-mnist", "FashionMNIST", "FashionMNIST/raw/*-ubyte")


# The statistics that the field uses (Ramanujan et al.'s code among others).
CIFAR10_STATISTICS: dict[str, Any] = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}


def cifar10(request: Request) -> Dataset:
    """CIFAR-10: 50,000 + 10,000 photographs of 32x32 pixels, ten classes."""
    return _torchvision_set(
        request, "cifar10", "CIFAR10", "cifar-10-batches-py/*", augment="crop-flip", **CIFAR10_STATISTICS
    )


def cifar100(request: Request) -> Dataset:
    """CIFAR-100: 50,000 + 10,000 photographs of 32x32 pixels, a hundred classes."""
    return _torchvision_set(request, "cifar100", "CIFAR100", "cifar-100-python/*", augment="crop-flip")


def _torchvision_set(
    request: Request, name: str, class_name: str, pattern: str, classes: Sequence[str] | None = None, **fields: Any
) -> Dataset:
    """A data set that torchvision downloads and reads; `pattern` finds its files beneath the root."""

    def build() -> Dataset:
        ensure_torchvision()
        import torchvision

        reader = getattr(torchvision.datasets, class_name)
        try:
            train, test = (reader(request.root, train=train, download=True) for train in (True, False))
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            folder = request.root / Path(pattern).parent
            # torchvision says this where no mirror answered; any other error but the network's comes from reading.
            if isinstance(error, OSError) or str(error).startswith("Error downloading"):
                raise NotFoundError(
                    f"{name} is not in {folder} and could not be downloaded ({_last_line(error)}); put the files that "
                    f"torchvision.datasets.{class_name} reads there, or name their root with --data-root"
                ) from error
            raise IntegrityError(
                f"{name} in {folder} is damaged ({_last_line(error)}); remove that folder, and it is downloaded again"
            ) from error
        parts = [(_channels_first(part.data), torch.as_tensor(part.targets).long()) for part in (train, test)]
        dataset = Dataset.from_arrays(name, classes or train.classes, parts[0], parts[1])
        return replace(dataset, **fields)

    files = sorted(path for path in request.root.glob(pattern) if path.is_file())
    if not files and not request.download:
        raise NotFoundError(f"{name} is not in {request.root / Path(pattern).parent}")
    if not files:
        dataset = build()  # downloads
        files = sorted(path for path in request.root.glob(pattern) if path.is_file())
        return cached(f"{name} {content_key(files)}", lambda: dataset)
    return cached(f"{name} {content_key(files)}", build)


def _channels_first(data: Any) -> Tensor:
    images = torch.as_tensor(data)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _last_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1]
