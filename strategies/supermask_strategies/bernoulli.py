"""Bernoulli masks: Zhou et al., "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask", NeurIPS 2019."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from supermask.strategy import Masker, Strategy


class Bernoulli(Strategy):
    """A logit m per weight; each forward pass keeps the weight with probability sigmoid(m).

    The method chooses how many weights to keep; it has no k.

    Attributes:
        logit_init: the m that every weight starts from (Zhou: 0, probability one half).
        rescale: dynamic weight rescaling: weights times size / (number kept), gradient through the number too.
    """

    stochastic: ClassVar[bool] = True
    # Zhou et al. train the logits at learning rates in the hundreds: their gradient carries the factor p(1-p)w.
    optimizer_defaults: ClassVar[Mapping[str, Any]] = {"lr": 200.0, "weight_decay": 0.0}

    logit_init: Annotated[float, Field(ge=-20, le=20)] = 0.0
    rescale: bool = False

    @property
    def density(self) -> float:
        """sigmoid(logit_init)."""
        return float(torch.sigmoid(torch.tensor(self.logit_init, dtype=torch.float64)))

    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker whose logits all start at `logit_init`."""
        return BernoulliMasker(torch.full_like(weight, self.logit_init), self.rescale)


class BernoulliMasker(Masker):
    """The logits of one layer, a parameter of the weight's shape."""

    def __init__(self, logits: Tensor, rescale: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.rescale = rescale

    def forward(self, weight: Tensor) -> Tensor:
        """In training mode a sampled subnetwork, straight through the sampling; in evaluation mode the kept mask."""
        if not self.training:
            return torch.where(self.mask(weight), weight * self.scale(weight), 0.0)
        probability = torch.sigmoid(self.logits)
        uniform = torch.rand(probability.shape, device=probability.device, generator=self.generator)
        # Value of the sample, gradient of the probability.
        sample = (uniform < probability) + (probability - probability.detach())
        if self.rescale:
            sample = sample * (sample.numel() / sample.sum().clamp(min=1.0))
        return weight * sample

    def mask(self, weight: Tensor) -> Tensor:
        """The weights more likely kept than not: sigmoid(m) > 0.5."""
        return self.logits.detach() > 0

    def scale(self, weight: Tensor) -> float:
        """Size / (number kept) under `rescale`, else 1."""
        return weight.numel() / max(int(torch.count_nonzero(self.mask(weight))), 1) if self.rescale else 1.0
