"""The block index finds exactly what a loop over all prices finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.barriers import BlockIndex, first_at_or_above, first_at_or_below
from replaylab.barriers.index import range_max, range_min


def slow(prices, start, level, end, above):
    for i in range(start, end):
        if (prices[i] >= level) if above else (prices[i] <= level):
            return i
    return end


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.integers(1, 40))
def test_first_touch_is_that_of_a_plain_loop(seed: int, size: int, spread: int) -> None:
    """Levels and prices share a coarse lattice, so that equality really occurs."""
    rng = np.random.default_rng(seed)
    prices = 100.0 + np.cumsum(rng.integers(-1, 2, size)) * (1 if seed % 2 else 0) + rng.integers(0, 3, size)
    index = BlockIndex(prices)
    starts = rng.integers(0, size + 1, 30)
    ends = np.minimum(size, starts + rng.integers(0, size + 1, 30))
    levels = prices[rng.integers(0, size, 30)] + rng.integers(-spread, spread + 1, 30)
    up = first_at_or_above(index, starts, levels, ends)
    down = first_at_or_below(index, starts, levels, ends)
    for k, (start, level, end) in enumerate(zip(starts, levels, ends, strict=True)):
        assert up[k] == slow(prices, start, level, end, True)
        assert down[k] == slow(prices, start, level, end, False)
        if start < end:
            assert range_max(prices, index.high, index.offsets, start, end) == prices[start:end].max()
            assert range_min(prices, index.low, index.offsets, start, end) == prices[start:end].min()


def test_never_touched_is_the_end() -> None:
    index = BlockIndex([1.0, 2.0, 3.0])
    assert first_at_or_above(index, [0, 1, 3], 9.0).tolist() == [3, 3, 3]
    assert first_at_or_below(index, [0], 0.5, [2]).tolist() == [2]
    assert first_at_or_above(BlockIndex([]), 0, 1.0).tolist() == [0]


def test_positions_outside_the_prices_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 3"):
        first_at_or_above(BlockIndex([1.0, 2.0, 3.0]), [4], 1.0)
