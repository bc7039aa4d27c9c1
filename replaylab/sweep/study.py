"""``sweep`` and ``backtest``: from a session and parameters to metrics and trades."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from replaylab import __version__
from replaylab.errors import ReplaylabError, SweepError, did_you_mean
from replaylab.params import Resolved, ScoringParams, TradingParams, resolve_params
from replaylab.paths import DataRoot
from replaylab.sessions import Finding, Findings, signal_frame
from replaylab.sweep.fills import (
    CLOCK,
    DRAWDOWN,
    FIRST,
    HEAD,
    LOSS_STREAK,
    LOW,
    NET,
    PEAK,
    RAW,
    RUN,
    SQUARES,
    SUM,
    WIN_STREAK,
    N,
    exits_of,
)
from replaylab.sweep.grid import Array, Grid, make_grid
from replaylab.sweep.rescoring import GIVEN_SIGNALS, Rescored, Rescorer, rescored, signalled
from replaylab.sweep.result import (
    Backtest,
    Clock,
    StudyResult,
    SweepResult,
    assumptions_of,
    metrics,
    part_path,
    read_part,
    write_part,
)
from replaylab.sweep.run import BoundRule, parts, rule_identity, run_on, run_rows, trades_of
from replaylab.sweep.tape import PriceSource, SessionLike, Tape
from replaylab.sweep.tape_file import TapeRef, open_tape
from replaylab.sweep.verdict import PERIODS, add_trial, ledger_path
from replaylab.timestamps import parse_ns
from replaylab.trading import ExitRule


def sweep(
    session: SessionLike | pl.DataFrame | Sequence[Any],
    grid: Any,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    price_source: PriceSource = "auto",
    progress: bool = True,
    executor: Executor | None = None,
    scoring: Any = None,
    signals: Any = None,
    rule: ExitRule | None = None,
    default: TradingParams | None = None,
    default_scoring: ScoringParams | None = None,
    method: str = "auto",
    threads: int | None = None,
    table_memory: float = 1e9,
    cache_dir: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Run every combination of ``grid`` over a session, or over each of a list of sessions, and return their metrics.

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

    ``rule``: an exit rule of the user's (``@replaylab.exit_rule``, ``@replaylab.level_rule``); axes ``rule.<argument>``
    of a mapping try its values, and vary slower than the others. Unless it is a level rule it runs in the plain loop.

    ``progress`` shows a bar. ``executor``: a ``concurrent.futures.Executor`` whose workers run the rows (see
    ``docs/scaling.md``); None runs them on ``threads`` here (default: the machine's cores). ``method``: "auto", or
    "tables", "index", "loop" (same results, other speed; see ``docs/sweep.md``). ``table_memory``: bytes that
    first-touch tables may take. ``cache_dir``: keeps packed sessions (see ``open_tape``).

    A list of sessions gives a ``StudyResult``: pooled metrics, each session from its own initial state and with account
    limits of its own. ``folder`` keeps the sums of each session as Parquet; the same call after a kill runs only the
    sessions that are missing there.

    Raises SweepError for a grid, session or option that cannot be used, ConfigError for a wrong parameter.
    """
    if executor is not None and not hasattr(executor, "submit"):
        raise SweepError(f"executor: expected a concurrent.futures.Executor or None, found {executor!r}")
    options = _Options(price_source, cache_dir, executor, method, threads, table_memory, progress)
    if isinstance(session, list | tuple):
        settings = (scoring, default_scoring, rule)
        ran = _common(session, params, default, grid)
        return _sweep_sessions(session, grid, ran, settings, options, signals=signals, folder=folder)
    if folder is not None:
        raise SweepError("folder= keeps the parts of a sweep over a list of sessions; this is one session")
    ran = resolve_params(params, session, default)
    alone: Any = session
    given = _signalled(alone, signals, scoring)
    source = _Source.of(session, grid, ran.params, (scoring, default_scoring, rule), given, options)
    frames, used = [], set()
    with options.bar(source.rows) as bar:
        for number in range(source.count):
            swept = []
            for start, stop in parts(source.grid.rows):
                raw, how = source.run(number, source.grid.part(start, stop), bar)
                swept.append(metrics(raw))
                used.add(how)
            frames.append(pl.DataFrame([*source.columns(number), *pl.concat(swept)]))
    table = pl.concat(frames)
    axes = source.grid.axes
    return SweepResult(
        frame=table,
        axes={**source.outer, **axes},
        params=ran.params,
        params_source=ran.source,
        changes=ran.changes,
        session_id=_session_id(session),
        assume=lambda: _said(assumptions_of(source.opened(0)[1], ran, axes=axes, table=table), signals, rule),
        digest=getattr(session, "digest", None),
        trades_of=source.trades,
        pnl_of=source.pnl,
        checks=getattr(session, "check", lambda: None),
        earlier_trials=source.add_trials(table),
        left_out=source.grid.left_out,
        progress=progress,
        method=", ".join(sorted(used)),
        span=source.opened(0)[1].span,
    )


@dataclass(frozen=True)
class _Options:
    """How a sweep runs, whatever it runs over."""

    price_source: PriceSource
    cache_dir: str | os.PathLike[str] | None
    executor: Executor | None
    method: str
    threads: int | None
    memory: float
    progress: bool

    def bar(self, rows: int, **options: Any) -> Any:
        return tqdm(
            total=rows, **{"unit": " sets", "unit_scale": True, "disable": not self.progress, **options}
        )

    def bar_over(self, sessions: Sequence[Any], *, desc: str, few: bool) -> Any:
        return tqdm(sessions, desc=desc, unit=" sessions", disable=few or not self.progress)


@dataclass(frozen=True)
class _Source:
    """One session of a sweep under the scoring settings of its grid: opens its tapes, runs rows on them."""

    session: Any
    rescorer: Rescorer
    grid: Grid
    base: TradingParams
    options: _Options
    rules: Sequence[ExitRule | None]
    rule_axes: dict[str, list[float]]

    @classmethod
    def of(
        cls,
        session: Any,
        grid: Any,
        base: TradingParams,
        settings: tuple[Any, ScoringParams | None, ExitRule | None],
        given: Any,
        options: _Options,
    ) -> _Source:
        """Return the source of a session; raises SweepError for a grid that cannot be used.

        ``settings``: of the scoring, their default, and the exit rule. ``given``: the session with given signals, or
        the session itself.
        """
        rules, rule_axes, grid = _rules(settings[2], grid)
        rescorer, axes = Rescorer.of(given, grid, settings[0], options.price_source, settings[1])
        if given is not session and rescorer.axes:
            raise SweepError(f"signals and the axes {', '.join(rescorer.axes)} exclude each other")
        return cls(session, rescorer, make_grid(axes, base), base, options, rules, rule_axes)

    @property
    def count(self) -> int:
        """How often the grid runs: under each scoring setting, with each setting of the exit rule."""
        return self.rescorer.count * len(self.rules)

    @property
    def outer(self) -> dict[str, list[Any]]:
        """The axes that are no parameters; they vary slowest."""
        return {**self.rescorer.axes, **self.rule_axes}

    @property
    def rows(self) -> int:
        """All rows: each combination under each setting of scoring and exit rule."""
        return self.grid.rows * self.count

    def columns(self, number: int) -> list[pl.Series]:
        """Return the columns of the axes for the rows of one setting."""
        rule = self.rules[number % len(self.rules)]
        own = [
            pl.Series(name, [rule.values[name.removeprefix(PREFIX)]]).new_from_index(0, self.grid.rows)
            for name in self.rule_axes
            if rule is not None
        ]
        outer = self.rescorer.columns(number // len(self.rules), self.grid.rows)
        return [*outer, *own, *self.grid.columns().values()]

    def opened(self, number: int) -> tuple[Any, Tape, TapeRef | None]:
        """Return events, tape and its file under one setting; the last two stay open."""
        number //= len(self.rules)
        if number not in self._open:
            if len(self._open) == 2:
                self._open.pop(next(iter(self._open)))
            events = self.rescorer.session(number)
            self._open[number] = (
                events,
                *open_tape(events, self.options.price_source, self.options.cache_dir),
            )
        return self._open[number]

    @cached_property
    def _open(self) -> dict[int, tuple[Any, Tape, TapeRef | None]]:
        return {}

    def bound(self, number: int) -> BoundRule | None:
        """Return the exit rule of a setting, bound to its tape."""
        rule = self.rules[number % len(self.rules)]
        place = number // len(self.rules)
        if place not in self._features:
            self._features[place] = BoundRule.of(rule, self.opened(number)[1], self.session)
        found = self._features[place]
        return None if found is None or rule is None else replace(found, rule=rule)

    @cached_property
    def _features(self) -> dict[int, BoundRule | None]:
        return {}

    def run(self, number: int, part: Grid, bar: Any, clock: Clock | None = None) -> tuple[Array, str]:
        """Return the raw sums of some combinations under one setting, and the method."""
        _, tape, ref = self.opened(number)
        how: dict[str, Any] = {"method": self.options.method, "memory": self.options.memory, "clock": clock}
        how["rule"] = self.bound(number)
        if self.options.executor is not None:
            watch: dict[str, Any] = {"done": bar.update, "say": bar.set_description}
            return run_on(self.options.executor, tape, ref, part, self.base, how, **watch)
        workers = self.options.threads or os.cpu_count() or 1
        return run_rows(
            tape, part, self.base, threads=workers, done=bar.update, say=bar.set_description, **how
        )

    def all_rows(self, bar: Any, clock: Clock | None) -> Array:
        """Return the raw sums of every row."""
        found = [
            self.run(number, self.grid.part(start, stop), bar, clock)[0]
            for number in range(self.count)
            for start, stop in parts(self.grid.rows)
        ]
        return np.concatenate(found)

    def chosen_rows(self, rows: Sequence[int], bar: Any, clock: Clock) -> Array:
        """Return the raw sums of some rows, by period."""
        found = np.zeros((len(rows), RAW + CLOCK + clock.periods))
        chosen = np.asarray(rows)
        for number in range(self.count):
            here = np.flatnonzero(chosen // self.grid.rows == number)
            for start, stop in parts(len(here)):
                places = here[start:stop]
                part = self.grid.rows_at(chosen[places] % self.grid.rows, len(places))
                found[places] = self.run(number, part, bar, clock)[0]
        return found

    def pnl(self, rows: list[int], clock: Clock) -> Array:
        """Return the PnL of some rows by period, an array (rows, periods)."""
        few = len(rows) * clock.periods < 10_000
        with self.options.bar(
            len(rows), desc="PnL by period", disable=few or not self.options.progress
        ) as bar:
            return self.chosen_rows(rows, bar, clock)[:, RAW + CLOCK :]

    def trades(self, row: int, params: TradingParams) -> pl.DataFrame:
        """Return the trades of one row, at positions of the session itself."""
        number = row // self.grid.rows
        events, tape, _ = self.opened(number)
        trades = trades_of(tape, params, self.bound(number))[0]
        return events.in_session(trades) if isinstance(events, Rescored) else trades

    @cached_property
    def digest(self) -> str:
        """Digest of the combinations, the base and what else makes it another sweep of the same session."""
        settings = self.rescorer.settings
        source = self.rescorer.source
        given = source is not self.session and isinstance(source, Rescored)
        about = {
            "settings": _digest(source) if given else settings,
            "price_source": self.options.price_source,
        }
        if self.rules != [None]:
            about["rules"] = [rule_identity(rule) for rule in self.rules if rule is not None]
        # Packed combinations hold the number of a regime set, not its names.
        digest = hashlib.sha256(repr((about, self.grid.regime_sets(self.base))).encode())
        for start, stop in parts(self.grid.rows):
            digest.update(np.ascontiguousarray(self.grid.part(start, stop).pack(self.base).params).data)
        return digest.hexdigest()[:32]

    def add_trials(self, table: pl.DataFrame) -> int:
        """Enter the sweep of a stored session in the ledger of its data root; return what was tried before."""
        root, tape = getattr(self.session, "root", None), getattr(self.session, "digest", None)
        if not isinstance(root, DataRoot) or tape is None:
            return 0
        axes = table.select(*self.outer, *self.grid.axes)
        return add_trial(
            ledger_path(root, self.options.cache_dir),
            tape=tape,
            rows=axes.n_unique() if axes.width else 1,
            grid=self.digest,
            session_id=_session_id(self.session),
        )


def backtest(
    session: SessionLike | pl.DataFrame,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    price_source: PriceSource = "auto",
    scoring: Any = None,
    signals: Any = None,
    rule: ExitRule | None = None,
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
    trades, numbers = trades_of(tape, ran.params, BoundRule.of(rule, tape, session))
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
        assume=lambda: _said(assumptions_of(tape, ran, trades=trades), signals, rule),
    )


def _signalled(session: SessionLike | pl.DataFrame, signals: Any, scoring: Any) -> SessionLike | pl.DataFrame:
    if signals is None:
        return session
    if scoring is not None:
        raise SweepError(_EXCLUSIVE)
    return signalled(session, signals)


def _said(assumptions: str, signals: Any, rule: ExitRule | None = None) -> str:
    notes = [assumptions, *([] if signals is None else [GIVEN_SIGNALS])]
    return "; ".join([*notes, *([] if rule is None else [f"exit rule {rule!r}"])])


def _rules(rule: ExitRule | None, grid: Any) -> tuple[list[ExitRule | None], dict[str, list[float]], Any]:
    """Return the rule with each combination of its axes, these axes, and the grid without them."""
    columns = list(grid) if isinstance(grid, Mapping) else list(getattr(grid, "columns", ()))
    names = [name for name in columns if str(name).startswith(PREFIX)]
    if not names:
        return [rule], {}, grid
    if not isinstance(grid, Mapping):
        raise SweepError(f"{', '.join(names)}: axes of a rule need a grid that is a mapping")
    if rule is None:
        raise SweepError(f"{', '.join(names)}: axes of a rule, and no rule= is given")
    axes = {name: np.ravel(grid[name]).tolist() for name in names}
    for name in (name for name, values in axes.items() if not values):
        raise SweepError(f"{name}: the axis has no values")
    keys = [name.removeprefix(PREFIX) for name in names]
    made = [rule.with_values(**dict(zip(keys, one, strict=True))) for one in product(*axes.values())]
    return [*made], axes, {name: values for name, values in grid.items() if name not in axes}


def _digest(source: Any) -> str:
    """Return a digest of the events that are not the session's own."""
    new = source.events.filter(pl.Series(source.place < 0))
    return hashlib.sha256(new.hash_rows().to_numpy().tobytes()).hexdigest()


def _session_id(session: Any) -> str | None:
    name = getattr(session, "id", None)
    return name if isinstance(name, str) else None


# ---- Many sessions -------------------------------------------------------------------------------------------

# With at most so many rows the first pass also sums the PnL of the verdict's periods.
_CLOCKED = 20_000
# Numbers of the lists of exits that are held at a time.
_LISTED = 16_000_000
# Sums that depend on the order of the trades.
_ORDERED = [PEAK, LOW, DRAWDOWN, RUN, HEAD, WIN_STREAK, LOSS_STREAK]
# With more events than this the sessions are not checked for a verdict.
_CHECKED = 5_000_000
PREFIX = "rule."
_EXCLUSIVE = "signals and scoring exclude each other: both replace the recorded scores"
_ACCOUNT = ("max_open_positions", "max_daily_loss_usd", "max_trades_per_day")


def _sweep_sessions(
    given: Sequence[Any],
    grid: Any,
    ran: Resolved[TradingParams],
    scoring: tuple[Any, ScoringParams | None, ExitRule | None],
    options: _Options,
    *,
    signals: Any,
    folder: str | os.PathLike[str] | None,
) -> StudyResult:
    """Run a grid over several sessions; see ``sweep``. ``scoring``: settings and their default."""
    sessions = _ordered(given)
    signals = _required_place(signals, scoring[0], sessions)
    if folder is not None and hasattr(scoring[0], "predict"):
        raise SweepError(
            "folder= cannot tell one scoring model from another: leave it out, or pass signals= instead"
        )

    @lru_cache(maxsize=1)
    def source(place: int) -> _Source:
        # A copy: the events that it loads go with it.
        given = session = copy(sessions[place])
        with _named(session):
            if signals is not None:
                given = signalled(session, _within(signals, session), allow_empty=True)
            return _Source.of(session, grid, ran.params, scoring, given, options)

    first = source(0)
    span = _range(sessions[0])[0], max(_range(session)[1] for session in sessions) - 1
    clock = Clock(span[0], -(-(span[1] - span[0] + 1) // PERIODS), PERIODS)
    clocked = clock if first.rows <= _CLOCKED else None
    about = repr((first.digest, clocked, __version__, RAW)).encode()
    kept = _made(folder)
    keys, pooled, periods, spans, sizes = [], None, None, [], []
    earlier = 0
    with options.bar(first.rows * len(sessions)) as bar:
        for place, session in enumerate(sessions):
            bar.set_description(f"session {place + 1} of {len(sessions)}")
            keys.append(hashlib.sha256(about + repr(_identity(session, signals)).encode()).hexdigest())
            raw = read_part(part_path(kept, keys[-1]), keys[-1])
            if raw is None:
                with _named(session):
                    raw = source(place).all_rows(bar, clocked)
                write_part(part_path(kept, keys[-1]), keys[-1], raw)
            else:
                bar.update(first.rows)
            spans.append(_range(session))
            sizes.append(int(session.manifest.total_events or 0))
            pooled = raw[:, :RAW].copy() if pooled is None else _pool(pooled, raw)
            if clocked is not None:
                periods = raw[:, RAW + CLOCK :] if periods is None else periods + raw[:, RAW + CLOCK :]
    assert pooled is not None
    _mend_order(pooled, source, keys, kept, spans, options)
    columns = [first.columns(number) for number in range(first.count)]
    table = pl.concat(
        pl.DataFrame([*names, *metrics(pooled[k * first.grid.rows : (k + 1) * first.grid.rows])])
        for k, names in enumerate(columns)
    )
    for place in range(len(sessions)):
        earlier = max(earlier, replace(first, session=sessions[place]).add_trials(table))

    @lru_cache(maxsize=16)
    def trades(row: int, chosen: TradingParams) -> pl.DataFrame:
        found = []
        for place, session in enumerate(
            options.bar_over(sessions, desc="trades", few=sum(sizes) < 1_000_000)
        ):
            mine = source(place).trades(row, chosen)
            found.append(mine.select(pl.lit(session.id).alias("session_id"), pl.all()))
        return pl.concat(found).sort("exit_time", maintain_order=True)

    def pnl(rows: list[int], wanted: Clock) -> Array:
        if periods is not None and wanted == clock:
            return periods[rows]
        total = np.zeros((len(rows), wanted.periods))
        with options.bar(len(rows) * len(sessions), desc="PnL by period") as bar:
            for place in range(len(sessions)):
                total += source(place).chosen_rows(rows, bar, wanted)[:, RAW + CLOCK :]
        return total

    result = StudyResult(
        frame=table,
        axes={**first.outer, **first.grid.axes},
        params=ran.params,
        params_source=ran.source,
        changes=ran.changes,
        session_id=f"{len(sessions)} sessions, {sessions[0].id} to {sessions[-1].id}",
        assume=lambda: _assumed(source, len(sessions), sum(sizes), ran, table, signals),
        trades_of=trades,
        pnl_of=pnl,
        checks=lambda: _findings(sessions, sum(sizes)),
        earlier_trials=earlier,
        left_out=first.grid.left_out,
        progress=options.progress,
        method=options.method,
        span=span,
        sessions=[session.id for session in sessions],
        folder=kept,
        keys=keys,
        played=lambda: (len(sessions), sum(sizes)),
    )
    if folder is None:
        weakref.finalize(result, shutil.rmtree, kept, ignore_errors=True)
    return result


@contextmanager
def _named(session: Any) -> Iterator[None]:
    """Let errors name the session."""
    try:
        yield
    except ReplaylabError as error:
        error.args = (f"session {session.id}: {error}", *error.args[1:])
        raise


def _made(folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the parts, which exists then; a temporary one for None. Raises SweepError."""
    kept = Path(tempfile.mkdtemp(prefix="replaylab-study-") if folder is None else folder)
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"folder: {kept} cannot be used: {error}") from None
    return kept


def _ordered(given: Sequence[Any]) -> list[Any]:
    """Return the sessions by the start of their range; raises SweepError for an empty list, a twin, or no session."""
    if not given:
        raise SweepError("the list of sessions is empty")
    for one in given:
        if not hasattr(one, "manifest"):
            raise SweepError(f"a list of sessions holds Sessions, found {type(one).__name__}")
    sessions = sorted(given, key=lambda one: (*_range(one), one.id))
    for one, other in pairwise(sessions):
        if one.path == other.path:
            raise SweepError(f"session {one.id} is in the list twice: its trades would count twice")
    return sessions


def _range(session: Any) -> tuple[int, int]:
    span = session.manifest.source_date_range
    return parse_ns(span.from_), parse_ns(span.to)


def _common(
    sessions: Sequence[Any], params: Any, default: TradingParams | None, grid: Any
) -> Resolved[TradingParams]:
    """Return the parameters that all sessions run; raises SweepError where they recorded different ones."""
    sessions = _ordered(sessions)
    ran = resolve_params(params, sessions[0], default)
    axes = set(grid) if isinstance(grid, Mapping) else set(getattr(grid, "columns", ()))
    for session in sessions[1:]:
        other = resolve_params(params, session, default)
        for name in TradingParams.__struct_fields__:
            ours, theirs = getattr(ran.params, name), getattr(other.params, name)
            if name not in axes and ours != theirs:
                raise SweepError(
                    f"the sessions recorded different parameters: {name} is {ours!r} in {sessions[0].id} and "
                    f"{theirs!r} in {session.id}; pass params=TradingParams(...), or sweep them apart"
                )
    return ran


def _within(signals: pl.DataFrame, session: Any) -> pl.DataFrame:
    """Return the signals of a session's symbols in its range."""
    start, end = _range(session)
    at = pl.col("timestamp").dt.timestamp("ns")
    return signals.filter((at >= start) & (at < end) & pl.col("symbol").is_in(session.manifest.symbols))


def _required_place(signals: Any, scoring: Any, sessions: Sequence[Any]) -> pl.DataFrame | None:
    """Return the signals; raise SweepError for a symbol that no session has, warn of signals that lie in no session."""
    if signals is None:
        return None
    if scoring is not None:
        raise SweepError(_EXCLUSIVE)
    frame = signal_frame(signals)
    names = sorted({symbol for session in sessions for symbol in session.manifest.symbols})
    for symbol in sorted(set(frame["symbol"].unique().to_list()) - set(names)):
        raise SweepError(f"signals: no session has the symbol {symbol!r}.{did_you_mean(symbol, names)}")
    inside = sum(_within(frame, session).height for session in sessions)
    if inside == 0:
        raise SweepError("signals: none of them lies in the range of any session")
    if inside < frame.height:
        warnings.warn(
            f"{frame.height - inside:,} signals lie in the range of no session and are left out",
            stacklevel=4,
        )
    return frame


def _identity(session: Any, signals: pl.DataFrame | None) -> list[Any]:
    """Return what the trades of a session depend on, besides the grid."""
    given = None if signals is None else _within(signals, session).hash_rows().sum()
    return [session.digest, session.initial_state, session.instruments, given]


def _pool(total: Array, raw: Array) -> Array:
    """Return the sums of one more session added to those before it, as though its trades came after theirs."""
    joined = total + raw[:, :RAW]
    n, shift = raw[:, N], np.where(total[:, N] > 0, raw[:, FIRST] - total[:, FIRST], 0.0)
    joined[:, FIRST] = np.where(total[:, N] > 0, total[:, FIRST], raw[:, FIRST])
    joined[:, SUM] = total[:, SUM] + raw[:, SUM] + n * shift
    joined[:, SQUARES] = total[:, SQUARES] + raw[:, SQUARES] + 2 * shift * raw[:, SUM] + n * shift**2
    joined[:, PEAK] = np.maximum(total[:, PEAK], total[:, NET] + raw[:, PEAK])
    joined[:, LOW] = np.minimum(total[:, LOW], total[:, NET] + raw[:, LOW])
    across = total[:, NET] + raw[:, LOW] - total[:, PEAK]
    joined[:, DRAWDOWN] = np.minimum.reduce([total[:, DRAWDOWN], raw[:, DRAWDOWN], across])
    # A run at the end of the former joins one of the same sign at the start of the latter.
    run, head = total[:, RUN], raw[:, HEAD] * np.sign(raw[:, FIRST])
    bridge = np.where(run * head > 0.0, run + head, 0.0)
    whole = (bridge != 0.0) & (np.abs(head) == n)
    joined[:, RUN] = np.where(n == 0, run, np.where(whole, bridge, raw[:, RUN]))
    whole = (total[:, N] == 0) | ((bridge != 0.0) & (total[:, HEAD] == total[:, N]))
    joined[:, HEAD] = total[:, HEAD] + np.where(whole, raw[:, HEAD], 0.0)
    joined[:, WIN_STREAK] = np.maximum.reduce([total[:, WIN_STREAK], raw[:, WIN_STREAK], bridge])
    joined[:, LOSS_STREAK] = np.maximum.reduce([total[:, LOSS_STREAK], raw[:, LOSS_STREAK], -bridge])
    return joined


def _mend_order(
    pooled: Array,
    source: Callable[[int], _Source],
    keys: Sequence[str],
    folder: Path,
    spans: Sequence[tuple[int, int]],
    options: _Options,
) -> None:
    """Put drawdowns and streaks right where sessions overlap in time: trades are in the order of their exits."""
    groups: list[list[int]] = []
    until = None
    for place, (start, end) in enumerate(spans):
        if until is not None and start < until:
            groups[-1].append(place)
        else:
            groups.append([place])
        until = end if until is None else max(until, end)
    if len(groups) == len(spans):
        return
    total: Array | None = None
    work = sum(len(group) for group in groups if len(group) > 1) * len(pooled)
    with options.bar(work, desc="order of exits") as bar:
        for group in groups:
            raws = [read_part(part_path(folder, keys[place]), keys[place]) for place in group]
            sums = None
            for raw in raws:
                assert raw is not None
                sums = raw[:, :RAW].copy() if sums is None else _pool(sums, raw)
            assert sums is not None
            if len(group) > 1:
                _in_order(sums, [source(place).rows for place in group], group, source, raws, bar)
            total = sums if total is None else _pool(total, sums)
    assert total is not None
    pooled[:, _ORDERED] = total[:, _ORDERED]


def _in_order(
    sums: Array,
    rows: Sequence[int],
    group: Sequence[int],
    source: Callable[[int], _Source],
    raws: Sequence[Any],
    bar: Any,
) -> None:
    """Compute the sums that depend on the order for sessions that overlap, from their exits in order of time."""
    most = max(int(raw[:, N].max()) for raw in raws)
    step = max(1, _LISTED // max(1, len(group) * 3 * most))
    for start in range(0, rows[0], step):
        chosen = list(range(start, min(start + step, rows[0])))
        listed = [source(place).chosen_rows(chosen, bar, Clock(0, 0, 3 * most)) for place in group]
        for k, row in enumerate(chosen):
            exits = [exits_of(wide[k]) for wide in listed]
            times = np.concatenate([ts for ts, _ in exits])
            pnl = np.concatenate([money for _, money in exits])[np.argsort(times, kind="stable")]
            equity = np.concatenate([[0.0], np.cumsum(pnl)])
            peak = np.maximum.accumulate(equity)
            sums[row, PEAK], sums[row, LOW] = peak[-1], equity.min()
            sums[row, DRAWDOWN] = (equity - peak).min()
            signs = np.append(np.sign(pnl), np.nan)
            ends = np.flatnonzero(signs[1:] != signs[:-1]) + 1
            runs = np.diff(ends, prepend=0) * signs[ends - 1] if len(ends) else np.zeros(1)
            sums[row, HEAD], sums[row, RUN] = abs(runs[0]), runs[-1]
            sums[row, WIN_STREAK], sums[row, LOSS_STREAK] = max(runs.max(), 0.0), max(-runs.min(), 0.0)


def _assumed(
    source: Any, count: int, events: int, ran: Resolved[TradingParams], table: Any, given: Any
) -> str:
    """Return a study's assumptions: prices of its sessions (of a large one the first), account limits per session."""
    first, few = source(0), count if events <= _CHECKED else 1
    places = iter(first.options.bar_over(range(few), desc="assumptions", few=events < 1_000_000))
    axes, tapes = first.grid.axes, (source(place).opened(0)[1] for place in places)
    prices = f"prices are those of {'the first of ' if few < count else ''}{count} sessions"
    text = assumptions_of(next(tapes), ran, tapes, axes=axes, table=table)
    limited = any(getattr(ran.params, name) is not None for name in _ACCOUNT) or set(_ACCOUNT) & set(axes)
    limits = ["account limits hold within each session only"] if limited else []
    return "; ".join([text, _said(prices, given, first.rules[0]), *limits])


def _findings(sessions: Sequence[Any], events: int) -> Findings | None:
    """Return what ``check`` finds in each session; of a large study a note that it was left out."""
    if events > _CHECKED:
        note = f"session.check() was not run on these {events:,} events of {len(sessions)} sessions: run it on each"
        return Findings([Finding("unchecked", "warning", None, None, note)])
    found = [(session.id, one) for session in sessions for one in session.check()]
    return Findings([replace(one, message=f"{name}: {one.message}") for name, one in found])
