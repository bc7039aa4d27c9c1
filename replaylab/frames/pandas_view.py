"""polars results as pandas: for ``Lab(frame="pandas")``, the only caller."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

import polars as pl

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
