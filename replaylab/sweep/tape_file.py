"""The files of packed sessions: Arrow IPC with a column per array, a checksum over the file, limits for every index.

A tape is derived data that a failing disk, an old kernel or a person may change, and compiled code does not check its
indices. So nothing of a file is used before its checksum and its ranges were checked; any doubt is a ValueError.

``<name>.arrow`` has one row: a binary value per array, and a JSON header in the metadata of the schema.
``<name>.sum`` has the checksum and the size of that file; it is written second: a kill between both
leaves a tape that is packed again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replaylab.compiled import compiled
from replaylab.fsio import atomic_path, write_atomic

Array = npt.NDArray[Any]
_HEADER = b"tape"
_FACTOR = 0x1E3779B97F4A7C15
# Files whose checksum and ranges this process has checked, by path: size, inode, times of change.
_checked: dict[str, tuple[int, ...]] = {}


class _Sum(msgspec.Struct):
    size: int
    checksum: int


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_SUM = msgspec.json.Decoder(_Sum)


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
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            words = np.frombuffer(data, np.int64, count=size // 8)
            total = int(_add(words, np.int64(size)))
            total = int(_add(np.frombuffer(data[size // 8 * 8 :].ljust(8, b"\0"), np.int64), np.int64(total)))
            del words
    return _Sum(size, total)


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
