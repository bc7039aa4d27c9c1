"""The picture of a fidelity report: which decisions came out the same, and when the others were."""

from __future__ import annotations

from typing import Any

import polars as pl

from replaylab.plots.style import (
    INK,
    LONG,
    LOSS,
    SHORT,
    WIN,
    Picture,
    as_frame,
    empty_note,
    need,
    times,
    utc_axis,
)

__all__ = ["fidelity"]

_COLOURS = {
    "identical": WIN,
    "different": LOSS,
    "missing": SHORT,
    "added": LONG,
    "carried_in": INK,
    "cut_off": INK,
}
_MARKS = {"identical": "|", "different": "x", "missing": "v", "added": "^", "carried_in": ".", "cut_off": "."}


def fidelity(decisions: Any, title: str | None = None) -> Picture:
    """Return decisions over time: one row per symbol, each decision a mark in the colour of its status.

    ``decisions``: columns ``timestamp``, ``symbol`` and ``status`` (identical, different, missing, added, carried_in,
    cut_off). What is not identical is drawn last and larger, so that one among a million is seen.
    """
    frame = as_frame(decisions)
    need(frame, "timestamp", "symbol", "status")
    symbols = sorted(frame["symbol"].unique().to_list())
    figure = Picture(10, 1.6 + 0.55 * max(1, len(symbols)))
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
