from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaylab.archive import RetentionScheduler
from replaylab.archive.scheduler import is_due
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

    from replaylab.archive import scheduler as module

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


def test_an_error_is_kept_and_the_thread_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("replaylab.archive.scheduler.run_retention", fail)
    now = [parse_ns("2025-11-18T00:00:00Z")]

    def clock() -> int:
        now[0] += NS_PER_DAY
        return now[0]

    with RetentionScheduler(
        tmp_path, RetentionConfig(daily_at="00:00"), clock=clock, look_seconds=0.001
    ) as job:
        limit = time.monotonic() + 10
        while job.last_error is None and time.monotonic() < limit:
            time.sleep(0.001)
        assert "Input/output error" in str(job.last_error)


def test_it_is_off_until_a_time_is_configured(tmp_path: Path) -> None:
    job = RetentionScheduler(tmp_path, RetentionConfig())
    job.start()
    assert job._thread is None
    job.stop()
