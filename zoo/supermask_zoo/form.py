"""The paper's form of a network: no biases, normalisation without affine parameters, any number of input channels."""

from __future__ import annotations

from torch import nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def in_form(model: nn.Module, *, bias: bool, affine: bool) -> nn.Module:
    """`model` itself, its biases removed unless `bias`, its norms' scales and shifts removed unless `affine`."""
    for module in model.modules():
        if isinstance(module, NORMS) and not affine:
            module.affine = module.elementwise_affine = False
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)
        elif isinstance(module, WEIGHTED) and not bias:
            module.register_parameter("bias", None)
        elif isinstance(module, nn.MultiheadAttention) and not bias:
            module.register_parameter("in_proj_bias", None)
    return model


def with_in_channels(model: nn.Module, in_channels: int) -> nn.Module:
    """`model` itself, its first convolution replaced by one that takes `in_channels`.

    Raises:
        ValueError: the model begins without a plain convolution.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == in_channels:
                return model
            if module.groups != 1:
                break
            stem = type(module)(
                in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            model.set_submodule(name, stem)
            return model
    raise ValueError(f"its first layer cannot be made to take {in_channels} input channels")
