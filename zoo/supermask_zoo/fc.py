"""The fully connected network of LeNet-300-100 fame."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def fc(
    *, in_channels: int, image_size: int, num_classes: int, widths: Sequence[int] = (300, 100), bias: bool = False
) -> nn.Module:
    """A multilayer perceptron with ReLU: 784-300-100-10 (266,200 weights) on MNIST.

    Args:
        in_channels: channels of the pictures.
        image_size: height and width of the pictures, pixels.
        num_classes: outputs.
        widths: units of each hidden layer, first to last; may be empty.
        bias: give each layer a bias.

    Raises:
        ValueError: a hidden layer without units.
    """
    if any(width < 1 for width in widths):
        raise ValueError(f"widths {list(widths)} leave a hidden layer without units; each must be at least 1")
    sizes = [in_channels * image_size * image_size, *widths, num_classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
