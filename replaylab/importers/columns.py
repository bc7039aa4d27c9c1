"""Trades in any CSV or Parquet file: the caller names the columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.intake import Intake
from replaylab.importers.text_tables import (
    Clock,
    TradesState,
    TradeTable,
    folded,
    parse_times,
    read_trades,
)

_BATCH_ROWS = 500_000


def read_csv(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str = "timestamp",
    timestamp_unit: str | None = None,
    price: str = "price",
    qty: str = "qty",
    side: str | None = None,
    buyer_maker: str | None = None,
    trade_id: str | None = None,
    received_at: str | None = None,
    delimiter: str = ",",
) -> None:
    """Read delimited text with a header.

    Columns are found without regard to case. ``side``: buy or sell of the taker; ``buyer_maker``: true where the
    buyer was the maker; with neither (and no column "side") the tick rule gives the side.
    ``timestamp_unit``: s, ms, us, ns; detected where it is not given. Times may also be ISO strings.
    """
    named = _named(
        side=side,
        maker=buyer_maker,
        time=timestamp,
        price=price,
        qty=qty,
        id=trade_id,
        received=received_at,
    )
    names = {ours: (folded(name),) for ours, name in named.items()}
    if side is None and buyer_maker is None:
        names["side"] = ("side",)
    table = TradeTable(names=names, required=tuple(named), unknown_sides=("", "unknown", "UNKNOWN"))
    read_trades(files, intake, table, unit=timestamp_unit, delimiter=delimiter)


def read_parquet(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str = "timestamp",
    timestamp_unit: str | None = None,
    price: str = "price",
    qty: str = "qty",
    side: str | None = None,
    buyer_maker: str | None = None,
    trade_id: str | None = None,
    received_at: str | None = None,
) -> None:
    """Read Parquet files; options as for CSV.

    A column of datetimes needs no unit. Fractional floats are taken to the nearest microsecond, and a note says so.
    """
    named = _named(
        side=side,
        maker=buyer_maker,
        time=timestamp,
        price=price,
        qty=qty,
        id=trade_id,
        received=received_at,
    )
    for path in files:
        intake.begin(path.name)
        try:
            source = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise HistoryError(f"{path}: cannot be read as Parquet: {error}") from None
        with source:
            _read_one(source, path, intake, dict(named), timestamp_unit)


def _read_one(
    source: pq.ParquetFile, path: Path, intake: Intake, named: dict[str, str], unit: str | None
) -> None:
    have = list(source.schema_arrow.names)
    if "side" not in named and "maker" not in named and "side" in have:
        named["side"] = "side"
    for ours, name in named.items():
        if name not in have:
            raise HistoryError(
                f"{path.name}: no column {name!r} for {ours}; it has {', '.join(have)}.{did_you_mean(name, have)}"
            )
    if intake.symbol is None:
        raise HistoryError(f"{path.name}: a table of columns names no symbol: give symbol=...")
    intake.wants(intake.symbol)
    state = TradesState(path.name, {"time": Clock("time", unit), "received": Clock("receive time", unit)})
    row = 1
    for batch in source.iter_batches(_BATCH_ROWS, columns=sorted(set(named.values()))):
        raw = pl.DataFrame(pl.from_arrow(batch))
        lines = pl.int_range(row, row + raw.height, dtype=pl.Int64, eager=True)
        row += raw.height
        intake.file.lines += raw.height
        raw = raw.select(lines.alias("line"), *(pl.col(name).alias(ours) for ours, name in named.items()))
        exchange = _times(raw["time"], state.clocks["time"], lines, path, intake)
        received = (
            _times(raw["received"], state.clocks["received"], lines, path, intake)
            if "received" in raw.columns
            else None
        )
        words = [pl.col(name).cast(pl.String) for name in ("side", "maker", "id") if name in raw.columns]
        trades = state.trades(raw.with_columns(words), exchange, received, intake)
        intake.trades(intake.symbol, trades, backwards=bool(state.backwards))


def _times(values: pl.Series, clock: Clock, lines: pl.Series, path: Path, intake: Intake) -> pl.Series:
    if isinstance(values.dtype, pl.Datetime):
        clock.unit = clock.unit or "ns"
        zone = values.dtype.time_zone
        utc = values.dt.replace_time_zone("UTC") if zone is None else values.dt.convert_time_zone("UTC")
        return utc.dt.cast_time_unit("ns").to_physical()
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        if not bool((values == whole).fill_null(True).all()):
            unit = clock.detect(int(whole.drop_nulls()[0]), path.name, int(lines[0]))
            per = {"s": 6, "ms": 3}.get(unit)
            if per is None:
                raise HistoryError(
                    f"{path.name}: times are fractions of {unit}: floats cannot hold those exactly"
                )
            intake.note(f"{path.name}: times are fractional floats, taken to the nearest microsecond")
            micros = (values * 10**per).round().cast(pl.Int64, strict=False)
            return pl.Series(micros * 1000)
        values = whole
    if values.dtype.is_integer():
        values = values.cast(pl.Int64)
    return parse_times(values, clock, lines, path.name)


def _named(*, side: str | None, maker: str | None, **others: str | None) -> dict[str, str]:
    """Return our names of the columns that are given, with theirs."""
    if side is not None and maker is not None:
        raise HistoryError("give side or buyer_maker, not both")
    every = {**others, "side": side, "maker": maker}
    return {ours: name for ours, name in every.items() if name is not None}
