"""The command line: `supermask`. This module only assembles; torch is imported inside commands."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from supermask.cli import artifact, bench, export, hub, listing, predict, search
from supermask.cli.interrupt import CtrlC, raise_ctrl_c
from supermask.errors import Interrupted, StorageError, SupermaskError

app = typer.Typer(
    name="supermask",
    help="Find, keep and ship the subnetworks that work inside networks nobody trained.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (search, artifact, export, predict, hub, listing, bench):
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"supermask {version('supermask')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Find, keep and ship the subnetworks that work inside networks nobody trained."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 usage, 3 not found, 4 integrity, 5 export, 130 interrupted."""
    signal.signal(signal.SIGINT, raise_ctrl_c)
    try:
        try:
            app(args=args, prog_name="supermask")
        finally:
            sys.stdout.flush()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except (CtrlC, ImportError, SupermaskError) as error:
        # A module that is interrupted while it is imported makes another error of it.
        if CtrlC.pressed:
            print("interrupted", file=sys.stderr)
            sys.exit(Interrupted.exit_code)
        if not isinstance(error, SupermaskError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EPIPE}:
            raise
        # A reader that has read enough, such as head, is no fault.
        if error.errno != errno.EPIPE:
            where = error.filename or "the output"
            print(f"error: {error.strerror}: {where}; free space and try again", file=sys.stderr)
        # What is still to be written would fail once more as Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(StorageError.exit_code)
