"""One run under way: the player, its thread, its record, and what is to be put in order at its end."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Any

import orjson
import polars as pl

import replaylab
from replaylab.errors import ReplayError
from replaylab.logging.atomic import write_atomic
from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.replay.player import Player
from replaylab.replay.publisher import Publisher
from replaylab.replay.run import ReplayRun
from replaylab.replay.status import ReplayLock, publish
from replaylab.sessions import Session
from replaylab.timestamps import iso, now_ns

__all__ = ["Running"]


class Running:
    """One run under way: the player, its thread, and everything to be put in order at its end."""

    def __init__(
        self,
        root: DataRoot,
        run_root: DataRoot,
        session: Session,
        player: Player,
        lock: ReplayLock,
        inject_mode: str,
        give: Callable[[pl.DataFrame], Any] | None,
        when_over: Callable[[], None] | None,
    ) -> None:
        self.player = player
        self.over = threading.Event()
        self.result = ReplayRun(run_root, {}, give)
        self._root = root
        self._session = session
        self._lock = lock
        self._inject_mode = inject_mode
        self._when_over = when_over
        self._run_id = run_root.path.name
        self._started_at = iso(now_ns())
        self.thread = threading.Thread(target=self._play, name="replaylab-replay", daemon=True)
        self._publisher = Publisher(root, self._run_id, self.status, player.stop)

    def start(self) -> None:
        self._write_record()
        self._publisher.start()
        _running.add(self)
        self.thread.start()

    def status(self) -> ReplayStatus:
        player = self.player
        index, total = player.index, player.feed.total
        running = not self.over.is_set() and player.outcome is None
        return ReplayStatus(
            session_id=self._session.id,
            running=running,
            current_event_index=index,
            total_events=total,
            started_at=self._started_at,
            last_event_timestamp=iso(int(player.feed.times[index - 1])) if index else None,
            speed_factor=player.speed,
            paused=running and player.paused,
            inject_mode=self._inject_mode,
            run_id=self._run_id,
            lateness=player.lateness(exact=not running),
            rejects=self._session.rejects.height,
            error=self._error_text(),
        )

    def raise_failure(self) -> None:
        if self.player.error is not None:
            raise ReplayError(self._error_text()) from self.player.error

    def _play(self) -> None:
        try:
            self.player.run()
        finally:
            self._publisher.end()
            try:
                self._write_record()
            except OSError as error:
                self.player.error = self.player.error or error
            try:
                publish(self._root, self.status())
            except OSError as error:
                self.player.error = self.player.error or error
            # Last: whoever starts next publishes after this.
            self._lock.release()
            self.over.set()
            if self._when_over is not None:
                self._when_over()

    def _error_text(self) -> str | None:
        error = self.player.error
        if error is None:
            return None
        return f"the replay failed at event {max(0, self.player.index - 1)}: {type(error).__name__}: {error}"

    def _write_record(self) -> None:
        """Write ``run.json``: at the start with what is known, at the end with everything."""
        player = self.player
        achieved, per_second = player.achieved()
        lateness = player.lateness(exact=True)
        record = {
            "runId": self._run_id,
            "sessionId": self._session.id,
            "sessionDigest": self._session.digest,
            "replaylabVersion": replaylab.__version__,
            "startedAt": self._started_at,
            "endedAt": None if player.outcome is None else iso(now_ns()),
            "outcome": player.outcome or "running",
            "error": self._error_text(),
            "injectMode": self._inject_mode,
            "speedFactor": player.speed,  # null: as fast as it could
            "loop": player.loop,
            "loops": player.loops,
            "overload": player.overload,
            "totalEvents": player.feed.total,
            "eventsEmitted": player.index,
            "eventsSkipped": player.skipped,
            "lateness": None if lateness is None else lateness.to_dict(),
            "achievedSpeed": achieved,
            "eventsPerSecond": per_second,
            **player.target.report(player.index),
        }
        self.result.record = record
        path = self.result.path / "run.json"
        write_atomic(path, orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n", sync=False)


_running: weakref.WeakSet[Running] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A process that ends in good order leaves a stopped replay behind, not a dead one."""
    for run in list(_running):
        if not run.over.is_set():
            run.player.stop()
            run.over.wait(2.0)
