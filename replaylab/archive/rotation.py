"""Moves old lines out of ``events/<symbol>.jsonl`` while writers go on.

The old lines are summarised (and archived) from the part of the file that exists when the rotation begins, without any
lock. Then, under the writers' own lock, what is to be kept and what came meanwhile become the new file in one rename.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.archive.compaction import take_after
from replaylab.archive.leaving import Leaving
from replaylab.archive.pieces import Piece, last_line_end, pieces
from replaylab.frames.loaded import Loaded
from replaylab.frames.logs import EVENTS
from replaylab.logging import rotate_lock
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key

__all__ = ["rotate_events"]

_COPY = 1 << 20
Flags = npt.NDArray[np.bool_]


def rotate_events(root: DataRoot, symbol: str, cutoff_ns: int, *, archive: bool) -> bool:
    """Move the lines of a symbol that are older than ``cutoff_ns`` out of its log; return whether that was all of it.

    They are summarised first, by UTC day, and with ``archive`` compacted to Parquet. A line that cannot be read moves
    with the line before it. When anything fails, the log is as it was. Raises OSError, ValueError and RetentionError.
    """
    path = root.events(symbol)
    name = root.relative(path)
    with path.open("rb") as file, ExitStack() as cleanup:
        fd = file.fileno()
        size = last_line_end(fd)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        draft = Path(temporary)
        cleanup.callback(draft.unlink, missing_ok=True)
        kept = cleanup.enter_context(os.fdopen(handle, "wb"))
        leaving = cleanup.enter_context(Leaving(root, path, fd, size, EVENTS.frame, archive=archive))
        leaving.summarise(_old(pieces(file, size, name), cutoff_ns, kept))
        if kept.tell() == size:
            return False
        leaving.confirm(_old(pieces(file, size, name), cutoff_ns))
        return _replace(path, leaving, kept, draft)


def _old(
    found: Iterator[Piece], cutoff_ns: int, kept: BinaryIO | None = None
) -> Iterator[tuple[str, Loaded, int]]:
    """Yield the old lines by UTC day; the others are written to ``kept``."""
    for piece in found:
        old = piece.times < cutoff_ns
        if kept is not None:
            _copy_runs(piece, ~old, kept)
        numbers = piece.times // NS_PER_DAY
        for number in np.unique(numbers[old]).tolist():
            mine = old & (numbers == number)
            lines = (np.flatnonzero(mine) + piece.block.line).tolist()
            frame = piece.loaded.frame.filter(pl.col("line").is_in(lines))
            rejects = piece.loaded.rejects.filter(pl.col("line").is_in(lines))
            blank = len(lines) - frame.height - rejects.height
            size = int((piece.ends - piece.starts)[mine].sum())
            yield date_key(number * NS_PER_DAY), Loaded(frame, rejects, len(lines), blank, frame.height), size


def _replace(path: Path, leaving: Leaving, kept: BinaryIO, draft: Path) -> bool:
    """Under the writers' lock: add what came meanwhile, and make the draft the log; return whether nothing was left."""
    with rotate_lock(path) as current:
        leaving.check_unchanged(current, may_grow=True)
        place = leaving.content.size
        while data := os.pread(current, _COPY, place):
            kept.write(data)
            place += len(data)
        kept.flush()
        is_empty = kept.tell() == 0
        take_after(kept.fileno(), os.fstat(current))
        os.fsync(kept.fileno())
        leaving.gone = True
        if is_empty:
            path.unlink()
        else:
            draft.replace(path)
    return is_empty


def _copy_runs(piece: Piece, keep: Flags, out: BinaryIO) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    for first, after in edges.reshape(-1, 2).tolist():
        out.write(piece.block.data[int(piece.starts[first]) : int(piece.ends[after - 1])])
