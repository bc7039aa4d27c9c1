"""Text tables: header, unit, order and case are detected; what contradicts itself is refused with file and line."""

from __future__ import annotations

import gzip
import random
import zipfile
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaylab import history
from replaylab.errors import HistoryError
from replaylab.importers import FORMATS, import_history
from replaylab.importers import files as reading

SPOT_2025 = [
    "4500000001,91500.10,0.01000000,915.00,1735689600000123,True,True",
    "4500000002,91500.20,0.02000000,1830.00,1735689600000123,False,True",
    "4500000004,91500.10,0.50000000,45750.05,1735689700500000,true,True",
]


def put(path: Path, lines: list[str], end: str = "\n") -> Path:
    data = (end.join(lines) + end).encode()
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".zst":
            path.write_bytes(pa.compress(data, "zstd", asbytes=True))
        case ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(path.stem + ".csv", data)
        case _:
            path.write_bytes(data)
    return path


def trades(root: Path, symbol: str = "BTCUSDT") -> pl.DataFrame:
    return history.scan_trades(root, symbol).collect()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zst", ".zip"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_binance_spot_without_header_in_any_packing(tmp_path: Path, suffix: str, end: str) -> None:
    file = put(tmp_path / f"BTCUSDT-trades-2025-01-01{suffix}", SPOT_2025, end)
    report = import_history(tmp_path, "binance-trades", file)
    found = trades(tmp_path)
    assert found["timestamp"].to_physical().to_list() == [1735689600000123000] * 2 + [1735689700500000000]
    assert found["side"].to_list() == ["SELL", "BUY", "SELL"]
    assert found["trade_id"].to_list() == ["4500000001", "4500000002", "4500000004"]
    (tape,) = report.tapes
    assert [(gap.start, gap.end, gap.line) for gap in tape.id_gaps] == [(4500000002, 4500000004, 3)]
    assert [gap.line for gap in tape.time_gaps] == [3]
    assert any("times in us" in note for note in report.notes)
    assert any("no header" in note for note in report.notes)


def test_binance_futures_with_header_in_milliseconds(tmp_path: Path) -> None:
    lines = [
        "id,price,qty,quote_qty,time,is_buyer_maker",
        "1,100.5,2,201,1660000000123,true",
        "2,100.4,1,100.4,1660000000124,FALSE",
    ]
    import_history(tmp_path, "binance-trades", put(tmp_path / "ETHUSDT-trades-2022-08-09.csv", lines))
    found = trades(tmp_path, "ETHUSDT")
    assert found["timestamp"].to_physical().to_list() == [1660000000123000000, 1660000000124000000]
    assert found["side"].to_list() == ["SELL", "BUY"]


@pytest.mark.parametrize("header", [True, False])
def test_binance_aggregated_trades(tmp_path: Path, header: bool) -> None:
    lines = ["26129,0.01633102,4.70443515,27781,27781,1498793709153,true,true"]
    if header:
        lines.insert(
            0, "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,x1"
        )
    import_history(tmp_path, "binance-agg-trades", put(tmp_path / "BNBBTC-aggTrades-2017-06-30.csv", lines))
    assert trades(tmp_path, "BNBBTC").select("trade_id", "price", "qty", "side").row(0) == (
        "26129",
        0.01633102,
        4.70443515,
        "SELL",
    )


def test_bybit_derivatives_newest_first_with_decimal_seconds(tmp_path: Path) -> None:
    """Old files run backwards: rows of one time come out oldest first, and nothing counts as out of order."""
    lines = [
        "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional,RPI",
        "1733011200.1236,BTCUSDT,Sell,0.002,96000.5,MinusTick,c,1,1,1,0",
        "1733011200.1234,BTCUSDT,Buy,0.003,96001.0,ZeroPlusTick,b,1,1,1,0",
        "1733011200.1234,BTCUSDT,Buy,0.001,96000.9,PlusTick,a,1,1,1,0",
        "1733011199.5,BTCUSDT,Sell,0.001,96000.8,PlusTick,0,1,1,1,0",
    ]
    report = import_history(tmp_path, "bybit-trades", put(tmp_path / "BTCUSDT2024-12-01.csv.gz", lines))
    found = trades(tmp_path)
    assert found["trade_id"].to_list() == ["0", "a", "b", "c"]
    assert found["timestamp"].to_physical().to_list()[1:] == [1733011200123400000] * 2 + [1733011200123600000]
    assert (report.out_of_order, report.gaps) == (0, [])
    assert any("newest first" in note for note in report.notes)


def test_bybit_spot_whose_header_is_a_column_short(tmp_path: Path) -> None:
    lines = [
        "id,timestamp,price,volume,side",
        "1,1733011200123,96000.5,0.002,sell,0",
        "2,1733011200124,96000.6,0.001,buy,1",
    ]
    report = import_history(tmp_path, "bybit-trades", put(tmp_path / "BTCUSDT_2024-12-01.csv.gz", lines))
    assert trades(tmp_path)["side"].to_list() == ["SELL", "BUY"]
    assert any("a column short" in note for note in report.notes)


TARDIS = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount"


def test_tardis_trades_keep_both_clocks(tmp_path: Path) -> None:
    lines = [
        TARDIS,
        "bybit,BTCUSDT,1733011200123456,1733011200130001,x,buy,96000.5,0.1",
        "bybit,BTCUSDT,1733011200123457,1733011200130002,y,unknown,96000.5,0.1",
    ]
    report = import_history(tmp_path, "tardis-trades", put(tmp_path / "t.csv.gz", lines))
    found = trades(tmp_path)
    assert found["received_at"].to_physical().to_list() == [1733011200130001000, 1733011200130002000]
    assert found["side"].to_list() == ["BUY", None]
    assert (report.tapes[0].skew.least, report.tapes[0].skew.most) == (6.545, 6.545)


def test_several_symbols_and_choosing_one(tmp_path: Path) -> None:
    row = "b,{},1733011200123456,1733011200130001,{},buy,{},0.1"
    lines = [TARDIS, row.format("AUSDT", 1, 5), row.format("BUSDT", 1, 6), row.format("AUSDT", 2, 5)]
    file = put(tmp_path / "t.csv", lines)
    report = import_history(tmp_path / "all", "tardis-trades", file)
    assert {one.symbol: one.rows for one in report.tapes} == {"AUSDT": 2, "BUSDT": 1}
    report = import_history(tmp_path / "one", "tardis-trades", file, "BUSDT", save_as="B-TARDIS")
    assert [(one.symbol, one.rows) for one in report.tapes] == [("B-TARDIS", 1)]
    assert report.files[0].other == 3
    with pytest.raises(HistoryError, match=r"no 'BUSD'.*AUSDT, BUSDT.*mean 'BUSDT'"):
        import_history(tmp_path, "tardis-trades", file, "BUSD")
    with pytest.raises(HistoryError, match="cannot all be saved as 'X'"):
        import_history(tmp_path, "tardis-trades", file, save_as="X")
    assert history.symbols(tmp_path) == []


def test_lines_that_are_no_rows_are_rejected_with_their_numbers(tmp_path: Path) -> None:
    """Blank, torn, too long, unreadable, zero, unknown side: each accounted for; the good rows keep their lines."""
    lines = [
        "id,price,qty,quote_qty,time,is_buyer_maker",
        "1,100,1,100,1660000000123,true",
        "",
        "2,100,1,100",
        "3,100,1,100,1660000000124,true,surplus",
        "4,abc,1,100,1660000000125,true",
        "5,100,0,100,1660000000126,true",
        "6,100,1,100,1660000000127,maybe",
        "7,100,1,100,,true",
        *(f"{number},100,1,100,16600000002{number:02d},false" for number in range(8, 18)),
    ]
    file = put(tmp_path / "X-trades-1.csv", lines)
    report = import_history(tmp_path, "binance-trades", file, max_rejects=0.5)
    assert [
        (one.line, one.reason.split(",")[0]) for one in sorted(report.rejects, key=lambda one: one.line)
    ] == [
        (4, "expected 6 columns"),
        (5, "expected 6 columns"),
        (6, "price must be a number above 0"),
        (7, "qty must be a number above 0"),
        (8, "is_buyer_maker must be true or false"),
        (9, "no usable time"),
    ]
    (file,) = report.files
    assert (file.lines, file.rows, file.blank, file.other, file.rejects) == (19, 11, 1, 1, 6)
    assert next(one.text for one in report.rejects if one.line == 6) == lines[5]


GOOD = "1,100,1,100,1660000000123,true"


@pytest.mark.parametrize(
    ("fmt", "name", "lines", "message"),
    [
        (
            "binance-trades",
            "X-trades-1.csv",
            [*[GOOD] * 3, *["2,100,1,100,1660000000124000,true"] * 2],
            r"X-trades-1.csv:4: time 1660000000124000 is in us, but the time began in ms",
        ),
        (
            "binance-trades",
            "X-trades-1.csv",
            ["1,100,1,100,12,true"],
            r":1: time 12 is no time between 2009 and 2100",
        ),
        (
            "binance-trades",
            "X-trades-1.csv",
            ["1,100,1,100,1660000000,true"],
            r":1: time 1660000000 is no time .* in ms or us",
        ),
        (
            "binance-trades",
            "X-trades-1.csv",
            ["1,2,3"],
            r":1: 3 columns and no header; without a header there are 6 or 7",
        ),
        (
            "binance-trades",
            "X-trades-1.csv",
            ["id,prise,qty,time,is_buyer_maker", GOOD],
            r":1: no column for price .*mean 'prise'",
        ),
        (
            "binance-trades",
            "trades.csv",
            [GOOD],
            r"trades.csv: neither the rows nor the file's name has a symbol",
        ),
        (
            "binance-trades",
            "X-trades-1.csv",
            ["1,100,1,5,6,1660000000123,true"],
            r"X-trades-1.csv:1: column 6 must be true or false, found '1660000000123'. 1 of 1 lines were rejected",
        ),
        (
            "bybit-trades",
            "X2024-01-01.csv",
            ["timestamp,symbol,side,size,price", "1733011200.1234567891,X,Buy,1,1"],
            r":2: time '1733011200.1234567891' is finer",
        ),
        (
            "bybit-trades",
            "X2024-01-01.csv",
            ["timestamp,symbol,side,size,price", "1733011200.1,X,Up,1,1"],
            r":2: side must be a buy or sell, found 'Up'. 1 of 2 lines .* not suit bybit-trades",
        ),
        ("tardis-book", "b.csv", ["a,b", "1,2"], r"b.csv:1: expected the header exchange,symbol"),
    ],
)
def test_contradictions_are_refused_with_file_and_line(
    tmp_path: Path, fmt: str, name: str, lines: list[str], message: str
) -> None:
    with pytest.raises(HistoryError, match=message):
        import_history(tmp_path, fmt, put(tmp_path / name, lines))
    assert history.symbols(tmp_path) == [], "nothing of a refused import is there"


def test_a_file_named_after_another_symbol_needs_save_as(tmp_path: Path) -> None:
    file = put(tmp_path / "ETHUSDT-trades-1.csv", [GOOD])
    with pytest.raises(HistoryError, match="named after ETHUSDT"):
        import_history(tmp_path, "binance-trades", file, "BTCUSDT")
    import_history(tmp_path, "binance-trades", file, "ETHUSDT", save_as="MINE")
    assert history.symbols(tmp_path) == ["MINE"]


def test_unknown_formats_options_and_files(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"no format 'binance_trades'.*mean 'binance-trades'"):
        import_history(tmp_path, "binance_trades", "x")
    with pytest.raises(HistoryError, match=r"csv has no option 'market': there are .*price"):
        import_history(tmp_path, "csv", "x", market="spot")
    with pytest.raises(HistoryError, match="cannot be read: No such file"):
        import_history(tmp_path, "csv", tmp_path / "x", "X")
    with pytest.raises(HistoryError, match="clock is"):
        import_history(tmp_path, "csv", "x", clock="local")
    with pytest.raises(HistoryError, match="no receive time"):
        import_history(tmp_path, "binance-trades", put(tmp_path / "X-trades-1.csv", [GOOD]), clock="receive")
    assert set(FORMATS) >= {
        "bybit-trades",
        "bybit-book",
        "bybit-capture",
        "binance-trades",
        "tardis-book",
        "csv",
    }
    assert all(fmt.about and callable(fmt.read) for fmt in FORMATS.values())


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_cut_off_file_is_refused(tmp_path: Path, packing: str) -> None:
    lines = [f"{number},{random.random()},1,100,{1660000000123 + number},true" for number in range(5_000)]
    file = put(tmp_path / f"X-trades-1.csv{packing}", lines)
    file.write_bytes(file.read_bytes()[:-2_000])
    with pytest.raises(HistoryError, match=r"X-trades-1.csv.* damaged or cut off after line \d+"):
        import_history(tmp_path, "binance-trades", file)
    assert history.symbols(tmp_path) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_blocks_do_not_show(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """However a file is cut into blocks, rows, lines, rejects, sides by the tick rule and seq are the same."""
    prices = data.draw(
        st.lists(st.sampled_from(["1.5", "2.5", "x", ""]), min_size=3, max_size=12).filter(
            lambda found: sum(one in ("1.5", "2.5") for one in found) * 2 > len(found)
        )
    )
    lines = [
        "timestamp,price,qty",
        *(f"16600000001{number:02d},{price},1" if price else "" for number, price in enumerate(prices)),
    ]
    results = []
    for size in (7, 64, 1 << 20):
        root = tmp_path_factory.mktemp("blocks")
        file = put(root / "x.csv", lines)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading.LineFile.blocks, "__defaults__", (size,))
            report = import_history(root, "csv", file, "X", max_rejects=1)
        results.append((trades(root, "X").rows(), vars(report.files[0]), report.rejects))
    assert results[0] == results[1] == results[2]


@given(
    whole=st.integers(1_300_000_000, 4_000_000_000),
    fraction=st.text("0123456789", max_size=9),
)
@settings(max_examples=200, deadline=None)
def test_decimal_seconds_are_exact(whole: int, fraction: str) -> None:
    """Against decimal arithmetic: no float comes between a text and its nanoseconds."""
    from replaylab.importers.text_tables import Clock, parse_times

    text = f"{whole}.{fraction}" if fraction else str(whole)
    found = parse_times(pl.Series([text]), Clock("time"))
    assert found[0] == int(Decimal(text) * 10**9)


def test_iso_times_datetimes_and_floats(tmp_path: Path) -> None:
    csv_file = put(
        tmp_path / "iso.csv",
        [
            "timestamp,price,qty,side",
            "2025-11-18T10:00:00.123456789Z,1,1,BUY",
            "2025-11-18T10:00:01Z,1,1,sell",
        ],
    )
    import_history(tmp_path, "csv", csv_file, "ISO")
    assert trades(tmp_path, "ISO")["timestamp"].to_physical().to_list() == [
        1763460000123456789,
        1763460001000000000,
    ]
    moments = pl.Series("timestamp", [1763460000123456, 1763460001000000]).cast(pl.Datetime("us"))
    for name, column in (
        ("NAIVE", moments),
        ("NEWYORK", moments.dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York")),
        ("FLOAT", pl.Series("timestamp", [1763460000.123456, 1763460001.0])),
    ):
        file = tmp_path / f"{name}.parquet"
        pl.DataFrame([column, pl.Series("price", [1.0, 2.0]), pl.Series("qty", [1, 2])]).write_parquet(file)
        import_history(tmp_path, "parquet", file, name)
        assert trades(tmp_path, name)["timestamp"].to_physical().to_list() == [
            1763460000123456000,
            1763460001000000000,
        ], name
    with pytest.raises(
        HistoryError, match=r"no column for price .prise.; it has timestamp, price, qty. Did you mean 'price'"
    ):
        import_history(tmp_path, "parquet", file, "X", price="prise")


def test_report_reads_well_and_is_plain_data(tmp_path: Path) -> None:
    import json

    file = put(
        tmp_path / "BTCUSDT-trades-2025-01-01.csv",
        [*SPOT_2025, "x,1,1,1,1735689700500001,True,True<b>", "5,0,1,1,1735689700500001,True,<b>"],
    )
    report = import_history(tmp_path, "binance-trades", file, progress=False)
    text = str(report)
    assert (
        text.splitlines()[0]
        == "binance-trades: 3 rows from 1 file, 3 new, 0 duplicates, 2 rejected (clock: exchange)"
    )
    assert "ids jump from 4500000002 to 4500000004" in text
    assert "rejected BTCUSDT-trades-2025-01-01.csv:4: the id must be a whole number, found 'x'" in text
    assert "rejected BTCUSDT-trades-2025-01-01.csv:5: price must be a number above 0, found 0.0" in text
    assert json.loads(json.dumps(report.to_dict()))["tapes"][0]["rows"] == 3
    page = report._repr_html_()
    assert "<table>" in page
    assert "<b>" not in page.replace("<b>binance-trades</b>", "")


def test_progress_counts_the_packed_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "BTCUSDT-trades-2025-01-01.csv.gz", SPOT_2025)
    import_history(tmp_path, "binance-trades", file, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("replaylab.importers._SHOWN_AFTER_S", 0.0)
    import_history(tmp_path, "binance-trades", file, progress=True)
    shown = capsys.readouterr().err
    size = file.stat().st_size
    assert "import: 100%" in shown
    assert f"{size}/{size}" in shown
