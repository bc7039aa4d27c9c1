"""Times and durations as exact integers, whatever library they come from."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.errors import DatasetError

__all__ = ["duration_ns", "duration_text_ns", "interval_arrays", "time_ns"]

Int64 = npt.NDArray[np.int64]


def duration_ns(value: float | timedelta | np.timedelta64, name: str = "duration") -> int:
    """Return whole nanoseconds of a duration: seconds as a number, a ``timedelta`` or a numpy ``timedelta64``.

    >>> duration_ns(1.5)
    1500000000

    Raises DatasetError for anything negative or not a duration.
    """
    if isinstance(value, np.timedelta64):
        nanoseconds = int(value.astype("timedelta64[ns]").astype(np.int64))
    elif isinstance(value, timedelta):
        nanoseconds = (value // timedelta(microseconds=1)) * 1_000
    elif isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        if not np.isfinite(value):
            raise DatasetError(f"{name}: expected seconds or a timedelta, found {value!r}")
        nanoseconds = round(float(value) * 1e9)
    else:
        raise DatasetError(f"{name}: expected seconds or a timedelta, found {value!r}")
    if nanoseconds < 0:
        raise DatasetError(f"{name}: a duration may not be negative, found {value!r}")
    return nanoseconds


def time_ns(values: Any, name: str = "time") -> Int64:
    """Return nanoseconds since 1970 of a column of times: polars, pandas, numpy ``datetime64`` or integers.

    Raises DatasetError where a time is missing: a label without an end must be dropped, not guessed.
    """
    if hasattr(values, "null_count") and hasattr(values, "dtype") and hasattr(values, "to_physical"):
        missing = int(values.null_count())
        if missing:
            raise _missing(name, missing)
        import polars as pl

        is_time = isinstance(values.dtype, pl.Datetime)
        array = (values.dt.epoch("ns") if is_time else values).to_numpy()
    else:
        array = np.asarray(values)
        if array.dtype == object:  # a pandas column with a time zone
            import pandas as pd

            array = pd.to_datetime(pd.Series(array), utc=True).dt.tz_localize(None).to_numpy()
    if array.dtype.kind == "M":
        missing = int(np.isnat(array).sum())
        if missing:
            raise _missing(name, missing)
        array = array.astype("datetime64[ns]").astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DatasetError(
            f"{name}: expected one column of times or whole nanoseconds, found {array.dtype} "
            f"with {array.ndim} dimensions"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def interval_arrays(t_start: Any, t_end: Any) -> tuple[Int64, Int64]:
    """Return both ends of label intervals in nanoseconds; refuses missing, unequal or reversed ones."""
    if t_start is None or t_end is None:
        raise DatasetError(
            "t_start and t_end are needed: without the time span of each label nobody can tell whether "
            "train and test overlap. ml.labels() gives both columns"
        )
    start, end = time_ns(t_start, "t_start"), time_ns(t_end, "t_end")
    if len(start) != len(end):
        raise DatasetError(f"t_start has {len(start)} rows, t_end {len(end)}")
    reversed_rows = np.flatnonzero(end < start)
    if len(reversed_rows):
        raise DatasetError(
            f"t_end lies before t_start in {len(reversed_rows)} rows, first {reversed_rows[0]}"
        )
    return start, end


def _missing(name: str, count: int) -> DatasetError:
    return DatasetError(f"{name} is missing in {count} rows: drop the rows whose label is null first")


_UNITS = {"ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}


def duration_text_ns(text: str) -> int:
    """Return nanoseconds of a duration such as "500ms", "1s", "5m", "1h"; raises DatasetError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)(ms|s|m|h)", text) if isinstance(text, str) else None
    if match is None:
        raise DatasetError(f'expected a duration such as "500ms", "1s", "5m", "1h", found {text!r}')
    return int(match[1]) * _UNITS[match[2]]
