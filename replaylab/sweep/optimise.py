"""Search parameters with feedback: Optuna proposes batches of sets, a sweep runs each batch.

::

    found = optimise(session, {"sl_pct": (0.05, 1.0), "max_hold_s": [None, 60.0]}, "net_pnl", trials=512)
    found.best(5), found.verdict(), found.history

A space maps names to ranges and choices. Sets that are tried are rows of the result, which is a ``SweepResult``: with
verdict, plots and trades. Optuna is an extra: ``pip install '.[optimise]'`` in a checkout.
"""

from __future__ import annotations

import logging
import os
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from replaylab.errors import SweepError, did_you_mean
from replaylab.params import ScoringParams, TradingParams, contradictions, resolve_params
from replaylab.sweep.grid import DECLARED, checked_value
from replaylab.sweep.result import METRICS, Clock, SweepResult
from replaylab.sweep.study import PREFIX, sweep
from replaylab.sweep.tape import PriceSource, SessionLike
from replaylab.sweep.verdict import MIN_TRADES
from replaylab.trading import ExitRule

_SCORING = "scoring."
_SCORED = {declared.name: declared for declared in ScoringParams.declarations()}


@dataclass(repr=False, kw_only=True)
class Optimisation(SweepResult):
    """Every set that an optimiser tried, as a ``SweepResult`` in the order of the trials.

    >>> found.best(5), found.verdict(), found.history                                            # doctest: +SKIP

    ``metric``: what was maximised. ``study``: Optuna's study, with all its trials. ``refused``: how many proposed sets
    contradicted themselves and were not run.
    """

    metric: str
    min_trades: int
    study: Any
    refused: int

    @property
    def history(self) -> pl.DataFrame:
        """A row per trial that ran: ``row``, the axes, the metric, ``n_trades``, and the best of the metric so far.

        Rows with fewer than ``min_trades`` trades never are the best.
        """
        counted = pl.when(pl.col("n_trades") >= self.min_trades).then(pl.col(self.metric))
        shown = dict.fromkeys(("row", *self.axes, self.metric, "n_trades", "best_so_far"))
        so_far = counted.fill_nan(None).cum_max().forward_fill()
        return self.frame.with_row_index("row").with_columns(best_so_far=so_far).select(*shown)

    def __repr__(self) -> str:
        return super().__repr__().replace("<SweepResult:", "<Optimisation:", 1)


def optimise(
    session: SessionLike | Sequence[Any],
    space: Mapping[str, Any],
    metric: str = "net_pnl",
    trials: int = 256,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    batch: int = 32,
    min_trades: int = MIN_TRADES,
    log: Sequence[str] = (),
    seed: int | None = 0,
    sampler: Any = None,
    price_source: PriceSource = "auto",
    scoring: Any = None,
    signals: Any = None,
    rule: ExitRule | None = None,
    default: TradingParams | None = None,
    default_scoring: ScoringParams | None = None,
    executor: Executor | None = None,
    progress: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Optimisation:
    """Try ``trials`` parameter sets, each batch chosen with what the earlier ones gave, and maximise ``metric``.

    >>> optimise(session, {"sl_pct": (0.05, 1.0), "tp2_pct": (0.3, 2.0, 0.1)}, trials=512)       # doctest: +SKIP

    ``space``: names of axes, as in a grid (also ``scoring.<field>`` and ``rule.<argument>``), mapped to a range
    ``(low, high)``, a range with a step ``(low, high, step)``, or a list of choices. Axes in ``log`` are drawn in the
    logarithm. ``metric``: a column of a sweep's result; more is better. A set with fewer than ``min_trades`` trades
    counts as worse than any other. ``batch``: sets per sweep. ``sampler``: one of Optuna's; the default is its TPE
    sampler with ``seed``, so that equal calls try equal sets. The other arguments are those of ``sweep``; a list of
    sessions gives pooled metrics.

    Every set that ran enters the ledger of trials, and the verdict counts them all. Raises SweepError for a space or a
    metric that cannot be used, and where Optuna is not installed.
    """
    optuna = _optuna()
    if metric not in METRICS:
        raise SweepError(
            f"metric: no {metric!r}.{did_you_mean(metric, METRICS)} There are {', '.join(METRICS)}"
        )
    if not all(isinstance(n, int) and n >= 1 for n in (trials, batch)):
        raise SweepError(f"expected at least one trial and one per batch, found {trials!r} and {batch!r}")
    if not isinstance(space, Mapping):
        raise SweepError(f"space: expected a mapping of axes to ranges or choices, found {space!r:.100}")
    if sampler is not None and not isinstance(sampler, optuna.samplers.BaseSampler):
        raise SweepError(f"sampler: expected one of optuna.samplers, found {sampler!r:.100}")
    log = [log] if isinstance(log, str) else log
    axes = {name: _Axis.of(name, wanted, name in log, rule) for name, wanted in space.items()}
    if not axes:
        raise SweepError("space: names no axis")
    wrong = next((name for name in log if name not in axes), None)
    if wrong is not None:
        raise SweepError(f"log: the space has no {wrong!r}.{did_you_mean(wrong, axes)}")
    several = list(session) if isinstance(session, list | tuple) else [session]
    base = resolve_params(params, several[0], default).params if several else TradingParams()
    level = logging.getLogger("optuna").level
    logging.getLogger("optuna").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Sets of one batch keep apart from each other although none is known yet.
        chosen = sampler or optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=chosen)
    spread = {name: axis.distribution(optuna) for name, axis in axes.items()}
    ran: list[tuple[SweepResult, list[int]]] = []
    refused = 0
    pruned = optuna.trial.TrialState.PRUNED
    try:
        with tqdm(total=trials, unit=" sets", desc="optimising", disable=not progress) as bar:
            for start in range(0, trials, batch):
                asked = [study.ask(spread) for _ in range(min(batch, trials - start))]
                sets = [
                    {name: axis.value(trial.params[name]) for name, axis in axes.items()} for trial in asked
                ]
                whole = [not _contradicts(one, base) for one in sets]
                for trial in (trial for trial, fits in zip(asked, whole, strict=True) if not fits):
                    study.tell(trial, state=pruned)
                    refused += 1
                asked = [trial for trial, fits in zip(asked, whole, strict=True) if fits]
                sets = [one for one, fits in zip(sets, whole, strict=True) if fits]
                for key, members in _groups(sets).items():
                    rows = [sets[k] for k in members]
                    swept = sweep(
                        session,
                        _grid(rows),
                        params,
                        price_source=price_source,
                        progress=False,
                        executor=executor,
                        scoring=_scored(scoring, key),
                        signals=signals,
                        rule=_ruled(rule, key),
                        default=default,
                        default_scoring=default_scoring,
                        cache_dir=cache_dir,
                    )
                    ran.append((_with_outer(swept, rows), members))
                    for k, value, n in zip(
                        members, swept.frame[metric], swept.frame["n_trades"], strict=True
                    ):
                        counts = value is not None and np.isfinite(value) and n >= min_trades
                        study.tell(asked[k], float(value) if counts else None, None if counts else pruned)
                bar.update(len(whole))
    finally:
        logging.getLogger("optuna").setLevel(level)
    if not ran:
        raise SweepError(
            f"all {refused:,} proposed sets contradict themselves: nothing ran. {_reasons(base)}"
        )
    if not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        warnings.warn(
            f"no set had {min_trades} trades and a {metric}: the search had nothing to learn from (min_trades=)",
            stacklevel=2,
        )
    return _joined([result for result, _ in ran], list(axes), metric, min_trades, study, refused)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SweepError(
            "optimise needs Optuna, which is not installed: pip install '.[optimise]' in a checkout"
        ) from None
    return optuna


@dataclass(frozen=True)
class _Axis:
    """An axis of the space: a range of numbers (``choices`` None), or choices."""

    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    whole: bool = False
    log: bool = False
    choices: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, name: str, wanted: Any, log: bool, rule: ExitRule | None) -> _Axis:
        """Return the axis that a space's entry means; raises SweepError for a name or a value that cannot be used."""
        numbers = isinstance(wanted, tuple) and len(wanted) in (2, 3)
        if numbers and all(isinstance(x, int | float) and not isinstance(x, bool) for x in wanted):
            low, high = (_value(name, float(x), rule) for x in wanted[:2])
            step = float(wanted[2]) if len(wanted) == 3 else None
            declared = (
                _SCORED.get(name.removeprefix(_SCORING)) if name.startswith(_SCORING) else DECLARED.get(name)
            )
            whole = declared is not None and declared.kind == "whole"
            if (
                not low < high
                or (step is not None and not 0 < step <= high - low)
                or (log and (low <= 0 or step))
            ):
                raise SweepError(
                    f"space: {name}: expected (low, high) or (low, high, step) with low < high and a step inside; in "
                    f"log low > 0 and no step; found {wanted!r}"
                )
            if whole and (step or 1.0) % 1:
                raise SweepError(f"space: {name}: holds whole numbers, found a step of {step:g}")
            return cls(low, high, step, whole, log)
        if not isinstance(wanted, list) or not wanted or log:
            raise SweepError(
                f"space: {name}: expected a range (low, high), (low, high, step) or a list of choices"
                f"{' (log needs a range)' if log else ''}, found {wanted!r:.100}"
            )
        return cls(choices=tuple(_value(name, one, rule) for one in wanted))

    def distribution(self, optuna: Any) -> Any:
        """Return the axis for Optuna; choices are numbered, for it takes no lists."""
        of = optuna.distributions
        if self.choices is not None:
            return of.CategoricalDistribution(range(len(self.choices)))
        if self.whole:
            return of.IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return of.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, drawn: Any) -> Any:
        """Return what a drawn number means."""
        return drawn if self.choices is None else self.choices[drawn]


def _value(name: str, value: Any, rule: ExitRule | None) -> Any:
    """Return a value of an axis as its declaration takes it; raises SweepError."""
    if name.startswith(PREFIX):
        if rule is None:
            raise SweepError(f"space: {name}: an argument of a rule, and no rule= is given")
        return rule.with_values(**{name.removeprefix(PREFIX): value}).values[name.removeprefix(PREFIX)]
    if name.startswith(_SCORING):
        return getattr(
            ScoringParams.of({name.removeprefix(_SCORING): value}, "space"), name.removeprefix(_SCORING)
        )
    if name not in DECLARED:
        raise SweepError(
            f"the space has an axis {name!r}, which is no parameter.{did_you_mean(name, DECLARED)}"
        )
    return checked_value(name, value)


def _contradicts(values: Mapping[str, Any], base: TradingParams) -> bool:
    """Whether a set contradicts itself, such as tp2_pct < tp1_pct."""
    whole = {name: values.get(name, getattr(base, name)) for name in DECLARED}
    return any(bool(np.any(wrong)) for _, wrong in contradictions(whole).values())


def _reasons(base: TradingParams) -> str:
    return f"A set contradicts itself where {', or '.join(contradictions({n: getattr(base, n) for n in DECLARED}))}"


def _is_outer(name: str) -> bool:
    return name.startswith((PREFIX, _SCORING))


def _groups(sets: Sequence[Mapping[str, Any]]) -> dict[tuple[tuple[str, Any], ...], list[int]]:
    """Return the places of sets by their values of rule and scoring: those of one group are one sweep."""
    groups: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for place, one in enumerate(sets):
        key = tuple((name, value) for name, value in one.items() if _is_outer(name))
        groups.setdefault(key, []).append(place)
    return groups


def _grid(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the sets of a group as a grid without rule and scoring."""
    names = [name for name in rows[0] if not _is_outer(name)]
    if not names:
        # A grid has an axis: the sets of the group are one and the same.
        return {}
    columns = {}
    for name in names:
        values = [row[name] for row in rows]
        if name == "allowed_regimes":
            values = [None if value is None else "|".join(value) for value in values]
        columns[name] = values
    return pl.DataFrame(columns, strict=False)


def _scored(scoring: Any, key: tuple[tuple[str, Any], ...]) -> Any:
    changes = {name.removeprefix(_SCORING): value for name, value in key if name.startswith(_SCORING)}
    if not changes:
        return scoring
    if scoring is None or isinstance(scoring, Mapping):
        return {**(scoring or {}), **changes}
    if isinstance(scoring, ScoringParams):
        return scoring.replace(**changes)
    raise SweepError(
        f"scoring.<field> axes need scoring= as ScoringParams or a dict, found {type(scoring).__name__}"
    )


def _ruled(rule: ExitRule | None, key: tuple[tuple[str, Any], ...]) -> ExitRule | None:
    values = {name.removeprefix(PREFIX): value for name, value in key if name.startswith(PREFIX)}
    return rule.with_values(**values) if rule is not None and values else rule


def _with_outer(result: SweepResult, rows: Sequence[Mapping[str, Any]]) -> SweepResult:
    """Add the columns of rule and scoring to the result of a group."""
    outer = {name: value for name, value in rows[0].items() if _is_outer(name)}
    result.frame = result.frame.select(
        *(pl.lit(value).alias(name) for name, value in outer.items()), pl.all()
    )
    return result


def _joined(
    results: list[SweepResult], axes: list[str], metric: str, min_trades: int, study: Any, refused: int
) -> Optimisation:
    """Return the results of all batches as one, in the order in which they ran."""
    first = results[0]
    starts = np.cumsum([0, *(result.frame.height for result in results)]).tolist()
    frame = pl.concat((result.frame for result in results), how="vertical_relaxed")

    def trades(row: int, params: TradingParams) -> pl.DataFrame:
        part = bisect_right(starts, row) - 1
        found = results[part].trades_of
        assert found is not None
        return found(row - starts[part], params)

    def pnl(rows: list[int], clock: Clock) -> Any:
        parts = np.searchsorted(starts, rows, side="right") - 1
        total = np.zeros((len(rows), clock.periods))
        for part in np.unique(parts).tolist():
            mine = np.flatnonzero(parts == part)
            found = results[part].pnl_of
            assert found is not None
            total[mine] = found([rows[k] - starts[part] for k in mine], clock)
        return total

    known = {one.name: getattr(first, one.name) for one in fields(SweepResult)}
    joined = {
        "frame": frame,
        "axes": {name: frame[name].unique(maintain_order=True).to_list() for name in axes},
        "trades_of": trades,
        "pnl_of": pnl,
        "method": ", ".join(sorted({result.method for result in results})),
        "assume": lambda: f"{first.assumptions}; sets chosen with feedback ({type(study.sampler).__name__})",
    }
    return Optimisation(
        **{**known, **joined}, metric=metric, min_trades=min_trades, study=study, refused=refused
    )
