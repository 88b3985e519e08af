"""supermask eval, info and verify: commands on an artifact, by default the latest run's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supermask.cli.output import (
    ArtifactName,
    AsJson,
    DataRoot,
    Device,
    given_or_latest,
    percent,
    print_json,
    print_table,
    size,
    speak,
)
from supermask.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from supermask.artifact import Artifact

BACKENDS = ("torch", "onnx")

EVAL = """
Examples:

    supermask eval

    supermask eval my-artifact --data folder:pictures

    supermask eval user/name@v1 --backend onnx
"""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("eval", epilog=EVAL)(evaluate)
    app.command(epilog="Examples:\n\n    supermask info\n\n    supermask info my-artifact --json")(info)
    app.command(epilog="Example:\n\n    supermask verify my-artifact && echo sound")(verify)
    app.command(epilog="Example:\n\n    supermask compress runs/latest --output small")(compress)


def evaluate(
    name: ArtifactName = None,
    data: Annotated[str | None, typer.Option(help="As in supermask search.", show_default="the artifact's own")] = None,
    data_root: DataRoot = "data",
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out unreadable pictures.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures at once.", show_default="64 on a CPU, else 500")
    ] = None,
    device: Device = "auto",
    backend: Annotated[
        str, typer.Option(help="torch, or onnx: ONNX Runtime (auto, cpu, cuda).", show_default=True)
    ] = "torch",
    as_json: AsJson = False,
) -> None:
    """Measure an artifact's accuracy on the test pictures of a data set, in float32."""
    speak()
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend}: {did_you_mean(backend, BACKENDS)}")
    from supermask import registry, store
    from supermask.evaluate import evaluate_artifact

    artifact = store.read(given_or_latest(name))
    data = data or str(artifact.config.provenance.get("dataset", ""))
    dataset = registry.open_dataset(
        data, root=Path(data_root), image_size=artifact.config.input.shape[1], skip_corrupt=skip_corrupt
    )
    model, place = _computed_by(backend, artifact, device)
    scores = evaluate_artifact(artifact, model, dataset, place, batch_size)
    if as_json:
        print_json(
            {"data": data, "accuracy": scores.top1, "top5": scores.top5, "loss": scores.loss, "pictures": scores.n}
        )
        return
    print_table(
        [
            ("accuracy", percent(scores.top1)),
            ("among the first five", percent(scores.top5)),
            ("cross-entropy", f"{scores.loss:.4f} nats"),
            ("test pictures", f"{scores.n:,} of {data}"),
        ]
    )


def _computed_by(backend: str, artifact: Artifact, device: str) -> tuple[nn.Module, torch.device]:
    """The artifact's network, and where it takes pictures."""
    import torch

    if backend == "onnx":
        from supermask.onnx.run import Module, of_artifact

        # In the smallest form, which an exported file has; ONNX Runtime takes pictures to its device itself.
        return Module(of_artifact(artifact, device)), torch.device("cpu")
    from supermask.device import pick_device
    from supermask.network import load_into

    return load_into(artifact), pick_device(device)


def info(name: ArtifactName = None, as_json: AsJson = False) -> None:
    """Show an artifact's layers, kept weights and size, against the entropy bound and against float32."""
    from supermask import store
    from supermask.artifact import stored_bytes
    from supermask.bitpack import entropy_bits, packed_size
    from supermask.registry import shown

    folder, artifact = store.find(given_or_latest(name))
    stored = stored_bytes(folder)
    config = artifact.config
    layers = config.layers
    weights, kept = sum(layer.n for layer in layers), sum(layer.kept for layer in layers)
    masked = [layer for layer in layers if layer.masked]
    mask_bytes = sum(packed_size(layer.n) for layer in masked)
    bound = sum(entropy_bits(layer.kept, layer.n) for layer in masked) / 8
    if as_json:
        print_json(
            {
                **config.model_dump(mode="json", by_alias=True),
                "weights": weights,
                "kept": kept,
                "artifact_bytes": stored,
                "mask_bytes": mask_bytes,
                "entropy_bound_bytes": bound,
                "float32_bytes": 4 * weights,
            }
        )
        return
    print_table(
        [
            (
                layer.name,
                " x ".join(map(str, layer.shape)),
                f"{layer.n:,}",
                f"{layer.kept:,}",
                percent(layer.kept / layer.n),
                f"{8 * packed_size(layer.n):,}" if layer.masked else "0",
                layer.values,
            )
            for layer in layers
        ],
        header=("layer", "shape", "weights", "kept", "share", "mask bits", "values"),
        numbers=(2, 3, 4, 5),
    )
    print()
    rows = [
        ("strategy", f"{config.strategy.name} ({shown(config.strategy.options)})"),
        ("architecture", f"{config.arch.name} ({shown(config.arch.args)})"),
        ("seed", str(config.seed)),
        ("weights kept", f"{kept:,} of {weights:,} ({percent(kept / weights)})"),
        ("artifact", f"{size(stored)}, {8 * stored / weights:.3f} bits a weight"),
        ("masks", f"{size(mask_bytes)}, against an entropy bound N*H(k) of {size(bound)}"),
        ("as float32", f"{size(4 * weights)}, {4 * weights / stored:.1f} times as much"),
    ]
    accuracy = config.metrics.get("test_accuracy")
    if isinstance(accuracy, float):
        rows.append(("accuracy", f"{percent(accuracy)} on {config.provenance.get('dataset')}"))
    print_table(rows)


def verify(name: ArtifactName = None, as_json: AsJson = False) -> None:
    """Check an artifact by every rule of its format, its weights' hash included; exit code 4 if one is broken."""
    from supermask import store
    from supermask.network import check

    given = given_or_latest(name)
    artifact = store.read(given)
    check(artifact)
    weights = sum(layer.n for layer in artifact.config.layers)
    if as_json:
        print_json({"path": given, "sound": True, "weights": weights, "sha256": artifact.config.sha256.weights})
    else:
        print(f"{given} is sound: {weights:,} weights, SHA-256 {artifact.config.sha256.weights}")


def compress(
    output: Annotated[Path, typer.Option(help="Folder: a new one, or an artifact's.", show_default=False)],
    name: ArtifactName = None,
    as_json: AsJson = False,
) -> None:
    """Write an artifact smaller: every command reads it as before; k = 0.3 takes a tenth off it, k = 0.1 half."""
    speak()
    from supermask import store

    before, after = store.compress(given_or_latest(name), output)
    if as_json:
        print_json({"path": str(output), "artifact_bytes": before, "compressed_bytes": after})
    else:
        print_table([("plain", size(before)), ("compressed", size(after)), ("in", str(output))])
