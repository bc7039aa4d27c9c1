"""Returns after a fixed time, mark-outs of fills, and meta-labels of logged trades.

::

    fixed_horizon(session, [1, 5, 30])              # what a decision was worth 1, 5 and 30 s later
    mark_outs(session, lab.trades(), [1, 5, 30])    # the same for fills, from their own price
    meta_labels(session)                            # was each logged trade worth taking?

Prices are the last known at or before the horizon. A horizon that the session does not cover is null.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.errors import DatasetError
from replaylab.ml.labelling import SIDES, TIME_TYPE, directions
from replaylab.ml.tape import (
    Prices,
    PriceSource,
    SessionLike,
    as_polars,
    decisions,
    event_times,
    prices_by_symbol,
)
from replaylab.ml.triple_barrier import entry_positions

__all__ = ["fixed_horizon", "mark_outs", "meta_labels"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def fixed_horizon(
    session: SessionLike,
    horizons_s: Sequence[float] = (1.0, 5.0, 30.0),
    *,
    side: str = "long",
    at: str | pl.DataFrame = "scoring",
    symbols: Sequence[str] | None = None,
    price_source: PriceSource = "auto",
) -> pl.DataFrame:
    """Return a row per decision with ``ret_1s``, ``t_end_1s``, ... for each horizon in seconds.

    From the entry (first price event behind the decision) to the last price at or before decision + horizon, as a
    fraction, signed by ``side``. Null where the session ends at or before the horizon, or the entry comes after it.
    """
    if side not in SIDES:
        raise DatasetError(f"side must be one of {', '.join(SIDES)}, found {side!r}")
    steps = _steps(horizons_s)
    ends = event_times(session)
    last = int(ends[-1]) if len(ends) else 0
    found = decisions(session, at, symbols)
    prices = prices_by_symbol(session, [part.symbol for part in found], price_source)
    pieces = []
    for part in found:
        tape = prices[part.symbol]
        direction = directions(part, side)
        entry = entry_positions(tape.ts, tape.index, part.ts, part.index)
        known = entry < len(tape.ts)
        price = np.full(len(entry), np.nan)
        price[known] = tape.price[entry[known]]
        columns: dict[str, object] = {
            "row": part.row,
            "event_index": part.index,
            "symbol": pl.repeat(part.symbol, len(entry), dtype=pl.String, eager=True),
            "t_start": pl.Series(part.ts).cast(TIME_TYPE),
            "side": direction,
            "entry_price": pl.Series(price).fill_nan(None),
        }
        for name, step in steps.items():
            later, place = _as_of(tape, part.ts + step, last)
            usable = known & (place >= entry) & (direction != 0)
            ret = np.where(usable, direction * (later / price - 1.0), np.nan)
            columns[f"ret_{name}"] = pl.Series(ret).fill_nan(None)
            end = pl.Series(part.ts + step).cast(TIME_TYPE)
            columns[f"t_end_{name}"] = pl.select(pl.when(pl.Series(~np.isnan(ret))).then(end)).to_series()
        pieces.append(pl.DataFrame(columns))
    if not pieces:
        raise DatasetError("the session has no decision times: no SCORING_UPDATE with a symbol")
    return pl.concat(pieces).sort("row", maintain_order=True).drop("row")


def mark_outs(
    session: SessionLike,
    trades: pl.DataFrame,
    horizons_s: Sequence[float] = (1.0, 5.0, 30.0),
    *,
    price_source: PriceSource = "auto",
) -> pl.DataFrame:
    """Return ``trades`` with ``mark_out_1s``, ...: how the price moved in favour after each entry, in basis points.

    ``trades``: ``symbol``, ``side``, ``entry_price`` and ``entry_time`` (or ``timestamp`` and ``duration_seconds``, as
    in the trade log). Negative mark-outs at short horizons mean that the market knew better.
    """
    trades = as_polars(trades)
    frame = _with_entry_time(trades)
    steps = _steps(horizons_s)
    ends = event_times(session)
    last = int(ends[-1]) if len(ends) else 0
    values = {name: np.full(frame.height, np.nan) for name in steps}
    names = frame["symbol"].to_numpy()
    moments: Ints = frame["entry_time"].dt.timestamp("ns").to_numpy()
    entry = frame["entry_price"].to_numpy()
    sign = np.where((frame["side"] == "LONG").to_numpy(), 1.0, -1.0)
    for symbol, tape in prices_by_symbol(session, sorted(set(names.tolist())), price_source).items():
        rows = np.flatnonzero(names == symbol)
        for name, step in steps.items():
            later, _ = _as_of(tape, moments[rows] + step, last)
            values[name][rows] = sign[rows] * (later / entry[rows] - 1.0) * 1e4
    return trades.with_columns(
        pl.Series(f"mark_out_{name}", column).fill_nan(None) for name, column in values.items()
    )


def meta_labels(session: SessionLike, trades: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return a row per logged trade: ``symbol, t_start, t_end, side, ret, label`` (1: it made money after fees).

    The side was the primary model's; a second model that predicts ``label`` decides whether to follow it, or how
    much. ``trades``: a trade log frame; by default the EXECUTION_TRADE events that the session was built with
    (``include_types`` with "EXECUTION_*"). ``ret`` is the realised PnL on the entry's notional. Give the result
    to ``features(session, at=...)`` for the features that were known before each entry.
    """
    frame = _logged_trades(session) if trades is None else as_polars(trades)
    held = _with_entry_time(frame)
    notional = pl.col("entry_price") * pl.col("qty")
    return held.select(
        "symbol",
        pl.col("entry_time").alias("t_start"),
        pl.col("exit_time").alias("t_end"),
        pl.when(pl.col("side") == "LONG").then(1).otherwise(-1).cast(pl.Int8).alias("side"),
        (pl.col("realized_pnl") / notional).alias("ret"),
        (pl.col("realized_pnl") > 0).cast(pl.Int8).alias("label"),
    )


def _logged_trades(session: SessionLike) -> pl.DataFrame:
    rows = session.events.filter(pl.col("type") == "EXECUTION_TRADE")
    if not rows.height:
        raise DatasetError(
            'the session holds no logged trades: build it with include_types that hold "EXECUTION_*", '
            "or give the trades"
        )
    records = [orjson.loads(text) for text in rows["payload"].to_list()]
    names = {
        "side": "side",
        "entry_price": "entryPrice",
        "qty": "qty",
        "realized_pnl": "realizedPnl",
        "duration_seconds": "durationSeconds",
    }
    columns = {ours: [record.get(theirs) for record in records] for ours, theirs in names.items()}
    return pl.DataFrame({"timestamp": rows["timestamp"], "symbol": rows["symbol"], **columns})


def _with_entry_time(trades: pl.DataFrame) -> pl.DataFrame:
    if "entry_time" in trades.columns and "exit_time" in trades.columns:
        return trades
    missing = {"timestamp", "duration_seconds"} - set(trades.columns)
    if missing:
        raise DatasetError(f"trades need entry_time and exit_time, or {', '.join(sorted(missing))}")
    held = (pl.col("duration_seconds") * 1e9).round().cast(pl.Int64).cast(pl.Duration("ns"))
    return trades.with_columns(exit_time=pl.col("timestamp"), entry_time=pl.col("timestamp") - held)


def _steps(horizons_s: Sequence[float]) -> dict[str, int]:
    steps = {f"{horizon:g}s": round(horizon * 1e9) for horizon in horizons_s}
    if not steps or min(steps.values()) <= 0:
        raise DatasetError(f"horizons are seconds above zero, found {list(horizons_s)!r}")
    return steps


def _as_of(tape: Prices, moments: Ints, last: int) -> tuple[Floats, Ints]:
    """Last price at or before each moment, and its position; nan and −1 where the session does not reach past it."""
    place = np.searchsorted(tape.ts, moments, side="right") - 1
    # Events of the very last timestamp may be cut off: only a moment before it is covered for certain.
    usable = (place >= 0) & (moments < last)
    price = np.full(len(moments), np.nan)
    price[usable] = tape.price[place[usable]]
    return price, np.where(usable, place, -1).astype(np.int64)
