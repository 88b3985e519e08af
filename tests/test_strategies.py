"""The contract, over every installed strategy, third parties' included; and what each one promises beyond it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

import supermask
from supermask.config import make_strategy
from supermask.registry import installed
from supermask.select import kept_count
from supermask.strategy import Masker, Strategy
from supermask_strategies import DNW, Bernoulli, Dense, EdgePopup, RandomSubnet

NAMES = sorted(installed("strategies"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_weight(shape: tuple[int, ...] = (6, 4, 3, 3)) -> Tensor:
    return torch.randn(shape, generator=seeded(3))


def attached(strategy: Strategy, weight: Tensor, seed: int = 0) -> Masker:
    masker = strategy.attach(weight, seeded(seed))
    masker.generator = seeded(seed)
    return masker


@pytest.fixture(params=NAMES)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return make_strategy(request.param, {})


class TestContract:
    def test_the_density_is_a_fraction(self, strategy: Strategy) -> None:
        assert 0 < strategy.density <= 1

    def test_attaching_leaves_the_weight_as_it_was(self, strategy: Strategy) -> None:
        weight = a_weight()
        strategy.attach(weight, seeded())
        assert torch.equal(weight, a_weight())

    def test_the_kept_mask_is_boolean_deterministic_and_of_the_weights_shape(self, strategy: Strategy) -> None:
        weight = a_weight()
        masker = attached(strategy, weight)
        mask = masker.mask(weight)
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape
        assert torch.equal(mask, masker.mask(weight))
        assert not mask.requires_grad

    def test_the_same_generator_gives_the_same_masker(self, strategy: Strategy) -> None:
        weight = a_weight()
        first, second = attached(strategy, weight).state_dict(), attached(strategy, weight).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_in_evaluation_the_forward_pass_is_the_kept_mask_scaled(self, strategy: Strategy) -> None:
        weight = a_weight()
        masker = attached(strategy, weight).eval()
        expected = weight * masker.mask(weight) * masker.scale(weight)
        assert torch.equal(masker(weight), expected)

    def test_training_sees_a_weight_of_the_same_shape_and_type(self, strategy: Strategy) -> None:
        weight = a_weight()
        seen = attached(strategy, weight).train()(weight)
        assert (seen.shape, seen.dtype) == (weight.shape, weight.dtype)

    def test_it_trains_the_weights_exactly_if_it_says_so(self, strategy: Strategy) -> None:
        weight = a_weight().requires_grad_(strategy.trains_weights)
        masker = attached(strategy, weight.detach()).train()
        seen = masker(weight)
        if seen.requires_grad:
            seen.square().sum().backward()
        assert (weight.grad is not None) == strategy.trains_weights
        for parameter in masker.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()

    def test_sampling_repeats_under_the_same_generator(self, strategy: Strategy) -> None:
        weight = a_weight()
        masker = attached(strategy, weight).train()
        first = masker(weight)
        masker.generator = seeded(0)
        assert torch.equal(first, masker(weight))

    def test_it_works_as_a_parametrization_of_any_module(self, strategy: Strategy) -> None:
        layer = nn.Linear(5, 3, bias=False)
        masker = attached(strategy, layer.weight.detach())
        parametrize.register_parametrization(layer, "weight", masker, unsafe=True)
        assert layer(torch.ones(2, 5)).shape == (2, 3)

    def test_options_survive_the_trip_through_json(self, strategy: Strategy) -> None:
        assert type(strategy).model_validate_json(strategy.model_dump_json()) == strategy

    def test_every_weight_of_a_single_one_is_handled(self, strategy: Strategy) -> None:
        weight = torch.full((1, 1), 0.5)
        assert attached(strategy, weight).mask(weight).numel() == 1


@given(st.floats(0.001, 1), st.sampled_from([EdgePopup, DNW, RandomSubnet]), st.integers(1, 60))
def test_k_is_the_fraction_kept(k: float, kind: type[Strategy], n: int) -> None:
    weight = torch.randn(1, n, generator=seeded())
    mask = attached(kind.model_validate({"k": k}), weight).mask(weight)
    assert int(mask.sum()) == kept_count(n, k) == n - int((1 - k) * n)


@pytest.mark.parametrize("k", [0.0, -0.1, 1.0001, math.nan, math.inf])
@pytest.mark.parametrize("kind", [EdgePopup, DNW, RandomSubnet])
def test_a_k_that_is_no_fraction_is_refused(kind: type[Strategy], k: float) -> None:
    with pytest.raises(ValueError, match="k"):
        kind.model_validate({"k": k})


class TestEdgePopup:
    def test_the_gradient_goes_straight_through_to_the_scores(self) -> None:
        weight = a_weight((4, 5))
        masker = attached(EdgePopup(k=0.4), weight)
        assert isinstance(masker.scores, nn.Parameter)
        upstream = torch.randn(4, 5, generator=seeded(9))
        (masker(weight) * upstream).sum().backward()
        # Equation 6, and sign(s) for the |s| outside the estimator: kept or not.
        torch.testing.assert_close(masker.scores.grad, upstream * weight * torch.sign(masker.scores.detach()))

    def test_kept_weights_are_untouched(self) -> None:
        weight = a_weight()
        masker = attached(EdgePopup(k=0.3), weight)
        seen = masker(weight)
        assert torch.equal(seen[masker.mask(weight)], weight[masker.mask(weight)])
        assert (seen[~masker.mask(weight)] == 0).all()

    @pytest.mark.parametrize(("init", "bound"), [("kaiming-uniform", 1 / math.sqrt(400)), ("kaiming-normal", math.inf)])
    def test_initial_scores_are_kaimings(self, init: str, bound: float) -> None:
        weight = torch.zeros(1000, 400)
        scores = attached(EdgePopup.model_validate({"score_init": init}), weight).state_dict()["scores"]
        expected = bound / math.sqrt(3) if math.isfinite(bound) else math.sqrt(2 / 400)
        # Six standard errors of a standard deviation, at most std / sqrt(2 n) each.
        assert abs(float(scores.std()) - expected) < 6 * expected / math.sqrt(2 * scores.numel())
        assert float(scores.abs().max()) <= bound


# Weights so small that the loss is a straight line between two subnetworks of the layer: its curvature contributes
# about SCALE^2, and the theorem is about its slope.
SCALE = 1e-6


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1]), st.floats(0.2, 0.8), st.floats(0.01, 1))
def test_when_edges_swap_the_minibatch_loss_decreases(seed: int, layer: int, k: float, reach: float) -> None:
    """Theorem 1 (Ramanujan et al., sections 3.2 and B.1): any number of swaps in one layer, all else fixed."""
    generator = seeded(seed)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 6), (4, 8))]
    weights[layer] *= SCALE
    maskers = [EdgePopup(k=k).attach(weight, generator) for weight in weights]
    pictures = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (16,), generator=generator)
    scores = maskers[layer].get_parameter("scores")
    # Positive, as in the theorem, and still so after a step of at most 1.
    scores.data = 1 + torch.rand(scores.shape, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        hidden = torch.tanh(pictures @ maskers[0](weights[0]).T)
        return F.cross_entropy(hidden @ maskers[1](weights[1]).T, labels)

    before = loss()
    before.backward()
    assert scores.grad is not None
    mask = maskers[layer].mask(weights[layer])
    with torch.no_grad():
        scores.sub_(reach * scores.grad / scores.grad.abs().max())
    swapped = maskers[layer].mask(weights[layer])
    entered, left = swapped & ~mask, mask & ~swapped
    assume(bool(entered.any()))
    slope = float(scores.grad[entered].sum() - scores.grad[left].sum())
    assert slope < 0  # equation 18
    assume(slope < -1e3 * SCALE**2)
    assert loss().item() < before.item()


class TestBernoulli:
    def test_samples_follow_the_probabilities(self) -> None:
        weight = torch.ones(200, 200)
        masker = attached(Bernoulli(logit_init=1.0), weight).train()
        kept = float((masker(weight) != 0).double().mean())
        p = 1 / (1 + math.exp(-1.0))
        assert abs(kept - p) < 6 * math.sqrt(p * (1 - p) / weight.numel())

    def test_each_pass_samples_anew(self) -> None:
        weight = a_weight()
        masker = attached(Bernoulli(), weight).train()
        assert not torch.equal(masker(weight), masker(weight))

    def test_the_gradient_is_that_of_the_probability(self) -> None:
        weight = a_weight((4, 5))
        masker = attached(Bernoulli(logit_init=0.7), weight).train()
        upstream = torch.randn(4, 5, generator=seeded(9))
        (masker(weight) * upstream).sum().backward()
        p = torch.sigmoid(torch.tensor(0.7))
        torch.testing.assert_close(masker.get_parameter("logits").grad, upstream * weight * p * (1 - p))

    def test_rescaling_multiplies_by_size_over_ones(self) -> None:
        weight = a_weight((10, 10))
        plain, rescaled = (attached(Bernoulli(rescale=on), weight).train()(weight) for on in (False, True))
        ones = int((plain != 0).sum())
        torch.testing.assert_close(rescaled, plain * (100 / ones))

    def test_rescaling_sends_gradient_through_the_number_of_ones(self) -> None:
        weight = torch.eye(10)
        masker = attached(Bernoulli(rescale=True), weight).train()
        masker(weight).sum().backward()
        gradient = masker.get_parameter("logits").grad
        assert gradient is not None
        # A zero weight changes the output through the count alone: one more kept weight makes every other smaller.
        assert (gradient[weight == 0] < 0).all()

    def test_the_kept_mask_is_the_likelier_half(self) -> None:
        weight = a_weight((4, 5))
        masker = attached(Bernoulli(), weight)
        with torch.no_grad():
            masker.get_parameter("logits").copy_(torch.arange(20.0).reshape(4, 5) - 10)
        assert masker.mask(weight).sum() == 9  # sigmoid(m) > 0.5 exactly for m = 1 .. 9


class TestDNW:
    def test_the_gradient_reaches_every_weight(self) -> None:
        weight = a_weight((4, 5)).requires_grad_()
        upstream = torch.randn(4, 5, generator=seeded(9))
        (attached(DNW(k=0.2), weight.detach())(weight) * upstream).sum().backward()
        assert weight.grad is not None
        assert torch.equal(weight.grad, upstream)

    def test_the_largest_magnitudes_are_kept(self) -> None:
        weight = torch.tensor([[3.0, -5.0, 1.0, -0.5]])
        assert attached(DNW(k=0.5), weight).mask(weight).tolist() == [[True, True, False, False]]


def test_a_random_subnet_trains_kept_weights_only_and_only_if_asked() -> None:
    weight = a_weight().requires_grad_()
    masker = attached(RandomSubnet(k=0.5, train_weights=True), weight.detach())
    masker(weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad != 0, masker.mask(weight))
    assert RandomSubnet(train_weights=True).trains_weights
    assert not RandomSubnet().trains_weights


@pytest.mark.parametrize("found", [EdgePopup(), Bernoulli(), DNW(), Dense(), RandomSubnet(train_weights=True)])
def test_every_search_beats_the_floors_on_the_digits_by_sixty_points(found: Strategy) -> None:
    metrics = supermask.search("conv2", "digits", strategy=found, epochs=5).metrics
    floor = max(metrics["random_mask_accuracy"], metrics["random_network_accuracy"])
    assert metrics["test_accuracy"] > floor + 0.6
    if found.stochastic:
        assert metrics["sampled_accuracy_mean"] > floor + 0.6


def test_an_untouched_random_subnet_is_a_floor() -> None:
    metrics = supermask.search("conv2", "digits", strategy=RandomSubnet(), epochs=1).metrics
    assert metrics["test_accuracy"] < 0.4
