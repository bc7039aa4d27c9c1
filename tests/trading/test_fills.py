"""The fill models, LIMIT entries, holes, funding, ticks and carried state on sessions worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replaylab.params import TradingParams
from replaylab.timestamps import iso
from replaylab.trading import TradingSystem, resolve_prices

SECOND = 1_000_000_000
FREE = TradingParams(slippage_bps=0, taker_fee_bps=0, maker_fee_bps=0, notional_usd=1000, tp1_fraction=0)
Play = Callable[..., TradingSystem]


def trade(ts: float, price: float, qty: float = 1.0, side: str = "BUY", symbol: str = "A") -> Any:
    return (round(ts * SECOND), "MARKET_TRADE", symbol, {"price": price, "qty": qty, "side": side})


def book(ts: float, bids: Any, asks: Any, **more: Any) -> Any:
    return (round(ts * SECOND), "MARKET_BOOK", "A", {"bids": bids, "asks": asks, **more})


def score(ts: float, value: float = 1.0, symbol: str = "A") -> Any:
    return (round(ts * SECOND), "SCORING_UPDATE", symbol, {"score": value})


def exits(system: TradingSystem) -> list[tuple[int, int, str]]:
    return [(t.entry_index, t.exit_index, t.reason) for t in system.trades]


BOOK = book(0, [[99.9, 5], [99.8, 50]], [[100.1, 4], [100.2, 50]])


def test_a_market_order_walks_the_book_and_is_never_better_than_the_print(play: Play) -> None:
    """1000 USD at a best ask of 100.1 is 9.99 A: 4 at 100.1, the rest at 100.2. The sell walks the bids."""
    (found,) = play([BOOK, score(0), trade(1, 100), trade(2, 99.5)], FREE).trades
    qty = 1000 / 100.1
    assert (found.qty, found.thin) == (qty, False)
    assert found.entry_price == pytest.approx((4 * 100.1 + (qty - 4) * 100.2) / qty, rel=1e-15)
    # The stop was touched by a print at 99.5: the bids still show 99.9, which is gone.
    assert found.close_price == 99.5
    (quoted,) = play(
        [BOOK, score(0), trade(1, 100), trade(2, 99.5)], FREE.replace(market_fill="quote")
    ).trades
    assert quoted.entry_price == 100.1
    (dear,) = play([BOOK, score(0), trade(1, 100.5), trade(2, 100.5)], FREE).trades
    assert (dear.qty, dear.entry_price) == (qty, 100.5)


def test_beyond_the_visible_levels_a_fill_is_thin(play: Play) -> None:
    """26 asks of 0.1 each: 25 are visible, what is left pays the 25th."""
    asks = [[100 + k / 100, 0.1] for k in range(26)]
    (found,) = play([book(0, [[99, 1]], asks), score(0), trade(1, 100), trade(2, 100)], FREE).trades
    qty = 1000 / 100
    expected = sum(price * 0.1 for price, _ in asks[:25]) + 100.24 * (qty - 2.5)
    assert found.thin
    assert found.entry_price == pytest.approx(expected / qty, rel=1e-12)


def test_an_old_book_is_not_used_and_slippage_follows_the_fill(play: Play) -> None:
    """Slippage None: 0 for a book fill, 1 bp where the book is older than max_book_age_s."""
    params = FREE.replace(slippage_bps=None, market_fill="quote")
    events = [BOOK, score(0), trade(60, 100), score(60), trade(61, 100)]
    assert play(events, params).trades[0].entry_price == 100.1
    (late,) = play([BOOK, score(0), trade(60.000000001, 100)], params).trades
    assert (late.entry_price, late.close_price) == (100 * 1.0001, 100 * 0.9999)
    one_sided = book(30, [], [], kind="delta")
    assert play([BOOK, one_sided, score(30), trade(80, 100)], params).trades[0].entry_price == 100.1
    (empty,) = play(
        [
            BOOK,
            book(30, [[99.9, 0]], [], kind="delta"),
            book(31, [[99.8, 0]], [], kind="delta"),
            score(31),
            trade(32, 100),
        ],
        params,
    ).trades
    assert empty.entry_price == 100 * 1.0001


def test_an_initial_book_is_as_old_as_the_first_event(play: Play) -> None:
    initial = {"symbols": {"A": {"book": {"bids": [[99, 100]], "asks": [[101, 100]]}}}}
    params = FREE.replace(market_fill="quote")
    events = [(0, "NOTE", None, {}), score(30), trade(60, 100)]
    assert play(events, params, initial_state=initial).trades[0].entry_price == 101
    later = [(0, "NOTE", None, {}), score(30), trade(61, 100)]
    assert play(later, params, initial_state=initial).trades[0].entry_price == 100


@pytest.mark.parametrize(
    ("limit_fill", "prices", "expected"),
    [
        ("touch", [100.6, 100.7], (0, 1, "TP2")),
        ("through", [100.6, 100.7], (0, 2, "TP2")),
        ("through", [100.6, 100.6], (0, 2, "SESSION_END")),
    ],
)
def test_a_target_fills_by_touch_or_by_trade_through(
    play: Play, limit_fill: str, prices: list[float], expected: Any
) -> None:
    events = [(0, "SCORING_UPDATE", "A", {"score": 1.0, "price": 100.0})]
    events = [score(0), trade(0, 100), *(trade(k, p) for k, p in enumerate(prices, 1))]
    (found,) = exits(play(events, FREE.replace(limit_fill=limit_fill)))
    assert (found[0] - 1, found[1] - 1, found[2]) == expected


def test_a_queue_is_used_up_by_trades_of_the_other_side(play: Play) -> None:
    """2 of the ask at the target are ahead, and 9.9 are one's own: takers that buy count, and those without a side."""
    instruments = {"A": {"tickSize": 0.1, "lotSize": 0.1}}
    params = FREE.replace(limit_fill="queue", queue_share=0.5, market_fill="print")
    start = [book(0, [[99.9, 5]], [[100.1, 5], [100.6, 4.0]]), score(0), trade(1, 100)]
    queue = [trade(2, 100.6, 5, "SELL"), trade(3, 100.6, 5), trade(4, 100.6, 4.9, ""), trade(5, 100.6, 2.0)]
    system = play([*start, *queue], params, instruments=instruments)
    assert (system.trades[0].qty, exits(system)) == (10.0, [(2, 6, "SESSION_END")])
    system = play(
        [*start, *queue, trade(6, 100.6, "1"), trade(7, 100.6, 0.1)], params, instruments=instruments
    )
    assert exits(system) == [(2, 8, "TP2")]
    through = play([*start, trade(2, 100.7)], params, instruments=instruments)
    assert exits(through) == [(2, 3, "TP2")]
    # A level that is not displayed: only a trade-through fills.
    hidden = [book(0, [[99.9, 5]], [[100.1, 5]]), *start[1:]]
    assert (
        exits(play([*hidden, *queue, trade(6, 100.6, 100)], params, instruments=instruments))[0][2]
        == "SESSION_END"
    )
    # Inside the spread nothing is ahead.
    inside = [book(0, [[99.9, 5]], [[101, 5]]), *start[1:]]
    assert exits(play([*inside, trade(2, 100.6, 10)], params, instruments=instruments)) == [(2, 3, "TP2")]


LIMIT = FREE.replace(entry_order="LIMIT")


def test_a_limit_entry_rests_behind_the_best_quote_and_pays_the_maker_fee(play: Play) -> None:
    params = LIMIT.replace(maker_fee_bps=-1, taker_fee_bps=5, slippage_bps=3)
    (found,) = play([BOOK, score(0), trade(1, 100), trade(2, 99.9), trade(3, 99.89)], params).trades
    assert (found.entry_index, found.entry_price, found.qty) == (4, 99.9, 1000 / 99.9)
    assert found.fees == pytest.approx(-0.1 + 0.5, rel=1e-3)
    # Without a book: behind the last price.
    (found,) = play(
        [trade(0, 100), score(0), trade(1, 100), trade(2, 99)], LIMIT.replace(entry_offset_bps=10)
    ).trades
    assert (found.entry_index, found.entry_price) == (3, 100 * (1 - 10 / 10000))
    # With neither there is no decision.
    system = play([score(0), trade(1, 100), trade(2, 99)], LIMIT.replace(max_trades_per_day=1))
    assert (system.trades, system.counts.cancelled) == ([], 0)


def test_a_limit_entry_that_would_take_is_rejected_and_the_symbol_is_flat_at_once(play: Play) -> None:
    """The best ask at the arrival is at the limit; by prints, the price is below it."""
    crossed = book(1, [[99.8, 1]], [[99.9, 1]])
    system = play([BOOK, score(0), crossed, trade(2, 99.9), score(3), trade(4, 99.9), trade(5, 99.0)], LIMIT)
    assert (system.counts.rejected, [t.entry_index for t in system.trades]) == (1, [6])
    system = play([trade(0, 100), score(0), trade(1, 99.9), trade(2, 99)], LIMIT)
    assert (system.counts.rejected, system.trades) == (1, [])
    system = play([trade(0, 100), score(0), trade(1, 100), trade(2, 99)], LIMIT)
    assert len(system.trades) == 1


def test_a_limit_entry_expires_and_then_counts_no_more(play: Play, kept: Any) -> None:
    """ttl of 3 s from the arrival at second 1: a fill at second 4 comes too late, and another symbol may enter."""
    params = LIMIT.replace(entry_ttl_s=3, max_open_positions=1)
    other = [trade(0, 50, symbol="B")]
    events = [
        trade(0, 100),
        *other,
        score(0),
        trade(1, 100),
        score(3.9, symbol="B"),
        score(4, symbol="B"),
        trade(4, 99),
    ]
    system = play([*events, trade(5, 51, symbol="B"), trade(6, 49, symbol="B")], params, recorder=kept)
    assert [(t.symbol, t.entry_index) for t in system.trades] == [("B", 8)]
    assert (system.counts.expired, system.counts.cancelled) == (1, 0)
    orders = [(o.type, o.time_in_force, o.status, o.timestamp) for o in kept.of("order") if o.symbol == "A"]
    assert orders == [("LIMIT", "PostOnly", "NEW", iso(0)), ("LIMIT", "PostOnly", "EXPIRED", iso(4 * SECOND))]
    in_time = [*events[:4], trade(3.999, 99), trade(5, 99)]
    assert [t.entry_index for t in play(in_time, params).trades] == [4]
    # Expired at the session's last event, of whatever type; before it, cancelled.
    assert play([*events[:4], (4 * SECOND, "NOTE", None, {})], params).counts.expired == 1
    assert play([*events[:4], (4 * SECOND - 1, "NOTE", None, {})], params).counts.cancelled == 1


def test_a_price_that_jumps_through_limit_and_stop_stops_out_at_once(play: Play) -> None:
    events = [trade(0, 100), score(0), trade(1, 100), trade(2, 99), trade(3, 101)]
    assert exits(play(events, LIMIT)) == [(3, 3, "STOP_LOSS")]
    assert exits(play(events, LIMIT.replace(stop_latency_ms=500))) == [(3, 4, "STOP_LOSS")]


def test_a_stop_with_latency_is_closing_and_nothing_else_happens_to_it(play: Play) -> None:
    params = FREE.replace(stop_latency_ms=2000, exit_threshold=0)
    events = [
        score(0),
        trade(0, 100),
        trade(1, 99.7),
        score(1, -1),
        trade(2, 101),
        trade(3, 100.9),
        trade(4, 105),
    ]
    system = play(events, params)
    assert (exits(system), system.trades[0].close_price) == ([(1, 5, "STOP_LOSS")], 100.9)
    assert exits(play(events[:5], params)) == [(1, 4, "SESSION_END")]


def test_a_hole_ends_the_trade_before_it(play: Play, kept: Any) -> None:
    """Closed at the print before the hole, with the slippage of a print and the taker fee; what it would have been."""
    params = FREE.replace(slippage_bps=None, taker_fee_bps=10, cooldown_s=60, max_gap_s=10)
    events = [score(0), trade(0, 100), trade(1, 100.1), trade(11.1, 90), score(12), trade(13, 90)]
    system = play(events, params, recorder=kept)
    first, second = system.trades
    assert (first.exit_index, first.reason, first.close_price) == (2, "DATA_GAP", 100.1 * 0.9999)
    assert first.gap_pnl == pytest.approx(
        (90 * 0.9999 - 100.01) * first.qty - (1 + 0.9 * 0.9999 / 1.0001), rel=1e-6
    )
    assert first.mae == pytest.approx(-0.01 * first.qty, rel=1e-6)
    # No cooldown follows.
    assert (second.entry_index, second.gap_pnl) == (5, None)
    assert exits(play(events, params.replace(max_gap_s=10.1)))[0] == (1, 3, "STOP_LOSS")
    # The trade was over at the price before the hole; the logs show when the hole became known.
    ended = [e for e in kept.of("event") if e.event_type == "EXECUTION_EXIT"]
    assert (ended[0].timestamp, kept.of("trade")[0].timestamp) == (iso(11_100_000_000), iso(SECOND))


def test_a_hole_cancels_what_is_pending_and_its_loss_reaches_no_limit(play: Play) -> None:
    params = FREE.replace(max_gap_s=10, latency_ms=500)
    system = play([trade(0, 100), score(1), trade(12, 100), trade(13, 100)], params)
    assert (system.trades, system.counts.cancelled, system.counts.cancelled_by_hole) == ([], 1, 1)
    events = [score(0), trade(0, 100), trade(1, 99.8), trade(20, 90), score(21), trade(22, 90)]
    assert len(play(events, FREE.replace(max_gap_s=10, max_daily_loss_usd=1)).trades) == 2


def test_ticks_and_lots(play: Play) -> None:
    """Targets away from the entry, stops away from the market, quantities down; a coarse tick leaves room."""
    tick = {"A": {"tickSize": 0.5, "lotSize": 3, "minNotionalUsd": 900}}
    params = FREE.replace(limit_fill="touch", notional_usd=1000, tp2_pct=0.3, tp1_pct=0.3, sl_pct=0.1)
    system = play([score(0), trade(0, 100), trade(1, 99.9)], params, instruments=tick)
    assert (system.trades[0].qty, exits(system)) == (9.0, [(1, 2, "SESSION_END")])
    assert exits(play([score(0), trade(0, 100), trade(1, 99.5)], params, instruments=tick)) == [
        (1, 2, "STOP_LOSS")
    ]
    assert (
        exits(play([score(0), trade(0, 100), trade(1, 100.49)], params, instruments=tick))[0][2]
        == "SESSION_END"
    )
    assert (
        play([score(0), trade(0, 100), trade(1, 100.5)], params, instruments=tick).trades[0].close_price
        == 100.5
    )
    small = {"A": {"tickSize": None, "lotSize": 3, "minNotionalUsd": 901}}
    system = play([score(0), trade(0, 100), score(0), trade(1, 100.0)], params, instruments=small)
    assert (system.trades, system.counts.rejected) == ([], 2)
    assert (
        play([score(0), trade(0, 100)], params.replace(rounding="none"), instruments=small).trades[0].qty
        == 10.0
    )


def test_a_first_target_of_less_than_a_lot_is_none(play: Play) -> None:
    lots = {"A": {"lotSize": 6}}
    events = [score(0), trade(0, 100), trade(1, 100.4), trade(2, 100)]
    params = FREE.replace(tp1_fraction=0.5, limit_fill="touch")
    assert exits(play(events, params, instruments=lots)) == [(1, 3, "SESSION_END")]
    assert exits(play(events, params)) == [(1, 3, "BREAK_EVEN")]


def test_funding_is_paid_on_what_is_open_and_reaches_the_daily_limit(play: Play) -> None:
    def funding(ts: float, **payload: Any) -> Any:
        return (round(ts * SECOND), "FUNDING", "A", payload)

    events = [
        score(0),
        trade(0, 100),
        funding(1, fundingRate=0.01),
        funding(2, fundingRate=-0.01, markPrice=50.0),
        funding(3, fundingRate="x"),
        funding(4, fundingRate=0.0, markPrice=-1),
    ]
    system = play(events, FREE)
    (found,) = system.trades
    assert (found.funding, found.realized_pnl) == (-10 + 5, -5)
    assert system.unusable == {"FUNDING": 1}
    after = [*events[:3], trade(4, 101), score(5), trade(6, 101)]
    assert len(play(after, FREE.replace(max_daily_loss_usd=10)).trades) == 1
    assert len(play(after, FREE.replace(max_daily_loss_usd=10.01)).trades) == 2


def test_carried_state_holds_its_symbol_and_the_account(play: Play) -> None:
    """A carried position blocks its symbol until it closes, counts under the limits, and its parts reach the day."""
    at = [iso(k * SECOND) for k in range(10)]
    carried = {"closedAt": at[5], "parts": [{"timestamp": at[4], "realizedPnl": -10.0}]}
    initial = {"symbols": {"A": {"carried": carried}, "B": {"lastExitAt": at[1]}}}
    events = [
        e for k in range(9) for name in "ABC" for e in (trade(k, 100, symbol=name), score(k, symbol=name))
    ]

    def entries(**changes: Any) -> list[tuple[str, float]]:
        found = play(events, FREE.replace(**changes), initial_state=initial).trades
        return sorted((t.symbol, t.entry_ts / SECOND) for t in found)

    assert entries() == [("A", 6), ("B", 2), ("C", 1)]
    assert entries(cooldown_s=2) == [("A", 8), ("B", 4), ("C", 1)]
    assert entries(max_open_positions=1) == [("A", 6)]
    assert entries(max_open_positions=1, cooldown_s=2) == [("B", 6)]
    assert entries(max_daily_loss_usd=10, cooldown_s=3.5) == [("C", 1)]
    initial["symbols"]["A"]["carried"] = {"closedAt": None, "parts": []}
    assert entries(max_open_positions=2) == [("C", 1)]


def test_the_account_starts_where_the_day_was(play: Play) -> None:
    day = {"dateKey": "1970-01-01", "realizedPnl": 0.0, "lowestRealizedPnl": -9.0, "entries": 3}
    events = [score(0), trade(0, 100), (86_400 * SECOND, "NOTE", None, {}), score(86_400), trade(86_400, 100)]
    for changes in ({"max_daily_loss_usd": 9}, {"max_trades_per_day": 3}):
        system = play(
            events, FREE.replace(max_gap_s=None, **changes), initial_state={"account": day, "symbols": {}}
        )
        assert [t.entry_index for t in system.trades] == [4]


def test_the_risk_engine_logs_its_own_flags_and_a_replay_decides_by_its_own_limits(
    play: Play, kept: Any
) -> None:
    """Limit of one entry a day: a RISK_UPDATE for every symbol when it is reached, and one when the day is over."""
    events = [trade(0, 100), trade(0, 5, symbol="B"), score(1), trade(2, 100), score(86_400)]
    params = FREE.replace(max_trades_per_day=1)
    live = play(events, params, recorder=kept)
    logged = [e for e in kept.of("event") if e.event_type == "RISK_UPDATE"]
    assert [(e.symbol, e.extra["riskFlags"]["maxTradesHit"]) for e in logged] == [
        ("A", True),
        ("B", True),
        ("A", False),
        ("B", False),
    ]
    assert {e.extra["riskFlags"]["tradingBlocked"] for e in logged} == {False}
    risk = [e.risk_flags for e in kept.of("risk")]
    assert any(flags.trading_blocked and flags.max_trades_hit for flags in risk)
    again = [*events[:3], *((SECOND, "RISK_UPDATE", e.symbol, e.extra) for e in logged[:2]), *events[3:]]
    assert [t.entry_ts for t in play(again, params).trades] == [t.entry_ts for t in live.trades]


def test_events_with_other_symbols_are_unusable() -> None:
    events: list[Any] = [
        (0, "MARKET_TRADE", "", {"price": 1.0}),
        (0, "RISK_UPDATE", "", {"tradingBlocked": True}),
        (0, "SCORING_UPDATE", 5, {"score": 1.0}),
        (0, "RISK_UPDATE", None, {"tradingBlocked": True}),
    ]
    system = TradingSystem(FREE, price_sources=resolve_prices([event[1:] for event in events]))
    for index, event in enumerate(events):
        system.on_event(index, *event)
    assert system.unusable == {"MARKET_TRADE": 1, "RISK_UPDATE": 1, "SCORING_UPDATE": 1}
