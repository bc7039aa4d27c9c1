"""Fills: what a price event does to a pending entry and to an open position, and what is recorded of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import UNSET

from replaylab.errors import ReplayError
from replaylab.features import VISIBLE_LEVELS
from replaylab.records import TradeLogRecord
from replaylab.timestamps import date_key, iso
from replaylab.trading import formulas
from replaylab.trading.exit_rules import CLOSE, HOLD, ExitRule, FeatureRows, OpenTrade
from replaylab.trading.orders import Journal, OrderRouter
from replaylab.trading.positions import ClosedTrade, Fill, PendingEntry, Position, RestingLimit
from replaylab.trading.risk import RiskEngine, Snapshots
from replaylab.trading.rules import Rules
from replaylab.trading.state import IDLE, LONG, NEVER, PENDING_ENTRY, SHORT, SymbolState

_STOPS = ("STOP_LOSS", "BREAK_EVEN", "TRAILING")
_NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class EntryCounts:
    """Entries that never became a position; ``cancelled`` ones, by a hole (counted on their own too) or at the end."""

    expired: int = 0
    rejected: int = 0
    cancelled: int = 0
    cancelled_by_hole: int = 0


class Execution:
    """Submits orders for the state machine and fills them at price events, as the model says."""

    def __init__(
        self,
        rules: Rules,
        risk: RiskEngine,
        router: OrderRouter,
        journal: Journal,
        snapshots: Snapshots,
        schedule: Callable[[int, Callable[[int], None]], None],
        *,
        rule: ExitRule | None = None,
        features: FeatureRows | None = None,
    ) -> None:
        self._rules = rules
        self._risk = risk
        self._router = router
        self._journal = journal
        self._snapshots = snapshots
        self._schedule = schedule
        self._rule, self._features = rule, features
        self._limit_fill = rules.params.limit_fill
        # Without a limit: longer than all sessions.
        self._max_gap_ns = rules.max_gap_ns if rules.max_gap_ns >= 0 else NEVER
        self._max_hold_ns = rules.max_hold_ns if rules.max_hold_ns >= 0 else NEVER
        self._trailing = rules.params.trailing_activation_pct is not None
        self.trades: list[ClosedTrade] = []
        self.counts = EntryCounts()

    # Orders of the state machine.

    def submit_entry(self, state: SymbolState, ts: int, direction: float) -> PendingEntry | None:
        """Submit an entry; None where a LIMIT entry has no reference price."""
        p = self._rules.params
        price = state.last_price or 0.0
        entry = PendingEntry(direction, ts + self._rules.latency_ns)
        if p.entry_order == "LIMIT":
            reference = self._entry_reference(state, ts, direction)
            if reference is None:
                return None
            raw = formulas.limit_entry_price(reference, direction, p.entry_offset_bps)
            price = entry.limit = formulas.rounded_price(raw, -direction, *state.instrument.tick)
        qty = self._qty(state, price) if price > 0.0 else 0.0
        entry.qty = qty
        state.pending = entry
        state.state = PENDING_ENTRY
        self._risk.entry_decided(ts)
        if self._journal.on:
            self._router.enter(ts, state.symbol, entry, qty, price)
            self._snapshots.changed()
        return entry

    def submit_exit(self, state: SymbolState, position: Position, ts: int, reason: str) -> None:
        """Submit a market exit; the first one submitted stands."""
        position.exit_reason = reason
        position.exit_due = ts + self._rules.latency_ns
        if self._journal.on:
            position.order_exit = self._exit_at_market(state, position, ts, "STATE_MACHINE")
            self._snapshots.changed()

    def settle_funding(self, state: SymbolState, ts: int, rate: float, mark: float | None) -> None:
        """Settle funding on an open position, at the mark price or else at the symbol's last price."""
        position = state.position
        if position is not None:
            price = position.entry if state.last_price is None else state.last_price
            self._risk.realised(ts, position.settle(price if mark is None else mark, rate))
            self._snapshots.changed()

    # Price events.

    def on_price(
        self, state: SymbolState, index: int, ts: int, price: float, payload: Mapping[str, Any] = _NOTHING
    ) -> None:
        """Take one price event of a symbol; ``payload`` is that of the event: a queue counts its quantity."""
        if ts - state.last_ts > self._max_gap_ns and state.last_index >= 0:
            self._end_at_hole(state, ts, price)
        state.last_price = price
        state.last_index = index
        state.last_ts = ts
        position = state.position
        if position is not None:
            if price > position.high:
                position.high = price
            elif price < position.low:
                position.low = price
            reason = self._exit_due(state, position, ts, price, payload)
            if reason:
                self._close(state, position, ts, reason)
            return
        entry = state.pending
        if entry is None:
            return
        if entry.resting is not None:
            if entry.resting.fills(price, self._limit_fill, payload):
                self._open(state, entry, Fill(entry.resting.price), entry.qty)
        elif ts >= entry.due:
            self._arrive(state, entry, ts, price)

    def end_entry(self, state: SymbolState, ts: int, status: str, reason: str) -> None:
        """End a pending entry without a fill: the symbol is flat again."""
        entry = state.pending
        if entry is None:
            return
        counts = self.counts
        if status == "EXPIRED":
            counts.expired += 1
        elif status == "REJECTED":
            counts.rejected += 1
        else:
            counts.cancelled += 1
        state.pending = None
        state.state = IDLE
        self._risk.position_gone()
        if self._journal.on:
            self._router.end(entry.order, ts, status, reason if status == "REJECTED" else None)
            extra = {"reason": reason, "price": entry.limit, "qty": entry.qty}
            self._log(state, ts, PENDING_ENTRY, "EXECUTION_CANCEL", reason, extra)
            self._snapshots.changed()

    def end(self, states: list[SymbolState], ts: int) -> None:
        """Close what is open at its symbol's last price event and cancel entries that were never filled."""
        for state in states:
            position = state.position
            if position is not None:
                self._close(state, position, state.last_ts, "SESSION_END")
            elif state.pending is not None:
                self.end_entry(state, ts, "CANCELED", "session end")

    # Entries.

    def _entry_reference(self, state: SymbolState, ts: int, direction: float) -> float | None:
        """Return the price behind which a LIMIT entry rests: the best quote of its own side, else the last price."""
        if self._book_usable(state, ts):
            best = state.book.best_bid() if direction > 0.0 else state.book.best_ask()
            if best is not None:
                return best[0]
        return state.last_price

    def _arrive(self, state: SymbolState, entry: PendingEntry, ts: int, price: float) -> None:
        """Let an entry order arrive at a price event: a market order fills, a LIMIT order rests, or it is rejected."""
        direction, limit = entry.direction, entry.limit
        best = self._opposite(state, ts, direction)
        if limit is None:
            fill = state.market_fill if best is not None else "print"
            quote = price if best is None else best
            ref = formulas.market_price(quote, direction, self._rules.slippage_bps(fill))
            qty = self._qty(state, ref)
        else:
            ref, qty = limit, entry.qty
        if ref <= 0.0 or formulas.too_small(qty, ref, state.instrument.min_notional_usd):
            self.end_entry(
                state, ts, "REJECTED", "price not above zero" if ref <= 0.0 else "size below minimum"
            )
        elif limit is None:
            self._open(state, entry, self._market_fill(state, qty, direction, ts, price), qty)
        elif (
            formulas.target_hit(limit, best, direction)
            if best is not None
            else formulas.traded_through(limit, price, direction)
        ):
            self.end_entry(state, ts, "REJECTED", "post-only order would take")
        else:
            entry.resting = RestingLimit(limit, qty, -direction)
            self._queue(state, entry.resting, ts)
            if self._rules.entry_ttl_ns >= 0:
                self._schedule(ts + self._rules.entry_ttl_ns, partial(self._expire, state, entry))

    def _expire(self, state: SymbolState, entry: PendingEntry, ts: int) -> None:
        if state.pending is entry:
            self.end_entry(state, ts, "EXPIRED", "time to live over")

    def _open(self, state: SymbolState, entry: PendingEntry, fill: Fill, qty: float) -> None:
        """Open a position at the symbol's current price event."""
        rules, ts, price = self._rules, state.last_ts, state.last_price or 0.0
        p = rules.params
        position = Position.open(
            rules,
            state.symbol,
            state.instrument,
            direction=entry.direction,
            fill=fill,
            qty=qty,
            index=state.last_index,
            ts=ts,
            printed=price,
        )
        if self._limit_fill == "queue":
            self._queue(state, position.target1, ts)
            self._queue(state, position.target2, ts)
        state.pending = None
        state.position = position
        state.state = LONG if entry.direction > 0 else SHORT
        maker = entry.limit is not None
        self._risk.realised(ts, position.pay_entry(p.maker_fee_bps if maker else p.taker_fee_bps))
        if self._journal.on:
            self._router.filled(entry.order, ts, position.entry, position.qty)
            extra = {"reason": "ENTRY", "price": position.entry, "qty": position.qty}
            self._log(state, ts, PENDING_ENTRY, "EXECUTION_FILL", "entry filled", extra)
            self._router.rest_exits(ts, position)
            self._snapshots.changed(position)
        if maker and formulas.stop_hit(price, position.stop, position.direction):
            # A price that jumped through both the limit and the stop.
            reason = self._touch_stop(position, ts)
            if reason:
                self._close(state, position, ts, reason)
        else:
            self._trail(position, ts, price)

    def _qty(self, state: SymbolState, ref: float) -> float:
        return formulas.rounded_qty(self._rules.qty(ref), *state.instrument.lot)

    # Exits.

    def _exit_due(
        self, state: SymbolState, position: Position, ts: int, price: float, payload: Mapping[str, Any]
    ) -> str:
        """Take one later price event; return the reason to close what is left, or "" to stay open."""
        direction = position.direction
        if position.closing_due is not None:
            return position.stop_reason if ts >= position.closing_due else ""
        if formulas.stop_hit(price, position.stop, direction):
            return self._touch_stop(position, ts)
        # No limit fill model fills an order that the price does not reach.
        if (
            position.tp1_qty > 0.0
            and not position.tp1_filled
            and formulas.target_hit(price, position.tp1, direction)
            and position.target1.fills(price, self._limit_fill, payload)
        ):
            self._fill_tp1(state, position, ts)
            if position.left <= 0.0:
                return "TP1"
            self._break_even(position, ts)
        # No else: one jump can fill both targets.
        if formulas.target_hit(price, position.tp2, direction) and position.target2.fills(
            price, self._limit_fill, payload
        ):
            return "TP2"
        if self._rule is not None and self._ask(self._rule, state, position, ts, price):
            return "RULE"
        if ts - position.entry_ts >= self._max_hold_ns:
            return "TIMEOUT"
        if position.exit_reason is not None and ts >= position.exit_due:
            return position.exit_reason
        if self._trailing:
            self._trail(position, ts, price)
        return ""

    def _ask(self, rule: ExitRule, state: SymbolState, position: Position, ts: int, price: float) -> bool:
        """Let an exit rule decide at a price; return whether it closes. Raises ReplayError for a rule at fault."""
        long = position.direction > 0.0
        trade = OpenTrade(
            position.direction,
            position.entry,
            position.entry_ts / 1e9,
            (ts - position.entry_ts) / 1e9,
            position.high if long else position.low,
            position.low if long else position.high,
            position.qty,
            position.left,
            position.stop,
            1.0 if position.tp1_filled else 0.0,
        )
        row = None
        if rule.features and self._features is not None:
            row = rule.view(*self._features.at(state.symbol, rule.row_time(position.entry_ts, ts)))
        try:
            answer = rule.ask(trade, price, row)
        except Exception as error:  # the user's own
            raise self._fault(rule, f"raised {type(error).__name__}: {error}", position, state) from error
        if answer == CLOSE:
            return True
        if answer == HOLD:
            return False
        if not 0.0 < answer < math.inf:
            raise self._fault(rule, f"returned {answer!r}", position, state)
        self._tighten(position, ts, answer, "RULE")
        return False

    @staticmethod
    def _fault(rule: ExitRule, what: str, position: Position, state: SymbolState) -> ReplayError:
        return ReplayError(
            f"{rule!r} {what} for the trade that entered at event {position.entry_index}, at event "
            f"{state.last_index} (price {state.last_price:g}): expected HOLD, CLOSE or a price above 0"
        )

    def _touch_stop(self, position: Position, ts: int) -> str:
        """Return the reason to close at a stop that was touched, or "" while its latency passes."""
        position.touched = True
        if self._rules.stop_latency_ns == 0:
            return position.stop_reason
        position.closing_due = ts + self._rules.stop_latency_ns
        return ""

    def _fill_tp1(self, state: SymbolState, position: Position, ts: int) -> None:
        self._risk.realised(ts, position.fill_tp1(self._rules.params.maker_fee_bps))
        if self._journal.on:
            self._router.filled(position.order_tp1, ts, position.tp1, position.tp1_qty)
            if position.left > 0.0:
                extra = {"reason": "TP1", "price": position.tp1, "qty": position.tp1_qty}
                self._log(state, ts, state.state, "EXECUTION_PARTIAL", "TP1", extra)
            self._snapshots.changed(position)

    def _break_even(self, position: Position, ts: int) -> None:
        offset = self._rules.params.break_even_offset_pct
        if offset is not None:
            stop = formulas.break_even_price(position.entry, position.direction, offset)
            self._tighten(position, ts, stop, "BREAK_EVEN")

    def _trail(self, position: Position, ts: int, price: float) -> None:
        """Raise the best price and, once trailing is active, the stop; it acts from the next price event on."""
        p = self._rules.params
        activation = p.trailing_activation_pct
        if activation is None:
            return
        direction = position.direction
        if direction * (price - position.best) > 0.0:
            position.best = price
        if formulas.trailing_active(position.best, position.entry, direction, activation):
            stop = formulas.trailing_price(position.best, direction, p.trailing_distance_pct)
            self._tighten(position, ts, stop, "TRAILING")

    def _tighten(self, position: Position, ts: int, price: float, reason: str) -> None:
        """Move the stop to the tick of ``price`` if that is tighter."""
        # Rounding goes away from the market: what is not tighter before it is not tighter after it.
        if not formulas.tightens(price, position.stop, position.direction):
            return
        stop = position.stop_level(price)
        if formulas.tightens(stop, position.stop, position.direction):
            position.stop = stop
            position.stop_reason = reason
            self._router.move_stop(ts, position)

    def _end_at_hole(self, state: SymbolState, ts: int, price: float) -> None:
        """End what is open at the price event before a hole, and cancel what is pending.

        ``ts`` and ``price`` are the first ones after it: orders and state events are logged at that time, when the
        hole becomes known.
        """
        position = state.position
        if position is not None:
            self._close(state, position, ts, "DATA_GAP", after=price)
        elif state.pending is not None:
            self.counts.cancelled_by_hole += 1
            self.end_entry(state, ts, "CANCELED", "data gap")

    def _close(
        self, state: SymbolState, position: Position, ts: int, reason: str, *, after: float | None = None
    ) -> None:
        """Close what is left at the symbol's current price event; ``after``: the first price after a hole."""
        p = self._rules.params
        left, fee_bps, gap_pnl = position.left, p.taker_fee_bps, None
        if reason in ("TP1", "TP2"):
            fill, fee_bps = Fill(position.tp1 if reason == "TP1" else position.tp2), p.maker_fee_bps
        elif reason in ("SESSION_END", "DATA_GAP"):
            fill = self._print_fill(position, state.last_price or 0.0)
            if after is not None:
                gap_pnl = position.pnl_at(self._print_fill(position, after).price, fee_bps)
        else:
            fill = self._market_fill(state, left, -position.direction, ts, state.last_price or 0.0)
        close_price, realised = position.close(fill, fee_bps, reason)
        trade = ClosedTrade.of(
            position,
            state.last_index,
            state.last_ts,
            close_price,
            reason,
            leverage=p.leverage,
            gap_pnl=gap_pnl,
        )
        if reason == "DATA_GAP":
            self._risk.balance += realised
        elif reason != "TP1":
            self._risk.realised(ts, realised, check=reason != "SESSION_END")
        self._risk.position_gone()
        self._risk.trade_closed(trade.realized_pnl)
        self.trades.append(trade)
        state.position = None
        before = state.state
        if reason == "DATA_GAP":
            state.state = IDLE
        else:
            state.cool_down(ts + self._rules.cooldown_ns, ts)
        if self._journal.recorder is None:
            return
        if reason != "TP1":
            self._router.filled(self._exit_order(state, position, ts, reason), ts, fill.price, left)
        if position.exit_reason is not None:
            # At the session's end ts is that of the last price: the exit may have been submitted after it.
            self._router.end(position.order_exit, max(ts, position.exit_due - self._rules.latency_ns))
        self._router.cancel_exits(ts, position)
        qty = position.tp1_qty if reason == "TP1" else left
        extra = {"reason": reason, "price": fill.price, "qty": qty}
        self._log(state, ts, before, "EXECUTION_EXIT", reason, extra)
        self._journal.recorder.log_trade(_trade_record(trade, self._router.mode))
        self._snapshots.changed(position)

    def _exit_order(self, state: SymbolState, position: Position, ts: int, reason: str) -> str:
        """Return the order that an exit fills; a market exit without an order yet gets one."""
        if reason == "TP2":
            return position.order_tp2
        if reason in _STOPS or (reason == "RULE" and position.touched):
            return position.order_stop
        if reason in ("SCORE_EXIT", "RISK_EXIT"):
            return position.order_exit
        source = "TPSL_ENGINE" if reason in ("TIMEOUT", "RULE") else "STATE_MACHINE"
        return self._exit_at_market(state, position, ts, source)

    def _exit_at_market(self, state: SymbolState, position: Position, ts: int, source: str) -> str:
        price = position.entry if state.last_price is None else state.last_price
        return self._router.exit_at_market(ts, position, price, source)

    # Fill models.

    def _book_usable(self, state: SymbolState, ts: int) -> bool:
        """Whether the fill model in force reads the book, and the book is complete and young enough."""
        if state.market_fill == "print":
            return False
        return self._book_current(state, ts)

    def _book_current(self, state: SymbolState, ts: int) -> bool:
        age = self._rules.max_book_age_ns
        return state.book.mid() is not None and (age < 0 or ts - state.book_ts <= age)

    def _opposite(self, state: SymbolState, ts: int, side: float) -> float | None:
        """Return the best quote that an order would take, None where the book is not used."""
        if not self._book_usable(state, ts):
            return None
        best = state.book.best_ask() if side > 0.0 else state.book.best_bid()
        return None if best is None else best[0]

    def _print_fill(self, position: Position, price: float) -> Fill:
        """Fill an exit at a print, whatever the fill model."""
        slippage = self._rules.slippage_bps("print")
        return Fill(formulas.market_price(price, -position.direction, slippage))

    def _market_fill(self, state: SymbolState, qty: float, side: float, ts: int, price: float) -> Fill:
        """Fill a market order of ``side`` +1 (buy) or −1 (sell) at a price event."""
        best = self._opposite(state, ts, side)
        if best is None:
            return Fill(formulas.market_price(price, side, self._rules.slippage_bps("print")))
        slippage = self._rules.slippage_bps(state.market_fill)
        printed = formulas.market_price(price, side, slippage)
        thin = False
        if state.market_fill == "quote":
            fill = formulas.market_price(best, side, slippage)
        else:
            cost, left = 0.0, qty
            level = best
            for level, available in state.book.top(VISIBLE_LEVELS)[1 if side > 0.0 else 0]:
                taken = left if left < available else available
                cost += level * taken
                left -= taken
                if left <= 0.0:
                    break
            thin = left > 0.0
            if thin:
                cost += level * left
            fill = formulas.book_price(cost, qty, side, slippage)
        return Fill(formulas.worse_price(fill, printed, side), thin)

    def _queue(self, state: SymbolState, order: RestingLimit, ts: int) -> None:
        """Give an order that arrives its place in the queue: what is displayed at its price, 0 inside the spread."""
        if self._limit_fill != "queue" or not self._book_current(state, ts):
            return
        bids, asks = state.book.top(VISIBLE_LEVELS)
        displayed = dict(asks if order.side > 0.0 else bids).get(order.price)
        if displayed is None and bids[0][0] < order.price < asks[0][0]:
            displayed = 0.0
        if displayed is not None:
            order.ahead = self._rules.params.queue_share * displayed

    def _log(
        self, state: SymbolState, ts: int, before: str, kind: str, reason: str, extra: dict[str, Any]
    ) -> None:
        self._journal.event(ts, state.symbol, (before, state.state), kind, reason, extra)


# Fields of a trade that its record has under the same names.
_SAME = (
    *("symbol", "side", "entry_price", "close_price", "qty", "leverage", "realized_pnl", "mfe", "mae"),
    *("duration_seconds", "reason", "tp1_filled", "fees"),
)


def _trade_record(trade: ClosedTrade, mode: Any) -> TradeLogRecord:
    same: dict[str, Any] = {name: getattr(trade, name) for name in _SAME}
    return TradeLogRecord(
        timestamp=iso(trade.exit_ts),
        date_key=date_key(trade.exit_ts),
        mode=mode,
        entry_timestamp=iso(trade.entry_ts),
        funding=trade.funding or UNSET,
        thin=trade.thin or UNSET,
        gap_pnl=UNSET if trade.gap_pnl is None else trade.gap_pnl,
        **same,
    )
