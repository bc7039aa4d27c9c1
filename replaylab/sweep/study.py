"""``sweep`` and ``backtest``: from a session and parameters to metrics and trades."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from replaylab.errors import SweepError
from replaylab.params import ScoringParams, TradingParams, resolve_params
from replaylab.paths import DataRoot
from replaylab.sweep.evidence import Clock
from replaylab.sweep.grid import Array, Grid, make_grid
from replaylab.sweep.rescoring import GIVEN_SIGNALS, Rescored, Rescorer, rescored, signalled
from replaylab.sweep.result import Backtest, SweepResult, assumptions_of, metrics
from replaylab.sweep.run import parts, run_on, run_rows, trades_of
from replaylab.sweep.tape import PriceSource, SessionLike, Tape, TapeRef, open_tape
from replaylab.sweep.trials import add_trial, ledger_path


def sweep(
    session: SessionLike | pl.DataFrame,
    grid: Any,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    price_source: PriceSource = "auto",
    progress: bool = True,
    executor: Executor | None = None,
    scoring: Any = None,
    signals: Any = None,
    default: TradingParams | None = None,
    default_scoring: ScoringParams | None = None,
    method: str = "auto",
    threads: int | None = None,
    table_memory: float = 1e9,
    cache_dir: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Run every combination of ``grid`` over a session and return their metrics.

    >>> sweep(session, {"entry_threshold": [0.5, 0.6], "sl_pct": [0.2, 0.3]}).best()             # doctest: +SKIP
    >>> sweep(session, {"scoring.gain": [1.0, 2.0], "sl_pct": [0.2, 0.3]}, {"tp1_pct": 0.1})      # doctest: +SKIP

    ``grid``: a mapping of fields to values (all combinations; the last axis varies fastest), a DataFrame with a row per
    combination, or a ``Grid``. ``params``: the parameters that are no axis: None for those that the session recorded
    (``default`` where it has none), a dict of changes to them, or a TradingParams. ``price_source``: "auto", "trade",
    "book", "score", or one of these per symbol.

    ``scoring`` computes the scores from the market data instead of taking the recorded ones: ScoringParams, a dict of
    changes to those recorded (``default_scoring`` where there are none), a list of ScoringParams to compare, or a model
    with ``predict``; an axis ``scoring.<field>`` of a mapping does so with each of its values. These axes vary slowest,
    and positions in ``result.trades(row)`` are still those of the session. ``signals``: a DataFrame of the user's own
    scores (timestamp, symbol, score and, if known, price and regime) in place of the recorded ones; each acts after all
    events of its time (see ``signalled``).

    ``progress`` shows a bar. ``executor``: a ``concurrent.futures.Executor`` whose workers run the rows (see
    ``docs/scaling.md``); None runs them on ``threads`` here (default: the machine's cores). ``method``: "auto", or
    "tables", "index", "loop" (same results, other speed; see ``docs/sweep.md``). ``table_memory``: bytes that
    first-touch tables may take. ``cache_dir``: keeps packed sessions (see ``open_tape``).

    Raises SweepError for a grid, session or option that cannot be used, ConfigError for a wrong parameter.
    """
    if executor is not None and not hasattr(executor, "submit"):
        raise SweepError(f"executor: expected a concurrent.futures.Executor or None, found {executor!r}")
    ran = resolve_params(params, session, default)
    base = ran.params
    rescorer, axes = Rescorer.of(
        _signalled(session, signals, scoring), grid, scoring, price_source, default_scoring
    )
    if signals is not None and rescorer.axes:
        raise SweepError(f"signals and the axes {', '.join(rescorer.axes)} exclude each other")
    combinations = make_grid(axes, base)

    @lru_cache(maxsize=2)
    def opened(number: int) -> tuple[SessionLike | pl.DataFrame, Tape, TapeRef | None]:
        events = rescorer.session(number)
        return events, *open_tape(events, price_source, cache_dir)

    def run(number: int, part: Grid, bar: Any, clock: Clock | None = None) -> tuple[Array, str]:
        _, tape, ref = opened(number)
        options: dict[str, Any] = {"method": method, "memory": table_memory, "clock": clock}
        if executor is not None:
            return run_on(executor, tape, ref, part, base, options, done=bar.update)
        workers = threads or os.cpu_count() or 1
        return run_rows(
            tape, part, base, threads=workers, done=bar.update, say=bar.set_description, **options
        )

    frames, used = [], set()
    total = combinations.rows * rescorer.count
    with tqdm(total=total, unit="comb", unit_scale=True, disable=not progress) as bar:
        for number in range(rescorer.count):
            swept = []
            for start, stop in parts(combinations.rows):
                raw, how = run(number, combinations.part(start, stop), bar)
                swept.append(metrics(raw))
                used.add(how)
            columns = [*rescorer.columns(number, combinations.rows), *combinations.columns().values()]
            frames.append(pl.DataFrame([*columns, *pl.concat(swept)]))

    def trades_of_row(row: int, chosen: TradingParams) -> pl.DataFrame:
        events, tape, _ = opened(row // combinations.rows)
        trades = trades_of(tape, chosen)[0]
        return events.in_session(trades) if isinstance(events, Rescored) else trades

    def pnl_of_rows(rows: list[int], clock: Clock) -> Array:
        found = np.zeros((len(rows), clock.periods))
        chosen = np.asarray(rows)
        few = len(rows) * clock.periods < 10_000
        with tqdm(total=len(rows), unit="comb", desc="PnL by period", disable=few or not progress) as bar:
            for number in range(rescorer.count):
                here = np.flatnonzero(chosen // combinations.rows == number)
                for start, stop in parts(len(here)):
                    places = here[start:stop]
                    part = combinations.rows_at(chosen[places] % combinations.rows, len(places))
                    found[places] = run(number, part, bar, clock)[0][:, -clock.periods :]
        return found

    table = pl.concat(frames)
    return SweepResult(
        frame=table,
        axes={**rescorer.axes, **combinations.axes},
        params=base,
        params_source=ran.source,
        changes=ran.changes,
        session_id=_session_id(session),
        assume=lambda: _said(assumptions_of(opened(0)[1], ran, axes=combinations.axes, table=table), signals),
        digest=getattr(session, "digest", None),
        trades_of=trades_of_row,
        pnl_of=pnl_of_rows,
        checks=getattr(session, "check", lambda: None),
        earlier_trials=_earlier_trials(
            session,
            combinations,
            base,
            table.select(*rescorer.axes, *combinations.axes),
            cache_dir=cache_dir,
            settings=rescorer.settings if signals is None else _digest(rescorer.source),
            price_source=price_source,
        ),
        left_out=combinations.left_out,
        method=", ".join(sorted(used)),
        span=opened(0)[1].span,
    )


def backtest(
    session: SessionLike | pl.DataFrame,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    price_source: PriceSource = "auto",
    scoring: Any = None,
    signals: Any = None,
    default: TradingParams | None = None,
    default_scoring: ScoringParams | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Backtest:
    """Run one combination: ``.trades``, ``.metrics`` (as in a sweep's frame) and ``.equity``.

    >>> backtest(session, {"sl_pct": 0.5}).metrics["net_pnl"]                                     # doctest: +SKIP

    ``equity`` has a row per closed trade: its exit's ``timestamp`` and the realised PnL (USD) up to and including it.
    Arguments and errors: those of ``sweep``.
    """
    ran = resolve_params(params, session, default)
    events = _signalled(session, signals, scoring)
    if scoring is not None:
        events = rescored(session, scoring, default=default_scoring)
    tape, _ = open_tape(events, price_source, cache_dir)
    trades, numbers = trades_of(tape, ran.params)
    if events is not session and isinstance(events, Rescored):
        trades = events.in_session(trades)
    exits = trades.sort("exit_index")
    equity = exits.select(timestamp=pl.col("exit_time"), equity=pl.col("realized_pnl").cum_sum())
    return Backtest(
        trades=trades,
        metrics=numbers,
        equity=equity,
        params=ran.params,
        params_source=ran.source,
        changes=ran.changes,
        session_id=_session_id(session),
        assume=lambda: _said(assumptions_of(tape, ran, trades=trades), signals),
    )


def _signalled(session: SessionLike | pl.DataFrame, signals: Any, scoring: Any) -> SessionLike | pl.DataFrame:
    if signals is None:
        return session
    if scoring is not None:
        raise SweepError("signals and scoring exclude each other: both replace the recorded scores")
    return signalled(session, signals)


def _said(assumptions: str, signals: Any) -> str:
    return assumptions if signals is None else f"{assumptions}; {GIVEN_SIGNALS}"


def _digest(source: Any) -> str:
    """Return a digest of the events that are not the session's own."""
    new = source.events.filter(pl.Series(source.place < 0))
    return hashlib.sha256(new.hash_rows().to_numpy().tobytes()).hexdigest()


def _session_id(session: Any) -> str | None:
    name = getattr(session, "id", None)
    return name if isinstance(name, str) else None


def _earlier_trials(session: Any, grid: Grid, base: TradingParams, frame: pl.DataFrame, **sweep: Any) -> int:
    """Enter the sweep of a stored session in the ledger of its data root; return what was tried before.

    ``frame``: the columns of the axes; ``sweep``: what else makes it another sweep, and ``cache_dir``.
    """
    root, tape = getattr(session, "root", None), getattr(session, "digest", None)
    if not isinstance(root, DataRoot) or tape is None:
        return 0
    path = ledger_path(root, sweep.pop("cache_dir"))
    digest = hashlib.sha256(repr(sweep).encode())
    for start, stop in parts(grid.rows):
        digest.update(np.ascontiguousarray(grid.part(start, stop).pack(base).params).data)
    rows = frame.n_unique() if frame.width else 1
    return add_trial(
        path, tape=tape, rows=rows, grid=digest.hexdigest()[:32], session_id=_session_id(session)
    )
