"""What the trading system knows about one symbol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replaylab.features import InitialState, SymbolStart
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


class SymbolState:
    """One symbol: its state, its pending entry or open position, its last price, book and signals.

    ``market_fill``: the fill model in force. ``book_ts``: time of the book's last change. ``carried``: a position or
    pending entry from before the session is still on. ``last_index`` is −1 before the first price event.
    """

    __slots__ = (
        "blocked",
        "book",
        "book_ts",
        "carried",
        "cooldown_end",
        "instrument",
        "last_index",
        "last_price",
        "last_ts",
        "market_fill",
        "pending",
        "position",
        "regime",
        "score",
        "source",
        "state",
        "symbol",
    )

    def __init__(self, symbol: str, start: SymbolStart, instrument: Instrument) -> None:
        self.symbol = symbol
        self.source: str | None = None
        self.market_fill = "print"
        self.instrument = instrument
        self.state = IDLE
        self.regime = start.regime
        self.blocked = start.trading_blocked
        self.book = start.order_book()
        self.book_ts = -NEVER
        self.cooldown_end = -NEVER
        self.carried = False
        self.pending: PendingEntry | None = None
        self.position: Position | None = None
        self.last_price: float | None = None
        self.last_index = -1
        self.last_ts = 0
        self.score: float | None = None

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
        position = self.position
        price = self.last_price
        shown: dict[str, Any] = {
            "symbol": self.symbol,
            "state": self.state,
            "score": self.score,
            "regime": self.regime,
            "blocked": self.blocked,
            "price": price,
            "side": None,
            "qty": None,
            "entry_price": None,
            "unrealized_pnl": None,
            "tp1_price": None,
            "tp2_price": None,
            "stop_price": None,
            "stop_reason": None,
        }
        if position is not None:
            shown |= {
                "side": position.side,
                "qty": position.left,
                "entry_price": position.entry,
                "unrealized_pnl": None if price is None else position.unrealized(price),
                "tp1_price": position.tp1,
                "tp2_price": position.tp2,
                "stop_price": position.stop,
                "stop_reason": position.stop_reason,
            }
        return shown


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
        state = SymbolState(
            symbol, start, Instrument.read(self._instruments.get(symbol), rounding=params.rounding)
        )
        state.source = self._prices.sources.get(symbol)
        state.market_fill = self._prices.market_fill(symbol, params.market_fill)
        if self.blocked_by_default is not None:
            state.blocked = self.blocked_by_default
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
