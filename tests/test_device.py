"""Every strategy where a search computes: on the CPU, and on a GPU where there is one (benchmarks/gpu.sh)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import supermask
from supermask import masking
from supermask.config import make_strategy
from supermask.evaluate import evaluate_artifact
from supermask.network import load_into
from supermask.registry import installed, open_dataset
from supermask.select import kept_count, top_k_mask
from supermask.strategy import Masker, Strategy

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SCORES = 300_000


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=sorted(installed("strategies")))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return make_strategy(request.param, {})


def a_weight() -> Tensor:
    return torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(3))


def attached(strategy: Strategy, weight: Tensor) -> Masker:
    return strategy.attach(weight, torch.Generator().manual_seed(0))


def on(device: torch.device, masker: Masker) -> Masker:
    """A copy there, its samples seeded as in the first step."""
    copied = copy.deepcopy(masker).to(device)
    masking.reseed({"weight": copied}, device, 0, 0)
    return copied


def test_the_kept_mask_is_the_one_that_the_cpu_keeps(strategy: Strategy, device: torch.device) -> None:
    masker, weight = attached(strategy, a_weight()), a_weight()
    there = on(device, masker)
    mask = there.mask(weight.to(device))
    assert mask.device.type == device.type
    assert torch.equal(mask.cpu(), masker.mask(weight))
    assert there.scale(weight.to(device)) == masker.scale(weight)


def test_evaluation_sees_the_weights_that_the_cpu_sees(strategy: Strategy, device: torch.device) -> None:
    masker, weight = attached(strategy, a_weight()).eval(), a_weight()
    seen = on(device, masker)(weight.to(device))
    assert torch.equal(seen.cpu(), weight * masker.mask(weight) * masker.scale(weight))


def test_training_samples_alike_twice_and_trains_what_it_says(strategy: Strategy, device: torch.device) -> None:
    masker = attached(strategy, a_weight()).train()
    weight = a_weight().to(device).requires_grad_(strategy.trains_weights)
    first, second = on(device, masker), on(device, masker)
    seen = first(weight)
    assert torch.equal(seen, second(weight))
    if seen.requires_grad:
        seen.square().sum().backward()
    assert (weight.grad is not None) == strategy.trains_weights
    for parameter in first.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("k", [0.0, 1e-5, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("levels", [0, 1, 100], ids=["floats", "constant", "many ties"])
def test_the_selection_is_the_cpus_bit_for_bit(k: float, levels: int, device: torch.device) -> None:
    magnitudes = torch.rand(SCORES, generator=torch.Generator().manual_seed(1))
    if levels:
        magnitudes = (magnitudes * levels).floor()
    kept = kept_count(SCORES, k)
    mask = top_k_mask(magnitudes.to(device), kept)
    assert int(mask.sum()) == kept
    assert torch.equal(mask.cpu(), top_k_mask(magnitudes, kept))


def test_a_search_there_gives_an_artifact_that_the_cpu_agrees_with(strategy: Strategy, device: torch.device) -> None:
    smaller = {"args": {"width": 0.25}}
    result = supermask.search("conv2", "digits", strategy=strategy, epochs=1, arch=smaller, device=device.type)
    digits = open_dataset("digits", root=Path("data"), image_size=8)
    scores = evaluate_artifact(result.artifact, load_into(result.artifact), digits, torch.device("cpu"), 500)
    # One of the 359 test pictures may stand on the edge between two classes.
    assert abs(scores.top1 - result.metrics["test_accuracy"]) <= 1.5 / 359
