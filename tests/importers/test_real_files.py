"""Recorded files come in whole: counts that plain text tools found, not this package.

How each number was found stands in the test's docstring; `zst` files were unpacked with the `zstd` program first.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from replaylab import history
from replaylab.importers import ImportReport, import_history


def tape(report: ImportReport, kind: str, symbol: str):
    return next(one for one in report.tapes if (one.kind, one.symbol) == (kind, symbol))


def lines_are_accounted_for(report: ImportReport) -> bool:
    return all(
        file.lines == file.rows_in_lines + file.rejects + file.blank + file.other for file in report.files
    )


@pytest.fixture(scope="module")
def btc(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImportReport, list[Path]]:
    root = tmp_path_factory.mktemp("btc")
    files = [real_data / "binance-capture" / f"btcusdt_202407{day}.gz" for day in (18, 19)]
    return root, import_history(root, "binance-capture", files), files


def test_btcusdt_capture_counts(btc: tuple[Path, ImportReport, list[Path]]) -> None:
    """zcat | wc -l: 11,414 and 60,570 lines. grep -c: 974 + 9,727 trades, 3,326 + 5,696 depthUpdates, 1 lastUpdateId
    (line 14, 6 depthUpdates before it), 7,113 + 45,147 bookTickers. awk: no break in t, none in pu against u;
    no X but MARKET. awk: 106 bookTickers after the snapshot whose u is the u of the depthUpdate before them.
    """
    root, report, _ = btc
    assert [file.lines for file in report.files] == [11_414, 60_570]
    assert lines_are_accounted_for(report)
    trades, book = tape(report, "trades", "BTCUSDT"), tape(report, "book", "BTCUSDT")
    assert (trades.rows, trades.added, trades.duplicates) == (974 + 9_727, 974 + 9_727, 0)
    assert book.rows == 3_326 + 5_696 - 6 + 1
    assert (trades.gap_count, trades.missing_ids, book.gap_count, report.rejected, report.off_market) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert (book.checked, book.disagreed) == (106, 0)
    assert history.coverage(root, "trades", "BTCUSDT").rows == 10_701
    assert history.days(root, "trades", "BTCUSDT") == ["2024-07-18", "2024-07-19"]


def test_btcusdt_capture_values(btc: tuple[Path, ImportReport, list[Path]]) -> None:
    """awk sums "q" of the trades to 1,122.459 and counts 6,506 with "m":true; grep -o '"T":[0-9]*' | sort -u | wc -l:
    3,564 distinct times. The first trade line of the second file: T 1721347202812, received 1721347201292005428 ns,
    t 5182006711, p 63960.00, q 0.310, m false.
    """
    root, _, _ = btc
    trades = history.scan_trades(root, "BTCUSDT").collect()
    assert trades["qty"].sum() == pytest.approx(1_122.459, abs=1e-9)
    assert (trades["side"] == "SELL").sum() == 6_506
    assert trades["timestamp"].n_unique() == 3_564
    one = trades.filter(pl.col("trade_id") == "5182006711")
    assert one["timestamp"].to_physical()[0] == 1_721_347_202_812_000_000
    assert one["received_at"].to_physical()[0] == 1_721_347_201_292_005_428
    assert one.select("price", "qty", "side").row(0) == (63_960.0, 0.31, "BUY")
    assert trades["seq"].is_sorted()


def test_btcusdt_capture_reports_a_local_clock_that_is_behind(
    btc: tuple[Path, ImportReport, list[Path]],
) -> None:
    """The recorder's clock ran about 1.5 s behind the exchange's: feed latency comes out negative."""
    skew = tape(btc[1], "trades", "BTCUSDT").skew
    assert -1_600 < skew.least <= skew.median <= skew.most < -1_400


def test_importing_again_changes_nothing(btc: tuple[Path, ImportReport, list[Path]]) -> None:
    """Nor does importing the files one by one in another order."""
    root, _, files = btc
    before = {path: path.read_bytes() for path in root.rglob("*.parquet")}
    again = import_history(root, "binance-capture", files)
    assert (again.rows, again.added, again.duplicates) == (19_718, 0, 19_718)
    for file in reversed(files):
        assert import_history(root, "binance-capture", file).added == 0
    assert {path: path.read_bytes() for path in root.rglob("*.parquet")} == before


def test_btcusdt_capture_on_the_receive_clock(real_data: Path, tmp_path: Path) -> None:
    """Both clocks are kept, and the book checks hold on either."""
    file = real_data / "binance-capture" / "btcusdt_20240718.gz"
    report = import_history(tmp_path, "binance-capture", file, clock="receive")
    trades = history.scan_trades(tmp_path, "BTCUSDT").collect()
    assert trades["timestamp"].equals(trades["received_at"])
    assert (trades["exchange_at"] > trades["timestamp"]).all()
    assert tape(report, "book", "BTCUSDT").disagreed == 0
    kinds = history.scan_book(tmp_path, "BTCUSDT").collect()["kind"]
    assert kinds[0] == "snapshot"
    assert (kinds[1:] == "delta").all()


def test_second_file_alone_says_that_its_book_has_no_snapshot(real_data: Path, tmp_path: Path) -> None:
    report = import_history(
        tmp_path, "binance-capture", real_data / "binance-capture" / "btcusdt_20240719.gz"
    )
    assert tape(report, "book", "BTCUSDT").rows == 5_696
    assert any("5696 deltas without a snapshot before them" in note for note in report.notes)


def test_nexousdt_spot_capture(real_data: Path, tmp_path: Path) -> None:
    """zcat | wc -l: 1,804 and 112,274. grep -c: 178 + 12,280 trades, 1,188 + 66,994 depthUpdates, 437 + 33,000
    bookTickers, 1 lastUpdateId (line 1). awk: no break in t; each U is the u before it plus one; 312 times T is more
    than 60,000 ms after the T before it, never less; q sums to 870,270.68; 5,970 with "m":true; 80 bookTickers at the
    end of a depthUpdate. Local times have 16 digits: microseconds.
    """
    files = [real_data / "binance-capture" / f"nexousdt_202407{day}.dat.gz" for day in (23, 24)]
    report = import_history(tmp_path, "binance-capture", files)
    assert [file.lines for file in report.files] == [1_804, 112_274]
    assert lines_are_accounted_for(report)
    trades, book = tape(report, "trades", "NEXOUSDT"), tape(report, "book", "NEXOUSDT")
    assert (trades.rows, book.rows) == (178 + 12_280, 1_188 + 66_994 + 1)
    assert (trades.missing_ids, len(trades.time_gaps), trades.out_of_order, book.gap_count) == (0, 312, 0, 0)
    assert (book.checked, book.disagreed) == (80, 0)
    frame = history.scan_trades(tmp_path, "NEXOUSDT").collect()
    assert frame["qty"].sum() == pytest.approx(870_270.68, abs=1e-6)
    assert (frame["side"] == "SELL").sum() == 5_970
    assert "nexousdt_20240723.dat.gz: local time in us" in report.notes


def test_btcusdt_tape_without_sides(real_data: Path, tmp_path: Path) -> None:
    """199,020 rows in the Parquet file's own footer; sides follow the tick rule, worked out here row by row."""
    file = real_data / "binance-trades" / "btcusdt_20220115_00h-12h.parquet"
    report = import_history(tmp_path, "parquet", file, symbol="BTCUSDT", qty="quantity", timestamp_unit="ms")
    assert report.rows == report.added == 199_020 == pq.ParquetFile(file).metadata.num_rows
    source = pq.read_table(file).to_pydict()
    sides, side, last = [], None, None
    for price in source["price"]:
        if last is not None and price != last:
            side = "BUY" if price > last else "SELL"
        sides.append(side)
        last = price
    found = history.scan_trades(tmp_path, "BTCUSDT").collect()
    assert found["side"].to_list() == sides
    assert found["price"].to_list() == source["price"]
    assert found["timestamp"].dt.timestamp("ms").to_list() == source["timestamp"]


def test_trxusdt_trade_stream(real_data: Path, tmp_path: Path) -> None:
    """wc -l: 10,001, one of them the header. awk: line 9,328 alone has price 0.0 (id 548331095, kind empty), the other
    9,999 sum to 15,437,677.0 in quantity and 5,202 have maker 1; ids step by one.
    """
    file = real_data / "binance-trades" / "trxusdt_usdm_20250304_trade_stream.csv"
    report = import_history(tmp_path, "binance-trades", file)
    assert (report.files[0].lines, report.rows, report.rejected) == (10_001, 9_999, 1)
    assert (report.rejects[0].line, "found 0.0" in report.rejects[0].reason) == (9_328, True)
    trades = tape(report, "trades", "TRXUSDT")
    assert [(gap.start, gap.end) for gap in trades.id_gaps] == [(548_331_094, 548_331_096)]
    assert trades.missing_ids == 1
    frame = history.scan_trades(tmp_path, "TRXUSDT").collect()
    assert frame["qty"].sum() == pytest.approx(15_437_677.0)
    assert (frame["side"] == "SELL").sum() == 5_202
    named = import_history(
        tmp_path,
        "csv",
        file,
        symbol="NAMED",
        timestamp="TransactionTime",
        price="Price",
        qty="Quantity",
        buyer_maker="IsBuyerMarketMaker",
        trade_id="TradeId",
        received_at="TimestampOfReceive",
    )
    assert named.rows == 9_999
    same = history.scan_trades(tmp_path, "NAMED").collect()
    assert same.drop("seq").equals(frame.drop("seq"))


def test_bybit_book_archive(real_data: Path, tmp_path: Path) -> None:
    """unzip -p | wc -l: 50; grep -c snapshot: 1 (the first); awk: u steps by one; cts of the first: 1733011200589."""
    report = import_history(tmp_path, "bybit-book", real_data / "bybit" / "xrpusdt-ob500.data.zip")
    book = tape(report, "book", "XRPUSDT")
    assert (book.rows, book.gap_count, report.rejected) == (50, 0, 0)
    frame = history.scan_book(tmp_path, "XRPUSDT").collect()
    assert frame["kind"].to_list() == ["snapshot"] + ["delta"] * 49
    assert frame["timestamp"].to_physical()[0] == 1_733_011_200_589_000_000
    assert frame["bids"][0].len() == frame["asks"][0].len() == 500
    assert frame["bids"][0].to_list()[0] == [1.9531, 6_203.0]


def test_bybit_capture_keeps_spot_and_linear_apart(real_data: Path, tmp_path: Path) -> None:
    """After zstd -d: wc -l 3,256; per connection grep publicTrade.X | grep -o 'BT\\\\":' | wc -l, and
    grep -c orderbook.200.X: linear BTC 56 and 414, ETH 23 and 421, SOL 165 and 383, DOGE 83 and 380; spot BTC 11
    and 300, ETH 9 and 250; 347 trades in all. awk: u steps by one everywhere; 6 snapshots, no block trade.
    """
    file = real_data / "bybit" / "bybit-v5-capture.jsonl.zst"
    report = import_history(tmp_path, "bybit-capture", file)
    assert report.files[0].lines == 3_256
    assert lines_are_accounted_for(report)
    expected = {
        "BTCUSDT": (56, 414),
        "ETHUSDT": (23, 421),
        "SOLUSDT": (165, 383),
        "DOGEUSDT": (83, 380),
        "BTCUSDT@spot": (11, 300),
        "ETHUSDT@spot": (9, 250),
    }
    found = {name: tuple(tape(report, kind, name).rows for kind in ("trades", "book")) for name in expected}
    assert found == expected
    assert sum(one.rows for one in report.tapes if one.kind == "trades") == 347
    assert report.gaps == []
    kinds = [
        history.scan_book(tmp_path, name).collect()["kind"].to_list().count("snapshot") for name in expected
    ]
    assert kinds == [1] * 6
    only = import_history(tmp_path / "spot", "bybit-capture", file, market="spot")
    assert {one.symbol for one in only.tapes} == {"BTCUSDT@spot", "ETHUSDT@spot"}
