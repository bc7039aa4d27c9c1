from __future__ import annotations

import json
import os
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

import replaylab
from replaylab import frames
from replaylab.archive import daily_summary, depart, last_report, retention, run_retention, runRetentionJob
from replaylab.archive.summary import read_summary, summary_path
from replaylab.config import RetentionConfig
from replaylab.errors import RetentionError
from replaylab.logging import Logger
from replaylab.paths import DataRoot
from tests.archive.roots import event, order, set_age, trade, tree, write_lines, write_session

NOW = "2025-11-20T12:00:00Z"


def day_of(root: Path, log: str, day: str) -> Path:
    return root / log / f"day-{day}.jsonl"


def test_t2_trade_log_and_retention(tmp_path: Path) -> None:
    """T2: two days of backdated trades, tradesLogDays = 1: the older file is gone, the newer one stays."""
    with Logger(DataRoot(tmp_path)) as logger:
        for day in ("2025-11-18", "2025-11-19"):
            for second in range(3):
                logger.log_trade(trade(day, second)).result()
    report = run_retention(tmp_path, now=NOW, config=RetentionConfig(trades_log_days=1))
    assert not day_of(tmp_path, "trades_log", "2025-11-18").exists()
    assert day_of(tmp_path, "trades_log", "2025-11-19").exists()
    assert report.to_dict() == {
        "timestamp": "2025-11-20T12:00:00.000Z",
        "deletedFiles": ["trades_log/day-2025-11-18.jsonl"],
        "keptFiles": ["trades_log/day-2025-11-19.jsonl"],
        "errors": [],
    }
    assert runRetentionJob is run_retention


@pytest.mark.parametrize(
    "now",
    [
        "2025-11-20T00:00:00Z",
        "2025-11-20T23:59:59.999Z",
        "2025-11-21T01:00:00+02:00",
        "2025-11-19T20:00:00-05:00",
        datetime(2025, 11, 20, 1, tzinfo=UTC),
        datetime(2025, 11, 20, 1),  # noqa: DTZ001 - without a zone it is UTC
        datetime(2025, 11, 21, 1, tzinfo=timezone(timedelta(hours=5))),
        datetime(2025, 11, 19, 20, tzinfo=ZoneInfo("America/New_York")),
        date(2025, 11, 20),
    ],
)
def test_a_day_file_is_old_by_the_utc_date_of_now(tmp_path: Path, now: str | datetime | date) -> None:
    for day in ("2025-11-17", "2025-11-18", "2025-11-19", "2025-11-20"):
        write_lines(day_of(tmp_path, "trades_log", day), trade(day))
    report = run_retention(tmp_path, now=now, config=RetentionConfig(trades_log_days=2))
    assert report.deleted_files == ["trades_log/day-2025-11-17.jsonl"]


@pytest.mark.parametrize(
    ("now", "days", "oldest_kept"),
    [
        ("2024-03-01T00:00:00Z", 1, "2024-02-29"),
        ("2025-03-01T00:00:00Z", 1, "2025-02-28"),
        # The nights in which clocks change in New York and Berlin.
        ("2025-03-09T07:30:00Z", 1, "2025-03-08"),
        (datetime(2025, 3, 9, 3, 30, tzinfo=ZoneInfo("America/New_York")), 1, "2025-03-08"),
        (datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), 1, "2025-10-25"),
        ("2025-01-01T00:00:00Z", 1, "2024-12-31"),
        ("2025-01-31T00:00:00Z", 0, "2025-01-31"),
    ],
)
def test_leap_days_clock_changes_and_year_ends(
    tmp_path: Path, now: str | datetime, days: int, oldest_kept: str
) -> None:
    first = date.fromisoformat(oldest_kept) - timedelta(days=2)
    every = [(first + timedelta(days=offset)).isoformat() for offset in range(4)]
    for day in every:
        write_lines(day_of(tmp_path, "orders", day), order(day))
    run_retention(tmp_path, now=now, config=RetentionConfig(orders_log_days=days))
    assert frames.list_days(tmp_path, "orders") == every[2:]


def test_a_clock_set_back_deletes_nothing(tmp_path: Path) -> None:
    write_lines(day_of(tmp_path, "trades_log", "2025-11-18"), trade("2025-11-18"))
    assert run_retention(tmp_path, now="1999-01-01T00:00:00Z").deleted_files == []


@pytest.mark.parametrize("now", [NOW, "1700-01-01T00:00:00Z"])
def test_the_longest_that_can_be_configured_keeps_everything(tmp_path: Path, now: str) -> None:
    """A hundred years before ``now`` is a day like any other, also where no time is that early."""
    day = now[:10]
    write_lines(day_of(tmp_path, "trades_log", day), trade(day))
    write_lines(tmp_path / "events/BTCUSDT.jsonl", event(day))
    write_session(tmp_path, "s", day)
    longest = RetentionConfig(
        trades_log_days=36_500, events_days=36_500, replay_sessions_days=36_500, raw_market_data_hours=876_000
    )
    report = run_retention(tmp_path, now=now, config=longest)
    assert (report.deleted_files, report.errors) == ([], [])
    assert len(report.kept_files) == 3


def test_files_that_only_look_like_day_files_are_never_touched(tmp_path: Path) -> None:
    names = [
        "day-2025-02-30.jsonl",
        "day-2025-13-01.jsonl",
        "day-20250101.jsonl",
        "day-2020-01-01.jsonl.bak",
        "day-2020-01-01.jsonl.torn",
        "xday-2020-01-01.jsonl",
        "day-2020-01-01.json",
        "day-٢٠٢٠-01-01.jsonl",
        ".day-2020-01-01.jsonl",
        "notes.txt",
    ]
    for name in names:
        write_lines(tmp_path / "trades_log" / name, "keep me")
    (tmp_path / "trades_log" / "day-2020-01-02.jsonl").mkdir()
    for other in (
        "history/trades/BTCUSDT/day-2020-01-01.parquet",
        "system/users.db",
        "metrics/BTCUSDT.json",
        "README",
    ):
        write_lines(tmp_path / other, "keep me")
        set_age(tmp_path / other, "2020-01-01")
    before = tree(tmp_path)
    report = run_retention(tmp_path, now=NOW)
    after = {name: data for name, data in tree(tmp_path).items() if "retention" not in name}
    assert after == before
    assert report.deleted_files == []
    assert report.kept_files == []


def test_ten_thousand_files(tmp_path: Path) -> None:
    first = date(1998, 1, 1)
    folder = tmp_path / "orders"
    folder.mkdir()
    text = json.dumps(order("2000-01-01")) + "\n"
    for offset in range(10_000):
        (folder / f"day-{first + timedelta(days=offset)}.jsonl").write_text(text, encoding="utf-8")
    report = run_retention(tmp_path, now="2025-05-20T00:00:00Z", dry_run=True)
    assert len(report.deleted_files) + len(report.kept_files) == 10_000
    assert report.deleted_files[-1] == "orders/day-2025-04-19.jsonl"


def test_a_dry_run_changes_nothing_and_says_what_a_real_one_does(tmp_path: Path) -> None:
    write_lines(day_of(tmp_path, "trades_log", "2025-01-01"), trade("2025-01-01"))
    write_lines(day_of(tmp_path, "trades_log", "2025-11-20"), trade("2025-11-20"))
    write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-01-01"), event("2025-11-20"))
    write_lines(tmp_path / "events/AIUSDT.jsonl", event("2025-01-01", symbol="AIUSDT"))
    write_session(tmp_path, "old", "2025-01-01")
    write_session(tmp_path, "new", "2025-11-19")
    write_lines(tmp_path / "trades/BTCUSDT.json", "[]")
    set_age(tmp_path / "trades/BTCUSDT.json", "2025-11-01")
    before = tree(tmp_path)
    dry = run_retention(tmp_path, now=NOW, dry_run=True)
    assert tree(tmp_path) == before
    wet = run_retention(tmp_path, now=NOW)
    assert dry.deleted_files == wet.deleted_files
    assert dry.kept_files == wet.kept_files
    assert wet.deleted_files == [
        "events/AIUSDT.jsonl",
        "replay/sessions/old",
        "trades/BTCUSDT.json",
        "trades_log/day-2025-01-01.jsonl",
    ]
    assert wet.kept_files == [
        "events/BTCUSDT.jsonl",
        "replay/sessions/new",
        "trades_log/day-2025-11-20.jsonl",
    ]
    saved = last_report(DataRoot(tmp_path))
    assert saved is not None
    assert saved.to_dict() == wet.to_dict()


def test_a_second_run_finds_nothing_to_do(tmp_path: Path) -> None:
    write_lines(day_of(tmp_path, "trades_log", "2025-01-01"), trade("2025-01-01"))
    run_retention(tmp_path, now=NOW)
    assert run_retention(tmp_path, now=NOW).deleted_files == []


def test_the_summary_is_on_disk_before_the_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(day_of(tmp_path, "trades_log", "2025-01-01"), trade("2025-01-01"))
    order_of_steps = []
    unlink = Path.unlink

    def watched(self: Path, missing_ok: bool = False) -> None:
        if self == path:
            summary = read_summary(summary_path(DataRoot(tmp_path), "trades_log", "2025-01-01"))
            order_of_steps.append(summary is not None and summary.accounts[0].rows)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    run_retention(tmp_path, now=NOW)
    assert order_of_steps == [1]
    assert not path.exists()


@pytest.mark.parametrize(
    "step", ["depart.add_account", "depart.check_account", "summary.summarise", "retention.rotate_lock"]
)
def test_a_file_whose_summary_or_deletion_fails_is_kept_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = write_lines(day_of(tmp_path, "trades_log", "2025-01-01"), trade("2025-01-01"))
    write_lines(day_of(tmp_path, "orders", "2025-01-01"), order("2025-01-01"))

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"replaylab.archive.{step}", fail)
    report = run_retention(tmp_path, now=NOW)
    assert path.exists()
    assert [error.file for error in report.errors] == [
        "trades_log/day-2025-01-01.jsonl",
        "orders/day-2025-01-01.jsonl",
    ]
    assert "No space left" in report.errors[0].error
    assert "trades_log/day-2025-01-01.jsonl" in report.kept_files
    monkeypatch.undo()
    # What the failed attempt left behind is not counted twice.
    run_retention(tmp_path, now=NOW)
    frame = daily_summary(tmp_path)
    assert frame.filter(log="trades_log")["rows"].to_list() == [1]


def test_a_summary_that_cannot_be_read_keeps_the_file(tmp_path: Path) -> None:
    path = write_lines(day_of(tmp_path, "trades_log", "2025-01-01"), trade("2025-01-01"))
    write_lines(tmp_path / "summary/trades_log/day-2025-01-01.json", "{broken")
    report = run_retention(tmp_path, now=NOW)
    assert path.exists()
    assert "not a summary" in report.errors[0].error


def test_a_file_that_grows_while_it_is_summarised_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(day_of(tmp_path, "trades_log", "2025-01-01"), trade("2025-01-01"))
    real = depart.add_account

    def grow(*args: object, **options: object) -> None:
        real(*args, **options)  # type: ignore[arg-type]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trade("2025-01-01", 5)) + "\n")

    monkeypatch.setattr(depart, "add_account", grow)
    report = run_retention(tmp_path, now=NOW)
    assert "changed while it was summarised" in report.errors[0].error
    assert path.exists()
    monkeypatch.undo()
    assert run_retention(tmp_path, now=NOW).deleted_files == ["trades_log/day-2025-01-01.jsonl"]
    assert daily_summary(tmp_path)["rows"].to_list() == [2]


def test_symbolic_links_are_never_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    secret = write_lines(outside / "day-2020-01-01.jsonl", trade("2020-01-01"))
    write_lines(outside / "session" / "manifest.json", "{}")
    root.mkdir()
    (root / "trades_log").symlink_to(outside)
    (root / "orders").mkdir()
    (root / "orders" / "day-2020-01-01.jsonl").symlink_to(secret)
    (root / "events").mkdir()
    (root / "events" / "BTCUSDT.jsonl").symlink_to(secret)
    folder = write_session(root, "real", "2020-01-01")
    (folder / "link").symlink_to(outside)
    (root / "replay" / "sessions" / "linked").symlink_to(outside / "session")
    (root / "trades").symlink_to(outside)
    before = tree(outside)
    report = run_retention(root, now=NOW)
    assert tree(outside) == before
    assert report.deleted_files == ["replay/sessions/real"]
    assert {error.file for error in report.errors} == {
        "trades_log",
        "orders/day-2020-01-01.jsonl",
        "events/BTCUSDT.jsonl",
        "replay/sessions/linked",
        "trades",
    }


def test_the_sample_and_the_folder_of_a_run_are_refused(tmp_path: Path) -> None:
    checkout = Path(replaylab.__file__).parents[1] / "data"
    if (checkout / "make_sample.py").exists():
        with pytest.raises(RetentionError, match="sample"):
            run_retention(checkout, dry_run=True)
    run = tmp_path / "replay" / "sessions" / "s" / "runs" / "r"
    write_lines(run / "trades_log/day-2020-01-01.jsonl", trade("2020-01-01"))
    with pytest.raises(RetentionError, match="run of a replay"):
        run_retention(run)


def test_a_missing_root_is_not_made(tmp_path: Path) -> None:
    report = run_retention(tmp_path / "nowhere", now=NOW)
    assert (report.deleted_files, report.kept_files) == ([], [])
    assert not (tmp_path / "nowhere").exists()


def test_sessions_that_are_pinned_running_unreadable_or_young_stay(tmp_path: Path) -> None:
    for name, pin in (("pinned", True), ("unpinned", False), ("plain", None), ("playing", None)):
        write_session(tmp_path, name, "2025-01-01", pin=pin)
    write_session(tmp_path, "young", "2025-11-01")
    broken = write_session(tmp_path, "broken", "2025-01-01")
    (broken / "manifest.json").write_text("{", encoding="utf-8")
    odd = write_session(tmp_path, "odd-meta", "2025-01-01")
    (odd / "meta.json").write_text("{", encoding="utf-8")
    write_lines(tmp_path / "replay/sessions/no-session/notes.txt", "mine")
    write_lines(tmp_path / "system/replay_status.json", {"sessionId": "playing", "running": True})
    index = {"timestamp": NOW, "sessions": [{"sessionId": "plain"}, {"sessionId": "young"}]}
    write_lines(tmp_path / "system/replay_sessions.json", index)
    report = run_retention(tmp_path, now=NOW)
    assert report.deleted_files == ["replay/sessions/plain", "replay/sessions/unpinned"]
    assert {error.file for error in report.errors} == {"replay/sessions/broken", "replay/sessions/odd-meta"}
    assert sorted(path.name for path in (tmp_path / "replay/sessions").iterdir()) == [
        "broken",
        "no-session",
        "odd-meta",
        "pinned",
        "playing",
        "young",
    ]
    left = json.loads((tmp_path / "system/replay_sessions.json").read_text(encoding="utf-8"))
    assert [entry["sessionId"] for entry in left["sessions"]] == ["young"]


def test_market_files_by_their_newest_entry(tmp_path: Path) -> None:
    entry = {"timestamp": "2025-11-20T11:00:00Z", "price": 1, "qty": 1, "side": "BUY", "tradeId": None}
    fresh = write_lines(tmp_path / "trades/FRESH.json", [entry])
    set_age(fresh, "2025-01-01")
    write_lines(tmp_path / "trades/STALE.json", [{**entry, "timestamp": "2025-11-19T11:59:59Z"}])
    write_lines(
        tmp_path / "orderbook/STALE.json",
        {"timestamp": "2025-11-19T00:00:00Z", "symbol": "STALE", "bids": [], "asks": []},
    )
    report = run_retention(tmp_path, now=NOW)
    assert report.deleted_files == ["orderbook/STALE.json", "trades/STALE.json"]
    assert report.kept_files == ["trades/FRESH.json"]


def test_two_clean_ups_of_one_root_do_not_meet(tmp_path: Path) -> None:
    with retention._only_one(DataRoot(tmp_path)), pytest.raises(RetentionError, match="another clean-up"):
        run_retention(tmp_path, now=NOW)
    run_retention(tmp_path, now=NOW)


def test_rejects_and_both_days_are_in_the_summary(tmp_path: Path) -> None:
    write_lines(
        day_of(tmp_path, "trades_log", "2025-01-01"),
        trade("2025-01-01", 1, pnl=2.0, fees=0.5, reason="TP1"),
        trade("2025-01-01", 2, pnl=-3.0, fees=0.25, reason="STOP_LOSS"),
        trade("2025-01-01", 3, pnl=4.0, symbol="AIUSDT"),
        "broken",
        "",
    )
    write_lines(
        day_of(tmp_path, "orders", "2025-01-01"), order("2025-01-01"), order("2025-01-01", 1, "FILLED")
    )
    live = daily_summary(tmp_path)
    run_retention(tmp_path, now=NOW)
    gone = daily_summary(tmp_path)
    assert gone.equals(live)
    row = gone.filter(log="trades_log", symbol="BTCUSDT").to_dicts()[0]
    assert row["day"] == date(2025, 1, 1)
    assert (row["rows"], row["wins"], row["losses"], row["win_rate"]) == (2, 1, 1, 0.5)
    assert (row["realized_pnl"], row["fees"]) == (-1.0, 0.75)
    assert json.loads(row["exit_reasons"]) == {"STOP_LOSS": 1, "TP1": 1}
    assert gone.filter(log="trades_log")["rejects"].to_list() == [0, 0, 1]
    assert json.loads(gone.filter(log="orders")["statuses"][0]) == {"FILLED": 1, "NEW": 1}


def test_late_lines_of_a_day_that_is_gone_add_to_its_summary(tmp_path: Path) -> None:
    path = day_of(tmp_path, "trades_log", "2025-01-01")
    write_lines(path, trade("2025-01-01", 1))
    run_retention(tmp_path, now=NOW)
    write_lines(path, trade("2025-01-01", 2), trade("2025-01-01", 3))
    run_retention(tmp_path, now=NOW)
    assert daily_summary(tmp_path)["rows"].to_list() == [3]


def test_a_session_folder_without_a_manifest_ages_by_its_last_change(tmp_path: Path) -> None:
    """Such a folder cannot be played; it is deleted once it is as old as sessions may be, and kept until then."""
    old, new = (tmp_path / f"replay/sessions/{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_text("")
    for path in (old / "events.jsonl", old):
        os.utime(path, (0, 0))
    report = run_retention(tmp_path)
    assert report.deleted_files == ["replay/sessions/old"]
    assert report.kept_files == ["replay/sessions/new"]
    assert not old.exists()
    assert new.exists()
