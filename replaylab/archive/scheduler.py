"""Runs the clean-up once a day from inside a program that stays up; cron does the same for one that does not."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from replaylab.archive.retention import run_retention
from replaylab.config import RetentionConfig
from replaylab.paths import DataRoot
from replaylab.records import RetentionReport
from replaylab.timestamps import NS_PER_DAY, iso, now_ns

__all__ = ["RetentionScheduler", "is_due"]

_MINUTE = 60_000_000_000
# The wall clock is asked again this often: it may be set, and a machine may sleep.
_LOOK_SECONDS = 30.0
_log = logging.getLogger("replaylab.archive")


class RetentionScheduler:
    """A thread that runs the clean-up every day at ``config.daily_at`` (UTC, so no hour is skipped or doubled).

    >>> with RetentionScheduler("data", RetentionConfig(daily_at="03:30")):       # doctest: +SKIP
    ...     run_bot()

    Without ``daily_at`` nothing is started. A day whose time passed while the program was not running is left out; an
    error is logged, kept in ``last_error``, and the next day is tried again. ``clock`` returns ns since 1970.
    """

    def __init__(
        self,
        root: DataRoot | str | os.PathLike[str],
        config: RetentionConfig,
        *,
        clock: Callable[[], int] = now_ns,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self.root = DataRoot(root)
        self.config = config
        self.last_report: RetentionReport | None = None
        self.last_error: str | None = None
        self._clock = clock
        self._look_seconds = look_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self.config.daily_at is None or self._thread is not None:
            return
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="replaylab-retention", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, after a clean-up that is under way."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        last = self._clock()
        while not self._stopped.wait(self._look_seconds):
            now = self._clock()
            if is_due(str(self.config.daily_at), last, now):
                self._clean_up(now)
            # A clock that is set back a little must not make the same time of day pass twice; one that is set back
            # by more than a day had been wrong, and its future days must not silence those that come.
            last = now if last - now > NS_PER_DAY else max(last, now)

    def _clean_up(self, now: int) -> None:
        try:
            self.last_report = run_retention(self.root, now=iso(now), config=self.config)
            self.last_error = None
        # Whatever it is: a thread that ends here would end all clean-ups, and nobody would hear of it.
        except Exception as error:
            self.last_error = str(error) or repr(error)
            _log.exception("the daily clean-up of %s failed", self.root)


def is_due(daily_at: str, last_ns: int, now_ns: int) -> bool:
    """Tell whether the UTC time of day ``daily_at`` ("HH:MM") lies in last < time ≤ now.

    >>> is_due("03:30", 0, 4 * 3600 * 10**9)
    True
    """
    hours, minutes = daily_at.split(":")
    offset = (int(hours) * 60 + int(minutes)) * _MINUTE
    return (now_ns - offset) // NS_PER_DAY > (last_ns - offset) // NS_PER_DAY
