"""Seeded market sessions as frames."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import orjson
import polars as pl
import pytest

START = 1_763_460_000_000_000_000


def as_frame(events: list[Any]) -> pl.DataFrame:
    """Turn (ts, type, symbol, payload) into a session's events."""
    return pl.DataFrame(
        {
            "timestamp": pl.Series([event[0] for event in events], dtype=pl.Int64).cast(
                pl.Datetime("ns", "UTC")
            ),
            "type": pl.Series([event[1] for event in events], dtype=pl.String),
            "symbol": pl.Series([event[2] for event in events], dtype=pl.String),
            "payload": pl.Series([orjson.dumps(event[3]).decode() for event in events], dtype=pl.String),
        }
    )


@pytest.fixture
def frame_of() -> Callable[[list[Any]], pl.DataFrame]:
    return as_frame


@pytest.fixture
def market() -> Callable[..., list[Any]]:
    """Trades, snapshots, deltas and things that are wrong, of two symbols, many on one millisecond."""

    def build(n: int, seed: int = 3, books: float = 0.3, wrong: float = 0.02) -> list[Any]:
        source = random.Random(seed)
        prices = {"AAAUSDT": 100.0, "BBBUSDT": 0.02}
        events: list[Any] = []
        ts = START
        for _ in range(n):
            ts += source.choice((0, 0, 1_000_000, 40_000_000, 900_000_001))
            symbol = source.choice(list(prices))
            prices[symbol] *= 1 + source.gauss(0, 3e-4)
            price = prices[symbol]
            payload: dict[str, Any]
            if source.random() < books:
                levels = source.randrange(0, 8)
                payload = {
                    "bids": [
                        [price * (1 - 1e-4 * k), source.choice((0, 1, 2.5))] for k in range(1, 1 + levels)
                    ],
                    "asks": [
                        [price * (1 + 1e-4 * k), source.choice((0, 1, 2.5))] for k in range(1, 1 + levels)
                    ],
                }
                if source.random() < 0.4:
                    payload["kind"] = "delta"
                if source.random() < wrong:
                    payload["bids"] = source.choice((None, [[1.0]], [["1", 2]]))
                events.append((ts, "MARKET_BOOK", symbol, payload))
            else:
                qty = source.expovariate(1) * (2000 if source.random() < 0.01 else 1) * 50 / price
                payload = {"price": price, "qty": qty, "side": source.choice(("BUY", "SELL"))}
                if source.random() < wrong:
                    payload |= source.choice(
                        ({"price": "1"}, {"price": -1}, {"qty": "x"}, {"side": None}, {"offMarket": True})
                    )
                events.append((ts, "MARKET_TRADE", symbol, payload))
        return events

    return build
