"""What the system hands to its recorder: signals, transitions, orders, trades, snapshots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from replaylab.params import TradingParams
from replaylab.records import Record, encode_record
from replaylab.timestamps import parse_ns
from tests.strategies import make_case

Play = Callable[..., Any]
Session = Callable[..., list[Any]]


def moves(kept: Any) -> list[tuple[str, str, str]]:
    return [(event.event_type, event.from_state, event.to_state) for event in kept.of("event")]


def test_every_signal_is_logged_with_its_payload_also_when_nothing_comes_of_it(
    play: Play, session: Session, kept: Any
) -> None:
    extra = {"score": 0.1, "anything": {"else": [1]}}
    risk, regime = {"riskFlags": {"note": "x"}}, {"regime": "CALM", "confidence": 0.5}
    events = session(("SCORING_UPDATE", extra), ("RISK_UPDATE", risk), ("REGIME_UPDATE", regime), 100.0)
    play(events, recorder=kept)
    assert [event.extra for event in kept.of("event")] == [extra, risk, regime]
    assert [move[1:] for move in moves(kept)] == [("IDLE", "IDLE")] * 3


def test_states_and_transitions(play: Play, session: Session, kept: Any) -> None:
    """IDLE → PENDING_ENTRY → LONG → LONG (TP1) → COOLDOWN → IDLE; market events appear only as transitions."""
    play(session("s1", 100, 100.4, 100, "s0", "s1"), TradingParams(cooldown_s=2), recorder=kept)
    assert moves(kept) == [
        ("SCORING_UPDATE", "IDLE", "PENDING_ENTRY"),
        ("EXECUTION_FILL", "PENDING_ENTRY", "LONG"),
        ("EXECUTION_PARTIAL", "LONG", "LONG"),
        ("EXECUTION_EXIT", "LONG", "COOLDOWN"),
        ("SCORING_UPDATE", "COOLDOWN", "COOLDOWN"),
        ("SCORING_UPDATE", "COOLDOWN", "PENDING_ENTRY"),
        ("EXECUTION_CANCEL", "PENDING_ENTRY", "IDLE"),
    ]
    leave = kept.of("event")[3]
    assert leave.extra["reason"] == leave.reason == "BREAK_EVEN"
    assert set(leave.extra) == {"reason", "price", "qty"}


def test_a_risk_update_for_all_is_logged_once_for_each(play: Play, kept: Any) -> None:
    events = [(0, "SCORING_UPDATE", name, {"score": 0.0}) for name in ("B", "A")]
    play([*events, (1, "RISK_UPDATE", None, {"tradingBlocked": True})], recorder=kept)
    assert [event.symbol for event in kept.of("event")] == ["B", "A", "A", "B"]


def test_every_order_has_its_new_and_one_final_status(play: Play, session: Session, kept: Any) -> None:
    """Entry, TP1, TP2, stop; TP1 fills, the stop moves to break-even and is hit, TP2 is cancelled."""
    play(session("s1", 100, 100.4, 100), recorder=kept)
    rows = [(o.type, o.side, o.reduce_only, o.status, o.source) for o in kept.of("order")]
    assert rows == [
        ("MARKET", "BUY", False, "NEW", "STATE_MACHINE"),
        ("MARKET", "BUY", False, "FILLED", "STATE_MACHINE"),
        ("LIMIT", "SELL", True, "NEW", "TPSL_ENGINE"),
        ("LIMIT", "SELL", True, "NEW", "TPSL_ENGINE"),
        ("STOP_MARKET", "SELL", True, "NEW", "TPSL_ENGINE"),
        ("LIMIT", "SELL", True, "FILLED", "TPSL_ENGINE"),
        ("STOP_MARKET", "SELL", True, "CANCELED", "TPSL_ENGINE"),
        ("STOP_MARKET", "SELL", True, "NEW", "TPSL_ENGINE"),
        ("STOP_MARKET", "SELL", True, "FILLED", "TPSL_ENGINE"),
        ("LIMIT", "SELL", True, "CANCELED", "TPSL_ENGINE"),
    ]
    filled = kept.of("order")[1]
    assert filled.filled_qty == filled.qty > 0
    assert filled.notional_usd == filled.avg_fill_price * filled.qty
    assert kept.of("order")[7].trigger_price == filled.avg_fill_price


def test_orders_and_records_of_a_long_random_session(play: Play, random_session: Any, kept: Any) -> None:
    """Each order id is NEW once and then FILLED or CANCELED once; quantities of exits add up to the entries';
    every record has the form that goes to disk."""
    params = TradingParams(
        entry_threshold=0.3,
        trailing_activation_pct=0.05,
        exit_threshold=-0.5,
        max_hold_s=6,
        tp1_pct=0.1,
        tp2_pct=0.2,
        latency_ms=300,
        cooldown_s=1,
    )
    system = play(random_session(3000), params, recorder=kept)
    reasons = {trade.reason for trade in system.trades}
    assert {"STOP_LOSS", "TRAILING", "SCORE_EXIT", "RISK_EXIT", "TIMEOUT", "TP2"} <= reasons
    counts = Counter((order.client_order_id, order.status == "NEW") for order in kept.of("order"))
    assert set(counts.values()) == {1}
    ids = {order.client_order_id for order in kept.of("order")}
    assert len(counts) == 2 * len(ids)
    filled = [order for order in kept.of("order") if order.status == "FILLED"]
    bought = sum(order.filled_qty for order in filled if not order.reduce_only)
    assert abs(bought - sum(order.filled_qty for order in filled if order.reduce_only)) < 1e-6
    assert len(kept.of("trade")) == len(system.trades)
    for _, record in kept.all:
        assert isinstance(record, Record)
        encode_record(type(record), record)
    entries = [order for order in filled if not order.reduce_only]
    assert len(entries) == len(system.trades)
    net = sum(trade.realized_pnl for trade in system.trades)
    assert abs(kept.of("risk")[-1].account.balance_usd - 10_000 - net) < 1e-6


def test_the_trade_log_has_the_trade(play: Play, session: Session, kept: Any) -> None:
    system = play(session("s-1", 100, 99), TradingParams(leverage=3), recorder=kept)
    (record,), (trade,) = kept.of("trade"), system.trades
    assert record.to_dict() == {
        "timestamp": "1970-01-01T00:00:02.000Z",
        "dateKey": "1970-01-01",
        "symbol": "BTCUSDT",
        "side": "SHORT",
        "entryPrice": trade.entry_price,
        "closePrice": trade.close_price,
        "qty": trade.qty,
        "leverage": 3.0,
        "realizedPnl": trade.realized_pnl,
        "mfe": trade.mfe,
        "mae": trade.mae,
        "durationSeconds": 1.0,
        "mode": "SIM",
        "entryTimestamp": "1970-01-01T00:00:01.000Z",
        "reason": "TP2",
        "tp1Filled": True,
        "fees": trade.fees,
    }


def test_snapshots_follow_event_time_and_end_with_the_session(
    play: Play, session: Session, kept: Any
) -> None:
    """At most one of a kind in ten seconds of event time; the last ones say how the session ended."""
    play(session("s1", 100, *["s0"] * 20, 99), recorder=kept)
    assert [snapshot.timestamp[17:19] for snapshot in kept.of("risk")] == ["00", "10", "22"]
    assert kept.of("risk")[1].account.open_positions == 1
    end = kept.of("risk")[-1]
    assert (end.account.open_positions, end.daily_stats.losses, end.daily_stats.trades_count) == (0, 1, 1)
    assert -11.3 < end.daily_stats.realized_pnl < -11.2
    assert abs(end.account.balance_usd - 10_000 - end.daily_stats.realized_pnl) < 1e-9
    assert kept.of("tpsl")[0].tp1_price > kept.of("tpsl")[0].entry_price
    assert kept.of("execution")[-1].active_orders_count == 0


def test_a_recorder_changes_no_decision(play: Play, random_session: Any, kept: Any) -> None:
    params = TradingParams(entry_threshold=0.3, trailing_activation_pct=0.05)
    events = random_session(2000)
    assert play(events, params).trades == play(events, params, recorder=kept).trades != []


def test_daily_figures_are_those_of_the_snapshots_own_day(play: Play, session: Session, kept: Any) -> None:
    """Before the first fill of a day its statistics are zero, and yesterday's limits do not hold."""
    day = 86_400_000_000_000
    events = session("s1", 100, 99) + [(day + ts, *rest) for ts, *rest in session("s1")]
    play(events, TradingParams(max_daily_loss_usd=5, max_trades_per_day=1), recorder=kept)
    first, second = kept.of("risk")[0], kept.of("risk")[1]
    assert (first.daily_stats.date_key, first.daily_stats.trades_count) == ("1970-01-01", 0)
    assert first.risk_flags.max_trades_hit
    assert (second.daily_stats.date_key, second.daily_stats.realized_pnl) == ("1970-01-02", 0.0)
    assert not second.risk_flags.daily_loss_limit_hit


def test_the_logs_of_random_runs_are_consistent(kept_by: Any) -> None:
    """Each order has its NEW line and one final line, each state event begins in the state in which the one before it
    ended, each trade has its record, and the balance is the sum of the trades; a recorder changes no trade."""
    statuses: Counter[str] = Counter()
    for seed in range(120):
        session, params = make_case(seed)
        system, kept = kept_by(session, params)
        orders: dict[str, list[Any]] = {}
        for order in kept.of("order"):
            orders.setdefault(order.client_order_id, []).append(order)
        for first, *rest in orders.values():
            assert (first.status, len(rest)) == ("NEW", 1)
            assert parse_ns(rest[0].timestamp) >= parse_ns(first.timestamp)
            statuses[f"{first.type} {first.time_in_force} {rest[0].status}"] += 1
        states: dict[str, str] = {}
        for event in kept.of("event"):
            before = states.get(event.symbol, event.from_state)
            # A carried position ends, and a cooldown from before the session is over, without an event.
            if before != event.from_state:
                assert event.symbol in session.initial_state.get("symbols", {})
            states[event.symbol] = event.to_state
        records = [(r.symbol, r.realized_pnl, r.fees, r.reason) for r in kept.of("trade")]
        assert records == [(t.symbol, t.realized_pnl, t.fees, t.reason) for t in system.trades]
        again, _ = kept_by(session, params, record=False)
        assert again.trades == system.trades
        ended = Counter(orders[name][-1].status for name in orders if not orders[name][0].reduce_only)
        counts = system.counts
        assert (ended["EXPIRED"], ended["REJECTED"], ended["CANCELED"]) == (
            counts.expired,
            counts.rejected,
            counts.cancelled,
        )
        parts = sum(
            part["realizedPnl"]
            for start in (session.initial_state.get("symbols") or {}).values()
            for part in (start.get("carried") or {}).get("parts", ())
        )
        net = sum(trade.realized_pnl for trade in system.trades)
        if not parts and kept.of("risk"):
            assert kept.of("risk")[-1].account.balance_usd == pytest.approx(10_000 + net, abs=1e-6)
    for kind in ("MARKET IOC FILLED", "MARKET IOC REJECTED", "LIMIT GTC FILLED", "LIMIT GTC CANCELED",
                 "LIMIT PostOnly FILLED", "LIMIT PostOnly EXPIRED", "LIMIT PostOnly REJECTED",
                 "LIMIT PostOnly CANCELED", "STOP_MARKET GTC FILLED", "STOP_MARKET GTC CANCELED"):  # fmt: skip
        assert statuses[kind], kind
