"""Keep writers waiting while a log is rewritten, without losing a line of theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from time import monotonic, sleep

from replaylab.logging.atomic import sync_folder

__all__ = ["is_current", "rotate_lock"]

# Shorter than the pause that a busy writer makes for others.
_POLL_SECONDS = 0.0001


@contextmanager
def rotate_lock(path: str | os.PathLike[str], timeout: float = 10.0) -> Iterator[int]:
    """Keep every writer of ``path`` waiting while its content is rewritten; yields a descriptor for reading.

    >>> with rotate_lock("data/events/BTCUSDT.jsonl") as fd:     # doctest: +SKIP
    ...     write_atomic("data/events/BTCUSDT.jsonl", newest_lines(fd))

    Inside, replace ``path`` (``write_atomic``) or unlink it, or leave it; writers then go on in the new file and
    lose no line. Do not log to the same file inside: it would wait for itself. What was replaced is emptied on exit
    so that writers notice, once the folder is synced: copy what is to be kept. Raises FileNotFoundError, and
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
                        # A disk may keep the cut and forget the new name: after a power failure the old name would
                        # lead to an empty file.
                        sync_folder(str(Path(path).parent))
                    finally:
                        os.ftruncate(fd, 0)
            return
        finally:
            os.close(fd)


def is_current(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        named = os.stat(path)  # noqa: PTH116 - on the way of every line
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return named.st_ino == ours.st_ino and named.st_dev == ours.st_dev
