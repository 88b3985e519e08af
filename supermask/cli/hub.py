"""supermask pull, push and import: artifacts from and to other people."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from supermask.cli.output import AsJson, print_json, print_table, size, speak

PULL = """
Examples:

    supermask pull allenai/wrn50-popup

    supermask eval $(supermask pull user/name@v1) --data cifar10

    supermask pull user/name --local-dir my-artifact
"""
PUSH = """
Examples:

    supermask push runs/latest user/name --dry-run

    supermask push runs/latest user/name --tag v1

    supermask push my-artifact user/name --create-pr

Log in once with hf auth login, or set HF_TOKEN.
"""
IMPORT = """
Example:

    supermask import model_best.pth --arch resnet50 --strategy edge-popup --k 0.3
"""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog=PULL)(pull)
    app.command(epilog=PUSH)(push)
    app.command("import", epilog=IMPORT)(import_)


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="user/name or user/name@revision.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="main")] = None,
    local_dir: Annotated[
        Path | None, typer.Option(help="Copy the artifact there.", show_default="the Hub's cache")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Look in the cache alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch an artifact from the Hugging Face Hub, check everything in it, and print where it lies."""
    speak()
    _quiet_client()
    from supermask import store

    folder = store.pull(name, revision=revision, local_dir=local_dir, offline=offline)
    print_json({"path": str(folder)}) if as_json else print(folder)


def push(  # noqa: PLR0913, PLR0917 - one parameter for each flag
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="Of a run or an artifact.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="user/name, made where absent.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made where absent.", show_default="main")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name the commit so.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.", show_default="what was found")] = None,
    license: Annotated[str, typer.Option(help="For the card: an identifier the Hub knows.")] = "apache-2.0",
    with_onnx: Annotated[bool, typer.Option("--with-onnx", help="Add model.onnx, for ONNX Runtime.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes; push nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a run's or a folder's artifact on the Hugging Face Hub, with a model card, in one commit."""
    speak()
    _quiet_client()
    from supermask import store

    if dry_run:
        files = store.package(path, name, license=license, with_onnx=with_onnx)
        if as_json:
            print_json({"files": {file: len(content) for file, content in files.items()}, "pushed": False})
        else:
            print_table([(file, size(len(content))) for file, content in files.items()], numbers=(1,))
        return
    pushed = store.push(
        path,
        name,
        revision=revision,
        private=private,
        create_pr=create_pr,
        tag=tag,
        message=message,
        license=license,
        with_onnx=with_onnx,
    )
    if as_json:
        print_json({"url": pushed.url, "commit": pushed.commit, "files": pushed.files})
    else:
        if not pushed.files:
            print("nothing to push: the artifact is there already, and its card is left as it is", file=sys.stderr)
        print(pushed.url)


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Of the papers' public code.", show_default=False)
    ],
    arch: Annotated[str, typer.Option(help="See supermask zoo.", show_default=False)],
    strategy: Annotated[str, typer.Option(help="See supermask strategies.", show_default=False)],
    k: Annotated[float, typer.Option(help="Fraction of weights KEPT (there: prune_rate).", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(help="mnist, cifar10, cifar100 or imagenet.", show_default="the one that fits"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="arch.args.width=0.5 and the like.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the artifact.", show_default="the checkpoint's name")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a checkpoint of the papers' public code into an artifact, which holds signs or values instead of a seed."""
    speak()
    from supermask import artifact as artifacts
    from supermask.config import setting
    from supermask.errors import NotFoundError, UsageError
    from supermask.reference import import_checkpoint

    args: dict[str, Any] = {}
    for text in settings or []:
        name, arguments = "arch.args.", setting(text)
        if not text.startswith(name):
            raise UsageError(f"--set {text}: an import takes arguments of the architecture alone, {name}NAME=VALUE")
        args |= arguments["arch"]["args"]
    if not checkpoint.is_file():
        raise NotFoundError(f"no checkpoint {str(checkpoint)!r}; name a file of torch.save")
    folder = output or checkpoint.with_suffix("")
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UsageError(f"{folder} is there already; name another folder with --output")
    artifact = import_checkpoint(checkpoint, arch=arch, strategy=strategy, k=k, data=data, arch_args=args)
    artifacts.write(artifact, folder)
    layers = artifact.config.layers
    kept, total = sum(layer.kept for layer in layers), sum(layer.n for layer in layers)
    if as_json:
        print_json({"path": str(folder), "kept": kept, "weights": total, "artifact_bytes": artifact.size})
        return
    print_table(
        [
            ("weights kept", f"{kept:,} of {total:,}"),
            ("kept as", ", ".join(sorted({layer.values for layer in layers}))),
            ("artifact", f"{size(artifact.size)} ({size(4 * total)} as float32)"),
            ("in", str(folder)),
        ]
    )


def _quiet_client() -> None:
    """The client's bars belong on a terminal."""
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
