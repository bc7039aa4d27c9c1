"""Play sessions again: timed or as fast as possible, to the reference trading system or to yours.

>>> from replaylab.replay import ReplayEngine
"""

from replaylab.replay.engine import ReplayEngine
from replaylab.replay.fidelity import Fidelity, fidelity
from replaylab.replay.run import ReplayRun
from replaylab.replay.sim import SimRun, run_sim
from replaylab.replay.status import read_status, request_stop, stop_replay

__all__ = [
    "Fidelity",
    "ReplayEngine",
    "ReplayRun",
    "SimRun",
    "fidelity",
    "read_status",
    "request_stop",
    "run_sim",
    "stop_replay",
]
