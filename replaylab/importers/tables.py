"""Trades in text tables: a header or none, names in any case, and whatever order the columns have.

An archive describes its columns in a :class:`TradeTable`; :func:`read_trades` does the rest in blocks. A line is a
row: line breaks inside quotes are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from replaylab.errors import HistoryError
from replaylab.importers.cells import Layout, TradeTable, detect, parse
from replaylab.importers.clocks import UNITS, Clock
from replaylab.importers.intake import Intake
from replaylab.importers.reading import Block, LineFile

__all__ = ["parse_times", "read_trades", "side_of", "tick_rule"]

_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d", re.ASCII)
_BUY, _SELL = ("Buy", "BUY", "buy", "B", "b"), ("Sell", "SELL", "sell", "S", "s")
_TRUE, _FALSE = ("true", "True", "TRUE", "1", "t", "T"), ("false", "False", "FALSE", "0", "f", "F")


def read_trades(
    files: Iterable[Path],
    intake: Intake,
    table: TradeTable,
    *,
    unit: str | None = None,
    delimiter: str = ",",
) -> None:
    """Read files of trades into ``intake``. Raises HistoryError for what contradicts the table or itself."""
    for file in intake.open(files):
        clocks = {
            "time": Clock("time", unit, table.units),
            "received": Clock("receive time", None, table.units),
        }
        state = _FileState(clocks)
        layout: Layout | None = None
        for block in file.blocks():
            if layout is None:
                layout, block = detect(block, file, intake, table, delimiter)
                if layout is None:
                    continue
            for frame, raw in parse(block, layout, intake):
                _take(frame, raw, file, layout, intake, table, state)
        if layout is None:
            intake.note(f"{file.name} is empty")


def side_of(frame: pl.DataFrame) -> pl.Expr:
    """BUY or SELL of a ``side`` column of texts, or of a ``maker`` column; null where it says neither."""
    if "side" in frame.columns:
        return (
            pl.when(pl.col("side").is_in(_BUY))
            .then(pl.lit("BUY"))
            .when(pl.col("side").is_in(_SELL))
            .then(pl.lit("SELL"))
        ).otherwise(pl.lit(None, dtype=pl.String))
    if "maker" in frame.columns:  # a buyer who was the maker had a seller take
        return (
            pl.when(pl.col("maker").is_in(_TRUE))
            .then(pl.lit("SELL"))
            .when(pl.col("maker").is_in(_FALSE))
            .then(pl.lit("BUY"))
        ).otherwise(pl.lit(None, dtype=pl.String))
    return pl.lit(None, dtype=pl.String)


def tick_rule(price: pl.Series, last_price: float | None, last_side: str | None) -> pl.Series:
    """Return sides by the tick rule: BUY after a rise, SELL after a fall, as before at the same price.

    Before the first move there is no side. A price that is missing or not above 0 moves nothing.
    Source: C. M. C. Lee and M. J. Ready, "Inferring trade direction from intraday data", Journal of Finance 46 (1991).
    """
    price = price.set(~(price > 0).fill_null(False), None).fill_null(strategy="forward")
    if last_price is not None:
        price = price.fill_null(last_price)
    before = price.shift(1, fill_value=last_price)
    step = pl.when(price > before).then(pl.lit("BUY")).when(price < before).then(pl.lit("SELL"))
    sides = pl.select(step.otherwise(pl.lit(None, dtype=pl.String)).alias("side"))["side"]
    sides = sides.fill_null(strategy="forward")
    return sides if last_side is None else sides.fill_null(last_side)


def parse_times(values: pl.Series, clock: Clock, lines: pl.Series, file: str) -> pl.Series:
    """Return integer ns of times that are whole numbers, or decimal numbers as text; exact to the last digit."""
    if values.dtype.is_integer():
        return clock.column(values, lines, file)
    present = values.drop_nulls()
    if len(present) and _DATE.match(present[0]):
        clock.unit = clock.unit or "ns"
        return values.str.to_datetime(time_unit="ns", time_zone="UTC", strict=False).to_physical()
    even = _evenly_cut(values)
    if even is not None:
        whole, fraction, decimals = even
        ns = clock.column(whole, lines, file)
        digits = len(str(UNITS[clock.unit or "ns"])) - 1
        if decimals <= digits:
            return ns + fraction * int(10 ** (digits - decimals))
    parts = values.str.strip_chars().str.splitn(".", 2).struct.rename_fields(["whole", "fraction"]).struct
    whole, fraction = parts.field("whole").cast(pl.Int64, strict=False), parts.field("fraction").fill_null("")
    ns = clock.column(whole, lines, file)
    if clock.unit is None:
        return ns
    digits = len(str(UNITS[clock.unit])) - 1
    kept = fraction.str.strip_chars_end("0")
    below = (
        kept.str.pad_end(digits, "0").cast(pl.Int64, strict=False)
        if digits
        else kept.replace("", "0").cast(pl.Int64)
    )
    too_fine = kept.str.len_bytes() > digits
    if too_fine.any():
        index = too_fine.arg_max() or 0
        raise HistoryError(
            f"{file}:{lines[index]}: {clock.name} {values[index]!r} is finer than a nanosecond"
        )
    return ns + below


def _evenly_cut(values: pl.Series) -> tuple[pl.Series, pl.Series, int] | None:
    """Whole seconds, fraction and number of decimals where all texts have ten digits, a point, and the same length.

    That is what archives hold, and much faster than taking each text apart where its point is.
    """
    length = values.str.len_bytes()
    if (
        values.null_count()
        or length.min() != length.max()
        or not bool((values.str.slice(10, 1) == ".").all())
    ):
        return None
    decimals = int(length[0]) - 11
    whole = values.str.head(10).cast(pl.Int64, strict=False)
    fraction = values.str.slice(11).cast(pl.Int64, strict=False)
    unsigned = (
        bool((values.str.slice(11, 1).is_between(pl.lit("0"), pl.lit("9"))).all()) if decimals else False
    )
    if not unsigned or whole.null_count() or fraction.null_count():
        return None
    return whole, fraction, decimals


@dataclass
class _FileState:
    clocks: dict[str, Clock]
    backwards: bool | None = None
    last_price: float | None = None
    last_side: str | None = None


def _take(
    frame: pl.DataFrame,
    block: Block,
    file: LineFile,
    layout: Layout,
    intake: Intake,
    table: TradeTable,
    state: _FileState,
) -> None:
    """Turn a typed block into trades and hand them over, symbol by symbol."""

    def text(line: int) -> str:
        return block.data.split(b"\n")[line - block.first_line].decode("utf-8", "replace")

    frame = _reject_unknown_sides(frame, layout, intake, table, text)
    if table.numbered:
        frame = _reject_unnumbered(frame, intake, text)
    if frame.is_empty():
        return
    lines = frame["line"]
    exchange = parse_times(frame["time"], state.clocks["time"], lines, file.name)
    if state.backwards is None:
        state.backwards = _runs_backwards(exchange)
        intake.note(
            f"{file.name}: times in {state.clocks['time'].unit}"
            + (", newest first" if state.backwards else "")
        )
    received = (
        parse_times(frame["received"], state.clocks["received"], lines, file.name)
        if "received" in frame.columns
        else pl.Series([None], dtype=pl.Int64).new_from_index(0, frame.height)
    )
    off_market = (
        (pl.col("kind").fill_null("").str.to_uppercase() != "MARKET")
        if "kind" in frame.columns
        else pl.lit(False)
    )
    trades = frame.select(
        "line",
        exchange.alias("exchange_at"),
        received.alias("received_at"),
        "price",
        "qty",
        side_of(frame).alias("side"),
        (pl.col("id") if "id" in frame.columns else pl.lit(None, dtype=pl.String)).alias("trade_id"),
        off_market.alias("off_market"),
        (frame["id"].cast(pl.Int64) if table.numbered else -lines if state.backwards else lines).alias("seq"),
        *(["symbol"] if "symbol" in frame.columns else []),
    )
    if "side" not in frame.columns and "maker" not in frame.columns:
        trades = _with_tick_rule(trades, file, intake, state)
    for symbol, rows in _by_symbol(trades, file, intake, table):
        intake.trades(symbol, rows, backwards=state.backwards, numbered=table.numbered, text=text)


def _reject_unknown_sides(
    frame: pl.DataFrame, layout: Layout, intake: Intake, table: TradeTable, text: Callable[[int], str]
) -> pl.DataFrame:
    column = "side" if "side" in frame.columns else "maker" if "maker" in frame.columns else None
    if column is None:
        return frame
    allowed = [*_BUY, *_SELL, *table.unknown_sides] if column == "side" else [*_TRUE, *_FALSE]
    known = frame[column].is_in(allowed).fill_null(False)
    if known.all():
        return frame
    expected = "a buy or sell" if column == "side" else "true or false"
    for line, found in frame.filter(~known).select("line", column).iter_rows():
        intake.reject(line, f"{layout.shown(column)} must be {expected}, found {found!r}", text(line))
    return frame.filter(known)


def _reject_unnumbered(frame: pl.DataFrame, intake: Intake, text: Callable[[int], str]) -> pl.DataFrame:
    good = frame["id"].cast(pl.Int64, strict=False).is_not_null()
    if good.all():
        return frame
    for line, found in frame.filter(~good).select("line", "id").iter_rows():
        intake.reject(line, f"the id must be a whole number, found {found!r}", text(line))
    return frame.filter(good)


def _runs_backwards(times: pl.Series) -> bool:
    steps = times.diff().drop_nulls()
    return int((steps < 0).sum()) > int((steps > 0).sum())


def _with_tick_rule(trades: pl.DataFrame, file: LineFile, intake: Intake, state: _FileState) -> pl.DataFrame:
    if state.backwards:
        raise HistoryError(
            f"{file.name}: without a side column the trades must run forwards in time (tick rule)"
        )
    sides = tick_rule(trades["price"], state.last_price, state.last_side)
    known = trades["price"].filter(trades["price"] > 0)
    if len(known):
        state.last_price = float(known[-1])
    state.last_side = sides[-1]
    intake.note(f"{file.name}: no side column, sides by the tick rule")
    return trades.with_columns(sides.alias("side"))


def _by_symbol(
    trades: pl.DataFrame, file: LineFile, intake: Intake, table: TradeTable
) -> Iterator[tuple[str, pl.DataFrame]]:
    if "symbol" in trades.columns:
        first = trades["symbol"][0]
        alone = bool((trades["symbol"] == first).all())
        groups = (
            [(first, trades)]
            if alone
            else [(key[0], rows) for key, rows in trades.group_by("symbol", maintain_order=True)]
        )
        for name, rows in groups:
            if name is None or not str(name).strip():
                for line in rows["line"]:
                    intake.reject(line, "no symbol")
            elif intake.wants(str(name)):
                yield str(name), rows.drop("symbol")
            else:
                intake.file.other += rows.height
        return
    named = re.match(table.file_symbol, file.hint) if table.file_symbol else None
    symbol = intake.symbol or (named[1] if named else None)
    if symbol is None:
        raise HistoryError(
            f"{file.name}: neither the rows nor the file's name tell the symbol: give symbol=..."
        )
    if named and intake.symbol and named[1] != intake.symbol and intake.save_as is None:
        raise HistoryError(
            f"{file.name} is named after {named[1]}, but symbol={intake.symbol!r} is asked for. "
            f"To store it under that name: symbol={named[1]!r}, save_as={intake.symbol!r}"
        )
    yield symbol, trades
