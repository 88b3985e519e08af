"""supermask predict and eval --backend onnx: the very predictions of torch's evaluation, from any picture."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from torch import nn

import supermask as library
from supermask import artifact as artifacts
from supermask import folder as folders
from supermask import registry
from supermask.artifact import Artifact
from supermask.data import EvaluationBatches, View
from supermask.datasets import Dataset, Pictures
from supermask.errors import UsageError
from supermask.folder import IMAGENET_STATISTICS
from supermask.manifest import ArchEntry
from supermask.network import load_into
from supermask.onnx.run import of_artifact
from supermask.predict import AT_ONCE, Picture, Prediction, find, predict
from tests.commands import run_here as command
from tests.commands import supermask
from tests.subnetworks import of_architecture, subnetwork

Probabilities = npt.NDArray[np.float64]


def stream_of(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content))


def changed(artifact: Artifact, **fields: Any) -> Artifact:
    """An artifact whose configuration says something else, hashed anew."""
    return artifacts.with_metrics(replace(artifact, config=artifact.config.model_copy(update=fields)), {})


def normalised_by(artifact: Artifact, mean: Sequence[float], std: Sequence[float]) -> Artifact:
    entry = artifact.config.input.model_copy(update={"mean": list(mean), "std": list(std)})
    return changed(artifact, input=entry)


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def torchs(network: nn.Module, artifact: Artifact, dataset: Dataset) -> Probabilities:
    """Probabilities of a data set's test pictures, as torch's evaluation sees them."""
    entry = artifact.config.input
    view = View(entry.shape[1], tuple(entry.mean), tuple(entry.std), torch.device("cpu"))
    with torch.no_grad():
        parts = [network(images).double().softmax(1) for images, _ in EvaluationBatches(dataset.test, view, 100)]
    probabilities: Probabilities = torch.cat(parts).numpy()
    return probabilities


def ours(out: str, labels: Sequence[str]) -> Probabilities:
    """What `predict --json --top 1000` printed, in the order of the labels."""
    rows = [{best["label"]: best["probability"] for best in each["predictions"]} for each in json.loads(out)]
    return np.array([[row[label] for label in labels] for row in rows])


@pytest.fixture(scope="module")
def model(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    library.export_onnx(library.read(found), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 359 test digits as files, their class in their name."""
    folder = tmp_path_factory.mktemp("pictures")
    test = registry.open_dataset("digits").test
    assert isinstance(test, Pictures)
    for i, (image, label) in enumerate(zip(test.images, test.labels.tolist(), strict=True)):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03}_{label}.png")
    return folder


def digit(pictures: Path, place: int = 0) -> Path:
    return sorted(pictures.iterdir())[place]


# The same predictions as torch's evaluation.


@pytest.mark.parametrize(
    "exported",
    [
        None,
        {"weights": "seed"},
        {"weights": "ternary", "softmax": True},
        {"weights": "dense", "input": "uint8"},
        {"weights": "seed", "input": "uint8", "softmax": True},
    ],
    ids=str,
)
def test_every_test_digit_gets_the_probabilities_of_torchs_evaluation(
    capsys: pytest.CaptureFixture[str], found: Path, pictures: Path, exported: dict[str, Any] | None
) -> None:
    artifact, network = library.read(found), str(found)
    if exported is not None:
        library.export_onnx(artifact, "model.onnx", **exported)
        network = "model.onnx"
    status, out, err = command(capsys, "predict", network, str(pictures), "--top", "10", "--json")
    assert (status, err) == (0, "")
    expected = torchs(library.load(found), artifact, registry.open_dataset("digits"))
    probabilities = ours(out, artifact.config.labels)
    assert probabilities.shape == (359, 10)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert (probabilities.argmax(1) == expected.argmax(1)).all()


def test_small_pictures_are_enlarged_as_a_data_sets_are(capsys: pytest.CaptureFixture[str], pictures: Path) -> None:
    artifact = of_architecture("conv4", in_channels=1, image_size=16)
    artifacts.write(artifact, Path("artifact"))
    status, out, _ = command(capsys, "predict", "artifact", str(pictures), "--top", "10", "--json")
    assert status == 0
    expected = torchs(load_into(artifact), artifact, registry.open_dataset("digits"))
    np.testing.assert_allclose(ours(out, artifact.config.labels), expected, atol=1e-5)


def save_every_kind(folder: Path) -> None:
    """Pictures of other shapes, modes, orientations and files than the network's."""
    folder.mkdir(parents=True)
    colours = Image.fromarray(noise(48, 70, 3))
    colours.save(folder / "a wide.png")
    colours.rotate(90, expand=True).save(folder / "b tall.webp", lossless=True)
    colours.resize((32, 32)).save(folder / "c exact.bmp")
    colours.convert("L").save(folder / "d grey.png")
    colours.convert("1").save(folder / "e black and white.png")
    colours.convert("CMYK").save(folder / "f cmyk.jpg")
    colours.convert("P").save(folder / "g palette.png")
    colours.convert("P").save(folder / "h clear palette.png", transparency=bytes(range(256)))
    Image.fromarray(noise(40, 40, 4)).save(folder / "i alpha.png")
    Image.fromarray(noise(40, 40, 2), "LA").save(folder / "j grey alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    colours.save(folder / "k turned.jpg", exif=turned)
    Image.fromarray(noise(40, 40).astype(np.uint16) * 256).save(folder / "l sixteen bits.png")
    Image.fromarray(noise(40, 40).astype(np.float32), "F").save(folder / "m floats.tiff")


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # the data set's own decoding
@pytest.mark.parametrize(
    ("channels", "streaming"), [(1, False), (3, False), (3, True)], ids=["grey", "colours", "streaming"]
)
def test_pictures_of_every_kind_are_seen_as_evaluation_sees_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, channels: int, streaming: bool
) -> None:
    if streaming:
        monkeypatch.setattr(folders, "MEMORY_BYTES", 0)
    save_every_kind(Path("set/val/thing"))
    Path("set/train/thing").mkdir(parents=True)
    Image.fromarray(noise(40, 40) if channels == 1 else noise(40, 40, 3)).save("set/train/thing/1.png")
    dataset = registry.open_dataset("folder:set", image_size=32, workers=0)
    assert (dataset.channels, (dataset.mean, dataset.std) == IMAGENET_STATISTICS) == (channels, streaming)
    artifact = of_architecture("conv2", in_channels=channels)
    artifact = normalised_by(artifact, dataset.mean, dataset.std)
    artifacts.write(artifact, Path("artifact"))
    status, out, err = command(capsys, "predict", "artifact", "set/val", "--top", "10", "--json")
    assert (status, err) == (0, "")
    expected = torchs(load_into(artifact), artifact, dataset)
    found = ours(out, artifact.config.labels)
    assert len(found) == 13
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_network_that_takes_raw_pictures_sees_the_same_squares(capsys: pytest.CaptureFixture[str]) -> None:
    save_every_kind(Path("pictures"))
    artifact = of_architecture("conv2")
    answers = []
    for name, given in (("float.onnx", "float"), ("uint8.onnx", "uint8")):
        library.export_onnx(artifact, name, input=given)  # type: ignore[arg-type]
        status, out, _ = command(capsys, "predict", name, "pictures", "--top", "10", "--json")
        assert status == 0
        answers.append(ours(out, artifact.config.labels))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_many_pictures_come_in_order_and_few_are_held_at_once(found: Path, pictures: Path) -> None:
    runtime = of_artifact(library.read(found), "cpu")
    sizes: list[int] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(runtime.session, name)

        def run(self, outputs: None, given: dict[str, Any]) -> Any:
            sizes.append(len(given["pictures"]))
            return runtime.session.run(outputs, given)

    sources = list(find([str(pictures)], io.BytesIO()))
    told = list(predict(replace(runtime, session=Counting()), sources, top=1))
    assert [each.picture for each in told if isinstance(each, Prediction)] == sorted(map(str, pictures.iterdir()))
    assert (max(sizes), sum(sizes)) == (AT_ONCE, 359)


# What is printed.


def test_a_table_has_picture_label_and_probability(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    status, out, err = command(capsys, "predict", str(model), str(digit(pictures)), "--top", "2")
    header, first, second = out.splitlines()
    assert (status, err) == (0, "")
    assert header.split() == ["picture", "label", "probability"]
    assert first.split()[:2] == [str(digit(pictures)), "4"]
    assert 50 < float(first.split()[2].rstrip("%")) <= 100
    assert len(second.split()) == 2


def test_json_has_the_labels_from_the_most_to_the_least_probable(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    status, out, _ = command(capsys, "predict", str(model), str(digit(pictures)), "--json", "--top", "1000")
    (found,) = json.loads(out)
    probabilities = [best["probability"] for best in found["predictions"]]
    assert (status, found["picture"]) == (0, str(digit(pictures)))
    assert sorted(best["label"] for best in found["predictions"]) == [str(i) for i in range(10)]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_five_labels_are_shown_unless_told_otherwise(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    _, out, _ = command(capsys, "predict", str(model), str(digit(pictures)), "--json")
    assert len(json.loads(out)[0]["predictions"]) == 5
    assert command(capsys, "predict", str(model), str(digit(pictures)), "--top", "0")[0] == 2


@pytest.mark.parametrize("labels", [[], ["naïve", "[bold]", "日本", *"defghij"]])
def test_labels_of_any_script_and_their_absence(
    capsys: pytest.CaptureFixture[str], pictures: Path, labels: list[str]
) -> None:
    artifact = changed(of_architecture("fc", in_channels=1, image_size=8), labels=labels)
    artifacts.write(artifact, Path("artifact"))
    library.export_onnx(artifact, "model.onnx")
    for network in ("artifact", "model.onnx"):
        status, out, _ = command(capsys, "predict", network, str(digit(pictures)), "--top", "10", "--json")
        (found,) = json.loads(out)
        assert status == 0
        expected = labels or [str(i) for i in range(10)]
        assert sorted(best["label"] for best in found["predictions"]) == sorted(expected)
        _, out, _ = command(capsys, "predict", network, str(digit(pictures)), "--top", "10")
        assert all(label in out for label in labels)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("eine Ziffer é 数字 ☃.png", "eine Ziffer é 数字 ☃.png"),
        ("[red]9[bold].png", "[red]9[bold].png"),
        ("two\nlines\x1b[1m.png", "two\\nlines\\x1b[1m.png"),
        ("not utf-8 \udcff.png", "not utf-8 \\xff.png"),
    ],
)
def test_a_files_name_is_printed_in_one_line_whatever_it_is(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path, name: str, shown: str
) -> None:
    Path("folder").mkdir()
    Path("folder", name).write_bytes(digit(pictures).read_bytes())
    for given in ("folder", f"folder/{name}"):
        status, out, _ = command(capsys, "predict", str(model), given, "--top", "1")
        assert status == 0
        assert out.splitlines()[1].startswith(f"folder/{shown}  4 ")
        _, out, _ = command(capsys, "predict", str(model), given, "--json")
        assert json.loads(out)[0]["picture"] == f"folder/{shown}"


# Pictures that cannot be read.


def damage(pictures: Path) -> None:
    """A folder of one digit and of what is none, and another of no pictures."""
    for name in ("some/deep", "none"):
        Path(name).mkdir(parents=True)
    Path("some/deep/digit.png").write_bytes(digit(pictures).read_bytes())
    Path("some/cut.png").write_bytes(digit(pictures).read_bytes()[:-40])
    Path("some/empty.jpg").touch()
    Path("some/text.png").write_text("not a picture")
    Path("some/notes.txt").write_text("not a picture, and not said to be one")
    Path("none/notes.txt").touch()


def test_damaged_pictures_are_named_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    damage(pictures)
    status, out, err = command(capsys, "predict", str(model), "some", "--json")
    assert status == 4
    assert [found["picture"] for found in json.loads(out)] == ["some/deep/digit.png"]
    assert [line.partition(" (")[0] for line in err.splitlines()] == [
        "error: cannot read some/cut.png",
        "error: cannot read some/empty.jpg",
        "error: cannot read some/text.png",
    ]


def test_missing_pictures_are_named_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    damage(pictures)
    names = ["nowhere.png", "some/deep", "none", "elsewhere"]
    status, out, err = command(capsys, "predict", str(model), *names, "--json")
    assert status == 3
    assert [found["picture"] for found in json.loads(out)] == ["some/deep/digit.png"]
    for line, name in zip(err.splitlines(), ("nowhere.png", "none", "elsewhere"), strict=True):
        assert line.startswith("error: no ")
        assert name in line


def test_damage_outweighs_absence_and_no_picture_at_all_is_an_empty_answer(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    damage(pictures)
    names = ["some/cut.png", "nowhere.png"]
    status, out, err = command(capsys, "predict", str(model), *names)
    assert (status, out, len(err.splitlines())) == (4, "", 2)
    status, out, _ = command(capsys, "predict", str(model), *names, "--json")
    assert (status, json.loads(out)) == (4, [])


def test_a_picture_that_would_fill_the_memory_is_unreadable(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (300, 300)).save("bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    status, _, err = command(capsys, "predict", str(model), "bomb.png")
    assert status == 4
    assert "decompression bomb" in err
    # Up to twice the limit Pillow only warns.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 300)
    status, _, err = command(capsys, "predict", str(model), "bomb.png")
    assert (status, err) == (0, "")


# Standard input.


def test_standard_input_is_a_picture(model: Path, pictures: Path) -> None:
    with digit(pictures).open("rb") as file:
        done = supermask("predict", str(model), "-", "--json", stdin=file)
    (found,) = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["picture"], found["predictions"][0]["label"]) == (0, "", "-", "4")


def test_standard_input_is_a_list_of_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path, pictures: Path
) -> None:
    names = [digit(pictures, 2), pictures / "nowhere.png", digit(pictures, 0)]
    content = "".join(f"{name}\n" for name in names).encode()
    monkeypatch.setattr(sys, "stdin", stream_of(content))
    status, out, err = command(capsys, "predict", str(model), "-", "--json")
    assert [found["picture"] for found in json.loads(out)] == [str(names[0]), str(names[2])]
    assert (status, err) == (3, f"error: no file or folder {names[1]}\n")


@pytest.mark.parametrize(
    ("length", "expected", "beginning"),
    [(0, 3, "error: nothing came on standard input"), (50, 4, "error: cannot read - (")],
)
def test_standard_input_that_is_nothing_or_damaged_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    pictures: Path,
    length: int,
    expected: int,
    beginning: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", stream_of(digit(pictures).read_bytes()[:length]))
    status, out, err = command(capsys, "predict", str(model), "-")
    assert (status, out, len(err.splitlines())) == (expected, "", 1)
    assert err.startswith(beginning)


@pytest.mark.parametrize("suffix", sorted([".png", ".jpg", ".bmp", ".gif", ".tiff", ".webp", ".ppm"]))
def test_no_usual_kind_of_picture_is_taken_for_text(suffix: str) -> None:
    content = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(content, Image.registered_extensions()[suffix])
    (found,) = find(["-"], io.BytesIO(content.getvalue()))
    assert found == Picture("-", content.getvalue())


# Networks that cannot be used.


def other_makers() -> onnx.ModelProto:
    """A sound file of another program."""
    value = helper.make_tensor_value_info
    node = helper.make_node("Flatten", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", 1, ["N", 1, 8, 8])], [value("y", 1, ["N", 64])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_file_of_another_maker_is_refused(capsys: pytest.CaptureFixture[str], pictures: Path) -> None:
    onnx.save(other_makers(), "theirs.onnx")
    status, out, err = command(capsys, "predict", "theirs.onnx", str(digit(pictures)))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: theirs.onnx was not written by supermask export")


def test_a_file_that_is_cut_short_or_none_at_all_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path
) -> None:
    sound = model.read_bytes()
    for name, content in (
        ("cut.onnx", sound[: len(sound) // 2]),
        ("empty.onnx", b""),
        ("text.onnx", b"not a network"),
        ("picture.png", digit(pictures).read_bytes()),
    ):
        Path(name).write_bytes(content)
        status, out, err = command(capsys, "predict", name, str(digit(pictures)))
        assert (status, out, len(err.splitlines())) == (4, "", 1)
        assert err.startswith(f"error: {name} is neither an artifact's folder nor a sound ONNX file")


@pytest.mark.parametrize("name", ["nowhere.onnx", "user/nowhere.onnx", "nowhere"])
def test_a_network_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], pictures: Path, name: str) -> None:
    status, out, err = command(capsys, "predict", name, str(digit(pictures)))
    assert (status, out, len(err.splitlines())) == (3, "", 1)
    assert name in err


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("supermask.labels", '["a", "b"]', "names 2 classes, the network has 10"),
        ("supermask.labels", "{}", "supermask.labels: "),
        ("supermask.input", "?", "supermask.input: "),
        ("supermask.input", '{"type":"uint8","shape":[1,8,8],"mean":[0],"std":[1]}', "the graph takes otherwise"),
        ("supermask.input", '{"type":"float","shape":[1,9,9],"mean":[0],"std":[1]}', "the graph takes otherwise"),
        ("supermask.input", '{"type":"float","shape":[1,8,8],"mean":[0,0],"std":[1]}', "the graph takes otherwise"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path, key: str, value: str, complaint: str
) -> None:
    content = onnx.load(model)
    helper.set_model_props(content, {entry.key: entry.value for entry in content.metadata_props} | {key: value})
    onnx.save(content, "model.onnx")
    status, out, err = command(capsys, "predict", "model.onnx", str(digit(pictures)))
    assert (status, out, len(err.splitlines())) == (4, "", 1)
    assert complaint in err


def test_a_network_that_takes_neither_grey_nor_rgb_is_refused(
    capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    artifacts.write(of_architecture("fc", in_channels=2, image_size=8), Path("artifact"))
    status, out, err = command(capsys, "predict", "artifact", str(digit(pictures)))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "takes 2 channels" in err


# Devices.


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("args", [["predict", "model.onnx", "digit.png"], ["eval", "run", "--backend", "onnx"]])
def test_cuda_that_is_not_there_is_one_line_and_auto_is_silent(
    capfd: pytest.CaptureFixture[str], found: Path, model: Path, pictures: Path, args: list[str]
) -> None:
    """Silent below Python too, where ONNX Runtime has its own log."""
    Path("run").symlink_to(found)
    Path("model.onnx").symlink_to(model)
    Path("digit.png").symlink_to(digit(pictures))
    status, out, err = command(capfd, *args, "--device", "cuda")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "finds no GPU here" in err
    status, out, err = command(capfd, *args)
    assert (status, err) == (0, "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_gives_the_probabilities_of_the_cpu(
    capsys: pytest.CaptureFixture[str], found: Path, pictures: Path
) -> None:
    answers = []
    for device in ("cpu", "cuda"):
        _, out, _ = command(capsys, "predict", str(found), str(pictures), "--top", "10", "--json", "--device", device)
        answers.append(ours(out, [str(i) for i in range(10)]))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:0"])
def test_a_device_that_onnx_runtime_does_not_know_here_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, pictures: Path, device: str
) -> None:
    status, _, err = command(capsys, "predict", str(model), str(digit(pictures)), "--device", device)
    assert status == 2
    assert err == f"error: --device {device}: ONNX Runtime computes on auto, cpu or cuda here\n"


# Evaluation.


def test_both_backends_measure_the_same_accuracy(capsys: pytest.CaptureFixture[str], found: Path) -> None:
    scores = []
    for backend in ("torch", "onnx"):
        status, out, _ = command(capsys, "eval", str(found), "--backend", backend, "--batch-size", "100", "--json")
        assert status == 0
        scores.append(json.loads(out))
    assert scores[1] == {**scores[0], "loss": pytest.approx(scores[0]["loss"], rel=1e-5)}


@pytest.mark.parametrize("values", ["seed", "signs", "stored"])
def test_both_backends_agree_on_the_whole_test_set_of_mnist(
    capsys: pytest.CaptureFixture[str], real_data: Path, values: Any
) -> None:
    artifact = of_architecture("fc", in_channels=1, image_size=28, values=values)
    artifacts.write(changed(artifact, labels=[str(i) for i in range(10)]), Path("artifact"))
    scores = []
    for backend in ("torch", "onnx"):
        args = ["artifact", "--data", "mnist", "--data-root", str(real_data), "--backend", backend, "--json"]
        status, out, _ = command(capsys, "eval", *args)
        assert status == 0
        scores.append(json.loads(out))
    assert scores[1] == {**scores[0], "loss": pytest.approx(scores[0]["loss"], rel=1e-5)}
    assert scores[1]["pictures"] == 10_000


def test_a_backend_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str], found: Path) -> None:
    status, _, err = command(capsys, "eval", str(found), "--backend", "onx")
    assert (status, err) == (2, "error: --backend onx: did you mean 'onnx'?\n")


class Attentive(nn.Module):
    """A network with an operator that only torch's own exporter writes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        rows = pictures[:, 0]
        logits: torch.Tensor = self.head(self.attention(rows, rows, rows, need_weights=False)[0].flatten(1))
        return logits


def test_what_only_torchs_exporter_writes_runs_with_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = subnetwork(Attentive(), (1, 8, 8), arch=ArchEntry(name="fc", args={}))
    monkeypatch.setattr(registry, "build", lambda name, args: Attentive())
    if find_spec("onnxscript") is None:
        with pytest.raises(UsageError, match="pip install onnxscript"):
            of_artifact(artifact, "cpu")
        pytest.skip("torch's own exporter needs onnxscript")
    seen = torch.randn(3, 1, 8, 8)
    expected = load_into(artifact)(seen).numpy()
    np.testing.assert_allclose(of_artifact(artifact, "cpu").outputs(seen.numpy()), expected, atol=1e-4)
