"""The artifact: a seed and one bit per weight, written and read as docs/format.md says.

A reader trusts nothing: it bounds sizes before it takes memory, checks structure, hashes and shapes, says which file
and layer is wrong, and runs no code that came with the artifact.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import rfc8785
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from supermask import bitpack
from supermask.draw import MAX_SEED, Distribution, draw
from supermask.errors import ArtifactError, NotFoundError, StorageError

CONFIG = "config.json"
TENSORS = "model.safetensors"
MAX_CONFIG_BYTES = MAX_HEADER_BYTES = 16 * 2**20
# 16 GiB of float32: what a layer that is drawn whole may announce, since no tensor in the file bounds it.
MAX_WEIGHTS = 2**32

Values = Literal["seed", "signs", "stored"]
Float32s = npt.NDArray[np.float32]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class LayerEntry(_Section):
    """One weight: `kept` of prod(shape) weights are in the subnetwork. Unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    shape: list[Annotated[int, Field(gt=0)]]
    masked: bool
    kept: Annotated[int, Field(ge=0)]
    values: Values
    distribution: Distribution | None = None
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @property
    def n(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


class ArchEntry(_Section):
    """An installed architecture and its arguments."""

    name: str
    args: dict[str, Any]


class StrategyEntry(_Section):
    """How the mask was found."""

    name: str
    options: dict[str, Any]


class InputEntry(_Section):
    """What the network takes: shape [C, H, W]; mean and std of each channel in units of full brightness."""

    shape: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=3, max_length=3)]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Hashes(_Section):
    """SHA-256 of the tensors' file, of the masked weights and, in our own artifacts, of the configuration."""

    model_config = ConfigDict(strict=True, frozen=True, populate_by_name=True)

    tensors: Annotated[Sha256, Field(alias=TENSORS)]
    weights: Sha256
    config: Sha256 | None = None


UNHASHED = Hashes(tensors="0" * 64, weights="0" * 64)


class ArtifactConfig(_Section):
    """config.json. Unknown keys are ignored."""

    format: Literal["supermask"] = "supermask"
    format_version: Literal[1] = 1
    arch: ArchEntry
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    strategy: StrategyEntry
    layers: Annotated[list[LayerEntry], Field(min_length=1)]
    input: InputEntry
    labels: list[str]
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    sha256: Hashes


@dataclass(frozen=True)
class Artifact:
    """A subnetwork as it is kept.

    Attributes:
        config: what config.json says.
        tensors: what model.safetensors holds: `mask/NAME`, `signs/NAME` (uint8), `values/NAME` (float32), `state/KEY`.
        serialized: the bytes of model.safetensors.
    """

    config: ArtifactConfig
    tensors: Mapping[str, Tensor]
    serialized: bytes

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return len(self.serialized) + len(_config_text(self.config))

    @property
    def state(self) -> dict[str, Tensor]:
        """The persistent state beside the weights: batch-norm statistics, and what was trained beside the mask."""
        return {key.removeprefix("state/"): value for key, value in self.tensors.items() if key.startswith("state/")}

    def mask(self, layer: LayerEntry) -> npt.NDArray[np.bool_]:
        """The layer's mask, booleans of its shape."""
        if not layer.masked:
            return np.ones(layer.shape, dtype=np.bool_)
        return bitpack.unpack(self.tensors[f"mask/{layer.name}"].numpy(), layer.n).reshape(layer.shape)

    def weights(self) -> Iterator[tuple[LayerEntry, Float32s]]:
        """Every layer's masked weights, float32 of its shape, one at a time.

        Raises:
            ArtifactError: at the end, if their hash is not the one in config.json.
        """
        total = hashlib.sha256()
        for layer in self.config.layers:
            weights = self._weights(layer)
            total.update(_little_endian(weights))
            yield layer, weights
        _require(
            total.hexdigest() == self.config.sha256.weights,
            CONFIG,
            "sha256.weights",
            f"the weights that this machine materialises hash to {total.hexdigest()[:16]}..., "
            f"not {self.config.sha256.weights[:16]}...",
        )

    def _weights(self, layer: LayerEntry) -> Float32s:
        mask = self.mask(layer)
        if layer.values == "seed":
            assert layer.distribution is not None
            assert layer.std is not None
            weights = draw(self.config.seed, layer.name, layer.shape, layer.distribution, layer.std)
            # A product would leave -0.0 behind.
            np.copyto(weights, np.float32(0), where=~mask)
            return weights
        weights = np.zeros(layer.shape, dtype=np.float32)
        if layer.values == "signs":
            positive = bitpack.unpack(self.tensors[f"signs/{layer.name}"].numpy(), layer.kept)
            std = np.float32(layer.std)
            weights[mask] = np.where(positive, std, -std)
        else:
            weights[mask] = self.tensors[f"values/{layer.name}"].numpy() + np.float32(0)  # -0.0 becomes +0.0
        return weights


def _little_endian(weights: Float32s) -> memoryview:
    return np.ascontiguousarray(weights, dtype="<f4").data.cast("B")


def encode(
    config: ArtifactConfig, masks: Mapping[str, Tensor], values: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Artifact:
    """An artifact in memory, its hashes filled in.

    Args:
        config: with `sha256=UNHASHED`; its layers in the plain architecture's `state_dict` order.
        masks: bool tensors of the layers' shapes, for every masked layer; as many true as the layer's `kept`.
        values: float32 tensors of the layers' shapes, for every layer whose values are `signs` or `stored`.
        state: the remaining entries of the plain `state_dict`.
    """
    tensors: dict[str, Tensor] = {}
    for layer in config.layers:
        mask = masks[layer.name].numpy() if layer.masked else np.ones(layer.shape, dtype=np.bool_)
        if layer.masked:
            tensors[f"mask/{layer.name}"] = torch.from_numpy(bitpack.pack(mask))
        if layer.values != "seed":
            kept = values[layer.name].numpy()[mask] + np.float32(0)
            if layer.values == "signs":
                tensors[f"signs/{layer.name}"] = torch.from_numpy(bitpack.pack(kept > 0))
            else:
                tensors[f"values/{layer.name}"] = torch.from_numpy(kept)
    tensors |= {f"state/{key}": value.contiguous() for key, value in state.items()}
    artifact = Artifact(config, tensors, serialize(tensors))
    total = hashlib.sha256()
    for layer in config.layers:
        total.update(_little_endian(artifact._weights(layer)))
    hashes = Hashes(tensors=hashlib.sha256(artifact.serialized).hexdigest(), weights=total.hexdigest())
    return with_metrics(replace(artifact, config=config.model_copy(update={"sha256": hashes})), config.metrics)


def with_metrics(artifact: Artifact, metrics: Mapping[str, Any]) -> Artifact:
    """The artifact with other metrics, its configuration hashed anew."""
    hashes = artifact.config.sha256.model_copy(update={"config": None})
    config = artifact.config.model_copy(update={"metrics": dict(metrics), "sha256": hashes})
    hashes = hashes.model_copy(update={"config": config_hash(_as_json(config))})
    return replace(artifact, config=config.model_copy(update={"sha256": hashes}))


def _as_json(config: ArtifactConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True, by_alias=True)


def _config_text(config: ArtifactConfig) -> bytes:
    return (json.dumps(_as_json(config), indent=2, ensure_ascii=False) + "\n").encode()


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the RFC 8785 form of config.json, without unknown top-level keys and without sha256.config itself."""
    known = {key: value for key, value in config.items() if key in ArtifactConfig.model_fields}
    known["sha256"] = {key: value for key, value in known["sha256"].items() if key != "config"}
    return hashlib.sha256(rfc8785.dumps(known)).hexdigest()


def write(artifact: Artifact, folder: Path) -> None:
    """Write the artifact's two files into `folder`, each complete or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The configuration comes last: it holds the hash of the other file.
        for name, content in ((TENSORS, artifact.serialized), (CONFIG, _config_text(artifact.config))):
            write_atomically(folder / name, content)
    except OSError as error:
        raise StorageError(
            f"cannot write the artifact to {folder}: {error.strerror}; free space or name another"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content` in one step; OSError leaves what was there."""
    half_written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half_written.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        half_written.replace(path)
    finally:
        half_written.unlink(missing_ok=True)


def read(folder: Path) -> Artifact:
    """Read and check the artifact in `folder`: everything but the architecture and the weights' hash.

    Raises:
        NotFoundError: the folder or one of its files is not there.
        ArtifactError: a rule of docs/format.md is broken; names the file, the place and what was expected.
    """
    text, serialized = (_contents(folder, name) for name in (CONFIG, TENSORS))
    config = _parse_config(text)
    tensors = _parse_tensors(serialized)
    _check_tensors(config, tensors)
    digest = hashlib.sha256(serialized).hexdigest()
    _require(
        digest == config.sha256.tensors, TENSORS, "contents", f"SHA-256 {config.sha256.tensors} expected, not {digest}"
    )
    return Artifact(config, tensors, serialized)


def _contents(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        size = path.stat().st_size
        _require(name != CONFIG or size <= MAX_CONFIG_BYTES, CONFIG, "size", f"{size} bytes; at most 16 MiB are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"no artifact in {folder}: {name} is not there") from error


def _require(condition: bool, file: str, place: str, complaint: str) -> None:
    if not condition:
        raise ArtifactError(f"{file}: {place}: {complaint}")


def _parse_config(text: bytes) -> ArtifactConfig:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        _require(not twice, CONFIG, ", ".join(map(repr, twice)), "the key stands there twice")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise ArtifactError(f"{CONFIG}: {name} is not a JSON number")

    try:
        raw = json.loads(text.decode(), object_pairs_hook=once, parse_constant=no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{CONFIG}: not UTF-8 JSON: {error}") from error
    _require(isinstance(raw, dict), CONFIG, "top level", "an object was expected")
    _require(raw.get("format") == "supermask", CONFIG, "format", f"'supermask' expected, not {raw.get('format')!r}")
    version = raw.get("format_version")
    _require(
        type(version) is int and version == 1, CONFIG, "format_version", f"this reader knows version 1, not {version!r}"
    )
    try:
        config = ArtifactConfig.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ArtifactError(f"{CONFIG}: {_place(raw, fault['loc'])}: {fault['msg'].lower()}") from error
    if config.sha256.config is not None:
        try:
            digest = config_hash(raw)
        except rfc8785.CanonicalizationError as error:
            raise ArtifactError(f"{CONFIG}: {error}") from error
        _require(
            digest == config.sha256.config,
            CONFIG,
            "sha256.config",
            f"the configuration hashes to {digest[:16]}..., not {config.sha256.config[:16]}...: it was altered",
        )
    _check_layers(config)
    return config


def _place(raw: Any, path: tuple[int | str, ...]) -> str:
    """`layers.3 (features.4.weight).std` of ("layers", 3, "std")."""
    place = ".".join(map(str, path))
    if path[:1] == ("layers",) and len(path) > 1:
        layer = raw["layers"][path[1]]
        name = layer.get("name") if isinstance(layer, dict) else None
        place = ".".join(filter(None, [f"layers.{path[1]} ({name})", *map(str, path[2:])]))
    return place


def _check_layers(config: ArtifactConfig) -> None:
    seen: set[str] = set()
    for layer in config.layers:
        where = f"layer {layer.name}"
        _require(layer.name not in seen, CONFIG, where, "the name stands there twice")
        seen.add(layer.name)
        _require(layer.kept <= layer.n, CONFIG, where, f"kept is {layer.kept} of {layer.n} weights")
        _require(
            layer.masked or layer.kept == layer.n, CONFIG, where, f"not masked, but kept is {layer.kept}, not {layer.n}"
        )
        if layer.values == "seed":
            _require(layer.distribution is not None, CONFIG, where, "drawn from the seed, but has no distribution")
        if layer.values != "stored":
            _require(layer.std is not None, CONFIG, where, f"values are {layer.values!r}, but it has no std")
    announced = sum(layer.n for layer in config.layers)
    _require(announced <= MAX_WEIGHTS, CONFIG, "layers", f"{announced} weights announced; at most 2^32 are read")
    channels = config.input.shape[0]
    for field in ("mean", "std"):
        found = len(getattr(config.input, field))
        _require(found == channels, CONFIG, f"input.{field}", f"{channels} numbers expected, not {found}")


def _parse_tensors(serialized: bytes) -> dict[str, Tensor]:
    length = int.from_bytes(serialized[:8], "little")
    _require(len(serialized) >= 8, TENSORS, "header", f"a file of {len(serialized)} bytes has none")
    _require(length <= MAX_HEADER_BYTES, TENSORS, "header", f"{length} bytes announced; at most 16 MiB are read")
    try:
        return deserialize(serialized)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        # KeyError is a dtype that torch lacks; ValueError and RuntimeError a shape that its bytes do not fill.
        raise ArtifactError(f"{TENSORS}: header: {error}") from error


def _check_tensors(config: ArtifactConfig, tensors: Mapping[str, Tensor]) -> None:
    expected: dict[str, tuple[LayerEntry, torch.dtype, int]] = {}
    for layer in config.layers:
        if layer.masked:
            expected[f"mask/{layer.name}"] = (layer, torch.uint8, bitpack.packed_size(layer.n))
        if layer.values == "signs":
            expected[f"signs/{layer.name}"] = (layer, torch.uint8, bitpack.packed_size(layer.kept))
        if layer.values == "stored":
            expected[f"values/{layer.name}"] = (layer, torch.float32, layer.kept)
    for name in tensors:
        _require(name in expected or name.startswith("state/"), TENSORS, f"tensor {name}", "no layer asks for it")
    for name, (layer, dtype, length) in expected.items():
        where = f"layer {layer.name}, tensor {name}"
        _require(name in tensors, TENSORS, where, "it is missing")
        tensor = tensors[name]
        _require(
            tensor.dtype == dtype and tuple(tensor.shape) == (length,),
            TENSORS,
            where,
            f"{dtype} [{length}] expected, not {tensor.dtype} {list(tensor.shape)}",
        )
        if dtype == torch.uint8:
            bits = layer.n if name.startswith("mask/") else layer.kept
            _require(not bitpack.has_padding(tensor.numpy(), bits), TENSORS, where, "a padding bit is set")
        if name.startswith("mask/"):
            found = bitpack.count(tensor.numpy())
            _require(found == layer.kept, TENSORS, where, f"{layer.kept} weights kept by {CONFIG}, {found} by the mask")
