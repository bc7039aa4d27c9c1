"""Say what is wrong with a record: which field, what was found there, what is allowed. Runs only after a failure.

The fast checks of msgspec say that something is wrong, and where only in part (keys of a dict become ``[...]``), so
the data is walked again beside its type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
import orjson
from msgspec import inspect as kinds

from replaylab.errors import RecordError, did_you_mean
from replaylab.records.numbers import on_disk_fields

__all__ = ["explain", "explain_unwritable", "find_not_finite"]

_WANTED: dict[type[kinds.Type], str] = {
    kinds.StrType: "a text",
    kinds.IntType: "a whole number",
    kinds.FloatType: "a number",
    kinds.BoolType: "true or false",
    kinds.NoneType: "null",
    kinds.DictType: "an object",
    kinds.StructType: "an object",
    kinds.ListType: "a list",
    kinds.TupleType: "a list",
}


class _Wrong(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, field: str, text: str) -> None:
        self.field, self.text = field, text


def explain(cls: type[msgspec.Struct], line: bytes | str, message: str) -> RecordError:
    """Return the error for a JSON text that is not a valid ``cls``; ``message`` is the decoder's own."""
    name = cls.__name__
    try:
        plain = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return RecordError(f"{name}: not valid JSON: {error}")
    if not isinstance(plain, dict):
        return RecordError(f"{name}: expected a JSON object, found {_shown(plain)}")
    try:
        _walk(_kind(cls), plain, "")
    except _Wrong as wrong:
        return RecordError(f"{name}.{wrong.field}: {wrong.text}", field=wrong.field)
    return RecordError(f"{name}: {message}")


def explain_unwritable(name: str, value: Any, message: str) -> RecordError:
    """Return the error for data that cannot become JSON, naming where."""
    try:
        found = _find_unwritable(value, "")
    except RecursionError:
        return RecordError(f"{name}: nested too deeply to be written as JSON")
    if found is None:
        return RecordError(f"{name} cannot be written as JSON: {message}")
    path, text = found
    return RecordError(f"{name}.{path}: {text}" if path else f"{name}: {text}", field=path or None)


def find_not_finite(value: Any, path: str = "") -> tuple[str, float] | None:
    """Return the path and value of the first NaN or infinity inside plain data, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, value)
    for step, item in _inside(value, path):
        if (found := find_not_finite(item, step)) is not None:
            return found
    return None


@cache
def _kind(cls: type[msgspec.Struct]) -> kinds.Type:
    return kinds.type_info(cls)


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
    if isinstance(kind, kinds.StrType):
        return isinstance(value, str)
    if isinstance(kind, kinds.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, kinds.IntType):
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, kinds.FloatType):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(kind, (kinds.DictType, kinds.StructType)):
        return isinstance(value, dict)
    if isinstance(kind, (kinds.ListType, kinds.TupleType)):
        return isinstance(value, list)
    return True


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
            return path, f"expected a text that UTF-8 can hold, found {_described(value)}"
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return path, f"expected keys that are texts, found the key {_described(key)}"
        if path and not isinstance(value, dict):
            return path, f"expected a dict, found {_described(value)}"
    elif isinstance(value, (list, tuple)):
        pass
    elif isinstance(value, msgspec.Struct):
        value = on_disk_fields(value)
    else:
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
