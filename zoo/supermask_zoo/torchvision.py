"""Any classifier of torchvision, in the paper's form: `torchvision:vgg11`, `torchvision:vit_b_16`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from supermask.torchvision_import import ensure_torchvision
from supermask_zoo.form import in_form, with_in_channels


def torchvision_model(
    name: str, *, in_channels: int, image_size: int, num_classes: int, bias: bool = False, affine: bool = False
) -> nn.Module:
    """The torchvision classifier `name`, without pretrained weights.

    Args:
        name: as in `torchvision.models.list_models(torchvision.models)`.
        in_channels: channels of the pictures.
        image_size: height and width of the pictures, pixels.
        num_classes: outputs.
        bias: keep biases (they are then trained).
        affine: keep the norms' scale and shift (they are then trained).

    Raises:
        LookupError: torchvision has no such classifier; the arguments are the name and the known names.
        ValueError: the model cannot take such pictures.
    """
    ensure_torchvision()
    import torchvision

    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise LookupError(name, known)
    # The transformers are built for one size; convolutional models take no such argument.
    sized = {"image_size": image_size} if name.startswith("vit_") else {}
    # Inception and GoogLeNet would return auxiliary outputs beside the logits.
    plain = {"aux_logits": False, "init_weights": False} if name in {"googlenet", "inception_v3"} else {}

    def build() -> nn.Module:
        model = torchvision.models.get_model(name, num_classes=num_classes, **sized, **plain)
        return in_form(with_in_channels(model, in_channels), bias=bias, affine=affine)

    return checked(build, in_channels, image_size)


def checked(build: Callable[[], nn.Module], in_channels: int, image_size: int) -> nn.Module:
    """The model that `build` makes, tried on two pictures in training mode without computing anything.

    Two pictures, because batch norm over one value per channel is an error too.

    Raises:
        ValueError: the model cannot be built for, or cannot take, pictures of this size.
    """
    try:
        model = build()
        # Buffers too, since a state_dict leaves out those that are not persistent, such as Swin's tables of positions.
        everything = [*model.named_parameters(), *model.named_buffers()]
        on_meta = {name: value.to("meta") for name, value in everything}
        pictures = torch.empty(2, in_channels, image_size, image_size, device="meta")
        torch.func.functional_call(model, on_meta, pictures)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"it cannot take pictures of {image_size} pixels ({reason})") from error
    return model
