"""Trades in any CSV, Parquet or JSON file: the caller names the columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError
from replaylab.importers.intake import Intake
from replaylab.importers.text_tables import TradeRows, TradeTable, find_columns, folded, read_trades

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
            source = pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise HistoryError(f"{path}: cannot be read as Parquet: {error}") from None
        with source:
            named = _present(list(source.schema_arrow.names), table, path.name)
            for ours, name in named.items():
                refuse_type(source.schema_arrow.field(name).type, ours, name, path.name)
            rows = TradeRows(path.name, path.name, intake, table, timestamp_unit, time_zone)
            rows.shown = named.__getitem__
            first = 1
            try:
                for batch in source.iter_batches(_BATCH_ROWS, columns=sorted({*named.values()})):
                    frame = pl.DataFrame(pl.from_arrow(batch)).select(
                        pl.col(name).alias(ours) for ours, name in named.items()
                    )
                    lines = pl.int_range(first, first + frame.height, dtype=pl.Int64, eager=True)
                    intake.file.lines += frame.height
                    words = cs.by_dtype(pl.Categorical).cast(pl.String)
                    rows.take(frame.with_columns(words, lines.alias("line")))
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
        frame, lines = json_table(file.whole(), intake, _split(columns))
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
        frame = frame.select(pl.col(name).alias(ours) for ours, name in named.items())
        rows.take(frame.with_columns(lines.alias("line")))


def json_table(
    data: bytes, intake: Intake, columns: list[str] | None = None
) -> tuple[pl.DataFrame, pl.Series]:
    """Return rows of JSON as columns of strings, nested values as null, and the number of each row.

    Numbers are those of lines, or of elements of an array. Lines are counted, and those that are no row rejected.
    Raises HistoryError.
    """
    name = intake.file.name
    try:
        rows = _elements(orjson.loads(data), name, columns)
        numbers = list(range(1, len(rows) + 1))
    except orjson.JSONDecodeError as error:
        rows, numbers = _lines_of_json(data, intake, error)
    intake.file.lines += len(rows)
    kind = list if sum(isinstance(row, list) for row in rows) * 2 > len(rows) else dict
    expected = "an array" if kind is list else "an object"
    for number, row in zip(numbers, rows, strict=True):
        if not isinstance(row, kind):
            intake.reject(number, f"expected {expected}, found {row!r:.200}", b"")
    pairs = [(number, row) for number, row in zip(numbers, rows, strict=True) if isinstance(row, kind)]
    kept: list[Any] = [row for _, row in pairs]
    if kind is dict:
        columns = list(dict.fromkeys(key for row in kept for key in row))
        cells = [[row.get(key) for row in kept] for key in columns]
    else:
        first: list[Any] = next((row for row in kept if row), [])
        columns = columns or _array_columns(first)
        if columns is None:
            raise HistoryError(
                f"{name}: the rows are arrays: name their fields with columns=..., {first!r:.200}"
            )
        cells = [[row[index] if index < len(row) else None for row in kept] for index in range(len(columns))]
    frame = pl.DataFrame(
        {
            key: pl.Series([_string(cell) for cell in column], dtype=pl.String)
            for key, column in zip(columns, cells, strict=True)
        }
    )
    return frame, pl.Series([number for number, _ in pairs], dtype=pl.Int64)


def _elements(found: Any, name: str, columns: list[str] | None) -> list[Any]:
    """Return the rows of a document."""
    while isinstance(found, dict):
        # An exchange's answer: {"result": {"list": [...]}}, {"result": {"XXBTZUSD": [...], "last": "..."}}
        lists = [key for key, value in found.items() if isinstance(value, list) and value]
        inner = found.get("result") or (found[lists[0]] if lists else None)
        if inner is not None and not found.get("result") and len(lists) > 1:
            raise HistoryError(f"{name}: which list holds the rows is not clear: {', '.join(lists)[:200]}")
        found = [found] if inner is None else inner
    if not isinstance(found, list) or (found and not any(isinstance(row, dict | list) for row in found)):
        if isinstance(found, list) and (columns or _array_columns(found)):
            return [found]  # one array on a line of its own
        raise HistoryError(f"{name}: expected an array of objects or of arrays, found {found!r:.200}")
    return found


def _lines_of_json(data: bytes, intake: Intake, whole: orjson.JSONDecodeError) -> tuple[list[Any], list[int]]:
    """Return the rows of JSON Lines and their numbers; ``whole``: why the data is not one document."""
    rows, numbers, broken = [], [], []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        if not line.strip():
            intake.file.blank += 1
            intake.file.lines += 1
            continue
        try:
            rows.append(orjson.loads(line))
            numbers.append(number)
        except orjson.JSONDecodeError as error:
            broken.append((number, f"not readable as JSON: {error.msg}, column {error.colno}", line))
    if not any(isinstance(row, dict | list) for row in rows):
        raise HistoryError(
            f"{intake.file.name}:{whole.lineno}: not readable as JSON: {whole.msg}, column {whole.colno}"
        )
    intake.file.lines += len(broken)
    for one in broken:
        intake.reject(*one)
    return rows, numbers


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
    table = replace(table, **words)  # type: ignore[arg-type]
    for word in (*table.buy_words, *table.sell_words):
        if not word or (word in table.buy_words and word in table.sell_words):
            raise HistoryError(
                f"buy_word and sell_word are two words that differ, found {word!r} for both or empty"
            )
    return table


def _present(have: list[str], table: TradeTable, file: str) -> dict[str, str]:
    """Return our names of the columns that are there, with theirs. Raises HistoryError for a missing one."""
    return {ours: have[index] for ours, index in find_columns(have, table, file).items()}


def refuse_type(kind: pa.DataType, ours: str, name: str, file: str) -> None:
    """Raise HistoryError for a column of Parquet that cannot be what it is taken for."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_ = pa.types
    text = is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind) or is_.is_null(kind)
    number = is_.is_integer(kind) or is_.is_floating(kind) or is_.is_decimal128(kind)
    moment = is_.is_timestamp(kind) and ours in ("time", "received")
    flag = is_.is_boolean(kind) and ours in ("side", "maker")
    if not (text or number or moment or flag):
        raise HistoryError(
            f"{file}: the column {name!r} for {ours} holds {kind}, which cannot be read as that"
        )
    if ours in ("time", "received") and (is_.is_float32(kind) or is_.is_float16(kind)):
        raise HistoryError(
            f"{file}: the column {name!r} holds {kind}, too coarse for a time: write it as int64"
        )


# The words of other programs; case, blanks, "_" and "-" do not count.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "side": {"BUY": ("buy", "b", "bid", "1", "long"), "SELL": ("sell", "s", "ask", "-1", "short")},
    "direction": {
        "LONG": ("long", "buy", "l", "1"),
        "SHORT": ("short", "sell", "s", "-1"),
    },
    "status": {
        "NEW": (
            *("new", "open", "created", "submitted", "accepted", "untriggered", "active", "pending"),
            *("triggered", "buyordercreated", "sellordercreated", "pendingcreate", "pendingnew"),
        ),
        "PARTIALLY_FILLED": ("partiallyfilled", "partial", "partialfilled"),
        "FILLED": (
            "filled",
            "closed",
            "done",
            "completed",
            "executed",
            "buyordercompleted",
            "sellordercompleted",
        ),
        "CANCELED": (
            *("canceled", "cancelled", "cancel", "deactivated", "partiallyfilledcanceled", "ordercancelled"),
            "pendingcancel",
        ),
        "REJECTED": ("rejected", "failed", "error", "orderfailure", "orderfailed"),
        "EXPIRED": ("expired", "orderexpired", "expiredinmatch", "timeout"),
    },
    "mode": {
        "LIVE": ("live", "real", "production", "prod"),
        "SIM": ("sim", "paper", "simulation", "simulated", "backtest"),
        "DRY_RUN": ("dryrun", "dry", "test", "testnet"),
    },
    "maker": {"true": ("true", "1", "maker", "t", "yes"), "false": ("false", "0", "taker", "f", "no")},
    "flag": {"true": ("true", "1", "t", "yes", "y"), "false": ("false", "0", "f", "no", "n", "")},
}
