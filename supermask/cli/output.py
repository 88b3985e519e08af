"""Results to stdout, as a table or as JSON; words to stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from supermask.errors import NotFoundError, UsageError

ArtifactName = Annotated[
    str | None,
    typer.Argument(
        metavar="ARTIFACT",
        help="Folder of an artifact or a run, or user/name[@revision] on the Hub.",
        show_default="runs/latest",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DataRoot = Annotated[str, typer.Option(help="Folder of downloaded data.", show_default=True)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=True)]


def names(kind: str) -> Callable[[], list[str]]:
    """Installed names of a kind, for the shell to complete."""

    def complete() -> list[str]:
        from supermask import registry

        return list(registry.recipes() if kind == "recipes" else registry.installed(kind))

    return complete


def print_json(result: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(result, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), numbers: Sequence[int] = ()) -> None:
    """A table on stdout; the columns in `numbers` are set to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, show_header=bool(header), pad_edge=False, header_style="bold")
    for row in rows:
        while len(table.columns) < len(row):
            table.add_column()
        # Text, since a cell's brackets are not rich's markup.
        table.add_row(*map(Text, row))
    for number in numbers:
        table.columns[number].justify = "right"
    # A pipe has no width: nothing is cut or wrapped for it.
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def percent(fraction: float) -> str:
    """0.98329 -> 98.33%."""
    return f"{100 * fraction:.2f}%"


def size(n: float) -> str:
    """Bytes as people read them, powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def speak() -> None:
    """Send the library's log to stderr: everything to a terminal, warnings alone elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("supermask")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if sys.stderr.isatty() else logging.WARNING)


def given_or_latest(name: str | None) -> str:
    """The artifact or run that was named, or the latest run here.

    Raises:
        NotFoundError: none was named and there is no run.
    """
    if name == "":
        raise UsageError("an empty name for the artifact; name a folder, or leave it out for the latest run")
    latest = Path("runs/latest")
    if name is None and not latest.exists():
        there = "leads nowhere" if latest.is_symlink() else "is not here"
        raise NotFoundError(f"no artifact named, and {latest} {there}; name a folder, or run supermask search first")
    return name or str(latest)
