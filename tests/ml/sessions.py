"""Small sessions for tests: events in, something with ``.events`` out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import polars as pl

START = 1_763_460_000_000_000_000  # 2025-11-18T10:00:00Z
SECOND = 1_000_000_000


@dataclass
class FakeSession:
    """What features and labels need of a session, without files."""

    events: pl.DataFrame
    id: str = "2025-11-18T10-11-BTCUSDT"
    digest: str = "0" * 64
    initial_state: dict[str, Any] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    rejects: pl.DataFrame = field(default_factory=pl.DataFrame)

    def prefix(self, rows: int) -> FakeSession:
        return FakeSession(self.events.head(rows), self.id, self.digest, self.initial_state)


def session(rows: list[tuple[int, str, str | None, dict[str, Any]]], **options: Any) -> FakeSession:
    """A session of ``(ts, type, symbol, payload)`` rows."""
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series([row[0] for row in rows], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC")),
            "type": pl.Series([row[1] for row in rows], dtype=pl.String),
            "symbol": pl.Series([row[2] for row in rows], dtype=pl.String),
            "payload": pl.Series([orjson.dumps(row[3]).decode() for row in rows], dtype=pl.String),
        }
    )
    return FakeSession(frame, **options)


def trade(
    ts: int, price: float, symbol: str = "BTCUSDT", qty: float = 1.0, side: str = "BUY"
) -> tuple[Any, ...]:
    return (ts, "MARKET_TRADE", symbol, {"price": price, "qty": qty, "side": side, "tradeId": None})


def score(ts: int, value: float, symbol: str = "BTCUSDT", **more: Any) -> tuple[Any, ...]:
    return (ts, "SCORING_UPDATE", symbol, {"score": value, **more})


def random_rows(seed: int, count: int, symbols: tuple[str, ...] = ("BTCUSDT",)) -> list[tuple[Any, ...]]:
    """Trades, books, scores, regimes and risk updates with many equal timestamps."""
    rng = np.random.default_rng(seed)
    ts = START
    price = dict.fromkeys(symbols, 100.0)
    rows = []
    for _ in range(count):
        ts += int(rng.choice([0, 0, 1, 250, 900])) * 1_000_000
        symbol = str(rng.choice(symbols))
        price[symbol] *= float(np.exp(rng.choice([-1, 0, 1]) * 1e-3))
        kind = rng.random()
        now = price[symbol]
        if kind < 0.5:
            rows.append(trade(ts, now, symbol, float(rng.integers(1, 9)), str(rng.choice(["BUY", "SELL"]))))
        elif kind < 0.65:
            book = {
                "bids": [[now * 0.9999, float(rng.integers(1, 9))]],
                "asks": [[now * 1.0001, float(rng.integers(1, 9))]],
            }
            rows.append((ts, "MARKET_BOOK", symbol, {**book, "kind": "snapshot"}))
        elif kind < 0.9:
            value = float(rng.choice([-0.9, -0.4, 0.0, 0.4, 0.9]))
            rows.append(
                score(ts, value, symbol, price=now, components={"flow": value / 2, "momentum": value})
            )
        elif kind < 0.95:
            rows.append((ts, "REGIME_UPDATE", symbol, {"regime": str(rng.choice(["CALM", "VOLATILE"]))}))
        else:
            rows.append((ts, "RISK_UPDATE", None, {"tradingBlocked": bool(rng.random() < 0.5)}))
    return rows
