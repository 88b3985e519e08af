"""A random subnetwork: the floor that every search must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from supermask.select import kept_count, top_k_mask
from supermask.strategy import K, Masker, Strategy


class RandomSubnet(Strategy):
    """A mask drawn once at random, never searched.

    Attributes:
        k: fraction of each layer's weights kept, 0 < k <= 1.
        train_weights: train the kept weights (a sparse network from scratch) instead of leaving them untouched.
    """

    # Ten times below the learning rate of scores: at 0.1 trained weights diverge on the default search.
    optimizer_defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.01}

    k: K = 0.5
    train_weights: bool = False

    @property
    def trains_weights(self) -> bool:
        """`train_weights`."""
        return self.train_weights

    @property
    def density(self) -> float:
        """k."""
        return self.k

    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker with a mask drawn from `generator`."""
        noise = torch.rand(weight.shape, generator=generator)
        return RandomSubnetMasker(top_k_mask(noise, kept_count(weight.numel(), self.k)))


class RandomSubnetMasker(Masker):
    """A fixed mask."""

    fixed: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The kept weights; the others are zero and get no gradient."""
        return weight * self.fixed

    def mask(self, weight: Tensor) -> Tensor:
        """The fixed mask."""
        return self.fixed
