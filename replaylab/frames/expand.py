"""Keys of a JSON text column as columns of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import polars as pl

from replaylab.errors import ConfigError

__all__ = ["expand_json"]


def expand_json(frame: pl.DataFrame, column: str, keys: str | Iterable[str]) -> pl.DataFrame:
    """Return ``frame`` with one more column for each key of the JSON objects in ``column``.

    A dot steps into an object ("components.flow"), unless the whole key is there. Numbers become Float64 or Int64,
    texts String, flags Boolean; a mixture, and what is not a scalar, becomes JSON text. Where the key is missing
    the value is null. A key that is the name of a column already comes as ``<column>_<key>``.
    """
    wanted = [keys] if isinstance(keys, str) else list(dict.fromkeys(keys))
    if not all(isinstance(key, str) for key in wanted):
        raise ConfigError(f"expand: expected names of fields, found {wanted!r}", field="expand")
    found: dict[str, list[Any]] = {key: [] for key in wanted}
    for text in frame[column].to_list():
        plain = None if text is None else orjson.loads(text)
        for key, values in found.items():
            values.append(_look_up(plain, key))
    series = [
        _series(f"{column}_{key}" if key in frame.columns else key, values) for key, values in found.items()
    ]
    return frame.with_columns(series)


def _look_up(plain: Any, key: str) -> Any:
    if not isinstance(plain, dict):
        return None
    if key in plain:
        return plain[key]
    first, dot, rest = key.partition(".")
    return _look_up(plain.get(first), rest) if dot else None


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds == {str}:
        return pl.Series(name, values, dtype=pl.String)
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds <= {int, float}:
        whole = [None if value is None else float(value) for value in values]
        return pl.Series(name, whole, dtype=pl.Float64)
    texts = [None if value is None else orjson.dumps(value).decode() for value in values]
    return pl.Series(name, texts, dtype=pl.String)
