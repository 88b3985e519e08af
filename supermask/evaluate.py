"""Accuracy of a network on a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from supermask import distributed
from supermask.artifact import Artifact
from supermask.data import EvaluationBatches, View
from supermask.datasets import Dataset
from supermask.device import keep_memory, reported_memory
from supermask.errors import NotFoundError, UsageError


@dataclass(frozen=True)
class Scores:
    """Results on n pictures.

    Attributes:
        top1: fraction of pictures whose class comes first.
        top5: fraction of pictures whose class is among the first five (of fewer classes: always 1).
        loss: mean cross-entropy, nats.
        n: pictures.
    """

    top1: float
    top5: float
    loss: float
    n: int


def at_once(device: torch.device) -> int:
    """Pictures to evaluate at once: on a CPU more take more memory and no less time, from fc to resnet50."""
    return 64 if device.type == "cpu" else 500


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: EvaluationBatches,
    precision: torch.dtype = torch.float32,
    sampling: Iterable[nn.Module] = (),
) -> Scores:
    """Evaluate `model`, in evaluation mode, over all processes.

    The mode of each module is as before afterwards. Masked weights are computed once, not for each batch.

    Args:
        model: logits of pictures.
        batches: what to measure on.
        precision: of activations.
        sampling: modules left in training mode: maskers that are to sample.
    """
    device = batches.view.device
    # MPS has no float64.
    sums = torch.zeros(3, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    pictures = 0
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module in sampling:
        module.train()
    try:
        with parametrize.cached(), torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            for images, labels in batches:
                sums += _tally(model(images).float(), labels)
                pictures += len(labels)
    finally:
        for module, training in modes:
            module.training = training
    top1, top5, loss, n = distributed.summed(torch.cat([sums, sums.new_tensor([pictures])])).tolist()
    if not n:
        raise NotFoundError("there is no picture to measure on: none of them decodes")
    return Scores(top1 / n, top5 / n, loss / n, int(n))


def _tally(logits: Tensor, labels: Tensor) -> Tensor:
    """Right at first, right among five, and the summed loss."""
    ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([ranked[:, 0].sum(), ranked.sum(), loss])


def evaluate_artifact(
    artifact: Artifact, model: nn.Module, dataset: Dataset, device: torch.device, batch_size: int | None = None
) -> Scores:
    """Accuracy of an artifact's subnetwork on a data set's test pictures, in float32.

    By default as many of them are computed at once as suit the device.

    Raises:
        UsageError: the pictures have other channels or classes than the artifact was made for.
    """
    entry = artifact.config.input
    if dataset.channels != entry.shape[0]:
        raise UsageError(f"the artifact takes {entry.shape[0]} channels, {dataset.name} has {dataset.channels}")
    classes, labels = list(dataset.classes), artifact.config.labels
    # An imported artifact only numbers its classes.
    if len(classes) != len(labels) or (classes != labels and labels != [str(i) for i in range(len(labels))]):
        raise UsageError(f"the artifact knows the classes {_few(labels)}, {dataset.name} has {_few(classes)}")
    view = View(entry.shape[1], tuple(entry.mean), tuple(entry.std), device)
    batch_size = batch_size or at_once(device)
    keep_memory()
    with reported_memory(batch_size):
        return evaluate(model.to(device), EvaluationBatches(dataset.test, view, batch_size))


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''} ({len(names)})"
