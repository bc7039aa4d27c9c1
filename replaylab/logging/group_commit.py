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
from _thread import LockType, allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

from replaylab.errors import LogWriteError
from replaylab.logging.files import (
    FileStreamManager,
    Handle,
    begin_exit,
    forget_dead_threads,
    fresh_error,
    is_exiting,
    is_last_thread,
    members,
    when_alone,
)

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

    __slots__ = ("_error", "_finished", "_writer")

    def __init__(self, writer: GroupWriter) -> None:
        self._writer = writer
        self._finished = False
        self._error: LogWriteError | None = None

    def result(self, timeout: float | None = None) -> None:
        if not self._finished:
            self._writer.wait_for(self, timeout)
        if self._error is not None:
            raise fresh_error(self._error)

    def done(self) -> bool:
        return self._finished

    def __await__(self) -> Generator[Any, None, None]:
        if not self._finished:
            from asyncio import get_running_loop

            future = get_running_loop().create_future()
            self._writer.add_waiter(self, future)
            if self._finished:
                self._writer.forget_waiters(self)
            else:
                yield from future
        self.result()

    def finish(self, error: LogWriteError | None) -> None:
        self._error = error
        self._finished = True


# A line or a new content: its path, its bytes, whether it is a content, and who receives the outcome. Without a path it
# is a mark, which is finished when everything that was queued before it is.
_Item = tuple[str, bytes, bool, Entry]
_Waiter: TypeAlias = "LockType | asyncio.Future[None]"
_FLUSH, _CLOSE, _ABANDON = b"flush", b"close", b"abandon"


class GroupWriter:
    """A bounded queue and the thread that empties it into files.

    ``size`` lines may wait. A caller that finds the queue full waits (``overflow="wait"``; inside an event loop at
    most 50 ms), or its line is dropped at once (``"drop"``); ``put`` returns None for a line that was refused.
    ``sync`` makes every group survive a crash of the machine; ``max_delay_s`` lets a group gather for that long.
    ``extra_lines`` may add lines to each group.

    A signal handler may interrupt a caller anywhere, log, flush, or raise. So what a caller changes is changed in one
    call of C (a ``SimpleQueue``, a ``deque``), and no lock is held that the thread needs to write.
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
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        # What the thread has taken from the queue: while it gathers, and while the disk has it.
        self._gathered = 0
        self._group: list[_Item] = []
        self._busy_since: float | None = None
        # The thread that writes has this token; None where none runs.
        self._token: object | None = None
        self._ident = 0
        self._starting = threading.RLock()
        self._refusing = False
        self._room: deque[LockType] = deque()
        self._waiters: dict[_Pending, deque[_Waiter]] = {}

    @property
    def waiting(self) -> int:
        """Number of lines in the queue."""
        return self._queue.qsize() + self._gathered

    @property
    def busy_seconds(self) -> float:
        """Seconds since the disk got its present group; 0 when it has none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def put(self, path: str, data: bytes, *, overwrite: bool = False) -> Handle | None:
        """Queue whole lines for ``path``, or its new content; None when there was no room for them."""
        forget_dead_threads()
        handle = _Pending(self)
        if self._queue.qsize() + self._gathered >= self.size and not self._wait_for_room():
            return None
        self._queue.put((path, data, overwrite, handle))
        if self._token is None:
            self._start()
        return handle

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything queued before this call is written, or has failed; raises TimeoutError."""
        self._pass(_FLUSH, timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write everything that waits and end the thread; a later ``put`` starts another."""
        self._pass(_CLOSE, timeout)

    def abandon(self) -> None:
        """Have the thread write what waits, close the files and end; waits for nothing: the garbage collector calls."""
        if self._token is not None:
            self._queue.put(("", _ABANDON, False, _Pending(self)))

    def wait_for(self, handle: _Pending, timeout: float | None = None) -> None:
        """Wait until a handle is finished; raises TimeoutError."""
        forget_dead_threads()
        if self._token is None:
            # A signal handler raised in the call that would have started the thread, or no thread can run any more.
            self._start()
        waiter = allocate_lock()
        waiter.acquire()
        waiters = self.add_waiter(handle, waiter)
        if handle.done():
            self.forget_waiters(handle)
        elif is_last_thread():
            handle.finish(LogWriteError(errno.EINTR, "the interpreter ended while this line was written"))
        elif not waiter.acquire(
            timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        ):
            with suppress(ValueError):
                waiters.remove(waiter)
            raise TimeoutError(f"the line was not written within {timeout} s")

    def add_waiter(self, handle: _Pending, waiter: _Waiter) -> deque[_Waiter]:
        """Have a lock released, or a future set, when a handle is finished. Ask the handle afterwards: it may be."""
        waiters = self._waiters.setdefault(handle, deque())
        waiters.append(waiter)
        return waiters

    def forget_waiters(self, handle: _Pending) -> None:
        """Wake those who wait for a handle that is finished already, in place of the thread that finished it."""
        awaited: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        _release(self._waiters.pop(handle, None), awaited)
        _set_in_loops(awaited)

    def _pass(self, mark: bytes, timeout: float | None) -> None:
        forget_dead_threads()
        if self._token is None and self._queue.empty():
            # Another caller may be writing, where no thread can be started.
            with self._starting:
                return
        handle = _Pending(self)
        self._queue.put(("", mark, False, handle))
        try:
            self.wait_for(handle, timeout)
        except TimeoutError:
            waiting = self.waiting + len(self._group)
            raise TimeoutError(f"{waiting} lines still wait for the disk after {timeout} s") from None

    def _start(self) -> None:
        run, started = self._run, list[int]()
        with self._starting:
            if self._token is not None:
                return
            if not is_exiting():
                token = object()
                functions, arguments = (run,), ((token,),)
                self._token = token
                try:
                    # One call of C: no signal handler runs between the thread's start and the note of it.
                    started.extend(map(start_new_thread, functions, arguments))
                except BaseException as error:
                    if started:
                        raise
                    self._token = None
                    if not isinstance(error, RuntimeError):
                        raise
            if not started:
                # No thread can start: too many, or the interpreter is ending. The caller writes.
                self._write_waiting()
                return
        _flush_at_exit()

    def _write_waiting(self) -> None:
        while True:
            try:
                lines, marks = self._take(self._queue.get_nowait(), 0.0)
            except Empty:
                return
            self._write(lines)
            if any(mark[1] != _FLUSH for mark in marks):
                self._write([])
            self._finish([mark[3] for mark in marks], None)

    def _wait_for_room(self) -> bool:
        # The writer thread, logging from a handler of Python's logging, would wait for itself.
        if not self._waits or get_ident() == self._ident:
            return False
        if self._token is None:
            self._start()
        limit = _LOOP_WAIT_SECONDS if _in_event_loop() else None
        # After one wait in vain the next calls are refused at once until the disk moves again: a thousand calls must
        # not wait a thousand times.
        if limit is not None and self._refusing:
            return False
        deadline = None if limit is None else time.monotonic() + limit
        while self.waiting >= self.size:
            waiter = allocate_lock()
            waiter.acquire()
            self._room.append(waiter)
            if self.waiting >= self.size:
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if not waiter.acquire(timeout=left):
                    self._refusing = self.waiting >= self.size
                    return not self._refusing
        return True

    def _run(self, token: object) -> None:
        self._ident = get_ident()
        while True:
            lines, marks = self._take(self._queue.get(), self._max_delay)
            self._group, self._busy_since = lines, time.monotonic()
            self._gathered = 0
            self._refusing = False
            while self._room:
                self._room.popleft().release()
            kinds = {mark[1] for mark in marks}
            # This thread must not end: every caller waits for it. The lines have their outcome.
            with suppress(Exception):
                self._write(lines)
                if _CLOSE in kinds or _ABANDON in kinds:
                    # Without lines, this writes the extra ones.
                    self._write([])
            self._group, self._busy_since = [], None
            if _ABANDON in kinds:
                self._streams.close()
            if kinds <= {_FLUSH}:
                self._finish([mark[3] for mark in marks], None)
                continue
            # A caller puts first and looks for the token then: either it or this thread sees the other.
            self._token, self._ident = None, 0
            self._finish([mark[3] for mark in marks], None)
            # While the interpreter ends, callers write what comes now: this thread may be frozen at any moment.
            if self._queue.empty() or is_exiting():
                return
            with self._starting:
                if self._token is not None:
                    return
                self._token, self._ident = token, get_ident()

    def _take(self, item: _Item, max_delay: float) -> tuple[list[_Item], list[_Item]]:
        """Return lines and marks from ``item`` on; let more come for at most ``max_delay`` seconds."""
        lines: list[_Item] = []
        marks: list[_Item] = []
        deadline = time.monotonic() + max_delay if max_delay else 0.0
        while True:
            (lines if item[0] else marks).append(item)
            if get_ident() == self._ident:
                self._gathered = len(lines)
            if len(lines) >= self.size:
                break
            left = deadline - time.monotonic() if deadline and not marks else 0.0
            try:
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                break
        return lines, marks

    def _write(self, group: list[_Item]) -> None:
        try:
            self._write_group(group)
        except BaseException as error:
            # A signal handler raised where a caller writes. Others may wait for these lines.
            reason = LogWriteError(errno.EINTR, f"the call that wrote this line was interrupted: {error!r}")
            self._finish([item[3] for item in group if not cast(_Pending, item[3]).done()], reason)
            raise

    def _write_group(self, group: list[_Item]) -> None:
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
        self._finish(entries, error)

    def _finish(self, entries: Iterable[Entry], error: LogWriteError | None) -> None:
        """Give entries their outcome, and wake who waits for them."""
        awaited: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for entry in entries:
            entry.finish(error)
            if isinstance(entry, _Pending) and self._waiters:
                _release(self._waiters.pop(entry, None), awaited)
        _set_in_loops(awaited)


def _release(
    waiters: deque[_Waiter] | None, awaited: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]]
) -> None:
    """Release the locks among waiters, and collect the futures by loop."""
    while waiters:
        try:
            waiter = waiters.popleft()
        except IndexError:
            return  # the last one has just given up
        if isinstance(waiter, LockType):
            waiter.release()
        else:
            awaited.setdefault(waiter.get_loop(), []).append(waiter)


def _set_in_loops(awaited: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]]) -> None:
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
    reason = LogWriteError(
        errno.ECHILD, "this line is the parent's to write; a forked child cannot wait for it"
    )
    for writer in members(_writers):
        theirs, waiting = writer._queue, list(writer._group)
        while not theirs.empty():
            waiting.append(theirs.get_nowait())
        writer._start_fresh()
        for item in waiting:
            item[3].finish(reason)


def _forget_writer_threads() -> None:
    """What waits is written by the last thread of the interpreter, with the next line that it logs."""
    for writer in members(_writers):
        waiting = writer._queue
        writer._start_fresh()
        while not waiting.empty():
            writer._queue.put(waiting.get_nowait())


def _close_all() -> None:
    begin_exit()
    for writer in members(_writers):
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
when_alone(_forget_writer_threads)
atexit.register(_close_all)
