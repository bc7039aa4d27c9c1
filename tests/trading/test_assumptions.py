"""The line under every result: what it names, and when it warns."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from replaylab.params import Resolved, TradingParams
from replaylab.trading import ResolvedPrices, assumptions

PRICES = ResolvedPrices({"AAA": "trade", "BBB": "score"}, frozenset({"AAA"}), "auto")
TIMES = {"AAA": pl.Series([0, 1, 1, 2, 5000]) * 10**9, "BBB": pl.Series([7]) * 10**9}


def line(params: TradingParams | None = None, **options: Any) -> str:
    return assumptions(PRICES, TIMES, Resolved(params or TradingParams(), "given", {}), **options)


def trades(**columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame(columns)


def test_fills_spacing_and_holes_of_each_symbol() -> None:
    """A symbol with a book has market fill book under "auto"; 4,998 s without a price are a hole."""
    assert line() == (
        "prices (median spacing): AAA trade (1 s apart), market fill book, limit fill through, "
        "1 hole (longest 83.3 min)"
        "; BBB score (one price), market fill print, limit fill through, no holes; given parameters"
    )
    assert "pauses are no holes (longest 83.3 min)" in line(TradingParams(max_gap_s=None))
    assert "AAA trade (1 s apart), market fill book, limit fill through, no holes" in line(
        TradingParams(max_gap_s=4998.0)
    )


def test_a_sweep_names_every_fill_model_that_it_tried() -> None:
    axes = {
        "market_fill": ["auto", "print"],
        "limit_fill": ["touch", "through"],
        "max_gap_s": [None, 6000.0, 60.0],
    }
    found = line(axes=axes)
    assert "AAA trade (1 s apart), market fill book or print, limit fill touch or through, 1 hole" in found
    assert "BBB score (one price), market fill print," in found


def test_thin_fills_and_late_exits_are_counted() -> None:
    """Held 66.1 s and 300 s of 60 s: both later than a tenth; 66 s is not."""
    made = trades(
        reason=["TIMEOUT"] * 4, duration_seconds=[60.0, 66.0, 66.1, 300.0], thin=[True, None, False, True]
    )
    found = line(TradingParams(max_hold_s=60.0), trades=made)
    assert "2 of 4 trades have a thin fill" in found
    assert "2 of 4 trades are held longer than max_hold_s by more than a tenth, up to 5 min" in found
    assert "max_hold_s" not in line(trades=made)
    assert line(trades=made.clear()) == line()


@pytest.mark.parametrize(("gaps", "warned"), [(0, False), (1, False), (2, True)])
def test_more_than_a_tenth_of_trades_ended_by_holes_is_a_warning(gaps: int, warned: bool) -> None:
    """One of ten is not more than a tenth."""
    reasons = ["DATA_GAP"] * gaps + ["TP2"] * (10 - gaps)
    found = line(trades=trades(reason=reasons))
    assert ("trades end by DATA_GAP" in found) == (gaps > 0)
    assert ("prices come too seldom for max_gap_s = 900" in found) == warned


def test_a_sweep_counts_the_combinations() -> None:
    table = pl.DataFrame({"n_trades": [10, 10, 0], "n_data_gap": [1, 2, 0], "n_thin": [0, 3, 0]})
    found = line(table=table)
    assert "1 of 3 combinations have thin fills" in found
    assert "in 1 of 3 combinations more than a tenth of the trades end by DATA_GAP" in found
