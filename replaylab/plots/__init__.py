"""Pictures: data in, matplotlib ``Figure`` out. Nothing is computed here that is not drawing.

>>> from replaylab import plots
>>> plots.heatmap(result.frame, "tp1_pct", "sl_pct", "net_pnl")          # doctest: +SKIP

Every figure has a transparent background and colours that read on light and dark pages alike, units on its axes, and
shows itself in a notebook without pyplot. ``figure.savefig("name.png")`` saves it. Frames may be polars or pandas.
matplotlib loads when the first picture is drawn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaylab.plots.decisions import fidelity as fidelity
    from replaylab.plots.sessions import density as density
    from replaylab.plots.sessions import scores as scores
    from replaylab.plots.style import Picture as Picture
    from replaylab.plots.sweeps import heatmap as heatmap
    from replaylab.plots.sweeps import overfitting as overfitting
    from replaylab.plots.sweeps import parallel_coordinates as parallel_coordinates
    from replaylab.plots.sweeps import slices as slices
    from replaylab.plots.sweeps import walk_forward as walk_forward
    from replaylab.plots.trades import equity as equity
    from replaylab.plots.trades import excursions as excursions
    from replaylab.plots.trades import exit_reasons as exit_reasons
    from replaylab.plots.trades import price_with_trades as price_with_trades

_HOMES = {
    "Picture": "style",
    "density": "sessions",
    "equity": "trades",
    "excursions": "trades",
    "exit_reasons": "trades",
    "fidelity": "decisions",
    "heatmap": "sweeps",
    "overfitting": "sweeps",
    "parallel_coordinates": "sweeps",
    "price_with_trades": "trades",
    "scores": "sessions",
    "slices": "sweeps",
    "walk_forward": "sweeps",
}

__all__ = [
    "Picture",
    "density",
    "equity",
    "excursions",
    "exit_reasons",
    "fidelity",
    "heatmap",
    "overfitting",
    "parallel_coordinates",
    "price_with_trades",
    "scores",
    "slices",
    "walk_forward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.plots' has no attribute {name!r}")
    value = getattr(import_module(f"replaylab.plots.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
