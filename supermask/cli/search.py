"""supermask search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supermask.cli import interrupt
from supermask.cli.output import AsJson, names, percent, print_json, print_table, size, speak

if TYPE_CHECKING:
    from supermask.api import Result
    from supermask.config import SearchConfig
    from supermask.trainer import Progress, Report

EXAMPLES = """
Examples:

    supermask search

    supermask search --strategy edge-popup --arch resnet50 --k 0.3

    supermask search --recipe conv4-cifar10 --epochs 10 --seed 1

    supermask search --data folder:pictures --arch resnet18-cifar

    supermask search --arch fc --set "arch.args.widths=[250, 250]"

    supermask search --resume

    torchrun --nproc-per-node 2 -m supermask search
"""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLES)(search)


def search(  # noqa: PLR0913, PLR0917 - one parameter for each flag
    strategy: Annotated[
        str | None,
        typer.Option(help="See supermask strategies.", show_default="edge-popup", autocompletion=names("strategies")),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="See supermask zoo.", show_default="conv2", autocompletion=names("architectures")),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, mnist, cifar10, ..., imagenet or folder:PATH.",
            show_default="digits",
            autocompletion=names("datasets"),
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="See supermask recipes; or a TOML file.", autocompletion=names("recipes")),
    ] = None,
    k: Annotated[
        float | None, typer.Option(help="Fraction of weights KEPT, above 0 and at most 1.", show_default="0.5")
    ] = None,
    distribution: Annotated[str | None, typer.Option(help="Of the weights.", show_default="signed-constant")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.", show_default="20")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures a step, over all processes.", show_default="32")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate.", show_default="the strategy's: 0.1, bernoulli 200, dense and dnw 0.01"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.", show_default="0")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="auto")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Train what torch.compile makes of the network; needs a C++ compiler.")
    ] = False,
    data_root: Annotated[str | None, typer.Option(help="Folder of downloaded data.", show_default="data")] = None,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out unreadable pictures.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of config.toml, such as optimizer.momentum=0.8."),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="a new one in runs/")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir, or the latest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find a subnetwork in a network nobody trained, and keep it as an artifact.

    With no options: edge-popup masks on a small convolutional network and the handwritten digits that come along.
    Settings come from defaults, then the recipe, then these options and --set.
    """
    speak()
    from supermask import api
    from supermask import run as runs
    from supermask.config import load_recipe, merged, resolve, setting

    interrupt.check()
    flags = _layer(
        {
            "strategy.name": strategy,
            "strategy.options.k": k,
            "arch.name": arch,
            "data.name": data,
            "data.root": data_root,
            "data.skip_corrupt": skip_corrupt or None,
            "weights.distribution": distribution,
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer.lr": lr,
            "seed": seed,
            "device": device,
            "compile": compile_ or None,
        }
    )
    layers = [load_recipe(recipe) if recipe else {}, merged(flags, *map(setting, settings or []))]
    if resume:
        run = runs.Run(run_dir or runs.LATEST)
        config = api.resume_config(run, *layers)
    else:
        config = resolve(*layers)

    def open_run(config: SearchConfig) -> runs.Run:
        return run if resume else runs.create(config, run_dir)

    with _progress(config.epochs) as report:
        result = api.execute(config, open_run=open_run, resume=resume, report=report)
    if result is not None:
        _print(result, as_json)


def _layer(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, from dotted keys to nested tables."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        if value is not None:
            *tables, key = path.split(".")
            table = nested
            for name in tables:
                table = table.setdefault(name, {})
            table[key] = value
    return nested


@contextmanager
def _progress(epochs: int) -> Iterator[Report]:
    """A bar on stderr, on a terminal only, for the first process only."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from supermask.distributed import rank

    console = Console(stderr=True)
    shown = console.is_terminal and rank() == 0
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[seen]}")
    with Bar(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("preparing", total=None, seen="")

        def report(progress: Progress) -> None:
            done = progress.epoch * progress.steps + progress.step
            words = f"epoch {min(progress.epoch + 1, epochs)}/{epochs}"
            bar.update(task, description=words, total=epochs * progress.steps, completed=done)
            if progress.record is not None:
                accuracies = {key: value for key, value in progress.record.items() if key.endswith("_accuracy")}
                words = ", ".join(
                    f"{key.removesuffix('_accuracy')} {percent(value)}" for key, value in accuracies.items()
                )
                bar.update(task, seen=words)

        yield report


def _print(result: Result, as_json: bool) -> None:
    artifact, metrics = result.artifact, result.metrics
    layers = artifact.config.layers
    kept, total = sum(layer.kept for layer in layers), sum(layer.n for layer in layers)
    assert result.run is not None
    if as_json:
        summary = {
            **metrics,
            "kept": kept,
            "weights": total,
            "artifact_bytes": artifact.size,
            "float32_bytes": 4 * total,
        }
        print_json({**summary, "artifact": str(result.run.artifact), "config": result.config.model_dump(mode="json")})
        return
    config = result.config
    rows = [("subnetwork", metrics["test_accuracy"])]
    if "sampled_accuracy_mean" in metrics:
        rows.append(("mean of 10 sampled networks", metrics["sampled_accuracy_mean"]))
    rows += [
        ("untouched random network", metrics["random_network_accuracy"]),
        (f"random mask that keeps as many ({percent(kept / total)})", metrics["random_mask_accuracy"]),
    ]
    title = f"{config.strategy.name} on {config.arch.name}"
    print_table(
        [(name, percent(accuracy)) for name, accuracy in rows],
        header=(title, f"accuracy on {metrics['test_pictures']:,} test pictures of {config.data.name}"),
        numbers=(1,),
    )
    print()
    ratio = 4 * total / artifact.size
    print_table(
        [
            ("weights kept", f"{kept:,} of {total:,}"),
            ("artifact", f"{size(artifact.size)} ({size(4 * total)} as float32, {ratio:.1f} times as much)"),
            ("in", str(result.run.artifact)),
        ]
    )
