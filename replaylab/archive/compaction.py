"""Logs to zstd Parquet under ``archive/``: smaller by a factor of five to ten, and read by every loader as before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl
import pyarrow.parquet as pq

from replaylab.errors import LogReadError
from replaylab.frames.archived import (
    METADATA_KEY,
    PartInfo,
    archive_folder,
    is_superseded,
    part_info,
    parts_of,
    pending_mark,
)
from replaylab.frames.cache import to_table
from replaylab.frames.fingerprint import Fingerprint
from replaylab.frames.loaded import Loaded, Reject
from replaylab.frames.sources import open_log
from replaylab.logging.atomic import sync_folder
from replaylab.paths import DataRoot

__all__ = ["PartWriter", "Written", "archived", "drop_superseded", "settle_finished", "settle_parts"]

_LEVEL = 9
_GROUP_ROWS = 100_000


@dataclass(frozen=True)
class Written:
    """A finished part: what it takes, and what the text of its lines took."""

    path: Path
    bytes: int
    source_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the part is than its lines were."""
        return self.source_bytes / self.bytes if self.bytes else 0.0


class PartWriter:
    """Writes one part: ``add`` its pieces, then ``finish``; without it nothing stays.

    The part appears under its name only when it is whole, synced, and was read back equal to what went in.
    """

    def __init__(self, root: DataRoot, live: Path, day: str, schema: pl.Schema) -> None:
        self._root = root
        self._live = live
        self._day = day
        self._schema = schema
        self._folder = archive_folder(root, live)
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=".tmp", dir=self._folder)
        os.close(handle)
        self._temporary = Path(name)
        self._waiting: list[pl.DataFrame] = []
        self._rows = 0
        self._hashes: list[int] = []
        self._lines = self._blank = 0
        self._rejects: list[Reject] = []
        self._first: int | None = None
        self._last: int | None = None
        texts = [field for field, kind in schema.items() if kind == pl.String() and field != "extra"]
        self._writer = pq.ParquetWriter(
            name,
            to_table(schema.to_frame()).schema,
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=texts,
        )

    def add(self, loaded: Loaded) -> None:
        """Add rows and the account of the lines beside them; ``loaded.lines`` counts all of them."""
        frame = loaded.frame.select(self._schema.names())
        if frame.height:
            self._waiting.append(frame)
            times = frame["timestamp"].to_physical()
            low, high = int(str(times.min())), int(str(times.max()))
            self._first = low if self._first is None else min(low, self._first)
            self._last = high if self._last is None else max(high, self._last)
        self._lines += loaded.lines
        self._blank += loaded.blank
        self._rejects += loaded.rejects.rows()
        if sum(frame.height for frame in self._waiting) >= _GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            frame = pl.concat(self._waiting)
            self._waiting = []
            self._writer.write_table(to_table(frame), row_group_size=frame.height)
            self._rows += frame.height
            self._hashes.append(_hash(frame))

    def finish(self, source: Fingerprint, sha256: str, source_bytes: int) -> Written:
        """Put the part into its place; ``source_bytes`` is what its lines took as text. Raises OSError, ValueError."""
        self._write_group()
        info = PartInfo(
            source=self._root.relative(self._live),
            source_bytes=source_bytes,
            source_sha256=sha256,
            fingerprint=source,
            lines=self._lines,
            rows=self._rows,
            blank=self._blank,
            rejects=self._rejects,
            first_ns=self._first,
            last_ns=self._last,
        )
        if info.lines != info.rows + info.blank + len(info.rejects):
            raise ValueError(
                f"{self._live}: {info.lines} lines, but rows, rejects and blank lines are others"
            )
        self._writer.add_key_value_metadata({METADATA_KEY: msgspec.json.encode(info)})
        self._writer.close()
        with self._temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self._check(info)
        path = self._place()
        pending_mark(path).touch()
        sync_folder(str(self._folder))
        self._temporary.replace(path)
        sync_folder(str(self._folder))
        return Written(path, path.stat().st_size, source_bytes)

    def discard(self) -> None:
        """Remove what was written, unless it was finished."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _check(self, info: PartInfo) -> None:
        if part_info(self._temporary) != info:
            raise ValueError(f"{self._temporary}: the part on disk does not say what was written")
        file = pq.ParquetFile(self._temporary)
        back = [
            _hash(pl.DataFrame(pl.from_arrow(file.read_row_group(group))))
            for group in range(file.num_row_groups)
        ]
        if back != self._hashes:
            raise ValueError(f"{self._temporary}: the rows on disk are not those that were written")

    def _place(self) -> Path:
        """Return the first free name of the day."""
        number = 1
        while True:
            suffix = "" if number == 1 else f".{number}"
            path = self._folder / f"day-{self._day}{suffix}.parquet"
            if not path.exists():
                return path
            number += 1


def drop_superseded(root: DataRoot, live: Path, fd: int, *, keep: Iterable[Path] = ()) -> None:
    """Remove parts of lines that the open live file still holds: an earlier clean-up died before it removed those."""
    kept = set(keep)
    for path in parts_of(root, live):
        if path not in kept and is_superseded(path, part_info(path), fd):
            path.unlink()
            pending_mark(path).unlink(missing_ok=True)


def settle_parts(paths: Iterable[Path]) -> None:
    """Say that the rows of parts are no longer in their log."""
    for path in paths:
        pending_mark(path).unlink(missing_ok=True)
        sync_folder(str(path.parent))


def settle_finished(root: DataRoot) -> None:
    """Settle parts whose lines a clean-up removed before it died."""
    for mark in root.archive_dir.glob("**/*.parquet.pending"):
        part = mark.with_suffix("")
        if not part.exists() or not _may_be_in_its_log(root, part):
            settle_parts([part])


def _may_be_in_its_log(root: DataRoot, part: Path) -> bool:
    try:
        info = part_info(part)
    except LogReadError:
        return True
    file = open_log(root.path / info.source)
    if file is None:
        return False
    with file:
        return is_superseded(part, info, file.fileno())


def _hash(frame: pl.DataFrame) -> int:
    """Return one number that differs when any value of a frame does."""
    return hash(tuple(frame.hash_rows(seed=0).to_list()))


def archived(root: DataRoot | str | os.PathLike[str]) -> pl.DataFrame:
    """Return every part of the archive: path, source, rows, source_bytes, bytes, and how many times smaller it is.

    >>> archived("data").select("path", "ratio")                              # doctest: +SKIP
    """
    place = DataRoot(root)
    rows = []
    for path in sorted(place.archive_dir.glob("**/day-*.parquet")):
        info, size = part_info(path), path.stat().st_size
        rows.append(
            (place.relative(path), info.source, info.rows, info.source_bytes, size, info.source_bytes / size)
        )
    columns = ("path", pl.String()), ("source", pl.String()), ("rows", pl.Int64())
    sizes = ("source_bytes", pl.Int64()), ("bytes", pl.Int64()), ("ratio", pl.Float64())
    return pl.DataFrame(rows, schema=pl.Schema([*columns, *sizes]), orient="row")
