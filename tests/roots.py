"""Small data roots for tests of the screens: signals with prices, written by the central logger."""

from __future__ import annotations

import math
from pathlib import Path

from replaylab.logging import Logger
from replaylab.paths import DataRoot
from replaylab.timestamps import iso, parse_ns

__all__ = ["END", "START", "SYMBOLS", "signal_root"]

START, END = "2025-11-18T10:00:00Z", "2025-11-18T10:01:00Z"
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def signal_root(path: Path, *, per_second: int = 10, seconds: int = 60) -> DataRoot:
    """Write scores of two symbols that swing between −1 and 1, with prices, and a regime at the start."""
    root = DataRoot(path)
    first, step = parse_ns(START), 1_000_000_000 // per_second
    with Logger(root) as logger:
        for place in range(seconds * per_second):
            at = iso(first + place * step)
            for number, symbol in enumerate(SYMBOLS):
                if place == 0:
                    _log(logger, symbol, at, "REGIME_UPDATE", {"regime": "TREND", "confidence": 0.9})
                score = round(math.sin(place / per_second / (2 + number)), 4)
                price = round((90_000.0, 3_000.0)[number] * (1 + 0.002 * math.sin(place / per_second / 3)), 2)
                _log(logger, symbol, at, "SCORING_UPDATE", {"score": score, "price": price})
    return root


def _log(logger: Logger, symbol: str, at: str, kind: str, extra: dict[str, object]) -> None:
    event = {
        "timestamp": at,
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": kind,
        "reason": "recorded",
        "extra": extra,
    }
    logger.log_state_event(symbol, event)
