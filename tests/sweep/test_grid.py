"""Which combinations a grid names, in which order, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep import make_grid, sample, sweep
from tests.strategies import make_session


def test_a_product_varies_its_last_axis_fastest() -> None:
    grid = make_grid({"entry_threshold": [0.5, 0.6], "sl_pct": np.array([0.1, 0.2, 0.3])})
    frame = pl.DataFrame(list(grid.columns().values()))
    assert frame.rows() == [(0.5, 0.1), (0.5, 0.2), (0.5, 0.3), (0.6, 0.1), (0.6, 0.2), (0.6, 0.3)]


def test_none_and_regimes_are_values_like_others() -> None:
    axes = {
        "max_hold_s": [None, 5],
        "allowed_regimes": [None, ["A", "B"], "C"],
        "max_open_positions": [None, 2],
    }
    grid = make_grid(axes)
    base = TradingParams()
    assert grid.rows == 12
    assert grid.params_of(11, base) == base.replace(
        max_hold_s=5.0, allowed_regimes=("C",), max_open_positions=2
    )
    assert grid.columns()["allowed_regimes"].to_list()[:6] == [None, None, "A|B", "A|B", "C", "C"]
    packed = grid.pack(base).params
    assert packed["max_hold_ns"].tolist() == [-1] * 6 + [5_000_000_000] * 6
    assert packed["max_open_positions"].tolist() == [-1, 2] * 6


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_a_frame_gives_a_combination_per_row(library: str) -> None:
    rows = {"tp1_pct": [0.1, 0.2, 0.1], "max_hold_s": [None, 3.0, None], "allow_short": [True, False, True]}
    frame = pl.DataFrame(rows) if library == "polars" else pd.DataFrame(rows)
    grid = make_grid(frame)
    assert [grid.params_of(row, TradingParams()).max_hold_s for row in range(3)] == [None, 3.0, None]
    assert pl.DataFrame(list(grid.columns().values())).equals(pl.DataFrame(rows))


def test_a_column_of_nothing_is_switched_off() -> None:
    grid = make_grid(pl.DataFrame({"max_hold_s": [None, None], "sl_pct": [0.1, 0.2]}))
    assert grid.pack(TradingParams()).params["max_hold_ns"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"entry_treshold": [0.5]}, "Did you mean 'entry_threshold'"),
        (pl.DataFrame({"slpct": [0.5]}), "Did you mean 'sl_pct'"),
        ({"sl_pct": []}, "no values"),
        ({"sl_pct": [-1.0]}, "sl_pct: expected a finite number ≥ 0"),
        ({"sl_pct": [float("nan")]}, "sl_pct"),
        ({"sl_pct": ["0.1"]}, "sl_pct"),
        ({"tp1_pct": [0.7, 0.8]}, "2 of 2 combinations have tp2_pct < tp1_pct"),
        (pl.DataFrame({"sl_pct": []}, schema={"sl_pct": pl.Float64}), "no rows"),
        (5, "a mapping of parameter names"),
    ],
)
def test_nonsense_is_refused_by_name(grid: object, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        make_grid(grid)


def test_contradictions_are_counted_and_left_out() -> None:
    with pytest.warns(UserWarning, match="1 of 4 combinations have tp2_pct < tp1_pct"):
        result = sweep(make_session(1), {"tp1_pct": [0.2, 0.4], "tp2_pct": [0.3, 0.5]}, progress=False)
    assert result.left_out == {"tp2_pct < tp1_pct": 1}
    assert result.frame.select("tp1_pct", "tp2_pct").rows() == [(0.2, 0.3), (0.2, 0.5), (0.4, 0.5)]


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_samples_fill_their_ranges_and_repeat(method: str) -> None:
    ranges = {
        "sl_pct": (0.01, 1.0),
        "tp2_pct": (1.0, 2.0),
        "max_open_positions": (1, 3),
        "allowed_regimes": [None, ["A"]],
        "allow_short": [True, False],
    }
    frame = sample(ranges, 256, method=method, seed=3, log=["sl_pct"])
    assert frame.equals(sample(ranges, 256, method=method, seed=3, log=["sl_pct"]))
    assert frame["sl_pct"].min() >= 0.01
    # Even in the logarithm: half of the points are below the geometric middle.
    assert (frame["sl_pct"] < 0.1).mean() == pytest.approx(0.5, abs=0.1)
    assert set(frame["max_open_positions"]) == {1, 2, 3}
    assert make_grid(frame).rows == 256


def test_a_million_distinct_rows_are_checked_by_their_ends() -> None:
    values = np.linspace(0.0, 1.0, 5000)
    grid = make_grid(pl.DataFrame({"sl_pct": values}))
    assert grid.pack(TradingParams()).params["sl_pct"].tolist() == values.tolist()
    with pytest.raises(SweepError, match="sl_pct"):
        make_grid(pl.DataFrame({"sl_pct": values - 0.5}))


def test_a_lazy_frame_is_a_frame() -> None:
    frame = pl.DataFrame({"sl_pct": [0.1, 0.2]})
    assert make_grid(frame.lazy()).columns()["sl_pct"].to_list() == [0.1, 0.2]


def test_fill_models_contradict_by_whole_combinations() -> None:
    """A queue needs ticks: only the rows with both values are left out, each counted once."""
    axes = {"limit_fill": ["through", "queue"], "rounding": ["none", "exchange"], "sl_pct": [0.1, 0.2]}
    with pytest.warns(UserWarning, match="2 of 8 combinations have limit_fill"):
        grid = make_grid(axes)
    assert grid.rows == 6
    rows = pl.DataFrame(list(grid.columns().values())).select("limit_fill", "rounding").rows()
    assert ("queue", "none") not in rows
