"""The score series of a whole session is what the trading system computes event by event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from replaylab.errors import ConfigError
from replaylab.features import NAMES, pack_market, score_series
from replaylab.params import ScoringParams
from replaylab.timestamps import parse_ns
from replaylab.trading import TradingSystem

Market = Callable[..., list[Any]]
Frame = Callable[[list[Any]], pl.DataFrame]
Row = tuple[int, str, float, "str | None"]


class Signals:
    """A recorder that keeps scores, with the regime that stands at each."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._regimes: dict[str, str] = {}

    def log_state_event(self, symbol: str, event: Any) -> None:
        if event.event_type == "REGIME_UPDATE":
            self._regimes[symbol] = event.extra["regime"]
        elif event.event_type == "SCORING_UPDATE":
            regime = self._regimes.get(symbol)
            self.rows.append((parse_ns(event.timestamp), symbol, event.extra["score"], regime))

    def ignore(self, record: Any) -> None: ...

    log_trade = log_order = write_risk_snapshot = write_tpsl_snapshot = write_execution_snapshot = ignore


def event_by_event(events: list[Any], scoring: Any, **options: Any) -> list[Row]:
    signals = Signals()
    system = TradingSystem(inject_mode="FULL_DECISION", scoring=scoring, recorder=signals, **options)
    for index, event in enumerate(events):
        system.on_event(index, *event)
    system.finish()
    return signals.rows


def check(events: list[Any], frame: pl.DataFrame, scoring: Any, **options: Any) -> pl.DataFrame:
    expected = event_by_event(events, scoring, **options)
    found = score_series(frame, scoring, **options)
    assert found["timestamp"].dt.timestamp("ns").to_list() == [row[0] for row in expected]
    assert found["symbol"].to_list() == [row[1] for row in expected]
    np.testing.assert_allclose(found["score"].to_numpy(), [row[2] for row in expected], rtol=1e-9, atol=1e-12)
    assert found["regime"].to_list() == [row[3] for row in expected]
    return found


@pytest.mark.parametrize(
    "scoring",
    [
        ScoringParams(warmup_s=0),
        ScoringParams(interval_ms=500, momentum_weight=-0.7, book_levels=2),
        ScoringParams(
            flow_weight=0, book_weight=0, gain=3, volatility_half_life_s=5, baseline_half_life_s=40
        ),
        ScoringParams(momentum_weight=0, book_weight=0, trend_half_life_s=3, trending_z=0.8),
    ],
)
@pytest.mark.parametrize("books", [0.0, 0.3])
def test_vectorised_scores_are_the_trading_systems(
    market: Market, frame_of: Frame, scoring: ScoringParams, books: float
) -> None:
    events = market(2500, seed=11, books=books)
    found = check(events, frame_of(events), scoring)
    assert found.height > 300


def test_all_regimes_come_and_go(market: Market, frame_of: Frame) -> None:
    scoring = ScoringParams(
        warmup_s=0, volatility_half_life_s=3, baseline_half_life_s=60, trend_half_life_s=5, trending_z=1.2
    )
    events = market(4000, seed=5)
    found = check(events, frame_of(events), scoring)
    assert set(found["regime"]) == {"CALM", "TRENDING", "VOLATILE"}


def test_a_session_starts_from_its_initial_state(market: Market, frame_of: Frame) -> None:
    """The book and regime that stood before the first event count in both forms."""
    book = {"bids": [[99.0, 1.0]], "asks": [[101.0, 3.0]]}
    start = {"symbols": {"AAAUSDT": {"regime": "VOLATILE", "tradingBlocked": False, "book": book}}}
    events = market(400, books=0.05)
    check(events, frame_of(events), ScoringParams(warmup_s=0), initial_state=start)


def test_the_index_is_where_a_recorded_score_would_stand(frame_of: Frame) -> None:
    """After the last event of its time, of whatever symbol and type."""
    trade = {"price": 1.0, "qty": 1.0, "side": "BUY"}
    events = [
        (0, "MARKET_TRADE", "A", trade),
        (0, "MARKET_TRADE", "B", trade),
        (0, "RISK_UPDATE", "A", {}),
        (5, "MARKET_TRADE", "A", trade),
    ]
    found = score_series(frame_of(events), ScoringParams(warmup_s=0))
    assert found.select("index", "symbol").rows() == [(2, "A"), (2, "B"), (3, "A")]


def test_packed_tapes_serve_many_settings(market: Market, frame_of: Frame) -> None:
    frame = frame_of(market(500))
    tapes = pack_market(frame, 5)
    for gain in (1.0, 2.0):
        scoring = ScoringParams(warmup_s=0, gain=gain)
        columns = ["timestamp", "symbol", "score", "regime"]
        assert score_series(tapes, scoring)[columns].equals(score_series(frame, scoring)[columns])


class Model:
    """A model with ``predict``: wants two features, answers out of bounds at times."""

    feature_names_in_ = ("queue_imbalance", "trade_imbalance")
    scoring_params = ScoringParams(warmup_s=1, interval_ms=200)

    def predict(self, rows: Any) -> Any:
        return 2.0 * np.nan_to_num(np.asarray(rows)).sum(axis=1)


def test_a_model_may_make_the_scores(market: Market, frame_of: Frame) -> None:
    events = market(1500, books=0.5)
    found = check(events, frame_of(events), Model())
    assert found["score"].max() == 1.0
    assert found["score"].min() == -1.0
    assert found["score"].n_unique() > 20


def test_a_model_that_wants_what_there_is_not_is_refused() -> None:
    class Wrong(Model):
        feature_names_in_ = ("queue_inbalance",)

    with pytest.raises(ConfigError, match="Did you mean 'queue_imbalance'"):
        event_by_event([(0, "MARKET_TRADE", "A", {"price": 1.0, "qty": 1.0, "side": "BUY"})], Wrong())
    with pytest.raises(ConfigError, match="predict"):
        TradingSystem(inject_mode="FULL_DECISION", scoring=object())  # type: ignore[arg-type]
    assert "queue_imbalance" in NAMES


def test_no_market_data_no_scores(frame_of: Frame) -> None:
    found = score_series(frame_of([(0, "SCORING_UPDATE", "A", {"score": 1.0})]))
    assert found.height == 0
    assert found.columns == ["index", "timestamp", "symbol", "score", "regime"]
