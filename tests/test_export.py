"""supermask export, as a person meets it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import supermask as library
from supermask import artifact as artifacts
from tests.commands import run_here, started, stopped, supermask, wait_until
from tests.subnetworks import of_architecture, run


def export(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """`supermask export ARGS` in this process."""
    return run_here(capsys, "export", *args)


def test_the_latest_run_becomes_a_small_file_checked_on_its_own_test_pictures(
    capsys: pytest.CaptureFixture[str], found: Path
) -> None:
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(found)
    status, out, err = export(capsys, "--onnx")
    assert (status, err) == (0, "")
    for words in ("model.onnx", "bits a weight", "1.5 MB", "mask bits", "float32 [N, 1, 8, 8]", "36 of 36 pictures"):
        assert words in out
    pictures = torch.randn(5, 1, 8, 8)
    expected = library.load(found)(pictures).numpy()
    np.testing.assert_allclose(run("model.onnx", pictures.numpy()), expected, atol=1e-4 * np.abs(expected).max())


def test_json_says_what_was_written(capsys: pytest.CaptureFixture[str], found: Path) -> None:
    status, out, _ = export(
        capsys,
        str(found),
        "--onnx",
        "--weights",
        "ternary",
        "--input",
        "uint8",
        "--softmax",
        "--output",
        "a/b.onnx",
        "--json",
    )
    facts = json.loads(out)
    assert status == 0
    assert facts["check"].pop("largest_relative_difference") < 1e-4
    assert facts == {
        "path": "a/b.onnx",
        "weights": "ternary",
        "dtype": "float32",
        "input": "uint8",
        "softmax": True,
        "bytes": Path("a/b.onnx").stat().st_size,
        "bits_per_weight": 8 * Path("a/b.onnx").stat().st_size / 367_680,
        "float32_bytes": 4 * 367_680,
        "check": {"pictures": 36, "same_class": 36},
    }


def test_raw_test_pictures_get_the_accuracy_of_the_artifact(capsys: pytest.CaptureFixture[str], found: Path) -> None:
    from supermask.datasets import Pictures, Request
    from supermask.datasets import digits as open_digits

    assert export(capsys, str(found), "--onnx", "--input", "uint8")[0] == 0
    test = open_digits(Request()).test
    assert isinstance(test, Pictures)
    classes = run("model.onnx", test.images.permute(0, 2, 3, 1).contiguous().numpy()).argmax(1)
    accuracy = float((classes == test.labels.numpy()).mean())
    assert accuracy == json.loads((found / "artifact" / "config.json").read_text())["metrics"]["test_accuracy"]


def test_without_its_data_set_random_pictures_do_and_a_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    artifacts.write(of_architecture("fc", in_channels=1, image_size=28, widths=[9]), Path("made-up"))
    status, out, err = export(capsys, "made-up", "--onnx")
    assert status == 0
    assert "4 of 4 pictures" in out
    (line,) = err.splitlines()
    assert line.startswith("checking on random pictures alone: unknown")


def test_a_data_set_is_never_downloaded_for_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    artifact = of_architecture("fc", in_channels=1, image_size=28, widths=[9])
    config = artifact.config.model_copy(update={"provenance": {"dataset": "mnist"}})
    artifacts.write(
        artifacts.with_metrics(artifacts.Artifact(config, artifact.tensors, artifact.serialized), {}), Path("a")
    )
    status, _, err = export(capsys, "a", "--onnx")
    assert status == 0
    assert err == "checking on random pictures alone: mnist is not in data/MNIST/raw\n"


def test_in_a_hurry_nothing_is_checked(capsys: pytest.CaptureFixture[str], found: Path) -> None:
    status, out, err = export(capsys, str(found), "--onnx", "--no-check", "--output", "quick.onnx")
    assert (status, err) == (0, "")
    assert "not checked" in out
    ort.InferenceSession("quick.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 2, ["--onnx"]),
        (["--onnx", "--weights", "tern"], 2, ["--weights tern", "did you mean 'ternary'?"]),
        (["--onnx", "--weights", ""], 2, ["--weights : known: dense, seed, ternary"]),
        (["--onnx", "--dtype", "float61"], 2, ["--dtype float61", "did you mean 'float16'?"]),
        (["--onnx", "--output", "."], 2, [". is a folder"]),
        (["--onnx", "--output", "/dev/null/model.onnx"], 1, ["cannot write /dev/null/model.onnx"]),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], found: Path, args: list[str], status: int, words: list[str]
) -> None:
    code, out, err = export(capsys, str(found), *args)
    (line,) = err.splitlines()
    assert (code, out) == (status, "")
    for word in words:
        assert word in line


def test_without_a_run_the_artifact_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = export(capsys, "--onnx")
    assert status == 3
    assert "runs/latest" in err


RESTLESS = """
from torch import nn


class Restless(nn.Sequential):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


def restless(*, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    return Restless(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
"""


def test_a_network_that_no_file_can_hold_exits_5_and_leaves_no_file(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    about = plugin / "restless-1.0.dist-info"
    about.mkdir(parents=True)
    (plugin / "restless.py").write_text(RESTLESS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: restless\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[supermask.architectures]\nrestless = restless:restless\n")
    path = os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    assert supermask("search", "--arch", "restless", "--epochs", "1", env=env).returncode == 0
    done = supermask("export", "--onnx", "--weights", "dense", env=env)
    assert (done.returncode, done.stdout) == (5, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: on 1 random pictures ONNX Runtime differs from torch by ")
    assert not list(Path().glob("*.onnx"))


@pytest.mark.parametrize("seconds", [0, 1.5], ids=["while it loads", "while it checks"])
def test_ctrl_c_leaves_no_file_and_no_half_of_one(tmp_path: Path, seconds: float) -> None:
    artifacts.write(of_architecture("resnet18"), tmp_path / "a")
    out = tmp_path / "out"
    process = started("export", str(tmp_path / "a"), "--onnx", "--output", str(out / "model.onnx"))
    # In the middle of an import that swallows what is raised in it.
    maps = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "onnxruntime_pybind11_state" in maps.read_text(), process)
    time.sleep(seconds)
    status, stdout, err = stopped(process, signal.SIGINT)
    assert (status, stdout, err.splitlines()[-1]) == (130, "", "interrupted")
    assert not out.exists()
