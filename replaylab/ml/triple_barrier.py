"""First of three barriers - target, stop, time - for every entry and thousands of settings at once.

Arrays in, arrays out; ``replaylab.ml.labelling`` is the form for sessions. The target is searched once per (entry,
target), the stop once per (entry, stop), through the block index that sweeps use: a setting then only takes the
earlier of the two. Method: M. López de Prado, *Advances in Financial Machine Learning*, Wiley 2018, chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replaylab.barriers import BlockIndex, first_at_or_above, first_at_or_below
from replaylab.params import TradingParams
from replaylab.trading import formulas

__all__ = [
    "BARRIERS",
    "NONE",
    "STOP",
    "TARGET",
    "TIME",
    "Touched",
    "entry_positions",
    "filled_entry",
    "touch_barriers",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NONE, TARGET, STOP, TIME = 0, 1, 2, 3
BARRIERS = (None, "TP", "SL", "TIME")


@dataclass(frozen=True)
class Touched:
    """Arrays (settings, entries). ``barrier``: NONE (the prices end before any), TARGET, STOP or TIME.

    ``position`` of the deciding price (−1 with NONE), ``exit`` the price got there and ``ret`` the return on the
    entry's notional as a fraction (nan with NONE), both after costs where there are some.
    """

    barrier: npt.NDArray[np.int8]
    position: Ints
    exit: Floats
    ret: Floats


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
    tp_pct: Floats,
    sl_pct: Floats,
    hold_ns: Ints,
    costs: TradingParams | None = None,
) -> Touched:
    """Return which barrier each entry touches first, for each setting ``(tp_pct[s], sl_pct[s], hold_ns[s])``.

    ``entries`` are positions in the prices, ``directions`` +1 or −1; a target or stop of infinity is none, as is a
    ``hold_ns`` below zero. Rules as in the trading model: only prices after the entry's own count; a price that
    touches stop and target closes at the stop; the time barrier is the first price at or after entry time + hold, and
    target or stop win on that price. With ``costs`` a target fills at its level and pays the maker fee, everything
    else pays slippage and the taker fee; without, the exit is the price that touched.
    """
    prices = index.prices
    size, shape = len(prices), (len(tp_pct), len(entries))
    slippage = 0.0 if costs is None else costs.print_slippage_bps
    side = directions.astype(np.float64)
    entry = filled_entry(prices[entries], side, slippage)
    holds, which = np.unique(hold_ns, return_inverse=True)
    times_up = np.stack([_time_positions(ts, entries, int(hold)) for hold in holds])[which.ravel()]
    # One search per level reaches as far as the longest hold: a touch behind a shorter one is told apart below.
    ends = np.minimum(times_up.max(axis=0, initial=0) + 1, size)
    targets = _first_touches(index, entries, ends, entry, side, tp_pct, target=True)
    stops = _first_touches(index, entries, ends, entry, side, sl_pct, target=False)
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
        level = entry * (1.0 + side * tp_pct[:, None] / 100.0)
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
    filled: Floats = formulas.entry_price(price, side, slippage_bps)  # type: ignore[arg-type,assignment]
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
