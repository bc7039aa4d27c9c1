"""What a run made: its totals next to the recorded ones, its parameters, and both equity curves."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as w
import polars as pl

from replaylab import frames, plots
from replaylab.notebook.style import cells, note, number, table
from replaylab.replay import ReplayRun
from replaylab.sessions import SessionStore
from replaylab.sweep import recorded_trades
from replaylab.timestamps import to_ns


@dataclass(frozen=True)
class RunResult:
    """Totals as HTML, equity curves as PNG (None without trades)."""

    html: str
    png: bytes | None


def run_result(root: Any, session_id: str, run_id: str) -> RunResult:
    """Read a run and the recorded trades of its session. Slow for a large one: call it in a thread."""
    run = ReplayRun.open(root, session_id, run_id)
    session = SessionStore(root).open(session_id)
    replayed = frames.load_trades(run.root).frame
    end = pl.lit(to_ns(session.manifest.source_date_range.to)).cast(pl.Datetime("ns", "UTC"))
    recorded = recorded_trades(session).filter(pl.col("exit_time") < end)
    outcome = run.record["outcome"]
    name = "this run" if outcome == "finished" else f"this run ({outcome})"
    rows = [_totals(name, replayed), _totals("recorded", recorded)]
    columns = ("", "#trades", "#wins", "#PnL (USD)")
    parts = [
        f'<div class="rl-heading">Result of {escape(session_id)}</div>',
        table(columns, rows),
        note(_params_line(run)),
        f"<br>{note(run.assumptions)}" if run.assumptions else "",
    ]
    curves = {"this run": replayed, "recorded": recorded}
    drawn = {name: trades for name, trades in curves.items() if trades.height}
    return RunResult("".join(parts), plots.equity(drawn, "Realised PnL")._repr_png_() if drawn else None)


def _totals(name: str, trades: pl.DataFrame) -> str:
    pnl = trades["realized_pnl"]
    counts = "".join(f'<td class="num">{count:,}</td>' for count in (trades.height, int((pnl > 0).sum())))
    return f'{cells((name,))}{counts}<td class="num">{number(float(pnl.sum()), 2, signed=True)}</td>'


def _params_line(run: ReplayRun) -> str:
    if run.params_source is None:
        return "parameters: those of the handler"
    changes = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in run.changes.items())
    return f"parameters: {run.params_source}{', changed: ' + changes if changes else ', unchanged'}"


class RunResultView:
    """Shows one result; ``show`` takes what ``run_result`` returned."""

    def __init__(self) -> None:
        self.text = w.HTML()
        self.plot = w.Image(format="png", layout=w.Layout(width="100%", max_width="900px", display="none"))
        self.widget = w.VBox([self.text, self.plot])

    def show(self, result: RunResult) -> None:
        self.text.value = result.html
        self.plot.layout.display = "none" if result.png is None else "block"
        if result.png is not None:
            self.plot.value = result.png

    def clear(self) -> None:
        """Show nothing, while a run is under way."""
        self.text.value = ""
        self.plot.layout.display = "none"
