"""Data roots for the tests of the archive: backdated logs, sessions and market files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from replaylab.timestamps import iso, parse_ns


def stamp(day: str, second: int = 0) -> str:
    return iso(parse_ns(day) + second * 1_000_000_000)


def trade(
    day: str, second: int = 0, pnl: float = 1.0, symbol: str = "BTCUSDT", **more: Any
) -> dict[str, Any]:
    return {
        "timestamp": stamp(day, second),
        "dateKey": day,
        "symbol": symbol,
        "side": "LONG",
        "entryPrice": 100.0,
        "closePrice": 101.0,
        "qty": 1.0,
        "leverage": 5.0,
        "realizedPnl": pnl,
        "mfe": 2.0,
        "mae": -1.0,
        "durationSeconds": 12.5,
        "mode": "SIM",
        **more,
    }


def order(day: str, second: int = 0, status: str = "NEW") -> dict[str, Any]:
    return {
        "timestamp": stamp(day, second),
        "clientOrderId": f"c{second}",
        "exchangeOrderId": None,
        "symbol": "BTCUSDT",
        "side": "BUY",
        "type": "MARKET",
        "timeInForce": "IOC",
        "price": None,
        "triggerPrice": None,
        "qty": 1.0,
        "reduceOnly": False,
        "status": status,
        "filledQty": 0.0,
        "avgFillPrice": None,
        "notionalUsd": 100.0,
        "mode": "SIM",
        "source": "STATE_MACHINE",
        "lastError": None,
    }


def event(day: str, second: int = 0, symbol: str = "BTCUSDT", score: float = 0.5) -> dict[str, Any]:
    return {
        "timestamp": stamp(day, second),
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": "SCORING_UPDATE",
        "reason": "test",
        "extra": {"score": score, "side": "LONG"},
    }


def write_lines(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def write_session(root: Path, name: str, day: str, *, pin: bool | None = None) -> Path:
    folder = root / "replay" / "sessions" / name
    write_lines(
        folder / "events.jsonl", {"timestamp": stamp(day), "type": "X", "symbol": None, "payload": {}}
    )
    manifest = {
        "sessionId": name,
        "createdAt": stamp(day),
        "createdBy": "TEST",
        "sourceDateRange": {"from": stamp(day), "to": stamp(day, 60)},
        "symbols": ["BTCUSDT"],
        "eventTypes": ["X"],
        "speedFactor": 1.0,
        "notes": None,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    if pin is not None:
        (folder / "meta.json").write_text(json.dumps({"pin": pin}), encoding="utf-8")
    return folder


def set_age(path: Path, day: str) -> None:
    moment = parse_ns(day)
    os.utime(path, ns=(moment, moment))


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a root with its content; links as where they point to."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(path.readlink())
        elif path.is_file():
            found[name] = path.read_bytes()
    return found
