"""What the trading system knows about one symbol, and when the state machine lets it enter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replaylab.errors import ConfigError
from replaylab.features import InitialState, OrderBook
from replaylab.trading.positions import Position
from replaylab.trading.prices import PRICE_SOURCES

IDLE = "IDLE"
PENDING_ENTRY = "PENDING_ENTRY"
LONG = "LONG"
SHORT = "SHORT"
COOLDOWN = "COOLDOWN"


class SymbolState:
    """One symbol: its state, its pending entry or open position, its last price and signals."""

    __slots__ = (
        "blocked",
        "book",
        "cooldown_end",
        "last_index",
        "last_price",
        "last_ts",
        "pending",
        "pending_due",
        "pending_order",
        "position",
        "regime",
        "score",
        "source",
        "state",
        "symbol",
    )

    def __init__(self, symbol: str, source: str | None, blocked: bool, book: OrderBook) -> None:
        self.symbol = symbol
        self.source = source
        self.state = IDLE
        self.regime: str | None = None
        self.blocked = blocked
        self.book = book
        self.cooldown_end = -(2**63)  # Before every time there is.
        # Direction of an entry that waits for its fill; 0 = none.
        self.pending = 0.0
        self.pending_due = 0
        self.pending_order = ""
        self.position: Position | None = None
        self.last_price: float | None = None
        self.last_index = -1
        self.last_ts = 0
        self.score: float | None = None


class SymbolStates(dict[str, SymbolState]):
    """The state of each symbol; one seen for the first time starts from the session's initial state.

    Raises ConfigError for an unknown price source.
    """

    def __init__(self, sources: Mapping[str, str], initial_state: Mapping[str, Any] | None) -> None:
        super().__init__()
        for symbol, source in sources.items():
            if source not in PRICE_SOURCES:
                raise ConfigError(
                    f"price_sources[{symbol!r}]: expected one of {', '.join(PRICE_SOURCES)}, found {source!r}",
                    field="price_sources",
                )
        self.sources = dict(sources)
        # What a RISK_UPDATE for every symbol said last: it holds for symbols first seen later, too.
        self.blocked_by_default = False
        self._initial = InitialState.read(initial_state)
        for symbol in sorted({*self.sources, *self._initial.symbols}):
            self[symbol]

    def __missing__(self, symbol: str) -> SymbolState:
        start = self._initial.of(symbol)
        blocked = start.trading_blocked if symbol in self._initial.symbols else self.blocked_by_default
        state = SymbolState(symbol, self.sources.get(symbol), blocked, start.order_book())
        state.regime = start.regime
        self[symbol] = state
        return state

    def sorted(self) -> list[SymbolState]:
        """Return the states by name of symbol."""
        return [self[symbol] for symbol in sorted(self)]


def view(state: SymbolState) -> dict[str, Any]:
    """Return what a hotlist shows of a symbol; None where there is nothing."""
    position = state.position
    price = state.last_price
    shown: dict[str, Any] = {
        "symbol": state.symbol,
        "state": state.state,
        "score": state.score,
        "regime": state.regime,
        "blocked": state.blocked,
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
