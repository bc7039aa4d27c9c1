"""What a notebook cell shows of a data root: the dashboard, and interactive charts.

>>> lab.panel()                                                    # doctest: +SKIP
>>> lab.chart("a-session")                                         # doctest: +SKIP

Parts load when first used: the panel needs neither bokeh nor numba until its chart is shown.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
