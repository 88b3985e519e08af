"""The step of a search against the step that trains the dense network, and against the paper's Algorithm 1.

All of them are steps of the one trainer, in its precision and memory format, on pictures made up.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supermask import masking, registry
from supermask.bench import memory
from supermask.bench.report import Report, megabytes, of_measurements
from supermask.bench.timing import Action, Measurement, compare, exponent
from supermask.config import WeightsConfig, make_strategy, resolve
from supermask.data import EvaluationBatches, Share, TrainingBatches, View
from supermask.datasets import Augment, Dataset
from supermask.select import kept_count
from supermask.strategy import Masker, Strategy
from supermask.trainer import Trainer

CPU = torch.device("cpu")


class Network(NamedTuple):
    """An architecture at work on noise: pictures of `pixels`, `batch` of them a step, timed for `rounds` rounds."""

    arch: str
    pixels: int
    classes: int
    batch: int
    rounds: int
    args: Mapping[str, float] = {}

    @property
    def what(self) -> str:
        """Its name, with what is done to it."""
        return f"{self.arch}, {self.pixels} pixels, batch {self.batch}"

    @property
    def words(self) -> list[str]:
        """Its fields but the arguments, for another process."""
        return [self.arch, *map(str, (self.pixels, self.classes, self.batch, self.rounds))]

    @property
    def module(self) -> nn.Module:
        """A new one."""
        args = {"in_channels": 3, "image_size": self.pixels, "num_classes": self.classes}
        return registry.build(self.arch, {**args, **self.args})

    @property
    def n(self) -> int:
        """Its weights."""
        return sum(layer.n for layer in masking.plan(self.module, WeightsConfig()))


CONV4 = Network("conv4", 32, 10, 128, 31)
NETWORKS = [CONV4, Network("resnet18-cifar", 32, 10, 128, 11), Network("resnet50", 224, 1000, 16, 11)]
# At a batch that lets the weights weigh.
WIDTHS = [Network("conv4", 32, 10, 32, 9, {"width": width}) for width in (0.5, 1.0, 2.0, 4.0)]
SMALL_NETWORKS = [Network("conv2", 8, 10, 16, 3)]
SMALL_WIDTHS = [Network("conv2", 8, 10, 16, 3, {"width": width}) for width in (0.5, 1.0)]

# Steps on request, one for each line.
REFERENCE = """
import sys
import torch
from supermask.bench.step import AlgorithmOne, Network, of_network
arch, *numbers, device = sys.argv[1:]
take = of_network(Network(arch, *map(int, numbers)), AlgorithmOne(), torch.device(device), precision="float32")
for _ in sys.stdin:
    print(take().item(), flush=True)
"""

# In an epoch of `of_batches`.
STEPS = 10

# Memory of three steps, imports and all.
PEAK = """
import sys
from supermask.bench.memory import peak
from supermask.bench.step import Network, of_network
from supermask.device import keep_memory
keep_memory()
arch, *numbers, way = sys.argv[1:]
take = of_network(Network(arch, *map(int, numbers)), way)
for _ in range(3):
    take()
print(peak())
"""


def step(small: bool, device: torch.device) -> Report:
    """Seconds of one step for conv4 and resnet18-cifar at batch 128 and resnet50 at batch 16; conv2 if `small`.

    Algorithm 1 is the paper's, written from its text: a full sort of every layer's scores in every pass. In float32, in
    a process that leaves memory to the C library, it is what the papers' public code computes. A batch is what a step
    waits for before it begins.
    """
    rows: list[Measurement] = []
    for network in SMALL_NETWORKS if small else NETWORKS:
        with _reference(network, device) as reference:
            ways = {
                "dense": of_network(network, "dense", device),
                "edge-popup": of_network(network, "edge-popup", device),
                "Algorithm 1": of_network(network, AlgorithmOne(), device),
                "Algorithm 1 in float32, in a process of its own": reference,
                "a batch, cropped and flipped": of_batches(network, device),
            }
            rows += compare(network.what, ways, network.rounds, device)
    widths, grown = SMALL_WIDTHS if small else WIDTHS, []
    for network in widths:
        ways = {way: of_network(network, way, device) for way in ("dense", "edge-popup")}
        what = f"{network.arch} x {network.args['width']:g} ({network.n / 1e6:.1f} M weights), batch {network.batch}"
        grown += compare(what, ways, network.rounds, device)
    notes = [_growth(way, widths, grown) for way in ("dense", "edge-popup")]
    if device.type == "cpu":
        notes.append(_peak(SMALL_NETWORKS[0], processes=1) if small else _peak(CONV4, processes=5))
    return of_measurements(rows + grown, notes)


@contextmanager
def _reference(network: Network, device: torch.device) -> Iterator[Action]:
    words = [sys.executable, "-c", REFERENCE, *network.words, str(device)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to, of = process.stdin, process.stdout
        assert to is not None
        assert of is not None

        def take() -> float:
            print(file=to, flush=True)
            return float(of.readline())

        yield take  # leaving closes its input, which ends it


def _growth(way: str, networks: Sequence[Network], rows: Sequence[Measurement]) -> str:
    power = exponent([network.n for network in networks], [row.seconds for row in rows if row.way == way])
    return f"Over the widths, seconds of {way} grow as the number of weights to the power of {power:.2f}."


def _peak(network: Network, processes: int) -> str:
    peaks: dict[str, list[int]] = {"dense": [], "edge-popup": []}
    for _ in range(processes):
        for way, bytes_ in peaks.items():
            bytes_.append(memory.of(PEAK, *network.words, way))
    dense, searched = (statistics.median(bytes_) for bytes_ in peaks.values())
    return (
        f"Peak memory of a process that takes three steps of {network.arch} at batch {network.batch}, median of "
        f"{processes}: {megabytes(dense)} dense, {megabytes(searched)} edge-popup. A float for each weight is "
        f"{megabytes(4 * network.n)}."
    )


def of_network(network: Network, strategy: Strategy | str, device: torch.device = CPU, **settings: Any) -> Action:
    """One step of a search with these settings, to be called as often as one likes."""
    named = strategy if isinstance(strategy, str) else "edge-popup"
    config = resolve({"batch_size": network.batch, "strategy": {"name": named}}, settings)
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, {})
    model = network.module
    layers = masking.plan(model, config.weights, strategy.density)
    masking.draw_weights(model, layers, config.seed)
    maskers = masking.attach(model, layers, strategy, config.seed)
    batches = _batches(network, device, augment="none", n=network.batch)
    watch = EvaluationBatches(batches.split, batches.view, network.batch)
    trainer = Trainer(config, model.to(device), maskers, batches, watch, Share())
    trainer.network.train()
    passes = next(iter(batches.epoch(0)))
    return lambda: trainer.one_step(passes)


def of_batches(network: Network, device: torch.device) -> Action:
    """The next batch of a search, from memory, cropped and flipped at random."""
    batches = _batches(network, device, augment="crop-flip", n=STEPS * network.batch)
    steps = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
    return lambda: next(steps)


def _batches(network: Network, device: torch.device, *, augment: Augment, n: int) -> TrainingBatches:
    """Steps through `n` pictures of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, network.pixels, network.pixels), generator=generator, dtype=torch.uint8)
    labels = torch.randint(network.classes, (n,), generator=generator)
    classes = [str(label) for label in range(network.classes)]
    dataset = Dataset.from_arrays("noise", classes, (images, labels), (images, labels))
    view = View(network.pixels, dataset.mean, dataset.std, device)
    return TrainingBatches(
        dataset.train, view, batch_size=network.batch, accumulate=1, augment=augment, seed=0, share=Share()
    )


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
