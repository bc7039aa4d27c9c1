"""What a session is asked to contain: range, symbols, types; checked before anything is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from replaylab.errors import SessionError, TimeError, did_you_mean
from replaylab.paths import safe_symbol
from replaylab.timestamps import NS_PER_DAY, iso, to_ns

DEFAULT_TYPES = ("SCORING*", "REGIME*", "RISK*", "EXECUTION*", "MARKET_*", "FUNDING")
# Types that repeat what other types say: a pattern takes them from this many letters before its star on.
_LEAST_PREFIX = {"STATE_EVENT": 1, "SCORING_SNAPSHOT": 9, "REGIME_SNAPSHOT": 8}
_NS_PER_SECOND = 1_000_000_000
_SYMBOLS_IN_ID = 5
_LONGEST_ID = 180
# The specification's options object, and the arguments that its keys become.
_OPTION_KEYS = {
    "from": "start",
    "to": "end",
    "symbols": "symbols",
    "includeTypes": "include_types",
    "maxEvents": "max_events",
    "sessionId": "session_id",
    "notes": "notes",
    "createdBy": "created_by",
    "speedFactor": "speed_factor",
    "ifExists": "if_exists",
}


def option_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``build_replay_session`` of an options object in camelCase.

    >>> option_arguments({"from": "2025-11-18T10:00Z", "includeTypes": ["SCORING_UPDATE"], "sessionId": None})
    {'start': '2025-11-18T10:00Z', 'include_types': ['SCORING_UPDATE'], 'session_id': None}

    Raises SessionError for an unknown key.
    """
    for key in options:
        if key not in _OPTION_KEYS:
            hint = did_you_mean(str(key), _OPTION_KEYS)
            raise SessionError(f"unknown build option {key!r}; allowed are {', '.join(_OPTION_KEYS)}.{hint}")
    return {_OPTION_KEYS[key]: value for key, value in options.items()}


class TypeFilter:
    """Which ReplayEvent types go into a session.

    >>> TypeFilter(["SCORING_UPDATE", "EXECUTION_*"]).wants("EXECUTION_ORDER")
    True

    A trailing ``*`` matches a prefix. ``STATE_EVENT`` and the snapshots of metrics repeat what other types say, so only
    a pattern that names them takes them (``STATE_*``, ``SCORING_SNAPSHOT``), never ``*``, ``SCORING*`` or the default.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._exact = {name for name in self.patterns if not name.endswith("*")}
        self._prefixes = tuple(name[:-1] for name in self.patterns if name.endswith("*"))

    def wants(self, event_type: str) -> bool:
        """Return whether events of this type are taken."""
        if event_type in self._exact:
            return True
        least = _LEAST_PREFIX.get(event_type, 0)
        prefixes = tuple(prefix for prefix in self._prefixes if len(prefix) >= least)
        return bool(prefixes) and event_type.startswith(prefixes)

    def without_match(self, found: Iterable[str]) -> list[str]:
        """Return the patterns that none of the types in ``found`` matches."""
        types = list(found)
        return [name for name in self.patterns if not any(TypeFilter([name]).wants(kind) for kind in types)]


@dataclass(frozen=True)
class BuildOptions:
    """The checked options of one build; times in ns since 1970, the range half-open."""

    start: int
    end: int
    start_text: str
    end_text: str
    symbols: tuple[str, ...]
    include_types: tuple[str, ...] | None
    max_events: int | None

    @classmethod
    def check(
        cls,
        start: str | datetime,
        end: str | datetime,
        symbols: str | Sequence[str],
        include_types: str | Sequence[str] | None,
        max_events: int | None,
    ) -> BuildOptions:
        """Return the options, or raise SessionError, TimeError or UnsafeNameError."""
        start_ns, end_ns = moment_ns(start, "start"), moment_ns(end, "end")
        if start_ns >= end_ns:
            raise SessionError(
                f"the range is empty: it begins at {iso(start_ns)} and ends before {iso(end_ns)}; "
                "start must be earlier than end"
            )
        names = _strings(symbols, "symbols: expected a list of symbols")
        if not names:
            raise SessionError("name at least one symbol to build a session of")
        for name in names:
            safe_symbol(name)
        if max_events is not None and (
            isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 0
        ):
            raise SessionError(f"max_events is a whole number ≥ 0 or None, found {max_events!r}")
        return cls(
            start=start_ns,
            end=end_ns,
            start_text=_range_text(start, start_ns),
            end_text=_range_text(end, end_ns),
            symbols=tuple(dict.fromkeys(names)),
            include_types=None if include_types is None else _checked_types(include_types),
            # Beyond any session all limits are alike, and this one fits into 64 bits.
            max_events=None if max_events is None else min(max_events, 1 << 62),
        )

    @property
    def types(self) -> TypeFilter:
        return TypeFilter(DEFAULT_TYPES if self.include_types is None else self.include_types)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as ``meta.json`` stores them; equal options give equal dicts."""
        return {
            "from": iso(self.start),
            "to": iso(self.end),
            "symbols": list(self.symbols),
            "includeTypes": None if self.include_types is None else list(self.include_types),
            "maxEvents": self.max_events,
        }


def generated_id(options: BuildOptions) -> str:
    """Return the id of a session that was given none: its range and its first symbols.

    ``2025-11-18T10-11-BTCUSDT-AIUSDT`` for whole hours, ``2025-11-18T10-30_11-15-BTCUSDT`` where minutes matter,
    ``2025-11-18T22-2025-11-19T02-BTCUSDT`` over midnight, ``-and-2-more`` after five symbols.
    """
    start, end = options.start, options.end
    unit = 3_600 * _NS_PER_SECOND
    parts = 1
    while parts < 3 and (start % unit or end % unit):
        unit //= 60
        parts += 1
    first, last = _clock(start, parts), _clock(end, parts)
    joint = "-" if parts == 1 else "_"
    if start // NS_PER_DAY != end // NS_PER_DAY:
        last = f"{iso(end)[:10]}T{last}"
    name = f"{iso(start)[:10]}T{first}{joint}{last}"
    symbols = [re.sub("[/:]", "-", symbol) for symbol in options.symbols]
    shown = symbols[:_SYMBOLS_IN_ID]
    while True:
        left = len(symbols) - len(shown)
        found = "-".join([name, *shown]) + (f"-and-{left}-more" if left else "")
        if len(found.encode()) <= _LONGEST_ID or not shown:
            return found
        shown.pop()


def moment_ns(value: str | datetime, name: str) -> int:
    """Return nanoseconds since 1970 of an argument; the error of a bad one names it."""
    try:
        return to_ns(value)
    except TimeError as error:
        raise TimeError(f"{name}: {error}") from None


def _checked_types(include_types: str | Sequence[str]) -> tuple[str, ...]:
    given = _strings(include_types, "include_types: expected a list of event types")
    for kind in given:
        if not isinstance(kind, str) or not kind or "*" in kind[:-1]:
            raise SessionError(
                f"include_types names event types such as SCORING_UPDATE or EXECUTION_*, found {kind!r}"
            )
    if not given:
        raise SessionError("include_types is empty: name event types, or leave it out for all signals")
    return tuple(dict.fromkeys(given))


def _strings(given: Any, expected: str) -> list[Any]:
    if not isinstance(given, Iterable):
        raise SessionError(f"{expected}, found {given!r}")
    return [given] if isinstance(given, str) else list(given)


def _clock(ns: int, parts: int) -> str:
    # Only the last of hours, minutes and seconds that matters is shown; finer differences end in -2, -3.
    return "-".join(iso(ns)[11:19].split(":")[:parts])


def _range_text(value: Any, ns: int) -> str:
    # A string that names its zone says exactly what was asked for, and stays as given.
    if isinstance(value, str) and len(value) >= 20 and value.endswith("Z"):
        return value
    return iso(ns)
