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
the reason RULE. numba compiles the function for the loop kernel; the event-driven system calls the Python function. A
rule whose level depends on nothing but the entry and the age is a ``level_rule``: sweeps find it without reading every
price. See ``docs/rules.md``.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from keyword import iskeyword
from numbers import Real
from typing import Any, NamedTuple, Protocol, Self

from replaylab.errors import ConfigError, did_you_mean
from replaylab.trading import formulas

HOLD = 0.0
CLOSE = -1.0
PREFIX = "rule."
STOP, TARGET = "stop", "target"
_LONGEST_S = 86_400.0


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

    def with_values(self, **values: float) -> Self:
        """Return the rule with other values of its arguments. Raises ConfigError."""
        for name, value in values.items():
            if name not in self.values:
                hint = did_you_mean(name, self.values)
                known = ", ".join(self.values) or "none"
                raise ConfigError(
                    f"{self.function.__name__} has no argument {name!r}: there are {known}.{hint}"
                )
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ConfigError(f"{PREFIX}{name}: expected a finite number, found {value!r}")
        return replace(self, values={**self.values, **{n: float(v) for n, v in values.items()}})

    def on(self, source: Any) -> Self:
        """Return the rule with the DataFrame (or the function of a session) that its features come from."""
        return replace(self, source=source)

    @cached_property
    def view(self) -> Any:
        """The type that holds one row of features."""
        return namedtuple("Features", self.features or ("none",))

    def row_time(self, entry_ts: int, ts: int) -> int:
        """Return the time whose row of features the rule sees at ``ts``."""
        return ts

    def ask(self, trade: OpenTrade, price: float, features: Any) -> float:
        """Call the Python function, for the event-driven system."""
        given = (features,) if self.features else ()
        return as_answer(self.function(trade, price, *given, *self.values.values()))


@dataclass(frozen=True, repr=False)
class LevelRule(ExitRule):
    """A level rule with the values of its arguments; made by ``level_rule``.

    ``kind``: "stop" or "target". ``step_ns``: its age moves in steps of so many nanoseconds.
    """

    kind: str = "stop"
    step_ns: int = 0

    def row_time(self, entry_ts: int, ts: int) -> int:
        """Return the time whose row of features the rule sees: that of the entry."""
        return entry_ts

    def ask(self, trade: OpenTrade, price: float, features: Any) -> float:
        """Answer as an exit rule does: a stop's level, or whether the price closes the trade at a target."""
        given = (features,) if self.features else ()
        # In whole nanoseconds, as the kernels count.
        age_s = round(trade.age_s * 1e9) // self.step_ns * self.step_ns / 1e9
        level = as_answer(self.function(trade.side, trade.entry_price, age_s, *given, *self.values.values()))
        if self.kind == STOP or not 0.0 < level < math.inf:
            return level
        return CLOSE if formulas.target_hit(price, level, trade.side) else HOLD


def as_rule(rule: Any) -> ExitRule | None:
    """Return a rule, or None; raises ConfigError for anything else."""
    if rule is not None and not isinstance(rule, ExitRule):
        raise ConfigError(
            "rule: expected a function with @replaylab.exit_rule or @replaylab.level_rule, found "
            f"{type(rule).__name__}"
        )
    return rule


def as_answer(value: Any) -> float:
    """Return what a rule returned as a number; raises TypeError for anything else, such as None or True."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{value!r} is no answer")
    return float(value)


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
        _check(function, ["trade", "price"], features, values)
        rule = ExitRule(function, {}, tuple(features), compiled)
        return replace(rule, values=dict.fromkeys(values, 0.0)).with_values(**values)

    return made if function is None else made(function)


def level_rule(
    kind: str,
    *,
    every_s: float,
    features: tuple[str, ...] | list[str] = (),
    compiled: bool = True,
    **values: float,
) -> Any:
    """Make a function of the entry and the age of a trade an exit rule that sweeps find without reading every price.

    >>> @level_rule("target", every_s=10.0, start_pct=0.3, per_minute=0.1)
    ... def falling(side, entry_price, age_s, start_pct, per_minute):
    ...     return entry_price * (1.0 + side * max(start_pct - per_minute * age_s / 60.0, 0.0) / 100.0)
    >>> falling
    falling(start_pct=0.3, per_minute=0.1)

    The function takes ``side`` (1.0 LONG, −1.0 SHORT), the entry price, the age in seconds (a multiple of ``every_s``:
    the level stands in between), the features at the entry where ``features`` names any (a row with these fields; NaN
    where nothing is known yet), and the named arguments, which are axes ``rule.<name>``. It returns a price, ``HOLD``
    (no level in this step), or ``CLOSE``.

    ``kind``: "target" closes by a market order at the first price at or beyond the level; "stop" moves the stop there
    if that is tighter, and acts from the next price on. The level is asked for at the first price event of each step,
    where an exit rule has its turn, and the trades are those of that exit rule. Raises ConfigError.
    """
    if kind not in (STOP, TARGET):
        raise ConfigError(
            f'kind: expected "stop" or "target", found {kind!r}.{did_you_mean(str(kind), (STOP, TARGET))}'
        )
    if not isinstance(every_s, Real) or not 1e-9 <= every_s <= _LONGEST_S:
        raise ConfigError(
            f"every_s: expected seconds from 1e-9 to {_LONGEST_S:g} (a day), how often the level may change; "
            f"found {every_s!r}"
        )

    def made(function: Callable[..., float]) -> LevelRule:
        _check(function, ["side", "entry_price", "age_s"], features, values)
        rule = LevelRule(function, {}, tuple(features), compiled, kind=kind, step_ns=round(every_s * 1e9))
        return replace(rule, values=dict.fromkeys(values, 0.0)).with_values(**values)

    return made


def _check(
    function: Callable[..., float], first: list[str], features: Sequence[str], values: Mapping[str, float]
) -> None:
    """Raise ConfigError for a function that takes other arguments; the first ones may have names of their own."""
    named = [name for name in features if name.isidentifier() and not iskeyword(name) and name[0] != "_"]
    if isinstance(features, str) or len(set(named)) < len(features):
        raise ConfigError(
            f"features: expected a tuple of different names that Python takes for fields, found {features!r}"
        )
    code = getattr(function, "__code__", None)
    if code is None:
        raise ConfigError(f"expected a function, found {function!r}: define one with def")
    first = [*first, *(["features"] if features else [])]
    found = list(code.co_varnames[: code.co_argcount])
    if len(found) != len(first) + len(values) or found[len(first) :] != list(values):
        raise ConfigError(
            f"{function.__name__}: expected the arguments {', '.join([*first, *values])}, found {', '.join(found)}"
        )
