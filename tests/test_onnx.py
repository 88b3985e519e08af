"""ONNX files of artifacts: every form of the weights, what stock ONNX Runtime makes of them, and the check."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

import supermask
from supermask import ExportError, UsageError
from supermask import artifact as artifacts
from supermask.artifact import Artifact
from supermask.data import View
from supermask.draw import Distribution
from supermask.manifest import UNHASHED, LayerEntry
from supermask.network import load_into
from supermask.onnx.builder import Builder
from supermask.onnx.export import Layout, build
from supermask.onnx.weights import FORMS, OPSETS, Form, add_weights, pack_trits
from tests.subnetworks import of_architecture, run, subnetwork
from tests.test_draw import VECTORS

SMALL: dict[str, dict[str, Any]] = {
    "fc": {"in_channels": 1, "image_size": 9, "widths": [30, 7], "bias": True},
    "conv4": {"width": 0.2, "image_size": 16},
    "resnet18": {"affine": True, "bias": True, "num_classes": 3},
}


@pytest.fixture(scope="module")
def conv4() -> Artifact:
    return of_architecture("conv4", **SMALL["conv4"])


def logits_of(artifact: Artifact, n: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Normalised noise, and what torch computes of it."""
    pictures = torch.randn(n, *artifact.config.input.shape, generator=torch.Generator().manual_seed(n))
    return pictures.numpy(), load_into(artifact)(pictures).numpy()


def close(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert np.array_equal(ours.argmax(1), theirs.argmax(1))


@pytest.mark.parametrize("name", SMALL)
def test_every_form_gives_the_same_bits_and_torchs_logits_for_any_number_of_pictures(name: str, tmp_path: Path) -> None:
    artifact = of_architecture(name, **SMALL[name])
    for form in FORMS:
        done = supermask.export_onnx(artifact, tmp_path / form, weights=form)
        assert done.agreement is not None
        assert done.agreement.same_class == done.agreement.pictures
    for n in (1, 2, 7):
        pictures, theirs = logits_of(artifact, n)
        seed, ternary, dense = (run(tmp_path / form, pictures) for form in FORMS)
        close(dense, theirs)
        assert seed.tobytes() == ternary.tobytes() == dense.tobytes()


def test_a_resnet50_takes_a_thirtieth_of_float32(tmp_path: Path) -> None:
    artifact = of_architecture("resnet50", image_size=32, num_classes=1000)
    network = load_into(artifact)
    sizes = {form: build(artifact, network, Layout(form)).ByteSize() for form in FORMS}
    assert 102_000_000 < sizes["dense"] < 103_000_000
    assert sizes["seed"] <= 3_700_000
    assert sizes["ternary"] <= 5_800_000


@pytest.mark.parametrize("form", ["seed", "ternary"])
def test_when_a_session_is_made_nothing_that_builds_weights_is_left(
    form: Form, conv4: Artifact, tmp_path: Path
) -> None:
    supermask.export_onnx(conv4, tmp_path / "small.onnx", weights=form)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the optimised file is for this machine
    ort.InferenceSession(tmp_path / "small.onnx", options, providers=["CPUExecutionProvider"])
    left = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert left["Conv"] + left["FusedConv"] == 4
    assert left["Gemm"] + left["FusedGemm"] == 3
    building = {"Gather", "Cast", "BitShift", "BitwiseXor", "Slice", "Split", "Range", "Expand", "ConstantOfShape"}
    assert not building & set(left)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
drawn: st.SearchStrategy[Distribution] = st.sampled_from(["signed-constant", "constant"])


def weights_in_runtime(artifact: Artifact, form: Form) -> list[npt.NDArray[np.float32]]:
    """Every layer's weights as ONNX Runtime makes them."""
    graph = Builder(OPSETS[form])
    add_weights(graph, artifact, {layer.name: weights for layer, weights in artifact.weights()}, form, "float32")
    outputs = []
    for i, layer in enumerate(artifact.config.layers):
        graph.op("Identity", layer.name, name=f"out{i}")
        outputs.append(helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, layer.shape))
    opsets = [helper.make_opsetid("", graph.opset)]
    version = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph.graph("weights", [], outputs), opset_imports=opsets, ir_version=version)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    weights: list[npt.NDArray[np.float32]] = session.run(None, {})
    return weights


def of_layers(parts: list[tuple[str, list[int], Distribution, bool, float]], seed: int, conv4: Artifact) -> Artifact:
    """An artifact of any layers, with random masks."""
    entries, masks = [], {}
    for name, shape, distribution, masked, std in parts:
        masks[name] = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
        kept = int(masks[name].sum()) if masked else masks[name].numel()
        entries.append(
            LayerEntry(
                name=name, shape=shape, masked=masked, kept=kept, values="seed", distribution=distribution, std=std
            )
        )
    config = conv4.config.model_copy(update={"layers": entries, "seed": seed, "sha256": UNHASHED})
    return artifacts.encode(config, masks, {}, {})


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(names, shapes, drawn, st.booleans(), st.floats(2**-120, 1e30)),
        min_size=1,
        max_size=3,
        unique_by=lambda layer: layer[0],
    ),
    st.integers(0, 2**53 - 1),
)
def test_any_layers_are_drawn_in_the_graph_bit_for_bit(
    conv4: Artifact, parts: list[tuple[str, list[int], Distribution, bool, float]], seed: int
) -> None:
    artifact = of_layers(parts, seed, conv4)
    forms: tuple[Form, ...] = ("seed", "ternary")
    for form in forms:
        found = weights_in_runtime(artifact, form)
        for (layer, expected), weights in zip(artifact.weights(), found, strict=True):
            assert weights.shape == tuple(layer.shape)
            assert weights.tobytes() == expected.tobytes()
            assert not np.signbit(weights[weights == 0]).any(), "zeros are +0.0"


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 128, 4096, 100_003])
def test_every_number_of_weights_comes_out_whole(n: int, conv4: Artifact) -> None:
    parts: list[tuple[str, list[int], Distribution, bool, float]] = [
        ("first", [n], "signed-constant", True, 0.1),
        ("second", [n, 1], "signed-constant", False, 0.2),
        ("third", [1, n], "constant", True, 0.3),
    ]
    artifact = of_layers(parts, n, conv4)
    for (_, expected), weights in zip(artifact.weights(), weights_in_runtime(artifact, "seed"), strict=True):
        assert weights.tobytes() == expected.tobytes()


def test_the_graph_draws_the_test_vector_of_the_format(conv4: Artifact) -> None:
    for distribution in ("signed-constant", "constant"):
        artifact = of_layers([("convs.0.weight", [1000], distribution, False, 0.25)], 20191129, conv4)
        (weights,) = weights_in_runtime(artifact, "seed")
        assert hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest() == VECTORS[distribution][0]


@given(st.lists(st.sampled_from([0.0, 0.5, -0.5]), min_size=1, max_size=40))
def test_five_trits_make_a_byte_below_243(weights: list[float]) -> None:
    packed = pack_trits(np.array(weights, np.float32))
    assert packed.dtype == np.uint8
    assert len(packed) == -(-len(weights) // 5)
    assert packed.max() < 243
    digits = [(byte // 3**place) % 3 for byte in packed.tolist() for place in range(5)]
    assert [[0.0, 0.5, -0.5][digit] for digit in digits[: len(weights)]] == weights
    assert not any(digits[len(weights) :])


def test_raw_pictures_are_normalised_in_the_graph_as_in_training(conv4: Artifact, tmp_path: Path) -> None:
    supermask.export_onnx(conv4, tmp_path / "float.onnx")
    supermask.export_onnx(conv4, tmp_path / "raw.onnx", input="uint8")
    entry = conv4.config.input
    raw = torch.randint(256, (5, *entry.shape), dtype=torch.uint8)
    view = View(entry.shape[1], tuple(entry.mean), tuple(entry.std), torch.device("cpu"))
    seen = run(tmp_path / "float.onnx", view.of(raw).contiguous().numpy())
    assert run(tmp_path / "raw.onnx", raw.permute(0, 2, 3, 1).contiguous().numpy()).tobytes() == seen.tobytes()


def test_probabilities_on_request(conv4: Artifact, tmp_path: Path) -> None:
    supermask.export_onnx(conv4, tmp_path / "model.onnx", softmax=True)
    pictures, theirs = logits_of(conv4, 4)
    ours = run(tmp_path / "model.onnx", pictures)
    np.testing.assert_allclose(ours, torch.tensor(theirs).softmax(1).numpy(), atol=1e-5)
    assert onnx.load(tmp_path / "model.onnx").graph.output[0].name == "probabilities"


def test_float16_halves_the_dense_file_and_rounds_the_weights_alone(conv4: Artifact, tmp_path: Path) -> None:
    whole = supermask.export_onnx(conv4, tmp_path / "whole.onnx", weights="dense")
    half = supermask.export_onnx(conv4, tmp_path / "half.onnx", dtype="float16")
    assert half.layout.weights == "dense"
    assert half.size < 0.55 * whole.size
    network, (pictures, _) = load_into(conv4), logits_of(conv4, 4)
    for layer in conv4.config.layers:
        weights = network.state_dict()[layer.name]
        weights.copy_(weights.half())
    close(run(tmp_path / "half.onnx", pictures), network(torch.from_numpy(pictures)).numpy())


def test_the_file_says_where_it_comes_from_and_how_to_feed_it(conv4: Artifact, tmp_path: Path) -> None:
    supermask.export_onnx(conv4, tmp_path / "model.onnx", input="uint8")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["supermask.weights_sha256"] == conv4.config.sha256.weights
    assert about["supermask.seed"] == "5"
    assert about["supermask.arch"] == "conv4"
    assert about["supermask.weights"] == "seed"
    assert 0.35 < float(about["supermask.k"]) < 0.45
    assert json.loads(about["supermask.labels"]) == conv4.config.labels
    entry = json.loads(about["supermask.input"])
    assert entry == {"type": "uint8", "shape": [3, 16, 16], "mean": [0.4] * 3, "std": [0.25] * 3}
    assert (session.get_inputs()[0].name, session.get_inputs()[0].shape) == ("pictures", ["N", 16, 16, 3])
    assert (session.get_outputs()[0].name, session.get_outputs()[0].shape) == ("logits", ["N", 10])


class Mixed(nn.Sequential):
    """A network of our own, with its head left whole."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))


FROM_SETTINGS: list[tuple[dict[str, Any], Form]] = [
    ({}, "seed"),
    ({"distribution": "unsigned-constant"}, "seed"),
    ({"distribution": "xavier-constant", "last_layer_dense": True}, "seed"),
    ({"values": "signs"}, "ternary"),
    ({"distribution": "kaiming-normal"}, "dense"),
    ({"values": "stored"}, "dense"),
    ({"values": "stored", "last_layer_dense": True}, "dense"),
]


@pytest.mark.parametrize(("how", "form"), FROM_SETTINGS)
def test_by_default_the_smallest_form_that_the_artifact_allows(how: dict[str, Any], form: Form, tmp_path: Path) -> None:
    model = Mixed()
    artifact = subnetwork(model, (3, 6, 6), **how)
    done = supermask.export_onnx(artifact, tmp_path / "model.onnx", model=model)
    assert done.layout.weights == form
    pictures = torch.randn(3, 3, 6, 6)
    close(run(tmp_path / "model.onnx", pictures.numpy()), model(pictures).detach().numpy())
    for smaller in FORMS[: FORMS.index(form)]:
        with pytest.raises(UsageError, match=rf"layer \w+\.weight .*; take --weights {form}"):
            supermask.export_onnx(artifact, tmp_path / "no.onnx", model=model, weights=smaller)
    assert not (tmp_path / "no.onnx").exists()


def test_a_whole_layer_of_any_weights_stands_beside_ternary_ones(tmp_path: Path) -> None:
    model = Mixed()
    artifact = subnetwork(model, (3, 6, 6), distribution="signed-constant", last_layer_dense=True)
    last = artifact.config.layers[-1]
    stored = last.model_copy(update={"values": "stored", "distribution": None, "std": None})
    config = artifact.config.model_copy(update={"layers": [*artifact.config.layers[:-1], stored], "sha256": UNHASHED})
    masks = {layer.name: torch.from_numpy(artifact.mask(layer)) for layer in config.layers}
    artifact = artifacts.encode(config, masks, {last.name: torch.randn(last.shape)}, artifact.state)
    assert supermask.export_onnx(artifact, tmp_path / "model.onnx", model=model).layout.weights == "ternary"


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"weights": "sed"}, ["--weights sed", "'seed'"]),
    ({"dtype": "bfloat16"}, ["--dtype bfloat16", "float16"]),
    ({"input": "uint16"}, ["--input uint16", "uint8"]),
    ({"dtype": "float16", "weights": "seed"}, ["float16", "--weights dense"]),
    ({"path": "."}, [". is a folder", "model.onnx"]),
]


@pytest.mark.parametrize(("settings", "words"), WRONG)
def test_wrong_words_are_named(settings: dict[str, Any], words: list[str], conv4: Artifact) -> None:
    with pytest.raises(UsageError) as caught:
        supermask.export_onnx(conv4, **{"path": "model.onnx", **settings})
    for word in words:
        assert word in str(caught.value)
    assert not Path("model.onnx").exists()


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    model = Mixed()
    artifact = subnetwork(model, (3, 6, 6))
    layer = artifact.config.layers[0].model_copy(update={"std": 1e6})
    config = artifact.config.model_copy(update={"layers": [layer, *artifact.config.layers[1:]], "sha256": UNHASHED})
    masks = {layer.name: torch.from_numpy(artifact.mask(layer)) for layer in config.layers}
    artifact = artifacts.encode(config, masks, {}, artifact.state)
    with pytest.raises(UsageError, match=r"layer 0\.weight has weights above 65504"):
        supermask.export_onnx(artifact, tmp_path / "model.onnx", model=model, dtype="float16")


class Restless(Mixed):
    """A network that no graph can be: it scales by how often it was called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return logits * self.calls


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    model = Restless()
    artifact = subnetwork(model, (3, 6, 6))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"of yesterday")
    with pytest.raises(ExportError, match="on 1 random pictures ONNX Runtime differs from torch by") as caught:
        supermask.export_onnx(artifact, path, model=model, weights="dense")
    assert caught.value.exit_code == 5
    assert path.read_bytes() == b"of yesterday"
    assert list(tmp_path.iterdir()) == [path]
    done = supermask.export_onnx(artifact, path, model=model, check=False)
    assert done.agreement is None
    assert path.stat().st_size == done.size


def test_a_network_whose_outputs_are_not_finite_fails_the_check(conv4: Artifact, tmp_path: Path) -> None:
    layers = [layer.model_copy(update={"std": 1e38}) for layer in conv4.config.layers]
    config = conv4.config.model_copy(update={"layers": layers, "sha256": UNHASHED})
    masks = {layer.name: torch.from_numpy(conv4.mask(layer)) for layer in layers}
    with pytest.raises(ExportError, match="not finite"):
        supermask.export_onnx(artifacts.encode(config, masks, {}, conv4.state), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_one_line(conv4: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(supermask.StorageError, match="cannot write"):
        supermask.export_onnx(conv4, tmp_path / "file" / "model.onnx", check=False)


RUN_ELSEWHERE = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"pictures": numpy.load(sys.argv[2])})[0])
print(onnxruntime.__version__)
"""
OTHERS = [Path(part) for part in os.environ.get("SUPERMASK_ONNXRUNTIME", "").split(os.pathsep) if part]


@pytest.mark.skipif(
    not OTHERS, reason="SUPERMASK_ONNXRUNTIME names no folders of other versions (pip install --target)"
)
@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_other_versions_of_onnx_runtime_run_every_form(folder: Path, conv4: Artifact, tmp_path: Path) -> None:
    pictures, theirs = logits_of(conv4, 3)
    np.save(tmp_path / "in.npy", pictures)
    found = []
    for form in FORMS:
        supermask.export_onnx(conv4, tmp_path / form, weights=form)
        command = [sys.executable, "-c", RUN_ELSEWHERE, *(str(tmp_path / name) for name in (form, "in.npy", "out.npy"))]
        env = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() != ort.__version__
        found.append(np.load(tmp_path / "out.npy"))
        close(found[-1], theirs)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
