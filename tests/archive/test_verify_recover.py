from __future__ import annotations

import json
from pathlib import Path

import pytest

from replaylab import frames
from replaylab.archive import recover, run_retention, verify
from replaylab.config import RetentionConfig
from tests.archive.roots import event, order, trade, tree, write_lines, write_session

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
    write_lines(root / "trades/BTCUSDT.json", "[]")
    write_session(root, "s1", "2025-11-18")
    return root


def test_a_sound_root_has_no_findings(tmp_path: Path) -> None:
    root = good_root(tmp_path)
    before = tree(root)
    report = verify(root)
    assert report.findings.height == 0, report.findings
    assert (report.files, report.lines) == (8, 6)
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
