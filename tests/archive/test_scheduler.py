from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaylab.archive import RetentionScheduler
from replaylab.archive.retention import is_due
from replaylab.config import RetentionConfig
from replaylab.timestamps import NS_PER_DAY, parse_ns
from tests.archive.roots import trade, write_lines


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        ("2025-11-18T03:29:59Z", "2025-11-18T03:30:00Z", True),
        ("2025-11-18T03:30:00Z", "2025-11-18T03:30:30Z", False),
        ("2025-11-18T03:30:00Z", "2025-11-19T03:29:59Z", False),
        ("2025-11-18T23:59:59Z", "2025-11-19T00:00:01Z", False),
        ("2025-11-18T12:00:00Z", "2025-11-25T12:00:00Z", True),
        ("2025-03-30T00:30:00Z", "2025-03-30T02:30:00Z", False),
    ],
)
def test_the_time_of_day_passes_once_a_day(last: str, now: str, due: bool) -> None:
    assert is_due("03:30", parse_ns(last), parse_ns(now)) is due


@given(st.lists(st.integers(1, NS_PER_DAY // 2), min_size=1, max_size=60))
def test_however_often_one_looks_each_day_is_due_once(steps: list[int]) -> None:
    now = parse_ns("2025-11-18T12:00:00Z")
    first, count = now, 0
    for step in steps:
        count += is_due("03:30", now, now + step)
        now += step
    offset = parse_ns("1970-01-01T03:30:00Z")
    assert count == (now - offset) // NS_PER_DAY - (first - offset) // NS_PER_DAY


def test_the_daily_job_runs_and_goes_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    moments = iter(
        ["2025-11-18T03:00:00Z", "2025-11-18T03:31:00Z", "2025-11-18T02:00:00Z", "2025-11-18T03:31:00Z"]
    )
    done = threading.Event()

    def clock() -> int:
        text = next(moments, None)
        if text is None:
            done.set()
            return parse_ns("2025-11-18T04:00:00Z")
        return parse_ns(text)

    from replaylab.archive import retention as module

    runs = []
    real = module.run_retention

    def watched(*args: object, **options: object) -> object:
        runs.append(options["now"])
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_retention", watched)
    job = RetentionScheduler(tmp_path, RetentionConfig(daily_at="03:30"), clock=clock, look_seconds=0.001)
    with job:
        assert done.wait(10)
    # The clock was set back and 03:30 came again: the job ran once.
    assert runs == ["2025-11-18T03:31:00.000Z"]
    assert not path.exists()
    assert job.last_report is not None
    assert job.last_error is None


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OverflowError("Input/output error")])
def test_an_error_of_any_kind_is_kept_and_the_next_day_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    runs = []

    def fail(*args: object, **options: object) -> None:
        runs.append(options["now"])
        raise error

    monkeypatch.setattr("replaylab.archive.retention.run_retention", fail)
    job = run_through(tmp_path, ["2025-11-18T00:00:00Z", "2025-11-19T00:00:00Z", "2025-11-20T00:00:00Z"])
    assert runs == ["2025-11-19T00:00:00.000Z", "2025-11-20T00:00:00.000Z"]
    assert "Input/output error" in str(job.last_error)


def test_a_clock_that_was_far_ahead_once_does_not_silence_the_days_that_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    monkeypatch.setattr(
        "replaylab.archive.retention.run_retention", lambda *args, **options: runs.append(options["now"])
    )
    days = ["2025-11-18", "2026-11-18", "2025-11-18", "2025-11-19", "2025-11-20"]
    run_through(tmp_path, [f"{day}T04:00:00Z" for day in days])
    assert [run[:10] for run in runs] == ["2026-11-18", "2025-11-19", "2025-11-20"]


def run_through(root: Path, moments: list[str]) -> RetentionScheduler:
    """Run the job at 03:30 under a clock that shows these moments, one at each look."""
    done = threading.Event()
    left = iter(moments)
    last = moments[-1]

    def clock() -> int:
        text = next(left, None)
        if text is None:
            done.set()
        return parse_ns(text or last)

    with RetentionScheduler(root, RetentionConfig(daily_at="03:30"), clock=clock, look_seconds=0.001) as job:
        assert done.wait(10)
    return job


def test_it_is_off_until_a_time_is_configured(tmp_path: Path) -> None:
    job = RetentionScheduler(tmp_path, RetentionConfig())
    job.start()
    assert job._thread is None
    job.stop()
