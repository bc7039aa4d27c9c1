"""Reads one log wherever its lines are: archived parts, cached rows, and the file that still grows.

The live file is opened before the archive is listed. Whoever archives writes the part first and removes the source
after it, so a line is always in one of the two, and the fingerprint of the source tells when it is in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from replaylab.errors import LogReadError
from replaylab.frames.archived import PartInfo, is_superseded, part_info, parts_of, read_part
from replaylab.frames.cache import cached_chunks
from replaylab.frames.files import ReplacedError, Window, in_window, name_in
from replaylab.frames.loaded import Loaded, concat, reject_frame
from replaylab.frames.schema import LogSchema
from replaylab.paths import DataRoot

__all__ = ["CHUNK_BYTES", "load_log", "open_log", "scan_log", "until_whole"]

CHUNK_BYTES = 64 << 20
_TRIES = 5
_Read = TypeVar("_Read")


def scan_log(
    root: DataRoot,
    live: Path,
    schema: LogSchema,
    span: Window = (None, None),
    chunk_bytes: int = CHUNK_BYTES,
    cache: Path | None = None,
) -> Iterator[tuple[Path, Loaded]]:
    """Yield every piece of a log with the file that it comes from; archived parts first.

    Raises LogReadError when the live file is replaced meanwhile: what is missing then is elsewhere.
    """
    file = open_log(live)
    if file is None:
        yield from _archived(root, live, None, schema, span)
        return
    with file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        yield from _archived(root, live, fd, schema, span)
        for loaded in cached_chunks(file, live, schema, name_in(root, live), chunk_bytes, cache):
            yield live, in_window(loaded, span)
        after = os.fstat(fd)
        if after.st_size < size or not after.st_nlink:
            raise ReplacedError(f"{live}: this log was replaced while it was read; read it again")


def load_log(scan: Callable[[], Iterable[tuple[Path, Loaded]]], schema: LogSchema) -> Loaded:
    """Return all pieces of ``scan()`` as one load; begins again when a file was replaced while it was read."""
    return until_whole(lambda: concat((loaded for _, loaded in scan()), schema.frame))


def until_whole(read: Callable[[], _Read]) -> _Read:
    """Return ``read()``; it begins again when a file was replaced while it was read."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except ReplacedError:
            continue
    return read()


def open_log(path: Path) -> BinaryIO | None:
    """Return an open file, or None where there is none."""
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        return None


def _archived(
    root: DataRoot, live: Path, fd: int | None, schema: LogSchema, span: Window
) -> Iterator[tuple[Path, Loaded]]:
    nothing = schema.archived.to_frame()
    for path in parts_of(root, live):
        try:
            info = part_info(path)
            if fd is not None and is_superseded(path, info, fd):
                continue
            if _is_outside(info, span):
                yield path, Loaded(nothing, reject_frame(info.rejects), info.lines, info.blank, info.rows)
                continue
            for loaded in read_part(path, info, schema.archived):
                yield path, in_window(loaded, span)
        except LogReadError as error:
            # How many lines a damaged part held is not known: it counts as one.
            yield path, Loaded(nothing, reject_frame([(name_in(root, path), 0, 0, str(error), "")]), lines=1)


def _is_outside(info: PartInfo, span: Window) -> bool:
    low, high = span
    if info.first_ns is None or info.last_ns is None:
        return True
    return (low is not None and info.last_ns < low) or (high is not None and info.first_ns >= high)
