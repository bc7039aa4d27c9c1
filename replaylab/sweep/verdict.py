"""The verdict on a sweep: is its best combination more than luck, and does it hold out of sample?

::

    verdict = result.verdict()
    verdict.level            # "insufficient", "luck", "fails_out_of_sample" or "supported"
    verdict.reasons          # sentences, with the numbers
    verdict.plot()           # one page

The trial ledger is here too: which sweeps were run on which tape, in every notebook and process that uses a data root::

    lab.trials()                                     # a row per sweep: tape, rows, time, grid
    reset_trials(root, "new data vendor")            # starts again; the reason stays in the file

The order of the questions, the tests and their measured rates are in ``docs/statistics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from tqdm.auto import tqdm

from replaylab.errors import SweepError
from replaylab.sweep.evidence import (
    Deflated,
    Floats,
    Overfitting,
    bootstrap_intervals,
    deflated_sharpe_ratio,
    effective_trials,
    maximum_moments,
    min_track_record,
    moments,
    overfitting_probability,
    pnl_matrix,
    probabilistic_sharpe_ratio,
    sharpe,
    superior_predictive_ability,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
import hashlib
import os
from pathlib import Path

import orjson
import polars as pl

from replaylab.fsio import lock, write_all
from replaylab.paths import DataRoot
from replaylab.timestamps import iso, now_ns

Level = Literal["insufficient", "luck", "fails_out_of_sample", "supported"]
MIN_TRADES = 30
CONFIDENCE = 0.95
# Periods of the verdict: six for each of 16 blocks, four later stretches of 12 for the walk-forward.
PERIODS = 96
_BLOCKS = 8
_DELAY_S = 0.5
_TITLES = {
    "insufficient": "Insufficient: too little to judge",
    "luck": "Luck: not distinguishable from the best of that many worthless trials",
    "fails_out_of_sample": "Fails out of sample: what is chosen on one part loses on the other",
    "supported": "Supported: more than luck shows, and it holds out of sample",
}
_DOUBTFUL = "; but session.check() warns of the data"


@dataclass(repr=False)
class Verdict:
    """What the evidence allows to say about the best combination of a sweep.

    ``level``: "insufficient", "luck", "fails_out_of_sample" or "supported". ``reasons``: sentences. ``caveats``: what
    the reasons rest on: assumptions, findings of ``session.check()``. ``metrics``: the numbers by name (``dsr``,
    ``spa_p_value``, ``pbo``, ``loss_probability``, ...). ``arrays``: what ``plot`` draws; empty in a loaded result.
    """

    level: Level
    reasons: list[str]
    caveats: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The level in words; of a supported one also whether ``session.check()`` warns of the data."""
        doubtful = self.level == "supported" and self.metrics.get("data_warnings")
        return _TITLES[self.level] + (_DOUBTFUL if doubtful else "")

    def __repr__(self) -> str:
        notes = (f"  note: {line}" for line in self.caveats)
        return "\n".join([f"<Verdict: {self.title}>", *(f"  {line}" for line in self.reasons), *notes])

    def _repr_html_(self) -> str:
        listed = "".join(f"<li>{escape(line)}</li>" for line in self.reasons)
        notes = "".join(f"<li>{escape(line)}</li>" for line in self.caveats)
        below = f"<small>It rests on:<ul>{notes}</ul></small>" if notes else ""
        return f"<div><b>{escape(self.title)}</b><ul>{listed}</ul>{below}</div>"

    def to_dict(self) -> dict[str, Any]:
        """Return level, reasons, caveats and metrics as plain data."""
        return {
            "level": self.level,
            "reasons": self.reasons,
            "caveats": self.caveats,
            "metrics": {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in self.metrics.items()
            },
        }

    def plot(self) -> Figure:
        """Draw one page: the sentences, Sharpe ratios against luck, PnL over time, in against out of sample."""
        from replaylab import plots

        return plots.verdict(self.title, self.reasons, self.arrays, self.caveats)


class Steps:
    """A progress bar over named steps of statistics; it appears after half a second, and disappears at the end.

    >>> with Steps("verdict", 2, shown=False) as step:
    ...     step("resamples")(1, 2)                       # 1 of 2 parts of this step are done
    ...     step("splits")(1, 1)

    The function that ``step`` returns is called with the parts that were done since its last call, and all of the step.
    """

    def __init__(self, name: str, count: int, *, shown: bool) -> None:
        look = "{l_bar}{bar}| {elapsed}"
        options: dict[str, Any] = {
            "disable": not shown,
            "delay": _DELAY_S,
            "leave": False,
            "bar_format": look,
        }
        self._name, self._begun, self._bar = name, 0, tqdm(total=count, desc=name, **options)

    def __call__(self, name: str) -> Callable[[int, int], None]:
        """Begin the next step: what was left of the last one counts as done."""
        self._bar.set_description(f"{self._name}: {name}", refresh=False)
        self._bar.update(self._begun - self._bar.n)
        self._begun += 1

        def done(parts: int, total: int) -> None:
            self._bar.update(min(parts / total, self._begun - self._bar.n))

        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()


def judge(result: Any, min_trades: int = MIN_TRADES) -> Verdict:
    """Return the verdict on a ``SweepResult``; see its ``verdict``."""
    with Steps("verdict", 6, shown=result.progress) as step:
        return _judge(result, min_trades, step)


def _judge(result: Any, min_trades: int, step: Steps) -> Verdict:
    step("assumptions and session.check()")
    caveats, doubts = _caveats(result)
    try:
        row, count = _candidate(result, min_trades)
        found = _Evidence.of(result, row, min_trades, step)
    except SweepError as error:
        metrics = {"n_trials": result.n_trials, "min_trades": min_trades, "data_warnings": doubts}
        return Verdict("insufficient", [f"{str(error)[0].upper()}{str(error)[1:]}."], caveats, metrics)
    own = {"row": row, "n_trades": count, "min_trades": min_trades, "data_warnings": doubts}
    metrics = {**own, **found.metrics}
    level: Level = "supported"
    if not found.net > 0 or not found.deflated.probability >= CONFIDENCE:
        level = "luck"
    elif found.loses_later:
        # Before the SPA test: its blocks of time see an edge that came and went as a large variance.
        level = "fails_out_of_sample"
    elif not found.spa <= 1 - CONFIDENCE:
        level = "luck"
    return Verdict(level, found.reasons(row, count), caveats, metrics, found.arrays)


def _candidate(result: Any, min_trades: int) -> tuple[int, int]:
    """Return the best row with enough trades and how many it has; raises SweepError where there is none."""
    top = result.best(1, min_trades=min_trades)
    most = int(result.frame["n_trades"].max() or 0)
    if not top.height or not top["enough_trades"][0]:
        refused = int(result.frame["n_rejected"].max() or 0)
        raise SweepError(
            f"no combination has {min_trades} trades: the most is {most}; "
            + (
                f"up to {refused:,} entries were rejected, smaller than the exchange takes: see notional_usd, rounding"
                if refused > most
                else "take a longer session or a lower threshold"
            )
        )
    return int(top["row"][0]), int(top["n_trades"][0])


@dataclass
class _Evidence:
    """The tests of one row among the others of its sweep."""

    net: float
    deflated: Deflated
    spa: float
    overfitting: Overfitting
    later: list[float]
    metrics: dict[str, Any]
    arrays: dict[str, Any]

    @classmethod
    def of(cls, result: Any, row: int, min_trades: int, step: Steps) -> _Evidence:
        step("PnL by period")
        rows, pnl = result.pnl_by_period(PERIODS)
        place = rows.index(row)
        step("trades of the best combination")
        trades = result.trades(row)
        own = trades["realized_pnl"].to_numpy()
        shape = moments(np.append(own, _one_more_stop(trades, result.params_of(row).sl_pct)))
        if not math.isfinite(shape.sharpe):
            raise SweepError(
                f"the best combination (row {row}) made the same in every trade: it has no Sharpe ratio"
            )
        resamples = step("SPA test")
        independent = effective_trials(pnl)
        # Earlier sweeps on this tape are taken to repeat each other as much as this one does.
        trials = independent * result.n_trials / max(result.frame.height, 1)
        deflated = deflated_sharpe_ratio(shape, trials)
        spa = superior_predictive_ability(pnl, done=resamples)
        splits = step("overfitting")
        if pnl.shape[1] > 1:
            split = overfitting_probability(pnl, _BLOCKS, done=splits)
        else:
            split = overfitting_probability(np.column_stack([pnl, np.zeros(len(pnl))]), _BLOCKS, "mean")
        step("walk-forward and intervals")
        steps = walk_forward_steps(pnl, PERIODS // 2, PERIODS // 8, expanding=True)
        later = [step.out_of_sample for step in steps]
        spread = bootstrap_intervals(pnl[:, place])
        metrics = {
            "net_pnl": float(own.sum()),
            "net_pnl_interval": list(spread.total),
            "sharpe_per_trade": moments(own).sharpe,
            "sharpe_per_period_interval": list(spread.sharpe),
            "psr": probabilistic_sharpe_ratio(shape.sharpe, shape.count, shape.skew, shape.kurtosis),
            "dsr": deflated.probability,
            "luck_sharpe": deflated.threshold,
            "min_track_record": min_track_record(shape.sharpe, shape.skew, shape.kurtosis),
            "trades_needed": _trades_needed(shape.sharpe, trials),
            "n_trials": result.n_trials,
            "effective_trials": trials,
            "spa_p_value": spa.p_value,
            "pbo": split.probability,
            "loss_probability": split.loss_probability,
            "walk_forward_pnl": float(sum(later)),
            "walk_forward_won": sum(one > 0 for one in later),
            "walk_forward_steps": len(later),
        }
        ratios = result.frame.filter(result.frame["n_trades"] >= min_trades)["sharpe_per_trade"].drop_nulls()
        arrays = {
            "pnl": pnl[:, place],
            "edges": result.clock().edges,
            "sharpes": ratios.to_numpy(),
            "luck": deflated.threshold,
            "best": metrics["sharpe_per_trade"],
            "in_sample": split.in_sample,
            "out_of_sample": split.out_of_sample,
            "loss_probability": split.loss_probability,
            "later": later,
        }
        return cls(float(own.sum()), deflated, spa.p_value, split, later, metrics, arrays)

    @property
    def loses_later(self) -> bool:
        return sum(self.later) <= 0 or self.overfitting.loss_probability > 0.5

    def reasons(self, row: int, count: int) -> list[str]:
        m = self.metrics
        low, high = m["net_pnl_interval"]
        lines = [
            f"Best combination (row {row}): net PnL {m['net_pnl']:+,.2f} USD from {count:,} trades (95 % interval "
            f"{low:+,.2f} to {high:+,.2f}), Sharpe ratio per trade {m['sharpe_per_trade']:.3f}."
        ]
        if not self.net > 0:
            lines.append("It loses money: there is nothing to support.")
        above = self.deflated.probability >= CONFIDENCE
        needed = m["trades_needed"]
        lines += [
            f"{m['n_trials']:,} trials amount to {m['effective_trials']:.3g} independent ones; the luckiest of those "
            f"shows a Sharpe ratio of {m['luck_sharpe']:.3f}: deflated Sharpe ratio {m['dsr']:.2f}, "
            f"{'above' if above else 'below'} 0.95."
            + (
                f" At this rate it takes {needed:,.0f} trades." if not above and math.isfinite(needed) else ""
            ),
            f"The best of worthless combinations does as well with p = {m['spa_p_value']:.3f} (SPA test), "
            f"{'at most' if self.spa <= 1 - CONFIDENCE else 'above'} 0.05.",
            f"Chosen on half of the time, the best combination loses on the other half in "
            f"{m['loss_probability']:.0%} of {len(self.overfitting.logits)} splits (PBO {m['pbo']:.2f}).",
            f"Walk-forward: chosen on what came before, it made {m['walk_forward_pnl']:+,.2f} USD later, with a "
            f"profit in {m['walk_forward_won']} of {m['walk_forward_steps']} stretches.",
        ]
        return lines


def _trades_needed(ratio: float, trials: float) -> float:
    """Return how many trades of this Sharpe ratio are above luck: what luck shows falls with √T, too."""
    if not ratio > 0:
        return math.inf
    mean, variance = maximum_moments(trials)
    return ((mean + float(ndtri(CONFIDENCE)) * math.sqrt(variance)) / ratio) ** 2


def _one_more_stop(trades: pl.DataFrame, sl_pct: float) -> float:
    """PnL of a trade that is stopped out in full, for the loss that a short record may not hold yet.

    Small targets with a wide stop win nearly always; until the first stop is hit their Sharpe ratio explodes.
    """
    stopped = pl.col("realized_pnl").filter(pl.col("reason") == "STOP_LOSS")
    medians = trades.select(
        (pl.col("entry_price") * pl.col("qty")).median(), pl.col("fees").median(), stopped.median()
    )
    notional, fees, loss = medians.row(0)
    stop = -(notional or 0.0) * sl_pct / 100 - (fees or 0.0)
    return float(stop if loss is None else min(stop, loss))


def _caveats(result: Any) -> tuple[list[str], int]:
    """Return assumptions, doubtful settings among those tried and warnings of the checks; how many warnings."""

    def tried(name: str) -> Sequence[Any]:
        values: Sequence[Any] = result.axes.get(name, [getattr(result.params, name)])
        return values

    lines = [line for line in (result.assumptions,) if line]
    free = [name for name in ("taker_fee_bps", "slippage_bps") if 0 in tried(name)]
    if free:
        lines.append(
            f"The parameters tried include costs of 0 ({', '.join(free)}): a strategy pays them when it trades."
        )
    checked = result.checks()
    thin = [] if checked is None else [one for one in checked if one.kind == "thin_book"]
    if thin and "print" in tried("market_fill"):
        lines.append(f'The parameters tried include market_fill="print" on a thin book: {thin[0].message}')
    doubts = [] if checked is None else checked.warnings
    return [*lines, *doubts], len(doubts)


@dataclass(frozen=True)
class WalkForwardStep:
    """One step: periods ``[train_from, train_to)`` chose ``chosen``, ``[train_to, test_to)`` report on it.

    ``in_sample``, ``out_of_sample``: the score there; ``rank``: share of trials that did worse out of sample
    (ties count half), 0.5 = no better than any.
    """

    train_from: int
    train_to: int
    test_to: int
    chosen: int
    in_sample: float
    out_of_sample: float
    rank: float


def walk_forward_steps(
    returns: npt.ArrayLike,
    train: int,
    test: int,
    *,
    score: str | Callable[[Floats], Any] = "total",
    expanding: bool = False,
    done: Callable[[int, int], Any] = lambda steps, total: None,
) -> list[WalkForwardStep]:
    """Choose the best column on ``train`` periods, report on the next ``test`` periods, step on by ``test``.

    ``score``: "total", "sharpe", or a function from (periods, trials) to one number per trial, higher better.
    ``expanding`` keeps all periods since the start for training. Of equal trials the first is chosen. ``done``: as in
    ``overfitting_probability``.
    Raises SweepError when there are too few periods for one step.
    """
    matrix = pnl_matrix(returns)
    if train < 1 or test < 1 or len(matrix) < train + test:
        raise SweepError(
            f"{len(matrix)} periods are too few for one step of {train} to choose on and {test} to report on"
        )

    def scores(part: Floats) -> Floats:
        if callable(score):
            return np.asarray(score(part), dtype=np.float64)
        if score == "total":
            return np.asarray(part.sum(axis=0))
        if score == "sharpe":
            return sharpe(part.sum(axis=0), (part**2).sum(axis=0), len(part))
        raise SweepError(f"score must be 'total', 'sharpe' or a function, found {score!r}")

    steps: list[WalkForwardStep] = []
    ends = range(train, len(matrix) - test + 1, test)
    for split in ends:
        first = 0 if expanding else split - train
        inside, outside = scores(matrix[first:split]), scores(matrix[split : split + test])
        chosen = int(np.nanargmax(inside))
        worse, same = (outside < outside[chosen]).mean(), (outside == outside[chosen]).mean()
        steps.append(
            WalkForwardStep(
                first,
                split,
                split + test,
                chosen,
                float(inside[chosen]),
                float(outside[chosen]),
                float(worse + same / 2),
            )
        )
        done(1, len(ends))
    return steps


_SCHEMA = {
    "time": pl.String,
    "tape": pl.String,
    "rows": pl.Int64,
    "grid": pl.String,
    "session_id": pl.String,
    "reason": pl.String,
}


def ledger_path(root: DataRoot, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return ``system/trials.jsonl`` of a data root, or a file in ``cache_dir`` where the root is read-only."""
    own = root.trials
    if own.exists():
        writable = os.access(own, os.W_OK)
    else:
        folder = next(place for place in own.parents if place.exists())
        writable = os.access(folder, os.W_OK)
    if writable or cache_dir is None:
        return own
    name = hashlib.sha256(os.fsencode(root.path.resolve())).hexdigest()[:16]
    return Path(cache_dir) / f"trials-{name}.jsonl"


def read_trials(path: Path) -> pl.DataFrame:
    """Return a row per sweep: ``time, tape, rows, grid, session_id, reason``; a reset has a reason and no rows.

    Lines that are no entries, such as the torn last one of a killed process, are left out.
    """
    entries: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(entry, dict):
                entries.append({name: entry.get(name) for name in _SCHEMA})
    return pl.DataFrame(entries, schema=_SCHEMA)


def add_trial(path: Path, *, tape: str, rows: int, grid: str, session_id: str | None) -> int:
    """Add a sweep and return how many other rows were tried on the same tape before, since the last reset.

    A sweep whose ``grid`` digest is in the ledger for this tape is not added again: the same cell, run twice, is one
    trial. Safe with several processes: under a lock, one ``write`` for each line. A ledger that cannot be written only
    counts what it holds.
    """
    try:
        with lock(path.with_suffix(".lock"), timeout=10.0):
            known = current_trials(path).filter(pl.col("tape") == tape)
            if grid not in known["grid"]:
                entry = {
                    "time": iso(now_ns()),
                    "tape": tape,
                    "rows": rows,
                    "grid": grid,
                    "session_id": session_id,
                }
                _append(path, entry)
    except OSError:
        known = current_trials(path).filter(pl.col("tape") == tape)
    return int(known.filter(pl.col("grid") != grid)["rows"].sum())


def current_trials(path: Path) -> pl.DataFrame:
    """Return the entries after the last reset."""
    entries = read_trials(path).with_row_index("line")
    resets = entries.filter(pl.col("reason").is_not_null())["line"].max()
    return entries.filter(pl.col("line") > (-1 if resets is None else resets)).drop("line")


def reset_trials(path: Path, reason: str) -> None:
    """Start the count again. ``reason`` stays in the ledger; raises SweepError without one."""
    if not reason.strip():
        raise SweepError("reset of the trial ledger: expected a reason, found an empty one")
    with lock(path.with_suffix(".lock"), timeout=10.0):
        _append(path, {"time": iso(now_ns()), "reason": reason})


def _append(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(fd, orjson.dumps(entry) + b"\n")
    finally:
        os.close(fd)
