"""Sessions for your own tests: made event by event, without logs to cut them from.

>>> from replaylab.testing import SessionBuilder
>>> builder = SessionBuilder(start="2025-11-18T10:00:00Z")
>>> builder.trade("BTCUSDT", 100.0, at=0).score("BTCUSDT", 0.9, at=1).trade("BTCUSDT", 101.0, at=2)
SessionBuilder(3 events of BTCUSDT)
>>> session = builder.build("data", "my-test")                     # doctest: +SKIP
>>> ReplayEngine(SessionStore("data"), my_system)                  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import orjson
import polars as pl

from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent, encode_record
from replaylab.sessions import Session, save_session_frame
from replaylab.timestamps import iso, to_ns

__all__ = ["SessionBuilder"]

_NS = 1_000_000_000
Moment = float | str | datetime
Levels = Sequence[Sequence[float]]


class SessionBuilder:
    """Collects events and writes them as a replay session. Every method that adds an event returns the builder.

    ``at``: seconds after ``start`` (whole nanoseconds; may be negative), or an ISO string or datetime. Events are
    sorted by time when built; events of one time stay in the order in which they were added.
    """

    def __init__(self, start: str | datetime = "2025-01-01T00:00:00Z") -> None:
        self.start = to_ns(start)
        self._events: list[tuple[int, str, str | None, dict[str, Any]]] = []

    def __repr__(self) -> str:
        symbols = sorted({symbol for _, _, symbol, _ in self._events if symbol})
        return f"SessionBuilder({len(self._events)} events of {', '.join(symbols) or 'no symbol'})"

    def event(self, type: str, symbol: str | None, payload: Mapping[str, Any], *, at: Moment) -> Self:  # noqa: A002
        """Add an event of any type."""
        self._events.append((self._time(at), type, symbol, dict(payload)))
        return self

    def score(
        self,
        symbol: str,
        score: float,
        *,
        at: Moment,
        price: float | None = None,
        side: str | None = None,
        components: Mapping[str, float] | None = None,
    ) -> Self:
        """Add a SCORING_UPDATE; fields that are None are left out."""
        known = {"score": score, "price": price, "side": side, "components": components}
        payload = {name: value for name, value in known.items() if value is not None}
        return self.event("SCORING_UPDATE", symbol, payload, at=at)

    def regime(self, symbol: str, regime: str, *, at: Moment) -> Self:
        """Add a REGIME_UPDATE."""
        return self.event("REGIME_UPDATE", symbol, {"regime": regime}, at=at)

    def risk(
        self,
        symbol: str | None = None,
        *,
        at: Moment,
        trading_blocked: bool | None = None,
        force_close: bool | None = None,
    ) -> Self:
        """Add a RISK_UPDATE, for every symbol where ``symbol`` is None; flags that are None are left out."""
        flags = {"tradingBlocked": trading_blocked, "forceClose": force_close}
        payload = {name: value for name, value in flags.items() if value is not None}
        return self.event("RISK_UPDATE", symbol, payload, at=at)

    def trade(self, symbol: str, price: float, *, at: Moment, qty: float = 1.0, side: str = "BUY") -> Self:
        """Add a MARKET_TRADE; ``side`` is the taker's."""
        return self.event("MARKET_TRADE", symbol, {"price": price, "qty": qty, "side": side}, at=at)

    def book(self, symbol: str, bids: Levels, asks: Levels, *, at: Moment, kind: str = "snapshot") -> Self:
        """Add a MARKET_BOOK of ``[price, qty]`` levels; ``kind`` is "snapshot" or "delta"."""
        payload = {
            "bids": [list(level) for level in bids],
            "asks": [list(level) for level in asks],
            "kind": kind,
        }
        return self.event("MARKET_BOOK", symbol, payload, at=at)

    def funding(self, symbol: str, rate: float, *, at: Moment, mark_price: float | None = None) -> Self:
        """Add a FUNDING settlement; a rate of 0.0001 is 0.01 %."""
        mark = {} if mark_price is None else {"markPrice": mark_price}
        return self.event("FUNDING", symbol, {"fundingRate": rate, **mark}, at=at)

    def events(self) -> list[ReplayEvent]:
        """Return the events in the order of the session."""
        return [
            ReplayEvent(timestamp=iso(ts), type=kind, symbol=symbol, payload=payload)
            for ts, kind, symbol, payload in sorted(self._events, key=lambda event: event[0])
        ]

    def build(
        self,
        root: str | os.PathLike[str] | DataRoot,
        session_id: str = "test-session",
        *,
        speed_factor: float = 1.0,
        initial_state: Mapping[str, Any] | None = None,
        instruments: Mapping[str, Mapping[str, Any]] | None = None,
        recorded_params: TradingParams | None = None,
        recorded_scoring: ScoringParams | None = None,
    ) -> Session:
        """Write the session and return it. Raises SessionError, SessionExistsError, UnsafeNameError, RecordError."""
        events = self.events()
        payloads = [orjson.loads(encode_record(ReplayEvent, event))["payload"] for event in events]
        times = [ts for ts, *_ in self._events] or [self.start]
        frame = pl.DataFrame(
            {
                "timestamp": pl.Series(sorted(ts for ts, *_ in self._events), dtype=pl.Int64).cast(
                    pl.Datetime("ns", "UTC")
                ),
                "type": pl.Series([event.type for event in events], dtype=pl.String),
                "symbol": pl.Series([event.symbol for event in events], dtype=pl.String),
                "payload": pl.Series([orjson.dumps(one).decode() for one in payloads], dtype=pl.String),
            }
        )
        save_session_frame(
            root,
            frame,
            session_id,
            initial_state=initial_state,
            instruments=instruments,
            recorded_params=recorded_params,
            recorded_scoring=recorded_scoring,
            created_by="TEST",
            speed_factor=speed_factor,
            span=(iso(min(times)), iso(max(times) + 1)),
        )
        return Session(DataRoot(root), session_id)

    def _time(self, at: Moment) -> int:
        return self.start + round(at * _NS) if isinstance(at, int | float) else to_ns(at)
