"""Rolling files of a logger: bounded, whole at any time, and read back by the loaders."""

from __future__ import annotations

import asyncio
import json
import warnings

import pytest

from replaylab import frames
from replaylab.config import LoggingConfig
from replaylab.errors import ConfigError, InterlockError, LogWriteError, RecordError, UnsafeNameError
from replaylab.logging import Logger
from replaylab.records import FeatureSnapshot, MarketTrade, OrderBookSnapshot, RegimeSnapshot, ScoringSnapshot
from tests.logging import sample_records as sample


def at(second: int) -> str:
    return f"2025-11-18T10:00:{second:02d}.000Z"


def trade(second: int) -> MarketTrade:
    return MarketTrade(timestamp=at(second), price=100.0 + second, qty=0.5, side="BUY", trade_id=str(second))


@pytest.mark.parametrize(
    "config", [LoggingConfig(), LoggingConfig(queue=True), LoggingConfig(durability="fsync")]
)
def test_a_tape_keeps_the_newest_prints_also_of_an_earlier_process(tmp_path, config):
    with Logger(tmp_path, config) as logger:
        for second in range(0, 6, 2):
            logger.write_tape("BTCUSDT", [trade(second), trade(second + 1).to_dict()], keep=4).result()
    with Logger(tmp_path, config) as logger:
        logger.write_tape("BTCUSDT", [trade(6)], keep=4).result()
    found = frames.load_market_trades_json(tmp_path)
    assert found.frame["trade_id"].to_list() == ["3", "4", "5", "6"]
    assert found.frame["price"].to_list() == [103.0, 104.0, 105.0, 106.0]
    assert found.rejects.height == 0


def test_metrics_of_all_three_kinds_are_read_back(tmp_path):
    snapshots = [
        FeatureSnapshot(timestamp=at(1), symbol="BTCUSDT", features={"flow": 0.5, "book": None}),
        ScoringSnapshot(timestamp=at(2), symbol="BTCUSDT", score=0.4, side="LONG", price=100.0),
        RegimeSnapshot(timestamp=at(3), symbol="BTCUSDT", regime="CALM"),
        {"type": "REGIME_SNAPSHOT", "timestamp": at(4), "symbol": "BTCUSDT", "regime": "VOLATILE", "more": 1},
    ]
    with Logger(tmp_path) as logger:
        logger.write_metrics("BTCUSDT", snapshots)
    found = frames.load_metrics(tmp_path)
    kinds = ["FEATURE_SNAPSHOT", "SCORING_SNAPSHOT", "REGIME_SNAPSHOT", "REGIME_SNAPSHOT"]
    assert found.frame["type"].to_list() == kinds
    assert json.loads(found.frame["payload"][0]) == {"features": {"flow": 0.5, "book": None}}
    assert json.loads(found.frame["payload"][3])["more"] == 1
    assert found.rejects.height == 0
    assert json.loads((tmp_path / "metrics" / "BTCUSDT.json").read_text())[1]["type"] == "SCORING_SNAPSHOT"


def test_an_order_book_is_one_snapshot(tmp_path):
    with Logger(tmp_path) as logger:
        for price in (100.0, 101.0):
            book = OrderBookSnapshot(
                timestamp=at(1), symbol="B", bids=[(price, 1.0)], asks=[(price + 1, 2.0)]
            )
            logger.write_order_book("B", book).result()
    found = frames.load_order_book_json(tmp_path).frame
    assert json.loads(found["bids"][0]) == [[101.0, 1.0]]
    assert found.height == 1


def test_what_is_not_valid_is_refused_before_anything_is_written(tmp_path):
    with Logger(tmp_path) as logger:
        with pytest.raises(RecordError, match=r"ScoringSnapshot\.symbol: expected 'A', the symbol"):
            logger.write_metrics("A", [ScoringSnapshot(timestamp=at(1), symbol="B", score=1, side="NONE")])
        with pytest.raises(RecordError, match="type: expected one of FEATURE_SNAPSHOT") as caught:
            logger.write_metrics("A", [{"timestamp": at(1), "symbol": "A", "regime": "CALM"}])
        assert caught.value.field == "type"
        with pytest.raises(RecordError, match=r"MarketTrade\.price"):
            logger.write_tape("A", [trade(1), {**trade(1).to_dict(), "price": None}])
        with pytest.raises(RecordError, match=r"OrderBookSnapshot.bids\[0\]"):
            logger.write_order_book("A", {"timestamp": at(1), "symbol": "A", "bids": [[1.0]], "asks": []})
        with pytest.raises(ConfigError, match="keep: expected a whole number ≥ 1"):
            logger.write_tape("A", [trade(1)], keep=0)
        with pytest.raises(UnsafeNameError):
            logger.write_tape("../A", [trade(1)])
    assert not list(tmp_path.iterdir())
    with Logger(tmp_path, run_mode="REPLAY") as logger, pytest.raises(InterlockError, match="write_tape"):
        logger.write_tape("A", [trade(1)])


def test_a_file_that_is_not_json_is_kept_and_the_write_fails(tmp_path):
    path = tmp_path / "trades" / "A.json"
    path.parent.mkdir()
    path.write_text("not json")
    with Logger(tmp_path) as logger:
        with pytest.raises(LogWriteError, match="neither a JSON array nor JSON Lines"):
            asyncio.run(wait_for(logger.write_tape("A", [trade(1)])))
        assert path.read_text() == "not json"
        path.write_text(json.dumps(trade(0).to_dict()) + "\n")
        logger.write_tape("A", [trade(1)]).result()
    assert [element["tradeId"] for element in json.loads(path.read_text())] == ["0", "1"]


async def wait_for(handle):
    await handle


def test_symbols_of_ccxt_are_logged_and_read_back_as_they_were(tmp_path):
    symbol = "BTC/USDT:USDT"
    with Logger(tmp_path) as logger:
        logger.log_state_event(symbol, sample.state_event(symbol=symbol)).result()
        logger.log_trade(sample.trade(symbol=symbol)).result()
        logger.write_tape(symbol, [trade(1)]).result()
        logger.write_metrics(symbol, [RegimeSnapshot(timestamp=at(3), symbol=symbol, regime="CALM")]).result()
        book = OrderBookSnapshot(timestamp=at(1), symbol=symbol, bids=[(1.0, 1.0)], asks=[])
        logger.write_order_book(symbol, book).result()
    assert (tmp_path / "events" / "BTC%2FUSDT%3AUSDT.jsonl").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for load in (
            frames.load_events,
            frames.load_market_trades_json,
            frames.load_metrics,
            frames.load_order_book_json,
        ):
            for symbols in (None, symbol):
                assert load(tmp_path, symbols).frame["symbol"].to_list() == [symbol]
        assert frames.load_trades(tmp_path).frame["symbol"].to_list() == [symbol]
