"""What a benchmark found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from supermask.bench.timing import Measurement
from supermask.errors import NotFoundError, UsageError


@dataclass(frozen=True)
class Report:
    """The result of a benchmark.

    Attributes:
        header: of the columns.
        rows: figures as people read them.
        records: the same for programs: seconds, bytes and ratios as numbers.
        notes: sentences on what the figures say together.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[dict[str, Any]]
    notes: Sequence[str] = field(default_factory=list)


def of_measurements(measurements: Sequence[Measurement], notes: Sequence[str] = ()) -> Report:
    """Times, each against its baseline."""
    rows = [
        (
            row.what,
            row.way,
            duration(row.seconds),
            f"{row.spread:.0%}",
            "1" if row.way == row.baseline else f"{row.ratio:.3g}",
            str(row.rounds),
        )
        for row in measurements
    ]
    header = ("what", "way", "median", "spread", "against the first", "n")
    return Report(header, rows, [asdict(row) for row in measurements], list(notes))


def duration(seconds: float) -> str:
    """0.00123 -> 1.23 ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def megabytes(n: float) -> str:
    """9042446 -> 9.04 MB, powers of 1000."""
    return f"{n / 1e6:,.2f} MB" if n < 1e7 else f"{n / 1e6:,.0f} MB"


def markdown(report: Report, command: str, machine: dict[str, Any], date: str) -> str:
    """The report as a section of a page: the command, the machine, the table, the notes."""
    lines = [list(report.header), ["---"] * len(report.header), *map(list, report.rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    return "\n\n".join([f"`{command}`, {date}; {where}.", table, *report.notes])


def place_in(page: Path, name: str) -> tuple[str, str]:
    """What a Markdown page has before and after the place of a benchmark: `<!-- bench NAME -->` to `<!-- end -->`.

    Raises:
        NotFoundError: no such page.
        UsageError: it has no such place.
    """
    try:
        text = page.read_text("utf-8")
    except OSError as error:
        raise NotFoundError(f"{page} cannot be read ({error.strerror}); name a Markdown page") from error
    before, begin, rest = text.partition(f"<!-- bench {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise UsageError(f"{page} has no place for it; put the lines <!-- bench {name} --> and <!-- end --> there")
    return before + begin, end + after
