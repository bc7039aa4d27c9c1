"""What a session contains (counts, density, first rows, rejects, gaps, provenance), and what a run of it made."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as w
import polars as pl

from replaylab import frames, plots
from replaylab.notebook.live import MarketTrack
from replaylab.notebook.style import cells, error, note, number, table
from replaylab.replay import ReplayRun
from replaylab.sessions import Session, SessionStore
from replaylab.sweep import recorded_trades
from replaylab.timestamps import to_ns

_ROWS = 8
_GAPS = 5
_SYMBOLS_DRAWN = 4
_SYMBOLS_COUNTED = 6


@dataclass(frozen=True)
class Detail:
    """A session, described: HTML and plots as PNG."""

    html: str
    images: tuple[bytes, ...]


def describe(session: Session) -> Detail:
    """Read a session and describe it. Slow for a large one: call it in a thread."""
    events: pl.DataFrame = session.events
    manifest = session.manifest
    between = manifest.source_date_range
    parts = [
        f'<div class="rl-heading">{escape(session.id)}</div>',
        note(f"{between.from_} to {between.to} · {events.height:,} events · made {manifest.created_at}"),
        note(f" · {manifest.notes}") if manifest.notes else "",
        *(f"<br>{error(text)}" for text in session.warnings),
        _counts(events),
        _first_rows(events),
        _findings(session),
        _gaps(events),
        _rejects(session.rejects),
        _provenance(session.meta),
    ]
    images = [plots.density(events, "Events over time")] if events.height else []
    track = MarketTrack(session)
    scores = _scores(events)
    for symbol in track.symbols[:_SYMBOLS_DRAWN]:
        part = scores.filter(pl.col("symbol") == symbol)
        if part.height:
            images.append(plots.scores(part, title=symbol, prices=track.until(symbol)))
    return Detail("".join(parts), tuple(figure._repr_png_() for figure in images))


def _counts(events: pl.DataFrame) -> str:
    """A row per type and a column per symbol, the symbols with most events first."""
    counts = events.group_by("type", pl.col("symbol").fill_null("all symbols")).len()
    totals = (
        counts.group_by("symbol").agg(pl.col("len").sum()).sort(["len", "symbol"], descending=[True, False])
    )
    symbols = totals["symbol"].to_list()
    by_cell = {(kind, symbol): count for kind, symbol, count in counts.rows()}
    rows = []
    for kind in sorted({kind for kind, _ in by_cell}):
        found = [by_cell.get((kind, symbol), 0) for symbol in symbols]
        shown = [
            *found[:_SYMBOLS_COUNTED],
            *([sum(found[_SYMBOLS_COUNTED:])] if len(found) > _SYMBOLS_COUNTED else []),
        ]
        numbers = "".join(f'<td class="num">{count:,}</td>' for count in [*shown, sum(found)])
        rows.append(cells((kind,)) + numbers)
    names = symbols[:_SYMBOLS_COUNTED] + (["others"] if len(symbols) > _SYMBOLS_COUNTED else [])
    columns = ("type", *(f"#{name}" for name in names), "#total")
    return '<div class="rl-heading">Events</div>' + table(columns, rows, empty="no events")


def _first_rows(events: pl.DataFrame) -> str:
    rows = [
        cells((_time(stamp), kind, symbol or "", payload if len(payload) <= 90 else payload[:87] + "..."))
        for stamp, kind, symbol, payload in events.head(_ROWS)
        .select("timestamp", "type", "symbol", "payload")
        .rows()
    ]
    return '<div class="rl-heading">First events</div>' + table(
        ("time (UTC)", "type", "symbol", "payload"), rows
    )


def _gaps(events: pl.DataFrame) -> str:
    if events.height < 2:
        return ""
    gaps = (
        events.select(
            start=pl.col("timestamp").shift(1),
            seconds=pl.col("timestamp").diff().dt.total_nanoseconds() / 1e9,
        )
        .drop_nulls()
        .sort("seconds", descending=True)
        .head(_GAPS)
    )
    rows = [f"{cells((_time(start),))}<td class='num'>{seconds:,.3f}</td>" for start, seconds in gaps.rows()]
    return '<div class="rl-heading">Longest gaps</div>' + table(("after (UTC)", "#seconds"), rows)


def _findings(session: Session) -> str:
    rows = [cells((one.level, one.kind, one.message)) for one in session.check()]
    return '<div class="rl-heading">Findings</div>' + table(("level", "kind", "finding"), rows, empty="none")


def _rejects(rejects: pl.DataFrame) -> str:
    if not rejects.height:
        return ""
    rows = [cells(row) for row in rejects.head(_ROWS).select("file", "line", "reason").rows()]
    return f'<div class="rl-heading">{rejects.height:,} lines could not be read</div>' + table(
        ("file", "line", "reason"), rows
    )


def _provenance(meta: dict[str, Any]) -> str:
    names = ("file", "bytes", "lines", "rows", "rejects", "taken")
    sources = [source for source in meta.get("sources") or [] if isinstance(source, dict)]
    rows = [cells([source.get(name, "") for name in names]) for source in sources]
    version = meta.get("replaylabVersion", "?")
    title = '<div class="rl-heading">Provenance</div>'
    if not rows:
        return title + note("this session has no provenance (it was not built by replaylab)")
    return title + table(names, rows) + note(f"replaylab {version}")


def _scores(events: pl.DataFrame) -> pl.DataFrame:
    return (
        events.filter((pl.col("type") == "SCORING_UPDATE") & pl.col("symbol").is_not_null())
        .with_columns(score=pl.col("payload").str.json_path_match("$.score").cast(pl.Float64, strict=False))
        .drop_nulls("score")
        .select("timestamp", "symbol", "score")
    )


def _time(stamp: Any) -> str:
    return f"{stamp:%Y-%m-%d %H:%M:%S.%f}"[:-3]


class DetailView:
    """Shows one session; ``show`` takes what ``describe`` returned."""

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.text = w.HTML(value=note('choose a session and press "Load into detail"'))
        self.images = w.VBox([])
        self.widget = w.VBox([self.text, self.images])

    def loading(self, session_id: str) -> None:
        self.session_id = session_id
        self.text.value = note(f"reading {session_id} ...")
        self._set_images(())

    def show(self, detail: Detail) -> None:
        self.text.value = detail.html
        self._set_images(detail.images)

    def fail(self, problem: Exception) -> None:
        self.text.value = error(str(problem))

    def _set_images(self, images: tuple[bytes, ...]) -> None:
        old = self.images.children
        layout = {"width": "100%", "max_width": "900px"}
        self.images.children = tuple(w.Image(value=png, format="png", layout=layout) for png in images)
        for image in old:
            image.close()


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
