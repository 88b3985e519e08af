"""The contract of a mask search: the only module that a third party's strategy imports.

A strategy is two classes. The options, a frozen pydantic model (`EdgePopup(k=0.3)`), say what to search for; they
validate themselves, compare equal, and are written as they are into configurations and artifacts. For each weight they
make a `Masker`, an `nn.Module` used as a parametrization of that weight, so that any `nn.Module` can be searched.

    class Magnitude(Strategy):
        k: K = 0.5

        @property
        def density(self) -> float:
            return self.k

        def attach(self, weight, generator):
            return MagnitudeMasker(top_k_mask(weight, kept_count(weight.numel(), self.k)))

and in the package's pyproject.toml

    [project.entry-points."supermask.strategies"]
    magnitude = "my_package:Magnitude"
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

__all__ = ["K", "Masker", "Strategy"]

K = Annotated[float, Field(gt=0, le=1, description="fraction of each layer's weights that is KEPT")]


class Masker(nn.Module, ABC):
    """The mask of one weight while it is searched; registered as a parametrization of that weight.

    Parameters of a masker (scores, logits) are what the search trains. Randomness during training comes from
    `generator` alone: before each step the trainer seeds it from (seed, layer, epoch, step), alike on every process,
    so that a resumed search and a distributed one draw what an uninterrupted single one draws.
    """

    generator: torch.Generator | None = None

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The weight that training sees: same shape as `weight`, differentiable, may sample in training mode.

        It is float32 or, under autocast, may be of autocast's type.

        In evaluation mode it must be `weight * mask(weight) * scale(weight)`.
        """

    @abstractmethod
    def mask(self, weight: Tensor) -> Tensor:
        """The mask that is kept: bool, the shape of `weight`, deterministic."""

    def scale(self, weight: Tensor) -> float:
        """The factor on the drawn standard deviation of the kept weights; 1 where they are untouched."""
        return 1.0

    def after_step(self, weight: Tensor, step: int) -> None:
        """Called after the optimiser's step number `step` (from 0, over all epochs); does nothing by default."""


class Strategy(BaseModel, ABC):
    """The options of a mask search, and the maker of its maskers. Unknown options and values are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stochastic: ClassVar[bool] = False
    """Whether `Masker.forward` samples in training mode; then accuracy is also reported as a mean over samples."""

    optimizer_defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the `optimizer` table that this strategy needs where the user names none, such as {"lr": 200.0}."""

    @property
    def trains_weights(self) -> bool:
        """Whether weight values are trained; then the artifact stores them, since no seed rebuilds them."""
        return False

    @property
    @abstractmethod
    def density(self) -> float:
        """The fraction of weights kept at the start, 0 < density <= 1; `scaled` draws use sqrt(1/density)."""

    @abstractmethod
    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker for one weight.

        Args:
            weight: the drawn float32 weight, [out, in, ...], on the CPU; not to be changed.
            generator: a CPU generator seeded from (seed, layer), for initial scores.
        """
