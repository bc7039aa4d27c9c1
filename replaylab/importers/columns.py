"""Trades in any CSV, Parquet or JSON file: the caller names the columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.intake import Intake
from replaylab.importers.text_tables import TradeRows, TradeTable, folded, read_trades

_BATCH_ROWS = 500_000
_JSON_NAMES = {
    "time": ("timestamp", "time", "t", "ts"),
    "price": ("price", "p"),
    "qty": ("qty", "amount", "size", "quantity", "volume", "q"),
    "side": ("side",),
    "id": ("id", "tradeid"),
    "symbol": ("symbol",),
}
_FREQTRADE = ["timestamp", "id", "type", "side", "price", "amount", "cost"]
_KRAKEN = ["price", "volume", "time", "side", "type", "misc", "trade_id"]


def read_csv(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str = "timestamp",
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    price: str = "price",
    qty: str = "qty",
    side: str | None = None,
    buyer_maker: str | None = None,
    trade_id: str | None = None,
    received_at: str | None = None,
    buy_word: str | None = None,
    sell_word: str | None = None,
    delimiter: str | None = None,
    columns: str | list[str] | None = None,
) -> None:
    """Read delimited text; ``columns`` names the columns in their order where there is no header.

    Columns are found without regard to case. ``side``: buy or sell of the taker, in any case; ``buyer_maker``: true
    where the buyer was the maker; with neither (and no column "side") the tick rule gives the side. ``timestamp_unit``:
    s, ms, us, ns; detected where it is not given. Times may also be ISO strings, of ``time_zone`` where they have no
    offset. The delimiter is , ; | or a tab, found where it is not given.
    """
    if delimiter is not None and len(delimiter.encode()) != 1:
        raise HistoryError(f"the delimiter is one ASCII character, found {delimiter!r}")
    given = _named(
        time=timestamp, price=price, qty=qty, side=side, maker=buyer_maker, id=trade_id, received=received_at
    )
    table = _table(given, intake, buy_word, sell_word)
    named = _split(columns)
    read_trades(files, intake, table, unit=timestamp_unit, zone=time_zone, delimiter=delimiter, columns=named)


def read_parquet(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str = "timestamp",
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    price: str = "price",
    qty: str = "qty",
    side: str | None = None,
    buyer_maker: str | None = None,
    trade_id: str | None = None,
    received_at: str | None = None,
    buy_word: str | None = None,
    sell_word: str | None = None,
) -> None:
    """Read Parquet files; options as for CSV.

    A column of datetimes needs no unit. Fractional floats are rounded to the nearest microsecond, and a note says so.
    """
    given = _named(
        time=timestamp, price=price, qty=qty, side=side, maker=buyer_maker, id=trade_id, received=received_at
    )
    table = _table(given, intake, buy_word, sell_word)
    for path in files:
        intake.begin(path.name)
        try:
            source = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise HistoryError(f"{path}: cannot be read as Parquet: {error}") from None
        with source:
            named = _present(list(source.schema_arrow.names), table, path.name)
            rows = TradeRows(path.name, path.name, intake, table, timestamp_unit, time_zone)
            rows.shown = named.__getitem__
            first = 1
            try:
                for batch in source.iter_batches(_BATCH_ROWS, columns=sorted({*named.values()})):
                    frame = pl.DataFrame(pl.from_arrow(batch)).select(
                        pl.col(name).alias(ours) for ours, name in named.items()
                    )
                    _require_types(frame, named, path.name)
                    _take(frame, first, rows, intake)
                    first += frame.height
            except (OSError, pa.ArrowException) as error:
                raise HistoryError(f"{path}: damaged after row {first - 1}: {error}") from None


def read_json(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str | None = None,
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    price: str | None = None,
    qty: str | None = None,
    side: str | None = None,
    buyer_maker: str | None = None,
    trade_id: str | None = None,
    received_at: str | None = None,
    buy_word: str | None = None,
    sell_word: str | None = None,
    columns: str | list[str] | None = None,
) -> None:
    """Read JSON: an array of objects (ccxt), of arrays (freqtrade), an answer of Kraken, or an object a line.

    Fields are found by their common names; the options name others, ``columns`` the fields of arrays in their order.
    """
    given = _named(
        time=timestamp, price=price, qty=qty, side=side, maker=buyer_maker, id=trade_id, received=received_at
    )
    for file in intake.open(files):
        frame = json_table(file.whole(), file.name, _split(columns))
        if frame.is_empty():
            continue
        names = {**_JSON_NAMES, **{ours: (folded(name),) for ours, name in given.items()}}
        if "maker" in given:
            del names["side"]
        if intake.symbol is not None:
            del names["symbol"]
        found = {ours: _first(alias, frame.columns) for ours, alias in names.items()}
        table = _table(
            {ours: name for ours, name in found.items() if name is not None} | given,
            intake,
            buy_word,
            sell_word,
        )
        named = _present(frame.columns, table, file.name)
        rows = TradeRows(file.name, file.hint, intake, table, timestamp_unit, time_zone)
        rows.shown = named.__getitem__
        _take(frame.select(pl.col(name).alias(ours) for ours, name in named.items()), 1, rows, intake)


def json_table(data: bytes, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """Return rows of JSON as columns of strings, nested values as null. Raises HistoryError."""
    try:
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            found = [orjson.loads(line) for line in data.splitlines() if line.strip()]
    except orjson.JSONDecodeError as error:
        raise HistoryError(f"{name}: not readable as JSON: {error}") from None
    while isinstance(found, dict):
        # An exchange's answer: {"result": {"list": [...]}}, {"result": {"XXBTZUSD": [...], "last": "..."}}
        inner = found.get("result") or next(
            (value for value in found.values() if isinstance(value, list) and value), None
        )
        found = [found] if inner is None else inner
    rows = found if isinstance(found, list) else []
    if rows and not any(isinstance(row, dict | list) for row in rows) and (columns or _array_columns(rows)):
        rows = [rows]  # one array on a line of its own
    kinds = {type(row) for row in rows}
    if kinds == {dict}:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[row.get(key) for row in rows] for key in columns]
    elif kinds == {list}:
        columns = columns or _array_columns(rows[0])
        if columns is None:
            raise HistoryError(
                f"{name}: the rows are arrays: name their fields with columns=..., {rows[0]!r:.200}"
            )
        cells = [[row[index] if index < len(row) else None for row in rows] for index in range(len(columns))]
    elif rows or not isinstance(found, list):
        raise HistoryError(f"{name}: expected an array of objects or of arrays, found {found!r:.200}")
    else:
        columns, cells = [], []
    return pl.DataFrame(
        {
            key: pl.Series([_string(cell) for cell in column], dtype=pl.String)
            for key, column in zip(columns, cells, strict=True)
        }
    )


def _array_columns(row: list[Any]) -> list[str] | None:
    if len(row) < 6 or row[3] not in ("b", "s", "buy", "sell"):
        return None
    return _KRAKEN[: len(row)] if isinstance(row[0], str) else _FREQTRADE[: len(row)]


def _string(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    # repr of a float has the digits of the file, which has 17 at the most.
    return value if isinstance(value, str) else repr(value) if isinstance(value, int | float) else None


def _split(columns: str | list[str] | None) -> list[str] | None:
    return [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns


def _first(names: tuple[str, ...], columns: list[str]) -> str | None:
    return next((column for name in names for column in columns if folded(column) == name), None)


def _named(**given: str | None) -> dict[str, str]:
    """Return our names of the columns that are given, with theirs."""
    if given["side"] is not None and given["maker"] is not None:
        raise HistoryError("give side or buyer_maker, not both")
    return {ours: name for ours, name in given.items() if name is not None}


def _table(given: dict[str, str], intake: Intake, buy_word: str | None, sell_word: str | None) -> TradeTable:
    names = {ours: (folded(name),) for ours, name in given.items()}
    if "side" not in given and "maker" not in given:
        names["side"] = ("side",)
    if intake.symbol is None:
        names["symbol"] = ("symbol",)
    words = {
        name: (word.strip().lower(),)
        for name, word in (("buy_words", buy_word), ("sell_words", sell_word))
        if word is not None
    }
    needed = ("time", "price", "qty", *(ours for ours in given if ours not in ("time", "price", "qty")))
    table = TradeTable(names=names, required=needed, any_words=True, unknown_sides=("", "unknown"))
    return replace(table, **words)  # type: ignore[arg-type]


def _present(have: list[str], table: TradeTable, file: str) -> dict[str, str]:
    """Return our names of the columns that are there, with theirs. Raises HistoryError for a missing one."""
    found = {ours: _first(names, have) for ours, names in table.names.items()}
    for ours in table.required:
        if found.get(ours) is None:
            wanted = table.names.get(ours, (ours,))[0]
            raise HistoryError(
                f"{file}: no column {wanted!r} for {ours}; it has {', '.join(have)[:500]}.{did_you_mean(wanted, have)}"
            )
    return {ours: name for ours, name in found.items() if name is not None}


def _require_types(frame: pl.DataFrame, named: dict[str, str], file: str) -> None:
    for ours, dtype in frame.schema.items():
        text = isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)
        number = dtype.is_numeric()
        moment = isinstance(dtype, pl.Datetime) and ours in ("time", "received")
        flag = isinstance(dtype, pl.Boolean) and ours in ("side", "maker")
        if not (text or number or moment or flag):
            raise HistoryError(
                f"{file}: the column {named[ours]!r} for {ours} holds {dtype}, which cannot be read as that"
            )


def _take(frame: pl.DataFrame, first: int, rows: TradeRows, intake: Intake) -> None:
    lines = pl.int_range(first, first + frame.height, dtype=pl.Int64, eager=True)
    intake.file.lines += frame.height
    rows.take(frame.with_columns(lines.alias("line")))
