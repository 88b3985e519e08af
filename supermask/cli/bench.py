"""supermask bench: what things cost on this machine, each against its baseline."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supermask.cli import interrupt
from supermask.cli.output import AsJson, Device, print_json, print_table, speak
from supermask.errors import UsageError, did_you_mean
from supermask.files import write_atomically

if TYPE_CHECKING:
    from supermask.bench.report import Report

BENCHMARKS = ("step", "compiled", "select", "codec", "export", "startup")
ON_DEVICE = ("step", "compiled", "select")
EPILOG = """
Examples:

    supermask bench step

    supermask bench export --into docs/export.md

    supermask bench select --device cuda --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EPILOG)(bench)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(BENCHMARKS)}.",
            show_default=False,
            autocompletion=lambda: list(BENCHMARKS),
            metavar="NAME",
        ),
    ],
    small: Annotated[bool, typer.Option("--small", help="On small things, to see that it works.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(metavar="PAGE", help="Put the table into a Markdown page, after <!-- bench NAME -->."),
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure on this machine: each way of doing a thing in turn with its baseline, medians over n rounds.

    step: a search's step against dense training and the paper's Algorithm 1. compiled: the step under torch.compile.
    select: the top-k selection. codec: seed and mask against a dense file. export: ONNX files. startup: until anything
    happens.
    """
    speak()
    if name not in BENCHMARKS:
        raise UsageError(f"no benchmark {name!r}; {did_you_mean(name, BENCHMARKS)}")
    from supermask.bench.report import markdown, place_in
    from supermask.bench.timing import machine
    from supermask.device import keep_memory, pick_device

    interrupt.check()
    where = pick_device(device)
    if name in ON_DEVICE:
        keep_memory()  # as a search does
    elif where.type != "cpu":
        raise UsageError(f"--device {device}: the benchmark {name} runs on the CPU alone")
    benchmark: Any = getattr(import_module(f"supermask.bench.{name}"), name)
    page = place_in(into, name) if into else None
    report: Report = benchmark(small, where) if name in ON_DEVICE else benchmark(small)
    about = machine(where)
    if into and page:
        words = f"supermask bench {name}" + (f" --device {device}" if where.type != "cpu" else "")
        section = markdown(report, words, about, f"{datetime.now(UTC):%Y-%m-%d}")
        write_atomically(into, f"{page[0]}{section}\n{page[1]}".encode())
    if as_json:
        print_json({"benchmark": name, "machine": about, "results": report.records, "notes": report.notes})
        return
    print_table(report.rows, header=report.header)
    for note in report.notes:
        print(f"\n{note}")
