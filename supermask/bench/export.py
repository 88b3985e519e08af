"""ONNX files in every form, against the dense one: size, and what ONNX Runtime takes to load and to run them."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from supermask.bench import memory
from supermask.bench.networks import subnetwork
from supermask.bench.report import Report, duration, megabytes
from supermask.bench.timing import compare
from supermask.onnx.check import session
from supermask.onnx.export import export_onnx
from supermask.onnx.weights import Form

# (architecture, channels, pixels, classes, rounds)
NETWORKS = [
    ("fc", 1, 28, 10, 201),
    ("conv4", 3, 32, 10, 101),
    ("resnet18-cifar", 3, 32, 10, 31),
    ("resnet50", 3, 224, 1000, 21),
    ("wide-resnet50", 3, 224, 1000, 11),
]
SMALL_NETWORKS = [("conv2", 1, 8, 10, 3)]
LOADS = 5
FORMS: tuple[Form, ...] = ("dense", "ternary", "seed")  # the baseline first

# Memory beyond what the imports took, of loading a file and running it once.
PEAK = """
import sys
import numpy as np, onnxruntime as ort
from supermask.bench.memory import peak
options = ort.SessionOptions()
options.log_severity_level = 3
before = peak()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"pictures": np.zeros((1, *map(int, sys.argv[2:])), np.float32)})
print(peak() - before)
"""


@dataclass(frozen=True)
class _Row:
    network: str
    weights: Form
    bytes: int
    bits_per_weight: float
    load_seconds: float
    run_seconds: float
    run_ratio: float
    peak_bytes: int
    rounds: int


def export(small: bool) -> Report:
    """Files of subnetworks with random masks, k = 0.3; conv2 alone if `small`. A picture at a time, on the CPU.

    Load: making a session, which unpacks the weights. Peak: memory beyond the imports, in a process of its own.
    """
    rows = [row for network in (SMALL_NETWORKS if small else NETWORKS) for row in _rows(*network)]
    table = [
        (
            row.network,
            row.weights,
            megabytes(row.bytes),
            f"{row.bits_per_weight:.2f}",
            duration(row.load_seconds),
            duration(row.run_seconds),
            f"{row.run_ratio:.3f}",
            megabytes(row.peak_bytes),
            str(row.rounds),
        )
        for row in rows
    ]
    header = ("network", "weights", "file", "bits a weight", "load", "run", "run against dense", "peak memory", "n")
    return Report(header, table, [asdict(row) for row in rows])


def _rows(arch: str, channels: int, pixels: int, classes: int, rounds: int) -> list[_Row]:
    artifact = subnetwork(arch, channels, pixels, classes)
    picture = np.random.default_rng(0).standard_normal((1, channels, pixels, pixels), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            form: export_onnx(artifact, Path(folder) / f"{form}.onnx", weights=form, check=False) for form in FORMS
        }
        contents = {form: file.path.read_bytes() for form, file in files.items()}
        loads = compare(
            "load",
            {form: lambda content=content: session(content) for form, content in contents.items()},  # type: ignore[misc]
            LOADS,
        )
        sessions = {form: session(content) for form, content in contents.items()}
        runs = compare(
            "run",
            {
                form: lambda made=made: made.run(None, {"pictures": picture})  # type: ignore[misc]
                for form, made in sessions.items()
            },
            rounds,
        )
        peaks = [memory.of(PEAK, str(file.path), *map(str, picture.shape[1:])) for file in files.values()]
    return [
        _Row(
            network=arch,
            weights=form,
            bytes=files[form].size,
            bits_per_weight=8 * files[form].size / files[form].parameters,
            load_seconds=load.seconds,
            run_seconds=run.seconds,
            run_ratio=run.ratio,
            peak_bytes=peak,
            rounds=rounds,
        )
        for form, load, run, peak in zip(FORMS, loads, runs, peaks, strict=True)
    ]
