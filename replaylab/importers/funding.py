"""Funding settlements of perpetual contracts, and instruments: JSON answers of exchanges, downloads, any table.

A FUNDING event is one settlement. Quoted and predicted rates are not written: of Tardis' derivative_ticker rows the
last rate before each ``funding_timestamp`` is taken, and only where later rows show that it was settled.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson
import polars as pl

from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.binance import binance_instruments, symbol_before
from replaylab.importers.bybit import bybit_instruments
from replaylab.importers.columns import json_table
from replaylab.importers.files import LineFile
from replaylab.importers.intake import NO_TEXT, Intake
from replaylab.importers.text_tables import Clock, folded, parse_times

_NAMES = {
    "time": ("fundingtime", "fundingratetimestamp", "calctime", "timestamp", "time"),
    "rate": ("fundingrate", "lastfundingrate", "rate"),
    "mark": ("markprice",),
    "symbol": ("symbol",),
}


def read_funding(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str | None = None,
    timestamp_unit: str | None = None,
    funding_rate: str | None = None,
    mark_price: str | None = None,
) -> None:
    """Read files of funding settlements: CSV, JSON (an array, or a Bybit answer), JSON Lines or Parquet.

    Columns are found by the names that Binance, Bybit and Tardis use; the options name them in other tables. A rate of
    0.0001 is 0.01 %. Symbols come from the rows, from ``symbol``, or from a name such as
    ``BTCUSDT-fundingRate-2024-01.csv``.
    """
    given = {"time": timestamp, "rate": funding_rate, "mark": mark_price}
    clock = Clock("time", timestamp_unit)
    for file in intake.open(files):
        table = _table(file, intake)
        if table.is_empty():
            intake.note(f"{file.name} is empty")
            continue
        if {"funding_timestamp", "predicted_funding_rate"} <= {*table.columns}:
            table = _settled(table, intake)
        _take(table, _columns(table, given, file), clock, file, intake)


def read_instruments(files: Iterable[Path], intake: Intake) -> None:
    """Read ``exchangeInfo`` answers of Binance and ``instruments-info`` answers of Bybit, as JSON files."""
    for file in intake.open(files):
        data = file.whole()
        intake.file.lines = intake.file.other = data.count(b"\n") + 1
        try:
            answer = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise HistoryError(f"{file.name}: not readable as JSON: {error}") from None
        found = binance_instruments(answer) | bybit_instruments(answer)
        if not found:
            raise HistoryError(f"{file.name}: neither an exchangeInfo nor an instruments-info answer")
        intake.store_instruments(found)


def _table(file: LineFile, intake: Intake) -> pl.DataFrame:
    """Return the rows with every value as a string, and the number of their ``line``."""
    data = file.whole()
    if data.lstrip()[:1] in (b"[", b"{"):
        rows, numbers = json_table(data, intake)
        return rows.with_columns(numbers.alias("line"))
    try:
        if data.startswith(b"PAR1"):
            table, first = pl.read_parquet(io.BytesIO(data)), 1
            moments = [name for name, kind in table.schema.items() if isinstance(kind, pl.Datetime)]
            table = table.with_columns(pl.col(moments).dt.timestamp("ns"))
        else:
            table, first = pl.read_csv(io.BytesIO(data), infer_schema=False, raise_if_empty=False), 2
    except pl.exceptions.PolarsError as error:
        raise HistoryError(f"{file.name}: not readable as a table: {error}") from None
    intake.file.lines = table.height + first - 1
    intake.file.other = first - 1
    lines = pl.int_range(first, first + table.height, dtype=pl.Int64, eager=True)
    return table.select(pl.all().cast(pl.String)).with_columns(lines.alias("line"))


def _columns(table: pl.DataFrame, given: Mapping[str, str | None], file: LineFile) -> dict[str, str]:
    found = {}
    for ours, names in _NAMES.items():
        wanted = given.get(ours)
        if wanted is not None and wanted not in table.columns:
            raise HistoryError(
                f"{file.name}: no column {wanted!r}; it has {', '.join(table.columns)}."
                + did_you_mean(wanted, table.columns)
            )
        name = wanted or next((c for alias in names for c in table.columns if folded(c) == alias), None)
        if name is not None:
            found[ours] = name
        elif ours in ("time", "rate"):
            raise HistoryError(
                f"{file.name}: no column for the {ours} ({' or '.join(names)}); it has {', '.join(table.columns)}"
            )
    return found


def _settled(table: pl.DataFrame, intake: Intake) -> pl.DataFrame:
    """Return a row per settlement of Tardis' derivative_ticker rows."""
    time, due = (
        pl.col("timestamp").cast(pl.Int64, strict=False),
        pl.col("funding_timestamp").cast(pl.Int64, strict=False),
    )
    rows = table.filter(due.is_not_null() & (time <= due)).sort(time, maintain_order=True)
    last = rows.group_by("symbol", "funding_timestamp", maintain_order=True).last()
    happened = table.group_by("symbol").agg(time.max().alias("_until"))
    settled = last.join(happened, on="symbol", how="left").filter(due <= pl.col("_until"))
    intake.file.other += table.height - settled.height
    return settled.with_columns(pl.col("funding_timestamp").alias("timestamp")).drop(
        "_until", "funding_timestamp"
    )


def _take(table: pl.DataFrame, names: dict[str, str], clock: Clock, file: LineFile, intake: Intake) -> None:
    rate = table[names["rate"]].cast(pl.Float64, strict=False)
    exchange = parse_times(table[names["time"]], clock)
    mark = (
        table[names["mark"]].cast(pl.Float64, strict=False)
        if "mark" in names
        else pl.Series([None], dtype=pl.Float64).new_from_index(0, table.height)
    )
    named = intake.symbol or symbol_before(file.hint, "-fundingRate-")
    if "symbol" not in names and named is None:
        raise HistoryError(f"{file.name}: neither the rows nor the file's name has a symbol: give symbol=...")
    rows = pl.DataFrame(
        {
            "line": table["line"],
            "symbol": table[names["symbol"]]
            if "symbol" in names
            else pl.repeat(named, table.height, eager=True),
            "exchange_at": exchange,
            "funding_rate": rate,
            "mark_price": pl.select(pl.when((mark > 0) & mark.is_finite()).then(mark)).to_series(),
        }
    )
    good = (
        rows["exchange_at"].is_not_null()
        & rows["funding_rate"].is_finite().fill_null(False)
        & rows["symbol"].is_not_null()
    )
    intake.reject_all(
        rows.filter(~good)["line"],
        lambda line: "expected a time, a finite funding rate and a symbol",
        NO_TEXT,
    )
    for (symbol,), part in rows.filter(good).group_by("symbol", maintain_order=True):
        if intake.wants(str(symbol)):
            intake.file.rows_in_lines += part.height
            intake.funding(str(symbol), part.drop("symbol"))
        else:
            intake.file.other += part.height
