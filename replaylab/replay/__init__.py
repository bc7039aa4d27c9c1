"""Replay sessions, timed or as fast as possible, to the reference trading system or to a handler.

>>> from replaylab.replay import ReplayControl, ReplayEngine
"""

from replaylab.replay.calibrate import Calibration, calibrate
from replaylab.replay.child_process import ReplayProcess
from replaylab.replay.control import ReplayControl, read_status
from replaylab.replay.engine import ReplayEngine, ReplayRun
from replaylab.replay.fidelity import Fidelity, fidelity
from replaylab.replay.follow import News, RunFollower
from replaylab.replay.reconcile import Reconciliation, reconcile
from replaylab.replay.sim import SimRun, run_sim

__all__ = [
    "Calibration",
    "Fidelity",
    "News",
    "Reconciliation",
    "ReplayControl",
    "ReplayEngine",
    "ReplayProcess",
    "ReplayRun",
    "RunFollower",
    "SimRun",
    "calibrate",
    "fidelity",
    "read_status",
    "reconcile",
    "run_sim",
]
