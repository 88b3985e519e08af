"""edge-popup: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from supermask.select import blocks, keep_top_k, kept_count, top_k_mask
from supermask.strategy import K, Masker, Strategy

ScoreInit = Literal["kaiming-uniform", "kaiming-normal"]


class EdgePopup(Strategy):
    """A score per weight; the subnetwork is the top k share of |score| in each layer (equation 4).

    Attributes:
        k: fraction of each layer's weights kept, 0 < k <= 1.
        score_init: `kaiming-uniform` (a = sqrt 5, the paper's code) or `kaiming-normal` (gain sqrt 2).
    """

    k: K = 0.5
    score_init: ScoreInit = "kaiming-uniform"

    @property
    def density(self) -> float:
        """k."""
        return self.k

    def attach(self, weight: Tensor, generator: torch.Generator) -> Masker:
        """A masker with freshly drawn scores."""
        scores = torch.empty_like(weight)
        if self.score_init == "kaiming-uniform":
            nn.init.kaiming_uniform_(scores, a=5**0.5, generator=generator)
        else:
            nn.init.kaiming_normal_(scores, nonlinearity="relu", generator=generator)
        return EdgePopupMasker(scores, kept_count(weight.numel(), self.k))


class EdgePopupMasker(Masker):
    """The popup scores of one layer, a parameter of the weight's shape."""

    def __init__(self, scores: Tensor, kept: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.kept = kept

    def forward(self, weight: Tensor) -> Tensor:
        """w * h(s), with h = 1 on the subnetwork; the gradient goes straight through h to |s|."""
        masked: Tensor = _StraightThrough.apply(self.scores, weight, self.kept)  # type: ignore[no-untyped-call]
        return masked

    def mask(self, weight: Tensor) -> Tensor:
        """The `kept` largest |scores|."""
        return top_k_mask(self.scores, self.kept)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, kept: int) -> Tensor:
        ctx.save_for_backward(scores, weight)
        return keep_top_k(weight, scores, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Equation 6: dL/ds_uv = dL/dI_v * w_uv * Z_u, which is dL/d(effective weight) * w; sign(s) is the |.| outside.
        scores, weight = ctx.saved_tensors
        if torch.compiler.is_compiling():  # which makes one pass of it by itself
            return torch.sign(scores) * weight * grads[0], None, None
        gradient = torch.empty_like(scores)
        for part, of_scores, of_weight, of_masked in blocks(gradient, scores, weight, grads[0]):
            torch.sign(of_scores, out=part).mul_(of_weight).mul_(of_masked)
        return gradient, None, None
