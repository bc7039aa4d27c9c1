"""Sample weights: hand-worked numbers and a brute-force count on a fine grid of time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaylab.errors import DatasetError
from replaylab.ml.weights import average_uniqueness, return_weights

labels = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=15)


def test_uniqueness_of_hand_worked_labels() -> None:
    """[0, 4] and [2, 6] share two of their four units each: (2·1 + 2·½)/4. [10, 12] stands alone."""
    np.testing.assert_allclose(average_uniqueness([0, 2, 10], [4, 6, 12]), [0.75, 0.75, 1.0])
    np.testing.assert_allclose(average_uniqueness([0, 0, 0], [5, 5, 5]), [1 / 3] * 3)


@given(labels)
def test_uniqueness_equals_brute_force(rows: list[tuple[int, int]]) -> None:
    """Average of 1/c over every unit of time; times are whole, so units are exact."""
    start = np.array([row[0] for row in rows])
    end = start + np.array([row[1] for row in rows])
    wanted = []
    for a, b in zip(start, end, strict=True):
        if a == b:
            wanted.append(1 / sum(s <= a <= e for s, e in zip(start, end, strict=True)))
            continue
        units = [1 / sum(s <= t < e for s, e in zip(start, end, strict=True)) for t in range(a, b)]
        wanted.append(sum(units) / len(units))
    np.testing.assert_allclose(average_uniqueness(start, end), wanted)


@given(labels)
def test_return_weights_equal_brute_force(rows: list[tuple[int, int]]) -> None:
    start = np.array([row[0] for row in rows])
    end = start + np.array([row[1] for row in rows])
    when = np.arange(0, 30)
    price = 100 * np.exp(np.sin(when))
    wanted = []
    for a, b in zip(start, end, strict=True):
        total = 0.0
        for k in range(1, 30):
            if a < when[k] <= b:
                count = sum(s < when[k] <= e for s, e in zip(start, end, strict=True))
                total += math.log(price[k] / price[k - 1]) / count
        wanted.append(abs(total))
    mean = sum(wanted) / len(wanted)
    wanted = [w / mean for w in wanted] if mean > 0 else [1.0] * len(wanted)
    np.testing.assert_allclose(return_weights(start, end, when, price), wanted, atol=1e-9)


def test_standing_prices_weigh_all_the_same() -> None:
    assert return_weights([0, 1], [2, 3], [0, 1, 2, 3], [5.0] * 4).tolist() == [1.0, 1.0]


def test_prices_out_of_order_are_refused() -> None:
    with pytest.raises(DatasetError, match="must ascend"):
        return_weights([0], [2], [1, 0], [5.0, 5.0])
