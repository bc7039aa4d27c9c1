"""Cross-validation for labels that span time: no training label may overlap what it is tested on.

Usage, with scikit-learn or by hand::

    cv = PurgedKFold(5, t_start=data["t_start"], t_end=data["t_end"], embargo=30.0)
    cross_val_score(model, X, y, cv=cv)
    for train, test in cv.split(X): ...

A label made at ``t_start`` is decided by prices up to ``t_end``. Rows next to each other in time share those prices,
so that a random split tests a model on what it was trained on. Each splitter here drops ("purges") every training
row whose closed interval ``[t_start, t_end]`` touches that of a test row, or the ``embargo`` that follows it
(features look back: what starts right after a test row still sees it). Source: M. López de Prado, *Advances in
Financial Machine Learning*, Wiley 2018, chapters 7 (purging, embargo) and 12 (combinatorial paths).

Rows may come in any order: folds are cut along ``t_start``. All index arrays are positions, ascending.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.errors import DatasetError

Duration = float | timedelta | np.timedelta64
Split = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


def touches(
    start: Int64, end: Int64, test_start: Int64, test_end: Int64, embargo_ns: int = 0
) -> npt.NDArray[np.bool_]:
    """Return which closed intervals touch any of the test intervals or the embargo after it.

    Times in nanoseconds. Takes O((n + m) log m) for n intervals against m test intervals.
    """
    order = np.argsort(test_start, kind="stable")
    lower = test_start[order]
    # The furthest end so far: an interval is touched exactly if, among the test intervals that start
    # at or before its end, one reaches its start.
    reach = np.maximum.accumulate(test_end[order] + embargo_ns)
    last = np.searchsorted(lower, end, side="right") - 1
    return (last >= 0) & (reach[np.maximum(last, 0)] >= start)


class _Purged:
    """Label intervals, blocks in time and the embargo of a splitter."""

    def __init__(self, t_start: Any, t_end: Any, embargo: Duration) -> None:
        self.t_start = t_start
        self.t_end = t_end
        self.embargo = embargo
        self._embargo_ns = duration_ns(embargo, "embargo")
        self.n_splits = 0

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: N803
        """Return the number of splits."""
        return self.n_splits

    def _intervals(self, X: Any) -> tuple[Int64, Int64]:  # noqa: N803 (scikit-learn's name)
        t_start, t_end = self.t_start, self.t_end
        columns = getattr(X, "columns", ())
        if t_start is None and t_end is None and "t_start" in columns and "t_end" in columns:
            t_start, t_end = X["t_start"], X["t_end"]
        start, end = interval_arrays(t_start, t_end)
        rows = len(start) if X is None else X.shape[0] if hasattr(X, "shape") else len(X)
        if rows != len(start):
            raise DatasetError(
                f"t_start and t_end have {len(start)} rows, the data {rows}: they must be the same rows"
            )
        return start, end

    def _blocks(self, start: Int64, end: Int64, count: int) -> list[npt.NDArray[np.intp]]:
        if len(start) < count:
            raise DatasetError(f"{len(start)} rows cannot be cut into {count} blocks")
        order = np.lexsort((end, start))
        return [np.sort(block) for block in np.array_split(order, count)]

    def _train(
        self, start: Int64, end: Int64, test: npt.NDArray[np.intp], number: int
    ) -> npt.NDArray[np.intp]:
        keep = ~touches(start, end, start[test], end[test], self._embargo_ns)
        train = np.flatnonzero(keep)
        if not len(train):
            raise DatasetError(
                f"split {number}: purging leaves no training rows. Labels last too long (or the embargo is too "
                "long) for this many splits"
            )
        return train


class PurgedKFold(_Purged):
    """K folds in time, each the test set once; the training rows that touch it are purged.

    >>> cv = PurgedKFold(2, t_start=[0, 10, 20, 30], t_end=[12, 15, 25, 35])
    >>> [(train.tolist(), test.tolist()) for train, test in cv.split()]
    [([2, 3], [0, 1]), ([0, 1], [2, 3])]

    ``embargo`` is a duration: seconds, or a ``timedelta``. Without ``t_start`` and ``t_end`` they are taken from
    the columns of ``X``; without those the split is refused with DatasetError.
    """

    def __init__(
        self, n_splits: int = 5, *, t_start: Any = None, t_end: Any = None, embargo: Duration = 0.0
    ) -> None:
        super().__init__(t_start, t_end, embargo)
        self.n_splits = _whole("n_splits", n_splits, 2)

    def __repr__(self) -> str:
        return f"PurgedKFold(n_splits={self.n_splits}, embargo={self.embargo!r})"

    def split(self, X: Any = None, y: Any = None, groups: Any = None) -> Iterator[Split]:  # noqa: N803
        """Yield train and test positions of each fold. ``y`` and ``groups`` are not used."""
        start, end = self._intervals(X)
        for number, test in enumerate(self._blocks(start, end, self.n_splits)):
            yield self._train(start, end, test, number), test


class CombinatorialPurgedCV(_Purged):
    """Every choice of ``n_test_groups`` out of ``n_groups`` blocks in time is a test set once.

    >>> cv = CombinatorialPurgedCV(4, 2, t_start=range(8), t_end=range(8))
    >>> cv.get_n_splits(), cv.n_paths
    (6, 3)

    The test predictions of all splits make up ``n_paths`` whole backtests instead of one: ``paths()`` says
    which split to take each block of a path from. Parameters otherwise as in PurgedKFold.
    """

    def __init__(
        self,
        n_groups: int = 6,
        n_test_groups: int = 2,
        *,
        t_start: Any = None,
        t_end: Any = None,
        embargo: Duration = 0.0,
    ) -> None:
        super().__init__(t_start, t_end, embargo)
        self.n_groups = _whole("n_groups", n_groups, 2)
        self.n_test_groups = _whole("n_test_groups", n_test_groups, 1)
        if self.n_test_groups >= self.n_groups:
            raise DatasetError(
                f"n_test_groups must be below n_groups ({self.n_groups}), found {n_test_groups}"
            )
        self.n_splits = comb(self.n_groups, self.n_test_groups)

    def __repr__(self) -> str:
        return f"CombinatorialPurgedCV({self.n_groups}, {self.n_test_groups}, embargo={self.embargo!r})"

    @property
    def n_paths(self) -> int:
        """How many whole backtest paths the splits make up: C(n_groups − 1, n_test_groups − 1)."""
        return comb(self.n_groups - 1, self.n_test_groups - 1)

    def split(self, X: Any = None, y: Any = None, groups: Any = None) -> Iterator[Split]:  # noqa: N803
        """Yield train and test positions of each choice, in the order of ``itertools.combinations``."""
        start, end = self._intervals(X)
        blocks = self._blocks(start, end, self.n_groups)
        for number, chosen in enumerate(combinations(range(self.n_groups), self.n_test_groups)):
            test = np.sort(np.concatenate([blocks[group] for group in chosen]))
            yield self._train(start, end, test, number), test

    def groups(self, X: Any = None) -> npt.NDArray[np.intp]:  # noqa: N803
        """Return the block number of each row."""
        start, end = self._intervals(X)
        number = np.empty(len(start), dtype=np.intp)
        for group, rows in enumerate(self._blocks(start, end, self.n_groups)):
            number[rows] = group
        return number

    def paths(self) -> npt.NDArray[np.intp]:
        """Return an array (n_paths, n_groups): the split whose test predictions path p takes for group g."""
        table = np.empty((self.n_paths, self.n_groups), dtype=np.intp)
        filled = [0] * self.n_groups
        for number, chosen in enumerate(combinations(range(self.n_groups), self.n_test_groups)):
            for group in chosen:
                table[filled[group], group] = number
                filled[group] += 1
        return table


class WalkForward(_Purged):
    """Train on the past, test on the next block, step on: what a live model could have done.

    >>> cv = WalkForward(2, t_start=range(6), t_end=range(6))
    >>> [(train.tolist(), test.tolist()) for train, test in cv.split()]
    [([0, 1], [2, 3]), ([0, 1, 2, 3], [4, 5])]

    The rows are cut into ``n_splits`` + 1 blocks in time. Only rows whose label was known a full ``embargo`` before
    the first test row starts are trained on (strictly: ``t_end`` + embargo < that start). ``max_train`` (a duration)
    keeps a rolling window instead of a growing one: rows that start earlier than that before the test are left out.
    """

    def __init__(
        self,
        n_splits: int = 5,
        *,
        t_start: Any = None,
        t_end: Any = None,
        embargo: Duration = 0.0,
        max_train: Duration | None = None,
    ) -> None:
        super().__init__(t_start, t_end, embargo)
        self.n_splits = _whole("n_splits", n_splits, 1)
        self.max_train = max_train
        self._max_train_ns = None if max_train is None else duration_ns(max_train, "max_train")

    def __repr__(self) -> str:
        return (
            f"WalkForward(n_splits={self.n_splits}, embargo={self.embargo!r}, max_train={self.max_train!r})"
        )

    def split(self, X: Any = None, y: Any = None, groups: Any = None) -> Iterator[Split]:  # noqa: N803
        """Yield train and test positions, oldest test block first."""
        start, end = self._intervals(X)
        for number, test in enumerate(self._blocks(start, end, self.n_splits + 1)[1:]):
            first = int(start[test].min())
            keep = end + self._embargo_ns < first
            if self._max_train_ns is not None:
                keep &= start >= first - self._max_train_ns
            train = np.flatnonzero(keep)
            if not len(train):
                raise DatasetError(
                    f"split {number}: no label was known before its test block starts. Use fewer splits, "
                    "shorter labels, a shorter embargo or a longer max_train"
                )
            yield train, test


def _whole(name: str, value: int, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise DatasetError(f"{name}: expected a whole number ≥ {low}, found {value!r}")
    return int(value)


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
            "t_start and t_end are needed: without the time span of each label it is unknown whether "
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
