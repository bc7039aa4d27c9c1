"""The columns of a log, taken from its record type (there is no second list of fields), and frames as pandas."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass, replace
from functools import cache, cached_property, wraps
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import polars as pl

from replaylab.records import Record

TIMESTAMP = pl.Datetime("ns", "UTC")
Kind = Literal["time", "text", "choice", "float", "int", "bool", "json", "day"]
_DTYPES: dict[Kind, Any] = {
    "time": TIMESTAMP,
    "text": pl.String,
    "choice": pl.String,
    "float": pl.Float64,
    "int": pl.Int64,
    "bool": pl.Boolean,
    "json": pl.String,
    "day": pl.String,
}
_TIMES = frozenset({"timestamp", "entry_timestamp", "last_error_at"})
_DAYS = frozenset({"date_key"})


@dataclass(frozen=True)
class Column:
    """One field of a record: its name in frames, its name on disk, how it is read, whether it may be missing.

    ``nullable``: it may be null, though not missing, as in the imported log of another program.
    """

    name: str
    disk: str
    kind: Kind
    optional: bool
    nullable: bool = False


@dataclass(frozen=True)
class LogSchema:
    """How the lines of one log become rows.

    Reading accepts one thing that writing does not: a field that may be null may also be missing, since JavaScript's
    ``JSON.stringify`` leaves out what is undefined. ``line`` and ``unknown_fields`` follow the record's columns, and
    ``timestamp_text``, the timestamp as it was written, where ``keep_text`` asks for it. With ``symbol``,
    lines of other symbols are rejects.
    """

    record: type[Record]
    keep_text: bool = False
    symbol: str | None = None

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        hints = get_type_hints(self.record)
        found = []
        for info in msgspec.structs.fields(self.record):
            kind, optional = _kind(info.name, hints[info.name])
            optional = optional or not info.required
            nullable = optional or info.name in self.record.null_when_imported
            found.append(Column(info.name, info.encode_name, kind, optional, nullable))
        return tuple(found)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names on disk."""
        return frozenset(column.disk for column in self.columns)

    @property
    def is_scannable(self) -> bool:
        """Whether the compiled scanner can read the records: one time, else texts and JSON objects."""
        optional = {"time": False, "json": False, "text": True}
        times = [column for column in self.columns if column.kind == "time"]
        return len(times) == 1 and all(
            column.kind in optional and (optional[column.kind] or not column.optional)
            for column in self.columns
        )

    @cached_property
    def frame(self) -> pl.Schema:
        fields = {column.name: _DTYPES[column.kind] for column in self.columns}
        kept = {"timestamp_text": pl.String} if self.keep_text else {}
        return pl.Schema({**fields, "unknown_fields": pl.String, "line": pl.Int64, **kept})

    @cached_property
    def archived(self) -> pl.Schema:
        """The columns of archived parts, which keep times and no texts of them."""
        return LogSchema(self.record).frame

    def of_symbol(self, symbol: str) -> LogSchema:
        """Return the schema of the log of one symbol."""
        return replace(self, symbol=symbol)

    @cached_property
    def strict(self) -> msgspec.json.Decoder[Any]:
        """Decodes lines that hold the named fields only."""
        return _decoder(LogSchema(self.record), True)

    @cached_property
    def loose(self) -> msgspec.json.Decoder[Any]:
        """Decodes lines with any further fields."""
        return _decoder(LogSchema(self.record), False)


@cache
def _decoder(schema: LogSchema, forbid_unknown_fields: bool) -> msgspec.json.Decoder[Any]:
    hints = get_type_hints(schema.record)
    fields: list[Any] = []
    for column in schema.columns:
        kind: Any = msgspec.Raw if column.kind == "json" else _without_unset(hints[column.name])
        if column.optional:
            fields.append((column.name, kind | None, None))
        else:
            fields.append((column.name, kind | None if column.nullable else kind))
    struct = msgspec.defstruct(
        schema.record.__name__,
        fields,
        rename={column.name: column.disk for column in schema.columns},
        forbid_unknown_fields=forbid_unknown_fields,
        kw_only=True,
        gc=False,
    )
    return msgspec.json.Decoder(struct)


def _kind(name: str, hint: Any) -> tuple[Kind, bool]:
    members = [
        part
        for part in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))
        if part is not msgspec.UnsetType
    ]
    optional = type(None) in members
    kinds = [part for part in members if part is not type(None)]
    kind = kinds[0]
    if name in _TIMES:
        return "time", optional
    if name in _DAYS:
        return "day", optional
    if kind is str:
        return "text", optional
    if get_origin(kind) is Literal:
        return "choice", optional
    if kind in (float, int, bool):
        names: dict[Any, Kind] = {float: "float", int: "int", bool: "bool"}
        return names[kind], optional
    return "json", optional


def _without_unset(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    kept = [part for part in get_args(hint) if part is not msgspec.UnsetType]
    return kept[0] if len(kept) == 1 else Union[tuple(kept)]  # noqa: UP007 - built at run time


# What marks records, parameters and paths, which hold no tables.
_NO_TABLES = ("__struct_fields__", "declarations", "__fspath__")


def to_pandas(value: Any) -> Any:
    """Convert a DataFrame or Series; of a replaylab object, return a view whose tables are pandas.

    >>> float(to_pandas(pl.DataFrame({"price": [1.0]})).loc[0, "price"])
    1.0

    Containers and awaitables are converted inside; all else is returned unchanged.
    """
    if isinstance(value, pl.DataFrame | pl.Series):
        return value.to_pandas()
    if type(value) is dict:
        return {key: to_pandas(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_pandas(item) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(to_pandas, value))
    if inspect.iscoroutine(value):
        return _awaited(value)
    if inspect.ismethod(value):
        return _converting(value)
    kind = type(value)
    ours = kind.__module__.startswith("replaylab.")
    return PandasView(value) if ours and not any(hasattr(kind, name) for name in _NO_TABLES) else value


class PandasView:
    """An object whose DataFrames are pandas: its attributes and what its methods return. ``__wrapped__`` is the object.

    ``isinstance(view, SweepResult)`` holds, Tab shows the object's names, and ``?`` its signatures.
    """

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)

    def __getattribute__(self, name: str) -> Any:
        wrapped = object.__getattribute__(self, "__wrapped__")
        if name == "__wrapped__":
            return wrapped
        if name == "__class__":
            return type(wrapped)
        return to_pandas(getattr(wrapped, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __dir__(self) -> list[str]:
        return dir(self.__wrapped__)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)


def _converting(method: Any) -> Any:
    @wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        given = [getattr(one, "__wrapped__", one) for one in args]
        return to_pandas(method(*given, **options))

    return call


async def _awaited(coroutine: Any) -> Any:
    return to_pandas(await coroutine)
