"""Run thousands of parameter sets over a session at once, by the rules of ``docs/model.md``.

::

    from replaylab.sweep import sweep, backtest

    result = sweep(session, {"entry_threshold": [0.5, 0.6], "sl_pct": [0.1, 0.2, 0.3]})
    result.best(5)
"""

from replaylab.sweep.evidence import (
    bootstrap_intervals,
    deflated_sharpe_ratio,
    effective_trials,
    expected_max_sharpe,
    min_track_record,
    overfitting_probability,
    probabilistic_sharpe_ratio,
    superior_predictive_ability,
)
from replaylab.sweep.grid import make_grid, plateaus, sample
from replaylab.sweep.optimise import Optimisation, optimise
from replaylab.sweep.rescoring import GIVEN_SIGNALS, Rescored, rescored, signalled
from replaylab.sweep.result import Backtest, Outcome, StudyResult, SweepResult
from replaylab.sweep.run import FeatureTable, Positions, warm_up
from replaylab.sweep.study import backtest, sweep
from replaylab.sweep.tape import Tape, pack
from replaylab.sweep.tape_file import open_tape
from replaylab.sweep.verdict import Verdict, ledger_path, read_trials, reset_trials, walk_forward_steps
from replaylab.sweep.what_if import (
    WhatIf,
    comparable_trades,
    match_trades,
    pair_trades,
    recorded_trades,
    shapley,
    what_if,
)

__all__ = [
    "GIVEN_SIGNALS",
    "Backtest",
    "FeatureTable",
    "Optimisation",
    "Outcome",
    "Positions",
    "Rescored",
    "StudyResult",
    "SweepResult",
    "Tape",
    "Verdict",
    "WhatIf",
    "backtest",
    "bootstrap_intervals",
    "comparable_trades",
    "deflated_sharpe_ratio",
    "effective_trials",
    "expected_max_sharpe",
    "ledger_path",
    "make_grid",
    "match_trades",
    "min_track_record",
    "open_tape",
    "optimise",
    "overfitting_probability",
    "pack",
    "pair_trades",
    "plateaus",
    "probabilistic_sharpe_ratio",
    "read_trials",
    "recorded_trades",
    "rescored",
    "reset_trials",
    "sample",
    "shapley",
    "signalled",
    "superior_predictive_ability",
    "sweep",
    "walk_forward_steps",
    "warm_up",
    "what_if",
]
