"""When each event is due, and waiting for it: absolute deadlines on the monotonic clock, so nothing drifts."""

from __future__ import annotations

import math
import threading
import time

from replaylab.errors import ReplayError

__all__ = ["Pacer", "check_speed"]

# How long before a deadline sleeping ends and spinning begins: longer than the kernel is late in waking a thread.
SPIN_NS = 250_000


def check_speed(factor: float) -> float:
    """Return a speed factor as a float; raises ReplayError unless it is above 0 (infinity is allowed)."""
    try:
        value = math.nan if isinstance(factor, bool) else float(factor)
    except (TypeError, ValueError):
        value = math.nan
    if not value > 0:
        raise ReplayError(f"a speed factor is a number above 0, or inf, found {factor!r}")
    return value


class Pacer:
    """Maps times of events to times of the monotonic clock.

    >>> pacer = Pacer(speed=10.0)
    >>> pacer.begin(event_ts=0)
    >>> pacer.due(5_000_000_000) - pacer.due(0)      # five seconds at ten times the speed
    500000000

    A change of speed and a pause move the origin; between them every deadline is computed from the same origin.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._origin = 0
        self._event_origin = 0

    @property
    def unlimited(self) -> bool:
        """Whether events are emitted as fast as possible, without deadlines."""
        return self.speed == math.inf

    def begin(self, event_ts: int) -> None:
        """Make an event of time ``event_ts`` due now."""
        self._event_origin = event_ts
        self._origin = time.monotonic_ns()

    def due(self, event_ts: int) -> int:
        """Return when an event is due, in ns of the monotonic clock."""
        return self._origin + round((event_ts - self._event_origin) / self.speed)

    def position(self) -> int:
        """Return the event time that it is now."""
        return self._event_origin + round((time.monotonic_ns() - self._origin) * self.speed)

    @staticmethod
    def wait_until(deadline: int, wake: threading.Event) -> bool:
        """Sleep, then spin, until ``deadline``; returns False at once when ``wake`` is set."""
        while True:
            left = deadline - time.monotonic_ns()
            if left <= SPIN_NS:
                break
            # A thread cannot sleep for centuries; long waits are taken in pieces.
            if wake.wait(min((left - SPIN_NS) / 1e9, 3_600.0)):
                return False
        while time.monotonic_ns() < deadline:
            if wake.is_set():
                return False
        return not wake.is_set()
