"""A disk that fails on request, behind the logger's seam."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from replaylab.fsio import Disk


class FaultyDisk(Disk):
    """Set ``write_error``, ``fsync_error`` or ``open_error`` to an errno; ``short`` to the most bytes a write takes.

    ``torn`` makes the next failing write leave that many bytes first, and ``no_truncate`` makes taking them back
    fail. ``gate`` stalls every write until it is set.
    """

    def __init__(self) -> None:
        self.write_error = 0
        self.fsync_error = 0
        self.open_error = 0
        self.short = 0
        self.torn = 0
        self.no_truncate = False
        self.gate: threading.Event | None = None
        self.writes = 0
        self.synced: list[str] = []

    def write(self, fd: int, data: bytes) -> int:
        if self.gate is not None:
            self.gate.wait()
        self.writes += 1
        if self.torn:
            taken, self.torn = self.torn, 0
            return os.write(fd, data[:taken])
        if self.write_error:
            raise OSError(self.write_error, os.strerror(self.write_error))
        return os.write(fd, data[: self.short] if self.short else data)

    def fsync(self, fd: int) -> None:
        if self.fsync_error:
            raise OSError(self.fsync_error, os.strerror(self.fsync_error))
        link = Path(f"/proc/self/fd/{fd}")
        self.synced.append(str(link.readlink()) if link.is_symlink() else str(fd))
        os.fsync(fd)

    def truncate(self, fd: int, length: int) -> None:
        if self.no_truncate:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(fd, length)

    def open(self, path: str, flags: int, opened: list[int]) -> None:
        if self.open_error:
            raise OSError(self.open_error, os.strerror(self.open_error), path)
        super().open(path, flags, opened)
