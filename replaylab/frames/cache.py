"""Cache the rows of large logs as Parquet, so that a second load does not parse JSON.

A cache entry is a folder of segments, each the rows of a range of bytes, and ``entry.json``, which identifies the
file: inode, size, time of change, and digests of its edges. A file that only grew keeps its segments, and only
the new bytes are parsed. Whatever does not fit or cannot be read is parsed again; a cache that cannot be written is
left alone. What is not noticed is in ``docs/durability.md``.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.frames.files import Fingerprint, ReplacedError, begins_with, chunks_of, fingerprint
from replaylab.frames.jsonl import Loaded, Reject, reject_frame
from replaylab.frames.schema import LogSchema

# Below this a file is parsed faster than its entry is found, checked and opened.
MIN_BYTES = 4 << 20
_SLICE_ROWS = 2_000_000
# Read by all cores, each a group at a time; of small ones there is one for each until the end.
_GROUP_ROWS = 100_000
_VERSION = 3
_log = logging.getLogger("replaylab.frames")
# Segments that could not be read. Their names are used once, and the next entry is without them; where the cache
# cannot be written, there is none.
_damaged: set[Path] = set()


class Segment(msgspec.Struct, frozen=True):
    """The rows of the bytes up to ``end``, in the file ``name`` of the entry; counts are of this segment alone."""

    name: str
    end: int
    lines: int
    rows: int
    blank: int
    rejects: list[Reject]


class Entry(msgspec.Struct, frozen=True):
    """Which bytes of which file the segments hold."""

    version: int
    path: str
    columns: list[str]
    inode: int
    size: int
    mtime_ns: int
    covered: Fingerprint
    segments: list[Segment]


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_ENTRY = msgspec.json.Decoder(Entry)


def cached_chunks(
    file: BinaryIO, path: Path, schema: LogSchema, name: str, chunk_bytes: int, cache: Path | None
) -> Iterator[Loaded]:
    """Yield the rows of an open log in pieces of about ``chunk_bytes`` of text; ``name`` is what rejects call it."""
    if cache is None or os.fstat(file.fileno()).st_size < MIN_BYTES:
        yield from chunks_of(file, schema, name, (None, None), chunk_bytes)
        return
    key = os.fsencode(path.resolve()) + b"\0" + ",".join(schema.frame.names()).encode()
    folder = cache / "frames" / blake2b(key, digest_size=16).hexdigest()
    entry = _find_entry(folder, path, schema, file.fileno())
    done, line = 0, 1
    for segment in entry.segments if entry else ():
        yield from _segment(folder / segment.name, segment, schema, name)
        done, line = segment.end, line + segment.lines
    new = os.fstat(file.fileno()).st_size - done
    # A few new lines are not worth a segment; they are parsed again next time, until there are more of them.
    keep = new >= max(MIN_BYTES // 4, done // 16)
    yield from _parse(
        file,
        path,
        schema,
        name,
        chunk_bytes=chunk_bytes,
        folder=folder,
        entry=entry,
        done=done,
        line=line,
        keep=keep,
    )


def to_table(frame: pl.DataFrame) -> pa.Table:
    """Return a frame as an Arrow table of types that every Parquet reader knows."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _find_entry(folder: Path, path: Path, schema: LogSchema, fd: int) -> Entry | None:
    """Return the entry, if it is of this very file and its segments can be read."""
    try:
        entry = _ENTRY.decode((folder / "entry.json").read_bytes())
        state = os.fstat(fd)
        if (
            entry.version != _VERSION
            or entry.columns != schema.frame.names()
            or entry.inode != state.st_ino
            or not _unchanged(fd, state, entry)
            or not begins_with(fd, entry.covered)
        ):
            return None
        for segment in entry.segments:
            if folder / segment.name in _damaged:
                return None
            if pq.read_metadata(folder / segment.name).num_rows != segment.rows:
                return None
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError, ValueError) as error:
        _log.debug("cache of %s cannot be used: %s", path, error)
        return None
    return entry


def _unchanged(fd: int, state: os.stat_result, entry: Entry) -> bool:
    """Return whether the file is unchanged, or only grew after the end of a line."""
    if state.st_size == entry.size:
        return state.st_mtime_ns == entry.mtime_ns
    return state.st_size > entry.size and os.pread(fd, 1, entry.size - 1) == b"\n"


def _segment(path: Path, segment: Segment, schema: LogSchema, name: str) -> Iterator[Loaded]:
    """Yield the rows of a segment; raises ReplacedError where it is gone or damaged: the log has to be read again."""
    rejects = reject_frame([(name, *reject[1:]) for reject in segment.rejects])
    yield Loaded(schema.frame.to_frame(), rejects, segment.lines - segment.rows, segment.blank, 0)
    for start in range(0, segment.rows, _SLICE_ROWS):
        expected = min(_SLICE_ROWS, segment.rows - start)
        try:
            frame = pl.scan_parquet(path).slice(start, _SLICE_ROWS).collect()
        except FileNotFoundError:
            raise ReplacedError(f"{path}: another process renewed the cache; read the log again") from None
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise _damage(path, str(error)) from None
        if frame.height != expected or frame.schema != schema.frame:
            raise _damage(path, f"{frame.height} rows of {expected}")
        yield Loaded(frame, lines=frame.height, rows=frame.height)


def _damage(path: Path, reason: str) -> ReplacedError:
    _log.warning("the cache %s is damaged and not used: %s", path, reason)
    _damaged.add(path)
    return ReplacedError(f"{path}: the cache is damaged; read the log again")


def _parse(
    file: BinaryIO,
    path: Path,
    schema: LogSchema,
    name: str,
    *,
    chunk_bytes: int,
    folder: Path,
    entry: Entry | None,
    done: int,
    line: int,
    keep: bool,
) -> Iterator[Loaded]:
    """Yield the rows from byte ``done`` on, and keep them as a segment."""
    state = os.fstat(file.fileno())
    writer = _Writer(folder, schema) if keep else None
    try:
        for loaded in chunks_of(file, schema, name, (None, None), chunk_bytes, start=done, line=line):
            if writer is not None:
                writer.add(loaded)
            yield loaded
        # What was appended while reading is not in ``state``: then the next load makes the entry.
        if writer is not None and file.tell() == state.st_size:
            writer.finish(path, file.fileno(), state, entry)
    finally:
        if writer is not None:
            writer.discard()


class _Writer:
    """Write one segment; without a writable cache folder log that once (debug level) and write nothing."""

    def __init__(self, folder: Path, schema: LogSchema) -> None:
        self._folder = folder
        self._schema = schema
        self._temporary: Path | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._lines = self._rows = self._blank = 0
        self._rejects: list[Reject] = []
        texts = [column.name for column in schema.columns if column.kind in ("text", "choice", "day")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="segment-", suffix=".tmp", dir=folder)
            os.close(handle)
            self._temporary = Path(name)
            self._parquet = pq.ParquetWriter(
                name,
                to_table(schema.frame.to_frame()).schema,
                # Twice the size of lz4, and read in half the time; it is still half of the text.
                compression="none",
                use_dictionary=texts,
                write_statistics=False,
            )
        except OSError as error:
            self._give_up(error)

    def add(self, loaded: Loaded) -> None:
        self._lines += loaded.lines
        self._rows += loaded.rows
        self._blank += loaded.blank
        self._rejects += loaded.rejects.rows()
        if self._parquet is not None:
            try:
                self._parquet.write_table(to_table(loaded.frame), row_group_size=_GROUP_ROWS)
            except OSError as error:
                self._give_up(error)

    def finish(self, path: Path, fd: int, state: os.stat_result, entry: Entry | None) -> None:
        """Put the segment into the entry, in the place of an entry that was not usable."""
        if self._parquet is None or self._temporary is None:
            return
        try:
            self._parquet.close()
            self._parquet = None
            # Or the machine could die and leave zeros in the place of rows, with an entry that vouches for them.
            with self._temporary.open("rb") as segment_file:
                os.fsync(segment_file.fileno())
            name = self._temporary.with_suffix(".parquet").name
            self._temporary.replace(self._folder / name)
            segment = Segment(name, state.st_size, self._lines, self._rows, self._blank, self._rejects)
            new = Entry(
                version=_VERSION,
                path=str(path),
                columns=self._schema.frame.names(),
                inode=state.st_ino,
                size=state.st_size,
                mtime_ns=state.st_mtime_ns,
                covered=fingerprint(fd, state.st_size),
                segments=[*(entry.segments if entry else ()), segment],
            )
            draft = self._temporary.with_suffix(".json")
            draft.write_bytes(msgspec.json.encode(new))
            draft.replace(self._folder / "entry.json")
            kept = {"entry.json", *(segment.name for segment in new.segments)}
            for old in self._folder.iterdir():
                if old.suffix == ".parquet" and old.name not in kept:
                    old.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def discard(self) -> None:
        """Remove what was not finished."""
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def _give_up(self, error: OSError) -> None:
        _log.debug("cache folder %s cannot be written: %s", self._folder, error)
        self.discard()
