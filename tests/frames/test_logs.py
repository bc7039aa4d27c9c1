from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab import frames
from replaylab.errors import ConfigError, RecordError, TimeError, UnsafeNameError
from replaylab.frames import logs

TRADE: dict[str, Any] = {
    "timestamp": "2025-11-18T10:00:00.000Z",
    "dateKey": "2025-11-18",
    "symbol": "BTCUSDT",
    "side": "LONG",
    "entryPrice": 100,
    "closePrice": 101.5,
    "qty": 1,
    "leverage": 5,
    "realizedPnl": 1.5,
    "mfe": 2,
    "mae": -1,
    "durationSeconds": 12.5,
    "mode": "SIM",
}
ORDER: dict[str, Any] = {
    "timestamp": "2025-11-18T10:00:00.000Z",
    "clientOrderId": "c1",
    "exchangeOrderId": None,
    "symbol": "BTCUSDT",
    "side": "BUY",
    "type": "MARKET",
    "timeInForce": "IOC",
    "price": None,
    "triggerPrice": None,
    "qty": 1,
    "reduceOnly": False,
    "status": "NEW",
    "filledQty": 0,
    "avgFillPrice": None,
    "notionalUsd": 100,
    "mode": "SIM",
    "source": "STATE_MACHINE",
    "lastError": None,
}


def event(symbol: str, second: int, /, **extra: Any) -> dict[str, Any]:
    return {
        "timestamp": f"2025-11-18T10:00:{second:02d}.000Z",
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": "SCORING_UPDATE",
        "reason": "r",
        "extra": extra,
    }


def write(path: Path, *lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")


def test_events_by_symbol_and_half_open_time(tmp_path: Path) -> None:
    write(tmp_path / "events/BTCUSDT.jsonl", *(event("BTCUSDT", second, score=second) for second in range(5)))
    write(tmp_path / "events/AIUSDT.jsonl", event("AIUSDT", 3))
    assert frames.list_symbols(tmp_path) == ["AIUSDT", "BTCUSDT"]
    loaded = frames.load_events(tmp_path)
    assert loaded.frame["symbol"].to_list() == ["AIUSDT"] + ["BTCUSDT"] * 5
    assert loaded.frame.schema == logs.EVENTS.frame
    loaded = frames.load_events(
        tmp_path, "BTCUSDT", "2025-11-18T10:00:01Z", datetime(2025, 11, 18, 10, 0, 3, tzinfo=UTC)
    )
    assert loaded.frame["line"].to_list() == [2, 3]
    assert (loaded.rows, loaded.lines) == (5, 5)


def test_expand_makes_columns_of_keys_of_extra(tmp_path: Path) -> None:
    write(
        tmp_path / "events/B.jsonl",
        event("B", 1, score=1, components={"flow": 0.5}, symbol="inner", tags=["a"], flag=True, mixed=1),
        event("B", 2, score=0.5, mixed="x"),
    )
    keys = ["score", "components.flow", "symbol", "tags", "flag", "mixed", "nowhere"]
    frame = frames.load_events(tmp_path, expand=keys).frame
    assert frame.select("score", "components.flow", "extra_symbol", "tags", "flag", "mixed").to_dicts() == [
        {
            "score": 1.0,
            "components.flow": 0.5,
            "extra_symbol": "inner",
            "tags": '["a"]',
            "flag": True,
            "mixed": "1",
        },
        {
            "score": 0.5,
            "components.flow": None,
            "extra_symbol": None,
            "tags": None,
            "flag": None,
            "mixed": '"x"',
        },
    ]
    assert frame["nowhere"].null_count() == 2


def test_trades_and_orders_of_all_day_files(tmp_path: Path) -> None:
    late = {**TRADE, "timestamp": "2025-11-19T00:00:01Z", "symbol": "AIUSDT", "fees": 0.1}
    write(tmp_path / "trades_log/day-2025-11-18.jsonl", TRADE, late, {**TRADE, "dateKey": "2025-11-31"})
    write(tmp_path / "trades_log/day-2025-11-19.jsonl", {**TRADE, "side": "UP"}, "")
    write(tmp_path / "trades_log/day-2025-02-30.jsonl", TRADE)
    write(tmp_path / "orders/day-2025-11-18.jsonl", ORDER)
    loaded = frames.load_trades(tmp_path)
    assert frames.list_days(tmp_path, "trades_log") == ["2025-11-18", "2025-11-19"]
    assert (loaded.lines, loaded.rows, loaded.blank) == (5, 2, 1)
    assert loaded.frame["entry_price"].dtype == pl.Float64
    assert loaded.frame["fees"].to_list() == [None, 0.1]
    assert loaded.frame["file"].unique().to_list() == ["trades_log/day-2025-11-18.jsonl"]
    reasons = loaded.rejects["reason"].to_list()
    assert "dateKey" in reasons[0]
    assert 'TradeLogRecord.side: expected one of "LONG", "SHORT", found "UP"' in reasons[1]
    # The trade of the 19th lies in the file of the 18th and is found there.
    assert frames.load_trades(tmp_path, start="2025-11-19").frame["symbol"].to_list() == ["AIUSDT"]
    assert frames.load_trades(tmp_path, symbols="BTCUSDT").frame.height == 1
    orders = frames.load_orders(tmp_path).frame
    assert orders.schema.names() == [*logs.ORDERS.frame.names(), "file"]
    assert orders["exchange_order_id"].to_list() == [None]


def test_fields_that_may_be_null_may_be_missing(tmp_path: Path) -> None:
    """JavaScript leaves out what is undefined."""
    short = {key: value for key, value in ORDER.items() if value is not None}
    write(tmp_path / "orders/day-2025-11-18.jsonl", short)
    loaded = frames.load_orders(tmp_path)
    assert loaded.rejects.is_empty()
    assert loaded.frame["price"].to_list() == [None]


def test_replay_events_and_trading_params(tmp_path: Path) -> None:
    write(
        tmp_path / "events.jsonl",
        {"timestamp": "2025-11-18T10:00:00Z", "type": "MARKET_TRADE", "symbol": "B", "payload": {"price": 1}},
        {"timestamp": "2025-11-18T10:00:00Z", "type": "RISK_UPDATE", "payload": {}},
        {"timestamp": "2025-11-18T10:00:00Z", "type": "RISK_UPDATE", "payload": []},
    )
    loaded = frames.load_replay_events(tmp_path / "events.jsonl")
    assert loaded.frame.select("type", "symbol", "payload", "line").rows() == [
        ("MARKET_TRADE", "B", '{"price": 1}', 1),
        ("RISK_UPDATE", None, "{}", 2),
    ]
    assert loaded.rejects["line"].to_list() == [3]
    write(
        tmp_path / "system/trading_params.jsonl",
        {"timestamp": "2025-11-18T10:00:00Z", "params": {"slPct": 1}},
    )
    assert frames.load_trading_params(tmp_path).frame["params"].to_list() == ['{"slPct": 1}']


def test_what_does_not_exist_loads_as_empty_frames_of_the_right_columns(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    assert frames.load_events(root, "BTCUSDT").frame.schema == logs.EVENTS.frame
    assert frames.load_trades(root).frame.schema.names() == [*logs.TRADES.frame.names(), "file"]
    assert frames.load_replay_events(root / "events.jsonl").lines == 0
    assert frames.load_metrics(root, "B").frame.is_empty()
    assert frames.load_snapshot(root, "risk") is None
    assert list(frames.scan_event_chunks(root, "BTCUSDT")) == []
    assert not root.exists()


def test_chunks_are_the_whole_in_pieces(tmp_path: Path) -> None:
    lines = [event("B", second, score=second / 7) for second in range(60)] * 20
    write(tmp_path / "events/B.jsonl", *lines[:700], "broken", *lines[700:])
    whole = frames.load_events(tmp_path, "B", "2025-11-18T10:00:10Z")
    pieces = list(frames.scan_event_chunks(tmp_path, "B", "2025-11-18T10:00:10Z", chunk_bytes=10_000))
    assert len(pieces) > 10
    assert pl.concat([piece.frame for piece in pieces]).equals(whole.frame)
    assert sum(piece.lines for piece in pieces) == whole.lines == 1201
    assert pl.concat([piece.rejects for piece in pieces]).equals(whole.rejects)


def test_names_that_leave_the_folder_and_bad_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeNameError):
        frames.load_events(tmp_path, "../secret")
    with pytest.raises(TimeError):
        frames.load_events(tmp_path, start="tomorrow")


def test_snapshots(tmp_path: Path) -> None:
    good = {
        "timestamp": "2025-11-18T10:00:00Z",
        "mode": "SIM",
        "safeMode": False,
        "pendingOrdersCount": 1,
        "activeOrdersCount": 0,
        "lastErrorAt": None,
        "lastErrorMessage": None,
    }
    write(tmp_path / "system/execution_snapshot.json", good)
    snapshot = frames.load_snapshot(tmp_path, "execution")
    assert snapshot is not None
    assert snapshot.to_dict()["pendingOrdersCount"] == 1
    write(tmp_path / "system/risk_snapshot.json", good)
    with pytest.raises(RecordError, match=r"risk_snapshot\.json"):
        frames.load_snapshot(tmp_path, "risk")


def test_rolling_files_as_arrays_as_one_object_and_as_lines(tmp_path: Path) -> None:
    trade = {
        "timestamp": "2025-11-18T10:00:00Z",
        "price": 1,
        "qty": 2,
        "side": "BUY",
        "tradeId": "7",
        "seq": 3,
    }
    book = {"timestamp": "2025-11-18T10:00:00Z", "symbol": "B", "bids": [[1, 2]], "asks": [[2, 1.5]]}
    feature = {
        "type": "FEATURE_SNAPSHOT",
        "timestamp": "2025-11-18T10:00:01Z",
        "symbol": "B",
        "features": {"x": None},
    }
    for text in (json.dumps([trade, {**trade, "side": "HOLD"}], indent=2), f"{json.dumps(trade)}\n\nnope\n"):
        write(tmp_path / "trades/B.json", text)
        loaded = frames.load_market_trades_json(tmp_path)
        assert loaded.frame.select("symbol", "price", "trade_id", "unknown_fields", "line").rows() == [
            ("B", 1.0, "7", '{"seq":3}', 1)
        ]
        assert loaded.rejects.height == 1
        assert loaded.lines == loaded.rows + loaded.rejects.height + loaded.blank
        row = loaded.rejects.row(0, named=True)
        place = row["offset"]
        assert (tmp_path / "trades/B.json").read_bytes()[place:].startswith(row["text"][:20].encode())
    write(tmp_path / "orderbook/B.json", json.dumps(book, indent=2))
    assert frames.load_order_book_json(tmp_path, "B").frame.select("symbol", "bids", "asks").rows() == [
        ("B", "[[1.0,2.0]]", "[[2.0,1.5]]")
    ]
    write(
        tmp_path / "metrics/B.json", json.dumps([feature, {**feature, "features": {"x": "y"}}, {"type": 1}])
    )
    loaded = frames.load_metrics(tmp_path, start="2025-11-18T10:00:01Z")
    assert loaded.frame["payload"].to_list() == ['{"features":{"x":null}}']
    assert loaded.rejects.height == 2


NODE_WRITER = """
const fs = require("fs"), root = process.argv[2];
const timestamp = new Date(1763460000123).toISOString();
const event = {timestamp, symbol: "BTCUSDT", fromState: "IDLE", toState: "IDLE", eventType: "SCORING_UPDATE",
  reason: "žuti šešir 日本 \\u2028 \\"q\\"", extra: {score: 1, n: undefined, big: 1e21, neg: -0}, botId: 7};
const order = {timestamp, clientOrderId: "c", exchangeOrderId: undefined, symbol: "BTCUSDT", side: "BUY",
  type: "LIMIT", timeInForce: "GTC", price: 100, triggerPrice: null, qty: 2, reduceOnly: false, status: "NEW",
  filledQty: 0, avgFillPrice: undefined, notionalUsd: 200, mode: "SIM", source: "MANUAL", lastError: null};
fs.mkdirSync(root + "/events");
fs.mkdirSync(root + "/orders");
const line = JSON.stringify(event);
fs.writeFileSync(root + "/events/BTCUSDT.jsonl", line + "\\r\\n\\r\\n" + line + "\\n");
fs.writeFileSync(root + "/orders/day-2025-11-18.jsonl", JSON.stringify(order) + "\\n");
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_what_a_javascript_program_writes_loads_with_the_same_values(tmp_path: Path) -> None:
    (tmp_path / "w.js").write_text(NODE_WRITER, encoding="utf-8")
    subprocess.run(["node", str(tmp_path / "w.js"), str(tmp_path)], check=True)
    loaded = frames.load_events(tmp_path, expand=["score", "big"])
    assert (loaded.rows, loaded.blank, loaded.rejects.height) == (2, 1, 0)
    row = loaded.frame.row(0, named=True)
    assert row["reason"] == 'žuti šešir 日本 \u2028 "q"'
    assert row["timestamp"].isoformat() == "2025-11-18T10:00:00.123000+00:00"
    assert (row["score"], row["big"], row["unknown_fields"]) == (1, 1e21, '{"botId":7}')
    order = frames.load_orders(tmp_path).frame.row(0, named=True)
    assert (order["price"], order["qty"], order["exchange_order_id"]) == (100.0, 2.0, None)


def test_a_folder_with_the_name_of_a_log_is_no_log(tmp_path):
    (tmp_path / "trades_log" / "day-2025-11-18.jsonl").mkdir(parents=True)
    (tmp_path / "events" / "BTCUSDT.jsonl").mkdir(parents=True)
    assert frames.list_days(tmp_path, "trades_log") == []
    assert frames.list_symbols(tmp_path) == []
    assert frames.load_trades(tmp_path).frame.is_empty()
    assert frames.load_events(tmp_path).frame.is_empty()


def test_names_of_fields_to_expand_are_texts(tmp_path):
    with pytest.raises(ConfigError, match=r"expand: expected names of fields, found \[5\]"):
        frames.load_events(tmp_path, expand=[5])


def test_a_line_of_another_symbol_is_a_reject_in_every_way_of_reading(tmp_path: Path) -> None:
    """A line in the log of another symbol is rejected with its place; no loader takes or relabels it."""
    lines = [json.dumps(event("B" if second % 3 else "A", second)) for second in range(30)]
    write(tmp_path / "events/A.jsonl", *lines)
    loaded = frames.load_events(tmp_path, "A")
    assert set(loaded.frame["symbol"]) == {"A"}
    assert (loaded.rows, loaded.rejects.height, loaded.lines) == (10, 20, 30)
    first = loaded.rejects.row(0, named=True)
    assert (first["line"], first["offset"]) == (2, len(lines[0]) + 1)
    assert "symbol: found 'B' in the log of 'A'" in first["reason"]
    scanned = scan(tmp_path / "events/A.jsonl", logs.EVENTS.of_symbol("A"))
    assert scanned.frame.equals(loaded.frame)
    assert scanned.rejects.drop("file").equals(loaded.rejects.drop("file"))
    chunks = [chunk for _, chunk in frames.scan_event_files(tmp_path, "A", keep_text=True)]
    assert sum(chunk.rejects.height for chunk in chunks) == 20


def scan(path: Path, schema: logs.LogSchema) -> frames.Loaded:
    from replaylab.frames import scanner
    from replaylab.frames.jsonl import concat

    fields = scanner.fields_for(schema)
    assert fields is not None
    with path.open("rb", buffering=0) as file:
        return concat(
            (part for part, _ in scanner.scan_blocks(file, schema, fields, "f", start=0, line=1, end=None)),
            schema.frame,
        )


def test_archived_lines_of_another_symbol_are_rejects(tmp_path: Path) -> None:
    """An archived part made before lines of other symbols were rejected does not bring them back as rows."""
    from replaylab.archive import run_retention
    from replaylab.config import RetentionConfig

    write(tmp_path / "events/A.jsonl", *(event(symbol, 1) for symbol in ("A", "B", "A")))
    run_retention(tmp_path, now="2025-12-18", config=RetentionConfig(archive=True))
    assert not (tmp_path / "events/A.jsonl").exists()
    loaded = frames.load_events(tmp_path, "A")
    assert (loaded.rows, loaded.rejects.height, loaded.lines) == (2, 1, 3)


def test_symbols_without_rows_are_named_with_the_closest_one(tmp_path: Path) -> None:
    """Each load knows the symbols of its log, so that a typo or a wrong case is not an empty table without a word."""
    write(tmp_path / "events/BTCUSDT.jsonl", event("BTCUSDT", 1))
    write(tmp_path / "trades_log/day-2025-11-18.jsonl", TRADE)
    write(tmp_path / "orders/day-2025-11-18.jsonl", ORDER)
    write(tmp_path / "trades/BTCUSDT.json", "[]")
    for loaded in (
        frames.load_events(tmp_path, "btcusdt"),
        frames.load_trades(tmp_path, symbols=["btcusdt", "BTCUSDT"]),
        frames.load_orders(tmp_path, symbols="btcusdt"),
        frames.load_market_trades_json(tmp_path, "btcusdt"),
    ):
        assert loaded.missing(["btcusdt", "BTCUSDT"]) == [
            "there is nothing of symbol 'btcusdt'. Did you mean 'BTCUSDT'?"
        ]
        assert loaded.missing(None) == []
    assert frames.load_trades(tmp_path).missing("XYZ") == [
        "there is nothing of symbol 'XYZ'. Symbols: BTCUSDT."
    ]


def test_symbols_as_ccxt_writes_them_come_back_as_logged(tmp_path: Path) -> None:
    """The file of BTC/USDT:USDT has an encoded name; loaders, lists, the archive and verify give the symbol itself."""
    from replaylab.archive import daily_summary, run_retention, verify
    from replaylab.config import RetentionConfig
    from replaylab.paths import DataRoot

    symbol = "BTC/USDT:USDT"
    root = DataRoot(tmp_path)
    write(root.events(symbol), event(symbol, 1), event(symbol, 2))
    write(root.market_trades(symbol), "[]")
    assert frames.list_symbols(tmp_path) == [symbol]
    assert frames.load_events(tmp_path, symbol).frame["symbol"].to_list() == [symbol, symbol]
    assert frames.load_market_trades_json(tmp_path).symbols == {symbol}
    assert verify(tmp_path).findings.is_empty()
    run_retention(tmp_path, now="2025-12-18", config=RetentionConfig(archive=True))
    assert not root.events(symbol).exists()
    assert frames.list_symbols(tmp_path) == [symbol]
    assert frames.load_events(tmp_path).frame["symbol"].to_list() == [symbol, symbol]
    assert daily_summary(tmp_path)["symbol"].to_list() == [symbol]
    assert verify(tmp_path).findings.is_empty()


def test_rotated_logs_are_read_in_order_and_counted(tmp_path: Path) -> None:
    """What logrotate cut off a log, by number or date and compressed or not, is loaded before the live file."""
    import gzip

    from replaylab.archive import daily_summary, verify

    live = tmp_path / "events/B.jsonl"
    write(live.with_name("B.jsonl.1"), event("B", 3), event("B", 4))
    write(live.with_name("B.jsonl.2"), event("B", 2))
    with gzip.open(live.with_name("B.jsonl.10.gz"), "wt") as file:
        file.write(json.dumps(event("B", 0)) + "\n" + json.dumps(event("B", 1)) + "\nrubbish\n")
    write(tmp_path / "events/OLD.jsonl-20251118", event("OLD", 7))
    write(live.with_name("B.jsonl.bak"), event("B", 59))
    for _ in range(2):
        loaded = frames.load_events(tmp_path, "B")
        assert loaded.frame["timestamp"].dt.second().to_list() == list(range(5 + live.exists()))
        assert loaded.lines == loaded.rows + loaded.rejects.height + loaded.blank
        assert loaded.rejects["file"].to_list() == ["events/B.jsonl.10.gz"]
        write(live, event("B", 5))
    assert frames.list_symbols(tmp_path) == ["B", "OLD"]
    assert daily_summary(tmp_path)["rows"].sum() == 7
    write(tmp_path / "orders/day-2025-11-18.jsonl.1", ORDER)
    assert frames.load_orders(tmp_path).rows == 1
    assert verify(tmp_path).findings["file"].to_list() == ["events/B.jsonl.10.gz"]


def test_a_gzipped_part_that_ends_early_gives_its_lines_and_a_reject(tmp_path: Path) -> None:
    """A torn gzip file is no reason to lose its whole lines, and the loss is reported."""
    import gzip

    data = gzip.compress("".join(json.dumps(event("B", i % 60)) + "\n" for i in range(5000)).encode())
    (tmp_path / "events").mkdir()
    (tmp_path / "events/B.jsonl.1.gz").write_bytes(data[: len(data) // 2])
    loaded = frames.load_events(tmp_path, "B")
    assert 0 < loaded.rows < 5000
    assert "not a whole gzip file" in loaded.rejects["reason"][-1]


def test_a_log_that_is_rotated_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming the live file to .1 in the middle of a load neither loses nor doubles a line."""
    live = tmp_path / "events/B.jsonl"
    write(live, event("B", 1), event("B", 2))
    write(live.with_name("B.jsonl.1"), event("B", 0))
    real, moved = logs.cached_chunks, []

    def rotate_once(*given: Any) -> Any:
        if not moved:
            moved.append(live.with_name("B.jsonl.1").rename(live.with_name("B.jsonl.2")))
            live.rename(live.with_name("B.jsonl.1"))
            write(live, event("B", 3))
        return real(*given)

    monkeypatch.setattr(logs, "cached_chunks", rotate_once)
    loaded = frames.load_events(tmp_path, "B")
    assert loaded.frame["timestamp"].dt.second().to_list() == [0, 1, 2, 3]


def test_what_own_trade_records_leave_out_is_zero_and_elsewhere_unknown(tmp_path: Path) -> None:
    """``funding`` and ``thin``: 0.0 and False of replaylab's own records, null of those of another system."""
    record = {
        "timestamp": "2025-11-18T10:00:00.000Z", "dateKey": "2025-11-18", "symbol": "BTCUSDT", "side": "LONG",
        "entryPrice": 1.0, "closePrice": 2.0, "qty": 1.0, "leverage": 1, "realizedPnl": 1.0, "mfe": 1.0, "mae": 0.0,
        "durationSeconds": 1.0, "mode": "SIM",
    }  # fmt: skip
    own = record | {"tp1Filled": False}
    (tmp_path / "trades_log").mkdir()
    lines = [json.dumps(one) + "\n" for one in (record, own, own | {"funding": -2.5, "thin": True})]
    (tmp_path / "trades_log" / "day-2025-11-18.jsonl").write_text("".join(lines))
    rows = frames.load_trades(tmp_path).frame.select("funding", "thin").rows()
    assert rows == [(None, None), (0.0, False), (-2.5, True)]
