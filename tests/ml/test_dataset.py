"""Features: a slow definition, prefixes, hand-worked joins, and what a row may know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import DatasetError, TimeError
from replaylab.features import NAMES, FeatureParams
from replaylab.importers import import_history
from replaylab.ml.dataset import describe, features
from replaylab.ml.decisions import time_grid, value_bars
from replaylab.ml.labelling import labels
from replaylab.ml.leaks import check_no_lookahead
from replaylab.sessions import SessionStore, build_replay_session
from tests.ml.sessions import SECOND, START, random_rows, score, session, trade


def order(
    ts: int, side: str, qty: float, price: float, *, reduce: bool, status: str = "FILLED"
) -> tuple[Any, ...]:
    payload = {"side": side, "filledQty": qty, "avgFillPrice": price, "reduceOnly": reduce, "status": status}
    return (ts, "EXECUTION_ORDER", "BTCUSDT", payload)


def closed(ts: int, pnl: float) -> tuple[Any, ...]:
    return (ts, "EXECUTION_TRADE", "BTCUSDT", {"entryPrice": 100.0, "qty": 1.0, "realizedPnl": pnl})


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(10, 150), st.data())
def test_signals_equal_a_loop_over_the_session(seed: int, count: int, data: st.DataObject) -> None:
    """Score, regime and block at each decision: walk the events in order and remember the last."""
    rows = random_rows(seed, count, ("BTCUSDT", "ETHUSDT"))
    known: dict[str, dict[str, Any]] = {s: {"regime": None, "blocked": False} for s in ("BTCUSDT", "ETHUSDT")}
    wanted = []
    for _, kind, symbol, payload in rows:
        if kind == "REGIME_UPDATE":
            known[symbol]["regime"] = payload["regime"]
        elif kind == "RISK_UPDATE":
            for state in known.values():
                state["blocked"] = payload["tradingBlocked"]
        elif kind == "SCORING_UPDATE":
            state = known[symbol]
            wanted.append(
                (symbol, payload["score"], payload["components"]["flow"], state["regime"], state["blocked"])
            )
    found = features(session(rows))
    if wanted:
        assert found.select("symbol", "score", "score_flow", "regime", "trading_blocked").rows() == wanted
        assert (found["score_age_s"] == 0).all()
    assert found.height == len(wanted)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(20, 150), st.sampled_from(["scoring", "1s", "250ms"]))
def test_no_row_knows_what_comes_after_it(seed: int, count: int, at: str) -> None:
    """Features recomputed on prefixes are the same to the bit, whatever the decision times."""
    data = session(random_rows(seed, count, ("BTCUSDT", "ETHUSDT")))
    assert check_no_lookahead(data, lambda part: features(part, at=at), cuts=range(0, count, 7)) == []


def test_a_row_knows_the_events_of_its_own_time_that_come_before_it() -> None:
    """The session's order breaks ties; a grid row knows only what lies strictly before its time."""
    rows = [
        trade(START, 100.0),
        score(START + SECOND, 0.5),
        trade(START + SECOND, 101.0),
        trade(START + 3 * SECOND, 9.0),
    ]
    assert features(session(rows))["last_price"].to_list() == [100.0]
    grid = features(session(rows), at="1s")
    assert [(t - START) // SECOND for t in grid["timestamp"].dt.timestamp("ns")] == [1, 2, 3]
    assert grid["last_price"].to_list() == [100.0, 101.0, 101.0]
    assert grid["score"].to_list() == [None, 0.5, 0.5]
    assert grid["score_age_s"].to_list() == [None, 1.0, 2.0]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(10, 120), st.sampled_from([0.25, 0.9, 900.0, None]))
def test_grid_rows_in_a_hole_are_null_and_say_so(seed: int, count: int, gap: float | None) -> None:
    """Walk the events: a row is in a hole when the symbol's last trade or book before it is older than the gap."""
    rows = random_rows(seed, count, ("BTCUSDT", "ETHUSDT"))
    data = session(rows)
    plain = features(data, at="250ms", max_gap_s=None)
    found = features(data, at="250ms", max_gap_s=gap)
    keys = ["event_index", "timestamp", "symbol", "in_hole"]
    wanted = []
    for moment, symbol in zip(found["timestamp"].dt.timestamp("ns"), found["symbol"], strict=True):
        known = [
            t for t, n, s, _ in rows if s == symbol and n in ("MARKET_TRADE", "MARKET_BOOK") and t < moment
        ]
        wanted.append(bool(known) and gap is not None and moment - known[-1] > gap * 1e9)
    assert found["in_hole"].to_list() == wanted
    assert found.filter(~found["in_hole"]).equals(plain.filter(~found["in_hole"]))
    empty = found.filter("in_hole").drop(keys)
    assert all(column.null_count() == empty.height for column in empty)
    assert check_no_lookahead(data, lambda part: features(part, at="250ms", max_gap_s=gap), cuts=3) == []


def test_bars_of_converted_contracts_count_quote_currency(tmp_path: Path) -> None:
    """COIN-M: each trade of 5 contracts of 100 USD is 500 USD: a bar of 1,000 USD ends at every second one."""
    file = tmp_path / "BTCUSD_PERP-trades-2025-01-01.csv"
    lines = [f"{k},{20_000 + k},5,0.025,{1_735_689_600_000 + k * 1000},true" for k in range(6)]
    file.write_text("id,price,qty,base_qty,time,is_buyer_maker\n" + "\n".join(lines) + "\n", encoding="utf-8")
    import_history(tmp_path / "root", "binance-trades", [file])
    built = build_replay_session(tmp_path / "root", "2025-01-01", "2025-01-02", ["BTCUSD_PERP"])
    bars = value_bars(SessionStore(tmp_path / "root").open(built.session_id), 999.999)
    assert bars["event_index"].to_list() == [1, 3, 5]


def test_a_value_counts_from_when_it_was_received() -> None:
    """A regime of 0 s that arrived at 2 s is not known at 1 s, nor at 2 s itself, but at 3 s."""
    late = {"regime": "VOLATILE", "receivedAt": "2025-11-18T10:00:02.000Z"}
    rows = [(START, "REGIME_UPDATE", "BTCUSDT", late)] + [score(START + k * SECOND, 0.1) for k in range(4)]
    assert features(session(rows))["regime"].to_list() == [None, None, None, "VOLATILE"]


def test_what_stood_at_the_start_is_known() -> None:
    state = {
        "symbols": {
            "BTCUSDT": {
                "regime": "CALM",
                "tradingBlocked": True,
                "book": {"bids": [[99.0, 1.0]], "asks": [[101.0, 1.0]]},
            }
        }
    }
    found = features(session([score(START, 0.1)], initial_state=state))
    assert found.select("regime", "trading_blocked", "regime_age_s").row(0) == ("CALM", True, None)


def test_own_position_follows_the_filled_orders() -> None:
    """Entry, half out at TP1, all out; orders that were only sent change nothing; the move is signed by the side."""
    rows = [
        order(START, "SELL", 0.0, 0.0, reduce=False, status="NEW"),
        score(START, 0.1),
        order(START + SECOND, "SELL", 0.3, 100.0, reduce=False),
        trade(START + 2 * SECOND, 99.0),
        score(START + 2 * SECOND, 0.1),
        order(START + 3 * SECOND, "BUY", 0.1, 99.0, reduce=True),
        score(START + 3 * SECOND, 0.1),
        order(START + 4 * SECOND, "BUY", 0.2, 99.0, reduce=True),
        score(START + 4 * SECOND, 0.1),
    ]
    found = features(session(rows))
    assert found["position"].to_list() == [0, -1, -1, 0]
    assert found["position_age_s"].to_list() == [None, 1.0, 2.0, None]
    assert found["position_ret_bps"].to_list() == [None, pytest.approx(100.0), pytest.approx(100.0), None]


def test_recent_trades_look_back_on_the_last_few() -> None:
    rows = [score(START, 0.1)]
    for k, pnl in enumerate((1.0, -1.0, 3.0)):
        rows += [closed(START + (2 * k + 1) * SECOND, pnl), score(START + (2 * k + 2) * SECOND, 0.1)]
    found = features(session(rows), recent_trades=2)
    assert found["trades_closed"].to_list() == [0, 1, 2, 3]
    assert found["last_trade_ret_bps"].to_list() == [None, 100.0, -100.0, 300.0]
    assert found["recent_ret_bps"].to_list() == [None, 100.0, 0.0, 100.0]
    assert found["recent_win_share"].to_list() == [None, 1.0, 0.5, 0.5]
    assert found["since_exit_s"].to_list() == [None, 1.0, 1.0, 1.0]


def test_logged_features_of_the_live_system_are_columns() -> None:
    rows = [
        score(START, 0.1),
        (START, "FEATURE_SNAPSHOT", "BTCUSDT", {"features": {"x": 2.0, "y": None}}),
        score(START, 0.2),
    ]
    assert features(session(rows))["snapshot_x"].to_list() == [None, 2.0]


def test_several_lookbacks_side_by_side() -> None:
    data = session(random_rows(1, 200))
    both = features(
        data, params={"fast": FeatureParams(flow_half_life_s=1), "slow": FeatureParams(depth_levels=2)}
    )
    fast = features(data, params=FeatureParams(flow_half_life_s=1))
    assert both["ofi_fast"].equals(fast["ofi"].rename("ofi_fast"))
    assert {f"{name}_slow" for name in NAMES} <= set(both.columns)
    described = {
        c.name: c
        for c in describe(both.columns, {"fast": FeatureParams(flow_half_life_s=1), "slow": FeatureParams()})
    }
    assert described["ofi_fast"].lookback == "flow_half_life_s = 1"
    assert described["ofi_slow"].lookback == "flow_half_life_s = 10"


def test_every_column_is_documented() -> None:
    rows = [*random_rows(2, 200), closed(START + 10**12, 1.0)]
    found = features(session(rows))
    for column in describe([*found.columns, *labels(session(rows)).columns]):
        assert column.unit != "not documented", column
        assert column.meaning, column


def test_value_bars_decide_at_the_trade_that_fills_them() -> None:
    rows = [trade(START + k * SECOND, 100.0, qty=q) for k, q in enumerate((0.6, 0.5, 0.2, 0.9, 3.0, 0.1))]
    bars = value_bars(session(rows), 100.0)
    assert bars["event_index"].to_list() == [1, 3, 4]
    assert features(session(rows), at=bars)["last_price"].to_list() == [100.0] * 3
    with pytest.raises(DatasetError, match="above zero"):
        value_bars(session(rows), 0)


def test_a_grid_lies_on_whole_multiples_inside_the_session() -> None:
    rows = [trade(START + SECOND // 2, 1.0), trade(START + 5 * SECOND // 2, 1.0, "ETHUSDT")]
    grid = time_grid(session(rows), "1s")
    assert [(t - START) // SECOND for t in grid["timestamp"].dt.timestamp("ns")] == [1, 1, 2, 2]
    assert grid["symbol"].to_list() == ["BTCUSDT", "ETHUSDT"] * 2
    assert time_grid(session([]), "1s").height == 0
    for every in ("1w", "0s", "s", "1.5s"):
        with pytest.raises(TimeError, match="expected a period"):
            time_grid(session(rows), every)


def test_rows_come_in_the_order_of_the_decisions() -> None:
    data = session(random_rows(5, 300, ("ETHUSDT", "BTCUSDT")))
    found = features(data)
    assert found["event_index"].is_sorted()
    given_back = features(data, at=found.select("timestamp", "symbol", "event_index").reverse())
    assert given_back.equals(found.reverse().select(given_back.columns), null_equal=True)
    assert labels(data)["event_index"].equals(found["event_index"])


def test_decision_times_may_come_from_pandas() -> None:
    data = session(random_rows(5, 200))
    found = features(data)
    times = found.select("timestamp", "symbol", "event_index")
    assert labels(data, at=times.to_pandas()).equals(labels(data, at=times))
    with pytest.raises(DatasetError, match="found list"):
        features(data, at=[1, 2])  # type: ignore[arg-type]


def test_an_empty_session_has_no_rows() -> None:
    assert features(session([])).height == 0
    assert features(session([score(START, 0.1)]), symbols=["ETHUSDT"]).height == 0


def test_a_session_out_of_order_is_refused() -> None:
    with pytest.raises(DatasetError, match="not sorted"):
        features(session([score(START + 1, 0.1), score(START, 0.1)]))
