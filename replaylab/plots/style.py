"""What all plots share: a figure that displays itself, colours, labels with units, time axes."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from replaylab.errors import did_you_mean

# Luminance near 0.18: a contrast of about 4.4 to 1 with white as well as with a near-black page.
INK = "#747a84"
GRID = "#808690"
LONG, SHORT = "#2f7fd1", "#d07a1f"
WIN, LOSS = "#159a80", "#d94f4a"
CYCLE = (LONG, SHORT, WIN, "#8f6bcb", "#c2569a", "#8a8a2b", LOSS, INK)

_UNITS = {
    "_pct": "%",
    "_bps": "bps",
    "_ms": "ms",
    "_s": "s",
    "_seconds": "s",
    "_usd": "USD",
    "pnl": "USD",
    "fees": "USD",
    "max_drawdown": "USD",
    "expectancy": "USD",
    "robustness": "USD",
    "neighbour_mean": "USD",
    "neighbour_min": "USD",
    "win_rate": "share",
}


class Plot(Figure):
    """A matplotlib Figure that displays itself in a notebook, without pyplot and its global state.

    ``width``, ``height``: inches.
    """

    def __init__(self, width: float = 9.0, height: float = 4.5) -> None:
        super().__init__(figsize=(width, height), layout="constrained", facecolor="none")

    def panel(self, *place: Any, sharex: Axes | None = None, sharey: Axes | None = None) -> Axes:
        """Add a panel in the common style; ``place`` as in ``add_subplot``."""
        axes: Axes = self.add_subplot(*place, facecolor="none", sharex=sharex, sharey=sharey)
        axes.set_prop_cycle(color=list(CYCLE))
        axes.grid(visible=True, color=GRID, alpha=0.22, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(INK)
        axes.tick_params(colors=INK, labelsize=9)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.title.set_color(INK)
        return axes

    def heading(self, text: str | None) -> None:
        """Set the title above all panels."""
        if text:
            self.suptitle(text, color=INK, fontsize=12, fontweight="bold")

    def legend_for(
        self,
        axes: Axes,
        *,
        loc: Literal["best", "upper center", "upper left"] = "best",
        ncols: int = 1,
        bbox_to_anchor: tuple[float, float] | None = None,
    ) -> None:
        """Add a legend without a box; the options are those of ``Axes.legend``."""
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                frameon=False, labelcolor=INK, fontsize=9, loc=loc, ncols=ncols, bbox_to_anchor=bbox_to_anchor
            )

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.savefig(data, format="png", dpi=110)
        return data.getvalue()


def label(name: str) -> str:
    """Return a column name as an axis label with its unit.

    >>> label("net_pnl"), label("sl_pct")
    ('net PnL (USD)', 'sl (%)')
    """
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            stem = name.removesuffix(ending) if ending.startswith("_") else name
            words = stem.replace("_", " ").strip().replace("pnl", "PnL")
            return f"{words} ({unit})"
    return name.replace("_", " ")


def as_frame(data: Any) -> pl.DataFrame:
    """Return ``data`` as a polars frame: polars (lazy too), pandas, or anything polars can read."""
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if type(data).__module__.split(".")[0] == "pandas":
        frame: pl.DataFrame = pl.from_pandas(data)
        return frame
    return pl.DataFrame(data)


def need(frame: pl.DataFrame, *names: str) -> None:
    """Raise ValueError that names the first missing column."""
    for name in names:
        if name not in frame.columns:
            raise ValueError(f"the frame has no column {name!r}.{did_you_mean(name, frame.columns)}")


def times(series: pl.Series) -> npt.NDArray[np.datetime64]:
    """Return a column of UTC times as numpy datetimes, which is what matplotlib draws."""
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone is not None:
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return series.to_numpy().astype("datetime64[ns]")


def utc_axis(axes: Axes) -> None:
    """Label the x axis as UTC time, with as few characters as needed."""
    locator = AutoDateLocator(minticks=3, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, show_offset=True)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.get_offset_text().set_color(INK)
    axes.set_xlabel("time (UTC)")


def empty_note(axes: Axes, text: str) -> None:
    """Write into the panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK)
