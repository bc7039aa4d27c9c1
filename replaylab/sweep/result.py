"""What a sweep and a backtest hand back: figures, trades, pictures, and how far the best may be trusted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from replaylab.errors import SweepError, did_you_mean
from replaylab.params import TradingParams
from replaylab.sweep import storage
from replaylab.sweep.periods import UTC_TIME, every_ns, period_edges, period_pnl
from replaylab.sweep.plateaus import plateaus
from replaylab.sweep.statistics import (
    Deflated,
    Moments,
    Overfitting,
    deflated_sharpe_ratio,
    moments,
    overfitting_probability,
    walk_forward_steps,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Backtest", "SweepResult"]


def _same(frame: pl.DataFrame) -> Any:
    return frame


@dataclass
class Backtest:
    """One combination: ``trades`` (a row per trade), ``figures`` (by name), ``equity`` (timestamp, equity)."""

    trades: Any
    figures: dict[str, Any]
    equity: Any
    params: TradingParams
    session_id: str | None = None


@dataclass(repr=False)
class SweepResult:
    """The figures of every combination, and the trades of any.

    >>> result.best(5), result.trades(0), result.heatmap("tp1_pct", "sl_pct")                    # doctest: +SKIP
    >>> result.deflated_sharpe().probability, result.overfitting().probability                   # doctest: +SKIP

    ``axes`` maps the grid's columns to their distinct values. ``left_out`` counts contradictory combinations that
    were not run. ``trades_of_row`` takes the place of ``trades_of`` where rows differ in more than trading parameters.
    ``span``: first and last time of the session in nanoseconds. ``earlier_trials``: add here what was
    tried on the same data before; luck does not forget it.
    """

    data: pl.DataFrame
    axes: dict[str, list[Any]]
    params: TradingParams
    session_id: str | None = None
    digest: str | None = None
    trades_of: Callable[[TradingParams], pl.DataFrame] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    method: str = ""
    give: Callable[[pl.DataFrame], Any] = _same
    span: tuple[int, int] | None = None
    earlier_trials: int = 0
    saved_moments: Moments | None = None
    trades_of_row: Callable[[int], pl.DataFrame] | None = None

    def __repr__(self) -> str:
        return f"<SweepResult: {self.data.height:,} combinations of {', '.join(self.axes)} over {self.session_id}>"

    def _repr_html_(self) -> str:
        from replaylab.sweep.report import html

        return html(self)

    @property
    def frame(self) -> Any:
        """A row per combination: the grid's columns, then the figures."""
        return self.give(self.data)

    @property
    def n_trials(self) -> int:
        """How many combinations were tried on this data: the rows, and ``earlier_trials``."""
        return self.data.height + self.earlier_trials

    def params_of(self, row: int) -> TradingParams:
        """Return the full parameters of one row of ``frame``."""
        if not 0 <= row < self.data.height:
            raise SweepError(f"row {row}: this result has rows 0 to {self.data.height - 1}")
        # Axes of the scoring engine shape the signals, not the trading parameters.
        names = [name for name in self.axes if not name.startswith("scoring.")]
        values = self.data.select(names).row(row, named=True) if names else {}
        regimes = values.get("allowed_regimes")
        if regimes is not None:
            values["allowed_regimes"] = tuple(name for name in regimes.split("|") if name)
        return self.params.replace(**values)

    def trades(self, row: int) -> Any:
        """Return the trades of one row of ``frame``, in order of their exits."""
        return self.give(self._trades(row))

    def best(self, n: int = 10, by: str = "net_pnl") -> Any:
        """Return the ``n`` rows with the highest ``by``, best first, with their ``row`` numbers."""
        return self.give(self._best(n, by))

    def best_row(self, by: str = "net_pnl") -> int:
        """Return the number of the row with the highest ``by``; raises SweepError where no row has one."""
        top = self._best(1, by).drop_nulls(by)
        if not top.height:
            raise SweepError(f"no combination has a {by}: there were no trades")
        return int(top["row"][0])

    # How far the best may be trusted

    def deflated_sharpe(self, row: int | None = None, by: str = "net_pnl") -> Deflated:
        """Return the deflated Sharpe ratio (per trade) of a row; by default of the best ``by``.

        All rows count as trials, and ``earlier_trials``. Neighbours on a fine grid are not independent, which makes
        this a strict judge. Rows with other numbers of trades are made comparable by ``√n``. A loaded result knows
        the shape of the trades' distribution for the row with the best net PnL only; any other row is taken as normal.
        """
        chosen = self.best_row(by) if row is None else row
        sharpes = self.data["sharpe_per_trade"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        counts = self.data["n_trades"].to_numpy()
        return deflated_sharpe_ratio(self._moments(chosen), sharpes, self.n_trials, trial_counts=counts)

    def returns(self, row: int, every: str | timedelta = "1d") -> Any:
        """Return ``timestamp`` (start of each UTC period) and ``pnl`` (USD): realised by exits, 0 in quiet periods."""
        edges = period_edges(self._span([row]), every_ns(every))
        pnl = period_pnl(self._trades, [row], edges)[:, 0]
        return self.give(pl.DataFrame({"timestamp": pl.Series(edges[:-1]).cast(UTC_TIME), "pnl": pnl}))

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
        the result; ``plots.overfitting`` draws the answer. Raises SweepError when the session is too short.
        """
        rows = self._spread(max_trials)
        span = self._span(rows)
        length = max(1, (span[1] - span[0]) // (8 * n_blocks)) if every is None else every_ns(every)
        pnl = period_pnl(self._trades, rows, period_edges(span, length))
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
    ) -> Any:
        """Choose on one stretch of time, report on the next, roll on; a row per step.

        ``test`` is the step, ``train`` a multiple of it ("6h" and "1h"). Columns: ``train_start, test_start, test_end,
        row``, the axes, ``in_sample`` and ``out_of_sample``, ``rank`` (share of combinations that did worse out of
        sample). The scores compare: for "total" mean PnL (USD) per ``every`` (default: ``test``), for "sharpe" the
        Sharpe ratio of such periods (``every`` must then divide ``test``). A trade counts where it closes. At
        most ``max_trials`` rows spread evenly over the result take part. ``plots.walk_forward`` draws it.
        """
        step, window = every_ns(test), every_ns(train)
        length = step if every is None else every_ns(every)
        if window % step or step % length:
            raise SweepError(
                f"train ({train}) must be a multiple of test ({test}), and test of every ({every})"
            )
        if score == "sharpe" and step < 2 * length:
            raise SweepError("a Sharpe ratio needs two periods in each test: name a shorter every")
        rows = self._spread(max_trials)
        edges = period_edges(self._span(rows), length)
        pnl = period_pnl(self._trades, rows, edges)
        steps = walk_forward_steps(pnl, window // length, step // length, score=score, expanding=expanding)
        ends = {
            "train_start": [edges[one.train_from] for one in steps],
            "test_start": [edges[one.train_to] for one in steps],
            "test_end": [edges[one.test_to] for one in steps],
        }
        places = [rows[one.chosen] for one in steps]
        per_period = score == "total"
        columns = {
            **{name: pl.Series(ns, dtype=pl.Int64).cast(UTC_TIME) for name, ns in ends.items()},
            "row": pl.Series(places, dtype=pl.Int64),
            **self.data.select(self.axes.keys())[places].to_dict(),
            "in_sample": [
                one.in_sample / (one.train_to - one.train_from if per_period else 1) for one in steps
            ],
            "out_of_sample": [
                one.out_of_sample / (one.test_to - one.train_to if per_period else 1) for one in steps
            ],
            "rank": [one.rank for one in steps],
        }
        return self.give(pl.DataFrame(columns))

    def robustness(self, n: int = 10, by: str = "net_pnl") -> Any:
        """Return the ``n`` rows on the best plateaus: ``neighbours, neighbour_mean, neighbour_min, robustness``.

        ``robustness`` is mean − standard deviation of ``by`` over a row and its neighbours on the grid.
        """
        self._column(by)
        scored = plateaus(self.data.with_row_index("row"), list(self.axes), by)
        return self.give(
            scored.sort("robustness", descending=True, nulls_last=True, maintain_order=True).head(n)
        )

    # Pictures

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

        return plots.parallel_coordinates(self.data, self._varied(axes), value, n=n)

    def equity(self, rows: Sequence[int] | None = None) -> Figure:
        """Draw equity and drawdown of chosen rows (default: the best three)."""
        from replaylab import plots

        chosen = self._best(3, "net_pnl")["row"].to_list() if rows is None else rows
        return plots.equity({f"row {row}": self._trades(row) for row in chosen})

    # Keeping it

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the frame as Parquet, with parameters, session digest, trial count and version in its metadata."""
        try:
            shape = self._moments(self.best_row())
        except SweepError:
            shape = None
        return storage.write(self, shape, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepResult:
        """Return a saved result: figures without trades. Raises SweepError for any other file."""
        return cls(**storage.read(Path(path)))

    # What several of them need

    def _trades(self, row: int) -> pl.DataFrame:
        params = self.params_of(row)
        if self.trades_of_row is not None:
            return self.trades_of_row(row)
        if self.trades_of is None:
            raise SweepError(
                "a loaded result holds figures alone: run the backtest of params_of(row) for trades"
            )
        return self.trades_of(params)

    def _moments(self, row: int) -> Moments:
        """Sharpe ratio and shape of a row's PnL per trade."""
        if self.trades_of is not None or self.trades_of_row is not None:
            return moments(self._trades(row)["realized_pnl"].to_numpy())
        if self.saved_moments is not None and row == self.best_row():
            return self.saved_moments
        count, ratio = self.data["n_trades"][row], self.data["sharpe_per_trade"][row]
        return Moments(int(count), float("nan") if ratio is None else float(ratio), 0.0, 3.0)

    def _best(self, n: int, by: str) -> pl.DataFrame:
        self._column(by)
        ranked = self.data.with_row_index("row")
        return ranked.sort(by, descending=True, nulls_last=True, maintain_order=True).head(n)

    def _spread(self, most: int) -> list[int]:
        count = min(self.data.height, most)
        return np.unique(np.linspace(0, self.data.height - 1, count).astype(int)).tolist() if count else []

    def _span(self, rows: Sequence[int]) -> tuple[int, int]:
        if self.span is not None:
            return self.span
        ends: list[int] = []
        for row in rows:
            trades = self._trades(row)
            for name in ("entry_time", "exit_time"):
                ends += trades[name].dt.timestamp("ns").to_list()
        if not ends:
            raise SweepError("no combination traded: there are no returns")
        return min(ends), max(ends)

    def _varied(self, axes: Sequence[str] | None) -> list[str]:
        if axes is None:
            return [name for name, values in self.axes.items() if len(values) > 1] or list(self.axes)
        for name in axes:
            self._column(name)
        return list(axes)

    def _at(self, fixed: Mapping[str, Any] | None) -> pl.DataFrame:
        frame = self.data
        for name, value in (fixed or {}).items():
            self._column(name)
            column = pl.col(name)
            frame = frame.filter(column.is_null() if value is None else column == value)
            if not frame.height:
                raise SweepError(f"no combination has {name} = {value!r}; there are {self.axes.get(name)}")
        return frame

    def _column(self, name: str) -> None:
        if name not in self.data.columns:
            raise SweepError(f"no column {name!r}.{did_you_mean(name, self.data.columns)}")
