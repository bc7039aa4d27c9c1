"""Each rule of the model on sessions small enough to be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replaylab.params import TradingParams

Play = Callable[..., Any]
Session = Callable[..., list[Any]]
FREE = TradingParams(
    slippage_bps=0,
    taker_fee_bps=0,
    maker_fee_bps=0,
    notional_usd=1000,
    market_fill="print",
    limit_fill="touch",
    max_gap_s=None,
    rounding="none",
)


def outcome(system: Any) -> list[tuple[str, int, int, str]]:
    return [(trade.side, trade.entry_index, trade.exit_index, trade.reason) for trade in system.trades]


def test_costs_are_those_of_the_formulas(play: Play, session: Session) -> None:
    """1000 USD long at 100: slippage 1 bp in and out, 5.5 bps taker fee on both fills."""
    system = play(session("s1", 100.0, 99.0), TradingParams(tp1_fraction=0))
    (trade,) = system.trades
    entry, fill = 100.0 * 1.0001, 99.0 * 0.9999
    qty = 1000 / entry
    assert (trade.entry_price, trade.close_price, trade.reason) == (entry, fill, "STOP_LOSS")
    assert trade.fees == pytest.approx(entry * qty * 0.00055 + fill * qty * 0.00055, rel=1e-12)
    assert trade.realized_pnl == pytest.approx((fill - entry) * qty - trade.fees, rel=1e-12)
    assert (trade.mfe, trade.mae) == (0.0, pytest.approx((99.0 - entry) * qty, rel=1e-12))
    assert trade.duration_seconds == 1.0


@pytest.mark.parametrize(
    ("steps", "changes", "expected"),
    [
        pytest.param(["s1", 100, 99.7], {}, ("LONG", 1, 2, "STOP_LOSS"), id="stop touched, not crossed"),
        pytest.param(["s-1", 100, 100.31], {}, ("SHORT", 1, 2, "STOP_LOSS"), id="short stop"),
        pytest.param(["s1", 100, 101], {}, ("LONG", 1, 2, "TP2"), id="one jump fills TP1 and TP2"),
        pytest.param(["s1", 100, 100.31, 100], {}, ("LONG", 1, 3, "BREAK_EVEN"), id="break-even"),
        pytest.param(
            ["s1", 100, 100.31, 100, 99.6],
            {"break_even_offset_pct": None},
            ("LONG", 1, 4, "STOP_LOSS"),
            id="break-even off",
        ),
        pytest.param(["s1", 100, 100.31], {"tp1_fraction": 1}, ("LONG", 1, 2, "TP1"), id="all at TP1"),
        pytest.param(
            ["s1", 100, 100.2, 100.05, 99.9],
            {"trailing_activation_pct": 0.1, "trailing_distance_pct": 0.1},
            ("LONG", 1, 3, "TRAILING"),
            id="trailing acts from the next price event",
        ),
        pytest.param(
            ["s1", 100, 100.1, 100.1], {"max_hold_s": 2}, ("LONG", 1, 3, "TIMEOUT"), id="time is up"
        ),
        pytest.param(
            ["s1", 100, "s-0.5", 100.1], {"exit_threshold": 0}, ("LONG", 1, 3, "SCORE_EXIT"), id="score exit"
        ),
        pytest.param(
            ["s1", 100, ("RISK_UPDATE", {"forceClose": True}), 100.1],
            {},
            ("LONG", 1, 3, "RISK_EXIT"),
            id="risk exit",
        ),
        pytest.param(
            ["s1", ("RISK_UPDATE", {"forceClose": True}), 100, 100.1],
            {},
            ("LONG", 2, 3, "SESSION_END"),
            id="a pending entry is not forced",
        ),
        pytest.param(["s1", 100], {}, ("LONG", 1, 1, "SESSION_END"), id="closed at its own entry"),
        pytest.param(
            ["s1", 100, 100.1, 100.2], {"latency_ms": 1500}, ("LONG", 2, 3, "SESSION_END"), id="latency"
        ),
    ],
)
def test_a_rule(
    play: Play, session: Session, steps: list[Any], changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert outcome(play(session(*steps), FREE.replace(**changes))) == [expected]


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (["s0.59", 100, 101], {}),
        (["s0", 100, 101], {"entry_threshold": 0}),
        (["s1", 100, 101], {"allow_long": False}),
        (["s-1", 100, 101], {"allow_short": False}),
        (["s1", 100, 101], {"allowed_regimes": ("CALM",)}),
        ([("REGIME_UPDATE", {"regime": "WILD"}), "s1", 100], {"allowed_regimes": ("CALM",)}),
        (["s1", 100, 101], {"max_open_positions": 0}),
        (["s1", 100, 101], {"max_trades_per_day": 0}),
        (["s1"], {}),
        ([("RISK_UPDATE", {"tradingBlocked": True}), "s1", 100], {}),
        ([("RISK_UPDATE", {"riskFlags": {"tradingBlocked": True}}), "s1", 100], {}),
        ([("SCORING_UPDATE", {"score": "1"}), 100], {}),
        ([("SCORING_UPDATE", {"score": True}), 100], {}),
    ],
)
def test_no_entry(play: Play, session: Session, steps: list[Any], changes: dict[str, Any]) -> None:
    assert play(session(*steps), FREE.replace(**changes)).trades == []


def test_cooldown_ends_at_its_end_to_the_nanosecond(play: Play, session: Session) -> None:
    steps = ["s1", 100, 99, "s1", "s1", 99, 98]
    assert [row[1] for row in outcome(play(session(*steps), FREE.replace(cooldown_s=2)))] == [1, 5]
    assert [row[1] for row in outcome(play(session(*steps), FREE.replace(cooldown_s=2.000000001)))] == [1]
    # The close was at second 2: without a cooldown the score of second 3 enters.
    assert play(session("s1", 100, 99, "s1", 99, 98), FREE).trades[1].entry_index == 4


def test_a_score_that_is_a_price_is_first_a_price(play: Play, session: Session) -> None:
    """The event that closes a position by its price may open the next one by its score."""

    def scored(score: float, price: float) -> tuple[str, dict[str, Any]]:
        return "SCORING_UPDATE", {"score": score, "price": price}

    events = session(scored(1, 100), scored(0.1, 100), scored(-1, 99), scored(0.1, 99), scored(0, 98))
    assert outcome(play(events, FREE.replace(tp1_fraction=0))) == [
        ("LONG", 1, 2, "STOP_LOSS"),
        ("SHORT", 3, 4, "TP2"),
    ]


def test_a_score_at_the_entrys_own_event_does_not_close_it(play: Play, session: Session) -> None:
    events = session(
        ("SCORING_UPDATE", {"score": 1.0, "price": 100.0}),
        ("SCORING_UPDATE", {"score": -1.0, "price": 100.0}),
        ("SCORING_UPDATE", {"score": 0.5, "price": 100.0}),
    )
    assert outcome(play(events, FREE.replace(exit_threshold=0))) == [("LONG", 1, 2, "SESSION_END")]


def test_risk_for_every_symbol_reaches_those_first_seen_later(play: Play, session: Session) -> None:
    """A null symbol blocks all, also later ones; a later update for one symbol overrides it."""
    blocked = [(0, "RISK_UPDATE", None, {"tradingBlocked": True})]
    assert play(blocked + session("s1", 100, 101, symbol="LATE"), FREE).trades == []
    one = [*blocked, (0, "RISK_UPDATE", "LATE", {"tradingBlocked": False})]
    assert len(play(one + session("s1", 100, 101, symbol="LATE"), FREE).trades) == 1


def test_a_flag_that_is_not_a_bool_changes_nothing(play: Play, session: Session) -> None:
    top_wins = {"tradingBlocked": False, "riskFlags": {"tradingBlocked": True}}
    for payload in ({"tradingBlocked": 1}, {"riskFlags": []}, {}, {"forceClose": "true"}, top_wins):
        assert len(play(session(("RISK_UPDATE", payload), "s1", 100, 101), FREE).trades) == 1


def test_the_daily_loss_stands_for_the_rest_of_the_day(play: Play, session: Session) -> None:
    """A loss of 10 USD reaches the limit; the gain after it does not lift it; the next day does."""
    params = FREE.replace(max_daily_loss_usd=9, sl_pct=1)
    steps = ["s1", 100, 99, "s1", 99, 120]
    assert len(play(session(*steps), params).trades) == 1
    events = session(*steps)
    late = [(ts + (86_400_000_000_000 if i > 2 else 0), *rest) for i, (ts, *rest) in enumerate(events)]
    assert len(play(late, params).trades) == 2
    assert len(play(session(*steps), params.replace(max_daily_loss_usd=11)).trades) == 2


def test_limits_count_pending_positions_of_all_symbols(play: Play) -> None:
    events = [(0, "SCORING_UPDATE", name, {"score": 1.0}) for name in ("A", "B", "C")]
    events += [(1, "MARKET_TRADE", name, {"price": 10.0}) for name in ("A", "B", "C")]
    system = play(events, FREE.replace(max_open_positions=2))
    assert [trade.symbol for trade in system.trades] == ["A", "B"]


def test_the_initial_state_is_where_a_session_starts(play: Play, session: Session) -> None:
    start = {"symbols": {"BTCUSDT": {"regime": "CALM", "tradingBlocked": True, "book": None}}}
    assert play(session("s1", 100), FREE, initial_state=start).trades == []
    start["symbols"]["BTCUSDT"]["tradingBlocked"] = False
    params = FREE.replace(allowed_regimes=("CALM",))
    assert len(play(session("s1", 100), params, initial_state=start).trades) == 1


def test_an_initial_book_is_no_price_event_but_takes_deltas(play: Play, session: Session) -> None:
    book = {"bids": [[99.0, 1.0]], "asks": [[101.0, 1.0]]}
    start = {"symbols": {"BTCUSDT": {"regime": None, "tradingBlocked": False, "book": book}}}
    delta = {"kind": "delta", "bids": [[100.0, 1.0]], "asks": []}
    system = play(session("s1", ("MARKET_BOOK", delta)), FREE, initial_state=start)
    (trade,) = system.trades
    assert (trade.entry_index, trade.entry_price) == (1, 100.5)
    assert play(session("s1"), FREE, "book", initial_state=start).trades == []


def test_unusable_events_are_counted_and_skipped(play: Play, session: Session) -> None:
    events = session(
        100,
        ("MARKET_TRADE", {"price": "100"}),
        ("MARKET_TRADE", {"price": -1.0}),
        ("MARKET_TRADE", {"price": 100.0, "offMarket": True}),
        ("SCORING_UPDATE", {"score": float("nan")}),
        ("REGIME_UPDATE", {"regime": 3}),
        ("EXECUTION_FILL", {}),
    )
    events.append((9, "SCORING_UPDATE", None, {"score": 1.0}))
    assert play(events).unusable == {"MARKET_TRADE": 2, "SCORING_UPDATE": 2, "REGIME_UPDATE": 1}


def test_risk_sizing_loses_what_it_says_and_is_capped(play: Play, session: Session) -> None:
    params = FREE.replace(risk_per_trade_usd=2, sl_pct=0.5, tp1_fraction=0)
    (trade,) = play(session("s1", 100, 99.5), params).trades
    assert trade.realized_pnl == pytest.approx(-2)
    (capped,) = play(session("s1", 100, 99.5), params.replace(risk_per_trade_usd=50, leverage=3)).trades
    assert capped.qty * 100 == pytest.approx(3000)
    (flat,) = play(session("s1", 100, 99.5), params.replace(sl_pct=0)).trades
    assert flat.qty * 100 == pytest.approx(1000)
