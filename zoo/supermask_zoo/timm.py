"""Any classifier of timm (an optional package), in the paper's form: `timm:resnet26d`, `timm:convnext_atto`."""

from __future__ import annotations

from typing import Any

from torch import nn

from supermask.torchvision_import import ensure_torchvision
from supermask_zoo.form import in_form
from supermask_zoo.torchvision import checked


def timm_model(
    name: str, *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """The timm classifier `name`, without pretrained weights.

    Args:
        name: as in `timm.list_models()`.
        in_channels: channels of the pictures.
        image_size: height and width of the pictures, pixels.
        num_classes: outputs.
        bias: keep biases (they are then trained).
        affine: keep the norms' scale and shift (they are then trained).

    Raises:
        LookupError: timm has no such model; the arguments are the name and the known names.
        ModuleNotFoundError: timm is not installed.
        ValueError: the model cannot take such pictures.
    """
    ensure_torchvision()
    import timm

    if not timm.is_model(name):
        raise LookupError(name, timm.list_models())
    card = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": image_size} if card is not None and card.fixed_input_size else {}

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(
            name, pretrained=False, in_chans=in_channels, num_classes=num_classes, **sized
        )
        return in_form(model, bias=bias, affine=affine)

    return checked(build, in_channels, image_size)
