"""A damaged or forged tape is packed again: never another result, never a crash of the process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from replaylab import fsio
from replaylab.sweep import sweep, tape_file
from replaylab.sweep.tape import DTYPES
from replaylab.sweep.tape_file import TapeRef, open_tape, read_tape
from tests.strategies import make_session
from tests.sweep.test_tape import Stored

GRID = {"sl_pct": [0.1, 0.3], "entry_threshold": [0.3, 0.6]}


def damaged(data: bytes, kind: str, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == "page":
        start = at // 4096 * 4096
        end = min(len(data), start + 4096)
        return data[:start] + bytes(end - start) + data[end:]
    if kind == "cut":
        return data[:at]
    if kind == "swap":
        other = chance.randrange(len(data) // 64) * 64
        at = at // 64 * 64
        both = bytearray(data)
        both[at : at + 64], both[other : other + 64] = data[other : other + 64], data[at : at + 64]
        return bytes(both)
    return data[:at] + chance.randbytes(8) + data[at + 8 :]


def survive(folder: Path, count: int) -> tuple[int, int]:
    """Corrupt a cached tape again and again; returns how many times, and how often it was packed again."""
    session = make_session(5, 600, 2)
    stored = Stored(session.events, folder / "session", "digest", session.initial_state)
    right = sweep(stored, GRID, progress=False).frame
    _, ref = open_tape(stored, cache_dir=folder)
    assert ref is not None
    assert ref.path is not None
    good = {path: path.read_bytes() for path in (ref.path, ref.book_path)}
    chance = random.Random(count)
    again = 0
    for n in range(count):
        path = ref.path if n % 5 else ref.book_path
        bad = damaged(
            good[path], ("bit", "page", "cut", "swap", "bytes")[n % 5 if n % 5 else n // 5 % 5], chance
        )
        # A new file: what is mapped already stays what it was.
        fsio.write_atomic(path, bad)
        again += bad != good[path] and read_tape(ref) is None
        assert bad == good[path] or read_tape(ref) is None
        assert sweep(stored, GRID, progress=False, cache_dir=folder).frame.equals(right)
        assert ref.path.read_bytes() == good[ref.path]
    return count, again


def test_a_corrupted_tape_is_packed_again(tmp_path: Path) -> None:
    """Bit flips, zeroed pages, truncation, swapped and random pieces: the same result each time."""
    survive(tmp_path, 40)


@pytest.mark.stress
def test_500_corruptions_of_a_tape(tmp_path: Path) -> None:
    injected, again = survive(tmp_path, 500)
    print(f"corruptions of tapes: {injected} injected, {injected} survived: 0 wrong, {again} packed again")


FORGED: dict[str, Any] = {
    **{f"{name}_from": lambda a: a + 10**9 for name in ("price", "score", "force", "funding", "book")},
    **{f"{name}_index": lambda a: a - 10**6 for name in ("price", "score", "force")},
    "score_regime": lambda a: a + 1000,
    "order": lambda a: a + 64,
    "symbol": lambda a: a[:0],
    "start": lambda a: a[:0],
    "price": lambda a: a[:-1],
    "score_ts": lambda a: a[:-1],
    "flow": lambda a: a[:1],
    "book_levels": lambda a: a[:-2] if len(a) else np.ones(2),
}


@pytest.mark.parametrize("name", FORGED)
def test_crafted_offsets_with_a_right_checksum_reach_no_kernel(tmp_path: Path, name: str) -> None:
    session = make_session(5, 600, 2)
    stored = Stored(session.events, tmp_path / "session", "digest", session.initial_state)
    _, ref = open_tape(stored, cache_dir=tmp_path)
    assert ref is not None
    assert ref.path is not None
    path = ref.book_path if name == "book_levels" else ref.path
    header, arrays = tape_file.read_arrays(path, DTYPES)
    forged = FORGED[name](arrays[name]).astype(DTYPES[name])
    if len(forged) == len(arrays[name]) == 0:
        pytest.skip("this session has no such rows")
    tape_file.write_arrays(path, header, arrays | {name: forged})
    assert read_tape(ref) is None


def test_a_crafted_index_of_a_book_or_of_funding_reaches_no_kernel(tmp_path: Path) -> None:
    """Sessions with books and settlements: states and indices of structured rows are checked too."""
    tried = 0
    for seed in range(12):
        session = make_session(seed, 300, 2)
        stored = Stored(session.events, tmp_path / f"session-{seed}", "digest", session.initial_state)
        _, ref = open_tape(stored, cache_dir=tmp_path)
        assert ref is not None
        assert ref.path is not None
        header, arrays = tape_file.read_arrays(ref.path, DTYPES)
        for name, column in (
            ("quote", "state"),
            ("score_quote", "state"),
            ("funding", "index"),
            ("carried", "index"),
        ):
            if len(arrays[name]):
                forged = arrays[name].copy()
                forged[column][-1] = 10**6
                tape_file.write_arrays(ref.path, header, arrays | {name: forged})
                assert read_tape(ref) is None, name
                tried += 1
        tape_file.write_arrays(ref.path, header, arrays)
        assert read_tape(ref) is not None
    assert tried


def test_a_file_of_other_columns_or_without_its_checksum_is_refused(tmp_path: Path) -> None:
    """Arrow files that are no packed session, and a kill between the file and its checksum, give a ValueError."""
    path = tmp_path / "x.arrow"
    kinds = {"a": np.float64, "b": np.int32}
    tape_file.write_arrays(path, b'{"key":"k"}', {"a": np.arange(9.0), "b": np.empty(0, np.int32)})
    header, arrays = tape_file.read_arrays(path, kinds)
    assert (header, arrays["a"].tolist(), len(arrays["b"])) == (b'{"key":"k"}', list(range(9)), 0)
    with pytest.raises(KeyError):
        tape_file.read_arrays(path, {"b": np.int32})
    other = pa.record_batch({"a": [1.0, 2.0]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, other.schema) as writer:
        writer.write_batch(other)
    with pytest.raises(ValueError, match="checksum"):
        tape_file.read_arrays(path, kinds)
    path.with_suffix(".sum").write_bytes(msgspec.json.encode(tape_file._sum_of(path)))
    with pytest.raises(ValueError, match="not an array"):
        tape_file.read_arrays(path, kinds)
    path.with_suffix(".sum").unlink()
    with pytest.raises(OSError, match="No such file"):
        tape_file.read_arrays(path, kinds)


def test_the_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = fsio.os.fsync, Path.replace
    monkeypatch.setattr(fsio.os, "fsync", lambda fd: (steps.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda *names: (steps.append("rename"), rename(*names))[1])
    tape_file.write_arrays(tmp_path / "x.arrow", b"{}", {"a": np.arange(9.0)})
    assert steps[:2] == ["sync", "rename"]


def test_a_tape_without_a_file_or_of_another_key_is_none(tmp_path: Path) -> None:
    assert read_tape(TapeRef("key")) is None
    assert read_tape(TapeRef("key", tmp_path / "nothing.arrow")) is None
