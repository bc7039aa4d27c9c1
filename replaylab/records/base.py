"""What all records share: camelCase on disk, strict validation, unknown fields kept.

A record that is about to be written is first encoded, and then the very bytes are decoded against its type:
what was checked is what the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

import msgspec
import orjson

from replaylab.errors import RecordError, TimeError
from replaylab.records.explain import explain, explain_unwritable, find_not_finite
from replaylab.records.numbers import with_plain_numbers
from replaylab.timestamps import parse_ns

__all__ = ["Record", "check_timestamp", "decode_record", "encode_record", "find_not_finite"]

R = TypeVar("R", bound="Record")


class QuickForm:
    """The fields of a record again, the timestamp as a datetime and the free object as raw JSON.

    msgspec checks that several times as fast. ``free`` names the free object, which is not looked into.
    """

    __slots__ = ("decode", "free")

    def __init__(self, form: type[msgspec.Struct], free: str) -> None:
        self.decode = msgspec.json.Decoder(form).decode
        self.free = free


class Record(msgspec.Struct, rename="camel", dict=True):
    """Base of every record: attributes in snake_case, fields on disk in camelCase.

    Fields that replaylab does not know are kept in ``unknown_fields`` and written again by ``to_dict``.
    A type that is logged very often has a ``quick_form``.
    """

    quick_form: ClassVar[QuickForm | None] = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of a plain dict in the on-disk form; raises RecordError that names the field."""
        return decode_record(cls, encode_record(cls, data))

    @property
    def unknown_fields(self) -> dict[str, Any]:
        """Fields found on disk that this type does not name (empty for most records)."""
        found: dict[str, Any] = self.__dict__.get("_unknown_fields", {})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict in the on-disk form (camelCase), unknown fields included."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for attribute, name in _fields(type(self)):
            value = getattr(self, attribute)
            if isinstance(value, Record):
                plain[name] = value.to_dict()
            elif isinstance(value, list) and any(isinstance(item, Record) for item in value):
                plain[name] = [item.to_dict() if isinstance(item, Record) else item for item in value]
            elif isinstance(value, dict) and any(isinstance(item, Record) for item in value.values()):
                plain[name] = {
                    key: item.to_dict() if isinstance(item, Record) else item for key, item in value.items()
                }
        return {**plain, **self.unknown_fields}


def encode_record(cls: type[Record], value: Record | Mapping[str, Any]) -> bytes:
    """Return one JSON line (without newline) of a record, or of a plain dict in its on-disk form.

    Raises RecordError, naming the field, when the value does not have the form of ``cls``.
    Keys of a dict keep their order, and keys that ``cls`` does not name are kept. Numbers of numpy are written as the
    plain numbers that they are.
    """
    # The common cases come first: this is on the way of every line that is logged.
    try:
        if type(value) is dict:
            line = orjson.dumps(value)
        elif isinstance(value, cls):
            whole = not value.__dict__ and not _holds_records(cls)
            line = _encode(value) if whole else orjson.dumps(value.to_dict())
        elif isinstance(value, Mapping):
            line = orjson.dumps(dict(value))
        else:
            raise RecordError(f"expected a {cls.__name__} or a dict, found a {type(value).__name__}")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, RecordError):
            raise
        plain = _plain(value)
        if plain is not value:
            return encode_record(cls, plain)
        raise explain_unwritable(cls.__name__, value, str(error)) from None
    # Both encoders write NaN and infinity as null: only a line with a null can hide one.
    if _find_null(line) and not _all_finite(value):
        plain = value if isinstance(value, Mapping) else msgspec.to_builtins(value)
        bad = find_not_finite(plain)
        if bad is not None:
            field, found = bad
            raise RecordError(f"{cls.__name__}.{field}: expected a finite number, found {found}", field=field)
    form = cls.quick_form
    if form is not None:
        try:
            form.decode(line)
            # msgspec has checked the timestamp as a datetime, within a grammar a little wider than ours: hence the
            # rest. What passes here is valid beyond doubt; what does not is looked at properly.
            if type(value) is dict:
                text, free = value["timestamp"], value[form.free]
            else:
                text, free = getattr(value, "timestamp", ""), getattr(value, form.free)
            if (
                len(text) <= 30
                and text[10] == "T"
                and text[-1] == "Z"
                and text[:2] in _CENTURIES
                and type(free) is dict
            ):
                return line
        except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):
            pass
    _decode(cls, line)
    return line


def decode_record(cls: type[R], line: bytes | str) -> R:
    """Return the record of one JSON text; unknown fields are kept. Raises RecordError."""
    record = _decode(cls, line)
    plain = orjson.loads(line)
    _keep_unknown(record, plain)
    return record


def check_timestamp(value: str, field: str = "timestamp") -> None:
    """Raise RecordError, naming the field, unless ``value`` is an ISO time with a date and a clock."""
    # The form that nearly every line has, first: datetime's own parser is several times as fast as ours, but knows
    # more forms (weeks, no colons), so the marks are looked at before.
    if (
        (len(value) == 20 or (22 <= len(value) <= 27 and value[19] == "."))
        and value[10] == "T"
        and value[-1] == "Z"
        and value[7] == "-"
        and value[13] == ":"
        and value[16] == ":"
        and value[:2] in _CENTURIES
    ):
        try:
            datetime.fromisoformat(value)
            return
        except ValueError:
            pass  # Ours knows better how to say what is wrong.
    try:
        if len(value) < 16:
            raise TimeError(f"expected an ISO time such as 2025-11-18T10:00:00.123Z, found {value!r}")
        parse_ns(value)
    except ValueError as error:
        raise RecordError(f"{field}: {error}", field=field) from None


def _decode(cls: type[R], line: bytes | str) -> R:
    try:
        record: R = _decoder(cls)(line)
        return record
    except msgspec.ValidationError as error:
        raise explain(cls, line, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{cls.__name__}: not valid JSON: {error}") from None


def _plain(value: Any) -> Any:
    try:
        return with_plain_numbers(value)
    except RecursionError:
        return value


def _all_finite(value: Any) -> bool:
    """Whether no NaN or infinity is inside: find_not_finite without the path, several times as fast."""
    if isinstance(value, dict):
        items: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    elif isinstance(value, Record):
        items = (*msgspec.structs.astuple(value), value.__dict__)
    elif isinstance(value, Mapping):
        items = list(value.values())
    else:
        # x − x is NaN, hence not 0, for NaN and both infinities.
        return not isinstance(value, float) or value - value == 0.0
    for item in items:
        kind = type(item)
        if kind is float:
            if item - item != 0.0:
                return False
        elif kind not in _SCALARS and not _all_finite(item):
            return False
    return True


_SCALARS = frozenset({str, bool, int, type(None)})
_CENTURIES = ("20", "19")
_find_null = re.compile(b"null").search
_encode = msgspec.json.Encoder().encode


@cache
def _decoder(cls: type[R]) -> Callable[[bytes | str], R]:
    return msgspec.json.Decoder(cls).decode


@cache
def _holds_records(cls: type[Record]) -> bool:
    """Whether unknown fields may be further down, where msgspec's encoder does not see them."""
    form = msgspec.inspect.type_info(cls)
    return isinstance(form, msgspec.inspect.StructType) and any(
        _holds_struct(field.type) for field in form.fields
    )


def _holds_struct(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_holds_struct(part) for part in kind.types)
    if isinstance(kind, msgspec.inspect.DictType):
        return _holds_struct(kind.value_type)
    if isinstance(kind, msgspec.inspect.ListType):
        return _holds_struct(kind.item_type)
    return isinstance(kind, msgspec.inspect.StructType)


@cache
def _fields(cls: type[Record]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))


def _keep_unknown(record: Record, plain: Mapping[str, Any]) -> None:
    names = set(type(record).__struct_encode_fields__)
    unknown = {key: value for key, value in plain.items() if key not in names}
    if unknown:
        record.__dict__["_unknown_fields"] = unknown
    for attribute, name in _fields(type(record)):
        value = getattr(record, attribute)
        if isinstance(value, Record):
            # A field that was left out took its default, which has nothing unknown.
            _keep_unknown(value, plain.get(name, {}))
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Record):
                    _keep_unknown(item, plain[name][key])
        elif isinstance(value, list):
            for at, item in enumerate(value):
                if isinstance(item, Record):
                    _keep_unknown(item, plain[name][at])
