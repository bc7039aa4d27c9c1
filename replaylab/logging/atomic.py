"""Overwrite a file so that a reader, and a crash, see the old content or the new one, never a mixture."""

from __future__ import annotations

import itertools
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from replaylab.logging.disk import Disk

__all__ = ["remove_leftovers", "sync_folder", "write_atomic"]

_counter = itertools.count()
_DISK = Disk()
# No writer needs longer than this from making its temporary file to renaming it.
_LEFT_OVER_SECONDS = 600.0


def write_atomic(path: str | os.PathLike[str], data: bytes, *, sync: bool = True, disk: Disk = _DISK) -> None:
    """Overwrite ``path`` with ``data``: a temporary file in the same folder, fsync, rename.

    >>> write_atomic("system/risk_snapshot.json", b"{}")  # doctest: +SKIP

    With ``sync=False`` the content survives the death of the process, not that of the machine. Folders that are
    missing are made. Raises OSError, and then ``path`` is what it was.
    """
    target = os.fspath(path)
    folder, name = os.path.split(target)
    # Unique among threads and processes; hidden, and of no suffix that a loader looks for.
    temporary = os.path.join(  # noqa: PTH118 - snapshots are written often, and a Path costs more than the join
        folder, f".{name}.{os.getpid()}.{threading.get_ident()}.{next(_counter)}.tmp"
    )
    fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[disk.write(fd, view) :]
            if sync:
                disk.fsync(fd)
        finally:
            os.close(fd)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(folder or ".", disk)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files of ``path`` that writers left behind who were killed more than ten minutes ago."""
    target = Path(path)
    oldest = time.time() - _LEFT_OVER_SECONDS
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        # Somebody else may be at it too.
        with suppress(FileNotFoundError):
            if leftover.stat().st_mtime < oldest:
                leftover.unlink()


def sync_folder(folder: str, disk: Disk = _DISK) -> None:
    """Make the names in ``folder`` survive the death of the machine."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.fsync(fd)
    finally:
        os.close(fd)
