"""Plots: data in, matplotlib ``Figure`` out. Nothing is computed here that is not drawing.

>>> from replaylab import plots
>>> plots.heatmap(result.frame, "tp1_pct", "sl_pct", "net_pnl")          # doctest: +SKIP

Every plot has a transparent background, colours that are readable on light and dark pages, units on its axes, and
displays itself in a notebook without pyplot. ``plot.savefig("name.png")`` saves it. Frames may be polars or pandas.
matplotlib loads when the first plot is drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
