"""The generated market: the same everywhere, consistent with itself, and like what its docstring says."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from replaylab import history
from replaylab.errors import HistoryError
from replaylab.features import OrderBook
from replaylab.importers.synthetic import MARKETS, SyntheticTape, generate_market, write_synthetic


@pytest.fixture(scope="module")
def market() -> dict[str, SyntheticTape]:
    return generate_market(seed=7, hours=1.0)


def digest(tape: SyntheticTape) -> str:
    text = hashlib.sha256(tape.trades.write_csv().encode())
    for row in tape.book.rows():
        text.update(repr(row).encode())
    return text.hexdigest()


def test_the_same_seed_gives_the_same_bytes() -> None:
    """The digest is written down: another machine, Python or numpy must come to it too."""
    tape = generate_market(seed=1, symbols=["BTCUSDT"], hours=0.05)["BTCUSDT"]
    assert digest(tape) == "1de46d79975b1814dc5722e45731382003370618cbac0cb6daaebba64fea7c4d"
    assert digest(generate_market(seed=2, symbols=["BTCUSDT"], hours=0.05)["BTCUSDT"]) != digest(tape)


def test_a_symbol_does_not_depend_on_the_others() -> None:
    alone = generate_market(seed=3, symbols=["AIUSDT"], hours=0.05)["AIUSDT"]
    among = generate_market(seed=3, symbols=["BTCUSDT", "ETHUSDT", "AIUSDT"], hours=0.05)["AIUSDT"]
    assert digest(alone) == digest(among)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "AIUSDT"])
def test_sizes_times_and_steps(market: dict[str, SyntheticTape], symbol: str) -> None:
    """About 20,000 trades and 10,000 book rows in the hour from 10:00; whole milliseconds, ticks and lots."""
    trades, book = market[symbol]
    assert 15_000 < trades.height < 25_000
    assert 8_000 < book.height < 12_000
    for frame in (trades, book):
        times = frame["timestamp"]
        assert times.is_sorted()
        assert (times.to_physical() % 1_000_000 == 0).all()
        assert (times.dt.strftime("%Y-%m-%d %H") == "2025-11-18 10").all()
        assert (frame["received_at"] > times).all()
    for column, step in (("price", MARKETS[symbol].tick), ("qty", MARKETS[symbol].lot)):
        found = trades[column].to_numpy()
        whole = np.round(found / step)
        assert (found == (whole / round(1 / step) if step < 1 else whole * step)).all()
        assert (whole > 0).all()
    share = 1 - trades["timestamp"].n_unique() / trades.height
    assert share > 0.4, "many trades share a millisecond with another"


@pytest.mark.parametrize("symbol", ["BTCUSDT", "AIUSDT"])
def test_the_book_is_whole_and_never_crossed_and_trades_hit_it(
    market: dict[str, SyntheticTape], symbol: str
) -> None:
    """A buy prints at or above the best ask before it, a sell at or below the best bid."""
    trades, book = market[symbol]
    kept = OrderBook()
    quotes = []
    for kind, bids, asks, moment in book.select("kind", "bids", "asks", "timestamp").iter_rows():
        if kind == "snapshot":
            kept.reset([tuple(level) for level in bids], [tuple(level) for level in asks])
            assert bids == sorted(bids, reverse=True)
            assert asks == sorted(asks)
        else:
            kept.update([tuple(level) for level in bids], [tuple(level) for level in asks])
        assert [len(side) for side in kept.levels()] == [10, 10]
        (bid, _), (ask, _) = kept.best_bid(), kept.best_ask()
        assert bid < ask
        quotes.append((moment, bid, ask))
    assert (book["kind"] == "snapshot").sum() == 60
    quoted = pl.DataFrame(quotes, schema=["timestamp", "bid", "ask"], orient="row").cast(
        {"timestamp": pl.Datetime("ns", "UTC")}
    )
    joined = trades.join_asof(quoted, on="timestamp")
    buys, sells = joined.filter(pl.col("side") == "BUY"), joined.filter(pl.col("side") == "SELL")
    assert (buys["price"] >= buys["ask"]).all()
    assert (sells["price"] <= sells["bid"]).all()


def test_arrivals_cluster(market: dict[str, SyntheticTape]) -> None:
    """Orders per second vary more than a Poisson process's, whose variance is its mean."""
    moments = market["BTCUSDT"].trades["timestamp"].unique().dt.timestamp("ms").to_numpy()
    counts = np.bincount((moments - moments[0]) // 1000)
    assert counts.var() > 1.5 * counts.mean()


def test_flow_carries_a_modest_signal() -> None:
    """Over four hours the last 30 s of signed flow correlate with the next 30 s of price: some, not much."""
    trades = generate_market(seed=11, symbols=["BTCUSDT"], hours=4.0)["BTCUSDT"].trades
    moments, prices = trades["timestamp"].dt.timestamp("ms").to_numpy(), np.log(trades["price"].to_numpy())
    signed = np.cumsum(trades["qty"].to_numpy() * np.where(trades["side"] == "BUY", 1, -1))
    total = np.cumsum(trades["qty"].to_numpy())
    at = np.arange(moments[0] + 30_000, moments[-1] - 30_000, 1_000)
    now, before, after = (np.searchsorted(moments, at + shift, "right") - 1 for shift in (0, -30_000, 30_000))
    imbalance = (signed[now] - signed[before]) / np.maximum(total[now] - total[before], 1e-9)
    assert 0.05 < np.corrcoef(imbalance, prices[after] - prices[now])[0, 1] < 0.4


def test_symbols_move_together_a_little(market: dict[str, SyntheticTape]) -> None:
    moves = []
    for tape in market.values():
        quotes = tape.trades.group_by_dynamic("timestamp", every="30s").agg(pl.col("price").last().log())
        moves.append(quotes.with_columns(pl.col("price").diff()).drop_nulls())
    both = moves[0].join(moves[1], on="timestamp")
    assert 0.1 < both.select(pl.corr("price", "price_right")).item() < 0.8


def test_writing_it_makes_history(tmp_path: Path) -> None:
    tapes = write_synthetic(tmp_path, seed=5, hours=0.1)
    assert history.symbols(tmp_path) == ["AIUSDT", "BTCUSDT"]
    for symbol, (trades, book) in tapes.items():
        assert history.scan_trades(tmp_path, symbol).collect().equals(trades)
        assert history.scan_book(tmp_path, symbol).collect().equals(book)


@pytest.mark.parametrize("wrong", [{"hours": 0}, {"levels": 0}, {"symbols": "BTCUSDT"}, {"symbols": []}])
def test_sizes_that_make_no_market_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(HistoryError):
        generate_market(**{"hours": 0.01, **wrong})


@pytest.mark.stress
def test_an_hour_takes_two_seconds_at_the_most() -> None:
    began = time.process_time()
    generate_market()
    assert time.process_time() - began < 2.0
