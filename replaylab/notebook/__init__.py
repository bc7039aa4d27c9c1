"""The dashboard of a data root for a notebook cell.

>>> lab.panel()                                                    # doctest: +SKIP
"""

from __future__ import annotations

from replaylab.notebook.panel import Panel

__all__ = ["Panel"]
