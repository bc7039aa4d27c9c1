"""replaylab: record algorithmic trading, play it again, and see what other parameters would have done.

>>> from replaylab import Lab
>>> lab = Lab.sample()                      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaylab.config import Config as Config
    from replaylab.lab import Lab as Lab
    from replaylab.params import ScoringParams as ScoringParams
    from replaylab.params import TradingParams as TradingParams
    from replaylab.replay import ReplayEngine as ReplayEngine
    from replaylab.sessions import build_replay_session as buildReplaySession
    from replaylab.sessions import build_replay_session as build_replay_session

__version__ = "0.1.0"

# Heavy parts load when first used: `import replaylab` must stay light.
_HOMES = {
    "Config": "replaylab.config",
    "Lab": "replaylab.lab",
    "ReplayEngine": "replaylab.replay",
    "ScoringParams": "replaylab.params",
    "TradingParams": "replaylab.params",
    "buildReplaySession": "replaylab.sessions",
    "build_replay_session": "replaylab.sessions",
}
_SPECIFICATION_NAMES = {"buildReplaySession": "build_replay_session"}

__all__ = [
    "Config",
    "Lab",
    "ReplayEngine",
    "ScoringParams",
    "TradingParams",
    "__version__",
    "buildReplaySession",
    "build_replay_session",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), _SPECIFICATION_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
