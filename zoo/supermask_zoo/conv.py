"""Conv2, Conv4, Conv6 and Conv8: the VGG-like networks of the lottery-ticket papers (Frankle and Carbin 2019)."""

from __future__ import annotations

from torch import Tensor, nn

PAIR_CHANNELS = (64, 128, 256, 512)
HIDDEN_UNITS = 256


class Conv(nn.Module):
    """Pairs of 3x3 convolutions, each pair ended by a 2x2 max-pool, then three fully connected layers; no batch norm.

    Input [N, in_channels, image_size, image_size], output logits [N, num_classes].
    """

    def __init__(
        self, pairs: int, *, in_channels: int, image_size: int, num_classes: int, width: float, bias: bool
    ) -> None:
        super().__init__()
        channels = [_scaled(channels, width) for channels in PAIR_CHANNELS[:pairs]]
        hidden = _scaled(HIDDEN_UNITS, width)
        if image_size < 2**pairs:
            raise ValueError(
                f"conv{2 * pairs} halves the picture {pairs} times: it takes pictures of at least {2**pairs} pixels, "
                f"not {image_size}"
            )
        features: list[nn.Module] = []
        inputs = in_channels
        for outputs in channels:
            features += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.ReLU()]
            features += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.features = nn.Sequential(*features, nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(inputs * (image_size >> pairs) ** 2, hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(hidden, num_classes, bias=bias),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.features(pictures))
        return logits


def _scaled(channels: int, width: float) -> int:
    scaled = int(channels * width)
    if scaled < 1:
        raise ValueError(f"width {width} yields no channel ({channels} * {width} < 1); take at least {1 / channels}")
    return scaled


def conv2(*, in_channels: int, image_size: int, num_classes: int, width: float = 1.0, bias: bool = False) -> nn.Module:
    """Two convolutions of 64 channels; 4,300,992 weights at 3x32x32. `width` scales every hidden width."""
    return Conv(1, in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width, bias=bias)


def conv4(*, in_channels: int, image_size: int, num_classes: int, width: float = 1.0, bias: bool = False) -> nn.Module:
    """Convolutions of 64, 64, 128, 128 channels; 2,425,024 weights at 3x32x32. `width` scales every hidden width."""
    return Conv(2, in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width, bias=bias)


def conv6(*, in_channels: int, image_size: int, num_classes: int, width: float = 1.0, bias: bool = False) -> nn.Module:
    """Convolutions up to 256 channels; 2,261,184 weights at 3x32x32. `width` scales every hidden width."""
    return Conv(3, in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width, bias=bias)


def conv8(*, in_channels: int, image_size: int, num_classes: int, width: float = 1.0, bias: bool = False) -> nn.Module:
    """Convolutions up to 512 channels; 5,275,840 weights at 3x32x32. `width` scales every hidden width."""
    return Conv(4, in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width, bias=bias)
