"""Plots of a sweep: heatmap, slices, parallel coordinates, overfitting, walk-forward, verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.patches import Rectangle

from replaylab.plots.style import (
    INK,
    LONG,
    LOSS,
    SHORT,
    WIN,
    Plot,
    as_frame,
    empty_note,
    label,
    need,
    utc_axis,
)

# A ratio is worth what the number of its trades is worth: plots show both.
_RATIOS = ("win_rate", "profit_factor", "expectancy", "sharpe_per_trade")
_HOW = {"max": "best", "mean": "mean", "min": "worst", "median": "median"}


def heatmap(
    frame: Any,
    x: str,
    y: str,
    value: str = "net_pnl",
    title: str | None = None,
    *,
    how: str = "median",
    min_trades: int = 30,
) -> Plot:
    """Plot ``value`` over the grid of ``x`` and ``y``; the ring marks the highest cell.

    Where several rows share a cell (more axes than two), ``how`` says which is shown: "median", "max", "mean", "min".
    With a column ``n_trades``, only rows with ``min_trades`` trades enter a cell; a cell without such rows shows the
    others, is hatched and never ringed. 0 is always white, gains are blue and losses red. Up to 100 cells show their
    numbers, of a ratio with the trades that it rests on (median); cells without a value stay empty.
    """
    data = as_frame(frame)
    need(data, x, y, value)
    if how not in _HOW:
        raise ValueError(f"how must be one of {', '.join(_HOW)}, found {how!r}")
    columns, column_names = _places(data[x])
    rows, row_names = _places(data[y])
    shape = (len(row_names), len(column_names))
    values = data[value].cast(pl.Float64).to_numpy()
    enough = _enough(data, min_trades)
    cells = _cells(rows[enough], columns[enough], values[enough], shape, how)
    few = ~np.isfinite(cells)
    cells = np.where(few, _cells(rows, columns, values, shape, how), cells)
    few &= np.isfinite(cells)
    figure = Plot(7.6, 5.4)
    axes = figure.panel()
    axes.grid(visible=False)
    finite = cells[np.isfinite(cells)]
    most = float(np.abs(finite).max(initial=0.0)) or 1.0
    norm = TwoSlopeNorm(0.0, -most, most)
    image = axes.imshow(
        np.ma.masked_invalid(cells),
        origin="lower",
        aspect="auto",
        cmap="RdBu",
        norm=norm,
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    shared = len(values) > cells.size
    counted = value in _RATIOS and "n_trades" in data.columns
    trades = (
        _cells(rows, columns, data["n_trades"].cast(pl.Float64).to_numpy(), shape, "median")
        if counted
        else None
    )
    below = "" if trades is None else " (in brackets: trades)"
    bar.set_label(f"{_HOW[how] + ' ' if shared else ''}{label(value)}{below}", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    for row, column in np.argwhere(few):
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor=INK, linewidth=0, zorder=3))
    if cells.size <= 100:
        for row, column in np.argwhere(np.isfinite(cells)):
            dark = abs(cells[row, column]) > 0.6 * most
            axes.text(
                column,
                row,
                f"{cells[row, column]:,.3g}" + ("" if trades is None else f"\n({trades[row, column]:,.0f})"),
                ha="center",
                va="center",
                fontsize=8,
                color="#ffffff" if dark else "#20242a",
                zorder=4,
            )
    ringed = np.where(np.isfinite(cells) & ~few, cells, -np.inf)
    if np.isfinite(ringed).any():
        best = np.unravel_index(int(ringed.argmax()), cells.shape)
        corner = (best[1] - 0.46, best[0] - 0.46)
        for colour, width in (("#111111", 2.4), ("#ffffff", 0.9)):
            axes.add_patch(
                Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=colour, linewidth=width, zorder=5)
            )
    elif not len(finite):
        empty_note(axes, "no values")
    _ticks(axes.xaxis, column_names)
    _ticks(axes.yaxis, row_names)
    axes.set_xlabel(label(x) + (f"; hatched: fewer than {min_trades} trades" if few.any() else ""))
    axes.set_ylabel(label(y))
    if title is None and (shared or counted):
        title = (
            f"{_HOW[how].capitalize()} {label(value)} over {data.height:,} combinations{_trades(data, value)}"
        )
    figure.heading(title)
    return figure


def slices(
    frame: Any,
    axes: Sequence[str],
    value: str = "net_pnl",
    title: str | None = None,
    *,
    min_trades: int = 30,
) -> Plot:
    """Plot one panel per axis: best, middle half and median of ``value`` over all other axes.

    A best line far above the band means that only one combination of the rest does well there. Rows with fewer than
    ``min_trades`` trades (column ``n_trades``) are left out where there are others.
    """
    data = as_frame(frame)
    need(data, *axes, value)
    enough = _enough(data, min_trades)
    if enough.any() and not enough.all():
        title = title or f"{int(enough.sum()):,} of {data.height:,} combinations have {min_trades} trades"
        data = data.filter(pl.Series(enough))
    elif value in _RATIOS and title is None:
        title = f"{data.height:,} combinations{_trades(data, value)}"
    across = min(3, max(1, len(axes)))
    down = -(-len(axes) // across)
    figure = Plot(3.6 * across + 0.4, 2.9 * down + 0.3)
    first = None
    for number, name in enumerate(axes):
        panel = figure.panel(down, across, number + 1, sharey=first)
        first = first or panel
        place, names = _places(data[name])
        summary = (
            pl.DataFrame({"place": place, "value": data[value].cast(pl.Float64).fill_nan(None)})
            .group_by("place")
            .agg(
                pl.col("value").max().alias("best"),
                pl.col("value").median().alias("median"),
                pl.col("value").quantile(0.25, "linear").alias("low"),
                pl.col("value").quantile(0.75, "linear").alias("high"),
            )
            .sort("place")
        )
        spot = summary["place"].to_numpy()
        panel.fill_between(
            spot, summary["low"], summary["high"], color=LONG, alpha=0.22, linewidth=0, label="middle half"
        )
        panel.plot(
            spot, summary["median"], color=LONG, linewidth=1.6, marker="o", markersize=3, label="median"
        )
        panel.plot(spot, summary["best"], color=SHORT, linewidth=1.6, marker="o", markersize=3, label="best")
        panel.axhline(0, color=INK, linewidth=0.7)
        _ticks(panel.xaxis, names, most=6)
        panel.set_xlabel(label(name))
        if number % across == 0:
            panel.set_ylabel(label(value))
        if number == 0:
            figure.legend_for(panel, loc="best")
    figure.heading(title)
    return figure


def parallel_coordinates(
    frame: Any,
    axes: Sequence[str],
    value: str = "net_pnl",
    title: str | None = None,
    *,
    n: int = 300,
    min_trades: int = 30,
) -> Plot:
    """Plot one line per combination across all axes, coloured by ``value``; the best five are thick.

    Rows with fewer than ``min_trades`` trades (column ``n_trades``) rank after all others and are never thick. At most
    ``n`` rows are drawn: the best ``n // 3``, and the rest spread evenly over the ranks below them.
    """
    data = as_frame(frame)
    need(data, *axes, value)
    order = data.with_columns(
        pl.col(value).cast(pl.Float64).fill_nan(None), _enough=_enough(data, min_trades)
    )
    order = order.drop_nulls(value).sort("_enough", value, descending=True)
    top = min(order.height, max(5, n // 3))
    rest = (
        np.unique(np.linspace(top, order.height - 1, max(0, n - top)).astype(int))
        if order.height > n
        else None
    )
    shown = order if rest is None else order[np.concatenate([np.arange(top), rest]).tolist()]
    figure = Plot(max(6.0, 1.7 * len(axes) + 1.6), 4.6)
    panel = figure.panel()
    panel.grid(visible=False)
    lines: npt.NDArray[np.float64] = np.empty((shown.height, len(axes)))
    for column, name in enumerate(axes):
        _, names = _places(data[name])
        place, _ = _places(shown[name], names)
        lines[:, column] = place / max(1, len(names) - 1) if len(names) > 1 else 0.5
        panel.axvline(column, color=INK, linewidth=0.9)
        for spot in _chosen(len(names), 7):
            height = spot / max(1, len(names) - 1) if len(names) > 1 else 0.5
            panel.annotate(
                _text(names[spot]),
                (column, height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="#20242a",
                zorder=9,
                bbox={"facecolor": "#f2f3f5", "alpha": 0.85, "edgecolor": "none", "pad": 1.2},
            )
    values = shown[value].to_numpy()
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1)
    colours = ScalarMappable(norm, "viridis")
    lines += np.random.default_rng(0).uniform(-0.008, 0.008, size=lines.shape)  # equal lines stay apart
    for row in range(shown.height - 1, -1, -1):
        best = row < 5 and shown["_enough"][row]
        panel.plot(
            lines[row, :],
            color=colours.to_rgba(values[row]),
            linewidth=2.4 if best else 0.8,
            alpha=0.95 if best else 0.45,
        )
    bar = figure.colorbar(colours, ax=panel, pad=0.06)
    bar.set_label(label(value), color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9)
    panel.set_xticks(range(len(axes)), [label(name) for name in axes])
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.set_xlim(-0.15, len(axes) - 0.55)
    if shown.height < data.height:
        panel.set_xlabel(f"{shown.height:,} of {data.height:,} combinations")
    figure.heading(title)
    return figure


def overfitting(report: Any, title: str | None = None) -> Plot:
    """Plot CSCV: the logits, and out-of-sample against in-sample score.

    ``report``: what ``result.overfitting()`` returned.
    """
    figure = Plot(10, 4.2)
    left, right = figure.panel(1, 2, 1), figure.panel(1, 2, 2)
    logits = np.asarray(report.logits)
    edges = np.histogram_bin_edges(logits, bins=30).tolist()
    left.hist(logits[logits <= 0], bins=edges, color=LOSS, alpha=0.85, label="at or below the median")
    left.hist(logits[logits > 0], bins=edges, color=WIN, alpha=0.85, label="above the median")
    left.axvline(0, color=INK, linewidth=1)
    left.margins(y=0.28)
    left.set_xlabel("logit of the rank out of sample")
    left.set_ylabel("splits (count)")
    left.set_title(f"rank: below the median in {report.probability:.0%} of splits (PBO)", fontsize=10)
    figure.legend_for(left, loc="best")
    inside, outside = np.asarray(report.in_sample), np.asarray(report.out_of_sample)
    good = np.isfinite(inside) & np.isfinite(outside)
    right.scatter(inside[good], outside[good], s=12, color=LONG, alpha=0.4, linewidths=0)
    right.axhline(0, color=INK, linewidth=0.8)
    if np.isfinite(report.slope) and good.any():
        ends = np.array([inside[good].min(), inside[good].max()])
        line = outside[good].mean() + report.slope * (ends - inside[good].mean())
        right.plot(ends, line, color=SHORT, linewidth=1.8, label=f"slope {report.slope:+.2f}")
    right.set_xlabel("score in sample (per period)")
    right.set_ylabel("score out of sample (per period)")
    right.set_title(
        f"money: loses out of sample in {report.loss_probability:.0%} of {len(logits):,} splits", fontsize=10
    )
    figure.legend_for(right, loc="best")
    figure.heading(title)
    return figure


def verdict(
    title: str, reasons: Sequence[str], arrays: Mapping[str, Any], caveats: Sequence[str] = ()
) -> Plot:
    """Plot one page: the sentences; Sharpe ratios against luck; PnL over time; in against out of sample.

    ``arrays``: those of a ``Verdict``; without them (too few trades, a loaded result) the page has the sentences alone.
    ``caveats``: what the reasons rest on, below them.
    """
    lines = [
        line
        for start, text in (*(("• ", one) for one in reasons), *(("note: ", one) for one in caveats))
        for line in textwrap.wrap(start + text, 125, subsequent_indent="   ")
    ]
    words_inch = 0.35 + 0.165 * len(lines)
    figure = Plot(10, words_inch + (6.4 if arrays else 0.6))
    heights = [words_inch, 3.1, 3.1] if arrays else [1]
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    words = figure.panel(grid[0, :])
    words.set_axis_off()
    words.text(0.0, 1.0, "\n".join(lines), transform=words.transAxes, va="top", fontsize=8.5, color=INK)
    figure.heading(title)
    if not arrays:
        return figure
    left, right, bottom = figure.panel(grid[1, 0]), figure.panel(grid[1, 1]), figure.panel(grid[2, :])
    left.hist(arrays["sharpes"], bins=40, color=LONG, alpha=0.6, label="all combinations")
    left.axvline(arrays["luck"], color=LOSS, linewidth=1.6, linestyle="--", label="best of worthless ones")
    left.axvline(arrays["best"], color=WIN, linewidth=1.8, label="best combination")
    left.set_xlabel("Sharpe ratio (per trade)")
    left.set_ylabel("combinations (count)")
    left.margins(y=0.35)
    figure.legend_for(left, loc="best")
    right.scatter(arrays["in_sample"], arrays["out_of_sample"], s=14, color=LONG, alpha=0.5, linewidths=0)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set_title(
        f"loses out of sample in {arrays['loss_probability']:.0%} of {len(arrays['in_sample']):,} splits",
        fontsize=10,
    )
    right.set_xlabel("score where it was chosen (per period)")
    right.set_ylabel("score on the rest (per period)")
    edges = np.asarray(arrays["edges"]).astype("datetime64[ns]")
    curve = np.concatenate([[0.0], np.cumsum(arrays["pnl"])])
    bottom.step(
        edges, curve, where="post", color=LONG, linewidth=1.6, label="best combination, chosen on all of it"
    )
    later = np.cumsum(arrays["later"])
    ends = edges[len(curve) // 2 :: max(1, (len(curve) // 2) // max(1, len(later)))][: len(later) + 1]
    walked = np.concatenate([[0.0], later])[: len(ends)]
    bottom.plot(ends, walked, color=SHORT, marker="o", label="walk-forward: chosen on what came before")
    bottom.axhline(0, color=INK, linewidth=0.8)
    bottom.set_ylabel("realised PnL (USD)")
    utc_axis(bottom)
    figure.legend_for(bottom, loc="best")
    return figure


def walk_forward(frame: Any, title: str | None = None) -> Plot:
    """Plot, per step, what the chosen combination scored where it was chosen and in the time after.

    ``frame``: columns ``in_sample`` and ``out_of_sample``, both per period so that they compare, and ``test_start``.
    """
    data = as_frame(frame)
    need(data, "in_sample", "out_of_sample", "test_start")
    figure = Plot(9, 4.2)
    axes = figure.panel()
    spot = np.arange(data.height)
    axes.bar(
        spot - 0.2, data["in_sample"].to_numpy(), 0.38, color=LONG, alpha=0.55, label="where it was chosen"
    )
    after = data["out_of_sample"].to_numpy()
    axes.bar(
        spot + 0.2, after, 0.38, color=np.where(after >= 0, WIN, LOSS).tolist(), label="in the time after"
    )
    axes.axhline(0, color=INK, linewidth=0.8)
    texts = data["test_start"].dt.strftime("%m-%d %H:%M").to_list()
    shown = _chosen(data.height, 10)
    axes.set_xticks(shown, [texts[place] for place in shown])
    axes.set_xlabel("start of the reported time (UTC)")
    axes.set_ylabel("PnL per period (USD)")
    figure.legend_for(axes, loc="best")
    figure.heading(title)
    return figure


def _trades(data: pl.DataFrame, value: str) -> str:
    """Return how many trades the combinations have, for the title of a plot of a ratio."""
    if value not in _RATIOS or "n_trades" not in data.columns or not data.height:
        return ""
    low, high = data.select(pl.col("n_trades").min(), high=pl.col("n_trades").max()).row(0)
    return f" of {low:,} to {high:,} trades"


def _enough(data: pl.DataFrame, min_trades: int) -> npt.NDArray[np.bool_]:
    """Return which rows have enough trades; all, where the frame does not say how many."""
    if "n_trades" not in data.columns:
        return np.ones(data.height, dtype=bool)
    return (data["n_trades"] >= min_trades).to_numpy()


def _places(series: pl.Series, names: list[Any] | None = None) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return the place of each value among the sorted distinct ones, and those; None comes last."""
    if series.dtype == pl.Object or series.dtype.is_nested():
        series = pl.Series(series.name, [None if item is None else _text(item) for item in series.to_list()])
    if names is None:
        distinct = series.drop_nulls().unique().sort().to_list()
        names = [*distinct, None] if series.null_count() else distinct
    known = pl.Series([name for name in names if name is not None], dtype=series.dtype)
    place = np.full(len(series), len(known), dtype=np.int64)
    present = series.is_not_null().to_numpy()
    if present.any():
        place[present] = np.asarray(known.search_sorted(series.drop_nulls()), dtype=np.int64)
    return place, names


def _cells(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    shape: tuple[int, int],
    how: str,
) -> npt.NDArray[np.float64]:
    """Return the grid of cells, nan where there is nothing finite."""
    keyed = pl.DataFrame({"cell": rows * shape[1] + columns, "value": values})
    keyed = keyed.filter(pl.col("value").is_finite())
    summary = keyed.group_by("cell").agg(getattr(pl.col("value"), how)())
    cells = np.full(shape[0] * shape[1], np.nan)
    cells[summary["cell"].to_numpy()] = summary["value"].to_numpy()
    return cells.reshape(shape)


def _chosen(count: int, most: int) -> list[int]:
    return list(range(0, count, max(1, -(-count // most))))


def _ticks(axis: Any, names: list[Any], most: int = 10) -> None:
    spots = _chosen(len(names), most)
    axis.set_ticks(spots, [_text(names[spot]) for spot in spots])


def _text(value: Any) -> str:
    if value is None:
        return "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple, pl.Series)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
