"""Plots of trades: on the price, as equity, by excursion and by reason of exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.params import TradingParams
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
    times,
    utc_axis,
)

# A screen does not resolve more points than this; each bin keeps its extremes.
_POINTS = 4000
_LEVELS = {"stop": LOSS, "target": WIN, "LONG": LONG, "SHORT": SHORT}


def price_with_trades(
    prices: Any,
    trades: Any,
    title: str | None = None,
    *,
    symbol: str | None = None,
    levels: Sequence[tuple[str, float]] = (),
    params: TradingParams | None = None,
) -> Plot:
    """Plot the price over time with every entry, exit and the span between.

    ``prices``: columns ``timestamp`` and ``price`` (and ``symbol``, if there are several); ``trades``: those of a
    backtest (``entry_time``, ``exit_time``) or of the trade log (``timestamp``, ``duration_seconds``). Triangles point
    the way of the trade at its entry; dots mark exits, green with a profit, red with a loss. With several
    symbols in ``prices``, ``symbol`` chooses (default: the first). ``levels``: (name, price) of horizontal lines,
    such as the stop and targets of an open position.

    ``close_price`` is the mean of all parts of an exit. With ``params``, the parameters that ran, a trade whose TP1
    filled shows both parts: a diamond where the price first reached TP1, and the last part at its own price.
    """
    price_frame, trade_frame = as_frame(prices), with_entry_times(as_frame(trades))
    need(price_frame, "timestamp", "price")
    if "symbol" in price_frame.columns and price_frame.height:
        symbol = symbol or str(price_frame["symbol"][0])
        price_frame = price_frame.filter(pl.col("symbol") == symbol)
    if symbol is not None and "symbol" in trade_frame.columns:
        trade_frame = trade_frame.filter(pl.col("symbol") == symbol)
    figure = Plot(10, 4.8)
    axes = figure.panel()
    trade_frame, first_parts = _parts(trade_frame, price_frame, params)
    when, price = _thinned(price_frame)
    axes.plot(when, price, color=INK, linewidth=0.9, label="price", zorder=2)
    for side, colour, marker in (("LONG", LONG, "^"), ("SHORT", SHORT, "v")):
        part = trade_frame.filter(pl.col("side") == side)
        if not part.height:
            continue
        start, end = times(part["entry_time"]), times(part["exit_time"])
        entry, close = part["entry_price"].to_numpy(), part["last_price"].to_numpy()
        axes.plot([start, end], [entry, close], color=colour, linewidth=1.3, alpha=0.75, zorder=3)
        axes.scatter(start, entry, marker=marker, s=46, color=colour, zorder=5, label=f"{side} entry")
    if trade_frame.height:
        won = trade_frame["realized_pnl"].to_numpy() > 0
        for mask, colour, text in ((won, WIN, "exit, profit"), (~won, LOSS, "exit, loss")):
            part = trade_frame.filter(pl.Series(mask))
            if part.height:
                axes.scatter(
                    times(part["exit_time"]), part["last_price"], s=26, color=colour, zorder=4, label=text
                )
    if first_parts:
        at, reached = zip(*first_parts, strict=True)
        axes.scatter(np.array(at), reached, marker="D", s=24, color=WIN, zorder=4, label="TP1")
    for name, level in levels:
        colour = _LEVELS.get(name, INK)
        axes.axhline(level, color=colour, linewidth=1, linestyle="-" if name in ("LONG", "SHORT") else "--")
        axes.annotate(
            name,
            (1.0, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=colour,
            fontsize=8,
        )
    if not price_frame.height:
        empty_note(axes, "no prices")
    else:
        utc_axis(axes)
    axes.set_ylabel(f"price of {symbol} (quote currency)" if symbol else "price (quote currency)")
    figure.legend_for(axes, loc="best", ncols=3)
    figure.heading(title)
    return figure


def _parts(
    trades: pl.DataFrame, prices: pl.DataFrame, params: TradingParams | None
) -> tuple[pl.DataFrame, list[tuple[np.datetime64, float]]]:
    """Return trades with the ``last_price`` of their exits, and time and price of the TP1 parts."""
    trades = trades.with_columns(last_price=pl.col("close_price"))
    if params is None or "tp1_filled" not in trades.columns or not trades["tp1_filled"].any():
        return trades, []
    sign = pl.when(pl.col("side") == "LONG").then(1.0).otherwise(-1.0)
    level = pl.col("entry_price") * (1 + sign * params.tp1_pct / 100)
    share = params.tp1_fraction
    rest = (pl.col("close_price") - share * pl.col("level")) / (1 - share) if share < 1 else pl.col("level")
    trades = trades.with_columns(level=level).with_columns(
        last_price=pl.when(pl.col("tp1_filled")).then(rest).otherwise("close_price")
    )
    when, price = times(prices["timestamp"]), prices["price"].to_numpy()
    found = []
    for row in (
        trades.filter("tp1_filled").select("side", "level", "entry_time", "exit_time").iter_rows(named=True)
    ):
        ends = times(pl.Series([row["entry_time"], row["exit_time"]], dtype=trades["entry_time"].dtype))
        start, stop = np.searchsorted(when, ends)
        part = price[start : stop + 1]
        reached = part >= row["level"] if row["side"] == "LONG" else part <= row["level"]
        place = start + int(reached.argmax()) if reached.any() else stop
        found.append((when[min(place, len(when) - 1)] if len(when) else ends[1], row["level"]))
    return trades, found


def equity(trades: Any, title: str | None = None) -> Plot:
    """Return realised PnL over time with its drawdown below.

    ``trades``: one frame of trades, or a mapping of names to frames to compare. Steps are at exit times.
    """
    named = trades if isinstance(trades, Mapping) else {"realised PnL": trades}
    figure = Plot(10, 5.2)
    grid = figure.add_gridspec(2, 1, height_ratios=[3, 1])
    top = figure.panel(grid[0])
    bottom = figure.panel(grid[1], sharex=top)
    drawn = False
    for number, (name, data) in enumerate(named.items()):
        frame = with_entry_times(as_frame(data)).sort("exit_time")
        if not frame.height:
            top.plot([], [], label=f"{name}: no trades")
            continue
        drawn = True
        start = times(frame["entry_time"]).min()
        when = np.concatenate([[start], times(frame["exit_time"])])
        curve = np.concatenate([[0.0], np.cumsum(frame["realized_pnl"].to_numpy())])
        below = curve - np.maximum.accumulate(curve)
        line = top.step(when, curve, where="post", linewidth=1.6, label=f"{name}: {curve[-1]:+,.2f} USD")[0]
        fill = 0.28 if number == 0 else 0.12
        bottom.fill_between(when, below, 0, step="post", color=line.get_color(), alpha=fill)
        bottom.step(when, below, where="post", color=line.get_color(), linewidth=1.1)
    top.axhline(0, color=INK, linewidth=0.8)
    top.set_ylabel("realised PnL (USD)")
    bottom.set_ylabel("drawdown (USD)")
    top.tick_params(labelbottom=False)
    if drawn:
        utc_axis(bottom)
    else:
        empty_note(top, "no trades")
    figure.legend_for(top, loc="best")
    figure.heading(title)
    return figure


def waterfall(start: float, steps: Mapping[str, float], end: float, title: str | None = None) -> Plot:
    """Return a waterfall from the model's PnL over the causes to the live PnL, all in USD.

    ``steps``: name of a cause → PnL; their sum is ``end - start``.
    """
    names = ["model", *steps, "live"]
    heights = np.array([start, *steps.values(), end])
    bottoms = np.concatenate([[0.0], start + np.cumsum([0.0, *steps.values()])])
    bottoms[-1] = 0.0
    figure = Plot(max(6.0, 0.95 * len(names)), 4.2)
    axes = figure.panel()
    colours = [INK, *(WIN if step >= 0.0 else LOSS for step in steps.values()), INK]
    axes.bar(range(len(names)), heights, bottom=bottoms, color=colours, width=0.62)
    reached = np.maximum(bottoms, bottoms + heights)
    for place, (height, top) in enumerate(zip(heights, reached, strict=True)):
        text = f"{height:,.2f}" if place in (0, len(names) - 1) else f"{height:+,.2f}"
        axes.annotate(
            text,
            (place, top),
            ha="center",
            va="bottom",
            fontsize="small",
            xytext=(0, 2),
            textcoords="offset points",
            color=INK,
        )
    levels = bottoms[1:-1] + heights[1:-1]
    for place, level in enumerate([start, *levels]):
        axes.plot([place + 0.31, place + 0.69], [level, level], color=INK, linewidth=0.8)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    axes.set_ylabel("PnL (USD)")
    axes.margins(y=0.12)
    figure.heading(title)
    return figure


def estimates(
    samples: Mapping[str, Any], values: Mapping[str, tuple[float, float, float]], title: str | None = None
) -> Plot:
    """Return a histogram of the bootstrap samples of each parameter, with its estimate and its interval.

    ``samples``: name → samples; ``values``: name → (estimate, low, high), in the same unit.
    """
    figure = Plot(max(5.0, 3.0 * max(1, len(values))), 3.0)
    grid = figure.add_gridspec(1, max(1, len(values)))
    for place, (name, (value, low, high)) in enumerate(values.items()):
        axes = figure.panel(grid[place])
        drawn = np.asarray(samples[name])
        # Samples that are all one number have no range to divide.
        spread = max(float(np.ptp(drawn)), 1e-6 * max(abs(value), 1e-3))
        axes.hist(drawn, bins=30, range=(drawn.min() - spread, drawn.max() + spread), color=LONG, alpha=0.6)
        axes.axvline(value, color=INK, linewidth=1.6)
        axes.axvspan(low, high, color=INK, alpha=0.12)
        axes.set_xlabel(name)
        axes.set_yticks([])
    if not values:
        empty_note(figure.panel(grid[0]), "nothing could be estimated")
    figure.heading(title)
    return figure


def excursions(trades: Any, title: str | None = None) -> Plot:
    """Return a scatter of how far each trade went against and in favour, in percent of its notional.

    Read it for stops and targets: losers far to the top gave back a profit, winners far to the right survived a
    drawdown that a tighter stop would have cut.
    """
    frame = as_frame(trades)
    need(frame, "mfe", "mae", "entry_price", "qty", "realized_pnl")
    figure = Plot(6.2, 5.2)
    axes = figure.panel()
    notional = (frame["entry_price"] * frame["qty"]).to_numpy()
    against, favour = (-100 * frame["mae"].to_numpy() / notional, 100 * frame["mfe"].to_numpy() / notional)
    won = frame["realized_pnl"].to_numpy() > 0
    for mask, colour, text, marker in ((won, WIN, "profit", "o"), (~won, LOSS, "loss", "X")):
        axes.scatter(
            against[mask],
            favour[mask],
            s=30,
            color=colour,
            alpha=0.75,
            marker=marker,
            linewidths=0,
            label=f"{text} ({int(mask.sum())})",
        )
    if not frame.height:
        empty_note(axes, "no trades")
    axes.set_xlabel("worst move against (MAE, % of notional)")
    axes.set_ylabel("best move in favour (MFE, % of notional)")
    figure.legend_for(axes, loc="best")
    figure.heading(title)
    return figure


def exit_reasons(trades: Any, title: str | None = None) -> Plot:
    """Plot bars of how many trades each reason of exit closed, and what they earned."""
    frame = as_frame(trades)
    need(frame, "reason", "realized_pnl")
    groups = (
        frame.group_by("reason")
        .agg(pl.len().alias("count"), pl.col("realized_pnl").sum())
        .sort("count", "reason", descending=[False, True])
    )
    figure = Plot(9, max(2.6, 0.9 + 0.42 * groups.height))
    left, right = figure.panel(1, 2, 1), figure.panel(1, 2, 2)
    names = groups["reason"].to_list()
    left.barh(names, groups["count"].to_numpy(), color=LONG, alpha=0.85)
    for row, count in enumerate(groups["count"]):
        left.annotate(
            f"{count:,}", (count, row), xytext=(4, 0), textcoords="offset points", va="center", color=INK
        )
    earned = groups["realized_pnl"].to_numpy()
    right.barh(names, earned, color=np.where(earned >= 0, WIN, LOSS).tolist(), alpha=0.85)
    right.axvline(0, color=INK, linewidth=0.8)
    right.tick_params(labelleft=False)
    left.margins(x=0.15)
    left.set_xlabel("trades (count)")
    right.set_xlabel(label("realized_pnl"))
    if not groups.height:
        empty_note(left, "no trades")
    figure.heading(title)
    return figure


def with_entry_times(frame: pl.DataFrame) -> pl.DataFrame:
    """Return trades with ``entry_time`` and ``exit_time``, also those of the trade log."""
    if "exit_time" not in frame.columns:
        need(frame, "timestamp", "duration_seconds")
        held = (pl.col("duration_seconds") * 1e9).round().cast(pl.Int64).cast(pl.Duration("ns"))
        frame = frame.with_columns(exit_time=pl.col("timestamp"), entry_time=pl.col("timestamp") - held)
    return frame


def _thinned(frame: pl.DataFrame) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.float64]]:
    """Return times and prices, at most some thousands: first, lowest, highest and last of each bin in their order."""
    when, price = times(frame["timestamp"]), frame["price"].to_numpy()
    if len(price) <= _POINTS:
        return when, price
    size = -(-len(price) * 4 // _POINTS)
    count = len(price) // size
    block = price[: count * size].reshape(count, size)
    base = np.arange(count) * size
    keep = np.concatenate(
        [base, base + block.argmin(1), base + block.argmax(1), base + size - 1, [len(price) - 1]]
    )
    keep = np.unique(keep)
    return when[keep], price[keep]
