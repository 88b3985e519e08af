"""The selection, against the stable sort that defines it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from supermask.select import BLOCK, SMALL, STRIDE, _mask_on_device, keep_top_k, kept_count, top_k_mask


def by_sorting(magnitudes: Tensor, kept: int) -> Tensor:
    """Algorithm 1 of Ramanujan et al.: sort, and keep the last `kept` places."""
    mask = torch.zeros(magnitudes.numel(), dtype=torch.bool)
    order = torch.sort(magnitudes.flatten(), stable=True).indices
    mask[order[magnitudes.numel() - kept :]] = True
    return mask.view_as(magnitudes)


few_values = st.sampled_from([0.0, 1e-45, 1e-38, 0.25, 0.5, 1.0, 3e38, np.inf])
any_value = st.floats(0, np.inf, width=32)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=9), elements=st.one_of(few_values, any_value)),
    st.data(),
)
def test_the_mask_is_that_of_a_full_stable_sort(values: np.ndarray, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, values.size))
    magnitudes = torch.from_numpy(values)
    mask = top_k_mask(magnitudes, kept)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == kept
    assert torch.equal(mask, by_sorting(magnitudes, kept))


N = 200_000
ramp = torch.arange(N, dtype=torch.float32)


@pytest.mark.parametrize(
    "magnitudes",
    [
        torch.ones(N),
        ramp,
        ramp.flip(0),
        torch.cat([ramp[: N // 2], ramp[: N // 2].flip(0)]),
        torch.rand(N, generator=torch.Generator().manual_seed(0)),
        (torch.rand(N, generator=torch.Generator().manual_seed(1)) * 100).floor(),
        torch.rand(N, generator=torch.Generator().manual_seed(2)) * 1e-40,
        torch.where(ramp % 3 == 0, torch.inf, ramp),
        torch.full((N,), torch.inf),
        torch.where(ramp % STRIDE == 0, ramp + N, ramp),
        torch.where(ramp % STRIDE == 0, 0.0, ramp + 1),
    ],
    ids=[
        "constant",
        "rising",
        "falling",
        "roof",
        "random",
        "many ties",
        "denormal",
        "infinite",
        "all infinite",
        "the largest where the sample is taken",
        "the smallest where the sample is taken",
    ],
)
@pytest.mark.parametrize("k", [1e-5, 0.3, 0.5, 0.99, 1.0])
def test_unfriendly_scores_are_selected_exactly(magnitudes: Tensor, k: float) -> None:
    kept = kept_count(N, k)
    assert torch.equal(top_k_mask(magnitudes, kept), by_sorting(magnitudes, kept))


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 3 * STRIDE), elements=st.one_of(few_values, any_value)),
    st.integers(SMALL - 2, 2 * SMALL),
    st.data(),
)
def test_a_sample_of_many_scores_decides_nothing(values: np.ndarray, n: int, data: st.DataObject) -> None:
    # Repeated with a period, so that some samples see all values and others only one.
    magnitudes = torch.from_numpy(np.resize(values, n))
    kept = data.draw(st.integers(0, n))
    assert torch.equal(top_k_mask(magnitudes, kept), by_sorting(magnitudes, kept))


def test_drifting_and_jumping_scores_are_selected_exactly() -> None:
    scores = torch.randn(N, generator=torch.Generator().manual_seed(3))
    for step in range(6):
        noise = torch.randn(N, generator=torch.Generator().manual_seed(step))
        scores = noise * 1e3 if step == 4 else scores + 1e-3 * noise
        assert torch.equal(top_k_mask(scores.abs(), N // 3), by_sorting(scores.abs(), N // 3))


def test_of_equal_scores_the_later_ones_are_kept() -> None:
    assert top_k_mask(torch.ones(2, 3), 2).tolist() == [[False, False, False], [False, True, True]]


def test_negative_values_are_ranked_by_magnitude() -> None:
    values = torch.tensor([-3.0, 1.0, -0.0, 2.0, -2.0])
    assert top_k_mask(values, 2).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("kept", [0, 1, 11, 2 * BLOCK - 7, 2 * BLOCK])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("computing", [torch.float32, torch.bfloat16])
def test_the_kept_weights_are_the_weights_under_the_mask(kept: int, ties: bool, computing: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    weight, scores = (torch.randn(32, BLOCK // 64, 2, 2, generator=generator) for _ in range(2))
    weight = weight.contiguous(memory_format=torch.channels_last)
    if ties:
        scores = scores.round()
    with torch.autocast("cpu", torch.bfloat16, enabled=computing == torch.bfloat16):
        masked = keep_top_k(weight, scores, kept)
    assert masked.dtype == computing
    assert torch.equal(masked, torch.where(top_k_mask(scores, kept), weight, 0.0).to(computing))
    assert not torch.signbit(masked[masked == 0]).any()  # no -0.0, which an artifact does not have


@pytest.mark.parametrize("levels", [0, 1, 100], ids=["floats", "constant", "many ties"])
@pytest.mark.parametrize("kept", [1, 77, N // 2, N // 2 + 1, N - 1])
def test_the_way_of_an_accelerator_taken_on_the_cpu_follows_the_same_rule(levels: int, kept: int) -> None:
    magnitudes = torch.rand(N, generator=torch.Generator().manual_seed(1))
    if levels:
        magnitudes = (magnitudes * levels).floor()
    assert torch.equal(_mask_on_device(-magnitudes, kept), by_sorting(magnitudes, kept))


def test_channels_last_scores_are_ranked_in_c_order() -> None:
    scores = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    assert torch.equal(top_k_mask(scores, 5), by_sorting(scores.contiguous(), 5))


@given(st.integers(1, 10**8), st.floats(1e-6, 1))
def test_the_kept_count_is_algorithm_1s(n: int, k: float) -> None:
    assert kept_count(n, k) == n - int((1 - k) * n)
    assert 1 <= kept_count(n, k) <= n
