"""The order router and the recorder: what a system does goes to the logs, each order with its final status.

>>> OrderRouter("SIM", run_mode="REPLAY").mode
'SIM'

Fills come from the trading model, not from an exchange: replaylab has no exchange connector. ``mode`` says in each
record what kind of system made it.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import msgspec

from replaylab.errors import ConfigError, InterlockError
from replaylab.records import (
    ExecutionSnapshot,
    OrderLogRecord,
    RiskSnapshot,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
)
from replaylab.timestamps import iso
from replaylab.trading.positions import PendingEntry, Position

Mode = Literal["SIM", "DRY_RUN", "LIVE"]


class Recorder(Protocol):
    """Anything with these methods; ``replaylab.logging.Logger`` is one. What they return is ignored."""

    def log_state_event(self, symbol: str, event: StateEvent) -> Any: ...

    def log_trade(self, record: TradeLogRecord) -> Any: ...

    def log_order(self, record: OrderLogRecord) -> Any: ...

    def write_risk_snapshot(self, snapshot: RiskSnapshot) -> Any: ...

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot) -> Any: ...

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot) -> Any: ...


class Journal:
    """Hands state events to the recorder. Without a recorder (``on`` false) nothing is built."""

    __slots__ = ("_stamp", "_ts", "on", "recorder")

    def __init__(self, recorder: Recorder | None) -> None:
        self.on = recorder is not None
        self.recorder = recorder
        self._ts = -1
        self._stamp = ""

    def stamp(self, ts: int) -> str:
        """Return the ISO time of ``ts``. Many records share one time, so the last one is kept."""
        if ts != self._ts:
            self._ts = ts
            self._stamp = iso(ts)
        return self._stamp

    def event(
        self, ts: int, symbol: str, states: tuple[str, str], kind: str, reason: str, extra: dict[str, Any]
    ) -> None:
        """Log a state event; ``states`` are the symbol's state before and after."""
        if self.recorder is not None:
            self.recorder.log_state_event(
                symbol,
                StateEvent(
                    timestamp=self.stamp(ts),
                    symbol=symbol,
                    from_state=states[0],
                    to_state=states[1],
                    event_type=kind,
                    reason=reason,
                    extra=extra,
                ),
            )


class OrderRouter:
    """Numbers orders and records them. Without a recorder it keeps nothing.

    With ``run_mode="REPLAY"`` a router in mode LIVE cannot be made: InterlockError.
    """

    def __init__(self, mode: str = "SIM", *, run_mode: str = "LIVE", journal: Journal | None = None) -> None:
        if mode not in ("SIM", "DRY_RUN", "LIVE"):
            raise ConfigError(f'mode: expected "SIM", "DRY_RUN" or "LIVE", found {mode!r}', field="mode")
        if run_mode not in ("LIVE", "REPLAY"):
            raise ConfigError(f'run_mode: expected "LIVE" or "REPLAY", found {run_mode!r}', field="run_mode")
        if run_mode == "REPLAY" and mode == "LIVE":
            raise InterlockError(
                "run mode is REPLAY: an order router in mode LIVE may not be made. "
                'Use mode "SIM" (or "DRY_RUN"), or set run_mode="LIVE".'
            )
        self.mode: Mode = cast(Mode, mode)
        self._journal = journal if journal is not None else Journal(None)
        self._sent = 0
        self._open: dict[str, OrderLogRecord] = {}

    @property
    def open_orders(self) -> int:
        """Orders without a final status; 0 while nothing is recorded."""
        return len(self._open)

    def enter(self, ts: int, symbol: str, entry: PendingEntry, qty: float, price: float) -> None:
        """Submit an entry. A market order's quantity and ``price`` are those at the last price known."""
        limit = entry.limit is not None
        entry.order = self._new(
            ts,
            symbol,
            "LIMIT" if limit else "MARKET",
            side=entry.direction,
            qty=qty,
            ref=price,
            price=price if limit else None,
            time_in_force="PostOnly" if limit else "IOC",
        )

    def exit_at_market(self, ts: int, position: Position, price: float, source: str) -> str:
        """Submit a market order for what is left; ``price`` is the last one known, for the notional only."""
        side, qty = -position.direction, position.left
        return self._new(ts, position.symbol, "MARKET", side=side, qty=qty, ref=price, source=source)

    def filled(self, order_id: str, ts: int, price: float, qty: float) -> None:
        """Record the fill of an order; an unknown or empty id is ignored."""
        order = self._open.pop(order_id, None)
        if order is not None:
            self._log(
                order,
                timestamp=self._journal.stamp(ts),
                status="FILLED",
                qty=qty,
                filled_qty=qty,
                avg_fill_price=price,
                notional_usd=qty * price,
            )

    def end(self, order_id: str, ts: int, status: str = "CANCELED", error: str | None = None) -> None:
        """Record that an order ended without a fill: CANCELED, REJECTED or EXPIRED."""
        order = self._open.pop(order_id, None)
        if order is not None:
            self._log(order, timestamp=self._journal.stamp(ts), status=status, last_error=error)

    def rest_exits(self, ts: int, position: Position) -> None:
        """Place TP1, TP2 and the stop of a position that was just opened."""
        if not self._journal.on:
            return
        rest = position.qty
        if position.tp1_qty > 0.0:
            position.order_tp1 = self._limit(ts, position, position.tp1_qty, position.tp1)
            rest = position.qty - position.tp1_qty
        if rest > 0.0:
            position.order_tp2 = self._limit(ts, position, rest, position.tp2)
        position.order_stop = self._stop(ts, position)

    def move_stop(self, ts: int, position: Position) -> None:
        """Cancel the resting stop and place one at the position's new stop."""
        if self._journal.on:
            self.end(position.order_stop, ts)
            position.order_stop = self._stop(ts, position)

    def cancel_exits(self, ts: int, position: Position) -> None:
        """Cancel whatever still rests for a position that is closed."""
        if self._open:
            for order_id in (
                position.order_tp1,
                position.order_tp2,
                position.order_stop,
                position.order_exit,
            ):
                self.end(order_id, ts)

    def _limit(self, ts: int, position: Position, qty: float, price: float) -> str:
        return self._new(
            ts,
            position.symbol,
            "LIMIT",
            side=-position.direction,
            qty=qty,
            ref=price,
            price=price,
            time_in_force="GTC",
            source="TPSL_ENGINE",
        )

    def _stop(self, ts: int, position: Position) -> str:
        return self._new(
            ts,
            position.symbol,
            "STOP_MARKET",
            side=-position.direction,
            qty=position.left,
            ref=position.stop,
            trigger=position.stop,
            time_in_force="GTC",
            source="TPSL_ENGINE",
        )

    def _new(
        self,
        ts: int,
        symbol: str,
        kind: str,
        *,
        side: float,
        qty: float,
        ref: float,
        price: float | None = None,
        trigger: float | None = None,
        time_in_force: str = "IOC",
        source: str = "",
    ) -> str:
        """Record a new order and return its id; one without a ``source`` is the state machine's entry."""
        if self._journal.recorder is None:
            return ""
        self._sent += 1
        order = OrderLogRecord(
            timestamp=self._journal.stamp(ts),
            client_order_id=f"{symbol}-{self._sent:06d}",
            exchange_order_id=None,
            symbol=symbol,
            side="BUY" if side > 0 else "SELL",
            type=kind,
            time_in_force=time_in_force,
            price=price,
            trigger_price=trigger,
            qty=qty,
            reduce_only=bool(source),
            status="NEW",
            filled_qty=0.0,
            avg_fill_price=None,
            notional_usd=qty * ref,
            mode=self.mode,
            source=source or "STATE_MACHINE",
            last_error=None,
        )
        self._open[order.client_order_id] = order
        self._journal.recorder.log_order(order)
        return order.client_order_id

    def _log(self, order: OrderLogRecord, **changes: Any) -> None:
        if self._journal.recorder is not None:
            self._journal.recorder.log_order(msgspec.structs.replace(order, **changes))
