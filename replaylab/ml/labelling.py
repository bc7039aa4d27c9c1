"""Labels: what happened after each decision, and from when to when that took.

::

    data = labels(session, tp_pct=0.2, sl_pct=0.15, max_hold_s=60.0)            # triple barrier
    data = labels(session, tp_pct=[0.1, 0.2, 0.4], sl_pct=[0.1, 0.2], side="score", costs=TradingParams())
    fixed_horizon(session, [1, 5, 30]); meta_labels(session); mark_outs(session, trades, [1, 5, 30])

A label that would need data after the session's end is null, never guessed. ``t_start`` and ``t_end`` say which stretch
of time decided it: purged splits need both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.barriers import BlockIndex
from replaylab.errors import DatasetError
from replaylab.ml.tape import Decisions, Prices, PriceSource, SessionLike, decisions, prices_by_symbol
from replaylab.ml.triple_barrier import (
    BARRIERS,
    NONE,
    TARGET,
    TIME,
    entry_positions,
    filled_entry,
    touch_barriers,
)
from replaylab.ml.weights import average_uniqueness, return_weights
from replaylab.params import TradingParams
from replaylab.trading import formulas

__all__ = ["labels"]

Levels = float | Sequence[float | None] | npt.NDArray[np.float64] | None
SIDES = ("long", "short", "score")
_MOST_ROWS = 100_000_000
TIME_TYPE = pl.Datetime("ns", "UTC")


def labels(
    session: SessionLike,
    tp_pct: Levels = 0.2,
    sl_pct: Levels = 0.15,
    max_hold_s: Levels = 60.0,
    *,
    side: str = "long",
    at: str | pl.DataFrame = "scoring",
    symbols: Sequence[str] | None = None,
    price_source: PriceSource = "auto",
    costs: TradingParams | None = None,
    latency_ms: float | None = None,
    time_label: str = "zero",
    weights: bool | None = None,
) -> pl.DataFrame:
    """Return triple-barrier labels, a row per decision and setting.

    ``tp_pct``, ``sl_pct`` (percent of the entry price) and ``max_hold_s`` (seconds) may each be one value or many: all
    combinations are labelled. ``None`` leaves a barrier out. ``side``: "long" (+1 is the upper barrier), "short", or
    "score" (the side that the score proposes: +1 then means that the proposal won, a meta-label; no score, no label).
    ``at``: "scoring" or a frame of decision times, such as ``features`` returned. ``costs``: take slippage, fees and
    latency from these parameters; ``ret`` is then what the trading model earns on the entry's notional
    with one target (``tp1_fraction=0``). ``latency_ms`` overrides theirs. ``time_label``: what the time barrier
    gives, "zero" or the "sign" of the return. ``weights``: add ``uniqueness`` and ``return_weight`` per symbol and
    setting (default: with one setting).

    The entry is the first price event behind the decision; prices after it count. Columns: ``event_index, symbol,
    t_start, t_end, side, entry_time, entry_price, exit_price, barrier`` ("TP", "SL", "TIME"), ``label`` (1, −1, 0),
    ``ret`` (fraction), ``tp_pct, sl_pct, max_hold_s``. Rows are in the order of the decisions, then of the settings.
    Raises DatasetError.
    """
    if side not in SIDES:
        raise DatasetError(f"side must be one of {', '.join(SIDES)}, found {side!r}")
    if side == "score" and not isinstance(at, str):
        raise DatasetError("side='score' needs at='scoring': other decision times carry no score")
    if time_label not in ("zero", "sign"):
        raise DatasetError(f"time_label must be 'zero' or 'sign', found {time_label!r}")
    settings = list(
        product(levels_of("tp_pct", tp_pct), levels_of("sl_pct", sl_pct), levels_of("max_hold_s", max_hold_s))
    )
    if latency_ms is None:
        latency_ms = 0.0 if costs is None else costs.latency_ms
    latency = formulas.milliseconds_to_ns(latency_ms)
    found = decisions(session, at, symbols)
    prices = prices_by_symbol(session, [part.symbol for part in found], price_source)
    rows = sum(len(part.ts) for part in found) * len(settings)
    if rows > _MOST_ROWS:
        raise DatasetError(
            f"{len(settings):,} settings make {rows:,} rows, too many for one frame: take fewer at a time, or "
            "barrier_scan, which has a row per setting"
        )
    pieces = [
        _label_symbol(part, prices[part.symbol], settings, side, latency, costs, time_label) for part in found
    ]
    frame = (
        pl.concat(pieces) if pieces else _label_symbol(_NOTHING, _NO_PRICES, settings, side, 0, None, "zero")
    )
    frame = frame.sort("row", "setting", maintain_order=True)
    if weights if weights is not None else len(settings) == 1:
        frame = _with_weights(frame, prices)
    return frame.drop("row", "setting")


def directions(found: Decisions, side: str) -> npt.NDArray[np.int8]:
    """Return +1 or −1 for each decision; 0 where the score proposes nothing."""
    if side == "score":
        return np.sign(np.nan_to_num(found.score)).astype(np.int8)
    return np.full(len(found.ts), 1 if side == "long" else -1, dtype=np.int8)


def levels_of(name: str, value: Levels) -> list[float]:
    """Return the settings of one barrier; infinity stands for none."""
    several = [value] if value is None or isinstance(value, (int, float)) else list(value)
    levels = [np.inf if item is None else float(item) for item in several]
    if not levels or any(np.isnan(level) or level < 0 for level in levels):
        raise DatasetError(f"{name}: expected numbers ≥ 0 or None, found {value!r}")
    return levels


def _label_symbol(
    found: Decisions,
    prices: Prices,
    settings: list[tuple[float, float, float]],
    side: str,
    latency: int,
    costs: TradingParams | None,
    time_label: str,
) -> pl.DataFrame:
    tp, sl, hold = (np.array(column) for column in zip(*settings, strict=True))
    direction = directions(found, side)
    position = entry_positions(prices.ts, prices.index, found.ts, found.index, latency)
    entered = (position < len(prices.ts)) & (direction != 0)
    rows = np.flatnonzero(entered)
    hold_ns = np.array(
        [-1 if np.isinf(h) else formulas.seconds_to_ns(float(h)) for h in hold], dtype=np.int64
    )
    touched = touch_barriers(
        BlockIndex(prices.price), prices.ts, position[rows], direction[rows], tp, sl, hold_ns, costs
    )
    shape = (len(found.ts), len(settings))

    def spread(values: npt.NDArray[Any], empty: Any, dtype: Any) -> npt.NDArray[Any]:
        whole = np.full(shape, empty, dtype=dtype)
        whole[rows] = values.T
        return whole.ravel()

    barrier = spread(touched.barrier, NONE, np.int8)
    place = spread(touched.position, -1, np.int64)
    ret = spread(touched.ret, np.nan, np.float64)
    decided = barrier != NONE
    label = np.where(barrier == TARGET, 1, np.where(barrier == TIME, 0, -1)).astype(np.int8)
    if time_label == "sign":
        label = np.where(barrier == TIME, np.sign(np.nan_to_num(ret)), label).astype(np.int8)
    repeated = len(settings)
    entry_ts = np.where(entered, _at(prices.ts, position), 0)
    slippage = 0.0 if costs is None else costs.print_slippage_bps
    entry_price = filled_entry(_at(prices.price, position), direction.astype(np.float64), slippage)
    end_ts = _at(prices.ts, np.maximum(place, 0))
    return pl.DataFrame(
        {
            "row": np.repeat(found.row, repeated),
            "setting": np.tile(np.arange(repeated), len(found.ts)),
            "event_index": np.repeat(found.index, repeated),
            "symbol": pl.repeat(found.symbol, shape[0] * repeated, dtype=pl.String, eager=True),
            "t_start": _times(np.repeat(found.ts, repeated)),
            "t_end": _masked(_times(end_ts), decided),
            "side": np.repeat(direction, repeated),
            "entry_time": _masked(_times(np.repeat(entry_ts, repeated)), np.repeat(entered, repeated)),
            "entry_price": _masked(pl.Series(np.repeat(entry_price, repeated)), np.repeat(entered, repeated)),
            "exit_price": _masked(pl.Series(spread(touched.exit, np.nan, np.float64)), decided),
            "barrier": pl.Series(BARRIERS, dtype=pl.String).gather(barrier),
            "label": _masked(pl.Series(label, dtype=pl.Int8), decided),
            "ret": _masked(pl.Series(ret), decided),
            "tp_pct": _unless_infinite(np.tile(tp, len(found.ts))),
            "sl_pct": _unless_infinite(np.tile(sl, len(found.ts))),
            "max_hold_s": _unless_infinite(np.tile(hold, len(found.ts))),
        }
    )


def _with_weights(frame: pl.DataFrame, prices: dict[str, Prices]) -> pl.DataFrame:
    uniqueness = np.full(frame.height, np.nan)
    attributed = np.full(frame.height, np.nan)
    numbered = frame.with_row_index("place").drop_nulls("t_end")
    for (symbol, _), part in numbered.group_by("symbol", "setting", maintain_order=True):
        rows = part["place"].to_numpy()
        uniqueness[rows] = average_uniqueness(part["t_start"], part["t_end"])
        tape = prices[str(symbol)]
        attributed[rows] = return_weights(part["t_start"], part["t_end"], tape.ts, tape.price)
    return frame.with_columns(
        pl.Series("uniqueness", uniqueness).fill_nan(None),
        pl.Series("return_weight", attributed).fill_nan(None),
    )


def _at(values: npt.NDArray[Any], position: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Values at positions; where a position lies outside, any value (the caller masks it)."""
    if not len(values):
        return np.zeros(len(position), dtype=values.dtype)
    return values[np.clip(position, 0, len(values) - 1)]


def _times(ns: npt.NDArray[np.int64]) -> pl.Series:
    return pl.Series(ns.astype(np.int64)).cast(TIME_TYPE)


def _masked(values: pl.Series, keep: npt.NDArray[np.bool_]) -> pl.Series:
    return pl.select(pl.when(pl.Series(keep)).then(values)).to_series()


def _unless_infinite(values: npt.NDArray[np.float64]) -> pl.Series:
    return _masked(pl.Series(values), np.isfinite(values))


_NONE_INT = np.empty(0, dtype=np.int64)
_NOTHING = Decisions("", _NONE_INT, _NONE_INT, np.empty(0), _NONE_INT)
_NO_PRICES = Prices("trade", _NONE_INT, np.empty(0), _NONE_INT)
