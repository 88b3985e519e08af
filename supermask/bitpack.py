"""One bit per weight: bit i is bit i % 8 (least significant first) of byte i // 8; padding bits are 0."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Int8s = npt.NDArray[np.int8]


def packed_size(n: int) -> int:
    """The number of bytes that hold n bits."""
    return -(-n // 8)


def pack(bits: Bools) -> Bytes:
    """Booleans of any shape, C order, as uint8 [ceil(n/8)]."""
    return np.packbits(bits, axis=None, bitorder="little")


def unpack(packed: Bytes, n: int) -> Bools:
    """The inverse of `pack`: the first n bits as booleans [n]; len(packed) must be ceil(n/8)."""
    return cast("Bools", np.unpackbits(packed, count=n, bitorder="little").view(np.bool_))


def unpack_ternary(mask: Bytes, signs: Bytes, n: int) -> Int8s:
    """int8 [n]: 0 where bit i of `mask` is 0; elsewhere 1 or -1 as bit i of `signs` is 1 or 0."""
    ternary = np.unpackbits(mask & signs, count=n, bitorder="little").view(np.int8)
    ternary -= np.unpackbits(mask & ~signs, count=n, bitorder="little").view(np.int8)
    return ternary


def has_padding(packed: Bytes, n: int) -> bool:
    """Whether a bit after the n-th is set, which `pack` never does."""
    return n % 8 != 0 and bool(packed[-1] >> (n % 8))


def count(packed: Bytes) -> int:
    """The number of set bits."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def entropy_bits(kept: int, n: int) -> float:
    """n * H(kept/n) in bits: what no code for masks of this density can beat on average."""
    return sum(-part * math.log2(part / n) for part in (kept, n - kept) if part)
