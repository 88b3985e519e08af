"""From seed and mask to weights, against reading the same weights from a dense file; packing against copying."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from supermask import bitpack
from supermask.bench.networks import subnetwork
from supermask.bench.report import Report, of_measurements
from supermask.bench.timing import compare


def codec(small: bool) -> Report:
    """Seconds to materialise, pack and unpack wide-resnet50 (68.8 M weights) on the CPU, or conv2 if `small`.

    The dense file is in the page cache. It is copied into new tensors, as `materialise` makes new ones, and into
    tensors that are there already, which spares the system's handing out of memory.
    """
    arch, rounds = ("conv2", 3) if small else ("wide-resnet50", 15)
    artifact = subnetwork(arch, channels=3, pixels=32, classes=1000)
    layers = artifact.config.layers
    n = sum(layer.n for layer in layers)
    ready = {layer.name: torch.empty(layer.shape) for layer in layers}
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.safetensors"
        save_file({layer.name: torch.from_numpy(artifact.weights_of(layer)) for layer in layers}, dense)
        rows = compare(
            f"weights of {arch}, {n / 1e6:.1f} M",
            {
                "dense file, copied": lambda: [weight.clone() for weight in load_file(dense).values()],
                "dense file, copied in place": lambda: [
                    ready[name].copy_(weight) for name, weight in load_file(dense).items()
                ],
                "seed and mask": lambda: [artifact.weights_of(layer) for layer in layers],
                "seed and mask, hash checked": lambda: list(artifact.weights()),
            },
            rounds,
        )
    bools = np.concatenate([artifact.mask(layer).reshape(-1) for layer in layers])
    packed = bitpack.pack(bools)
    rows += compare(f"pack {n / 1e6:.1f} M bits", {"copy": bools.copy, "pack": lambda: bitpack.pack(bools)}, rounds)
    ways = {"copy": bools.copy, "unpack": lambda: bitpack.unpack(packed, n)}
    return of_measurements(rows + compare(f"unpack {n / 1e6:.1f} M bits", ways, rounds))
