"""The training loop: what a step is, what the schedule says, what is kept, and when it refuses to go on."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import supermask
from supermask import Dataset, NonFiniteLossError, StorageError, UsageError, masking
from supermask.api import execute
from supermask.config import ScheduleConfig, SearchConfig, make_strategy, resolve
from supermask.data import EvaluationBatches, Share, TrainingBatches, View
from supermask.evaluate import evaluate, evaluate_artifact
from supermask.randomness import generator
from supermask.run import create
from supermask.trainer import Progress, Trainer, learning_rate_factor
from supermask_strategies import Dense, EdgePopup

CPU = torch.device("cpu")


def stripes(n: int = 96, seed: int = 0) -> Dataset:
    """Three classes of 8x8 pictures that a small network tells apart: bright rows, bright columns, neither."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 1, 8, 8), generator=generator)
    images[labels == 0, :, ::2] += 180
    images[labels == 1, :, :, ::2] += 180
    pictures = images.to(torch.uint8)
    return Dataset.from_arrays("stripes", ["rows", "columns", "none"], (pictures, labels), (pictures, labels))


SMALL: dict[str, Any] = {"precision": "float32", "device": "cpu", "epochs": 2, "batch_size": 32}


@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (25, 0.5 + math.sqrt(0.125)), (50, 0.5), (75, 0.5 - math.sqrt(0.125))]
)
def test_the_cosine_falls_from_one_to_zero_epoch_by_epoch(epoch: int, factor: float) -> None:
    assert learning_rate_factor(ScheduleConfig(), 100, epoch) == pytest.approx(factor)


def test_warm_up_climbs_in_equal_steps_and_the_cosine_follows() -> None:
    schedule = ScheduleConfig(warmup_epochs=5)
    factors = [learning_rate_factor(schedule, 105, epoch) for epoch in range(105)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[55] == pytest.approx(0.5)
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_a_constant_schedule_stays() -> None:
    assert {learning_rate_factor(ScheduleConfig(name="constant"), 10, epoch) for epoch in range(10)} == {1.0}


def test_the_learning_rates_of_the_schedule_are_those_used(tmp_path: Path) -> None:
    supermask.search(
        "fc", stripes(), run_dir=tmp_path / "run", **{**SMALL, "epochs": 4, "optimizer": {"lr": 0.4, "momentum": 0.0}}
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    expected = [0.4 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [json.loads(line)["lr"] for line in lines] == pytest.approx(expected)


def trained(model: nn.Module, **settings: Any) -> tuple[nn.Module, masking.Maskers]:
    """One epoch of a search on a module, and what it left in it."""
    config = resolve(settings)
    dataset = stripes()
    strategy = make_strategy(config.strategy.name, config.strategy.options)
    layers = masking.plan(model, config.weights, strategy.density)
    masking.draw_weights(model, layers, config.seed)
    maskers = masking.attach(model, layers, strategy, config.seed)
    view = View(8, dataset.mean, dataset.std, CPU)
    batches = TrainingBatches(
        dataset.train,
        view,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        augment="none",
        seed=config.seed,
        share=Share(),
    )
    Trainer(config, model, maskers, batches, EvaluationBatches(dataset.test, view, 50), Share()).fit()
    return model, maskers


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))


def test_an_epoch_is_the_papers_update_written_out_by_hand() -> None:
    settings = {**SMALL, "epochs": 1, "batch_size": 48, "label_smoothing": 0.1, "seed": 3}
    settings["optimizer"] = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}
    _, maskers = trained(two_layers(), **settings)

    config = resolve(settings)
    reference = two_layers()
    layers = masking.plan(reference, config.weights, 0.5)
    masking.draw_weights(reference, layers, 3)
    weights = [reference.get_parameter(layer.name).detach() for layer in layers]
    strategy = EdgePopup(k=0.5)
    start = [generator(3, "attach", layer.name) for layer in layers]
    scores = [strategy.attach(w, g).get_parameter("scores").detach() for w, g in zip(weights, start, strict=True)]
    velocity = [torch.zeros_like(s) for s in scores]
    dataset = stripes()
    view = View(8, dataset.mean, dataset.std, CPU)
    batches = TrainingBatches(dataset.train, view, batch_size=48, accumulate=1, augment="none", seed=3, share=Share())
    for ((pictures, labels),) in batches.epoch(0):
        effective = [_by_sorting(s, 0.5) * w for s, w in zip(scores, weights, strict=True)]
        leaves = [e.clone().requires_grad_() for e in effective]
        logits = torch.tanh(pictures.flatten(1) @ leaves[0].T) @ leaves[1].T
        F.cross_entropy(logits, labels, label_smoothing=0.1).backward()
        for i, leaf in enumerate(leaves):
            assert leaf.grad is not None
            gradient = leaf.grad * weights[i] * torch.sign(scores[i]) + 0.01 * scores[i]
            velocity[i] = 0.9 * velocity[i] + gradient
            scores[i] = scores[i] - 0.5 * velocity[i]
    for masker, expected in zip(maskers.values(), scores, strict=True):
        torch.testing.assert_close(masker.get_parameter("scores").detach(), expected, rtol=1e-4, atol=1e-6)


def _by_sorting(scores: Tensor, k: float) -> Tensor:
    """GetSubnet of the paper's Algorithm 1."""
    order = scores.abs().flatten().sort(stable=True).indices
    mask = torch.zeros(scores.numel())
    mask[order[int((1 - k) * scores.numel()) :]] = 1
    return mask.view_as(scores)


@pytest.mark.parametrize("strategy", ["edge-popup", "dense"])
def test_accumulation_gives_the_steps_of_the_whole_batch(strategy: str) -> None:
    settings = {**SMALL, "strategy": {"name": strategy}, "optimizer": {"lr": 0.05}}
    whole, _ = trained(two_layers(), **settings)
    parts, _ = trained(two_layers(), **settings, accumulate=4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another() -> None:
    masks = [supermask.search("fc", stripes(), **SMALL, seed=seed).artifact.config.sha256.tensors for seed in (1, 1, 2)]
    assert masks[0] == masks[1] != masks[2]


def test_dropout_and_augmentation_depend_on_the_seed_alone() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.Dropout(0.5), nn.Linear(32, 3, bias=False))

    hashes = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        result = supermask.search(network(), stripes(), **SMALL, data={"augment": "crop-flip"})
        hashes.append(result.artifact.config.sha256.weights)
    assert hashes[0] == hashes[1]


def test_a_search_leaves_the_callers_generator_alone() -> None:
    network = two_layers()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(network, **SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_adam_learns_too() -> None:
    settings = {**SMALL, "epochs": 15, "optimizer": {"name": "adam", "lr": 0.01, "weight_decay": 0.0}}
    assert supermask.search("fc", stripes(), strategy=Dense(), **settings).metrics["test_accuracy"] > 0.9


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, lr: float) -> None:
    settings = {**SMALL, "epochs": 30, "batch_size": 8, "checkpoint_seconds": 0.0}
    settings["optimizer"] = {"lr": lr, "momentum": 0.0}
    with pytest.raises(NonFiniteLossError, match="try a lower --lr") as caught:
        supermask.search("fc", stripes(), strategy=Dense(), run_dir=tmp_path / "run", **settings)
    assert caught.value.exit_code == 1
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)["state"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_training_goes_on_while_a_slow_disk_takes_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(resolve({**SMALL, "arch": {"name": "fc"}, "epochs": 4, "checkpoint_seconds": 0.0}), tmp_path / "run")
    writing, disk = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(file: int) -> None:
        writing.set()
        assert disk.wait(60), "training waits for the disk"
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    meanwhile = 0

    def report(progress: Progress) -> None:
        nonlocal meanwhile
        if progress.epoch < 2:
            meanwhile += writing.is_set()
            assert not run.checkpoint.exists()
        else:
            disk.set()

    execute(run.config(), dataset=stripes(), open_run=lambda config: run, report=report)
    assert meanwhile >= 2
    assert torch.load(run.checkpoint, weights_only=True)["epoch"] == 4


def test_a_search_whose_last_checkpoint_cannot_be_written_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(resolve({**SMALL, "arch": {"name": "fc"}}), tmp_path / "run")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"checkpoint\.pt: No space left on device; .* --resume"):
        execute(run.config(), dataset=stripes(), open_run=lambda config: run)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.toml", "environment.json", "metrics.jsonl"]


def test_nothing_is_selected_on_the_test_set() -> None:
    with pytest.raises(UsageError, match=r"data\.validation"):
        resolve({"keep": "best"})


def test_the_best_epoch_on_the_held_out_pictures_is_kept(tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 6, "keep": "best", "data": {"validation": 0.25}, "optimizer": {"lr": 3.0}}
    result = supermask.search("fc", stripes(), run_dir=tmp_path / "run", **settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    accuracies = [line["validation_accuracy"] for line in lines]
    assert result.metrics["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert not any(key.startswith("test") for line in lines for key in line)


def test_what_is_reported_is_the_artifacts_own_accuracy(tmp_path: Path) -> None:
    dataset = stripes()
    result = supermask.search("fc", dataset, **SMALL)
    supermask.save(result, tmp_path / "artifact")
    scores = evaluate_artifact(
        supermask.read(tmp_path / "artifact"), supermask.load(tmp_path / "artifact"), dataset, CPU
    )
    assert (scores.top1, scores.loss) == (result.metrics["test_accuracy"], result.metrics["test_loss"])


def test_top_1_and_top_5_are_counted_right() -> None:
    dataset = stripes()
    logits = torch.zeros(96, 7)
    logits[torch.arange(96), (dataset.test.labels + torch.arange(96) % 7) % 7] = 1  # the right class first for 0 mod 7
    logits += torch.arange(7) * 1e-3
    rows = iter(range(0, 96, 50))

    class Fixed(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            start = next(rows)
            return logits[start : start + len(pictures)]

    scores = evaluate(Fixed(), EvaluationBatches(dataset.test, View(8, (0.0,), (1.0,), CPU), 50))
    ranks = (logits > logits.gather(1, dataset.test.labels[:, None])).sum(1)
    assert scores.n == 96
    assert scores.top1 == int((ranks == 0).sum()) / 96
    assert scores.top5 == int((ranks < 5).sum()) / 96
    assert scores.loss == pytest.approx(float(F.cross_entropy(logits, dataset.test.labels)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_is_watched_in_the_precision_that_it_is_trained_in(precision: str) -> None:
    model, seen = two_layers(), set()
    model.register_forward_hook(lambda module, args, logits: seen.add((module.training, logits.dtype)))
    trained(model, **{**SMALL, "epochs": 1, "precision": precision})
    assert seen == {(training, getattr(torch, precision)) for training in (True, False)}


def test_batch_norm_statistics_belong_to_the_result(tmp_path: Path) -> None:
    result = supermask.search("resnet18-cifar", stripes(24), **{**SMALL, "epochs": 1, "batch_size": 8})
    supermask.save(result, tmp_path)
    state = supermask.load(tmp_path).state_dict()
    assert int(state["bn1.num_batches_tracked"]) == 3
    assert not torch.equal(state["bn1.running_var"], torch.ones(64))


def test_the_resolved_configuration_says_where_and_how_precisely() -> None:
    result = supermask.search("fc", stripes(), epochs=1, device="cpu")
    config: SearchConfig = result.config
    assert config.device == "cpu"
    assert config.precision in {"float32", "bfloat16"}
    assert config.strategy.options == {"k": 0.5, "score_init": "kaiming-uniform"}
