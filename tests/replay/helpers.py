"""Sessions and handlers that the replay tests share."""

from __future__ import annotations

import random
import time
from pathlib import Path

from replaylab.records import ReplayEvent
from replaylab.sessions import Session
from replaylab.testing import SessionBuilder

START = "2025-11-18T10:00:00Z"


def market(root: Path, session_id: str = "market", *, seconds: int = 120, seed: int = 1) -> Session:
    """A session of two symbols: a print each quarter of a second, scores that wander, regimes, a risk event."""
    rng = random.Random(seed)
    builder = SessionBuilder(START)
    for symbol, price in (("AAA", 100.0), ("BBB", 50.0)):
        score = 0.0
        for tick in range(seconds * 4):
            at = tick / 4
            price *= 1 + rng.gauss(0, 0.0008)
            builder.trade(symbol, round(price, 4), at=at, qty=round(rng.uniform(0.1, 2), 3))
            if tick % 4 == 0:
                score = max(-1.0, min(1.0, 0.8 * score + rng.gauss(0, 0.4)))
                builder.score(symbol, round(score, 3), at=at, price=round(price, 4))
            if tick % 40 == 0:
                builder.regime(symbol, rng.choice(["CALM", "WILD"]), at=at)
    builder.risk(at=seconds / 2, force_close=True)
    builder.event("EXECUTION_ORDER", "AAA", {"status": "NEW"}, at=seconds / 2)
    return builder.build(root, session_id)


def ticks(root: Path, gaps: list[float], session_id: str = "ticks") -> Session:
    """A session of one score, with a price, after each of ``gaps`` seconds."""
    builder = SessionBuilder(START)
    at = 0.0
    for number, gap in enumerate(gaps):
        at += gap
        builder.score("AAA", number / 1000, at=at, price=100.0)
    return builder.build(root, session_id)


class Collector:
    """A handler that keeps what it is given, and when."""

    def __init__(self) -> None:
        self.events: list[ReplayEvent] = []
        self.times: list[float] = []
        self.resets = 0
        self.finished = 0

    def handle_event(self, event: ReplayEvent) -> None:
        self.times.append(time.monotonic())
        self.events.append(event)

    def reset(self) -> None:
        self.events.clear()
        self.times.clear()
        self.resets += 1

    def finish(self) -> None:
        self.finished += 1
