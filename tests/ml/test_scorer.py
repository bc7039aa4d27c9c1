"""A model as a scoring engine: the same trades event by event and in a sweep's model, and only market features."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from replaylab.errors import DatasetError
from replaylab.features import NAMES, FeatureParams
from replaylab.ml.dataset import features
from replaylab.ml.export import ClassifierScore
from replaylab.ml.labelling import labels
from replaylab.params import ScoringParams, TradingParams
from replaylab.sweep import backtest, rescored
from replaylab.trading import TradingSystem, resolve_prices
from tests.ml.sessions import FakeSession, random_rows, session


class Fixed:
    """A classifier that believes the queue imbalance."""

    classes_ = np.array([-1, 0, 1])

    def predict_proba(self, rows: Any) -> Any:
        up = np.clip(0.5 + np.nan_to_num(rows[:, 0]), 0, 1)
        return np.column_stack([1 - up, np.zeros(len(up)), up])


PARAMS = TradingParams(entry_threshold=0.2, tp1_pct=0.1, tp2_pct=0.2, sl_pct=0.1, latency_ms=250)


def by_events(data: FakeSession, scoring: Any) -> list[tuple[Any, ...]]:
    """What a FULL_DECISION replay does, without files."""
    rows = list(data.events.select("type", "symbol", "payload").iter_rows())
    parsed = [(kind, symbol, orjson.loads(text)) for kind, symbol, text in rows]
    system = TradingSystem(
        PARAMS,
        scoring=scoring,
        inject_mode="FULL_DECISION",
        price_sources=resolve_prices(parsed, "trade"),
    )
    for index, (ts, (kind, symbol, payload)) in enumerate(
        zip(data.events["timestamp"].dt.timestamp("ns"), parsed, strict=True)
    ):
        system.on_event(index, ts, kind, symbol, payload)
    system.finish()
    return sorted((t.symbol, t.side, t.entry_ts, t.exit_ts, t.reason, t.realized_pnl) for t in system.trades)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["engine", "model"])
def test_rescored_sessions_give_the_trades_of_a_full_decision_replay(seed: int, kind: str) -> None:
    data = session(random_rows(seed, 1500, ("BTCUSDT", "ETHUSDT")))
    scoring: Any = ScoringParams(interval_ms=500, warmup_s=5)
    if kind == "model":
        scoring = ClassifierScore(Fixed(), ["queue_imbalance"], scoring=scoring, features=FeatureParams())
    wanted = by_events(data, scoring)
    found = backtest(rescored(data, scoring), PARAMS, price_source="trade").trades
    assert len(wanted) > 5
    ns = found.with_columns(*(found[name].dt.timestamp("ns") for name in ("entry_time", "exit_time")))
    assert (
        sorted(ns.select("symbol", "side", "entry_time", "exit_time", "reason", "realized_pnl").rows())
        == wanted
    )


def test_a_trained_classifier_scores_a_session() -> None:
    """From features and labels to a score and back into a session, with an imputer for what is not known."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = session(random_rows(6, 3000))
    names = ["queue_imbalance", "trade_imbalance", "momentum_bps", "vpin"]
    y = labels(data, 0.1, 0.1, 5.0)["label"]
    known = y.is_not_null()
    x = features(data).select(names).filter(known).to_numpy()
    impute = SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True)
    pipeline = make_pipeline(impute, StandardScaler(), LogisticRegression(max_iter=500))
    model = ClassifierScore(
        pipeline.fit(x, y.drop_nulls().to_numpy()), names, scoring=ScoringParams(warmup_s=1)
    )
    scores = [
        orjson.loads(text)["score"]
        for kind, text in rescored(data, model).events.select("type", "payload").iter_rows()
        if kind == "SCORING_UPDATE"
    ]
    assert len(scores) > 100
    assert -1 <= min(scores) < max(scores) <= 1


def test_models_that_cannot_score_are_refused() -> None:
    with pytest.raises(DatasetError, match="no feature score"):
        ClassifierScore(Fixed(), ["score", NAMES[0]])

    class Meta(Fixed):
        classes_ = np.array([0, 1])

    with pytest.raises(DatasetError, match="1 and −1"):
        ClassifierScore(Meta(), NAMES)
