"""Version 1 of the trading model is version 2 with its new parts switched off: stored results, to the bit.

``tests/stored/version_1.jsonl.xz`` holds 330 random sessions with two parameter sets each, and the trades and metrics
that version 1 computed for them, the event-driven system and the sweep alike.
"""

from __future__ import annotations

import json
import lzma
import math
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab.params import TradingParams
from replaylab.sweep import backtest, sweep
from replaylab.trading import TradingSystem, resolve_prices
from tests.strategies import RandomSession

STORED = Path(__file__).parents[1] / "stored" / "version_1.jsonl.xz"
SWITCHED_OFF = {"market_fill": "print", "limit_fill": "touch", "max_gap_s": None, "rounding": "none"}
COLUMNS = (
    "symbol",
    "side",
    "entry_index",
    "exit_index",
    "entry_price",
    "close_price",
    "qty",
    "leverage",
    "reason",
    "tp1_filled",
    "fees",
    "realized_pnl",
    "mfe",
    "mae",
)
CHUNKS = 6


@cache
def stored_cases() -> list[dict[str, Any]]:
    with lzma.open(STORED, "rt") as lines:
        return [json.loads(line) for line in lines]


def session_of(case: dict[str, Any]) -> RandomSession:
    raw, ts = [], 0
    for step, kind, symbol, payload in case["events"]:
        ts += step
        raw.append((ts, kind, symbol, payload))
    return RandomSession(raw, case["initial_state"], case["price_source"])


def params_of(run: dict[str, Any]) -> TradingParams:
    known = TradingParams.__struct_fields__
    return TradingParams(**run["params"], **{k: v for k, v in SWITCHED_OFF.items() if k in known})


def stored_trades(run: dict[str, Any]) -> list[tuple[Any, ...]]:
    return list(zip(*run["trades"], strict=True))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_event_driven_system_gives_the_trades_of_version_1(chunk: int) -> None:
    for case in stored_cases()[chunk::CHUNKS]:
        session = session_of(case)
        for run in case["runs"]:
            sources = resolve_prices(session, session.price_source).sources
            system = TradingSystem(params_of(run), price_sources=sources, initial_state=session.initial_state)
            for index, event in enumerate(session.raw):
                system.on_event(index, *event)
            system.finish()
            found = sorted(system.trades, key=lambda trade: (trade.exit_index, trade.entry_index))
            assert [tuple(getattr(t, name) for name in COLUMNS) for t in found] == stored_trades(run)
            for trade in found:
                entry_ts, exit_ts = session.raw[trade.entry_index][0], session.raw[trade.exit_index][0]
                assert (trade.entry_ts, trade.exit_ts) == (entry_ts, exit_ts)
                assert trade.duration_seconds == (exit_ts - entry_ts) / 1e9


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_sweep_gives_the_trades_and_metrics_of_version_1(chunk: int) -> None:
    for case in stored_cases()[chunk::CHUNKS]:
        session = session_of(case)
        for run in case["runs"]:
            params = params_of(run)
            trades = backtest(session, params, price_source=session.price_source).trades
            rows = trades.sort("exit_index", "entry_index").select(COLUMNS).rows()
            assert rows == stored_trades(run)
            moments = [session.raw[index][0] for index in trades["entry_index"]]
            assert trades["entry_time"].cast(pl.Int64).to_list() == moments
            row = sweep(
                session,
                {"sl_pct": [params.sl_pct]},
                params,
                price_source=session.price_source,
                progress=False,
            ).frame.row(0, named=True)
            for name, value in run["metrics"].items():
                assert row[name] == (math.inf if value == "inf" else value), name
