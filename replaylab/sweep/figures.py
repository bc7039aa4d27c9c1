"""The figures of a result frame from a kernel's raw sums; formulas in ``docs/sweep.md``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.sweep import fills
from replaylab.sweep.fills import REASONS

__all__ = ["COUNTS", "FIGURES", "figures"]

COUNTS = tuple(f"n_{reason.lower()}" for reason in REASONS)
FIGURES = (
    "n_trades",
    "n_wins",
    "win_rate",
    "gross_pnl",
    "fees",
    "net_pnl",
    "profit_factor",
    "expectancy",
    "max_drawdown",
    "sharpe_per_trade",
    "avg_duration_s",
    "exposure_s",
    *COUNTS,
)


def figures(raw: npt.NDArray[np.float64]) -> pl.DataFrame:
    """Return a frame with the columns ``FIGURES``, a row per row of raw sums; ratios without trades are null."""
    n = raw[:, fills.N]
    profit, loss = raw[:, fills.PROFIT], raw[:, fills.LOSS]
    exposure = raw[:, fills.EXPOSURE] / 1e9
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = raw[:, fills.NET] / n
        variance = (raw[:, fills.SQUARES] - raw[:, fills.SUM] ** 2 / n) / (n - 1.0)
        # Rounding may leave a variance a hair below zero.
        sharpe = np.where(variance > 0.0, mean / np.sqrt(np.maximum(variance, 0.0)), np.nan)
        ratios = {
            "win_rate": raw[:, fills.WINS] / n,
            "profit_factor": np.where((loss == 0.0) & (profit == 0.0), np.nan, profit / loss),
            "expectancy": mean,
            "sharpe_per_trade": sharpe,
            "avg_duration_s": exposure / n,
        }
    plain: dict[str, Any] = {
        "n_trades": n.astype(np.int32),
        "n_wins": raw[:, fills.WINS].astype(np.int32),
        "gross_pnl": raw[:, fills.GROSS],
        "fees": raw[:, fills.FEES],
        "net_pnl": raw[:, fills.NET],
        "max_drawdown": raw[:, fills.DRAWDOWN],
        "exposure_s": exposure,
    }
    for k, name in enumerate(COUNTS):
        plain[name] = raw[:, fills.BY_REASON + k].astype(np.int32)
    columns = {
        name: plain[name] if name in plain else pl.Series(name, ratios[name], nan_to_null=True)
        for name in FIGURES
    }
    return pl.DataFrame(columns)
