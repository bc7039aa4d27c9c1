"""Bodies of requests: the fields, their types, and errors that name the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import orjson
from msgspec import field

from replaylab.errors import RecordError, ReplaylabError, TimeError, did_you_mean
from replaylab.params import TradingParams
from replaylab.paths import safe_name, safe_symbol
from replaylab.records import Record, decode_record
from replaylab.timestamps import parse_ns


class Request(Record, kw_only=True):
    """Base of all bodies."""

    def check(self) -> None:
        """Raise RecordError, naming the field, for values that the types alone do not exclude."""


R = TypeVar("R", bound=Request)


class EmptyRequest(Request, kw_only=True):
    """A body without fields, or no body."""


class BuildRequest(Request, kw_only=True):
    """``POST /api/replay/sessions``."""

    from_: str = field(name="from")
    to: str
    symbols: list[str]
    include_types: list[str] | None = None
    max_events: Any = None
    session_id: str | None = None
    notes: str | None = None

    def check(self) -> None:
        _try("from", _moment, self.from_)
        _try("to", _moment, self.to)
        if not self.symbols:
            raise _wrong("symbols", "at least one symbol", self.symbols)
        for symbol in self.symbols:
            _try("symbols", safe_symbol, symbol)
        for kind in self.include_types or ():
            if not kind or "*" in kind[:-1]:
                raise _wrong("includeTypes", "types such as SCORING_UPDATE or EXECUTION_*", kind)
        if self.include_types is not None and not self.include_types:
            raise _wrong("includeTypes", "at least one type, or null", self.include_types)
        if self.max_events is not None:
            limit = _whole(self.max_events)
            if limit is None:
                raise _wrong("maxEvents", "a whole number ≥ 0, or null", self.max_events)
            self.max_events = limit
        if self.session_id is not None:
            _try("sessionId", safe_name, self.session_id)


class RunRequest(Request, kw_only=True):
    """``POST /api/replay/run``. ``speed_factor``: a number, or "inf", since JSON has no infinity."""

    session_id: str
    speed_factor: Any = None
    inject_mode: Literal["SCORING_ONLY", "FULL_DECISION"] | None = None
    loop: bool = False
    strict: bool = False
    params: dict[str, Any] | None = None

    def check(self) -> None:
        if self.speed_factor is not None:
            _check_speed(self.speed_factor)
        names = TradingParams.__struct_encode_fields__
        for name in self.params or ():
            if name not in names:
                hint = did_you_mean(name, names)
                raise RecordError(f"params.{name}: there is no such parameter.{hint}", field=name)


class SeekRequest(Request, kw_only=True):
    """``POST /api/replay/seek``. ``to``: an index, or an ISO time."""

    to: Any

    def check(self) -> None:
        if isinstance(self.to, str):
            _try("to", _moment, self.to)
            return
        index = _whole(self.to)
        if index is None:
            raise _wrong("to", "an index ≥ 0 or an ISO time", self.to)
        # Beyond any session all indices are alike, and this one fits into 64 bits.
        self.to = min(index, 1 << 62)


class StepRequest(Request, kw_only=True):
    """``POST /api/replay/step``. ``n``: how many events."""

    n: Any = 1

    def check(self) -> None:
        events = _whole(self.n)
        if not events:
            raise _wrong("n", "a whole number ≥ 1", self.n)
        self.n = min(events, 1 << 62)


class SpeedRequest(Request, kw_only=True):
    """``POST /api/replay/speed``."""

    speed_factor: Any

    def check(self) -> None:
        _check_speed(self.speed_factor)


def _whole(value: Any) -> int | None:
    """The whole number ≥ 0 that a JSON number is (1.0 is one, says JSON Schema), or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return int(value) if value == int(value) else None


def _check_speed(value: Any) -> None:
    if value == "inf":
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _wrong("speedFactor", 'a number above 0, or "inf"', value)


def _moment(text: str) -> None:
    parse_ns(text)
    if not "1700" <= text[:4] < "2200":
        raise TimeError(f"expected a year from 1700 to 2199, found {text!r}")


def _wrong(name: str, expected: str, found: Any) -> RecordError:
    return RecordError(f"{name}: expected {expected}, found {found!r}", field=name)


def _try(name: str, check: Callable[[str], object], value: str) -> None:
    try:
        check(value)
    except ReplaylabError as error:
        raise RecordError(f"{name}: {error}", field=name) from None


def read_body(cls: type[R], body: bytes) -> R:
    """Return the request in a body; raises RecordError that names the field, unknown ones too."""
    try:
        request = decode_record(cls, body)
    except orjson.JSONDecodeError as error:
        # Valid for one reader of JSON and not for the other: nested a thousand deep, say.
        raise RecordError(f"{cls.__name__}: not usable JSON: {error}") from None
    for name in request.unknown_fields:
        hint = did_you_mean(name, cls.__struct_encode_fields__)
        raise RecordError(f"{cls.__name__}.{name}: there is no such field.{hint}", field=name)
    request.check()
    return request
