"""Tables of other programs' logs: SQLite, CSV, JSON, JSON Lines and Parquet files, read in pieces, never written.

>>> source = Source("tradesv3.sqlite")                                                          # doctest: +SKIP
>>> source.tables                                                                               # doctest: +SKIP
{'trades': ['id', 'pair', ...], 'orders': [...]}

A mapping says what a table's columns mean. ``PRESETS`` has those of known programs, ``suggest`` proposes one by the
names of the columns. Formats: freqtrade (``persistence/trade_model.py``), ccxt (unified trade and order structures),
Bybit v5 (``/v5/execution/list``, ``/v5/position/closed-pnl``), Binance USD-M futures
(``/fapi/v1/userTrades``, ``/fapi/v1/income``) and hummingbot (``model/trade_fill.py``).
"""

from __future__ import annotations

import csv
import io
import math
import os
import sqlite3
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.columns import WORDS
from replaylab.importers.files import find_files, open_files
from replaylab.importers.text_tables import folded

# Rows that are read and converted together.
ROWS = 100_000
_SQLITE = b"SQLite format 3\0"


class Field(NamedTuple):
    """A field of one of our logs: how its cells are read, whether it is needed, and what others call it."""

    kind: str
    needed: bool = False
    names: tuple[str, ...] = ()


def dtype_of(field: Field) -> Any:
    """Return the type of a field's column; times are ns."""
    return {"time": pl.Int64, "number": pl.Float64}.get(field.kind, pl.String)


_TIME = ("timestamp", "time", "ts", "datetime", "date", "createdat", "createdtime", "opentime", "orderdate")
_SYMBOL = ("symbol", "pair", "market", "instrument", "ticker", "ftpair", "tradingpair")
_COMMON = {
    "symbol": Field("symbol", True, _SYMBOL),
    "strategy": Field("text", names=("strategy", "strategyname", "bot", "algo")),
}
FIELDS: dict[str, dict[str, Field]] = {
    "signals": {
        "timestamp": Field("time", True, _TIME),
        **_COMMON,
        "score": Field("number", True, ("score", "signal", "value", "strength", "prediction")),
        "side": Field("direction", names=("side", "direction")),
        "price": Field("number", names=("price", "mid", "lastprice", "close")),
        "regime": Field("text", names=("regime", "marketregime")),
    },
    "orders": {
        "timestamp": Field("time", True, _TIME),
        "updated_at": Field(
            "time",
            names=("updatedat", "updatedtime", "filledat", "closedat", "lasttradetimestamp", "updatetime"),
        ),
        **_COMMON,
        "order_id": Field("text", True, ("orderid", "clientorderid", "id", "cid", "orderlinkid")),
        "exchange_order_id": Field("text", names=("exchangeorderid", "exchangeid")),
        "side": Field("side", True, ("side", "direction", "tradetype", "ordertypeside")),
        "type": Field("text", True, ("type", "ordertype", "kind")),
        "time_in_force": Field("text", names=("timeinforce", "tif")),
        "price": Field("number", names=("price", "limitprice", "orderprice")),
        "trigger_price": Field("number", names=("triggerprice", "stopprice")),
        "qty": Field("number", True, ("qty", "quantity", "amount", "size", "origqty", "orderqty")),
        "reduce_only": Field("flag", names=("reduceonly", "reduce")),
        "status": Field("status", True, ("status", "state", "orderstatus", "laststatus")),
        "filled_qty": Field(
            "number", names=("filledqty", "filled", "executedqty", "cumexecqty", "filledsize")
        ),
        "avg_fill_price": Field("number", names=("avgfillprice", "average", "avgprice", "fillprice")),
        "notional_usd": Field("number", names=("notionalusd", "notional", "cost", "cumquote")),
        "mode": Field("mode", names=("mode",)),
        "source": Field("text", names=("source",)),
        "last_error": Field("text", names=("lasterror", "error", "rejectreason")),
    },
    "fills": {
        "timestamp": Field("time", True, (*_TIME, "exectime", "filltime")),
        **_COMMON,
        "trade_id": Field("text", names=("tradeid", "execid", "fillid", "id", "exchangetradeid")),
        "order_id": Field("text", names=("orderid", "order", "clientorderid")),
        "side": Field("side", True, ("side", "tradetype", "direction")),
        "price": Field("number", True, ("price", "execprice", "fillprice")),
        "qty": Field("number", True, ("qty", "quantity", "amount", "execqty", "size")),
        "cost": Field("number", names=("cost",)),
        "fee": Field("number", names=("fee", "commission", "execfee", "feecost")),
        "fee_currency": Field("text", names=("feecurrency", "commissionasset", "feeasset")),
        "maker": Field("maker", names=("maker", "ismaker", "takerormaker")),
        "realized_pnl": Field("number", names=("realizedpnl", "closedpnl")),
        "position_side": Field("text", names=("positionside", "posside")),
        "leverage": Field("number", names=("leverage",)),
        "mode": Field("mode", names=("mode",)),
    },
    "trades": {
        "timestamp": Field(
            "time", True, ("exittime", "closedat", "closetime", "closedate", "exitat", *_TIME)
        ),
        "entry_time": Field("time", names=("entrytime", "openedat", "opentime", "opendate", "entryat")),
        **_COMMON,
        "side": Field("direction", True, ("side", "direction", "positionside", "isshort")),
        "entry_price": Field("number", True, ("entryprice", "openrate", "openprice", "avgentryprice")),
        "close_price": Field("number", True, ("closeprice", "closerate", "exitprice", "avgexitprice")),
        "qty": Field("number", True, ("qty", "quantity", "amount", "size", "closedsize")),
        "realized_pnl": Field(
            "number", True, ("realizedpnl", "pnl", "closedpnl", "profit", "closeprofitabs")
        ),
        "fees": Field("number", names=("fees", "fee", "commission")),
        "funding": Field("number", names=("funding", "fundingfees")),
        "leverage": Field("number", names=("leverage",)),
        "mfe": Field("number", names=("mfe",)),
        "mae": Field("number", names=("mae",)),
        "duration_seconds": Field("number", names=("durationseconds", "duration")),
        "reason": Field("text", names=("reason", "exitreason", "closereason")),
        "mode": Field("mode", names=("mode",)),
    },
    "funding": {
        "timestamp": Field("time", True, _TIME),
        **_COMMON,
        "amount": Field("number", True, ("amount", "income", "fundingfee")),
    },
}


def _named(columns: str) -> dict[str, str]:
    """Return columns that have our names."""
    return {name: name for name in columns.split()}


_IS_SHORT = {"LONG": ["0", "false"], "SHORT": ["1", "true"]}
_BINANCE_FILLS: dict[str, Any] = {
    "columns": {
        "timestamp": "time",
        "symbol": "symbol",
        "trade_id": "id",
        "order_id": "orderId",
        "side": "side",
        "price": "price",
        "qty": "qty",
        "fee": "commission",
        "fee_currency": "commissionAsset",
        "maker": "maker",
        "realized_pnl": "realizedPnl",
        "position_side": "positionSide",
    }
}
_BINANCE_FUNDING: dict[str, Any] = {
    "only": {"incomeType": ["FUNDING_FEE"]},
    "columns": {"timestamp": "time", "symbol": "symbol", "amount": "income"},
}
# Decimals are whole numbers of millionths, in older databases floats. Two exchanges, or two configurations of one
# strategy, are books of their own.
_HUMMINGBOT_BOOK = """{row}.strategy
  || CASE WHEN (SELECT COUNT(DISTINCT market) FROM TradeFill) > 1 THEN '@' || {row}.market ELSE '' END
  || CASE WHEN (SELECT COUNT(DISTINCT config_file_path) FROM TradeFill WHERE strategy = {row}.strategy) > 1
     THEN '-' || {row}.config_file_path ELSE '' END AS strategy"""
# The only fee, in its coin where it is the base currency's: that one reduces the quantity. Others as hummingbot
# converted them. With closing fills a position has a side (hedge mode).
_HUMMINGBOT_FILLS = f"""
WITH fills AS (
  SELECT *, CASE typeof(price) WHEN 'integer' THEN price / 1e6 ELSE price END AS at,
    CASE typeof(amount) WHEN 'integer' THEN amount / 1e6 ELSE amount END AS size,
    CASE typeof(trade_fee_in_quote) WHEN 'integer' THEN trade_fee_in_quote / 1e6 ELSE trade_fee_in_quote END AS paid,
    COALESCE(CAST(json_extract(trade_fee, '$.percent') AS REAL), 0.0) AS share,
    COALESCE(json_extract(trade_fee, '$.percent_token'), CASE WHEN trade_type = 'BUY'
      AND json_extract(trade_fee, '$.fee_type') = 'DeductedFromReturns' THEN base_asset ELSE quote_asset END) AS coin,
    COALESCE(json_array_length(trade_fee, '$.flat_fees'), 0) AS flat,
    json_extract(trade_fee, '$.flat_fees[0].token') AS flat_coin,
    CAST(json_extract(trade_fee, '$.flat_fees[0].amount') AS REAL) AS flat_fee
  FROM TradeFill
)
SELECT timestamp, symbol, order_id, exchange_trade_id AS trade_id, trade_type AS side, at AS price, size AS qty,
  leverage,
  CASE WHEN flat = 1 AND share = 0.0 AND (flat_coin = base_asset OR paid IS NULL) THEN flat_fee
    WHEN flat = 0 AND share > 0.0 AND coin = base_asset THEN share * size
    WHEN paid IS NOT NULL THEN paid WHEN flat = 0 AND coin = quote_asset THEN share * size * at END AS fee,
  CASE WHEN flat = 1 AND share = 0.0 AND (flat_coin = base_asset OR paid IS NULL) THEN flat_coin
    WHEN flat = 0 AND share > 0.0 AND coin = base_asset THEN coin ELSE quote_asset END AS fee_currency,
  CASE WHEN EXISTS (SELECT 1 FROM TradeFill c WHERE c.market = fills.market AND c.symbol = fills.symbol
      AND c.position = 'CLOSE') AND position IN ('OPEN', 'CLOSE')
    THEN CASE WHEN (position = 'OPEN') = (trade_type = 'BUY') THEN 'LONG' ELSE 'SHORT' END END AS position_side,
  {_HUMMINGBOT_BOOK.format(row="fills")}
FROM fills"""
# The side of an order is in its first status, or in its fills.
_HUMMINGBOT_ORDERS = f"""
WITH done AS (SELECT order_id, SUM(amount) AS filled, SUM(1.0 * amount * price) AS value, MAX(trade_type) AS side
  FROM TradeFill GROUP BY order_id),
made AS (SELECT order_id, MAX(CASE status WHEN 'BuyOrderCreated' THEN 'BUY' WHEN 'BuyOrderCompleted' THEN 'BUY'
  WHEN 'SellOrderCreated' THEN 'SELL' WHEN 'SellOrderCompleted' THEN 'SELL' END) AS side
  FROM OrderStatus GROUP BY order_id),
units AS (SELECT *, CASE typeof(amount) WHEN 'integer' THEN 1e6 ELSE 1.0 END AS unit FROM "Order")
SELECT creation_timestamp AS timestamp, last_update_timestamp AS updated_at, symbol, id AS order_id, exchange_order_id,
  COALESCE(made.side, done.side) AS side, order_type AS type, amount / unit AS qty, NULLIF(price, 0) / unit AS price,
  COALESCE(filled, 0) / unit AS filled_qty, value / filled / unit AS avg_fill_price,
  CASE WHEN last_status = 'OrderFilled' THEN CASE WHEN filled >= amount THEN 'FILLED' ELSE 'PARTIALLY_FILLED' END
    ELSE last_status END AS status,
  {_HUMMINGBOT_BOOK.format(row="units")}
FROM units LEFT JOIN done ON done.order_id = units.id LEFT JOIN made ON made.order_id = units.id"""
PRESETS: dict[str, dict[str, Any]] = {
    "freqtrade": {
        "time_zone": "UTC",
        "trades": {
            "table": "trades",
            "only": {"is_open": ["0", "false"]},
            "words": {"side": _IS_SHORT},
            "columns": {
                "timestamp": "close_date",
                "entry_time": "open_date",
                "symbol": "pair",
                "side": "is_short",
                "entry_price": "open_rate",
                "close_price": "close_rate",
                "qty": "amount",
                "realized_pnl": "close_profit_abs",
                "funding": "funding_fees",
                "leverage": "leverage",
                "reason": "exit_reason",
                "strategy": "strategy",
            },
        },
        "orders": {
            "table": "orders",
            "columns": {
                "timestamp": "order_date",
                "updated_at": "order_filled_date",
                "symbol": "ft_pair",
                "order_id": "order_id",
                "side": "side",
                "type": "order_type",
                "price": "price",
                "trigger_price": "stop_price",
                "qty": "amount",
                "status": "status",
                "filled_qty": "filled",
                "avg_fill_price": "average",
                "notional_usd": "cost",
            },
            "join": {
                "table": "trades",
                "key": "id",
                "on": "ft_trade_id",
                "columns": {"strategy": "strategy"},
            },
        },
    },
    "ccxt-trades": {
        "fills": {
            "contracts": True,
            "columns": {
                "timestamp": "timestamp",
                "symbol": "symbol",
                "trade_id": "id",
                "order_id": "order",
                "side": "side",
                "price": "price",
                "qty": "amount",
                "cost": "cost",
                "fee": "fee.cost",
                "fee_currency": "fee.currency",
                "maker": "takerOrMaker",
            },
        }
    },
    "ccxt-orders": {
        "orders": {
            "contracts": True,
            "columns": {
                "timestamp": "timestamp",
                "updated_at": "lastTradeTimestamp",
                "symbol": "symbol",
                "order_id": "id",
                "side": "side",
                "type": "type",
                "time_in_force": "timeInForce",
                "price": "price",
                "trigger_price": "triggerPrice",
                "qty": "amount",
                "reduce_only": "reduceOnly",
                "status": "status",
                "filled_qty": "filled",
                "avg_fill_price": "average",
                "notional_usd": "cost",
            },
        }
    },
    "bybit-executions": {
        "fills": {
            "only": {"execType": ["Trade", "AdlTrade", "BustTrade", "Delivery", "Settle"]},
            "columns": {
                "timestamp": "execTime",
                "symbol": "symbol",
                "trade_id": "execId",
                "order_id": "orderId",
                "side": "side",
                "price": "execPrice",
                "qty": "execQty",
                "fee": "execFee",
                "fee_currency": "feeCurrency",
                "maker": "isMaker",
            },
        },
        "funding": {
            "only": {"execType": ["Funding"]},
            # An amount that was paid is positive there.
            "scale": {"amount": -1.0},
            "columns": {"timestamp": "execTime", "symbol": "symbol", "amount": "execFee"},
        },
    },
    "bybit-closed-pnl": {
        "trades": {
            # Not settlements of a session or a contract, which close nothing.
            "only": {"execType": ["Trade", "AdlTrade", "BustTrade", "MovePosition"]},
            "columns": {
                "timestamp": "updatedTime",
                "entry_time": "createdTime",
                "symbol": "symbol",
                "side": "side",
                "entry_price": "avgEntryPrice",
                "close_price": "avgExitPrice",
                "qty": "closedSize",
                "realized_pnl": "closedPnl",
                "leverage": "leverage",
                "reason": "execType",
            },
            # The side of the closing order.
            "words": {"side": {"LONG": ["Sell"], "SHORT": ["Buy"]}},
        }
    },
    "binance-user-trades": {"fills": _BINANCE_FILLS, "funding": {**_BINANCE_FUNDING, "optional": True}},
    "binance-income": {"fills": {**_BINANCE_FILLS, "optional": True}, "funding": _BINANCE_FUNDING},
    "hummingbot": {
        "fills": {
            "query": _HUMMINGBOT_FILLS,
            "columns": _named(
                "timestamp symbol strategy order_id trade_id side price qty fee fee_currency position_side leverage"
            ),
        },
        "orders": {
            "optional": True,
            "query": _HUMMINGBOT_ORDERS,
            "columns": _named(
                "timestamp updated_at symbol strategy order_id exchange_order_id side type price qty filled_qty "
                "avg_fill_price status"
            ),
        },
        "funding": {
            "optional": True,
            "table": "FundingPayment",
            "columns": _named("timestamp symbol amount"),
        },
    },
}


LOGS = ("signals", "orders", "fills", "trades", "funding")
_SECTION = (
    "table",
    "query",
    "columns",
    "constants",
    "words",
    "scale",
    "contracts",
    "only",
    "extra",
    "join",
    "optional",
    "time_unit",
    "time_zone",
)
_TOP = (*LOGS, "time_unit", "time_zone", "symbol")


class Source:
    """Files of another program: ``tables`` maps each table (of other files: the file's name) to its columns."""

    def __init__(self, given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> None:
        self.paths = find_files([given] if isinstance(given, str | os.PathLike) else given)
        if not self.paths:
            raise HistoryError("no files to import")
        self.tables: dict[str, list[str]] = {}
        self._places: dict[str, tuple[Path, str, Any]] = {}
        for path in self.paths:
            self._open(path)

    def find(
        self, log: str, wanted: str | list[str] | None, columns: set[str], needed: set[str]
    ) -> list[str]:
        """Return the tables of a section: the named ones, else those with the most of its columns and all needed."""
        if wanted is not None:
            names = [wanted] if isinstance(wanted, str) else wanted
            found = [name if name in self.tables else Path(name).stem for name in names]
            return found if all(name in self.tables for name in found) else []
        if log in self.tables:
            return [log]
        fit = {
            name: len(columns & set(have))
            for name, have in self.tables.items()
            if needed <= set(have) != set()
        }
        return [name for name, count in fit.items() if count == max(fit.values())]

    def file(self, table: str) -> str:
        """Return the name of the file that holds a table."""
        return self._places[table][0].name

    def ask(self, log: str, query: str) -> tuple[list[str], dict[str, set[str]]]:
        """Make the answers of an SQL query tables, one for each database; return them, and the columns it reads.

        Raises HistoryError where there is no database or the query is none of its own.
        """
        paths = list(dict.fromkeys(path for path, kind, _ in self._places.values() if kind == "sqlite"))
        if not paths:
            raise HistoryError(f"no table to query for {log}: the source has no SQLite database")
        tables, reads = [], dict[str, set[str]]()

        def note(action: int, table: str | None, column: str | None, *_: Any) -> int:
            if action == sqlite3.SQLITE_READ and table and column:
                reads.setdefault(table, set()).add(column)
            return sqlite3.SQLITE_OK

        for path in paths:
            with closing(_connect(path)) as database:
                database.set_authorizer(note)
                try:
                    described = database.execute(f"SELECT * FROM ({query}) LIMIT 0").description
                except (sqlite3.Error, sqlite3.Warning) as error:
                    raise HistoryError(f"mapping.{log}.query: {path.name}: {error}") from None
            tables.append(f"{log} of {path.name}")
            self._add(tables[-1], path, "query", query, [column[0] for column in described])
        return tables, {name: columns for name, columns in reads.items() if name in self.tables}

    def read(self, table: str, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the number of the first row and the columns of some rows; a file's rows count from 1."""
        path, kind, data = self._places[table]
        if kind == "sqlite":
            yield from _read_sqlite(path, _quoted(table), columns)
        elif kind == "query":
            yield from _read_sqlite(path, f"({data})", columns)
        elif kind == "parquet":
            row = 1
            with _reading(path, "Parquet"):
                for batch in pq.ParquetFile(path).iter_batches(ROWS, columns=columns):
                    frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch])))
                    yield row, frame
                    row += frame.height
        elif kind == "csv":
            yield from _read_csv(path, data, columns)
        else:
            for start in range(0, len(data), ROWS):
                yield (
                    start + 1,
                    _frame(columns, [[row.get(c) for c in columns] for row in data[start : start + ROWS]]),
                )

    def _open(self, path: Path) -> None:
        with path.open("rb") as file:
            start = file.read(16)
        if start == _SQLITE:
            with _reading(path, "SQLite"), closing(_connect(path)) as database:
                query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
                for (name,) in database.execute(query).fetchall():
                    described = database.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()
                    self._add(name, path, "sqlite", None, [row[1] for row in described])
        elif start[:4] == b"PAR1":
            with _reading(path, "Parquet"):
                names = pq.read_schema(path).names
            self._add(path.stem, path, "parquet", None, names)
        else:
            self._open_text(path)

    def _open_text(self, path: Path) -> None:
        for file in open_files(path):
            stem = Path(file.name).stem
            if stem.endswith((".csv", ".json", ".jsonl")):
                stem = Path(stem).stem
            data = file.whole()
            if data.lstrip()[:1] in (b"{", b"["):
                for name, rows in _json_tables(data, file.name).items():
                    table = name or stem
                    columns = list(dict.fromkeys(key for row in rows for key in row))
                    if table in self._places and self._places[table][1] == "json":
                        self._places[table][2].extend(rows)
                        self.tables[table] = list(dict.fromkeys([*self.tables[table], *columns]))
                    else:
                        self._add(table, path, "json", rows, columns)
                continue
            text = data.decode("utf-8-sig", "replace")
            head = text.split("\n", 1)[0].rstrip("\r")
            delimiter = max(",;\t|", key=head.count)
            columns = next(csv.reader([head], delimiter=delimiter), [])
            if len(columns) < 2:
                raise HistoryError(
                    f"{file.name}: neither a database, nor JSON, nor Parquet, nor a table with columns: its first line "
                    f"is {head[:80]!r}"
                )
            self._add(stem, path, "csv", (text, delimiter), columns)

    def _add(self, table: str, path: Path, kind: str, data: Any, columns: list[str]) -> None:
        if table in self.tables:
            raise HistoryError(
                f"{path.name}: there is a table {table!r} in {self.file(table)} already; rename the file"
            )
        self.tables[table] = columns
        self._places[table] = (path, kind, data)


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database for reading, also while a bot writes it; neither it nor a file next to it is written."""
    # A database in WAL mode without a log file is not open anywhere: the file is complete.
    with path.open("rb") as file:
        wal = file.read(20)[18:19] == b"\2"
    at_rest = wal and not path.with_name(path.name + "-wal").exists()
    options = "mode=ro&immutable=1" if at_rest else "mode=ro"
    quoted = str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with _reading(path, "SQLite"):
        database = sqlite3.connect(f"file:{quoted}?{options}", uri=True, timeout=30, isolation_level=None)
        database.execute("PRAGMA query_only = ON")
        database.execute("BEGIN")
        return database


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Raise HistoryError for what a damaged file makes its library raise."""
    try:
        yield
    except (sqlite3.Error, pa.ArrowException, OSError) as error:
        raise HistoryError(f"{path}: cannot be read as {kind}: {error}") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _read_sqlite(path: Path, origin: str, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    with _reading(path, "SQLite"), closing(_connect(path)) as database:
        chosen = ", ".join(_quoted(column) for column in columns)
        cursor = database.execute(f"SELECT {chosen} FROM {origin}")
        row = 1
        while rows := cursor.fetchmany(ROWS):
            yield row, _frame(columns, rows)
            row += len(rows)


def _read_csv(path: Path, data: tuple[str, str], columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    text, delimiter = data
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        head = next(reader)
        places = [head.index(column) for column in columns]
        rows: list[list[str | None]] = []
        first = number = 1
        for cells in reader:
            # A short row has nulls, which a needed field rejects; a blank line is none.
            if cells:
                rows.append([cells[place] if place < len(cells) else None for place in places])
                number += 1
            if len(rows) == ROWS:
                yield first, _frame(columns, rows)
                rows, first = [], number
        if rows:
            yield first, _frame(columns, rows)
    except csv.Error as error:
        raise HistoryError(f"{path.name}: line {reader.line_num}: {error}") from None


def _frame(columns: list[str], rows: Iterable[Iterable[Any]]) -> pl.DataFrame:
    """Return rows as columns, each of the type of its cells; of strings where those differ."""
    cells = list(zip(*rows, strict=True)) or [() for _ in columns]
    return pl.DataFrame([_series(name, values) for name, values in zip(columns, cells, strict=True)])


def _series(name: str, values: tuple[Any, ...]) -> pl.Series:
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int}:
        if all(value is None or -(2**63) <= value < 2**63 for value in values):
            return pl.Series(name, values, dtype=pl.Int64)
    elif kinds == {float}:
        return pl.Series(name, values, dtype=pl.Float64)
    elif kinds <= {str}:
        return pl.Series(name, values, dtype=pl.String)
    return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict | list):
        return orjson.dumps(value).decode()
    return repr(value)


def _json_tables(data: bytes, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of a JSON file by name; that of a plain list, or of lines, has the name ""."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        found = []
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                try:
                    found.append(orjson.loads(line))
                except orjson.JSONDecodeError:
                    raise HistoryError(f"{name}: line {number}: not readable as JSON: {error}") from None
    while isinstance(found, dict) and not any(isinstance(value, list) for value in found.values()):
        # An exchange's answer: {"result": {"list": [...]}}.
        inner = next((value for value in found.values() if isinstance(value, dict) and value), None)
        if inner is None or not any(isinstance(value, dict | list) for value in inner.values()):
            found = [found]
            break
        found = inner
    if isinstance(found, list):
        # Answers of an exchange, one after another: their lists together.
        if found and all(isinstance(one, dict) and isinstance(one.get("result"), dict) for one in found):
            found = [row for one in found for row in one["result"].get("list", [])]
        tables = {"": found}
    else:
        lists = {key: value for key, value in found.items() if isinstance(value, list)}
        tables = {"": next(iter(lists.values()))} if len(lists) == 1 else lists
    for rows in tables.values():
        wrong = next((row for row in rows if not isinstance(row, dict)), None)
        if wrong is not None:
            raise HistoryError(f"{name}: expected objects, found {wrong!r:.200}")
    return {key: [_flat(row) for row in rows] for key, rows in tables.items()}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return an object with the fields of inner objects as ``outer.inner``."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": item for inner, item in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def mapping_text(mapping: Mapping[str, Any]) -> str:
    """Return a mapping as TOML, to edit and give back.

    >>> print(mapping_text({"orders": {"table": "o", "columns": {"qty": "size"}}}))
    [orders]
    table = "o"
    <BLANKLINE>
    [orders.columns]
    qty = "size"
    """
    blocks = []

    def write(name: str, table: Mapping[str, Any]) -> None:
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        if plain or not table:
            lines = [f"{key} = {orjson.dumps(value).decode()}" for key, value in plain.items()]
            blocks.append("\n".join(([f"[{name}]"] if name else []) + lines))
        for key, value in table.items():
            if isinstance(value, dict):
                write(f"{name}.{key}" if name else key, value)

    write("", mapping)
    return "\n\n".join(block for block in blocks if block)


def suggest(source: Source) -> dict[str, Any]:
    """Propose a mapping by the names of tables and columns; fields without a likely column are left out.

    >>> suggest(Source("bot.sqlite"))                                                           # doctest: +SKIP
    {'orders': {'table': 'orders', 'columns': {'timestamp': 'created_at', ...}}, ...}
    """
    found: dict[str, Any] = {}
    for table, columns in source.tables.items():
        scored = []
        for log, fields in FIELDS.items():
            by_name = {folded(column): column for column in columns}
            chosen: dict[str, str] = {}
            for field, declared in fields.items():
                name = next((n for n in (folded(field), *declared.names) if n in by_name), None)
                if name is not None and by_name[name] not in chosen.values():
                    chosen[field] = by_name[name]
            needed = [field for field, declared in fields.items() if declared.needed]
            hit = sum(field in chosen for field in needed) / len(needed)
            named = log.rstrip("s") in folded(table)
            scored.append((hit + 0.5 * named, len(chosen), log, chosen))
        share, _, log, chosen = max(scored, key=lambda one: one[:2])
        if share >= 0.75 and log not in found:
            found[log] = {"table": table, "columns": chosen}
            if folded(chosen.get("side", "")) == "isshort":
                found[log]["words"] = {"side": _IS_SHORT}
    return found


def read_mapping(
    preset: str | None, given: Mapping[str, Any] | str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Return the mapping that a preset and a user's mapping make, checked."""
    if preset is None and given is None:
        raise HistoryError(
            f"name a preset ({', '.join(PRESETS)}) or a mapping; suggest_mapping(source), or --suggest, proposes one"
        )
    if preset is not None and preset not in PRESETS:
        raise HistoryError(
            f"no preset {preset!r}: there are {', '.join(PRESETS)}.{did_you_mean(preset, PRESETS)}"
        )
    chosen: dict[str, Any] = dict(PRESETS[preset]) if preset is not None else {}
    own: Mapping[str, Any] = {}
    if isinstance(given, Mapping):
        own = given
    elif given is not None:
        try:
            own = tomllib.loads(Path(given).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise HistoryError(f"mapping {os.fspath(given)}: {error}") from None
    for name, value in own.items():
        _check_name(name, _TOP, "mapping")
        if name in LOGS and isinstance(value, Mapping):
            merged = dict(chosen.get(name, {}))
            for key, item in value.items():
                _check_name(key, _SECTION, f"mapping.{name}")
                both = isinstance(item, Mapping) and isinstance(merged.get(key), Mapping)
                merged[key] = {**merged[key], **item} if both else item
            chosen[name] = merged
        else:
            chosen[name] = value
    if not any(log in chosen for log in LOGS):
        raise HistoryError(f"the mapping names no log: one of {', '.join(LOGS)}")
    for log in LOGS:
        _check_section(log, chosen.get(log, {}))
    return chosen


def _check_section(log: str, section: Mapping[str, Any]) -> None:
    fields = FIELDS[log]
    for part in ("columns", "constants", "words", "scale"):
        entries = section.get(part, {})
        if not isinstance(entries, Mapping):
            raise HistoryError(f"mapping.{log}.{part}: expected a table of names, found {entries!r:.80}")
        for name in entries:
            _check_name(name, tuple(fields), f"mapping.{log}.{part}")
    for name, factor in section.get("scale", {}).items():
        if not isinstance(factor, int | float) or not math.isfinite(factor) or fields[name].kind != "number":
            raise HistoryError(f"mapping.{log}.scale.{name}: expected a factor of a number, found {factor!r}")


def _check_name(name: str, allowed: tuple[str, ...], where: str) -> None:
    if name not in allowed:
        raise HistoryError(
            f"{where} has no {name!r}: there are {', '.join(allowed)}.{did_you_mean(name, allowed)}"
        )


def words_of(kind: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the words of a field and what they mean; a mapping's own words come first."""
    words = {word: meaning for meaning, others in WORDS[kind].items() for word in others}
    words |= {folded(meaning): meaning for meaning in WORDS[kind]}
    for meaning, others in given.items():
        _check_name(meaning, tuple(WORDS[kind]), f"words of a {kind}")
        for word in [others] if isinstance(others, str | int | bool) else others:
            text = str(word).lower() if isinstance(word, bool) else str(word)
            words[folded(text)] = words[text] = meaning
    return words
