"""What a search must beat: the untouched random network, and a random mask of the same density."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice

import torch
from torch import nn

from supermask.data import EvaluationBatches, TrainingBatches
from supermask.evaluate import evaluate
from supermask.masking import Layer, draw_weights
from supermask.randomness import generator
from supermask.select import top_k_mask

CALIBRATION_STEPS = 16


def floors(
    model: nn.Module,
    layers: list[Layer],
    kept: Mapping[str, int],
    seed: int,
    training: TrainingBatches,
    test: EvaluationBatches,
) -> dict[str, float]:
    """Test accuracies of the network as drawn, whole and under a random mask that keeps as many weights of each layer.

    Batch-norm statistics are those of each network's own first training batches: the searched ones would not fit.

    Args:
        model: the plain architecture; not changed.
        layers: its layers, with the standard deviations of the draw.
        kept: weights kept of each masked layer.
        seed: of the draw and of the random mask.
        training: batches for the statistics.
        test: what to measure on.
    """
    network = copy.deepcopy(model).to(test.view.device)
    draw_weights(network, layers, seed)
    _calibrate(network, training)
    whole = evaluate(network, test).top1
    with torch.no_grad():
        for layer in layers:
            if layer.masked:
                noise = torch.rand(layer.shape, generator=generator(seed, "floor", layer.name))
                weight = network.get_parameter(layer.name)
                weight.mul_(top_k_mask(noise, kept[layer.name]).to(weight.device))
    _calibrate(network, training)
    return {"random_network_accuracy": whole, "random_mask_accuracy": evaluate(network, test).top1}


@torch.no_grad()
def _calibrate(network: nn.Module, training: TrainingBatches) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # then the statistics are a plain mean over batches
    network.train()
    for passes in islice(training.epoch(0), CALIBRATION_STEPS):
        for pictures, _ in passes:
            network(pictures)
