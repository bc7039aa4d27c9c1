"""Append to logs and overwrite snapshots: one stream per file, whole lines alone, between processes too.

Every append is one ``write`` in append mode under an exclusive advisory lock (``flock``) on the log itself. A writer of
more than 10,000 lines a second that is alone with its file keeps that lock from line to line, which makes a line 2.6
times as fast (3.0 against 7.9 µs of processor time); a thread releases it every 50 ms for others. ``rotate_lock``
excludes all writers while a log is rewritten. What a crash left at the end of a log, a fragment or zero bytes, is moved
to ``<file>.torn`` before the next line is written: no byte is lost.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import weakref
from _thread import start_new_thread
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from os import SEEK_CUR, SEEK_END, lseek
from pathlib import Path
from sys import is_finalizing
from time import monotonic, sleep
from typing import Any, TypeVar

import orjson

from replaylab.errors import LogWriteError, RecordError
from replaylab.fsio import Disk, after_last_newline, remove_leftovers, sync_folder, write_all, write_atomic
from replaylab.records import find_not_finite

# For at most this long a busy writer appends to a file that another process has moved away.
_CHECK_SECONDS = 0.05
# From this many lines between two checks (10,000 a second) the lock is kept from line to line. At every check it is
# released for a pause; after another process has used one, the lock is not kept for _SHARED_SECONDS.
_BUSY_LINES = 500
_PAUSE_SECONDS = 0.0003
_SHARED_SECONDS = 1.0
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
# The other half of the descriptors that the system allows is the program's: its sockets and files.
_SHARE = 2
_LEAST_OPEN, _MOST_OPEN = 8, 1024
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_T = TypeVar("_T")


class Handle(ABC):
    """The fate of one line or snapshot: await it, or call ``result()``.

    >>> await logger.log_trade(record)                    # doctest: +SKIP
    >>> logger.log_trade(record).result(timeout=5)        # doctest: +SKIP

    Both return None when the line is as safe as the durability setting says, and raise LogWriteError when it could
    not be written.
    """

    __slots__ = ()

    @abstractmethod
    def result(self, timeout: float | None = None) -> None:
        """Wait until the line is written; raises LogWriteError, or TimeoutError after ``timeout`` seconds."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the line is written, or has failed."""

    @abstractmethod
    def __await__(self) -> Generator[Any, None, None]: ...


class DoneHandle(Handle):
    """A handle whose line was written, or failed, before the call returned."""

    __slots__ = ("_error",)

    def __init__(self, error: LogWriteError | None = None) -> None:
        self._error = error

    def result(self, timeout: float | None = None) -> None:
        if self._error is not None:
            raise fresh_error(self._error)

    def done(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()
        self.result()


# One for all lines that were written at once: a line costs no allocation.
DONE = DoneHandle()


def fresh_error(error: LogWriteError) -> LogWriteError:
    """Return a copy to raise: several callers may wait for one failure, and each adds its own traceback."""
    return LogWriteError(error.errno, error.strerror, error.filename)


class _Stream:
    """One open log. ``end`` is where our last line ended; −1 makes the next append check the end of the file.

    A signal handler that logs interrupts its own thread in the middle of a line: the RLock admits it, and ``depth``
    keeps it from releasing the file's lock, which the interrupted call still needs. Only while a fragment is moved
    or taken back (``mending``) its line is refused.
    """

    __slots__ = (
        "bytes",
        "check_at",
        "checked_lines",
        "depth",
        "end",
        "fd",
        "kept",
        "lines",
        "lock",
        "mending",
        "path",
        "retired",
        "shared_until",
        "unsynced_names",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.end = -1
        self.check_at = 0.0
        self.kept = False
        self.shared_until = 0.0
        self.retired = False
        self.lines = 0
        self.checked_lines = 0
        self.bytes = 0
        self.depth = 0
        self.mending = False
        self.unsynced_names: list[str] = []
        self.lock = threading.RLock()

    def is_busy(self) -> bool:
        """Whether so many lines came since this was asked last that keeping the lock pays."""
        busy = self.lines - self.checked_lines >= _BUSY_LINES
        self.checked_lines = self.lines
        return busy

    def __del__(self) -> None:
        # A logger that was not closed must not leave its files open. Without a descriptor its making was interrupted.
        with suppress(AttributeError):
            _close(self)


class FileStreamManager:
    """One stream per file; at most ``max_open`` are open, the least recently used is closed first.

    >>> streams = FileStreamManager()
    >>> streams.append_line("data/events/BTCUSDT.jsonl", '{"a":1}')  # doctest: +SKIP

    ``max_open=None`` is half of the files that the process may open (``ulimit -n``), from 8 to 1024. Where the system
    has no descriptor left (EMFILE), streams of this process are closed until there is one.
    Safe to use from many threads, and beside other processes that use it on the same files. Every method raises
    OSError when the disk refuses; the next call tries again with a freshly opened file.
    """

    def __init__(self, *, max_open: int | None = None, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.max_open = max_open
        self._write = self.disk.write
        self._streams: dict[str, _Stream] = {}
        self._releaser: object | None = None
        self._keeping = threading.RLock()
        self._overwritten: set[str | os.PathLike[str]] = set()
        self._retired_lines = 0
        self._retired_bytes = 0
        self._lock = threading.RLock()
        _managers.add(self)

    def append_line(self, path: str | os.PathLike[str], line: str | bytes) -> Handle:
        """Append one line and its newline; it survives a crash of the process when this returns.

        The handle is done and may be awaited. Raises ValueError for more than one line.
        """
        data = line.encode() if isinstance(line, str) else line
        if b"\n" in data:
            raise ValueError("expected one line, found a line break in it")
        self.append(os.fspath(path), data + b"\n")
        return DONE

    def append(self, path: str, data: bytes, lines: int = 1, *, sync: bool = False) -> None:
        """Append whole lines, each with its newline, in one write; with ``sync`` they survive a crash of the machine.

        When it raises, none of the lines is in the file, as far as the disk allows to take them back.
        """
        # Runs for every line: the common case is inline, everything rare is behind a call.
        if _exiting:
            forget_dead_threads()
        while True:
            stream = self._streams.get(path) or self._add(path)
            with stream.lock:
                if stream.mending:
                    raise OSError(
                        errno.EDEADLK, "a signal handler logs while a fragment is moved: log it later"
                    )
                taken, depth = not stream.kept, stream.depth
                try:
                    if taken:
                        if stream.retired:
                            continue
                        stream.depth = depth + 1
                        self._take(stream, lines == 1 and not sync)
                    size = len(data)
                    written = self._write(stream.fd, data)
                    if written != size:
                        self._finish(stream, data, written)
                    stream.end += size
                    if taken:
                        stream.depth = depth
                        if not depth and not stream.kept:
                            flock(stream.fd, LOCK_UN)
                    if sync:
                        self._sync(stream, size)
                    stream.lines += lines
                    stream.bytes += size
                    return
                except BaseException:
                    # Closing releases the lock too; the next line opens the file again. Inline: the handler of a second
                    # signal could raise at the start of a function.
                    stream.depth = depth
                    fd = stream.fd
                    stream.kept = False
                    if fd >= 0:
                        try:
                            stream.fd = -1
                            os.close(fd)
                        except OSError:
                            pass
                    raise

    def write_json(self, path: str | os.PathLike[str], value: Any, *, sync: bool = True) -> Handle:
        """Overwrite ``path`` with plain data as JSON at an indent of 2, atomically.

        The handle is done and may be awaited. Raises RecordError, naming the place, for NaN or infinity.
        """
        # The encoder would write null.
        if (bad := find_not_finite(value)) is not None:
            field, found = bad
            raise RecordError(f"{field or 'value'}: expected a finite number, found {found}", field=field)
        self.write_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2), sync=sync)
        return DONE

    def write_file(self, path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
        """Overwrite ``path`` with ``data``, atomically."""
        if path not in self._overwritten:
            self._overwritten.add(path)
            self.with_descriptor(lambda: remove_leftovers(path))
        self.with_descriptor(lambda: write_atomic(path, data, sync=sync, disk=self.disk))

    @property
    def open_files(self) -> int:
        """Number of files that are open now."""
        return sum(stream.fd >= 0 for stream in list(self._streams.values()))

    @property
    def written(self) -> tuple[int, int]:
        """Numbers of lines and bytes appended so far."""
        with self._lock:
            streams = list(self._streams.values())
            lines, size = self._retired_lines, self._retired_bytes
        return lines + sum(stream.lines for stream in streams), size + sum(stream.bytes for stream in streams)

    def close(self) -> None:
        """Close every file. Appended lines are written already; a later append opens its file again."""
        # The stream's lock first, as where a signal handler logs to another file.
        for stream in list(self._streams.values()):
            with stream.lock, self._lock:
                if not stream.retired:
                    self._retire(stream)

    def _add(self, path: str) -> _Stream:
        with self._lock:
            stream = self._streams.get(path)
            if stream is None:
                limit = self.max_open or _fair_share()
                while len(self._streams) >= limit and self._evict():
                    pass
                stream = self._streams[path] = _Stream(path)
            return stream

    def _evict(self, *, open_only: bool = False) -> bool:
        """Close the least recently used stream that no thread is writing to."""
        for stream in sorted(self._streams.values(), key=lambda stream: stream.check_at):
            if stream.fd < 0 and open_only:
                continue
            acquired: list[bool] = []
            try:
                # One call of C: no signal handler runs between the lock and the note of it.
                acquired.extend(map(stream.lock.acquire, (False,)))
                if (
                    acquired == [True] and not stream.depth
                ):  # else this thread was interrupted while writing to it
                    self._retire(stream)
                    return True
            finally:
                if acquired == [True]:
                    stream.lock.release()
        return False

    def with_descriptor(self, act: Callable[[], _T]) -> _T:
        """Do what needs a descriptor; where the system has none left, close streams until it works."""
        while True:
            try:
                return act()
            except OSError as error:
                if error.errno not in NO_DESCRIPTORS or not self._make_room():
                    raise

    def _make_room(self) -> bool:
        """Close one open stream of this process, of this manager first; return whether there was one."""
        for manager in (self, *members(_managers)):
            with manager._lock:
                if manager._evict(open_only=True):
                    return True
        return False

    def _retire(self, stream: _Stream) -> None:
        """Close a stream for good; under both locks. Its path gets a new one when it is next used."""
        # No signal handler runs between these two steps: a retired stream that kept its name would be tried for ever.
        stream.retired = True
        del self._streams[stream.path]
        _close(stream)
        self._retired_lines += stream.lines
        self._retired_bytes += stream.bytes

    def _take(self, stream: _Stream, may_keep: bool) -> None:
        """Lock the file of a stream, make sure that it is the one of that name, and note where it ends."""
        fd = stream.fd if stream.fd >= 0 else self._open(stream)
        flock(fd, LOCK_EX)
        end = lseek(fd, 0, SEEK_END)
        now = monotonic()
        if end != stream.end and stream.end >= 0:
            stream.shared_until = now + _SHARED_SECONDS
        while not is_current(stream.fd, stream.path):
            _close(stream)
            flock(self._open(stream), LOCK_EX)
            end = lseek(stream.fd, 0, SEEK_END)
        if end != stream.end and end and os.pread(stream.fd, 1, end - 1) != b"\n":
            stream.mending = True
            try:
                end = self.with_descriptor(lambda: _close_tail(stream.fd, stream.path, self.disk))
            finally:
                stream.mending = False
        stream.end = end
        if now >= stream.check_at:
            stream.check_at = now + _CHECK_SECONDS
            if stream.is_busy() and may_keep and now >= stream.shared_until:
                self._keep(stream)

    def _keep(self, stream: _Stream) -> None:
        """Keep the lock after this line, once a thread runs that releases it when lines become fewer."""
        with self._keeping:
            if self._releaser is None:
                if _exiting:
                    return
                run, token, started = self._give_way, object(), list[int]()
                functions, arguments = (run,), ((token,),)
                self._releaser = token
                try:
                    # One call of C: no signal handler runs between the thread's start and the note of it.
                    started.extend(map(start_new_thread, functions, arguments))
                except RuntimeError:
                    if not started:
                        return  # no thread can start
                    raise
                finally:
                    if not started:
                        self._releaser = None
            stream.kept = True

    def _give_way(self, token: object) -> None:
        """Release the kept locks for a pause at every check; end when none is kept any more."""
        while self._releaser is token:
            sleep(_CHECK_SECONDS)
            for stream in list(self._streams.values()):
                if stream.kept:
                    with stream.lock:
                        if stream.kept:
                            self._offer(stream)
            with self._keeping:
                if not any(stream.kept for stream in list(self._streams.values())):
                    self._releaser = None
                    return

    def _offer(self, stream: _Stream) -> None:
        """Unlock the file; lock it again only if lines still come and no other process has touched it."""
        stream.kept = False
        stream.check_at = monotonic()
        try:
            flock(stream.fd, LOCK_UN)
            if stream.is_busy():
                sleep(_PAUSE_SECONDS)
                flock(stream.fd, LOCK_EX | LOCK_NB)
                if lseek(stream.fd, 0, SEEK_END) == stream.end and is_current(stream.fd, stream.path):
                    stream.kept = True
                else:
                    flock(stream.fd, LOCK_UN)
        except BlockingIOError:
            pass  # another process has it now
        except OSError:
            _close(stream)

    def _finish(self, stream: _Stream, data: bytes, written: int) -> None:
        """Write the rest after a short write, or take back what was written and raise the reason."""
        fd, stream.mending = stream.fd, True
        start = lseek(fd, 0, SEEK_CUR) - written
        try:
            while written < len(data):
                more = self._write(fd, data[written:])
                if more == 0:
                    raise OSError(errno.EIO, "the disk took no more bytes")
                written += more
        except OSError:
            # If that fails too, the next append moves the fragment; the caller gets the first error.
            with suppress(OSError):
                self.disk.truncate(fd, start)
            raise
        finally:
            stream.mending = False

    def _open(self, stream: _Stream) -> int:
        # The file's name may not be synced yet, whichever process made it: with ``sync`` the first lines do that.
        folder = Path(stream.path).parent
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        names = [str(folder), *(str(parent.parent) for parent in missing)]
        opened: list[int] = []
        try:
            self.with_descriptor(lambda: self.disk.open(stream.path, _FLAGS, opened))
            if stream.fd < 0:
                stream.end, stream.unsynced_names = -1, names
                stream.fd = opened[0]
        finally:
            for fd in opened:
                if fd != stream.fd:
                    os.close(
                        fd
                    )  # a signal handler that logs has opened and locked it meanwhile, or it raised
        return stream.fd

    def _sync(self, stream: _Stream, length: int) -> None:
        try:
            self.disk.fsync(stream.fd)
            # The names of the file and of the folders made for it must reach the disk too.
            while stream.unsynced_names:
                name = stream.unsynced_names[-1]
                self.with_descriptor(lambda name=name: sync_folder(name, self.disk))  # type: ignore[misc]
                stream.unsynced_names.pop()
        except OSError:
            # The kernel may have dropped the pages. These lines were never acknowledged: take them back.
            flock(stream.fd, LOCK_EX)
            if lseek(stream.fd, 0, SEEK_END) == stream.end:
                self.disk.truncate(stream.fd, stream.end - length)
            raise


def _close(stream: _Stream) -> None:
    fd = stream.fd
    stream.kept = False
    if fd >= 0:
        # Every line is written already: a failing close loses nothing. No signal handler runs between the two steps.
        try:
            stream.fd = -1
            os.close(fd)
        except OSError:
            pass


def _fair_share() -> int:
    """Return how many logs may be open at once under the limit that the system has now."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_OPEN if limit < 0 else min(_MOST_OPEN, max(_LEAST_OPEN, limit // _SHARE))


def members(known: Iterable[_T]) -> list[_T]:
    """Return the members of a WeakSet, also while other threads add to it."""
    while True:
        with suppress(RuntimeError):
            return list(known)


_managers: weakref.WeakSet[FileStreamManager] = weakref.WeakSet()


def _forget_after_fork() -> None:
    """A child must not share descriptors with its parent: they would share the advisory locks too."""
    for manager in members(_managers):
        streams = list(manager._streams.values())
        manager._streams = {}
        manager._lock = threading.RLock()
        manager._keeping = threading.RLock()
        manager._releaser = None
        for stream in streams:
            _close(stream)


# The end of the interpreter. While exit handlers run, other threads do too, but a new one may never get to run: callers
# write themselves. Then every thread but the last is frozen where it is, perhaps with a lock: as in a forked child,
# locks and descriptors are made again before the last thread uses one (``__del__``, generators that are closed).
_exiting = False
_alone = False
_when_alone: list[Callable[[], None]] = []


def begin_exit() -> None:
    """Start no more threads."""
    global _exiting
    _exiting = True


def is_exiting() -> bool:
    """Whether the exit handlers of this process run, or have run."""
    return _exiting


def is_last_thread() -> bool:
    """Whether the interpreter has frozen all other threads."""
    return _alone


def when_alone(step: Callable[[], None]) -> None:
    """Have a step called before the last thread of an ending interpreter logs."""
    _when_alone.append(step)


def forget_dead_threads() -> None:
    """Free the last thread of an ending interpreter of what the others held; does nothing before."""
    global _alone
    if _exiting and not _alone and is_finalizing():
        _alone = True
        for step in _when_alone:
            step()


os.register_at_fork(after_in_child=_forget_after_fork)
when_alone(_forget_after_fork)


# Shorter than the pause in which a busy writer releases its lock.
_POLL_SECONDS = 0.0001


@contextmanager
def rotate_lock(path: str | os.PathLike[str], timeout: float = 10.0) -> Iterator[int]:
    """Exclude every writer of ``path`` while its content is rewritten; yields a descriptor for reading.

    >>> with rotate_lock("data/events/BTCUSDT.jsonl") as fd:     # doctest: +SKIP
    ...     write_atomic("data/events/BTCUSDT.jsonl", newest_lines(fd))

    Inside, replace ``path`` (``write_atomic``), unlink it, or leave it; writers then continue in the new file and lose
    no line. Do not log to the same file inside: it would wait for itself. The replaced file is truncated on exit, once
    the folder is synced, so that writers notice: copy what is to be kept. Raises FileNotFoundError, and
    TimeoutError when a writer holds the file for more than ``timeout`` seconds.
    """
    deadline = monotonic() + timeout
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            while True:
                try:
                    flock(fd, LOCK_EX | LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() >= deadline:
                        raise TimeoutError(
                            f"{os.fspath(path)}: a writer held this file for more than {timeout:g} s"
                        ) from None
                    sleep(_POLL_SECONDS)
            if not is_current(fd, os.fspath(path)):
                continue
            try:
                yield fd
            finally:
                if os.fstat(fd).st_nlink == 0:
                    try:
                        # Without this, a power failure could keep the truncation and lose the new name: the log
                        # would be empty.
                        sync_folder(str(Path(path).parent))
                    finally:
                        os.ftruncate(fd, 0)
            return
        finally:
            os.close(fd)


def is_current(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        named = os.stat(path)  # noqa: PTH116 - runs for every line
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return named.st_ino == ours.st_ino and named.st_dev == ours.st_dev


_CHUNK = 1 << 16
# Records are some hundred bytes; a longer fragment is never one whole record that only lacks its newline.
_WHOLE_RECORD = 1 << 20


def _close_tail(fd: int, path: str, disk: Disk) -> int:
    """Make the open file end with a newline, and return its size. The caller holds the exclusive lock.

    A last line that is a whole JSON object and only lacks its newline is kept and gets one. Anything else after
    the last newline is appended to ``<path>.torn``, synced, and cut off. Raises OSError.
    """
    size = os.fstat(fd).st_size
    start = after_last_newline(fd, size)
    if start == size:
        return size
    if _is_whole_object(fd, start, size):
        write_all(fd, b"\n", disk)
        return size + 1
    opened: list[int] = []
    try:
        disk.open(f"{path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, opened)
        _move(fd, start, size, opened[0], path, disk)
    finally:
        for torn in opened:
            os.close(torn)
    disk.truncate(fd, start)
    return start


def _move(fd: int, start: int, size: int, torn: int, path: str, disk: Disk) -> None:
    """Append what is between two offsets to another open file, and sync it."""
    before = os.fstat(torn).st_size
    try:
        place = start
        while place < size:
            piece = os.pread(fd, min(_CHUNK, size - place), place)
            if not piece:
                break
            write_all(torn, piece, disk)
            place += len(piece)
        write_all(torn, b"\n", disk)
        disk.fsync(torn)
        sync_folder(os.path.dirname(path), disk)  # noqa: PTH120 - both are strings
    except BaseException:
        # The next line tries again: a partial copy for each attempt would fill a disk that is full already.
        with suppress(OSError):
            disk.truncate(torn, before)
        raise


def _is_whole_object(fd: int, start: int, size: int) -> bool:
    if size - start > _WHOLE_RECORD:
        return False
    text = os.pread(fd, size - start, start)
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
