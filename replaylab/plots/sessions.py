"""Plots of a session: its events over time, its scores below the price, its decisions against the recorded ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from replaylab.plots.style import (
    CYCLE,
    INK,
    LONG,
    LOSS,
    SHORT,
    WIN,
    Plot,
    as_frame,
    empty_note,
    need,
    times,
    utc_axis,
)


def density(events: Any, title: str | None = None, *, bins: int = 200) -> Plot:
    """Plot how many events of each type there are over time: one row per type, its own scale, gaps visible.

    ``events``: columns ``timestamp`` and ``type`` (or ``event_type``).
    """
    frame = as_frame(events)
    kind = "type" if "type" in frame.columns else "event_type"
    need(frame, "timestamp", kind)
    names = frame[kind].value_counts(sort=True)[kind].to_list()
    figure = Plot(10, max(2.4, 0.9 + 0.75 * len(names)))
    if not names:
        empty_note(figure.panel(), "no events")
        figure.heading(title)
        return figure
    when = times(frame["timestamp"])
    whole = when.astype(np.int64)
    edges = np.linspace(whole.min(), max(whole.max(), whole.min() + 1), bins + 1)
    centres = ((edges[:-1] + edges[1:]) / 2).astype(np.int64).astype("datetime64[ns]")
    seconds = (edges[1] - edges[0]) / 1e9
    first = None
    for row, name in enumerate(names):
        panel = figure.panel(len(names), 1, row + 1, sharex=first)
        first = first or panel
        counts, _ = np.histogram(whole[(frame[kind] == name).to_numpy()], edges)
        colour = CYCLE[row % len(CYCLE)]
        panel.fill_between(centres, counts / seconds, step="mid", color=colour, alpha=0.55, linewidth=0)
        panel.set_ylim(bottom=0)
        panel.set_title(f"{name} ({counts.sum():,})", loc="left", fontsize=9, color=colour, pad=3)
        panel.locator_params(axis="y", nbins=3)
        if row == len(names) - 1:
            utc_axis(panel)
        else:
            panel.tick_params(labelbottom=False)
    figure.supylabel("events per second", color=INK, fontsize=10)
    figure.heading(title)
    return figure


def scores(
    frame: Any, threshold: float | None = None, title: str | None = None, *, prices: Any = None
) -> Plot:
    """Plot the score over time, its entry threshold, and the price above it if there is one.

    ``frame``: columns ``timestamp`` and ``score`` (and ``price``, used when ``prices`` is not given; and ``symbol``:
    one line each). ``prices``: columns ``timestamp`` and ``price``.
    """
    data = as_frame(frame)
    need(data, "timestamp", "score")
    tape = (
        data if prices is None and "price" in data.columns else None if prices is None else as_frame(prices)
    )
    figure = Plot(10, 5.0 if tape is not None else 3.4)
    grid = figure.add_gridspec(2 if tape is not None else 1, 1)
    bottom = figure.panel(grid[-1])
    if tape is not None:
        top = figure.panel(grid[0], sharex=bottom)
        for number, (name, part) in enumerate(_by_symbol(tape.drop_nulls("price"))):
            # Symbols differ in price by orders of magnitude: several are drawn as change since the start.
            price = part["price"].to_numpy()
            several = "symbol" in tape.columns and tape["symbol"].n_unique() > 1
            line = 100 * (price / price[0] - 1) if several else price
            top.plot(
                times(part["timestamp"]), line, linewidth=1, color=CYCLE[number % len(CYCLE)], label=name
            )
            top.set_ylabel("change since start (%)" if several else "price (quote currency)")
        top.tick_params(labelbottom=False)
        figure.legend_for(top, loc="best", ncols=4)
    for number, (name, part) in enumerate(_by_symbol(data.drop_nulls("score"))):
        colour = CYCLE[number % len(CYCLE)]
        bottom.step(
            times(part["timestamp"]),
            part["score"].to_numpy(),
            where="post",
            linewidth=0.9,
            color=colour,
            label=name if tape is None else None,
        )
    if threshold is not None:
        bottom.axhline(threshold, color=LONG, linewidth=1.1, linestyle="--", label=f"long at ≥ {threshold:g}")
        bottom.axhline(
            -threshold, color=SHORT, linewidth=1.1, linestyle="--", label=f"short at ≤ −{threshold:g}"
        )
    bottom.axhline(0, color=INK, linewidth=0.7)
    bottom.set_ylabel("score")
    if data.height:
        utc_axis(bottom)
    else:
        empty_note(bottom, "no scores")
    figure.legend_for(bottom, loc="best", ncols=3)
    figure.heading(title)
    return figure


def _by_symbol(frame: pl.DataFrame) -> list[tuple[str | None, pl.DataFrame]]:
    if "symbol" not in frame.columns:
        return [(None, frame)] if frame.height else []
    return [(str(key[0]), part) for key, part in frame.group_by("symbol", maintain_order=True)]


_COLOURS = {
    "identical": WIN,
    "different": LOSS,
    "missing": SHORT,
    "added": LONG,
    "carried_in": INK,
    "cut_off": INK,
}
_MARKS = {"identical": "|", "different": "x", "missing": "v", "added": "^", "carried_in": ".", "cut_off": "."}


def fidelity(decisions: Any, title: str | None = None) -> Plot:
    """Plot decisions over time: one row per symbol, each decision a mark in the colour of its status.

    ``decisions``: columns ``timestamp``, ``symbol`` and ``status`` (identical, different, missing, added, carried_in,
    cut_off). What is not identical is drawn last and larger, so that one among a million is seen.
    """
    frame = as_frame(decisions)
    need(frame, "timestamp", "symbol", "status")
    symbols = sorted(frame["symbol"].unique().to_list())
    figure = Plot(10, 1.6 + 0.55 * max(1, len(symbols)))
    panel = figure.panel()
    figure.heading(title)
    if not symbols:
        empty_note(panel, "no decisions")
        return figure
    place = {symbol: row for row, symbol in enumerate(reversed(symbols))}
    for status, colour in _COLOURS.items():
        rows = frame.filter(pl.col("status") == status)
        if rows.is_empty():
            continue
        heights = [place[symbol] for symbol in rows["symbol"].to_list()]
        same = status == "identical"
        panel.scatter(
            times(rows["timestamp"]),
            heights,
            marker=_MARKS[status],
            s=60 if same else 45,
            color=colour,
            alpha=0.35 if same else 1.0,
            linewidths=0.8 if same else 1.5,
            zorder=2 if same else 3,
            label=f"{status.replace('_', ' ')} ({rows.height:,})",
            rasterized=rows.height > 5_000,
        )
    panel.set_yticks(list(place.values()), list(place))
    panel.set_ylabel("symbol")
    panel.set_ylim(-0.6, len(symbols) - 0.4)
    utc_axis(panel)
    figure.legend_for(panel, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=len(_COLOURS))
    for mark in getattr(panel.get_legend(), "legend_handles", ()):
        mark.set_alpha(1.0)  # the faint marks of what is identical would not be seen in it
    return figure
