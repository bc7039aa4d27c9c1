"""Append whole lines to files that stay open, safely among threads and processes.

Each group of lines is one ``write`` on a descriptor in append mode, under an exclusive advisory lock on the file.
Under that lock the writer also sees whether the file ends where it left it; if not, it looks closer: the file may
have been replaced, removed, cut, or left with a fragment by a process that died.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from os import SEEK_END, lseek
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import orjson

from replaylab.logging.atomic import sync_folder, write_atomic
from replaylab.logging.disk import Disk
from replaylab.logging.tails import close_tail

__all__ = ["FileStreamManager", "rotate_lock", "write_atomic"]

# How long a file that somebody else moved away may still receive lines before it is noticed.
_CHECK_SECONDS = 0.05
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class _Stream:
    """One open log. ``end`` is where our last line ended; −1 makes the next append look closer, as does the time."""

    __slots__ = (
        "bytes",
        "check_at",
        "end",
        "fd",
        "lines",
        "lock",
        "path",
        "retired",
        "unsynced_names",
        "used",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.end = -1
        self.check_at = 0.0
        self.retired = False
        self.lines = 0
        self.bytes = 0
        self.unsynced_names: list[str] = []
        self.lock = threading.Lock()


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
        self._retired_lines = 0
        self._retired_bytes = 0
        self._lock = threading.Lock()
        _managers.add(self)

    def append_line(self, path: str | os.PathLike[str], line: str | bytes) -> None:
        """Append one line and its newline; it survives the death of the process when this returns."""
        data = line.encode() if isinstance(line, str) else line
        self.append(os.fspath(path), data + b"\n")

    def append(self, path: str, data: bytes, lines: int = 1, *, sync: bool = False) -> None:
        """Append whole lines, each with its newline, in one write; with ``sync`` they survive the machine's death.

        When it raises, none of the lines is in the file, as far as the disk allows to take them back.
        """
        # The way of every line: written for speed, all that is rare is behind a call.
        while True:
            stream = self._streams.get(path) or self._add(path)
            with stream.lock:
                if stream.retired:
                    continue
                try:
                    fd = stream.fd if stream.fd >= 0 else self._open(stream)
                    flock(fd, LOCK_EX)
                    # Cheaper than fstat, and tells as much: a file that was cut, appended to or replaced (whoever
                    # replaces it empties the old one) does not end where we left it.
                    end = lseek(fd, 0, SEEK_END)
                    if end != stream.end or monotonic() >= stream.check_at:
                        fd, end = self._look_closer(stream, end)
                    size = len(data)
                    written = self._write(fd, data)
                    if written != size:
                        self._finish(fd, data, written, end)
                    stream.end = end + size
                    flock(fd, LOCK_UN)
                    if sync:
                        self._sync(stream, end, size)
                except BaseException:
                    # Closing ends the lock too. Whatever was wrong, the next line starts with a new descriptor.
                    _close(stream)
                    raise
                stream.lines += lines
                stream.bytes += size
                return

    def write_json(self, path: str | os.PathLike[str], value: Any, *, sync: bool = True) -> None:
        """Overwrite ``path`` with plain data as JSON at an indent of 2, atomically."""
        self.write_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2), sync=sync)

    def write_file(self, path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
        """Overwrite ``path`` with ``data``, atomically."""
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
        with self._lock:
            streams = list(self._streams.values())
            for stream in streams:
                with stream.lock:
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

    def _look_closer(self, stream: _Stream, end: int) -> tuple[int, int]:
        """Open the file again if its name leads elsewhere now, and close off a fragment at its end.

        Returns the locked descriptor and where the file ends.
        """
        while not _is_current(stream.fd, stream.path):
            _close(stream)
            flock(self._open(stream), LOCK_EX)
            end = lseek(stream.fd, 0, SEEK_END)
        if end != stream.end and end and os.pread(stream.fd, 1, end - 1) != b"\n":
            end = close_tail(stream.fd, stream.path, self.disk)
        stream.check_at = monotonic() + _CHECK_SECONDS
        return stream.fd, end

    def _finish(self, fd: int, data: bytes, written: int, end: int) -> None:
        """Write the rest after a short write, or take back what was written and raise the reason."""
        try:
            while written < len(data):
                more = self._write(fd, data[written:])
                if more == 0:
                    raise OSError(errno.EIO, "the disk took no more bytes")
                written += more
        except OSError:
            self.disk.truncate(fd, end)
            raise

    def _open(self, stream: _Stream) -> int:
        folder = Path(stream.path).parent
        names: list[str] = []
        if not folder.exists():
            missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            names = [str(parent.parent) for parent in missing]
        is_new = not Path(stream.path).exists()
        stream.fd = self.disk.open(stream.path, _FLAGS)
        stream.end = -1
        stream.unsynced_names = [str(folder), *names] if is_new else []
        return stream.fd

    def _sync(self, stream: _Stream, start: int, length: int) -> None:
        try:
            self.disk.fsync(stream.fd)
        except OSError:
            # The kernel may have dropped the pages: these lines were never acknowledged, so take them back.
            flock(stream.fd, LOCK_EX)
            if lseek(stream.fd, 0, SEEK_END) == start + length:
                self.disk.truncate(stream.fd, start)
            raise
        # A new file needs its name on disk too, and those of the folders that were made for it.
        while stream.unsynced_names:
            sync_folder(stream.unsynced_names[-1], self.disk)
            stream.unsynced_names.pop()


@contextmanager
def rotate_lock(path: str | os.PathLike[str], timeout: float = 10.0) -> Iterator[int]:
    """Keep every writer of ``path`` waiting while its content is rewritten; yields a descriptor for reading.

    >>> with rotate_lock("data/events/BTCUSDT.jsonl") as fd:     # doctest: +SKIP
    ...     write_atomic("data/events/BTCUSDT.jsonl", newest_lines(fd))

    Inside, replace ``path`` (``write_atomic``) or unlink it, or leave it; writers then go on in the new file and
    lose no line. Do not log to the same file inside: it would wait for itself. What was replaced is emptied on exit
    so that writers notice: copy what is to be kept. Raises FileNotFoundError, and TimeoutError when a writer holds
    the file for more than ``timeout`` seconds.
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
                    sleep(0.002)
            if not _is_current(fd, os.fspath(path)):
                continue
            try:
                yield fd
            finally:
                if os.fstat(fd).st_nlink == 0:
                    os.ftruncate(fd, 0)
            return
        finally:
            os.close(fd)


def _is_current(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        named = os.stat(path)  # noqa: PTH116 - on the way of every line
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return named.st_ino == ours.st_ino and named.st_dev == ours.st_dev


def _close(stream: _Stream) -> None:
    fd, stream.fd = stream.fd, -1
    if fd >= 0:
        os.close(fd)


_managers: weakref.WeakSet[FileStreamManager] = weakref.WeakSet()


def _forget_after_fork() -> None:
    """A child must not share descriptors with its parent: advisory locks do not keep the two apart."""
    for manager in list(_managers):
        streams = list(manager._streams.values())
        manager._streams = {}
        manager._lock = threading.Lock()
        for stream in streams:
            _close(stream)


os.register_at_fork(after_in_child=_forget_after_fork)
