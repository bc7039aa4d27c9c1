"""Recorded against recomputed signals, while a session is decided again from its market data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from replaylab.features import usable_number


@dataclass(frozen=True, slots=True)
class Difference:
    """One signal that is not the same: ``recorded`` or ``recomputed`` is None where there is none."""

    ts: int
    symbol: str
    type: str
    recorded: float | str | None
    recomputed: float | str | None


@dataclass(slots=True)
class Agreement:
    """Counts of recorded signals that the recomputation gave again, gave differently, or did not give.

    A recomputed signal belongs to the recorded one of the same type, symbol and timestamp. Scores within
    ``tolerance`` are the same. ``differences`` keeps the first ``keep`` of them.
    """

    tolerance: float = 1e-9
    keep: int = 1000
    identical: int = 0
    different: int = 0
    missing: int = 0
    added: int = 0
    max_difference: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    _waiting: dict[tuple[str, str], tuple[int, float | str | None]] = field(default_factory=dict)

    @property
    def recorded(self) -> int:
        """Recorded signals that were compared."""
        return self.identical + self.different + self.missing

    @property
    def share(self) -> float | None:
        """Share of recorded signals that came out identical; None without any."""
        return self.identical / self.recorded if self.recorded else None

    def record(self, ts: int, kind: str, symbol: str, payload: dict[str, Any]) -> None:
        """Take a recorded signal; it waits for its recomputed one until the time moves on."""
        value: float | str | None
        if kind == "SCORING_UPDATE":
            score = usable_number(payload.get("score"))
            side = payload.get("side")
            if score is not None and side in ("LONG", "SHORT"):
                score = abs(score) if side == "LONG" else -abs(score)
            value = score
        else:
            regime = payload.get("regime")
            value = regime if isinstance(regime, str) else None
        if value is not None:
            earlier = self._waiting.get((kind, symbol))
            if earlier is not None:
                self._miss(kind, symbol, *earlier)
            self._waiting[kind, symbol] = (ts, value)

    def recompute(self, ts: int, kind: str, symbol: str, value: float | str) -> None:
        """Compare a recomputed signal with the recorded one that waits for it."""
        waiting = self._waiting.pop((kind, symbol), None)
        if waiting is not None and waiting[0] != ts:
            self._miss(kind, symbol, *waiting)
            waiting = None
        if waiting is None:
            self.added += 1
            self._note(Difference(ts, symbol, kind, None, value))
            return
        recorded = waiting[1]
        if isinstance(recorded, float) and isinstance(value, float):
            gap = abs(recorded - value)
            self.max_difference = max(self.max_difference, gap)
            same = gap <= self.tolerance * max(1.0, math.fabs(recorded))
        else:
            same = recorded == value
        if same:
            self.identical += 1
        else:
            self.different += 1
            self._note(Difference(ts, symbol, kind, recorded, value))

    def close(self) -> None:
        """Count what still waits as missing."""
        for (kind, symbol), waiting in self._waiting.items():
            self._miss(kind, symbol, *waiting)
        self._waiting.clear()

    def _miss(self, kind: str, symbol: str, ts: int, recorded: float | str | None) -> None:
        self.missing += 1
        self._note(Difference(ts, symbol, kind, recorded, None))

    def _note(self, difference: Difference) -> None:
        if len(self.differences) < self.keep:
            self.differences.append(difference)
