"""Signals from market data: the same live and in a replay, in both inject modes; scoring within its bounds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from replaylab.params import ScoringParams, TradingParams
from replaylab.timestamps import parse_ns
from replaylab.trading import TradingSystem

SCORING = ScoringParams(warmup_s=2, interval_ms=250, gain=4)
PARAMS = TradingParams(entry_threshold=0.5, exit_threshold=-0.5, tp1_pct=0.05, tp2_pct=0.1, sl_pct=0.05)
START = 1_763_460_000_000_000_000
Play = Callable[..., TradingSystem]


def market(n: int, seed: int = 7) -> list[Any]:
    """Trades and books of two symbols, many on one millisecond."""
    source = random.Random(seed)
    prices = {"AAAUSDT": 100.0, "BBBUSDT": 20.0}
    events: list[Any] = []
    ts = START
    drift = 0.0
    for _ in range(n):
        ts += source.choice((0, 0, 20_000_000, 150_000_000))
        symbol = source.choice(list(prices))
        drift = 0.98 * drift + source.gauss(0, 5e-5)
        prices[symbol] *= 1 + drift + source.gauss(0, 1e-4)
        price = prices[symbol]
        if source.random() < 0.3:
            book = {
                "bids": [[price * (1 - 1e-4 * k), source.uniform(0, 5)] for k in range(1, 7)],
                "asks": [[price * (1 + 1e-4 * k), source.uniform(0, 5)] for k in range(1, 7)],
            }
            events.append((ts, "MARKET_BOOK", symbol, book))
        else:
            side = "BUY" if source.random() < 0.5 + drift * 1500 else "SELL"
            trade = {"price": price, "qty": source.expovariate(1), "side": side}
            events.append((ts, "MARKET_TRADE", symbol, trade))
    return _in_session_order(events)


def _in_session_order(events: list[Any]) -> list[Any]:
    ranks = {"MARKET_BOOK": 0, "MARKET_TRADE": 1}
    return sorted(events, key=lambda event: (event[0], ranks.get(event[1], 2), event[2] or ""))


def logged(kept: Any) -> list[Any]:
    """What a session builder makes of the state events."""
    return [
        (parse_ns(event.timestamp), event.event_type, event.symbol, event.extra) for event in kept.of("event")
    ]


def signals(kept: Any) -> list[Any]:
    return [event for event in logged(kept) if event[1] in ("SCORING_UPDATE", "REGIME_UPDATE")]


def outcome(system: TradingSystem) -> list[Any]:
    """Trades without their indices: a log adds events to the session, the times stay."""
    return [
        (t.symbol, t.side, t.entry_ts, t.exit_ts, t.entry_price, t.close_price, t.reason, t.realized_pnl)
        for t in system.trades
    ]


def test_a_replay_of_the_log_decides_as_the_live_run_did(play: Play, kept: Any, also_kept: Any) -> None:
    """SIM run, its log merged with the tape, replayed: the same trades in SCORING_ONLY and in FULL_DECISION,
    and in FULL_DECISION every recorded signal comes out again to the bit."""
    tape = market(6000)
    live = play(tape, PARAMS, inject_mode="FULL_DECISION", scoring=SCORING, recorder=kept)
    assert len(live.trades) > 20
    assert len({trade.reason for trade in live.trades}) >= 4
    session = _in_session_order(tape + logged(kept))
    assert outcome(play(session, PARAMS)) == outcome(live)
    again = play(session, PARAMS, inject_mode="FULL_DECISION", scoring=SCORING, recorder=also_kept)
    assert outcome(again) == outcome(live)
    assert signals(also_kept) == signals(kept)
    assert len(signals(kept)) > 500


def test_signals_come_once_per_time_after_all_its_market_events(play: Play, kept: Any) -> None:
    """Three trades on one millisecond give one score, at their common time and with the last price."""
    scoring = ScoringParams(warmup_s=0)
    events = [
        (START + k // 3, "MARKET_TRADE", "A", {"price": 100.0 + k, "qty": 1.0, "side": "BUY"})
        for k in range(6)
    ]
    play(
        events, TradingParams(entry_threshold=2), inject_mode="FULL_DECISION", scoring=scoring, recorder=kept
    )
    scores = [event for event in kept.of("event") if event.event_type == "SCORING_UPDATE"]
    assert [event.extra["price"] for event in scores] == [102.0, 105.0]
    first = kept.of("event")[0]
    assert (first.event_type, first.extra["regime"]) == ("REGIME_UPDATE", "CALM")


def test_prefixes_give_the_same_signals(play: Play) -> None:
    """What comes later changes no earlier signal."""
    tape = market(2000)

    def signals(events: list[Any]) -> list[Any]:
        from_log = type("Log", (), {"events": []})()

        class Only:
            def log_state_event(self, symbol: str, event: Any) -> None:
                if event.event_type in ("SCORING_UPDATE", "REGIME_UPDATE"):
                    from_log.events.append((event.timestamp, symbol, event.extra))

            def ignore(self, record: Any) -> None: ...

            log_trade = log_order = ignore
            write_risk_snapshot = write_tpsl_snapshot = write_execution_snapshot = ignore

        play(events, PARAMS, inject_mode="FULL_DECISION", scoring=SCORING, recorder=Only())
        found: list[Any] = from_log.events
        return found

    whole = signals(tape)
    assert len(whole) > 100
    for cut in (300, 1000, 1700):
        last = tape[cut - 1][0]
        complete = [event for event in tape if event[0] <= last]
        part = signals(complete)
        assert whole[: len(part)] == part


def test_scores_stay_in_bounds_and_follow_the_flow(play: Play, kept: Any) -> None:
    play(market(2000), PARAMS, inject_mode="FULL_DECISION", scoring=SCORING, recorder=kept)
    scores = [e.extra["score"] for e in kept.of("event") if e.event_type == "SCORING_UPDATE"]
    assert max(scores) <= 1
    assert min(scores) >= -1
    assert min(scores) < -0.5 < 0.5 < max(scores)


@pytest.mark.parametrize(
    "payload",
    [
        {"price": 100.0, "side": "BUY"},
        {"price": 100.0, "qty": 1.0},
        {"price": 100.0, "qty": 1.0, "side": "X"},
    ],
)
def test_a_trade_without_side_or_quantity_still_has_a_price(play: Play, payload: Any, kept: Any) -> None:
    events = [(START + k, "MARKET_TRADE", "A", payload) for k in range(3)]
    system = play(events, inject_mode="FULL_DECISION", scoring=ScoringParams(warmup_s=0), recorder=kept)
    assert system.unusable == {"MARKET_TRADE": 3}
    assert kept.of("event")[-1].extra["components"].keys() == {"momentum", "volatility"}


def test_views_show_each_symbol(play: Play) -> None:
    events = market(500)
    system = TradingSystem(
        PARAMS, inject_mode="FULL_DECISION", scoring=SCORING, price_sources={"AAAUSDT": "trade"}
    )
    for index, (ts, kind, symbol, payload) in enumerate(events):
        system.on_event(index, ts, kind, symbol, payload)
    views = system.views()
    assert [row["symbol"] for row in views] == ["AAAUSDT", "BBBUSDT"]
    assert views[0]["price"] > 0
    assert views[0]["regime"] in ("CALM", "TRENDING", "VOLATILE")
    assert -1 <= views[1]["score"] <= 1
