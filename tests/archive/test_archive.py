"""Compaction and rotation: what leaves the live log is read as before, by every loader."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaylab import frames
from replaylab.archive import archived, daily_summary, depart, retention, run_retention, summary
from replaylab.archive.depart import Leaving, rotate_events
from replaylab.archive.summary import SymbolSummary, read_summary
from replaylab.config import RetentionConfig
from replaylab.errors import LogReadError
from replaylab.frames import logs
from replaylab.frames.files import part_info, parts_of
from replaylab.logging import Logger
from replaylab.paths import DataRoot
from replaylab.timestamps import parse_ns
from tests.archive.roots import event, order, trade, tree, write_lines

NOW = "2025-11-20T12:00:00Z"
ARCHIVE = RetentionConfig(archive=True)


def without_place(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop("line", "file", strict=False).sort("timestamp", "symbol", maintain_order=True)


def fail_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every later attempt to lock a log fail."""

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(retention, "rotate_lock", fail)
    monkeypatch.setattr(depart, "rotate_lock", fail)


def die_before_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on clean-ups leave what a process leaves that is killed after summaries and parts were written."""
    fail_to_remove(monkeypatch)
    monkeypatch.setattr(Leaving, "_take_back", lambda self: None)


def test_archived_day_files_load_as_before(tmp_path: Path) -> None:
    more = {"botId": 7}
    lines = [trade("2025-01-01", second, fees=0.5) for second in range(200)]
    write_lines(
        tmp_path / "trades_log/day-2025-01-01.jsonl", *lines, {**lines[0], **more}, "broken\u2028", ""
    )
    write_lines(tmp_path / "trades_log/day-2025-11-20.jsonl", trade("2025-11-20"))
    write_lines(tmp_path / "orders/day-2025-01-01.jsonl", order("2025-01-01"))
    before = frames.load_trades(tmp_path)
    orders = frames.load_orders(tmp_path)
    size = (tmp_path / "trades_log/day-2025-01-01.jsonl").stat().st_size
    report = run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert report.deleted_files == ["orders/day-2025-01-01.jsonl", "trades_log/day-2025-01-01.jsonl"]
    after = frames.load_trades(tmp_path)
    assert after.frame.drop("file").equals(before.frame.drop("file"))
    assert after.rejects.equals(before.rejects)
    assert (after.lines, after.rows, after.blank) == (before.lines, before.rows, before.blank)
    assert frames.list_days(tmp_path, "trades_log") == ["2025-01-01", "2025-11-20"]
    assert frames.load_orders(tmp_path).frame.drop("file").equals(orders.frame.drop("file"))
    part = tmp_path / "archive/trades_log/day-2025-01-01.parquet"
    assert part.stat().st_size < size / 2
    info = part_info(part)
    assert (info.source, info.source_bytes) == ("trades_log/day-2025-01-01.jsonl", size)
    row = archived(tmp_path).filter(source="trades_log/day-2025-01-01.jsonl").row(0, named=True)
    assert (row["rows"], row["source_bytes"]) == (201, size)
    assert row["ratio"] > 2
    # Any Parquet reader opens it.
    assert pl.read_parquet(part).height == 201
    assert frames.load_trades(tmp_path, start="2025-11-01").frame.height == 1
    assert frames.load_trades(tmp_path, end="2025-01-01T00:00:10Z").frame.height == 11


def test_a_clean_up_that_dies_before_the_source_is_removed_shows_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(
        tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01", 1), trade("2025-01-01", 2)
    )

    die_before_removal(monkeypatch)
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert (tmp_path / "archive/trades_log/day-2025-01-01.parquet").exists()
    assert frames.load_trades(tmp_path).frame.height == 2
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(trade("2025-01-01", 3)) + "\n")
    assert frames.load_trades(tmp_path).frame.height == 3
    monkeypatch.undo()
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert not path.exists()
    assert frames.load_trades(tmp_path).frame.height == 3
    assert len(parts_of(DataRoot(tmp_path), path)) == 1
    assert daily_summary(tmp_path)["rows"].to_list() == [3]


def test_late_lines_of_an_archived_day_become_a_second_part(tmp_path: Path) -> None:
    path = tmp_path / "trades_log/day-2025-01-01.jsonl"
    for second in (1, 2):
        write_lines(path, trade("2025-01-01", second))
        assert frames.load_trades(tmp_path).frame.height == second
        run_retention(tmp_path, now=NOW, config=ARCHIVE)
    names = [part.name for part in parts_of(DataRoot(tmp_path), path)]
    assert names == ["day-2025-01-01.parquet", "day-2025-01-01.2.parquet"]
    assert frames.load_trades(tmp_path).frame.height == 2


def test_old_events_move_out_and_new_ones_stay(tmp_path: Path) -> None:
    days = ["2025-11-10", "2025-11-11", "2025-11-13", "2025-11-20"]
    lines = [event(day, second, score=second / 100 - 0.5) for day in days for second in range(100)]
    path = write_lines(tmp_path / "events/BTCUSDT.jsonl", "torn", *lines[:150], "broken", "", *lines[150:])
    before = frames.load_events(tmp_path)
    seen = daily_summary(tmp_path)
    report = run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert report.kept_files == ["events/BTCUSDT.jsonl"]
    assert report.errors == []
    assert len(path.read_bytes().splitlines()) == 200
    after = frames.load_events(tmp_path)
    assert without_place(after.frame).equals(without_place(before.frame))
    assert (after.lines, after.rows, after.blank) == (before.lines, before.rows, before.blank)
    assert after.rejects["text"].to_list() == before.rejects["text"].to_list()
    assert frames.list_symbols(tmp_path) == ["BTCUSDT"]
    names = sorted(part.name for part in (tmp_path / "archive/events/BTCUSDT").iterdir())
    assert names == ["day-2025-11-10.parquet", "day-2025-11-11.parquet"]
    in_range = frames.load_events(tmp_path, start="2025-11-11", end="2025-11-14").frame
    assert in_range.height == 200
    now = daily_summary(tmp_path)
    # Rejects too are of the same days as before.
    sums = [column for column in now.columns if column != "score_mean"]
    assert now.select(sums).equals(seen.select(sums))
    assert now["score_mean"].to_list() == pytest.approx(seen["score_mean"].to_list(), nan_ok=True)
    assert now.filter(pl.col("rejects") > 0)["day"].dt.day().to_list() == [10, 11]


def test_a_log_of_old_events_only_is_removed_and_summarised(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-01-01"), event("2025-01-02"))
    report = run_retention(tmp_path, now=NOW)
    assert report.deleted_files == ["events/BTCUSDT.jsonl"]
    assert not path.exists()
    assert daily_summary(tmp_path)["rows"].to_list() == [1, 1]
    assert frames.load_events(tmp_path).frame.is_empty()


def test_a_torn_tail_is_neither_moved_nor_lost(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-01-01"))
    with path.open("ab") as file:
        file.write(b'{"timestamp":"2025-01-')
    report = run_retention(tmp_path, now=NOW)
    assert report.kept_files == ["events/BTCUSDT.jsonl"]
    assert path.read_bytes() == b'{"timestamp":"2025-01-'


@pytest.mark.parametrize("killed", [True, False])
def test_a_rotation_that_fails_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """No line counts or loads twice, neither then nor after a clean-up that moves fewer, or archives none."""
    days = [f"2025-11-{day:02d}" for day in range(1, 21)]
    path = write_lines(tmp_path / "events/BTCUSDT.jsonl", *map(event, days))
    before = path.read_bytes()
    (die_before_removal if killed else fail_to_remove)(monkeypatch)
    report = run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert "No space left" in report.errors[0].error
    assert path.read_bytes() == before
    assert [name for name in tree(tmp_path) if name.endswith(".tmp")] == []
    # The parts of the one that was killed are there, and so are their lines in the log: they are read once.
    written = [name for name in tree(tmp_path) if name.startswith(("archive", "summary"))]
    assert bool(written) is killed
    assert frames.load_events(tmp_path).frame.height == 20
    assert daily_summary(tmp_path)["rows"].to_list() == [1] * 20
    monkeypatch.undo()
    run_retention(tmp_path, now=NOW, config=RetentionConfig(events_days=14))
    assert frames.load_events(tmp_path).frame["timestamp"].dt.day().to_list() == list(range(6, 21))
    assert daily_summary(tmp_path)["rows"].to_list() == [1] * 20
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert frames.load_events(tmp_path).frame.height == 15
    assert daily_summary(tmp_path)["rows"].to_list() == [1] * 20


def test_what_a_failed_clean_up_said_of_a_day_file_is_gone_when_the_file_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01", 1))
    fail_to_remove(monkeypatch)
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    monkeypatch.undo()
    write_lines(path, trade("2025-01-01", 2), trade("2025-01-01", 3))
    assert daily_summary(tmp_path)["rows"].to_list() == [2]
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert daily_summary(tmp_path)["rows"].to_list() == [2]
    assert frames.load_trades(tmp_path).frame.height == 2


@pytest.mark.parametrize("wrong", ["lost", "first reading", "second reading"])
def test_old_lines_stay_unless_their_summary_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Each summary must add up to its lines, and a second reading of the log must find it on the disk."""
    path = write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-11-01"), event("2025-11-20"))
    before = path.read_bytes()
    real = summary.summarise
    calls = []

    def lie(loads: list[pl.DataFrame]) -> dict[str, SymbolSummary]:
        calls.append(1)
        found = real(loads)
        if wrong == "lost":
            return {}
        if (len(calls) == 1) is (wrong == "first reading"):
            found["BTCUSDT"].event_types = {"OTHER": 1}
        return found

    monkeypatch.setattr(summary, "summarise", lie)
    report = run_retention(tmp_path, now=NOW, config=ARCHIVE)
    assert [error.file for error in report.errors] == ["events/BTCUSDT.jsonl"]
    assert report.kept_files == ["events/BTCUSDT.jsonl"]
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("archive/**/*.parquet"))


@given(
    st.lists(
        st.sampled_from(["2025-11-01", "2025-11-12", "2025-11-13", "2025-11-19", "bad", "blank"]), max_size=30
    ),
    st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture_of_lines_rotates_without_losing_one(
    tmp_path_factory: pytest.TempPathFactory, days: list[str], archive: bool
) -> None:
    """Kept lines stay byte for byte and in order; with an archive the loader gives what it gave before."""
    root = tmp_path_factory.mktemp("rotate")
    lines = [
        {"bad": "{nope", "blank": ""}.get(day) or ("" if day == "blank" else event(day, place))
        for place, day in enumerate(days)
    ]
    path = write_lines(root / "events/BTCUSDT.jsonl", *lines)
    before = frames.load_events(root)
    texts = path.read_bytes().splitlines(keepends=True)
    gone = rotate_events(DataRoot(root), "BTCUSDT", parse_ns("2025-11-13"), archive=archive)
    assert gone is not path.exists()
    left = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    known = [place for place, day in enumerate(days) if day.startswith("2025")]
    if known:
        owner = [max((at for at in known if at <= place), default=known[0]) for place in range(len(days))]
        assert left == [text for text, at in zip(texts, owner, strict=True) if days[at] >= "2025-11-13"]
    summaries = (read_summary(found) for found in (root / "summary").glob("events/*/*.json"))
    moved = sum(account.lines for summary in summaries if summary for account in summary.accounts)
    assert moved + len(left) == len(texts)
    if archive:
        after = frames.load_events(root)
        assert without_place(after.frame).equals(without_place(before.frame))
        assert (after.lines, after.rows, after.blank, after.rejects.height) == (
            before.lines,
            before.rows,
            before.blank,
            before.rejects.height,
        )


@pytest.mark.parametrize("archive", [True, False])
def test_rotation_loses_no_line_of_a_running_writer(tmp_path: Path, archive: bool) -> None:
    root = DataRoot(tmp_path)
    path = write_lines(root.events("BTCUSDT"), *(event("2025-01-01", second) for second in range(2000)))
    total = 6000
    started = threading.Event()
    failures: list[BaseException] = []

    def write(first: int) -> None:
        try:
            with Logger(root) as logger:
                for number in range(first, total, 2):
                    line = event("2025-11-20", 0, score=number)
                    logger.log_state_event("BTCUSDT", line).result()
                    started.set()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    started.wait(10)
    # Every rotation but the first makes its own old lines: the log is replaced again and again under the writers.
    for _ in range(8):
        with Logger(root) as logger:
            logger.log_state_event("BTCUSDT", event("2025-01-02")).result()
        rotate_events(root, "BTCUSDT", parse_ns("2025-11-01"), archive=archive)
    for thread in threads:
        thread.join()
    assert failures == []
    loaded = frames.load_events(root, expand="score")
    new = loaded.frame.filter(pl.col("timestamp").dt.year() == 2025, pl.col("timestamp").dt.month() == 11)
    assert sorted(new["score"].to_list()) == list(range(total))
    assert loaded.rejects.is_empty()
    if archive:
        assert loaded.frame.height == total + 2000 + 8
    assert path.exists()


def test_a_load_begins_again_when_the_log_is_replaced_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = DataRoot(tmp_path)
    write_lines(
        root.events("BTCUSDT"), *(event("2025-01-01", second) for second in range(3000)), event("2025-11-20")
    )
    real = logs.cached_chunks
    rotated = []

    def replaced(*args: object) -> object:
        for loaded in real(*args):  # type: ignore[arg-type]
            if not rotated:
                rotated.append(rotate_events(root, "BTCUSDT", parse_ns("2025-11-01"), archive=True))
            yield loaded

    monkeypatch.setattr(logs, "cached_chunks", replaced)
    assert frames.load_events(root).frame.height == 3001
    rotated.clear()
    write_lines(root.events("BTCUSDT"), event("2025-01-03"), event("2025-11-20"))
    with pytest.raises(LogReadError, match="replaced"):
        list(frames.scan_event_chunks(root, "BTCUSDT"))
