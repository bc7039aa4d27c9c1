"""What the trading system knows about one symbol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replaylab.features import InitialState, OrderBook
from replaylab.trading.positions import PendingEntry, Position
from replaylab.trading.prices import ResolvedPrices
from replaylab.trading.rules import Instrument, Rules

IDLE = "IDLE"
PENDING_ENTRY = "PENDING_ENTRY"
LONG = "LONG"
SHORT = "SHORT"
COOLDOWN = "COOLDOWN"
# Before and after every time there is.
NEVER = 1 << 62


@dataclass(slots=True)
class SymbolState:
    """One symbol: its state, its pending entry or open position, its last price, book and signals.

    ``market_fill``: the fill model in force. ``book_ts``: time of the book's last change. ``carried``: a position or
    pending entry from before the session is still on. ``last_index`` is −1 before the first price event.
    """

    symbol: str
    source: str | None
    market_fill: str
    instrument: Instrument
    book: OrderBook
    regime: str | None
    blocked: bool
    state: str = IDLE
    book_ts: int = -NEVER
    cooldown_end: int = -NEVER
    carried: bool = False
    pending: PendingEntry | None = None
    position: Position | None = None
    last_price: float | None = None
    last_index: int = -1
    last_ts: int = 0
    score: float | None = None

    def leave_cooldown(self, ts: int) -> str:
        """Return the state before an event that is handled at ``ts``; a cooldown that is over ends there."""
        before = self.state
        if before == COOLDOWN and ts >= self.cooldown_end:
            self.state = IDLE
        return before

    def cool_down(self, end: int, ts: int) -> None:
        """Be flat from ``ts`` on, with no entry decision before ``end``."""
        self.state = COOLDOWN if end > ts else IDLE
        self.cooldown_end = end

    def view(self) -> dict[str, Any]:
        """Return what a hotlist shows of the symbol; None where there is nothing."""
        position, price = self.position, self.last_price
        shown: dict[str, Any] = {
            "symbol": self.symbol,
            "state": self.state,
            "score": self.score,
            "regime": self.regime,
            "blocked": self.blocked,
            "price": price,
        }
        for name, field in _VIEW.items():
            shown[name] = None if position is None else getattr(position, field)
        shown["unrealized_pnl"] = None if position is None or price is None else position.unrealized(price)
        return shown


# What a view shows of an open position, and the field that it comes from.
_VIEW = {
    "side": "side",
    "qty": "left",
    "entry_price": "entry",
    "tp1_price": "tp1",
    "tp2_price": "tp2",
    "stop_price": "stop",
    "stop_reason": "stop_reason",
}


class SymbolStates(dict[str, SymbolState]):
    """The state of each symbol; one seen for the first time starts from the session's initial state."""

    def __init__(
        self,
        rules: Rules,
        prices: ResolvedPrices,
        initial: InitialState,
        instruments: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__()
        self._rules = rules
        self._prices = prices
        self._initial = initial
        self._instruments = instruments
        # The last RISK_UPDATE for every symbol holds for symbols first seen later, too.
        self.blocked_by_default: bool | None = None
        for symbol in sorted({*prices.sources, *initial.symbols}):
            self[symbol]

    def __missing__(self, symbol: str) -> SymbolState:
        params = self._rules.params
        start = self._initial.of(symbol)
        blocked = start.trading_blocked if self.blocked_by_default is None else self.blocked_by_default
        state = SymbolState(
            symbol=symbol,
            source=self._prices.sources.get(symbol),
            market_fill=self._prices.market_fill(symbol, params.market_fill),
            instrument=Instrument.read(self._instruments.get(symbol), rounding=params.rounding),
            book=start.order_book(),
            regime=start.regime,
            blocked=blocked,
        )
        if start.carried is not None:
            state.carried = True
            state.state = PENDING_ENTRY
        elif start.last_exit_ns is not None:
            state.cooldown_end = start.last_exit_ns + self._rules.cooldown_ns
            state.state = COOLDOWN if self._rules.cooldown_ns > 0 else IDLE
        self[symbol] = state
        return state

    def sorted(self) -> list[SymbolState]:
        """Return the states by name of symbol."""
        return [self[symbol] for symbol in sorted(self)]
