"""From seed and mask to weights, against reading the same weights from a dense file; packing against copying."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from supermask import artifact as artifacts
from supermask import bitpack, masking, registry
from supermask.artifact import Artifact
from supermask.bench.timing import Measurement, compare
from supermask.config import WeightsConfig
from supermask.manifest import UNHASHED, ArchEntry, ArtifactConfig, InputEntry, LayerEntry, StrategyEntry
from supermask.select import kept_count

K = 0.3


def codec(small: bool) -> list[Measurement]:
    """Seconds to materialise, pack and unpack wide-resnet50 (68.8 M weights) on the CPU, or conv2 if `small`.

    The dense file is in the page cache. It is copied into new tensors, as `materialise` makes new ones, and into
    tensors that are there already, which spares the system's handing out of memory.
    """
    arch, rounds = ("conv2", 3) if small else ("wide-resnet50", 15)
    artifact, masks = _artifact(arch)
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
    bools = torch.cat([mask.flatten() for mask in masks.values()]).numpy()
    packed = bitpack.pack(bools)
    rows += compare(f"pack {n / 1e6:.1f} M bits", {"copy": bools.copy, "pack": lambda: bitpack.pack(bools)}, rounds)
    ways = {"copy": bools.copy, "unpack": lambda: bitpack.unpack(packed, n)}
    return rows + compare(f"unpack {n / 1e6:.1f} M bits", ways, rounds)


def _artifact(arch: str) -> tuple[Artifact, dict[str, Tensor]]:
    """An artifact of `arch` that keeps a random share K of each layer, and its masks."""
    args: dict[str, Any] = {"in_channels": 3, "image_size": 32, "num_classes": 1000}
    with torch.device("meta"):
        layers = masking.plan(registry.build(arch, args), WeightsConfig())
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for layer in layers:
        order = torch.randperm(layer.n, generator=generator)
        masks[layer.name] = (order < kept_count(layer.n, K)).reshape(layer.shape)
    config = ArtifactConfig(
        arch=ArchEntry(name=arch, args=args),
        seed=0,
        strategy=StrategyEntry(name="edge-popup", options={"k": K}),
        layers=[
            LayerEntry(
                name=layer.name,
                shape=list(layer.shape),
                masked=True,
                kept=kept_count(layer.n, K),
                values="seed",
                distribution=layer.distribution,
                std=layer.std,
            )
            for layer in layers
        ],
        input=InputEntry(shape=[3, 32, 32], mean=[0.5] * 3, std=[0.25] * 3),
        labels=[str(i) for i in range(1000)],
        sha256=UNHASHED,
    )
    return artifacts.encode(config, masks, {}, {}), masks
