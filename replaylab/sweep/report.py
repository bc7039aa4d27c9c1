"""A sweep's result in a notebook cell: best rows, trial count and deflated Sharpe ratio at one glance."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from replaylab.errors import SweepError

if TYPE_CHECKING:
    from replaylab.sweep.result import SweepResult

__all__ = ["html"]

_SHOWN = ("net_pnl", "n_trades", "win_rate", "profit_factor", "max_drawdown", "sharpe_per_trade")


def html(result: SweepResult) -> str:
    """Return the cell's HTML; it computes the trades of the best row, and nothing else."""
    best: pl.DataFrame = pl.DataFrame(result.data).with_row_index("row")
    best = best.sort("net_pnl", descending=True, nulls_last=True, maintain_order=True).head(5)
    columns = ["row", *result.axes, *(name for name in _SHOWN if name in best.columns)]
    head = "".join(f"<th style='text-align:right'>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:right'>{_text(row[name])}</td>" for name in columns)
        + "</tr>"
        for row in best.iter_rows(named=True)
    )
    left = "".join(f" · {count:,} left out: {escape(why)}" for why, count in result.left_out.items())
    return (
        f"<div><b>Sweep of {result.data.height:,} combinations</b> over {escape(str(result.session_id))}{left}"
        f"<br>{result.n_trials:,} trials · {_judgement(result)}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _judgement(result: SweepResult) -> str:
    try:
        found = result.deflated_sharpe()
    except SweepError as error:
        return escape(str(error))
    if found.probability != found.probability:
        return f"best row: too few trades ({found.moments.count}) to judge"
    verdict = (
        "more than luck would show at the 95 % level"
        if found.probability >= 0.95
        else "not distinguishable from the luckiest of that many tries"
    )
    return (
        f"best row: Sharpe per trade {found.sharpe:.3f}, luck alone would show {found.threshold:.3f}, "
        f"<b>deflated Sharpe ratio {found.probability:.2f}</b> ({verdict})"
    )


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else escape(f"{value:,}" if type(value) is int else str(value))
    )
