"""How well a replay keeps time: lateness of every paced event, and the speed that was reached."""

from __future__ import annotations

import time

import numpy as np

from replaylab.records import Lateness

__all__ = ["Meter"]

_LATEST = 20_000


class Meter:
    """Measures one run. Written by the playing thread, read by any.

    Lateness is the time of emission minus the time an event was due, in ns. The last ``size`` values are kept.
    """

    def __init__(self, size: int) -> None:
        self._late = np.zeros(max(size, 1_024), np.int64)
        self._count = 0
        self._most = 0
        # Event time and wall time played in closed stretches, and where the open one began.
        self._event_ns = 0
        self._wall_ns = 0
        self._open: tuple[int, int] | None = None

    def note(self, late: int) -> None:
        """Take the lateness of one event."""
        self._late[self._count % len(self._late)] = late
        self._count += 1
        self._most = max(self._most, late)

    def begin(self, event_ts: int) -> None:
        """Time begins to run, from ``event_ts``."""
        self._open = (event_ts, time.monotonic_ns())

    def end(self, event_ts: int) -> None:
        """Time stands still, at ``event_ts``; without effect when it does already."""
        if self._open is not None:
            self._event_ns += event_ts - self._open[0]
            self._wall_ns += time.monotonic_ns() - self._open[1]
            self._open = None

    def lateness(self, *, exact: bool = False) -> Lateness | None:
        """Return p50, p99 and max in ms, of the latest events unless ``exact``; None before the first."""
        if not self._count:
            return None
        size = len(self._late)
        if exact or self._count <= _LATEST:
            values = self._late[: min(self._count, size)]
        else:
            end = self._count % size
            values = self._late[max(0, end - _LATEST) : end] if end else self._late[-_LATEST:]
        p50, p99 = (float(value) / 1e6 for value in np.percentile(values, [50, 99]))
        return Lateness(p50=p50, p99=p99, max=self._most / 1e6)

    def achieved(self, events: int, reached: int) -> tuple[float | None, float | None]:
        """Return the speed reached, and events per second, over the time in which it played."""
        event_ns, wall_ns = self._event_ns, self._wall_ns
        if self._open is not None:
            event_ns += reached - self._open[0]
            wall_ns += time.monotonic_ns() - self._open[1]
        if wall_ns <= 0:
            return None, None
        return event_ns / wall_ns, events / (wall_ns / 1e9)
