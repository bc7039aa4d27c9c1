"""``sweep`` and ``backtest``: from a session and a grid to figures and trades."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm.auto import tqdm

from replaylab.params import TradingParams
from replaylab.sweep.figures import figures
from replaylab.sweep.grid import Grid, make_grid
from replaylab.sweep.kernel_chain import run_chain
from replaylab.sweep.kernel_loop import TRADE, run_loop
from replaylab.sweep.plan import prepare
from replaylab.sweep.result import Backtest, SweepResult
from replaylab.sweep.rules import RAW
from replaylab.sweep.tape import PriceSource, SessionLike, Tape, pack
from replaylab.sweep.trades import allowed_table, trades_of

__all__ = ["backtest", "sweep"]

Array = npt.NDArray[Any]
_CHUNK = 64


def _same(frame: pl.DataFrame) -> Any:
    return frame


def sweep(
    session: SessionLike | pl.DataFrame,
    grid: Any,
    params: TradingParams | None = None,
    price_source: PriceSource = "auto",
    progress: bool = True,
    *,
    threads: int | None = None,
    give: Callable[[pl.DataFrame], Any] = _same,
) -> SweepResult:
    """Run every combination of ``grid`` over a session and return their figures.

    >>> sweep(session, {"entry_threshold": [0.5, 0.6], "sl_pct": [0.2, 0.3]}).best()             # doctest: +SKIP

    ``grid``: what ``make_grid`` takes. ``params``: the parameters that are no axis. ``price_source``: see ``pack``.
    ``progress`` shows a bar. Raises SweepError.
    """
    base = params or TradingParams()
    combinations = make_grid(grid, base)
    tape = pack(session, price_source)
    raw = _run(tape, combinations, base, threads or os.cpu_count() or 1, progress)
    return SweepResult(
        data=pl.DataFrame([*combinations.columns().values(), *figures(raw)]),
        axes=combinations.axes,
        params=base,
        session_id=_session_id(session),
        digest=getattr(session, "digest", None),
        trades_of=lambda chosen: trades_of(tape, chosen)[0],
        left_out=combinations.left_out,
        method="loop",
        give=give,
        span=tape.span,
    )


def backtest(
    session: SessionLike | pl.DataFrame,
    params: TradingParams | None = None,
    price_source: PriceSource = "auto",
    *,
    give: Callable[[pl.DataFrame], Any] = _same,
) -> Backtest:
    """Run one combination: ``.trades``, ``.figures`` (as in a sweep's frame) and ``.equity``.

    ``equity`` has a row per closed trade: its exit's ``timestamp`` and the realised PnL up to and including it.
    """
    base = params or TradingParams()
    trades, numbers = trades_of(pack(session, price_source), base)
    equity = trades.select(
        timestamp=pl.col("exit_time"), equity=pl.Series(np.cumsum(trades["realized_pnl"].to_numpy()))
    )
    return Backtest(give(trades), numbers, give(equity), base, _session_id(session))


def _session_id(session: Any) -> str | None:
    name = getattr(session, "id", None)
    return name if isinstance(name, str) else None


def run_rows(tape: Tape, grid: Grid, base: TradingParams, method: str) -> Array:
    """Return the raw figures of every row of a grid, by "loop", "index" or "tables"."""
    arrays = tape.arrays()
    allowed = allowed_table(tape, grid.regime_sets(base))
    packed = grid.pack(base)
    raw = np.zeros((grid.rows, RAW))
    if method == "loop":
        run_loop(arrays, allowed, packed, raw, np.empty(0, dtype=TRADE))
    else:
        prepared = prepare(tape, allowed, packed, method == "tables")
        run_chain(prepared.plan, packed, prepared.keys, raw)
    return raw


def _run(tape: Tape, grid: Grid, base: TradingParams, threads: int, progress: bool) -> Array:
    arrays = tape.arrays()
    allowed = allowed_table(tape, grid.regime_sets(base))
    packed = grid.pack(base)
    raw = np.zeros((grid.rows, RAW))
    none = np.empty(0, dtype=TRADE)
    starts = range(0, grid.rows, _CHUNK)

    def work(start: int) -> int:
        stop = min(start + _CHUNK, grid.rows)
        run_loop(arrays, allowed, packed[start:stop], raw[start:stop], none)
        return stop - start

    with (
        tqdm(total=grid.rows, unit="combination", disable=not progress) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        for done in pool.map(work, starts):
            bar.update(done)
    return raw
