"""Features: hand-worked values, incremental = vectorised, and nothing looks ahead."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from replaylab.errors import ConfigError, DatasetError
from replaylab.features import (
    CATALOGUE,
    NAMES,
    FeatureEngine,
    FeatureParams,
    OrderBook,
    compute,
    trade_sign,
    usable_number,
    usable_price,
)
from replaylab.features.state import N_VALUES

Market = Callable[..., list[Any]]
Frame = Callable[[list[Any]], pl.DataFrame]
PARAMS = FeatureParams(vpin_bucket_usd=400, vpin_buckets=7, kyle_interval_s=0.5, depth_levels=3)
SECOND = 1_000_000_000


def by_hand(events: list[Any], params: FeatureParams) -> dict[tuple[int, str], list[float]]:
    """Rows of the incremental form after the last market event of each symbol and timestamp."""
    engines: dict[str, FeatureEngine] = {}
    books: dict[str, OrderBook] = {}
    rows: dict[tuple[int, str], list[float]] = {}
    for ts, kind, symbol, payload in events:
        engine = engines.setdefault(symbol, FeatureEngine(params))
        if kind == "MARKET_BOOK":
            book = books.setdefault(symbol, OrderBook())
            if not book.apply(payload):
                continue
            engine.book(ts, book)
        else:
            price, qty = usable_price(payload["price"]), usable_number(payload["qty"])
            sign = trade_sign(payload["side"])
            if price is None or payload.get("offMarket"):
                continue
            known = qty is not None and sign is not None
            engine.trade(ts, price, qty if known and qty else 0.0, sign if known and sign else 0.0)
        rows[ts, symbol] = engine.row(ts)
    return rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("books", [0.0, 0.3, 1.0])
def test_incremental_and_vectorised_forms_agree(
    market: Market, frame_of: Frame, seed: int, books: float
) -> None:
    """To 1e-9 in every feature at every distinct time of every symbol, with malformed events in between."""
    events = market(1500, seed, books, wrong=0.05)
    expected = by_hand(events, PARAMS)
    found = compute(frame_of(events), PARAMS)
    assert found.height == len(expected)
    keys = zip(found["timestamp"].dt.timestamp("ns").to_list(), found["symbol"].to_list(), strict=True)
    table = np.array([expected[key] for key in keys])
    values = found.select(pl.col(NAMES).fill_null(np.nan)).to_numpy()
    np.testing.assert_allclose(values, table, rtol=1e-9, atol=1e-9)
    if books == 0.3:
        assert np.isfinite(values).any(axis=0).all(), "every feature was reached"


@pytest.mark.parametrize("cut", [1, 300, 777, 1499])
def test_a_prefix_has_the_same_rows(market: Market, frame_of: Frame, cut: int) -> None:
    """Appending events changes no earlier row, to the bit."""
    events = frame_of(market(1500))
    whole = compute(events, PARAMS)
    part = compute(events.head(cut), PARAMS)
    last = events["timestamp"][cut - 1]
    # The last time of the prefix may lack events that share it.
    before = part.filter(pl.col("timestamp") < last)
    assert_frame_equal(
        whole.filter(pl.col("timestamp") < last), before, check_exact=True, check_row_order=True
    )


def test_decisions_see_their_index_and_nothing_after_it(market: Market, frame_of: Frame) -> None:
    """A decision of index k has the row of a session that ends at k, whatever order decisions come in."""
    events = frame_of(market(800))
    picks = [700, 3, 250, 251, 799]
    decisions = (
        events.with_row_index("index")
        .select("index", "timestamp", symbol=pl.lit("AAAUSDT"))
        .with_columns(pl.col("index").cast(pl.Int64))[picks]
    )
    found = compute(events, PARAMS, decisions)
    assert found["index"].to_list() == picks
    for place, pick in enumerate(picks):
        alone = compute(events.head(pick + 1), PARAMS, decisions[place : place + 1])
        assert_frame_equal(found[place : place + 1], alone, check_exact=True)


def test_decisions_without_an_index_see_only_earlier_times(frame_of: Frame) -> None:
    """A grid time that a trade bears does not know that trade."""
    trades = [
        (k * SECOND, "MARKET_TRADE", "A", {"price": 100.0 + k, "qty": 1, "side": "BUY"}) for k in range(3)
    ]
    events = frame_of(trades)
    decisions = events.select("timestamp", "symbol")
    assert compute(events, PARAMS, decisions)["last_price"].to_list() == [None, 100.0, 101.0]
    late = decisions.with_columns(pl.col("timestamp") + timedelta(milliseconds=1))
    assert compute(events, PARAMS, late)["last_price"].to_list() == [100.0, 101.0, 102.0]
    stranger = decisions.with_columns(symbol=pl.lit("B"))
    assert compute(events, PARAMS, stranger)["last_price"].null_count() == 3


def test_book_features_by_hand() -> None:
    """Bids 99 × 2, 98 × 4; asks 101 × 1, 102 × 1."""
    book = OrderBook()
    book.apply({"bids": [[98.0, 4], [99.0, 2]], "asks": [[101.0, 1], [102.0, 1]]})
    engine = FeatureEngine(FeatureParams(depth_levels=2))
    engine.book(0, book)
    values = engine.values(0)
    assert values["best_bid"] == 99
    assert values["mid"] == 100
    assert values["spread_bps"] == 200
    assert values["microprice"] == pytest.approx((99 * 1 + 101 * 2) / 3)
    assert values["queue_imbalance"] == pytest.approx(1 / 3)
    assert (values["bid_depth"], values["ask_depth"]) == (6, 2)
    assert values["depth_imbalance"] == 0.5
    assert values["ofi"] == 0
    assert values["vpin"] is None


@pytest.mark.parametrize(
    ("bids", "asks", "flow"),
    [
        pytest.param([[99.0, 5]], [[101.0, 3]], 3.0, id="bid queue grows by 3"),
        pytest.param([[99.5, 1]], [[101.0, 3]], 1.0, id="better bid: its whole queue"),
        pytest.param([[98.0, 7]], [[101.0, 3]], -2.0, id="bid gone: the old queue"),
        pytest.param([[99.0, 2]], [[101.0, 5]], -2.0, id="ask queue grows by 2"),
        pytest.param([[99.0, 2]], [[100.0, 4]], -4.0, id="better ask: its whole queue"),
        pytest.param([[99.0, 2]], [[102.0, 9]], 3.0, id="ask gone: the old queue"),
    ],
)
def test_order_flow_imbalance_by_hand(bids: Any, asks: Any, flow: float) -> None:
    """From bid 99 × 2, ask 101 × 3: e_n of Cont, Kukanov & Stoikov (2014), and half of it one half-life later."""
    engine, book = FeatureEngine(FeatureParams(flow_half_life_s=1)), OrderBook()
    book.apply({"bids": [[99.0, 2]], "asks": [[101.0, 3]]})
    engine.book(0, book)
    book.apply({"bids": bids, "asks": asks})
    engine.book(SECOND, book)
    assert engine.values(SECOND)["ofi"] == flow
    assert engine.values(2 * SECOND)["ofi"] == pytest.approx(flow / 2)


def test_trade_features_by_hand() -> None:
    """Buy 2 at 100, one half-life later sell 1 at 101."""
    params = FeatureParams(flow_half_life_s=1, vwap_half_life_s=1, intensity_half_life_s=1)
    engine = FeatureEngine(params)
    engine.trade(0, 100.0, 2.0, 1.0)
    engine.trade(SECOND, 101.0, 1.0, -1.0)
    values = engine.values(SECOND)
    assert values["signed_volume"] == pytest.approx(0.5 * 2 - 1)
    assert values["volume"] == pytest.approx(2)
    assert values["trade_imbalance"] == pytest.approx(0, abs=1e-15)
    assert values["vwap_deviation_bps"] == pytest.approx((101 / 100.5 - 1) * 1e4)
    assert values["trade_intensity"] == pytest.approx(1.5 * math.log(2))
    assert values["last_price"] == 101


def test_volatility_of_a_known_random_walk() -> None:
    """One return of 5 bps each second: 5 bps per √second, whatever the half-life."""
    engine = FeatureEngine(FeatureParams(volatility_half_life_s=20))
    price = 100.0
    for second in range(400):
        price *= math.exp(5e-4 if second % 2 else -5e-4)
        engine.trade(second * SECOND, price, 1.0, 1.0)
    found = engine.values(399 * SECOND)["realised_volatility_bps"]
    assert found == pytest.approx(5, rel=0.02)


def test_kyles_lambda_is_the_slope_of_price_on_flow() -> None:
    """Prices that move by 0.5 per unit of signed volume."""
    engine = FeatureEngine(FeatureParams(kyle_interval_s=1, kyle_half_life_s=1000))
    price = 100.0
    for second in range(1, 50):
        qty, sign = 1.0 + second % 3, 1.0 if second % 2 else -1.0
        price += 0.5 * qty * sign
        engine.trade(second * SECOND, price, qty, sign)
    assert engine.values(50 * SECOND)["kyle_lambda"] == pytest.approx(0.5)


def test_vpin_by_hand() -> None:
    """Buckets of 100: 60 bought + 40 sold (imbalance 20), then 100 bought (100), then 50 still open."""
    engine = FeatureEngine(FeatureParams(vpin_bucket_usd=100, vpin_buckets=4))
    engine.trade(0, 1.0, 60.0, 1.0)
    assert engine.values(0)["vpin"] is None
    engine.trade(1, 1.0, 40.0, -1.0)
    assert engine.values(1)["vpin"] == pytest.approx(0.2)
    engine.trade(2, 1.0, 150.0, 1.0)
    assert engine.values(2)["vpin"] == pytest.approx(120 / 200)
    engine.trade(3, 1.0, 1e9, -1.0)
    assert engine.values(3)["vpin"] == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**12), st.floats(1e-6, 1e6), st.floats(0, 1e6), st.sampled_from((-1.0, 0.0, 1.0))
        ),
        max_size=60,
    )
)
def test_bounded_features_stay_in_their_bounds(trades: list[tuple[int, float, float, float]]) -> None:
    engine = FeatureEngine(FeatureParams(vpin_buckets=5))
    ts = 0
    for gap, price, qty, sign in trades:
        ts += gap
        engine.trade(ts, price, qty if sign else 0.0, sign)
        values = engine.values(ts)
        for name, low in (("trade_imbalance", -1.0), ("vpin", 0.0)):
            value = values[name]
            assert value is None or low - 1e-9 <= value <= 1 + 1e-9
        for value in values.values():
            assert value is None or math.isfinite(value)


def test_the_catalogue_is_complete_and_each_entry_says_all() -> None:
    assert len(NAMES) == len(set(NAMES)) == N_VALUES == len(CATALOGUE)
    fields = set(FeatureParams.__struct_fields__)
    for feature in CATALOGUE:
        assert feature.formula
        assert feature.unit
        assert feature.source
        words = set(feature.lookback.replace(",", " ").split())
        assert "none:" in words or words & fields


def test_wrong_use_is_named(market: Market, frame_of: Frame) -> None:
    events = frame_of(market(20))
    with pytest.raises(DatasetError, match="sorted"):
        compute(events.reverse())
    with pytest.raises(DatasetError, match="symbol"):
        compute(events, decisions=events.select("timestamp"))
    with pytest.raises(ConfigError, match="vpin_buckets"):
        FeatureParams(vpin_buckets=0)
    early = pl.DataFrame({"index": [19], "symbol": [events["symbol"][19]]}).with_columns(
        timestamp=events["timestamp"][0]
    )
    with pytest.raises(DatasetError, match="later than its own time"):
        compute(events, PARAMS, early)


def test_a_session_without_market_data_has_no_rows(frame_of: Frame) -> None:
    found = compute(frame_of([(0, "SCORING_UPDATE", "A", {"score": 1.0})]))
    assert found.height == 0
    assert set(NAMES) <= set(found.columns)


def test_the_documentation_has_every_feature() -> None:
    """`docs/features.md` has a row for each, with its unit."""
    text = (Path(__file__).parents[2] / "docs" / "features.md").read_text()
    for feature in CATALOGUE:
        assert f"| `{feature.name}` | " in text
        assert f" | {feature.unit} | " in text
