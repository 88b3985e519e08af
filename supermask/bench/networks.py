"""Subnetworks that nobody searched: masks at random, which cost what found ones do."""

from __future__ import annotations

from typing import Any

import torch

from supermask import artifact as artifacts
from supermask import masking, registry
from supermask.artifact import Artifact
from supermask.config import WeightsConfig
from supermask.manifest import UNHASHED, ArchEntry, ArtifactConfig, InputEntry, LayerEntry, StrategyEntry
from supermask.select import kept_count

K = 0.3


def subnetwork(arch: str, channels: int, pixels: int, classes: int) -> Artifact:
    """An artifact of `arch` with signed constants, of which each layer keeps a random share K."""
    args: dict[str, Any] = {"in_channels": channels, "image_size": pixels, "num_classes": classes}
    model = registry.build(arch, args)
    layers = masking.plan(model, WeightsConfig())
    generator = torch.Generator().manual_seed(0)
    # Statistics of batch norm as training leaves them, all different.
    with torch.no_grad():
        model.train()(torch.randn(4, channels, pixels, pixels, generator=generator))
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
        input=InputEntry(shape=[channels, pixels, pixels], mean=[0.5] * channels, std=[0.25] * channels),
        labels=[str(label) for label in range(classes)],
        sha256=UNHASHED,
    )
    return artifacts.encode(config, masks, {}, masking.plain_state(model, layers))
