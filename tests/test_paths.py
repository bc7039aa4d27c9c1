"""Paths: where each file lives, and no name from outside leads out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import UnsafeNameError
from replaylab.paths import SNAPSHOTS, DataRoot, safe_name


def test_the_layout_is_the_specifications(tmp_path):
    root = DataRoot(tmp_path)
    found = [
        *[root.snapshot(name) for name in SNAPSHOTS],
        root.replay_sessions_index,
        root.order_book("BTCUSDT"),
        root.market_trades("BTCUSDT"),
        root.metrics("BTCUSDT"),
        root.events("BTCUSDT"),
        root.trades_log("2025-11-18"),
        root.orders("2025-11-18"),
        root.manifest("s1"),
        root.session_events("s1"),
        root.session_meta("s1"),
    ]
    assert [root.relative(path) for path in found] == [
        "system/risk_snapshot.json",
        "system/tpsl_snapshot.json",
        "system/execution_snapshot.json",
        "system/health_snapshot.json",
        "system/replay_sessions.json",
        "orderbook/BTCUSDT.json",
        "trades/BTCUSDT.json",
        "metrics/BTCUSDT.json",
        "events/BTCUSDT.jsonl",
        "trades_log/day-2025-11-18.jsonl",
        "orders/day-2025-11-18.jsonl",
        "replay/sessions/s1/manifest.json",
        "replay/sessions/s1/events.jsonl",
        "replay/sessions/s1/meta.json",
    ]
    assert not list(tmp_path.iterdir()), "computing a path touches no disk"


def test_a_run_has_the_layout_of_a_root(tmp_path):
    run = DataRoot(tmp_path).run("s1", "run-1")
    assert run.events("A").relative_to(tmp_path).as_posix() == "replay/sessions/s1/runs/run-1/events/A.jsonl"


def test_a_root_is_absolute_and_can_be_given_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = DataRoot("data")
    monkeypatch.chdir("/")
    assert root.path == tmp_path / "data"
    assert DataRoot(root) == root
    assert DataRoot(str(root)) == root
    assert DataRoot("~/data").path == Path.home() / "data"


@pytest.mark.parametrize(
    "name", ["BTCUSDT", "1000PEPEUSDT", "BTC-PERP", "BTC_USDT.P", "币安人生USDT", "a@b+c=d", "Ünïcode"]
)
def test_names_that_exchanges_and_people_use(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "..", ".", "../x", "a/b", "a\\b", "/etc", ".hidden", "-rf", "a b", "a\0b", "a\nb", "a:b", "a*", "x" * 201,
     "e\u0301", "a\u202eb", "💥", None, 5, Path("x")],
)  # fmt: skip
def test_names_that_could_leave_the_folder_or_confuse(name):
    for use in (safe_name, DataRoot("data").events, DataRoot("data").session_dir):
        with pytest.raises(UnsafeNameError):
            use(name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_no_name_leads_out_of_its_folder(name):
    root = DataRoot("/data")
    try:
        path = root.events(name)
    except UnsafeNameError:
        return
    assert path.parent == root.events_dir
    assert path.resolve().parent == root.events_dir.resolve()


@pytest.mark.parametrize("day", ["2025-11-1", "../2025", "2025-11-18.jsonl", "", None, "٢٠٢٥-11-18"])
def test_a_day_file_needs_a_day(day):
    with pytest.raises(UnsafeNameError, match="YYYY-MM-DD"):
        DataRoot("data").trades_log(day)


def test_an_unknown_snapshot_names_those_that_exist():
    with pytest.raises(UnsafeNameError, match="risk, tpsl, execution, health"):
        DataRoot("data").snapshot("orders")
