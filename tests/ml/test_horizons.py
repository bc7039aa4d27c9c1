"""Fixed horizons, mark-outs and meta-labels: hand-worked numbers, and a plain loop."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import DatasetError
from replaylab.ml.horizons import fixed_horizon, mark_outs, meta_labels
from tests.ml.sessions import SECOND, START, random_rows, score, session, trade

RECORD = {
    "side": "SHORT",
    "entryPrice": 100.0,
    "closePrice": 99.0,
    "qty": 2.0,
    "realizedPnl": 1.5,
    "durationSeconds": 3.0,
}


def test_hand_worked_horizons() -> None:
    """Entry 100 at 1 s; at 2 s still 100, at 5 s 102. The session ends at 9 s, so that 9 s is not covered."""
    rows = [
        score(START, 0.5),
        *(trade(START + s * SECOND, p) for s, p in ((1, 100.0), (4, 102.0), (9, 103.0))),
    ]
    found = fixed_horizon(session(rows), [0.5, 2, 5, 9])
    assert found.select("ret_0.5s", "ret_2s", "ret_5s", "ret_9s").row(0) == (
        None,
        0.0,
        pytest.approx(0.02),
        None,
    )
    assert found["t_end_2s"].dt.timestamp("ns").to_list() == [START + 2 * SECOND]
    assert found["t_end_9s"].to_list() == [None]
    assert fixed_horizon(session(rows), [5], side="short")["ret_5s"][0] == pytest.approx(-0.02)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(5, 100))
def test_horizons_equal_the_plain_loop(seed: int, count: int) -> None:
    rows = random_rows(seed, count)
    rows.append(score(rows[-1][0], 0.5))
    found = fixed_horizon(session(rows), [1.0], price_source="trade")["ret_1s"].to_list()
    wanted = []
    for k, (ts, kind, _, _) in enumerate(rows):
        if kind != "SCORING_UPDATE":
            continue
        later = [(t, p["price"]) for t, n, _, p in rows[k + 1 :] if n == "MARKET_TRADE"]
        inside = [price for t, price in later if t <= ts + SECOND]
        covered = ts + SECOND < rows[-1][0]
        wanted.append(inside[-1] / inside[0] - 1 if inside and covered else None)
    assert found == wanted


def test_mark_outs_are_signed_by_the_side_and_in_basis_points() -> None:
    rows = [trade(START + s * SECOND, p) for s, p in ((0, 100.0), (1, 101.0), (9, 100.0))]
    trades = pl.DataFrame(
        {
            "symbol": ["BTCUSDT"] * 2,
            "side": ["LONG", "SHORT"],
            "entry_price": [100.0, 100.0],
            "timestamp": [START + 3 * SECOND] * 2,
            "duration_seconds": [3.0, 3.0],
        }
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
    found = mark_outs(session(rows), trades, [1, 30])
    assert found["mark_out_1s"].to_list() == pytest.approx([100.0, -100.0])
    assert found["mark_out_30s"].to_list() == [None, None]


def test_meta_labels_of_logged_trades() -> None:
    """PnL 1.5 on a notional of 200 that took 3 s; the session's own EXECUTION_TRADE events."""
    rows = [(START + 10 * SECOND, "EXECUTION_TRADE", "BTCUSDT", RECORD)]
    found = meta_labels(session(rows))
    assert found.select("side", "ret", "label").row(0) == (-1, 0.0075, 1)
    assert found["t_start"].dt.timestamp("ns")[0] == START + 7 * SECOND
    with pytest.raises(DatasetError, match="EXECUTION_\\*"):
        meta_labels(session([score(START, 1.0)]))


def test_nonsense_is_refused() -> None:
    with pytest.raises(DatasetError, match="above zero"):
        fixed_horizon(session([score(START, 1.0)]), [0])
    with pytest.raises(DatasetError, match="no decision times"):
        fixed_horizon(session([trade(START, 1.0)]))
