"""Checkpoints of the papers' public code, written here in its layout, as artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import supermask
from supermask import IntegrityError, UsageError, registry
from supermask import artifact as artifacts
from supermask.reference import import_checkpoint
from tests.commands import run_here

State = dict[str, Tensor]

# conv4 as the reference code names its parts, an eighth as wide; its linear layers are convolutions of one pixel.
CONV4 = {
    "convs.0": (8, 3, 3, 3),
    "convs.2": (8, 8, 3, 3),
    "convs.5": (16, 8, 3, 3),
    "convs.7": (16, 16, 3, 3),
    "linear.0": (32, 16 * 8 * 8, 1, 1),
    "linear.2": (32, 32, 1, 1),
    "linear.4": (10, 32, 1, 1),
}
WORDS = ("--arch", "conv4", "--strategy", "edge-popup", "--k", "0.3", "--set", "arch.args.width=0.125")
TOLD: dict[str, Any] = {"arch": "conv4", "strategy": "edge-popup", "k": 0.3, "arch_args": {"width": 0.125}}


def weight(shape: tuple[int, ...], *, constant: bool) -> Tensor:
    """Drawn as the reference code draws: signed Kaiming constants, or Kaiming normal."""
    std, noise = (2 / (torch.Size(shape[1:]).numel())) ** 0.5, torch.randn(shape)
    return torch.where(noise > 0, std, -std) if constant else noise * std


def conv4_state(*, constant: bool = True, prefix: str = "module.") -> State:
    torch.manual_seed(4)
    state: State = {}
    for name, shape in CONV4.items():
        state[f"{prefix}{name}.weight"] = weight(shape, constant=constant)
        state[f"{prefix}{name}.scores"] = torch.rand(shape) - 0.5
    return state


def saved(state: Mapping[str, Any], file: str = "model_best.pth", **how: Any) -> Path:
    """As the reference code saves: the state among plain values."""
    plain = {"epoch": 99, "arch": "Conv4", "best_acc1": 81.5, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    torch.save({**plain, "state_dict": state}, file, **how)
    return Path(file)


def kept(scores: Tensor, k: float) -> Tensor:
    """Their mask: sort |scores|, drop the first int((1-k) * n)."""
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.abs().flatten().sort(stable=True).indices[: int((1 - k) * scores.numel())]] = False
    return mask.view_as(scores)


def masked(state: State, name: str, k: float) -> Tensor:
    return state[f"{name}.weight"] * (kept(state[f"{name}.scores"], k) if f"{name}.scores" in state else 1)


def conv4_logits(state: State, pictures: Tensor, k: float) -> Tensor:
    x = pictures
    for name in ("convs.0", "convs.2", "convs.5", "convs.7"):
        x = F.relu(F.conv2d(x, masked(state, f"module.{name}", k), padding=1))
        x = F.max_pool2d(x, 2) if name in {"convs.2", "convs.7"} else x
    x = x.flatten(1)[:, :, None, None]
    for name in ("linear.0", "linear.2"):
        x = F.relu(F.conv2d(x, masked(state, f"module.{name}", k)))
    return F.conv2d(x, masked(state, "module.linear.4", k)).flatten(1)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("k", [0.3, 0.5, 1.0])
def test_a_conv4_under_the_codes_own_names_gives_its_logits(constant: bool, k: float) -> None:
    state, pictures = conv4_state(constant=constant), torch.randn(4, 3, 32, 32)
    artifact = import_checkpoint(saved(state), **{**TOLD, "k": k})
    artifacts.write(artifact, Path("net"))
    assert torch.allclose(supermask.load("net")(pictures), conv4_logits(state, pictures, k), rtol=1e-5, atol=1e-6)
    for layer, shape in zip(artifact.config.layers, CONV4.values(), strict=True):
        n = torch.Size(shape).numel()
        assert (layer.n, layer.kept) == (n, n - int((1 - k) * n))
        assert layer.values == ("signs" if constant else "stored")
    assert artifact.config.provenance["dataset"] == "cifar10"
    assert artifact.config.metrics == {}


@pytest.mark.parametrize("affine", [False, True])
def test_a_resnet_gives_its_logits_to_the_last_bit_batch_norm_and_all(affine: bool) -> None:
    torch.manual_seed(18)
    args = {"in_channels": 3, "image_size": 32, "num_classes": 100, "affine": affine}
    model = registry.build("resnet18-cifar", args).eval()
    state: State = {}
    for name, value in model.state_dict().items():
        theirs = f"module.{name.replace('downsample', 'shortcut')}"
        if value.dim() > 1:
            shape = (*value.shape, 1, 1) if value.dim() == 2 else value.shape
            state[theirs] = weight(tuple(shape), constant=True)
            state[theirs.replace(".weight", ".scores")] = torch.rand(shape) - 0.5
        else:
            state[theirs] = value + 99 if name.endswith("num_batches_tracked") else torch.rand(value.shape) + 0.5
    file = saved(state)
    expected = {
        name: (masked(state, theirs.removesuffix(".weight"), 0.3) if value.dim() > 1 else state[theirs]).view_as(value)
        for name, value in model.state_dict().items()
        for theirs in [f"module.{name.replace('downsample', 'shortcut')}"]
    }
    model.load_state_dict(expected)
    artifacts.write(import_checkpoint(file, arch="resnet18-cifar", strategy="edge-popup", k=0.3), Path("net"))
    found, pictures = supermask.load("net"), torch.randn(2, 3, 32, 32)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.items())
    assert set(found.state_dict()) == set(expected)
    with torch.no_grad():
        assert torch.equal(found(pictures), model(pictures))
    assert supermask.read("net").config.provenance["dataset"] == "cifar100"


def test_a_layer_without_scores_is_kept_whole() -> None:
    state = conv4_state(constant=False)
    del state["module.convs.0.scores"]
    artifact = import_checkpoint(saved(state), **TOLD)
    first, second = artifact.config.layers[:2]
    assert (first.masked, first.kept, second.masked) == (False, first.n, True)
    artifacts.write(artifact, Path("net"))
    pictures = torch.randn(4, 3, 32, 32)
    assert torch.allclose(supermask.load("net")(pictures), conv4_logits(state, pictures, 0.3), rtol=1e-5, atol=1e-6)


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose tensors say that they were on a GPU."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    return saved(conv4_state())


def bare(monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(conv4_state(prefix=""), "bare.pth")
    return Path("bare.pth")


@pytest.mark.parametrize(
    "write",
    [
        bare,
        on_a_gpu,
        lambda _: saved(conv4_state(), _use_new_zipfile_serialization=False),
        lambda _: saved({key: value.double() for key, value in conv4_state().items()}),
        lambda _: saved({key: torch.nn.Parameter(value) for key, value in conv4_state().items()}),
    ],
    ids=["a bare state_dict", "from a GPU", "before torch 1.6", "doubles", "parameters"],
)
def test_however_it_was_saved_it_is_the_same_artifact(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[pytest.MonkeyPatch], Path]
) -> None:
    expected = import_checkpoint(saved(conv4_state(), "expected.pth"), **TOLD)
    found = import_checkpoint(write(monkeypatch), **TOLD)
    assert found.serialized == expected.serialized
    assert found.config.layers == expected.config.layers
    assert found.config.sha256.weights == expected.config.sha256.weights


def test_the_command_tells_what_it_kept_and_writes_a_sound_folder(capsys: pytest.CaptureFixture[str]) -> None:
    saved(conv4_state())
    status, out, err = run_here(capsys, "import", "model_best.pth", *WORDS, "--json")
    assert (status, err) == (0, "")
    sizes = [torch.Size(shape).numel() for shape in CONV4.values()]
    folder = Path("model_best")
    assert json.loads(out) == {
        "path": "model_best",
        "kept": sum(n - int(0.7 * n) for n in sizes),
        "weights": sum(sizes),
        "artifact_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
    assert run_here(capsys, "verify", "model_best")[0] == 0
    status, out, _ = run_here(capsys, "import", "model_best.pth", *WORDS, "--output", "other")
    assert status == 0
    assert "signs" in out
    assert (Path("other") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_folder_that_is_there_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    saved(conv4_state())
    Path("model_best").mkdir()
    (Path("model_best") / "notes.txt").write_text("mine")
    status, out, err = run_here(capsys, "import", "model_best.pth", *WORDS)
    assert (status, out) == (2, "")
    assert "model_best is there already; name another folder with --output" in err
    assert [path.name for path in Path("model_best").iterdir()] == ["notes.txt"]


class Evil:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched").absolute(),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_run(capsys: pytest.CaptureFixture[str], zipped: bool) -> None:
    saved({**conv4_state(), "module.extra": Evil()}, _use_new_zipfile_serialization=zipped)
    assert_refused(capsys, 4, ["model_best.pth", "would have to be run", "save its state_dict alone"])
    assert not Path("touched").exists()


def assert_refused(
    capsys: pytest.CaptureFixture[str], expected: int, words: list[str], *more: str, file: str = "model_best.pth"
) -> None:
    """The command ends with this status and one line that holds these words, and leaves nothing behind."""
    before = sorted(Path().iterdir())
    status, out, err = run_here(capsys, "import", file, *WORDS, *more)
    (line,) = err.splitlines()
    assert (status, out) == (expected, "")
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert sorted(Path().iterdir()) == before


def nan(state: State) -> State:
    state["module.convs.2.weight"][0, 0, 0, 0] = float("nan")
    return state


def infinite(state: State) -> State:
    state["module.linear.2.scores"][1, 1] = float("inf")
    return state


BAD_STATES: dict[str, tuple[Callable[[State], Mapping[str, Any]], int, list[str]]] = {
    "scores alone": (lambda s: {"module.x.scores": torch.ones(3)}, 4, ["no layer has a weight"]),
    "a sparse weight": (
        lambda s: {**s, "module.convs.0.weight": s["module.convs.0.weight"].to_sparse()},
        4,
        ["convs.0.weight is no plain tensor"],
    ),
    "a double too large": (
        lambda s: {**s, "module.convs.0.weight": torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64)},
        4,
        ["convs.0.weight", "too large"],
    ),
    "no number": (nan, 4, ["convs.2.weight"]),
    "an infinite score": (infinite, 4, ["linear.2.scores"]),
    "no scores": (lambda s: {k: v for k, v in s.items() if "scores" not in k}, 4, ["no layer has scores"]),
    "no state": (lambda s: {}, 4, ["no layer has scores"]),
    "something beside tensors": (lambda s: {**s, "module.epoch": 3}, 4, ["no state_dict"]),
    "a layer too few": (lambda s: {k: v for k, v in s.items() if "linear.2" not in k}, 2, ["conv4 has 7", "6"]),
    "a layer too many": (lambda s: {**s, "module.last.weight": torch.ones(10, 10)}, 2, ["conv4 has 7", "8"]),
    "a bias too many": (lambda s: {**s, "module.linear.4.bias": torch.ones(10)}, 2, ["linear.4.bias", "no place"]),
    "another width": (lambda s: {**s, "module.convs.2.weight": torch.ones(9, 8, 3, 3)}, 2, ["[9, 8, 3, 3]"]),
    "scores of another shape": (lambda s: {**s, "module.convs.2.scores": torch.ones(8)}, 2, ["scores of convs.2"]),
    "seven classes": (
        lambda s: {**s, **{f"module.linear.4.{key}": torch.ones(7, 32, 1, 1) for key in ("weight", "scores")}},
        2,
        ["7 classes fit no data set", "--data"],
    ),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_checkpoint_of_something_else_is_refused_by_place(capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, status, words = BAD_STATES[name]
    saved(change(conv4_state()))
    assert_refused(capsys, status, words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "0"], "k = 0"),
        (["--k", "1.5"], "k = 1.5"),
        (["--k", "nan"], "k = nan"),
        (["--arch", "conv5"], "'conv5'"),
        (["--arch", "conv6"], "conv6 has 9 tensors"),
        (["--arch", "resnet18-cifar"], "resnet18-cifar"),
        (["--strategy", "edgepopup"], "'edgepopup'"),
        (["--strategy", "bernoulli"], "bernoulli has no option 'k'"),
        (["--data", "cifar"], "data 'cifar'"),
        (["--data", "cifar100"], "'cifar100' does not fit a checkpoint with 3 inputs and 10 classes"),
        (["--set", "arch.args.width=1e6"], "conv4 has features.0.weight"),
        (["--set", "arch.args.width=wide"], "width"),
        (["--set", "epochs=3"], "arch.args.NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_usage_errors(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    saved(conv4_state())
    assert_refused(capsys, 2, [said], *words)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_anywhere_is_refused(zipped: bool) -> None:
    content = saved(conv4_state(), "whole.pth", _use_new_zipfile_serialization=zipped).read_bytes()
    for length in [0, 1, 2, 100, 1000, len(content) // 2, len(content) - 1000, len(content) - 30]:
        Path("cut.pth").write_bytes(content[:length])
        with pytest.raises(IntegrityError, match=r"cut\.pth"):
            import_checkpoint("cut.pth", **TOLD)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04", b"\x80\x02}."])
def test_a_file_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    Path("model_best.pth").write_bytes(content)
    assert_refused(capsys, 4, ["model_best.pth"])


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert_refused(capsys, 3, ["no checkpoint 'missing.pth'"], file="missing.pth")
    assert_refused(capsys, 3, [str(tmp_path)], file=str(tmp_path))
    assert_refused(capsys, 3, ["no checkpoint '.'"], file="")


@pytest.mark.parametrize("words", [["--set", "arch=3"], ["--set", "arch.args=3"], ["--set", "k=0.3"]])
def test_other_settings_than_arguments_of_the_architecture_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    status, _, err = run_here(capsys, "import", str(saved(conv4_state())), *WORDS, *words)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "an import takes arguments of the architecture alone" in err


def test_data_may_be_named_where_shapes_fit_several() -> None:
    torch.manual_seed(1)
    state = {"module.1.weight": torch.randn(10, 3 * 32 * 32), "module.1.scores": torch.randn(10, 3 * 32 * 32)}
    told: dict[str, Any] = {"arch": "fc", "strategy": "edge-popup", "k": 0.5, "arch_args": {"widths": []}}
    artifact = import_checkpoint(saved(state), **told)
    assert (artifact.config.provenance["dataset"], artifact.config.input.shape) == ("cifar10", [3, 32, 32])
    with pytest.raises(UsageError, match=r"data .mnist. does not fit a checkpoint with 3072 inputs"):
        import_checkpoint(saved(state), **told, data="mnist")
