"""Decision times other than the scores': a grid of time, or bars of traded value.

::

    features(session, at=time_grid(session, "1s"))            # or simply at="1s"
    features(session, at=value_bars(session, 50_000))         # a row whenever 50,000 USD have been traded
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features import pack_market
from replaylab.ml.intervals import duration_text_ns
from replaylab.ml.tape import SessionLike, event_times

__all__ = ["time_grid", "value_bars"]

_TIME = pl.Datetime("ns", "UTC")


def time_grid(session: SessionLike, every: str, symbols: Sequence[str] | None = None) -> pl.DataFrame:
    """Return decision times at whole multiples of ``every`` ("500ms", "1s", "5m", "1h"), for each symbol.

    Columns ``timestamp, symbol, event_index``. A decision at t knows what lies strictly before t. The grid covers the
    session's time, from the first multiple after its first event.
    """
    step = duration_text_ns(every)
    ts = event_times(session)
    names = _symbols(session) if symbols is None else sorted(symbols)
    if not len(ts) or not names:
        return _frame([], [], [])
    grid = np.arange(ts[0] // step + 1, ts[-1] // step + 1, dtype=np.int64) * step
    index = np.searchsorted(ts, grid, side="left") - 1
    times, places = np.repeat(grid, len(names)), np.repeat(index, len(names))
    return _frame(times.tolist(), names * len(grid), places.tolist())


def value_bars(session: SessionLike, usd: float, symbols: Sequence[str] | None = None) -> pl.DataFrame:
    """Return a decision at each trade that completes ``usd`` of traded value (price · quantity) of its symbol.

    Columns ``timestamp, symbol, event_index``; a decision knows that trade. The count starts again from zero at
    each bar: what one trade brings beyond a bar is not carried over.
    """
    if not (np.isfinite(usd) and usd > 0):
        raise DatasetError(f"a bar holds a value above zero, found {usd!r}")
    tapes = pack_market(session.events, symbols=None if symbols is None else list(symbols))
    times: list[int] = []
    names: list[str] = []
    index: list[int] = []
    for symbol, tape in tapes.items():
        trades = tape.kind == 0
        value = np.where(trades, tape.columns[:, 0] * tape.columns[:, 1], 0.0)
        total = 0.0
        for place, amount in zip(np.flatnonzero(trades).tolist(), value[trades].tolist(), strict=True):
            total += amount
            if total >= usd:
                total = 0.0
                times.append(int(tape.ts[place]))
                names.append(symbol)
                index.append(int(tape.index[place]))
    return _frame(times, names, index).sort("event_index", "symbol")


def _symbols(session: SessionLike) -> list[str]:
    # Every symbol that the session has, also one whose first event is still to come at a decision: rows, not values.
    named = session.events["symbol"].drop_nulls().unique().to_list()
    return sorted(str(name) for name in named)


def _frame(times: list[int], names: list[str], index: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "timestamp": pl.Series(times, dtype=pl.Int64).cast(_TIME),
            "symbol": pl.Series(names, dtype=pl.String),
            "event_index": pl.Series(index, dtype=pl.Int64),
        }
    )
