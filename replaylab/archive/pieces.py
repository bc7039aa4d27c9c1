"""Reads a log of state events by the age of its lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.frames.decode import decode_block
from replaylab.frames.lines import Block, blocks
from replaylab.frames.loaded import Loaded
from replaylab.frames.logs import EVENTS

__all__ = ["Int64s", "LineTimes", "Piece", "last_line_end", "old_lines", "pieces"]

_TAIL = 1 << 20
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A block with the time of each of its lines, and where they start and end in it."""

    block: Block
    loaded: Loaded
    times: Int64s
    starts: Int64s
    ends: Int64s


class LineTimes:
    """Dates the lines of one log, in their order: a line without a time of its own has that of the line before it.

    Lines before the first row of the first load have the time of that row; ``undated`` is for lines of loads before
    any row.
    """

    def __init__(self, undated: int) -> None:
        self._last = undated
        self._is_first = True

    def of(self, frame: pl.DataFrame, lines: Int64s) -> Int64s:
        """Return the times of the given line numbers of the next load, of which ``frame`` are the rows."""
        stamps = frame["timestamp"].to_physical().to_numpy()
        before = int(stamps[0]) if self._is_first and len(stamps) else self._last
        self._is_first = False
        if len(stamps):
            self._last = int(stamps[-1])
        places = np.searchsorted(frame["line"].to_numpy(), lines, side="right")
        return np.concatenate([np.array([before], np.int64), stamps])[places]


def pieces(file: BinaryIO, size: int, name: str) -> Iterator[Piece]:
    """Yield the first ``size`` bytes of an open log, which are whole lines."""
    # What cannot be dated at all is as old as the last change of the file.
    times = LineTimes(os.fstat(file.fileno()).st_mtime_ns)
    for block in blocks(file, end=size):
        loaded = decode_block(EVENTS, block, name)
        text = np.frombuffer(block.data, np.uint8)
        ends = np.flatnonzero(text == ord("\n")).astype(np.int64) + 1
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        lines = np.arange(block.line, block.line + len(ends), dtype=np.int64)
        yield Piece(block, loaded, times.of(loaded.frame, lines), starts, ends)


def old_lines(path: Path, cutoff_ns: int) -> tuple[bool, bool]:
    """Tell whether some, and whether all lines of a log are older than ``cutoff_ns``."""
    some, whole = False, True
    with path.open("rb") as file:
        size = last_line_end(file.fileno())
        for piece in pieces(file, size, path.name):
            old = piece.times < cutoff_ns
            some = some or bool(old.any())
            whole = whole and bool(old.all())
            if some and not whole:
                break
        return some, some and whole and size == os.fstat(file.fileno()).st_size


def last_line_end(fd: int) -> int:
    """Return how much of an open file consists of whole lines."""
    size = os.fstat(fd).st_size
    end = size
    while end > 0:
        start = max(0, end - _TAIL)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
