"""Why live and model differ: the PnL of the recorded trades minus that of the model's, by cause.

::

    report = reconcile(session)              # or lab.reconcile(session_id, {"latency_ms": 80})
    report.summary                           # one sentence: how much, and from what
    report.causes                            # a row per cause: PnL, number of trades
    report.trades                            # a row per trade: live, model, and the difference by cause
    report.plot()                            # a waterfall from the model's PnL to the live one

Recorded and recomputed trades are paired as in ``what_if``. In a pair, facts of the live trade take the place of the
model's one at a time, and the model computes what would have followed; each cause gets the mean of its effect over all
orders in which the facts can be put in (Shapley value, L. S. Shapley, "A value for n-person games", 1953). The parts
therefore add up to the difference exactly, and a fact that is the same on both sides gets nothing.

A trade of one side alone, at a moment when the other side was still in a position, is a consequence of that position's
end: its PnL goes to the causes that moved that end, in proportion to how far each moved it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab import frames
from replaylab.errors import ReplayError
from replaylab.params import TradingParams
from replaylab.replay.order_log import NEAR_NS, LiveTrade, Orders, live_trade
from replaylab.sessions import Session
from replaylab.sweep import (
    Outcome,
    Positions,
    Tape,
    backtest,
    comparable_trades,
    open_tape,
    pair_trades,
    shapley,
)

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
# The facts of a pair, in the order of a trade's life; the other two causes are no facts that one can put in.
FACTS = (
    *("signal", "entry_delay", "entry_price", "quantity"),
    *("exit_decision", "exit_delay", "exit_price", "fees", "funding"),
)
CAUSES = ("signal", "missed_entry", *FACTS[1:], "unexplained")
MEANING = {
    "signal": "decided otherwise: an entry that the other side did not decide, or decided on another signal",
    "missed_entry": "an entry order that never filled",
    "entry_delay": "from the decision to the fill of the entry",
    "entry_price": "the entry's price beyond what the model pays at that moment",
    "quantity": "another quantity, after rejects and partial fills too",
    "exit_decision": "another rule closed the position, or the same rule at another level",
    "exit_delay": "from the exit's decision, or the touch of the stop, to its fill",
    "exit_price": "the exit's price beyond what the model pays at that moment",
    "fees": "other fees or rebates",
    "funding": "other funding",
    "unexplained": "recorded PnL that its own prices, quantity, fees and funding do not give",
}
# Below this share of paired trades the model does not describe the bot.
_DESCRIBED = 0.5
# Relative difference up to which two floats are one number.
_CLOSE = 1e-9
# Without an order log: how long after the model's exit a live exit for the same reason is the same decision.
_SAME_EXIT_NS = 60_000_000_000
_TARGETS = ("TP1", "TP2")
_ENDS = ("SESSION_END", "DATA_GAP")


@dataclass(repr=False, kw_only=True)
class Reconciliation(Outcome):
    """Live PnL minus model PnL, split by cause; all of it in USD.

    ``trades``: a row per trade of either side, with ``status`` "paired", "live_only" or "model_only", the values of
    both, ``difference`` and a column per cause. ``reasons``: sentences that say why the model does not describe the
    bot, empty where it does. ``notes``: what was assumed for want of records. ``carried_in``, ``cut_off``: as in
    ``WhatIf``, not compared.
    """

    trades: pl.DataFrame
    reasons: list[str]
    notes: list[str]
    carried_in: pl.DataFrame
    cut_off: pl.DataFrame

    def __repr__(self) -> str:
        return f"<Reconciliation {self.session_id}: {self.summary}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{cause}</td><td style='text-align:right'>{pnl:+,.2f}</td>"
            f"<td style='text-align:right'>{n:,}</td><td style='text-align:left'>{escape(meaning)}</td></tr>"
            for cause, pnl, n, meaning in self.causes.select("cause", "pnl", "trades", "meaning").iter_rows()
        )
        lines = "".join(f"<li>{escape(line)}</li>" for line in (*self.reasons, *self.notes))
        return (
            f"<div><b>Live against model</b> in {escape(str(self.session_id))}: {escape(self.summary)}"
            f"<ul>{lines}</ul><table><thead><tr><th>cause</th><th>USD</th><th>trades</th><th></th></tr></thead>"
            f"<tbody>{rows}</tbody></table>{escape(self.assumptions)}</div>"
        )

    @property
    def live_pnl(self) -> float:
        """Realised PnL of the recorded trades (USD)."""
        return float(self.trades["pnl_live"].sum())

    @property
    def model_pnl(self) -> float:
        """Realised PnL of the model's trades (USD)."""
        return float(self.trades["pnl_model"].sum())

    @property
    def difference(self) -> float:
        """Live PnL minus model PnL (USD): the sum of ``causes``."""
        return float(self.trades["difference"].sum())

    @property
    def matched(self) -> float | None:
        """Share of the recorded trades that have a partner in the model; None without recorded trades."""
        live = self.trades.filter(pl.col("status") != "model_only")
        return float((live["status"] == "paired").mean()) if live.height else None  # type: ignore[arg-type]

    @property
    def is_described(self) -> bool:
        """Whether the model describes this bot: at least half of the recorded trades have a partner."""
        return self.matched is not None and self.matched >= _DESCRIBED

    @cached_property
    def causes(self) -> pl.DataFrame:
        """``cause, pnl, trades, meaning``: the difference by cause, largest first; ``trades``: how many have a part."""
        parts = ((name, self.trades[name]) for name in CAUSES)
        rows = [(name, float(p.sum()), int((p.abs() > 1e-9).sum()), MEANING[name]) for name, p in parts]
        schema = {"cause": pl.String, "pnl": pl.Float64, "trades": pl.Int64, "meaning": pl.String}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        return frame.sort(pl.col("pnl").abs(), descending=True, maintain_order=True)

    @property
    def summary(self) -> str:
        """One sentence: whether the model describes the bot, the difference and its largest causes."""
        counts = dict(self.trades["status"].value_counts().iter_rows())
        paired, live = counts.get("paired", 0), counts.get("paired", 0) + counts.get("live_only", 0)
        if not live:
            return f"no recorded trades to compare, {counts.get('model_only', 0):,} of the model"
        head = ""
        if not self.is_described:
            because = self.reasons[0] if self.reasons else "no reason found"
            head = f"the model does not describe this bot ({paired:,} of {live:,} trades match): {because}; "
        text = (
            f"{head}live {self.live_pnl:+,.2f} USD, model {self.model_pnl:+,.2f} USD, "
            f"difference {self.difference:+,.2f} USD"
        )
        largest = self.causes.filter(pl.col("pnl").abs() > 0.005).head(3)
        if not largest.height:
            return f"{text}; {paired:,} of {live:,} trades match"
        parts = ", ".join(
            f"{name.replace('_', ' ')} {pnl:+,.2f}"
            for name, pnl in largest.select("cause", "pnl").iter_rows()
        )
        return f"{text}: {parts}"

    def plot(self) -> Figure:
        """Plot a waterfall: the model's PnL, the causes, the live PnL."""
        from replaylab import plots

        title = f"{self.session_id}: live against model"
        if not self.is_described:
            title += " (the model does not describe this bot)"
        steps = dict(self.causes.filter(pl.col("pnl").abs() > 1e-9).select("cause", "pnl").iter_rows())
        return plots.waterfall(self.model_pnl, steps, self.live_pnl, title=title)

    def to_dict(self) -> dict[str, Any]:
        """Return totals, causes, reasons and notes as plain data."""
        return {
            "sessionId": self.session_id,
            "summary": self.summary,
            "isDescribed": self.is_described,
            "matched": self.matched,
            "livePnl": self.live_pnl,
            "modelPnl": self.model_pnl,
            "difference": self.difference,
            "causes": dict(self.causes.select("cause", "pnl").iter_rows()),
            "reasons": self.reasons,
            "notes": self.notes,
            "paramsSource": self.params_source,
            "assumptions": self.assumptions,
        }


def reconcile(
    session: Session,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    price_source: str | Mapping[str, str] = "auto",
    default: TradingParams | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Reconciliation:
    """Split the PnL of a session's recorded trades minus that of the model's trades by cause.

    ``params``: None for the recorded ones, a dict of changes to them, or a TradingParams; ``default`` takes their place
    where none were recorded. The live facts are read from the trade log (times, prices, quantity, fees, funding,
    reason) and from the order log (when an order was sent, its kind and price, orders that never filled).

    Raises ReplayError where the range has no recorded trades or no parameters are known, PriceError for a session
    without prices.
    """
    if session.recorded_params is None and default is None and not isinstance(params, TradingParams):
        raise ReplayError(f"{session.id} holds no recorded parameters: name params= to compare with")
    ran = backtest(session, params, price_source=price_source, default=default, cache_dir=cache_dir)
    logged, computed, carried_in, cut_off = comparable_trades(session, ran.trades)
    if logged.is_empty():
        left = f" ({carried_in.height:,} were decided before it)" if carried_in.height else ""
        raise ReplayError(
            f"{session.id}: no recorded trade lies in the session{left}. Reconciliation compares the trade log of "
            "the data root, or EXECUTION_TRADE events of the session, with the model's trades"
        )
    tape, _ = open_tape(session, price_source, cache_dir)
    span = session.manifest.source_date_range
    orders = frames.load_orders(session.root, span.from_, None, list(session.manifest.symbols)).frame
    known = {k: Orders.of(orders, k) for k in session.manifest.symbols}
    unpriced = sorted(set(logged["symbol"]) - set(tape.symbols))
    work = _Work(tape, ran.params, known)
    items = _items(logged, computed, work)
    rows = [(*item.rows, vector) for item, vector in _split(items, work, progress=progress)]
    trades = _table(rows, logged, computed)
    notes = _notes(logged, known, unpriced)
    found = Reconciliation(
        trades=trades,
        reasons=[],
        notes=notes,
        carried_in=carried_in,
        cut_off=cut_off,
        **ran.provenance(),
    )
    if not found.is_described:
        found.reasons = _reasons(items, work, logged)
    return found


# ---- Live facts --------------------------------------------------------------------------------------------


class _Model(NamedTuple):
    """One of the model's trades; ``at``: the price event of its entry, ``decided``: the time of its signal."""

    symbol: str
    direction: float
    entry_ts: int
    exit_ts: int
    entry: float
    close: float
    qty: float
    pnl: float
    reason: str
    at: int
    decided: int

    @property
    def opened(self) -> int:
        return self.decided


@dataclass
class _Item:
    """A pair, or a trade of one side alone; ``rows``: its rows in the logged and the computed trades (−1: none)."""

    live: LiveTrade | None
    model: _Model | None
    rows: tuple[int, int]
    # How far each cause moved the end of the live trade against the model's, as shares of absolute values.
    moved: Array = field(default_factory=lambda: np.zeros(len(CAUSES)))

    @property
    def start(self) -> int:
        return min(side.opened for side in (self.live, self.model) if side is not None)


class _Work:
    """What all trades share: the tape, the model, the order log."""

    def __init__(self, tape: Tape, params: TradingParams, orders: Mapping[str, Orders]) -> None:
        self.tape, self.params, self.orders = tape, params, orders
        self.positions = Positions(tape, params)
        self.maker = params.entry_order == "LIMIT"
        # An order that is sent at a signal's time meets the next price: those of that time came before it.
        self.delay = max(round(params.latency_ms * 1e6), 1)
        self.stop_latency = round(params.stop_latency_ms * 1e6)
        self.cooldown = round(params.cooldown_s * 1e9)
        self.entry_bps = params.maker_fee_bps if self.maker else params.taker_fee_bps

    def prices(self, symbol: str) -> tuple[int, int]:
        """Return the first and the last price event of a symbol."""
        k = self.tape.symbols.index(symbol)
        return int(self.tape.arrays.price_from[k]), int(self.tape.arrays.price_from[k + 1]) - 1

    def first_at(self, symbol: str, ts: int) -> int:
        """Return the first price event at or after ``ts``, the last one where there is none."""
        low, last = self.prices(symbol)
        return min(low + int(np.searchsorted(self.tape.arrays.price_ts[low : last + 1], ts)), last)

    def time(self, at: int) -> int:
        return int(self.tape.arrays.price_ts[at])

    def touched(self, live: LiveTrade, trigger: float, since: int) -> int:
        """Return when the price first reached a stop's trigger after ``since``; the exit's time where it did not."""
        if live.symbol not in self.tape.symbols:
            return live.exit_ts
        low, high = self.first_at(live.symbol, since), self.first_at(live.symbol, live.exit_ts)
        reached = live.direction * (self.tape.arrays.price[low : high + 1] - trigger) <= 0.0
        found = low + int(np.argmax(reached))
        return min(self.time(found), live.exit_ts) if reached.any() else live.exit_ts

    def decided(self, symbol: str, direction: float, at: int, wanted: int | None) -> int:
        """Return when the model decided the entry that filled at the price event ``at``.

        Several signals can lead to the same fill: then ``wanted`` if it is one of them, else the first.
        """
        a, k = self.tape.arrays, self.tape.symbols.index(symbol)
        low = int(a.score_from[k])
        high = low + int(
            np.searchsorted(a.score_index[low : int(a.score_from[k + 1])], int(a.price_index[at]))
        )
        first, last = self.prices(symbol)
        found = self.time(at)
        for x in range(high - 1, low - 1, -1):
            ts = int(a.score_ts[x])
            if not self.maker:
                after = first + int(
                    np.searchsorted(a.price_index[first : last + 1], int(a.score_index[x]), side="right")
                )
                if max(after, self.first_at(symbol, ts + self.delay - 1)) < at:
                    break
            score = direction * float(a.score[x])
            if score >= self.params.entry_threshold and score > 0.0:
                found = ts
                if ts == wanted or self.maker:
                    break
        return found


def _items(logged: pl.DataFrame, computed: pl.DataFrame, work: _Work) -> list[_Item]:
    """Pair the trades of both sides; sorted by the earlier decision of each."""
    # As numbers: datetimes of Python end at microseconds.
    times = pl.col("entry_time", "exit_time").dt.timestamp("ns")
    live = [
        live_trade(row, work.orders.get(row["symbol"]), work.touched)
        for row in logged.with_columns(times).iter_rows(named=True)
    ]
    rows = computed.with_columns(times).to_dicts()
    found = []
    for a, b in pair_trades(logged, computed):
        ours = live[a] if a >= 0 else None
        theirs = _model(rows[b], work, None if ours is None else ours.decided) if b >= 0 else None
        found.append(_Item(ours, theirs, (a, b)))
    return sorted(found, key=lambda item: item.start)


def _model(row: dict[str, Any], work: _Work, wanted: int | None) -> _Model:
    symbol, direction = row["symbol"], 1.0 if row["side"] == "LONG" else -1.0
    low, last = work.prices(symbol)
    at = low + int(np.searchsorted(work.tape.arrays.price_index[low : last + 1], row["entry_index"]))
    return _Model(
        symbol,
        direction,
        work.time(at),
        row["exit_time"],
        row["entry_price"],
        row["close_price"],
        row["qty"],
        row["realized_pnl"],
        row["reason"],
        at,
        work.decided(symbol, direction, at, wanted),
    )


# ---- The game of a pair ------------------------------------------------------------------------------------


class _Exit(NamedTuple):
    """An exit of a counterfactual: its time, the price of the whole, and its parts as (share, price, maker)."""

    ts: int
    close: float
    parts: tuple[tuple[float, float, bool], ...]
    funding: float


class _Pair:
    """PnL and exit time of a pair under any set of live facts."""

    def __init__(self, live: LiveTrade, model: _Model, work: _Work) -> None:
        self.live, self.model, self.work = live, model, work
        self._exits: dict[tuple[Any, ...], _Exit] = {}
        self.decided = min(model.decided if live.decided is None else live.decided, live.entry_ts)
        # None: the model's own delay, which leads to the same price event.
        self.delay: int | None = live.entry_ts - self.decided
        expected = model.entry_ts
        if self.decided != model.decided:
            expected = work.time(work.first_at(model.symbol, self.decided + work.delay))
        if live.entry_ts == expected:
            self.delay = None
        # An exit that did not change with the entry: no level of it hangs on the entry.
        same_close = abs(live.close - model.close) <= _CLOSE * live.close
        self.same_end = live.exit_ts == model.exit_ts and live.reason == model.reason and same_close
        self.entry_offset = self.exit_offset = self.extra_fees = 0.0
        everything = set(FACTS)
        self.entry_offset = live.entry - self._entry(everything)[1]
        self._judge_exit(self._entry(everything)[0])
        found = self._exit(everything)
        self.exit_offset = live.close - found.close
        notional = live.qty * (live.entry + live.close)
        fees = self._fees(live.qty, live.entry, found)
        self.extra_fees = (live.fees - fees) / notional if notional else 0.0

    def value(self, facts: set[str]) -> tuple[float, float]:
        """Return PnL (USD) and exit time (ns after the model's) with these live facts in the model's trade."""
        live, model = self.live, self.model
        _, entry = self._entry(facts)
        found = self._exit(facts)
        close = found.close + (self.exit_offset if "exit_price" in facts else 0.0)
        qty = self._qty(facts)
        fees = self._fees(qty, entry, found, self.exit_offset if "exit_price" in facts else 0.0)
        if "fees" in facts:
            fees += self.extra_fees * qty * (entry + close)
        funding = live.funding if "funding" in facts else found.funding
        pnl = model.direction * (close - entry) * qty - fees + funding
        return pnl, float(found.ts - model.exit_ts)

    def _qty(self, facts: set[str]) -> float:
        return self.live.qty if "quantity" in facts else self.model.qty

    def _fees(self, qty: float, entry: float, found: _Exit, offset: float = 0.0) -> float:
        p = self.work.params
        rates = entry * self.work.entry_bps + sum(
            share * (price + offset) * (p.maker_fee_bps if maker else p.taker_fee_bps)
            for share, price, maker in found.parts
        )
        return qty * rates / 10_000.0

    def _entry(self, facts: set[str]) -> tuple[int, float]:
        """Return the price event and the price of the entry."""
        at = self._entry_at("signal" in facts, "entry_delay" in facts and self.delay is not None)
        price = self.model.entry
        # A resting order has its price.
        if not self.work.maker and (at != self.model.at or "quantity" in facts):
            price = self.work.positions.market_fill(at, self.model.direction * self._qty(facts))
        return at, price + (self.entry_offset if "entry_price" in facts else 0.0)

    def _entry_at(self, signal: bool, delayed: bool) -> int:
        live, model, work = self.live, self.model, self.work
        signal = signal and self.decided != model.decided
        if work.maker and delayed:
            at = work.first_at(model.symbol, live.entry_ts)
        elif work.maker and signal:
            at = work.first_at(model.symbol, max(model.entry_ts, self.decided))
        elif signal or delayed:
            due = self.decided if signal else model.decided
            at = work.first_at(model.symbol, due + ((self.delay or 0) if delayed else work.delay))
        else:
            return model.at
        return model.at if work.time(at) == model.entry_ts else at

    def _judge_exit(self, at: int) -> None:
        """Find out whether the live exit is the model's decision, given the live entry, and whether it was late."""
        live, work = self.live, self.work
        if self.same_end:
            self.same_exit, self.late, self.exit_delay = True, False, 0
            return
        run = self._run(at, live.entry, live.qty)
        if run.decided_ts in live.withdrawn:
            # The same decision; while its order was on the way, something else closed the position.
            live.exit_decided, live.reason, live.exit_kind = run.decided_ts, run.reason, "market"
        same_rule = live.reason is None or live.reason == run.reason
        if live.exit_decided is not None:
            self.same_exit = same_rule and live.exit_decided == run.decided_ts
        else:
            late = live.exit_ts - run.decided_ts
            self.same_exit = same_rule and 0 <= late <= _SAME_EXIT_NS
            if live.reason is None:
                self.same_exit = live.exit_ts == run.exit_ts
            live.exit_decided = run.decided_ts if self.same_exit else live.exit_ts
            live.exit_kind = live.exit_kind or ("limit" if live.reason in _TARGETS else "market")
        self.exit_delay = live.exit_ts - live.exit_decided
        expected = run.exit_ts
        if not self.same_exit:
            # Where the log has the decision only at the fill, no delay is known.
            expected = live.exit_ts
            if self.exit_delay:
                expected = work.time(work.first_at(live.symbol, live.exit_decided + self._model_delay()))
        self.late = live.exit_ts != expected and live.exit_kind != "limit"

    def _run(self, at: int, entry: float, qty: float) -> Any:
        model = self.model
        maker = self.work.maker and at == model.at
        return self.work.positions.run(at, entry, model.direction * qty, maker=maker)

    def _exit(self, facts: set[str]) -> _Exit:
        """Return the exit under these facts; few sets of facts differ in what matters here."""
        decided = "exit_decision" in facts and not self.same_exit
        delayed = "exit_delay" in facts and self.late
        at, entry = self._entry(set() if self.same_end else facts)
        qty = self._qty(facts)
        key = (at, entry, qty, decided, delayed)
        found = self._exits.get(key)
        if found is None:
            run = self._run(at, entry, qty)
            made = self._as_live if decided else self._as_model
            found = self._exits[key] = made(run, at, qty, delayed)
        return found

    def _as_model(self, run: Any, at: int, qty: float, delayed: bool) -> _Exit:
        """Return the model's own exit, with the live delay where ``delayed``."""
        model, work = self.model, self.work
        ts, price, maker = run.exit_ts, run.price, run.reason in _TARGETS
        due = run.decided_ts + self.exit_delay
        if delayed and due != ts and not maker and run.reason not in _ENDS:
            ts, x = due, max(work.first_at(model.symbol, due), at)
            if work.time(x) != run.exit_ts:
                price = work.positions.market_fill(x, -model.direction * run.left)
        share = run.tp1_qty / qty if run.left > 0.0 else 0.0
        close = run.close_price
        if price != run.price:
            close = share * run.tp1_price + (1.0 - share) * price
        return _Exit(ts, close, ((share, run.tp1_price, True), (1.0 - share, price, maker)), run.funding)

    def _as_live(self, run: Any, at: int, qty: float, delayed: bool) -> _Exit:
        """Return the live exit, with the model's delay unless ``delayed``, at the price that the model gives it."""
        live, model, work = self.live, self.model, self.work
        maker, ts = live.exit_kind == "limit", live.exit_ts
        left = live.left / live.qty
        if maker or live.reason in _ENDS:
            price = live.last_price if math.isnan(live.limit) else live.limit
        else:
            due = ts if delayed or not self.late else (live.exit_decided or 0) + self._model_delay()
            x = work.first_at(model.symbol, due)
            price = work.positions.market_fill(max(x, at), -model.direction * left * qty)
            ts = due if delayed else work.time(x)
        parts = [(size / live.qty, part, made) for part, size, made in live.parts]
        parts.append((left, price, maker))
        return _Exit(ts, sum(share * part for share, part, _ in parts), tuple(parts), run.funding)

    def _model_delay(self) -> int:
        """Return the model's delay of the live exit in ns."""
        if self.live.exit_kind == "stop":
            return self.work.stop_latency
        return 0 if self.live.reason == "TIMEOUT" else self.work.delay

    def matters(self, fact: str) -> bool:
        """Whether a fact differs at all between the two trades."""
        live, model = self.live, self.model
        if fact == "fees":
            return abs(self.extra_fees) > 1e-13
        if fact == "funding":
            return abs(live.funding - self._exit(set(FACTS)).funding) > 1e-12
        return {
            "signal": self.decided != model.decided,
            "entry_delay": self.delay is not None,
            "entry_price": abs(self.entry_offset) > 1e-12 * abs(live.entry),
            "quantity": live.qty != model.qty,
            "exit_decision": not self.same_exit,
            "exit_delay": self.late,
            "exit_price": abs(self.exit_offset) > 1e-12 * abs(live.close),
        }[fact]


def _play(pair: _Pair) -> tuple[dict[str, float], dict[str, float], float]:
    """Return the parts of a pair's PnL difference and of its exit time by fact, and the PnL that no fact explains."""
    active = [name for name in FACTS if pair.matters(name)]
    sets = [
        {name for bit, name in enumerate(active) if number >> bit & 1} for number in range(1 << len(active))
    ]
    values = np.array([pair.value(facts) for facts in sets])
    parts = shapley(values)
    unexplained = (pair.live.pnl - values[-1, 0]) + (values[0, 0] - pair.model.pnl)
    pnl = {name: float(parts[bit, 0]) for bit, name in enumerate(active)}
    moved = {name: float(parts[bit, 1]) for bit, name in enumerate(active)}
    return pnl, moved, float(unexplained)


# ---- All trades --------------------------------------------------------------------------------------------


def _split(items: list[_Item], work: _Work, *, progress: bool) -> Iterator[tuple[_Item, Array]]:
    """Yield each item with its difference by cause."""
    from tqdm.auto import tqdm

    by_symbol: dict[str, list[_Item]] = {}
    for item in items:
        symbol = (item.live or item.model).symbol  # type: ignore[union-attr]
        by_symbol.setdefault(symbol, []).append(item)
    with tqdm(
        total=len(items), unit=" trades", desc="reconciling", disable=not progress or len(items) < 500
    ) as bar:
        for group in by_symbol.values():
            blockers = _Blockers(group, work.cooldown)
            for item in group:
                yield item, _vector(item, work, blockers)
                bar.update()


class _Blockers:
    """The trades of each side of one symbol, to ask which one kept the other side's entry from being decided."""

    def __init__(self, items: list[_Item], cooldown: int) -> None:
        self._sides: dict[str, tuple[list[_Item], Array, Array]] = {}
        for side in ("live", "model"):
            held = sorted(
                (item for item in items if getattr(item, side) is not None),
                key=lambda item: getattr(item, side).opened,
            )
            opened = np.array([getattr(item, side).opened for item in held], dtype=np.int64)
            until = np.array([getattr(item, side).exit_ts + cooldown for item in held], dtype=np.int64)
            self._sides[side] = (held, opened, until)

    def of(self, side: str, ts: int, other: _Item) -> _Item | None:
        """Return the item whose trade of ``side`` was on (or in its cooldown) at ``ts``; None, or ``other`` itself."""
        held, opened, until = self._sides[side]
        place = int(np.searchsorted(opened, ts, side="right")) - 1
        for k in range(place, max(place - 3, -1), -1):
            if held[k] is not other and ts < until[k]:
                return held[k]
        return None


def _vector(item: _Item, work: _Work, blockers: _Blockers) -> Array:
    """Return an item's difference by cause, and keep in ``item.moved`` what moved its end."""
    vector = np.zeros(len(CAUSES))
    live, model = item.live, item.model
    if live is not None and model is not None:
        pnl, moved, unexplained = _play(_Pair(live, model, work))
        for name, part in pnl.items():
            vector[CAUSES.index(name)] += part
        vector[-1] += unexplained
        weights = np.zeros(len(CAUSES))
        for name, part in moved.items():
            weights[CAUSES.index(name)] += abs(part)
        signal = CAUSES.index("signal")
        if vector[signal] or weights[signal]:
            blocker = blockers.of("live", model.decided, item) or blockers.of("model", live.opened, item)
            if blocker is not None and blocker.moved.any():
                for shares in (vector, weights):
                    shifted = float(shares[signal])
                    shares[signal] = 0.0
                    shares += shifted * blocker.moved
        total = weights.sum()
        item.moved = weights / total if total else weights
        return vector
    if live is not None:
        difference, blocker = live.pnl, blockers.of("model", live.opened, item)
    else:
        assert model is not None
        difference, blocker = -model.pnl, blockers.of("live", model.decided, item)
    if blocker is not None and blocker.moved.any():
        item.moved = blocker.moved
    else:
        item.moved[CAUSES.index(_alone(live, model, work))] = 1.0
    return difference * item.moved


def _alone(live: LiveTrade | None, model: _Model | None, work: _Work) -> str:
    """Return the cause of a trade that only one side has, while the other was flat."""
    if model is not None:
        orders = work.orders.get(model.symbol)
        missed = orders is not None and orders.never_filled(
            model.decided, model.exit_ts, buys=model.direction > 0.0
        )
        return "missed_entry" if missed else "signal"
    assert live is not None
    return "missed_entry" if work.maker and _has_signal(live, work) else "signal"


def _has_signal(live: LiveTrade, work: _Work, within: int = NEAR_NS) -> bool:
    """Whether a signal that passes the entry threshold precedes a live entry by at most ``within`` ns."""
    if live.symbol not in work.tape.symbols:
        return False
    a, k = work.tape.arrays, work.tape.symbols.index(live.symbol)
    low, high = int(a.score_from[k]), int(a.score_from[k + 1])
    first, last = np.searchsorted(a.score_ts[low:high], [live.opened - within, live.opened + 1]) + low
    scores = live.direction * a.score[first:last]
    return bool(((scores >= work.params.entry_threshold) & (scores > 0.0)).any())


def _table(rows: list[tuple[int, int, Array]], logged: pl.DataFrame, computed: pl.DataFrame) -> pl.DataFrame:
    """Return the trades of both sides with the difference by cause, by time."""
    left = pl.Series("place", [row[0] for row in rows], dtype=pl.Int64).replace(-1, None)
    right = pl.Series("place", [row[1] for row in rows], dtype=pl.Int64).replace(-1, None)
    names = ("entry_time", "exit_time", "entry_price", "close_price", "qty", "reason", "fees")
    sides = {}
    for end, frame, place in (("live", logged, left), ("model", computed, right)):
        chosen = frame.select("symbol", "side", *names, pnl="realized_pnl").select(
            pl.all().name.suffix(f"_{end}")
        )
        sides[end] = chosen.select(pl.all().gather(place))
    table = pl.concat([sides["live"], sides["model"]], how="horizontal")
    vectors = np.array([row[2] for row in rows]).reshape(len(rows), len(CAUSES))
    status = (
        pl.when(pl.col("symbol_model").is_null())
        .then(pl.lit("live_only"))
        .when(pl.col("symbol_live").is_null())
        .then(pl.lit("model_only"))
        .otherwise(pl.lit("paired"))
    )
    largest = [CAUSES[k] for k in np.abs(vectors).argmax(axis=1)] if len(rows) else []
    table = table.with_columns(
        time=pl.coalesce("entry_time_live", "entry_time_model"),
        symbol=pl.coalesce("symbol_live", "symbol_model"),
        side=pl.coalesce("side_live", "side_model"),
        status=status,
        difference=pl.col("pnl_live").fill_null(0.0) - pl.col("pnl_model").fill_null(0.0),
        cause=pl.Series(largest, dtype=pl.String),
        **{name: pl.Series(vectors[:, k]) for k, name in enumerate(CAUSES)},
    )
    same = pl.col("difference").abs() <= _CLOSE * pl.max_horizontal(
        pl.col("pnl_live").abs(), pl.col("pnl_model").abs(), pl.lit(1e-3)
    )
    table = table.with_columns(cause=pl.when(~same.fill_null(value=False)).then("cause"))
    both = [f"{name}_{end}" for name in names for end in ("live", "model")]
    return table.sort("time", "symbol", maintain_order=True).select(
        *("time", "symbol", "side", "pnl_live", "pnl_model", "difference", "cause", "status"), *CAUSES, *both
    )


def _notes(logged: pl.DataFrame, orders: Mapping[str, Orders], unpriced: list[str]) -> list[str]:
    """Say what was assumed where the logs do not tell."""
    found = []
    unknown = int(logged["fees"].null_count())
    if unknown:
        found.append(f"{unknown:,} recorded trades have no fees: taken from their prices and PnL")
    if not any(known.filled for known in orders.values()):
        found.append("no order log: live decisions are taken to be the model's where the reasons agree")
    if unpriced:
        found.append(f"no prices in the session for {', '.join(unpriced)}: its trades are live only")
    return found


def _reasons(items: list[_Item], work: _Work, logged: pl.DataFrame) -> list[str]:
    """Say why most recorded trades have no partner, the likeliest reason first."""
    live = [item.live for item in items if item.live is not None]
    models = sum(item.model is not None for item in items)
    found: list[tuple[float, str]] = []
    sent = [o for known in work.orders.values() for o in (*known.filled, *known.unfilled) if not o.reduces]
    unfilled = sum(o.filled < 0 for o in sent)
    if unfilled > 0.3 * len(sent) and not work.maker:
        text = f"{unfilled:,} of its {len(sent):,} entry orders never filled (maker entries)"
        found.append((unfilled / len(sent), f'{text}: compare with entry_order="LIMIT"'))
    priced = [trade for trade in live if trade.symbol in work.tape.symbols]
    tape = [float(work.tape.arrays.price[work.first_at(t.symbol, t.entry_ts)]) for t in priced]
    apart = [abs(t.entry / price - 1.0) * 1e4 for t, price in zip(priced, tape, strict=True)]
    if apart and (bps := float(np.median(apart))) > 20.0:
        text = f"its entries are {bps:,.0f} bps (median) off the session's prices"
        found.append((0.99, f"{text}: another price source or clock"))
    without = sum(not _has_signal(trade, work, 60_000_000_000) for trade in live)
    if without > 0.3 * len(live):
        text = f"{without:,} of {len(live):,} recorded entries follow no signal that passes entry_threshold"
        text = f"{text} {work.params.entry_threshold:g}: other limits, or signals that are not in the session"
        found.append((without / len(live), text))
    if models > 2 * len(live) or len(live) > 2 * models:
        text = f"{models:,} trades of the model against {len(live):,} recorded ones"
        found.append((0.3, f"{text}: other thresholds, cooldown or limits"))
    overlap = _overlapping(logged)
    if overlap > 0.1 * len(live):
        text = f"{overlap:,} recorded trades overlap others of their symbol"
        found.append((0.5, f"{text}: several strategies in one log"))
    return [text for _, text in sorted(found, reverse=True)]


def _overlapping(trades: pl.DataFrame) -> int:
    """Count the trades that begin before an earlier one of their symbol ended."""
    ended = pl.col("exit_time").cum_max().shift(1).over("symbol")
    return int(trades.sort("entry_time").select((pl.col("entry_time") < ended).sum()).item())
