"""supermask export: an artifact as a file that other programs run."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supermask.cli import interrupt
from supermask.cli.output import ArtifactName, AsJson, DataRoot, given_or_latest, print_json, print_table, size, speak
from supermask.errors import SupermaskError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from supermask.artifact import Artifact
    from supermask.onnx.export import Exported
    from supermask.web.page import Page

log = logging.getLogger(__name__)

CHECKED_PICTURES = 32
MODEL = Path("model.onnx")

FORMS = {
    "seed": "mask bits, and the signs drawn from the seed",
    "ternary": "five weights -c, 0, c to a byte",
    "dense": "as they are",
}


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        epilog="Examples:\n\n    supermask export --onnx\n\n"
        "    supermask export my-artifact --onnx --input uint8 --softmax --output digits.onnx\n\n"
        "    supermask export --web page"
    )(export)


def export(  # noqa: PLR0913, PLR0917 - Typer makes an option of each
    name: ArtifactName = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="An ONNX file, which stock ONNX Runtime runs.")] = False,
    web: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A static page, in which it runs in the browser; needs npm the first time."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="seed: mask bits, and the signs drawn again. ternary: five weights to a byte. dense: as they are.",
            show_default="the smallest that the artifact allows",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of dense weights: float32 or float16.", show_default=True)] = "float32",
    given: Annotated[
        str,
        typer.Option(
            "--input",
            help="float: normalised float32 [N, C, H, W]. uint8: raw pictures [N, H, W, C].",
            show_default=True,
        ),
    ] = "float",
    softmax: Annotated[bool, typer.Option("--softmax", help="Give probabilities, not logits.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not compare with torch first.")] = False,
    output: Annotated[Path, typer.Option(help="The file to write.", show_default=True)] = MODEL,
    data_root: DataRoot = "data",
    as_json: AsJson = False,
) -> None:
    """Write an artifact as a file that other programs run, once it is found to compute what torch computes.

    Exit code 5 if it does not; then nothing is written.
    """
    speak()
    if onnx == (web is not None):
        raise UsageError("say what to export: either --onnx or --web DIR")
    if web and (given, softmax, output) != ("float", False, MODEL):
        raise UsageError("--input, --softmax and --output go with --onnx; the file of --web is all the page's own")
    from supermask import store
    from supermask.onnx.export import export_onnx

    interrupt.check()
    artifact = store.read(given_or_latest(name))
    wanted: dict[str, Any] = {"weights": weights, "dtype": dtype, "check": not no_check}  # names are checked there
    wanted["pictures"] = None if no_check else _test_pictures(artifact, data_root)
    if web:
        from supermask.web.page import export_page

        page = export_page(artifact, web, **wanted)
        if as_json:
            print_json(_page_facts(page))
        else:
            print_table(_page_rows(page, artifact))
        return
    done = export_onnx(artifact, output, **wanted, input=given, softmax=softmax)  # type: ignore[arg-type]
    if as_json:
        print_json(_facts(done))
    else:
        print_table(_rows(done, artifact))


def _test_pictures(artifact: Artifact, data_root: str) -> Tensor | None:
    """Some test pictures of the artifact's own data set, where they are at hand."""
    from supermask import registry
    from supermask.data import sample

    channels, image_size, _ = artifact.config.input.shape
    name = artifact.config.provenance.get("dataset")
    try:
        if not isinstance(name, str):
            raise UsageError("the artifact does not say of which data set it is")
        dataset = registry.open_dataset(
            name,
            root=Path(data_root),
            image_size=image_size,
            skip_corrupt=True,
            download=False,
        )
        if dataset.channels == channels:
            return sample(dataset.test, CHECKED_PICTURES)
        reason = f"{dataset.name} has {dataset.channels} channels, the artifact {channels}"
    except SupermaskError as error:
        reason = str(error)
    log.warning("checking on random pictures alone: %s", reason)
    return None


def _facts(done: Exported) -> dict[str, Any]:
    agreement = done.agreement
    return {
        "path": str(done.path),
        "weights": done.layout.weights,
        "dtype": done.layout.dtype,
        "input": done.layout.input,
        "softmax": done.layout.softmax,
        "bytes": done.size,
        "bits_per_weight": 8 * done.size / done.parameters,
        "float32_bytes": 4 * done.parameters,
        "check": agreement
        and {
            "pictures": agreement.pictures,
            "same_class": agreement.same_class,
            "largest_relative_difference": agreement.difference,
        },
    }


def _rows(done: Exported, artifact: Artifact) -> list[tuple[str, str]]:
    channels, height, width = artifact.config.input.shape
    layout, agreement = done.layout, done.agreement
    if layout.input == "uint8":
        takes = f"uint8 [N, {height}, {width}, {channels}], pictures as they are"
    else:
        takes = f"float32 [N, {channels}, {height}, {width}], normalised"
    checked = "not checked"
    if agreement is not None:
        checked = (
            f"{agreement.same_class} of {agreement.pictures} pictures get torch's class, "
            f"outputs differ by at most {agreement.difference:.1e}"
        )
    return [
        ("file", str(done.path)),
        ("size", f"{size(done.size)}, {8 * done.size / done.parameters:.3f} bits a weight"),
        ("as float32", f"{size(4 * done.parameters)}, {4 * done.parameters / done.size:.1f} times as much"),
        ("weights", f"{layout.weights}: {FORMS[layout.weights]}" + (", float16" if layout.dtype == "float16" else "")),
        ("takes", takes),
        ("gives", f"{'probabilities' if layout.softmax else 'logits'} [N, {len(artifact.config.labels)}]"),
        ("check", checked),
    ]


def _page_facts(page: Page) -> dict[str, Any]:
    return {"path": str(page.folder), "bytes": page.size, "serve": _serve(page.folder), "onnx": _facts(page.network)}


def _page_rows(page: Page, artifact: Artifact) -> list[tuple[str, str]]:
    network = dict(_rows(page.network, artifact))
    return [
        ("page", f"{page.folder}, {size(page.size)}, most of it ONNX Runtime Web"),
        ("network", network["size"]),
        *((term, network[term]) for term in ("as float32", "weights", "check")),
        ("to see it", f"{_serve(page.folder)}, then open http://localhost:8000 (opened as a file it cannot load)"),
    ]


def _serve(folder: Path) -> str:
    return f"python -m http.server -d {shlex.quote(str(folder))}"
