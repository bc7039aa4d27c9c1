"""Fidelity: a session replayed under its recorded parameters, beside the logs of its data root.

::

    report = fidelity(session)               # or lab.fidelity(session_id, inject_mode="FULL_DECISION")
    report.share                             # 1.0: every trade, order and decision came out the same
    report.headline                          # how many trades and how much PnL agree, then orders and decisions
    report.differences                       # the others: what differs, the logged and the replayed value
    report.plot()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import ReplayError
from replaylab.features import Carried, InitialState, usable_number
from replaylab.params import TradingParams, resolve_params, resolve_scoring
from replaylab.records import OrderLogRecord, StateEvent, TradeLogRecord
from replaylab.replay.player import EventFeed
from replaylab.replay.sim import WarmUp
from replaylab.replay.targets import RunSetup, check_inject_mode
from replaylab.sessions import Session
from replaylab.sweep import match_trades, recorded_trades
from replaylab.timestamps import parse_ns
from replaylab.trading import TradingSystem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUSES = ("identical", "different", "missing", "added", "carried_in", "cut_off")
_COUNTED = STATUSES[:4]
_NUMBERS = ("score", "price", "qty")
_FIELDS = ("from_state", "to_state", "outcome", "reason")
_KEY = ("timestamp", "symbol", "event_type", "nth")
_TRADE_FIELDS = (
    *("exit_time", "entry_price", "close_price", "qty", "leverage", "reason", "tp1_filled"),
    *("realized_pnl", "fees", "mfe", "mae"),
)
_TRADE_STATUSES = {"same": "identical", "changed": "different", "avoided": "missing", "added": "added"}
_ORDER_KEY = ("timestamp", "symbol", "type", "side", "order_status", "reduce_only", "nth")
_ORDER_NUMBERS = ("price", "trigger_price", "qty", "filled_qty", "avg_fill_price", "notional_usd")
_ORDER_TEXTS = ("time_in_force", "last_error")
# Relative difference up to which two floats are one number computed on two machines.
_CLOSE = 1e-9
_EVENTS = ("SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE", "EXECUTION_FILL", "EXECUTION_PARTIAL")
_ENDINGS = ("EXECUTION_EXIT", "EXECUTION_CANCEL")
# Parts of ``extra`` that are columns of their own.
_SHOWN = (*_NUMBERS, "regime", "reason")
_OPEN = ("LONG", "SHORT", "PENDING_ENTRY")
_NO_END = 2**62
_UTC = pl.Datetime("ns", "UTC")


@dataclass(repr=False, kw_only=True)
class Fidelity:
    """Every trade, order and decision of the session's range with its status.

    identical: logged and replayed alike. different: another price, quantity, state, reason, …; ``what`` names the
    fields. missing: logged only. added: replayed only. A session cannot judge carried_in (a symbol's records while its
    position, order or cooldown from before the range lasted) and cut_off (positions that the log holds open at the
    session's end); neither counts.

    ``trades``, ``orders``, ``decisions``: a row per record, the replayed value beside the logged one. ``notes``:
    sentences on logs that lack a whole symbol. ``params``, ``params_source``, ``changes``: what was replayed.
    """

    trades: pl.DataFrame
    orders: pl.DataFrame
    decisions: pl.DataFrame
    session_id: str
    inject_mode: str
    params: TradingParams
    params_source: str = "recorded"
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Fidelity {self.session_id} {self.inject_mode}: {self.headline}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.summary.columns)
        cells = (
            "".join(f"<td style='text-align:right'>{escape(str(cell))}</td>" for cell in row)
            for row in self.summary.iter_rows()
        )
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        return (
            f"<div><b>Fidelity</b> of {escape(self.session_id)}, {self.inject_mode}: {escape(self.headline)}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )

    @cached_property
    def shares(self) -> dict[str, float | None]:
        """Shares that agree: of trades, of PnL, of orders, of decisions that changed something, of all decisions.

        None where there is nothing to compare. PnL: that of the trades whose realised PnL agrees, in absolute terms,
        by the PnL of all trades of both sides.
        """
        changing = self.decisions.filter(
            (pl.col("from_state") != pl.col("to_state"))
            | (pl.col("from_state_replayed") != pl.col("to_state_replayed"))
            | pl.col("event_type").str.starts_with("EXECUTION_")
        )
        return {
            "trades": _share(self.trades),
            "pnl": self._pnl_share(),
            "orders": _share(self.orders),
            "changing_decisions": _share(changing),
            "decisions": _share(self.decisions),
        }

    @property
    def share(self) -> float | None:
        """The least of ``shares``: 1.0 only where every trade, order and decision agrees. None without any."""
        return min((share for share in self.shares.values() if share is not None), default=None)

    @property
    def is_identical(self) -> bool:
        """Whether every record that the session can judge is identical."""
        return self.differences.is_empty() and not self.notes

    @property
    def headline(self) -> str:
        """One line: trades and PnL that agree, then orders, decisions that changed something, all decisions."""
        names = {
            "trades": "trades",
            "pnl": "of PnL",
            "orders": "of order records",
            "changing_decisions": "of decisions that changed something",
            "decisions": "of all decisions",
        }
        counts = self.counts["trades"]
        parts = [
            f"{counts['identical']} of {sum(counts[name] for name in _COUNTED)} trades"
            if name == "trades"
            else f"{_percent(self.shares[name])} {text}"
            for name, text in names.items()
            if self.shares[name] is not None
        ]
        if not parts:
            return "nothing to compare"
        return "; ".join([f"{_percent(self.share)} identical: {', '.join(parts)}", *self.notes])

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Records by kind (trades, orders, decisions) and status."""
        found = {}
        for kind in ("trades", "orders", "decisions"):
            table = getattr(self, kind)
            counted = dict(table["status"].value_counts().iter_rows())
            found[kind] = {name: counted.get(name, 0) for name in STATUSES}
        return found

    @property
    def summary(self) -> pl.DataFrame:
        """Counts by kind of record and status, decisions by type of event."""
        counts = [(pl.col("status") == name).sum().alias(name) for name in STATUSES]
        rows = [
            table.group_by(pl.lit(kind).alias("record")).agg(counts)
            for kind, table in (("trade", self.trades), ("order", self.orders))
        ]
        return pl.concat(
            [*rows, self.decisions.group_by(record="event_type").agg(counts).sort("record")],
            how="vertical_relaxed",
        )

    @cached_property
    def differences(self) -> pl.DataFrame:
        """The records that are different, missing or added: trades, then orders, then decisions, by time.

        Columns: kind, status, timestamp, symbol, event (side, order type or event type), what (the fields that differ),
        logged, replayed (their values as JSON strings), reason of a decision on either side, inputs of a decision.
        """
        at, entry = pl.col("timestamp"), pl.coalesce("entry_time_logged", "entry_time")
        rows = [
            _differing("trade", self.trades, "side", entry, ("_logged", "")),
            _differing("order", self.orders, "type", at, ("", "_replayed")),
            _differing("decision", self.decisions, "event_type", at, ("", "_replayed")),
        ]
        return pl.concat(rows)

    def plot(self) -> Figure:
        """Plot decisions over time, by symbol and status."""
        from replaylab import plots

        title = f"{self.session_id}, {self.inject_mode}: {_percent(self.share)} identical"
        return plots.fidelity(self.decisions, title)

    def to_dict(self) -> dict[str, Any]:
        """Return shares, counts, notes and the first 100 differences as plain data."""
        shown = self.differences.head(100).with_columns(
            pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ")
        )
        return {
            "sessionId": self.session_id,
            "injectMode": self.inject_mode,
            "share": self.share,
            "shares": self.shares,
            "counts": self.counts,
            "paramsSource": self.params_source,
            "notes": self.notes,
            "differences": shown.to_dicts(),
        }

    def _pnl_share(self) -> float | None:
        ours, theirs = pl.col("realized_pnl_logged"), pl.col("realized_pnl")
        size = pl.max_horizontal(ours.abs(), theirs.abs())
        agree = ((ours - theirs).abs() <= _CLOSE * size).fill_null(value=False)
        counted = self.trades.filter(pl.col("status").is_in(_COUNTED))
        agreed, total = counted.select(size.filter(agree).sum(), size.sum().alias("total")).row(0)
        return float(agreed / total) if total else None


def fidelity(
    session: Session,
    inject_mode: str = "SCORING_ONLY",
    *,
    params: TradingParams | Mapping[str, Any] | None = None,
    scoring: Any = None,
    price_source: str | Mapping[str, str] = "auto",
) -> Fidelity:
    """Replay a session under its recorded parameters and compare it with the logs of its data root.

    Compared are trades (prices, quantity, leverage, reason, PnL, fees, excursions), orders (each of their statuses) and
    decisions: what the state machine did at a signal or a fill, with states, reason, price, quantity and all of
    ``extra``. Records belong together when they have the same time, symbol and type; trades also where their times
    overlap. ``params``: None for the recorded ones, a dict of changes, or a TradingParams; ``scoring`` likewise
    (ScoringParams, or the model that made the signals). Of parameters that changed within the range, those at its start
    are used.

    Raises ReplayError where no parameters were recorded and none are given, or the range has no logs any more;
    PriceError for a session without prices; ConfigError for a wrong mode.
    """
    check_inject_mode(inject_mode)
    if session.recorded_params is None and not isinstance(params, TradingParams):
        raise ReplayError(f"{session.id} holds no recorded parameters: name params= to compare with")
    if inject_mode == "FULL_DECISION" and scoring is None and session.recorded_scoring is None:
        raise ReplayError(f"{session.id} holds no recorded scoring parameters: name scoring=")
    ran = resolve_params(params, session)
    made = scoring if hasattr(scoring, "predict") else resolve_scoring(scoring, session)
    logs = _Logs.of(session)
    if logs.decisions.is_empty() and logs.orders.is_empty() and logs.trades.is_empty():
        raise ReplayError(
            f"{session.id}: its data root has no logs in its range any more, nothing to compare with"
        )
    setup = RunSetup.of(session, ran, made, inject_mode=inject_mode, price_source=price_source)
    carried = _carried_in(logs.decisions)
    kept = _replayed(session, setup, carried)
    open_at_end = logs.open_at_end()
    return Fidelity(
        trades=_compare_trades(logs.trades, kept.trade_frame(), carried, open_at_end),
        orders=_compare_orders(logs.orders, kept.order_frame(), carried, open_at_end),
        decisions=compare_decisions(
            logs.decisions, _without_added_cooldown(_decisions(kept.events), carried), carried, open_at_end
        ),
        session_id=session.id,
        inject_mode=inject_mode,
        params=ran.params,
        params_source=ran.source,
        changes=ran.changes,
        notes=logs.notes(kept),
    )


def _replayed(session: Session, setup: RunSetup, carried: Mapping[str, _Carried]) -> _Kept:
    """Replay a session as fast as possible and return everything that the system recorded."""
    kept = _Kept()
    model = setup.model
    warm_up = WarmUp.of(session, model) if setup.inject_mode == "FULL_DECISION" else None
    system = TradingSystem(
        setup.params.params,
        recorder=kept,
        scoring=model,
        inject_mode=setup.inject_mode,
        price_sources=setup.prices,
        instruments=getattr(session, "instruments", None),
        initial_state=_with_carried(
            session.initial_state if warm_up is None else warm_up.initial_state,
            carried,
            round(setup.params.params.cooldown_s * 1e9),
        ),
        run_mode="REPLAY",
    )
    if warm_up is not None:
        warm_up.feed(system)
    feed, index = EventFeed(session), 0
    while index < feed.total:
        block = feed.block(index)
        for place, payload in enumerate(block.payloads()):
            system.on_event(index, block.times[place], block.types[place], block.symbols[place], payload)
            index += 1
    kept.ending = True
    system.finish()
    return kept


@dataclass
class _Logs:
    """Trades, order records and decisions that the data root's logs hold of a session's range."""

    trades: pl.DataFrame
    orders: pl.DataFrame
    decisions: pl.DataFrame
    symbols: list[str]

    @classmethod
    def of(cls, session: Session) -> _Logs:
        """Load the logs of the range; of a truncated session, up to its last event."""
        span, symbols = session.manifest.source_date_range, list(session.manifest.symbols)
        last = None
        if session.meta.get("truncated") and session.events.height:
            last = session.events["timestamp"].max()

        def within(frame: pl.DataFrame) -> pl.DataFrame:
            return frame if last is None else frame.filter(pl.col("timestamp") <= last)

        events = within(frames.load_events(session.root, symbols, span.from_, span.to).frame)
        columns = ("timestamp", "symbol", "event_type", "from_state", "to_state", "reason", "extra")
        rows = events.sort("timestamp", "symbol", "line").select(
            pl.col("timestamp").dt.timestamp("ns"), *columns[1:]
        )
        decisions = _decisions([(*row[:-1], orjson.loads(row[-1] or "{}")) for row in rows.iter_rows()])
        orders = within(frames.load_orders(session.root, span.from_, span.to, symbols).frame)
        trades = within(frames.load_trades(session.root, span.from_, span.to, symbols).frame)
        if trades.is_empty():
            # The session's own copies outlive the log.
            until = pl.lit(parse_ns(span.to)).cast(_UTC)
            trades = within(recorded_trades(session).filter(pl.col("timestamp") < until))
        return cls(_with_entry(trades), orders, decisions, symbols)

    def open_at_end(self) -> set[str]:
        """Return the symbols that hold a position or a pending entry at the end of the range."""
        last = self.decisions.group_by("symbol", maintain_order=True).agg(pl.col("to_state").last())
        return {symbol for symbol, state in last.iter_rows() if state in _OPEN}

    def notes(self, kept: _Kept) -> list[str]:
        """Return a sentence for each symbol of which a whole log is missing."""
        found = []
        for symbol in self.symbols:
            logged = (self.decisions["symbol"] == symbol).any()
            replayed = any(row[1] == symbol for row in kept.events)
            others = any((frame["symbol"] == symbol).any() for frame in (self.orders, self.trades))
            if not logged and (replayed or others):
                found.append(
                    f"{symbol}: no state events are logged in the range, but orders, trades or signals are"
                )
        return found


class _Kept:
    """A recorder that keeps events, orders and trades; ``ending`` marks those made by the session's end."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.orders: list[tuple[OrderLogRecord, bool]] = []
        self.trades: list[tuple[TradeLogRecord, bool]] = []
        self.ending = False
        self._stamp = ("", 0)

    def log_state_event(self, symbol: str, event: StateEvent) -> None:
        if event.timestamp != self._stamp[0]:
            self._stamp = (event.timestamp, parse_ns(event.timestamp))
        extra = event.extra
        flags = extra.get("riskFlags") if event.event_type == "RISK_UPDATE" else None
        if isinstance(flags, dict) and "dailyLossLimitHit" in flags and event.reason != "limits":
            # The recorded system's own flags, replayed as a signal: this system logs its own.
            return
        states = (event.from_state, event.to_state)
        self.events.append(
            (self._stamp[1], symbol, event.event_type, *states, event.reason, extra, self.ending)
        )

    def log_order(self, record: OrderLogRecord) -> None:
        self.orders.append((record, self.ending))

    def log_trade(self, record: TradeLogRecord) -> None:
        self.trades.append((record, self.ending))

    def _ignore(self, record: Any) -> None:
        """Snapshots follow from the other records."""

    write_risk_snapshot = write_tpsl_snapshot = write_execution_snapshot = _ignore

    def order_frame(self) -> pl.DataFrame:
        names = {
            **dict.fromkeys(("symbol", "type", "side", "status", *_ORDER_TEXTS), pl.String),
            **dict.fromkeys(_ORDER_NUMBERS, pl.Float64),
            "reduce_only": pl.Boolean,
        }
        return _frame_of(self.orders, names)

    def trade_frame(self) -> pl.DataFrame:
        names: dict[str, Any] = {
            **dict.fromkeys(("symbol", "side", "reason", "entry_timestamp"), pl.String),
            **dict.fromkeys(
                ("entry_price", "close_price", "qty", "leverage", "realized_pnl", "fees", "mfe", "mae"),
                pl.Float64,
            ),
            "duration_seconds": pl.Float64,
            "tp1_filled": pl.Boolean,
        }
        frame = _frame_of(self.trades, names)
        moments = [None if text is None else parse_ns(text) for text in frame["entry_timestamp"]]
        return _with_entry(
            frame.with_columns(pl.Series("entry_timestamp", moments, dtype=pl.Int64).cast(_UTC))
        )


def _frame_of(records: Sequence[tuple[Any, bool]], names: Mapping[str, Any]) -> pl.DataFrame:
    """Return records as a frame with ``timestamp`` and ``ending``; UNSET fields are null."""

    def value(record: Any, name: str) -> Any:
        found = getattr(record, name)
        return found if isinstance(found, str | int | float) else None

    columns = {
        name: pl.Series([value(r, name) for r, _ in records], dtype=kind) for name, kind in names.items()
    }
    stamps = pl.Series([parse_ns(record.timestamp) for record, _ in records], dtype=pl.Int64).cast(_UTC)
    ending = pl.Series([ending for _, ending in records], dtype=pl.Boolean)
    return pl.DataFrame({"timestamp": stamps, **columns, "ending": ending})


def _with_entry(trades: pl.DataFrame) -> pl.DataFrame:
    """Add ``entry_time`` and ``exit_time`` to records of the trade log."""
    held = (pl.col("duration_seconds") * 1e9).round().cast(pl.Int64).cast(pl.Duration("ns"))
    entry = pl.col("timestamp") - held
    if "entry_timestamp" in trades.columns:
        entry = pl.coalesce("entry_timestamp", entry)
    return trades.with_columns(exit_time=pl.col("timestamp"), entry_time=entry)


def _compare_trades(
    logged: pl.DataFrame, replayed: pl.DataFrame, carried: Mapping[str, _Carried], open_at_end: set[str]
) -> pl.DataFrame:
    """Return ``match_trades`` with the statuses of fidelity."""
    table = match_trades(logged, replayed, fields=_TRADE_FIELDS, tolerance=_CLOSE)
    ending = replayed.filter("ending").select("symbol", "side", "entry_time", ending=True)
    table = table.join(ending, on=["symbol", "side", "entry_time"], how="left", maintain_order="left")
    cut_off = pl.col("ending") & pl.col("symbol").is_in(list(open_at_end))
    status = (
        pl.when((pl.col("status") == "added") & cut_off)
        .then(pl.lit("cut_off"))
        .otherwise(pl.col("status").replace_strict(_TRADE_STATUSES))
    )
    table = table.with_columns(status=status).drop("ending")
    for symbol, held in carried.items():
        # Its entry may fill within the range: decided before it is decided all the same.
        if held.in_position:
            closed = pl.col("exit_time_logged") <= _moment(held.until)
            table = _mark(table, (pl.col("symbol") == symbol) & (pl.col("status") == "missing") & closed)
    return table


def _compare_orders(
    logged: pl.DataFrame, replayed: pl.DataFrame, carried: Mapping[str, _Carried], open_at_end: set[str]
) -> pl.DataFrame:
    """Return a row per order record of either side, by time: its key, status, ``what`` differs, values of both."""
    fields = (*_ORDER_NUMBERS, *_ORDER_TEXTS)

    def numbered(frame: pl.DataFrame) -> pl.DataFrame:
        key = list(_ORDER_KEY[:-1])
        ending = pl.col("ending") if "ending" in frame.columns else pl.lit(value=False)
        chosen = frame.rename({"status": "order_status"}).select(*key, *fields, ending=ending)
        return chosen.with_row_index("order").with_columns(nth=pl.int_range(pl.len()).over(key))

    both = numbered(logged).join(
        numbered(replayed), on=list(_ORDER_KEY), how="full", coalesce=True, suffix="_replayed"
    )
    table = _judged(both, _different(_ORDER_NUMBERS, _ORDER_TEXTS), pl.lit(value=True), open_at_end)
    for symbol, held in carried.items():
        if held.in_position:
            # A new entry may be submitted at that very moment.
            at_end = pl.col("reduce_only") | (pl.col("order_status") != "NEW")
            closing = (pl.col("timestamp") == _moment(held.until)) & at_end
            mine = (pl.col("timestamp") < _moment(held.until)) | closing
            table = _mark(table, (pl.col("symbol") == symbol) & mine)
    # Sent before the first price of its symbol in the session, which cannot know the quantity.
    unpriced = (pl.col("order_status") == "NEW") & (pl.col("qty_replayed") == 0.0)
    table = _mark(table, (pl.col("what") == "qty, notional_usd") & unpriced)
    pairs = [name for one in fields for name in (one, f"{one}_replayed")]
    return table.sort("timestamp", pl.coalesce("order", "order_replayed")).select(
        *_ORDER_KEY[:-1], "status", "what", *pairs
    )


def compare_decisions(
    logged: pl.DataFrame,
    replayed: pl.DataFrame,
    carried: Mapping[str, _Carried] | None = None,
    open_at_end: set[str] | None = None,
) -> pl.DataFrame:
    """Return a row per decision of either side with ``status`` and ``what`` differs; sorted by time and symbol.

    Both frames have the columns of ``_decisions``.
    """
    both = _numbered(logged).join(_numbered(replayed), on=_KEY, how="full", coalesce=True, suffix="_replayed")
    both = both.with_columns(extra_differs=_extra_differences(both))
    parts = [*_different(_NUMBERS, _FIELDS), pl.col("extra_differs")]
    table = _judged(both, parts, pl.col("event_type").is_in(_ENDINGS), open_at_end or set())
    for symbol, held in (carried or {}).items():
        # At its last moment the position's own closing belongs to it; a signal there is a decision again.
        closing = pl.col("event_type").str.starts_with("EXECUTION_") | pl.lit(not held.in_position)
        mine = (pl.col("timestamp") < _moment(held.until)) | (
            (pl.col("timestamp") == _moment(held.until)) & closing
        )
        table = _mark(table, (pl.col("symbol") == symbol) & mine)
    pairs = [name for one in (*_FIELDS, *_NUMBERS) for name in (one, f"{one}_replayed")]
    inputs = pl.coalesce("inputs", "inputs_replayed").alias("inputs")
    order = pl.coalesce("order", "order_replayed")
    return table.sort("timestamp", "symbol", order, "event_type", "nth").select(
        "timestamp", "symbol", "event_type", "status", "what", *pairs, inputs
    )


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """Number decisions of one time, symbol and type in their order, and keep that order."""
    key = ["timestamp", "symbol", "event_type"]
    return frame.with_row_index("order").with_columns(nth=pl.int_range(pl.len()).over(key))


def _different(numbers: Sequence[str], texts: Sequence[str]) -> list[pl.Expr]:
    """Return an expression per field: its name where the logged and the replayed value differ, else null."""
    found: list[pl.Expr] = []
    for name in numbers:
        ours, theirs = pl.col(name), pl.col(f"{name}_replayed")
        gap = (ours - theirs).abs() > _CLOSE * pl.max_horizontal(ours.abs(), theirs.abs(), pl.lit(1e-3))
        test = gap.fill_null(value=False) | (ours.is_null() != theirs.is_null())
        found.append(pl.when(test).then(pl.lit(name)))
    for name in texts:
        test = pl.col(name).ne_missing(pl.col(f"{name}_replayed"))
        found.append(pl.when(test).then(pl.lit(name)))
    return found


def _judged(
    both: pl.DataFrame, differs: Sequence[pl.Expr], may_end: pl.Expr, open_at_end: set[str]
) -> pl.DataFrame:
    """Add ``what`` and ``status`` to joined records; ``order`` is null where a side has none.

    cut_off: made by the session's end (where ``may_end``) for a symbol that the log holds open there.
    """
    logged, replayed = pl.col("order").is_not_null(), pl.col("order_replayed").is_not_null()
    ending = pl.col("ending_replayed").fill_null(value=False) & may_end
    what = pl.when(logged & replayed).then(pl.concat_list(differs).list.drop_nulls().list.join(", "))
    status = (
        pl.when(~logged & ending & pl.col("symbol").is_in(list(open_at_end)))
        .then(pl.lit("cut_off"))
        .when(~logged)
        .then(pl.lit("added"))
        .when(~replayed)
        .then(pl.lit("missing"))
        .when(what != "")
        .then(pl.lit("different"))
        .otherwise(pl.lit("identical"))
    )
    return both.with_columns(what=what).with_columns(status=status)


def _mark(table: pl.DataFrame, carried: pl.Expr) -> pl.DataFrame:
    return table.with_columns(status=pl.when(carried).then(pl.lit("carried_in")).otherwise("status"))


def _moment(ns: int | None) -> pl.Expr:
    return pl.lit(_NO_END if ns is None else ns).cast(_UTC)


def _extra_differences(both: pl.DataFrame) -> pl.Series:
    """Return the parts of ``extra`` that differ beyond the columns of their own, such as "extra.components.flow"."""
    names: list[str | None] = []
    for ours, theirs in both.select("inputs", "inputs_replayed").iter_rows():
        found = None
        if ours is not None and theirs is not None and ours != theirs:
            paths = [
                path for path in _paths(orjson.loads(ours), orjson.loads(theirs), "extra") if path is not None
            ]
            found = ", ".join(dict.fromkeys(paths)) or None
        names.append(found)
    return pl.Series(names, dtype=pl.String)


def _paths(ours: Any, theirs: Any, path: str) -> Iterator[str | None]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in {**ours, **theirs}:
            if path != "extra" or name not in _SHOWN:
                yield from _paths(ours.get(name), theirs.get(name), f"{path}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from _paths(one, other, path)
    elif isinstance(ours, int | float) and isinstance(theirs, int | float):
        if abs(ours - theirs) > _CLOSE * max(abs(ours), abs(theirs), 1e-3):
            yield path
    elif ours != theirs:
        yield path


def _decisions(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Turn (ns, symbol, type, from, to, reason, extra[, ending]) into the frame that ``compare_decisions`` takes."""
    found = []
    for ts, symbol, kind, before, after, reason, extra, *ending in rows:
        if kind not in _EVENTS and kind not in _ENDINGS:
            continue
        extra = extra if isinstance(extra, dict) else {}
        outcome = extra.get("regime") if kind == "REGIME_UPDATE" else None
        if kind.startswith("EXECUTION_"):
            outcome = extra.get("reason")
        score = usable_number(extra.get("score")) if kind == "SCORING_UPDATE" else None
        numbers = (score, usable_number(extra.get("price")), usable_number(extra.get("qty")))
        outcome = outcome if isinstance(outcome, str) else None
        inputs = orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode()
        found.append(
            (ts, symbol, kind, before, after, outcome, reason, *numbers, inputs, bool(ending and ending[0]))
        )
    schema: dict[str, Any] = {
        "timestamp": pl.Int64,
        **dict.fromkeys(("symbol", "event_type", "from_state", "to_state", "outcome", "reason"), pl.String),
        **dict.fromkeys(_NUMBERS, pl.Float64),
        "inputs": pl.String,
        "ending": pl.Boolean,
    }
    frame = pl.DataFrame(found, schema=schema, orient="row")
    return frame.with_columns(pl.col("timestamp").cast(_UTC))


def _differing(
    kind: str, table: pl.DataFrame, event: str, moment: pl.Expr, endings: tuple[str, str]
) -> pl.DataFrame:
    """Return the counted rows of a table that are not identical, in the form of ``Fidelity.differences``."""
    rows = table.filter(pl.col("status").is_in(_COUNTED[1:]))
    values: tuple[list[str | None], list[str | None]] = ([], [])
    for row in rows.iter_rows(named=True):
        names = [name for name in (row["what"] or "").split(", ") if f"{name}{endings[1]}" in row]
        for side, ending in zip(values, endings, strict=True):
            shown = {name: row[f"{name}{ending}"] for name in names}
            side.append(orjson.dumps(shown, default=str).decode() if shown else None)
    nothing = pl.lit(None, dtype=pl.String)
    decision = kind == "decision"
    return rows.select(
        pl.lit(kind).alias("kind"),
        "status",
        moment.alias("timestamp"),
        "symbol",
        pl.col(event).alias("event"),
        "what",
        pl.Series("logged", values[0], dtype=pl.String),
        pl.Series("replayed", values[1], dtype=pl.String),
        (pl.col("reason") if decision else nothing).alias("reason"),
        (pl.col("reason_replayed") if decision else nothing).alias("reason_replayed"),
        (pl.col("inputs") if decision else nothing).alias("inputs"),
    )


def _share(table: pl.DataFrame) -> float | None:
    counted = table.filter(pl.col("status").is_in(_COUNTED))
    return float((counted["status"] == "identical").mean()) if counted.height else None  # type: ignore[arg-type]


def _percent(share: float | None) -> str:
    # 99.999 % must not read as all.
    return "100 %" if share == 1.0 else f"{min((share or 0.0) * 100, 99.99):.2f} %"


@dataclass(frozen=True)
class _Carried:
    """What a symbol brought into the range: until when, and whether it was a position or order, or a cooldown.

    ``ends_idle``: no cooldown followed (an entry that never filled, a position that a hole ended).
    """

    until: int | None
    in_position: bool
    ends_idle: bool = False


def _carried_in(logged: pl.DataFrame) -> dict[str, _Carried]:
    """Read from the log which symbols began the range with something open, and when that ended."""
    found = {}
    rows = logged.with_columns(pl.col("timestamp").dt.timestamp("ns"))
    for (symbol,), part in rows.group_by("symbol", maintain_order=True):
        began = part["from_state"][0]
        if began == "COOLDOWN":
            end = part.filter(pl.col("to_state") != "COOLDOWN")
        elif began in ("PENDING_ENTRY", "LONG", "SHORT"):
            end = part.filter(pl.col("event_type").is_in(_ENDINGS))
        else:
            continue
        until = int(end["timestamp"][0]) if end.height else None
        idle = end.height > 0 and end["to_state"][0] == "IDLE"
        found[str(symbol)] = _Carried(until, began != "COOLDOWN", ends_idle=idle)
    return found


def _without_added_cooldown(replayed: pl.DataFrame, carried: Mapping[str, _Carried]) -> pl.DataFrame:
    """Return replayed decisions with IDLE in place of a cooldown that ends with what a symbol carried in.

    The model lets a cooldown follow everything carried, so the builder moves the end of what had none ahead by one.
    """
    for symbol, held in carried.items():
        if held.in_position and held.ends_idle:
            later = (pl.col("symbol") == symbol) & (pl.col("timestamp") >= _moment(held.until))
            left = (pl.col("from_state") == "COOLDOWN") & (pl.col("to_state") != "COOLDOWN")
            first = later & left & (later.cum_sum() == 1)
            state = pl.when(first).then(pl.lit("IDLE")).otherwise("from_state")
            replayed = replayed.with_columns(from_state=state)
    return replayed


def _with_carried(
    initial_state: Mapping[str, Any] | None, carried: Mapping[str, _Carried], cooldown_ns: int
) -> InitialState:
    """Return the initial state with what the log shows as carried in, where the session does not know it."""
    initial = InitialState.read(initial_state)
    symbols = dict(initial.symbols)
    for symbol, what in carried.items():
        start = initial.of(symbol)
        if start.carried is not None or start.last_exit_ns is not None:
            continue
        if what.in_position:
            symbols[symbol] = replace(start, carried=Carried(what.until, ()))
        else:
            # A cooldown without an end in the log lasts to the end of the range.
            end = _NO_END if what.until is None else what.until
            symbols[symbol] = replace(start, last_exit_ns=end - cooldown_ns)
    return replace(initial, symbols=symbols)


def signal_agreement(recorded: pl.DataFrame, recomputed: pl.DataFrame) -> dict[str, Any]:
    """Compare recorded scores and regimes with recomputed ones: counts, and the first 20 differences.

    Both frames: timestamp, type, symbol, payload (JSON string).
    """
    table = compare_decisions(_signals(recorded), _signals(recomputed))
    counts = dict(table["status"].value_counts().iter_rows())
    gap = (table["score"] - table["score_replayed"]).abs().max()
    differing = table.filter(pl.col("status") != "identical").head(20)
    return {
        "recorded": table.height - counts.get("added", 0),
        **{name: counts.get(name, 0) for name in _COUNTED},
        "maxDifference": gap if isinstance(gap, float) else 0.0,
        "differences": [
            {
                "ts": int(row["timestamp"]),
                "symbol": row["symbol"],
                "type": row["event_type"],
                "recorded": row["outcome"] if row["score"] is None else row["score"],
                "recomputed": row["outcome_replayed"]
                if row["score_replayed"] is None
                else row["score_replayed"],
            }
            for row in differing.with_columns(pl.col("timestamp").dt.timestamp("ns")).iter_rows(named=True)
        ],
    }


def _signals(events: pl.DataFrame) -> pl.DataFrame:
    """Return the usable scores and regimes of session events as decisions without states."""
    rows: list[tuple[Any, ...]] = []
    chosen = events.filter(pl.col("type").is_in(["SCORING_UPDATE", "REGIME_UPDATE"]))
    columns = (pl.col("timestamp").dt.timestamp("ns"), "symbol", "type", "payload")
    for ts, symbol, kind, text in chosen.select(columns).iter_rows():
        payload = orjson.loads(text)
        regime, score, side = payload.get("regime"), usable_number(payload.get("score")), payload.get("side")
        if kind == "REGIME_UPDATE":
            value: dict[str, Any] | None = {"regime": regime} if isinstance(regime, str) else None
        elif score is None:
            value = None
        else:
            value = {"score": {"LONG": abs(score), "SHORT": -abs(score)}.get(side, score)}
        if value is not None:
            rows.append((ts, symbol, kind, None, None, None, value))
    return _decisions(rows)
