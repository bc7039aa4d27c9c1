"""Captures of messages: continuity, snapshots that come late, off-market prints, and what is left out, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaylab import history
from replaylab.errors import HistoryError
from replaylab.features import OrderBook
from replaylab.importers import ImportReport, import_history

MS = 1_721_347_200_000


def capture(path: Path, messages: list[tuple[int, dict[str, Any]]]) -> Path:
    """Lines of (local ms after the start, message)."""
    path.write_text("".join(f"{(MS + ms) * 1_000_000} {json.dumps(message)}\n" for ms, message in messages))
    return path


def depth(
    ms: int, first: int, last: int, before: int | None, bids: list = (), asks: list = ()
) -> dict[str, Any]:
    message = {
        "e": "depthUpdate",
        "E": MS + ms,
        "s": "XUSDT",
        "U": first,
        "u": last,
        "b": list(bids),
        "a": list(asks),
    }
    return message if before is None else {**message, "T": MS + ms, "pu": before}


def trade(ms: int, number: int, price: str = "10.0", qty: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "e": "trade",
        "E": MS + ms,
        "T": MS + ms,
        "s": "XUSDT",
        "t": number,
        "p": price,
        "q": qty,
        "m": True,
        **more,
    }


def rest(last: int, bids: list, asks: list, ms: int | None = None) -> dict[str, Any]:
    answer = {"lastUpdateId": last, "bids": bids, "asks": asks}
    return answer if ms is None else {**answer, "E": MS + ms, "T": MS + ms}


def final_book(root: Path, symbol: str = "XUSDT") -> OrderBook:
    """What a reader of the history ends up with: the deltas before a snapshot do not matter."""
    book = OrderBook()
    for kind, bids, asks in (
        history.scan_book(root, symbol).select("kind", "bids", "asks").collect().iter_rows()
    ):
        pairs = [[tuple(level) for level in side] for side in (bids, asks)]
        (book.reset if kind == "snapshot" else book.update)(*pairs)
    return book


def tape(report: ImportReport, kind: str, symbol: str = "XUSDT"):
    return next(one for one in report.tapes if (one.kind, one.symbol) == (kind, symbol))


def test_prints_off_the_market_are_kept_and_flagged(tmp_path: Path) -> None:
    messages = [
        (0, trade(0, 1, X="MARKET")),
        (1, trade(1, 2, price="25.0", X="INSURANCE_FUND")),
        (2, trade(2, 3, price="0", qty="0", X="NA")),
        (3, trade(3, 4)),
    ]
    report = import_history(tmp_path, "binance-capture", capture(tmp_path / "x.txt", messages))
    found = history.scan_trades(tmp_path, "XUSDT").collect()
    assert found["off_market"].to_list() == [False, True, False]
    assert (report.off_market, report.rejected, report.rejects[0].line) == (1, 1, 3)
    assert tape(report, "trades").missing_ids == 1


@pytest.mark.parametrize("futures", [True, False])
def test_missing_depth_messages_are_gaps(tmp_path: Path, futures: bool) -> None:
    """Futures: pu must be the u before; spot: U must be the u before plus one."""
    before = (lambda number: number) if futures else (lambda number: None)
    messages = [
        (0, depth(0, 11, 12, before(10))),
        (1, depth(1, 13, 15, before(12))),
        (2, depth(2, 21, 22, before(20))),
        (3, depth(3, 23, 23, before(22))),
    ]
    report = import_history(tmp_path, "binance-capture", capture(tmp_path / "x.txt", messages))
    assert [(gap.start, gap.end, gap.line) for gap in tape(report, "book").id_gaps] == [(15, 21, 3)]


@pytest.mark.parametrize("clock", ["exchange", "receive"])
@pytest.mark.parametrize("with_time", [True, False])
def test_a_snapshot_that_comes_late_carries_the_updates_that_overtook_it(
    tmp_path: Path, clock: str, with_time: bool
) -> None:
    """The answer holds the book of update 12; 13 and 14 are in already when it arrives; 14 deleted a level."""
    messages = [
        (5, depth(0, 11, 12, None, [["9.0", "1"]])),
        (15, depth(10, 13, 13, None, [["9.5", "2"]])),
        (25, depth(20, 14, 14, None, [["9.0", "0"]], [["11.0", "4"]])),
        (30, rest(12, [["9.0", "1"], ["8.0", "7"]], [["10.0", "3"]], 8 if with_time else None)),
        (35, depth(30, 15, 15, None, [["9.6", "5"]])),
    ]
    report = import_history(tmp_path, "binance-capture", capture(tmp_path / "x.txt", messages), clock=clock)
    rows = history.scan_book(tmp_path, "XUSDT").collect()
    assert rows["kind"].to_list() == ["snapshot", "delta"]
    assert rows["bids"][0].to_list() == [[9.5, 2.0], [8.0, 7.0]]
    assert rows["asks"][0].to_list() == [[10.0, 3.0], [11.0, 4.0]]
    assert dict(final_book(tmp_path).levels()[0]) == {9.6: 5.0, 9.5: 2.0, 8.0: 7.0}
    (file,) = report.files
    assert (file.rows_in_lines, file.other) == (2, 3)
    assert any("3 deltas before the first snapshot left out" in note for note in report.notes)


def test_updates_that_a_snapshot_contains_are_left_out(tmp_path: Path) -> None:
    messages = [
        (0, rest(20, [["9.0", "1"]], [["10.0", "1"]])),
        (5, depth(2, 18, 19, None, [["9.0", "99"]])),
        (6, depth(4, 20, 21, None, [["9.5", "1"]])),
    ]
    report = import_history(tmp_path, "binance-capture", capture(tmp_path / "xusdt_1.txt", messages))
    assert dict(final_book(tmp_path).levels()[0]) == {9.0: 1.0, 9.5: 1.0}
    assert tape(report, "book").rows == 2
    assert any("already contained" in note for note in report.notes)


def test_a_later_snapshot_and_a_ticker_check_the_book(tmp_path: Path) -> None:
    """Of two snapshots at the book's own update one agrees; of three tickers one stands elsewhere, one disagrees."""

    def ticker(update: int, bid: str) -> dict[str, Any]:
        return {
            "stream": "xusdt@bookTicker",
            "data": {"u": update, "s": "XUSDT", "b": bid, "B": "1", "a": "10.0", "A": "1"},
        }

    messages = [
        (0, rest(20, [["9.0", "1"]], [["10.0", "1"]])),
        (1, depth(1, 21, 21, None, [["9.5", "1"]])),
        (2, ticker(21, "9.5")),
        (3, ticker(22, "9.7")),
        (4, ticker(21, "9.0")),
        (5, rest(21, [["9.5", "1"]], [["10.0", "1"]])),
        (6, rest(21, [["9.5", "2"]], [["10.0", "1"]])),
    ]
    report = import_history(tmp_path, "binance-capture", capture(tmp_path / "xusdt_1.txt", messages))
    book = tape(report, "book")
    assert (book.checked, book.disagreed) == (4, 2)


def test_lines_that_are_no_messages_are_rejected(tmp_path: Path) -> None:
    file = capture(tmp_path / "xusdt_1.txt", [(number, trade(number, number + 1)) for number in range(5)])
    bad = trade(0, 9)
    del bad["p"]
    more = ["no time {}", f"{MS}000000 {{not json", f"{MS}000000 {json.dumps(bad)}", "", f"{MS}000000 [1]"]
    file.write_text(file.read_text() + "\n".join(more) + "\n")
    report = import_history(tmp_path, "binance-capture", file, max_rejects=0.5)
    assert [(one.line, one.reason) for one in report.rejects] == [
        (6, "expected a local time and a space before the JSON"),
        (7, "the message is not a JSON object"),
        (8, "trade: no field 'p'"),
        (10, "the message is not a JSON object"),
    ]
    assert report.files[0].blank == 1
    lines = f"{MS * 10**6} {json.dumps(trade(0, 1))}\n{MS * 1000} {json.dumps(trade(1, 2))}\n" * 2
    (tmp_path / "2.txt").write_text(lines)
    with pytest.raises(
        HistoryError, match=r"2.txt:2: local time \d+ is in us, but the local time began in ns"
    ):
        import_history(tmp_path, "binance-capture", tmp_path / "2.txt")


def bybit(
    kind: str, update: int, ms: int, bids: list, asks: list, symbol: str = "XUSDT", **more: Any
) -> dict[str, Any]:
    data = {"s": symbol, "b": bids, "a": asks, "u": update, "seq": 1000 + update}
    return {
        "topic": f"orderbook.500.{symbol}",
        "ts": MS + ms + 2,
        "type": kind,
        "data": data,
        "cts": MS + ms,
        **more,
    }


def test_bybit_book_archives_in_their_varieties(tmp_path: Path) -> None:
    """ts as text, no cts, another order of keys, a delta before the first snapshot, a gap, u = 1 after a restart."""
    lines = [
        bybit("delta", 4, 0, [["1.0", "1"]], []),
        bybit("snapshot", 5, 10, [["1.0", "2"], ["1.1", "3"]], [["2.0", "1"]]),
        bybit("delta", 6, 20, [["1.1", "0"]], []),
        bybit("delta", 9, 30, [["1.2", "4"]], []),
        bybit("snapshot", 9, 31, [["1.2", "4"], ["1.0", "2"]], [["2.0", "1"]]),
        bybit("delta", 1, 40, [["0.5", "1"]], [["3.0", "1"]]),
        {
            "ts": str(MS + 50),
            "data": {"u": 2, "a": [], "b": [["0.6", "1"]]},
            "type": "delta",
            "topic": "orderbook.500.XUSDT",
        },
        bybit("other", 3, 60, [], []),
        {"topic": "tickers.XUSDT"},
    ]
    file = tmp_path / "2024-07-19_XUSDT_ob500.data"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = import_history(tmp_path, "bybit-book", file)
    rows = history.scan_book(tmp_path, "XUSDT").collect()
    assert rows["kind"].to_list() == ["snapshot", "delta", "delta", "snapshot", "snapshot", "delta"]
    assert rows["timestamp"].dt.timestamp("ms").to_list() == [MS + ms for ms in (10, 20, 30, 31, 40, 50)]
    assert rows["bids"][0].to_list() == [[1.1, 3.0], [1.0, 2.0]]
    assert dict(final_book(tmp_path).levels()[0]) == {0.5: 1.0, 0.6: 1.0}
    book = tape(report, "book")
    assert [(gap.start, gap.end, gap.line) for gap in book.id_gaps] == [(6, 9, 4)]
    assert (book.checked, book.disagreed) == (1, 0)
    (one,) = report.rejects
    assert (one.line, one.reason) == (8, "type must be snapshot or delta, found 'other'")
    (counts,) = report.files
    assert (counts.lines, counts.rows_in_lines, counts.rejects, counts.other) == (9, 6, 1, 2)


def test_bybit_captures_tell_markets_and_block_trades(tmp_path: Path) -> None:
    def recv(connection: str, seconds: str, message: dict[str, Any]) -> str:
        return f'{{"t":"recv","conn":"{connection}","ts":{seconds},"data":{json.dumps(json.dumps(message))}}}'

    def public(number: str, block: bool) -> dict[str, Any]:
        one = {"T": MS, "s": "XUSDT", "S": "Sell", "v": "2", "p": "1.5", "i": number, "BT": block}
        return {"topic": "publicTrade.XUSDT", "type": "snapshot", "ts": MS, "data": [one]}

    lines = [
        '{"t":"header","format":2}',
        '{"t":"connect","conn":"a","ts":1721347199.5,"addr":"wss://stream.example/v5/public/linear"}',
        '{"t":"connect","conn":"b","ts":1721347199.5,"addr":"wss://stream.example/v5/public/spot"}',
        recv("a", "1721347200.123457", public("l", True)),
        recv("b", "1721347200.1234", public("s", False)),
        recv("a", "1721347200.2", {"success": True, "op": "subscribe"}),
    ]
    file = tmp_path / "capture.jsonl"
    file.write_text("\n".join(lines) + "\n")
    report = import_history(tmp_path, "bybit-capture", file)
    assert history.symbols(tmp_path) == ["XUSDT", "XUSDT@spot"]
    linear = history.scan_trades(tmp_path, "XUSDT").collect()
    assert linear.select("off_market", "side", "trade_id").row(0) == (True, "SELL", "l")
    assert linear["received_at"].to_physical()[0] == 1_721_347_200_123_457_000
    assert (report.off_market, report.files[0].other) == (1, 4)
    with pytest.raises(HistoryError, match="market is one of"):
        import_history(tmp_path, "bybit-capture", file, market="linaer")


HEAD = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount"


def tardis(rows: list[tuple[int, bool, str, float, float]]) -> str:
    """Rows of (local ms, snapshot, side, price, amount); the exchange's time is 1 ms before."""
    start = MS * 1000
    lines = [
        f"b,XUSDT,{start + ms * 1000 - 1000},{start + ms * 1000},{str(snapshot).lower()},{side},{price},{amount}"
        for ms, snapshot, side, price, amount in rows
    ]
    return "\n".join([HEAD, *lines]) + "\n"


def test_tardis_book_messages(tmp_path: Path) -> None:
    """Rows before the first snapshot go; rows of one local time are one message; a second snapshot starts again."""
    rows = [
        (0, False, "bid", 1.0, 1.0),
        (1, True, "bid", 1.0, 1.0),
        (1, True, "bid", 1.1, 2.0),
        (1, True, "ask", 2.0, 1.0),
        (2, True, "ask", 2.1, 1.0),
        (3, False, "bid", 1.1, 0.0),
        (3, False, "ask", 1.9, 5.0),
        (4, True, "bid", 0.5, 1.0),
    ]
    file = tmp_path / "book.csv"
    file.write_text(tardis(rows))
    report = import_history(tmp_path, "tardis-book", file)
    found = history.scan_book(tmp_path, "XUSDT").collect()
    assert found["kind"].to_list() == ["snapshot", "delta", "delta", "snapshot"]
    assert found["bids"].to_list() == [[[1.1, 2.0], [1.0, 1.0]], [], [[1.1, 0.0]], [[0.5, 1.0]]]
    assert found["asks"].to_list() == [[[2.0, 1.0]], [[2.1, 1.0]], [[1.9, 5.0]], []]
    assert (found["received_at"].to_physical() - found["timestamp"].to_physical()).to_list() == [
        1_000_000
    ] * 4
    (file_report,) = report.files
    assert (file_report.lines, file_report.rows_in_lines, file_report.other) == (9, 7, 2)
    assert any("1 rows before the first snapshot" in note for note in report.notes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.booleans(),
            st.sampled_from(["bid", "ask"]),
            st.sampled_from([1.0, 2.0]),
            st.sampled_from([0.0, 1.0]),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_tardis_blocks_do_not_show(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    """A message that is cut by the end of a block stays one message."""
    from replaylab.importers import files as reading

    rows = [(0, True, "bid", 1.0, 1.0), *sorted(rows, key=lambda row: row[0])]
    results: list[pl.DataFrame] = []
    for size in (90, 1 << 20):
        root = tmp_path_factory.mktemp("tardis")
        (root / "book.csv").write_text(tardis(rows))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading.LineFile.blocks, "__defaults__", (size,))
            import_history(root, "tardis-book", root / "book.csv")
        results.append(history.scan_book(root, "XUSDT").collect())
    assert results[0].equals(results[1])
