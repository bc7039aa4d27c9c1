"""Limits of bytes: what goes first, and what stays although a limit is exceeded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from replaylab import frames
from replaylab.archive import archived, daily_summary, retention, run_retention
from replaylab.config import RetentionConfig
from tests.archive.roots import trade, write_lines

NOW = "2025-11-20T12:00:00Z"
ARCHIVE = RetentionConfig(archive=True)


def day_of(root: Path, log: str, day: str) -> Path:
    return root / log / f"day-{day}.jsonl"


def test_a_limit_of_bytes_deletes_the_oldest_day_files_first(tmp_path: Path) -> None:
    for day in ("2025-11-16", "2025-11-17", "2025-11-18", "2025-11-20"):
        write_lines(day_of(tmp_path, "trades_log", day), *(trade(day, second) for second in range(10)))
    size = day_of(tmp_path, "trades_log", "2025-11-16").stat().st_size
    config = RetentionConfig(max_total_bytes=2 * size + 10)
    dry = run_retention(tmp_path, now=NOW, dry_run=True, config=config)
    report = run_retention(tmp_path, now=NOW, config=config)
    assert report.deleted_files == ["trades_log/day-2025-11-16.jsonl", "trades_log/day-2025-11-17.jsonl"]
    assert dry.deleted_files == report.deleted_files
    assert report.kept_files == ["trades_log/day-2025-11-18.jsonl", "trades_log/day-2025-11-20.jsonl"]
    assert daily_summary(tmp_path, live=False)["rows"].to_list() == [10, 10]
    # The file of today stays, whatever the limit says, and the report says that the limit does not hold.
    report = run_retention(tmp_path, now=NOW, config=RetentionConfig(max_total_bytes=10))
    assert report.kept_files == ["trades_log/day-2025-11-20.jsonl"]
    assert "limit is exceeded" in report.errors[0].error


def test_a_limit_of_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ("2025-11-18", "2025-11-19"):
        write_lines(day_of(tmp_path, "trades_log", day), trade(day))

    def usage(path: object) -> os.terminal_size:
        left = sum(item.stat().st_size for item in (tmp_path / "trades_log").iterdir())

        class Usage:
            free = 10_000 - left

        return Usage()  # type: ignore[return-value]

    monkeypatch.setattr("replaylab.archive.retention.shutil.disk_usage", usage)
    size = day_of(tmp_path, "trades_log", "2025-11-18").stat().st_size
    report = run_retention(tmp_path, now=NOW, config=RetentionConfig(min_free_bytes=10_000 - size))
    assert report.deleted_files == ["trades_log/day-2025-11-18.jsonl"]


def test_limits_take_archived_parts_too(tmp_path: Path) -> None:
    for day in ("2025-01-01", "2025-01-02"):
        write_lines(tmp_path / f"trades_log/day-{day}.jsonl", trade(day))
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    left = (tmp_path / "archive/trades_log/day-2025-01-02.parquet").stat().st_size
    config = RetentionConfig(archive=True, max_total_bytes=left + 5)
    report = run_retention(tmp_path, now=NOW, config=config)
    assert report.deleted_files == ["archive/trades_log/day-2025-01-01.parquet"]
    assert daily_summary(tmp_path)["rows"].to_list() == [1, 1]


def test_compaction_comes_before_the_last_copy_of_anything_goes(tmp_path: Path) -> None:
    """Young day files are larger than all that is archived, so compacting them is enough: no archived day is lost."""
    for day in range(1, 9):
        write_lines(day_of(tmp_path, "trades_log", f"2025-09-{day:02d}"), trade(f"2025-09-{day:02d}"))
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    for day in range(1, 5):
        name = f"2025-11-{day:02d}"
        write_lines(day_of(tmp_path, "trades_log", name), *(trade(name, second) for second in range(2000)))
    size = day_of(tmp_path, "trades_log", "2025-11-01").stat().st_size
    total = sum(retention.tree_bytes(tmp_path / name) for name in ("archive", "trades_log"))
    config = RetentionConfig(archive=True, max_total_bytes=total - size - size // 2)
    report = run_retention(tmp_path, now=NOW, config=config)
    # The second file that is compacted makes enough room, although its part takes some.
    assert report.deleted_files == ["trades_log/day-2025-11-01.jsonl", "trades_log/day-2025-11-02.jsonl"]
    assert report.errors == []
    assert archived(tmp_path).height == 10
    assert frames.load_trades(tmp_path).frame.height == 8 + 4 * 2000


def test_a_part_whose_summary_is_gone_is_kept(tmp_path: Path) -> None:
    """It is the last that is left of its day."""
    for day in ("2025-01-01", "2025-01-02"):
        write_lines(day_of(tmp_path, "trades_log", day), trade(day))
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    saved = tmp_path / "summary/trades_log/day-2025-01-01.json"
    text = saved.read_bytes()
    shutil.rmtree(tmp_path / "summary")
    write_lines(tmp_path / "summary/trades_log/day-2025-01-02.json", text.decode().replace("01-01", "01-02"))
    config = RetentionConfig(max_total_bytes=0)
    report = run_retention(tmp_path, now=NOW, config=config)
    assert report.deleted_files == []
    assert "day-2025-01-01.json does not count the lines of this part" in report.errors[0].error
    # Another account of that day does not cover the part either.
    assert "day-2025-01-02.json does not count the lines of this part" in report.errors[1].error
    saved.write_bytes(text)
    report = run_retention(tmp_path, now=NOW, config=config)
    assert report.deleted_files == ["archive/trades_log/day-2025-01-01.parquet"]
    assert daily_summary(tmp_path, live=False)["rows"][0] == 1


def test_a_limit_measures_the_root_a_few_times_and_not_once_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        day = f"2025-{number // 25 + 1:02d}-{number % 25 + 1:02d}"
        day_of(tmp_path, "orders", day).parent.mkdir(exist_ok=True)
        day_of(tmp_path, "orders", day).write_bytes(b"\n" * 100)
    calls = []
    real = retention.excess

    def counted(*args: object) -> int:
        calls.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "excess", counted)
    config = RetentionConfig(orders_log_days=1000, max_total_bytes=5000)
    report = run_retention(tmp_path, now=NOW, config=config)
    assert len(report.deleted_files) == 150
    assert len(calls) <= 3
