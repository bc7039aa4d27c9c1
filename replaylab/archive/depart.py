"""Summarise, archive and then delete the old lines of a log, so that no line is lost or counted twice.

Lines are read without a lock: summaries (and archived Parquet parts) are written and read back first. Then, under the
writers' lock, the lines to keep and those appended meanwhile become the new file in one rename.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from replaylab.archive.listing import Piece, pieces, refuse_links
from replaylab.archive.summary import (
    Account,
    Tally,
    add_account,
    check_account,
    drop_accounts,
    settle_accounts,
)
from replaylab.errors import LogReadError, RetentionError
from replaylab.frames import (
    EVENTS,
    METADATA_KEY,
    Fingerprint,
    Loaded,
    PartInfo,
    Reject,
    archive_folder,
    begins_with,
    fingerprint,
    is_superseded,
    open_log,
    part_info,
    parts_of,
    pending_mark,
    to_table,
)
from replaylab.fsio import after_last_newline, make_folder, sha256_of, sync_folder
from replaylab.logging import rotate_lock
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key

# A log may hold lines of thousands of days, and every open part is an open file.
_OPEN_PARTS = 64
_log = logging.getLogger("replaylab.archive")
# A UTC day, lines of that day, and how many bytes of text they are.
Dated = Iterable[tuple[str, Loaded, int]]


class Leaving:
    """Lines that are about to leave a log. Set ``gone`` right before they do; what fails until then is taken back.

    >>> with Leaving(root, path, fd, size, EVENTS.frame, archive=True) as leaving:        # doctest: +SKIP
    ...     leaving.summarise(read())
    ...     leaving.confirm(read())
    ...     leaving.gone = True
    ...     path.unlink()

    Takes the first ``size`` bytes of the open file. Pending accounts and parts that a
    killed clean-up left of lines that the file still holds are deleted first: the lines are summarised again.
    Raises RetentionError where summaries or parts would be written through a symbolic link.
    """

    def __init__(
        self, root: DataRoot, path: Path, fd: int, size: int, schema: pl.Schema, *, archive: bool
    ) -> None:
        self.gone = False
        self.archived: list[Written] = []
        self.content = fingerprint(fd, size)
        self._sha256 = sha256_of(fd, size)
        self._root, self._path, self._fd, self._schema, self._archive = root, path, fd, schema, archive
        folder = archive_folder(root, path)
        self._log = folder.relative_to(root.archive_dir).as_posix()
        self._days: list[str] = []
        self._open: dict[str, PartWriter] = {}
        refuse_links(root, folder, root.summary_dir / self._log)

    def __enter__(self) -> Self:
        drop_superseded(self._root, self._path, self._fd)
        self._drop_accounts(lambda account: begins_with(self._fd, account.fingerprint))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.gone:
            self._take_back()
        elif error is None:
            settle_parts(part.path for part in self.archived)
            for day in self._days:
                settle_accounts(self._root, self._log, day)
        for part in self._open.values():
            part.discard()

    def summarise(self, lines: Dated) -> None:
        """Write the summaries of lines, by day."""
        for day, account in self._accounts(lines).items():
            self._days.append(day)
            add_account(self._root, self._log, day, account)

    def confirm(self, lines: Dated) -> None:
        """Read the lines again, and write their parts; raises ValueError unless the summaries on the disk are right."""
        again = self._accounts(self._archived(lines) if self._archive else lines)
        name = self._root.relative(self._path)
        if sorted(again) != sorted(self._days) or sha256_of(self._fd, self.content.size) != self._sha256:
            raise ValueError(f"{name}: changed while it was summarised; it is kept until the next clean-up")
        for day, account in again.items():
            check_account(self._root, self._log, day, account)
        while self._open:
            self._finish_oldest()
        self._sync_names()
        if self.archived:
            before = sum(part.source_bytes for part in self.archived)
            _log.info(
                "%s: archived, %d bytes are %d", name, before, sum(part.bytes for part in self.archived)
            )

    def _sync_names(self) -> None:
        """Sync every folder above the summaries and parts: a killed run may have made one and not synced it."""
        above: set[Path] = set()
        for folder in (self._root.summary_dir / self._log, *(part.path.parent for part in self.archived)):
            place = folder if folder.is_dir() else folder.parent
            while place != self._root.path:
                above.add(place := place.parent)
        for place in above:
            sync_folder(place)

    def check_unchanged(self, current: int, *, may_grow: bool) -> None:
        """Raise RetentionError unless the file that writers now have is the one whose lines were summarised."""
        now = os.fstat(current)
        is_same = os.path.samestat(now, os.fstat(self._fd)) and begins_with(current, self.content)
        if not is_same or (now.st_size > self.content.size and not may_grow):
            name = self._root.relative(self._path)
            raise RetentionError(
                f"{name}: changed while it was summarised; it is kept until the next clean-up"
            )

    def _accounts(self, lines: Dated) -> dict[str, Account]:
        tallies: dict[str, Tally] = {}
        for day, loaded, size in lines:
            tallies.setdefault(day, Tally()).add(loaded, size)
        name = self._root.relative(self._path)
        return {day: tallies[day].account(name, self.content, self._sha256) for day in sorted(tallies)}

    def _archived(self, lines: Dated) -> Dated:
        """Write the parts of lines while they are counted."""
        for day, loaded, size in lines:
            part = self._open.pop(day, None) or PartWriter(self._root, self._path, day, self._schema)
            self._open[day] = part
            part.add(loaded, size)
            if len(self._open) > _OPEN_PARTS:
                self._finish_oldest()
            yield day, loaded, size

    def _finish_oldest(self) -> None:
        day = next(iter(self._open))
        self.archived.append(self._open[day].finish(self.content, self._sha256))
        del self._open[day]

    def _take_back(self) -> None:
        try:
            for part in self.archived:
                remove_part(part.path)
            self._drop_accounts(lambda account: account.sha256 == self._sha256)
        except (OSError, ValueError) as error:
            # They stay pending, and the next clean-up of this log forgets them.
            _log.warning("%s: pending summaries of its lines could not be deleted: %s", self._path, error)

    def _drop_accounts(self, is_stale: Callable[[Account], bool]) -> None:
        # Lines of state events may be of any day.
        is_one_day = self._path.parent != self._root.events_dir
        drop_accounts(
            self._root, self._log, f"{self._path.stem}.json" if is_one_day else "day-*.json", is_stale
        )


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
        size = after_last_newline(fd, os.fstat(fd).st_size)
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
        make_folder(self._folder, sync=True)
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
        """Add rows and the line counts of a load of ``size`` bytes."""
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
        sync_folder(self._folder)
        self._temporary.replace(path)
        sync_folder(self._folder)
        return Written(path, path.stat().st_size, self._source_bytes)

    def discard(self) -> None:
        """Remove what was written, unless it was finished."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _check(self, info: PartInfo) -> None:
        if part_info(self._temporary) != info:
            raise ValueError(f"{self._temporary}: the metadata on disk differ from those written")
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
            # Only a part with a marker can be superseded; a damaged part without one is left to ``verify``.
            if pending_mark(path).exists() and is_superseded(path, part_info(path), fd):
                remove_part(path)
        except LogReadError as error:
            _log.warning("%s", error)


def remove_part(path: Path) -> None:
    """Delete a part and its marker."""
    path.unlink()
    pending_mark(path).unlink(missing_ok=True)


def settle_parts(paths: Iterable[Path]) -> None:
    """Delete the markers of parts whose rows have left their log."""
    for path in paths:
        pending_mark(path).unlink(missing_ok=True)
        sync_folder(path.parent)


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
        known = (info.source, info.rows, info.source_bytes)
        rows.append((place.relative(path), *known, size, info.source_bytes / size))
    columns = ("path", pl.String()), ("source", pl.String()), ("rows", pl.Int64())
    sizes = ("source_bytes", pl.Int64()), ("bytes", pl.Int64()), ("ratio", pl.Float64())
    return pl.DataFrame(rows, schema=pl.Schema([*columns, *sizes]), orient="row")
