"""Batches: what the network sees, in which order, and that all of it depends on (seed, epoch, position) alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from supermask.data import Batch, EvaluationBatches, Share, TrainingBatches, View, crop_flip, hold_out, padding
from supermask.datasets import Augment, Dataset, Files, Pictures, statistics
from supermask.errors import UsageError

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**53 - 1)
Array = np.ndarray[Any, np.dtype[np.float64]]


def noise(n: int, channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, channels, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def numbered(n: int, size: int = 8) -> Pictures:
    """n pictures of noise; each one's label is its number."""
    return Pictures(noise(n, 1, size), torch.arange(n))


def view(size: int = 8, channels: int = 1) -> View:
    return View(size, (0.0,) * channels, (1 / 255,) * channels, CPU)


def training(
    split: Pictures, batch_size: int, seed: int = 0, accumulate: int = 1, share: Share | None = None,
    augment: Augment = "none",
) -> TrainingBatches:  # fmt: skip
    return TrainingBatches(
        split,
        view(split.images.shape[-1], split.images.shape[1]),
        batch_size=batch_size,
        accumulate=accumulate,
        augment=augment,
        seed=seed,
        share=share or Share(),
    )


def labels(steps: list[list[Batch]]) -> list[list[list[int]]]:
    return [[labels.tolist() for _, labels in passes] for passes in steps]


def equal(a: list[list[Batch]], b: list[list[Batch]]) -> bool:
    return labels(a) == labels(b) and all(
        torch.equal(x[0], y[0]) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def bilinear(channel: Array, size: int) -> Array:
    """Bilinear interpolation to a larger size between pixel centres, borders extended: from the definition."""

    def matrix(before: int) -> Array:
        places = np.clip((np.arange(size) + 0.5) * before / size - 0.5, 0, before - 1)
        return np.asarray(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(before))))

    return np.asarray(matrix(channel.shape[0]) @ channel @ matrix(channel.shape[1]).T)


@given(n=st.integers(1, 3), channels=st.integers(1, 3), size=st.integers(1, 9), grown=st.integers(0, 9), seed=SEEDS)
@settings(deadline=None)
def test_a_network_sees_pictures_upsampled_and_normalised(
    n: int, channels: int, size: int, grown: int, seed: int
) -> None:
    images = noise(n, channels, size, seed)
    random = np.random.default_rng(seed)
    mean, std = random.uniform(0, 1, channels), random.uniform(0.1, 1, channels)
    seen = View(size + grown, tuple(mean), tuple(std), CPU).of(images)
    resized = np.array(
        [[bilinear(channel, size + grown) for channel in picture] for picture in images.double().numpy()]
    )
    expected = (resized / 255 - mean[:, None, None]) / std[:, None, None]
    assert seen.dtype == torch.float32
    np.testing.assert_allclose(seen.numpy(), expected, atol=2e-5)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 3), st.just(3), st.just(3))))
def test_statistics_are_numpys_to_four_decimals(images: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    mean, std = statistics(torch.from_numpy(images))
    exact = (images.astype(np.float64) / 255).std((0, 2, 3))
    assert mean == pytest.approx((images.astype(np.float64) / 255).mean((0, 2, 3)), abs=5.1e-5)
    # A channel that never varies, to four decimals, divides by one.
    assert std == pytest.approx(np.where(exact < 5e-5, 1.0, exact), abs=5.1e-5)


def test_looking_at_pictures_leaves_them_as_they_are_and_lays_channels_last() -> None:
    images = noise(4, 3, 8)
    before = images.clone()
    for size in (8, 16):
        assert view(size, 3).of(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@given(n=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_holding_out_splits_the_training_pictures_and_leaves_the_test_alone(n: int, fraction: float, seed: int) -> None:
    train, test = numbered(n, 1), numbered(3, 1)
    dataset = Dataset("mine", tuple(map(str, range(n))), train, test, (0.0,), (1.0,))
    if round(n * fraction) in {0, n}:
        with pytest.raises(UsageError, match=f"of {n} training pictures leaves one part empty"):
            hold_out(dataset, fraction, seed)
        return
    rest, held = hold_out(dataset, fraction, seed)
    assert isinstance(held, Pictures)
    assert isinstance(rest.train, Pictures)
    assert len(held) == round(n * fraction)
    assert sorted([*held.labels.tolist(), *rest.train.labels.tolist()]) == list(range(n))
    assert all(torch.equal(part.images, train.images[part.labels]) for part in (held, rest.train))
    assert rest.test is test
    _, again = hold_out(dataset, fraction, seed)
    assert isinstance(again, Pictures)
    assert torch.equal(again.labels, held.labels)


def test_nothing_is_held_out_unasked_and_another_seed_holds_out_others() -> None:
    dataset = Dataset("mine", tuple(map(str, range(40))), numbered(40), numbered(3), (0.0,), (1.0,))
    assert hold_out(dataset, 0.0, 0) == (dataset, None)
    first, second = (hold_out(dataset, 0.5, seed)[1] for seed in (0, 1))
    assert isinstance(first, Pictures)
    assert isinstance(second, Pictures)
    assert first.labels.tolist() != second.labels.tolist()


def test_files_are_held_out_like_pictures() -> None:
    files = Files(tuple(f"{i}.png" for i in range(10)), torch.arange(10), 8, skip_corrupt=False, workers=0)
    rest, held = hold_out(Dataset("mine", ("a",), files, files, (0.0,), (1.0,)), 0.3, 0)
    assert isinstance(rest.train, Files)
    assert isinstance(held, Files)
    for part in (rest.train, held):
        assert part.paths == tuple(f"{i}.png" for i in part.labels.tolist())
    assert sorted(rest.train.paths + held.paths) == sorted(files.paths)


@given(data=st.data(), n=st.integers(1, 5), channels=st.integers(1, 3), size=st.integers(1, 33))
@settings(max_examples=60, deadline=None)
def test_crop_and_flip_do_to_each_picture_what_its_draws_say(
    data: st.DataObject, n: int, channels: int, size: int
) -> None:
    offsets = st.integers(0, 2 * padding(size))
    draws = data.draw(st.lists(st.tuples(offsets, offsets, st.integers(0, 1)), min_size=n, max_size=n))
    images = noise(n, channels, size)
    result = crop_flip(images, torch.tensor(draws))
    for image, (row, column, flip), cropped in zip(images.numpy(), draws, result.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), *[(padding(size), padding(size))] * 2])
        expected = padded[:, row : row + size, column : column + size]
        assert np.array_equal(cropped, expected[:, :, ::-1] if flip else expected)


def test_the_papers_padding_is_4_around_32_pixels() -> None:
    assert padding(32) == 4


def test_every_crop_and_both_flips_occur_in_training() -> None:
    image = noise(1, 1, 8)
    split = Pictures(image.expand(400, 1, 8, 8), torch.zeros(400, dtype=torch.int64))
    ((pictures, _),) = next(iter(training(split, 400, augment="crop-flip").epoch(0)))
    padded = np.pad(image[0, 0].numpy(), 1)
    crops = [padded[r : r + 8, c : c + 8] for r, c in itertools.product(range(3), range(3))]
    variants = {np.ascontiguousarray(v).tobytes() for crop in crops for v in (crop, crop[:, ::-1])}
    assert {picture.byte().numpy().tobytes() for picture in pictures} == variants


SHAPES = {"n": st.integers(1, 60), "batch_size": st.integers(1, 20), "seed": SEEDS, "epoch": st.integers(0, 1000)}


@given(**SHAPES)
@settings(deadline=None)
def test_an_epoch_uses_each_picture_at_most_once_in_whole_steps(n: int, batch_size: int, seed: int, epoch: int) -> None:
    batch_size = min(batch_size, n)
    batches = training(numbered(n, 1), batch_size, seed)
    steps = labels(list(batches.epoch(epoch)))
    assert [len(passes[0]) for passes in steps] == [batch_size] * (n // batch_size) == [batch_size] * batches.steps
    used = [number for passes in steps for number in passes[0]]
    assert len(set(used)) == len(used)


@given(**SHAPES, start=st.integers(0, 60))
@settings(deadline=None)
def test_starting_at_a_step_yields_exactly_the_tail_of_the_epoch(
    n: int, batch_size: int, seed: int, epoch: int, start: int
) -> None:
    split = numbered(n)
    whole = list(training(split, min(batch_size, n), seed, augment="crop-flip").epoch(epoch))
    start = min(start, len(whole))
    # From batches that have yielded nothing before, as in a resumed process.
    resumed = training(split, min(batch_size, n), seed, augment="crop-flip")
    assert equal(list(resumed.epoch(epoch, start)), whole[start:])


@given(seed=SEEDS, epoch=st.integers(0, 99), world=st.sampled_from([1, 2, 4]), accumulate=st.sampled_from([1, 2, 4]))
@settings(max_examples=30, deadline=None)
def test_several_processes_and_passes_share_the_very_batches_of_one(
    seed: int, epoch: int, world: int, accumulate: int
) -> None:
    split = numbered(50)
    alone = list(training(split, 16, seed, augment="crop-flip").epoch(epoch))
    shares = [
        list(training(split, 16, seed, accumulate, Share(rank, world), "crop-flip").epoch(epoch))
        for rank in range(world)
    ]
    for step, (passes,) in enumerate(alone):
        parts = [shares[rank][step][number] for number in range(accumulate) for rank in range(world)]
        assert all(len(part[1]) == 16 // world // accumulate for part in parts)
        assert torch.equal(torch.cat([part[1] for part in parts]), passes[1])
        assert torch.equal(torch.cat([part[0] for part in parts]), passes[0])


def test_order_and_augmentation_change_with_seed_and_epoch_and_with_nothing_else() -> None:
    split = numbered(40)
    batches = training(split, 8, seed=5, augment="crop-flip")
    epochs = [list(batches.epoch(epoch)) for epoch in range(3)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert all(equal(list(batches.epoch(epoch)), epochs[epoch]) for epoch in (2, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert len({str(labels(steps)) for steps in epochs}) == 3
    assert not equal(list(training(split, 8, seed=6, augment="crop-flip").epoch(0)), epochs[0])


def test_each_place_in_each_epoch_is_augmented_in_its_own_way() -> None:
    split = Pictures(noise(1, 1, 8).expand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
    batches = training(split, 64, augment="crop-flip")
    ((first, _),), ((second, _),) = (next(iter(batches.epoch(epoch))) for epoch in (0, 1))
    # Of 18 equally likely variants two are the same once in 18 times.
    assert (first != second).flatten(1).any(1).float().mean() > 0.75
    assert (first[1:] != first[:-1]).flatten(1).any(1).float().mean() > 0.75


def test_each_place_in_each_epoch_of_a_stream_is_augmented_in_its_own_way(tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    Image.fromarray(noise(1, 3, 16)[0].permute(1, 2, 0).numpy()).save(file)
    split = Files((str(file),) * 12, torch.zeros(12, dtype=torch.int64), 16, skip_corrupt=False, workers=0)
    batches = TrainingBatches(
        split, view(16, 3), batch_size=4, accumulate=1, augment="crop-flip", seed=0, share=Share()
    )
    seen = [picture for epoch in (0, 1) for ((pictures, _),) in batches.epoch(epoch) for picture in pictures]
    assert len({picture.numpy().tobytes() for picture in seen}) == len(seen) == 24


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world", "message"),
    [
        (33, 1, 1, "batch_size = 33 exceeds the 32 training pictures; take a smaller one"),
        (6, 4, 1, "batch_size = 6 does not divide into 1 processes times accumulate = 4; take a multiple of 4"),
        (8, 1, 3, "batch_size = 8 does not divide into 3 processes times accumulate = 1; take a multiple of 3"),
        (8, 2, 3, "batch_size = 8 does not divide into 3 processes times accumulate = 2; take a multiple of 6"),
    ],
)
def test_a_batch_size_that_cannot_be_shared_is_refused_with_one_that_can(
    batch_size: int, accumulate: int, world: int, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        training(numbered(32), batch_size, accumulate=accumulate, share=Share(0, world))
    assert str(caught.value) == message


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), world=st.integers(1, 4))
@settings(deadline=None)
def test_measuring_sees_every_picture_once_in_order_over_all_processes(n: int, batch_size: int, world: int) -> None:
    split = numbered(n, 2)
    shares = [list(EvaluationBatches(split, view(2), batch_size, Share(rank, world))) for rank in range(world)]
    in_turn = [batch for turn in itertools.zip_longest(*shares) for batch in turn if batch is not None]
    assert torch.equal(torch.cat([numbers for _, numbers in in_turn]), split.labels)
    assert torch.equal(torch.cat([pictures for pictures, _ in in_turn]), split.images.float())
    assert all(len(numbers) == batch_size for _, numbers in in_turn[:-1])
