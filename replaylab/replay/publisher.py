"""The thread beside a running replay: publishes its status and listens for stop requests of other processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.replay.status import publish, stop_requested

__all__ = ["Publisher"]

_LISTEN_S = 0.02
_PUBLISH_S = 0.2
_HEARTBEAT_S = 2.0


class Publisher:
    """Publishes ``status()`` at most five times a second, and at least every two seconds while nothing changes."""

    def __init__(
        self, root: DataRoot, run_id: str, status: Callable[[], ReplayStatus], stop: Callable[[], None]
    ) -> None:
        self._root = root
        self._run_id = run_id
        self._status = status
        self._stop = stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="replaylab-status", daemon=True)
        self.error: OSError | None = None

    def start(self) -> None:
        """Publish at once, then from a thread. Raises OSError when the data root cannot be written."""
        publish(self._root, self._status())
        self._thread.start()

    def end(self) -> None:
        """Stop publishing; the last word is the caller's."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        published = time.monotonic()
        known: ReplayStatus | None = None
        while not self._over.wait(_LISTEN_S):
            if stop_requested(self._root, self._run_id):
                self._stop()
            since = time.monotonic() - published
            if since < _PUBLISH_S:
                continue
            status = self._status()
            if status == known and since < _HEARTBEAT_S:
                continue
            try:
                publish(self._root, status)
                self.error = None
            except OSError as error:
                # A full disk: the replay goes on, and the status comes back when the disk does.
                self.error = error
            published = time.monotonic()
            known = status
