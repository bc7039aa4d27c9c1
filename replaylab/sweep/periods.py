"""PnL of many combinations in equal periods of time: what overfitting and walk-forward tests read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import SweepError

__all__ = ["UTC_TIME", "every_ns", "period_edges", "period_pnl"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
UTC_TIME = pl.Datetime("ns", "UTC")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOST = 1_000_000


def every_ns(every: str | timedelta) -> int:
    """Return nanoseconds of a period: a timedelta, or a text such as "30s", "5m", "1h", "1d"."""
    if isinstance(every, timedelta):
        length = (every // timedelta(microseconds=1)) * 1_000
    else:
        text = str(every)
        if not text[:-1].isdigit() or text[-1:] not in _UNITS:
            raise SweepError(
                f'a period is a timedelta or a text such as "30s", "5m", "1h", "1d", found {every!r}'
            )
        length = int(text[:-1]) * _UNITS[text[-1]] * 1_000_000_000
    if length <= 0:
        raise SweepError(f"a period must be longer than nothing, found {every!r}")
    return length


def period_edges(span: tuple[int, int], length: int) -> Ints:
    """Return the edges of periods that cover both ends of ``span``, aligned to whole periods since 1970 (UTC)."""
    first, last = span[0] // length, span[1] // length
    if last - first >= _MOST:
        raise SweepError(f"{last - first + 1:,} periods are too many: take longer ones")
    return np.arange(first, last + 2, dtype=np.int64) * length


def period_pnl(trades: Callable[[int], pl.DataFrame], rows: Iterable[int], edges: Ints) -> Floats:
    """Return (periods, rows): realised PnL by the time of the exit; a trade counts whole where it closes."""
    columns = []
    for row in rows:
        frame = trades(row)
        exits = frame["exit_time"].dt.timestamp("ns").to_numpy()
        place = np.searchsorted(edges, exits, side="right") - 1
        columns.append(np.bincount(place, weights=frame["realized_pnl"].to_numpy(), minlength=len(edges) - 1))
    return np.column_stack(columns) if columns else np.empty((len(edges) - 1, 0))
