"""supermask predict: what a network sees in pictures."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supermask.cli import interrupt
from supermask.cli.output import AsJson, percent, speak
from supermask.errors import SupermaskError

if TYPE_CHECKING:
    from supermask.onnx.run import Runtime
    from supermask.predict import Prediction

EXAMPLES = """
Examples:

    supermask predict runs/latest digit.png

    supermask predict model.onnx photos --top 1 --json

    find photos -name '*.jpg' | supermask predict model.onnx -
"""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EXAMPLES)(predict)


def predict(
    network: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT_OR_ONNX",
            help="Folder of an artifact or a run, user/name[@revision] on the Hub, or a file of supermask export.",
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Files; folders, with all pictures below; or -, standard input: one picture, or names line by line.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Labels for each picture.", show_default=True)] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", show_default=True)] = "auto",
    as_json: AsJson = False,
) -> None:
    """Tell what pictures show: the most probable labels, by ONNX Runtime.

    Pictures that are missing or do not decode are named, and the rest goes on; then the exit code is 3 or 4.
    """
    speak()
    from supermask.predict import Picture, find
    from supermask.predict import predict as predict_each

    interrupt.check()
    runtime = _open(network, device)
    pictures = list(find(images, sys.stdin.buffer))
    status = 0

    def predictions() -> Iterator[Prediction]:
        nonlocal status
        for found in predict_each(runtime, pictures, top):
            if isinstance(found, SupermaskError):
                print(f"error: {found}", file=sys.stderr)
                status = max(status, found.exit_code)
            else:
                yield found

    with warnings.catch_warnings():
        # Pillow's, of odd pictures that it reads all the same.
        warnings.filterwarnings("ignore", module="PIL")
        if as_json:
            _print_json(predictions())
        else:
            _print_table(predictions(), [picture.name for picture in pictures if isinstance(picture, Picture)], runtime)
    raise typer.Exit(status)


def _open(network: str, device: str) -> Runtime:
    from supermask import store
    from supermask.onnx.run import of_artifact, open_file

    path = Path(network)
    if path.is_file() or path.suffix.lower() == ".onnx":
        return open_file(path, device)
    # Dense weights: a file is not written, and sessions with them start soonest.
    return of_artifact(store.read(network), device, "dense")


def _print_json(predictions: Iterable[Prediction]) -> None:
    """One JSON list, a line for each picture as soon as it is known."""
    before = "["
    for prediction in predictions:
        best = [{"label": label, "probability": probability} for label, probability in prediction.best]
        line = json.dumps({"picture": prediction.picture, "predictions": best}, ensure_ascii=False)
        print(f"{before}\n  {line}", end="")
        before = ","
    print("\n]" if before == "," else "[]")


def _print_table(predictions: Iterable[Prediction], names: Sequence[str], runtime: Runtime) -> None:
    """A row for each label, as soon as it is known; the picture's name stands in the first of its rows."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in (("picture", *names), ("label", *runtime.labels))]

    def row(picture: str, label: str, probability: str) -> str:
        cells = [set_cell_size(text, width) for text, width in zip((picture, label), widths, strict=True)]
        return "  ".join([*cells, f"{probability:>11}"])

    header = row("picture", "label", "probability")
    for prediction in predictions:
        if header:
            print(header)
            header = ""
        for place, (label, probability) in enumerate(prediction.best):
            print(row("" if place else prediction.picture, label, percent(probability)))
