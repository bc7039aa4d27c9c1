"""A packed session on disk: the second sweep maps it into memory instead of packing again.

It lies beside the session, or in the cache folder where the session's cannot be written to. Its header names the
session's digest, initial state and price source; where these differ, it is packed anew and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from replaylab.config import Config
from replaylab.sweep.tape import PriceSource, SessionLike, Tape, TapeArrays, pack

__all__ = ["open_tape", "read_tape", "tape_key", "tape_of", "write_tape"]

_MAGIC = b"replaylab tape 1"
_ALIGN = 64


def tape_of(session: SessionLike | pl.DataFrame, price_source: PriceSource = "auto") -> Tape:
    """Return the tape of a session: from disk if it was packed before, else packed and kept there.

    An events frame, or a session without ``path`` and ``digest``, is packed every time.
    """
    return open_tape(session, price_source)[0]


def open_tape(
    session: SessionLike | pl.DataFrame, price_source: PriceSource = "auto"
) -> tuple[Tape, Path | None]:
    """Return the tape of a session, and the file that holds it if there is one."""
    path, digest = getattr(session, "path", None), getattr(session, "digest", None)
    if not isinstance(digest, str) or not isinstance(path, (str, os.PathLike)):
        return pack(session, price_source), None
    key = tape_key(digest, price_source, getattr(session, "initial_state", None))
    name = f"tape-{hashlib.sha256(repr(_plain(price_source)).encode()).hexdigest()[:8]}.bin"
    places = [Path(path) / name, Config().cache_path / "tapes" / f"{key[:16]}.bin"]
    for place in places:
        tape = read_tape(place, key)
        if tape is not None:
            return tape, place
    tape = pack(session, price_source)
    for place in places:
        with contextlib.suppress(OSError):
            write_tape(place, tape, key)
            return tape, place
    return tape, None


def tape_key(digest: str, price_source: PriceSource, initial_state: Any) -> str:
    """Return what a tape depends on, as one digest."""
    about = msgspec.json.encode([digest, _plain(price_source), initial_state], order="sorted")
    return hashlib.sha256(_MAGIC + about).hexdigest()


def write_tape(path: Path, tape: Tape, key: str) -> None:
    """Write a tape so that no reader ever sees a part of it; raises OSError."""
    arrays = tape.arrays()._asdict()
    header = msgspec.json.encode(
        {
            "key": key,
            "symbols": tape.symbols,
            "regimes": tape.regimes,
            "sources": tape.sources,
            "n_events": tape.n_events,
            "unusable": tape.unusable,
            "arrays": {name: [array.dtype.str, len(array)] for name, array in arrays.items()},
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tape-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + struct.pack("<Q", len(header)) + header)
            for array in arrays.values():
                file.write(b"\0" * (-file.tell() % _ALIGN))
                file.write(np.ascontiguousarray(array).data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_tape(path: Path, key: str) -> Tape | None:
    """Return the tape in a file, mapped into memory; None if there is none, or one of something else."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + 8)
            if len(start) < len(_MAGIC) + 8 or not start.startswith(_MAGIC):
                return None
            (size,) = struct.unpack("<Q", start[len(_MAGIC) :])
            header = msgspec.json.decode(file.read(size))
            if header["key"] != key:
                return None
            # Copy on write: arrays are writable like those of a packed tape, the file is never changed.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        arrays = dict(_arrays(mapped, len(start) + size, header["arrays"]))
    except (OSError, ValueError, KeyError, msgspec.DecodeError):
        return None
    return Tape(
        symbols=tuple(header["symbols"]),
        regimes=tuple(header["regimes"]),
        sources=tuple(header["sources"]),
        n_events=header["n_events"],
        unusable=header["unusable"],
        **TapeArrays(**arrays)._asdict(),
    )


def _arrays(mapped: mmap.mmap, at: int, shapes: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    for name, (dtype, count) in shapes.items():
        at += -at % _ALIGN
        if count == 0:
            yield name, np.empty(0, dtype=dtype)
            continue
        yield name, np.frombuffer(mapped, dtype=dtype, count=count, offset=at)
        at += count * np.dtype(dtype).itemsize


def _plain(price_source: PriceSource) -> Any:
    return price_source if isinstance(price_source, str) else sorted(price_source.items())
