"""What a notebook cell shows of a data root: the dashboard, and interactive charts.

>>> lab.panel()                                                    # doctest: +SKIP
>>> lab.chart("a-session")                                         # doctest: +SKIP
"""

from __future__ import annotations

from replaylab.notebook.chart import Chart, Pyramid
from replaylab.notebook.panel import Panel
from replaylab.notebook.report import write_report

__all__ = ["Chart", "Panel", "Pyramid", "write_report"]
