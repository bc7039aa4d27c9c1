"""Pictures: data in, matplotlib ``Figure`` out. Nothing is computed here that is not drawing.

>>> from replaylab import plots
>>> plots.heatmap(result.frame, "tp1_pct", "sl_pct", "net_pnl")          # doctest: +SKIP

Every figure has a transparent background and colours that read on light and dark pages alike, units on its axes, and
shows itself in a notebook without pyplot. ``figure.savefig("name.png")`` saves it. Frames may be polars or pandas.
matplotlib loads when the first picture is drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
