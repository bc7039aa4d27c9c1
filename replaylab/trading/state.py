"""What the trading system knows about one symbol, and when the state machine lets it enter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replaylab.errors import ConfigError
from replaylab.features import OrderBook
from replaylab.trading.positions import Position
from replaylab.trading.prices import PRICE_SOURCES, initial_book
from replaylab.trading.risk import RiskEngine
from replaylab.trading.rules import Rules
from replaylab.trading.scoring import Scorer

__all__ = [
    "COOLDOWN",
    "IDLE",
    "LONG",
    "PENDING_ENTRY",
    "SHORT",
    "SymbolState",
    "SymbolStates",
    "entry_refusal",
]

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
        "scorer",
        "source",
        "state",
        "symbol",
        "touched",
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
        self.scorer: Scorer | None = None
        self.touched = False


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
        self._initial_state = initial_state
        known = (initial_state or {}).get("symbols")
        self._known: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
        for symbol in sorted({*self.sources, *self._known}):
            self[symbol]

    def __missing__(self, symbol: str) -> SymbolState:
        book = initial_book(self._initial_state, symbol)
        state = SymbolState(symbol, self.sources.get(symbol), self.blocked_by_default, book)
        before = self._known.get(symbol)
        if isinstance(before, Mapping):
            regime, blocked = before.get("regime"), before.get("tradingBlocked")
            state.regime = regime if isinstance(regime, str) else None
            state.blocked = blocked if isinstance(blocked, bool) else state.blocked
        self[symbol] = state
        return state

    def sorted(self) -> list[SymbolState]:
        """Return the states by name of symbol."""
        return [self[symbol] for symbol in sorted(self)]


def entry_refusal(rules: Rules, risk: RiskEngine, symbol: SymbolState, ts: int, score: float) -> str | None:
    """Return why a flat symbol with nothing pending does not enter on ``score``, or None if it does."""
    # abs(score) ≥ threshold alone would let a score of 0 in at a threshold of 0.
    if score == 0.0 or abs(score) < rules.entry_threshold:
        return "score below entry threshold"
    # The state alone would do, did no session go back in time after the cooldown was left.
    if symbol.state == COOLDOWN or ts < symbol.cooldown_end:
        return "cooling down"
    if not (rules.allow_long if score > 0 else rules.allow_short):
        return "direction not allowed"
    if rules.allowed_regimes is not None and symbol.regime not in rules.allowed_regimes:
        return "regime not allowed"
    if symbol.blocked:
        return "trading blocked"
    return risk.refusal(ts)
