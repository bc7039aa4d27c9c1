"""The files of packed sessions: Arrow IPC with a column per array, a checksum over the file, limits for every index.

>>> tape, ref = open_tape(session, cache_dir=lab.config.cache_path)                          # doctest: +SKIP

A tape is derived data that a failing disk, an old kernel or a person may change, and compiled code does not check its
indices. So nothing of a file is used before its checksum and its ranges were checked; any doubt is a ValueError.

``<name>.arrow`` has one row: a binary value per array, and a JSON header in the metadata of the schema.
``<name>.sum`` has the checksum and the size of that file; it is written second: a kill between both
leaves a tape that is packed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from replaylab.compiled import compiled
from replaylab.fsio import atomic_path, write_atomic
from replaylab.sweep.tape import (
    DTYPES,
    KINDS,
    Array,
    PriceSource,
    SessionLike,
    Tape,
    TapeArrays,
    instruments_of,
    pack,
)
from replaylab.trading import ResolvedPrices

# Counts changes of what is packed.
_FORMAT = 4
# A cached tape that was not used for this long is deleted.
_KEPT_S = 30 * 86_400
_log = logging.getLogger("replaylab.sweep")
_HEADER = b"tape"
_FACTOR = 0x1E3779B97F4A7C15
# Files whose checksum and ranges this process has checked, by path: size, inode, times of change.
_checked: dict[str, tuple[int, ...]] = {}


class _Sum(msgspec.Struct):
    size: int
    checksum: int


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_SUM = msgspec.json.Decoder(_Sum)


@dataclass(frozen=True)
class TapeRef:
    """Names a tape: ``key`` is the digest of what it was packed from, ``path`` the file that holds it, if any."""

    key: str
    path: Path | None = None

    @property
    def book_path(self) -> Path:
        """The file of the book's levels."""
        assert self.path is not None
        return self.path.with_suffix(".book.arrow")


def open_tape(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Tape, TapeRef | None]:
    """Return the tape of a session and the reference of its file, None where there is no file.

    A session with ``path`` and ``digest`` is packed once: later calls map ``cache_dir/tapes/<name>.arrow`` into memory
    as long as the digest of its events, its initial state, its instruments and the price source are the same. An events
    frame is packed at every call, as everything is with ``cache_dir=None``. Raises what ``pack`` raises.
    """
    path, digest = getattr(session, "path", None), getattr(session, "digest", None)
    if cache_dir is None or not isinstance(digest, str) or not isinstance(path, (str, os.PathLike)):
        return pack(session, price_source), None
    source = price_source if isinstance(price_source, str) else sorted(price_source.items())
    about = [_FORMAT, digest, source, getattr(session, "initial_state", None), instruments_of(session)]
    key = hashlib.sha256(msgspec.json.encode(about, order="sorted")).hexdigest()
    # One file for each session and price source: a session that changed replaces its own.
    name = hashlib.sha256(repr((os.fspath(path), source)).encode()).hexdigest()[:20]
    ref = TapeRef(key, Path(cache_dir) / "tapes" / f"{name}.arrow")
    tape = read_tape(ref)
    if tape is None:
        tape = pack(session, price_source)
        try:
            _write(ref, tape)
        except OSError as error:
            _log.info("%s: the packed session cannot be cached: %s", ref.path, error)
            return tape, None
        # The mapped file in place of memory, and not both at once.
        del tape
        tape = read_tape(ref) or pack(session, price_source)
    return tape, ref


def read_tape(ref: TapeRef) -> Tape | None:
    """Return the tape of a reference, mapped into memory; None if a file is missing, damaged or of another key."""
    if ref.path is None:
        return None
    arrays: dict[str, Array] = {}
    paths = (ref.path, ref.book_path)
    try:
        checked = all(is_checked(path) for path in paths)
        for path in paths:
            encoded, some = read_arrays(path, DTYPES)
            header = _TAPE_HEADER.decode(encoded)
            if header.key != ref.key:
                return None
            arrays |= some
        prices = ResolvedPrices(header.sources, frozenset(header.books), header.chosen)
        tape = Tape(
            header.symbols,
            header.regimes,
            prices,
            header.instruments,
            header.n_events,
            header.unusable,
            TapeArrays(**arrays),
        )
        if not checked:
            if len(tape.symbols) != len(tape.arrays.symbol) or not 0 <= tape.n_events < 2**31:
                return None
            with_flow = "trade" in tape.sources
            check_ranges(tape.arrays, KINDS, tape.n_events, len(tape.regimes), with_flow=with_flow)
        for path in paths:
            # Written at most once a day: what is remembered of a checked file holds while its times do.
            if time.time() - path.stat().st_mtime > 86_400:
                os.utime(path)
                checked = False
            if not checked:
                set_checked(path)
        return tape
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        if not isinstance(error, FileNotFoundError):
            _log.info("%s: the packed session is made again: %s", ref.path, error)
        return None


class _Header(msgspec.Struct):
    key: str
    symbols: tuple[str, ...]
    regimes: tuple[str, ...]
    sources: dict[str, str]
    books: list[str]
    chosen: str | dict[str, str]
    instruments: dict[str, dict[str, Any]]
    n_events: int
    unusable: dict[str, int]


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_TAPE_HEADER = msgspec.json.Decoder(_Header)


def _write(ref: TapeRef, tape: Tape) -> None:
    """Write a tape; the levels of books have a file of their own. Raises OSError."""
    assert ref.path is not None
    prices = tape.prices
    header = _Header(
        ref.key,
        tape.symbols,
        tape.regimes,
        prices.sources,
        sorted(prices.books),
        prices.chosen,
        tape.instruments,
        tape.n_events,
        tape.unusable,
    )
    folder = ref.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink()
    arrays = tape.arrays._asdict()
    levels = {"book_levels": arrays.pop("book_levels")}
    for path, some in ((ref.book_path, levels), (ref.path, arrays)):
        write_arrays(path, msgspec.json.encode(header), some)


def write_arrays(path: Path, header: bytes, arrays: Mapping[str, Array]) -> None:
    """Write arrays with a JSON header; the file appears complete and synced, or not at all. Raises OSError."""
    columns = {}
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).view(np.uint8)
        ends = pa.py_buffer(np.array([0, len(data)], np.int64))
        columns[name] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data)])
    batch = pa.record_batch(columns).replace_schema_metadata({_HEADER: header})
    with atomic_path(path, sync=True) as part:
        with pa.OSFile(os.fspath(part), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        found = _sum_of(part)
    write_atomic(_sum_path(path), msgspec.json.encode(found), sync=True)


def read_arrays(path: Path, kinds: Mapping[str, Any]) -> tuple[bytes, dict[str, Array]]:
    """Return the header and the arrays (types ``kinds``) of a file, mapped into memory.

    Raises OSError where it cannot be read, ValueError where it is not as it was written.
    """
    if not is_checked(path):
        stored = _SUM.decode(_sum_path(path).read_bytes())
        if path.stat().st_size != stored.size or _sum_of(path) != stored:
            raise ValueError(f"{path}: its checksum is wrong")
    # Not closed here: the arrays keep the mapping alive.
    with pa.memory_map(os.fspath(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    batch.validate(full=True)
    arrays = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.type != pa.large_binary() or len(column) != 1:
            raise ValueError(f"{path}: {name} is not an array of a packed session")
        data = column.buffers()[2]
        dtype = np.dtype(kinds[name])
        arrays[name] = np.frombuffer(data, dtype) if data is not None and data.size else np.empty(0, dtype)
    return batch.schema.metadata[_HEADER], arrays


def _sum_path(path: Path) -> Path:
    return path.with_suffix(".sum")


def _sum_of(path: Path) -> _Sum:
    total, size = np.int64(path.stat().st_size), 0
    # Read in pieces: a map of the whole file would count as memory of this process.
    piece = memoryview(bytearray(1 << 20))
    with path.open("rb") as file:
        while length := file.readinto(piece):
            size += length
            piece[length : length + -length % 8] = bytes(-length % 8)
            total = np.int64(_add(np.frombuffer(piece, np.int64, count=-(-length // 8)), total))
    return _Sum(size, int(total))


def is_checked(path: Path) -> bool:
    """Return whether this process has checked the present version of the file."""
    return _checked.get(os.fspath(path)) == _identity(path.stat())


def set_checked(path: Path) -> None:
    """Remember that checksum and ranges of the file are right."""
    _checked[os.fspath(path)] = _identity(path.stat())


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


@compiled
def _add(words: Any, total: Any) -> Any:
    """A polynomial of all words modulo 2^64: a change of one word always changes it."""
    for word in words:
        total = total * _FACTOR + word
    return total


def check_ranges(tape: Any, kinds: int, n_events: int, regimes: int, *, with_flow: bool) -> None:
    """Raise ValueError unless every index in the arrays of a tape lies where compiled code expects it.

    ``kinds``: of ``order``. ``with_flow``: whether a symbol has its prices from trades.
    """
    n = len(tape.symbol)
    sizes = {"price": len(tape.price), "score": len(tape.score), "force": len(tape.force_index)}
    sizes["funding"] = len(tape.funding)
    starts = {name: getattr(tape, f"{name}_from") for name in sizes}
    expected = {name: sizes[name.partition("_")[0]] for name in _PARALLEL}
    has_book = bool(tape.symbol["has_book"].any())
    _require(all(len(getattr(tape, name)) == size for name, size in expected.items()), "lengths")
    _require(len(tape.start) == 1, "start")
    for name, whole, needed in (
        ("quote", sizes["price"], has_book),
        ("score_quote", sizes["score"], has_book),
        ("flow", sizes["price"], with_flow),
    ):
        length = len(getattr(tape, name))
        _require(length == whole or (length == 0 and not needed), name)
    for name, start in starts.items():
        good = len(start) == n + 1 and start[0] == 0 and start[-1] == sizes[name]
        _require(bool(good and (np.diff(start) >= 0).all()), f"{name}_from")
    for name, index in (
        *((name, getattr(tape, f"{name}_index")) for name in ("price", "score", "force")),
        ("funding", tape.funding["index"]),
    ):
        _require(_within(index, 0, n_events), f"{name}_index")
        if len(index) > 1:
            rising = np.diff(index) >= 0
            borders = starts[name][1:-1]
            rising[borders[(borders > 0) & (borders < len(index))] - 1] = True
            _require(bool(rising.all()), f"{name}_index")
    _require(_within(tape.carried["index"], 0, n_events + 1), "carried")
    _require(_within(tape.score_regime, -1, regimes), "score_regime")
    _require(_within(tape.order, 0, n * kinds), "order")
    counts = np.stack([np.diff(starts[name]) for name in sizes], axis=1).reshape(-1)
    _require(np.array_equal(np.bincount(tape.order, minlength=n * kinds), counts), "order")
    edges = tape.book_from
    good = len(edges) % 2 == 1 and edges[0] == 0 and 2 * edges[-1] == len(tape.book_levels)
    _require(bool(good and (np.diff(edges) >= 0).all()), "book_from")
    for quote in (tape.quote, tape.score_quote):
        _require(_within(quote["state"], -1, len(edges) // 2), "state")


_PARALLEL = (
    *("price_ts", "price_index", "score_ts", "score_index", "score_regime", "score_blocked"),
    "force_ts",
)


def _within(index: Array, low: int, end: int) -> bool:
    return not len(index) or bool(index.min() >= low and index.max() < end)


def _require(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"the packed session has {what} out of range")
