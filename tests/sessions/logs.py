"""Logs for session tests, written as plain text: no code of the package's writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def append(path: Path, *records: Any) -> Path:
    """Append each record as a line; texts go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        for record in records:
            file.write((record if isinstance(record, str) else json.dumps(record)) + "\n")
    return path


def state_event(
    timestamp: str, kind: str = "SCORING_UPDATE", symbol: str = "BTCUSDT", to: str = "IDLE", **extra: Any
) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": to,
        "eventType": kind,
        "reason": "test",
        "extra": extra,
    }


def trade_record(timestamp: str, symbol: str = "BTCUSDT", pnl: float = 1.5) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "dateKey": timestamp[:10],
        "symbol": symbol,
        "side": "LONG",
        "entryPrice": 100,
        "closePrice": 101.5,
        "qty": 1,
        "leverage": 1,
        "realizedPnl": pnl,
        "mfe": 2,
        "mae": -1,
        "durationSeconds": 60,
        "mode": "SIM",
    }


def order_record(timestamp: str, symbol: str = "BTCUSDT", status: str = "NEW") -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "clientOrderId": "c1",
        "exchangeOrderId": None,
        "symbol": symbol,
        "side": "BUY",
        "type": "MARKET",
        "timeInForce": "GTC",
        "price": None,
        "triggerPrice": None,
        "qty": 1,
        "reduceOnly": False,
        "status": status,
        "filledQty": 0,
        "avgFillPrice": None,
        "notionalUsd": 100,
        "mode": "SIM",
        "source": "STATE_MACHINE",
        "lastError": None,
    }


def log_events(root: Path, symbol: str, *records: Any) -> Path:
    return append(root / "events" / f"{symbol}.jsonl", *records)


def lines_of(root: Path, session_id: str) -> list[dict[str, Any]]:
    path = root / "replay" / "sessions" / session_id / "events.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
