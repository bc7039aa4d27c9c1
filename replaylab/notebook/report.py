"""The report: one HTML file about a result or a session, for a reader without replaylab and without a network.

>>> lab.report(result, "report.html")                              # doctest: +SKIP
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from replaylab import plots
from replaylab.errors import ReplayError, SessionNotFoundError
from replaylab.fsio import atomic_path
from replaylab.notebook.chart import Chart, library
from replaylab.records import ReplayManifest
from replaylab.replay import ReplayRun
from replaylab.sessions import Session
from replaylab.sweep import Backtest, StudyResult, SweepResult, open_tape
from replaylab.timestamps import iso, now_ns

# Symbols that a report draws.
_CHARTS = 4
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #1c2430;
       background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #d5dae2; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: 3px 10px; text-align: right; }
th { color: #5a6472; font-weight: 600; } tr:nth-child(even) td { background: #f4f6f9; }
td:first-child, th:first-child { text-align: left; } .note { color: #5a6472; } .verdict { font-size: 1.05rem; }
img { max-width: 100%; } .wide { overflow-x: auto; } td.text { text-align: left; max-width: 60rem; }
"""


def write_report(
    subject: Any,
    path: Any,
    open_session: Callable[[Any], Session],
    *,
    run: Any = None,
    symbol: str | None = None,
    cache_dir: Any = None,
) -> Path:
    """Write one HTML file about ``subject``: a result of a sweep, a backtest, a run, or a session. See ``Lab.report``.

    ``open_session`` opens a session by its id. Raises ReplayError for another subject, and for a result of events that
    are not stored as a session.
    """
    from bokeh.embed import components

    if isinstance(subject, ReplayRun):
        named = subject.record["sessionId"]
    elif isinstance(subject, SweepResult | Backtest) and not isinstance(subject, StudyResult):
        named = subject.session_id
    elif isinstance(subject, Session | ReplayManifest | str):
        named = None
    else:
        raise ReplayError(
            "a report is of a session (or its id), a run, a backtest or a sweep of one session; found "
            f"{type(subject).__name__}. Several runs in one chart: "
            "lab.report(session, run={'recorded': None, 'changed': backtest})"
        )
    try:
        session = open_session(subject if named is None else named)
    except SessionNotFoundError:
        if named is None:
            raise
        raise ReplayError(
            f"this result is of no stored session ({named}): save its events with lab.save_session first"
        ) from None
    if run is None:
        if hasattr(subject, "trades_of") and subject.trades_of is not None and subject.frame.height:
            run = {"best row": subject.trades(_best_row(subject)), "recorded": None}
        elif named is not None:
            run = {"this run": subject}
    tape, _ = open_tape(session, cache_dir=cache_dir)
    symbols = list(tape.symbols or session.manifest.symbols)[:_CHARTS] if symbol is None else [symbol]
    charts = [Chart(session, run, symbol=name, cache_dir=cache_dir) for name in symbols]
    for chart in charts:
        chart.prepare_for_file()
    script, bodies = components([chart.figure for chart in charts])
    more = len(tape.symbols) - len(charts)
    left_out = f"<p class='note'>{more} more symbols are not drawn</p>" if more > 0 and not symbol else ""
    parts = [
        f"<h1>{escape(session.id)}</h1>",
        f"<p class='note'>{escape(session.manifest.source_date_range.from_)} to "
        f"{escape(session.manifest.source_date_range.to)}, {', '.join(map(escape, session.manifest.symbols))}, "
        f"{session.manifest.total_events:,} events{_notes_of(session)}</p>",
        *_verdict(subject),
        f"<h2>Prices and trades</h2>{''.join(bodies)}{left_out}",
        *_best(subject),
        *_params(subject, session),
        *_assumptions(subject, session),
        _provenance(subject, session),
    ]
    html = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(session.id)}</title>"
        f"<style>{_STYLE}</style>{library().render()}</head><body>{''.join(parts)}{script}</body></html>"
    )
    with atomic_path(Path(path)) as part:
        part.write_text(html, "utf-8")
    return Path(path)


def _best_row(result: Any) -> int:
    """Return the place of the best row in ``result.frame``."""
    best = plots.as_frame(result.best(1))
    axes = [name for name in result.axes if name in best.columns]
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(best[name][0])) for name in axes)
    return int(plots.as_frame(result.frame).with_row_index("place").filter(same)["place"][0])


def _notes_of(session: Session) -> str:
    notes = session.manifest.notes
    return f"; {escape(notes)}" if notes else ""


def _verdict(subject: Any) -> list[str]:
    """The verdict in its own words, with what it warns of."""
    if not hasattr(subject, "verdict"):
        return []
    verdict = subject.verdict()
    caveats = "".join(f"<li>{escape(line)}</li>" for line in verdict.caveats)
    reasons = "".join(f"<li>{escape(line)}</li>" for line in verdict.reasons)
    # Its sentences stand above it.
    plot = _image(plots.verdict("", (), verdict.arrays)) if verdict.arrays else ""
    return [
        f"<h2>Verdict</h2><p><b>{escape(verdict.title)}</b></p><ul class='verdict'>{reasons}</ul>{plot}",
        f"<ul class='note'>{caveats}</ul>" if caveats else "",
    ]


_BEST = (
    *("net_pnl", "n_trades", "win_rate", "profit_factor", "expectancy", "max_drawdown", "sharpe_per_trade"),
    *("fees", "funding", "avg_duration_s", "enough_trades"),
)


def _best(subject: Any) -> list[str]:
    if hasattr(subject, "best"):
        best = plots.as_frame(subject.best(10))
        shown = [name for name in ("row", *subject.axes, *_BEST) if name in best.columns]
        return [f"<h2>Best combinations</h2>{_table(best.select(list(dict.fromkeys(shown))))}"]
    metrics = subject.totals if isinstance(subject, ReplayRun) else getattr(subject, "metrics", None)
    if isinstance(metrics, Mapping):
        rows = pl.DataFrame({"metric": list(metrics), "value": [_cell(value) for value in metrics.values()]})
        return [f"<h2>Metrics</h2>{_table(rows)}"]
    return []


def _params(subject: Any, session: Session) -> list[str]:
    params = getattr(subject, "params", None) or session.recorded_params
    if params is None:
        return ["<h2>Parameters</h2><p>none were recorded</p>"]
    recorded = session.recorded_params
    rows = [
        (d.name, _cell(getattr(params, d.name)), "" if recorded is None else _cell(getattr(recorded, d.name)))
        for d in type(params).declarations()
    ]
    columns = ["parameter", "used", "recorded"]
    table = _table(pl.DataFrame(rows, schema=columns, orient="row"))
    changed = [row for row in rows if row[2] and row[1] != row[2]]
    first = _table(pl.DataFrame(changed, schema=columns, orient="row")) if changed else ""
    source = escape(str(getattr(subject, "setup", "recorded parameters")))
    details = f"<details><summary>all {len(rows)} parameters</summary>{table}</details>"
    return [f"<h2>Parameters</h2><p class='note'>{source}</p>{first}{details}"]


def _assumptions(subject: Any, session: Session) -> list[str]:
    text = getattr(subject, "assumptions", None)
    findings = "".join(f"<li>{escape(one.message)}</li>" for one in session.check())
    found = f"<ul>{findings}</ul>" if findings else "<p>session.check() has no findings.</p>"
    return [f"<h2>Assumptions</h2><p>{escape(text) if text else 'recorded trades, no model'}</p>{found}"]


def _provenance(subject: Any, session: Session) -> str:
    from replaylab import __version__

    rows = pl.DataFrame(
        [
            ("replaylab", __version__),
            ("written", iso(now_ns())),
            ("session", session.id),
            ("events (SHA-256)", session.digest or ""),
            ("shown", repr(subject)[:300]),
        ],
        schema=["what", "value"],
        orient="row",
    )
    return f"<h2>Provenance</h2>{_table(rows)}"


def _table(frame: pl.DataFrame) -> str:
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in frame.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in frame.iter_rows()
    )
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return "none" if value is None else str(value)


def _image(figure: Any) -> str:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=90, facecolor="white")
    return f"<img alt='plot of the verdict' src='data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}'>"
