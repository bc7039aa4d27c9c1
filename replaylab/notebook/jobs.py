"""Work that a click starts and a later redraw finishes, so that no callback ever waits."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from replaylab.errors import ReplaylabError

__all__ = ["Jobs"]


class Jobs:
    """Threads that end with their work; results are handed over where ``collect`` is called."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._ready: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether work is under way, or its result not yet collected."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return bool(self._threads) or not self._ready.empty()

    def submit(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, list[str]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Do ``work`` in a thread; ``collect`` then calls ``done(result, warnings)`` or ``failed(error)``."""

        def run() -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                try:
                    result = work()
                except (ReplaylabError, OSError, ValueError) as error:
                    self._ready.put(partial(failed, error))
                    return
            texts = [str(item.message) for item in caught if issubclass(item.category, UserWarning)]
            self._ready.put(partial(done, result, texts))

        thread = threading.Thread(target=run, name="replaylab-panel-job", daemon=True)
        self._threads.append(thread)
        thread.start()

    def collect(self) -> None:
        """Hand over what is ready, in the calling thread."""
        while True:
            try:
                finish = self._ready.get_nowait()
            except queue.Empty:
                return
            finish()

    def settle(self, timeout: float = 60.0) -> bool:
        """Wait for all work and hand it over; for scripts and tests. Returns whether all ended in time."""
        limit = time.monotonic() + timeout
        while self.busy and time.monotonic() < limit:
            for thread in self._threads:
                thread.join(0.01)
            self.collect()
        return not self.busy
