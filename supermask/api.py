"""The Python interface: search."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supermask import artifact as artifacts
from supermask import checkpoint, distributed, masking, registry
from supermask.artifact import Artifact
from supermask.config import SearchConfig, first_difference, make_strategy, merged, resolve
from supermask.data import EvaluationBatches, Share, TrainingBatches, View, hold_out
from supermask.datasets import Dataset
from supermask.device import keep_memory, pick_device, pick_precision, reported_memory, without_compiler
from supermask.errors import UsageError
from supermask.evaluate import at_once, evaluate
from supermask.floors import floors
from supermask.manifest import UNHASHED, ArchEntry, ArtifactConfig, InputEntry, LayerEntry, StrategyEntry
from supermask.network import OWN_MODULE, admit, for_data, load_into, own_copy
from supermask.run import Run, create
from supermask.strategy import Strategy
from supermask.trainer import Report, Trainer

SAMPLES = 10  # networks that Zhou et al. sample for the accuracy they report

OpenRun = Callable[[SearchConfig], Run]


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        model: the subnetwork, a plain module in evaluation mode; takes normalised float32 [N, C, H, W].
        artifact: the subnetwork as it is kept; `supermask.save` writes it.
        metrics: accuracies as fractions, as in the artifact.
        config: the resolved configuration.
        run: the run folder, if there is one.
    """

    model: nn.Module
    artifact: Artifact
    metrics: Mapping[str, Any]
    config: SearchConfig
    run: Run | None


def search(
    model_or_arch: nn.Module | str = "conv2",
    data: Dataset | str = "digits",
    /,
    *,
    strategy: Strategy | str = "edge-popup",
    run_dir: Path | str | None = None,
    resume: bool = False,
    **settings: Any,
) -> Result:
    """Find a subnetwork in a network nobody trained.

        from supermask_strategies import EdgePopup
        result = supermask.search("conv4", "cifar10", strategy=EdgePopup(k=0.5), epochs=10, optimizer={"lr": 0.1})
        supermask.save(result, "my-artifact")

    Args:
        model_or_arch: an installed architecture's name (`arch={"args": {...}}` gives it arguments), or any module that
            maps float32 pictures [N, C, H, W] to logits [N, classes]. A module is copied, in float32, and the weights
            of its linear, convolution and attention layers are drawn anew and masked; every other parameter that it has
            (biases, norms' scales and shifts, embeddings, recurrent cells) is trained beside the mask.
        data: an installed data set's name, or `Dataset.from_arrays(...)`.
        strategy: what to search for (EdgePopup: Ramanujan et al. 2020, section 3.2; Bernoulli: Zhou et al. 2019;
            DNW: Wortsman et al. 2019), or an installed strategy's name with its defaults.
        run_dir: folder for metrics, checkpoints and the artifact; nothing is written without one.
        resume: continue the run in `run_dir`.
        settings: keys of `SearchConfig`: seed, epochs, device, optimizer={"lr": 0.1}, data={"validation": 0.1}, ...

    Returns:
        The subnetwork, as a module and as an artifact.

    Raises:
        UsageError: an unknown name, option or value, or data that the architecture cannot take.
        NotFoundError: data that is not there.
        NonFiniteLossError, DeviceMemoryError, StorageError, Interrupted: as their names say.
    """
    if isinstance(strategy, Strategy):
        chosen = {"name": registry.strategy_name(strategy), "options": strategy.model_dump(mode="json")}
    else:
        chosen = {"name": strategy}
    module = None if isinstance(model_or_arch, str) else own_copy(model_or_arch)
    arch = model_or_arch if isinstance(model_or_arch, str) else f"{OWN_MODULE}{type(model_or_arch).__qualname__}"
    named = {"strategy": chosen, "arch": {"name": arch}, "data": {"name": data if isinstance(data, str) else data.name}}
    if run_dir is None:
        if resume:
            raise UsageError("resume needs run_dir, the folder of the run to continue")
        config, open_run = resolve(merged(named), settings, named), None
    else:
        folder = Path(run_dir)
        config = resume_config(Run(folder), settings, named) if resume else resolve(merged(named), settings, named)

        def open_run(config: SearchConfig) -> Run:
            return Run(folder) if resume else create(config, folder)

    pictures = None if isinstance(data, str) else data
    result = execute(config, module=module, dataset=pictures, open_run=open_run, resume=resume)
    assert result is not None, "in a group of processes, call execute(), which gives the result to the first one only"
    return result


def resume_config(run: Run, *layers: Mapping[str, Any]) -> SearchConfig:
    """The configuration of a run to continue; `layers` may repeat it but not change it.

    Raises:
        NotFoundError: there is no run.
        UsageError: a layer asks for something else.
    """
    stored = run.config()
    asked = resolve(*layers, base=stored.model_dump(mode="json", exclude_none=True))
    # Where a run computes and finds its data may change; what it computes may not.
    place = {"device": asked.device, "checkpoint_seconds": asked.checkpoint_seconds}
    data = stored.data.model_copy(update={"root": asked.data.root, "workers": asked.data.workers})
    moved = stored.model_copy(update={**place, "data": data})
    if asked.precision == "auto":
        asked = asked.model_copy(update={"precision": stored.precision})
    difference = first_difference(moved, asked)
    if difference:
        raise UsageError(f"the run in {run.path} has {difference}; a resumed run cannot be changed: start another")
    return moved


def execute(
    config: SearchConfig,
    *,
    module: nn.Module | None = None,
    dataset: Dataset | None = None,
    open_run: OpenRun | None = None,
    resume: bool = False,
    report: Report = lambda progress: None,
) -> Result | None:
    """Run the search that `config` describes; with several processes, all of them call this.

    Args:
        config: resolved.
        module: the plain module to search, instead of the configured architecture.
        dataset: the pictures, instead of the configured ones.
        open_run: makes or opens the run folder, called in the first process when everything else is known to be sound.
        resume: continue from the run folder's checkpoint.
        report: told of progress.

    Returns:
        The result, in the first process; None in the others.
    """
    device = pick_device(config.device, distributed.local_rank())
    keep_memory()
    if config.compile and (fault := without_compiler(device)):
        raise UsageError(f"{fault}; leave out --compile")
    precision = pick_precision(config.precision, device)
    # "cuda" stays without a number: resumed by torchrun, each process takes its own GPU again.
    kind = device.type if config.device == "auto" else config.device
    config = config.model_copy(
        update={"device": kind, "precision": "bfloat16" if precision == torch.bfloat16 else "float32"}
    )
    with distributed.processes(device) as share, reported_memory(config.batch_size, config.accumulate):
        dataset = dataset or _open_in_turn(config, share)
        plain, args = for_data(config, dataset) if module is None else (module, {})
        size = args.get("image_size") or config.data.image_size or dataset.image_size
        if module is not None:
            admit(module, dataset, size)
        view = View(size, dataset.mean, dataset.std, device)
        training, held_out = hold_out(dataset, config.data.validation, config.seed)
        batches = TrainingBatches(
            training.train,
            view,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            augment=dataset.augment if config.data.augment == "auto" else config.data.augment,
            seed=config.seed,
            share=share,
        )
        # Without gradients four times as many pictures fit as in a pass of training.
        most = min(at_once(device), 4 * config.batch_size // (config.accumulate * share.world_size))
        watch = EvaluationBatches(held_out or dataset.test, view, most, share)
        found = _Search(config, plain, args, dataset, view)
        run = open_run(config) if open_run and (share.rank == 0 or resume) else None
        trainer = Trainer(config, found.model, found.maskers, batches, watch, share, run, report)
        stored = checkpoint.load(run.checkpoint) if run and resume else None
        if run and stored is not None:
            _restore(trainer, stored, run)
        if run and resume and share.rank == 0:
            run.forget_after(trainer.epoch)
        trainer.fit()
        found.require_one_mask_everywhere()
    if share.rank != 0:
        return None
    with reported_memory(config.batch_size, config.accumulate):
        return found.finish(batches, EvaluationBatches(dataset.test, view, most), run, trainer.best["epoch"])


def _restore(trainer: Trainer, stored: checkpoint.Checkpoint, run: Run) -> None:
    """Let the trainer stand where the checkpoint stood.

    Raises:
        IntegrityError: the checkpoint is none, or of another search than config.toml says.
    """
    try:
        difference = first_difference(_where_apart(stored["config"]), _where_apart(trainer.config.model_dump_json()))
        if difference is None:
            trainer.restore(stored)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise checkpoint.damaged(run.checkpoint, error) from error
    if difference is not None:
        raise checkpoint.damaged(run.checkpoint, f"it is of a search with {difference}")


def _where_apart(config: str) -> SearchConfig:
    """The configuration without where it computes and finds its data."""
    read = SearchConfig.model_validate_json(config)
    nowhere = {"root": "", "workers": 0}
    return read.model_copy(
        update={"device": "", "checkpoint_seconds": 0.0, "data": read.data.model_copy(update=nowhere)}
    )


def _open_in_turn(config: SearchConfig, share: Share) -> Dataset:
    """The configured data, opened by the first process first, which may download, decode and cache it for all."""
    for turn in (True, False):
        if (share.rank == 0) == turn:
            dataset = registry.open_dataset(
                config.data.name,
                root=Path(config.data.root),
                image_size=config.data.image_size,
                skip_corrupt=config.data.skip_corrupt,
                workers=config.data.workers,
            )
        distributed.barrier()
    return dataset


class _Search:
    """One network under search: drawn, with a strategy attached; later baked, measured and kept."""

    def __init__(
        self, config: SearchConfig, plain: nn.Module, args: dict[str, Any], dataset: Dataset, view: View
    ) -> None:
        self.config, self.args, self.dataset, self.view = config, args, dataset, view
        self.strategy = make_strategy(config.strategy.name, config.strategy.options)
        self.layers = masking.plan(plain, config.weights, self.strategy.density)
        masking.draw_weights(plain, self.layers, config.seed)
        self.plain = copy.deepcopy(plain)
        for layer in self.layers:
            # Drawn or decoded anew in every copy of it; until then they take no memory.
            self.plain.get_parameter(layer.name).data = torch.zeros(()).expand(layer.shape)
        self.maskers = masking.attach(plain, self.layers, self.strategy, config.seed)
        self.model = plain.to(view.device)

    def require_one_mask_everywhere(self) -> None:
        """Check that every process found the same mask, as reduced gradients and shared sampling promise."""
        masks = masking.masks(self.model, self.maskers)
        hashes = distributed.gathered(masking.hash_of(masks))
        assert len(set(hashes)) == 1, f"the processes ended with different masks: {hashes}"

    def finish(
        self, batches: TrainingBatches, test: EvaluationBatches, run: Run | None, best_epoch: int | None
    ) -> Result:
        """Bake, measure in float32 on the test pictures, and write the artifact."""
        artifact = self._artifact(best_epoch)
        subnetwork = load_into(artifact, copy.deepcopy(self.plain)).to(self.view.device)
        scores = evaluate(subnetwork, test)
        metrics: dict[str, Any] = {
            "test_accuracy": scores.top1,
            "test_top5": scores.top5,
            "test_loss": scores.loss,
            "test_pictures": scores.n,
        }
        if best_epoch is not None:
            metrics["best_epoch"] = best_epoch
        if self.strategy.stochastic:
            sampled = [self._sampled(test, sample) for sample in range(SAMPLES)]
            metrics["sampled_accuracy_mean"] = statistics.mean(sampled)
            metrics["sampled_accuracy_std"] = statistics.stdev(sampled)
        kept = {layer.name: layer.kept for layer in artifact.config.layers}
        metrics |= floors(self.plain, self.layers, kept, self.config.seed, batches, test)
        artifact = artifacts.with_metrics(artifact, metrics)
        if run is not None:
            artifacts.write(artifact, run.artifact)
        return Result(subnetwork.cpu(), artifact, metrics, self.config, run)

    def _sampled(self, test: EvaluationBatches, sample: int) -> float:
        masking.reseed(self.maskers, self.view.device, self.config.seed, "sample", sample)
        return evaluate(self.model, test, sampling=self.maskers.values()).top1

    def _artifact(self, best_epoch: int | None) -> Artifact:
        masks = masking.masks(self.model, self.maskers)
        values: dict[str, Tensor] = {}
        entries = []
        for layer in self.layers:
            weight = masking.original(self.model, layer.name).cpu()
            scale = self.maskers[layer.name].scale(weight) if layer.masked else 1.0
            if self.strategy.trains_weights:
                values[layer.name] = weight * scale
            entries.append(
                LayerEntry(
                    name=layer.name,
                    shape=list(layer.shape),
                    masked=layer.masked,
                    kept=int(masks[layer.name].sum()) if layer.masked else layer.n,
                    values="stored" if self.strategy.trains_weights else "seed",
                    distribution=layer.distribution,
                    std=layer.std * scale,
                )
            )
        config = self.config
        about = ArtifactConfig(
            arch=ArchEntry(name=config.arch.name, args=self.args),
            seed=config.seed,
            strategy=StrategyEntry(name=config.strategy.name, options=config.strategy.options),
            layers=entries,
            input=InputEntry(
                shape=[self.dataset.channels, self.view.image_size, self.view.image_size],
                mean=list(self.dataset.mean),
                std=list(self.dataset.std),
            ),
            labels=list(self.dataset.classes),
            provenance={
                "dataset": self.dataset.name,
                "recipe": config.recipe,
                "supermask": version("supermask"),
                "torch": torch.__version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                # Without the folder of the data, which tells about its owner's machine and nothing else.
                "config": config.model_dump(mode="json", exclude_none=True, exclude={"data": {"root"}}),
            },
            sha256=UNHASHED,
        )
        return artifacts.encode(about, masks, values, masking.plain_state(self.model, self.layers))
