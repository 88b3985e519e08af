"""The seeded draw: weights as a function of (seed, name), bit for bit the same on every machine.

docs/format.md, "The draw", is the specification; this module needs NumPy only. The generator is Threefry-2x32 with
20 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11), the normal quantile is AS 241 PPND16
(Wichura, Applied Statistics 37, 1988).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]

Distribution = Literal["signed-constant", "constant", "uniform", "normal"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

MAX_SEED = 2**53 - 1  # every JSON reader holds integers up to here exactly

# 2^15 blocks are 256 kB of words: they stay in the L2 cache through all 20 rounds.
BLOCKS_PER_CHUNK = 2**15
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def key_of(seed: int, name: str) -> tuple[int, int]:
    """The Threefry key (two uint32) of the weight `name` under `seed`, 0 <= seed < 2^53."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + name.encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def threefry2x32(key: tuple[int, int], c0: Words, c1: Words) -> tuple[Words, Words]:
    """Threefry-2x32-20 of the counters (c0, c1), uint32 arrays of one shape: two words for each counter."""
    schedule = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(PARITY ^ key[0] ^ key[1])]
    x0, x1 = c0 + schedule[0], c1 + schedule[1]
    high = np.empty_like(x1)
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 += x1
            np.left_shift(x1, rotation, out=high)
            x1 >>= np.uint32(32 - rotation)
            x1 |= high
            x1 ^= x0
        x0 += schedule[(group + 1) % 3]
        # The sum wraps; adding Python integers first keeps NumPy from warning about a scalar overflow.
        x1 += np.uint32((int(schedule[(group + 2) % 3]) + group + 1) & 0xFFFFFFFF)
    return x0, x1


def stream(key: tuple[int, int], first_block: int, blocks: int) -> Words:
    """Words 2*first_block .. 2*(first_block + blocks) - 1 of the stream of `key`: uint32 [2 * blocks]."""
    counter = np.arange(first_block, first_block + blocks, dtype=np.uint64)
    words = np.empty((blocks, 2), dtype="<u4")
    words[:, 0], words[:, 1] = threefry2x32(key, counter.astype(np.uint32), (counter >> 32).astype(np.uint32))
    return cast("Words", words.reshape(-1))


def draw_signs(seed: int, name: str, n: int) -> npt.NDArray[np.uint8]:
    """The signs of n weights drawn as `signed-constant`: uint8 [ceil(n/8)], bit i % 8 of byte i // 8 is 1 for +.

    What the last byte has beyond the n-th bit is left as drawn.
    """
    key, blocks = key_of(seed, name), -(-n // 64)
    signs = np.empty(8 * blocks, dtype=np.uint8)
    for first in range(0, blocks, BLOCKS_PER_CHUNK):
        words = stream(key, first, min(BLOCKS_PER_CHUNK, blocks - first))
        signs[8 * first : 8 * (first + BLOCKS_PER_CHUNK)] = words.view(np.uint8)
    return signs[: -(-n // 8)]


def draw(seed: int, name: str, shape: Sequence[int], distribution: Distribution, std: float) -> Float32s:
    """The weights of the tensor `name` under `seed`.

    Args:
        seed: 0 <= seed < 2^53.
        name: the tensor's `state_dict` key.
        shape: of the result; any number of elements.
        distribution: `signed-constant` (+-std), `constant` (std), `uniform` or `normal` (mean 0).
        std: float64, finite, >= 0.

    Returns:
        float32 of `shape`, C order. Peak memory is the result plus a few MB.

    Raises:
        ValueError: the seed or std is out of range, or the distribution is unknown.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed} is not in 0 .. 2^53 - 1")
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std {std} is not finite and >= 0")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution {distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
    if distribution == "constant":
        return np.full(shape, std, dtype=np.float32)
    weights = np.empty(shape, dtype=np.float32)
    flat = weights.reshape(-1)
    key = key_of(seed, name)
    signs = _sign_table(std) if distribution == "signed-constant" else None
    weights_per_block = 2 if signs is None else 64
    for first_block in range(0, -(-flat.size // weights_per_block), BLOCKS_PER_CHUNK):
        chunk = flat[first_block * weights_per_block : (first_block + BLOCKS_PER_CHUNK) * weights_per_block]
        words = stream(key, first_block, -(-chunk.size // weights_per_block))
        if signs is not None:
            _gather_signs(signs, words.view(np.uint8), chunk)
        else:
            u: Float64s = (words[: chunk.size] + np.float64(0.5)) * 2.0**-32
            chunk[:] = std * (math.sqrt(3.0) * (2.0 * u - 1.0) if distribution == "uniform" else normal_quantile(u))
    return weights


def _sign_table(std: float) -> Float32s:
    """float32 [256, 8]: row b holds the eight signed constants that byte b encodes, least significant bit first."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits == 1, np.float32(std), -np.float32(std)).astype(np.float32)


def _gather_signs(table: Float32s, stream_bytes: npt.NDArray[np.uint8], out: Float32s) -> None:
    # One 32-byte row per byte of the stream. "clip" spares a bounds-check buffer: a byte cannot exceed 255.
    whole = out.size // 8
    np.take(table, stream_bytes[:whole], axis=0, out=out[: whole * 8].reshape(-1, 8), mode="clip")
    if out.size % 8:
        out[whole * 8 :] = table[stream_bytes[whole], : out.size % 8]


# Wichura's PPND16: numerator and denominator of the central region |u - 0.5| <= 0.425 and of the tail, constant term
# first. His third region (r > 5) needs u < exp(-25) = 1.4e-11; the smallest u drawn here is 2^-33 = 1.2e-10.
CENTRAL = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
ATANH_SERIES = tuple(1.0 / odd for odd in range(1, 27, 2))
LN2 = 0.6931471805599453


def _horner(coefficients: Sequence[float], x: Float64s) -> Float64s:
    # Separate multiply and add: a fused operation would change the last bit.
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= x
        result += coefficient
    return result


def _log(x: Float64s) -> Float64s:
    # Our own logarithm, because libraries disagree in the last bit.
    m, e = np.frexp(x)
    small = m < 0.7071067811865476
    m = np.where(small, 2.0 * m, m)
    e = np.where(small, e - 1, e)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    return e * LN2 + 2.0 * s * _horner(ATANH_SERIES, z)


def normal_quantile(u: Float64s) -> Float64s:
    """The standard normal quantile of u in [2^-33, 1 - 2^-33], float64 of any shape."""
    q = u - 0.5
    r = 0.180625 - q * q
    value = q * _horner(CENTRAL[0], r) / _horner(CENTRAL[1], r)
    in_tail = np.abs(q) > 0.425
    tail = u[in_tail]
    r = np.sqrt(-_log(np.minimum(tail, 1.0 - tail))) - 1.6
    value[in_tail] = np.copysign(_horner(TAIL[0], r) / _horner(TAIL[1], r), q[in_tail])
    return value
