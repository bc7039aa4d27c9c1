"""Parameters of the trading model and of the scoring engine: declared once, checked when made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

import msgspec

from replaylab.errors import ConfigError, did_you_mean

__all__ = ["Resolved", "ScoringParams", "Settings", "TradingParams", "resolve_params", "resolve_scoring"]


class Settings(msgspec.Struct, rename="camel", frozen=True):
    """Base of all settings: immutable, snake_case in Python, camelCase on disk, unknown names refused."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return settings from a mapping with snake_case or camelCase names.

        Raises ConfigError for an unknown name (with the closest known one) or a wrong value.
        """
        names = dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))
        names |= {attribute: attribute for attribute in cls.__struct_fields__}
        chosen: dict[str, Any] = {}
        for key, value in data.items():
            if key not in names:
                raise ConfigError(
                    f"{cls.__name__} has no setting {key!r}.{did_you_mean(key, cls.__struct_fields__)}",
                    field=key,
                )
            chosen[names[key]] = value
        return cls(**chosen)

    @classmethod
    def of(cls, given: Any, name: str) -> Self:
        """Return an argument as settings: as it is, from a plain dict, or the defaults for None; raises ConfigError.

        >>> TradingParams.of({"sl_pct": 0.5}, "params").sl_pct
        0.5
        """
        if isinstance(given, cls):
            return given
        if given is None:
            return cls()
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        raise ConfigError(
            f"{name}: expected {cls.__name__}, a dict or None, found {type(given).__name__}", field=name
        )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed; an unknown name raises ConfigError.

        >>> TradingParams().replace(sl_pct=0.5).sl_pct
        0.5
        """
        return type(self).from_dict(
            {**{name: getattr(self, name) for name in self.__struct_fields__}, **changes}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a plain dict in the on-disk form (camelCase)."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    def _fail(self, field: str, expected: str) -> None:
        raise ConfigError(
            f"{type(self).__name__}.{field}: expected {expected}, found {getattr(self, field)!r}",
            field=field,
        )

    def _number(
        self,
        field: str,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        above: float | None = None,
        optional: bool = False,
        whole: bool = False,
    ) -> None:
        """Check one number in place: finite, within bounds, whole if asked; stored as float or int."""
        value = getattr(self, field)
        if value is None and optional:
            return
        parts = [f"≥ {low:g}" if low > -math.inf else "", f"≤ {high:g}" if high < math.inf else ""]
        if above is not None:
            parts.append(f"> {above:g}")
        bound = " and ".join(part for part in parts if part)
        kind = "a whole number" if whole else "a finite number"
        expected = f"{kind} {bound}".strip() + (" or None" if optional else "")
        # numpy scalars come from grids; bool is an int in Python and is never meant as a number here.
        if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
            self._fail(field, expected)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            self._fail(field, expected)
        if (
            not math.isfinite(number)
            or not low <= number <= high
            or (above is not None and not number > above)
            or (whole and number != int(number))
        ):
            self._fail(field, expected)
        msgspec.structs.force_setattr(self, field, int(number) if whole else number)

    def _flag(self, field: str) -> None:
        value = getattr(self, field)
        if type(value).__name__ not in ("bool", "bool_"):
            self._fail(field, "True or False")
        msgspec.structs.force_setattr(self, field, bool(value))


class TradingParams(Settings, kw_only=True, frozen=True):
    """The parameters of the trading model; every one can be an axis of a sweep.

    >>> TradingParams(entry_threshold=0.7, sl_pct=0.25).sl_pct
    0.25

    Fields end in their unit: ``_pct`` percent (0.4 means 0.4 %), ``_bps`` basis points, ``_s`` seconds, ``_ms``
    milliseconds. ``None`` switches a rule off where the default or ``docs/model.md`` says so.
    Raises ConfigError that names the field and its bound.
    """

    entry_threshold: float = 0.6
    exit_threshold: float | None = None
    allow_long: bool = True
    allow_short: bool = True
    allowed_regimes: tuple[str, ...] | None = None
    cooldown_s: float = 0.0
    max_hold_s: float | None = None
    tp1_pct: float = 0.3
    tp1_fraction: float = 0.5
    tp2_pct: float = 0.6
    sl_pct: float = 0.3
    break_even_offset_pct: float | None = 0.0
    trailing_activation_pct: float | None = None
    trailing_distance_pct: float = 0.2
    notional_usd: float = 1000.0
    risk_per_trade_usd: float | None = None
    leverage: float = 1.0
    max_open_positions: int | None = None
    max_trades_per_day: int | None = None
    max_daily_loss_usd: float | None = None
    taker_fee_bps: float = 5.5
    maker_fee_bps: float = 2.0
    slippage_bps: float = 1.0
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        self._number("entry_threshold", low=0)
        self._number("exit_threshold", optional=True)
        self._flag("allow_long")
        self._flag("allow_short")
        self._check_regimes()
        self._number("cooldown_s", low=0, high=_MAX_SECONDS)
        self._number("max_hold_s", low=0, high=_MAX_SECONDS, optional=True)
        self._number("tp1_pct", low=0)
        self._number("tp1_fraction", low=0, high=1)
        self._number("tp2_pct", low=0)
        # A stop of 100 % or a slippage of 100 % would put prices at or below zero.
        self._number("sl_pct", low=0)
        self._number("break_even_offset_pct", low=0, optional=True)
        self._number("trailing_activation_pct", low=0, optional=True)
        self._number("trailing_distance_pct", low=0)
        self._number("notional_usd", above=0)
        self._number("risk_per_trade_usd", above=0, optional=True)
        self._number("leverage", above=0)
        self._number("max_open_positions", low=0, optional=True, whole=True)
        self._number("max_trades_per_day", low=0, optional=True, whole=True)
        self._number("max_daily_loss_usd", above=0, optional=True)
        self._number("taker_fee_bps", low=0)
        self._number("maker_fee_bps", low=0)
        self._number("slippage_bps", low=0, high=9_999)
        self._number("latency_ms", low=0, high=_MAX_SECONDS * 1000)
        if self.tp2_pct < self.tp1_pct:
            self._fail("tp2_pct", f"a number ≥ tp1_pct ({self.tp1_pct:g})")

    def _check_regimes(self) -> None:
        regimes = self.allowed_regimes
        if regimes is None:
            return
        if isinstance(regimes, str) or not all(isinstance(name, str) for name in regimes):
            self._fail("allowed_regimes", "a list of regime names or None")
        msgspec.structs.force_setattr(self, "allowed_regimes", tuple(regimes))


# Some 30 years: sums with any timestamp of a session stay inside 64-bit nanoseconds.
_MAX_SECONDS = 1e9


class ScoringParams(Settings, kw_only=True, frozen=True):
    """The parameters of the scoring engine: market data in, a score in [−1, 1] and a regime out.

    >>> ScoringParams(flow_half_life_s=10, momentum_weight=-0.5).gain
    1.5

    The score is ``tanh(gain · Σ weight·part / Σ |weight|)`` over the parts that are known: ``flow`` (signed over total
    traded quantity), ``book`` (imbalance of the best ``book_levels``), ``momentum`` (log price minus its average, in
    volatilities, through ``tanh(z / momentum_scale)``). A negative weight trades against a part. Half-lives are in
    seconds. ``interval_ms``: at most one signal of a symbol in each interval of the clock, at the first time with
    market data in it; 0 = one at every distinct time. No signal in a symbol's first ``warmup_s`` seconds.

    The regime is VOLATILE while volatility (``volatility_half_life_s``) stands at ``volatile_ratio`` times its own
    average (``baseline_half_life_s``) or more, else TRENDING while the price is ``trending_z`` volatilities or more
    away from its average over ``trend_half_life_s``, else CALM. It is left again only below
    ``(1 − regime_hysteresis)`` of its bound. Raises ConfigError that names the field and its bound.
    """

    interval_ms: float = 0.0
    warmup_s: float = 30.0
    flow_half_life_s: float = 5.0
    book_half_life_s: float = 2.0
    book_levels: int = 5
    momentum_half_life_s: float = 10.0
    volatility_half_life_s: float = 60.0
    flow_weight: float = 0.4
    book_weight: float = 0.3
    momentum_weight: float = 0.3
    momentum_scale: float = 1.0
    gain: float = 1.5
    baseline_half_life_s: float = 1800.0
    volatile_ratio: float = 1.5
    trend_half_life_s: float = 120.0
    trending_z: float = 1.7
    regime_hysteresis: float = 0.2

    def __post_init__(self) -> None:
        self._number("interval_ms", low=0, high=_MAX_SECONDS)
        self._number("warmup_s", low=0, high=_MAX_SECONDS)
        for field in (
            "flow_half_life_s",
            "book_half_life_s",
            "momentum_half_life_s",
            "volatility_half_life_s",
            "baseline_half_life_s",
            "trend_half_life_s",
        ):
            self._number(field, above=0, high=_MAX_SECONDS)
        self._number("book_levels", low=1, high=1000, whole=True)
        for field in ("flow_weight", "book_weight", "momentum_weight"):
            self._number(field)
        self._number("momentum_scale", above=0)
        self._number("gain", above=0)
        self._number("volatile_ratio", above=0)
        self._number("trending_z", above=0)
        self._number("regime_hysteresis", low=0, high=1)


_S = TypeVar("_S", bound=Settings)
Source = Literal["recorded", "config", "given"]


class Resolved(NamedTuple, Generic[_S]):
    """The parameters that a run uses, where they came from, and what differs from the base.

    ``source``: "recorded" (the session's), "config" (it has none) or "given" (the caller named all of them).
    ``changes``: ``{field: (recorded, used)}``; where nothing was recorded, against the configured value.
    """

    params: _S
    source: Source
    changes: dict[str, tuple[Any, Any]]

    def describe(self) -> str:
        """Return one phrase for a repr, such as "recorded parameters, sl_pct 0.3 → 0.5"."""
        head = {"recorded": "recorded", "config": "configured", "given": "given"}[self.source] + " parameters"
        return ", ".join([head, *(f"{name} {old!r} → {new!r}" for name, (old, new) in self.changes.items())])


def resolve_params(
    given: TradingParams | Mapping[str, Any] | None,
    session: Any = None,
    default: TradingParams | None = None,
    *,
    name: str = "params",
) -> Resolved[TradingParams]:
    """Return which trading parameters a run over ``session`` uses.

    >>> resolve_params({"sl_pct": 0.5}).changes
    {'sl_pct': (0.3, 0.5)}

    None: the session's ``recorded_params``; where it has none, ``default`` (a Lab passes ``config.trading``). A dict:
    changes to those. A TradingParams is used as given. Raises ConfigError, which calls the argument ``name``.
    """
    return _resolve(TradingParams, given, getattr(session, "recorded_params", None), default, name)


def resolve_scoring(
    given: ScoringParams | Mapping[str, Any] | None,
    session: Any = None,
    default: ScoringParams | None = None,
    *,
    name: str = "scoring",
) -> Resolved[ScoringParams]:
    """Return which scoring parameters a run over ``session`` uses, by the rules of ``resolve_params``."""
    return _resolve(ScoringParams, given, getattr(session, "recorded_scoring", None), default, name)


def _resolve(kind: type[_S], given: Any, recorded: _S | None, default: _S | None, name: str) -> Resolved[_S]:
    base = recorded or default or kind()
    source: Source = "config" if recorded is None else "recorded"
    if isinstance(given, kind):
        used, source = given, "given"
    elif isinstance(given, Mapping):
        used = base.replace(**given)
    elif given is None:
        used = base
    else:
        raise ConfigError(
            f"{name}: expected {kind.__name__}, a dict of changes or None, found {type(given).__name__}",
            field=name,
        )
    pairs = ((field, getattr(base, field), getattr(used, field)) for field in kind.__struct_fields__)
    return Resolved(used, source, {field: (old, new) for field, old, new in pairs if old != new})
