from .config import Config as Config
from .lab import Lab as Lab
from .params import ScoringParams as ScoringParams
from .params import TradingParams as TradingParams
from .replay import ReplayEngine as ReplayEngine
from .sessions import build_replay_session as build_replay_session
from .sessions import buildReplaySession as buildReplaySession
from .trading import CLOSE as CLOSE
from .trading import HOLD as HOLD
from .trading import exit_rule as exit_rule
from .trading import level_rule as level_rule

__version__: str
