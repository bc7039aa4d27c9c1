"""Reads one log wherever its lines are: archived parts, cached rows, and the file that still grows.

The live file is opened before the archive is listed. Whoever archives writes the part first and removes the source
after it, so a line is always in one of the two, and the fingerprint of the source tells when it is in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from replaylab.frames.archived import PartInfo, live_parts, read_part
from replaylab.frames.cache import cached_chunks
from replaylab.frames.files import ReplacedError, Window, in_window, name_in
from replaylab.frames.loaded import Loaded, concat
from replaylab.frames.schema import LogSchema
from replaylab.paths import DataRoot

__all__ = ["CHUNK_BYTES", "load_log", "open_log", "scan_log"]

CHUNK_BYTES = 64 << 20
_TRIES = 5


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
    for _ in range(_TRIES - 1):
        try:
            return concat((loaded for _, loaded in scan()), schema.frame)
        except ReplacedError:
            continue
    return concat((loaded for _, loaded in scan()), schema.frame)


def open_log(path: Path) -> BinaryIO | None:
    """Return an open file, or None where there is none."""
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        return None


def _archived(
    root: DataRoot, live: Path, fd: int | None, schema: LogSchema, span: Window
) -> Iterator[tuple[Path, Loaded]]:
    for path, info in live_parts(root, live, fd):
        outside = _is_outside(info, span)
        for loaded in read_part(path, info, schema.archived):
            yield (
                path,
                replace(loaded, frame=schema.archived.to_frame()) if outside else in_window(loaded, span),
            )


def _is_outside(info: PartInfo, span: Window) -> bool:
    low, high = span
    if info.first_ns is None or info.last_ns is None:
        return True
    return (low is not None and info.last_ns < low) or (high is not None and info.first_ns >= high)
