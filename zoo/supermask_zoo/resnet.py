"""The paper's residual networks: torchvision's layout, batch norm without affine parameters, no bias at the end.

Parameters carry torchvision's names, so that checkpoints of the field fit.
"""

from __future__ import annotations

from torch import nn

from supermask.torchvision_import import ensure_torchvision
from supermask_zoo.form import in_form, with_in_channels

# The layout halves the picture five times; below 32 pixels its last stage would see nothing but padding.
MIN_IMAGE_SIZE = 32


def _resnet(layout: str, *, in_channels: int, image_size: int, num_classes: int, bias: bool, affine: bool) -> nn.Module:
    """`layout` as torchvision defines it; `bias` keeps the last layer's bias, `affine` the norms' scale and shift."""
    ensure_torchvision()
    import torchvision

    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(
            f"{layout} halves the picture five times: it takes pictures of at least {MIN_IMAGE_SIZE} pixels, "
            f"not {image_size}"
        )
    model = getattr(torchvision.models, layout)(num_classes=num_classes)
    return in_form(with_in_channels(model, in_channels), bias=bias, affine=affine)


def resnet18(
    *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """ResNet-18 for ImageNet. `bias`, `affine`: see `_resnet`."""
    return _resnet(
        "resnet18", in_channels=in_channels, image_size=image_size, num_classes=num_classes, bias=bias, affine=affine
    )


def resnet34(
    *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """ResNet-34 for ImageNet. `bias`, `affine`: see `_resnet`."""
    return _resnet(
        "resnet34", in_channels=in_channels, image_size=image_size, num_classes=num_classes, bias=bias, affine=affine
    )


def resnet50(
    *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """ResNet-50 for ImageNet; 25,502,912 weights. `bias`, `affine`: see `_resnet`."""
    return _resnet(
        "resnet50", in_channels=in_channels, image_size=image_size, num_classes=num_classes, bias=bias, affine=affine
    )


def resnet101(
    *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """ResNet-101 for ImageNet. `bias`, `affine`: see `_resnet`."""
    return _resnet(
        "resnet101", in_channels=in_channels, image_size=image_size, num_classes=num_classes, bias=bias, affine=affine
    )


def wide_resnet50(
    *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """Wide ResNet-50-2 for ImageNet; 68,814,016 weights. `bias`, `affine`: see `_resnet`."""
    return _resnet(
        "wide_resnet50_2",
        in_channels=in_channels,
        image_size=image_size,
        num_classes=num_classes,
        bias=bias,
        affine=affine,
    )


def resnet18_cifar(
    *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """ResNet-18 for small pictures: 3x3 stride-1 stem, no stem pool; 11,164,352 weights with 3 channels, 10 classes.

    `bias`, `affine`: see `_resnet`.
    """
    ensure_torchvision()
    import torchvision

    if image_size < 8:
        raise ValueError(f"resnet18-cifar halves the picture three times: it takes at least 8 pixels, not {image_size}")
    model = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return in_form(model, bias=bias, affine=affine)
