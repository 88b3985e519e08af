"""In how many bits can a mask be written? Sizes of real masks under general compressors and under ideal codes.

    python benchmarks/masks.py runs/a/artifact runs/b/artifact

prints a Markdown table, one column an artifact: its packed masks and each code, as percentages of N*H(k), the bound for
a code that knows nothing but the fraction kept.

The ideal codes are adaptive, so that nothing is left out of their cost. A code puts each weight into a context, which
the decoder knows too, and codes its bit with the probability (ones + a p) / (bits + a), counted over the earlier bits
in the same context. p is the layer's density, which config.json states; a, the trust in it, is the best of TRUST for
the layer and is sent in TRUST_BITS. With a = 1 and p = 1/2 it is the estimator of Krichevsky and Trofimov (IEEE
Transactions on Information Theory 27, 1981). `all together` mixes the codes' log-odds with weights fitted to the
layer and sent in 16 bits each, a bias among them (logistic mixing: Mahoney, "Adaptive Weighing of Context Models",
2005).
"""

from __future__ import annotations

import bz2
import lzma
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from supermask import bitpack
from supermask.artifact import Artifact, read
from supermask.draw import draw
from supermask.errors import SupermaskError
from supermask.manifest import LayerEntry

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TRUST = tuple(4.0**i for i in range(8))
TRUST_BITS = 3
WEIGHT_BITS = 16
BINS = 16
NEWTON_STEPS = 20
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib -9": lambda packed: zlib.compress(packed, 9),
    "lzma -9e": lambda packed: lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME),
    "bz2 -9": lambda packed: bz2.compress(packed, 9),
}


def contexts(mask: Bools, weights: npt.NDArray[np.float32]) -> Iterator[tuple[str, Ints]]:
    """Names of contexts, and for each the context of every weight: numbers of the mask's shape [out, in, ...]."""
    index = np.indices(mask.shape, dtype=np.int64)
    # A signed constant has two values; of a normal draw 16 quantiles, which hold the sign and the magnitude.
    edges = np.quantile(weights, np.arange(1, BINS) / BINS)
    drawn = np.searchsorted(np.unique(edges), weights, side="right").astype(np.int64)
    row, column = index[0], np.ravel_multi_index(tuple(index[1:]), mask.shape[1:]).astype(np.int64)
    before = np.zeros(mask.shape, dtype=np.int64)
    for axis in range(mask.ndim):
        earlier = np.roll(mask, 1, axis) & (index[axis] > 0)
        before = 2 * before + earlier
    yield "each layer's density", np.zeros_like(row)
    yield "each output's density", row
    yield "each input position's density", column
    yield "the drawn weight", drawn
    yield "the drawn weight in each output", row * BINS + drawn
    yield "the drawn weight at each input position", column * BINS + drawn
    yield "the bit before it along each axis", before


def log_odds(bits: Bools, context: Ints) -> tuple[Floats, float]:
    """The log-odds [n] that the adaptive code gives each bit before it sees it, and the code's length in bits."""
    density = bits.mean()
    order = np.argsort(context, axis=None, kind="stable")
    ordered, groups = bits.reshape(-1)[order], context.reshape(-1)[order]
    firsts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    sizes = np.diff(np.r_[firsts, groups.size])
    seen = np.arange(groups.size) - np.repeat(firsts, sizes)
    ones: Ints = np.cumsum(ordered) - ordered
    ones -= np.repeat(ones[firsts], sizes)
    best, shortest = np.zeros(0), math.inf
    for trust in TRUST:
        stretched = np.log((ones + trust * density) / (seen - ones + trust * (1 - density)))
        length = _bits(stretched, ordered)
        if length < shortest:
            best, shortest = stretched, length
    result = np.empty_like(best)
    result[order] = best
    return result, shortest + TRUST_BITS


def mixed(bits: Bools, odds: list[Floats]) -> float:
    """The length in bits of the code that mixes the given ones, their cost of TRUST_BITS included."""
    inputs = np.stack([*odds, np.ones(bits.size)], axis=1)
    target = bits.reshape(-1)
    weights = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-(inputs @ weights)))
        slope = inputs.T @ (probability - target)
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
        # A little ridge: contexts of a layer may say the very same.
        weights -= np.linalg.solve(curvature + 1e-3 * np.eye(len(weights)), slope)
    sent = weights.astype(np.float16).astype(np.float64)
    return _bits(inputs @ sent, target) + WEIGHT_BITS * len(weights) + TRUST_BITS * len(odds)


def _bits(stretched: Floats, bits: Bools) -> float:
    """-log2 of the probability of the bits, given the log-odds of each."""
    return float(np.logaddexp(0, np.where(bits, -stretched, stretched)).sum()) / math.log(2)


def code_lengths(seed: int, layer: LayerEntry, mask: Bools) -> dict[str, float]:
    """Bits of one layer's mask under each ideal code."""
    if layer.kept in {0, layer.n}:
        return {}
    if layer.distribution is None or layer.std is None:
        raise SystemExit(f"error: layer {layer.name} stores its values; only masks of drawn weights are measured")
    weights = draw(seed, layer.name, layer.shape, layer.distribution, layer.std)
    odds, lengths = [], {}
    for name, context in contexts(mask, weights):
        predicted, lengths[name] = log_odds(mask, context)
        odds.append(predicted)
    return {**lengths, "all together": mixed(mask, odds)}


def sizes(artifact: Artifact) -> tuple[int, float, dict[str, float]]:
    """The number of masked weights, N*H(k) in bits, and the bits of all masks in each form."""
    layers = [layer for layer in artifact.config.layers if layer.masked]
    n, kept = sum(layer.n for layer in layers), sum(layer.kept for layer in layers)
    packed = b"".join(bitpack.pack(artifact.mask(layer)).tobytes() for layer in layers)
    found = {"packed": 8.0 * len(packed)}
    found |= {name: 8.0 * len(compress(packed)) for name, compress in COMPRESSORS.items()}
    for layer in layers:
        for name, bits in code_lengths(artifact.config.seed, layer, artifact.mask(layer)).items():
            found[name] = found.get(name, 0.0) + bits
    return n, bitpack.entropy_bits(kept, n), found


def main(folders: list[str]) -> None:
    """Print the table."""
    try:
        columns = [sizes(read(Path(folder))) for folder in folders]
    except SupermaskError as error:
        raise SystemExit(f"error: {error}") from error
    print("| |", " | ".join(folders), "|")
    print("|---|", "|".join(["---"] * len(folders)), "|", sep="")
    print("| weights |", " | ".join(f"{n:,}" for n, _, _ in columns), "|")
    print("| N*H(k), bytes |", " | ".join(f"{bound / 8:,.0f}" for _, bound, _ in columns), "|")
    for name in columns[0][2]:
        print(f"| {name} |", " | ".join(f"{100 * found[name] / bound:.2f}%" for _, bound, found in columns), "|")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python benchmarks/masks.py ARTIFACT...")
    main(sys.argv[1:])
