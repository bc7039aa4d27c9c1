"""Paths: where each file lives, and no name from outside leads out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import UnsafeNameError
from replaylab.paths import (
    SNAPSHOTS,
    DataRoot,
    Place,
    classify,
    file_name,
    is_safe_name,
    is_safe_symbol,
    safe_name,
    safe_symbol,
    symbol_of,
)


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
    ["", "..", ".", "../x", "a/../b", "a//b", "a/", "a/.b", "a\\b", "/etc", ".hidden", "-rf", "a b", "a\0b", "a\nb",
     "a:", "a:/b", "a*", "a%2Fb", "%2e%2e", "x" * 201, "/".join("x" * 80), "e\u0301",
     "a\u202eb", "💥", None, 5, Path("x")],
)  # fmt: skip
def test_names_that_could_leave_the_folder_or_confuse(name):
    for use in (safe_name, DataRoot("data").events, DataRoot("data").session_dir):
        with pytest.raises(UnsafeNameError):
            use(name)


@pytest.mark.parametrize("name", ["a/b", "a:b", "BTC/USDT:USDT"])
def test_a_slash_and_a_colon_are_for_symbols_alone(name):
    for use in (safe_name, DataRoot("data").session_dir):
        with pytest.raises(UnsafeNameError, match="only letters"):
            use(name)


def test_symbols_of_ccxt_have_file_names_and_come_back(tmp_path):
    root = DataRoot(tmp_path)
    for symbol in (
        "BTC/USDT",
        "BTC/USDT:USDT",
        "BTC/USDT:USDT-241227-100000-C",
        "BTCUSDT",
        "币安人生/USDT:USDT",
    ):
        path = root.events(symbol)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        place = classify(path)
        assert (place.kind, place.symbol) == ("events", symbol)
    assert root.events("BTC/USDT:USDT").name == "BTC%2FUSDT%3AUSDT.jsonl"
    assert root.symbols("events") == sorted(place.symbol for place, _ in root.files("events"))
    assert "BTC/USDT:USDT" in root.symbols("events")


SYMBOLS = st.text(st.sampled_from("aB9._-+@=/:%2FA3ü 币\\"), max_size=12) | st.text(max_size=20)


@settings(max_examples=300, deadline=None)
@given(SYMBOLS)
def test_no_name_leads_out_of_its_folder_and_each_comes_back(name):
    """Different symbols have different files: the file name gives the symbol back."""
    root = DataRoot("/data")
    try:
        path = root.events(name)
    except UnsafeNameError:
        assert not is_safe_symbol(name)
        return
    assert safe_symbol(name) == name
    assert path.parent == root.events_dir
    assert path.resolve().parent == root.events_dir.resolve()
    assert symbol_of(path.name.removesuffix(".jsonl")) == name
    if is_safe_name(name):
        assert path.name == f"{name}.jsonl"


@settings(max_examples=300, deadline=None)
@given(SYMBOLS)
def test_a_file_name_that_has_a_symbol_is_the_one_that_the_symbol_has(stem):
    symbol = symbol_of(stem)
    assert symbol is None or file_name(symbol) == stem


DAY = {"day": "2025-11-18"}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("events/B.jsonl", Place("events", symbol="B")),
        ("/data/trades_log/day-2025-11-18.jsonl", Place("trades_log", **DAY)),
        ("data/orders/day-2025-11-18.jsonl", Place("orders", **DAY)),
        ("trades/A%2FB.json", Place("market_trades", symbol="A/B")),
        ("orderbook/B.json", Place("order_book", symbol="B")),
        ("metrics/B.json", Place("metrics", symbol="B")),
        ("system/risk_snapshot.json", Place("snapshot", snapshot="risk")),
        ("system/trading_params.jsonl", Place("trading_params")),
        ("history/book/B/day-2025-11-18.parquet", Place("history", symbol="B", tape="book", **DAY)),
        ("archive/events/B/day-2025-11-18.parquet", Place("archived_events", symbol="B", **DAY)),
        ("archive/orders/day-2025-11-18.12.parquet", Place("archived_orders", part=12, **DAY)),
        ("summary/events/B/day-2025-11-18.json", Place("summary_events", symbol="B", **DAY)),
        ("replay/sessions/events/events.jsonl", Place("session_events", session="events")),
        ("replay/sessions/s/manifest.json", Place("manifest", session="s")),
        ("replay/sessions/s/runs/r/run.json", Place("run", session="s", run="r")),
        ("replay/sessions/s/runs/r/events/B.jsonl", Place("events", symbol="B", session="s", run="r")),
        (
            "replay/sessions/s/runs/r/orders/day-2025-11-18.jsonl",
            Place("orders", session="s", run="r", **DAY),
        ),
    ],
)
def test_a_path_tells_what_it_holds(path, place):
    assert classify(path) == place
    assert classify(f"/elsewhere/{path.lstrip('/')}") == place


@pytest.mark.parametrize(
    "path",
    ["events/.B.jsonl.1.2.tmp", "events/B.json", "events/B.jsonl.torn", "events/a b.jsonl", "x/B.jsonl", "B.jsonl",
     "orders/day-2025-11-31.jsonl", "orders/day-2025-11-18.jsonl.gz", "orders/day-25-11-18.jsonl",
     "history/quotes/B/day-2025-11-18.parquet", "system/orders_snapshot.json", "replay/sessions/a b/events.jsonl",
     "archive/orders/day-2025-11-18.x.parquet", "myevents/B.jsonl.", ""],
)  # fmt: skip
def test_other_files_hold_nothing_of_ours(path):
    assert classify(path) is None


def test_files_of_a_kind_are_listed_by_day_and_part(tmp_path):
    root = DataRoot(tmp_path)
    assert root.files("history", tape="trades", symbol="A/B") == []
    names = [
        "day-2025-11-19.parquet",
        "day-2025-11-18.10.parquet",
        "day-2025-11-18.2.parquet",
        "day-x.parquet",
    ]
    for name in [*names, ".day-2025-11-17.parquet"]:
        for folder in ("archive/events/A%2FB", "archive/events/C"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"")
    found = [(place.day, place.part) for place, _ in root.files("archived_events", symbol="A/B")]
    assert found == [("2025-11-18", 2), ("2025-11-18", 10), ("2025-11-19", 1)]
    assert root.symbols("archived_events") == ["A/B", "C"]
    (tmp_path / "system").mkdir()
    assert root.files("trading_params") == []
    root.trading_params.write_bytes(b"")
    assert root.files("trading_params") == [(Place("trading_params"), root.trading_params)]


@pytest.mark.parametrize(
    "day", ["2025-11-1", "2025-11-31", "../2025", "2025-11-18.jsonl", "", None, "٢٠٢٥-11-18"]
)
def test_a_day_file_needs_a_day(day):
    with pytest.raises(UnsafeNameError, match="YYYY-MM-DD"):
        DataRoot("data").trades_log(day)


def test_an_unknown_snapshot_names_those_that_exist():
    with pytest.raises(UnsafeNameError, match="risk, tpsl, execution, health"):
        DataRoot("data").snapshot("orders")
