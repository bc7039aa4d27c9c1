"""Bodies of requests: the fields, their types, and errors that name the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import orjson
from msgspec import field

from replaylab.errors import RecordError, ReplaylabError, did_you_mean
from replaylab.paths import safe_name
from replaylab.records import Record, decode_record
from replaylab.timestamps import parse_ns

__all__ = ["BuildRequest", "EmptyRequest", "RunRequest", "SeekRequest", "SpeedRequest", "read_body"]

R = TypeVar("R", bound=Record)


class BuildRequest(Record, kw_only=True):
    """``POST /api/replay/sessions``."""

    from_: str = field(name="from")
    to: str
    symbols: list[str]
    include_types: list[str] | None = None
    max_events: int | None = None
    session_id: str | None = None
    notes: str | None = None

    def __post_init__(self) -> None:
        for name, text in (("from", self.from_), ("to", self.to)):
            _checked(name, parse_ns, text)
        if self.session_id is not None:
            _checked("sessionId", safe_name, self.session_id)
        for symbol in self.symbols:
            _checked("symbols", safe_name, symbol)
        if not self.symbols:
            raise ValueError("symbols: expected at least one symbol, found []")
        if self.include_types is not None and not self.include_types:
            raise ValueError("includeTypes: expected at least one type or null, found []")
        if self.max_events is not None and self.max_events < 0:
            raise ValueError(f"maxEvents: expected a whole number ≥ 0 or null, found {self.max_events}")


class RunRequest(Record, kw_only=True):
    """``POST /api/replay/run``."""

    session_id: str
    speed_factor: float | Literal["inf"] | None = None
    inject_mode: Literal["SCORING_ONLY", "FULL_DECISION"] | None = None
    loop: bool = False
    params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.speed_factor not in (None, "inf"):
            _check_speed(self.speed_factor)


class SeekRequest(Record, kw_only=True):
    """``POST /api/replay/seek``: an index, or an ISO time."""

    to: int | str

    def __post_init__(self) -> None:
        if isinstance(self.to, int) and self.to < 0:
            raise ValueError(f"to: expected an index ≥ 0 or an ISO time, found {self.to}")


class SpeedRequest(Record, kw_only=True):
    """``POST /api/replay/speed``."""

    speed_factor: float | Literal["inf"]

    def __post_init__(self) -> None:
        if self.speed_factor != "inf":
            _check_speed(self.speed_factor)


class EmptyRequest(Record, kw_only=True):
    """A body without fields; none at all will do too."""


def _checked(field: str, check: Callable[[str], object], text: str) -> None:
    try:
        check(text)
    except ReplaylabError as error:
        raise ValueError(f"{field}: {error}") from None


def _check_speed(value: float | str | None) -> None:
    if not isinstance(value, float | int) or not value > 0:
        raise ValueError(f'speedFactor: expected a number above 0, or "inf", found {value}')


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
    return request
