"""What a session starts from: the one reader of ``initialState`` (``meta.json``).

>>> state = InitialState.read({"symbols": {"BTCUSDT": {"regime": "CALM", "lastExitAt": "2025-11-18T09:59:00Z"}}})
>>> state.of("BTCUSDT").regime, state.of("ETHUSDT").regime
('CALM', None)
>>> state.of("BTCUSDT").last_exit_ns
1763459940000000000

Trading system, sweep, datasets and replays read it here, so that all start from the same values. Times become integer
ns since 1970. Source: the trading model, "Inputs" and "Carried state".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from replaylab.errors import SessionError, TimeError
from replaylab.features.book import Levels, OrderBook, read_levels, usable_number
from replaylab.timestamps import NS_PER_DAY, parse_ns


class CarriedPart(NamedTuple):
    """PnL (quote currency) that a carried position realises at ``ns``, on that time's UTC day."""

    ns: int
    realized_pnl: float


class Carried(NamedTuple):
    """A position or pending entry that was on at the start. ``closed_ns`` None: it stays to the end."""

    closed_ns: int | None
    parts: tuple[CarriedPart, ...]


class AccountStart(NamedTuple):
    """The account's UTC day (``day``: days since 1970) before the session's start."""

    day: int
    realized_pnl: float
    lowest_realized_pnl: float
    entries: int


@dataclass(frozen=True, slots=True)
class SymbolStart:
    """One symbol at the start of the session. ``book``: checked (bids, asks), None where there was no usable one."""

    regime: str | None = None
    trading_blocked: bool = False
    book: tuple[Levels, Levels] | None = None
    carried: Carried | None = None
    last_exit_ns: int | None = None

    def order_book(self) -> OrderBook:
        """Return a new OrderBook with the levels of ``book``; an empty one where there is none."""
        book = OrderBook()
        if self.book is not None:
            book.reset(*self.book)
        return book


_NOTHING = SymbolStart()


@dataclass(frozen=True, slots=True)
class InitialState:
    """All symbols and the account at the start; ``InitialState()`` starts from nothing.

    ``read`` takes a session's ``initial_state``. A malformed book is none, a regime that is not a string is none, a
    ``tradingBlocked`` that is not true is false. Malformed ``carried``, ``lastExitAt`` or ``account`` would change
    results silently, so they raise SessionError.
    """

    symbols: Mapping[str, SymbolStart] = field(default_factory=dict)
    account: AccountStart | None = None

    @classmethod
    def read(cls, value: InitialState | Mapping[str, Any] | None) -> InitialState:
        """Return the typed form of ``initialState``; None and an InitialState are allowed. Raises SessionError."""
        if isinstance(value, InitialState):
            return value
        if not isinstance(value, Mapping):
            return cls()
        entries = value.get("symbols")
        items = entries.items() if isinstance(entries, Mapping) else ()
        symbols = {
            name: _symbol(entry, f"initialState.symbols.{name}")
            for name, entry in items
            if isinstance(name, str) and isinstance(entry, Mapping)
        }
        return cls(symbols, _account(value.get("account")))

    def of(self, symbol: str) -> SymbolStart:
        """Return the start of one symbol; one that is not named starts from nothing."""
        return self.symbols.get(symbol, _NOTHING)


def _symbol(entry: Mapping[str, Any], where: str) -> SymbolStart:
    regime = entry.get("regime")
    return SymbolStart(
        regime=regime if isinstance(regime, str) else None,
        trading_blocked=entry.get("tradingBlocked") is True,
        book=_book(entry.get("book")),
        carried=_carried(entry.get("carried"), f"{where}.carried"),
        last_exit_ns=_time(entry.get("lastExitAt"), f"{where}.lastExitAt"),
    )


def _book(value: Any) -> tuple[Levels, Levels] | None:
    if not isinstance(value, Mapping):
        return None
    bids, asks = read_levels(value.get("bids")), read_levels(value.get("asks"))
    return None if bids is None or asks is None else (bids, asks)


def _carried(value: Any, where: str) -> Carried | None:
    if value is None:
        return None
    parts = value.get("parts", []) if isinstance(value, Mapping) else None
    if not isinstance(parts, list | tuple):
        raise SessionError(f"{where}: expected {{closedAt, parts: [...]}} or null, found {value!r:.80}")
    read = []
    for part in parts:
        found = part if isinstance(part, Mapping) else {}
        ns = _time(found.get("timestamp"), f"{where}.parts.timestamp")
        if ns is None:
            raise SessionError(f"{where}.parts: expected {{timestamp, realizedPnl}}, found {part!r:.80}")
        read.append(CarriedPart(ns, _number(found.get("realizedPnl"), f"{where}.parts.realizedPnl")))
    return Carried(_time(value.get("closedAt"), f"{where}.closedAt"), tuple(read))


def _account(value: Any) -> AccountStart | None:
    if value is None:
        return None
    where = "initialState.account"
    if not isinstance(value, Mapping):
        raise SessionError(f"{where}: expected an object or null, found {value!r:.80}")
    day = _time(value.get("dateKey"), f"{where}.dateKey")
    if day is None:
        raise SessionError(f'{where}.dateKey: expected a UTC day such as "2025-11-18", found nothing')
    realized = _number(value.get("realizedPnl", 0.0), f"{where}.realizedPnl")
    lowest = _number(value.get("lowestRealizedPnl", min(realized, 0.0)), f"{where}.lowestRealizedPnl")
    if lowest > realized:
        raise SessionError(f"{where}: lowestRealizedPnl {lowest} is above realizedPnl {realized}")
    entries = value.get("entries", 0)
    if isinstance(entries, bool) or not isinstance(entries, int) or entries < 0:
        raise SessionError(f"{where}.entries: expected a whole number ≥ 0, found {entries!r}")
    return AccountStart(day // NS_PER_DAY, realized, lowest, entries)


def _time(value: Any, where: str) -> int | None:
    if value is None:
        return None
    try:
        return parse_ns(value)
    except TimeError as error:
        raise SessionError(f"{where}: {error}") from None


def _number(value: Any, where: str) -> float:
    number = usable_number(value)
    if number is None:
        raise SessionError(f"{where}: expected a finite number, found {value!r:.80}")
    return number
