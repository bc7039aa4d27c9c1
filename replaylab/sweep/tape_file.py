"""The files of packed sessions: arrays one after the other, a checksum over all of them, limits for every index.

A tape is derived data that a failing disk, an old kernel or a person may change, and compiled code does not check its
indices. So nothing of a file is used before its checksum and its ranges were checked; any doubt is a ValueError.

Layout: 8 bytes of magic, the checksum of all that follows (i64), the length of the header (i64), the header (JSON), and
the arrays, header and arrays padded to 64 bytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from replaylab.compiled import compiled
from replaylab.fsio import atomic_path

Array = npt.NDArray[Any]
_MAGIC = b"RLTAPE\x001"
_ALIGN = 64
_FACTOR = 0x1E3779B97F4A7C15
# Files whose checksum and ranges this process has checked, by path: size, inode, times of change.
_checked: dict[str, tuple[int, ...]] = {}


class _Outer(msgspec.Struct):
    lengths: dict[str, int]
    header: msgspec.Raw


def write_arrays(path: Path, header: bytes, arrays: Mapping[str, Array]) -> None:
    """Write arrays with a JSON header; the file appears complete and synced, or not at all. Raises OSError."""
    lengths = {name: len(array) for name, array in arrays.items()}
    outer = msgspec.json.encode(_Outer(lengths, msgspec.Raw(header)))
    with atomic_path(path, sync=True) as part, part.open("wb") as file:
        total = np.int64(0)
        file.write(_MAGIC + bytes(_ALIGN - len(_MAGIC)))
        pieces = [np.array([len(outer)], np.int64), np.frombuffer(outer, np.uint8), *arrays.values()]
        for piece in pieces:
            for words in _padded(np.ascontiguousarray(piece).view(np.uint8)):
                total = _add(words, total)
                file.write(words.data)
        file.seek(len(_MAGIC))
        file.write(np.int64(total).tobytes())


def _padded(raw: Array) -> Iterator[Array]:
    whole = len(raw) // _ALIGN * _ALIGN
    yield raw[:whole].view(np.int64)
    if whole < len(raw):
        yield np.frombuffer(raw[whole:].tobytes() + bytes(whole + _ALIGN - len(raw)), np.int64)


def read_arrays(path: Path, kinds: Mapping[str, Any]) -> tuple[bytes, dict[str, Array]]:
    """Return the header and the arrays (types ``kinds``) of a file, mapped into memory.

    Raises OSError where it cannot be read, ValueError where it is not as it was written.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 2 * _ALIGN or size % _ALIGN:
            raise ValueError(f"{path}: no whole file of arrays")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if _checked.get(os.fspath(path)) != _identity(os.fstat(file.fileno())):
            words = np.frombuffer(data, np.int64, offset=_ALIGN)
            stored = np.frombuffer(data, np.int64, count=1, offset=len(_MAGIC))[0]
            if data[: len(_MAGIC)] != _MAGIC or _add(words, np.int64(0)) != stored:
                raise ValueError(f"{path}: its checksum is wrong")
    n = int(np.frombuffer(data, np.int64, count=1, offset=_ALIGN)[0])
    place = 2 * _ALIGN + _up(n)
    if place > size:
        raise ValueError(f"{path}: its header is longer than the file")
    outer = msgspec.json.decode(data[2 * _ALIGN : 2 * _ALIGN + n], type=_Outer)
    arrays = {}
    for name, length in outer.lengths.items():
        dtype = np.dtype(kinds[name])
        if not 0 <= length <= (size - place) // dtype.itemsize:
            raise ValueError(f"{path}: {name} is longer than the file")
        arrays[name] = (
            np.frombuffer(data, dtype, count=length, offset=place) if length else np.empty(0, dtype)
        )
        place += _up(length * dtype.itemsize)
    if place != size:
        raise ValueError(f"{path}: {size - place} bytes more than its arrays")
    return bytes(outer.header), arrays


def is_checked(path: Path) -> bool:
    """Return whether this process has checked the present version of the file."""
    return _checked.get(os.fspath(path)) == _identity(path.stat())


def set_checked(path: Path) -> None:
    """Remember that checksum and ranges of the file are right."""
    _checked[os.fspath(path)] = _identity(path.stat())


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


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
