"""Learned dense weights: ordinary training, the horizontal line in every figure of the field."""

from __future__ import annotations

import torch
from torch import Tensor

from supermask.strategy import Masker, Strategy


class Dense(Strategy):
    """Trains every weight and keeps every weight; no options."""

    @property
    def trains_weights(self) -> bool:
        """True: the artifact stores the values."""
        return True

    @property
    def density(self) -> float:
        """1."""
        return 1.0

    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker that masks nothing."""
        return DenseMasker()


class DenseMasker(Masker):
    """Keeps everything."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight."""
        return weight

    def mask(self, weight: Tensor) -> Tensor:
        """All true."""
        return torch.ones_like(weight, dtype=torch.bool)
