"""Plateau scores: hand-worked numbers, and a brute-force search for neighbours."""

from __future__ import annotations

from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaylab.errors import SweepError
from replaylab.sweep.plateaus import plateaus


def test_a_plateau_beats_a_lone_peak() -> None:
    """On a line 5 5 5 0 20 0: the middle of the plateau keeps 5; the peak falls to 20/3 − √(800/9)."""
    frame = pl.DataFrame({"sl_pct": [1.0, 2, 3, 4, 5, 6], "net_pnl": [5.0, 5, 5, 0, 20, 0]})
    found = plateaus(frame, ["sl_pct"], "net_pnl")
    assert found["neighbours"].to_list() == [1, 2, 2, 2, 2, 1]
    assert found["neighbour_mean"].to_list() == [5, 5, 2.5, 12.5, 0, 20]
    assert found["neighbour_min"].to_list() == [5, 5, 0, 5, 0, 20]
    assert found["robustness"][1] == 5
    assert found["robustness"][4] == pytest.approx(20 / 3 - (800 / 9) ** 0.5)
    assert found.sort("robustness", descending=True)["sl_pct"][0] in (1.0, 2.0)


@given(st.data())
def test_neighbours_equal_brute_force(data: st.DataObject) -> None:
    """A neighbour differs by one step of the sorted values on one ordered axis, and in nothing else."""
    first = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=1, unique=True))
    second = data.draw(st.lists(st.sampled_from([1, 2, 7, None]), min_size=1, unique=True))
    rows = list(product(first, second, ["calm", "wild"]))
    kept = data.draw(st.lists(st.sampled_from(rows), min_size=1, unique=True))
    values = data.draw(st.lists(st.integers(-9, 9), min_size=len(kept), max_size=len(kept)))
    frame = pl.DataFrame(
        {
            "a": [row[0] for row in kept],
            "b": pl.Series([row[1] for row in kept], dtype=pl.Int64),
            "regime": [row[2] for row in kept],
            "v": [float(v) for v in values],
        }
    )
    places = [sorted({row[0] for row in kept}), sorted({row[1] for row in kept} - {None})]

    def step(row: tuple[object, ...], axis: int) -> int | None:
        return None if row[axis] is None else places[axis].index(row[axis])

    def near(x: tuple[object, ...], y: tuple[object, ...]) -> bool:
        for axis in (0, 1):
            others_equal = all(x[k] == y[k] for k in range(3) if k != axis)
            a, b = step(x, axis), step(y, axis)
            if others_equal and a is not None and b is not None and abs(a - b) == 1:
                return True
        return False

    counts = [sum(near(x, y) for y in kept) for x in kept]
    if sum(counts) // 2 < len(kept) // 2:
        return  # too sparse for a grid: the nearest rows are taken
    found = plateaus(frame, ["a", "b", "regime"], "v")
    assert found["neighbours"].to_list() == counts
    for row, x in enumerate(kept):
        around = [v for v, y in zip(values, kept, strict=True) if near(x, y)]
        if around:
            assert found["neighbour_mean"][row] == pytest.approx(np.mean(around))
            assert found["neighbour_min"][row] == min(around)
            everyone = [*around, values[row]]
            assert found["robustness"][row] == pytest.approx(np.mean(everyone) - np.std(everyone), abs=1e-6)
        else:
            assert found["robustness"][row] is None


def test_random_samples_take_the_nearest_rows() -> None:
    """Off the grid, the rows of a broad hill outrank a single high row among losses."""
    rng = np.random.default_rng(4)
    x, y = rng.random(300), rng.random(300)
    value = 10 * np.exp(-((x - 0.3) ** 2 + (y - 0.3) ** 2) / 0.05)
    lone = int(np.argmax(x + y))
    value[lone] = 30.0
    frame = pl.DataFrame({"x": x, "y": y, "v": value})
    found = plateaus(frame, ["x", "y"], "v").with_row_index()
    assert found["neighbours"].min() >= 4
    best = found.sort("robustness", descending=True, nulls_last=True)
    assert best["index"][0] != lone
    assert abs(best["x"][0] - 0.3) < 0.15


def test_missing_values_and_categories_have_no_neighbours() -> None:
    frame = pl.DataFrame({"regime": ["a", "b"], "v": [1.0, None]})
    found = plateaus(frame, ["regime"], "v")
    assert found["neighbours"].to_list() == [0, 0]
    assert found["robustness"].to_list() == [None, None]


def test_a_misspelt_column_is_named() -> None:
    with pytest.raises(SweepError, match="Did you mean 'net_pnl'"):
        plateaus(pl.DataFrame({"a": [1], "net_pnl": [1.0]}), ["a"], "net_pln")
