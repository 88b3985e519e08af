"""Bits in bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask import bitpack

bit_lists = st.lists(st.booleans(), max_size=70)


@given(bit_lists)
def test_bit_i_is_bit_i_mod_8_of_byte_i_div_8(bits: list[bool]) -> None:
    packed = bitpack.pack(np.array(bits, dtype=np.bool_))
    assert len(packed) == bitpack.packed_size(len(bits)) == math.ceil(len(bits) / 8)
    assert [bool(packed[i // 8] >> (i % 8) & 1) for i in range(len(bits))] == bits
    assert not bitpack.has_padding(packed, len(bits))
    assert bitpack.count(packed) == sum(bits)


@given(bit_lists)
def test_unpacking_what_was_packed_gives_it_back(bits: list[bool]) -> None:
    packed = bitpack.pack(np.array(bits, dtype=np.bool_))
    assert bitpack.unpack(packed, len(bits)).tolist() == bits


@given(bit_lists.filter(lambda bits: len(bits) % 8 != 0), st.data())
def test_every_padding_bit_is_noticed(bits: list[bool], data: st.DataObject) -> None:
    packed = bitpack.pack(np.array(bits, dtype=np.bool_))
    packed[-1] |= 1 << data.draw(st.integers(len(bits) % 8, 7))
    assert bitpack.has_padding(packed, len(bits))


def test_a_mask_of_many_dimensions_is_packed_in_c_order() -> None:
    mask = np.zeros((2, 3, 2), dtype=np.bool_)
    mask[1, 0, 1] = True  # the eighth weight
    assert bitpack.pack(mask).tolist() == [0x80, 0]


@pytest.mark.parametrize(("share", "bits"), [(0.5, 1.0), (0.3, 0.8813), (0.2, 0.7219), (0.1, 0.4690)])
def test_the_entropy_bound_is_that_of_the_literature(share: float, bits: float) -> None:
    n = 1_000_000
    assert bitpack.entropy_bits(round(share * n), n) / n == pytest.approx(bits, abs=5e-5)


@pytest.mark.parametrize("kept", [0, 10])
def test_a_mask_that_keeps_all_or_nothing_needs_no_bits(kept: int) -> None:
    assert bitpack.entropy_bits(kept, 10) == 0
