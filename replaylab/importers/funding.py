"""Funding settlements of perpetual contracts, and instruments: JSON answers of exchanges, downloads, any table.

A FUNDING event is one settlement. Quoted and predicted rates are not written: of Tardis' derivative_ticker rows the
last rate before each ``funding_timestamp`` is taken, and only where later rows show that it was settled.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import orjson
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError
from replaylab.importers.binance import binance_instruments, symbol_before
from replaylab.importers.bybit import bybit_instruments
from replaylab.importers.columns import json_table, refuse_type
from replaylab.importers.files import Block, LineFile
from replaylab.importers.intake import NO_TEXT, Intake
from replaylab.importers.text_tables import (
    Clock,
    TradeTable,
    detect,
    find_columns,
    folded,
    parse,
    parse_times,
)

_TABLE = TradeTable(
    names={
        "time": ("fundingtime", "fundingratetimestamp", "calctime", "timestamp", "time"),
        "rate": ("fundingrate", "lastfundingrate", "rate"),
        "mark": ("markprice",),
        "symbol": ("symbol",),
        # Of Tardis' derivative_ticker.
        "due": ("fundingtimestamp",),
        "predicted": ("predictedfundingrate",),
    },
    required=("time", "rate"),
)


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
    named = {ours: (folded(name),) for ours, name in given.items() if name is not None}
    table = replace(_TABLE, names={**_TABLE.names, **named}, required=("time", "rate", *named))
    clock = Clock("time", timestamp_unit)
    for file in intake.open(files):
        rows = _rows(file, intake, table)
        if rows is None or rows.is_empty():
            intake.note(f"{file.name} is empty")
            continue
        if {"due", "predicted", "symbol"} <= {*rows.columns}:
            rows = _settled(rows, intake)
        _take(rows, clock, file, intake)


def read_instruments(files: Iterable[Path], intake: Intake) -> None:
    """Read ``exchangeInfo`` answers of Binance and ``instruments-info`` answers of Bybit, as JSON files."""
    for file in intake.open(files):
        data = file.whole()
        intake.file.lines = intake.file.other = data.count(b"\n") + 1
        try:
            answer = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise HistoryError(f"{file.name}:{error.lineno}: not readable as JSON: {error.msg}") from None
        found = binance_instruments(answer) | bybit_instruments(answer)
        if not found:
            raise HistoryError(f"{file.name}: neither an exchangeInfo nor an instruments-info answer")
        intake.store_instruments(found)


def _rows(file: LineFile, intake: Intake, table: TradeTable) -> pl.DataFrame | None:
    """Return our columns as strings, and ``line``."""
    data = file.whole()
    if data.startswith(b"PAR1"):
        try:
            with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as source:
                named = find_columns(list(source.schema_arrow.names), table, file.name)
                names = [source.schema_arrow.names[index] for index in named.values()]
                for ours, name in zip(named, names, strict=True):
                    refuse_type(source.schema_arrow.field(name).type, ours, name, file.name)
                rows = pl.DataFrame(pl.from_arrow(source.read(columns=names)))
        except (OSError, pa.ArrowException) as error:
            raise HistoryError(f"{file.name}: cannot be read as Parquet: {error}") from None
        rows = rows.with_columns(cs.datetime().dt.epoch("ms")).with_row_index("line", 1)
        intake.file.lines = rows.height
    elif data.lstrip()[:1] in (b"[", b"{"):
        rows, numbers = json_table(data, intake)
        if rows.is_empty():
            return None
        named = find_columns(rows.columns, table, file.name)
        names = [rows.columns[index] for index in named.values()]
        rows = rows.select(names).with_columns(numbers.alias("line"))
    else:
        layout, block = detect(Block(data, 1), file, intake, table, None)
        if layout is None:
            return None
        layout.decimal_times = {"time": True}
        return parse(block, layout, intake)
    return rows.rename(dict(zip(names, named, strict=True))).with_columns(pl.exclude("line").cast(pl.String))


def _settled(table: pl.DataFrame, intake: Intake) -> pl.DataFrame:
    """Return a row per settlement of Tardis' derivative_ticker rows."""
    time, due = pl.col("time").cast(pl.Int64, strict=False), pl.col("due").cast(pl.Int64, strict=False)
    rows = table.filter(due.is_not_null() & (time <= due)).sort(time, maintain_order=True)
    last = rows.group_by("symbol", "due", maintain_order=True).last()
    happened = table.group_by("symbol").agg(time.max().alias("_until"))
    settled = last.join(happened, on="symbol", how="left").filter(due <= pl.col("_until"))
    intake.file.other += table.height - settled.height
    return settled.with_columns(pl.col("due").alias("time"))


def _take(table: pl.DataFrame, clock: Clock, file: LineFile, intake: Intake) -> None:
    rate = table["rate"].str.strip_chars().cast(pl.Float64, strict=False)
    mark = (
        table["mark"].str.strip_chars().cast(pl.Float64, strict=False)
        if "mark" in table.columns
        else pl.Series([None], dtype=pl.Float64).new_from_index(0, table.height)
    )
    named = intake.symbol or symbol_before(file.hint, "-fundingRate-")
    if "symbol" not in table.columns and named is None:
        raise HistoryError(f"{file.name}: neither the rows nor the file's name has a symbol: give symbol=...")
    rows = pl.DataFrame(
        {
            "line": table["line"],
            "symbol": table["symbol"]
            if "symbol" in table.columns
            else pl.repeat(named, table.height, eager=True),
            "exchange_at": parse_times(table["time"], clock),
            "funding_rate": rate,
            "mark_price": pl.select(pl.when((mark > 0) & mark.is_finite()).then(mark)).to_series(),
        }
    )
    good = (
        rows["exchange_at"].is_not_null()
        & (rows["funding_rate"].abs() <= 1).fill_null(False)
        & rows["symbol"].is_not_null()
    )
    bad = table.filter(~good)
    found = {line: texts for line, *texts in bad.select("line", "time", "rate").head(1_000).iter_rows()}
    intake.reject_all(
        bad["line"],
        lambda line: f"expected a time, a rate of at most 1 and a symbol, found {found[line]!r:.200}",
        NO_TEXT,
    )
    for (symbol,), part in rows.filter(good).group_by("symbol", maintain_order=True):
        if intake.wants(str(symbol)):
            intake.file.rows_in_lines += part.height
            intake.funding(str(symbol), part.drop("symbol"))
        else:
            intake.file.other += part.height
