"""The implementations of the trading model that are held against the oracle, each behind the same call.

::

    found = CONTENDERS["loop"].run(session, params)      # an Outcome
    differences(oracle_outcome(session, params), found)  # sentences, the first difference first

A change of how an implementation is called belongs here. ``version`` is the version of the model that an
implementation has: one that has version 1 is compared on sessions and parameters reduced to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from replaylab.params import TradingParams
from replaylab.sweep import backtest, sweep
from replaylab.trading import TradingSystem, resolve_prices
from tests import oracle
from tests.strategies import VERSION_1, RandomSession

EXACT = ("symbol", "side", "entry_index", "exit_index", "reason", "tp1_filled", "leverage", "thin")
NUMBERS = (
    "entry_price",
    "close_price",
    "qty",
    "fees",
    "funding",
    "realized_pnl",
    "gap_pnl",
    "mfe",
    "mae",
    "duration_seconds",
)
COUNTS = ("expired", "rejected", "cancelled")
_VERSION_2_ONLY = ("thin", "funding", "gap_pnl")


@dataclass
class Outcome:
    """What an implementation found; None: it has no such result."""

    trades: list[dict[str, Any]] | None = None  # by entry index
    counts: dict[str, int] | None = None
    metrics: dict[str, Any] | None = None
    unusable: dict[str, int] | None = None
    seen: Counter[str] = field(default_factory=Counter)  # of the oracle


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[RandomSession, TradingParams], Outcome]
    version: int


def oracle_outcome(session: RandomSession, params: TradingParams) -> Outcome:
    model = oracle.run(session.raw, params, session.price_source, session.initial_state, session.instruments)
    return Outcome(model.trades, model.counts, oracle.metrics(model), model.unusable, model.seen)


def run_system(session: RandomSession, params: TradingParams) -> Outcome:
    """The event-driven system, one event after another."""
    system = TradingSystem(
        params,
        price_sources=resolve_prices(session, session.price_source),
        instruments=session.instruments,
        initial_state=session.initial_state,
    )
    for index, event in enumerate(session.raw):
        system.on_event(index, *event)
    system.finish()
    trades = [{name: getattr(t, name) for name in (*EXACT, *NUMBERS)} for t in system.trades]
    counts = {name: getattr(system.counts, name) for name in COUNTS}
    return Outcome(sorted(trades, key=lambda trade: trade["entry_index"]), counts, unusable=system.unusable)


def run_loop(session: RandomSession, params: TradingParams) -> Outcome:
    """The loop kernel, which also lists trades."""
    trades = backtest(session, params, price_source=session.price_source).trades
    ordered = trades.sort("entry_index").select(pl.exclude("entry_time", "exit_time")).to_dicts()
    return Outcome(ordered, metrics=_row(session, params, "loop"))


def run_tables(session: RandomSession, params: TradingParams) -> Outcome:
    """The chain kernel over tables: metrics only."""
    return Outcome(metrics=_row(session, params, "tables"))


def run_index(session: RandomSession, params: TradingParams) -> Outcome:
    """The chain kernel over the index: metrics only."""
    return Outcome(metrics=_row(session, params, "index"))


def _row(session: RandomSession, params: TradingParams, method: str) -> dict[str, Any]:
    result = sweep(
        session,
        {"sl_pct": [params.sl_pct]},
        params,
        price_source=session.price_source,
        method=method,
        progress=False,
    )
    return result.frame.row(0, named=True)


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("system", run_system, 2),
        Contender("loop", run_loop, 2),
        Contender("tables", run_tables, 2),
        Contender("index", run_index, 2),
    )
}


def reduce_to_version_1(session: RandomSession, params: TradingParams) -> tuple[RandomSession, TradingParams]:
    """The session without FUNDING, instruments and carried state, and the parameters without their new parts."""
    # Version 1 took an empty symbol for one like others.
    raw = [event for event in session.raw if event[1] != "FUNDING" and event[2] != ""]
    symbols = {
        name: {key: value for key, value in state.items() if key in ("regime", "tradingBlocked", "book")}
        for name, state in oracle.symbols_of(session.initial_state).items()
    }
    state = {"symbols": symbols, "reported": {}} if session.initial_state else {}
    slippage = 1.0 if params.slippage_bps is None else params.slippage_bps
    plain = params.replace(
        **VERSION_1,
        slippage_bps=slippage,
        entry_order="MARKET",
        stop_latency_ms=0,
        taker_fee_bps=max(0.0, params.taker_fee_bps),
        maker_fee_bps=max(0.0, params.maker_fee_bps),
    )
    return RandomSession(raw, state, session.price_source), plain


def case_for(
    contender: Contender, session: RandomSession, params: TradingParams
) -> tuple[RandomSession, TradingParams]:
    return (session, params) if contender.version == 2 else reduce_to_version_1(session, params)


def differences(expected: Outcome, found: Outcome, version: int = 2) -> list[str]:
    """How an outcome differs from the oracle's, in sentences; empty where it does not."""
    sentences: list[str] = []
    if found.trades is not None:
        sentences += _trade_differences(expected.trades or [], found.trades, version)
    if found.counts is not None and found.counts != expected.counts:
        sentences.append(f"counts: expected {expected.counts}, found {found.counts}")
    if found.unusable is not None and found.unusable != expected.unusable:
        sentences.append(f"unusable: expected {expected.unusable}, found {found.unusable}")
    if found.metrics is not None:
        sentences += _metric_differences(expected.metrics or {}, found.metrics, version)
    return sentences


def _trade_differences(
    expected: list[dict[str, Any]], found: list[dict[str, Any]], version: int
) -> list[str]:
    names = [name for name in (*EXACT, *NUMBERS) if version == 2 or name not in _VERSION_2_ONLY]
    for k, (left, right) in enumerate(zip(expected, found, strict=False)):
        wrong = [name for name in names if name not in right or left[name] != right[name]]
        if wrong:
            parts = (f"{n}: expected {left[n]!r}, found {right.get(n, 'nothing')!r}" for n in wrong)
            return [f"trade {k} ({_short(left)}): " + "; ".join(parts)]
    if len(expected) != len(found):
        longer, what = (expected, "missing") if len(expected) > len(found) else (found, "not expected")
        more = longer[min(len(expected), len(found))]
        return [f"expected {len(expected)} trades, found {len(found)}; {what}: {_short(more)}"]
    return []


def _short(trade: dict[str, Any]) -> str:
    return (
        f"{trade['symbol']} {trade['side']} {trade['entry_index']} to {trade['exit_index']} {trade['reason']},"
        f" {trade['qty']!r} at {trade['entry_price']!r}, closed at {trade['close_price']!r}"
    )


def _metric_differences(expected: dict[str, Any], found: dict[str, Any], version: int) -> list[str]:
    sentences = []
    for name, value in expected.items():
        if name not in found:
            if version == 2:
                sentences.append(f"metric {name} is missing")
        elif not _same(name, value, found[name], expected):
            sentences.append(f"metric {name}: expected {value!r}, found {found[name]!r}")
    return sentences


def _same(name: str, left: Any, right: Any, expected: dict[str, Any]) -> bool:
    """Counts are equal; sums are equal up to the order of their terms."""
    if name == "sharpe_per_trade" and (left is None or right is None or abs(left) > 1e4):
        # A deviation of nothing but rounding errors: its quotient means nothing.
        return left == right or expected["n_trades"] > 1
    if left is None or right is None or isinstance(left, int):
        return bool(left == right)
    return math.isclose(left, right, rel_tol=1e-9 if name != "sharpe_per_trade" else 1e-6, abs_tol=1e-8)
