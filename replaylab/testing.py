"""Sessions for your own tests: made event by event, without logs to cut them from.

>>> from replaylab.testing import SessionBuilder
>>> builder = SessionBuilder(start="2025-11-18T10:00:00Z")
>>> builder.trade("BTCUSDT", 100.0, at=0).score("BTCUSDT", 0.9, at=1).trade("BTCUSDT", 101.0, at=2)
SessionBuilder(3 events of BTCUSDT)
>>> session = builder.build("data", "my-test")                     # doctest: +SKIP
>>> ReplayEngine(SessionStore("data"), my_system)                  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import orjson

from replaylab.errors import SessionError, SessionExistsError
from replaylab.fsio import write_atomic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent, ReplayManifest, SourceDateRange, encode_record
from replaylab.sessions import Session, SessionStore
from replaylab.timestamps import iso, to_ns

__all__ = ["SessionBuilder"]

_NS = 1_000_000_000
Moment = float | str | datetime
Levels = Sequence[Sequence[float]]


class SessionBuilder:
    """Collects events and writes them as a replay session. Every method that adds an event returns the builder.

    ``at``: seconds after ``start`` (whole nanoseconds; may be negative), or an ISO text or datetime. Events are sorted
    by time when built; events of one time stay in the order in which they were added.
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
        self, symbol: str, score: float, *, at: Moment, price: float | None = None, **payload: Any
    ) -> Self:
        """Add a SCORING_UPDATE; ``price`` is left out where it is None."""
        known = {"score": score} if price is None else {"score": score, "price": price}
        return self.event("SCORING_UPDATE", symbol, {**known, **payload}, at=at)

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
        recorded_params: TradingParams | None = None,
        recorded_scoring: ScoringParams | None = None,
    ) -> Session:
        """Write the session and return it. Raises SessionExistsError, UnsafeNameError, RecordError."""
        store = SessionStore(root)
        if store.get_session(session_id) is not None:
            raise SessionExistsError(f"session {session_id!r} exists already")
        events = self.events()
        lines = b"".join(encode_record(ReplayEvent, event) + b"\n" for event in events)
        times = [ts for ts, *_ in self._events] or [self.start]
        if not all(event.symbol is None or isinstance(event.symbol, str) for event in events):
            raise SessionError("a symbol is a text or None")
        store.root.session_dir(session_id).mkdir(parents=True, exist_ok=True)
        write_atomic(store.root.session_events(session_id), lines)
        meta = self._meta(events, lines, initial_state, recorded_params, recorded_scoring)
        write_atomic(store.root.session_meta(session_id), orjson.dumps(meta, option=orjson.OPT_INDENT_2))
        store.save_session(
            ReplayManifest(
                session_id=session_id,
                created_at=iso(self.start),
                created_by="TEST",
                source_date_range=SourceDateRange(from_=iso(min(times)), to=iso(max(times) + 1)),
                symbols=sorted({event.symbol for event in events if event.symbol}),
                event_types=sorted({event.type for event in events}),
                speed_factor=speed_factor,
                notes=None,
                total_events=len(events),
            )
        )
        return store.open(session_id)

    def _meta(
        self,
        events: list[ReplayEvent],
        lines: bytes,
        initial_state: Mapping[str, Any] | None,
        params: TradingParams | None,
        scoring: ScoringParams | None,
    ) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "totalEvents": len(events),
            "eventCounts": dict(sorted(Counter(event.type for event in events).items())),
            "eventsSha256": hashlib.sha256(lines).hexdigest(),
            "eventsBytes": len(lines),
        }
        if initial_state is not None:
            meta["initialState"] = dict(initial_state)
        if params is not None or scoring is not None:
            recorded: dict[str, Any] = {"timestamp": iso(self.start)}
            if params is not None:
                recorded["params"] = params.to_dict()
            if scoring is not None:
                recorded["scoring"] = scoring.to_dict()
            meta["recordedParams"] = recorded
        return meta

    def _time(self, at: Moment) -> int:
        return self.start + round(at * _NS) if isinstance(at, int | float) else to_ns(at)
