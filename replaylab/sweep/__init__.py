"""Run thousands of parameter sets over a session at once, by the rules of ``docs/model.md``.

::

    from replaylab.sweep import sweep, backtest

    result = sweep(session, {"entry_threshold": [0.5, 0.6], "sl_pct": [0.1, 0.2, 0.3]})
    result.best(5)
"""

from replaylab.sweep.comparison import WhatIf, what_if
from replaylab.sweep.engine import backtest, sweep
from replaylab.sweep.grid import make_grid, sample
from replaylab.sweep.rescoring import Rescored, rescored, sweep_scoring
from replaylab.sweep.result import Backtest, SweepResult
from replaylab.sweep.run import warm_up
from replaylab.sweep.tape import Tape, pack

__all__ = [
    "Backtest",
    "Rescored",
    "SweepResult",
    "Tape",
    "WhatIf",
    "backtest",
    "make_grid",
    "pack",
    "rescored",
    "sample",
    "sweep",
    "sweep_scoring",
    "warm_up",
    "what_if",
]
