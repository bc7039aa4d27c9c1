"""Exit rules of one's own: a function that sees the open trade at each price and holds, closes, or moves the stop.

::

    @replaylab.exit_rule(minutes=5.0, features=("volatility_bps",))
    def tired(trade, price, features, minutes):
        if trade.age_s > 60.0 * minutes and features.volatility_bps < 2.0:
            return CLOSE
        return trade.stop

    lab.backtest(session, rule=tired)
    lab.sweep(session, {"rule.minutes": [2.0, 5.0, 10.0], "sl_pct": [0.2, 0.4]}, rule=tired)

The function is called at every price event after the entry's, after the targets and before ``max_hold_s``. It returns
``HOLD``, ``CLOSE``, or a price: the stop moves there if that is tighter, and acts from the next price on. Exits have
the reason RULE. numba compiles the function for the loop kernel; the event-driven system calls the Python function. See
``docs/rules.md``.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from replaylab.errors import ConfigError, did_you_mean

HOLD = 0.0
CLOSE = -1.0
PREFIX = "rule."


class OpenTrade(NamedTuple):
    """What a rule sees of the open trade. Prices in quote currency, quantities in base currency.

    ``side``: 1.0 LONG, −1.0 SHORT. ``entry_time``: seconds since 1970. ``best``, ``worst``: the most and the least
    favourable price since the entry, this one included. ``left``: what TP1 left of ``qty``. ``tp1_filled``: 0.0 or 1.0.
    """

    side: float
    entry_price: float
    entry_time: float
    age_s: float
    best: float
    worst: float
    qty: float
    left: float
    stop: float
    tp1_filled: float


@dataclass(frozen=True)
class ExitRule:
    """An exit rule with the values of its arguments; made by ``exit_rule``.

    ``values``: name of an argument → number. ``features``: names of the columns that it reads, from ``source``: a
    DataFrame with ``timestamp``, ``symbol`` and these columns, or a function that returns one for a session.
    ``compiled=False``: numba is not used; slow.
    """

    function: Callable[..., float]
    values: Mapping[str, float]
    features: tuple[str, ...] = ()
    compiled: bool = True
    source: Any = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:g}" for name, value in self.values.items())
        return f"{self.function.__name__}({shown})"

    def __call__(self, *args: Any) -> float:
        return self.function(*args)

    def with_values(self, **values: float) -> ExitRule:
        """Return the rule with other values of its arguments. Raises ConfigError."""
        for name, value in values.items():
            if name not in self.values:
                hint = did_you_mean(name, self.values)
                known = ", ".join(self.values) or "none"
                raise ConfigError(
                    f"{self.function.__name__} has no argument {name!r}: there are {known}.{hint}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"{PREFIX}{name}: expected a finite number, found {value!r}")
        return replace(self, values={**self.values, **{n: float(v) for n, v in values.items()}})

    def on(self, source: Any) -> ExitRule:
        """Return the rule with the DataFrame (or the function of a session) that its features come from."""
        return replace(self, source=source)

    @cached_property
    def view(self) -> Any:
        """The type that holds one row of features."""
        return namedtuple("Features", self.features or ("none",))

    def ask(self, trade: OpenTrade, price: float, features: Any) -> float:
        """Call the Python function, for the event-driven system."""
        given = (features,) if self.features else ()
        return float(self.function(trade, price, *given, *self.values.values()))


class FeatureRows(Protocol):
    """The features of a session by symbol: the last row known at a time, NaN before the first."""

    def at(self, symbol: str, ts: int) -> Iterable[float]: ...


def exit_rule(
    function: Callable[..., float] | None = None,
    *,
    features: tuple[str, ...] | list[str] = (),
    compiled: bool = True,
    **values: float,
) -> Any:
    """Make a function an exit rule; keyword arguments are its arguments with their defaults.

    >>> @exit_rule(minutes=5.0)
    ... def too_old(trade, price, minutes):
    ...     return CLOSE if trade.age_s > 60.0 * minutes else HOLD
    >>> too_old
    too_old(minutes=5)
    >>> too_old.with_values(minutes=2)
    too_old(minutes=2)

    The function takes the trade (``OpenTrade``), the price, the features where ``features`` names any (a row with these
    fields; NaN where nothing is known yet), and the named arguments. Raises ConfigError where its arguments are others.
    """

    def made(function: Callable[..., float]) -> ExitRule:
        wanted = ["trade", "price", *(["features"] if features else []), *values]
        code = function.__code__
        found = list(code.co_varnames[: code.co_argcount])
        if len(found) != len(wanted) or found[len(wanted) - len(values) :] != list(values):
            raise ConfigError(
                f"{function.__name__}: expected the arguments {', '.join(wanted)}, found {', '.join(found)}"
            )
        rule = ExitRule(function, {}, tuple(features), compiled)
        return replace(rule, values=dict.fromkeys(values, 0.0)).with_values(**values)

    return made if function is None else made(function)
