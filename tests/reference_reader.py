"""A second reader of artifacts, from the format's page alone: no torch, none of our code, one weight at a time."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

MASK = 2**32 - 1


def threefry(k0: int, k1: int, block: int) -> tuple[int, int]:
    keys = (k0, k1, 0x1BD11BDA ^ k0 ^ k1)
    x, y = (block + k0) & MASK, ((block >> 32) + k1) & MASK
    for i in range(20):
        r = ((13, 15, 26, 6), (17, 29, 16, 24))[i // 4 % 2][i % 4]
        x = (x + y) & MASK
        y = ((y << r) | (y >> (32 - r))) & MASK
        y ^= x
        if i % 4 == 3:
            j = i // 4 + 1
            x, y = (x + keys[j % 3]) & MASK, (y + keys[(j + 1) % 3] + j) & MASK
    return x, y


def float32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def drawn_signs(seed: int, name: str, n: int) -> list[bool]:
    digest = hashlib.sha256(seed.to_bytes(8, "little") + name.encode()).digest()
    k0, k1 = struct.unpack("<II", digest[:8])
    words = [word for block in range(-(-n // 64)) for word in threefry(k0, k1, block)]
    return [bool(words[i // 32] >> (i % 32) & 1) for i in range(n)]


def bit(data: bytes, i: int) -> bool:
    return bool(data[i // 8] >> (i % 8) & 1)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, list[float]], dict[str, bytes]]:
    """config.json, the weights of every layer in C order, and the bytes of the rest of the state."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    content = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == config["sha256"]["model.safetensors"]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {
        name: content[8 + length + about["data_offsets"][0] : 8 + length + about["data_offsets"][1]]
        for name, about in header.items()
    }
    total = hashlib.sha256()
    weights = {}
    for layer in config["layers"]:
        n = 1
        for side in layer["shape"]:
            n *= side
        name = layer["name"]
        kept = [i for i in range(n) if not layer["masked"] or bit(tensors[f"mask/{name}"], i)]
        assert len(kept) == layer["kept"]
        values = [0.0] * n
        if layer["values"] == "stored":
            for i, value in zip(kept, struct.unpack(f"<{len(kept)}f", tensors[f"values/{name}"]), strict=True):
                values[i] = value
        else:
            std = float32(layer["std"])
            if layer["values"] == "signs":
                signs = [bit(tensors[f"signs/{name}"], j) for j in range(len(kept))]
            else:
                assert layer["distribution"] == "signed-constant"
                drawn = drawn_signs(config["seed"], name, n)
                signs = [drawn[i] for i in kept]
            for i, sign in zip(kept, signs, strict=True):
                values[i] = std if sign else -std
        total.update(struct.pack(f"<{n}f", *values))
        weights[name] = values
    assert total.hexdigest() == config["sha256"]["weights"]
    return config, weights, {name[6:]: data for name, data in tensors.items() if name.startswith("state/")}
