"""Splitters against a brute-force check of every train row with every test row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

from replaylab.errors import DatasetError
from replaylab.ml.splits import CombinatorialPurgedCV, PurgedKFold, WalkForward

SECOND = 1_000_000_000


@st.composite
def intervals(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Label intervals in any order, with ties, zero lengths and long ones; and an embargo."""
    rows = draw(st.integers(12, 40))
    starts = draw(st.lists(st.integers(0, 60), min_size=rows, max_size=rows))
    lengths = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 9]), min_size=rows, max_size=rows))
    start = np.array(starts, dtype=np.int64) * SECOND
    return start, start + np.array(lengths, dtype=np.int64) * SECOND, draw(st.integers(0, 6))


def brute_touch(start: np.ndarray, end: np.ndarray, i: int, j: int, embargo: int) -> bool:
    return bool(start[i] <= end[j] + embargo * SECOND and end[i] >= start[j])


@given(intervals(), st.sampled_from(["kfold", "combinatorial"]))
def test_purging_equals_brute_force(case: tuple[np.ndarray, np.ndarray, int], kind: str) -> None:
    """A row trains exactly if it touches no test interval and no embargo: nothing leaks, nothing is wasted."""
    start, end, embargo = case
    cv = (
        PurgedKFold(3, t_start=start, t_end=end, embargo=embargo)
        if kind == "kfold"
        else CombinatorialPurgedCV(4, 2, t_start=start, t_end=end, embargo=embargo)
    )
    tested = np.zeros(len(start), dtype=int)
    try:
        for train, test in cv.split(np.zeros((len(start), 1))):
            tested[test] += 1
            for i in range(len(start)):
                clean = not any(brute_touch(start, end, i, j, embargo) for j in test)
                assert clean == (i in train)
    except DatasetError as error:
        assert "no training rows" in str(error)  # noqa: PT017 (the splits before it were checked)
    else:
        assert (tested == (1 if kind == "kfold" else cv.n_paths)).all()


@given(intervals())
def test_walk_forward_trains_only_on_what_was_known(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    """Every training label had ended a full embargo before the first test row; test blocks go forward in time."""
    start, end, embargo = case
    cv = WalkForward(3, t_start=start, t_end=end, embargo=embargo)
    tests = []
    try:
        for train, test in cv.split():
            tests.append(test)
            known = np.flatnonzero(end + embargo * SECOND < start[test].min())
            np.testing.assert_array_equal(train, known)
            assert not any(brute_touch(start, end, i, j, embargo) for i in train for j in test)
    except DatasetError as error:
        assert "no label was known" in str(error)  # noqa: PT017
    for before, after in pairwise(tests):
        assert start[before].max() <= start[after].min()


def test_a_rolling_window_forgets_old_rows() -> None:
    start = np.arange(100, dtype=np.int64) * SECOND
    cv = WalkForward(4, t_start=start, t_end=start, max_train=timedelta(seconds=10))
    for train, test in cv.split():
        assert train.min() == test.min() - 10
        assert train.max() == test.min() - 1


def test_every_combination_is_tested_once_and_paths_cover_all_groups() -> None:
    """6 groups, 2 tested: 15 splits, 5 paths (the book's example); a path takes a group from a split that tests it."""
    start = np.arange(60, dtype=np.int64)
    cv = CombinatorialPurgedCV(6, 2, t_start=start, t_end=start)
    splits = list(cv.split())
    assert (len(splits), cv.n_paths) == (15, 5)
    groups = cv.groups()
    paths = cv.paths()
    used = set()
    for path in paths:
        for group, split in enumerate(path):
            assert set(np.flatnonzero(groups == group)) <= set(splits[split][1])
            used.add((group, int(split)))
    assert len(used) == 30


@pytest.mark.parametrize("library", ["numpy", "pandas", "pandas-utc", "polars"])
def test_times_of_every_library_give_the_same_folds(library: str) -> None:
    ns = np.arange(0, 40, dtype=np.int64) * SECOND
    start, end = ns.astype("datetime64[ns]"), (ns + 3 * SECOND).astype("datetime64[ns]")
    wanted = [
        train.tolist() for train, _ in PurgedKFold(4, t_start=ns, t_end=ns + 3 * SECOND, embargo=2).split()
    ]
    if library == "pandas":
        columns = pd.DataFrame({"t_start": start, "t_end": end})
    elif library == "pandas-utc":
        columns = pd.DataFrame({"t_start": start, "t_end": end}).apply(lambda c: c.dt.tz_localize("UTC"))
    else:
        columns = pl.DataFrame({"t_start": start, "t_end": end})
        if library == "polars":
            columns = columns.with_columns(pl.all().dt.replace_time_zone("UTC"))
    cv = PurgedKFold(4, embargo=np.timedelta64(2, "s"))
    assert [train.tolist() for train, _ in cv.split(columns)] == wanted


def test_scikit_learn_takes_the_splitters() -> None:
    """Scores, grid search and predictions run with a splitter as ``cv``."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 3))
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(int)
    start = np.arange(200, dtype=np.int64) * SECOND
    times = {"t_start": start, "t_end": start + 5 * SECOND}
    scores = cross_val_score(LogisticRegression(), x, y, cv=PurgedKFold(4, embargo=3, **times))
    assert len(scores) == 4
    assert scores.mean() > 0.6
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=CombinatorialPurgedCV(4, 1, **times))
    assert search.fit(x, y).n_splits_ == 4
    assert len(cross_val_predict(LogisticRegression(), x, y, cv=PurgedKFold(4, **times))) == 200


def test_refuses_to_run_without_label_times() -> None:
    x = np.zeros((10, 2))
    for cv in (PurgedKFold(2), CombinatorialPurgedCV(3, 1), WalkForward(2)):
        with pytest.raises(DatasetError, match="t_start and t_end are needed"):
            next(cv.split(x))


def test_refuses_null_ends_reversed_and_foreign_rows() -> None:
    day = datetime(2025, 11, 18, tzinfo=UTC)
    times = pl.Series([day, day, None])
    with pytest.raises(DatasetError, match="missing in 1 rows"):
        next(PurgedKFold(2, t_start=pl.Series([day] * 3), t_end=times).split())
    with pytest.raises(DatasetError, match="before t_start in 1 rows, first 2"):
        next(PurgedKFold(2, t_start=[0, 1, 5], t_end=[1, 2, 3]).split())
    with pytest.raises(DatasetError, match="the same rows"):
        next(PurgedKFold(2, t_start=[0, 1], t_end=[1, 2]).split(np.zeros((3, 1))))


@pytest.mark.parametrize("embargo", [-1.0, float("nan"), "30s", True])
def test_an_embargo_is_a_duration(embargo: object) -> None:
    with pytest.raises(DatasetError, match="embargo"):
        PurgedKFold(2, embargo=embargo)  # type: ignore[arg-type]


def test_nonsense_counts_are_refused() -> None:
    with pytest.raises(DatasetError, match="n_splits"):
        PurgedKFold(1)
    with pytest.raises(DatasetError, match="below n_groups"):
        CombinatorialPurgedCV(3, 3)
    with pytest.raises(DatasetError, match="cannot be cut"):
        next(PurgedKFold(5, t_start=[1, 2], t_end=[1, 2]).split())
