"""Random sessions and parameters in which every rule of the model is reached often.

Prices move on a coarse lattice and levels are a few steps away, so that prices touch levels exactly; several events
share a timestamp; days end in between; books come as snapshots and deltas; some payloads are unusable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from replaylab.params import TradingParams

DAY = 86_400_000_000_000
NAMES = ("AAA", "BBB", "CCC")
REGIMES = ("RANGE", "TREND", "STORM")


@dataclass
class RandomSession:
    """Events as the oracle takes them, and the same as a session's frame. Stands in for a stored session."""

    raw: list[tuple[int, str, str | None, dict[str, Any]]]
    initial_state: dict[str, Any]
    price_source: str | dict[str, str]

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


class _Maker:
    def __init__(self, seed: int, n_events: int, n_symbols: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.symbols = NAMES[:n_symbols]
        self.n = n_events
        self.price = dict.fromkeys(self.symbols, 100.0)
        self.sources = {
            s: self.pick(["trade", "trade", "trade", "book", "book", "score"]) for s in self.symbols
        }
        self.step = self.pick([0.05, 0.1, 0.25])
        # How often time stands still, and how far it goes when it does not.
        self.still = self.pick([0.2, 0.5])
        self.gap_ns = self.pick([50_000_000, 1_000_000_000, 600_000_000_000])
        self.odd = self.pick([0.0, 0.05])
        self.unsided: dict[str, list[list[float]]] = {}

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def move(self, symbol: str) -> float:
        jump = self.pick([-1, -1, 0, 1, 1]) if self.chance(0.9) else self.pick([-12, -5, 5, 12])
        self.price[symbol] = max(1.0, round(self.price[symbol] + jump * self.step, 6))
        return self.price[symbol]

    def trade(self, symbol: str) -> dict[str, Any]:
        payload: dict[str, Any] = {"price": self.move(symbol), "qty": 1.5, "side": self.pick(["BUY", "SELL"])}
        if self.chance(self.odd):
            payload = self.pick(
                [
                    {**payload, "price": "100"},
                    {**payload, "price": True},
                    {**payload, "price": -3},
                    {**payload, "offMarket": True},
                    {**payload, "offMarket": False},
                    {"qty": 1.0, "side": "BUY"},
                    {**payload, "price": 100},
                ]
            )
        return payload

    def book(self, symbol: str) -> dict[str, Any]:
        mid = self.move(symbol)
        half = self.step
        if self.chance(0.4):
            side = self.pick(["bids", "asks"])
            sign = -1 if side == "bids" else 1
            levels = [
                [round(mid + sign * half * int(self.rng.integers(0, 4)), 6), self.pick([0, 0.0, 1.5, 2])]
                for _ in range(int(self.rng.integers(0, 3)))
            ]
            payload = {"kind": "delta", "bids": [], "asks": [], side: levels}
        else:
            bids = [[round(mid - half * k, 6), 1.0 + k] for k in (1, 2)]
            asks = [[round(mid + half * k, 6), 1.0 + k] for k in (2, 1)]
            payload = {"kind": "snapshot", "bids": bids, "asks": asks}
            if self.chance(0.5):
                del payload["kind"]
        if self.chance(self.odd):
            payload = self.pick(
                [
                    {**payload, "kind": "partial"},
                    {"bids": [], "asks": []},
                    {"bids": [[1.0]], "asks": []},
                    {"bids": [[0.0, 1.0]], "asks": []},
                    {"bids": [[100.0, "1"]], "asks": []},
                    {"asks": []},
                ]
            )
        return payload

    def score(self, symbol: str) -> dict[str, Any]:
        payload: dict[str, Any] = {"score": self.pick([-1.0, -0.7, -0.5, -0.2, 0, 0.2, 0.5, 0.7, 1])}
        if self.chance(0.2):
            payload["side"] = self.pick(["LONG", "SHORT", "NONE", 3])
        if self.sources[symbol] == "score" or self.chance(0.2):
            payload["price"] = self.move(symbol)
        if self.chance(self.odd):
            payload = self.pick(
                [
                    {**payload, "score": None},
                    {**payload, "score": "1"},
                    {**payload, "price": 0},
                    {"side": "LONG"},
                ]
            )
        return payload

    def risk(self) -> dict[str, Any]:
        flags: dict[str, Any] = {}
        if self.chance(0.5):
            flags["tradingBlocked"] = self.pick([True, False, False])
        if self.chance(0.6):
            flags["forceClose"] = self.pick([True, True, False])
        if self.chance(0.1):
            return {"tradingBlocked": "yes", "riskFlags": flags}
        if self.chance(0.1):
            return {"forceClose": False, "riskFlags": flags}
        return {"riskFlags": flags} if self.chance(0.5) else flags

    def events(self) -> list[tuple[int, str, str | None, dict[str, Any]]]:
        ts = 19_000 * DAY + int(self.rng.integers(DAY // 2, DAY))
        kinds = {"trade": "MARKET_TRADE", "book": "MARKET_BOOK", "score": "SCORING_UPDATE"}
        events: list[tuple[int, str, str | None, dict[str, Any]]] = []
        # Every symbol has a price at the least.
        for symbol in self.symbols:
            price = self.price[symbol]
            first = {
                "trade": {"price": price, "qty": 1.0, "side": "BUY"},
                "book": {"bids": [[price - self.step, 1.0]], "asks": [[price + self.step, 1.0]]},
                "score": {"score": 0.2, "price": price},
            }[self.sources[symbol]]
            events.append((ts, kinds[self.sources[symbol]], symbol, first))
        for _ in range(self.n):
            if not self.chance(self.still):
                ts += int(self.pick([1, 1_000_000, self.gap_ns, self.gap_ns]))
                if self.chance(0.01):
                    ts += 6 * DAY // 10
            symbol = self.pick(self.symbols)
            roll = self.rng.random()
            if roll < 0.55:
                source = self.sources[symbol]
                if self.chance(0.1):
                    source = self.pick(["trade", "book"]) if source == "trade" else source
                maker = {"trade": self.trade, "book": self.book, "score": self.score}[source]
                events.append((ts, kinds[source], symbol, maker(symbol)))
            elif roll < 0.88:
                events.append((ts, "SCORING_UPDATE", symbol, self.score(symbol)))
            elif roll < 0.93:
                payload = {"regime": self.pick(REGIMES)} if not self.chance(self.odd) else {"regime": 3}
                events.append((ts, "REGIME_UPDATE", symbol, payload))
            elif roll < 0.97:
                events.append((ts, "RISK_UPDATE", None if self.chance(0.4) else symbol, self.risk()))
            elif roll < 0.98:
                events.append((ts, "SCORING_UPDATE", None, {"score": 1.0}))
            else:
                events.append((ts, "EXECUTION_FILL", symbol, {"price": 1.0}))
        return events

    def initial_state(self) -> dict[str, Any]:
        if self.chance(0.5):
            return {}
        book = {"bids": [[99.0, 1.0]], "asks": [[101.0, 1.0]]}
        return {
            "symbols": {
                symbol: {
                    "regime": self.pick([None, *REGIMES]),
                    "tradingBlocked": self.chance(0.2),
                    "book": self.pick([None, book]),
                }
                for symbol in self.symbols
                if self.chance(0.8)
            },
            "reported": {},
        }


def make_session(seed: int, n_events: int = 300, n_symbols: int = 2) -> RandomSession:
    """A random session; the same seed gives the same."""
    maker = _Maker(seed, n_events, n_symbols)
    events = maker.events()
    source: str | dict[str, str] = "auto"
    if maker.chance(0.3):
        source = dict(maker.sources)
    return RandomSession(events, maker.initial_state(), source)


def sessions(max_events: int = 400) -> st.SearchStrategy[RandomSession]:
    return st.builds(
        make_session, st.integers(0, 2**32 - 1), st.integers(5, max_events), st.sampled_from([1, 2, 2, 3])
    )


def trading_params() -> st.SearchStrategy[TradingParams]:
    """Parameters around the lattice of the sessions: every rule on and off, exact touches likely."""

    def build(**values: Any) -> TradingParams:
        values["tp2_pct"] = max(values["tp2_pct"], values["tp1_pct"])
        return TradingParams(**values)

    pick = st.sampled_from
    return st.builds(
        build,
        entry_threshold=pick([0.0, 0.2, 0.5, 0.7]),
        exit_threshold=pick([None, None, -0.5, 0.0, 0.2]),
        allow_long=pick([True, True, True, False]),
        allow_short=pick([True, True, True, False]),
        allowed_regimes=pick([None, None, None, ("RANGE", "TREND"), ("STORM", "NEVER"), ()]),
        cooldown_s=pick([0, 0, 0.001, 2.0, 900]),
        max_hold_s=pick([None, None, 0, 0.001, 3.0, 1800]),
        tp1_pct=pick([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]),
        tp1_fraction=pick([0.0, 0.25, 0.5, 0.5, 1.0]),
        tp2_pct=pick([0.0, 0.2, 0.5, 1.0, 2.0]),
        sl_pct=pick([0.0, 0.1, 0.3, 0.5, 1.0, 99.0]),
        break_even_offset_pct=pick([None, 0.0, 0.05, 0.1, 0.6]),
        trailing_activation_pct=pick([None, None, 0.0, 0.1, 0.3]),
        trailing_distance_pct=pick([0.0, 0.05, 0.1, 0.2, 0.5, 110.0]),
        notional_usd=pick([1000.0, 10.0]),
        risk_per_trade_usd=pick([None, None, 1.0, 50.0]),
        leverage=pick([1.0, 5.0]),
        max_open_positions=pick([None, None, 0, 1, 1, 2]),
        max_trades_per_day=pick([None, None, 0, 1, 3, 10]),
        max_daily_loss_usd=pick([None, None, 0.01, 1.0, 5.0]),
        taker_fee_bps=pick([0.0, 5.5]),
        maker_fee_bps=pick([0.0, 2.0]),
        slippage_bps=pick([0.0, 0.0, 1.0, 10.0]),
        latency_ms=pick([0, 0, 1, 100, 1000]),
    )
