"""``sweep`` and ``backtest``: from a session and a grid to figures and trades."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep.figures import figures
from replaylab.sweep.grid import make_grid
from replaylab.sweep.result import Backtest, SweepResult
from replaylab.sweep.run import parts, run_on, run_rows, trades_of
from replaylab.sweep.tape import PriceSource, SessionLike, open_tape

__all__ = ["backtest", "sweep"]


def _same(frame: pl.DataFrame) -> Any:
    return frame


def sweep(
    session: SessionLike | pl.DataFrame,
    grid: Any,
    params: TradingParams | None = None,
    price_source: PriceSource = "auto",
    progress: bool = True,
    executor: Executor | None = None,
    *,
    scoring: Any = None,
    method: str = "auto",
    threads: int | None = None,
    table_memory: float = 1e9,
    cache_dir: str | os.PathLike[str] | None = None,
    give: Callable[[pl.DataFrame], Any] = _same,
) -> SweepResult:
    """Run every combination of ``grid`` over a session and return their figures.

    >>> sweep(session, {"entry_threshold": [0.5, 0.6], "sl_pct": [0.2, 0.3]}).best()             # doctest: +SKIP

    ``grid``: what ``make_grid`` takes. ``params``: the parameters that are no axis. ``price_source``: see ``pack``.
    ``progress`` shows a bar. ``executor``: a ``concurrent.futures.Executor`` whose workers run the rows (see
    ``docs/scaling.md``); None runs them on threads here. ``method``: "auto", or "tables", "index", "loop" (same
    results, other speed; see ``docs/sweep.md``). ``cache_dir``: keeps packed sessions (see ``open_tape``). ``threads``
    defaults to the machine's cores. ``table_memory``: bytes that first-touch tables may take.
    ``scoring`` (ScoringParams, or a model with ``predict``) makes the scores anew
    from the market data; an axis ``scoring.<field>`` does so with each of its values: see ``sweep_scoring``, which such
    a grid is handed to. Raises SweepError.
    """
    if isinstance(grid, Mapping) and any(str(name).startswith("scoring.") for name in grid):
        from replaylab.sweep.rescoring import sweep_scoring

        signals = {name: values for name, values in grid.items() if str(name).startswith("scoring.")}
        rest = {name: values for name, values in grid.items() if name not in signals}
        options: dict[str, Any] = {
            "method": method,
            "executor": executor,
            "threads": threads,
            "table_memory": table_memory,
            "cache_dir": cache_dir,
            "give": give,
        }
        return sweep_scoring(
            session, signals, rest, params, price_source, progress, scoring=scoring, **options
        )
    if scoring is not None:
        from replaylab.sweep.rescoring import rescored

        session = rescored(session, scoring)
    base = TradingParams.of(params, "params")
    if executor is not None and not hasattr(executor, "submit"):
        raise SweepError(f"executor: expected a concurrent.futures.Executor or None, found {executor!r}")
    in_session = getattr(session, "in_session", _same)
    combinations = make_grid(grid, base)
    tape, ref = open_tape(session, price_source, cache_dir)
    frames, used = [], set()
    with tqdm(total=combinations.rows, unit="comb", unit_scale=True, disable=not progress) as bar:
        for start, stop in parts(combinations.rows):
            part = combinations.part(start, stop)
            if executor is not None:
                raw, how = run_on(executor, tape, ref, part, base, method, table_memory, bar.update)
            else:
                raw, how = run_rows(
                    tape,
                    part,
                    base,
                    method,
                    threads=threads or os.cpu_count() or 1,
                    memory=table_memory,
                    done=bar.update,
                    say=bar.set_description,
                )
            frames.append(figures(raw))
            used.add(how)
    return SweepResult(
        data=pl.DataFrame([*combinations.columns().values(), *pl.concat(frames)]),
        axes=combinations.axes,
        params=base,
        session_id=_session_id(session),
        digest=getattr(session, "digest", None),
        trades_of=lambda chosen: in_session(trades_of(tape, chosen)[0]),
        left_out=combinations.left_out,
        method=", ".join(sorted(used)),
        give=give,
        span=tape.span,
    )


def backtest(
    session: SessionLike | pl.DataFrame,
    params: TradingParams | None = None,
    price_source: PriceSource = "auto",
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    give: Callable[[pl.DataFrame], Any] = _same,
) -> Backtest:
    """Run one combination: ``.trades``, ``.figures`` (as in a sweep's frame) and ``.equity``.

    ``equity`` has a row per closed trade: its exit's ``timestamp`` and the realised PnL up to and including it.
    """
    base = TradingParams.of(params, "params")
    trades, numbers = trades_of(open_tape(session, price_source, cache_dir)[0], base)
    equity = trades.select(
        timestamp=pl.col("exit_time"), equity=pl.Series(np.cumsum(trades["realized_pnl"].to_numpy()))
    )
    return Backtest(give(trades), numbers, give(equity), base, _session_id(session))


def _session_id(session: Any) -> str | None:
    name = getattr(session, "id", None)
    return name if isinstance(name, str) else None
