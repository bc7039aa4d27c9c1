"""Moves old lines out of ``events/<symbol>.jsonl`` while writers go on.

The old lines are summarised (and archived) from the part of the file that exists when the rotation begins, without any
lock. Then, under the writers' own lock, what is to be kept and what came meanwhile become the new file in one rename.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.archive.compaction import PartWriter, drop_superseded, settle_parts
from replaylab.archive.summary import (
    Account,
    SymbolSummary,
    add_account,
    merge_symbols,
    settle_accounts,
    sha256_of,
    summarise,
)
from replaylab.errors import RetentionError
from replaylab.frames.decode import decode_block
from replaylab.frames.fingerprint import Fingerprint, begins_with, fingerprint
from replaylab.frames.lines import Block, blocks
from replaylab.frames.loaded import Loaded
from replaylab.frames.logs import EVENTS
from replaylab.logging import rotate_lock
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key

__all__ = ["Rotated", "old_lines", "rotate_events"]

_COPY = 1 << 20
Int64s = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass
class Rotated:
    """What a rotation did. ``removed`` when no line is left and the file is gone."""

    moved_lines: int = 0
    moved_bytes: int = 0
    archived_bytes: int = 0
    removed: bool = False
    days: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Piece:
    """A block with the time of each of its lines; a line without one has that of the line before."""

    block: Block
    loaded: Loaded
    times: Int64s
    starts: Int64s
    ends: Int64s


def old_lines(path: Path, cutoff_ns: int) -> tuple[bool, bool]:
    """Tell whether some, and whether all lines of a log are older than ``cutoff_ns``."""
    some, whole = False, True
    with path.open("rb") as file:
        size = _last_line_end(file.fileno())
        for piece in _pieces(file, size, path.name):
            old = piece.times < cutoff_ns
            some = some or bool(old.any())
            whole = whole and bool(old.all())
            if some and not whole:
                break
        return some, some and whole and size == os.fstat(file.fileno()).st_size


def rotate_events(root: DataRoot, symbol: str, cutoff_ns: int, *, archive: bool) -> Rotated:
    """Move the lines of a symbol that are older than ``cutoff_ns`` out of its log; raises OSError, ValueError.

    They are summarised first, by UTC day, and with ``archive`` compacted to Parquet. A line that cannot be read moves
    with the line before it. When anything fails, the log is as it was.
    """
    path = root.events(symbol)
    done = Rotated()
    with path.open("rb") as file, ExitStack() as cleanup:
        fd = file.fileno()
        size = _last_line_end(fd)
        content = fingerprint(fd, size)
        sha256 = sha256_of(fd, size)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        draft = Path(name)
        cleanup.callback(draft.unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as kept:
            days = _Days(root, path, archive=archive)
            cleanup.callback(days.discard)
            for piece in _pieces(file, size, root.relative(path)):
                old = piece.times < cutoff_ns
                _copy_runs(piece, ~old, kept)
                done.moved_lines += int(old.sum())
                done.moved_bytes += int((piece.ends - piece.starts)[old].sum())
                days.add(piece, old)
            if not done.moved_lines:
                return done
            done.archived_bytes = days.finish(fd, symbol, content, sha256)
            done.days = days.names
            _replace(path, fd, content, kept, draft, done)
        days.settle(symbol)
    return done


@dataclass
class _Day:
    """The moved lines of one UTC day."""

    part: PartWriter | None
    bytes: int = 0
    lines: int = 0
    rows: int = 0
    rejects: int = 0
    blank: int = 0
    symbols: dict[str, SymbolSummary] = field(default_factory=dict)

    def add(self, loaded: Loaded, size: int) -> None:
        self.bytes += size
        self.lines += loaded.lines
        self.rows += loaded.rows
        self.rejects += loaded.rejects.height
        self.blank += loaded.blank
        self.symbols = merge_symbols(self.symbols, summarise([loaded.frame]))
        if self.part is not None:
            self.part.add(loaded)


class _Days:
    """Summaries and parts of the moved lines, by UTC day."""

    def __init__(self, root: DataRoot, path: Path, *, archive: bool) -> None:
        self._root = root
        self._path = path
        self._archive = archive
        self._days: dict[str, _Day] = {}
        self._written: list[Path] = []

    @property
    def names(self) -> list[str]:
        return sorted(self._days)

    def add(self, piece: _Piece, old: Flags) -> None:
        """Take the old lines of a piece."""
        numbers = piece.times // NS_PER_DAY
        for number in np.unique(numbers[old]).tolist():
            self._take(date_key(number * NS_PER_DAY), piece, old & (numbers == number))

    def _take(self, name: str, piece: _Piece, mine: Flags) -> None:
        if name not in self._days:
            part = PartWriter(self._root, self._path, name, EVENTS.frame) if self._archive else None
            self._days[name] = _Day(part)
        lines = (np.flatnonzero(mine) + piece.block.line).tolist()
        frame = piece.loaded.frame.filter(pl.col("line").is_in(lines))
        rejects = piece.loaded.rejects.filter(pl.col("line").is_in(lines))
        blank = len(lines) - frame.height - rejects.height
        size = int((piece.ends - piece.starts)[mine].sum())
        self._days[name].add(Loaded(frame, rejects, len(lines), blank, frame.height), size)

    def finish(self, fd: int, symbol: str, content: Fingerprint, sha256: str) -> int:
        """Write summaries, then parts; return the bytes of the parts."""
        file = self._root.relative(self._path)
        for name, day in sorted(self._days.items()):
            account = Account(
                file=file,
                bytes=day.bytes,
                sha256=sha256,
                fingerprint=content,
                lines=day.lines,
                rows=day.rows,
                rejects=day.rejects,
                blank=day.blank,
                symbols=day.symbols,
            )
            add_account(self._root, f"events/{symbol}", name, account, fd)
        written = [
            day.part.finish(content, sha256, day.bytes)
            for _, day in sorted(self._days.items())
            if day.part is not None
        ]
        self._written = [part.path for part in written]
        if written:
            drop_superseded(self._root, self._path, fd, keep=self._written)
        return sum(part.bytes for part in written)

    def settle(self, symbol: str) -> None:
        """Say that the old lines are no longer in the log."""
        settle_parts(self._written)
        for name in self._days:
            settle_accounts(self._root, f"events/{symbol}", name)

    def discard(self) -> None:
        for day in self._days.values():
            if day.part is not None:
                day.part.discard()


def _replace(path: Path, fd: int, content: Fingerprint, kept: BinaryIO, draft: Path, done: Rotated) -> None:
    """Under the writers' lock: add what came meanwhile, and make the draft the log."""
    with rotate_lock(path) as current:
        if os.fstat(current).st_ino != os.fstat(fd).st_ino or not begins_with(current, content):
            raise RetentionError(f"{path}: changed while it was rotated; it is kept as it is")
        place = content.size
        while data := os.pread(current, _COPY, place):
            kept.write(data)
            place += len(data)
        kept.flush()
        os.fsync(kept.fileno())
        if kept.tell():
            draft.chmod(os.fstat(current).st_mode & 0o7777)
            draft.replace(path)
        else:
            path.unlink()
            done.removed = True


def _pieces(file: BinaryIO, size: int, name: str) -> Iterator[_Piece]:
    # What cannot be dated at all is as old as the last change of the file.
    last = os.fstat(file.fileno()).st_mtime_ns
    for block in blocks(file, end=size):
        loaded = decode_block(EVENTS, block, name)
        text = np.frombuffer(block.data, np.uint8)
        ends = np.flatnonzero(text == ord("\n")).astype(np.int64) + 1
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        places = loaded.frame["line"].to_numpy() - block.line
        stamps = loaded.frame["timestamp"].to_physical().to_numpy()
        known = np.full(len(ends), -1, np.int64)
        known[places] = np.arange(len(places))
        latest = np.maximum.accumulate(known)
        if len(places) and latest[0] < 0 and block.line == 1:
            last = int(stamps[0])
        times = np.where(latest >= 0, stamps[latest] if len(stamps) else last, last)
        if len(stamps):
            last = int(stamps[-1])
        yield _Piece(block, loaded, times.astype(np.int64), starts, ends)


def _copy_runs(piece: _Piece, keep: Flags, out: BinaryIO) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    for first, after in edges.reshape(-1, 2).tolist():
        out.write(piece.block.data[int(piece.starts[first]) : int(piece.ends[after - 1])])


def _last_line_end(fd: int) -> int:
    """Return how much of an open file consists of whole lines."""
    size = os.fstat(fd).st_size
    end = size
    while end > 0:
        start = max(0, end - _COPY)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
