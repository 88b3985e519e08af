"""The one training loop that every strategy shares."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

from supermask import checkpoint, distributed, masking
from supermask.config import OptimizerConfig, ScheduleConfig, SearchConfig
from supermask.data import Batch, EvaluationBatches, Share, TrainingBatches
from supermask.device import pick_precision
from supermask.errors import Interrupted, NonFiniteLossError
from supermask.evaluate import evaluate
from supermask.randomness import derive
from supermask.run import Record, Run

# How many steps pass between looks at the loss and, with several processes, at the wish to stop: each look waits for
# the device.
LOOK_EVERY = 20


@dataclass(frozen=True)
class Progress:
    """Where training stands: told after every step, and with the epoch's record after every epoch."""

    epoch: int
    step: int
    steps: int
    record: Record | None = None


Report = Callable[[Progress], None]


def make_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> Optimizer:
    """SGD or Adam over `parameters`, in torch's fused form."""
    if config.name == "adam":
        return Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def learning_rate_factor(config: ScheduleConfig, epochs: int, epoch: int) -> float:
    """What the learning rate is multiplied by in `epoch`: linear warm-up, then a cosine from 1 to 0 or a constant."""
    if epoch < config.warmup_epochs:
        return (epoch + 1) / config.warmup_epochs
    if config.name == "constant":
        return 1.0
    past = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * past))


class Trainer:
    """Trains what requires gradients in a model with maskers, and can be stopped and resumed at any step."""

    def __init__(
        self,
        config: SearchConfig,
        model: nn.Module,
        maskers: masking.Maskers,
        batches: TrainingBatches,
        watch: EvaluationBatches,
        share: Share,
        run: Run | None = None,
        report: Report = lambda progress: None,
    ) -> None:
        self.config, self.model, self.maskers = config, model, maskers
        self.batches, self.watch, self.share = batches, watch, share
        self.run, self.report = run, report
        self.device = batches.view.device
        self.precision = pick_precision(config.precision, self.device)
        self.weights = {name: masking.original(model, name) for name in maskers}
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A random subnetwork may have nothing to train but the statistics of its batch norms.
        self.optimizer = make_optimizer(config.optimizer, self.trained) if self.trained else None
        self.network = self._for_all_processes()
        # Evaluation stays with the model itself: other shapes, and without gradients other graphs.
        self.forward = torch.compile(self.network) if config.compile else self.network
        self.epoch = self.step = 0
        # Sums over the epoch's pictures so far: loss, and whether they were right. Adding never waits for the device.
        self.sums = torch.zeros(2, device=self.device)
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": None, "state": None}
        self.saved_at = time.monotonic()
        self.writer = checkpoint.Writer()

    def _for_all_processes(self) -> nn.Module:
        if self.share.world_size == 1 or not self.trained:
            return self.model
        if self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        return DistributedDataParallel(self.model)

    def fit(self) -> None:
        """Train to the last epoch, from wherever the trainer stands, and leave the kept epoch's state in the model.

        Raises:
            Interrupted: Ctrl-C; the step was finished and a checkpoint saved.
            NonFiniteLossError: the loss is NaN or infinite; the last good checkpoint is kept.
            StorageError: the run folder cannot be written.
        """
        with _polite_stop() as wish, torch.random.fork_rng(devices=_generators(self.device)), self.writer:
            while self.epoch < self.config.epochs:
                self._one_epoch(wish)
            self.writer.wait()
        if self.config.keep == "best" and self.best["state"] is not None:
            self._load_state(self.best["state"])

    def _one_epoch(self, wish: Wish) -> None:
        self.network.train()
        factor = learning_rate_factor(self.config.schedule, self.config.epochs, self.epoch)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.optimizer.lr * factor
        began = time.monotonic()
        for passes in self.batches.epoch(self.epoch, self.step):
            loss = self.one_step(passes)
            self.step += 1
            if self._looks() or self.device.type == "cpu":
                self._require_finite(loss.item(), trained=self._looks())
            self.report(Progress(self.epoch, self.step, self.batches.steps))
            self._stop_or_save(wish)
        self._close_epoch(time.monotonic() - began, factor)
        self._stop_or_save(wish)

    def _looks(self) -> bool:
        """Whether this is a moment to wait for the device and the other processes: now and then, and between epochs."""
        return self.step % LOOK_EVERY == 0

    def one_step(self, passes: list[Batch]) -> Tensor:
        """One optimiser step; returns the mean loss of its pictures."""
        masking.reseed(self.maskers, self.device, self.config.seed, self.epoch, self.step)
        self._seed_dropout(derive(self.config.seed, "network", self.epoch, self.step, self.share.rank))
        total = torch.zeros((), device=self.device)
        for number, (pictures, labels) in enumerate(passes, 1):
            with self._without_reduction() if number < len(passes) else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
                    logits = self.forward(pictures)
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
                if self.optimizer is not None:
                    (loss / len(passes)).backward()
            total += loss.detach() / len(passes)
            right = (logits.detach().argmax(1) == labels).sum()
            self.sums += torch.stack([loss.detach() * len(labels), right])
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        with torch.no_grad():
            for name, masker in self.maskers.items():
                masker.after_step(self.weights[name], self.epoch * self.batches.steps + self.step)
        return total

    def _seed_dropout(self, seed: int) -> None:
        """Seed the global generators, which dropout draws from, in the networks that have it."""
        # torch.manual_seed also asks for devices that are not there, which takes 0.2 ms.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _without_reduction(self) -> Any:
        return self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext()

    def _require_finite(self, loss: float, trained: bool) -> None:
        """Stop unless the loss is finite and, if `trained`, everything that is trained too.

        Scores can become NaN behind a finite loss: such scores keep no weight at all.
        """
        if math.isfinite(loss) and (not trained or self._trained_are_finite()):
            return
        what = "what is trained became NaN or infinite" if math.isfinite(loss) else f"the loss became {loss}"
        when = f"in epoch {self.epoch + 1}, step {self.step}"
        self.writer.wait()
        kept = f"; the last good checkpoint is in {self.run.path}" if self.run and self.run.checkpoint.exists() else ""
        raise NonFiniteLossError(f"{what} {when}; try a lower --lr than {self.config.optimizer.lr}{kept}")

    def _trained_are_finite(self) -> bool:
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(self.trained)).item())

    def _close_epoch(self, seconds: float, factor: float) -> None:
        pictures = self.batches.steps * self.batches.batch_size
        loss, right = distributed.summed(self.sums).tolist()
        self._require_finite(loss, trained=True)
        seen = evaluate(self.model, self.watch, self.precision)
        part = "validation" if self.config.data.validation else "test"
        record = {
            "epoch": self.epoch + 1,
            "lr": self.config.optimizer.lr * factor,
            "train_loss": loss / pictures,
            "train_accuracy": right / pictures,
            f"{part}_accuracy": seen.top1,
            f"{part}_top5": seen.top5,
            f"{part}_loss": seen.loss,
            "seconds": round(seconds, 3),
        }
        if self.config.keep == "best" and seen.top1 > self.best["accuracy"]:
            best = {name: value.clone() for name, value in self._state().items()}
            self.best = {"accuracy": seen.top1, "epoch": self.epoch + 1, "state": best}
        self.epoch, self.step = self.epoch + 1, 0
        self.sums.zero_()
        if self.run is not None and self.share.rank == 0:
            self.run.append(record)
        self.report(Progress(self.epoch, 0, self.batches.steps, record=record))
        if self.epoch == self.config.epochs:
            self.save()

    def _stop_or_save(self, wish: Wish) -> None:
        # A disk that is slower than that decides how often, and training goes on. The first process alone writes.
        free = self.share.rank == 0 and not self.writer.busy()
        due = free and time.monotonic() - self.saved_at >= self.config.checkpoint_seconds
        stop, due = self._agreed(wish.stop, due)
        if stop or due:
            self.save()
        if stop:
            self.writer.wait()
            where = f"; continue with: supermask search --resume --run-dir {self.run.path}" if self.run else ""
            raise Interrupted(
                f"stopped in epoch {self.epoch + 1} after step {self.step} of {self.batches.steps}{where}"
            )

    def _agreed(self, *wishes: bool) -> list[bool]:
        """What any process wishes. They must act at the same step, or some would wait for others for ever."""
        if self.share.world_size == 1:
            return list(wishes)
        if not self._looks():
            return [False] * len(wishes)
        return [bool(votes) for votes in distributed.summed(torch.tensor(wishes, device=self.device).int()).tolist()]

    def save(self) -> None:
        """Begin to write the checkpoint, if there is a run folder and what it would keep is finite.

        All processes take part.
        """
        self.saved_at = time.monotonic()
        sums = distributed.summed(self.sums.clone())
        if self.run is None or self.share.rank != 0:
            return
        if not (math.isfinite(sums[0].item()) and self._trained_are_finite()):
            return
        content = {
            "config": self.config.model_dump_json(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": sums.cpu(),
            "state": self._state(),
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
            "best": self.best,
        }
        self.writer.save(self.run.checkpoint, content)

    def restore(self, content: checkpoint.Checkpoint) -> None:
        """Stand where the checkpoint stood.

        Raises:
            KeyError, RuntimeError, ValueError: it is not one of this search.
        """
        self.epoch, self.step, self.best = content["epoch"], content["step"], content["best"]
        if self.share.rank == 0:  # the sums of all processes
            self.sums.copy_(content["sums"])
        self._load_state(content["state"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(content["optimizer"])

    def _state(self) -> dict[str, Tensor]:
        """What training changes. Weights that only the seed determines are left out: they are drawn again."""
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        return {name: value.detach() for name, value in self.model.state_dict().items() if name not in frozen}

    def _load_state(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state, strict=False)


@dataclass
class Wish:
    """Whether the user has asked to stop."""

    stop: bool = False


@contextmanager
def _polite_stop() -> Iterator[Wish]:
    """Turn the first Ctrl-C (or SIGTERM, as schedulers send) into a wish; the second one acts as it did before."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        wish.stop = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _generators(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
