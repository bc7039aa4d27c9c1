"""Thousands of barrier settings at a glance: what each would label, without a row per decision.

>>> table = barrier_scan(session, np.linspace(0.05, 1, 40), np.linspace(0.05, 1, 40), [30, 60])   # doctest: +SKIP
>>> table.sort("mean_ret", descending=True).head()                                                # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.barriers import BlockIndex
from replaylab.ml.labelling import Levels, directions, levels_of
from replaylab.ml.tape import PriceSource, SessionLike, decisions, prices_by_symbol
from replaylab.ml.triple_barrier import NONE, STOP, TARGET, TIME, Touched, entry_positions, touch_barriers
from replaylab.params import TradingParams
from replaylab.trading import formulas

__all__ = ["barrier_scan"]

Floats = npt.NDArray[np.float64]
_CELLS = 4_000_000  # settings × entries at once: some 200 MB


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
) -> pl.DataFrame:
    """Return a row per setting (all combinations, the last varies fastest) over all symbols.

    Columns: ``tp_pct, sl_pct, max_hold_s``; ``n`` labels, ``unknown`` decisions without one; ``n_tp, n_sl, n_time``;
    ``mean_ret`` and ``std_ret`` (fraction of the notional); ``mean_s``, seconds to the barrier. Options as in
    ``labels``. The best of many settings is partly luck (``docs/statistics.md``). Memory does not grow with them.
    """
    several = [
        levels_of(name, value) for name, value in zip(_NAMES, (tp_pct, sl_pct, max_hold_s), strict=True)
    ]
    settings = np.array(list(product(*several)))
    latency = formulas.milliseconds_to_ns(0.0 if costs is None else costs.latency_ms)
    found = decisions(session, at, symbols)
    prices = prices_by_symbol(session, [part.symbol for part in found], price_source)
    sums = np.zeros((len(settings), len(_SUMS)))
    total = 0
    for part in found:
        tape = prices[part.symbol]
        direction = directions(part, side)
        entry = entry_positions(tape.ts, tape.index, part.ts, part.index, latency)
        total += int((direction != 0).sum())
        rows = np.flatnonzero((entry < len(tape.ts)) & (direction != 0))
        index = BlockIndex(tape.price)
        step = max(1, _CELLS // max(1, len(rows)))
        for start in range(0, len(settings), step):
            tp, sl, hold = settings[start : start + step].T
            held = np.array(
                [-1 if np.isinf(h) else formulas.seconds_to_ns(float(h)) for h in hold], dtype=np.int64
            )
            touched = touch_barriers(index, tape.ts, entry[rows], direction[rows], tp, sl, held, costs)
            seconds = (
                (tape.ts[np.maximum(touched.position, 0)] - tape.ts[entry[rows]]) / 1e9 if len(rows) else None
            )
            sums[start : start + step] += _summed(touched, seconds)
    n = sums[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums[:, 4] / n
        variance = (sums[:, 5] - sums[:, 4] * mean) / (n - 1)
        figures = {
            "mean_ret": mean,
            "std_ret": np.sqrt(np.maximum(variance, 0.0)),
            "mean_s": sums[:, 6] / n,
        }
    counts = {"n": n, "unknown": total - n, "n_tp": sums[:, 1], "n_sl": sums[:, 2], "n_time": sums[:, 3]}
    axes = {
        name: np.where(np.isinf(column), np.nan, column)
        for name, column in zip(_NAMES, settings.T, strict=True)
    }
    return pl.DataFrame(
        {**axes, **{name: values.astype(np.int64) for name, values in counts.items()}, **figures}
    ).with_columns(pl.col(pl.Float64).fill_nan(None))


_NAMES = ("tp_pct", "sl_pct", "max_hold_s")
_SUMS = ("n", "tp", "sl", "time", "ret", "squares", "seconds")


def _summed(touched: Touched, seconds: Floats | None) -> Floats:
    barrier = touched.barrier
    ret = np.nan_to_num(touched.ret)
    spent = np.zeros(len(barrier)) if seconds is None else np.where(barrier != NONE, seconds, 0.0).sum(axis=1)
    return np.column_stack(
        [
            (barrier != NONE).sum(axis=1),
            (barrier == TARGET).sum(axis=1),
            (barrier == STOP).sum(axis=1),
            (barrier == TIME).sum(axis=1),
            ret.sum(axis=1),
            (ret**2).sum(axis=1),
            spent,
        ]
    ).astype(np.float64)
