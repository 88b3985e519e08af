"""config.json of an artifact: its schema, its checks and its own hash, as docs/format.md says."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supermask.bitpack import packed_size
from supermask.draw import MAX_SEED, Distribution
from supermask.errors import ArtifactError

CONFIG = "config.json"
TENSORS = "model.safetensors"
COMPRESSED = f"{TENSORS}.gz"
# 16 GiB of float32: what a layer that is drawn whole may announce, since no tensor in the file bounds it.
MAX_WEIGHTS = 2**32

MAX_CONFIG_BYTES = MAX_HEADER_BYTES = 16 * 2**20
# What a model keeps beside its layers (norms, embeddings) may outweigh a small one's layers.
MAX_STATE_BYTES = 2**30

Values = Literal["seed", "signs", "stored"]
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
    mean: list[Annotated[float, Field(allow_inf_nan=False)]]
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


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


def require(condition: bool, file: str, place: str, complaint: str) -> None:
    """Raise ArtifactError, naming the file and the place in it, unless `condition` holds."""
    if not condition:
        raise ArtifactError(f"{file}: {place}: {complaint}")


def as_json(config: ArtifactConfig) -> dict[str, Any]:
    """The configuration as it stands in config.json."""
    return config.model_dump(mode="json", exclude_none=True, by_alias=True)


def config_text(config: ArtifactConfig) -> bytes:
    """The bytes of config.json."""
    return (json.dumps(as_json(config), indent=2, ensure_ascii=False) + "\n").encode()


def max_tensor_bytes(config: ArtifactConfig) -> int:
    """The largest model.safetensors that is read: what the layers ask for, and bounds on its header and the state."""
    layers = sum(
        packed_size(layer.n) * layer.masked
        + packed_size(layer.kept) * (layer.values == "signs")
        + 4 * layer.kept * (layer.values == "stored")
        for layer in config.layers
    )
    return 8 + MAX_HEADER_BYTES + layers + MAX_STATE_BYTES


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the RFC 8785 form of config.json, without unknown top-level keys and without sha256.config itself."""
    known = {key: value for key, value in config.items() if key in ArtifactConfig.model_fields}
    known["sha256"] = {key: value for key, value in known["sha256"].items() if key != "config"}
    return hashlib.sha256(rfc8785.dumps(known)).hexdigest()


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice and every number and character is one.

    Raises:
        ArtifactError: it is not; begins with `where`.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if twice:
            raise ArtifactError(f"{where}: {', '.join(map(repr, twice))}: the key stands there twice")
        return dict(pairs)

    def no_constant(name: str) -> float:
        raise ArtifactError(f"{where}: {name} is not a JSON number")

    try:
        raw = json.loads(text.decode(), object_pairs_hook=once, parse_constant=no_constant)
        json.dumps(raw, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: not UTF-8 JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{where}: an object was expected")
    return raw


def parse_config(text: bytes) -> ArtifactConfig:
    """config.json, checked in itself.

    Raises:
        ArtifactError: it is not JSON, or breaks a rule; names the place.
    """

    raw = parse_json(text, CONFIG)
    require(raw.get("format") == "supermask", CONFIG, "format", f"'supermask' expected, not {raw.get('format')!r}")
    version = raw.get("format_version")
    require(
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
        require(
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
        require(layer.name not in seen, CONFIG, where, "the name stands there twice")
        seen.add(layer.name)
        require(layer.kept <= layer.n, CONFIG, where, f"kept is {layer.kept} of {layer.n} weights")
        require(
            layer.masked or layer.kept == layer.n, CONFIG, where, f"not masked, but kept is {layer.kept}, not {layer.n}"
        )
        if layer.values == "seed":
            require(layer.distribution is not None, CONFIG, where, "drawn from the seed, but has no distribution")
        if layer.values != "stored":
            require(layer.std is not None, CONFIG, where, f"values are {layer.values!r}, but it has no std")
    announced = sum(layer.n for layer in config.layers)
    require(announced <= MAX_WEIGHTS, CONFIG, "layers", f"{announced} weights announced; at most 2^32 are read")
    channels, height, width = config.input.shape
    require(height == width, CONFIG, "input.shape", f"square pictures expected, not {height} x {width}")
    for argument, size in (("in_channels", channels), ("image_size", height)):
        named = config.arch.args.get(argument, size)
        require(named == size, CONFIG, "input.shape", f"{size} where arch.args.{argument} is {named}")
    for field in ("mean", "std"):
        found = len(getattr(config.input, field))
        require(found == channels, CONFIG, f"input.{field}", f"{channels} numbers expected, not {found}")
