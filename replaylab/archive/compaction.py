"""Logs to zstd Parquet under ``archive/``: smaller by a factor of five to ten, and read by every loader as before."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
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

__all__ = [
    "PartWriter",
    "Written",
    "archived",
    "drop_superseded",
    "remove_part",
    "settle_finished",
    "settle_parts",
    "take_after",
]

_log = logging.getLogger("replaylab.archive")
_LEVEL = 9
_GROUP_ROWS = 100_000


@dataclass(frozen=True)
class Written:
    """A finished part: what it takes, and what the text of its lines took."""

    path: Path
    bytes: int
    source_bytes: int


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
        self._lines = self._blank = self._source_bytes = 0
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

    def add(self, loaded: Loaded, size: int) -> None:
        """Add rows and the account of the lines beside them: all are ``size`` bytes of text."""
        self._source_bytes += size
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

    def finish(self, source: Fingerprint, sha256: str) -> Written:
        """Put the part into its place, readable to whom its log is. Raises OSError, ValueError."""
        self._write_group()
        info = PartInfo(
            source=self._root.relative(self._live),
            source_bytes=self._source_bytes,
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
            take_after(file.fileno(), self._live.stat())
            os.fsync(file.fileno())
        self._check(info)
        path = self._place()
        pending_mark(path).touch()
        sync_folder(str(self._folder))
        self._temporary.replace(path)
        sync_folder(str(self._folder))
        return Written(path, path.stat().st_size, self._source_bytes)

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


def take_after(fd: int, model: os.stat_result) -> None:
    """Give an open file the owner, the group and the mode of another one, so that its users can use this one too."""
    with suppress(PermissionError):
        os.fchown(fd, model.st_uid, model.st_gid)
    os.fchmod(fd, stat.S_IMODE(model.st_mode))


def drop_superseded(root: DataRoot, live: Path, fd: int) -> None:
    """Remove parts of lines that the open live file still holds: an earlier clean-up died before it removed those."""
    for path in parts_of(root, live):
        try:
            # Only a part with a mark can be in question: one that is damaged without it is none of our business.
            if pending_mark(path).exists() and is_superseded(path, part_info(path), fd):
                remove_part(path)
        except LogReadError as error:
            _log.warning("%s", error)


def remove_part(path: Path) -> None:
    """Remove a part and what is said of it."""
    path.unlink()
    pending_mark(path).unlink(missing_ok=True)


def settle_parts(paths: Iterable[Path]) -> None:
    """Say that the rows of parts are no longer in their log."""
    for path in paths:
        pending_mark(path).unlink(missing_ok=True)
        sync_folder(str(path.parent))


def settle_finished(root: DataRoot) -> list[tuple[Path, str]]:
    """Settle parts whose lines a clean-up removed before it died; return those that cannot be judged, and why."""
    problems = []
    for mark in root.archive_dir.glob("**/*.parquet.pending"):
        part = mark.with_suffix("")
        try:
            if not part.exists() or not _is_in_its_log(root, part):
                settle_parts([part])
        except OSError as error:
            problems.append((part, str(error)))
    return problems


def _is_in_its_log(root: DataRoot, part: Path) -> bool:
    info = part_info(part)
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

    Of a part that cannot be read only path and bytes are known.
    """
    place = DataRoot(root)
    rows: list[tuple[object, ...]] = []
    for path in sorted(place.archive_dir.glob("**/day-*.parquet")):
        size = path.stat().st_size
        try:
            info = part_info(path)
        except LogReadError:
            rows.append((place.relative(path), None, None, None, size, None))
            continue
        said = (info.source, info.rows, info.source_bytes)
        rows.append((place.relative(path), *said, size, info.source_bytes / size))
    columns = ("path", pl.String()), ("source", pl.String()), ("rows", pl.Int64())
    sizes = ("source_bytes", pl.Int64()), ("bytes", pl.Int64()), ("ratio", pl.Float64())
    return pl.DataFrame(rows, schema=pl.Schema([*columns, *sizes]), orient="row")
