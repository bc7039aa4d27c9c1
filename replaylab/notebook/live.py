"""The running replay on screen: hotlist, price plot, last state changes, orders and closed trades."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np
import orjson
import polars as pl

from replaylab import plots
from replaylab.errors import RecordError, ReplaylabError
from replaylab.ml import prices_by_symbol
from replaylab.notebook.controls import Hotlist, Row
from replaylab.notebook.style import bar, error, note, number, table
from replaylab.records import OrderLogRecord, Record, ReplayStatus, StateEvent, TradeLogRecord, decode_record
from replaylab.replay import News
from replaylab.sessions import Session, SessionStore
from replaylab.timestamps import parse_ns

if TYPE_CHECKING:
    from replaylab.notebook.chart import Chart


class MarketTrack:
    """The prices of one session by position, from the sources that the trading model takes ("auto").

    ``symbols``: those with prices.
    """

    def __init__(self, session: Session) -> None:
        names = session.events["symbol"].drop_nulls().unique().sort().to_list()
        found = prices_by_symbol(session, names)
        self._prices = {symbol: prices for symbol, prices in found.items() if prices.ts.size}
        self.symbols = list(self._prices)

    @classmethod
    def load(cls, store: SessionStore, session_id: str) -> MarketTrack | None:
        """Return the track of a session, or None where it cannot be read."""
        try:
            return cls(store.open(session_id))
        except (ReplaylabError, OSError):
            return None

    def price(self, symbol: str, position: int) -> float | None:
        """Return the last price among the first ``position`` events."""
        prices = self._prices.get(symbol)
        place = -1 if prices is None else int(np.searchsorted(prices.index, position)) - 1
        return None if prices is None or place < 0 else float(prices.price[place])

    def until(self, symbol: str, position: int | None = None) -> pl.DataFrame:
        """Return timestamps and prices of a symbol among the first ``position`` events (None: all)."""
        prices = self._prices[symbol]
        end = None if position is None else int(np.searchsorted(prices.index, position))
        when = pl.Series(prices.ts[:end]).cast(pl.Datetime("ns", "UTC"))
        return pl.DataFrame({"timestamp": when, "price": prices.price[:end]})


class ChartView:
    """The interactive chart of a session, made when it is first shown.

    ``on_symbol`` is called when another symbol is chosen, ``on_seek(ns)`` where the chart asks for another time.
    """

    def __init__(self, on_symbol: Callable[[], None], on_seek: Callable[[int], None]) -> None:
        self.chart: Chart | None = None
        self.wanted: tuple[Any, ...] | None = None
        self._on_seek = on_seek
        self.symbol = w.Dropdown(description="symbol", style={"description_width": "5em"})
        self.symbol.observe(lambda _: on_symbol(), names="value")
        self.text = w.HTML(note("choose a session: its chart is drawn here"))
        self.place = w.VBox([])
        self.widget = w.VBox(
            [w.HBox([self.symbol, self.text], layout=w.Layout(align_items="center")), self.place]
        )

    def offer(self, symbols: list[str]) -> None:
        """Offer the symbols of a session."""
        if tuple(symbols) != tuple(self.symbol.options):
            chosen = self.symbol.value
            self.symbol.options = symbols
            if symbols:
                self.symbol.value = chosen if chosen in symbols else symbols[0]

    def show(self, chart: Chart) -> None:
        """Show a chart in place of the earlier one."""
        chart.on_seek(self._on_seek)
        if self.chart is None:
            self.place.children = (chart.widget,)
        else:
            chart.replace(self.chart)
        self.chart = chart
        self.place.layout.display = ""
        self.text.value = note("a double click, or dragging the cursor, takes a running replay there")

    def loading(self, session_id: str) -> None:
        self.text.value = note(f"drawing {session_id} ...")

    def fail(self, problem: Exception) -> None:
        self.place.layout.display = "none"
        self.text.value = error(str(problem))

    def follow(self, status: ReplayStatus) -> None:
        """Move the cursor to where a replay of the session that is shown has come."""
        moment = status.last_event_timestamp
        if self.chart is not None and moment is not None and self.chart.session.id == status.session_id:
            self.chart.move_cursor(parse_ns(moment))


_LAST = 8
_Price = Callable[[str, float | None], str]
_RECORDS: dict[str, type[Record]] = {"state": StateEvent, "order": OrderLogRecord, "trade": TradeLogRecord}
_TRADE_SCHEMA: dict[str, Any] = {
    "symbol": pl.String,
    "side": pl.String,
    "entry_time": pl.Datetime("ns", "UTC"),
    "exit_time": pl.Datetime("ns", "UTC"),
    "entry_price": pl.Float64,
    "close_price": pl.Float64,
    "realized_pnl": pl.Float64,
}


class LiveView:
    """``take`` adds new records (any thread), ``draw`` sets the widgets (the event loop)."""

    def __init__(self) -> None:
        self.hotlist = Hotlist()
        self.unreadable = 0
        self.track: MarketTrack | None = None
        self.position = 0
        self._changes: list[dict[str, Any]] = []
        self._orders: list[dict[str, Any]] = []
        self._regimes: dict[str, str] = {}
        self._digits: dict[str, int] = {}
        self._trades: list[dict[str, Any]] = []
        self._drawn: tuple[Any, ...] = ()

        self.hot = w.HTML(layout=w.Layout(min_width="44em", flex="1 1 44em"))
        self.symbol = w.Dropdown(description="price of", style={"description_width": "5em"})
        self.plot = w.Image(format="png", layout=w.Layout(width="100%", max_width="900px", display="none"))
        self.changes, self.orders, self.trades = (w.HTML(layout=w.Layout(flex="1 1 30em")) for _ in range(3))
        wrap = w.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="0 24px")
        self.widget = w.VBox(
            [
                w.HBox(
                    [self.hot, w.VBox([self.symbol, self.plot], layout=w.Layout(flex="2 1 40em"))],
                    layout=wrap,
                ),
                w.HBox([self.changes, self.orders, self.trades], layout=wrap),
            ]
        )
        self.draw()

    def begin(self) -> None:
        """Clear everything of an earlier run."""
        self.hotlist = Hotlist()
        self.unreadable = 0
        self._changes.clear()
        self._orders.clear()
        self._trades.clear()
        self._drawn = ()
        self.start_from(self._regimes)

    def start_from(self, regimes: dict[str, str]) -> None:
        """Show these regimes of symbols, the ones that the session begins with, until the first update."""
        self._regimes = regimes
        for symbol, regime in regimes.items():
            row = self.hotlist.row(symbol)
            row.regime = row.regime or regime

    def take(self, news: News) -> None:
        """Add what a follower read."""
        if news.began:
            self.begin()
        self.position = news.status.current_event_index
        for kind, record in news.records:
            try:
                decode_record(_RECORDS[kind], orjson.dumps(record))
            except RecordError:
                # A damaged log must not end the panel.
                self.unreadable += 1
                continue
            self.hotlist.record(kind, record)
            if kind == "trade":
                self._trades.append(record)
            elif kind == "order":
                self._orders.append(record)
            elif record["fromState"] != record["toState"]:
                self._changes.append(record)
        # Logs are read a megabyte at a time, so a later read may bring what happened earlier.
        for rows in (self._changes, self._orders, self._trades):
            rows.sort(key=itemgetter("timestamp"))
        del self._changes[:-_LAST], self._orders[:-_LAST]
        if self.track is not None:
            for symbol in self.track.symbols:
                self.hotlist.row(symbol).price = (
                    self.track.price(symbol, self.position) or self.hotlist.row(symbol).price
                )

    def draw(self) -> None:
        """Set the tables."""
        rows = self.hotlist.ranked()
        self.hot.value = '<div class="rl-heading">Hotlist</div>' + table(
            ("symbol", "#score", "", "regime", "state", "#last price", "#position", "#PnL"),
            [_hot_row(row, self._price) for row in rows],
            empty="no signals yet",
        )
        names = tuple(sorted(self.hotlist.rows))
        if names != tuple(self.symbol.options):
            chosen = self.symbol.value
            self.symbol.options = names
            if names:
                self.symbol.value = chosen if chosen in names else rows[0].symbol
        self.changes.value = _last(
            "State changes",
            ("time", "symbol", "change", "reason"),
            map(_change, self._changes),
        ) + note(f"{self.unreadable:,} lines of the run's logs are no records" if self.unreadable else "")
        self.orders.value = _last(
            "Orders",
            ("time", "symbol", "order", "#price", "status"),
            [_order(order, self._price) for order in self._orders],
        )
        self.trades.value = _last(
            "Closed trades", ("time", "symbol", "side", "#PnL", "reason"), map(_trade, self._trades[-_LAST:])
        )

    def _price(self, symbol: str, value: float | None) -> str:
        """A price with as many decimals as every other one of that symbol."""
        if value is None:
            return "–"
        if symbol not in self._digits and value > 0:
            self._digits[symbol] = max(2, 5 - math.floor(math.log10(value)))
        return f"{value:,.{self._digits.get(symbol, 2)}f}"

    def png(self) -> bytes | None:
        """Draw the price plot as PNG; None where nothing changed since the last one."""
        symbol = self.symbol.value
        row = self.hotlist.rows.get(symbol) if symbol else None
        if row is None or self.track is None or row.symbol not in self.track.symbols:
            return None
        now = (symbol, self.position, len(self._trades), tuple(sorted(row.levels)))
        if now == self._drawn:
            return None
        self._drawn = now
        prices = self.track.until(row.symbol, self.position)
        trades = [_plotted_trade(trade) for trade in self._trades if trade["symbol"] == row.symbol]
        levels = list(row.levels.values())
        if row.side is not None and row.entry_price is not None:
            levels.append((row.side, row.entry_price))
        figure = plots.price_with_trades(
            prices,
            pl.DataFrame(trades, schema=_TRADE_SCHEMA, orient="row"),
            symbol=row.symbol,
            levels=levels,
        )
        # Smaller than the default, so that its labels have the size of the text around it.
        figure.set_size_inches(7.6, 4.1)
        return figure._repr_png_()

    def show_plot(self, png: bytes | None) -> None:
        """Show the plot, where there is a new one."""
        if png is not None:
            self.plot.value = png
            self.plot.layout.display = "block"


def _hot_row(row: Row, price: _Price) -> str:
    side = f"{row.side} {row.qty:,.6g}" if row.side else "–"
    return (
        f"<td><b>{escape(row.symbol)}</b></td>"
        f'<td class="num">{number(row.score, 3, signed=True)}</td><td>{bar(row.score)}</td>'
        f"<td>{escape(row.regime or '–')}</td><td>{escape(row.state)}</td>"
        f'<td class="num">{price(row.symbol, row.price)}</td><td class="num">{escape(side)}</td>'
        f'<td class="num">{number(row.pnl, 2, signed=True)}</td>'
    )


def _clock(text: str) -> str:
    return escape(text[11:23].rstrip("Z"))


def _last(title: str, columns: tuple[str, ...], rows: Any) -> str:
    newest_first = list(rows)[::-1]
    return f'<div class="rl-heading">{title}</div>' + table(columns, newest_first)


def _change(event: dict[str, Any]) -> str:
    return (
        f"<td>{_clock(event['timestamp'])}</td><td>{escape(event['symbol'])}</td>"
        f"<td>{escape(event['fromState'])} → {escape(event['toState'])}</td><td>{escape(event['reason'])}</td>"
    )


def _order(order: dict[str, Any], price: _Price) -> str:
    value = next(
        (order[name] for name in ("avgFillPrice", "price", "triggerPrice") if order[name] is not None), None
    )
    return (
        f"<td>{_clock(order['timestamp'])}</td><td>{escape(order['symbol'])}</td>"
        f'<td>{escape(order["side"])} {escape(order["type"])}</td><td class="num">{price(order["symbol"], value)}</td>'
        f"<td>{escape(order['status'])}</td>"
    )


def _trade(trade: dict[str, Any]) -> str:
    return (
        f"<td>{_clock(trade['timestamp'])}</td><td>{escape(trade['symbol'])}</td><td>{escape(trade['side'])}</td>"
        f'<td class="num">{number(trade["realizedPnl"], 2, signed=True)}</td><td>{escape(trade.get("reason", ""))}</td>'
    )


def _plotted_trade(trade: dict[str, Any]) -> tuple[Any, ...]:
    closed = parse_ns(trade["timestamp"])
    opened = closed - round(trade["durationSeconds"] * 1e9)
    return (
        trade["symbol"],
        trade["side"],
        opened,
        closed,
        trade["entryPrice"],
        trade["closePrice"],
        trade["realizedPnl"],
    )
