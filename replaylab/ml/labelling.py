"""Labels: what happened after each decision, and from when to when that took.

::

    data = labels(session, tp_pct=0.2, sl_pct=0.15, max_hold_s=60.0)            # triple barrier
    data = labels(session, tp_pct=[0.1, 0.2, 0.4], sl_pct=[0.1, 0.2], side="score", costs=TradingParams())
    fixed_horizon(session, [1, 5, 30]); meta_labels(session); mark_outs(session, trades, [1, 5, 30])

A label that would need data after the session's end is null, never guessed. So is one whose time crosses a hole, a
pause of more than ``max_gap_s`` seconds between two price events of its symbol (None: no pause is a hole). ``t_start``
and ``t_end`` say which stretch of time decided a label: purged splits need both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.barriers import BlockIndex, first_at_or_above, first_at_or_below
from replaylab.errors import DatasetError
from replaylab.ml.decisions import (
    MAX_GAP_S,
    Decisions,
    Prices,
    PriceSource,
    SessionLike,
    as_polars,
    decisions,
    event_times,
    gap_ns,
    prices_by_symbol,
)
from replaylab.ml.splits import Int64, interval_arrays, time_ns
from replaylab.params import TradingParams
from replaylab.trading import formulas

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Levels = float | Sequence[float | None] | Floats | None
_SIDES = ("long", "short", "score")
_MOST_ROWS = 100_000_000
_CELLS = 4_000_000  # settings × entries at once: some 200 MB
_UTC = pl.Datetime("ns", "UTC")
_NAMES = ("tp_pct", "sl_pct", "max_hold_s")
HOLE, NONE, TARGET, STOP, TIME = -1, 0, 1, 2, 3
_TRADE_FIELDS = {
    "side": "side",
    "qty": "qty",
    "entry_price": "entryPrice",
    "realized_pnl": "realizedPnl",
    "duration_seconds": "durationSeconds",
    "reason": "reason",
}
_BARRIERS = (None, "TP", "SL", "TIME")


@dataclass(frozen=True)
class Barriers:
    """One entry per setting: target and stop in percent of the entry price, hold in seconds; infinity: no barrier."""

    tp_pct: Floats
    sl_pct: Floats
    hold_s: Floats

    @classmethod
    def of(cls, tp_pct: Levels, sl_pct: Levels, max_hold_s: Levels) -> Barriers:
        """Return all combinations; the last varies fastest."""
        several = zip(_NAMES, (tp_pct, sl_pct, max_hold_s), strict=True)
        columns = zip(*product(*(_levels(name, value) for name, value in several)), strict=True)
        return cls(*(np.array(column) for column in columns))

    def __len__(self) -> int:
        return len(self.tp_pct)

    def part(self, start: int, stop: int) -> Barriers:
        return Barriers(self.tp_pct[start:stop], self.sl_pct[start:stop], self.hold_s[start:stop])

    @property
    def hold_ns(self) -> Ints:
        """The holds in nanoseconds; −1 for none."""
        held = [-1 if np.isinf(hold) else formulas.seconds_to_ns(float(hold)) for hold in self.hold_s]
        return np.array(held, dtype=np.int64)


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
    max_gap_s: float | None = MAX_GAP_S,
    time_label: str = "zero",
    weights: bool | None = None,
) -> pl.DataFrame:
    """Return triple-barrier labels, a row per decision and setting.

    ``tp_pct``, ``sl_pct`` (percent of the entry price) and ``max_hold_s`` (seconds) may each be one value or many: all
    combinations are labelled. ``None`` leaves a barrier out. ``side``: "long" (+1 is the upper barrier), "short", or
    "score" (the side that the score proposes: +1 then means that the proposal won, a meta-label; no score, no label).
    ``at``: "scoring" or a frame of decision times, such as ``features`` returned. ``costs``: take slippage, fees and
    latency from these parameters; ``ret`` is then what the trading model earns on the entry's notional
    with one target (``tp1_fraction=0``). ``latency_ms`` overrides theirs. ``max_gap_s``: a label is null, and ``hole``
    true, where the symbol has no price for longer between decision and end, whatever ``costs`` say. ``time_label``:
    what the time barrier gives, "zero" or the "sign" of the return. ``weights``: add ``uniqueness`` and
    ``return_weight`` per symbol and setting (default: with one setting).

    The entry is the first price event behind the decision; prices after it count. Columns: ``event_index, symbol,
    t_start, t_end, side, entry_time, entry_price, exit_price, barrier`` ("TP", "SL", "TIME"), ``label`` (1, −1, 0),
    ``ret`` (fraction), ``hole``, ``tp_pct, sl_pct, max_hold_s``. Rows are in the order of the decisions, then of the
    settings. Raises DatasetError.
    """
    if side == "score" and not isinstance(at, str):
        raise DatasetError("side='score' needs at='scoring': other decision times carry no score")
    if time_label not in ("zero", "sign"):
        raise DatasetError(f"time_label must be 'zero' or 'sign', found {time_label!r}")
    settings = Barriers.of(tp_pct, sl_pct, max_hold_s)
    if latency_ms is None:
        latency_ms = 0.0 if costs is None else costs.latency_ms
    found = decisions(session, at, symbols)
    prices = prices_by_symbol(session, [part.symbol for part in found], price_source)
    rows = sum(len(part.ts) for part in found) * len(settings)
    if rows > _MOST_ROWS:
        raise DatasetError(
            f"{len(settings):,} settings make {rows:,} rows, too many for one frame: take fewer at a time, or "
            "barrier_scan, which has a row per setting"
        )
    latency, gap = formulas.milliseconds_to_ns(latency_ms), gap_ns(max_gap_s)
    frame = pl.concat(
        _Labels(part, prices.get(part.symbol, _NO_PRICES), side, latency, costs, gap).frame(
            settings, time_label
        )
        for part in found or [_NO_DECISIONS]
    ).sort("row", "setting", maintain_order=True)
    if weights if weights is not None else len(settings) == 1:
        frame = _with_weights(frame, prices)
    return frame.drop("row", "setting")


def _directions(found: Decisions, side: str) -> npt.NDArray[np.int8]:
    """Return +1 or −1 for each decision; 0 where the score proposes nothing."""
    if side not in _SIDES:
        raise DatasetError(f"side: expected one of {', '.join(_SIDES)}, found {side!r}")
    if side == "score":
        return np.sign(np.nan_to_num(found.score)).astype(np.int8)
    return np.full(len(found.ts), 1 if side == "long" else -1, dtype=np.int8)


def _levels(name: str, value: Levels) -> list[float]:
    """Return the settings of one barrier; infinity where there is none."""
    several = [value] if value is None or isinstance(value, (int, float)) else list(value)
    levels = [np.inf if item is None else float(item) for item in several]
    if not levels or any(np.isnan(level) or level < 0 for level in levels):
        raise DatasetError(f"{name}: expected numbers ≥ 0 or None, found {value!r}")
    return levels


class _Labels:
    """The decisions of one symbol, entered at its prices."""

    def __init__(
        self,
        found: Decisions,
        prices: Prices,
        side: str,
        latency: int,
        costs: TradingParams | None,
        gap: int | None,
    ) -> None:
        self.found, self.prices, self.costs = found, prices, costs
        self.direction = _directions(found, side)
        self.position = entry_positions(prices.ts, prices.index, found.ts, found.index, latency)
        self.entered = (self.position < len(prices.ts)) & (self.direction != 0)
        self.rows = np.flatnonzero(self.entered)
        behind = entry_positions(prices.ts, prices.index, found.ts[self.rows], found.index[self.rows])
        self._hole = next_hole(prices.ts, behind, gap)
        self._index = BlockIndex(prices.price)

    def touch(self, settings: Barriers) -> Touched:
        """Return the first barrier of each decision that was entered, for each setting; HOLE where one comes before."""
        entries, sides = self.position[self.rows], self.direction[self.rows]
        touched = touch_barriers(self._index, self.prices.ts, entries, sides, settings, self.costs)
        end = np.where(touched.barrier == NONE, len(self.prices.ts), touched.position)
        return touched.without(self._hole <= end)

    def frame(self, settings: Barriers, time_label: str) -> pl.DataFrame:
        """Return a row per decision and setting."""
        found, prices, touched = self.found, self.prices, self.touch(settings)
        count, repeated = len(found.ts), len(settings)

        def spread(values: npt.NDArray[Any], empty: Any, dtype: Any) -> npt.NDArray[Any]:
            whole = np.full((count, repeated), empty, dtype=dtype)
            whole[self.rows] = values.T
            return whole.ravel()

        barrier = spread(touched.barrier, NONE, np.int8)
        hole = barrier == HOLE
        barrier[hole] = NONE
        ret = spread(touched.ret, np.nan, np.float64)
        end_ts = _at(prices.ts, np.maximum(spread(touched.position, -1, np.int64), 0))
        label = np.where(barrier == TARGET, 1, np.where(barrier == TIME, 0, -1)).astype(np.int8)
        if time_label == "sign":
            label = np.where(barrier == TIME, np.sign(np.nan_to_num(ret)), label).astype(np.int8)
        entry_ts = np.where(self.entered, _at(prices.ts, self.position), 0)
        slippage = 0.0 if self.costs is None else self.costs.print_slippage_bps
        entry_price = filled_entry(
            _at(prices.price, self.position), self.direction.astype(np.float64), slippage
        )
        decided, entered = barrier > NONE, np.repeat(self.entered, repeated)
        levels = zip(_NAMES, (settings.tp_pct, settings.sl_pct, settings.hold_s), strict=True)
        return pl.DataFrame(
            {
                "row": np.repeat(found.row, repeated),
                "setting": np.tile(np.arange(repeated), count),
                "event_index": np.repeat(found.index, repeated),
                "symbol": pl.repeat(found.symbol, count * repeated, dtype=pl.String, eager=True),
                "t_start": _times(np.repeat(found.ts, repeated)),
                "t_end": _masked(_times(end_ts), decided),
                "side": np.repeat(self.direction, repeated),
                "entry_time": _masked(_times(np.repeat(entry_ts, repeated)), entered),
                "entry_price": _masked(pl.Series(np.repeat(entry_price, repeated)), entered),
                "exit_price": _masked(pl.Series(spread(touched.exit, np.nan, np.float64)), decided),
                "barrier": pl.Series(_BARRIERS, dtype=pl.String).gather(barrier),
                "label": _masked(pl.Series(label, dtype=pl.Int8), decided),
                "ret": _masked(pl.Series(ret), decided),
                "hole": hole,
                **{name: _unless_infinite(np.tile(level, count)) for name, level in levels},
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
    return pl.Series(ns.astype(np.int64)).cast(_UTC)


def _masked(values: pl.Series, keep: npt.NDArray[np.bool_]) -> pl.Series:
    return pl.select(pl.when(pl.Series(keep)).then(values)).to_series()


def _unless_infinite(values: npt.NDArray[np.float64]) -> pl.Series:
    return _masked(pl.Series(values), np.isfinite(values))


_NO_INTS = np.empty(0, dtype=np.int64)
_NO_DECISIONS = Decisions("", _NO_INTS, _NO_INTS, np.empty(0), _NO_INTS)
_NO_PRICES = Prices("trade", _NO_INTS, np.empty(0), _NO_INTS)


@dataclass(frozen=True)
class Touched:
    """Arrays (settings, entries). ``barrier``: NONE (the prices end before any), HOLE, TARGET, STOP or TIME.

    ``position`` of the deciding price (−1 without one), ``exit`` the price got there and ``ret`` the return on the
    entry's notional as a fraction (nan without one), both after costs where there are some.
    """

    barrier: npt.NDArray[np.int8]
    position: Ints
    exit: Floats
    ret: Floats

    def without(self, holes: npt.NDArray[np.bool_]) -> Touched:
        """Return these with HOLE where ``holes`` is true."""
        if not holes.any():
            return self
        return Touched(
            np.where(holes, np.int8(HOLE), self.barrier),
            np.where(holes, -1, self.position),
            np.where(holes, np.nan, self.exit),
            np.where(holes, np.nan, self.ret),
        )


def next_hole(ts: Ints, position: Ints, gap: int | None) -> Ints:
    """Return the first price at or after each position that ends a hole; a position behind the prices without one.

    A price ends a hole when the price before it, of whatever position, is more than ``gap`` nanoseconds older.
    """
    never = len(ts) + 1
    if gap is None:
        return np.full(len(position), never, dtype=np.int64)
    ends = np.append(np.flatnonzero(np.diff(ts) > gap) + 1, never)
    return ends[np.searchsorted(ends, np.minimum(position, never))].astype(np.int64)


def entry_positions(
    ts: Ints, index: Ints, decision_ts: Ints, decision_index: Ints, latency_ns: int = 0
) -> Ints:
    """Return the first price after each decision: behind it in the session and ``latency_ns`` or more later.

    ``ts`` and ``index`` are times and event positions of the prices, both ascending. Where there is none: ``len(ts)``.
    """
    after = np.searchsorted(index, decision_index, side="right")
    due = np.searchsorted(ts, decision_ts + latency_ns, side="left")
    return np.maximum(after, due).astype(np.int64)


def touch_barriers(
    index: BlockIndex,
    ts: Ints,
    entries: Ints,
    directions: npt.NDArray[np.int8],
    settings: Barriers,
    costs: TradingParams | None = None,
) -> Touched:
    """Return which barrier each entry touches first, for each setting.

    ``entries`` are positions in the prices, ``directions`` +1 or −1. Rules as in the trading model: only prices after
    the entry's own count; a price that touches stop and target closes at the stop; the time barrier is the first price
    at or after entry time + hold, and target or stop win on that price. With ``costs`` a target fills at its level and
    pays the maker fee, everything else pays slippage and the taker fee; without, the exit is the price that touched.

    The target is searched once per (entry, target), the stop once per (entry, stop), through the block index that
    sweeps use: a setting then only takes the earlier of the two. Method: M. López de Prado, *Advances in Financial
    Machine Learning*, Wiley 2018, chapter 3.
    """
    prices = index.prices
    size, shape = len(prices), (len(settings), len(entries))
    slippage = 0.0 if costs is None else costs.print_slippage_bps
    side = directions.astype(np.float64)
    entry = filled_entry(prices[entries], side, slippage)
    holds, which = np.unique(settings.hold_ns, return_inverse=True)
    times_up = np.stack([_time_positions(ts, entries, int(hold)) for hold in holds])[which.ravel()]
    # One search per level reaches as far as the longest hold; touches behind a shorter one are dropped below.
    ends = np.minimum(times_up.max(axis=0, initial=0) + 1, size)
    targets = _first_touches(index, entries, ends, entry, side, settings.tp_pct, target=True)
    stops = _first_touches(index, entries, ends, entry, side, settings.sl_pct, target=False)
    first = np.minimum(targets, stops)
    touched = first <= np.minimum(times_up, size - 1)
    timed = ~touched & (times_up < size)
    barrier = np.zeros(shape, dtype=np.int8)
    barrier[touched] = np.where(stops <= targets, STOP, TARGET)[touched]
    barrier[timed] = TIME
    position = np.where(touched, first, times_up)
    position[barrier == NONE] = -1
    exit_price = prices[position]
    if costs is not None:
        level = entry * (1.0 + side * settings.tp_pct[:, None] / 100.0)
        market = exit_price * (1.0 - side * slippage / 10000.0)
        exit_price = np.where(barrier == TARGET, level, market)
    ret = side * (exit_price - entry) / entry
    if costs is not None:
        exit_bps = np.where(barrier == TARGET, costs.maker_fee_bps, costs.taker_fee_bps)
        ret = ret - costs.taker_fee_bps / 10000.0 - exit_price / entry * exit_bps / 10000.0
    open_ended = barrier == NONE
    exit_price[open_ended] = np.nan
    ret[open_ended] = np.nan
    return Touched(barrier, position, exit_price, ret)


def filled_entry(price: Floats, side: Floats, slippage_bps: float) -> Floats:
    """Return entry prices after slippage: the trading model's formula on arrays."""
    filled: Floats = formulas.market_price(price, side, slippage_bps)  # type: ignore[arg-type,assignment]
    return filled


def _time_positions(ts: Ints, entries: Ints, hold: int) -> Ints:
    """Position of the first price at or after entry time + hold; the size where there is none or no time barrier."""
    if hold < 0:
        return np.full(len(entries), len(ts), dtype=np.int64)
    # It cannot lie at or before the entry itself: only later prices close a position.
    found = np.searchsorted(ts, ts[entries] + hold, side="left")
    return np.maximum(found, entries + 1).astype(np.int64)


def _first_touches(
    index: BlockIndex,
    entries: Ints,
    ends: Ints,
    entry: Floats,
    side: Floats,
    levels_pct: Floats,
    *,
    target: bool,
) -> Ints:
    """Return (settings, entries) positions of the first touch; a position behind the prices where there is none."""
    size = len(index.prices)
    levels, which = np.unique(levels_pct, return_inverse=True)
    table = np.full((len(levels), len(entries)), size + 1, dtype=np.int64)
    starts = np.minimum(entries + 1, size)
    towards = side if target else -side
    for row, pct in enumerate(levels):
        if not np.isfinite(pct):
            continue
        level = entry * (1.0 + side * pct / 100.0) if target else entry * (1.0 - side * pct / 100.0)
        for way, search in ((1.0, first_at_or_above), (-1.0, first_at_or_below)):
            mine = towards == way
            if not mine.any():
                continue
            found = search(index, starts[mine], level[mine], np.maximum(ends, starts)[mine])
            table[row, mine] = np.where(found >= np.maximum(ends, starts)[mine], size + 1, found)
    return table[which.ravel()]


def barrier_scan(
    session: SessionLike,
    tp_pct: Levels,
    sl_pct: Levels,
    max_hold_s: Levels,
    *,
    side: str = "long",
    at: str | pl.DataFrame = "scoring",
    symbols: Sequence[str] | None = None,
    price_source: PriceSource = "auto",
    costs: TradingParams | None = None,
    max_gap_s: float | None = MAX_GAP_S,
) -> pl.DataFrame:
    """Return a row per setting (all combinations, the last varies fastest) over all symbols.

    Columns: ``tp_pct, sl_pct, max_hold_s``; ``n`` labels, ``unknown`` decisions without one, of them ``holes`` for a
    hole; ``n_tp, n_sl, n_time``;
    ``mean_ret`` and ``std_ret`` (fraction of the notional); ``mean_s``, seconds to the barrier. Options as in
    ``labels``. The best of many settings is partly luck (``docs/statistics.md``). Memory does not grow with them.
    """
    settings = Barriers.of(tp_pct, sl_pct, max_hold_s)
    latency = formulas.milliseconds_to_ns(0.0 if costs is None else costs.latency_ms)
    gap = gap_ns(max_gap_s)
    found = decisions(session, at, symbols)
    prices = prices_by_symbol(session, [part.symbol for part in found], price_source)
    sums = np.zeros(
        (len(settings), 8)
    )  # labels, targets, stops, times, holes, returns, their squares, seconds
    total = 0
    for part in found:
        tape = prices[part.symbol]
        entered = _Labels(part, tape, side, latency, costs, gap)
        total += int((entered.direction != 0).sum())
        step = max(1, _CELLS // max(1, len(entered.rows)))
        for start in range(0, len(settings), step):
            touched = entered.touch(settings.part(start, start + step))
            sums[start : start + step] += _summed(touched, tape.ts, entered.position[entered.rows])
    n = sums[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums[:, 5] / n
        variance = (sums[:, 6] - sums[:, 5] * mean) / (n - 1)
        spread = np.sqrt(np.maximum(variance, 0.0))
        means = {"mean_ret": mean, "std_ret": spread, "mean_s": sums[:, 7] / n}
    counts = {"n": n, "unknown": total - n, "holes": sums[:, 4]}
    counts |= {"n_tp": sums[:, 1], "n_sl": sums[:, 2], "n_time": sums[:, 3]}
    axes = {
        name: np.where(np.isinf(column), np.nan, column)
        for name, column in zip(_NAMES, (settings.tp_pct, settings.sl_pct, settings.hold_s), strict=True)
    }
    return pl.DataFrame(
        {**axes, **{name: values.astype(np.int64) for name, values in counts.items()}, **means}
    ).with_columns(pl.col(pl.Float64).fill_nan(None))


def _summed(touched: Touched, ts: Ints, entries: Ints) -> Floats:
    barrier, ret = touched.barrier, np.nan_to_num(touched.ret)
    seconds = np.zeros(barrier.shape)
    if len(entries):
        held = (ts[np.maximum(touched.position, 0)] - ts[entries]) / 1e9
        seconds = np.where(barrier > NONE, held, 0.0)
    marks = (barrier > NONE, barrier == TARGET, barrier == STOP, barrier == TIME, barrier == HOLE)
    return np.column_stack([part.sum(axis=1) for part in (*marks, ret, ret**2, seconds)]).astype(np.float64)


def fixed_horizon(
    session: SessionLike,
    horizons_s: Sequence[float] = (1.0, 5.0, 30.0),
    *,
    side: str = "long",
    at: str | pl.DataFrame = "scoring",
    symbols: Sequence[str] | None = None,
    price_source: PriceSource = "auto",
    max_gap_s: float | None = MAX_GAP_S,
) -> pl.DataFrame:
    """Return a row per decision with ``ret_1s``, ``t_end_1s``, ... for each horizon in seconds.

    From the entry (first price event behind the decision) to the last price at or before decision + horizon, as a
    fraction, signed by ``side``. Null where the session ends at or before the horizon, where the entry comes after it,
    and where a hole lies between decision and horizon. Only a later price shows that none does: with ``max_gap_s`` the
    return is null, too, where the symbol has no price after the horizon.
    """
    steps, gap = _steps(horizons_s), gap_ns(max_gap_s)
    ends = event_times(session)
    last = int(ends[-1]) if len(ends) else 0
    found = decisions(session, at, symbols)
    prices = prices_by_symbol(session, [part.symbol for part in found], price_source)
    pieces = []
    for part in found:
        tape = prices[part.symbol]
        direction = _directions(part, side)
        entry = entry_positions(tape.ts, tape.index, part.ts, part.index)
        known = entry < len(tape.ts)
        hole = next_hole(tape.ts, entry, gap)
        price = np.full(len(entry), np.nan)
        price[known] = tape.price[entry[known]]
        columns: dict[str, object] = {
            "row": part.row,
            "event_index": part.index,
            "symbol": pl.repeat(part.symbol, len(entry), dtype=pl.String, eager=True),
            "t_start": _times(part.ts),
            "side": direction,
            "entry_price": pl.Series(price).fill_nan(None),
        }
        for name, step in steps.items():
            later, place = _as_of(tape, part.ts + step, last)
            usable = known & (place >= entry) & (direction != 0) & _unbroken(tape, place, hole, gap)
            ret = np.where(usable, direction * (later / price - 1.0), np.nan)
            columns[f"ret_{name}"] = pl.Series(ret).fill_nan(None)
            columns[f"t_end_{name}"] = _masked(_times(part.ts + step), ~np.isnan(ret))
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
    max_gap_s: float | None = MAX_GAP_S,
) -> pl.DataFrame:
    """Return ``trades`` with ``mark_out_1s``, ...: how the price moved in favour after each entry, in basis points.

    ``trades``: ``symbol``, ``side``, ``entry_price`` and ``entry_time`` (or ``timestamp`` and ``duration_seconds``, as
    in the trade log), and ``entry_index`` where a backtest made them. The price is the last one at or before the
    horizon, but none from before the fill: null where there is none yet, where the session ends at or before the
    horizon, and where a hole lies before it (as in ``fixed_horizon``). Negative mark-outs at short horizons mean
    adverse selection.
    """
    trades = as_polars(trades)
    ends = event_times(session)
    prices = prices_by_symbol(session, trades["symbol"].unique().sort().to_list(), price_source)
    return mark_outs_from(prices, int(ends[-1]) if len(ends) else 0, trades, horizons_s, max_gap_s=max_gap_s)


def mark_outs_from(
    prices: Mapping[str, Prices],
    session_end: int,
    trades: pl.DataFrame,
    horizons_s: Sequence[float] = (1.0, 5.0, 30.0),
    *,
    max_gap_s: float | None = MAX_GAP_S,
) -> pl.DataFrame:
    """Return what ``mark_outs`` does, from the prices of each symbol and the time (ns) of the session's last event.

    >>> prices = {"BTCUSDT": Prices("trade", ts, price, index)}              # doctest: +SKIP
    >>> mark_outs_from(prices, int(ts[-1]), trades)                          # doctest: +SKIP
    """
    frame = _with_entry_time(trades)
    steps, gap = _steps(horizons_s), gap_ns(max_gap_s)
    values = {name: np.full(frame.height, np.nan) for name in steps}
    names = frame["symbol"].to_numpy()
    moments: Ints = frame["entry_time"].dt.timestamp("ns").to_numpy()
    entry = frame["entry_price"].to_numpy()
    sign = np.where((frame["side"] == "LONG").to_numpy(), 1.0, -1.0)
    for symbol, tape in prices.items():
        rows = np.flatnonzero(names == symbol)
        filled = np.searchsorted(tape.ts, moments[rows], side="left")
        if "entry_index" in frame.columns:
            # Of several prices of the fill's own time, those before it in the session do not count.
            filled = np.searchsorted(tape.index, frame["entry_index"].to_numpy()[rows], side="left")
        own = filled < len(tape.ts)
        own[own] = tape.ts[filled[own]] == moments[rows][own]
        # A fill at a price event does not cross the pause before that event; one between two events does.
        hole = next_hole(tape.ts, filled + own, gap)
        for name, step in steps.items():
            later, place = _as_of(tape, moments[rows] + step, session_end)
            later[(place < filled) | ~_unbroken(tape, place, hole, gap)] = np.nan
            values[name][rows] = sign[rows] * (later / entry[rows] - 1.0) * 1e4
    return trades.with_columns(
        pl.Series(f"mark_out_{name}", column).fill_nan(None) for name, column in values.items()
    )


def meta_labels(session: SessionLike, trades: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return a row per logged trade: ``symbol, t_start, t_end, side, ret, label`` (1: it made money after fees).

    The side was the primary model's; a second model that predicts ``label`` decides whether to follow it, or how
    much. ``trades``: a trade log frame; by default the EXECUTION_TRADE events that the session was built with
    (``include_types`` with "EXECUTION_*"). ``ret`` is the realised PnL on the entry's notional; both are null for a
    trade that ended at a hole (reason DATA_GAP). Give the result to ``features(session, at=...)`` for the features
    that were known before each entry.
    """
    frame = _logged_trades(session) if trades is None else as_polars(trades)
    held = _with_entry_time(frame)
    notional = pl.col("entry_price") * pl.col("qty")
    whole = pl.col("reason").ne_missing("DATA_GAP") if "reason" in held.columns else pl.lit(value=True)
    return held.select(
        "symbol",
        pl.col("entry_time").alias("t_start"),
        pl.col("exit_time").alias("t_end"),
        pl.when(pl.col("side") == "LONG").then(1).otherwise(-1).cast(pl.Int8).alias("side"),
        pl.when(whole).then(pl.col("realized_pnl") / notional).alias("ret"),
        pl.when(whole).then((pl.col("realized_pnl") > 0).cast(pl.Int8)).alias("label"),
    )


def _logged_trades(session: SessionLike) -> pl.DataFrame:
    rows = session.events.filter(pl.col("type") == "EXECUTION_TRADE")
    if not rows.height:
        raise DatasetError(
            'the session holds no logged trades: build it with include_types that hold "EXECUTION_*", '
            "or give the trades"
        )
    records = [orjson.loads(payload) for payload in rows["payload"].to_list()]
    columns = {name: [record.get(key) for record in records] for name, key in _TRADE_FIELDS.items()}
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


def _unbroken(tape: Prices, place: Ints, hole: Ints, gap: int | None) -> npt.NDArray[np.bool_]:
    """Whether the pauses up to the price after each place are known, and none of them is a hole."""
    if gap is None:
        return np.ones(len(place), dtype=bool)
    return (place + 1 < len(tape.ts)) & (place + 1 < hole)


def average_uniqueness(t_start: Any, t_end: Any) -> Floats:
    """Return each label's uniqueness in (0, 1]: the time average of 1 / (labels open) over its interval.

    >>> average_uniqueness([0, 2, 10], [4, 6, 12]).tolist()
    [0.75, 0.75, 1.0]

    A label of zero length counts the labels open at that instant. Use it as ``sample_weight``, per symbol.
    """
    start, end = interval_arrays(t_start, t_end)
    if not len(start):
        return np.empty(0)
    points = np.unique(np.concatenate([start, end]))
    opened, closed = np.sort(start), np.sort(end)
    # Between two points the number of open labels is constant: those started at or before, not ended at or before.
    open_count = np.searchsorted(opened, points[:-1], side="right") - np.searchsorted(
        closed, points[:-1], side="right"
    )
    length = np.diff(points).astype(np.float64)
    share = np.divide(length, open_count, out=np.zeros_like(length), where=open_count > 0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    first, last = np.searchsorted(points, start), np.searchsorted(points, end)
    instant = end == start
    at_once = np.searchsorted(opened, start, side="right") - np.searchsorted(closed, start, side="left")
    with np.errstate(invalid="ignore", divide="ignore"):
        average = (total[last] - total[first]) / (end - start)
    return np.where(instant, 1.0 / at_once, np.minimum(average, 1.0))


def return_weights(t_start: Any, t_end: Any, price_times: Any, prices: npt.ArrayLike) -> Floats:
    """Return weights by absolute attributed return, scaled to a mean of 1.

    ``|Σ r_k / c_k|`` over the prices k with ``t_start < time_k ≤ t_end``, r the log return since the price before, c
    the labels open then. All zero (prices stood still): every weight is 1.
    """
    start, end = interval_arrays(t_start, t_end)
    when = time_ns(price_times, "price_times")
    price = np.asarray(prices, dtype=np.float64)
    if len(when) != len(price) or (len(when) > 1 and bool((np.diff(when) < 0).any())):
        raise DatasetError("price_times must ascend and be as many as the prices")
    if not len(start):
        return np.empty(0)
    change = np.diff(np.log(price), prepend=np.log(price[0])) if len(price) else np.empty(0)
    count = np.searchsorted(np.sort(start), when, side="left") - np.searchsorted(
        np.sort(end), when, side="left"
    )
    share = np.divide(change, count, out=np.zeros_like(change), where=count > 0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    weight = np.abs(total[_after(when, end)] - total[_after(when, start)])
    mean = weight.mean()
    return weight / mean if mean > 0 else np.ones_like(weight)


def _after(when: Int64, moment: Int64) -> npt.NDArray[np.intp]:
    return np.searchsorted(when, moment, side="right")
