"""Readers beside a clean-up: they begin again by themselves, and nothing is missing or there twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaylab import Lab, frames
from replaylab.archive import daily_summary, run_retention, summary
from replaylab.config import RetentionConfig
from replaylab.frames import files, logs
from replaylab.paths import DataRoot
from replaylab.sessions import build_replay_session
from tests.archive.roots import event, order, trade, write_lines

# The trades of these tests overlap, which a built session is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*the log mixes two strategies or accounts")

NOW = "2025-11-20T12:00:00Z"
DAY = "2025-01-01"


def clean_up(root: Path) -> None:
    report = run_retention(root, now=NOW, config=RetentionConfig(archive=True))
    assert report.deleted_files
    assert report.errors == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_lines(
        tmp_path / f"trades_log/day-{DAY}.jsonl", *(trade(DAY, second) for second in range(50)), "bad"
    )
    write_lines(tmp_path / f"orders/day-{DAY}.jsonl", *(order(DAY, second) for second in range(50)))
    write_lines(tmp_path / "events/BTCUSDT.jsonl", *(event(DAY, second) for second in range(50)), "bad")
    return tmp_path


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda root: Lab(root).trades().height, 50),
        (lambda root: Lab(root).orders().height, 50),
        (lambda root: Lab(root).events().height, 50),
        (lambda root: daily_summary(root)["rows"].sum(), 150),
        (lambda root: daily_summary(root)["rejects"].sum(), 2),
    ],
)
def test_a_log_that_is_archived_while_it_is_read_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], int], rows: int
) -> None:
    real = logs.cached_chunks
    done: list[bool] = []

    def archived_under_the_reader(*args: Any) -> Any:
        for loaded in real(*args):
            if not done:
                done.append(True)
                clean_up(root)
            yield loaded

    monkeypatch.setattr(logs, "cached_chunks", archived_under_the_reader)
    assert read(root) == rows
    assert done


def test_a_day_that_goes_between_summaries_and_logs_is_counted_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summaries were read before there was one of the day, and the log when it was gone."""
    before = daily_summary(root)
    real = summary._live
    done: list[bool] = []

    def late(place: DataRoot) -> Any:
        if not done:
            done.append(True)
            run_retention(root, now=NOW)
        return real(place)

    monkeypatch.setattr(summary, "_live", late)
    assert daily_summary(root).equals(before)
    assert done


def test_a_session_is_built_again_from_the_archive(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day log may be gone as soon as it was read: its account is then of the archived part."""
    real = frames.scan_days
    done: list[bool] = []

    def gone_after_reading(*args: Any, **options: Any) -> Any:
        for path, loaded in real(*args, **options):
            if not done and options.get("keep_text"):
                done.append(True)
                clean_up(root)
            yield path, loaded

    monkeypatch.setattr(frames, "scan_days", gone_after_reading)
    manifest = build_replay_session(root, DAY, "2025-01-02", ["BTCUSDT"], session_id="s")
    assert done
    assert manifest.total_events == 150
    meta = json.loads(DataRoot(root).session_meta("s").read_bytes())
    assert {source["file"].split("/")[0] for source in meta["sources"]} == {"archive"}


def test_the_hash_of_a_source_is_never_that_of_another_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was replaced before it could be hashed has no hash."""
    from replaylab.sessions import build as builder

    real = builder.recorded_params

    def replaced(*args: Any) -> Any:
        path = DataRoot(root).orders(DAY)
        write_lines(path.with_suffix(".new"), order(DAY)).replace(path)
        DataRoot(root).trades_log(DAY).unlink()
        return real(*args)

    monkeypatch.setattr(builder, "recorded_params", replaced)
    build_replay_session(root, DAY, "2025-01-02", ["BTCUSDT"], session_id="s")
    meta = json.loads(DataRoot(root).session_meta("s").read_bytes())
    known = {source["kind"]: source["sha256"] is not None for source in meta["sources"]}
    assert known == {"events": True, "orders": False, "trades_log": False}


def test_a_session_file_whose_cache_is_renewed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(
        tmp_path / "events.jsonl",
        *({"timestamp": f"{DAY}T00:00:00Z", "type": "X", "symbol": None, "payload": {}} for _ in range(9)),
    )
    real = logs.cached_chunks
    calls = []

    def renewed_once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            yield from real(*args)
            raise files.ReplacedError("another process renewed the cache")
        yield from real(*args)

    monkeypatch.setattr(logs, "cached_chunks", renewed_once)
    assert frames.load_replay_events(path).rows == 9
    assert len(calls) == 2


def test_a_damaged_summary_costs_its_own_day_only(root: Path) -> None:
    """The warning names the file and what to do; the other days are there."""
    write_lines(root / "trades_log/day-2025-01-02.jsonl", trade("2025-01-02"))
    run_retention(root, now=NOW)
    whole = daily_summary(root)
    (root / "summary/trades_log/day-2025-01-01.json").write_text("{")
    with pytest.warns(UserWarning, match=r"day-2025-01-01\.json: not a summary.*left out: restore it"):
        found = daily_summary(root)
    assert found.height == whole.height - 2
    assert found.filter(log="trades_log")["rows"].to_list() == [1]
