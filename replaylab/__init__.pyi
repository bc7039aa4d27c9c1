from .config import Config
from .lab import Lab
from .params import ScoringParams, TradingParams
from .replay import ReplayEngine
from .sessions import build_replay_session, buildReplaySession

__version__: str

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
