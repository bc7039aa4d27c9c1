"""Five kinds of leaks are planted and found; clean data passes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score

from replaylab.errors import DatasetError
from replaylab.ml.dataset import features
from replaylab.ml.labelling import labels
from replaylab.ml.leaks import (
    check_duplicates,
    check_label_times,
    check_no_lookahead,
    check_splits,
    shuffled_baseline,
)
from replaylab.ml.splits import PurgedKFold, WalkForward
from tests.ml.sessions import FakeSession, random_rows, session


@pytest.fixture(scope="module")
def events() -> FakeSession:
    return session(random_rows(3, 800))


@pytest.fixture(scope="module")
def data(events: FakeSession) -> pl.DataFrame:
    outcome = labels(events, 0.1, 0.1, 5.0).drop("symbol", "event_index")
    return (
        pl.concat([features(events), outcome], how="horizontal")
        .drop_nulls("label")
        .unique(["timestamp", "symbol"], keep="first", maintain_order=True)
    )


def test_clean_data_passes(events: FakeSession, data: pl.DataFrame) -> None:
    assert check_no_lookahead(events) == []
    assert check_label_times(data) == []
    assert check_duplicates(data) == []
    times = {"t_start": data["t_start"], "t_end": data["t_end"]}
    for cv in (PurgedKFold(4, embargo=5.0, **times), WalkForward(3, embargo=5.0, **times)):
        assert check_splits(cv, data, embargo=timedelta(seconds=5)) == []


@pytest.mark.parametrize(
    "leak",
    [
        pl.col("last_price").shift(-1).alias("next_price"),
        ((pl.col("score") - pl.col("score").mean()) / pl.col("score").std()).alias("scaled_by_the_whole"),
        pl.col("last_price").fill_null(strategy="backward").rolling_mean(5, center=True).alias("centred"),
    ],
    ids=["shifted", "normalised", "centred"],
)
def test_leak_1_a_feature_that_looks_ahead(events: FakeSession, leak: pl.Expr) -> None:
    def build(part: Any) -> pl.DataFrame:
        return features(part).with_columns(leak)

    found = check_no_lookahead(events, build)
    assert [finding.where for finding in found] == [leak.meta.output_name()]
    assert found[0].rows > 0


def test_leak_2_features_from_after_the_label_began(data: pl.DataFrame) -> None:
    """A join on the time that a label was decided instead of the time of the decision."""
    late = data.with_columns(timestamp=pl.col("t_end"))
    assert [finding.where for finding in check_label_times(late)] == ["timestamp"]
    guessed = data.with_columns(t_end=pl.lit(None, dtype=data.schema["t_end"]))
    assert [finding.where for finding in check_label_times(guessed)] == ["label"]


def test_leak_3_train_and_test_overlap(data: pl.DataFrame) -> None:
    """A shuffled K-fold, a K-fold in time without purging, and a purged one whose embargo is too short."""
    for cv in (KFold(4, shuffle=True, random_state=0), KFold(4)):
        assert check_splits(cv, data)
    short = PurgedKFold(4, t_start=data["t_start"], t_end=data["t_end"], embargo=1.0)
    assert check_splits(short, data) == []
    assert {finding.message for finding in check_splits(short, data, embargo=10.0)} == {
        "training labels overlap the test time or its embargo"
    }

    class Careless:
        def split(self, rows: Any, /) -> Any:
            yield np.arange(len(rows)), np.arange(5)

    assert check_splits(Careless(), data)[0].message == "rows in train and test"


def test_leak_4_the_same_rows_twice(data: pl.DataFrame) -> None:
    """Two sessions that overlap in time, put together: positions differ, moments and values do not."""
    again = data.tail(20).with_columns(pl.col("event_index") + 1000)
    found = check_duplicates(pl.concat([data, again]))
    assert [finding.rows for finding in found] == [40]


def test_leak_5_choosing_features_on_all_the_data() -> None:
    """Columns chosen by their correlation with all labels, then cross-validated: noise seems to predict noise."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(80, 600))
    y = rng.integers(0, 2, 80)

    def evaluate(labels: Any, *, inside: bool) -> float:
        if inside:
            return float(cross_val_score(LogisticRegression(), noise[:, :10], labels, cv=4).mean())
        strength = np.abs((noise - noise.mean(0)).T @ (labels - labels.mean()))
        chosen = noise[:, np.argsort(strength)[-10:]]
        return float(cross_val_score(LogisticRegression(), chosen, labels, cv=4).mean())

    leaking = shuffled_baseline(lambda labels: evaluate(labels, inside=False), y, chance=0.5, n=8)
    assert leaking.findings
    assert leaking.score > 0.65
    assert leaking.p_value > 0.05
    honest = shuffled_baseline(lambda labels: evaluate(labels, inside=True), y, chance=0.5, n=8)
    assert honest.findings == []


def test_a_real_signal_beats_shuffled_labels() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 2))
    strength = x[:, 0] + 0.5 * rng.normal(size=120)
    y = (strength > np.median(strength)).astype(int)
    found = shuffled_baseline(
        lambda labels: float(cross_val_score(LogisticRegression(), x, labels, cv=4).mean()),
        y,
        chance=0.5,
        n=19,
        block=5,
    )
    assert found.p_value == 0.05
    assert found.findings == []


def test_nonsense_is_refused(events: FakeSession, data: pl.DataFrame) -> None:
    with pytest.raises(DatasetError, match="cuts"):
        check_no_lookahead(events, cuts=[10_000])
    with pytest.raises(DatasetError, match="event_index"):
        check_no_lookahead(events, lambda part: features(part).drop("event_index"))
    with pytest.raises(DatasetError, match="t_start"):
        check_label_times(data.drop("t_start"))
    with pytest.raises(DatasetError, match="n ≥ 2"):
        shuffled_baseline(lambda labels: 0.0, [0, 1], chance=0.5, n=1)
