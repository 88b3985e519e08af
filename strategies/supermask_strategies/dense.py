"""Learned dense weights: ordinary training, the horizontal line in every figure of the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from supermask.strategy import Masker, Strategy


class Dense(Strategy):
    """Trains every weight and keeps every weight; no options."""

    # Ten times below the learning rate of scores: at 0.1 trained weights diverge on the default search.
    optimizer_defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.01}

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
