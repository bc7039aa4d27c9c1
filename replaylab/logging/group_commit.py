"""Group commit: one thread takes every line that waits, writes and syncs them together, then acknowledges each.

While the disk works on one group the next one gathers, so a slow disk makes larger groups.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

from replaylab.errors import LogWriteError
from replaylab.logging.files import FileStreamManager, Handle, fresh_error

if TYPE_CHECKING:
    import asyncio

# Bytes of one write call; a failure takes back, and fails, no more lines than one call held.
_WRITE_BYTES = 1 << 20
# How long a call from inside an event loop may wait for room in the queue before its line is refused.
_LOOP_WAIT_SECONDS = 0.05
_EXIT_SECONDS = 30.0
_log = logging.getLogger("replaylab.logging")


class Entry(Protocol):
    """Receives the outcome of one line."""

    def finish(self, error: LogWriteError | None) -> None: ...


class _Pending(Handle):
    """A handle whose line waits in the queue."""

    __slots__ = ("_error", "_finished", "_futures", "_writer")

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer
        self._finished = False
        self._error: LogWriteError | None = None
        self._futures: list[asyncio.Future[None]] | None = None

    def result(self, timeout: float | None = None) -> None:
        if not self._finished:
            with self._writer.settled:
                if not self._writer.settled.wait_for(self.done, timeout):
                    raise TimeoutError(f"the line was not written within {timeout} s")
        if self._error is not None:
            raise fresh_error(self._error)

    def done(self) -> bool:
        return self._finished

    def __await__(self) -> Generator[Any, None, None]:
        if not self._finished:
            from asyncio import get_running_loop

            future = get_running_loop().create_future()
            with self._writer.settled:
                if not self._finished:
                    self._futures = [*(self._futures or ()), future]
            if not self._finished:
                yield from future
        self.result()

    def finish(self, error: LogWriteError | None) -> None:
        self._error = error
        self._finished = True
        if self._futures:
            self._writer.wake(self._futures)


class GroupWriter:
    """A bounded queue and the thread that empties it into files.

    ``size`` lines may wait. A caller that finds the queue full waits (``overflow="wait"``; inside an event loop at
    most 50 ms), or its line is dropped at once (``"drop"``); ``put`` returns None for a line that was refused.
    ``sync`` makes every group survive a crash of the machine; ``max_delay_s`` lets a group gather for that long.
    ``extra_lines`` may add lines to each group.
    """

    def __init__(
        self,
        streams: FileStreamManager,
        *,
        sync: bool,
        size: int,
        max_delay_s: float = 0.0,
        overflow: Literal["wait", "drop"] = "wait",
        extra_lines: Callable[[], list[tuple[str, bytes, Entry]]] = list,
        report: Callable[[str, int, LogWriteError | None], None],
    ) -> None:
        self.size = size
        self._streams = streams
        self._sync = sync
        self._max_delay = max_delay_s
        self._waits = overflow == "wait"
        self._extra_lines = extra_lines
        self._report = report
        self._start_fresh()
        _writers.add(self)

    def _start_fresh(self) -> None:
        self._queue: list[tuple[str, bytes, bool, Entry]] = []
        # A signal handler that logs may interrupt a call that holds it.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self.settled = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._idle = False
        self._hurry = False
        self._stopping = False
        self._refusing = False
        self._busy_since: float | None = None
        self._put = 0
        self._finished = 0
        self._awaited: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """Number of lines in the queue."""
        return len(self._queue)

    @property
    def busy_seconds(self) -> float:
        """Seconds since the disk got its present group; 0 when it has none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def put(self, path: str, data: bytes, *, overwrite: bool = False) -> Handle | None:
        """Queue whole lines for ``path``, or its new content; None when there was no room for them."""
        handle = _Pending(self)
        with self._lock:
            if len(self._queue) >= self.size and not self._wait_for_room():
                return None
            self._queue.append((path, data, overwrite, handle))
            self._put += 1
            if self._idle or len(self._queue) == self.size:
                self._work.notify()
            if self._thread is None:
                self._start()
        return handle

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything queued before this call is written, or has failed; raises TimeoutError."""
        with self._lock:
            target = self._put
            self._hurry = True
            self._work.notify()
            if self._queue and not (self._thread is not None and self._thread.is_alive()):
                # A signal handler flushes a line that the interrupted call has just queued, or it raised in that call.
                self._thread = None
                self._start()
            if not self.settled.wait_for(lambda: self._finished >= target, timeout):
                waiting = target - self._finished
                raise TimeoutError(f"{waiting} lines still wait for the disk after {timeout} s")

    def close(self, timeout: float | None = None) -> None:
        """Write everything that waits and end the thread; a later ``put`` starts another."""
        self.flush(timeout)
        with self._lock:
            thread = self._thread
            self._stopping = thread is not None
            self._work.notify()
        if thread is not None:
            thread.join(timeout)

    def wake(self, futures: list[asyncio.Future[None]]) -> None:
        """Collect futures of one group; called by handles, under the lock."""
        for future in futures:
            self._awaited.setdefault(future.get_loop(), []).append(future)

    def _start(self) -> None:
        self._stopping = False
        thread = threading.Thread(target=self._run, name="replaylab-log-writer", daemon=True)
        if self._thread is not None:
            return  # a signal handler that logs has started it meanwhile
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            # No thread can start: too many, or the interpreter is ending. The caller writes.
            self._thread = None
            group, self._queue = self._queue, []
            self._write(group)
            self._finished += len(group)
            self.settled.notify_all()
            return
        except BaseException:
            # A signal handler raised. If the thread runs all the same, it finds another in its place and ends.
            self._thread = None
            raise
        _flush_at_exit()

    def _wait_for_room(self) -> bool:
        # The writer thread, logging from a handler of Python's logging, would wait for itself.
        if not self._waits or threading.current_thread() is self._thread:
            return False
        limit = _LOOP_WAIT_SECONDS if _in_event_loop() else None
        # After one wait in vain the next calls are refused at once until the disk moves again: a thousand calls must
        # not wait a thousand times.
        if limit is not None and self._refusing:
            return False
        taken = self._room.wait_for(lambda: len(self._queue) < self.size, limit)
        self._refusing = not taken
        return taken

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return
                while not self._queue and not self._stopping:
                    self._idle = True
                    self._work.wait()
                    self._idle = False
                self._gather()
                group, self._queue = self._queue, []
                self._hurry = False
                self._refusing = False
                self._room.notify_all()
                self._busy_since = time.monotonic()
            # The last group, which is empty, still writes the extra lines.
            self._write(group)
            with self._lock:
                self._busy_since = None
                self._finished += len(group)
                self.settled.notify_all()
                if not group and not self._queue:
                    self._thread = None
                    self._stopping = False
                    return

    def _gather(self) -> None:
        """Let more lines come, for at most max_delay; under the lock."""
        deadline = time.monotonic() + self._max_delay if self._max_delay else 0.0
        while not (self._hurry or self._stopping) and len(self._queue) < self.size:
            left = deadline - time.monotonic() if deadline else 0.0
            if left <= 0:
                return
            self._work.wait(left)

    def _write(self, group: list[tuple[str, bytes, bool, Entry]]) -> None:
        appended: dict[str, tuple[list[bytes], list[Entry]]] = {}
        replaced: dict[str, tuple[bytes, list[Entry]]] = {}
        for path, data, overwrite, entry in group:
            if overwrite:
                # Of several contents of one file only the newest needs the disk.
                entries = replaced[path][1] if path in replaced else []
                replaced[path] = (data, [*entries, entry])
            else:
                lines, entries = appended.setdefault(path, ([], []))
                lines.append(data)
                entries.append(entry)
        for path, data, entry in self._extra():
            lines, entries = appended.setdefault(path, ([], []))
            lines.append(data)
            entries.append(entry)
        for path, (lines, entries) in appended.items():
            start = size = 0
            for at, line in enumerate(lines):
                size += len(line)
                if size >= _WRITE_BYTES or at == len(lines) - 1:
                    self._append(path, lines[start : at + 1], entries[start : at + 1])
                    start, size = at + 1, 0
        for path, (content, entries) in replaced.items():
            self._settle(
                path, entries, self._attempt(path, self._streams.write_file, path, content, sync=self._sync)
            )

    def _extra(self) -> list[tuple[str, bytes, Entry]]:
        try:
            return self._extra_lines()
        except Exception:
            # This thread must not end: every caller waits for it.
            with suppress(Exception):
                _log.exception("dropped lines cannot be reported in the logs")
            return []

    def _append(self, path: str, lines: list[bytes], entries: list[Entry]) -> None:
        data = b"".join(lines)
        self._settle(
            path,
            entries,
            self._attempt(path, self._streams.append, path, data, lines=len(lines), sync=self._sync),
        )

    @staticmethod
    def _attempt(path: str, act: Callable[..., None], *args: Any, **options: Any) -> LogWriteError | None:
        try:
            act(*args, **options)
        except OSError as error:
            return write_error(error, path)
        except Exception as error:
            # Every handle must settle, whatever went wrong.
            return LogWriteError(errno.EIO, f"the log writer failed: {error!r}", path)
        return None

    def _settle(self, path: str, entries: list[Entry], error: LogWriteError | None) -> None:
        with suppress(Exception):
            # A handler of Python's logging may raise: this thread must not end.
            self._report(path, len(entries), error)
        with self._lock:
            for entry in entries:
                entry.finish(error)
            awaited, self._awaited = self._awaited, {}
            self.settled.notify_all()
        for loop, futures in awaited.items():
            # A loop that was closed meanwhile has no waiters.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_results, futures)


def write_error(error: OSError, path: str) -> LogWriteError:
    """Return the error that a caller of the logger sees."""
    return LogWriteError(error.errno, error.strerror or str(error), error.filename or path)


def _set_results(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_writers: weakref.WeakSet[GroupWriter] = weakref.WeakSet()


def _start_fresh_after_fork() -> None:
    """The waiting lines are the parent's to write, and the writer thread does not exist in the child."""
    for writer in list(_writers):
        writer._start_fresh()


def _close_all() -> None:
    for writer in list(_writers):
        try:
            writer.close(_EXIT_SECONDS)
        except TimeoutError as error:
            _log.error("at exit: %s; these lines are lost", error)


def _flush_at_exit() -> None:
    """Register for the exit of a multiprocessing child, which skips Python's own exit handlers."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None and os.getpid() not in _registered:
        from multiprocessing.util import Finalize

        _registered.add(os.getpid())
        Finalize(None, _close_all, exitpriority=100)


_registered: set[int] = set()
os.register_at_fork(after_in_child=_start_fresh_after_fork)
atexit.register(_close_all)
