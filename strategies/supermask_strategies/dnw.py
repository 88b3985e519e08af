"""DNW: Wortsman et al., "Discovering Neural Wirings", NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from supermask.select import keep_top_k, kept_count, top_k_mask
from supermask.strategy import K, Masker, Strategy


class DNW(Strategy):
    """Trains the weights; each forward pass keeps the top k share of |w| in each layer.

    The gradient goes straight through to all weights, kept or not, so that an edge can come back.

    Attributes:
        k: fraction of each layer's weights kept, 0 < k <= 1.
    """

    # Ten times below the learning rate of scores: at 0.1 trained weights diverge on the default search.
    optimizer_defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.01}

    k: K = 0.5

    @property
    def trains_weights(self) -> bool:
        """True: the artifact stores the kept values."""
        return True

    @property
    def density(self) -> float:
        """k."""
        return self.k

    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker without parameters: the weight is its own score."""
        return DNWMasker(kept_count(weight.numel(), self.k))


class DNWMasker(Masker):
    """Keeps the largest |w|."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with all but its `kept` largest magnitudes zeroed; the gradient reaches every weight."""
        masked: Tensor = _StraightThrough.apply(weight, self.kept)  # type: ignore[no-untyped-call]
        return masked

    def mask(self, weight: Tensor) -> Tensor:
        """The `kept` largest |w|."""
        return top_k_mask(weight, self.kept)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: int) -> Tensor:
        return keep_top_k(weight, weight, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
