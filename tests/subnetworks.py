"""Subnetworks that nobody searched: masks at random, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn

from supermask import artifact as artifacts
from supermask import masking, registry
from supermask.artifact import Artifact
from supermask.config import WeightsConfig
from supermask.manifest import UNHASHED, ArchEntry, ArtifactConfig, InputEntry, LayerEntry, StrategyEntry, Values

K = 0.4


def subnetwork(
    model: nn.Module,
    picture: tuple[int, int, int],
    *,
    arch: ArchEntry | None = None,
    values: Values = "seed",
    k: float = K,
    seed: int = 5,
    **weights: Any,
) -> Artifact:
    """An artifact of `model`: weights drawn, every mask random, state as training on noise leaves it.

    Args:
        model: gives logits; it is changed.
        picture: shape [C, H, W].
        arch: where it is an installed architecture.
        values: of every layer; `stored` ones are noise.
        k: fraction of weights that the masks keep, about.
        seed: of the draw.
        weights: fields of `WeightsConfig`.
    """
    layers = masking.plan(model, WeightsConfig(**weights), k)
    masking.draw_weights(model, layers, seed)
    random = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    masks, stored, entries = {}, {}, []
    for layer in layers:
        mask = torch.rand(layer.shape, generator=random) < k
        masks[layer.name] = mask
        if values == "stored":
            state[layer.name].normal_(std=layer.std, generator=random)
        stored[layer.name] = state[layer.name].clone()
        if layer.masked:
            state[layer.name].mul_(mask)
        kept = int(mask.sum()) if layer.masked else layer.n
        entries.append(
            LayerEntry(
                name=layer.name,
                shape=list(layer.shape),
                masked=layer.masked,
                kept=kept,
                values=values,
                distribution=layer.distribution,
                std=layer.std,
            )
        )
    with torch.no_grad():
        for parameter in (state[name] for name in state if name not in masks):
            if parameter.is_floating_point():
                parameter.add_(torch.rand(parameter.shape, generator=random), alpha=0.3)
        model.train()(torch.randn(8, *picture, generator=random))
    channels = picture[0]
    config = ArtifactConfig(
        arch=arch or ArchEntry(name="module:Own", args={}),
        seed=seed,
        strategy=StrategyEntry(name="edge-popup", options={"k": k}),
        layers=entries,
        input=InputEntry(shape=list(picture), mean=[0.4] * channels, std=[0.25] * channels),
        labels=[f"class {i}" for i in range(len(model.eval()(torch.zeros(2, *picture))[0]))],
        provenance={"dataset": "made up"},
        sha256=UNHASHED,
    )
    rest = {name: value for name, value in model.state_dict().items() if name not in masks}
    return artifacts.encode(config, masks, stored, rest)


def of_architecture(
    name: str,
    *,
    in_channels: int = 3,
    image_size: int = 32,
    num_classes: int = 10,
    values: Values = "seed",
    k: float = K,
    **args: Any,
) -> Artifact:
    """An artifact of an installed architecture."""
    args |= {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
    model = registry.build(name, args)
    picture = (in_channels, image_size, image_size)
    return subnetwork(model, picture, arch=ArchEntry(name=name, args=args), values=values, k=k)


def run(file: Path | str | bytes, pictures: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The outputs of an ONNX file in ONNX Runtime."""
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[np.float32]] = session.run(None, {"pictures": pictures})
    return outputs[0]
