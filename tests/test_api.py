"""The Python interface, and masks on modules that the zoo has never seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import supermask
from supermask import ArtifactError, NotFoundError, UsageError, masking
from supermask.config import WEIGHT_DISTRIBUTIONS, WeightDistribution, WeightsConfig
from supermask.data import View
from supermask.draw import draw
from supermask_strategies import Bernoulli, Dense, EdgePopup
from tests import reference_reader
from tests.test_trainer import SMALL, stripes


class Unusual(nn.Module):
    """A 1-d convolution with a bias, attention, a norm with scale and shift, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, 8, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = F.relu(self.conv(pictures[:, 0])).transpose(1, 2) + self.place
        mixed, _ = self.attention(tokens, tokens, tokens)
        logits: Tensor = self.head(self.norm(tokens + mixed).mean(1))
        return logits


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    result = supermask.search("conv2", "digits", strategy=EdgePopup(k=0.3), epochs=3)
    supermask.save(result, tmp_path / "artifact")
    model = supermask.load(tmp_path / "artifact")
    assert not model.training
    assert type(model).__name__ == "Conv"
    pictures = torch.zeros(2, 1, 8, 8)
    assert torch.equal(model(pictures), result.model(pictures))
    kept = {layer.name: layer.kept / layer.n for layer in result.artifact.config.layers}
    assert list(kept.values()) == pytest.approx([0.3] * 5, abs=0.001)


def test_loaded_weights_are_the_draw_under_the_mask_and_nothing_was_trained(tmp_path: Path) -> None:
    result = supermask.search("conv2", "digits", seed=11, epochs=1)
    supermask.save(result, tmp_path)
    artifact = supermask.read(tmp_path)
    state = supermask.load(tmp_path).state_dict()
    for layer in artifact.config.layers:
        assert layer.distribution is not None
        assert layer.std is not None
        expected = torch.from_numpy(draw(11, layer.name, layer.shape, layer.distribution, layer.std))
        mask = torch.from_numpy(artifact.mask(layer))
        assert torch.equal(state[layer.name], torch.where(mask, expected, 0.0))
    _, weights, _ = reference_reader.read(tmp_path)
    assert all(state[name].flatten().tolist() == values for name, values in weights.items())


def test_any_module_can_be_searched_and_keeps_working(tmp_path: Path) -> None:
    module = Unusual()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = supermask.search(module, stripes(), **{**SMALL, "epochs": 20}, optimizer={"lr": 0.3})
    assert result.metrics["test_accuracy"] > 0.9
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items()), "it was copied"
    layers = [layer.name for layer in result.artifact.config.layers]
    assert layers == ["conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    # What is no layer was trained beside the mask, from 0 (biases, shifts) and 1 (scales), and is kept as it ended.
    assert (result.artifact.state["head.bias"] != 0).all()
    assert (result.artifact.state["norm.weight"] != 1).all()
    supermask.save(result, tmp_path)
    again = supermask.load(tmp_path, Unusual())
    pictures = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(again(pictures), result.model(pictures))


def test_an_artifact_of_an_unknown_module_asks_for_the_module(tmp_path: Path) -> None:
    result = supermask.search(Unusual(), stripes(), **{**SMALL, "epochs": 1})
    supermask.save(result, tmp_path)
    with pytest.raises(NotFoundError, match="module:Unusual"):
        supermask.load(tmp_path)
    with pytest.raises(ArtifactError, match="no such weight"):
        supermask.load(tmp_path, nn.Linear(2, 2))


def test_a_module_without_weights_to_mask_is_refused() -> None:
    with pytest.raises(UsageError, match="no linear, convolution or attention weight"):
        supermask.search(nn.Sequential(nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten()), stripes(), **SMALL)


def test_a_weight_shared_by_two_layers_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    module[2].weight = module[1].weight
    with pytest.raises(UsageError, match=r"1\.weight and 2\.weight"):
        supermask.search(module, stripes(), **SMALL)
    twice = nn.Linear(64, 64, bias=False)
    with pytest.raises(UsageError, match=r"1\.weight and 3\.weight"):
        supermask.search(nn.Sequential(nn.Flatten(), twice, nn.ReLU(), twice, nn.Linear(64, 3)), stripes(), **SMALL)


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(pictures.flatten(1))}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), r"gives \(2, 2\) .* expected logits \(2, 3\)"),
        (nn.Conv2d(1, 3, 3), r"gives \(2, 3, 6, 6\)"),
        (Dictionary(), "gives dict"),
        (nn.Sequential(nn.Flatten(), nn.Linear(65, 3)), "cannot take pictures"),
        (nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 3))), "1 has a parametrized"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "1.weight has no shape yet"),
    ],
    ids=["classes", "shape", "type", "width", "parametrized", "lazy"],
)
def test_a_module_that_cannot_be_searched_or_kept_is_refused_at_once(module: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        supermask.search(module, stripes(), **SMALL)


def test_a_module_in_another_precision_is_searched_in_float32(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.PReLU(), nn.Linear(16, 3)).bfloat16()
    result = supermask.search(module, stripes(), **SMALL)
    supermask.save(result, tmp_path)
    assert {value.dtype for value in supermask.load(tmp_path, module).state_dict().values()} == {torch.float32}


def test_parameters_of_other_kinds_start_from_what_they_are() -> None:
    linear, slope, norm, embedding = nn.Linear(4, 4), nn.PReLU(), nn.LayerNorm(4), nn.Embedding(3, 4)
    before = embedding.weight.detach().clone()
    model = nn.Sequential(linear, slope, norm, embedding)
    masking.draw_weights(model, masking.plan(model, WeightsConfig()), seed=0)
    assert slope.weight.tolist() == [0.25]
    assert norm.weight.tolist() == [1.0] * 4
    assert torch.equal(embedding.weight, before)
    assert linear.bias.tolist() == [0.0] * 4


def test_the_seed_decides_every_parameter_of_a_vision_transformer() -> None:
    hashes = set()
    for noise in (1, 2):
        torch.manual_seed(noise)
        result = supermask.search("torchvision:vit_b_16", stripes(), data={"image_size": 16}, **{**SMALL, "epochs": 1})
        hashes.add(result.artifact.config.sha256.tensors)
    assert len(hashes) == 1


def test_an_architecture_that_reads_values_as_it_is_built_can_be_loaded(tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 1, "batch_size": 96}
    supermask.save(supermask.search("torchvision:regnet_y_400mf", stripes(), **settings), tmp_path)
    assert not supermask.load(tmp_path).training


@pytest.mark.parametrize("strategy", [Dense(), Bernoulli(), Bernoulli(rescale=True)])
def test_trained_and_rescaled_weights_survive_in_the_artifact(tmp_path: Path, strategy: Dense | Bernoulli) -> None:
    dataset = stripes()
    result = supermask.search("fc", dataset, strategy=strategy, **{**SMALL, "epochs": 3})
    supermask.save(result, tmp_path)
    _, weights, _ = reference_reader.read(tmp_path)
    model = supermask.load(tmp_path)
    assert all(model.state_dict()[name].flatten().tolist() == values for name, values in weights.items())
    view = View(8, dataset.mean, dataset.std, torch.device("cpu"))
    pictures = view.of(dataset.test.images[:8])  # type: ignore[union-attr]
    assert torch.equal(model(pictures), result.model(pictures))
    if strategy == Bernoulli(rescale=True):
        for layer in result.artifact.config.layers:
            assert layer.std == pytest.approx((2 / layer.shape[1]) ** 0.5 * layer.n / layer.kept)


def test_first_and_last_layer_may_stay_whole() -> None:
    result = supermask.search(
        "conv2", "digits", epochs=1, weights={"first_layer_dense": True, "last_layer_dense": True}
    )
    layers = result.artifact.config.layers
    assert [layer.masked for layer in layers] == [False, True, True, True, False]
    assert [layer.kept == layer.n for layer in layers] == [True, False, False, False, True]
    assert all(layer.values == "seed" for layer in layers)


def test_biases_and_affine_norms_are_trained_where_they_are_asked_for(tmp_path: Path) -> None:
    arch = {"args": {"bias": True, "affine": True}}
    result = supermask.search("resnet18-cifar", stripes(24), arch=arch, **{**SMALL, "epochs": 1, "batch_size": 8})
    state = result.artifact.state
    assert (state["fc.bias"] != 0).any()
    assert (state["bn1.weight"] != 1).any()
    assert (state["bn1.bias"] != 0).any()
    supermask.save(result, tmp_path)
    assert torch.equal(supermask.load(tmp_path).state_dict()["bn1.weight"], state["bn1.weight"])


@pytest.mark.parametrize("distribution", WEIGHT_DISTRIBUTIONS)
@pytest.mark.parametrize("scaled", [False, True])
def test_weights_have_the_papers_standard_deviations(distribution: WeightDistribution, scaled: bool) -> None:
    model = nn.Conv2d(32, 64, 3, bias=False)
    weights = WeightsConfig(distribution=distribution, scaled=scaled)
    layers = masking.plan(model, weights, density=0.25)
    masking.draw_weights(model, layers, seed=1)
    fan_in, fan_out = 32 * 9, 64 * 9
    std = (2 / (fan_in + fan_out if distribution.startswith("xavier") else fan_in)) ** 0.5 * (2 if scaled else 1)
    assert layers[0].std == pytest.approx(std)
    values = model.weight.detach()
    n = values.numel()
    if distribution == "unsigned-constant":
        assert torch.equal(values, torch.full_like(values, std))
    else:
        assert abs(float(values.square().mean().sqrt()) / std - 1) < 6 / n**0.5
        assert abs(float(values.mean())) < 6 * std / n**0.5
    if distribution.endswith("constant"):
        assert len(values.abs().unique()) == 1


def test_pictures_are_upsampled_to_what_the_architecture_needs() -> None:
    result = supermask.search("conv8", stripes(), **{**SMALL, "epochs": 1}, arch={"args": {"width": 0.25}})
    assert result.artifact.config.input.shape == [1, 16, 16]
    assert result.artifact.config.arch.args["image_size"] == 16


def test_a_size_that_was_asked_for_is_not_changed() -> None:
    with pytest.raises(UsageError, match="at least 16 pixels, not 8"):
        supermask.search("conv8", stripes(), data={"image_size": 8}, **SMALL)


def test_a_run_folder_can_be_resumed_from_python(tmp_path: Path) -> None:
    settings = {**SMALL, "seed": 4}
    first = supermask.search("fc", stripes(), run_dir=tmp_path / "run", **settings)
    again = supermask.search("fc", stripes(), run_dir=tmp_path / "run", resume=True, **settings)
    assert again.artifact.config.sha256.weights == first.artifact.config.sha256.weights
    with pytest.raises(UsageError, match="seed = 4, not 5"):
        supermask.search("fc", stripes(), run_dir=tmp_path / "run", resume=True, **{**settings, "seed": 5})
    with pytest.raises(UsageError, match="run_dir"):
        supermask.search("fc", stripes(), resume=True)


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    supermask.search("fc", stripes(), **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_is_there_and_importing_costs_no_torch() -> None:
    assert all(hasattr(supermask, name) for name in supermask.__all__)
    assert sorted(supermask.__all__) == supermask.__all__
    with pytest.raises(AttributeError, match="serach"):
        _ = supermask.serach
    program = "import sys, supermask; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_practitioners_mnist_network_reaches_97_percent(real_data: Path) -> None:
    """784-250-250-10, k = 0.5, signed constant; his own figure was 92.26%."""
    result = supermask.search(
        "fc",
        "mnist",
        strategy=EdgePopup(k=0.5),
        arch={"args": {"widths": [250, 250]}},
        data={"root": str(real_data)},
        epochs=12,
        batch_size=128,
    )
    assert result.metrics["test_pictures"] == 10_000
    assert result.metrics["test_accuracy"] >= 0.97


def test_cifar_pictures_are_read_augmented_and_learned_from(real_data: Path) -> None:
    """A small network for one short epoch on all of CIFAR-10 (JPEG-75): twice chance, to show that the path works."""
    result = supermask.search(
        "conv4",
        f"folder:{real_data / 'cifar10-jpeg75'}",
        arch={"args": {"width": 0.25}},
        epochs=1,
        batch_size=500,
    )
    assert result.metrics["test_pictures"] == 10_000
    assert result.metrics["test_accuracy"] > 0.2
    assert result.artifact.config.labels[:3] == ["airplane", "automobile", "bird"]
    # Of the whole set; the paper's own figures, to what JPEG changes.
    assert result.artifact.config.input.mean == pytest.approx([0.491, 0.482, 0.447], abs=0.003)


def test_imagenet_pictures_stream_through_a_resnet(real_data: Path) -> None:
    result = supermask.search(
        "resnet18",
        f"folder:{real_data / 'imagenet-sample'}",
        data={"image_size": 64, "workers": 1},
        epochs=1,
        batch_size=50,
    )
    assert result.metrics["test_pictures"] == 100
    assert result.artifact.config.input.shape == [3, 64, 64]
    assert len(result.artifact.config.labels) == 100
