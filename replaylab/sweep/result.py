"""What a sweep and a backtest return: metrics, trades, plots, and how far the best row may be trusted."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab import __version__
from replaylab.errors import SweepError, did_you_mean
from replaylab.fsio import atomic_path
from replaylab.params import Resolved, Source, TradingParams
from replaylab.sweep import fills
from replaylab.sweep.evidence import (
    Deflated,
    Overfitting,
    deflated_sharpe_ratio,
    effective_trials,
    moments,
    overfitting_probability,
)
from replaylab.sweep.grid import Array, plateaus
from replaylab.sweep.verdict import MIN_TRADES, PERIODS, Steps, Verdict, judge, walk_forward_steps
from replaylab.timestamps import period_ns
from replaylab.trading import assumptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from replaylab.sessions import Findings
    from replaylab.sweep.tape import Tape

COUNTS = tuple(f"n_{reason.lower()}" for reason in fills.REASONS)
METRICS = (
    "n_trades",
    "n_wins",
    "win_rate",
    "gross_pnl",
    "fees",
    "net_pnl",
    "profit_factor",
    "expectancy",
    "max_drawdown",
    "max_win_streak",
    "max_loss_streak",
    "sharpe_per_trade",
    "avg_duration_s",
    "exposure_s",
    *COUNTS,
    "funding",
    "net_pnl_after_gaps",
    "n_thin",
    "n_expired",
    "n_rejected",
    "n_cancelled",
)
_SHOWN = ("net_pnl", "n_trades", "win_rate", "profit_factor", "max_drawdown", "sharpe_per_trade")
_KEY = b"replaylab.sweep"
_UTC = pl.Datetime("ns", "UTC")
_MOST_PERIODS = 1_000_000
# ``by_symbol``: rows × events of the sessions that are played for it.
_PLAYED = 1e8
_PART_KEY = b"replaylab.study"


class Clock(NamedTuple):
    """``periods`` of ``length`` nanoseconds from ``start`` (nanoseconds since 1970)."""

    start: int
    length: int
    periods: int

    @property
    def edges(self) -> npt.NDArray[np.int64]:
        return np.int64(self.start) + np.arange(self.periods + 1, dtype=np.int64) * np.int64(self.length)


def metrics(raw: npt.NDArray[np.float64]) -> pl.DataFrame:
    """Return a frame with the columns ``METRICS``, a row per row of raw sums; ratios without trades are null.

    Formulas: ``docs/sweep.md``.
    """
    n = raw[:, fills.N]
    profit, loss = raw[:, fills.PROFIT], raw[:, fills.LOSS]
    exposure = raw[:, fills.EXPOSURE] / 1e9
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = raw[:, fills.NET] / n
        variance = (raw[:, fills.SQUARES] - raw[:, fills.SUM] ** 2 / n) / (n - 1.0)
        # Rounding may leave a variance a hair below zero.
        sharpe = np.where(variance > 0.0, mean / np.sqrt(np.maximum(variance, 0.0)), np.nan)
        ratios = {
            "win_rate": raw[:, fills.WINS] / n,
            "profit_factor": np.where((loss == 0.0) & (profit == 0.0), np.nan, profit / loss),
            "expectancy": mean,
            "sharpe_per_trade": sharpe,
            "avg_duration_s": exposure / n,
        }
    plain: dict[str, Any] = {
        "n_trades": n.astype(np.int32),
        "n_wins": raw[:, fills.WINS].astype(np.int32),
        "gross_pnl": raw[:, fills.GROSS],
        "fees": raw[:, fills.FEES],
        "net_pnl": raw[:, fills.NET],
        "max_drawdown": raw[:, fills.DRAWDOWN],
        "max_win_streak": raw[:, fills.WIN_STREAK].astype(np.int32),
        "max_loss_streak": raw[:, fills.LOSS_STREAK].astype(np.int32),
        "exposure_s": exposure,
        "funding": raw[:, fills.FUNDING],
        "net_pnl_after_gaps": raw[:, fills.AFTER_GAPS],
    }
    for name in ("thin", "expired", "rejected", "cancelled"):
        plain[f"n_{name}"] = raw[:, getattr(fills, name.upper())].astype(np.int32)
    for k, name in enumerate(COUNTS):
        plain[name] = raw[:, fills.BY_REASON + k].astype(np.int32)
    return pl.DataFrame(
        {
            name: plain[name] if name in plain else pl.Series(name, ratios[name], nan_to_null=True)
            for name in METRICS
        }
    )


def assumptions_of(
    tape: Tape, ran: Resolved[TradingParams], more: Iterable[Tape] = (), **options: Any
) -> str:
    """Return what a result over a tape (and ``more``) rests on, in a line; options: see ``trading.assumptions``."""

    def times(tape: Tape) -> dict[str, pl.Series]:
        starts = tape.arrays.price_from
        return {
            symbol: pl.Series(tape.arrays.price_ts[starts[k] : starts[k + 1]])
            for k, symbol in enumerate(tape.symbols)
        }

    others = ((other.prices, times(other)) for other in more)
    return assumptions(tape.prices, times(tape), ran, others=others, **options)


@dataclass(repr=False, kw_only=True)
class Outcome:
    """What every result states of its run.

    ``params``: the full parameters; ``params_source``: "recorded", "config" or "given"; ``changes``:
    ``{field: (recorded, used)}``; ``assumptions``: one line with prices, fill models, holes and whose parameters.
    """

    params: TradingParams
    params_source: Source = "given"
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    session_id: str | None = None
    # Computed when first asked for: a median over a million prices takes longer than a small sweep.
    assume: Callable[[], str] = str

    @cached_property
    def assumptions(self) -> str:
        return self.assume()

    @property
    def setup(self) -> str:
        """Whose parameters ran, and what was changed in them."""
        return Resolved(self.params, self.params_source, self.changes).describe()

    def provenance(self) -> dict[str, Any]:
        """Return these fields, for a result that is made of this one."""
        names = ("params", "params_source", "changes", "session_id")
        return {**{name: getattr(self, name) for name in names}, "assume": lambda: self.assumptions}


@dataclass(repr=False, kw_only=True)
class Backtest(Outcome):
    """One combination: ``trades`` (a row per trade), ``metrics`` (by name), ``equity`` (timestamp, equity in USD)."""

    trades: pl.DataFrame
    metrics: dict[str, Any]
    equity: pl.DataFrame

    def __repr__(self) -> str:
        n, pnl = self.metrics["n_trades"], self.metrics["net_pnl"]
        return f"<Backtest of {self.session_id}: {n:,} trades, net PnL {pnl:+,.2f} USD; {self.setup}>"

    def _repr_html_(self) -> str:
        """The metrics and what they rest on; the trades are in ``trades``."""
        left = "style='text-align:left'"
        body = "".join(
            f"<tr><td {left}>{escape(name)}</td><td>{_cell(value)}</td></tr>"
            for name, value in self.metrics.items()
        )
        about = f"<b>Backtest of {escape(str(self.session_id))}</b> · {escape(str(self.setup))}"
        return f"<div>{about}<table><tbody>{body}</tbody></table>{escape(self.assumptions or '')}</div>"


@dataclass(repr=False, kw_only=True)
class SweepResult(Outcome):
    """The metrics of every combination, and the trades of any.

    >>> result.best(5), result.trades(0), result.heatmap("tp1_pct", "sl_pct")                    # doctest: +SKIP
    >>> result.verdict(), result.walk_forward("6h", "1h"), result.overfitting()                  # doctest: +SKIP

    ``frame``: a row per combination, the grid's columns, then the metrics. ``axes`` maps the grid's columns to their
    distinct values. ``left_out`` counts contradictory combinations that were not run. ``trades_of``: the trades of a
    row with its parameters; None in a loaded result. ``pnl_of``: the PnL of chosen rows by period (see
    ``pnl_by_period``). ``checks``: the findings of ``session.check()``, None where there is no session. ``span``: first
    and last time of the session in nanoseconds. ``earlier_trials``: how many combinations were tried on the same tape
    before, by the ledger of the data root; they count as trials, too. ``progress``: show bars over the statistics, too.
    """

    frame: pl.DataFrame
    axes: dict[str, list[Any]]
    digest: str | None = None
    trades_of: Callable[[int, TradingParams], pl.DataFrame] | None = None
    pnl_of: Callable[[list[int], Clock], npt.NDArray[np.float64]] | None = None
    checks: Callable[[], Findings | None] = lambda: None
    left_out: dict[str, int] = field(default_factory=dict)
    method: str = ""
    span: tuple[int, int] | None = None
    earlier_trials: int = 0
    saved_verdict: Verdict | None = None
    progress: bool = False

    def __repr__(self) -> str:
        return (
            f"<SweepResult: {self.frame.height:,} combinations of {', '.join(self.axes)} "
            f"over {self.session_id}; {self.setup}>\n{self.verdict()!r}"
        )

    def _repr_html_(self) -> str:
        """Best rows and the verdict."""
        best = self.best(5)
        columns = ["row", *self.axes, *(name for name in _SHOWN if name in best.columns)]
        right = "style='text-align:right'"
        head = "".join(f"<th {right}>{escape(name)}</th>" for name in columns)
        few = " style='opacity:0.5'"
        body = "".join(
            f"<tr{'' if row['enough_trades'] else few}>"
            f"{''.join(f'<td {right}>{_cell(row[name])}</td>' for name in columns)}</tr>"
            for row in best.iter_rows(named=True)
        )
        if not best["enough_trades"].all():
            body += f"<tr><td colspan={len(columns)}>pale: fewer than {MIN_TRADES} trades</td></tr>"
        left = "".join(f" · {count:,} left out: {escape(why)}" for why, count in self.left_out.items())
        return (
            f"<div><b>Sweep of {self.frame.height:,} combinations</b> over {escape(str(self.session_id))}{left}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{self.verdict()._repr_html_()}</div>"
        )

    @property
    def n_trials(self) -> int:
        """How many combinations were tried on this data: the rows, and ``earlier_trials``."""
        return self.frame.height + self.earlier_trials

    def params_of(self, row: int) -> TradingParams:
        """Return the full parameters of one row of ``frame``."""
        if not 0 <= row < self.frame.height:
            raise SweepError(f"row {row}: this result has rows 0 to {self.frame.height - 1}")
        # Axes of the scoring engine shape the signals, not the trading parameters.
        names = [name for name in self.axes if not name.startswith(("scoring.", "rule."))]
        values = self.frame.select(names).row(row, named=True) if names else {}
        regimes = values.get("allowed_regimes")
        if regimes is not None:
            values["allowed_regimes"] = tuple(name for name in regimes.split("|") if name)
        return self.params.replace(**values)

    def trades(self, row: int) -> pl.DataFrame:
        """Return the trades of one row of ``frame``, in order of their exits."""
        params = self.params_of(row)
        if self.trades_of is None:
            raise SweepError(
                "a loaded result holds metrics alone: run the backtest of params_of(row) for its trades"
            )
        return self.trades_of(row, params)

    def best(self, n: int = 10, by: str = "net_pnl", min_trades: int = MIN_TRADES) -> pl.DataFrame:
        """Return the ``n`` rows with the highest ``by``, best first, with their ``row`` numbers.

        Rows with fewer than ``min_trades`` trades come after all others (False in ``enough_trades``), rows without
        trades last. ``row``, ``by``, ``net_pnl``, ``n_trades``, ``enough_trades`` and the axes are the first columns.
        """
        self._column(by)
        first = ("row", by, "net_pnl", "n_trades", "enough_trades", *self.axes)
        return self._ranked(self.frame.with_row_index("row"), by, min_trades, n).select(
            *dict.fromkeys(first), pl.exclude(*first)
        )

    def best_row(self, by: str = "net_pnl", min_trades: int = MIN_TRADES) -> int:
        """Return the number of the first row of ``best``; raises SweepError where no row has a value of ``by``."""
        top = self.best(1, by, min_trades).drop_nulls(by)
        if not top.height:
            raise SweepError(f"no combination has a {by}: there were no trades")
        return int(top["row"][0])

    def _ranked(self, frame: pl.DataFrame, by: str, min_trades: int, n: int) -> pl.DataFrame:
        marked = frame.with_columns(enough_trades=pl.col("n_trades") >= min_trades)
        order = [pl.col("enough_trades"), pl.col("n_trades") > 0, pl.col(by)]
        return marked.sort(order, descending=True, nulls_last=True, maintain_order=True).head(n)

    # How far the best row may be trusted

    def verdict(self, min_trades: int = MIN_TRADES) -> Verdict:
        """Return whether the best combination is more than luck and holds out of sample: ``level`` and ``reasons``.

        Asked in this order: has it ``min_trades`` trades (else "insufficient"); does it earn, with a deflated Sharpe
        ratio of 0.95 (else "luck"); does what is chosen on a part of the time earn on the rest (else
        "fails_out_of_sample"); is the p-value of the SPA test at most 0.05 (else "luck"); then "supported". See
        ``docs/statistics.md``.
        """
        if self.pnl_of is None:
            return self.saved_verdict or Verdict("insufficient", ["The saved result holds no verdict."])
        if min_trades not in self._verdicts:
            self._verdicts[min_trades] = judge(self, min_trades)
        return self._verdicts[min_trades]

    @cached_property
    def _verdicts(self) -> dict[int, Verdict]:
        return {}

    def deflated_sharpe(
        self, row: int | None = None, by: str = "net_pnl", *, form: Literal["2026", "2014"] = "2026"
    ) -> Deflated:
        """Return the deflated Sharpe ratio (per trade) of a row; by default of the best ``by``.

        ``form`` "2026": the effective number of trials (of all rows and ``earlier_trials``) and the variance of
        worthless ones; "2014": the number of trials and the variance of the ratios of rows with ``MIN_TRADES`` trades.
        """
        chosen = self.best_row(by) if row is None else row
        shape = moments(self.trades(chosen)["realized_pnl"].to_numpy())
        if form == "2014":
            ratios = self.frame.filter(pl.col("n_trades") >= MIN_TRADES)["sharpe_per_trade"].drop_nulls()
            return deflated_sharpe_ratio(shape, self.n_trials, form=form, trial_sharpes=ratios.to_numpy())
        _, pnl = self.pnl_by_period()
        return deflated_sharpe_ratio(
            shape, effective_trials(pnl) * (self.n_trials / self.frame.height), form=form
        )

    def pnl_by_period(
        self, every: int | str | timedelta = PERIODS, *, max_trials: int = 10_000
    ) -> tuple[list[int], npt.NDArray[np.float64]]:
        """Return row numbers and their PnL, an array (periods, rows): realised by exits, 0 in quiet periods.

        ``every``: a length, aligned to whole periods of UTC, or how many equal periods the session is cut into. All
        rows, or ``max_trials`` spread evenly over the result and the best one. Computed at the speed of the sweep.
        """
        if self.pnl_of is None:
            raise SweepError("a loaded result holds metrics alone: run the sweep again for its PnL by period")
        clock, rows = self.clock(every), self._spread(max_trials)
        key = (clock, len(rows))
        if key not in self._pnl:
            # One array is kept: the overfitting, the verdict and its plot read the same.
            self._pnl.clear()
            self._pnl[key] = np.ascontiguousarray(self.pnl_of(rows, clock)).T
        return rows, self._pnl[key]

    @cached_property
    def _pnl(self) -> dict[Any, npt.NDArray[np.float64]]:
        return {}

    def clock(self, every: int | str | timedelta = PERIODS) -> Clock:
        """Return start, length (ns) and number of the periods of ``pnl_by_period``; raises SweepError for too many.

        Periods of a length are whole ones since 1970 (UTC) that cover both ends of the session.
        """
        span = self._span()
        if not isinstance(every, int):
            length = period_ns(every)
            first, last = span[0] // length, span[1] // length
            if last - first >= _MOST_PERIODS:
                raise SweepError(f"{last - first + 1:,} periods are too many: take longer ones")
            return Clock(first * length, length, last - first + 1)
        length = max(1, -(-(span[1] - span[0] + 1) // every))
        return Clock(span[0], length, every)

    def returns(self, row: int, every: str | timedelta = "1d") -> pl.DataFrame:
        """Return ``timestamp`` (start of each UTC period) and ``pnl`` (USD): realised by exits, 0 in quiet periods."""
        if self.pnl_of is None:
            raise SweepError("a loaded result holds metrics alone: run the sweep again for its PnL by period")
        clock = self.clock(every)
        pnl = self.pnl_of([row], clock)[0]
        return pl.DataFrame({"timestamp": pl.Series(clock.edges[:-1]).cast(_UTC), "pnl": pnl})

    def overfitting(
        self,
        n_blocks: int = 16,
        every: str | timedelta | None = None,
        *,
        score: str = "sharpe",
        max_trials: int = 10_000,
        max_splits: int | None = 1_000,
    ) -> Overfitting:
        """Return the probability of backtest overfitting (PBO) of choosing the best combination.

        Read it with ``loss_probability``: where rows differ by what they pay in costs, the order of losers repeats
        itself out of sample, and PBO is small for noise. PnL in periods of ``every`` (default: 96 or a few more, as
        ``n_blocks`` divides) of at most ``max_trials`` rows, the best always among them; ``max_splits`` spread evenly
        over all splits. ``plots.overfitting`` draws it. Raises SweepError when the session is too short.
        """
        length = n_blocks * max(2, -(-PERIODS // n_blocks)) if every is None else every
        _, pnl = self.pnl_by_period(length, max_trials=max_trials)
        with Steps("overfitting", 1, shown=self.progress) as step:
            return overfitting_probability(pnl, n_blocks, score, max_splits, done=step("splits"))

    def walk_forward(
        self,
        train: str | timedelta,
        test: str | timedelta,
        *,
        every: str | timedelta | None = None,
        score: str = "total",
        expanding: bool = False,
        max_trials: int = 10_000,
    ) -> pl.DataFrame:
        """Choose on one stretch of time, report on the next, step on; a row per step.

        ``test`` is the step, ``train`` a multiple of it ("6h" and "1h"). Columns: ``train_start, test_start, test_end,
        row``, the axes, ``in_sample`` and ``out_of_sample``, ``rank`` (share of combinations that did worse out of
        sample). The scores compare: for "total" mean PnL (USD) per ``every`` (default: ``test``), for "sharpe" the
        Sharpe ratio of such periods (``every`` must then divide ``test``). A trade counts where it closes. At
        most ``max_trials`` rows spread evenly over the result, and the best one, take part; ``plots.walk_forward``
        draws it.
        """
        step, window = period_ns(test), period_ns(train)
        length = step if every is None else period_ns(every)
        if window % step or step % length:
            raise SweepError(
                f"train ({train}) must be a multiple of test ({test}), and test of every ({every})"
            )
        if score == "sharpe" and step < 2 * length:
            raise SweepError("a Sharpe ratio needs two periods in each test: name a shorter every")
        every = test if every is None else every
        rows, pnl = self.pnl_by_period(every, max_trials=max_trials)
        edges = self.clock(every).edges
        sizes = window // length, step // length
        with Steps("walk-forward", 1, shown=self.progress) as bar:
            steps = walk_forward_steps(pnl, *sizes, score=score, expanding=expanding, done=bar("steps"))
        ends = {
            "train_start": [edges[one.train_from] for one in steps],
            "test_start": [edges[one.train_to] for one in steps],
            "test_end": [edges[one.test_to] for one in steps],
        }
        places = [rows[one.chosen] for one in steps]
        mean = score == "total"
        inside = [one.in_sample / (one.train_to - one.train_from if mean else 1) for one in steps]
        outside = [one.out_of_sample / (one.test_to - one.train_to if mean else 1) for one in steps]
        columns = {
            **{name: pl.Series(ns, dtype=pl.Int64).cast(_UTC) for name, ns in ends.items()},
            "row": pl.Series(places, dtype=pl.Int64),
            **self.frame.select(self.axes.keys())[places].to_dict(),
            "in_sample": inside,
            "out_of_sample": outside,
            "rank": [one.rank for one in steps],
        }
        return pl.DataFrame(columns)

    def robustness(self, n: int = 10, by: str = "net_pnl", min_trades: int = MIN_TRADES) -> pl.DataFrame:
        """Return the ``n`` rows on the best plateaus: ``neighbours, neighbour_mean, neighbour_min, robustness``.

        ``robustness`` is mean − standard deviation of ``by`` over a row and its neighbours on the grid. Rows with fewer
        than ``min_trades`` trades come last, as in ``best``, whose columns are the first here, too.
        """
        self._column(by)
        scored = plateaus(self.frame.with_row_index("row"), list(self.axes), by)
        own = ("neighbours", "neighbour_mean", "neighbour_min")
        first = dict.fromkeys(
            ("row", "robustness", by, "net_pnl", "n_trades", "enough_trades", *self.axes, *own)
        )
        return self._ranked(scored, "robustness", min_trades, n).select(*first, pl.exclude(*first))

    # Plots

    def heatmap(
        self,
        x: str,
        y: str,
        value: str = "net_pnl",
        *,
        fixed: Mapping[str, Any] | None = None,
        how: str = "median",
        min_trades: int = MIN_TRADES,
        title: str | None = None,
    ) -> Figure:
        """Draw ``value`` over two axes; other axes are ``fixed`` at a value, or the median (``how``) over theirs.

        Cells whose rows have fewer than ``min_trades`` trades are hatched, and never ringed.
        """
        from replaylab import plots

        for name in (x, y, value):
            self._column(name)
        return plots.heatmap(self._at(fixed), x, y, value, title, how=how, min_trades=min_trades)

    def slices(
        self,
        value: str = "net_pnl",
        axes: Sequence[str] | None = None,
        *,
        fixed: Mapping[str, Any] | None = None,
        min_trades: int = MIN_TRADES,
    ) -> Figure:
        """Draw best, middle half and median of ``value`` along each axis, of rows with ``min_trades`` trades."""
        from replaylab import plots

        return plots.slices(self._at(fixed), self._varied(axes), value, min_trades=min_trades)

    def parallel_coordinates(
        self,
        value: str = "net_pnl",
        axes: Sequence[str] | None = None,
        *,
        n: int = 300,
        min_trades: int = MIN_TRADES,
    ) -> Figure:
        """Draw combinations as lines across all axes; the best five of those with ``min_trades`` trades are thick."""
        from replaylab import plots

        return plots.parallel_coordinates(self.frame, self._varied(axes), value, n=n, min_trades=min_trades)

    def equity(self, rows: Sequence[int] | None = None) -> Figure:
        """Draw equity and drawdown of chosen rows (default: the best three)."""
        from replaylab import plots

        chosen = self.best(3)["row"].to_list() if rows is None else rows
        return plots.equity({f"row {row}": self.trades(row) for row in chosen})

    # Storage

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the frame as Parquet, with parameters, session digest, verdict and version in its metadata.

        The file appears whole or not at all. Returns its path.
        """
        names = ("session_id", "digest", "left_out", "method", "span", "earlier_trials", "params_source")
        about = {
            "version": __version__,
            "params": self.params.to_dict(),
            "axes": list(self.axes),
            **{name: getattr(self, name) for name in names},
            "changes": self.changes,
            "assumptions": self.assumptions,
            "verdict": self.verdict().to_dict(),
        }
        table = self.frame.to_arrow()
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(about).encode()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as half:
            pq.write_table(table.replace_schema_metadata(metadata), half, compression="zstd")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepResult:
        """Return a saved result: metrics and verdict, without trades. Raises SweepError for any other file."""
        try:
            table = pq.read_table(Path(path))
        except pa.ArrowInvalid as error:
            raise SweepError(f"{path}: not a saved sweep: {error}") from None
        about = (table.schema.metadata or {}).get(_KEY)
        if about is None:
            raise SweepError(f"{path}: not a saved sweep: its metadata holds no {_KEY.decode()}")
        known = json.loads(about)
        frame = pl.DataFrame(table)
        judged, span, assumed = known.get("verdict"), known.get("span"), known.get("assumptions", "")
        return SweepResult(
            frame=frame,
            axes={name: frame[name].unique(maintain_order=True).to_list() for name in known["axes"]},
            params=TradingParams.from_dict(known["params"]),
            params_source=known.get("params_source", "given"),
            changes={name: (pair[0], pair[1]) for name, pair in known.get("changes", {}).items()},
            session_id=known["session_id"],
            digest=known["digest"],
            left_out=known["left_out"],
            method=known["method"],
            span=None if span is None else (span[0], span[1]),
            earlier_trials=known.get("earlier_trials", 0),
            saved_verdict=None if judged is None else Verdict(**judged),
            assume=lambda: str(assumed),
        )

    def _spread(self, most: int) -> list[int]:
        if self.frame.height <= most:
            return list(range(self.frame.height))
        spread = np.linspace(0, self.frame.height - 1, most).astype(int)
        return [int(row) for row in np.union1d(spread, self.best(1)["row"].to_numpy())]

    def _span(self) -> tuple[int, int]:
        if self.span is None:
            raise SweepError("the session has no prices and no scores: there are no returns")
        return self.span

    def _varied(self, axes: Sequence[str] | None) -> list[str]:
        if axes is None:
            return [name for name, values in self.axes.items() if len(values) > 1] or list(self.axes)
        for name in axes:
            self._column(name)
        return list(axes)

    def _at(self, fixed: Mapping[str, Any] | None) -> pl.DataFrame:
        frame = self.frame
        for name, value in (fixed or {}).items():
            self._column(name)
            column = pl.col(name)
            frame = frame.filter(column.is_null() if value is None else column == value)
            if not frame.height:
                raise SweepError(f"no combination has {name} = {value!r}; there are {self.axes.get(name)}")
        return frame

    def _column(self, name: str) -> None:
        if name not in self.frame.columns:
            raise SweepError(f"no column {name!r}.{did_you_mean(name, self.frame.columns)}")


@dataclass(repr=False, kw_only=True)
class StudyResult(SweepResult):
    """The pooled metrics of every combination over several sessions.

    >>> study = sweep([monday, tuesday], {"sl_pct": [0.2, 0.3]})                                  # doctest: +SKIP
    >>> study.frame, study.by_session, study.by_symbol, study.trades(0)                          # doctest: +SKIP

    ``sessions``: their ids, by the start of their range. All trades count in the order of their exits, over all
    sessions. ``trades(row)`` has a column ``session_id``; its positions are those of that session. ``folder``: the sums
    of each session, a Parquet file each.
    """

    sessions: list[str]
    folder: Path
    keys: list[str]
    played: Callable[[], tuple[int, int]]

    def __repr__(self) -> str:
        head = f"<StudyResult: {self.frame.height:,} combinations of {', '.join(self.axes)} over "
        return f"{head}{self.session_id}; {self.setup}>\n{self.verdict()!r}"

    @property
    def by_session(self) -> pl.DataFrame:
        """``row``, ``session_id``, the axes and the metrics of every combination in every session."""
        found = []
        for name, key in zip(self.sessions, self.keys, strict=True):
            raw = read_part(part_path(self.folder, key), key)
            if raw is None:
                raise SweepError(
                    f"{part_path(self.folder, key)}: the sums of {name} are gone: run the sweep again"
                )
            axes = self.frame.select(self.axes.keys())
            about = [pl.Series("session_id", [name]).new_from_index(0, len(raw)), *axes.get_columns()]
            found.append(pl.DataFrame([*about, *metrics(raw)]).with_row_index("row"))
        return pl.concat(found).with_columns(pl.col("row").cast(pl.Int64))

    @cached_property
    def by_symbol(self) -> pl.DataFrame:
        """``row``, ``symbol``, the axes and the main metrics of the trades of each symbol.

        ``n_trades, n_wins, win_rate, fees, net_pnl, expectancy, max_drawdown, max_win_streak, max_loss_streak``.
        Computed from the trades of each row when first asked for. Of a large study it holds the best rows alone (by net
        PnL), with a warning that says how many.
        """
        _, events = self.played()
        most = max(10, int(_PLAYED / max(1, events)))
        rows = self.best(most)["row"].sort().to_list()
        if len(rows) < self.frame.height:
            warnings.warn(
                f"by_symbol holds the best {len(rows)} of {self.frame.height:,} combinations: it plays each",
                stacklevel=2,
            )
        names = (
            self.frame.select(self.axes.keys())
            .with_row_index("row")
            .with_columns(pl.col("row").cast(pl.Int64))
        )
        found = [self.trades(row).with_columns(row=pl.lit(row, pl.Int64)) for row in rows]
        pnl = pl.col("realized_pnl")
        won, equity = pnl > 0, pnl.cum_sum()

        def longest(chosen: pl.Expr) -> pl.Expr:
            runs = chosen.rle().struct
            return runs.field("len").filter(runs.field("value")).max().fill_null(0).cast(pl.Int32)

        return (
            pl.concat(found)
            .group_by("row", "symbol", maintain_order=True)
            .agg(
                n_trades=pl.len(),
                n_wins=won.sum(),
                win_rate=won.mean(),
                fees=pl.col("fees").sum(),
                net_pnl=pnl.sum(),
                expectancy=pnl.mean(),
                max_drawdown=(equity - equity.cum_max().clip(lower_bound=0.0)).min().clip(upper_bound=0.0),
                max_win_streak=longest(won),
                max_loss_streak=longest(pnl < 0),
            )
            .join(names, on="row")
            .sort("row", "symbol")
            .select("row", "symbol", *self.axes, pl.exclude("row", "symbol", *self.axes))
        )


def part_path(folder: Path, key: str) -> Path:
    return folder / f"{key[:32]}.parquet"


def read_part(path: Path, key: str) -> Array | None:
    """Return the raw sums of a session, None where they are not there, damaged, or of another sweep."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):
        return None
    if (table.schema.metadata or {}).get(_PART_KEY) != key.encode():
        return None
    return np.column_stack([column.to_numpy() for column in table.columns])


def write_part(path: Path, key: str, raw: Array) -> None:
    table = pa.table({f"c{k}": raw[:, k] for k in range(raw.shape[1])}, metadata={_PART_KEY: key.encode()})
    with atomic_path(path) as half:
        how = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, half, write_page_checksum=True, **how)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else escape(f"{value:,}" if type(value) is int else str(value))
    )
