"""Named data sets: their splits, their cache, and one clear line where they are not there or not whole."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import socket
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from supermask import registry
from supermask.datasets import Dataset, Pictures, cache_folder
from supermask.errors import IntegrityError, NotFoundError, UsageError
from supermask.torchvision_import import ensure_torchvision


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SUPERMASK_CACHE", str(folder))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network on which nothing answers: every request goes to a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, nowhere)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use


def in_memory(dataset: Dataset) -> tuple[Pictures, Pictures]:
    assert isinstance(dataset.train, Pictures)
    assert isinstance(dataset.test, Pictures)
    return dataset.train, dataset.test


def write_idx(path: Path, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """LeCun's format: two zeros, 8 for bytes, the number of dimensions, each one's size, big-endian; then the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, folder: str = "MNIST", seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    random = np.random.default_rng(seed)
    arrays = {}
    for part, n in (("train", 30), ("t10k", 12)):
        arrays[part] = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", arrays[part])
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
    return arrays


def test_digits_are_1797_pictures_in_two_parts_that_share_none() -> None:
    train, test = in_memory(registry.open_dataset("digits"))
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 8, 8)
    # Every fifth of scikit-learn's 1,797.
    assert (len(train), len(test)) == (1797 - 1797 // 5, 1797 // 5)
    seen = {picture.numpy().tobytes() for picture in train.images}
    assert not seen & {picture.numpy().tobytes() for picture in test.images}


def test_every_digit_is_in_both_parts_about_as_often() -> None:
    for part in in_memory(registry.open_dataset("digits")):
        counts = part.labels.bincount(minlength=10) / len(part)
        assert counts.min() > 0.05
        assert counts.max() < 0.15


def test_digits_keep_scikit_learns_grey_levels_and_labels() -> None:
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    train, test = in_memory(registry.open_dataset("digits"))
    # Sixteen steps of 255 / 16, and the fifth, tenth, ... picture is a test picture.
    assert np.array_equal(np.rint(test.images.numpy() / 255 * 16).reshape(-1, 64), levels[4::5])
    assert test.labels.tolist() == labels[4::5].tolist()
    assert train.labels.tolist() == np.delete(labels, slice(4, None, 5)).tolist()


def test_the_second_time_digits_come_from_the_cache_and_scikit_learn_is_not_imported(cache: Path) -> None:
    first = registry.open_dataset("digits")
    script = """
import sys
from supermask.registry import open_dataset
digits = open_dataset("digits")
assert "sklearn" not in sys.modules
print(len(digits.train), len(digits.test), digits.classes, digits.mean, digits.std, digits.augment)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = (len(first.train), len(first.test), first.classes, first.mean, first.std, first.augment)
    assert ran.stdout.split() == " ".join(map(str, expected)).split()
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_a_cache_that_cannot_be_written_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a-plain-file"
    file.write_text("kept")
    monkeypatch.setenv("SUPERMASK_CACHE", str(file))
    assert len(registry.open_dataset("digits").classes) == 10
    assert f"could not be cached in {file}" in caplog.text
    assert file.read_text() == "kept"


@pytest.mark.parametrize("left", [0, 7, 1000])
def test_a_damaged_cache_is_decoded_again_and_mended(cache: Path, left: int, caplog: pytest.LogCaptureFixture) -> None:
    train, _ = in_memory(registry.open_dataset("digits"))
    (entry,) = cache.iterdir()
    sound = entry.read_bytes()
    entry.write_bytes(sound[:left])
    again, _ = in_memory(registry.open_dataset("digits"))
    assert torch.equal(again.images, train.images)
    assert "cannot be read" in caplog.text
    assert entry.read_bytes() == sound
    assert list(cache.iterdir()) == [entry]


def test_the_cache_lies_in_the_users_cache_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERMASK_CACHE")
    assert cache_folder().name == "supermask"
    assert cache_folder().is_absolute()


def test_mnist_has_60000_and_10000_pictures_and_the_fields_statistics(real_data: Path) -> None:
    mnist = registry.open_dataset("mnist", root=real_data)
    train, test = in_memory(mnist)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert (mnist.mean, mnist.std, mnist.augment) == ((0.1307,), (0.3081,), "none")
    assert mnist.classes == tuple("0123456789")


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_as_they_are(tmp_path: Path, cache: Path, name: str, folder: str) -> None:
    arrays = write_mnist(tmp_path, folder)
    for _ in ("decoded", "cached"):
        dataset = registry.open_dataset(name, root=tmp_path)
        train, test = in_memory(dataset)
        assert np.array_equal(train.images[:, 0].numpy(), arrays["train"])
        assert np.array_equal(test.images[:, 0].numpy(), arrays["t10k"])
        assert test.labels.tolist() == [*range(10), 0, 1]
    assert dataset.classes[9] == ("9" if name == "mnist" else "Ankle boot")


def test_the_original_packed_files_will_do(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_torchvision()
    from torchvision.datasets import MNIST

    arrays, originals = write_mnist(tmp_path), []
    for file in sorted((tmp_path / "MNIST" / "raw").iterdir()):
        packed = file.rename(f"{file}.gz")
        packed.write_bytes(gzip.compress(packed.read_bytes()))
        originals.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", originals)  # torchvision unpacks only what has the original's checksums
    train, _ = in_memory(registry.open_dataset("mnist", root=tmp_path))
    assert np.array_equal(train.images[:, 0].numpy(), arrays["train"])


def test_other_files_in_the_same_place_are_not_taken_from_the_cache(tmp_path: Path, cache: Path) -> None:
    for seed in (0, 1):
        arrays = write_mnist(tmp_path, seed=seed)
        train, _ = in_memory(registry.open_dataset("mnist", root=tmp_path))
        assert np.array_equal(train.images[:, 0].numpy(), arrays["train"])


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is no picture", b"\0\0\x08\x03\0\0\0\x05\0\0\0\x1c\0\0\0\x1c..."]
)
def test_a_damaged_file_is_not_called_absent(tmp_path: Path, cache: Path, content: bytes) -> None:
    write_mnist(tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"is damaged .* remove that folder") as caught:
        registry.open_dataset("mnist", root=tmp_path)
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 4


def test_cifar10_is_read_with_its_channels_first_and_the_papers_statistics(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_torchvision()
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    contents = {
        "data_batch_1": {"data": pixels[:4].reshape(4, -1), "labels": [3, 1, 2, 0]},
        "test_batch": {"data": pixels[4:].reshape(2, -1), "labels": [1, 9]},
        "batches.meta": {"label_names": [f"class{i}" for i in range(10)]},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    # torchvision reads only what has the original's checksums.
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    for _ in ("decoded", "cached"):
        dataset = registry.open_dataset("cifar10", root=tmp_path)
        train, test = in_memory(dataset)
        assert np.array_equal(train.images.numpy(), pixels[:4])
        assert np.array_equal(test.images.numpy(), pixels[4:])
        assert (train.labels.tolist(), test.labels.tolist()) == ([3, 1, 2, 0], [1, 9])
        assert (dataset.mean, dataset.std) == ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
        assert dataset.augment == "crop-flip"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("imagenet", "imagenet"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_without_a_network_one_line_names_the_folder_where_the_files_may_be_put(
    tmp_path: Path, name: str, folder: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.open_dataset(name, root=tmp_path / "data")
    message = str(caught.value)
    assert message.startswith(f"{name} is not in {tmp_path / 'data' / folder}")
    assert "\n" not in message
    assert "put" in message
    assert "refused" in message or name == "imagenet"
    assert caught.value.exit_code == 3


def test_a_data_set_of_ones_own_has_the_statistics_of_its_training_pictures() -> None:
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, 2, 5, 5), dtype=np.uint8) for n in (20, 4))
    dataset = Dataset.from_arrays(
        "mine",
        ["a", "b"],
        (torch.from_numpy(train), torch.arange(20) % 2),
        (torch.from_numpy(test), torch.arange(4) % 2),
    )
    assert dataset.mean == pytest.approx(tuple((train / 255).mean((0, 2, 3))), abs=5.1e-5)
    assert dataset.std == pytest.approx(tuple((train / 255).std((0, 2, 3))), abs=5.1e-5)
    assert (dataset.channels, dataset.image_size, dataset.augment) == (2, 5, "none")


IMAGES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, "images are torch.float32 [3, 1, 4, 4]; expected torch.uint8 [N, C, H, H]"),
        (IMAGES[:, 0], LABELS, "images are torch.uint8 [3, 4, 4]; expected torch.uint8 [N, C, H, H]"),
        (IMAGES[..., :3], LABELS, "images are torch.uint8 [3, 1, 4, 3]; expected torch.uint8 [N, C, H, H]"),
        (IMAGES, LABELS.int(), "labels are torch.int32 [3]; expected torch.int64 [3]"),
        (IMAGES, LABELS[:2], "labels are torch.int64 [2]; expected torch.int64 [3]"),
        (IMAGES[:0], LABELS[:0], "pictures: images are [0, 1, 4, 4]"),
        (IMAGES[:, :0], LABELS, "pictures: images are [3, 0, 4, 4]"),
        (IMAGES, LABELS + 1, "labels run from 1 to 2; the 2 classes are 0 to 1"),
        (IMAGES, LABELS - 1, "labels run from -1 to 0; the 2 classes are 0 to 1"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_data_set_of_ones_own_that_is_malformed_is_refused(
    images: Tensor, labels: Tensor, message: str, part: str
) -> None:
    parts = {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS), part: (images, labels)}
    with pytest.raises(UsageError) as caught:
        Dataset.from_arrays("mine", ["a", "b"], parts["train"], parts["test"])
    assert str(caught.value).startswith("mine: ")
    assert part in str(caught.value)
    assert str(caught.value).endswith(message)


def test_train_and_test_pictures_of_different_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mine: train pictures are \(1, 4, 4\), test pictures \(1, 3, 3\)"):
        Dataset.from_arrays("mine", ["a", "b"], (IMAGES, LABELS), (IMAGES[..., :3, :3], LABELS))
