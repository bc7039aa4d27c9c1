"""Every error that replaylab raises on purpose.

::

    ReplaylabError
    ├── RecordError (ValueError)            a record does not have the documented form
    ├── ConfigError (ValueError)            a setting or parameter is unknown or out of bounds
    │   └── PriceError                      a symbol has no prices, or not the data that a fill model needs
    ├── UnsafeNameError (ValueError)        a symbol or session id may not become a file name
    ├── TimeError (ValueError)              a string or number is not a usable time
    ├── LogWriteError (OSError)             a line or snapshot could not be written
    ├── LogReadError (OSError)              a log was replaced while it was read
    ├── HistoryError (ValueError)           an imported file contradicts itself or its format
    ├── RetentionError (RuntimeError)       a clean-up was refused
    ├── SessionError (ValueError)           a replay session cannot be built or read
    │   ├── SessionNotFoundError            there is no session of that name
    │   └── SessionExistsError              there is one already
    ├── ReplayError (RuntimeError)          a replay cannot start or continue
    │   ├── ReplayRunningError              another replay of this data root is running
    │   └── InterlockError                  REPLAY mode forbids what would touch the real market
    ├── SweepError (ValueError)             a grid or session cannot be swept
    └── DatasetError (ValueError)           features, labels or splits would be wrong or would leak

Messages say what was found, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "DatasetError",
    "HistoryError",
    "InterlockError",
    "LogReadError",
    "LogWriteError",
    "PriceError",
    "RecordError",
    "ReplayError",
    "ReplayRunningError",
    "ReplaylabError",
    "RetentionError",
    "SessionError",
    "SessionExistsError",
    "SessionNotFoundError",
    "SweepError",
    "TimeError",
    "UnsafeNameError",
    "did_you_mean",
]


class ReplaylabError(Exception):
    """Base of all errors that replaylab raises on purpose."""


class RecordError(ReplaylabError, ValueError):
    """A record does not have the documented form. ``field`` is its on-disk name, such as ``extra.score``."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ConfigError(ReplaylabError, ValueError):
    """A setting or parameter is unknown or out of bounds. ``field`` names it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class PriceError(ConfigError):
    """A symbol has no prices, or not the data that a fill model needs. ``symbol`` names it."""

    def __init__(self, message: str, *, symbol: str | None = None) -> None:
        super().__init__(message, field="price_source")
        self.symbol = symbol


class UnsafeNameError(ReplaylabError, ValueError):
    """A name from outside may not become a file name."""


class TimeError(ReplaylabError, ValueError):
    """A text or number is not a usable time."""


class LogWriteError(ReplaylabError, OSError):
    """A line or snapshot could not be written; ``errno`` and ``filename`` are those of the cause."""


class LogReadError(ReplaylabError, OSError):
    """A log was replaced while it was read; reading it again gives the whole of it."""


class HistoryError(ReplaylabError, ValueError):
    """An imported file contradicts itself or its format."""


class RetentionError(ReplaylabError, RuntimeError):
    """A clean-up was refused."""


class SessionError(ReplaylabError, ValueError):
    """A replay session cannot be built or read."""


class SessionNotFoundError(SessionError):
    """There is no session of that name."""


class SessionExistsError(SessionError):
    """There is a session of that name already."""


class ReplayError(ReplaylabError, RuntimeError):
    """A replay cannot start or continue."""


class ReplayRunningError(ReplayError):
    """Another replay of the same data root is running."""


class InterlockError(ReplayError):
    """REPLAY mode forbids what would touch the real market or the live logs."""


class SweepError(ReplaylabError, ValueError):
    """A grid or session cannot be swept."""


class DatasetError(ReplaylabError, ValueError):
    """Features, labels or splits would be wrong or would leak."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest option, or an empty text.

    >>> did_you_mean("entry_treshold", ["entry_threshold", "sl_pct"])
    " Did you mean 'entry_threshold'?"
    """
    by_folded = {option.casefold(): option for option in options}
    close = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" Did you mean '{by_folded[close[0]]}'?" if close else ""
