"""The order router: what it would send to an exchange goes to the order log, each order with its final status.

>>> OrderRouter("SIM", run_mode="REPLAY").mode
'SIM'

Fills come from the trading model, not from an exchange: replaylab has no exchange connector. ``mode`` says in each
record what kind of system made it.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

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
from replaylab.trading.positions import Position


class Recorder(Protocol):
    """Anything with these methods; ``replaylab.logging.Logger`` is one. What they return is not looked at."""

    def log_state_event(self, symbol: str, event: StateEvent) -> Any: ...

    def log_trade(self, record: TradeLogRecord) -> Any: ...

    def log_order(self, record: OrderLogRecord) -> Any: ...

    def write_risk_snapshot(self, snapshot: RiskSnapshot) -> Any: ...

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot) -> Any: ...

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot) -> Any: ...


class Stamp:
    """ISO text of an event's time. Many records share one time, so the last text is kept."""

    __slots__ = ("_text", "_ts")

    def __init__(self) -> None:
        self._ts = -1
        self._text = ""

    def __call__(self, ts: int) -> str:
        if ts != self._ts:
            self._ts = ts
            self._text = iso(ts)
        return self._text


Mode = Literal["SIM", "DRY_RUN", "LIVE"]


class OrderRouter:
    """Numbers orders and records them. Without a recorder it keeps nothing and costs next to nothing.

    With ``run_mode="REPLAY"`` a router in mode LIVE cannot be made: InterlockError.
    """

    def __init__(
        self,
        mode: str = "SIM",
        *,
        run_mode: str = "LIVE",
        recorder: Recorder | None = None,
        stamp: Stamp | None = None,
    ) -> None:
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
        self._recorder = recorder
        self._stamp = stamp if stamp is not None else Stamp()
        self._sent = 0
        # Open orders by id: type, side, qty, price, trigger price, reduce only, source, notional.
        self._open: dict[str, OrderLogRecord] = {}

    @property
    def records(self) -> bool:
        """Whether anybody listens: the caller may skip its preparations if not."""
        return self._recorder is not None

    @property
    def open_orders(self) -> int:
        """Orders that are neither filled nor cancelled; 0 while nothing is recorded."""
        return len(self._open)

    def market(
        self, ts: int, symbol: str, buy: bool, qty: float, price: float, reduce_only: bool, source: str
    ) -> str:
        """Submit a market order. ``price`` is the last one known, for the notional only."""
        return self._new(ts, symbol, buy, "MARKET", "IOC", None, None, qty, reduce_only, qty * price, source)

    def limit(self, ts: int, symbol: str, buy: bool, qty: float, price: float) -> str:
        """Submit a reduce-only limit order of the TPSL engine."""
        return self._new(ts, symbol, buy, "LIMIT", "GTC", price, None, qty, True, qty * price, "TPSL_ENGINE")

    def stop(self, ts: int, symbol: str, buy: bool, qty: float, trigger: float) -> str:
        """Submit a reduce-only stop order of the TPSL engine."""
        return self._new(
            ts, symbol, buy, "STOP_MARKET", "GTC", None, trigger, qty, True, qty * trigger, "TPSL_ENGINE"
        )

    def filled(self, order_id: str, ts: int, price: float, qty: float) -> None:
        """Record the fill of an order; an unknown or empty id is nobody's order and is passed over."""
        order = self._open.pop(order_id, None)
        if order is None or self._recorder is None:
            return
        self._recorder.log_order(
            _copy(order, self._stamp(ts), "FILLED", qty, filled=qty, average=price, notional=qty * price)
        )

    def cancel(self, order_id: str, ts: int) -> None:
        """Record that an order was taken back."""
        order = self._open.pop(order_id, None)
        if order is not None and self._recorder is not None:
            self._recorder.log_order(
                _copy(
                    order,
                    self._stamp(ts),
                    "CANCELED",
                    order.qty,
                    filled=0.0,
                    average=None,
                    notional=order.notional_usd,
                )
            )

    # The exits of a position.

    def rest_exits(self, ts: int, position: Position, tp1_on: bool) -> None:
        """Place TP1, TP2 and the stop of a position that was just opened."""
        if self._recorder is None:
            return
        buy = position.direction < 0
        rest = position.qty
        if tp1_on:
            position.order_tp1 = self.limit(ts, position.symbol, buy, position.tp1_qty, position.tp1)
            rest = position.qty - position.tp1_qty
        if rest > 0.0:
            position.order_tp2 = self.limit(ts, position.symbol, buy, rest, position.tp2)
        position.order_stop = self.stop(ts, position.symbol, buy, position.qty, position.stop)

    def move_stop(self, ts: int, position: Position) -> None:
        """Take the resting stop back and place one at the position's new stop."""
        if self._recorder is None:
            return
        self.cancel(position.order_stop, ts)
        position.order_stop = self.stop(
            ts, position.symbol, position.direction < 0, position.left, position.stop
        )

    def cancel_exits(self, ts: int, position: Position) -> None:
        """Take back whatever still rests for a position that is closed."""
        if self._open:
            for order_id in (
                position.order_tp1,
                position.order_tp2,
                position.order_stop,
                position.order_exit,
            ):
                self.cancel(order_id, ts)

    def _new(
        self,
        ts: int,
        symbol: str,
        buy: bool,
        kind: str,
        time_in_force: str,
        price: float | None,
        trigger: float | None,
        qty: float,
        reduce_only: bool,
        notional: float,
        source: str,
    ) -> str:
        if self._recorder is None:
            return ""
        self._sent += 1
        order_id = f"{symbol}-{self._sent:06d}"
        order = OrderLogRecord(
            timestamp=self._stamp(ts),
            client_order_id=order_id,
            exchange_order_id=None,
            symbol=symbol,
            side="BUY" if buy else "SELL",
            type=kind,
            time_in_force=time_in_force,
            price=price,
            trigger_price=trigger,
            qty=qty,
            reduce_only=reduce_only,
            status="NEW",
            filled_qty=0.0,
            avg_fill_price=None,
            notional_usd=notional,
            mode=self.mode,
            source=source,
            last_error=None,
        )
        self._open[order_id] = order
        self._recorder.log_order(order)
        return order_id


def _copy(
    order: OrderLogRecord,
    timestamp: str,
    status: str,
    qty: float,
    *,
    filled: float,
    average: float | None,
    notional: float,
) -> OrderLogRecord:
    return OrderLogRecord(
        timestamp=timestamp,
        client_order_id=order.client_order_id,
        exchange_order_id=order.exchange_order_id,
        symbol=order.symbol,
        side=order.side,
        type=order.type,
        time_in_force=order.time_in_force,
        price=order.price,
        trigger_price=order.trigger_price,
        qty=qty,
        reduce_only=order.reduce_only,
        status=status,
        filled_qty=filled,
        avg_fill_price=average,
        notional_usd=notional,
        mode=order.mode,
        source=order.source,
        last_error=order.last_error,
    )
