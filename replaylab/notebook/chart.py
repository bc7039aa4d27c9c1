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
from functools import cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab import frames
from replaylab.errors import ReplayError, did_you_mean
from replaylab.fsio import atomic_path
from replaylab.ml import Prices, mark_outs_from, prices_by_symbol
from replaylab.plots import CYCLE, INK, LONG, LOSS, SHORT, WIN, as_frame, with_entry_times
from replaylab.replay import ReplayControl
from replaylab.sessions import Session
from replaylab.sweep import open_tape, recorded_trades
from replaylab.timestamps import iso, parse_ns, to_ns

Array = npt.NDArray[Any]
# Prices that a view shows at the most: two for each of so many bins.
BINS = 1_000
# Best bid and ask are drawn where every price in view is.
_QUOTES = 2 * BINS
_STEP = 64
_MARKS = (1.0, 5.0, 30.0)
_HOVER = (
    ("trade", "@side @symbol"),
    ("entry", "@entry_price{PRICE} at @entry_time{%H:%M:%S.%3N}"),
    ("exit", "@close_price{PRICE} at @exit_time{%H:%M:%S.%3N}"),
    ("qty", "@qty{0.[000000]}"),
    ("PnL", "@pnl{+0.00} USD, fees @fees{0.00}"),
    ("reason", "@reason"),
    ("MFE / MAE", "@mfe{0.00} / @mae{0.00} USD"),
    ("mark-outs 1, 5, 30 s", "@mark_out_1s{0.0}, @mark_out_5s{0.0}, @mark_out_30s{0.0} bps"),
)
_COLUMNS = ("entry_time", "symbol", "side", "pnl", "reason", "entry_price", "close_price", "qty", "fees")
_FIT = """
const xs = s.data.x, ys = s.data.y
let low = Infinity, high = -Infinity
for (let i = 0; i < xs.length; i++) {
  if (xs[i] < x.start || xs[i] > x.end) continue
  if (ys[i] < low) low = ys[i]
  if (ys[i] > high) high = ys[i]
}
if (low > high) return
const margin = 0.06 * (high - low) || 1e-4 * high
y.setv({start: low - margin, end: high + margin})
"""
# Readable on a light and on a dark page, like the plots.
_TABLE = f"""
.slick-viewport, .slick-row, .slick-row.odd, .slick-cell, .slick-header, .slick-header-column {{
  background: transparent !important; color: {INK}; border-color: rgba(128, 134, 144, 0.3) !important; }}
.slick-cell.selected {{ background: rgba(138, 43, 226, 0.25) !important; }}
"""
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
        step = -(-(last - first) // bins)
        if depth:
            low, high = (level[first:last] for level in self._levels[depth - 1])
        else:
            low = high = np.arange(first, last)
        chosen = [self._reduced(low, np.argmin, step), self._reduced(high, np.argmax, step)]
        # Before the first and after the last whole block of the level: at most a quarter of a bin.
        edges = [np.arange(start, min(first * size, end)), np.arange(max(last * size, start), end)]
        parts = [self._extremes(edge) for edge in edges if len(edge)]
        return np.unique(np.concatenate([[start], *chosen, *parts, [end - 1]]))

    def _extremes(self, places: Array) -> Array:
        values = self.values[places]
        return places[[int(values.argmin()), int(values.argmax())]]

    def _reduced(self, places: Array, best: Callable[..., Array], step: int = _STEP) -> Array:
        """Return the best of each ``step`` places, and of the rest."""
        whole = len(places) // step * step
        blocks = places[:whole].reshape(-1, step)
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
        self.symbol = _chosen(symbol, [*self._tape.symbols, *session.manifest.symbols])
        a = self._tape.arrays
        # A tape holds the symbols that have signals; another one is read from the session's events.
        self._k = self._tape.symbols.index(self.symbol) if self.symbol in self._tape.symbols else None
        if self._k is not None:
            rows = slice(int(a.price_from[self._k]), int(a.price_from[self._k + 1]))
            columns = a.price_ts[rows], a.price[rows], a.price_index[rows]
            self._prices_of = Prices(self._tape.sources[self._k], *columns)
            self._quotes: Any = a.quote[rows] if len(a.quote) else None
        else:
            self._prices_of = prices_by_symbol(session, [self.symbol], price_source)[self.symbol]
            self._quotes = None
        self._price, self._ts = self._prices_of.price, self._prices_of.ts
        if not len(self._price):
            raise ReplayError(
                f"{session.id} has no prices of {self.symbol}: build it with MARKET_TRADE or MARKET_BOOK"
            )
        folder = None if cache_dir is None else Path(cache_dir) / "charts"
        about = f"{session.digest}-{self.symbol}-{self._prices_of.source}"
        self._pyramid = Pyramid(self._price, folder, hashlib.sha256(about.encode()).hexdigest()[:24])
        self._overlays = _overlays(session, run, self.symbol)
        self._depth = depth
        self._lock = threading.Lock()
        self._seek: Callable[[int], None] | None = None
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
        """The chart as an ipywidget, alone or inside others; zooming fetches prices from this process."""
        if not hasattr(self, "_widget"):
            self._widget = _widget_class()(item=self._item())
            self._widget.on_msg(self._from_page)
        return self._widget

    def replace(self, earlier: Chart) -> None:
        """Take the place of a chart that is shown: its widget shows this one."""
        earlier.unfollow()
        self._widget = earlier.widget
        self._widget.on_msg(earlier._from_page, remove=True)
        self._widget.on_msg(self._from_page)
        self._widget.item = self._item()

    def move_cursor(self, moment: int) -> None:
        """Show the cursor at a time (ns since 1970)."""
        self._cursor.location = moment / 1e6
        self._send({"cursor": moment / 1e6})

    def on_seek(self, call: Callable[[int], None] | None) -> None:
        """Call ``call(ns)`` with the time that is double-clicked, or to which the cursor is dragged."""
        self._seek = call

    def show(self, start: Any, end: Any) -> None:
        """Zoom to a range of time."""
        low, high = (value if isinstance(value, int) else to_ns(value) for value in (start, end))
        self._refresh(low / 1e6, high / 1e6)
        self._send({"view": [low / 1e6, high / 1e6]})

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
        with atomic_path(Path(path)) as part:
            part.write_text(self.html(), "utf-8")
        return Path(path)

    def html(self, *, in_frame: bool = False) -> str:
        """Return one HTML page that needs no network.

        ``in_frame``: it shows the cursor at the time (ms) of a message ``{cursor}``, and sends ``{seek}`` at a double
        click.
        """
        from bokeh.document import Document
        from bokeh.embed import file_html
        from bokeh.events import DocumentReady, DoubleTap
        from bokeh.models import CustomJS
        from bokeh.resources import INLINE

        self.prepare_for_file()
        document = Document()
        document.add_root(self.figure)
        if in_frame:
            send = "parent.postMessage({seek: cb_obj.x}, '*')"
            take = (
                "addEventListener('message', (e) => { if (e.source === parent) c.location = e.data.cursor })"
            )
            self._plot.js_on_event(DoubleTap, CustomJS(code=send))
            document.js_on_event(DocumentReady, CustomJS(args={"c": self._cursor}, code=take))
        page: str = file_html(document, INLINE, title=f"{self.session.id} {self.symbol}")
        return page

    def prepare_for_file(self) -> None:
        """Take more prices than a screen shows: a file has no process behind it to ask for them when it is zoomed."""
        if hasattr(self, "_widget"):
            raise ReplayError("this chart is shown in a notebook: make another one to save it")
        self._refresh(float(self._plot.x_range.start), float(self._plot.x_range.end), 8 * BINS)

    # Building.

    def _build(self, width: int | None, height: int) -> None:
        from bokeh.layouts import column
        from bokeh.models import BasicTickFormatter, ColumnDataSource, CustomJS, Range1d, Span
        from bokeh.plotting import figure

        start, end = (int(self._ts[0]) / 1e6, int(self._ts[-1]) / 1e6) if len(self._ts) else (0.0, 1.0)
        margin = 0.01 * (end - start) or 1.0
        size = {"width": width} if width else {"sizing_mode": "stretch_width"}
        tools = "xpan,xwheel_zoom,xbox_zoom,undo,reset,tap,save"
        title = f"{self.symbol}, {self.session.id} (UTC)"
        self._plot = figure(
            x_axis_type="datetime",
            x_range=(start - margin, end + margin),
            y_range=Range1d(0.0, 1.0),
            height=height,
            tools=tools,
            active_scroll="xwheel_zoom",
            title=title,
            output_backend="canvas",
            name="plot",
            **size,
        )
        self._plot.yaxis.axis_label = "price"
        self._plot.yaxis.formatter = BasicTickFormatter(use_scientific=False)
        # The same number of decimals in each row and hover.
        self._decimals = _decimals(self._price, [frame for frame, _ in self._overlays.values()])
        self._prices = ColumnDataSource({"x": [], "y": []}, name="price")
        # The price axis fits what is in view, also in a file without a process behind it.
        fit = CustomJS(args={"s": self._prices, "x": self._plot.x_range, "y": self._plot.y_range}, code=_FIT)
        for changed in (self._plot.x_range, self._prices):
            changed.js_on_change("change", fit)
        self._bids, self._asks = (ColumnDataSource({"x": [], "y": []}, name=n) for n in ("bid", "ask"))
        self._add_holes()
        if self._depth:
            self._add_depth()
        self._plot.line("x", "y", source=self._prices, color=INK, line_width=1.2, legend_label="price")
        for source, colour, name in ((self._bids, LONG, "bid"), (self._asks, SHORT, "ask")):
            self._plot.step("x", "y", source=source, color=colour, alpha=0.5, mode="after", legend_label=name)
        self._add_funding()
        tables = [part for k, one in enumerate(self._overlays.items()) for part in self._add_trades(*one, k)]
        self._cursor = Span(
            location=float("nan"),
            dimension="height",
            line_color=CYCLE[3],
            line_width=2,
            editable=True,
            name="cursor",
        )
        self._plot.add_layout(self._cursor)
        self._plot.legend.click_policy = "hide"
        parts: list[Any] = [self._plot]
        signals = self._signals(size)
        if signals is not None:
            parts.append(signals)
        parts += tables
        for plot in (self._plot, signals):
            if plot is not None:
                _on_any_page(plot)
        self.figure = column(*parts, **({} if width else {"sizing_mode": "stretch_width"}))
        self._refresh(start - margin, end + margin)

    def _item(self) -> str:
        from bokeh.core.json_encoder import serialize_json
        from bokeh.embed import json_item

        return str(serialize_json(json_item(self.figure)))

    def _send(self, content: dict[str, Any], buffers: list[Any] | None = None) -> None:
        if hasattr(self, "_widget"):
            self._widget.send(content, buffers)

    def _from_page(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        """Answer a page that shows the chart: it was zoomed, or clicked, or has no library yet."""
        if "view" in content:
            self._refresh(*content["view"])
            sources = (self._prices, self._bids, self._asks)
            arrays = [
                np.ascontiguousarray(source.data[axis], np.float64) for source in sources for axis in "xy"
            ]
            widget.send({"id": content["id"]}, arrays)
        elif "bokeh" in content:
            widget.send({"bokeh": "\n".join(library().js_raw)})
        elif self._seek is not None:
            self._seek(round(content["seek"] * 1e6))

    def _refresh(self, low: float, high: float, bins: int = BINS) -> None:
        """Put the prices between two times (ms since 1970) into the figure."""
        with self._lock:
            first = max(int(np.searchsorted(self._ts, int(low * 1e6))) - 1, 0)
            last = min(int(np.searchsorted(self._ts, int(high * 1e6), side="right")) + 1, len(self._ts))
            places = self._pyramid.view(first, last, bins)
            price = self._price[places]
            self._prices.data = {"x": self._ts[places] / 1e6, "y": price}
            self._plot.x_range.start, self._plot.x_range.end = low, high
            if len(price):
                margin = 0.06 * float(np.ptp(price)) or 1e-4 * float(price.max())
                self._plot.y_range.start, self._plot.y_range.end = price.min() - margin, price.max() + margin
            near = last - first <= _QUOTES and self._quotes is not None
            rows = np.arange(first, last if near else first)
            if near:
                rows = rows[self._quotes["state"][rows] >= 0]
            for source, name in ((self._bids, "bid"), (self._asks, "ask")):
                y = self._quotes[name][rows] if near else np.empty(0)
                source.data = {"x": self._ts[rows] / 1e6, "y": y}

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

        a, k = self._tape.arrays, self._k
        if k is None:
            return
        paid = a.funding[int(a.funding_from[k]) : int(a.funding_from[k + 1])]
        if not len(paid):
            return
        source = ColumnDataSource({"x": paid["ts"] / 1e6, "y": paid["mark"], "rate": paid["rate"] * 100})
        marks = self._plot.scatter("x", "y", source=source, marker="diamond", size=10, color=CYCLE[5])
        tips = [("funding", "@rate{0.0000} % at @y")]
        self._plot.add_tools(HoverTool(renderers=[marks], tooltips=tips))

    def _add_trades(
        self, name: str, overlay: tuple[pl.DataFrame, pl.DataFrame | None], number: int
    ) -> list[Any]:
        """Draw trades with their levels; return the table linked with them, under its name if there are several."""
        from bokeh.models import (
            ColumnDataSource,
            CustomJS,
            DataTable,
            DateFormatter,
            Div,
            HoverTool,
            InlineStyleSheet,
            NumberFormatter,
            TableColumn,
        )

        trades, orders = overlay
        table = self._with_marks(trades)
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
        price = f"0.{'0' * self._decimals}"
        tips = [(title, text.replace("PRICE", price)) for title, text in _HOVER]
        self._plot.add_tools(HoverTool(renderers=[entries, exits], tooltips=tips, formatters=formats))
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
                x.setv({start: a - m, end: b + m})
                """,
            ),
        )
        moment = DateFormatter(format="%m-%d %H:%M:%S.%3N")
        kinds = {
            "entry_time": moment,
            "pnl": NumberFormatter(format="+0.00"),
            "fees": NumberFormatter(format="0.00"),
        }
        kinds |= dict.fromkeys(("entry_price", "close_price"), NumberFormatter(format=price))
        kinds["qty"] = NumberFormatter(format="0.[0000000]")
        columns = [
            TableColumn(
                field=c,
                title=c.replace("_", " "),
                width=170 if c == "entry_time" else 90,
                **({"formatter": kinds[c]} if c in kinds else {}),
            )
            for c in _COLUMNS
        ]
        shown = DataTable(
            source=source, columns=columns, height=min(220, 30 + 25 * max(table.height, 1)),
            sizing_mode="stretch_width", index_position=None, name=f"trades-{number}", reorderable=False,
            stylesheets=[InlineStyleSheet(css=_TABLE)],
        )  # fmt: skip
        if len(self._overlays) == 1:
            return [shown]
        return [Div(text=escape(label), styles={"color": INK, "font-weight": "bold"}), shown]

    def _add_orders(self, orders: pl.DataFrame, label: str, faint: float) -> None:
        """Draw resting orders as lines from when they were sent to their end, and partial exits where they filled."""
        from bokeh.models import ColumnDataSource, HoverTool

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
        filled = self._plot.scatter(
            parts["timestamp"].to_list(), parts["avg_fill_price"].to_list(),
            marker="circle", size=6, color=WIN, alpha=faint, legend_label=label,
        )  # fmt: skip
        tips = [("target filled", f"@y{{0.{'0' * self._decimals}}} at @x{{%H:%M:%S.%3N}}")]
        self._plot.add_tools(HoverTool(renderers=[filled], tooltips=tips, formatters={"@x": "datetime"}))

    def _with_marks(self, trades: pl.DataFrame) -> pl.DataFrame:
        """Add the mark-outs of each trade, in bps."""
        end = int(self._tape.arrays.start[0]["last_ts"])
        return mark_outs_from({self.symbol: self._prices_of}, end, trades, _MARKS)

    def _signals(self, size: Mapping[str, Any]) -> Any:
        """Return the plot of the scores over the regimes; None without signals."""
        from bokeh.models import ColumnDataSource, HoverTool
        from bokeh.plotting import figure

        a, k = self._tape.arrays, self._k
        if k is None:
            return None
        rows = slice(int(a.score_from[k]), int(a.score_from[k + 1]))
        score, ts = a.score[rows], a.score_ts[rows]
        if not len(score):
            return None
        plot = figure(
            x_axis_type="datetime", x_range=self._plot.x_range, height=130, tools="xpan,xwheel_zoom,reset",
            active_scroll="xwheel_zoom", **size,
        )  # fmt: skip
        plot.yaxis.axis_label = "score"
        plot.yaxis.ticker.update(desired_num_ticks=3, num_minor_ticks=0)
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
        drawn = plot.quad(
            "left", "right", "top", "bottom", source=bands, color="colour", alpha=0.18, legend_group="regime"
        )
        places = Pyramid(score).view(0, len(score))
        plot.step(ts[places] / 1e6, score[places], mode="after", color=INK, line_width=1)
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("regime", "@regime")]))
        return plot

    def _add_depth(self) -> None:
        """Draw the recorded book as an image: quantity by price and time, on a logarithmic scale."""
        from bokeh.models import LinearColorMapper

        a = self._tape.arrays
        quotes = self._quotes
        if quotes is None or not (quotes["state"] >= 0).any():
            raise ReplayError(
                f"{self.session.id} has no book of {self.symbol}: depth=True draws the recorded one"
            )
        columns, levels = 600, 120
        first, last = float(self._ts[0]), float(self._ts[-1])
        # Each column has the book in the middle of its time.
        middle = first + (last - first) * (np.arange(columns) + 0.5) / columns
        at = np.searchsorted(self._ts, middle.astype(np.int64), side="right") - 1
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
        drawn = np.log1p(image).astype(np.float32)
        # No quantity is no colour, on a light and on a dark page.
        palette = [f"{CYCLE[3]}{alpha:02x}" for alpha in range(160)]
        self._plot.image(
            [drawn], x=first / 1e6, y=low, dw=(last - first) / 1e6, dh=high - low, name="depth",
            color_mapper=LinearColorMapper(palette=palette, low=0.0, high=float(drawn.max())),
        )  # fmt: skip


class _Follower:
    """Moves the cursor to where the running replay is, and seeks it to where the chart asks for."""

    def __init__(self, chart: Chart, control: ReplayControl) -> None:
        self._chart, self._control = chart, control
        self._ended = threading.Event()
        self._wanted: int | None = None
        chart.on_seek(self._want)
        threading.Thread(target=self._run, name="chart-cursor", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()
        self._chart.on_seek(None)

    def _want(self, moment: int) -> None:
        # The widget's thread only notes the time; the cursor's thread seeks.
        self._wanted = moment

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            wanted, self._wanted = self._wanted, None
            if wanted is not None:
                with contextlib.suppress(ReplayError):
                    self._control.seek(iso(wanted))
            status = self._control.status()
            moment = status.last_event_timestamp if status.running else None
            if moment is not None:
                self._chart.move_cursor(parse_ns(moment))


def library() -> Any:
    """Return the JavaScript of the chart, without the parts for formulas and WebGL, which are most of it."""
    from bokeh.resources import Resources

    return Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])


def _on_any_page(plot: Any) -> None:
    """Give a figure the page's own background, and letters that are readable on a light and on a dark one."""
    plot.background_fill_color = plot.border_fill_color = None
    plot.toolbar.logo = None
    for legend in list(plot.legend):
        legend.background_fill_color, legend.border_line_color, legend.label_text_color = None, None, INK
        # Over the plot it would hide prices.
        plot.center.remove(legend)
        legend.update(
            orientation="horizontal", location="left", padding=2, margin=0, label_text_font_size="9pt"
        )
        legend.ncols = 3 if len(legend.items) > 4 else "auto"
        plot.add_layout(legend, "above")
    plot.title.text_color = INK
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = INK
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = INK
    plot.grid.grid_line_color = plot.outline_line_color = INK
    plot.grid.grid_line_alpha = plot.outline_line_alpha = 0.2


@cache
def _widget_class() -> Any:
    import anywidget
    import traitlets

    class ChartWidget(anywidget.AnyWidget):
        """A Bokeh figure, as JSON, that asks its chart for the prices in view."""

        _esm = Path(__file__).with_name("chart.js")
        item = traitlets.Unicode().tag(sync=True)

    return ChartWidget


# ---- Data --------------------------------------------------------------------------------------------------


def _decimals(price: Array, trades: Iterable[pl.DataFrame]) -> int:
    """Return how many decimals the prices have, at most eight."""
    paid = [
        frame[name].drop_nulls().to_numpy() for frame in trades for name in ("entry_price", "close_price")
    ]
    sample = np.concatenate([price[:: max(len(price) // 10_000, 1)], *paid])
    return next((n for n in range(8) if np.allclose(sample, np.round(sample, n), rtol=1e-12, atol=1e-10)), 8)


def _chosen(symbol: str | None, symbols: Iterable[str]) -> str:
    known = list(dict.fromkeys(symbols))
    if symbol is None:
        if not known:
            raise ReplayError("the session names no symbol to draw")
        return known[0]
    if symbol not in known:
        raise ReplayError(
            f"no prices of {symbol!r}: there are {', '.join(known)}.{did_you_mean(symbol, known)}"
        )
    return symbol


def _overlays(session: Session, run: Any, symbol: str) -> dict[str, tuple[pl.DataFrame, pl.DataFrame | None]]:
    """Return trades and orders of each run by name; None is for the recorded ones."""
    runs = dict(run) if isinstance(run, Mapping) else {"recorded" if run is None else "run": run}
    found = {}
    for name, one in runs.items():
        if one is None:
            span, names = session.manifest.source_date_range, list(session.manifest.symbols)
            # The log holds later ones too.
            end = pl.lit(to_ns(span.to)).cast(pl.Datetime("ns", "UTC"))
            trades = recorded_trades(session).filter(pl.col("exit_time") < end)
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
