"""What a sweep and a backtest return: metrics, trades, plots, and how far the best row may be trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

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
    Moments,
    Overfitting,
    deflated_sharpe_ratio,
    moments,
    overfitting_probability,
    period_edges,
    period_pnl,
    plateaus,
    walk_forward_steps,
)
from replaylab.timestamps import period_ns
from replaylab.trading import assumptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def assumptions_of(tape: Tape, ran: Resolved[TradingParams], **options: Any) -> str:
    """Return what a result over a tape rests on, in one line; options: those of ``trading.assumptions``."""
    starts = tape.arrays.price_from
    times = {
        symbol: pl.Series(tape.arrays.price_ts[starts[k] : starts[k + 1]])
        for k, symbol in enumerate(tape.symbols)
    }
    return assumptions(tape.prices, times, ran, **options)


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


@dataclass(repr=False, kw_only=True)
class SweepResult(Outcome):
    """The metrics of every combination, and the trades of any.

    >>> result.best(5), result.trades(0), result.heatmap("tp1_pct", "sl_pct")                    # doctest: +SKIP
    >>> result.deflated_sharpe().probability, result.overfitting().probability                   # doctest: +SKIP

    ``frame``: a row per combination, the grid's columns, then the metrics. ``axes`` maps the grid's columns to their
    distinct values. ``left_out`` counts contradictory combinations that were not run. ``trades_of``: the trades of a
    row with its parameters; None in a loaded result. ``span``: first and last time of the session in nanoseconds.
    ``earlier_trials``: how many combinations were tried on the same data before; they count as trials, too.
    """

    frame: pl.DataFrame
    axes: dict[str, list[Any]]
    digest: str | None = None
    trades_of: Callable[[int, TradingParams], pl.DataFrame] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    method: str = ""
    span: tuple[int, int] | None = None
    earlier_trials: int = 0
    saved_moments: Moments | None = None

    def __repr__(self) -> str:
        return (
            f"<SweepResult: {self.frame.height:,} combinations of {', '.join(self.axes)} "
            f"over {self.session_id}; {self.setup}>"
        )

    def _repr_html_(self) -> str:
        """Best rows, trial count and deflated Sharpe ratio; computes the trades of the best row, and nothing else."""
        best = self.best(5)
        columns = ["row", *self.axes, *(name for name in _SHOWN if name in best.columns)]
        right = "style='text-align:right'"
        head = "".join(f"<th {right}>{escape(name)}</th>" for name in columns)
        body = "".join(
            f"<tr>{''.join(f'<td {right}>{_cell(row[name])}</td>' for name in columns)}</tr>"
            for row in best.iter_rows(named=True)
        )
        left = "".join(f" · {count:,} left out: {escape(why)}" for why, count in self.left_out.items())
        return (
            f"<div><b>Sweep of {self.frame.height:,} combinations</b> over {escape(str(self.session_id))}{left}"
            f"<br>{self.n_trials:,} trials · {self._judgement()}<br>{escape(self.assumptions)}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
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
        names = [name for name in self.axes if not name.startswith("scoring.")]
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

    def best(self, n: int = 10, by: str = "net_pnl") -> pl.DataFrame:
        """Return the ``n`` rows with the highest ``by``, best first, with their ``row`` numbers."""
        self._column(by)
        ranked = self.frame.with_row_index("row")
        return ranked.sort(by, descending=True, nulls_last=True, maintain_order=True).head(n)

    def best_row(self, by: str = "net_pnl") -> int:
        """Return the number of the row with the highest ``by``; raises SweepError where no row has one."""
        top = self.best(1, by).drop_nulls(by)
        if not top.height:
            raise SweepError(f"no combination has a {by}: there were no trades")
        return int(top["row"][0])

    # How far the best row may be trusted

    def deflated_sharpe(self, row: int | None = None, by: str = "net_pnl") -> Deflated:
        """Return the deflated Sharpe ratio (per trade) of a row; by default of the best ``by``.

        All rows count as trials, and ``earlier_trials``. Neighbours on a fine grid are not independent, which makes
        this a strict test. Rows with other numbers of trades are made comparable by ``√n``. A loaded result knows
        the shape of the trades' distribution for the row with the best net PnL only; any other row is taken as normal.
        """
        chosen = self.best_row(by) if row is None else row
        sharpes = self.frame["sharpe_per_trade"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        counts = self.frame["n_trades"].to_numpy()
        return deflated_sharpe_ratio(self._moments(chosen), sharpes, self.n_trials, trial_counts=counts)

    def returns(self, row: int, every: str | timedelta = "1d") -> pl.DataFrame:
        """Return ``timestamp`` (start of each UTC period) and ``pnl`` (USD): realised by exits, 0 in quiet periods."""
        edges = period_edges(self._span(), period_ns(every))
        pnl = period_pnl(self.trades, [row], edges)[:, 0]
        return pl.DataFrame({"timestamp": pl.Series(edges[:-1]).cast(_UTC), "pnl": pnl})

    def overfitting(
        self,
        n_blocks: int = 16,
        every: str | timedelta | None = None,
        *,
        score: str = "sharpe",
        max_trials: int = 500,
        max_splits: int | None = None,
    ) -> Overfitting:
        """Return the probability of backtest overfitting (PBO) of choosing the best combination.

        PnL in periods of ``every`` (default: 8 periods to a block) of at most ``max_trials`` rows spread evenly over
        the result; ``plots.overfitting`` draws it. Raises SweepError when the session is too short.
        """
        rows = self._spread(max_trials)
        span = self._span()
        length = max(1, (span[1] - span[0]) // (8 * n_blocks)) if every is None else period_ns(every)
        pnl = period_pnl(self.trades, rows, period_edges(span, length))
        return overfitting_probability(pnl, n_blocks, score, max_splits)

    def walk_forward(
        self,
        train: str | timedelta,
        test: str | timedelta,
        *,
        every: str | timedelta | None = None,
        score: str = "total",
        expanding: bool = False,
        max_trials: int = 1_000,
    ) -> pl.DataFrame:
        """Choose on one stretch of time, report on the next, step on; a row per step.

        ``test`` is the step, ``train`` a multiple of it ("6h" and "1h"). Columns: ``train_start, test_start, test_end,
        row``, the axes, ``in_sample`` and ``out_of_sample``, ``rank`` (share of combinations that did worse out of
        sample). The scores compare: for "total" mean PnL (USD) per ``every`` (default: ``test``), for "sharpe" the
        Sharpe ratio of such periods (``every`` must then divide ``test``). A trade counts where it closes. At
        most ``max_trials`` rows spread evenly over the result take part. ``plots.walk_forward`` draws it.
        """
        step, window = period_ns(test), period_ns(train)
        length = step if every is None else period_ns(every)
        if window % step or step % length:
            raise SweepError(
                f"train ({train}) must be a multiple of test ({test}), and test of every ({every})"
            )
        if score == "sharpe" and step < 2 * length:
            raise SweepError("a Sharpe ratio needs two periods in each test: name a shorter every")
        rows = self._spread(max_trials)
        edges = period_edges(self._span(), length)
        pnl = period_pnl(self.trades, rows, edges)
        steps = walk_forward_steps(pnl, window // length, step // length, score=score, expanding=expanding)
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

    def robustness(self, n: int = 10, by: str = "net_pnl") -> pl.DataFrame:
        """Return the ``n`` rows on the best plateaus: ``neighbours, neighbour_mean, neighbour_min, robustness``.

        ``robustness`` is mean − standard deviation of ``by`` over a row and its neighbours on the grid.
        """
        self._column(by)
        scored = plateaus(self.frame.with_row_index("row"), list(self.axes), by)
        return scored.sort("robustness", descending=True, nulls_last=True, maintain_order=True).head(n)

    # Plots

    def heatmap(
        self,
        x: str,
        y: str,
        value: str = "net_pnl",
        *,
        fixed: Mapping[str, Any] | None = None,
        how: str = "max",
        title: str | None = None,
    ) -> Figure:
        """Draw ``value`` over two axes; other axes are ``fixed`` at a value, or the best (``how``) of theirs."""
        from replaylab import plots

        for name in (x, y, value):
            self._column(name)
        return plots.heatmap(self._at(fixed), x, y, value, title, how=how)

    def slices(
        self,
        value: str = "net_pnl",
        axes: Sequence[str] | None = None,
        *,
        fixed: Mapping[str, Any] | None = None,
    ) -> Figure:
        """Draw best, middle half and median of ``value`` along each axis."""
        from replaylab import plots

        return plots.slices(self._at(fixed), self._varied(axes), value)

    def parallel_coordinates(
        self, value: str = "net_pnl", axes: Sequence[str] | None = None, *, n: int = 300
    ) -> Figure:
        """Draw combinations as lines across all axes."""
        from replaylab import plots

        return plots.parallel_coordinates(self.frame, self._varied(axes), value, n=n)

    def equity(self, rows: Sequence[int] | None = None) -> Figure:
        """Draw equity and drawdown of chosen rows (default: the best three)."""
        from replaylab import plots

        chosen = self.best(3)["row"].to_list() if rows is None else rows
        return plots.equity({f"row {row}": self.trades(row) for row in chosen})

    # Storage

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the frame as Parquet, with parameters, session digest, trial count and version in its metadata.

        The file appears whole or not at all. Returns its path.
        """
        try:
            shape = asdict(self._moments(self.best_row()))
        except SweepError:
            shape = None
        names = ("session_id", "digest", "left_out", "method", "span", "earlier_trials", "params_source")
        about = {
            "version": __version__,
            "params": self.params.to_dict(),
            "axes": list(self.axes),
            **{name: getattr(self, name) for name in names},
            "changes": self.changes,
            "assumptions": self.assumptions,
            "best_moments": shape,
        }
        table = self.frame.to_arrow()
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(about).encode()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as half:
            pq.write_table(table.replace_schema_metadata(metadata), half, compression="zstd")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a saved result: metrics without trades. Raises SweepError for any other file."""
        try:
            table = pq.read_table(Path(path))
        except pa.ArrowInvalid as error:
            raise SweepError(f"{path}: not a saved sweep: {error}") from None
        about = (table.schema.metadata or {}).get(_KEY)
        if about is None:
            raise SweepError(f"{path}: not a saved sweep: its metadata holds no {_KEY.decode()}")
        known = json.loads(about)
        frame = pl.DataFrame(table)
        shape, span, assumed = known.get("best_moments"), known.get("span"), known.get("assumptions", "")
        return cls(
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
            saved_moments=None if shape is None else Moments(**shape),
            assume=lambda: str(assumed),
        )

    def _judgement(self) -> str:
        try:
            found = self.deflated_sharpe()
        except SweepError as error:
            return escape(str(error))
        if found.probability != found.probability:
            return f"best row: too few trades ({found.moments.count}) to judge"
        answer = (
            "more than luck would show at the 95 % level"
            if found.probability >= 0.95
            else "not distinguishable from the luckiest of that many trials"
        )
        return (
            f"best row: Sharpe per trade {found.sharpe:.3f}, luck alone would show {found.threshold:.3f}, "
            f"<b>deflated Sharpe ratio {found.probability:.2f}</b> ({answer})"
        )

    def _moments(self, row: int) -> Moments:
        """Sharpe ratio and shape of a row's PnL per trade."""
        if self.trades_of is not None:
            return moments(self.trades(row)["realized_pnl"].to_numpy())
        if self.saved_moments is not None and row == self.best_row():
            return self.saved_moments
        count, ratio = self.frame["n_trades"][row], self.frame["sharpe_per_trade"][row]
        return Moments(int(count), float("nan") if ratio is None else float(ratio), 0.0, 3.0)

    def _spread(self, most: int) -> list[int]:
        count = min(self.frame.height, most)
        return np.unique(np.linspace(0, self.frame.height - 1, count).astype(int)).tolist() if count else []

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


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else escape(f"{value:,}" if type(value) is int else str(value))
    )
