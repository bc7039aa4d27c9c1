"""Random sessions and parameters that reach every sentence of the trading model often.

::

    session, params = make_case(seed)              # one random case; the same seed gives the same
    @given(cases())                                # the same for hypothesis

Prices move on a lattice of ticks and levels are a few steps away, so that prices touch levels exactly. Pauses,
latencies, times to live, holes and book ages come from the same few durations, so that bounds are met exactly too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from replaylab.params import TradingParams
from tests import oracle

DAY = 86_400_000_000_000
NAMES = ("AAA", "BBB", "CCC")
REGIMES = ("RANGE", "TREND", "STORM")
SECOND = 1_000_000_000


@dataclass
class RandomSession:
    """Events as the oracle reads them, and the same as a session's frame. Has what a stored session has."""

    raw: list[oracle.Event]
    initial_state: dict[str, Any]
    price_source: str | dict[str, str] = "auto"
    instruments: dict[str, Any] = field(default_factory=dict)
    recorded_params: None = None
    recorded_scoring: None = None

    @property
    def events(self) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "timestamp": pl.Series([e[0] for e in self.raw], dtype=pl.Int64).cast(
                    pl.Datetime("ns", "UTC")
                ),
                "type": pl.Series([e[1] for e in self.raw], dtype=pl.String),
                "symbol": pl.Series([e[2] for e in self.raw], dtype=pl.String),
                "payload": pl.Series([json.dumps(e[3]) for e in self.raw], dtype=pl.String),
            }
        )


@dataclass(frozen=True)
class _Market:
    """Where the prices of a symbol are, and its instrument."""

    start: float
    step: float
    instrument: dict[str, Any] | None


def _instrument(tick: Any, lot: Any = None, least: Any = None) -> dict[str, Any]:
    return {
        "tickSize": tick,
        "lotSize": lot,
        "minNotionalUsd": least,
        "contractSize": None,
        "inferred": False,
    }


# The first four have a tick, as "queue" needs it. 0.1 and 0.05 have no exact double; 5 on 100 is coarser than levels.
_MARKETS = (
    _Market(100.0, 0.05, _instrument(0.05, 0.1, 5)),
    _Market(100.0, 0.1, _instrument(0.1, 5)),
    _Market(20_000.0, 5.0, _instrument(5, 0.001, 12.5)),
    _Market(0.02, 0.00001, _instrument(1e-05, 10, None)),
    _Market(100.0, 2.5, _instrument(5, None, 1001)),
    _Market(100.0, 0.1, None),
    _Market(100.0, 0.25, _instrument(None, None, 400)),
    _Market(100.0, 0.1, _instrument("0.1", True, "5")),
    _Market(100.0, 0.1, _instrument(0, -1, 0)),
)


def _iso(ts: int) -> str:
    seconds, fraction = divmod(ts, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


class _Maker:
    def __init__(self, seed: int, n_events: int, n_symbols: int, focus: str) -> None:
        self.rng = np.random.default_rng(seed)
        self.symbols = NAMES[:n_symbols]
        self.n = n_events
        self.focus = focus
        # Half of the sessions suit limit_fill="queue": trades, books and ticks for every symbol.
        self.queueable = focus == "queue" or self.chance(0.4)
        self.market = {s: self.pick(_MARKETS[: 4 if self.queueable else None]) for s in self.symbols}
        self.price = {s: self.market[s].start for s in self.symbols}
        self.source = {
            s: "trade" if self.queueable else self.pick(["trade", "trade", "trade", "book", "book", "score"])
            for s in self.symbols
        }
        # Symbols with books beside their trades or scores; without any, market_fill="auto" is "print".
        self.has_book = {
            s: self.queueable or self.source[s] == "book" or self.chance(0.6) for s in self.symbols
        }
        # How often time stands still, and how far it goes when it does not.
        self.still = self.pick([0.2, 0.5])
        self.gap_ns = self.pick([50_000_000, SECOND, SECOND, SECOND, 600 * SECOND])
        # How often a price stays where it is: then queues are used up before the price goes through.
        self.sticky = self.pick([0.3, 0.5, 0.8])
        self.calm = focus == "queue" or self.chance(0.3)
        # How often a price is off the lattice: only there does the rounding of a stop show.
        self.rough = self.pick([0.0, 0.02, 0.3])
        self.odd = self.pick([0.0, 0.05])
        # What of a position's size the levels of a book hold.
        self.depth = self.pick([0.02, 0.2, 0.2, 1.0])

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def near(self, symbol: str, steps: float) -> float:
        """A price some steps away from the symbol's, on the lattice."""
        market = self.market[symbol]
        whole = round(self.price[symbol] / market.step) + steps
        return max(market.step, float(f"{whole * market.step:.10g}"))

    def move(self, symbol: str) -> float:
        jump = 0
        if not self.chance(self.sticky):
            jump = self.pick([-1, 1] if self.calm else [-2, -1, -1, 0, 0, 1, 1, 2])
        elif self.chance(0.01 if self.calm else 0.1):
            jump = self.pick([-20, -12, -6, -4, -3, 3, 4, 6, 12, 20])
        self.price[symbol] = self.near(symbol, jump)
        if self.chance(self.rough):
            return float(f"{self.near(symbol, float(self.rng.random())):.12g}")
        return self.price[symbol]

    def size(self, symbol: str) -> float:
        """A quantity on the scale of an order of 1000 USD; whole numbers often, so that sums meet exactly."""
        full = 1000 / self.market[symbol].start * self.depth
        return self.pick([0.5, 1, 1, 2, 3, 4]) * float(f"{full:.3g}")

    # -- payloads ----------------------------------------------------------------------------------------------

    def traded(self, symbol: str) -> float:
        """A traded quantity: often that of an order or a part of it, so that queues are used up exactly."""
        if self.chance(0.5):
            return self.size(symbol) * self.pick([1, 5, 50])
        full = 1000 / self.market[symbol].start
        return float(f"{full * self.pick([0.1, 0.25, 0.4, 0.49, 0.5, 0.9, 0.99, 1, 1, 2]):.6g}")

    def trade(self, symbol: str) -> dict[str, Any]:
        payload: dict[str, Any] = {
            # A print between bid and ask, or on either, moves nothing.
            "price": self.near(symbol, self.whole(-3, 3)) if self.chance(0.2) else self.move(symbol),
            "qty": self.traded(symbol),
            "side": self.pick(["BUY", "SELL"]),
        }
        if self.chance(0.25):
            payload = self.pick(
                [
                    {**payload, "side": None},
                    {**payload, "side": "buy"},
                    {"price": payload["price"], "qty": payload["qty"]},
                    {**payload, "qty": self.pick([None, "3", -2.0, 0, True])},
                    {"price": payload["price"], "side": payload["side"]},
                    {**payload, "qty": 0.0},
                    {**payload, "tradeId": 7, "offMarket": False},
                ]
            )
        if self.chance(self.odd):
            payload = self.pick(
                [
                    {**payload, "price": "100"},
                    {**payload, "price": True},
                    {**payload, "price": -3},
                    {**payload, "price": 0},
                    {**payload, "price": None},
                    {**payload, "offMarket": True},
                    {**payload, "offMarket": 1},
                    {"qty": 1.0, "side": "BUY"},
                    {},
                ]
            )
        return payload

    def levels(self, symbol: str, side: str, first: int, n: int) -> list[list[Any]]:
        sign = -1 if side == "bids" else 1
        found = [[self.near(symbol, sign * (first + k)), self.size(symbol)] for k in range(n)]
        if self.chance(0.2):
            found.reverse()
        return found

    def snapshot(self, symbol: str) -> dict[str, Any]:
        n = self.pick([3, 12, 12, 30] if self.queueable else [1, 3, 8, 12, 12, 30])
        first = self.pick([0, 1, 1, 1, 2, 4])
        payload: dict[str, Any] = {
            side: self.levels(symbol, side, first, n if self.chance(0.95) else self.whole(0, n))
            for side in ("bids", "asks")
        }
        if self.chance(0.05):  # crossed
            payload = {side: self.levels(symbol, side, -1, n) for side in ("bids", "asks")}
        return payload

    def delta(self, symbol: str) -> dict[str, Any]:
        payload: dict[str, Any] = {"kind": "delta", "bids": [], "asks": []}
        for side in ("bids", "asks"):
            if self.chance(0.6):
                sign = -1 if side == "bids" else 1
                payload[side] = [
                    [
                        self.near(symbol, sign * self.whole(-1 if self.chance(0.1) else 1, 8)),
                        self.pick([0, 0.0, self.size(symbol), self.size(symbol)]),
                    ]
                    for _ in range(self.whole(1, 3))
                ]
        return payload

    def book(self, symbol: str) -> dict[str, Any]:
        self.move(symbol)
        if self.chance(0.5):
            payload = self.delta(symbol)
        else:
            payload = {**self.snapshot(symbol), **self.pick([{}, {"kind": "snapshot"}, {"kind": None}])}
        if self.chance(0.03):
            payload = {**payload, self.pick(["bids", "asks"]): []}
        if self.chance(0.03):
            side = self.pick(["bids", "asks"])
            twice = [[price, self.pick([0, 1.5])] for price, *_ in payload[side]]
            payload = {**payload, side: payload[side] + twice}
        if self.chance(0.03):
            payload = {**payload, "bids": [[*level, "more", 3] for level in payload["bids"]]}
        if self.chance(self.odd):
            payload = self.pick(
                [
                    {**payload, "kind": "partial"},
                    {**payload, "kind": 5},
                    {"bids": [], "asks": []},
                    {**payload, "bids": [[100.0]]},
                    {**payload, "bids": [[0.0, 1.0]]},
                    {**payload, "asks": [[-5.0, 0]]},
                    {**payload, "bids": [[100.0, "1"]]},
                    {**payload, "asks": [[100.0, -1.0]]},
                    {**payload, "asks": [["100", 1.0]]},
                    {**payload, "asks": [[True, 1.0]]},
                    {**payload, "asks": [100.0, 1.0]},
                    {**payload, "asks": None},
                    {"asks": []},
                    {},
                ]
            )
        return payload

    def score(self, symbol: str) -> dict[str, Any]:
        payload: dict[str, Any] = {"score": self.pick([-1.0, -0.7, -0.5, -0.2, 0, 0.2, 0.5, 0.7, 1])}
        if self.chance(0.2):
            payload["side"] = self.pick(["LONG", "SHORT", "NONE", "long", 3, None])
        if self.source[symbol] == "score" or self.chance(0.2):
            payload["price"] = self.move(symbol)
        if self.chance(self.odd):
            payload = self.pick(
                [
                    {**payload, "score": None},
                    {**payload, "score": "1"},
                    {**payload, "score": True},
                    {**payload, "price": 0},
                    {**payload, "price": "100"},
                    {"side": "LONG"},
                ]
            )
        return payload

    def risk(self) -> dict[str, Any]:
        flags: dict[str, Any] = {}
        if self.chance(0.5):
            flags["tradingBlocked"] = self.pick([True, False, False, False, False])
        if self.chance(0.6):
            flags["forceClose"] = self.pick([True, True, False])
        roll = self.rng.random()
        if roll < 0.1:
            return {"tradingBlocked": "yes", "riskFlags": flags}
        if roll < 0.2:
            return {"forceClose": False, "riskFlags": flags}
        if roll < 0.25:
            return {**flags, "riskFlags": self.pick([None, [], "forceClose", {"forceClose": 1}])}
        return {"riskFlags": flags} if roll < 0.6 else flags

    def regime(self) -> dict[str, Any]:
        if self.chance(self.odd):
            return self.pick([{"regime": 3}, {"regime": None}, {}])
        return {"regime": self.pick(REGIMES)}

    def funding(self, symbol: str) -> dict[str, Any]:
        payload: dict[str, Any] = {"fundingRate": self.pick([-0.01, -0.0003, 0, 0.0001, 0.001, 0.02])}
        if self.chance(0.5):
            payload["markPrice"] = self.near(symbol, self.whole(-3, 3))
        if self.chance(0.1):
            payload["markPrice"] = self.pick([0, "100", None, -1.0, True])
        if self.chance(self.odd):
            payload = self.pick([{**payload, "fundingRate": None}, {**payload, "fundingRate": "0.1"}, {}])
        return payload

    # -- sessions ----------------------------------------------------------------------------------------------

    def first_price(self, symbol: str) -> oracle.Event:
        price = self.price[symbol]
        kind, payload = {
            "trade": ("MARKET_TRADE", {"price": price, "qty": 1.0, "side": "BUY"}),
            "book": (
                "MARKET_BOOK",
                {"bids": [[self.near(symbol, -1), 1.0]], "asks": [[self.near(symbol, 1), 1.0]]},
            ),
            "score": ("SCORING_UPDATE", {"score": 0.2, "price": price}),
        }[self.source[symbol]]
        return (0, kind, symbol, payload)

    def price_event(self, symbol: str) -> tuple[str, dict[str, Any]]:
        source = self.source[symbol]
        if self.has_book[symbol] and self.chance(0.45):
            source = "book"
        if source == "trade":
            return "MARKET_TRADE", self.trade(symbol)
        if source == "book":
            return "MARKET_BOOK", self.book(symbol)
        return "SCORING_UPDATE", self.score(symbol)

    def signal(self, symbol: str) -> tuple[str, str | None, dict[str, Any]]:
        roll = self.rng.random()
        if roll < 0.66:
            return "SCORING_UPDATE", symbol, self.score(symbol)
        if roll < 0.76:
            return "REGIME_UPDATE", symbol, self.regime()
        if roll < 0.85:
            return "RISK_UPDATE", None if self.chance(0.4) else symbol, self.risk()
        if roll < 0.95:
            return "FUNDING", symbol, self.funding(symbol)
        nowhere = self.pick([None, ""])
        return self.pick(
            [
                ("EXECUTION_FILL", symbol, {"price": 1.0}),
                ("SCORING_UPDATE", nowhere, {"score": 1.0, "price": 100.0}),
                ("FUNDING", nowhere, {"fundingRate": 0.5}),
                ("MARKET_TRADE", nowhere, {"price": 1.0, "qty": 1.0, "side": "BUY"}),
                ("MARKET_BOOK", nowhere, {"bids": [[1.0, 1.0]], "asks": [[2.0, 1.0]]}),
                ("REGIME_UPDATE", nowhere, {"regime": "TREND"}),
                ("RISK_UPDATE", "", {"tradingBlocked": True, "forceClose": True}),
            ]
        )

    def events(self) -> list[oracle.Event]:
        # The first midnight is inside most sessions.
        ts = 19_001 * DAY - int(self.gap_ns * self.n * 0.6 * self.rng.random())
        events: list[oracle.Event] = []
        for symbol in self.symbols:
            late = self.chance(0.2)
            if not late:
                events.append((ts, *self.first_price(symbol)[1:]))
            if self.queueable and self.chance(0.8):
                events.append((ts, "MARKET_BOOK", symbol, self.snapshot(symbol)))
        if self.chance(0.2):  # before some symbols are first seen
            events.append((ts, "RISK_UPDATE", None, {"tradingBlocked": True}))
        for k in range(self.n):
            if k == self.n // 3:  # every symbol has a price at the least
                missing = [s for s in self.symbols if s not in {event[2] for event in events}]
                events += [(ts, *self.first_price(symbol)[1:]) for symbol in missing]
            if not self.chance(self.still):
                ts += int(self.pick([1, 1_000_000, self.gap_ns, self.gap_ns, self.gap_ns, 2 * self.gap_ns]))
                if self.chance(0.03):
                    ts += self.pick([5, 30]) * self.gap_ns
                if self.chance(0.005):
                    ts += 6 * DAY // 10
            symbol = self.pick(self.symbols)
            if self.chance(0.62):
                kind, payload = self.price_event(symbol)
                events.append((ts, kind, symbol, payload))
            else:
                events.append((ts, *self.signal(symbol)))
        return events

    def carried(self, times: list[int]) -> dict[str, Any]:
        """A position that was on at `from`: closed at some event, between two events, after the session, or never."""
        start, end = times[0], times[-1]
        early = self.pick(times[: len(times) // 3 + 1])
        closed = self.pick([self.pick(times), early, early + 1, end + 5, None])
        until = end + SECOND if closed is None else closed
        moments = sorted(
            self.pick([self.pick(times), early, start, until])
            if self.chance(0.8)
            else self.whole(start, until)
            for _ in range(self.whole(0, 4))
        )
        return {
            "closedAt": None if closed is None else _iso(closed),
            "parts": [
                {"timestamp": _iso(t), "realizedPnl": self.pick([-3.0, -1.0, -0.5, -0.5, -0.25, 0.1, 0.5, 2])}
                for t in moments
                if t <= until
            ],
        }

    def symbol_state(self, symbol: str, times: list[int]) -> dict[str, Any]:
        book = {"bids": [[99.0, 1.0]], "asks": [[101.0, 1.0]]}
        if symbol in self.market:
            book = self.snapshot(symbol)
        state: dict[str, Any] = {
            "regime": self.pick([None, *REGIMES]),
            "tradingBlocked": self.chance(0.1),
            "book": self.pick([None, book, book, {"bids": [["x", 1]], "asks": []}, {"asks": book["asks"]}]),
            "carried": None,
            "lastExitAt": None,
        }
        if self.chance(0.6 if self.focus == "state" else 0.2):
            state["carried"] = self.carried(times)
        if self.chance(0.4):
            state["lastExitAt"] = _iso(times[0] - self.pick([0, 1, SECOND, 600 * SECOND]))
        return state

    def initial_state(self, events: list[oracle.Event]) -> dict[str, Any]:
        if not events or (self.chance(0.4) and self.focus != "state"):
            return {}
        times = [event[0] for event in events]
        symbols = [symbol for symbol in self.symbols if self.chance(0.7)]
        if self.chance(0.15):
            symbols.append("GONE")  # was on at `from`, and has no event in the session
        if self.chance(0.5):
            symbols.reverse()
        state: dict[str, Any] = {
            "symbols": {symbol: self.symbol_state(symbol, times) for symbol in symbols},
            "reported": {},
        }
        if self.chance(0.7):
            realized = self.pick([-4.9, -0.99, -0.5, 0.0, 0, 3.5])
            state["account"] = {
                "dateKey": _iso(times[0])[:10],
                "realizedPnl": realized,
                "lowestRealizedPnl": min(realized, self.pick([0.0, -0.5, -1.0])),
                "entries": self.pick([0, 0, 1, 2, 9]),
            }
        return state

    def price_source(self, events: list[oracle.Event], state: dict[str, Any]) -> str | dict[str, str]:
        """ "auto", a mapping of some symbols, or one source where every symbol has prices from it."""
        if self.queueable or self.chance(0.5):
            return "auto"
        found = oracle.read_inputs(events, "auto", state).by_source
        possible = {name: [s for s, prices in mine.items() if prices] for name, mine in found.items()}
        if self.chance(0.3):
            common = [s for s in ("trade", "book", "score") if all(s in mine for mine in possible.values())]
            return self.pick(common) if common else "auto"
        return {
            name: self.pick([*mine, "auto"]) for name, mine in possible.items() if mine and self.chance(0.7)
        }


def make_session(seed: int, n_events: int = 300, n_symbols: int = 2, focus: str = "all") -> RandomSession:
    """A random session; the same seed gives the same. ``focus``: see ``FOCUS``."""
    maker = _Maker(seed, n_events, n_symbols, focus)
    events = maker.events()
    state = maker.initial_state(events)
    instruments = {s: m.instrument for s, m in maker.market.items() if m.instrument is not None}
    return RandomSession(events, state, maker.price_source(events, state), instruments)


def sessions(max_events: int = 400) -> st.SearchStrategy[RandomSession]:
    return st.builds(
        make_session, st.integers(0, 2**32 - 1), st.integers(5, max_events), st.sampled_from([1, 2, 2, 3])
    )


# Around the lattice and the durations of the sessions: every rule on and off, exact touches likely. What is repeated is
# more likely.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "entry_threshold": (0.0, 0.2, 0.2, 0.5, 0.7),
    "exit_threshold": (*5 * (None,), -0.5, 0.0, 0.2),
    "allow_long": (*9 * (True,), False),
    "allow_short": (*9 * (True,), False),
    "allowed_regimes": (*16 * (None,), ("RANGE", "TREND"), ("STORM", "NEVER"), ()),
    "cooldown_s": (0, 0, 0, 0, 0.001, 1.0, 2.0, 30.0, 900),
    "max_hold_s": (*10 * (None,), 0, 0.001, 1.0, 3.0, 10.0, 1800),
    "tp1_pct": (0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.5, 1.0),
    "tp1_fraction": (0.0, 0.25, 0.3, 0.5, 0.5, 0.7, 0.9, 1.0),
    "tp2_pct": (0.0, 0.2, 0.3, 0.5, 0.5, 1.0, 2.0, 150.0),
    "sl_pct": (0.0, 0.1, 0.3, 0.5, 0.5, 1.0, 1.0, 2.0, 4.0, 99.0),
    "break_even_offset_pct": (None, 0.0, 0.0, 0.05, 0.1, -0.1, 0.6, -150.0),
    "trailing_activation_pct": (None, None, None, 0.0, 0.1, 0.3),
    "trailing_distance_pct": (0.0, 0.05, 0.1, 0.2, 0.5, 110.0),
    "notional_usd": (*6 * (1000.0,), 10.0, 3333.0),
    "risk_per_trade_usd": (*6 * (None,), 1.0, 2.0, 50.0),
    "leverage": (1.0, 5.0),
    "max_open_positions": (*16 * (None,), 0, 1, 1, 1, 2),
    "max_trades_per_day": (*16 * (None,), 0, 1, 3, 10),
    "max_daily_loss_usd": (*10 * (None,), 0.5, 1.0, 5.0, 20.0),
    "taker_fee_bps": (0.0, 5.5, 5.5, -1.0),
    "maker_fee_bps": (0.0, 2.0, 2.0, -2.5, -100.0),
    "slippage_bps": (None, None, None, 0.0, 0.0, 1.0, 10.0, 5000.0),
    "latency_ms": (0, 0, 0, 1, 50, 100, 1000),
    "stop_latency_ms": (0, 0, 0, 1, 50, 1000, 2000),
    "market_fill": ("auto", "auto", "print", "quote", "book", "book"),
    "limit_fill": ("touch", "through", *4 * ("queue",)),
    "queue_share": (0.0, 0.1, 0.5, 1.0),
    "entry_order": ("MARKET", "LIMIT"),
    "entry_offset_bps": (*5 * (0.0,), 5.0, 10.0, 20.0, 9900.0, 9999.99),
    "entry_ttl_s": (*4 * (None,), 0.001, 0.05, 1.0, 3.0, 10.0, 600.0),
    "max_book_age_s": (*4 * (None,), 0.001, 0.05, 1.0, *4 * (60.0,)),
    "max_gap_s": (*7 * (None,), 0.5, 5.0, 30.0, 900.0, 900.0, 3000.0),
    "rounding": ("exchange", "exchange", "exchange", "none"),
}
# What most often keeps a rule from deciding anything, out of the way.
_FREE: dict[str, tuple[Any, ...]] = {
    "entry_threshold": (0.2,),
    "allow_long": (True,),
    "allow_short": (True,),
    "allowed_regimes": (None,),
    "max_open_positions": (None,),
    "max_trades_per_day": (None,),
    "max_daily_loss_usd": (None,),
    "max_gap_s": (None, None, 5.0, 900.0),
    "entry_offset_bps": (0.0, 0.0, 0.0, 5.0, 10.0, 9999.99),
    "sl_pct": (0.3, 0.5, 1.0, 4.0),
    "notional_usd": (1000.0, 3333.0),
}
# A random case has one of these: everything at random; few refusals to enter; queues; carried state and account limits.
FOCUS: dict[str, dict[str, tuple[Any, ...]]] = {
    "all": {},
    "free": _FREE,
    "queue": {
        **_FREE,
        "limit_fill": ("queue",),
        "max_book_age_s": (None, 60.0),
        "slippage_bps": (None, 0.0),
        "tp1_pct": (0.05, 0.1, 0.2),
        "tp2_pct": (0.1, 0.2, 0.3),
        "trailing_activation_pct": (None, None, 0.0),
        "latency_ms": (0,),
    },
    "state": {
        **_FREE,
        "cooldown_s": (0, 0.001, 2.0, 30.0, 900.0),
        "max_daily_loss_usd": (None, 0.5, 0.5, 1.0, 1.0, 5.0),
        "max_open_positions": (None, None, None, 1, 2),
        "max_trades_per_day": (None, None, None, 3, 10),
    },
}
# The trading model of version 1.
VERSION_1 = {"market_fill": "print", "limit_fill": "touch", "max_gap_s": None, "rounding": "none"}


def build_params(**values: Any) -> TradingParams:
    """TradingParams without contradictions: tp2_pct ≥ tp1_pct, "queue" with rounding."""
    values["tp2_pct"] = max(values["tp2_pct"], values["tp1_pct"])
    if values["limit_fill"] == "queue":
        values["rounding"] = "exchange"
    return TradingParams(**values)


def random_params(seed: int, focus: str = "all") -> TradingParams:
    rng = np.random.default_rng([seed, 1])
    options = {**OPTIONS, **FOCUS[focus]}
    return build_params(**{name: some[int(rng.integers(len(some)))] for name, some in options.items()})


def trading_params() -> st.SearchStrategy[TradingParams]:
    return st.builds(build_params, **{name: st.sampled_from(options) for name, options in OPTIONS.items()})


def allow(session: RandomSession, params: TradingParams) -> TradingParams:
    """The parameters, changed where the session's symbols do not allow them."""
    inputs = inputs_of(session)
    changes: tuple[dict[str, Any], ...] = ({}, {"limit_fill": "through"}, {"market_fill": "auto"})
    for change in changes:
        params = params.replace(**change)
        if oracle.refusal(inputs, params, session.instruments) is None:
            break
    return params


def refusal(session: RandomSession, params: TradingParams) -> str | None:
    """Why these parameters are refused for this session, or None."""
    return oracle.refusal(inputs_of(session), params, session.instruments)


def inputs_of(session: RandomSession) -> oracle.Inputs:
    return oracle.read_inputs(session.raw, session.price_source, session.initial_state)


def make_case(seed: int) -> tuple[RandomSession, TradingParams]:
    """A random session and parameters that it allows; the same seed gives the same."""
    rng = np.random.default_rng([seed, 2])
    focus = list(FOCUS)[seed % len(FOCUS)]
    session = make_session(seed, int(rng.integers(5, 500)), int(rng.choice([1, 1, 2, 3])), focus)
    return session, allow(session, random_params(seed, focus))


def cases(max_events: int = 400) -> st.SearchStrategy[tuple[RandomSession, TradingParams]]:
    def build(session: RandomSession, params: TradingParams) -> tuple[RandomSession, TradingParams]:
        return session, allow(session, params)

    return st.builds(build, sessions(max_events), trading_params())
