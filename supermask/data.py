"""Batches for training and evaluation: order, augmentation and normalisation, alike for memory and for files.

Everything random depends on (seed, epoch, position) alone, so training can start in the middle of an epoch, and any
number of processes see the same global batches.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from supermask.datasets import Augment, Dataset, Files, Pictures, Split
from supermask.errors import UsageError
from supermask.folder import UNREADABLE, refuse_or_name, why
from supermask.randomness import derive, generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class View:
    """How a network sees pictures: float32 [N, C, size, size], normalised, on its device.

    Attributes:
        image_size: pixels; pictures of another size are resized bilinearly.
        mean: of each channel, in units of full brightness.
        std: likewise.
        device: where the network is.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def of(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] as the network sees it, channels last in memory."""
        images = images.to(self.device, non_blocking=True)
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        if images.shape[-1] != self.image_size:
            pixels = F.interpolate(pixels, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean, std = self.statistics
        return pixels.sub_(mean).div_(std)

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in units of 255, float32 [C, 1, 1]."""
        # On the device once: a copy for each batch would make the host wait.
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] * 255 for values in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Share:
    """The part of every global batch that this process computes."""

    rank: int = 0
    world_size: int = 1


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Split | None]:
    """The data set with a random `fraction` of its training pictures held out, and these (None for 0)."""
    if not fraction:
        return dataset, None
    order = torch.randperm(len(dataset.train), generator=generator(seed, "validation"))
    held = round(len(order) * fraction)
    if not 0 < held < len(order):
        raise UsageError(f"data.validation = {fraction} of {len(order)} training pictures leaves one part empty")
    return replace(dataset, train=dataset.train.subset(order[held:])), dataset.train.subset(order[:held])


def crop_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Random crops after padding, and random flips: 4 pixels around 32, in proportion around other sizes.

    Args:
        images: uint8 [N, C, H, W].
        draws: int64 [N, 3]: row and column offset in 0 .. 2 * padding(H), and 1 to flip left to right.
    """
    size = images.shape[-1]
    padded = F.pad(images, [padding(size)] * 4)
    place = torch.arange(size, device=images.device)
    rows, columns = (
        draws[:, 0, None] + place,
        draws[:, 1, None] + torch.where(draws[:, 2, None] == 1, place.flip(0), place),
    )
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def padding(size: int) -> int:
    """Pixels of padding for pictures of `size` pixels: an eighth."""
    return size // 8


class TrainingBatches:
    """The training pictures, epoch by epoch, in global steps of `batch_size`; the incomplete last one is left out.

    Each step comes as `accumulate` batches, each this process's share.
    """

    def __init__(
        self, split: Split, view: View, *, batch_size: int, accumulate: int, augment: Augment, seed: int, share: Share
    ) -> None:
        parts = accumulate * share.world_size
        if batch_size % parts:
            raise UsageError(
                f"batch_size = {batch_size} does not divide into {share.world_size} processes times accumulate = "
                f"{accumulate}; take a multiple of {parts}"
            )
        if batch_size > len(split):
            raise UsageError(
                f"batch_size = {batch_size} exceeds the {len(split)} training pictures; take a smaller one"
            )
        self.split, self.view, self.augment, self.seed = split, view, augment, seed
        self.batch_size, self.accumulate, self.share = batch_size, accumulate, share
        self.steps = len(split) // batch_size
        if isinstance(split, Pictures):
            self.images, self.labels = split.images.to(view.device), split.labels.to(view.device)
        else:
            self.stream = _Stream(split, augment=augment != "none", whole_batches=True)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The steps of one epoch from step `start` on."""
        order = torch.randperm(len(self.split), generator=generator(self.seed, "order", epoch))
        # [step, pass, this process's pictures]
        places = torch.arange(self.steps * self.batch_size).reshape(
            self.steps, self.accumulate, self.share.world_size, -1
        )[start:, :, self.share.rank]
        return (
            self._from_files(epoch, order, places)
            if isinstance(self.split, Files)
            else self._from_memory(epoch, order, places)
        )

    def _from_memory(self, epoch: int, order: Tensor, places: Tensor) -> Iterator[list[Batch]]:
        device = self.view.device
        if self.augment == "crop-flip":
            random = generator(self.seed, "augment", epoch)
            offsets = torch.randint(2 * padding(self.images.shape[-1]) + 1, (len(order), 2), generator=random)
            draws = torch.cat([offsets, torch.randint(2, (len(order), 1), generator=random)], 1).to(device)
        order, places = order.to(device), places.to(device)
        for step in places:
            batches = []
            for place in step:
                index = order[place]
                images = self.images[index]
                if self.augment == "crop-flip":
                    images = crop_flip(images, draws[place])
                batches.append((self.view.of(images), self.labels[index]))
            yield batches

    def _from_files(self, epoch: int, order: Tensor, places: Tensor) -> Iterator[list[Batch]]:
        indices = order.tolist()
        stream = self.stream.batches(
            [(indices[place], derive(self.seed, "augment", epoch, place)) for place in batch]
            for step in places.tolist()
            for batch in step
        )
        for _ in places:
            yield [
                (self.view.of(images), labels.to(self.view.device))
                for images, labels in (next(stream) for _ in range(self.accumulate))
            ]


class EvaluationBatches:
    """A split in order, without augmentation: this process's share of its batches."""

    def __init__(self, split: Split, view: View, batch_size: int, share: Share | None = None) -> None:
        self.split, self.view, self.batch_size, self.share = split, view, batch_size, share or Share()
        if isinstance(split, Files):
            self.stream = _Stream(split, augment=False, whole_batches=False)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(self.share.rank * self.batch_size, len(self.split), self.share.world_size * self.batch_size)
        if isinstance(self.split, Pictures):
            for start in starts:
                chosen = slice(start, start + self.batch_size)
                yield self.view.of(self.split.images[chosen]), self.split.labels[chosen].to(self.view.device)
        else:
            n = len(self.split)
            wanted = ([(i, 0) for i in range(start, min(start + self.batch_size, n))] for start in starts)
            for images, labels in self.stream.batches(wanted):
                yield self.view.of(images), labels.to(self.view.device)


def sample(split: Split, n: int) -> Tensor:
    """About n pictures from all over a split, uint8 [N, C, H, W]; those that do not decode are left out."""
    places = torch.arange(0, len(split), max(1, len(split) // n))[:n]
    if isinstance(split, Pictures):
        return split.images[places]
    decoder = _Decoder(split, augment=False, whole_batches=False)
    decoded = [decoder[place, 0][0] for place in places.tolist()]
    return torch.stack([picture for picture in decoded if picture is not None])


Wanted = Iterable[list[tuple[int, int]]]


class _Stream:
    """Batches of decoded files, read by worker processes that live as long as the stream."""

    def __init__(self, files: Files, *, augment: bool, whole_batches: bool) -> None:
        self.files = files
        self.wanted: Wanted = ()
        self.loader: DataLoader[Any] = DataLoader(
            _Decoder(files, augment, whole_batches),  # type: ignore[arg-type]
            batch_sampler=_Sampler(self),
            collate_fn=_collated,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            num_workers=files.workers,
            persistent_workers=files.workers > 0,
            # A fork of a process that runs threads, as torch does, may deadlock; Python 3.12 warns of it.
            multiprocessing_context="forkserver" if files.workers else None,
        )

    def batches(self, wanted: Wanted) -> Iterator[Batch]:
        """Pictures uint8 [B, 3, size, size] and labels for each list of (index, seed of the augmentation)."""
        self.wanted = wanted
        for images, labels, bad in self.loader:
            if bad:
                refuse_or_name(bad, self.files.skip_corrupt)
            if len(labels):
                yield images, labels


Sample = tuple[Tensor | None, int, list[str]]


def _collated(samples: list[Sample]) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures, labels and unreadable files of a batch; in the worker, which sends one tensor, not one a picture."""
    good = [(image, label) for image, label, _ in samples if image is not None]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good]), [reason for _, _, bad in samples for reason in bad]


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    # A terminal sends it to every process; the parent finishes its step, which needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Sampler:
    """What the loader asks for next; the stream decides epoch by epoch."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.stream.wanted)


class _Decoder:
    """Decodes in a worker process: (index, seed) -> (picture or None, label, pictures that did not decode)."""

    def __init__(self, files: Files, augment: bool, whole_batches: bool) -> None:
        self.files, self.augment, self.whole_batches = files, augment, whole_batches

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        index, seed = item
        bad: list[str] = []
        while len(bad) < len(self.files):
            path, label = self.files.paths[index], int(self.files.labels[index])
            try:
                with Image.open(path) as picture:
                    return self._transformed(picture.convert("RGB"), seed), label, bad
            except UNREADABLE as error:
                bad.append(f"{path} ({why(error)})")
            if not self.whole_batches or not self.files.skip_corrupt:
                break
            # In training the next picture stands in, so that every batch is whole; in evaluation nothing may.
            index = (index + 1) % len(self.files)
        return None, label, bad

    def _transformed(self, picture: Image.Image, seed: int) -> Tensor:
        size = self.files.image_size
        if not self.augment:
            return centre(picture, size)
        from supermask.torchvision_import import ensure_torchvision

        ensure_torchvision()
        from torchvision.transforms import v2

        transform = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformed: Tensor = v2.functional.pil_to_tensor(transform(picture))
        return transformed


def centre(picture: Image.Image, size: int) -> Tensor:
    """uint8 [3, size, size] of a picture in RGB, with the usual margin: the centre 224 of 256 pixels."""
    from supermask.torchvision_import import ensure_torchvision

    ensure_torchvision()
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    cut: Tensor = v2.functional.pil_to_tensor(transform(picture))
    return cut
