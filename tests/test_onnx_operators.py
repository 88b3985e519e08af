"""Operators of PyTorch in ONNX: every kind gives what torch gives, the others are named with their place."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import supermask
from supermask import UsageError
from supermask.data import View
from tests.subnetworks import run, subnetwork

PICTURE = (3, 11, 11)


class Own(nn.Module):
    """A convolution to 8 channels, something in the middle, and a linear layer."""

    def __init__(self, middle: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.middle = middle
        channels = self._features(torch.zeros(2, *PICTURE)).shape[1]
        self.head = nn.Linear(channels, 4)

    def _features(self, pictures: Tensor) -> Tensor:
        return torch.flatten(self.middle(self.stem(pictures)), 1)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self._features(pictures))
        return logits


def agrees(model: nn.Module, tmp_path: Path, picture: tuple[int, int, int] = PICTURE) -> None:
    torch.manual_seed(0)
    artifact = subnetwork(model, picture)
    done = supermask.export_onnx(artifact, tmp_path / "own.onnx", model=model)
    assert done.layout.weights == "seed"
    pictures = torch.randn(5, *picture)
    expected = model(pictures).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "own.onnx", pictures.numpy()), expected, atol=1e-4 * abs(expected).max())


def seeded(module: nn.Module) -> nn.Module:
    """The module with parameters that are neither 0 nor 1."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.2, 0.8)
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "grouped convolution": lambda: nn.Conv2d(8, 12, 3, groups=4, bias=False),
    "depthwise convolution": lambda: nn.Conv2d(8, 8, 5, groups=8, padding="same"),
    "valid padding": lambda: nn.Conv2d(8, 6, 3, padding="valid"),
    "reflecting convolution": lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="reflect"),
    "replicating convolution": lambda: nn.Conv2d(8, 6, 3, padding=(0, 2), padding_mode="replicate"),
    "transposed convolution": lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    "dilated transposed convolution": lambda: nn.ConvTranspose2d(8, 5, 2, dilation=2, bias=False),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool with ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "max pool with dilation and ceil": lambda: nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "average pool without padding": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pool with ceil": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average pool with ceil, without padding": lambda: nn.AvgPool2d(2, 2, 1, ceil_mode=True, count_include_pad=False),
    "global average pool": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive average pool": lambda: nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive average pool of one window": lambda: nn.AdaptiveAvgPool2d((None, 1)),
    "enlarging adaptive average pool": lambda: nn.AdaptiveAvgPool2d(14),
    "global max pool": lambda: nn.AdaptiveMaxPool2d(1),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d((11, 1)),
    "batch norm": lambda: seeded(nn.BatchNorm2d(8)),
    "batch norm without affine": lambda: nn.BatchNorm2d(8, affine=False, eps=0.01),
    "group norm": lambda: seeded(nn.GroupNorm(2, 8)),
    "group norm without affine": lambda: nn.GroupNorm(4, 8, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(8),
    "instance norm with affine": lambda: seeded(nn.InstanceNorm2d(8, affine=True)),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "layer norm": lambda: seeded(nn.LayerNorm([8, 11, 11])),
    "layer norm of rows": lambda: seeded(nn.LayerNorm(11, bias=False)),
    "local response norm": lambda: nn.LocalResponseNorm(5, alpha=0.1, k=2.0),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.25),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "prelu": lambda: seeded(nn.PReLU(8)),
    "prelu of one slope": lambda: seeded(nn.PReLU()),
    "elu": lambda: nn.ELU(0.7),
    "celu": lambda: nn.CELU(0.7),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": lambda: nn.Softplus(beta=2.0),
    "softsign": nn.Softsign,
    "softmax": lambda: nn.Softmax(dim=1),
    "log softmax": lambda: nn.LogSoftmax(dim=-1),
    "dropout": lambda: nn.Dropout(0.5),
    "dropout of channels": lambda: nn.Dropout2d(0.5),
    "identity": nn.Identity,
    "zero pad": lambda: nn.ZeroPad2d((1, 2, 0, 3)),
    "constant pad": lambda: nn.ConstantPad2d((1, 0, 2, 1), 0.7),
    "reflection pad": lambda: nn.ReflectionPad2d((1, 2, 3, 0)),
    "replication pad": lambda: nn.ReplicationPad2d(2),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "flatten and unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 121))),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_gives_what_torch_gives(name: str, tmp_path: Path) -> None:
    agrees(Own(MODULES[name]()), tmp_path)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu, max pool": lambda x: F.max_pool2d(F.relu(x), 2),
    "what was overwritten": lambda x: torch.relu_(x).sigmoid() + x + F.hardtanh(x, inplace=True).mul_(x),
    "average pools": lambda x: F.avg_pool2d(x, 2, ceil_mode=True) + F.adaptive_avg_pool2d(x, (6, 6)),
    "adaptive pool to one": lambda x: F.adaptive_max_pool2d(x, 1) * F.adaptive_avg_pool2d(x, 1),
    "arithmetic": lambda x: (1 - x) * 2 + x / 3 - (-x),
    "arithmetic in place": lambda x: x.clone().add_(1).mul_(x).sub_(0.5).div_(2),
    "functions of arithmetic": lambda x: torch.add(torch.mul(x, x), torch.sub(x, 1)).div(3.0).pow(2),
    "powers and roots": lambda x: torch.sqrt(torch.abs(x) + 0.1) + x**2 + torch.exp(-x.abs()),
    "extremes": lambda x: torch.maximum(x, x * 0.5) + torch.minimum(x, -x),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + torch.clamp(x, min=0.1) + x.clip(max=0.2),
    "mean of pictures": lambda x: x.mean([2, 3]),
    "mean that keeps": lambda x: x - x.mean(dim=(1, 2), keepdim=True),
    "sums": lambda x: x.sum(-1) + torch.sum(x, 2),
    "concatenation": lambda x: torch.cat([x, F.silu(x), x * 2], dim=1),
    "stack": lambda x: torch.stack([x, -x], dim=2).flatten(1, 2),
    "flatten by size": lambda x: x.view(x.size(0), -1),
    "reshape by shape": lambda x: x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2], -1),
    "channel shuffle": lambda x: x.view(x.size(0), 2, 4, 11, 11).transpose(1, 2).contiguous().view(-1, 8, 11, 11),
    "permutation": lambda x: x.permute(0, 2, 3, 1) + torch.permute(x, (0, 3, 2, 1)),
    "squeeze": lambda x: x.mean(3, keepdim=True).squeeze(3).unsqueeze(-1),
    "slices": lambda x: torch.cat([x[:, 1:3], x[:, ::2], x[:, -1:], x[:, None, 2]], 1) * x[..., :1],
    "one column": lambda x: x[:, :, 0] + x[..., -1],
    "chunks": lambda x: torch.chunk(x, 2, dim=1)[0] * x.chunk(2, 1)[1].sigmoid(),
    "splits": lambda x: torch.cat([x.split([3, 5], dim=1)[1], x.split(2, 1)[0]], 1),
    "pads": lambda x: F.pad(F.pad(x, (1, 2), value=0.3), (1, 1, 2, 0), mode="reflect"),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "softmax": lambda x: F.softmax(x, dim=1) + torch.softmax(x, 2) + x.softmax(-1) + F.log_softmax(x, 1),
    "matmul": lambda x: torch.matmul(x, x.transpose(2, 3)) @ x,
    "norms": lambda x: F.group_norm(x, 2) + F.instance_norm(x) + F.layer_norm(x, (11, 11)),
    "activations": lambda x: (
        F.gelu(x) + F.hardswish(x) + F.leaky_relu(x) + F.elu(x) + F.relu6(x) + F.mish(x) + x.tanh()
    ),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_what_torch_gives(name: str, tmp_path: Path) -> None:
    agrees(Own(Function(FUNCTIONS[name])), tmp_path)


class Volumes(nn.Module):
    """Layers of one and of three dimensions, over a picture folded for them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Sequential(
            nn.Conv1d(33, 6, 3, padding=1),
            nn.BatchNorm1d(6),
            nn.MaxPool1d(2, ceil_mode=True),
            nn.ConvTranspose1d(6, 4, 2),
        )
        self.volumes = nn.Sequential(
            nn.Conv3d(1, 4, (2, 3, 3)),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.AvgPool3d((1, 2, 2)),
            nn.ConvTranspose3d(4, 2, 2),
        )
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool1d(3), nn.AdaptiveMaxPool3d(1), nn.AvgPool1d(2), nn.MaxPool3d(2)])
        self.tokens = nn.Linear(11, 5, bias=True)
        self.head = nn.Linear(12 + 2 + 8 + 2 + 15, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x.flatten(1, 2))
        volumes = self.volumes(x.unsqueeze(1))
        some = [
            self.pools[0](rows),
            self.pools[1](volumes),
            self.pools[2](rows)[:, :, :2],
            self.pools[3](volumes).mean([2, 3, 4]),
        ]
        tokens = self.tokens(x).mean(2)
        logits: Tensor = self.head(torch.cat([part.flatten(1) for part in [*some, tokens]], 1))
        return logits


def test_layers_of_one_and_three_dimensions_give_what_torch_gives(tmp_path: Path) -> None:
    agrees(Volumes(), tmp_path)


class Gated(nn.Module):
    """Parameters of its own, a subclass of a layer, a weight used as a function's argument."""

    class Residual(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    class Renamed(nn.BatchNorm2d):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.Residual(3, 3, 3, padding=1)
        self.norm = self.Renamed(3)
        # Names that the graph has uses for.
        self.pictures, self.logits = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.ones(4))
        self.mul = nn.ParameterList([torch.ones(3, 1, 1)])
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)) * self.pictures * self.mul[0]
        return F.linear(x.mean([2, 3]), self.head.weight, self.head.bias) + self.logits


def test_parameters_and_subclasses_of_layers_are_followed(tmp_path: Path) -> None:
    agrees(Gated(), tmp_path)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "efficientnet_b0"])
def test_networks_of_torchvision_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    from supermask_zoo.torchvision import torchvision_model

    model = torchvision_model(name, in_channels=3, image_size=64, num_classes=7, bias=True, affine=True)
    agrees(model, tmp_path, (3, 64, 64))


class WithAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(11, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(1)
        return self.attention(rows, rows, rows)[0]  # type: ignore[no-any-return]


UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "a module": (WithAttention, ["middle.attention (MultiheadAttention)"]),
    "a function": (lambda: Function(lambda x: torch.cumsum(x, 1)), ["cumsum in middle (Function)"]),
    "a method": (lambda: Function(lambda x: x.sort(dim=1)[0]), ["sort in middle (Function)"]),
    "a setting": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), ["middle (Conv2d)", "'circular'"]),
    "branches": (lambda: Function(lambda x: x if x.sum() > 0 else -x), ["torch.fx cannot trace Own", "control flow"]),
    "the batch": (lambda: Function(lambda x: x - x.mean(0, keepdim=True)), ["mean in middle", "along the batch"]),
    "the number of pictures": (lambda: Function(lambda x: x * x.shape[0]), ["mul in middle", "number of pictures"]),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    make, words = UNSUPPORTED[name]
    model = Own(make())
    artifact = subnetwork(model, PICTURE)
    with pytest.raises(UsageError) as caught:
        supermask.export_onnx(artifact, tmp_path / "own.onnx", model=model)
    message = str(caught.value)
    assert "\n" not in message
    assert "--weights dense" in message
    for word in words:
        assert word in message
    assert not (tmp_path / "own.onnx").exists()


def test_what_is_not_supported_is_written_dense_by_torchs_own_exporter(tmp_path: Path) -> None:
    model = Own(WithAttention())
    artifact = subnetwork(model, PICTURE)
    path = tmp_path / "own.onnx"
    if find_spec("onnxscript") is None:
        with pytest.raises(UsageError, match=r"middle\.attention \(MultiheadAttention\).*pip install onnxscript"):
            supermask.export_onnx(artifact, path, model=model, weights="dense")
        pytest.skip("torch's own exporter needs onnxscript")
    supermask.export_onnx(artifact, path, model=model, weights="dense", input="uint8", softmax=True)
    pictures = torch.randint(256, (5, 11, 11, 3), dtype=torch.uint8)
    view = View(11, (0.4,) * 3, (0.25,) * 3, torch.device("cpu"))
    expected = model(view.of(pictures.permute(0, 3, 1, 2))).softmax(1).detach().numpy()
    np.testing.assert_allclose(run(path, pictures.numpy()), expected, atol=1e-5)
    with pytest.raises(UsageError, match="float32 alone"):
        supermask.export_onnx(artifact, path, model=model, dtype="float16")
