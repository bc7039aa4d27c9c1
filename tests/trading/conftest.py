"""A recorder that keeps everything, and short ways to write sessions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from replaylab.params import TradingParams
from replaylab.trading import TradingSystem, resolve_prices

SECOND = 1_000_000_000
Event = tuple[int, str, "str | None", dict[str, Any]]


class Kept:
    """The logger's methods; every record in the order of the calls."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Any]] = []

    def log_state_event(self, symbol: str, event: Any) -> None:
        assert symbol == event.symbol
        self.all.append(("event", event))

    def log_trade(self, record: Any) -> None:
        self.all.append(("trade", record))

    def log_order(self, record: Any) -> None:
        self.all.append(("order", record))

    def write_risk_snapshot(self, snapshot: Any) -> None:
        self.all.append(("risk", snapshot))

    def write_tpsl_snapshot(self, snapshot: Any) -> None:
        self.all.append(("tpsl", snapshot))

    def write_execution_snapshot(self, snapshot: Any) -> None:
        self.all.append(("execution", snapshot))

    def of(self, kind: str) -> list[Any]:
        return [record for name, record in self.all if name == kind]


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def also_kept() -> Kept:
    return Kept()


@pytest.fixture
def kept_by() -> Callable[..., tuple[TradingSystem, Kept]]:
    """Run a RandomSession; return the system and what it recorded."""

    def run(session: Any, params: TradingParams, *, record: bool = True) -> tuple[TradingSystem, Kept]:
        kept = Kept()
        system = TradingSystem(
            params,
            recorder=kept if record else None,
            price_sources=resolve_prices(session, session.price_source),
            instruments=session.instruments,
            initial_state=session.initial_state,
        )
        for index, event in enumerate(session.raw):
            system.on_event(index, *event)
        system.finish()
        return system, kept

    return run


@pytest.fixture
def play() -> Callable[..., TradingSystem]:
    """Run (ts, type, symbol, payload) events through a system and finish it."""

    def run(
        events: list[Event], params: TradingParams | None = None, price_source: Any = "auto", **options: Any
    ) -> TradingSystem:
        sources = resolve_prices(
            [(kind, symbol, payload) for _, kind, symbol, payload in events],
            price_source,
            initial_state=options.get("initial_state"),
        )
        system = TradingSystem(params or TradingParams(), price_sources=sources, **options)
        for index, (ts, kind, symbol, payload) in enumerate(events):
            system.on_event(index, ts, kind, symbol, payload)
        system.finish()
        return system

    return run


@pytest.fixture
def session() -> Callable[..., list[Event]]:
    """Events of BTCUSDT, one second apart: a number is a trade's price, a text such as "s0.8" a score."""

    def build(*steps: float | str | tuple[str, dict[str, Any]], symbol: str = "BTCUSDT") -> list[Event]:
        events: list[Event] = []
        for second, step in enumerate(steps):
            ts = second * SECOND
            if isinstance(step, str):
                events.append((ts, "SCORING_UPDATE", symbol, {"score": float(step[1:])}))
            elif isinstance(step, tuple):
                events.append((ts, step[0], symbol, step[1]))
            else:
                payload = {"price": float(step), "qty": 1.0, "side": "BUY"}
                events.append((ts, "MARKET_TRADE", symbol, payload))
        return events

    return build


@pytest.fixture
def random_session() -> Callable[[int], list[Event]]:
    """A seeded session of two symbols with every kind of signal."""

    def build(n: int) -> list[Event]:
        source = random.Random(n)
        prices = {"AAAUSDT": 100.0, "BBBUSDT": 7.0}
        events: list[Event] = []
        ts = 1_763_460_000 * SECOND
        for _ in range(n):
            ts += source.choice((0, 10**8, 3 * 10**8))
            symbol = source.choice(list(prices))
            draw = source.random()
            if draw < 0.7:
                prices[symbol] *= 1 + source.gauss(0, 5e-4)
                side = source.choice(("BUY", "SELL"))
                payload: dict[str, Any] = {"price": prices[symbol], "qty": source.random(), "side": side}
                events.append((ts, "MARKET_TRADE", symbol, payload))
            elif draw < 0.95:
                events.append((ts, "SCORING_UPDATE", symbol, {"score": source.uniform(-1, 1)}))
            elif draw < 0.97:
                events.append((ts, "REGIME_UPDATE", symbol, {"regime": source.choice("AB")}))
            else:
                flags = {"tradingBlocked": source.random() < 0.3, "forceClose": source.random() < 0.5}
                events.append((ts, "RISK_UPDATE", source.choice((symbol, None)), flags))
        return events

    return build
