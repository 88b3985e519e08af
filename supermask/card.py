"""The model card of an artifact: metadata that the Hub reads, words and pictures for people."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from supermask import registry
from supermask.artifact import Artifact
from supermask.config import SearchConfig, resolve
from supermask.errors import UsageError
from supermask.manifest import ArtifactConfig, Values
from supermask.network import OWN_MODULE
from supermask.run import Record

CARD, CURVE, FILTERS, ONNX = "README.md", "training.png", "filters.png", "model.onnx"

# Ours -> the Hub's.
HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
}

# The settings that have a flag of their own; the rest are said with --set.
FLAGS = {
    "strategy.name": "--strategy",
    "arch.name": "--arch",
    "strategy.options.k": "--k",
    "data.name": "--data",
    "weights.distribution": "--distribution",
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "optimizer.lr": "--lr",
    "seed": "--seed",
}
# Where a search computed, and where its settings came from, say nothing about what it computed.
PLACES = ("recipe", "device", "checkpoint_seconds", "data.root", "data.workers", "data.skip_corrupt")

MAX_FILTERS = 64


def describe(
    artifact: Artifact, repo: str, records: list[Record], license: str, *, with_onnx: bool = False
) -> dict[str, bytes]:
    """The card of an artifact and its pictures, by file name; the same bytes for the same artifact.

    Args:
        artifact: whose weights' hash was checked.
        repo: `user/name`, where it will be found.
        records: one for each epoch of the search; without any, the card has no training curve.
        license: an identifier that the Hub knows.
        with_onnx: say how to run the ONNX file that lies beside it.
    """
    _, weights = next(artifact.weights())
    pictures = {CURVE: _curve(records), FILTERS: _filters(weights, artifact.config)}
    files = {name: picture for name, picture in pictures.items() if picture is not None}
    card = ModelCard(
        f"---\n{_metadata(artifact.config, repo, license)}\n---\n\n{_words(artifact, repo, files, with_onnx)}"
    )
    return {CARD: str(card).encode(), **files}


def _metadata(config: ArtifactConfig, repo: str, license: str) -> str:
    name = str(config.provenance.get("dataset", "unknown"))
    accuracy = config.metrics.get("test_accuracy")
    dataset = HUB_DATASETS.get(name)
    result = EvalResult(
        task_type="image-classification",
        task_name="Image Classification",
        # The Hub takes an identifier there, such as the name of a repository.
        dataset_type=dataset or re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "unknown",
        dataset_name=name,
        dataset_split="test",
        metric_type="accuracy",
        metric_name="Accuracy",
        metric_value=accuracy,
    )
    data = ModelCardData(
        license=license,
        library_name="supermask",
        pipeline_tag="image-classification",
        tags=["supermask", "lottery-ticket", "sparsity", config.strategy.name, *_plain_tag(config.arch.name)],
        datasets=[dataset] if dataset else None,
        metrics=["accuracy"],
        model_name=repo.rpartition("/")[2],
        eval_results=[result] if isinstance(accuracy, float) else None,
    )
    return data.to_yaml()


def _plain_tag(arch: str) -> list[str]:
    """The architecture's name as a tag; the Hub gives a colon in one a meaning of its own."""
    return [arch.rpartition(":")[2]] if not arch.startswith(OWN_MODULE) else []


def _words(artifact: Artifact, repo: str, pictures: Mapping[str, bytes], with_onnx: bool) -> str:
    config = artifact.config
    weights, kept = sum(layer.n for layer in config.layers), sum(layer.kept for layer in config.layers)
    dataset = config.provenance.get("dataset", "unknown")
    values = {layer.values for layer in config.layers}
    blocks = [
        f"# {repo.rpartition('/')[2]}",
        _about(config, kept, weights, values),
        "\n".join(
            f"| {name} | {value} |"
            for name, value in [("", ""), ("---", "---"), *_figures(artifact, dataset, kept, weights)]
        ),
        "## Use",
        _use(config, repo, with_onnx),
        "## How it was made",
        _made(config),
    ]
    if CURVE in pictures:
        blocks.append(f"![Accuracy after each epoch of the search]({CURVE})")
    if FILTERS in pictures:
        blocks += [
            "## The first layer",
            f"![First-layer weights]({FILTERS})\n\nRed is positive, blue negative, white was taken away "
            "(of the first input channel).",
        ]
    blocks += ["## Limits", _limits(config, dataset)]
    return "\n\n".join(blocks) + "\n"


def _about(config: ArtifactConfig, kept: int, weights: int, values: set[Values]) -> str:
    classifier = f"A classifier of pictures into {len(config.labels)} classes"
    if "stored" in values:
        return (
            f"{classifier}: {kept:,} of the {weights:,} weights of `{config.arch.name}`, kept by the strategy "
            f"`{config.strategy.name}`. Their values are stored, since no seed could draw them again."
        )
    held = "the seed and one bit per weight, and loading it draws the weights again, the same ones on every machine"
    if "signs" in values:
        held = "one bit per weight, and one more for the sign of each that is kept"
    return (
        f"{classifier} whose weights **nobody trained**. They were drawn at random and left as they were; "
        f"what `{config.strategy.name}` searched for is which {kept:,} of the {weights:,} to keep. Such a subnetwork "
        "works inside a random network ([Ramanujan et al. 2020](https://arxiv.org/abs/1911.13299), [Zhou et al. 2019]"
        f"(https://arxiv.org/abs/1905.01067)), so this repository holds {held}."
    )


def _figures(artifact: Artifact, dataset: object, kept: int, weights: int) -> list[tuple[str, str]]:
    config, metrics = artifact.config, artifact.config.metrics
    rows = []
    named = {
        "test_accuracy": f"accuracy on {metrics.get('test_pictures', 0):,} test pictures of {dataset}",
        "sampled_accuracy_mean": "mean accuracy of 10 sampled networks",
        "random_network_accuracy": "the untouched random network",
        "random_mask_accuracy": "a random mask that keeps as many",
    }
    rows = [(about, f"{metrics[key]:.2%}") for key, about in named.items() if isinstance(metrics.get(key), float)]
    if "k" in config.strategy.options:
        rows.append(("k, the fraction of weights kept", f"{config.strategy.options['k']:g}"))
    dense = 4 * weights
    return [
        *rows,
        ("weights kept", f"{kept:,} of {weights:,}"),
        ("size", f"{artifact.size:,} bytes, {8 * artifact.size / weights:.2f} bits a weight"),
        ("the same network as float32", f"{dense:,} bytes, {dense / artifact.size:.1f} times as much"),
    ]


def _use(config: ArtifactConfig, repo: str, with_onnx: bool) -> str:
    channels, height, width = config.input.shape
    own = ", model=YourModule()" if config.arch.name.startswith(OWN_MODULE) else ""
    shape = f"[N, {channels}, {height}, {width}]"
    return (
        "```python\n"
        "import supermask\n"
        f'model = supermask.load("{repo}"{own})  # a torch.nn.Module\n'
        f"logits = model(pictures)  # float32 {shape}, normalised\n"
        "```\n\n"
        f"Pictures are scaled to 0..1, then the mean {config.input.mean} is subtracted and the result divided by "
        f"{config.input.std}. On the command line: `supermask pull {repo}`"
        + (f", `supermask eval {repo}`." if not own else ".")
        + (f" `{ONNX}` is the same network for ONNX Runtime, with or without supermask." if with_onnx else "")
    )


def _made(config: ArtifactConfig) -> str:
    told = config.provenance.get("config")
    if not isinstance(told, dict):
        return f"{config.provenance.get('origin', 'It does not say.')}"
    try:
        for kind, name in (("architectures", config.arch.name), ("datasets", str(config.provenance.get("dataset")))):
            registry.find(kind, name)
        line = command(resolve(told, base={}))
    except UsageError:  # a strategy, a module or pictures that somebody handed over in Python
        return "By `supermask.search` in Python, with parts that no installed package names."
    version = config.provenance.get("supermask")
    return f"```console\n$ {line}\n```\n\nwith supermask {version}."


def command(config: SearchConfig) -> str:
    """The command line that searches as `config` says: every flag, and other settings that differ from the defaults."""
    told = _flat(config.model_dump(mode="json"))
    # An option may have no default, so the strategy's options are those of `config` and compared apart.
    default = _flat(resolve({"strategy": config.strategy.model_dump()}).model_dump(mode="json"))
    for option, field in registry.strategy_class(config.strategy.name).model_fields.items():
        default[f"strategy.options.{option}"] = field.default
    words = ["supermask", "search"]
    for key, value in told.items():
        text = value if isinstance(value, str) else _toml(value)
        if key in FLAGS:
            words += [FLAGS[key], text]
        elif value != default.get(key) and value is not None and key not in PLACES:
            words += ["--set", f"{key}={text}"]
    return shlex.join(words)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _limits(config: ArtifactConfig, dataset: object) -> str:
    selected = "the epoch kept was chosen on pictures held out of training, never on test pictures"
    if "best_epoch" not in config.metrics:
        selected = "the last epoch was kept, and nothing was chosen on test pictures"
    return (
        f"The accuracy is of one seed, in float32, on the test pictures of {dataset}, measured once; {selected}. "
        "Another seed gives another figure. Nothing was measured on pictures of another kind, on altered pictures, "
        "or on how errors fall on people or groups."
    )


def _curve(records: list[Record]) -> bytes | None:
    """Accuracy over epochs; None without any."""
    if not records:
        return None
    figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    epochs = [record["epoch"] for record in records]
    for part, colour in (("train", "#9a9a9a"), ("validation", "#c2571a"), ("test", "#1a5fb4")):
        if f"{part}_accuracy" in records[0]:
            values = [record[f"{part}_accuracy"] for record in records]
            axes.plot(epochs, values, color=colour, marker="." if len(epochs) < 40 else "", label=part)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _png(figure)


def _filters(weights: npt.NDArray[np.float32], config: ArtifactConfig) -> bytes | None:
    """The first layer's filters, of the first input channel; None where they make no pictures."""
    channels, height, width = config.input.shape
    if weights.ndim == 2 and weights.shape[1] == channels * height * width:
        weights = weights.reshape(-1, channels, height, width)
    if weights.ndim != 4 or min(weights.shape[2:]) < 2:
        return None
    shown = weights[:MAX_FILTERS, 0]
    columns = min(16, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(0.5 * columns, 0.5 * rows), dpi=120, layout="constrained")
    largest = float(np.abs(shown).max()) or 1.0
    for axes, picture in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        axes.imshow(picture, cmap="RdBu_r", vmin=-largest, vmax=largest)
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # Without the version of the software, so that the same curve is the same file.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
