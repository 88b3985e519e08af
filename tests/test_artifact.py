"""The artifact: golden bytes, round trips, a second reader, and everything a reader refuses."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from supermask import ArtifactError, NotFoundError, StorageError
from supermask import artifact as artifacts
from supermask.artifact import Artifact
from supermask.manifest import (
    CONFIG,
    TENSORS,
    UNHASHED,
    ArchEntry,
    ArtifactConfig,
    InputEntry,
    LayerEntry,
    StrategyEntry,
    Values,
    config_hash,
)
from supermask.network import load_into
from tests import reference_reader
from tests.subnetworks import of_architecture

SIZES = (8, 5, 3)  # pixels 2x2x2, a hidden layer, classes: the least network with a layer of each kind of values


def make_artifact(values: tuple[Values, Values] = ("seed", "seed"), masked: bool = True, seed: int = 7) -> Artifact:
    """fc on 2 channels of 2x2 pixels, widths [5], 3 classes: every mask keeps the weights whose number is 0 mod 3."""
    shapes = {"1.weight": (SIZES[1], SIZES[0]), "3.weight": (SIZES[2], SIZES[1])}
    generator = torch.Generator().manual_seed(seed)
    layers, masks, stored = [], {}, {}
    for (name, shape), kind in zip(shapes.items(), values, strict=True):
        n = shape[0] * shape[1]
        mask = (torch.arange(n) % 3 == 0).reshape(shape)
        kept = int(mask.sum()) if masked else n
        layers.append(
            LayerEntry(
                name=name,
                shape=list(shape),
                masked=masked,
                kept=kept,
                values=kind,
                distribution="signed-constant",
                std=0.25,
            )
        )
        masks[name] = mask
        noise = torch.randn(shape, generator=generator)
        stored[name] = torch.where(noise > 0, 0.25, -0.25) if kind == "signs" else noise
    config = ArtifactConfig(
        arch=ArchEntry(name="fc", args={"in_channels": 2, "image_size": 2, "num_classes": 3, "widths": [5]}),
        seed=seed,
        strategy=StrategyEntry(name="edge-popup", options={"k": 0.3}),
        layers=layers,
        input=InputEntry(shape=[2, 2, 2], mean=[0.5, 0.25], std=[0.2, 0.1]),
        labels=["a", "b", "ç"],
        metrics={"test_accuracy": 0.75},
        provenance={"dataset": "made up"},
        sha256=UNHASHED,
    )
    return artifacts.encode(config, masks, stored, {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifacts.write(make_artifact(("seed", "stored")), tmp_path / "artifact")
    return tmp_path / "artifact"


def alter(folder: Path, change: Callable[[dict[str, Any]], object], rehash: bool = True) -> None:
    """Change config.json as an attacker would who can compute hashes."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    change(config)
    try:
        if rehash and "config" in config["sha256"]:
            config["sha256"]["config"] = config_hash(config)
    except (ValueError, rfc8785.CanonicalizationError):
        config["sha256"].pop("config")  # what is not JSON has no canonical form
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")


def alter_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change model.safetensors and put its new hash into config.json."""
    tensors = load((folder / TENSORS).read_bytes())
    change(tensors)
    content = save(tensors)
    (folder / TENSORS).write_bytes(content)
    alter(folder, lambda config: config["sha256"].update({TENSORS: hashlib.sha256(content).hexdigest()}))


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_into(artifacts.read(folder))
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_tensors_of_a_known_artifact_have_known_bytes(tmp_path: Path) -> None:
    artifacts.write(make_artifact(("signs", "stored")), tmp_path)
    content = (tmp_path / TENSORS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert {name: (about["dtype"], about["shape"]) for name, about in header.items()} == {
        "mask/1.weight": ("U8", [5]),
        "mask/3.weight": ("U8", [2]),
        "signs/1.weight": ("U8", [2]),
        "values/3.weight": ("F32", [5]),
    }

    def tensor(name: str) -> bytes:
        start, end = header[name]["data_offsets"]
        return data[start:end]

    # Bits 0, 3, 6, ... of 40 and of 15, least significant first.
    assert tensor("mask/1.weight") == bytes([0b01001001, 0b10010010, 0b00100100, 0b01001001, 0b10010010])
    assert tensor("mask/3.weight") == bytes([0b01001001, 0b00010010])
    noise = torch.randn(5, 8, generator=torch.Generator().manual_seed(7)).flatten()[::3]
    assert tensor("signs/1.weight") == np.packbits(noise.numpy() > 0, bitorder="little").tobytes()


@pytest.mark.parametrize("values", [("seed", "seed"), ("signs", "stored"), ("stored", "seed")])
@pytest.mark.parametrize("masked", [True, False])
def test_a_second_reader_decodes_every_weight_bit_for_bit(
    tmp_path: Path, values: tuple[Values, Values], masked: bool
) -> None:
    artifacts.write(make_artifact(values, masked), tmp_path)
    config, weights, state = reference_reader.read(tmp_path)
    ours = load_into(artifacts.read(tmp_path)).state_dict()
    assert list(ours) == list(weights) == [layer["name"] for layer in config["layers"]]
    for name, expected in weights.items():
        assert ours[name].flatten().tolist() == expected
        assert not np.signbit(ours[name].numpy()[ours[name].numpy() == 0]).any(), "zeros are +0.0"
    assert state == {}


def test_reading_what_was_written_gives_it_back(tmp_path: Path) -> None:
    written = make_artifact(("seed", "stored"))
    artifacts.write(written, tmp_path)
    read = artifacts.read(tmp_path)
    assert read.config == written.config
    assert read.serialized == written.serialized
    assert read.size == sum((tmp_path / name).stat().st_size for name in (CONFIG, TENSORS))


def test_a_stored_minus_zero_becomes_plus_zero_for_every_reader(tmp_path: Path) -> None:
    artifact = make_artifact(("stored", "stored"))
    values = {name: -torch.zeros(layer.shape) for name, layer in {x.name: x for x in artifact.config.layers}.items()}
    masks = {layer.name: torch.from_numpy(artifact.mask(layer)) for layer in artifact.config.layers}
    artifacts.write(artifacts.encode(artifact.config, masks, values, {}), tmp_path)
    _, weights, _ = reference_reader.read(tmp_path)
    assert not any(np.signbit(weights["1.weight"]))


std = st.floats(0, 1e30, allow_nan=False)
text = st.text(min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            text,
            st.lists(st.integers(1, 5), min_size=1, max_size=3),
            st.sampled_from(["seed", "signs", "stored"]),
            st.booleans(),
            std,
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda layer: layer[0],
    ),
    st.integers(0, 2**53 - 1),
    st.randoms(use_true_random=False),
)
def test_any_layers_survive_the_round_trip(
    tmp_path: Path, parts: list[tuple[str, list[int], Values, bool, float]], seed: int, random: Any
) -> None:
    entries, masks, values = [], {}, {}
    for name, shape, kind, masked, scale in parts:
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(random.randrange(2**32))) < 0.5
        masks[name] = mask if masked else torch.ones_like(mask)
        stored = torch.where(torch.rand(shape) < 0.5, 1.0, -1.0) * torch.tensor(scale)
        values[name] = stored
        entries.append(
            LayerEntry(
                name=name,
                shape=shape,
                masked=masked,
                kept=int(masks[name].sum()),
                values=kind,
                distribution="signed-constant",
                std=scale,
            )
        )
    config = make_artifact().config.model_copy(update={"layers": entries, "seed": seed})
    artifacts.write(artifacts.encode(config, masks, values, {"extra": torch.tensor(3)}), tmp_path)
    read = artifacts.read(tmp_path)
    assert read.config.layers == entries
    assert read.state["extra"] == 3
    for layer, weights in read.weights():
        assert np.array_equal(weights != 0, masks[layer.name].numpy() & (np.float32(layer.std) != 0))
        if layer.values != "seed":
            expected = np.where(masks[layer.name].numpy(), values[layer.name].numpy(), 0)
            assert np.array_equal(weights, expected)


def test_an_unknown_key_at_the_top_is_ignored(folder: Path) -> None:
    alter(folder, lambda config: config.update({"made_by": "someone else"}), rehash=False)
    load_into(artifacts.read(folder))


def test_an_artifact_without_a_hash_of_its_configuration_is_read(folder: Path) -> None:
    # The hash is our addition; an artifact of the format need not have it.
    alter(folder, lambda config: config["sha256"].pop("config"))
    load_into(artifacts.read(folder))


def test_reformatting_the_configuration_does_no_harm(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(config, indent=None, sort_keys=True), "utf-8")
    load_into(artifacts.read(folder))


def layer_with(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["layers"][0].update(fields)


BAD_CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda c: c.update(format="mask"), "format: 'supermask' expected"),
    "an unknown version": (lambda c: c.update(format_version=2), "format_version: this reader knows version 1, not 2"),
    "a version that is true": (lambda c: c.update(format_version=True), "format_version"),
    "a negative seed": (lambda c: c.update(seed=-1), "seed"),
    "a seed above 2^53": (lambda c: c.update(seed=2**53), "seed"),
    "a seed with a fraction": (lambda c: c.update(seed=1.5), "seed"),
    "no seed": (lambda c: c.pop("seed"), "seed: field required"),
    "no layers": (lambda c: c.update(layers=[]), "layers"),
    "an unknown key in a layer": (layer_with(scale=1), "layers.0 (1.weight).scale: extra inputs"),
    "a name twice": (layer_with(name="3.weight"), "layer 3.weight: the name stands there twice"),
    "a negative std": (layer_with(std=-0.1), "layers.0 (1.weight).std"),
    "no std": (lambda c: c["layers"][0].pop("std"), "layer 1.weight: values are 'seed', but it has no std"),
    "no distribution": (lambda c: c["layers"][0].pop("distribution"), "layer 1.weight"),
    "an unknown distribution": (layer_with(distribution="cauchy"), "distribution"),
    "unknown values": (layer_with(values="guessed"), "layers.0 (1.weight).values"),
    "a wrong kept": (layer_with(kept=15), "layer 1.weight, tensor mask/1.weight: 15 weights kept by config.json, 14"),
    "a kept above n": (layer_with(kept=41), "layer 1.weight: kept is 41 of 40"),
    "an empty shape side": (layer_with(shape=[0, 8]), "shape"),
    "another shape of the same size": (layer_with(shape=[8, 5]), "layer 1.weight: fc has [5, 8], not [8, 5]"),
    "a longer shape": (layer_with(shape=[5, 9]), "tensor mask/1.weight: torch.uint8 [6] expected"),
    "an unmasked layer with a mask": (layer_with(masked=False, kept=40), "tensor mask/1.weight: no layer asks for it"),
    "an unmasked layer that keeps less": (layer_with(masked=False), "layer 1.weight: not masked, but kept is 14"),
    "signs without their tensor": (layer_with(values="signs"), "tensor signs/1.weight: it is missing"),
    "a layer that the architecture lacks": (layer_with(name="9.weight"), "mask/1.weight: no layer asks for it"),
    "layers in another order": (lambda c: c["layers"].reverse(), "order"),
    "a missing layer": (lambda c: c["layers"].pop(0), "mask/1.weight: no layer asks for it"),
    "arguments that it does not take": (lambda c: c["arch"]["args"].update(x=1), "arch: "),
    "other widths": (lambda c: c["arch"]["args"].update(widths=[6]), "layer 1.weight: fc has [6, 8], not [5, 8]"),
    "too few means": (lambda c: c["input"].update(mean=[0.5]), "input.mean: 2 numbers expected, not 1"),
    "an infinite mean": (lambda c: c["input"].update(mean=[1e999, 0.5]), "Infinity is not a JSON number"),
    "pictures that are not square": (lambda c: c["input"].update(shape=[2, 2, 3]), "input.shape: square"),
    "pictures of another size": (lambda c: c["input"].update(shape=[2, 9, 9]), "input.shape: 9 where"),
    "half a character": (lambda c: c.update(labels=["\ud800"]), "config.json: not UTF-8 JSON"),
    "a zero std of the input": (lambda c: c["input"].update(std=[0.0, 1.0]), "input.std"),
    "a wrong hash of the weights": (lambda c: c["sha256"].update(weights="0" * 64), "sha256.weights"),
    "a wrong hash of the tensors": (lambda c: c["sha256"].update({TENSORS: "0" * 64}), "model.safetensors: contents"),
    "a hash that is none": (lambda c: c["sha256"].update(weights="abc"), "sha256.weights"),
    "another seed": (lambda c: c.update(seed=8), "sha256.weights"),
    "another std": (layer_with(std=0.26), "sha256.weights"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_configuration_that_lies_is_refused_by_place(folder: Path, name: str) -> None:
    change, place = BAD_CONFIGS[name]
    alter(folder, change)
    message = refusal(folder)
    assert place in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_std_that_is_not_finite_is_refused(folder: Path, number: str) -> None:
    content = (folder / CONFIG).read_text("utf-8").replace('"std": 0.25', f'"std": {number}', 1)
    (folder / CONFIG).write_text(content, "utf-8")
    assert CONFIG in refusal(folder)


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    content = (folder / CONFIG).read_text("utf-8").replace('"seed": 7', '"seed": 8, "seed": 7', 1)
    (folder / CONFIG).write_text(content, "utf-8")
    assert "'seed': the key stands there twice" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null", b"[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    assert refusal(folder).startswith(CONFIG)


BAD_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a missing tensor": (lambda t: t.pop("mask/1.weight"), "layer 1.weight, tensor mask/1.weight: it is missing"),
    "an extra mask": (
        lambda t: t.update({"mask/9.weight": t["mask/1.weight"].clone()}),
        "mask/9.weight: no layer asks",
    ),
    "an extra tensor": (lambda t: t.update(other=torch.zeros(1)), "tensor other: no layer asks"),
    "an extra state": (lambda t: t.update({"state/x": torch.zeros(1)}), "tensor state/x: fc has no such state"),
    "a weight as state": (lambda t: t.update({"state/1.weight": torch.zeros(5, 8)}), "state/1.weight"),
    "a wrong dtype": (lambda t: t.update({"mask/1.weight": t["mask/1.weight"].char()}), "torch.uint8 [5] expected"),
    "half floats": (lambda t: t.update({"values/3.weight": t["values/3.weight"].half()}), "torch.float32 [5] expected"),
    "a longer mask": (lambda t: t.update({"mask/1.weight": torch.zeros(6, dtype=torch.uint8)}), "[5] expected"),
    "a square mask": (lambda t: t.update({"mask/1.weight": t["mask/1.weight"][None]}), "[5] expected"),
    "fewer values": (lambda t: t.update({"values/3.weight": t["values/3.weight"][:4].clone()}), "[5] expected"),
    "a padding bit": (lambda t: t["mask/3.weight"].__setitem__(1, 0b10010010), "mask/3.weight: a padding bit is set"),
    "a bit too many": (lambda t: t["mask/1.weight"].__setitem__(0, 0xFF), "14 weights kept by config.json, 19 by"),
    "another value": (lambda t: t["values/3.weight"].__setitem__(0, 9.0), "sha256.weights"),
    "a moved bit": (lambda t: t["mask/1.weight"].__setitem__(0, 0b01001010), "sha256.weights"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_lie_are_refused_by_place(folder: Path, name: str) -> None:
    change, place = BAD_TENSORS[name]
    alter_tensors(folder, change)
    assert place in refusal(folder)


def test_every_single_bit_flip_is_refused(folder: Path) -> None:
    """At every byte of the small file of tensors, and at every third of the configuration."""
    for name, step in ((TENSORS, 1), (CONFIG, 3)):
        sound = (folder / name).read_bytes()
        for place in range(0, len(sound), step):
            flipped = bytearray(sound)
            flipped[place] ^= 1 << place % 8
            if name == CONFIG and _says_the_same(bytes(flipped), sound):
                continue
            (folder / name).write_bytes(bytes(flipped))
            message = refusal(folder)
            assert message.startswith((CONFIG, TENSORS)), (place, message)
        (folder / name).write_bytes(sound)


def _says_the_same(text: bytes, other: bytes) -> bool:
    """Whether only white space differs, or the name of the key that holds the (optional) hash of the configuration."""

    try:
        ours, theirs = json.loads(text), json.loads(other)
        if "config" not in ours["sha256"]:
            ours["sha256"] = {key: ours["sha256"][key] for key in (TENSORS, "weights")}
            del theirs["sha256"]["config"]
    except (ValueError, KeyError):
        return False
    return bool(ours == theirs)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_every_truncation_is_refused(folder: Path, name: str) -> None:
    sound = (folder / name).read_bytes()
    # config.json ends with a line break, which may go.
    for length in range(0, len(sound) - (name == CONFIG), 7):
        (folder / name).write_bytes(sound[:length])
        assert refusal(folder).startswith(name)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_trailing_bytes_are_refused(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"x")
    assert refusal(folder).startswith(name)


def test_a_huge_header_is_refused_without_reading_it(folder: Path) -> None:
    (folder / TENSORS).write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "16 MiB" in refusal(folder)


def test_a_huge_configuration_is_refused_without_reading_it(folder: Path) -> None:
    with (folder / CONFIG).open("ab") as file:
        file.truncate(2**40)  # a hole: no disk is used
    assert refusal(folder) == f"config.json: size: {2**40} bytes; at most {16 * 2**20} are read"


def test_tensors_far_larger_than_the_layers_ask_for_are_refused_without_reading_them(folder: Path) -> None:
    with (folder / TENSORS).open("ab") as file:
        file.truncate(2**40)
    assert refusal(folder).startswith(f"model.safetensors: size: {2**40} bytes; at most ")


def test_a_network_of_a_million_million_weights_is_refused_before_memory_is_taken(folder: Path) -> None:
    def huge(config: dict[str, Any]) -> None:
        config["arch"]["args"].update(widths=[10**12])
        config["layers"][0].update(shape=[10**12, 8], masked=False, kept=8 * 10**12)

    alter(folder, huge)
    assert "at most 2^32 are read" in refusal(folder)


def test_an_architecture_larger_than_its_layers_say_is_refused_before_memory_is_taken(folder: Path) -> None:
    alter(folder, lambda config: config["arch"]["args"].update(widths=[10**9, 10**9]))
    assert "layer 1.weight: fc has [1000000000, 8]" in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_folder_in_a_files_place_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(NotFoundError, match=f"{name} cannot be read"):
        artifacts.read(folder)


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not an artifact")
    with pytest.raises(NotFoundError, match="no artifact in"):
        artifacts.read(tmp_path / "file")


@pytest.mark.parametrize(
    "extra", ['"__metadata__":{"a":"b"},', '"mask/1.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},']
)
def test_a_header_that_two_readers_might_read_differently_is_refused(folder: Path, extra: str) -> None:
    content = (folder / TENSORS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = b"{" + extra.encode() + content[9 : 8 + length]
    altered = struct.pack("<Q", len(header)) + header + content[8 + length :]
    (folder / TENSORS).write_bytes(altered)
    alter(folder, lambda config: config["sha256"].update({TENSORS: hashlib.sha256(altered).hexdigest()}))
    assert refusal(folder).startswith("model.safetensors: header")


def test_a_number_of_five_thousand_digits_is_refused(folder: Path) -> None:
    content = (folder / CONFIG).read_text("utf-8").replace('"seed": 7', f'"seed": {"7" * 5000}', 1)
    (folder / CONFIG).write_text(content, "utf-8")
    assert refusal(folder).startswith(CONFIG)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        artifacts.read(folder)


def test_no_code_in_a_tensors_file_is_run(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"mask/1.weight": Evil()}, folder / TENSORS)
    refusal(folder)
    assert not (tmp_path / "touched").exists()


def test_an_artifact_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write the artifact to"):
        artifacts.write(make_artifact(), tmp_path / "file")


def test_a_network_that_reads_its_version_in_its_state_is_loaded() -> None:
    artifact = of_architecture("torchvision:mnasnet0_5", image_size=64)
    assert load_into(artifact)(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_an_architecture_that_is_not_installed_is_missing_not_damage(folder: Path) -> None:
    alter(folder, lambda config: config["arch"].update(name="evil"))
    with pytest.raises(
        NotFoundError, match=r"arch: unknown architecture 'evil'.* if a package brings it, install that"
    ):
        load_into(artifacts.read(folder))
