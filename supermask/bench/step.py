"""The step of a search against the step that trains the dense network, and against the paper's Algorithm 1.

All of them are steps of the one trainer, in its precision and memory format, on pictures made up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from supermask import masking, registry
from supermask.bench.timing import Action, Measurement, compare
from supermask.config import make_strategy, resolve
from supermask.data import EvaluationBatches, Share, TrainingBatches, View
from supermask.datasets import Dataset
from supermask.select import kept_count
from supermask.strategy import Masker, Strategy
from supermask.trainer import Trainer

# (architecture, pixels, classes, batch, rounds)
NETWORKS = [
    ("conv4", 32, 10, 128, 31),
    ("resnet18-cifar", 32, 10, 128, 11),
    ("resnet50", 224, 1000, 16, 11),
]
SMALL_NETWORKS = [("conv2", 8, 10, 16, 3)]


def step(small: bool, device: torch.device | None = None) -> list[Measurement]:
    """Seconds of one step for conv4 and resnet18-cifar at batch 128 and resnet50 at batch 16; conv2 if `small`."""
    device = device or torch.device("cpu")
    rows = []
    for arch, pixels, classes, batch, rounds in SMALL_NETWORKS if small else NETWORKS:

        def taken(
            strategy: Strategy | str,
            precision: str = "auto",
            of: tuple[str, int, int, int] = (arch, pixels, classes, batch),
        ) -> Action:
            return _step(*of, strategy, precision, device)

        ways = {
            "dense": taken("dense"),
            "edge-popup": taken("edge-popup"),
            "Algorithm 1": taken(AlgorithmOne()),
            "Algorithm 1 in float32": taken(AlgorithmOne(), "float32"),
        }
        rows += compare(f"{arch}, {pixels} pixels, batch {batch}", ways, rounds, device)
    return rows


def _step(
    arch: str, pixels: int, classes: int, batch: int, strategy: Strategy | str, precision: str, device: torch.device
) -> Action:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (batch,), generator=generator)
    dataset = Dataset.from_arrays("noise", [str(i) for i in range(classes)], (images, labels), (images, labels))
    named = strategy if isinstance(strategy, str) else "edge-popup"
    settings: dict[str, Any] = {"batch_size": batch, "precision": precision, "strategy": {"name": named}}
    config = resolve(settings)
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, {})
    model = registry.build(arch, {"in_channels": 3, "image_size": pixels, "num_classes": classes})
    layers = masking.plan(model, config.weights, strategy.density)
    masking.draw_weights(model, layers, config.seed)
    maskers = masking.attach(model, layers, strategy, config.seed)
    view = View(pixels, dataset.mean, dataset.std, device)
    batches = TrainingBatches(
        dataset.train, view, batch_size=batch, accumulate=1, augment="none", seed=config.seed, share=Share()
    )
    trainer = Trainer(config, model.to(device), maskers, batches, EvaluationBatches(dataset.test, view, batch), Share())
    trainer.network.train()
    passes = next(iter(batches.epoch(0)))
    return lambda: trainer.one_step(passes)


class AlgorithmOne(Strategy):
    """Algorithm 1 of Ramanujan et al. 2020 (appendix A), from its text: a full sort in every forward pass."""

    k: float = 0.5

    @property
    def density(self) -> float:
        """k."""
        return self.k

    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker with scores drawn by `generator`."""
        scores = torch.empty_like(weight)
        nn.init.kaiming_uniform_(scores, a=5**0.5, generator=generator)
        return _Sorting(scores, self.k)


class _Sorting(Masker):
    def __init__(self, scores: Tensor, k: float) -> None:
        super().__init__()
        self.scores, self.k = nn.Parameter(scores), k

    def forward(self, weight: Tensor) -> Tensor:
        subnet: Tensor = _GetSubnet.apply(self.scores.abs(), self.k)  # type: ignore[no-untyped-call]
        return weight * subnet

    def mask(self, weight: Tensor) -> Tensor:
        return _subnet(self.scores.detach().abs(), self.k).bool()


class _GetSubnet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: float) -> Tensor:
        return _subnet(scores, k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None  # straight through


def _subnet(scores: Tensor, k: float) -> Tensor:
    """1 for the top k share of the scores, else 0: float32 of their shape."""
    subnet = scores.clone()
    order = scores.flatten().sort().indices
    dropped = scores.numel() - kept_count(scores.numel(), k)
    flat = subnet.flatten()
    flat[order[:dropped]] = 0
    flat[order[dropped:]] = 1
    return flat.view_as(scores)
