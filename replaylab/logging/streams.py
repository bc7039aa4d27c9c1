"""Append whole lines to files that stay open, safely among threads and processes.

Each group of lines is one ``write`` on a descriptor in append mode, under an exclusive advisory lock on the file.
Under that lock the writer also sees whether the file ends where it left it; if not, it looks closer: the file may
have been replaced, removed, cut, or left with a fragment by a process that died.

A writer of more than 10,000 lines a second that is alone with its file keeps the lock from line to line, since taking
it costs as much as writing a line. A thread gives it up every 50 ms for a moment, or for good when lines get fewer.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from os import SEEK_CUR, SEEK_END, lseek
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import orjson

from replaylab.errors import RecordError
from replaylab.logging.atomic import remove_leftovers, sync_folder, write_atomic
from replaylab.logging.disk import Disk
from replaylab.logging.handles import DONE, Handle
from replaylab.logging.locks import is_current
from replaylab.logging.tails import close_tail
from replaylab.records import find_not_finite

__all__ = ["FileStreamManager", "write_atomic"]

# How long a file that somebody else moved away may still receive lines before it is noticed.
_CHECK_SECONDS = 0.05
# So many lines between two checks (10,000 a second) make it worth while to keep the lock from line to line. Others
# get their chance in a pause at every check; who uses it ends the keeping, for so long.
_BUSY_LINES = 500
_PAUSE_SECONDS = 0.0003
_SHARED_SECONDS = 1.0
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class _Stream:
    """One open log. ``end`` is where our last line ended; −1 makes the next append look closer, as does the time.

    A signal handler that logs interrupts its own thread in the middle of a line: the lock lets it in, and ``depth``
    tells it not to give up the file's lock, which the interrupted call still needs. Only while a fragment is dealt
    with (``mending``) its line is refused.
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
        # A logger that nobody closed must not leave its files open.
        _close(self)


class FileStreamManager:
    """One stream per file; at most ``max_open`` are open, the least recently used is closed first.

    >>> streams = FileStreamManager()
    >>> streams.append_line("data/events/BTCUSDT.jsonl", '{"a":1}')  # doctest: +SKIP

    Safe to use from many threads, and beside other processes that use it on the same files. Every method raises
    OSError when the disk refuses; the next call tries again with a freshly opened file.
    """

    def __init__(self, *, max_open: int = 256, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.max_open = max_open
        self._write = self.disk.write
        self._streams: dict[str, _Stream] = {}
        self._releaser: threading.Thread | None = None
        self._keeping = threading.RLock()
        self._overwritten: set[str | os.PathLike[str]] = set()
        self._retired_lines = 0
        self._retired_bytes = 0
        self._lock = threading.RLock()
        _managers.add(self)

    def append_line(self, path: str | os.PathLike[str], line: str | bytes) -> Handle:
        """Append one line and its newline; it survives the death of the process when this returns.

        The handle is done and may be awaited. Raises ValueError for a text that is more than one line.
        """
        data = line.encode() if isinstance(line, str) else line
        if b"\n" in data:
            raise ValueError("expected one line, found a line break in it")
        self.append(os.fspath(path), data + b"\n")
        return DONE

    def append(self, path: str, data: bytes, lines: int = 1, *, sync: bool = False) -> None:
        """Append whole lines, each with its newline, in one write; with ``sync`` they survive the machine's death.

        When it raises, none of the lines is in the file, as far as the disk allows to take them back.
        """
        # The way of every line: written for speed, all that is rare is behind a call.
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
                    stream.depth = depth
                    # Closing ends the lock too. Whatever was wrong, the next line starts with a new descriptor.
                    _close(stream)
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
            remove_leftovers(path)
        write_atomic(path, data, sync=sync, disk=self.disk)

    @property
    def open_files(self) -> int:
        """How many files are open now."""
        return sum(stream.fd >= 0 for stream in list(self._streams.values()))

    @property
    def written(self) -> tuple[int, int]:
        """How many lines and bytes were appended so far."""
        with self._lock:
            streams = list(self._streams.values())
            lines, size = self._retired_lines, self._retired_bytes
        return lines + sum(stream.lines for stream in streams), size + sum(stream.bytes for stream in streams)

    def close(self) -> None:
        """Close every file. Lines that were appended are safe already; a later append opens its file again."""
        # The stream's lock first, as where a signal handler logs to another file.
        for stream in list(self._streams.values()):
            with stream.lock, self._lock:
                if not stream.retired:
                    self._retire(stream)

    def _add(self, path: str) -> _Stream:
        with self._lock:
            stream = self._streams.get(path)
            if stream is None:
                while len(self._streams) >= self.max_open and self._evict():
                    pass
                stream = self._streams[path] = _Stream(path)
            return stream

    def _evict(self) -> bool:
        """Close the least recently used stream that no thread is writing to."""
        for stream in sorted(self._streams.values(), key=lambda stream: stream.check_at):
            if stream.lock.acquire(blocking=False):
                try:
                    if stream.depth:
                        continue  # This very thread is writing to it, and was interrupted.
                    self._retire(stream)
                finally:
                    stream.lock.release()
                return True
        return False

    def _retire(self, stream: _Stream) -> None:
        """Close a stream for good; under both locks. Its path gets a new one when it is next used."""
        stream.retired = True
        _close(stream)
        self._retired_lines += stream.lines
        self._retired_bytes += stream.bytes
        del self._streams[stream.path]

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
                end = close_tail(stream.fd, stream.path, self.disk)
            finally:
                stream.mending = False
        stream.end = end
        if now >= stream.check_at:
            stream.check_at = now + _CHECK_SECONDS
            if stream.is_busy() and may_keep and now >= stream.shared_until:
                self._keep(stream)

    def _keep(self, stream: _Stream) -> None:
        """Keep the lock beyond this line, once a thread is there that gives it up when no more lines come."""
        with self._keeping:
            if self._releaser is None:
                releaser = threading.Thread(target=self._give_way, name="replaylab-log-releaser", daemon=True)
                try:
                    releaser.start()
                except RuntimeError:
                    return  # This process is about to end.
                self._releaser = releaser
            stream.kept = True

    def _give_way(self) -> None:
        """Let others have the locks that are kept, for a moment at every check; ends when none is kept any more."""
        while True:
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
        """Unlock the file; lock it again only if lines still come and nobody else did anything to it."""
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
            pass  # Somebody else has it now.
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
            # If that fails too, the fragment stays until the next line finds it; why the line failed matters more.
            with suppress(OSError):
                self.disk.truncate(fd, start)
            raise
        finally:
            stream.mending = False

    def _open(self, stream: _Stream) -> int:
        # Whoever made the file may not have synced its name: with ``sync`` the first lines see to it.
        folder = Path(stream.path).parent
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        fd = self.disk.open(stream.path, _FLAGS)
        if stream.fd >= 0:
            # A signal handler that logs was quicker, and has locked what it opened.
            os.close(fd)
            return stream.fd
        stream.fd, stream.end = fd, -1
        stream.unsynced_names = [str(folder), *(str(parent.parent) for parent in missing)]
        return fd

    def _sync(self, stream: _Stream, length: int) -> None:
        try:
            self.disk.fsync(stream.fd)
            # A file needs its name on disk too, and those of the folders that were made for it.
            while stream.unsynced_names:
                sync_folder(stream.unsynced_names[-1], self.disk)
                stream.unsynced_names.pop()
        except OSError:
            # The kernel may have dropped the pages: these lines were never acknowledged, so take them back.
            flock(stream.fd, LOCK_EX)
            if lseek(stream.fd, 0, SEEK_END) == stream.end:
                self.disk.truncate(stream.fd, stream.end - length)
            raise


def _close(stream: _Stream) -> None:
    fd, stream.fd, stream.kept = stream.fd, -1, False
    if fd >= 0:
        # Every line was written before; there is nothing left that could fail.
        with suppress(OSError):
            os.close(fd)


_managers: weakref.WeakSet[FileStreamManager] = weakref.WeakSet()


def _forget_after_fork() -> None:
    """A child must not share descriptors with its parent: advisory locks do not keep the two apart."""
    for manager in list(_managers):
        streams = list(manager._streams.values())
        manager._streams = {}
        manager._lock = threading.RLock()
        manager._keeping = threading.RLock()
        manager._releaser = None
        for stream in streams:
            _close(stream)


os.register_at_fork(after_in_child=_forget_after_fork)
