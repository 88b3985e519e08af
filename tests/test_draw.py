"""The draw, against FORMAT's test vectors and against a scalar Threefry written from the paper."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask.draw import DISTRIBUTIONS, Distribution, draw, key_of, normal_quantile, stream, threefry2x32

SEED, NAME = 20191129, "convs.0.weight"
VECTORS: dict[Distribution, tuple[str, list[float]]] = {
    "signed-constant": (
        "4e7f0b3ac12c3410c54515212ed36114ae4089c6e6894a0232ca80c62b50cbea",
        [-0.25, 0.25, 0.25, -0.25],
    ),
    "normal": (
        "bae2d5fc47fa2ad3982d82e5c98138989a03325b5a4c9425b10d18a38dd24814",
        [-0.41242453, -0.17753695, 0.49419239, 0.08765274],
    ),
    "uniform": (
        "47d281963bdd9d7cf2f9706e957a87856fd859ab978e2a1c61960aabfa1004fb",
        [-0.39014241, -0.22620043, 0.41219869, 0.11869733],
    ),
    "constant": (
        "2d44911d28c102ba5337882d51454c794bafb1fcfcb3037fe66d0084650ff0f6",
        [0.25, 0.25, 0.25, 0.25],
    ),
}


def scalar_threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32-20 with Python integers, after Salmon et al., section 3.3."""
    mask = 2**32 - 1
    keys = [key[0], key[1], 0x1BD11BDA ^ key[0] ^ key[1]]
    x, y = (counter[0] + keys[0]) & mask, (counter[1] + keys[1]) & mask
    for round_ in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[round_ % 8]
        x = (x + y) & mask
        y = ((y << rotation | y >> (32 - rotation)) & mask) ^ x
        if round_ % 4 == 3:
            injection = round_ // 4 + 1
            x = (x + keys[injection % 3]) & mask
            y = (y + keys[(injection + 1) % 3] + injection) & mask
    return x, y


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_words(
    key: tuple[int, int], counter: tuple[int, int], words: tuple[int, int]
) -> None:
    x, y = threefry2x32(key, np.array([counter[0]], np.uint32), np.array([counter[1]], np.uint32))
    assert (int(x[0]), int(y[0])) == words == scalar_threefry(key, counter)


@given(st.tuples(*[st.integers(0, 2**32 - 1)] * 2), st.integers(0, 2**40), st.integers(1, 20))
def test_any_piece_of_the_stream_equals_the_scalar_generator(key: tuple[int, int], first: int, blocks: int) -> None:
    expected = [word for i in range(first, first + blocks) for word in scalar_threefry(key, (i % 2**32, i >> 32))]
    assert stream(key, first, blocks).tolist() == expected


def test_the_first_words_of_the_test_vector() -> None:
    assert [f"{word:08x}" for word in stream(key_of(SEED, NAME), 0, 2)] == [
        "0cac2f76",
        "3d2267fa",
        "f9d8eb12",
        "a3165b44",
    ]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_drawn_weights_match_the_format_to_the_bit(distribution: Distribution) -> None:
    digest, first = VECTORS[distribution]
    weights = draw(SEED, NAME, (1000,), distribution, 0.25)
    # The digits are for people, and those of `uniform` are off in the seventh; the hash is exact.
    np.testing.assert_allclose(weights[:4], first, rtol=3e-7)
    assert hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest() == digest


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_larger_tensor_begins_with_the_smaller_one_whatever_its_shape(distribution: Distribution) -> None:
    # 2^21 weights end the first chunk of the signs, 2^16 that of the others.
    n = 2**21 + 77
    long = draw(5, "w", (n,), distribution, 0.1)
    assert draw(5, "w", (7, 11, 13), distribution, 0.1).reshape(-1).tolist() == long[:1001].tolist()
    tail = {"signed-constant": 2**21, "constant": 0}.get(distribution, 2**16)
    words = stream(key_of(5, "w"), tail // (64 if distribution == "signed-constant" else 2), 1)
    if distribution == "signed-constant":
        expected = [np.float32(0.1) if words[0] >> bit & 1 else -np.float32(0.1) for bit in range(32)]
        assert long[tail : tail + 32].tolist() == [float(weight) for weight in expected]
    elif distribution == "uniform":
        u = (float(words[0]) + 0.5) * 2.0**-32
        assert long[tail] == np.float32(0.1 * (math.sqrt(3.0) * (2.0 * u - 1.0)))


def test_the_quantile_is_the_normal_distributions() -> None:
    u = np.concatenate([np.array([2.0**-33, 1 - 2.0**-33, 0.075, 0.925]), np.linspace(1e-6, 1 - 1e-6, 4001)])
    expected = [NormalDist().inv_cdf(float(x)) for x in u]
    np.testing.assert_allclose(normal_quantile(u), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("distribution", ["signed-constant", "normal", "uniform"])
def test_weights_have_mean_zero_and_the_asked_standard_deviation(distribution: Distribution) -> None:
    weights = draw(1, "w", (400_000,), distribution, 0.5).astype(np.float64)
    # Six standard errors of each estimate.
    assert abs(weights.mean()) < 6 * 0.5 / math.sqrt(400_000)
    assert abs(weights.std() - 0.5) < 6 * 0.5 / math.sqrt(2 * 400_000)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_drawing_takes_at_most_half_as_much_memory_again_as_the_result(distribution: Distribution) -> None:
    n = 25_500_000
    draw(1, "w", (10,), distribution, 1.0)
    tracemalloc.start()
    draw(1, "w", (n,), distribution, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1.5 * 4 * n


def test_names_and_seeds_give_independent_weights() -> None:
    a, b, c = (draw(seed, name, (4096,), "signed-constant", 1.0) for seed, name in ((0, "a"), (0, "b"), (1, "a")))
    for x, y in ((a, b), (a, c), (b, c)):
        assert abs(float((x * y).mean())) < 6 / math.sqrt(4096)


@pytest.mark.parametrize("seed", [-1, 2**53])
def test_a_seed_that_json_cannot_hold_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        draw(seed, "w", (1,), "normal", 1.0)


@pytest.mark.parametrize("std", [-1.0, math.inf, math.nan])
def test_an_impossible_standard_deviation_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        draw(0, "w", (1,), "normal", std)


def test_an_unknown_distribution_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="signed-constant"):
        draw(0, "w", (1,), "cauchy", 1.0)  # type: ignore[arg-type]


def test_no_weights_are_no_trouble() -> None:
    assert draw(0, "w", (0, 3), "normal", 1.0).shape == (0, 3)


def test_drawing_needs_numpy_alone() -> None:
    program = "import sys, supermask.draw; print(sorted({'torch', 'pydantic', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
