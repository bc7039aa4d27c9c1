from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from replaylab import frames
from replaylab.archive import recover, run_retention, verify
from replaylab.config import RetentionConfig
from tests.archive.roots import event, order, trade, tree, write_lines, write_session

# The package has a function of this name.
rescue: Any = importlib.import_module("replaylab.archive.recover")
RISK = {
    "timestamp": "2025-11-18T00:00:00Z",
    "account": {"equityUsd": 1},
    "dailyStats": {},
    "riskFlags": {},
}


def good_root(root: Path) -> Path:
    write_lines(root / "events/BTCUSDT.jsonl", event("2025-11-18"), event("2025-11-18", 1))
    write_lines(root / "trades_log/day-2025-11-18.jsonl", trade("2025-11-18"))
    write_lines(root / "orders/day-2025-11-18.jsonl", order("2025-11-18"))
    write_lines(root / "system/risk_snapshot.json", RISK)
    write_lines(root / "system/trading_params.jsonl", {"timestamp": "2025-11-18T00:00:00Z", "params": {}})
    write_lines(root / "system/of_another_program.json", "[]")
    write_lines(root / "trades/BTCUSDT.json", "[]")
    write_session(root, "s1", "2025-11-18")
    return root


def test_a_sound_root_has_no_findings(tmp_path: Path) -> None:
    root = good_root(tmp_path)
    before = tree(root)
    report = verify(root)
    assert report.findings.height == 0, report.findings
    assert (report.files, report.lines) == (9, 6)
    run_retention(
        root, now="2026-01-01T00:00:00Z", config=RetentionConfig(archive=True, replay_sessions_days=99)
    )
    assert verify(root).findings.height == 0
    assert before
    json.dumps(report.to_dict())


def test_each_kind_of_damage_is_found_with_its_place(tmp_path: Path) -> None:
    root = good_root(tmp_path)
    write_lines(
        root / "events/AIUSDT.jsonl", event("2025-11-18", symbol="AIUSDT"), "{broken", event("2025-11-18")
    )
    write_lines(root / "trades_log/day-2025-11-19.jsonl", trade("2025-11-18"))
    write_lines(root / "trades_log/day-2025-02-30.jsonl", trade("2025-11-18"))
    write_lines(root / "orders/day-2025-11-19.jsonl", {**order("2025-11-19"), "qty": "1"})
    write_lines(root / "system/tpsl_snapshot.json", RISK)
    write_lines(root / "system/replay_sessions.json", "[")
    write_lines(root / "archive/orders/day-2025-01-01.parquet", "no")
    write_lines(
        root / "replay/sessions/s1/events.jsonl",
        {"timestamp": "2025-11-18T00:00:01Z", "type": "X", "symbol": None, "payload": {}},
        {"timestamp": "2025-11-18T00:00:00Z", "type": "X", "symbol": None, "payload": {}},
    )
    found = {(row["file"], row["line"]): row["reason"] for row in verify(root).findings.to_dicts()}
    assert set(found) == {
        ("events/AIUSDT.jsonl", 2),
        ("events/AIUSDT.jsonl", 3),
        ("trades_log/day-2025-11-19.jsonl", 1),
        ("trades_log/day-2025-02-30.jsonl", None),
        ("orders/day-2025-11-19.jsonl", 1),
        ("system/tpsl_snapshot.json", None),
        ("system/replay_sessions.json", None),
        ("archive/orders/day-2025-01-01.parquet", None),
        ("replay/sessions/s1/events.jsonl", 2),
    }
    assert found["events/AIUSDT.jsonl", 3] == "symbol: found 'BTCUSDT' in the file of 'AIUSDT'"
    assert "OrderLogRecord.qty" in found["orders/day-2025-11-19.jsonl", 1]
    assert verify(root / "events").findings.height == 2
    assert verify(root / "events" / "AIUSDT.jsonl").findings["file"].to_list() == ["AIUSDT.jsonl"] * 2
    with pytest.raises(FileNotFoundError):
        verify(root / "nowhere")


def reasons(path: Path) -> dict[str, str]:
    return {row["file"]: row["reason"] for row in verify(path).findings.to_dicts()}


def test_a_log_outside_its_folder_is_taken_for_what_its_lines_are(tmp_path: Path) -> None:
    """A day file or the output of recover, named by itself or found in a folder, is read like any other log."""
    for name, line in (
        ("BTCUSDT.jsonl", event("2025-11-18")),
        ("day-2025-11-18.jsonl", trade("2025-11-18")),
        ("saved.jsonl", order("2025-11-18")),
        ("params.jsonl", {"timestamp": "2025-11-18T00:00:00Z", "params": {}}),
    ):
        path = write_lines(tmp_path / name, "{torn", line, line)
        report = verify(path)
        assert (report.files, report.lines, report.findings["line"].to_list()) == (1, 3, [1]), name
    assert verify(tmp_path).findings.height == 4
    garbage = write_lines(tmp_path / "garbage.jsonl", "garbage", '{"a":')
    assert "no line of it is a record of any log" in reasons(garbage)["garbage.jsonl"]


@pytest.mark.parametrize("name", ["README.md", "events/B.jsonl.gz", "trades/.hidden.txt", "x.parquet"])
def test_a_named_file_without_a_check_is_a_finding(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / name, "anything")
    report = verify(path)
    assert (report.files, report.skipped) == (0, 1)
    assert "no check for a file of this name and place" in reasons(path)[path.name]


def test_a_folder_with_nothing_to_check_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    assert "nothing to check" in reasons(tmp_path)[tmp_path.name]
    write_lines(tmp_path / "README.md", "words")
    assert verify(tmp_path).findings.height == 1
    assert verify(tmp_path).skipped == 1


def test_links_are_followed_as_loaders_follow_them(tmp_path: Path) -> None:
    """A linked folder is checked under its name in the root; a link in a circle or to nothing is a finding."""
    root = good_root(tmp_path / "root")
    write_lines(tmp_path / "elsewhere/day-2025-11-19.jsonl", trade("2025-11-18"), "broken")
    (root / "trades_log/day-2025-11-18.jsonl").unlink()
    (root / "trades_log").rmdir()
    (root / "trades_log").symlink_to(tmp_path / "elsewhere")
    (root / "events/again").symlink_to(root)
    (root / "orders/day-2025-11-19.jsonl").symlink_to(tmp_path / "gone")
    assert frames.load_trades(root).rejects.height == 1
    found = [(row["file"], row["line"]) for row in verify(root).findings.to_dicts()]
    assert found == [
        ("events/again", None),
        ("orders/day-2025-11-19.jsonl", None),
        ("trades_log/day-2025-11-19.jsonl", 1),
        ("trades_log/day-2025-11-19.jsonl", 2),
    ]


def test_names_of_sessions_and_of_folders_above_the_root_mislead_nobody(tmp_path: Path) -> None:
    """A session may be called as a log is, and a root may lie in a folder called archive."""
    root = good_root(tmp_path / "archive" / "events" / "data")
    names = ("events", "orders", "trades_log", "system", "metrics", "trades", "summary")
    for name in names:
        write_session(root, name, "2025-11-18")
    write_lines(root / "replay/sessions/s1/runs/metrics/run.json", {})
    write_lines(root / "history/trades/BTCUSDT/day-2025-11-18.parquet", "of another kind")
    report = verify(root)
    assert report.findings.is_empty(), report.findings
    assert (report.files, report.skipped) == (9 + 2 * len(names) + 1, 1)


def test_all_files_of_a_session_and_summaries_are_checked(tmp_path: Path) -> None:
    root = good_root(tmp_path)
    run_retention(root, now="2026-01-01T00:00:00Z", config=RetentionConfig(replay_sessions_days=99))
    assert verify(root).findings.is_empty()
    write_session(root, "renamed", "2025-11-18").rename(root / "replay/sessions/s2")
    (write_session(root, "empty", "2025-11-18") / "events.jsonl").unlink()
    (write_session(root, "unlisted", "2025-11-18") / "manifest.json").unlink()
    write_lines(write_session(root, "s3", "2025-11-18") / "meta.json", '{"a":')
    write_lines(write_session(root, "s4", "2025-11-18") / "meta.json", "[]")
    write_lines(root / "summary/trades_log/day-2025-11-18.json", "{")
    there = root / "summary/orders/day-2025-11-18.json"
    there.rename(there.with_name("day-2025-11-17.json"))
    found = reasons(root)
    assert "sessionId: found 'renamed'" in found.pop("replay/sessions/s2/manifest.json")
    assert "events.jsonl is missing" in found.pop("replay/sessions/empty/manifest.json")
    assert "manifest.json is missing" in found.pop("replay/sessions/unlisted/events.jsonl")
    assert "not valid JSON" in found.pop("replay/sessions/s3/meta.json")
    assert "expected a JSON object" in found.pop("replay/sessions/s4/meta.json")
    assert "not a summary" in found.pop("summary/trades_log/day-2025-11-18.json")
    assert "summary/orders/day-2025-11-18.json" in found.pop("summary/orders/day-2025-11-17.json")
    assert found == {}


def test_an_order_of_another_day_is_found(tmp_path: Path) -> None:
    """The day of an order is the UTC date of its timestamp, whatever its zone."""
    shifted = {**order("2025-11-18"), "timestamp": "2025-11-19T01:00:00+02:00"}
    path = write_lines(tmp_path / "orders/day-2025-11-18.jsonl", shifted, order("2025-11-01"))
    (row,) = verify(path).findings.to_dicts()
    assert (row["line"], row["reason"]) == (2, "timestamp: found '2025-11-01' in the file of '2025-11-18'")


def test_what_cannot_be_opened_is_a_finding_and_the_rest_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = good_root(tmp_path)
    write_lines(root / "trades_log/day-2025-11-19.jsonl", "broken")
    real = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "BTCUSDT.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    report = verify(root)
    assert report.findings["file"].to_list() == ["events/BTCUSDT.jsonl", "trades_log/day-2025-11-19.jsonl"]
    assert "Permission denied" in report.findings["reason"][0]
    assert report.files == 10


def test_recover_copies_good_lines_to_the_letter(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "events/BTCUSDT.jsonl", *(event("2025-11-18", second) for second in range(3))
    )
    before = path.read_bytes()
    report = recover(path, tmp_path / "out.jsonl")
    assert (report.kept, report.repaired, report.lost.height) == (3, 0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert path.read_bytes() == before
    with pytest.raises(FileExistsError):
        recover(path, tmp_path / "out.jsonl")


def test_recover_finds_whole_records_inside_damaged_lines(tmp_path: Path) -> None:
    whole = [json.dumps(event("2025-11-18", second)) for second in range(6)]
    data = (
        (whole[0] + "\n").encode()
        + whole[1][:50].encode()
        + (whole[2] + "\n").encode()
        + (whole[3] + whole[4] + "\n").encode()
        + b"\x00" * 100
        + (whole[5] + "\n").encode()
        + b"\n"
        + whole[1][:30].encode()
    )
    path = tmp_path / "events" / "BTCUSDT.jsonl"
    path.parent.mkdir()
    path.write_bytes(data)
    report = recover(path, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == [
        whole[0],
        whole[2],
        whole[3],
        whole[4],
        whole[5],
    ]
    assert (report.kept, report.repaired, report.blank) == (5, 4, 1)
    assert report.lost["line"].to_list() == [2, 6]
    assert whole[1][:30] in report.lost["text"].to_list()
    (tmp_path / "again" / "events").mkdir(parents=True)
    (tmp_path / "out.jsonl").rename(tmp_path / "again" / "events" / "BTCUSDT.jsonl")
    assert frames.load_events(tmp_path / "again").rejects.is_empty()


def test_recover_of_any_other_file_takes_json_objects(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "what.jsonl", {"a": 1}, "[1]", '{"b":')
    report = recover(path, tmp_path / "out.jsonl")
    assert (report.kept, report.lost["line"].to_list()) == (1, [2, 3])


def test_recover_invents_no_records(tmp_path: Path) -> None:
    """What lies inside a torn line is not taken for a record, wherever the file lies and whatever is in it."""
    whole = event("2025-11-18")
    torn = '{"timestamp":"2025-11-18T10:00:00Z","symbol":"B","extra":{"score":0.5,"side":"LONG"},"eventTy'
    params = {"timestamp": "2025-11-18T00:00:00Z", "params": {"slPct": 1}}
    cut = '{"timestamp":"2025-11-18T10:00:00Z","params":{"slPct":1}'
    for name, line, bad in (
        ("x/BTCUSDT.jsonl", whole, torn),
        ("system/trading_params.jsonl", params, cut),
        ("other.jsonl", {"a": 1}, torn),
        ("other.jsonl", {"a": 1}, cut[10:]),
        ("other.jsonl", {"a": 1}, '{"x":\0{"score":1}}'),
    ):
        path = write_lines(tmp_path / name, line, bad)
        out = tmp_path / "out.jsonl"
        report = recover(path, out)
        assert (report.kept, report.repaired, report.lost["line"].to_list()) == (1, 0, [2]), bad
        assert out.read_text(encoding="utf-8") == json.dumps(line) + "\n"
        out.unlink()


def test_recover_of_a_file_of_unknown_kind_takes_whole_objects_before_the_damage(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "other.jsonl", '{"a":1}{"b":{"c":1}} {"d":', '\0\0{"e":1}')
    report = recover(path, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == '{"a":1}\n{"b":{"c":1}}\n{"e":1}\n'
    assert report.lost["line"].to_list() == [1]


def test_recover_finds_a_record_behind_many_nuls_and_reports_nuls_alone(tmp_path: Path) -> None:
    good = json.dumps(event("2025-11-18")).encode()
    path = tmp_path / "events" / "BTCUSDT.jsonl"
    path.parent.mkdir()
    path.write_bytes(good + b"\n" + bytes(3_000_000) + good + b"\n" + bytes(4096))
    assert frames.load_events(tmp_path).rejects.height == 2
    report = recover(path, tmp_path / "out.jsonl")
    assert (report.kept, report.repaired) == (2, 1)
    assert report.lost["line"].to_list() == [3]
    assert "NUL" in report.lost["reason"][0]


@pytest.mark.parametrize(
    "rubbish",
    [b'{"a":' * 20_000, b'{"a":1},' * 20_000, b'{"a":[' * 500 + b'{"b":1},' * 10_000, b'{"a"' * 300_000],
)
def test_a_line_of_rubbish_is_given_up_after_a_bounded_number_of_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rubbish: bytes
) -> None:
    """The work for a damaged line grows with its length, not with the square of it; the report says so."""
    attempts = []
    real = rescue._object_at
    monkeypatch.setattr(rescue, "_object_at", lambda *args: attempts.append(1) or real(*args))
    path = tmp_path / "events" / "BTCUSDT.jsonl"
    path.parent.mkdir()
    good = json.dumps(event("2025-11-18")).encode()
    path.write_bytes(good + rubbish + b"\n")
    report = recover(path, tmp_path / "out.jsonl")
    assert len(attempts) <= 102
    assert "not all of it was searched" in report.lost["reason"][0]


def test_a_recovery_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output appears complete or not at all, so the next attempt can use the same name."""
    path = write_lines(tmp_path / "events/BTCUSDT.jsonl", event("2025-11-18"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rescue.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        recover(path, tmp_path / "saved.jsonl")
    assert [item.name for item in tmp_path.iterdir()] == ["events"]
    monkeypatch.undo()
    assert recover(path, tmp_path / "saved.jsonl").kept == 1
    with pytest.raises(FileExistsError, match="already"):
        recover(path, tmp_path / "saved.jsonl")


PEAK = """
import sys
from pathlib import Path
from replaylab.archive import {name}
more = lambda folder: [Path(folder, "out")] if "{name}" == "recover" else []
def peak(folder):
    {name}(Path(folder, "events", "BTCUSDT.jsonl"), *more(folder))
    # Not getrusage: a child begins with the peak of its parent there.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
small = peak(sys.argv[1])
print((peak(sys.argv[2]) - small) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["verify", "recover"])
@pytest.mark.parametrize("kind", ["good", "rubbish"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, kind: str) -> None:
    """A file eight times as large takes no more memory than a few blocks, also when hardly a line of it is good.

    Both are larger than a block.
    """
    good = json.dumps(event("2025-11-18")).encode() + b"\n"
    piece = (
        good * 4000 if kind == "good" else good + b"rubbish, " * 20 + b"\n" + (b"torn " * 20 + b"\n") * 3_000
    )
    for folder, times in (("small", 10), ("large", 80)):
        path = tmp_path / folder / "events" / "BTCUSDT.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(piece * times)
    code = PEAK.format(name=name)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "small"), str(tmp_path / "large")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 24 << 20
