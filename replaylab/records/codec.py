"""Encode and decode records: camelCase on disk, strict validation, unknown fields kept, errors that name the field.

A record that is about to be written is first encoded, and then the very bytes are decoded against its type: what was
validated is what the file holds. The fast checks of msgspec say that something is wrong, and where only in part (keys
of a dict become ``[...]``), so after a failure ``explain`` walks the data again beside its type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cache
from html import escape
from typing import Any, ClassVar, Self, TypeVar

import msgspec
import orjson
from msgspec import inspect as kinds

from replaylab.errors import RecordError, TimeError, did_you_mean
from replaylab.timestamps import check_time

R = TypeVar("R", bound="Record")


class QuickForm:
    """The fields of a record again, the timestamp as a datetime and the free object as raw JSON.

    msgspec checks that several times as fast. ``free`` names the free object, whose content is not decoded.
    """

    __slots__ = ("decode", "free")

    def __init__(self, form: type[msgspec.Struct], free: str) -> None:
        self.decode = msgspec.json.Decoder(form).decode
        self.free = free


def _as_html(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """Return names and values as a table with a title, for a notebook; records inside are tables in their cell."""
    left = "<td style='text-align:left'>"
    cells = "".join(
        f"<tr>{left}{escape(name.rstrip('_'))}</td>{left}{_html(value)}</td></tr>" for name, value in rows
    )
    return f"<div><b>{escape(title)}</b><table><tbody>{cells}</tbody></table></div>"


def _html(value: Any) -> str:
    if isinstance(value, Record):
        return "; ".join(f"{escape(name)} {_html(getattr(value, name))}" for name in value.__struct_fields__)
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(name))}: {_html(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value))) or "none"
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:,.10g}" if isinstance(value, int | float) else str(value))


class Record(msgspec.Struct, rename="camel", dict=True):
    """Base of every record: attributes in snake_case, fields on disk in camelCase.

    Fields that replaylab does not know are kept in ``unknown_fields`` and written again by ``to_dict``.
    ``times`` names the attributes that hold ISO times. A type that is logged very often has a ``quick_form``.
    ``null_when_imported``: what the log of another program may not hold; readers take null there, writers do not.
    """

    times: ClassVar[tuple[str, ...]] = ()
    null_when_imported: ClassVar[frozenset[str]] = frozenset()
    quick_form: ClassVar[QuickForm | None] = None

    def __post_init__(self) -> None:
        for name in self.times:
            value = getattr(self, name)
            if value is not None and value is not msgspec.UNSET:
                try:
                    check_time(value)
                except TimeError as error:
                    field = dict(_fields(type(self)))[name]
                    raise RecordError(f"{field}: {error}", field=field) from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the record of a plain dict in the on-disk form; raises RecordError that names the field."""
        return decode_record(cls, encode_record(cls, data))

    def _repr_html_(self) -> str:
        """Fields and values, in the order of the disk."""
        rows = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return _as_html(type(self).__name__, rows)

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
    Keys of a dict keep their order, and keys that ``cls`` does not name are kept. Numbers and arrays of numpy and
    ``Decimal`` are written as the plain numbers and lists that they hold.
    """
    # The common cases come first: this runs for every line that is logged.
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
        raise _explain_unwritable(cls.__name__, value, str(error)) from None
    # Both encoders write NaN and infinity as null: only a line with a null can hide one.
    if _find_null(line) and not _all_finite(value):
        plain = value if isinstance(value, Mapping) else msgspec.to_builtins(value)
        bad = find_not_finite(plain)
        if bad is not None:
            field, found = bad
            raise RecordError(f"{cls.__name__}.{field}: expected a finite number, found {found}", field=field)
    if cls.quick_form is None or not _is_quick(cls.quick_form, value, line):
        try:
            _decode(cls, line)
        except RecordError as error:
            # msgspec writes Decimal("NaN") as it reads: the plain form of the value names the field.
            if error.field is None and (plain := _plain(value)) is not value:
                return encode_record(cls, plain)
            raise
    return line


def decode_record(cls: type[R], line: bytes | str) -> R:
    """Return the record of one JSON string; unknown fields are kept. Raises RecordError."""
    record = _decode(cls, line)
    try:
        plain = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        # msgspec takes half of a surrogate pair ("\\ud800"), which no text can hold.
        raise RecordError(f"{cls.__name__}: not valid JSON: {error}") from None
    _keep_unknown(record, plain)
    return record


def find_not_finite(value: Any, path: str = "") -> tuple[str, float] | None:
    """Return the path and value of the first NaN or infinity inside plain data, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, value)
    for step, item in _inside(value, path):
        if (found := find_not_finite(item, step)) is not None:
            return found
    return None


def _is_quick(form: QuickForm, value: Record | Mapping[str, Any], line: bytes) -> bool:
    """Whether the quick form proves a line valid; a line that it does not accept may be valid all the same."""
    try:
        form.decode(line)
        # msgspec has parsed the timestamp as a datetime, within a grammar a little wider than ours.
        if type(value) is dict:
            text, free = value["timestamp"], value[form.free]
        else:
            text, free = getattr(value, "timestamp", ""), getattr(value, form.free)
        return (
            len(text) <= 30
            and text[10] == "T"
            and text[-1] == "Z"
            and text[:2] in _CENTURIES
            and type(free) is dict
        )
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):
        return False


def _decode(cls: type[R], line: bytes | str) -> R:
    try:
        record: R = _decoder(cls)(line)
        return record
    except msgspec.ValidationError as error:
        raise _explain(cls, line, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{cls.__name__}: not valid JSON: {error}") from None


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
_encode = msgspec.json.Encoder(decimal_format="number").encode


def prepare_record(cls: type[Record]) -> None:
    """Complete a type before its first record does: two threads at once would crash inside msgspec."""
    _decoder(cls)
    _holds_records(cls)
    _fields(cls)


@cache
def _decoder(cls: type[R]) -> Callable[[bytes | str], R]:
    return msgspec.json.Decoder(cls).decode


@cache
def _holds_records(cls: type[Record]) -> bool:
    """Whether unknown fields may be further down, where msgspec's encoder does not see them."""
    form = kinds.type_info(cls)
    return isinstance(form, kinds.StructType) and any(_holds_struct(field.type) for field in form.fields)


def _holds_struct(kind: kinds.Type) -> bool:
    if isinstance(kind, kinds.UnionType):
        return any(_holds_struct(part) for part in kind.types)
    if isinstance(kind, kinds.DictType):
        return _holds_struct(kind.value_type)
    if isinstance(kind, kinds.ListType):
        return _holds_struct(kind.item_type)
    return isinstance(kind, kinds.StructType)


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


def _plain(value: Any) -> Any:
    try:
        return _with_plain_numbers(value)
    except RecursionError:
        return value


def _with_plain_numbers(value: Any) -> Any:
    """Return ``value`` with plain numbers and lists in place of numpy's and of Decimal; itself where it has none.

    A record becomes a dict in its on-disk form. Arrays of other things than numbers stay: they are refused.
    """
    # numpy is not imported for this: a logger must stay light.
    if type(value).__module__ == "numpy" and hasattr(value, "shape"):
        plain = value.tolist() if value.dtype.kind in "biuf" else value
        return plain if type(plain) in (bool, int, float, list) else value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, msgspec.Struct):
        inside: Mapping[str, Any] = _on_disk_fields(value)
    elif isinstance(value, Mapping):
        inside = value
    elif isinstance(value, (list, tuple)):
        items = [_with_plain_numbers(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    else:
        return value
    fields = {key: _with_plain_numbers(item) for key, item in inside.items()}
    return fields if any(fields[key] is not item for key, item in inside.items()) else value


def _on_disk_fields(record: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a record that are set, by their names on disk, and its unknown ones."""
    names = zip(record.__struct_fields__, record.__struct_encode_fields__, strict=True)
    fields = {name: getattr(record, attribute) for attribute, name in names}
    known = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
    return {**known, **getattr(record, "unknown_fields", {})}


# What follows runs only after a failure: it finds the field.

_WANTED: dict[type[kinds.Type], str] = {
    kinds.StrType: "a string",
    kinds.IntType: "a whole number",
    kinds.FloatType: "a number",
    kinds.BoolType: "true or false",
    kinds.NoneType: "null",
    kinds.DictType: "an object",
    kinds.StructType: "an object",
    kinds.ListType: "a list",
    kinds.TupleType: "a list",
}
_PYTHON: dict[type[kinds.Type], type | tuple[type, ...]] = {
    kinds.StrType: str,
    kinds.BoolType: bool,
    kinds.IntType: int,
    kinds.FloatType: (int, float),
    kinds.DictType: dict,
    kinds.StructType: dict,
    kinds.ListType: list,
    kinds.TupleType: list,
}


class _Wrong(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, field: str, text: str) -> None:
        self.field, self.text = field, text


def _explain(cls: type[msgspec.Struct], line: bytes | str, message: str) -> RecordError:
    """Return the error for a JSON string that is not a valid ``cls``; ``message`` is the decoder's own."""
    name = cls.__name__
    try:
        plain = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return RecordError(f"{name}: not valid JSON: {error}")
    if not isinstance(plain, dict):
        return RecordError(f"{name}: expected a JSON object, found {_shown(plain)}")
    try:
        _walk(kinds.type_info(cls), plain, "")
    except _Wrong as wrong:
        return RecordError(f"{name}.{wrong.field}: {wrong.text}", field=wrong.field)
    return RecordError(f"{name}: {message}")


def _explain_unwritable(name: str, value: Any, message: str) -> RecordError:
    """Return the error for data that cannot become JSON, naming where."""
    try:
        found = _find_unwritable(value, "")
    except RecursionError:
        return RecordError(f"{name}: nested too deeply to be written as JSON")
    if found is None:
        return RecordError(f"{name} cannot be written as JSON: {message}")
    path, text = found
    return RecordError(f"{name}.{path}: {text}" if path else f"{name}: {text}", field=path or None)


def _walk(kind: kinds.Type, value: Any, path: str) -> None:
    """Raise _Wrong for the first thing in ``value`` that is not of ``kind``."""
    if isinstance(kind, kinds.UnionType):
        _walk_union(kind, value, path)
    elif isinstance(kind, kinds.LiteralType):
        if value not in kind.values or isinstance(value, bool):
            allowed = ", ".join(f'"{text}"' for text in kind.values)
            raise _Wrong(path, f"expected one of {allowed}, found {_shown(value)}")
    elif not _is(kind, value):
        raise _Wrong(path, f"expected {_wanted(kind)}, found {_shown(value)}")
    elif isinstance(kind, kinds.StructType):
        _walk_struct(kind, value, path)
    elif isinstance(kind, kinds.DictType):
        for key, item in value.items():
            _walk(kind.value_type, item, _join(path, key))
    elif isinstance(kind, kinds.ListType):
        for at, item in enumerate(value):
            _walk(kind.item_type, item, f"{path}[{at}]")
    elif isinstance(kind, kinds.TupleType):
        if len(value) != len(kind.item_types):
            raise _Wrong(path, f"expected a list of {len(kind.item_types)}, found {_shown(value)}")
        for at, (part, item) in enumerate(zip(kind.item_types, value, strict=True)):
            _walk(part, item, f"{path}[{at}]")


def _walk_struct(kind: kinds.StructType, value: dict[str, Any], path: str) -> None:
    known = {field.encode_name for field in kind.fields}
    for field in kind.fields:
        name = field.encode_name
        if name in value:
            _walk(field.type, value[name], _join(path, name))
        elif field.required:
            unknown = [key for key in value if key not in known]
            close = did_you_mean(name, unknown).replace("Did you mean", "It has").replace("?", ".")
            raise _Wrong(_join(path, name), f"this field is missing.{close}")
    try:
        msgspec.convert(value, kind.cls)
    except msgspec.ValidationError as error:
        # All types fit, so this comes from the __post_init__: "field: what is wrong".
        name, mark, text = str(error).partition(": ")
        if mark:
            raise _Wrong(_join(path, name), text) from None


def _walk_union(kind: kinds.UnionType, value: Any, path: str) -> None:
    parts = [part for part in kind.types if not isinstance(part, kinds.NoneType)]
    optional = len(parts) < len(kind.types)
    if optional and value is None:
        return
    if len(parts) == 1 and (_is(parts[0], value) or isinstance(parts[0], kinds.LiteralType)):
        _walk(parts[0], value, path)
    elif not any(_is(part, value) for part in parts):
        wanted = [_wanted(part) for part in parts] + ["null"] * optional
        raise _Wrong(path, f"expected {' or '.join(wanted)}, found {_shown(value)}")


def _is(kind: kinds.Type, value: Any) -> bool:
    allowed = _PYTHON.get(type(kind))
    if allowed is None:
        return True
    return isinstance(value, allowed) and (allowed is bool or not isinstance(value, bool))


def _wanted(kind: kinds.Type) -> str:
    return _WANTED.get(type(kind), "another value")


def _find_unwritable(value: Any, path: str) -> tuple[str, str] | None:
    # Not isinstance: no encoder writes a subclass of float.
    if value is None or type(value) in (bool, float):
        return None
    if isinstance(value, int):
        fits = -(2**63) <= value < 2**64
        return None if fits else (path, f"expected a number of at most 64 bits, found {_described(value)}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return path, f"expected a string that UTF-8 can hold, found {_described(value)}"
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return path, f"expected keys that are strings, found the key {_described(key)}"
        if path and not isinstance(value, dict):
            return path, f"expected a dict, found {_described(value)}"
    elif isinstance(value, msgspec.Struct):
        value = _on_disk_fields(value)
    elif not isinstance(value, (list, tuple)):
        try:
            orjson.dumps(value)
        except TypeError:
            return path, f"expected plain data, found {_described(value)}"
        return None
    for step, item in _inside(value, path):
        if (found := _find_unwritable(item, step)) is not None:
            return found
    return None


def _inside(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(_join(path, str(key)), item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"{path}[{at}]", item) for at, item in enumerate(value)]
    return []


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    try:
        return _short(orjson.dumps(value).decode())
    except TypeError:
        # orjson writes fewer levels than it reads.
        return _short(repr(value))


def _described(value: Any) -> str:
    return _short(f"{type(value).__name__} {value!r}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
