"""Close off what a crash left at the end of a log, so that the next line starts on a fresh line.

A writer that died in the middle of a line leaves a fragment; a machine that lost power may leave zero bytes. The
fragment is moved to ``<file>.torn``, which is synced before the log is cut: no byte is ever thrown away.
"""

from __future__ import annotations

import os
from contextlib import suppress

import orjson

from replaylab.logging.atomic import sync_folder
from replaylab.logging.disk import Disk

__all__ = ["close_tail"]

_CHUNK = 1 << 16
# Records are some hundred bytes; a longer fragment is never one whole record that only lacks its newline.
_WHOLE_RECORD = 1 << 20


def close_tail(fd: int, path: str, disk: Disk) -> int:
    """Make the open file end with a newline, and return its size. The caller holds the exclusive lock.

    A last line that is a whole JSON object and only lacks its newline is kept and gets one. Anything else after
    the last newline is appended to ``<path>.torn`` and cut off. Raises OSError.
    """
    size = os.fstat(fd).st_size
    start = _after_last_newline(fd, size)
    if start == size:
        return size
    if _is_whole_object(fd, start, size):
        _write_all(fd, b"\n", disk)
        return size + 1
    torn = disk.open(f"{path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    before = os.fstat(torn).st_size
    try:
        place = start
        while place < size:
            piece = os.pread(fd, min(_CHUNK, size - place), place)
            if not piece:
                break
            _write_all(torn, piece, disk)
            place += len(piece)
        _write_all(torn, b"\n", disk)
        disk.fsync(torn)
        sync_folder(os.path.dirname(path), disk)  # noqa: PTH120 - a text, as the path is
    except BaseException:
        # It is tried again with the next line: half a fragment for each attempt would fill the disk that is full.
        with suppress(OSError):
            disk.truncate(torn, before)
        raise
    finally:
        os.close(torn)
    disk.truncate(fd, start)
    return start


def _after_last_newline(fd: int, size: int) -> int:
    end = size
    while end > 0:
        begin = max(0, end - _CHUNK)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _is_whole_object(fd: int, start: int, size: int) -> bool:
    if size - start > _WHOLE_RECORD:
        return False
    text = os.pread(fd, size - start, start)
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def _write_all(fd: int, data: bytes, disk: Disk) -> None:
    view = memoryview(data)
    while view:
        view = view[disk.write(fd, view) :]
