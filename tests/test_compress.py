"""The compressed form of an artifact: smaller where it can be, the same artifact always."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import supermask
from supermask import ArtifactError, UsageError, store
from supermask import artifact as artifacts
from supermask.bitpack import entropy_bits
from supermask.manifest import COMPRESSED, CONFIG, MAX_STATE_BYTES, TENSORS
from tests import reference_reader
from tests.commands import run_here
from tests.subnetworks import of_architecture


def plain(folder: Path, k: float) -> Path:
    """An artifact of 2,270 weights, of which about a fraction k is kept."""
    artifact = of_architecture("conv2", image_size=8, in_channels=1, width=0.1, k=k)
    artifacts.write(artifact, folder)
    return folder


@pytest.mark.parametrize("k", [0.05, 0.3, 0.9])
def test_the_compressed_artifact_is_the_same_in_fewer_bytes(k: float, tmp_path: Path) -> None:
    folder = plain(tmp_path / "plain", k)
    before, after = supermask.compress(folder, tmp_path / "small")
    assert {file.name for file in (tmp_path / "small").iterdir()} == {COMPRESSED, CONFIG}
    assert before == sum(file.stat().st_size for file in folder.iterdir())
    assert after == sum(file.stat().st_size for file in (tmp_path / "small").iterdir()) < before
    assert artifacts.read(tmp_path / "small").serialized == artifacts.read(folder).serialized
    supermask.load(tmp_path / "small")


@pytest.mark.parametrize("k", [0.01, 0.1, 0.3])
def test_masks_come_close_to_the_entropy_bound(k: float, tmp_path: Path) -> None:
    artifact = of_architecture("conv2", image_size=16, k=k)
    artifacts.write(artifact, tmp_path)
    bound = sum(entropy_bits(layer.kept, layer.n) for layer in artifact.config.layers) / 8
    before, after = supermask.compress(tmp_path, tmp_path)
    masks = sum(-(-layer.n // 8) for layer in artifact.config.layers)
    # A byte's code is a whole number of bits, which costs most where most bytes are 0.
    assert after - (before - masks) < bound * (1.03 if k >= 0.1 else 1.4)


def test_anyone_can_unpack_it_with_gunzip(tmp_path: Path) -> None:
    supermask.compress(plain(tmp_path / "plain", 0.2), tmp_path / "small")
    content = gzip.decompress((tmp_path / "small" / COMPRESSED).read_bytes())
    config = json.loads((tmp_path / "small" / CONFIG).read_text("utf-8"))
    assert hashlib.sha256(content).hexdigest() == config["sha256"][TENSORS]
    (tmp_path / "small" / TENSORS).write_bytes(content)
    reference_reader.read(tmp_path / "small")


def test_an_artifact_is_compressed_in_its_place_and_pushed_plain(tmp_path: Path) -> None:
    folder = plain(tmp_path / "artifact", 0.2)
    content = (folder / TENSORS).read_bytes()
    supermask.compress(folder, folder)
    assert not (folder / TENSORS).exists()
    files = store.package(folder, "somebody/something")
    assert files[TENSORS] == content
    assert COMPRESSED not in files
    artifacts.write(artifacts.read(folder), folder)
    assert {file.name for file in folder.iterdir()} == {TENSORS, CONFIG}


def test_where_half_is_kept_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts.write(of_architecture("conv2", image_size=16, k=0.5), tmp_path / "plain")
    status, out, err = run_here(capsys, "compress", str(tmp_path / "plain"), "--output", str(tmp_path / "small"))
    assert (status, out) == (2, "")
    assert "no code is shorter than a bit for each" in err
    assert not (tmp_path / "small").exists()


def test_other_files_are_not_written_among(tmp_path: Path) -> None:
    folder = plain(tmp_path / "plain", 0.2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds files that are no artifact"):
        supermask.compress(folder, tmp_path / "mine")


def test_the_command_tells_both_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path / "plain", 0.1)
    words = ["compress", str(folder), "--output", str(tmp_path / "small")]
    status, out, _ = run_here(capsys, *words, "--json")
    told = json.loads(out)
    assert (status, told["path"]) == (0, str(tmp_path / "small"))
    assert told["compressed_bytes"] < told["artifact_bytes"]
    assert run_here(capsys, "verify", str(tmp_path / "small"))[0] == 0
    for place, size in ((folder, told["artifact_bytes"]), (tmp_path / "small", told["compressed_bytes"])):
        assert json.loads(run_here(capsys, "info", str(place), "--json")[1])["artifact_bytes"] == size
    assert run_here(capsys, *words)[1].split()[0] == "plain"


def zeros(content: bytes) -> bytes:
    """Over a gigabyte, in five megabytes."""
    return gzip.compress(bytes(MAX_STATE_BYTES + 2**26), compresslevel=1, mtime=0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content[:-1], "it is cut short"),
        (lambda content: content + b"\0", "bytes follow the end"),
        (lambda content: content + content, "bytes follow the end"),
        (gzip.decompress, "incorrect header check"),
        (lambda content: content[:-8] + bytes(4) + content[-4:], "incorrect data check"),
        (zeros, "or holds over"),
    ],
    ids=["cut short", "a byte more", "twice", "not compressed", "altered", "a bomb"],
)
def test_a_compressed_file_that_lies_is_refused(
    change: Callable[[bytes], bytes], complaint: str, tmp_path: Path
) -> None:
    supermask.compress(plain(tmp_path, 0.2), tmp_path)
    file = tmp_path / COMPRESSED
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ArtifactError, match=complaint) as caught:
        artifacts.read(tmp_path)
    assert str(caught.value).startswith(COMPRESSED)


def test_a_sound_stream_of_other_tensors_is_refused(tmp_path: Path) -> None:
    supermask.compress(plain(tmp_path / "one", 0.2), tmp_path / "one")
    supermask.compress(plain(tmp_path / "other", 0.25), tmp_path / "other")
    (tmp_path / "one" / COMPRESSED).write_bytes((tmp_path / "other" / COMPRESSED).read_bytes())
    with pytest.raises(ArtifactError):
        artifacts.read(tmp_path / "one")
