"""Numbers of numpy as plain ones: what pandas and numpy compute is not of the types that the JSON encoders write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["on_disk_fields", "with_plain_numbers"]


def with_plain_numbers(value: Any) -> Any:
    """Return ``value`` with plain numbers in place of numpy's scalars; ``value`` itself where it holds none.

    A record becomes a dict in its on-disk form. Arrays stay: whether a list of numbers is meant is not for us to say.
    """
    # numpy is not imported for this: a logger must stay light.
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        plain = value.item() if value.dtype.kind in "biuf" else value
        return plain if type(plain) in (bool, int, float) else value
    if isinstance(value, msgspec.Struct):
        inside: Mapping[str, Any] = on_disk_fields(value)
    elif isinstance(value, Mapping):
        inside = value
    elif isinstance(value, (list, tuple)):
        items = [with_plain_numbers(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    else:
        return value
    fields = {key: with_plain_numbers(item) for key, item in inside.items()}
    return fields if any(fields[key] is not item for key, item in inside.items()) else value


def on_disk_fields(record: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a record that are set, by their names on disk, and its unknown ones."""
    names = zip(record.__struct_fields__, record.__struct_encode_fields__, strict=True)
    fields = {name: getattr(record, attribute) for attribute, name in names}
    known = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
    return {**known, **getattr(record, "unknown_fields", {})}
