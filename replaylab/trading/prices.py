"""Resolve where each symbol's prices come from, and which symbols have an order book.

>>> events = [("MARKET_TRADE", "BTCUSDT", {"price": 50_000.0})]
>>> resolve_prices(events).sources
{'BTCUSDT': 'trade'}

The one resolver: the trading system, sweeps, labels and replays all take their price sources from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson

from replaylab.errors import PriceError, did_you_mean
from replaylab.features import InitialState, OrderBook, usable_price
from replaylab.params import TradingParams

# In the order in which "auto" prefers them.
PRICE_TYPES = {"trade": "MARKET_TRADE", "book": "MARKET_BOOK", "score": "SCORING_UPDATE"}
PRICE_SOURCES = tuple(PRICE_TYPES)
_SOURCE_OF = {kind: source for source, kind in PRICE_TYPES.items()}
# Rows of each symbol and type that are read first: nearly always the first one settles the question.
_HEAD = 32
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class ResolvedPrices:
    """The price sources of a session.

    ``sources``: symbol → "trade", "book" or "score", sorted, only symbols that have a price event. ``books``: symbols
    whose book has both sides after some event, or at the session's start. ``chosen``: what ``price_source`` asked for.
    """

    sources: dict[str, str]
    books: frozenset[str]
    chosen: str | dict[str, str]

    @classmethod
    def of(cls, sources: Mapping[str, str], books: Iterable[str] = ()) -> Self:
        """Return price sources that are known already; raises PriceError for an unknown one."""
        checked = _checked(sources)
        for symbol, source in sources.items():
            if source not in PRICE_SOURCES:
                raise PriceError(
                    f"price source of {symbol}: expected one of {', '.join(PRICE_SOURCES)}, found {source!r}",
                    symbol=symbol,
                )
        return cls(dict(sorted(sources.items())), frozenset(books), checked)

    def require(self, symbols: Iterable[str]) -> None:
        """Raise PriceError for symbols without a price event; the error names the event types to include."""
        missing = sorted({symbol for symbol in symbols if symbol not in self.sources})
        if not missing:
            return
        wishes = {_wish(self.chosen, symbol) for symbol in missing} - {"auto"}
        types = [PRICE_TYPES[source] for source in PRICE_SOURCES if source in wishes] or [
            "MARKET_TRADE",
            "MARKET_BOOK",
        ]
        source = f" from source {', '.join(sorted(wishes))}" if wishes else ""
        raise PriceError(
            f"no prices{source} in this session for {', '.join(missing)}. Build the session with include_types that "
            f"contain {' or '.join(types)}, or use SCORING_UPDATE events with a price and price_source='score'.",
            symbol=missing[0],
        )

    def market_fill(self, symbol: str, market_fill: str) -> str:
        """Return the market fill in force for a symbol: "auto" is "book" where it has a book, else "print"."""
        if market_fill != "auto":
            return market_fill
        return "book" if symbol in self.books else "print"

    def check_fills(
        self, params: TradingParams, instruments: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Raise PriceError where a fill model lacks the data that it needs for a symbol with a price event."""
        if params.market_fill in ("quote", "book"):
            self._check_books("market_fill", params.market_fill)
        if params.limit_fill == "queue":
            self._check_books("limit_fill", "queue")
            self._check_queue(params, instruments or {})

    def _check_books(self, field: str, fill: str) -> None:
        for symbol in self.sources:
            if symbol not in self.books:
                raise PriceError(
                    f'{field}="{fill}": {symbol} has no order book with both sides in this session. Build the '
                    f"session with include_types that contain MARKET_BOOK, or choose another {field}.",
                    symbol=symbol,
                )

    def _check_queue(self, params: TradingParams, instruments: Mapping[str, Mapping[str, Any]]) -> None:
        for symbol, source in self.sources.items():
            if source != "trade":
                raise PriceError(
                    f'limit_fill="queue": {symbol} takes its prices from source {source}, expected trade. Build the '
                    "session with include_types that contain MARKET_TRADE, or choose another limit_fill.",
                    symbol=symbol,
                )
            tick = (instruments.get(symbol) or {}).get("tickSize")
            if params.rounding != "exchange" or usable_price(tick) is None:
                found = (
                    f'rounding "{params.rounding}"' if params.rounding != "exchange" else f"tickSize {tick!r}"
                )
                raise PriceError(
                    f'limit_fill="queue": expected rounding "exchange" and a tickSize of {symbol}, found {found}. Add '
                    "the tickSize to data/system/instruments.json, or choose another limit_fill.",
                    symbol=symbol,
                )


def resolve_prices(
    session: Any,
    price_source: str | Mapping[str, str] = "auto",
    *,
    initial_state: InitialState | Mapping[str, Any] | None = None,
) -> ResolvedPrices:
    """Return the price source of each symbol of a session, and which symbols have a book.

    ``session``: an object with ``events`` (a polars frame with type, symbol, payload as JSON string) and, where known,
    ``initial_state``; such a frame itself; or an iterable of ``(type, symbol, payload)``, or of frames that follow each
    other. ``price_source``: "trade", "book", "score", "auto" (the first of these of which the symbol has a usable price
    event), or a mapping of symbols to these; a symbol that the mapping omits is "auto". ``initial_state`` replaces the
    session's.

    Raises PriceError for an unknown source, or a symbol in the mapping that the session does not contain.
    """
    events = getattr(session, "events", session)
    if initial_state is None:
        initial_state = getattr(session, "initial_state", None)
    evidence = _Evidence(_checked(price_source), initial_state)
    for part in (events,) if hasattr(events, "group_by") else events:
        if hasattr(part, "group_by"):
            _read_frame(part, evidence)
        else:
            kind, symbol, payload = part
            if isinstance(symbol, str) and symbol:
                evidence.symbols.add(symbol)
                if kind in _SOURCE_OF and isinstance(payload, Mapping):
                    evidence.take(kind, symbol, payload)
    return evidence.resolved()


class _Evidence:
    """Which sources a symbol has yielded a price from, as far as the answer depends on it."""

    def __init__(
        self, chosen: str | dict[str, str], initial_state: InitialState | Mapping[str, Any] | None
    ) -> None:
        self.symbols: set[str] = set()
        self._chosen = chosen
        self._yields: dict[str, set[str]] = {}
        known = InitialState.read(initial_state).symbols
        self._books: dict[str, OrderBook] = {symbol: start.order_book() for symbol, start in known.items()}
        self._with_book = {symbol for symbol, book in self._books.items() if book.mid() is not None}

    def wants(self, kind: str, symbol: str) -> bool:
        """Return whether an event of this type and symbol can still change the answer."""
        source = _SOURCE_OF[kind]
        found = self._yields.get(symbol, ())
        if source in found:
            return False
        if source == "book" and symbol not in self._with_book:
            return True
        wish = _wish(self._chosen, symbol)
        if wish != "auto":
            return source == wish
        return not any(earlier in found for earlier in PRICE_SOURCES[: PRICE_SOURCES.index(source)])

    def take(self, kind: str, symbol: str, payload: Mapping[str, Any]) -> None:
        """Read one event of a symbol; those of one symbol and type come in the order of the session."""
        if not self.wants(kind, symbol):
            return
        if kind == "MARKET_BOOK":
            book = self._books.setdefault(symbol, OrderBook())
            price = book.mid() if book.apply(payload) else None
            if price is not None:
                self._with_book.add(symbol)
        else:
            off_market = kind == "MARKET_TRADE" and payload.get("offMarket") is True
            price = None if off_market else usable_price(payload.get("price"))
        if price is not None:
            self._yields.setdefault(symbol, set()).add(_SOURCE_OF[kind])

    def resolved(self) -> ResolvedPrices:
        if isinstance(self._chosen, dict):
            for symbol in self._chosen:
                if symbol not in self.symbols:
                    raise PriceError(
                        f"price_source names {symbol!r}, which is not in this session."
                        f"{did_you_mean(str(symbol), sorted(self.symbols))}",
                        symbol=str(symbol),
                    )
        sources = {}
        for symbol in sorted(self._yields):
            wish = _wish(self._chosen, symbol)
            wanted = PRICE_SOURCES if wish == "auto" else (wish,)
            source = next((name for name in wanted if name in self._yields[symbol]), None)
            if source is not None:
                sources[symbol] = source
        return ResolvedPrices(sources, frozenset(self._with_book), self._chosen)


def _read_frame(events: Any, evidence: _Evidence) -> None:
    """Read the first rows of each symbol and type, and the others only where those leave a question open."""
    first = events.select("symbol", "type", "payload").group_by("symbol", "type").head(_HEAD)
    found: dict[tuple[str, str], list[str]] = {}
    for symbol, kind, text in first.iter_rows():
        if symbol:
            evidence.symbols.add(symbol)
            found.setdefault((kind, symbol), []).append(text)
    # Trades before books before scores: a source found earlier in this order spares the later ones.
    for kind in PRICE_TYPES.values():
        for symbol in sorted(evidence.symbols):
            texts = found.get((kind, symbol), [])
            for text in texts:
                evidence.take(kind, symbol, _payload(text))
            if len(texts) < _HEAD or not evidence.wants(kind, symbol):
                continue
            for text in _later_rows(events, kind, symbol):
                evidence.take(kind, symbol, _payload(text))
                if not evidence.wants(kind, symbol):
                    break


def _later_rows(events: Any, kind: str, symbol: str) -> Iterator[str]:
    payloads = events.filter(type=kind, symbol=symbol)["payload"]
    for start in range(_HEAD, len(payloads), _BLOCK):
        yield from payloads.slice(start, _BLOCK).to_list()


def _payload(text: str) -> Mapping[str, Any]:
    try:
        payload = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _wish(chosen: str | dict[str, str], symbol: str) -> str:
    return chosen if isinstance(chosen, str) else chosen.get(symbol, "auto")


def _checked(price_source: str | Mapping[str, str]) -> str | dict[str, str]:
    allowed = ("auto", *PRICE_SOURCES)
    chosen = dict(price_source) if isinstance(price_source, Mapping) else {None: price_source}
    for symbol, source in chosen.items():
        if isinstance(source, str) and source in allowed:
            continue
        where = "" if symbol is None else f" of {symbol}"
        hint = did_you_mean(source, allowed) if isinstance(source, str) else ""
        raise PriceError(
            f'price_source{where}: expected "auto", "trade", "book" or "score"'
            f"{' (or a mapping of symbols to these)' if symbol is None else ''}, found {source!r}.{hint}",
            symbol=symbol,
        )
    return dict(price_source) if isinstance(price_source, Mapping) else price_source
