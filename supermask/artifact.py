"""The artifact: a seed and one bit per weight, written and read as docs/format.md says.

A reader trusts nothing: it bounds sizes before it takes memory, checks structure, hashes and shapes, says which file
and layer is wrong, and runs no code that came with the artifact.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from supermask import bitpack
from supermask.draw import draw, draw_signs
from supermask.errors import ArtifactError, NotFoundError, StorageError, UsageError
from supermask.files import write_atomically
from supermask.manifest import (
    COMPRESSED,
    CONFIG,
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    TENSORS,
    ArtifactConfig,
    Hashes,
    LayerEntry,
    as_json,
    config_hash,
    config_text,
    max_tensor_bytes,
    parse_config,
    parse_json,
    require,
)

Float32s = npt.NDArray[np.float32]

# What zlib calls gzip's container, with the largest window.
GZIP = 16 + zlib.MAX_WBITS


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
        return len(self.serialized) + len(config_text(self.config))

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
            weights = self.weights_of(layer)
            total.update(_little_endian(weights))
            yield layer, weights
        require(
            total.hexdigest() == self.config.sha256.weights,
            CONFIG,
            "sha256.weights",
            f"the weights that this machine materialises hash to {total.hexdigest()[:16]}..., "
            f"not {self.config.sha256.weights[:16]}...",
        )

    def weights_of(self, layer: LayerEntry) -> Float32s:
        """One layer's masked weights, float32 of its shape, not yet held against the hash."""
        if layer.values == "seed":
            return self._drawn(layer)
        mask = self.mask(layer)
        weights = np.zeros(layer.shape, dtype=np.float32)
        if layer.values == "signs":
            positive = bitpack.unpack(self.tensors[f"signs/{layer.name}"].numpy(), layer.kept)
            std = np.float32(layer.std)
            weights[mask] = np.where(positive, std, -std)
        else:
            weights[mask] = self.tensors[f"values/{layer.name}"].numpy() + np.float32(0)  # -0.0 becomes +0.0
        return weights

    def _drawn(self, layer: LayerEntry) -> Float32s:
        assert layer.distribution is not None
        assert layer.std is not None
        if layer.masked and layer.distribution == "signed-constant":
            signs = draw_signs(self.config.seed, layer.name, layer.n)
            ternary = bitpack.unpack_ternary(self.tensors[f"mask/{layer.name}"].numpy(), signs, layer.n)
            return np.multiply(ternary, np.float32(layer.std)).reshape(layer.shape)
        weights = draw(self.config.seed, layer.name, layer.shape, layer.distribution, layer.std)
        # A product of the bits: one of the numbers would leave -0.0 behind, and a copy where the mask is false, which
        # branches on every weight, takes ten times as long.
        bits = weights.view(np.uint32)
        np.multiply(bits, self.mask(layer), out=bits)
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
        total.update(_little_endian(artifact.weights_of(layer)))
    hashes = Hashes(tensors=hashlib.sha256(artifact.serialized).hexdigest(), weights=total.hexdigest())
    return with_metrics(replace(artifact, config=config.model_copy(update={"sha256": hashes})), config.metrics)


def with_metrics(artifact: Artifact, metrics: Mapping[str, Any]) -> Artifact:
    """The artifact with other metrics, its configuration hashed anew."""
    hashes = artifact.config.sha256.model_copy(update={"config": None})
    config = artifact.config.model_copy(update={"metrics": dict(metrics), "sha256": hashes})
    hashes = hashes.model_copy(update={"config": config_hash(as_json(config))})
    return replace(artifact, config=config.model_copy(update={"sha256": hashes}))


def write(artifact: Artifact, folder: Path) -> None:
    """Write the artifact's two files into `folder`, each complete or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_files(artifact.serialized, config_text(artifact.config), folder)


def write_files(serialized: bytes, config: bytes, folder: Path) -> None:
    """Write the bytes of model.safetensors and config.json into `folder`, each complete or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    _write(folder, {TENSORS: serialized, CONFIG: config})


def write_compressed(serialized: bytes, config: bytes, folder: Path) -> int:
    """Write model.safetensors as gzip, in place of a plain one there, and config.json.

    Returns:
        The bytes of both files.

    Raises:
        UsageError: that saves less than 3%; nothing is written.
        StorageError: the folder cannot be written.
    """
    compressed = _compressed(serialized)
    if len(compressed) > 0.97 * len(serialized):
        raise UsageError(
            f"{TENSORS} has {len(serialized):,} bytes and would have {len(compressed):,} compressed, under 3% fewer: "
            "where half of the weights are kept, no code is shorter than a bit for each; use the artifact as it is"
        )
    _write(folder, {COMPRESSED: compressed, CONFIG: config})
    return len(compressed) + len(config)


def _compressed(serialized: bytes) -> bytes:
    # The bytes of a mask repeat by chance alone, and a code for each reaches its entropy where k is not small; zlib's
    # search for repeats costs 16% there at k = 0.1, and pays below 0.02.
    forms = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        compressor = zlib.compressobj(level=9, wbits=GZIP, memLevel=9, strategy=strategy)
        forms.append(compressor.compress(serialized) + compressor.flush())
    return min(forms, key=len)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write an artifact's files, in place of another form of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The configuration comes last: it holds the hash of the other file.
        for name, content in files.items():
            write_atomically(folder / name, content)
        for name in {TENSORS, COMPRESSED} - set(files):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write the artifact to {folder}: {error.strerror}; free space or name another"
        ) from error


def read(folder: Path) -> Artifact:
    """Read and check the artifact in `folder`: everything but the architecture and the weights' hash.

    Raises:
        NotFoundError: the folder or one of its files is not there.
        ArtifactError: a rule of docs/format.md is broken; names the file, the place and what was expected.
    """
    config = parse_config(_contents(folder, CONFIG, MAX_CONFIG_BYTES))
    limit = max_tensor_bytes(config)
    name = _form(folder)
    serialized = _contents(folder, name, limit)
    if name == COMPRESSED:
        serialized = _inflated(serialized, limit)
    tensors = _parse_tensors(serialized)
    _check_tensors(config, tensors)
    digest = hashlib.sha256(serialized).hexdigest()
    require(
        digest == config.sha256.tensors, TENSORS, "contents", f"SHA-256 {config.sha256.tensors} expected, not {digest}"
    )
    return Artifact(config, tensors, serialized)


def stored_bytes(folder: Path) -> int:
    """Bytes of the two files that `read` reads in `folder`."""
    return sum((folder / name).stat().st_size for name in (CONFIG, _form(folder)))


def _form(folder: Path) -> str:
    """The file that holds the tensors: the compressed one where that alone is there."""
    return COMPRESSED if (folder / COMPRESSED).exists() and not (folder / TENSORS).exists() else TENSORS


def _contents(folder: Path, name: str, limit: int) -> bytes:
    path = folder / name
    try:
        size = path.stat().st_size
        require(size <= limit, name, "size", f"{size} bytes; at most {limit} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"no artifact in {folder}: {name} is not there") from error
    except OSError as error:
        raise NotFoundError(f"no artifact in {folder}: {name} cannot be read ({error.strerror})") from error


def _inflated(compressed: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(GZIP)
    try:
        serialized = inflater.decompress(compressed, limit)
    except zlib.error as error:
        raise ArtifactError(f"{COMPRESSED}: contents: {error}") from error
    require(inflater.eof, COMPRESSED, "contents", f"it is cut short, or holds over {limit} bytes")
    require(not inflater.unused_data, COMPRESSED, "contents", "bytes follow the end of the compressed file")
    return serialized


def _parse_tensors(serialized: bytes) -> dict[str, Tensor]:
    length = int.from_bytes(serialized[:8], "little")
    require(len(serialized) >= 8, TENSORS, "header", f"a file of {len(serialized)} bytes has none")
    require(length <= MAX_HEADER_BYTES, TENSORS, "header", f"{length} bytes announced; at most 16 MiB are read")
    try:
        tensors = deserialize(serialized)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        # KeyError is a dtype that torch lacks; ValueError and RuntimeError a shape that its bytes do not fill.
        raise ArtifactError(f"{TENSORS}: header: {error}") from error
    # The library reads past these, so that two readers might disagree about them.
    for name in parse_json(serialized[8 : 8 + length], f"{TENSORS}: header"):
        require(name in tensors, TENSORS, "header", f"{name!r} is no tensor, and nothing else may stand there")
    return tensors


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
        require(name in expected or name.startswith("state/"), TENSORS, f"tensor {name}", "no layer asks for it")
    for name, (layer, dtype, length) in expected.items():
        where = f"layer {layer.name}, tensor {name}"
        require(name in tensors, TENSORS, where, "it is missing")
        tensor = tensors[name]
        require(
            tensor.dtype == dtype and tuple(tensor.shape) == (length,),
            TENSORS,
            where,
            f"{dtype} [{length}] expected, not {tensor.dtype} {list(tensor.shape)}",
        )
        if dtype == torch.uint8:
            bits = layer.n if name.startswith("mask/") else layer.kept
            require(not bitpack.has_padding(tensor.numpy(), bits), TENSORS, where, "a padding bit is set")
        if name.startswith("mask/"):
            found = bitpack.count(tensor.numpy())
            require(found == layer.kept, TENSORS, where, f"{layer.kept} weights kept by {CONFIG}, {found} by the mask")
