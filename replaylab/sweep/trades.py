"""The trades of one combination, in full: what ``result.trades(row)`` and ``backtest`` show."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from replaylab.params import TradingParams
from replaylab.sweep.figures import figures
from replaylab.sweep.grid import Grid
from replaylab.sweep.kernel_loop import TRADE, run_loop
from replaylab.sweep.rules import RAW, REASONS
from replaylab.sweep.tape import Tape

__all__ = ["allowed_table", "trades_of"]


def allowed_table(tape: Tape, sets: list[tuple[str, ...] | None]) -> Any:
    """Return [regime set, regime + 1] → whether entries are allowed; column 0 is "no regime yet"."""
    table = np.zeros((max(1, len(sets)), len(tape.regimes) + 1), dtype=np.bool_)
    for k, names in enumerate(sets):
        for name in names or ():
            if name in tape.regimes:
                table[k, tape.regimes.index(name) + 1] = True
    return table


def trades_of(tape: Tape, params: TradingParams) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the trades of one parameter set, in order of their exits, and its figures."""
    grid = Grid({}, {}, 1, {})
    packed = grid.pack(params).params
    allowed = allowed_table(tape, grid.regime_sets(params))
    raw = np.zeros((1, RAW))
    # Every trade has a score that it came from, and a price that filled it.
    recorded = np.zeros(min(len(tape.score), len(tape.price)) + 1, dtype=TRADE)
    n = run_loop(tape.arrays(), allowed, packed, raw, recorded)
    return _frame(tape, params, recorded[:n]), figures(raw).row(0, named=True)


def _frame(tape: Tape, params: TradingParams, t: Any) -> pl.DataFrame:
    utc = pl.Datetime("ns", "UTC")
    sides = np.where(t["direction"] > 0, "LONG", "SHORT")
    return pl.DataFrame(
        {
            "symbol": pl.Series([tape.symbols[k] for k in t["symbol"]], dtype=pl.String),
            "side": pl.Series(sides.tolist(), dtype=pl.String),
            "entry_index": t["entry_index"].astype(np.int64),
            "exit_index": t["exit_index"].astype(np.int64),
            "entry_time": pl.Series(np.ascontiguousarray(t["entry_ts"])).cast(utc),
            "exit_time": pl.Series(np.ascontiguousarray(t["exit_ts"])).cast(utc),
            "entry_price": np.ascontiguousarray(t["entry_price"]),
            "close_price": np.ascontiguousarray(t["close_price"]),
            "qty": np.ascontiguousarray(t["qty"]),
            "leverage": pl.Series([params.leverage] * len(t), dtype=pl.Float64),
            "reason": pl.Series([REASONS[k] for k in t["reason"]], dtype=pl.String),
            "tp1_filled": t["tp1_filled"] == 1,
            "fees": np.ascontiguousarray(t["fees"]),
            "realized_pnl": np.ascontiguousarray(t["realized_pnl"]),
            "mfe": np.ascontiguousarray(t["mfe"]),
            "mae": np.ascontiguousarray(t["mae"]),
            "duration_seconds": (t["exit_ts"] - t["entry_ts"]) / 1e9,
        }
    )
