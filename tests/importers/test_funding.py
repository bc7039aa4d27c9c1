"""Funding settlements and instruments: what exchanges' files say, and what numbers let infer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replaylab import history
from replaylab.errors import HistoryError
from replaylab.importers import import_history

REAL = Path(os.environ.get("REPLAYLAB_REAL_DATA", "/nowhere")) / "real"


def stored(root: Path, symbol: str) -> list[tuple[Any, ...]]:
    rows = history.scan_funding(root, symbol).collect()
    return rows.select(pl.col("timestamp").dt.epoch("ms"), "funding_rate", "mark_price").rows()


def test_binance_downloads_and_answers(tmp_path: Path) -> None:
    """CSV of the archive (symbol in the name) and JSON of the API; the same settlement twice is one."""
    csv = tmp_path / "BTCUSDT-fundingRate-2024-01.csv"
    csv.write_text("calc_time,funding_interval_hours,last_funding_rate\n1704067200000,8,0.00037409\n")
    answer = tmp_path / "funding.json"
    rows = [
        {
            "symbol": "BTCUSDT",
            "fundingTime": 1704067200000,
            "fundingRate": "0.00037409",
            "markPrice": "42313.9",
        },
        {"symbol": "BTCUSDT", "fundingTime": 1704096000000, "fundingRate": "-0.0001", "markPrice": ""},
    ]
    answer.write_text(json.dumps(rows))
    report = import_history(tmp_path / "data", "funding", [csv])
    assert (report.rows, report.added) == (1, 1)
    report = import_history(tmp_path / "data", "funding", [answer])
    assert (report.rows, report.added, report.duplicates) == (2, 1, 1)
    assert stored(tmp_path / "data", "BTCUSDT") == [
        (1704067200000, 0.00037409, None),
        (1704096000000, -0.0001, None),
    ]


def test_bybit_answers_run_newest_first(tmp_path: Path) -> None:
    answer = tmp_path / "history.json"
    rows = [
        {"symbol": "ETHUSDT", "fundingRate": "0.0002", "fundingRateTimestamp": "1704096000000"},
        {"symbol": "ETHUSDT", "fundingRate": "0.0001", "fundingRateTimestamp": "1704067200000"},
    ]
    answer.write_text(json.dumps({"retCode": 0, "result": {"category": "linear", "list": rows}}))
    report = import_history(tmp_path / "data", "funding", answer)
    assert report.rejected == 0
    assert stored(tmp_path / "data", "ETHUSDT") == [
        (1704067200000, 0.0001, None),
        (1704096000000, 0.0002, None),
    ]


def test_tardis_quotes_become_settlements(tmp_path: Path) -> None:
    """The last rate before each funding time; the one that is not due yet is left out."""
    csv = tmp_path / "derivative_ticker.csv"
    head = "exchange,symbol,timestamp,local_timestamp,funding_timestamp,funding_rate,predicted_funding_rate,mark_price"
    first, second = 1704067200000000, 1704096000000000
    lines = [
        f"binance-futures,BTCUSDT,{first - 2000000},0,{first},0.0001,,42000",
        f"binance-futures,BTCUSDT,{first - 1000000},0,{first},0.0003,,42010",
        f"binance-futures,BTCUSDT,{first + 1000000},0,{second},0.0009,,42020",
    ]
    csv.write_text("\n".join([head, *lines]) + "\n")
    report = import_history(tmp_path / "data", "funding", csv)
    assert stored(tmp_path / "data", "BTCUSDT") == [(first // 1000, 0.0003, 42010.0)]
    (file,) = report.files
    assert file.lines == file.rows_in_lines + file.rejects + file.other + file.blank


def test_any_table_with_named_columns(tmp_path: Path) -> None:
    csv = tmp_path / "mine.csv"
    csv.write_text(
        "when,paid,mark\n2024-01-01T00:00:00Z,0.01,100\n2024-01-01T08:00:00Z,x,100\n2024-01-01T16:00:00Z,0.02,\n"
    )
    report = import_history(
        tmp_path / "data",
        "funding",
        csv,
        symbol="X",
        timestamp="when",
        funding_rate="paid",
        mark_price="mark",
    )
    assert [(one.line, one.reason) for one in report.rejects] == [
        (3, "expected a time, a rate of at most 1 and a symbol, found ['2024-01-01T08:00:00Z', 'x']")
    ]
    assert stored(tmp_path / "data", "X") == [(1704067200000, 0.01, 100.0), (1704124800000, 0.02, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no column for time"),
        ('{"retCode": 0, "result": 5}', "array of objects"),
        ("[1, 2]", "array of objects"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "file.csv"
    file.write_text(content)
    with pytest.raises(HistoryError, match=message):
        import_history(tmp_path / "data", "funding", file, symbol="X")
    assert history.symbols(tmp_path / "data") == []


def test_two_rates_of_a_settlement_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,rate\n1735689600000,0.0001\n1735689600000,0.5\n")
    with pytest.raises(HistoryError, match="has two rates"):
        import_history(tmp_path, "funding", tmp_path / "a.csv", symbol="X")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,2", "expected 3 columns, found 2"),
        ("1735689600000,8,0.1,9", "expected 3 columns, found 4"),
        ('"1735689600000,8,0.1', "a quote that is not closed"),
        ("1735689600000,8,\udcff", "no text in UTF-8"),
        ("1735689600000,8,1e300", "a rate of at most 1"),
        ("0,8,0.0001", "expected a time"),
        ("x" * (2 << 20), "a row has at most"),
    ],
)
def test_one_odd_row_of_funding_is_rejected_with_its_line(tmp_path: Path, row: str, reason: str) -> None:
    rows = [f"{1735689600000 + number * 28_800_000};8;0.0001" for number in range(30)]
    rows[20:20] = ["", row.replace(",", ";")]
    file = tmp_path / "a.csv"
    file.write_text("\n".join(["calc_time;hours;last_funding_rate", *rows]), errors="surrogateescape")
    report = import_history(tmp_path, "funding", file, symbol="X")
    assert [(one.line, reason in one.reason) for one in report.rejects] == [(23, True)]
    assert (report.rows, report.files[0].blank, report.files[0].lines) == (30, 1, 33)


def test_columns_of_parquet_that_are_no_funding_are_not_read(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"timestamp": [1735689600000], "funding_rate": [0.0001]}
    others = {"a": [[1]], "b": pa.array([1], pa.duration("ns")), "c": pa.array([1], pa.decimal256(50, 10))}
    pq.write_table(pa.table(columns | others), tmp_path / "a.parquet")
    assert import_history(tmp_path, "funding", tmp_path / "a.parquet", symbol="X").rows == 1
    for kind in ([[1]], pa.array([1], pa.duration("ns"))):
        pq.write_table(pa.table(columns | {"funding_rate": kind}), tmp_path / "a.parquet")
        with pytest.raises(HistoryError, match=r"a.parquet: the column 'funding_rate' for rate holds"):
            import_history(tmp_path, "funding", tmp_path / "a.parquet", symbol="X")


@pytest.mark.parametrize(
    "answer",
    [
        {"symbols": [None]},
        {"symbols": [{"symbol": "X", "filters": None}]},
        {"symbols": [{"symbol": "X", "filters": "y"}]},
        {"symbols": [{"symbol": 5, "filters": []}]},
        {"result": {"list": [None, {"priceFilter": {}, "lotSizeFilter": {}}]}},
    ],
)
def test_instruments_of_another_form_are_refused(tmp_path: Path, answer: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(answer))
    with pytest.raises(HistoryError, match=r"a.json: neither an exchangeInfo nor"):
        import_history(tmp_path, "instruments", tmp_path / "a.json")


def trades_csv(path: Path, *rows: str) -> Path:
    path.write_text("id,price,qty,quote_qty,time,is_buyer_maker\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_ticks_and_lots_are_inferred_from_decimals_and_refined(tmp_path: Path) -> None:
    """A change of an inferred entry is reported; an entry that was edited stays, and no import changes it."""
    data = tmp_path / "data"
    name = tmp_path / "BTCUSDT-trades-2025-01-01.csv"
    import_history(data, "binance-trades", trades_csv(name, "1,91500.1,0.010,915,1735689600000,true"))
    assert history.load_instruments(data)["BTCUSDT"] == {
        "tickSize": 0.1,
        "lotSize": 0.01,
        "minNotionalUsd": None,
        "contractSize": None,
        "inferred": True,
    }
    report = import_history(
        data, "binance-trades", trades_csv(name, "2,91500.15,0.001,91.5,1735689601000,true")
    )
    assert history.load_instruments(data)["BTCUSDT"]["tickSize"] == 0.01
    assert any("instrument changed" in note for note in report.notes)
    edited = history.load_instruments(data)["BTCUSDT"] | {"tickSize": 0.5, "inferred": False}
    (data / "system" / "instruments.json").write_text(json.dumps({"BTCUSDT": edited}))
    import_history(data, "binance-trades", trades_csv(name, "3,91500.123,0.001,91.5,1735689602000,true"))
    assert history.load_instruments(data)["BTCUSDT"] == edited
    assert history.save_instruments(data, {"BTCUSDT": {"tickSize": 0.1}})[0].startswith(
        "BTCUSDT: the instrument stays tickSize 0.5"
    )


def test_coin_margined_quantities_become_base_currency(tmp_path: Path) -> None:
    """A contract of BTCUSD_PERP is 100 USD: 2 contracts at 50,000 are 0.004 BTC."""
    name = tmp_path / "BTCUSD_PERP-trades-2025-01-01.csv"
    report = import_history(
        tmp_path / "data", "binance-trades", trades_csv(name, "1,50000,2,0.004,1735689600000,true")
    )
    assert history.scan_trades(tmp_path / "data", "BTCUSD_PERP").collect()["qty"].to_list() == [0.004]
    assert any("contracts of 100" in note for note in report.notes)
    instrument = history.load_instruments(tmp_path / "data")["BTCUSD_PERP"]
    assert (instrument["contractSize"], instrument["lotSize"]) == (100.0, None)
    again = import_history(tmp_path / "data", "binance-trades", name)
    assert (again.added, again.duplicates) == (0, 1)


def test_a_contract_size_may_be_given(tmp_path: Path) -> None:
    name = trades_csv(tmp_path / "X-trades-2025-01-01.csv", "1,50,3,1,1735689600000,true")
    import_history(tmp_path / "data", "binance-trades", name, contract_size=10)
    assert history.scan_trades(tmp_path / "data", "X").collect()["qty"].to_list() == [0.6]
    with pytest.raises(HistoryError, match="contract_size"):
        import_history(tmp_path / "data", "binance-trades", name, contract_size=0)


def test_exchange_info_answers(tmp_path: Path) -> None:
    info = {
        "symbols": [
            {
                "symbol": "BTCUSDT",
                "filters": [
                    {"filterType": "PRICE_FILTER", "tickSize": "0.10"},
                    {"filterType": "LOT_SIZE", "stepSize": "0.001"},
                    {"filterType": "MIN_NOTIONAL", "notional": "100"},
                ],
            },
            {"symbol": "BTCUSD_PERP", "contractSize": 100, "filters": []},
        ]
    }
    file = tmp_path / "exchangeInfo.json"
    file.write_text(json.dumps(info))
    import_history(tmp_path / "data", "instruments", file)
    found = history.load_instruments(tmp_path / "data")
    assert found["BTCUSDT"] == {
        "tickSize": 0.1,
        "lotSize": 0.001,
        "minNotionalUsd": 100.0,
        "contractSize": None,
        "inferred": False,
    }
    assert found["BTCUSD_PERP"]["contractSize"] == 100.0
    file.write_text("{}")
    with pytest.raises(HistoryError, match="neither an exchangeInfo"):
        import_history(tmp_path / "data", "instruments", file)


def test_a_damaged_instruments_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "instruments.json").write_text("[1]")
    with pytest.raises(HistoryError, match=r"instruments\.json: expected an object"):
        history.load_instruments(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="REPLAYLAB_REAL_DATA is not set")
def test_the_instruments_info_of_a_real_capture(tmp_path: Path) -> None:
    """Linear and spot of one symbol are two instruments."""
    import_history(tmp_path, "bybit-capture", REAL / "bybit" / "bybit-v5-capture.jsonl.zst")
    found = history.load_instruments(tmp_path)
    assert found["BTCUSDT"] | {"contractSize": None} == {
        "tickSize": 0.1,
        "lotSize": 0.001,
        "minNotionalUsd": 5.0,
        "contractSize": None,
        "inferred": False,
    }
    assert found["BTCUSDT@spot"]["lotSize"] == 0.000001
