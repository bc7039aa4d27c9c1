"""Settings and parameters: each field is declared once, and everything else about it is derived from that line.

::

    sl_pct: Annotated[float, Meta(ge=0, lt=100), "Stop loss, from the entry."] = 0.3

The annotation gives the kind of value, whether None is allowed, the choices (``Literal``), the bounds (``Meta``) and
the help sentence; the suffix of the name gives the unit. Checks, error messages, the packed form of the
kernels, the tables of the documentation, command line help and the fields of the panel all read ``declarations()``.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Meta

from replaylab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Declaration",
    "Resolved",
    "ScoringParams",
    "Settings",
    "TradingParams",
    "contradictions",
    "markdown_table",
    "resolve_params",
    "resolve_scoring",
]

Kind = Literal["number", "whole", "flag", "choice", "names", "string", "settings"]

_UNITS = {
    "_pct": "%",
    "_bps": "bps",
    "_s": "s",
    "_ms": "ms",
    "_usd": "USD",
    "_days": "days",
    "_hours": "hours",
    "_bytes": "bytes",
}
# Some 30 years: a sum with any timestamp of a session fits 64-bit nanoseconds.
_LONGEST_S = 1e9
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=_LONGEST_S)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=_LONGEST_S)]
Milliseconds = Annotated[float, Meta(ge=0, le=1000 * _LONGEST_S)]
BasisPoints = Annotated[float, Meta(ge=0, lt=10_000)]
Fee = Annotated[float, Meta(ge=-100)]
StopPercent = Annotated[float, Meta(ge=0, lt=100)]
Count = Annotated[int, Meta(ge=0)]
Levels = Annotated[int, Meta(ge=1, le=1000)]
# A count beyond this is no limit in practice, and a packed count must fit 64 bits.
_MOST = 2**62


@dataclass(frozen=True)
class Declaration:
    """One field of a settings class: its kind, default, unit, bounds, choices and help sentence.

    ``low`` and ``high`` are inclusive bounds, ``above`` and ``below`` exclusive ones; None = no such bound.
    ``optional``: None is allowed. ``default`` is ``msgspec.NODEFAULT`` where there is none.
    """

    name: str
    kind: Kind
    default: Any
    optional: bool
    unit: str
    low: float | None
    above: float | None
    high: float | None
    below: float | None
    choices: tuple[str, ...]
    help: str
    settings: type[Settings] | None = None

    @property
    def bounds(self) -> str:
        """The bounds in words, such as ``≥ 0 and < 100``; empty where there are none."""
        limits = (("≥", self.low), (">", self.above), ("≤", self.high), ("<", self.below))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    @property
    def allowed(self) -> str:
        """What a value may be, in words, as error messages and tables show it."""
        words = {
            "number": f"a finite number {self.bounds}".strip(),
            "whole": f"a whole number {self.bounds}".strip(),
            "flag": "True or False",
            "choice": " or ".join(f'"{choice}"' for choice in self.choices),
            "names": "a list of names",
            "string": "a string",
            "settings": f"a {self.settings.__name__ if self.settings else 'Settings'} or a dict",
        }[self.kind]
        return words + (" or None" if self.optional else "")

    @property
    def column(self) -> str:
        """Name of the field in the packed form: times are whole nanoseconds (``_ns``), a set of names is a number."""
        if self.kind == "names":
            return f"{self.name}_set"
        for suffix in ("_ms", "_s"):
            if self.kind == "number" and self.name.endswith(suffix):
                return self.name.removesuffix(suffix) + "_ns"
        return self.name

    @property
    def packed_type(self) -> str:
        """numpy type code of the packed form."""
        if self.kind == "number":
            return "i8" if self.column.endswith("_ns") else "f8"
        return {"whole": "i8", "flag": "b1", "choice": "i4", "names": "i4"}[self.kind]

    def packed(self, value: Any) -> float | int | bool:
        """Return a checked value in the packed form.

        None is NaN in a number and −1 in a time, a count or a set of names; a choice is its position in ``choices``;
        any set of names is 0 (a caller with several sets numbers them).
        """
        kind = self.packed_type
        if value is None:
            return math.nan if kind == "f8" else -1
        if self.kind == "choice":
            return self.choices.index(value)
        if self.kind == "names":
            return 0
        if self.kind == "whole":
            return min(int(value), _MOST)
        if kind == "i8":
            nanoseconds: int = round(value * (1e6 if self.unit == "ms" else 1e9))
            return nanoseconds
        return bool(value) if kind == "b1" else float(value)

    def check(self, value: Any) -> Any:
        """Return ``value`` in its plain form (float, int, bool, str, tuple); raises ValueError where not allowed."""
        if value is None and self.optional:
            return None
        if self.kind in ("number", "whole"):
            return self._checked_number(value)
        if self.kind == "flag" and type(value).__name__ in ("bool", "bool_"):
            return bool(value)
        if self.kind == "choice" and isinstance(value, str) and value in self.choices:
            return str(value)
        if self.kind == "string" and isinstance(value, str):
            return value
        if (
            self.kind == "names"
            and isinstance(value, Iterable)
            and not isinstance(value, (str, bytes, Mapping))
        ):
            names = tuple(value)
            if all(isinstance(name, str) for name in names):
                return names
        if self.kind == "settings" and self.settings is not None:
            if isinstance(value, self.settings):
                return value
            if isinstance(value, Mapping):
                return self.settings.from_dict(value)
        raise ValueError(self.allowed)

    def _checked_number(self, value: Any) -> float | int:
        # numpy scalars come from grids; a bool is an int in Python and never meant as a number here.
        if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
            raise ValueError(self.allowed)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(self.allowed) from None
        if (
            not math.isfinite(number)
            or (self.low is not None and number < self.low)
            or (self.above is not None and number <= self.above)
            or (self.high is not None and number > self.high)
            or (self.below is not None and number >= self.below)
            or (self.kind == "whole" and number != int(number))
        ):
            raise ValueError(self.allowed)
        return int(number) if self.kind == "whole" else number


class Settings(msgspec.Struct, rename="camel", frozen=True):
    """Base of all settings: immutable, snake_case in Python, camelCase on disk, unknown names refused.

    A subclass declares its fields as the module's docstring shows; values are checked when an instance is made.
    """

    @classmethod
    def declarations(cls) -> tuple[Declaration, ...]:
        """Return the declaration of each field, in order.

        >>> [d.bounds for d in TradingParams.declarations() if d.name == "sl_pct"]
        ['≥ 0 and < 100']
        """
        return _declarations(cls)

    def __post_init__(self) -> None:
        for declared in _declarations(type(self)):
            value = getattr(self, declared.name)
            try:
                plain = declared.check(value)
            except ConfigError:
                raise
            except ValueError as error:
                self._fail(declared.name, str(error))
            if plain is not value:
                msgspec.structs.force_setattr(self, declared.name, plain)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return settings from a mapping with snake_case or camelCase names; what is missing has its default.

        Raises ConfigError for an unknown name (with the closest known one) or a wrong value.
        """
        return cls(**cls._named(data))

    @classmethod
    def of(cls, given: Any, name: str, base: Self | None = None) -> Self:
        """Return the settings that an argument means: settings are used as given, a dict holds changes to ``base``.

        >>> TradingParams.of({"sl_pct": 0.5}, "params").sl_pct
        0.5

        None gives ``base``; without a ``base`` the defaults take its place. Raises ConfigError that names the argument.
        """
        if isinstance(given, cls):
            return given
        start = cls() if base is None else base
        if given is None:
            return start
        if isinstance(given, Mapping):
            return start.with_changes(given)
        raise ConfigError(
            f"{name}: expected {cls.__name__}, a dict of changes or None, found {type(given).__name__}",
            field=name,
        )

    def _repr_html_(self) -> str:
        """What differs from the defaults first, the rest folded."""
        rows = [
            (d.name, value, d.default, d.unit or "", value != d.default)
            for d in self.declarations()
            for value in (getattr(self, d.name),)
        ]
        left = "style='text-align:left'"

        def table(part: list[tuple[str, Any, Any, str, bool]]) -> str:
            lines = "".join(
                f"<tr><td {left}>{escape(name)}</td><td>{escape(str(value))} {escape(unit)}</td>"
                f"<td>{escape(str(default))}</td></tr>"
                for name, value, default, unit, _ in part
            )
            return f"<table><thead><tr><th {left}>name</th><th>value</th><th>default</th></tr></thead>{lines}</table>"

        changed, rest = ([row for row in rows if row[4] is kind] for kind in (True, False))
        first = table(changed) if changed else " · all at their defaults"
        return (
            f"<div><b>{type(self).__name__}</b>{first}"
            f"<details><summary>{len(rest)} at their defaults</summary>{table(rest)}</details></div>"
        )

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with changes from a mapping of snake_case or camelCase names; raises ConfigError.

        >>> TradingParams().with_changes({"slPct": 0.5}).sl_pct
        0.5
        """
        return msgspec.structs.replace(self, **self._named(changes))

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed; an unknown name or a wrong value raises ConfigError.

        >>> TradingParams().replace(sl_pct=0.5).sl_pct
        0.5
        """
        return self.with_changes(changes)

    def changes(self, base: Self) -> dict[str, tuple[Any, Any]]:
        """Return what differs from ``base``: ``{field: (value in base, value here)}``, in order of declaration.

        >>> TradingParams(sl_pct=0.5).changes(TradingParams())
        {'sl_pct': (0.3, 0.5)}
        """
        pairs = ((name, getattr(base, name), getattr(self, name)) for name in self.__struct_fields__)
        return {name: (old, new) for name, old, new in pairs if old != new}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a plain dict in the on-disk form (camelCase)."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def _named(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Values by snake_case name, from a mapping with names in either spelling."""
        names = dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))
        names |= {attribute: attribute for attribute in cls.__struct_fields__}
        for key in data:
            if key not in names:
                raise ConfigError(
                    f"{cls.__name__} has no setting {key!r:.200}.{did_you_mean(str(key), cls.__struct_fields__)}",
                    field=str(key),
                )
        return {names[key]: value for key, value in data.items()}

    def _fail(self, field: str, expected: str) -> typing.NoReturn:
        raise ConfigError(
            f"{type(self).__name__}.{field}: expected {expected}, found {getattr(self, field)!r:.200}",
            field=field,
        )


class TradingParams(Settings, kw_only=True, frozen=True):
    """The parameters of the trading model; every one can be an axis of a sweep.

    >>> TradingParams(entry_threshold=0.7, sl_pct=0.25).sl_pct
    0.25

    Fields end in their unit: ``_pct`` percent (0.4 means 0.4 %), ``_bps`` basis points, ``_s`` seconds, ``_ms``
    milliseconds. ``None`` switches a rule off where it is allowed; ``docs/model.md`` has the rules.
    Raises ConfigError that names the field and its bound.
    """

    entry_threshold: Annotated[
        NotNegative, "Enter when abs(score) reaches this; in the score's own units."
    ] = 0.6
    exit_threshold: Annotated[
        float | None, "Close when dir·score falls below this at a scoring event; None = never."
    ] = None
    allow_long: Annotated[bool, "LONG entries are allowed."] = True
    allow_short: Annotated[bool, "SHORT entries are allowed."] = True
    allowed_regimes: Annotated[
        tuple[str, ...] | None,
        "Entries only while the symbol's last regime is one of these; None = any, also none yet; an empty "
        "list blocks every entry.",
    ] = None
    cooldown_s: Annotated[Seconds, "No entry decision for this long after an exit."] = 0.0
    max_hold_s: Annotated[
        Seconds | None, "Close at the first price event this long after the entry fill; None = no limit."
    ] = None
    tp1_pct: Annotated[NotNegative, "First target, from the entry."] = 0.3
    tp1_fraction: Annotated[
        Share, "Share of the position closed at TP1; 0 = none and no break-even, 1 = all."
    ] = 0.5
    tp2_pct: Annotated[NotNegative, "Second target, which closes the rest; at least tp1_pct."] = 0.6
    sl_pct: Annotated[StopPercent, "Stop loss, from the entry."] = 0.3
    break_even_offset_pct: Annotated[
        float | None,
        "After TP1 the stop moves to the entry plus this towards profit (negative: towards loss), if that is "
        "tighter; None = it stays.",
    ] = 0.0
    trailing_activation_pct: Annotated[
        NotNegative | None, "Trailing starts once the best price is this far in profit; None = never."
    ] = None
    trailing_distance_pct: Annotated[NotNegative, "Distance of the trailing stop from the best price."] = 0.2
    notional_usd: Annotated[Positive, "Size of an entry in quote currency."] = 1000.0
    risk_per_trade_usd: Annotated[
        Positive | None,
        "Loss at the first stop that sizes the entry instead, up to leverage·notional_usd; None = fixed size.",
    ] = None
    leverage: Annotated[Positive, "Recorded on the trade; caps the size that comes from risk."] = 1.0
    max_open_positions: Annotated[
        Count | None, "Open, pending and carried positions over all symbols; None = no limit."
    ] = None
    max_trades_per_day: Annotated[
        Count | None, "Entry decisions per UTC day over all symbols; None = no limit."
    ] = None
    max_daily_loss_usd: Annotated[
        Positive | None,
        "Realised loss of a UTC day, all symbols, that ends its entries, also if it recovers; None = no "
        "limit.",
    ] = None
    taker_fee_bps: Annotated[Fee, "Fee of market and stop fills, on the notional; negative = rebate."] = 5.5
    maker_fee_bps: Annotated[Fee, "Fee of limit fills, on the notional; negative = rebate."] = 2.0
    slippage_bps: Annotated[
        BasisPoints | None,
        "Adverse, on market and stop fills, beyond what market_fill gives; None = 1 for a print fill, 0 for a "
        "quote or book fill.",
    ] = None
    latency_ms: Annotated[Milliseconds, "From a decision to the arrival of its order."] = 0.0
    stop_latency_ms: Annotated[
        Milliseconds, "From the touch of a stop that the bot keeps (not the exchange) to its market fill."
    ] = 0.0
    market_fill: Annotated[
        Literal["auto", "print", "quote", "book"],
        "What a market order pays: the print, the best quote, or a walk through the book; auto = book for a "
        "symbol with a usable book somewhere in the session, else print.",
    ] = "auto"
    limit_fill: Annotated[
        Literal["touch", "through", "queue"],
        "When a resting limit order fills: at a touch, when the price trades through, or when the queue ahead "
        "of it is used up.",
    ] = "through"
    queue_share: Annotated[
        Share, 'Share of the displayed size that stands ahead of the order, for limit_fill "queue".'
    ] = 1.0
    entry_order: Annotated[Literal["MARKET", "LIMIT"], "Order type of an entry; LIMIT is post-only."] = (
        "MARKET"
    )
    entry_offset_bps: Annotated[BasisPoints, "How far behind its reference price a LIMIT entry rests."] = 0.0
    entry_ttl_s: Annotated[
        PositiveSeconds | None,
        "A LIMIT entry not filled this long after its arrival is cancelled; None = it rests.",
    ] = None
    max_book_age_s: Annotated[
        PositiveSeconds | None, "An older book is not used for fills; None = any age."
    ] = 60.0
    max_gap_s: Annotated[
        PositiveSeconds | None, "A longer pause between two price events of a symbol is a hole; None = off."
    ] = 900.0
    rounding: Annotated[
        Literal["exchange", "none"],
        "exchange = prices to ticks, quantities to lots and minimum notional, where the symbol's instrument "
        "is known.",
    ] = "exchange"

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        for reason, (fields, wrong) in contradictions(msgspec.structs.asdict(self)).items():
            if wrong:
                found = ", ".join(f"{field}={getattr(self, field)!r}" for field in fields)
                raise ConfigError(
                    f"TradingParams.{fields[0]}: {reason} is not allowed, found {found}", field=fields[0]
                )

    @property
    def print_slippage_bps(self) -> float:
        """Slippage of a print fill: ``slippage_bps``, and 1.0 where that is None."""
        return 1.0 if self.slippage_bps is None else self.slippage_bps

    @classmethod
    def packed_dtype(cls) -> np.dtype[Any]:
        """Return the numpy type of the packed form: a field per parameter, named ``Declaration.column``."""
        import numpy as np

        return np.dtype([(d.column, d.packed_type) for d in cls.declarations()], align=True)

    def pack(self) -> np.void:
        """Return the parameters as one record of ``packed_dtype()``; ``Declaration.packed`` says how None is kept.

        >>> int(TradingParams(cooldown_s=1.5).pack()["cooldown_ns"])
        1500000000
        """
        import numpy as np

        row = tuple(d.packed(getattr(self, d.name)) for d in self.declarations())
        record: Any = np.array(row, dtype=self.packed_dtype())[()]
        return typing.cast("np.void", record)


def contradictions(values: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Return what several trading parameters must not be together: ``{reason: (fields, whether it is so)}``.

    ``values`` maps field names to single values or, for a grid, to numpy arrays; the answer has bools or arrays.
    """
    queue_without_ticks = (values["limit_fill"] == "queue") & (values["rounding"] == "none")
    return {
        "tp2_pct < tp1_pct": (("tp2_pct", "tp1_pct"), values["tp2_pct"] < values["tp1_pct"]),
        'limit_fill "queue" with rounding "none"': (("limit_fill", "rounding"), queue_without_ticks),
    }


class ScoringParams(Settings, kw_only=True, frozen=True):
    """The parameters of the scoring engine: market data in, a score in [−1, 1] and a regime out.

    >>> ScoringParams(flow_half_life_s=10, momentum_weight=-0.5).gain
    1.5

    The score is ``tanh(gain · Σ weight·part / Σ |weight|)`` over the parts that are known: ``flow`` (signed over total
    traded quantity), ``book`` (imbalance of the best ``book_levels``), ``momentum`` (log price minus its average, in
    volatilities, through ``tanh(z / momentum_scale)``). The regime is VOLATILE while volatility reaches
    ``volatile_ratio`` times its own average, else TRENDING while the price is ``trending_z`` volatilities or more away
    from its average, else CALM. Raises ConfigError that names the field and its bound.
    """

    interval_ms: Annotated[
        Seconds,
        "At most one signal of a symbol in each interval of the clock, at the first time with market data in "
        "it; 0 = one at every distinct time.",
    ] = 0.0
    warmup_s: Annotated[Seconds, "No signal in a symbol's first seconds."] = 30.0
    flow_half_life_s: Annotated[PositiveSeconds, "Half-life of the traded quantities in flow."] = 5.0
    book_half_life_s: Annotated[PositiveSeconds, "Half-life of the book's imbalance."] = 2.0
    book_levels: Annotated[Levels, "Levels of each side in the book's imbalance."] = 5
    momentum_half_life_s: Annotated[PositiveSeconds, "Half-life of the average log price."] = 10.0
    volatility_half_life_s: Annotated[PositiveSeconds, "Half-life of the volatility."] = 60.0
    flow_weight: Annotated[float, "Weight of flow; negative trades against it."] = 0.4
    book_weight: Annotated[float, "Weight of book; negative trades against it."] = 0.3
    momentum_weight: Annotated[float, "Weight of momentum; negative trades against it."] = 0.3
    momentum_scale: Annotated[Positive, "Volatilities of distance at which momentum saturates."] = 1.0
    gain: Annotated[Positive, "Steepness of the score."] = 1.5
    baseline_half_life_s: Annotated[
        PositiveSeconds, "Half-life of the average volatility that VOLATILE is measured against."
    ] = 1800.0
    volatile_ratio: Annotated[Positive, "Volatility over its average from which the regime is VOLATILE."] = (
        1.5
    )
    trend_half_life_s: Annotated[
        PositiveSeconds, "Half-life of the average price that TRENDING is measured against."
    ] = 120.0
    trending_z: Annotated[
        Positive, "Volatilities from the average price from which the regime is TRENDING."
    ] = 1.7
    regime_hysteresis: Annotated[
        Share, "A regime ends only below (1 − this) times the bound at which it began."
    ] = 0.2


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
    used = kind.of(given, name, base)
    source: Source = "given" if isinstance(given, kind) else "config" if recorded is None else "recorded"
    return Resolved(used, source, used.changes(base))


def markdown_table(settings: type[Settings]) -> str:
    """Return the declarations as a Markdown table, a row per field, as the pages of ``docs/`` show them."""
    lines = ["| field | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
    for declared in settings.declarations():
        value = declared.default
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}" if _is_number(value) else str(value)
        lines.append(
            f"| `{declared.name}` | {shown} | {declared.unit} | {declared.allowed} | {declared.help} |"
        )
    return "\n".join(lines) + "\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@cache
def _declarations(settings: type[Settings]) -> tuple[Declaration, ...]:
    hints = typing.get_type_hints(settings, include_extras=True)
    return tuple(_declared(field, hints[field.name]) for field in msgspec.structs.fields(settings))


def _declared(field: msgspec.structs.FieldInfo, hint: Any) -> Declaration:
    hint, marks = _unwrapped(hint)
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        optional = len(members) < len(typing.get_args(hint))
        hint, more = _unwrapped(members[0])
        marks += more
    limits: dict[str, float] = {}
    for mark in marks:
        if isinstance(mark, Meta):
            limits |= {name: limit for name in _LIMITS if (limit := getattr(mark, name)) is not None}
    nested = hint if isinstance(hint, type) and issubclass(hint, Settings) else None
    return Declaration(
        name=field.name,
        kind="settings" if nested else _kind(hint),
        default=field.default,
        optional=optional,
        unit=next((unit for suffix, unit in _UNITS.items() if field.name.endswith(suffix)), ""),
        low=limits.get("ge"),
        above=limits.get("gt"),
        high=limits.get("le"),
        below=limits.get("lt"),
        choices=typing.get_args(hint) if typing.get_origin(hint) is Literal else (),
        help=next((mark for mark in marks if isinstance(mark, str)), ""),
        settings=nested,
    )


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        return hint, marks
    return hint, []


_LIMITS = ("ge", "gt", "le", "lt")


def _kind(hint: Any) -> Kind:
    if typing.get_origin(hint) is Literal:
        return "choice"
    if typing.get_origin(hint) is tuple:
        return "names"
    kinds: dict[Any, Kind] = {bool: "flag", int: "whole", float: "number", str: "string"}
    return kinds[hint]
