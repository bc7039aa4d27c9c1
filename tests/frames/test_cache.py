"""The Parquet cache gives what parsing gives, for the exact file that it is of, and parses only what is new."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaylab import frames
from replaylab.frames import cache, files
from replaylab.frames.jsonl import Loaded
from replaylab.frames.logs import EVENTS


def line(number: int) -> bytes:
    event: dict[str, Any] = {
        "timestamp": f"2025-11-18T10:{number // 60 % 60:02d}:{number % 60:02d}.000Z",
        "symbol": "B",
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": "SCORING_UPDATE",
        "reason": "r",
        "extra": {"score": number},
    }
    return json.dumps(event).encode() + b"\n"


@pytest.fixture(autouse=True)
def _small_files_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIN_BYTES", 100)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets at which parsing began."""
    offsets: list[int] = []
    real = files.chunks_of

    def watched(*args: Any, **options: Any) -> Any:
        offsets.append(options.get("start", 0))
        return real(*args, **options)

    monkeypatch.setattr(cache, "chunks_of", watched)
    return offsets


def events_file(root: Path, data: bytes) -> Path:
    path = root / "events" / "B.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def check(root: Path, folder: Path) -> Loaded:
    """Load with the cache, and compare with a load without it."""
    plain, loaded = frames.load_events(root), frames.load_events(root, cache=folder)
    assert loaded.frame.equals(plain.frame)
    assert loaded.frame.schema == plain.frame.schema
    assert loaded.rejects.equals(plain.rejects)
    assert (loaded.lines, loaded.rows, loaded.blank) == (plain.lines, plain.rows, plain.blank)
    return loaded


def test_a_second_load_parses_nothing_and_an_append_only_what_is_new(
    tmp_path: Path, parsed: list[int]
) -> None:
    path = events_file(tmp_path / "data", b"".join(map(line, range(50))) + b"broken\n\n")
    size = path.stat().st_size
    for _ in range(2):
        frames.load_events(tmp_path / "data", cache=tmp_path / "cache")
    assert parsed == [0, size]
    with path.open("ab") as file:
        file.write(line(50) * 20 + b"bad\n")
    parsed.clear()
    loaded = frames.load_events(tmp_path / "data", cache=tmp_path / "cache")
    assert parsed == [size]
    assert loaded.rows == 70
    assert loaded.rejects["line"].to_list() == [51, 73]
    parsed.clear()
    check(tmp_path / "data", tmp_path / "cache")
    assert path.stat().st_size in parsed
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_ranges_and_symbols_choose_from_the_cache(tmp_path: Path) -> None:
    events_file(tmp_path / "data", b"".join(map(line, range(100))))
    for _ in range(2):
        loaded = frames.load_events(tmp_path / "data", "B", "2025-11-18T10:01:00Z", cache=tmp_path / "cache")
        assert loaded.frame.height == 40
        assert loaded.rows == 100


@pytest.mark.parametrize("change", ["edit", "edit same time", "cut", "replace", "grow a torn line"])
def test_a_file_that_is_not_the_same_is_parsed_again(tmp_path: Path, change: str, parsed: list[int]) -> None:
    torn = line(30)[:-1] if change == "grow a torn line" else b""
    path = events_file(tmp_path / "data", b"".join(map(line, range(30))) + torn)
    frames.load_events(tmp_path / "data", cache=tmp_path / "cache")
    data = path.read_bytes()
    before = path.stat()
    if change.startswith("edit"):
        with path.open("r+b") as file:
            file.write(line(7))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (change == "edit")))
    elif change == "cut":
        os.truncate(path, len(data) - len(line(29)))
    elif change == "replace":
        path.rename(path.with_suffix(".old"))
        path.write_bytes(data + line(5))
    else:
        with path.open("ab") as file:
            file.write(b" \n" + line(31))
    parsed.clear()
    check(tmp_path / "data", tmp_path / "cache")
    assert 0 in parsed


@pytest.mark.parametrize("damage", ["entry", "segment", "missing segment", "read only", "file in the place"])
def test_a_cache_that_cannot_be_used_does_no_harm(tmp_path: Path, damage: str) -> None:
    events_file(tmp_path / "data", b"".join(map(line, range(30))))
    folder = tmp_path / "cache"
    if damage == "file in the place":
        folder.write_bytes(b"")
    elif damage == "read only":
        folder.mkdir(mode=0o500)
    else:
        frames.load_events(tmp_path / "data", cache=folder)
        target = next(folder.rglob("entry.json" if damage == "entry" else "*.parquet"))
        if damage == "missing segment":
            target.unlink()
        else:
            target.write_bytes(b"{")
    for _ in range(2):
        check(tmp_path / "data", folder)


@pytest.mark.parametrize("where", ["one page", "all but the footer"])
@pytest.mark.parametrize("fixed", [True, False], ids=["writable", "read only"])
def test_a_damaged_segment_is_parsed_again(tmp_path: Path, where: str, fixed: bool) -> None:
    """The load that meets the damage gives the rows of the log, and makes a new segment where it can."""
    events_file(tmp_path / "data", b"".join(map(line, range(3000))))
    folder = tmp_path / "cache"
    frames.load_events(tmp_path / "data", cache=folder)
    segment = next(folder.rglob("*.parquet"))
    data = bytearray(segment.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    group = pq.read_metadata(segment).row_group(0)
    extra = group.column(EVENTS.frame.names().index("extra")).data_page_offset
    spot = slice(4, footer) if where == "all but the footer" else slice(extra + 500, extra + 564)
    data[spot] = b"Z" * len(data[spot])
    segment.write_bytes(data)
    segment.parent.chmod(0o700 if fixed else 0o500)
    try:
        for _ in range(2):
            check(tmp_path / "data", folder)
    finally:
        segment.parent.chmod(0o700)
    if fixed or os.geteuid() == 0:
        assert next(folder.rglob("*.parquet")) != segment


def test_read_only_roots_work(tmp_path: Path) -> None:
    path = events_file(tmp_path / "data", b"".join(map(line, range(30))))
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        for _ in range(2):
            check(tmp_path / "data", tmp_path / "cache")
    finally:
        path.parent.chmod(0o700)
    assert list((tmp_path / "cache").rglob("*.parquet"))


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"", b"bad\n", b"\n", b"torn"])), max_size=6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_row_of_appends_loads_as_without_a_cache(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bytes]]
) -> None:
    root = tmp_path_factory.mktemp("appends")
    path = events_file(root / "data", b"")
    for count, tail in steps:
        with path.open("ab") as file:
            file.write(b"".join(map(line, range(count))) + tail)
        check(root / "data", root / "cache")


def test_a_load_that_stops_half_way_leaves_no_entry(tmp_path: Path) -> None:
    path = events_file(tmp_path / "data", b"".join(map(line, range(2000))))
    with path.open("rb", buffering=0) as file:
        chunks = cache.cached_chunks(file, path, frames.logs.EVENTS, "f", 10_000, tmp_path / "cache")
        assert isinstance(next(chunks).frame, pl.DataFrame)
        chunks.close()  # type: ignore[attr-defined]
    assert [item for item in (tmp_path / "cache").rglob("*") if item.is_file()] == []
