"""Ctrl-C where there is nothing to save; while a search trains, the trainer takes it and saves."""

from __future__ import annotations

from types import FrameType


class CtrlC(BaseException):
    """Neither a KeyboardInterrupt, which Typer turns into exit code 1, nor an Exception, which libraries swallow."""

    pressed = False


def raise_ctrl_c(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT."""
    CtrlC.pressed = True
    raise CtrlC


def check() -> None:
    """Stop if Ctrl-C was pressed during an import that swallowed everything, BaseException included."""
    if CtrlC.pressed:
        raise CtrlC
