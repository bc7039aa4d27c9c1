"""Files that are wrong in one row, in half of them, or altogether: rejected by line, or refused by name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import random
import time
import zipfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replaylab import history
from replaylab.errors import HistoryError
from replaylab.importers import ImportReport, files, import_history

T0 = 1_735_689_600_000


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def table(rows: int, head: str = "timestamp,price,qty,side", tail: str = "100.5,1,buy") -> list[str]:
    return [head, *(f"{T0 + number},{tail}" for number in range(rows))]


def stored(root: Path, symbol: str = "X") -> pl.DataFrame:
    return history.scan_trades(root, symbol).collect()


def accounted(report: ImportReport) -> bool:
    return all(
        file.lines == file.rows_in_lines + file.rejects + file.blank + file.other for file in report.files
    )


@pytest.mark.parametrize(
    "bad",
    [
        "0,100,1,buy",
        ",100,1,buy",
        "x,100,1,buy",
        f"{T0 * 1000},1,1,buy",
        f"{T0},0,1,buy",
        f"{T0},1,1,left",
        "a,b",
    ],
)
@pytest.mark.parametrize("at", [1, 90])
def test_one_bad_row_is_rejected_with_its_line(tmp_path: Path, bad: str, at: int) -> None:
    lines = table(120)
    lines.insert(at, bad)
    report = import_history(tmp_path, "csv", write(tmp_path / "a.csv", lines), "X")
    assert [one.line for one in report.rejects] == [at + 1]
    assert (report.rows, accounted(report)) == (120, True)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("words", [("B", "A"), ("bid", "ask"), ("1", "-1")])
def test_sides_in_other_words_need_the_words(tmp_path: Path, suffix: str, words: tuple[str, str]) -> None:
    """60 of 100 rows would be left: refused. With the words, in any case, every row comes in."""
    frame = pl.DataFrame(
        {
            "timestamp": [T0 + number for number in range(200)],
            "price": 1.5,
            "qty": 1.0,
            "side": [words[number % 5 > 2] for number in range(200)],
        }
    )
    file = tmp_path / f"a.{suffix}"
    foreign = "A" if words[0] == "B" else words[0]
    if suffix == "csv":
        frame.write_csv(file)
    else:
        frame.with_columns(pl.col("side").cast(pl.Int64, strict=words[0] == "1")).write_parquet(
            file
        ) if words[0] == "1" else frame.write_parquet(file)
    with pytest.raises(
        HistoryError,
        match=rf"side must be a buy or sell .*buy_word.*found '{foreign}'.* of 20[01] lines",
    ):
        import_history(tmp_path, suffix, file, "X")
    assert history.symbols(tmp_path) == []
    import_history(tmp_path, suffix, file, "X", buy_word=words[0].upper(), sell_word=words[1])
    assert stored(tmp_path)["side"].value_counts(sort=True).rows() == [("BUY", 120), ("SELL", 80)]


def test_max_rejects_allows_more(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", [*table(60), *[f"{T0},0,1,buy"] * 40])
    with pytest.raises(HistoryError, match=r"a.csv:62: price must be .* 40 of 101 lines .* allowed are 1"):
        import_history(tmp_path, "csv", file, "X")
    report = import_history(tmp_path, "csv", file, "X", max_rejects=0.4)
    assert (report.rows, report.rejected) == (60, 40)
    with pytest.raises(HistoryError, match="max_rejects is a share"):
        import_history(tmp_path, "csv", file, "X", max_rejects=40)


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        ("csv", "timestamp,price,qty\n"),
        ("csv", ""),
        ("bybit-capture", f'{{"t":"recv","conn":"a","ts":{T0 / 1000},"data":"{{}}"}}\n'),
        ("bybit-book", '{"topic":"publicTrade.X"}\n'),
        ("binance-capture", f'{T0} {{"e":"bookTicker","s":"X","u":1,"b":"1","B":"1","a":"2","A":"1"}}\n'),
        ("json", "[]"),
        ("tardis-book", "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"),
        ("book-table", "timestamp,bid_1,bid_qty_1\n"),
    ],
)
def test_a_file_that_stores_nothing_is_an_error(tmp_path: Path, fmt: str, text: str) -> None:
    file = tmp_path / "X_1.txt"
    file.write_text(text)
    with pytest.raises(HistoryError, match=r"X_1.txt.*nothing to store|X_1.txt:1: "):
        import_history(tmp_path, fmt, file, "X")


def number_of_trade(number: int, day: int = 0, price: str = "100", identity: int | None = None) -> str:
    time = T0 + day * 86_400_000 + number
    return f"{number if identity is None else identity},{price},1,100,{time},true"


@pytest.mark.parametrize("ids", ["numbers", "texts"])
@pytest.mark.parametrize("day", [0, 1, 3])
def test_an_id_of_another_trade_is_rejected_with_file_and_line(tmp_path: Path, ids: str, day: int) -> None:
    """Within a day or across days, with another price or time; a repeated row is a duplicate."""
    letter = "" if ids == "numbers" else "t"
    head = "timestamp,price,qty,side,id"

    def row(number: int, price: str = "1", time: int | None = None) -> str:
        return f"{T0 + number if time is None else time},{price},1,buy,{letter}{number}"

    later = T0 + day * 86_400_000
    lines = [head, *(row(number) for number in range(1, 400))]
    lines += [row(7, "2", later + 500), row(8, "1", later + 501), row(9)]
    file = write(tmp_path / "a.csv", lines)
    report = import_history(tmp_path, "csv", file, "X", trade_id="id")
    assert [(one.file, one.line) for one in report.rejects] == [("a.csv", 401), ("a.csv", 402)]
    assert "is that of another trade" in report.rejects[0].reason
    assert (report.rows, report.added, report.duplicates) == (400, 399, 1)
    assert accounted(report)
    assert stored(tmp_path)["trade_id"].n_unique() == stored(tmp_path).height == 399
    with pytest.raises(HistoryError, match=r"b.csv:2: the trade id .* another trade.*save_as"):
        import_history(
            tmp_path,
            "csv",
            write(tmp_path / "b.csv", [head, *(row(n, "5") for n in range(1, 9))]),
            "X",
            trade_id="id",
        )
    assert stored(tmp_path).height == 399


def test_the_same_trade_on_another_clock_is_a_duplicate_across_midnight(tmp_path: Path) -> None:
    midnight = T0 + 86_400_000
    lines = ["timestamp,received,price,qty,side,id", f"{midnight - 5},{midnight + 5},1,1,buy,a"]
    file = write(tmp_path / "a.csv", lines)
    options: dict[str, Any] = {"trade_id": "id", "received_at": "received"}
    import_history(tmp_path, "csv", file, "X", **options)
    again = import_history(tmp_path, "csv", file, "X", clock="receive", **options)
    assert (again.added, again.duplicates, again.rejected) == (0, 1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]\n", "a.csv:1: this is JSON"),
        ("PAR1xx", "this is Parquet"),
        ("\n".join(table(3)).encode("utf-16"), "UTF-16"),
        ("\n".join(table(3)).encode("utf-16-le"), "UTF-16"),
        (
            ["timestamp,price,qty", "1.70407E+12,1,1"],
            r"a.csv:2: time '1.70407E\+12' has lost its last digits",
        ),
        (
            ["timestamp,price,qty", f'{T0},"1,234.5",1'],
            r"price must be a number above 0, found '1,234.5' \(a comma",
        ),
        (["timestamp,price,qty", f"{T0},1,5,1"], r"expected 3 columns, found 4 \(a decimal comma\?\)"),
        (["timestamp,price,qty", f'{T0},"1,1'], r"a quote that is not closed"),
        ([f"{T0},1,1"], "3 columns and no header; name them .* columns="),
        ("x" * 100_000, "the first line has 100,000 bytes"),
        ("9" * 60_000 + ",1", "no header"),
        (["timestamp,price,qty", "y" * 1_000_000], "expected 3 columns, found 1"),
        (["timestamp," + ",".join(f"name{n}" for n in range(5_000))], "no column for price"),
        (["timestamp,price,Price,qty", f"{T0},1,2,1"], "a.csv:1: two columns have the name 'price'"),
        (["timestamp;price;qty", f"{T0};91,497;0.5"], "price must be a number above 0, found '91,497'"),
        (
            ["timestamp;price;qty", *[f"{T0};1,5;91.497", f"{T0};1,5;2"] * 2, ""],
            "qty must be .* found '91.497'",
        ),
        ("timestamp,price,qty\r1,1,1\r", "a.csv:1: has carriage returns within the line"),
        (bz2.compress(b"x"), "is packed with bzip2, which is not read"),
        (lzma.compress(b"x"), "is packed with xz, which is not read"),
    ],
)
def test_what_is_no_csv_says_so_in_few_words(tmp_path: Path, text: Any, message: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        text if isinstance(text, bytes) else ("\n".join(text) if isinstance(text, list) else text).encode()
    )
    with pytest.raises(HistoryError, match=message) as error:
        import_history(tmp_path, "csv", file, "X")
    assert len(str(error.value)) <= 2_000


@pytest.mark.parametrize(
    ("rows", "times"),
    [
        ([f"{T0 // 1000};100;1", f"{T0 // 1000}.5;100,5;1,5"], [0, 500]),  # whole numbers first
        ([f"{T0} ; 100 ; 1", f" {T0 + 500};100,5 ;1,5 "], [0, 500]),
        (["2025-01-01 00:00:00+00;100;1", "2025-01-01 03:00:00.5+03;100,5;1,5"], [0, 500]),
        (["2025-01-01 00:00:00 UTC;100;1", "2025-01-01T00:00:00.5 GMT;100,5;1,5"], [0, 500]),
    ],
)
def test_the_first_rows_show_how_numbers_and_times_are_written(
    tmp_path: Path, rows: list[str], times: list[int]
) -> None:
    file = write(tmp_path / "a.csv", ["timestamp;price;qty", *rows])
    assert accounted(import_history(tmp_path, "csv", file, "X"))
    tape = stored(tmp_path)
    assert [time - T0 for time in tape["timestamp"].dt.epoch("ms")] == times
    assert tape.select("price", "qty").rows() == [(100.0, 1.0), (100.5, 1.5)]


@pytest.mark.parametrize("words", [("buy", "buy"), ("sell", None), ("", None), (None, "B")])
def test_words_for_sides_must_differ(tmp_path: Path, words: tuple[str | None, str | None]) -> None:
    file = write(tmp_path / "a.csv", table(3))
    with pytest.raises(HistoryError, match="buy_word and sell_word are two words that differ"):
        import_history(tmp_path, "csv", file, "X", buy_word=words[0], sell_word=words[1])


@pytest.mark.parametrize("gap_s", [-1.0, float("nan"), float("inf")])
def test_a_pause_is_a_number_of_seconds(tmp_path: Path, gap_s: float) -> None:
    with pytest.raises(HistoryError, match="gap_s is a number of seconds"):
        import_history(tmp_path, "csv", write(tmp_path / "a.csv", table(3)), "X", gap_s=gap_s)


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_member_of_a_zip_is_refused_wherever_a_bit_flips(tmp_path: Path, packing: int) -> None:
    chance, path = random.Random(packing), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.csv", "\n".join(table(300)))
    whole = path.read_bytes()
    for _ in range(40):
        at = chance.randrange(35, len(whole) - 120)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(HistoryError, match=r"a\.zip"):
            import_history(tmp_path, "csv", path, "X")
    assert not any((tmp_path / "history").rglob("*.parquet"))


def test_a_packing_in_a_packing_and_a_bomb_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = write(tmp_path / "a.csv", table(3))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(inner, "a.csv")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.write(tmp_path / "in.zip", "in.zip")
    with pytest.raises(HistoryError, match=r"out.zip!in.zip: is zip inside another packing"):
        import_history(tmp_path, "csv", tmp_path / "out.zip", "X")
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(files, "_FREE_BYTES", 1 << 20)
    (tmp_path / "line.csv").write_bytes(b"timestamp,price,qty\n" + b"7" * (17 << 20))
    with pytest.raises(HistoryError, match=r"line.csv:\d: the line is longer than 1,048,576 bytes"):
        import_history(tmp_path, "csv", tmp_path / "line.csv", "X")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"timestamp,price,qty\n" + b"\n" * (20 << 20), 9))
    with pytest.raises(HistoryError, match="unpacks to more than 200 times"):
        import_history(tmp_path, "csv", tmp_path / "bomb.csv.gz", "X")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("timestamp", [date(2025, 1, 1)]),
        ("timestamp", [timedelta(1)]),
        ("price", [timedelta(1)]),
        ("qty", [b"1"]),
        ("price", [[1.0]]),
        ("side", [["buy"]]),
        ("side", [b"buy"]),
        ("qty", [{"a": 1}]),
    ],
)
def test_parquet_columns_of_other_types_are_named(tmp_path: Path, column: str, values: list[Any]) -> None:
    columns = {"timestamp": [T0], "price": [1.0], "qty": [1], "side": ["buy"]} | {column: values}
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(HistoryError, match=rf"a.parquet: the column '{column}' for .* holds "):
        import_history(tmp_path, "parquet", tmp_path / "a.parquet", "X")


def parquet(path: Path, **columns: Any) -> Path:
    rows = {"timestamp": [T0 + n for n in range(3)], "price": [1.0, 2.0, 3.0], "qty": [1.0, 1.0, 1.0]}
    pq.write_table(pa.table(rows | columns), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"price": pa.array([1, 2, 3], pa.decimal256(50, 10))}, r"'price' for price holds decimal256"),
        ({"timestamp": pa.array([T0 / 1000] * 3, pa.float32())}, "float, too coarse for a time"),
        ({"Price": [1.0, 2.0, 3.0]}, "two columns have the name 'price'"),
        ({"price": ["1,5", "2,5", "3,5"]}, "a.parquet:1: price must be .* found '1,5'"),
    ],
)
def test_parquet_that_would_be_read_wrong_is_refused(tmp_path: Path, columns: Any, message: str) -> None:
    with pytest.raises(HistoryError, match=message):
        import_history(tmp_path, "parquet", parquet(tmp_path / "a.parquet", **columns), "X")


@pytest.mark.parametrize("far", [0, -5, 253_402_300_799_000])
def test_a_datetime_outside_of_the_years_of_exchanges_is_rejected(tmp_path: Path, far: int) -> None:
    times = pa.array([T0, far, T0 + 2], pa.timestamp("ms", "UTC"))
    words = pa.array(["1.5", "2.5", "3.5"]).dictionary_encode()
    report = import_history(
        tmp_path, "parquet", parquet(tmp_path / "a.parquet", timestamp=times, price=words), "X"
    )
    assert [(one.line, one.reason.partition(",")[0][:4]) for one in report.rejects] == [(2, "time")]
    assert stored(tmp_path)["price"].to_list() == [1.5, 3.5]


def test_semicolons_decimal_commas_and_columns_by_order(tmp_path: Path) -> None:
    lines = [
        "timestamp;price;qty;side",
        "2025-01-01 00:00:00,5;91500,25;0,5;Kauf",
        "2025-01-01 00:00:01;91501;1;VERKAUF",
    ]
    file = write(tmp_path / "a.csv", lines)
    report = import_history(
        tmp_path, "csv", file, "X", buy_word="kauf", sell_word="Verkauf", time_zone="Europe/Berlin"
    )
    assert stored(tmp_path)["price"].to_list() == [91_500.25, 91_501.0]
    assert stored(tmp_path)["timestamp"].dt.to_string("iso").to_list()[0].startswith("2024-12-31 23:00:00.5")
    assert stored(tmp_path)["side"].to_list() == ["BUY", "SELL"]
    assert any("decimal comma" in note for note in report.notes)
    bare = write(tmp_path / "b.csv", [f"1.5,{T0},x,2"])
    import_history(tmp_path, "csv", bare, "Y", columns="price,timestamp,,qty")
    assert stored(tmp_path, "Y").select("price", "qty").row(0) == (1.5, 2.0)
    with pytest.raises(HistoryError, match="4 columns, but columns names 2"):
        import_history(tmp_path, "csv", bare, "Y", columns=["price", "timestamp"])


def test_an_hour_that_a_clock_change_makes_unclear_is_rejected(tmp_path: Path) -> None:
    times = [f"2025-10-26T{hour:02d}:30:00" for hour in range(6)]
    file = write(tmp_path / "a.csv", ["timestamp,price,qty,side", *(f"{time},1,1,buy" for time in times)])
    report = import_history(tmp_path, "csv", file, "X", time_zone="Europe/Berlin")
    assert [one.line for one in report.rejects] == [4]
    assert stored(tmp_path)["timestamp"].dt.hour().to_list() == [22, 23, 2, 3, 4]
    with pytest.raises(HistoryError, match="time_zone is a name"):
        import_history(tmp_path, "csv", file, "X", time_zone="Berlin/Mitte")


@pytest.mark.parametrize(
    "content",
    [
        [
            {
                "id": "1",
                "timestamp": T0,
                "side": "buy",
                "price": 1.5,
                "amount": 2,
                "symbol": "XRP/USDT",
                "info": {"x": 1},
            }
        ],
        [[T0, "1", None, "buy", 1.5, 2, 3.0]],
        {"error": [], "result": {"XRP/USDT": [["1.5", "2", T0 / 1000, "b", "l", "", 1]], "last": "9"}},
    ],
    ids=["ccxt", "freqtrade", "kraken"],
)
@pytest.mark.parametrize("lines", [False, True])
def test_trades_in_json(tmp_path: Path, content: Any, lines: bool) -> None:
    rows = content if isinstance(content, list) else [content]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(content)
    (tmp_path / "a.json").write_text(text)
    symbol = None if "symbol" in str(content) else "XRP/USDT"
    import_history(tmp_path, "json", tmp_path / "a.json", symbol)
    found = stored(tmp_path, "XRP/USDT")
    assert found.select("price", "qty", "side", "trade_id").row(0) == (1.5, 2.0, "BUY", "1")
    assert found["timestamp"].dt.timestamp("ms")[0] == T0


@pytest.mark.parametrize("lines", [False, True])
def test_one_odd_row_of_json_is_rejected_by_number(tmp_path: Path, lines: bool) -> None:
    rows: list[Any] = [{"timestamp": T0 + number, "price": 1.5, "amount": 1} for number in range(500)]
    rows[7:7] = [None, [1, 2], 5]
    texts = [json.dumps(row) for row in rows]
    if lines:
        texts[100:100] = ["", '{"timestamp": 17', '{"price": NaN}']
    file = tmp_path / "a.json"
    file.write_text("\n".join(texts) + "\n" if lines else json.dumps(rows))
    report = import_history(tmp_path, "json", file, "X")
    assert (report.rows, accounted(report)) == (500, True)
    assert [one.line for one in report.rejects if "found" in one.reason] == [8, 9, 10]
    broken = [one for one in report.rejects if "not readable as JSON" in one.reason]
    assert [one.line for one in broken] == ([102, 103] if lines else [])


def test_json_that_is_no_trades_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for text, message in (
        ("{bad", "not readable"),
        ("[[1,2,3]]", "columns="),
        ("[1]", "expected an array"),
        ('[{"a":1}]', "no column"),
    ):
        file.write_text(text)
        with pytest.raises(HistoryError, match=message):
            import_history(tmp_path, "json", file, "X")
    file.write_text(json.dumps([[T0, 1.5, 2]]))
    import_history(tmp_path, "json", file, "X", columns="timestamp,price,qty")
    assert stored(tmp_path).height == 1


@pytest.mark.parametrize(
    "head",
    [
        "timestamp,bids[0].price,bids[0].amount,bids[1].price,bids[1].amount,asks[0].price,asks[0].amount",
        "ts_event,bid_px_00,bid_sz_00,bid_px_01,bid_sz_01,ask_px_00,ask_sz_00,bid_ct_00",
        "time,bid1,bidqty1,bid2,bidqty2,ask1,askqty1",
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_books_with_columns_of_levels(tmp_path: Path, head: str, suffix: str) -> None:
    extra = head.count(",") - 6
    rows = [
        f"{T0},1.5,2,1.4,3,1.6,1" + ",7" * extra,
        f"{T0 + 1},1.7,2,,,1.6,1" + ",7" * extra,
        f"{T0 + 2},1.5,2,1.4,3,1.6,1" + ",7" * extra,
    ]
    file = write(tmp_path / "a.csv", [head, *rows])
    if suffix == "parquet":
        pl.read_csv(file).write_parquet(tmp_path / "a.parquet")
    report = import_history(tmp_path, "book-table", tmp_path / f"a.{suffix}", "X")
    book = history.scan_book(tmp_path, "X").collect()
    assert book["kind"].to_list() == ["snapshot"] * 3
    assert book["bids"].to_list() == [[[1.5, 2.0], [1.4, 3.0]], [[1.7, 2.0]], [[1.5, 2.0], [1.4, 3.0]]]
    assert book["asks"].to_list() == [[[1.6, 1.0]]] * 3
    gaps = history.scan_gaps(tmp_path, "X").collect()
    assert gaps.select(pl.col("timestamp", "end").dt.timestamp("ms"), "what").rows() == [
        (T0 + 1, T0 + 2, "crossed")
    ]
    assert report.tapes[0].doubtful_s == pytest.approx(0.001)
    assert accounted(report)


@pytest.mark.parametrize("flagged", [True, False])
def test_books_with_a_row_per_level(tmp_path: Path, flagged: bool) -> None:
    rows = [(0, "bid", 1.5, 2, 1), (0, "ASK", 1.6, 1, 1), (1, "b", 1.4, 2, 0), (1, "sell", 1.6, 0, 0)]
    head = "timestamp,side,price,size" + ",is_snapshot" * flagged
    lines = [
        head,
        *(
            f"{T0 + ms},{side},{price},{qty}" + f",{snapshot}" * flagged
            for ms, side, price, qty, snapshot in rows
        ),
    ]
    report = import_history(tmp_path, "book-table", write(tmp_path / "a.csv", lines), "X")
    book = history.scan_book(tmp_path, "X").collect()
    assert book["kind"].to_list() == ["snapshot", "delta" if flagged else "snapshot"]
    assert book["bids"].to_list() == [[[1.5, 2.0]], [[1.4, 2.0]]]
    assert accounted(report)


def test_folders_patterns_and_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("b.csv", "sub/c.csv", "a.csv")):
        write(folder / name, ["timestamp,price,qty,side", f"{T0 + number},1,1,buy"])
    note = folder / "a.csv.CHECKSUM"
    right = hashlib.sha256((folder / "a.csv").read_bytes()).hexdigest()
    note.write_text(f"{right}  a.csv\n")
    assert import_history(tmp_path / "1", "csv", folder, "X").rows == 3
    # As other tools write them: binary mode, BSD, upper case with a mark and \\r, UTF-16, several files.
    for k, text in enumerate(
        (
            f"{right} *a.csv\n".encode(),
            f"SHA256 (a.csv) = {right}\n".encode(),
            f"\ufeff{right.upper()}\r\n".encode(),
            f"Algorithm Hash Path\r\n--------- ---- ----\r\nSHA256    {right.upper()}  C:\\in\\a.csv\r\n".encode(
                "utf-16"
            ),
            f"{'0' * 64}  aa.csv\n{right}  dir/a.csv\n{'1' * 64}  b.csv\n".encode(),
            f"SHA256(aa.csv)= {'0' * 64}\nSHA256(a.csv)= {right}\n".encode(),
            f"{right}  its-name-before.csv\n".encode(),
        )
    ):
        note.write_bytes(text)
        assert import_history(tmp_path / f"form-{k}", "csv", folder / "a.csv", "X").rows == 1
    for text in ("<html>404</html>", f"{right}  aa.csv\n{right}  b.csv\n"):
        note.write_text(text)
        with pytest.raises(HistoryError, match=r"a\.csv\.CHECKSUM: holds no SHA-256 of a\.csv"):
            import_history(tmp_path / "3", "csv", folder / "a.csv", "X")
    note.write_text(f"{right}  a.csv\n")
    assert import_history(tmp_path / "2", "csv", str(folder / "*.csv"), "X").rows == 2
    note.write_text("0" * 64 + "  a.csv\n")
    for given in (folder, folder / "a.csv"):
        with pytest.raises(HistoryError, match=r"a.csv: its SHA-256 is .* download it again"):
            import_history(tmp_path / "3", "csv", given, "X")
    with pytest.raises(HistoryError, match="no files here"):
        import_history(tmp_path / "3", "csv", str(folder / "*.zip"), "X")


def test_the_tick_rule_follows_time_not_lines(tmp_path: Path) -> None:
    """Rows newest first, files in the wrong order, over midnight: sides are those of the sorted tape."""
    day = 86_400_000
    tape = [(day - 3, 1.0), (day - 2, 2.0), (day - 1, 2.0), (day + 1, 1.5), (day + 2, 1.5), (day + 3, 3.0)]
    for name, part in (("a", tape[3:]), ("b", tape[:3])):
        lines = [f"{T0 + ms},{price},1" for ms, price in reversed(part)]
        write(tmp_path / f"{name}.csv", ["timestamp,price,qty", *lines])
    report = import_history(tmp_path, "csv", [tmp_path / "a.csv", tmp_path / "b.csv"], "X")
    assert stored(tmp_path)["side"].to_list() == [None, "BUY", "BUY", "SELL", "SELL", "BUY"]
    assert any("newest first" in note for note in report.notes)
    again = import_history(tmp_path, "csv", [tmp_path / "b.csv", tmp_path / "a.csv"], "X")
    assert (again.added, again.duplicates) == (0, 6)
    later = write(tmp_path / "c.csv", ["timestamp,price,qty", f"{T0 + 2 * day},3,1"])
    import_history(tmp_path, "csv", later, "X")
    assert stored(tmp_path)["side"].to_list()[-1] == "BUY", (
        "the trade before is in another day of the history"
    )


def test_a_capture_of_aggregated_trades(tmp_path: Path) -> None:
    one = {"e": "aggTrade", "E": T0, "T": T0, "s": "X", "a": 5, "p": "1.5", "q": "2", "m": False}
    single = {**one, "e": "trade", "t": 9}
    write(tmp_path / "x_1.txt", [f"{T0}000000 {json.dumps(row)}" for row in (one, single)])
    report = import_history(tmp_path, "binance-capture", tmp_path / "x_1.txt")
    assert stored(tmp_path).select("trade_id", "side").rows() == [("5", "BUY")]
    assert any("trade left out, as aggTrade came first" in note for note in report.notes)


def test_an_older_capture_of_cryptofeed(tmp_path: Path) -> None:
    public = {
        "topic": "publicTrade.X",
        "data": [{"T": T0, "S": "Sell", "v": "2", "p": "1.5", "i": "n", "BT": False}],
    }
    address = "wss://stream.bybit.com/v5/public/spot"
    lines = [
        "configuration: {}",
        f"{address} <-> {T0 / 1000}",
        f'{address} <- {T0 / 1000}: {{"op": "subscribe"}}',
    ]
    lines.append(f"{T0 / 1000 + 0.25}: {json.dumps(public)}")
    report = import_history(tmp_path, "bybit-capture", write(tmp_path / "a.0", lines))
    found = stored(tmp_path, "X@spot")
    assert found["received_at"].dt.timestamp("ms")[0] == T0 + 250
    assert (report.files[0].other, report.rejected) == (3, 0)


def test_missing_messages_of_a_book_are_an_interval_until_a_snapshot(tmp_path: Path) -> None:
    def message(kind: str, update: int, ms: int, bid: str) -> str:
        data = {"s": "X", "b": [[bid, "1"]], "a": [["9", "1"]], "u": update}
        return json.dumps(
            {"topic": "orderbook.50.X", "ts": T0 + ms, "type": kind, "data": data, "cts": T0 + ms}
        )

    lines = [message("snapshot", 5, 0, "1"), message("delta", 6, 10, "2"), message("delta", 9, 20, "3")]
    lines += [message("delta", 10, 30, "3"), message("snapshot", 20, 40, "3"), message("delta", 21, 50, "4")]
    import_history(tmp_path, "bybit-book", write(tmp_path / "a.data", lines))
    gaps = history.scan_gaps(tmp_path, "X").collect()
    assert gaps.select(pl.col("timestamp", "end").dt.timestamp("ms"), "what").rows() == [
        (T0 + 10, T0 + 40, "missing")
    ]
    import_history(tmp_path, "bybit-book", tmp_path / "a.data")
    assert history.scan_gaps(tmp_path, "X").collect().height == 1


TARDIS = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount"


def level(number: int, **changes: object) -> str:
    at = (T0 + number) * 1000
    row = {"exchange": "e", "symbol": "X", "timestamp": at, "local_timestamp": at + 5}
    row |= {"is_snapshot": "true" if number < 2 else "false", "side": ("ask", "bid")[number % 2]}
    return ",".join(map(str, (row | {"price": 100 - number % 2, "amount": 1} | changes).values()))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (level(5, timestamp=""), "no usable time, found nothing"),
        (level(5, local_timestamp=""), "no usable time, found nothing"),
        (level(5, timestamp=0), "timestamp 0 is no time"),
        (level(5, timestamp="x"), "timestamp 'x' is no time"),
        (level(5, timestamp=T0), "is in ms, but the timestamp began in us"),
        (level(5, is_snapshot="maybe"), "is_snapshot must be true or false, found 'maybe'"),
        (level(5, side="left"), "side must be bid or ask, found 'left'"),
        (level(5, symbol=""), "symbol must be the name of a market"),
        (level(5, price="nan"), "price must be a number above 0, found 'nan'"),
        (level(5, amount="-1"), "amount must be a number of 0 or more, found '-1'"),
        (level(5) + ",1", "expected 8 columns, found 9"),
        ("a,b", "expected 8 columns, found 2"),
        (level(5, symbol='"X'), "a quote that is not closed"),
        (level(5, exchange="\xff"), "no text in UTF-8"),
    ],
)
@pytest.mark.parametrize("at", [0, 50, 200])
def test_one_bad_row_of_a_tardis_book_is_rejected_with_its_reason(
    tmp_path: Path, bad: str, reason: str, at: int
) -> None:
    lines = [TARDIS, *(level(number) for number in range(200))]
    lines.insert(at + 1, bad)
    file = tmp_path / "a.csv"
    file.write_text("\n".join(lines) + "\n", "latin-1")
    report = import_history(tmp_path, "tardis-book", file)
    assert [one.line for one in report.rejects] == [at + 2]
    assert reason in report.rejects[0].reason
    assert (report.rows, accounted(report)) == (200, True)


def spot_trade(number: int) -> str:
    return f"{number},100,1,100,{T0 + number},true,true"


def book_message(number: int) -> str:
    data = {"s": "X", "b": [["1", "1"]], "a": [["9", str(number)]], "u": number + 1}
    kind = "delta" if number else "snapshot"
    message = {"topic": "orderbook.50.X", "ts": T0 + number, "type": kind, "data": data, "cts": T0 + number}
    return json.dumps(message)


ROWS: dict[str, tuple[str, Callable[[int], str]]] = {
    "csv": ("timestamp,price,qty,side", lambda number: f"{T0 + number},100.5,1,buy"),
    "binance-trades": ("", spot_trade),
    "tardis-book": (TARDIS, level),
    "book-table": ("timestamp,bid_1,bid_qty_1,ask_1,ask_qty_1", lambda number: f"{T0 + number},1.5,2,1.6,1"),
    "bybit-book": ("", book_message),
}
EIGHT_MB = 8_000_000
ODD = {
    "text": "x" * EIGHT_MB,
    "commas": "," * EIGHT_MB,
    "quotes": '"' * EIGHT_MB,
    "cells in quotes": 'a,"' * (EIGHT_MB // 3),
    "a long time": "1" * EIGHT_MB + ",1,1,buy",
    "levels": book_message(7)[:-1] + ',"more":[' + '["1","2"],' * (EIGHT_MB // 10) + "1]}",
}


@pytest.mark.parametrize("fmt", ROWS)
def test_one_odd_line_of_8_mb_is_rejected_and_costs_no_more_than_three_clean_files(
    tmp_path: Path, fmt: str
) -> None:
    """20,000 rows with and without it, best of five."""
    head, row = ROWS[fmt]
    rows = [row(number) for number in range(20_000)]

    def seconds(odd: list[str], runs: int) -> float:
        lines = [*([head] if head else []), *rows[:9_000], *odd, *rows[9_000:]]
        file = write(tmp_path / "X_a.csv", lines)
        best = 9.0
        for run in range(runs):
            start = time.perf_counter()
            report = import_history(tmp_path / f"{len(odd)}-{run}", fmt, file, "X")
            best = min(best, time.perf_counter() - start)
            assert [one.line for one in report.rejects] == [9_001 + bool(head)] * len(odd)
            assert (report.rows, accounted(report)) == (20_000, True)
        return best

    clean = seconds([], 5)
    for name, line in ODD.items():
        assert seconds([line], 2) <= 3 * clean or seconds([line], 5) <= 3 * seconds([], 5), name


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One of many ways in which a file is damaged, or was written by another program."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    kind = chance.randrange(16)
    if kind < 4:
        place = chance.randrange(len(data))
        junk = (bytes([data[place] ^ (1 << chance.randrange(8))]), b"", chance.randbytes(8), b"\0" * 64)[kind]
        return data[:place] + junk + data[place + (1 if kind < 2 else len(junk)) :]
    if kind == 4:
        return data[: chance.randrange(len(data))]
    if kind == 5:
        lines[at] = b""
    elif kind == 6:
        lines[at] = chance.choice([b",", b'"', b"x", b"{", b"[", b"\xff", b"9"]) * chance.choice(
            [1, 9, 70_000]
        )
    elif kind == 7:
        lines[at] += chance.choice([b",1", b'"', b"\r", b"  ", b";", b"\0"])
    elif kind == 8:
        cells = lines[at].split(b",")
        odd = [
            b"",
            b"0",
            b"-1",
            b"nan",
            b"inf",
            b"1e400",
            b"null",
            b'"',
            b"\xff",
            b"=1+1",
            b"1" * 400,
            b"True",
        ]
        cells[chance.randrange(len(cells))] = chance.choice(odd)
        lines[at] = b",".join(cells)
    elif kind == 9:
        lines.insert(at, lines[chance.randrange(len(lines))])
    elif kind == 10:
        lines[at : at + 40] = reversed(lines[at : at + 40])
    elif kind == 11:
        del lines[at : at + chance.randrange(1, 60)]
    elif kind == 12:
        return data.replace(b"\n", b"\r\n")
    elif kind == 13:
        return data.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-8-sig", "utf-32"]))
    elif kind == 14:
        return data.replace(b",", chance.choice([b";", b"\t", b" ", b",,"]))
    else:
        return data + data[chance.randrange(len(data)) :]
    return b"\n".join(lines)


def mutate(folder: Path, count: int) -> tuple[int, int]:
    """Import mutated files of every format; returns how many came in and how many were refused, in words."""
    chance = random.Random(count)
    good = {
        fmt: ("\n".join([*([head] if head else []), *(row(number) for number in range(300))]) + "\n").encode()
        for fmt, (head, row) in ROWS.items()
    }
    taken = refused = 0
    for number in range(count):
        fmt = [*good][number % len(good)]
        file = folder / f"X_{number}.csv"
        file.write_bytes(mutated(good[fmt], chance))
        start = time.perf_counter()
        report, message = None, file.name
        try:
            report = import_history(
                folder / str(number), fmt, file, "X", max_rejects=chance.choice([0.01, 1.0])
            )
        except HistoryError as error:
            message = str(error)
        if report is None:
            refused += 1
            assert history.symbols(folder / str(number)) == []
        else:
            taken += 1
            assert accounted(report), (fmt, number)
        assert file.name in message
        assert len(message) <= 2_000
        assert time.perf_counter() - start < 20
    return taken, refused


def test_mutated_files_are_taken_with_every_line_accounted_for_or_refused_in_words(tmp_path: Path) -> None:
    taken, refused = mutate(tmp_path, 60)
    assert taken > 10
    assert refused > 5


@pytest.mark.stress
def test_650_mutated_files(tmp_path: Path) -> None:
    taken, refused = mutate(tmp_path, 650)
    print(
        f"mutated files: {taken + refused} injected, {taken + refused} survived: {taken} imported, {refused} refused"
    )
