"""Folders of pictures: what is read, what is refused and how it is named, and when they stream."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from supermask import folder as folders
from supermask import registry
from supermask.data import EvaluationBatches, Share, TrainingBatches, View
from supermask.datasets import Augment, Dataset, Files, Pictures
from supermask.errors import CorruptPictureError, NotFoundError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_set(root: Path, n: int = 3, evaluation: str = "val", shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    """Two classes, cat and dog, n pictures of noise each in train and in val."""
    for part in ("train", evaluation):
        for c, name in enumerate(("cat", "dog")):
            for i in range(n):
                write(root / part / name / f"{i}.png", noise(*shape, seed=100 * c + i + 1000 * (part != "train")))
    return root


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def opened(root: Path, **request: Any) -> Dataset:
    return registry.open_dataset(f"folder:{root}", **request)


def train_pictures(dataset: Dataset) -> Pictures:
    assert isinstance(dataset.train, Pictures)
    return dataset.train


def channels_first(pixels: Pixels) -> Pixels:
    return np.moveaxis(pixels, -1, -3)


def files(dataset: Dataset) -> tuple[Files, Files]:
    assert isinstance(dataset.train, Files)
    assert isinstance(dataset.test, Files)
    return dataset.train, dataset.test


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders stream, however small."""
    monkeypatch.setattr(folders, "MEMORY_BYTES", 0)


def steps(dataset: Dataset, epoch: int = 0, start: int = 0, augment: Augment = "crop-flip") -> list[tuple[Tensor, ...]]:
    view = View(dataset.image_size, dataset.mean, dataset.std, CPU)
    batches = TrainingBatches(dataset.train, view, batch_size=4, accumulate=1, augment=augment, seed=3, share=Share())
    return [passes[0] for passes in batches.epoch(epoch, start)]


def same(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> bool:
    return [[x.tolist() for x in batch] for batch in a] == [[x.tolist() for x in batch] for batch in b]


def test_pictures_are_read_as_they_are_with_classes_in_order(tmp_path: Path) -> None:
    train = train_pictures(dataset := opened(write_set(tmp_path)))
    assert dataset.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.stack([noise(8, 8, 3, seed=seed) for seed in (0, 1, 2, 100, 101, 102)])
    assert np.array_equal(train.images.numpy(), channels_first(expected))
    assert dataset.mean == pytest.approx(tuple((expected / 255).mean((0, 1, 2))), abs=5.1e-5)


def test_test_serves_where_there_is_no_val_and_val_comes_first(tmp_path: Path) -> None:
    write_set(tmp_path, n=2, evaluation="test")
    assert len(opened(tmp_path).test) == 4
    write(tmp_path / "val" / "cat" / "0.png", noise(8, 8, 3))
    write(tmp_path / "val" / "dog" / "0.png", noise(8, 8, 3))
    assert len(opened(tmp_path).test) == 2


def test_grey_pictures_stay_grey_and_others_become_rgb(tmp_path: Path) -> None:
    grey = opened(write_set(tmp_path / "grey", shape=(8, 8)))
    assert train_pictures(grey).images.shape == (6, 1, 8, 8)
    assert np.array_equal(train_pictures(grey).images[0, 0].numpy(), noise(8, 8, seed=0))
    with_alpha = opened(write_set(tmp_path / "alpha", shape=(8, 8, 4)))
    assert train_pictures(with_alpha).images.shape == (6, 3, 8, 8)


def test_the_size_is_the_first_pictures_shorter_side_and_the_middle_is_cut_out(tmp_path: Path) -> None:
    train = train_pictures(opened(write_set(tmp_path, shape=(4, 10, 3))))
    assert np.array_equal(train.images[0].numpy(), channels_first(noise(4, 10, 3, seed=0)[:, 3:7]))


def test_pictures_are_brought_to_the_size_that_is_asked_for(tmp_path: Path) -> None:
    flat = np.full((9, 17, 3), (10, 20, 30), dtype=np.uint8)
    for part in ("train", "val"):
        for name in ("a", "b"):
            write(tmp_path / part / name / "0.png", flat)
    assert train_pictures(opened(tmp_path, image_size=6)).images[0].flatten(1).tolist() == [
        [value] * 36 for value in (10, 20, 30)
    ]


def test_the_second_time_pictures_come_from_the_cache_and_a_changed_one_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "supermask")
    write_set(tmp_path)
    first = train_pictures(opened(tmp_path))
    assert "decoding 6 pictures" in caplog.text
    caplog.clear()
    assert torch.equal(train_pictures(opened(tmp_path)).images, first.images)
    assert "decoding" not in caplog.text
    changed = write(tmp_path / "train" / "cat" / "0.png", noise(8, 8, 3, seed=77))
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 10**9))
    assert np.array_equal(train_pictures(opened(tmp_path)).images[0].numpy(), channels_first(noise(8, 8, 3, seed=77)))


def test_two_folders_of_one_name_in_different_places_are_not_taken_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, place in enumerate(("here", "there")):
        for part in ("train", "val"):
            for name in ("a", "b"):
                # Equal in name, size and time, as unpacked archives may be.
                file = write(tmp_path / place / "pictures" / part / name / "0.bmp", noise(4, 4, 3, seed=seed))
                os.utime(file, ns=(0, 0))
        monkeypatch.chdir(tmp_path / place)
        train = train_pictures(opened(Path("pictures")))
        assert np.array_equal(train.images[0].numpy(), channels_first(noise(4, 4, 3, seed=seed)))


def test_corrupt_pictures_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    first = truncate(write_set(tmp_path) / "train" / "cat" / "2.png")
    with pytest.raises(CorruptPictureError, match=r"^1 picture does not decode, the first: ") as caught:
        opened(tmp_path)
    assert str(first) in str(caught.value)
    assert str(caught.value).endswith("or leave such pictures out with --skip-corrupt")
    assert caught.value.exit_code == 4
    for content in (b"no picture at all", b""):
        (tmp_path / "train" / "dog" / "0.png").write_bytes(content)
        with pytest.raises(CorruptPictureError, match=r"^2 pictures do not decode, the first: ") as caught:
            opened(tmp_path)
        assert str(first) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_corrupt_pictures_are_left_out_on_request_and_named(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_set(tmp_path)
    bad = [truncate(write(tmp_path / part / "cat" / f"3.{suffix}", noise(8, 8, 3))) for part in ("train", "val")]
    dataset = opened(tmp_path, skip_corrupt=True)
    assert train_pictures(dataset).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(dataset.test) == 6
    assert caplog.text.count("1 picture does not decode, left out: ") == 2
    assert all(str(path) in caplog.text for path in bad)


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_folder_in_which_nothing_decodes_is_refused_even_so(tmp_path: Path, content: bytes | None) -> None:
    for path in sorted((write_set(tmp_path) / "train").rglob("*.png")):
        truncate(path) if content is None else path.write_bytes(content)
    with pytest.raises(CorruptPictureError, match="none of the 6 pictures in ") as caught:
        opened(tmp_path, skip_corrupt=True)
    assert str(tmp_path / "train") in str(caught.value)


@pytest.mark.parametrize(
    ("absent", "emptied", "words"),
    [
        (("train",), (), "no folder {root}/train; expected class folders of pictures in it"),
        (("val",), (), "{root} has neither val/ nor test/; give the folder that holds train/ and one of these"),
        (("val/dog",), (), "class folder 'dog' is in {root}/train but not in {root}/val; both need the same classes"),
        (("train/cat",), (), "class folder 'cat' is in {root}/val but not in {root}/train"),
        (("train/cat", "train/dog"), (), "{root}/train: couldn't find any class folder in {root}/train"),
        ((), ("train/dog",), "{root}/train: found no valid file for the classes dog; each class folder needs"),
        ((), ("val/cat",), "{root}/val: found no valid file for the classes cat; each class folder needs a picture"),
    ],
)
def test_a_folder_that_lacks_something_is_told_what(
    tmp_path: Path, absent: tuple[str, ...], emptied: tuple[str, ...], words: str
) -> None:
    write_set(tmp_path)
    for name in (*absent, *emptied):
        shutil.rmtree(tmp_path / name)
    for name in emptied:
        (tmp_path / name).mkdir()
    with pytest.raises(NotFoundError) as caught:
        opened(tmp_path)
    assert words.format(root=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        opened(tmp_path / "absent")


def test_a_set_streams_above_the_memory_limit_and_not_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    decoded = 12 * 3 * 8 * 8
    monkeypatch.setattr(folders, "MEMORY_BYTES", decoded)
    assert isinstance(opened(tmp_path).train, Pictures)
    monkeypatch.setattr(folders, "MEMORY_BYTES", decoded - 1)
    train, test = files(opened(tmp_path, workers=0))
    assert (len(train), len(test), train.image_size) == (6, 6, 8)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.usefixtures("streaming")
def test_streamed_batches_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    write_set(tmp_path, n=6)
    here, beside = (opened(tmp_path, workers=workers) for workers in (0, 2))
    assert same(steps(here), steps(beside))


@pytest.mark.usefixtures("streaming")
def test_streamed_batches_depend_on_seed_epoch_and_step_alone(tmp_path: Path) -> None:
    dataset = opened(write_set(tmp_path, n=6), workers=0)
    first = steps(dataset)
    torch.manual_seed(1)
    assert same(steps(dataset), first)
    assert same(steps(dataset, start=1), first[1:])
    assert not same(steps(dataset, epoch=1), first)


@pytest.mark.usefixtures("streaming")
def test_streamed_pictures_are_measured_on_the_middle_of_a_slightly_larger_copy(tmp_path: Path) -> None:
    root = write_set(tmp_path, shape=(50, 50, 3))
    _, test = files(opened(root, image_size=28, workers=0))
    view = View(28, (0.0,) * 3, (1 / 255,) * 3, CPU)
    ((pictures, labels),) = EvaluationBatches(test, view, 10)
    # The field's margin, 256 : 224, so 32 pixels of which the middle 28 count.
    for path, picture in zip(test.paths, pictures, strict=True):
        larger = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
        expected = channels_first(np.asarray(larger.crop((2, 2, 30, 30))))
        np.testing.assert_allclose(picture.numpy(), expected, rtol=1e-6)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("augment", ["crop-flip", "none"])
@pytest.mark.usefixtures("streaming")
def test_a_corrupt_streamed_picture_stops_training_or_another_stands_in(
    tmp_path: Path, augment: Augment, caplog: pytest.LogCaptureFixture
) -> None:
    bad = write_set(tmp_path, n=4) / "train" / "cat" / "1.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(CorruptPictureError, match="1 picture does not decode") as caught:
        steps(opened(tmp_path, workers=0), augment=augment)
    assert str(bad) in str(caught.value)
    whole = steps(opened(tmp_path, workers=0, skip_corrupt=True), augment=augment)
    assert [len(pictures) for pictures, _ in whole] == [4, 4]
    assert str(bad) in caplog.text


@pytest.mark.usefixtures("streaming")
def test_a_corrupt_streamed_picture_is_left_out_of_a_measurement(tmp_path: Path) -> None:
    (write_set(tmp_path) / "val" / "dog" / "0.png").write_bytes(b"no picture")
    _, test = files(opened(tmp_path, workers=0, skip_corrupt=True))
    view = View(8, (0.0,) * 3, (1.0,) * 3, CPU)
    assert [labels.tolist() for _, labels in EvaluationBatches(test, view, 3)] == [[0, 0, 0], [1, 1]]


def test_a_folder_of_a_hundred_imagenet_classes_is_read(real_data: Path) -> None:
    train = train_pictures(dataset := opened(real_data / "imagenet-sample", image_size=32))
    assert len(dataset.classes) == 100
    assert sorted(train.labels.tolist()) == list(range(100))
    assert train.images.shape == (100, 3, 32, 32)


def test_imagenet_streams_at_224_pixels_from_its_own_folder(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet").symlink_to(real_data / "imagenet-sample")
    (pictures, _), *_ = steps(registry.open_dataset("imagenet", root=tmp_path, workers=0))
    assert pictures.shape == (4, 3, 224, 224)
