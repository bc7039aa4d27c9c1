"""The interactive chart: prices, trades, levels, signals, regimes, holes and funding of a session, to zoom and hover.

::

    lab.chart(session)                           # with the recorded trades
    lab.chart(session, run)                      # with those of a run, a backtest, or any frame of trades
    lab.chart(session, {"recorded": None, "wider stop": backtest})           # two over each other

In a notebook the prices in view are fetched again at every zoom, from a pyramid of minima and maxima that is kept in
the cache folder, so a chart of ten million prices shows every extreme at every scale. ``save`` writes one HTML file.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from html import escape
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab import frames
from replaylab.errors import ReplayError, SessionNotFoundError, did_you_mean
from replaylab.fsio import atomic_path
from replaylab.ml import mark_outs
from replaylab.plots import CYCLE, INK, LONG, LOSS, SHORT, WIN, as_frame, with_entry_times
from replaylab.replay import ReplayControl
from replaylab.sessions import Session
from replaylab.sweep import open_tape, recorded_trades

Array = npt.NDArray[Any]
# Prices that a view shows at the most: two for each of so many bins.
BINS = 1_500
# With at most so many price events in view, best bid and ask are drawn too.
_QUOTES = 20_000
_STEP = 64
_MARKS = (1.0, 5.0, 30.0)
_HOVER = (
    ("side", "@side"),
    ("entry", "@entry_price{0.[0000000]} at @entry_time{%H:%M:%S.%3N}"),
    ("exit", "@close_price{0.[0000000]} at @exit_time{%H:%M:%S.%3N}"),
    ("qty", "@qty{0.[000000]}"),
    ("PnL", "@pnl{+0.00} USD, fees @fees{0.00}"),
    ("reason", "@reason"),
    ("MFE / MAE", "@mfe{0.00} / @mae{0.00} USD"),
    ("mark-outs 1, 5, 30 s", "@mark_out_1s{0.0}, @mark_out_5s{0.0}, @mark_out_30s{0.0} bps"),
)
_COLUMNS = ("entry_time", "symbol", "side", "pnl", "reason", "entry_price", "close_price", "qty", "fees")
_LEVELS = {"STOP_MARKET": LOSS, "LIMIT": WIN}


class Pyramid:
    """Places of the lowest and the highest of every 64, 4,096, ... values, for a view of any width.

    >>> Pyramid(np.array([3.0, 1.0, 2.0])).view(0, 3, bins=10).tolist()
    [0, 1, 2]
    """

    def __init__(self, values: Array, folder: Path | None = None, name: str = "") -> None:
        self.values = values
        self._levels: list[tuple[Array, Array]] = []
        path = None if folder is None or len(values) < _STEP * BINS else folder / f"{name}.npz"
        if path is not None and self._load(path):
            return
        below = np.arange(len(values))
        low = high = below
        while len(low) > _STEP * 4:
            low, high = self._reduced(low, np.argmin), self._reduced(high, np.argmax)
            self._levels.append((low, high))
        if path is not None:
            # A cache that cannot be written costs time at the next opening, and nothing else.
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as part, part.open("wb") as file:
                    np.savez(file, *[places for level in self._levels for places in level])

    def view(self, start: int, end: int, bins: int = BINS) -> Array:
        """Return the places to draw of values[start:end]: the lowest and the highest of each bin, in order."""
        if end - start <= 2 * bins:
            return np.arange(start, end)
        scale = (end - start) / bins
        depth = 0
        while depth < len(self._levels) and _STEP ** (depth + 1) * 4 <= scale:
            depth += 1
        size = _STEP**depth
        first, last = -(-start // size), end // size
        low, high = self._levels[depth - 1] if depth else (None, None)
        edges = np.unique(np.linspace(first, last, bins + 1).astype(np.int64))[:-1]
        if low is None or high is None:
            part = self.values[first:last]
            cuts = np.append(edges - first, last - first)
            places = [
                (first + a + part[a:b].argmin(), first + a + part[a:b].argmax()) for a, b in pairwise(cuts)
            ]
            chosen = np.array(places).ravel()
        else:
            cuts = np.append(edges, last)
            ends = list(pairwise(cuts))
            chosen = np.array(
                [low[a + self.values[low[a:b]].argmin()] for a, b in ends]
                + [high[a + self.values[high[a:b]].argmax()] for a, b in ends]
            )
        return np.unique(np.concatenate([[start], chosen, [end - 1]]))

    def _reduced(self, places: Array, best: Callable[..., Array]) -> Array:
        whole = len(places) // _STEP * _STEP
        blocks = places[:whole].reshape(-1, _STEP)
        found = blocks[np.arange(len(blocks)), best(self.values[blocks], axis=1)]
        if whole == len(places):
            return found
        rest = places[whole:]
        return np.append(found, rest[int(best(self.values[rest]))])

    def _load(self, path: Path) -> bool:
        try:
            # Read whole: an error of a damaged archive would leave the file open.
            stored = np.load(BytesIO(path.read_bytes()))
            arrays = [stored[key] for key in stored.files]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return False
        if not arrays or any(a.min() < 0 or a.max() >= len(self.values) for a in arrays):
            return False
        if len(arrays[0]) != -(-len(self.values) // _STEP):
            return False
        self._levels = list(zip(arrays[::2], arrays[1::2], strict=True))
        return True


class Chart:
    """One symbol of a session. In a notebook it displays itself; ``figure`` is the Bokeh layout.

    ``show(start, end)`` zooms (ISO times, datetimes or nanoseconds), ``follow()`` binds it to the replay that runs on
    the data root: a cursor shows where it is, a click seeks. ``save(path)`` writes one HTML file without a network.
    """

    def __init__(
        self,
        session: Session,
        run: Any = None,
        *,
        symbol: str | None = None,
        depth: bool = False,
        price_source: str = "auto",
        cache_dir: Any = None,
        width: int | None = None,
        height: int = 420,
    ) -> None:
        self.session = session
        self._tape, _ = open_tape(session, price_source, cache_dir)
        self.symbol = _chosen(symbol, self._tape.symbols)
        k = self._tape.symbols.index(self.symbol)
        a = self._tape.arrays
        self._rows = slice(int(a.price_from[k]), int(a.price_from[k + 1]))
        self._price, self._ts = a.price[self._rows], a.price_ts[self._rows]
        folder = None if cache_dir is None else Path(cache_dir) / "charts"
        about = f"{session.digest}-{self.symbol}-{self._tape.sources[k]}"
        self._pyramid = Pyramid(self._price, folder, hashlib.sha256(about.encode()).hexdigest()[:24])
        self._overlays = _overlays(session, run, self.symbol)
        self._depth = depth
        self._lock = threading.Lock()
        self._follower: _Follower | None = None
        self._build(width, height)

    def __repr__(self) -> str:
        trades = ", ".join(f"{frame.height:,} trades ({name})" for name, (frame, _) in self._overlays.items())
        return f"<Chart of {self.session.id}, {self.symbol}: {len(self._price):,} prices, {trades}>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)  # type: ignore[no-untyped-call]

    @property
    def widget(self) -> Any:
        """The chart as an ipywidget; zooming fetches prices from this process."""
        from jupyter_bokeh import BokehModel

        if not hasattr(self, "_widget"):
            self._bind()
            self._widget = BokehModel(self.figure)
        return self._widget

    def show(self, start: Any, end: Any) -> None:
        """Zoom to a range of time."""
        from replaylab.timestamps import to_ns

        low, high = (value if isinstance(value, int) else to_ns(value) for value in (start, end))
        self._plot.x_range.start, self._plot.x_range.end = low / 1e6, high / 1e6
        self._refresh(low / 1e6, high / 1e6)

    def follow(self, control: ReplayControl | None = None) -> None:
        """Let a cursor follow the replay that runs on the data root, and let a click on the chart seek it."""
        self.unfollow()
        self._follower = _Follower(self, control or ReplayControl(self.session.root))

    def unfollow(self) -> None:
        """Stop following a replay."""
        if self._follower is not None:
            self._follower.stop()
            self._follower = None

    def save(self, path: Any) -> Path:
        """Write one HTML file that needs no network; the prices are those of the whole session at screen resolution."""
        from bokeh.embed import file_html
        from bokeh.resources import INLINE

        self._for_file()
        with atomic_path(Path(path)) as part:
            part.write_text(file_html(self.figure, INLINE, title=f"{self.session.id} {self.symbol}"), "utf-8")
        return Path(path)

    def _for_file(self) -> None:
        """Take more prices than a screen shows: a file has no process behind it to ask for them when it is zoomed."""
        if hasattr(self, "_widget"):
            raise ReplayError("this chart is shown in a notebook: make another one to save it")
        self._refresh(float(self._plot.x_range.start), float(self._plot.x_range.end), 8 * BINS)

    # Building.

    def _build(self, width: int | None, height: int) -> None:
        from bokeh.layouts import column
        from bokeh.models import ColumnDataSource, Span
        from bokeh.plotting import figure

        start, end = (int(self._ts[0]) / 1e6, int(self._ts[-1]) / 1e6) if len(self._ts) else (0.0, 1.0)
        margin = 0.01 * (end - start) or 1.0
        size = {"width": width} if width else {"sizing_mode": "stretch_width"}
        tools = "xpan,xwheel_zoom,xbox_zoom,undo,reset,tap,save"
        title = f"{self.symbol}, {self.session.id} (UTC)"
        self._plot = figure(
            x_axis_type="datetime",
            x_range=(start - margin, end + margin),
            height=height,
            tools=tools,
            active_scroll="xwheel_zoom",
            title=title,
            output_backend="canvas",
            **size,
        )
        self._plot.yaxis.axis_label = "price"
        self._prices = ColumnDataSource({"x": [], "y": []})
        self._bids, self._asks = (ColumnDataSource({"x": [], "y": []}) for _ in range(2))
        self._add_holes()
        if self._depth:
            self._add_depth()
        self._plot.line("x", "y", source=self._prices, color=INK, line_width=1.2, legend_label="price")
        for source, colour, name in ((self._bids, LONG, "bid"), (self._asks, SHORT, "ask")):
            self._plot.step("x", "y", source=source, color=colour, alpha=0.5, mode="after", legend_label=name)
        self._add_funding()
        tables = [self._add_trades(*one, k) for k, one in enumerate(self._overlays.items())]
        self._cursor = Span(location=float("nan"), dimension="height", line_color=CYCLE[3], line_width=2)
        self._plot.add_layout(self._cursor)
        self._plot.legend.click_policy = "hide"
        self._plot.legend.location = "top_left"
        self._plot.legend.background_fill_alpha = 0.6
        parts: list[Any] = [self._plot]
        signals = self._signals(size)
        if signals is not None:
            parts.append(signals)
        parts += tables
        self.figure = column(*parts, **({} if width else {"sizing_mode": "stretch_width"}))
        self._clicked = ColumnDataSource({"x": []})
        self._refresh(start - margin, end + margin)

    def _bind(self) -> None:
        """Fetch prices at each zoom, and keep the time of a click."""
        from bokeh.events import DoubleTap
        from bokeh.models import CustomJS

        def zoomed(attribute: str, old: Any, new: Any) -> None:
            x = self._plot.x_range
            self._refresh(float(x.start), float(x.end))

        for attribute in ("start", "end"):
            self._plot.x_range.on_change(attribute, zoomed)
        self._plot.js_on_event(
            DoubleTap, CustomJS(args={"s": self._clicked}, code="s.data = {x: [cb_obj.x]}")
        )
        self.figure.tags = [self._clicked]

    def _refresh(self, low: float, high: float, bins: int = BINS) -> None:
        """Show the prices between two times (ms since 1970)."""
        with self._lock:
            first = max(int(np.searchsorted(self._ts, int(low * 1e6))) - 1, 0)
            last = min(int(np.searchsorted(self._ts, int(high * 1e6), side="right")) + 1, len(self._ts))
            places = self._pyramid.view(first, last, bins)
            self._prices.data = {"x": self._ts[places] / 1e6, "y": self._price[places]}
            quotes = self._tape.arrays.quote
            near = last - first <= _QUOTES and len(quotes) > 0
            part = quotes[self._rows][first:last] if near else None
            for source, name in ((self._bids, "bid"), (self._asks, "ask")):
                if part is None:
                    source.data = {"x": [], "y": []}
                else:
                    keep = part["state"] >= 0
                    source.data = {"x": self._ts[first:last][keep] / 1e6, "y": part[name][keep]}

    def _add_holes(self) -> None:
        """Shade what is longer than the model's hole."""
        from bokeh.models import BoxAnnotation

        recorded = self.session.recorded_params
        gap = recorded.max_gap_s if recorded is not None else 900.0
        pauses = np.diff(self._ts)
        for place in np.flatnonzero(pauses > (np.inf if gap is None else gap * 1e9)):
            box = BoxAnnotation(
                left=self._ts[place] / 1e6, right=self._ts[place + 1] / 1e6, fill_color=INK, fill_alpha=0.18
            )
            self._plot.add_layout(box)

    def _add_funding(self) -> None:
        from bokeh.models import ColumnDataSource, HoverTool

        a, k = self._tape.arrays, self._tape.symbols.index(self.symbol)
        paid = a.funding[int(a.funding_from[k]) : int(a.funding_from[k + 1])]
        if not len(paid):
            return
        source = ColumnDataSource({"x": paid["ts"] / 1e6, "y": paid["mark"], "rate": paid["rate"] * 100})
        marks = self._plot.scatter("x", "y", source=source, marker="diamond", size=10, color=CYCLE[5])
        tips = [("funding", "@rate{0.0000} % at @y")]
        self._plot.add_tools(HoverTool(renderers=[marks], tooltips=tips))

    def _add_trades(self, name: str, overlay: tuple[pl.DataFrame, pl.DataFrame | None], number: int) -> Any:
        """Draw trades with their levels; return the table that is linked with them."""
        from bokeh.models import (
            ColumnDataSource,
            CustomJS,
            DataTable,
            DateFormatter,
            HoverTool,
            NumberFormatter,
            TableColumn,
        )

        trades, orders = overlay
        table = _with_marks(self.session, trades)
        rising = (table["side"] == "LONG").to_numpy()
        win = (table["pnl"].fill_null(0.0) >= 0).to_numpy()
        faint = 1.0 if number == 0 else 0.55
        data: dict[str, Any] = {
            column: table[column].dt.timestamp("ns").to_numpy() / 1e6
            if isinstance(table.schema[column], pl.Datetime)
            else table[column].to_list()
            for column in table.columns
        }
        data["angle"] = np.where(rising, 0.0, np.pi)
        data["colour"] = np.where(rising, LONG, SHORT)
        data["result"] = np.where(win, WIN, LOSS)
        source = ColumnDataSource(data)
        label = f"{name}: {table.height:,} trades, {float(table['pnl'].sum()):+,.2f} USD"
        self._plot.segment(
            "entry_time", "entry_price", "exit_time", "close_price",
            source=source, color="result", line_width=2, alpha=0.8 * faint, legend_label=label,
        )  # fmt: skip
        entries = self._plot.scatter(
            "entry_time", "entry_price",
            source=source, marker="triangle", angle="angle", size=11, color="colour", alpha=faint, legend_label=label,
        )  # fmt: skip
        exits = self._plot.scatter(
            "exit_time", "close_price",
            source=source, marker="x" if number == 0 else "cross", size=9, color="result", alpha=faint,
            line_width=2, legend_label=label,
        )  # fmt: skip
        formats = {"@entry_time": "datetime", "@exit_time": "datetime"}
        self._plot.add_tools(HoverTool(renderers=[entries, exits], tooltips=list(_HOVER), formatters=formats))
        if orders is not None:
            self._add_orders(orders, label, faint)
        # A row that is chosen moves the chart; a trade that is tapped chooses its row.
        source.selected.js_on_change(
            "indices",
            CustomJS(
                args={"s": source, "x": self._plot.x_range},
                code="""
                const i = cb_obj.indices[0]
                if (i === undefined) return
                const a = s.data.entry_time[i], b = s.data.exit_time[i]
                if (a >= x.start && b <= x.end && b - a > 0.2 * (x.end - x.start)) return
                const m = Math.max(3 * (b - a), 5000)
                x.start = a - m
                x.end = b + m
                """,
            ),
        )
        moment = DateFormatter(format="%m-%d %H:%M:%S.%3N")
        plain = NumberFormatter(format="0.[0000000]")
        kinds = {
            "entry_time": moment,
            "pnl": NumberFormatter(format="+0.00"),
            "fees": NumberFormatter(format="0.00"),
        }
        kinds |= dict.fromkeys(("entry_price", "close_price", "qty"), plain)
        columns = [
            TableColumn(field=c, title=c.replace("_", " "), **({"formatter": kinds[c]} if c in kinds else {}))
            for c in _COLUMNS
        ]
        return DataTable(
            source=source, columns=columns, height=min(220, 30 + 25 * max(table.height, 1)),
            sizing_mode="stretch_width", index_position=None, name=f"trades-{number}",
        )  # fmt: skip

    def _add_orders(self, orders: pl.DataFrame, label: str, faint: float) -> None:
        """Draw resting orders as lines from when they were sent to their end, and partial exits where they filled."""
        from bokeh.models import ColumnDataSource

        mine = orders.filter(pl.col("symbol") == self.symbol).with_columns(
            pl.col("timestamp").dt.timestamp("ns") / 1e6, status=pl.col("status").str.to_uppercase()
        )
        resting = mine.filter(pl.col("type").is_in(list(_LEVELS)))
        level = pl.coalesce("trigger_price", "price")
        spans = (
            resting.group_by("client_order_id", maintain_order=True)
            .agg(
                start=pl.col("timestamp").min(),
                end=pl.col("timestamp").max(),
                level=level.first(),
                kind=pl.col("type").first(),
            )
            .filter((pl.col("end") > pl.col("start")) & pl.col("level").is_not_null())
        )
        colours = [_LEVELS[kind] for kind in spans["kind"]]
        source = ColumnDataSource(
            {**{name: spans[name].to_list() for name in ("start", "end", "level")}, "colour": colours}
        )
        self._plot.segment(
            "start", "level", "end", "level",
            source=source, color="colour", line_dash="dotted", alpha=0.8 * faint, legend_label=label,
        )  # fmt: skip
        parts = mine.filter(
            (pl.col("status") == "FILLED") & pl.col("reduce_only") & (pl.col("type") == "LIMIT")
        )
        self._plot.scatter(
            parts["timestamp"].to_list(), parts["avg_fill_price"].to_list(),
            marker="circle", size=6, color=WIN, alpha=faint, legend_label=label,
        )  # fmt: skip

    def _signals(self, size: Mapping[str, Any]) -> Any:
        """Return the plot of the scores over the regimes; None without signals."""
        from bokeh.models import ColumnDataSource, HoverTool
        from bokeh.plotting import figure

        a, k = self._tape.arrays, self._tape.symbols.index(self.symbol)
        rows = slice(int(a.score_from[k]), int(a.score_from[k + 1]))
        score, ts = a.score[rows], a.score_ts[rows]
        if not len(score):
            return None
        plot = figure(
            x_axis_type="datetime", x_range=self._plot.x_range, height=130, tools="xpan,xwheel_zoom,reset",
            active_scroll="xwheel_zoom", **size,
        )  # fmt: skip
        plot.yaxis.axis_label = "score"
        regime = a.score_regime[rows]
        starts = np.flatnonzero(np.diff(regime, prepend=regime[0] - 1))
        ends = np.append(starts[1:], len(regime) - 1)
        names = [self._tape.regimes[n] if n >= 0 else "none yet" for n in regime[starts]]
        known = sorted(set(names))
        bands = ColumnDataSource(
            {
                "left": ts[starts] / 1e6,
                "right": ts[ends] / 1e6,
                "top": [float(np.max(score))] * len(starts),
                "bottom": [float(np.min(score))] * len(starts),
                "regime": names,
                "colour": [CYCLE[known.index(name) % len(CYCLE)] for name in names],
            }
        )
        drawn = plot.quad("left", "right", "top", "bottom", source=bands, color="colour", alpha=0.18)
        places = Pyramid(score).view(0, len(score))
        plot.step(ts[places] / 1e6, score[places], mode="after", color=INK, line_width=1)
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("regime", "@regime")]))
        return plot

    def _add_depth(self) -> None:
        """Draw the recorded book as an image: quantity by price and time, on a logarithmic scale."""
        a = self._tape.arrays
        quotes: Any = a.quote[self._rows] if len(a.quote) else np.empty(0)
        if not len(quotes) or not (quotes["state"] >= 0).any():
            raise ReplayError(
                f"{self.session.id} has no book of {self.symbol}: depth=True draws the recorded one"
            )
        columns, levels = 600, 120
        at = np.linspace(0, len(quotes) - 1, columns).astype(np.int64)
        low, high = float(self._price.min()), float(self._price.max())
        margin = 0.1 * (high - low) or low * 1e-4
        low, high = low - margin, high + margin
        image = np.zeros((levels, columns))
        for column, place in enumerate(at):
            state = int(quotes["state"][place])
            if state < 0:
                continue
            rows = np.arange(int(a.book_from[2 * state]), int(a.book_from[2 * state + 2]))
            price, qty = a.book_levels[2 * rows], a.book_levels[2 * rows + 1]
            cell = ((price - low) / (high - low) * levels).astype(np.int64)
            inside = (cell >= 0) & (cell < levels)
            np.add.at(image[:, column], cell[inside], qty[inside])
        first, last = self._ts[0] / 1e6, self._ts[-1] / 1e6
        self._plot.image(
            [np.log1p(image)], x=first, y=low, dw=last - first, dh=high - low, palette="Greys256", alpha=0.45
        )


class _Follower:
    """Moves the cursor to where the running replay is, and seeks it where the chart is double-clicked."""

    def __init__(self, chart: Chart, control: ReplayControl) -> None:
        self._chart, self._control = chart, control
        self._ended = threading.Event()
        self._wanted: float | None = None
        chart._clicked.on_change("data", self._click)
        threading.Thread(target=self._run, name="chart-cursor", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()
        self._chart._clicked.remove_on_change("data", self._click)

    def _click(self, attribute: str, old: Any, new: Any) -> None:
        # The widget's thread only notes the time; the cursor's thread seeks.
        if new.get("x"):
            self._wanted = float(new["x"][0])

    def _run(self) -> None:
        from replaylab.timestamps import iso, parse_ns

        while not self._ended.wait(0.2):
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                with contextlib.suppress(ReplayError):
                    self._control.seek(iso(round(wanted * 1e6)))
            status = self._control.status()
            moment = status.last_event_timestamp if status.running else None
            if moment is not None:
                self._chart._cursor.location = parse_ns(moment) / 1e6


# ---- Data --------------------------------------------------------------------------------------------------


def _chosen(symbol: str | None, symbols: Iterable[str]) -> str:
    known = list(symbols)
    if not known:
        raise ReplayError("the session has no prices to draw: build it with MARKET_TRADE or MARKET_BOOK")
    if symbol is None:
        return known[0]
    if symbol not in known:
        raise ReplayError(
            f"no prices of {symbol!r}: there are {', '.join(known)}.{did_you_mean(symbol, known)}"
        )
    return symbol


def _overlays(session: Session, run: Any, symbol: str) -> dict[str, tuple[pl.DataFrame, pl.DataFrame | None]]:
    """Return trades and orders of each run by name; None stands for the recorded ones."""
    runs = dict(run) if isinstance(run, Mapping) else {"recorded" if run is None else "run": run}
    found = {}
    for name, one in runs.items():
        if one is None:
            span, names = session.manifest.source_date_range, list(session.manifest.symbols)
            trades = recorded_trades(session)
            orders: pl.DataFrame | None = frames.load_orders(session.root, span.from_, span.to, names).frame
        else:
            trades = as_frame(getattr(one, "trades", one))
            given = getattr(one, "orders", None)
            orders = None if given is None else as_frame(given)
        found[str(name)] = (_plain(trades).filter(pl.col("symbol") == symbol), orders)
    return found


def _plain(trades: pl.DataFrame) -> pl.DataFrame:
    """Return trades of any source with the chart's columns; what a source does not have is null."""
    frame = with_entry_times(trades).rename({"realized_pnl": "pnl"}, strict=False)
    wanted: dict[str, Any] = {
        **dict.fromkeys(("symbol", "side", "reason"), pl.String),
        **dict.fromkeys(("entry_time", "exit_time"), pl.Datetime("ns", "UTC")),
        **dict.fromkeys(("entry_price", "close_price", "qty", "pnl", "fees", "mfe", "mae"), pl.Float64),
    }
    return frame.select(
        pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in wanted.items()
    )


def _with_marks(session: Session, trades: pl.DataFrame) -> pl.DataFrame:
    """Add the mark-outs of each trade, in bps."""
    if trades.is_empty():
        return trades.with_columns(pl.lit(None, pl.Float64).alias(f"mark_out_{s:g}s") for s in _MARKS)
    found = mark_outs(session, trades, _MARKS)
    return trades.with_columns(as_frame(found)[f"mark_out_{s:g}s"] for s in _MARKS)


# ---- The report --------------------------------------------------------------------------------------------

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

    ``open_session`` opens a session by its id. Raises ReplayError for a result without a session.
    """
    from bokeh.embed import components
    from bokeh.resources import Resources

    named = getattr(subject, "session_id", None) if not isinstance(subject, Session) else None
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
        elif named is not None and hasattr(subject, "trades"):
            run = {"this run": subject}
    tape, _ = open_tape(session, cache_dir=cache_dir)
    symbols = (
        list(tape.symbols[:_CHARTS]) if symbol is None and tape.symbols else [_chosen(symbol, tape.symbols)]
    )
    charts = [Chart(session, run, symbol=name, cache_dir=cache_dir) for name in symbols]
    for chart in charts:
        chart._for_file()
    script, bodies = components([chart.figure for chart in charts])
    more = len(tape.symbols) - len(charts)
    left_out = f"<p class='note'>{more} more symbols are not drawn</p>" if more > 0 and not symbol else ""
    # Without the parts for formulas and WebGL, which are most of it.
    library = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
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
        f"<style>{_STYLE}</style>{library.render()}</head><body>{''.join(parts)}{script}</body></html>"
    )
    with atomic_path(Path(path)) as part:
        part.write_text(html, "utf-8")
    return Path(path)


def _best_row(result: Any) -> int:
    """Return the place of the best row in ``result.frame``."""
    best = as_frame(result.best(1))
    axes = [name for name in result.axes if name in best.columns]
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(best[name][0])) for name in axes)
    return int(as_frame(result.frame).with_row_index("place").filter(same)["place"][0])


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
    plot = _image(verdict.plot())
    return [
        f"<h2>Verdict: {escape(verdict.level)}</h2><ul class='verdict'>{reasons}</ul>{plot}",
        f"<ul class='note'>{caveats}</ul>" if caveats else "",
    ]


_BEST = (
    *("net_pnl", "n_trades", "win_rate", "profit_factor", "expectancy", "max_drawdown", "sharpe_per_trade"),
    *("fees", "funding", "avg_duration_s", "enough_trades"),
)


def _best(subject: Any) -> list[str]:
    if hasattr(subject, "best"):
        best = as_frame(subject.best(10))
        shown = [name for name in ("row", *subject.axes, *_BEST) if name in best.columns]
        return [f"<h2>Best combinations</h2>{_table(best.select(list(dict.fromkeys(shown))))}"]
    metrics = getattr(subject, "metrics", None)
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
    from replaylab.timestamps import iso, now_ns

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
    import base64

    data = BytesIO()
    figure.savefig(data, format="png", dpi=90, facecolor="white")
    return f"<img alt='plot of the verdict' src='data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}'>"
