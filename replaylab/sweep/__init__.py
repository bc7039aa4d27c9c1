"""Run thousands of parameter sets over a session at once, by the rules of ``docs/model.md``.

::

    from replaylab.sweep import sweep, backtest

    result = sweep(session, {"entry_threshold": [0.5, 0.6], "sl_pct": [0.1, 0.2, 0.3]})
    result.best(5)
"""

from replaylab.sweep.evidence import (
    deflated_sharpe_ratio,
    expected_max_sharpe,
    min_track_record,
    overfitting_probability,
    plateaus,
    probabilistic_sharpe_ratio,
    walk_forward_steps,
)
from replaylab.sweep.grid import make_grid, sample
from replaylab.sweep.rescoring import Rescored, rescored
from replaylab.sweep.result import Backtest, SweepResult
from replaylab.sweep.run import warm_up
from replaylab.sweep.study import backtest, sweep
from replaylab.sweep.tape import Tape, pack
from replaylab.sweep.what_if import WhatIf, match_trades, recorded_trades, what_if

__all__ = [
    "Backtest",
    "Rescored",
    "SweepResult",
    "Tape",
    "WhatIf",
    "backtest",
    "deflated_sharpe_ratio",
    "expected_max_sharpe",
    "make_grid",
    "match_trades",
    "min_track_record",
    "overfitting_probability",
    "pack",
    "plateaus",
    "probabilistic_sharpe_ratio",
    "recorded_trades",
    "rescored",
    "sample",
    "sweep",
    "walk_forward_steps",
    "warm_up",
    "what_if",
]
