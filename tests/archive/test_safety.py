"""Files that a clean-up does not touch, and clean-ups that meet an obstacle."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from replaylab import frames
from replaylab.archive import archived, daily_summary, last_report, retention, run_retention
from replaylab.config import RetentionConfig
from replaylab.errors import RetentionError
from replaylab.frames.files import pending_mark
from replaylab.paths import DataRoot
from tests.archive.roots import event, set_age, trade, tree, write_lines, write_session

NOW = "2025-11-20T12:00:00Z"
ARCHIVE = RetentionConfig(archive=True)


def after_the_plan(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let the world change between the plan and its steps."""
    real = retention.plan

    def late(*args: object) -> object:
        made = real(*args)  # type: ignore[arg-type]
        change()
        return made

    monkeypatch.setattr(retention, "plan", late)


def test_a_session_that_is_pinned_after_the_plan_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_session(tmp_path, "mine", "2025-01-01")
    after_the_plan(monkeypatch, lambda: (folder / "meta.json").write_text('{"pin": true}', encoding="utf-8"))
    report = run_retention(tmp_path, now=NOW)
    assert folder.exists()
    assert report.kept_files == ["replay/sessions/mine"]
    assert "pinned meanwhile" in report.errors[0].error


def test_a_market_file_that_is_written_after_the_plan_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "trades/BTCUSDT.json", "[]")
    set_age(path, "2025-11-01")
    after_the_plan(monkeypatch, lambda: write_lines(path, "[]"))
    report = run_retention(tmp_path, now=NOW)
    assert path.exists()
    assert "written meanwhile" in report.errors[0].error


def test_a_session_whose_meta_is_no_object_stays(tmp_path: Path) -> None:
    """Whether it is pinned cannot be known."""
    folder = write_session(tmp_path, "mine", "2025-01-01")
    (folder / "meta.json").write_text("[]", encoding="utf-8")
    report = run_retention(tmp_path, now=NOW)
    assert report.kept_files == ["replay/sessions/mine"]
    assert "expected an object, found list" in report.errors[0].error


@pytest.mark.parametrize(
    "name",
    [
        "archive",
        "archive/trades_log",
        "archive/events",
        "archive/events/BTCUSDT",
        "summary",
        "summary/trades_log",
        "summary/events/BTCUSDT",
        "replay",
        "replay/sessions",
    ],
)
def test_nothing_is_written_or_removed_behind_a_link(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_lines(root / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    write_lines(root / "events/BTCUSDT.jsonl", event("2025-01-01"))
    for place in (
        "sessions/.deleted-abc/mine",
        ".deleted-abc/mine",
        ".part-mine.tmp",
        "trades_log/.part-mine.tmp",
    ):
        write_lines(outside / place, "mine")
    write_lines(outside / "day-2025-01-01.parquet.pending", "mine")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(outside)
    before = tree(outside), tree(root / "trades_log"), tree(root / "events")
    report = run_retention(root, now=NOW, config=ARCHIVE)
    assert tree(outside) == before[0]
    assert any("symbolic link" in error.error for error in report.errors)
    if "trades_log" in name or name in ("archive", "summary"):
        assert tree(root / "trades_log") == before[1]
    if "events" in name or name in ("archive", "summary"):
        assert tree(root / "events") == before[2]


def test_a_root_whose_system_folder_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    path = write_lines(tmp_path / "root/trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    (tmp_path / "root/system").symlink_to(tmp_path / "outside")
    with pytest.raises(RetentionError, match="system is a symbolic link"):
        run_retention(tmp_path / "root", now=NOW)
    assert path.exists()
    assert tree(tmp_path / "outside") == {}


def test_files_that_cannot_be_read_are_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "trades/BTCUSDT.json", "[]")
    old = write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    no = PermissionError(13, "Permission denied")

    def refuse(*args: object) -> object:
        raise no

    monkeypatch.setattr(frames, "load_market_trades_json", refuse)
    real_list = os.listdir

    def refuse_orders(path: Path) -> list[str]:
        if path == tmp_path / "orders":
            raise no
        return real_list(path)

    monkeypatch.setattr("replaylab.archive.listing.os.listdir", refuse_orders)
    report = run_retention(tmp_path, now=NOW)
    assert {error.file for error in report.errors} == {"trades/BTCUSDT.json", "orders"}
    assert report.kept_files == ["trades/BTCUSDT.json"]
    assert not old.exists()


def test_pipes_hold_nothing(tmp_path: Path) -> None:
    write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    (tmp_path / "events").mkdir()
    os.mkfifo(tmp_path / "events/pipe")
    report = run_retention(tmp_path, now=NOW, config=RetentionConfig(max_total_bytes=10**9))
    assert (report.deleted_files, report.errors) == (["trades_log/day-2025-01-01.jsonl"], [])


def test_what_a_killed_clean_up_left_half_written_is_removed(tmp_path: Path) -> None:
    left = (
        "events/.BTCUSDT.jsonl.x.tmp",
        "archive/orders/.part-x.tmp",
        "summary/orders/.day-2025-01-01.json.1.tmp",
    )
    report = "system/.retention_report.json.1.2.3.tmp"
    for name in (*left, report, "replay/sessions/.deleted-x/notes", "system/.mine.tmp"):
        write_lines(tmp_path / name, "half")
    run_retention(tmp_path, now=NOW)
    assert set(tree(tmp_path)) == {
        "system/.mine.tmp",
        "system/.retention.lock",
        "system/.retention.reserve",
        "system/retention_report.json",
    }


def test_a_clean_up_that_stops_still_leaves_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    write_lines(tmp_path / "trades_log/day-2025-11-20.jsonl", trade("2025-11-20"))

    def stop(*args: object) -> int:
        raise RuntimeError("reason unknown")

    monkeypatch.setattr(retention, "excess", stop)
    with pytest.raises(RuntimeError, match="reason unknown"):
        run_retention(tmp_path, now=NOW)
    report = last_report(DataRoot(tmp_path))
    assert report is not None
    assert report.deleted_files == ["trades_log/day-2025-01-01.jsonl"]
    assert report.kept_files == ["trades_log/day-2025-11-20.jsonl"]
    assert [error.error for error in report.errors] == ["the clean-up stopped: reason unknown"]


def test_what_was_rotated_or_archived_is_for_the_users_of_the_log(tmp_path: Path) -> None:
    """Root may run the clean-up of a bot that is not root: owner, group and mode are those of the log."""
    log = write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-01-01"), event("2025-11-20"))
    day = write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    owner = (1234, 1235) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    for path in (log, day):
        path.chmod(0o664)
        os.chown(path, *owner)
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    parts = sorted(tmp_path.glob("archive/**/*.parquet"))
    assert len(parts) == 2
    for path in (log, *parts):
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (*owner, 0o664)


@pytest.mark.parametrize("marked", [True, False])
def test_a_damaged_part_is_in_nobodys_way(tmp_path: Path, marked: bool) -> None:
    """Other days leave their log; one that may still be in it is reported until it is repaired."""
    log = write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-01-01"), event("2025-11-20"))
    part = write_lines(tmp_path / "archive/events/BTCUSDT/day-2024-01-01.parquet", "garbage")
    if marked:
        pending_mark(part).touch()
    for _ in range(2):
        report = run_retention(tmp_path, now=NOW, config=ARCHIVE)
        found = ["archive/events/BTCUSDT/day-2024-01-01.parquet"] if marked else []
        assert [error.file for error in report.errors] == found
        assert len(log.read_bytes().splitlines()) == 1
    assert archived(tmp_path).select("source", "rows", "bytes").rows() == [
        (None, None, 8),
        ("events/BTCUSDT.jsonl", 1, archived(tmp_path)["bytes"][1]),
    ]
    assert frames.load_events(tmp_path).frame.height == 2


def test_a_log_of_more_days_than_files_may_be_open(tmp_path: Path) -> None:
    """Days that come back after their part was closed become a second part."""
    days = [f"2025-{number // 25 + 1:02d}-{number % 25 + 1:02d}" for number in range(200)]
    lines = [event(day, second) for again in (0, 1) for day in days for second in range(again, 40, 2)]
    write_lines(tmp_path / "events/BTCUSDT.jsonl", *lines)
    before = frames.load_events(tmp_path).frame.drop("line")
    summary = daily_summary(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 100, hard))  # noqa: PTH208
    try:
        report = run_retention(tmp_path, now=NOW, config=ARCHIVE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.deleted_files, report.errors) == (["events/BTCUSDT.jsonl"], [])
    after = frames.load_events(tmp_path).frame.drop("line")
    assert after.sort("timestamp").equals(before.sort("timestamp"))
    assert daily_summary(tmp_path).equals(summary)
    text = json.dumps(lines[0])
    assert archived(tmp_path)["source_bytes"].sum() == (len(text) + 1) * len(lines)


@pytest.mark.parametrize("damage", ["no parquet", "cut", "rows"])
def test_a_damaged_part_is_a_reject_that_names_it(tmp_path: Path, damage: str) -> None:
    for day in ("2025-01-01", "2025-01-02"):
        write_lines(tmp_path / f"trades_log/day-{day}.jsonl", *(trade(day, second) for second in range(100)))
    run_retention(tmp_path, now=NOW, config=ARCHIVE)
    part = tmp_path / "archive/trades_log/day-2025-01-01.parquet"
    data = bytearray(part.read_bytes())
    if damage == "no parquet":
        data = bytearray(b"nothing")
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[4:1500] = bytes(1496)
    part.write_bytes(data)
    loaded = frames.load_trades(tmp_path)
    assert loaded.frame.height == 100
    assert loaded.rejects["file"].to_list() == ["archive/trades_log/day-2025-01-01.parquet"]
    assert "not an archived log" in loaded.rejects["reason"][0]
    assert loaded.lines == loaded.rows + loaded.rejects.height + loaded.blank
    run_retention(tmp_path, now=NOW, config=ARCHIVE)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("made_before", [False, True])
def test_every_name_above_a_summary_or_part_is_synced_before_the_last_copy_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bool, made_before: bool
) -> None:
    """Also of folders that a killed clean-up made and did not sync."""
    root = tmp_path / "data"
    write_lines(root / "trades_log" / "day-2025-01-01.jsonl", trade("2025-01-01"))
    write_lines(root / "events" / "BTCUSDT.jsonl", event("2025-01-01"), event("2025-11-20"))
    write_lines(root / "events" / "ETHUSDT.jsonl", event("2025-01-01"))
    unsynced: set[Path] = set()
    departed = []
    if made_before:
        for name in ("summary/trades_log", "summary/events/BTCUSDT", "archive/trades_log"):
            (root / name).mkdir(parents=True)
            unsynced |= {root, (root / name).parent, root / name}
    mkdir, unlink, replace, fsync = os.mkdir, os.unlink, os.replace, os.fsync

    def make(path: str | Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        unsynced.add(Path(path).parent)

    def depart(path: Path) -> None:
        if path.parent.name in ("events", "trades_log") and path.suffix == ".jsonl" and path.name[0] != ".":
            departed.append(path.name)
            own = "trades_log" if path.parent.name == "trades_log" else f"events/{path.stem}"
            for place in ("summary", "archive") if archive else ("summary",):
                folder = root / place / own
                assert any(folder.iterdir())
                assert not unsynced & {
                    root,
                    *(one for one in (folder, *folder.parents) if root in one.parents),
                }

    def remove(path: str | Path, **options: int) -> None:
        depart(Path(path))
        unlink(path, **options)

    def rename(old: str | Path, new: str | Path) -> None:
        depart(Path(new))
        replace(old, new)
        unsynced.add(Path(new).parent)

    def sync(file: int) -> None:
        fsync(file)
        unsynced.discard(Path(f"/proc/self/fd/{file}").readlink())

    monkeypatch.setattr("replaylab.fsio.Disk.fsync", staticmethod(sync))
    for name, act in (("mkdir", make), ("unlink", remove), ("replace", rename), ("fsync", sync)):
        monkeypatch.setattr(os, name, act)
    report = run_retention(root, now=NOW, config=RetentionConfig(archive=archive))
    monkeypatch.undo()
    assert report.errors == []
    assert sorted(departed) == ["BTCUSDT.jsonl", "ETHUSDT.jsonl", "day-2025-01-01.jsonl"]
