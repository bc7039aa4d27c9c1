"""Where a symbol's price events come from: its trades, its book, or the prices in its scoring events.

>>> resolve_price_sources([("MARKET_TRADE", "BTCUSDT", {"price": 50_000.0})], "auto")
{'BTCUSDT': 'trade'}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from replaylab.errors import ConfigError, did_you_mean
from replaylab.features import OrderBook, read_levels, usable_price

__all__ = ["PRICE_SOURCES", "check_price_source", "initial_book", "resolve_price_sources"]

PRICE_SOURCES = ("trade", "book", "score")


def check_price_source(source: object, symbol: str | None = None) -> str:
    """Return ``source`` if it is "auto", "trade", "book" or "score"; raises ConfigError."""
    allowed = ("auto", *PRICE_SOURCES)
    if not isinstance(source, str) or source not in allowed:
        where = f" of {symbol}" if symbol else ""
        hint = did_you_mean(source, allowed) if isinstance(source, str) else ""
        raise ConfigError(
            f'price_source{where}: expected "auto", "trade", "book" or "score", found {source!r}.{hint}',
            field="price_source",
        )
    return source


def initial_book(initial_state: Mapping[str, Any] | None, symbol: str) -> OrderBook:
    """Return the book that stood at the start of a session; an empty one if none is known or it is malformed."""
    book = OrderBook()
    symbols = (initial_state or {}).get("symbols")
    entry = symbols.get(symbol) if isinstance(symbols, Mapping) else None
    levels = entry.get("book") if isinstance(entry, Mapping) else None
    if isinstance(levels, Mapping):
        bids, asks = read_levels(levels.get("bids")), read_levels(levels.get("asks"))
        if bids is not None and asks is not None:
            book.reset(bids, asks)
    return book


def resolve_price_sources(
    events: Iterable[tuple[str, str | None, Mapping[str, Any]]],
    price_source: str | Mapping[str, str] = "auto",
    *,
    initial_state: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the price source of each symbol of a session's ``(type, symbol, payload)`` events.

    "auto" is the first of trade, book, score of which the symbol has a usable price event. A mapping chooses by
    symbol, and symbols that it does not name are "auto". A symbol without usable price events is left out of "auto".
    Raises ConfigError for an unknown source.
    """
    chosen: dict[str, str] = {}
    default = "auto"
    if isinstance(price_source, Mapping):
        chosen = {symbol: check_price_source(source, symbol) for symbol, source in price_source.items()}
    else:
        default = check_price_source(price_source)
    found: dict[str, str] = {}
    books: dict[str, OrderBook] = {}
    for kind, symbol, payload in events:
        if not isinstance(symbol, str) or not isinstance(payload, Mapping):
            continue
        source = chosen.get(symbol, default)
        if source != "auto":
            found[symbol] = source
            continue
        known = found.get(symbol)
        if known == "trade":
            continue
        if kind == "MARKET_TRADE":
            if payload.get("offMarket") is not True and usable_price(payload.get("price")) is not None:
                found[symbol] = "trade"
        elif kind == "MARKET_BOOK":
            if known != "book":
                book = books.get(symbol)
                if book is None:
                    book = books[symbol] = initial_book(initial_state, symbol)
                if book.apply(payload) and book.mid() is not None:
                    found[symbol] = "book"
        elif kind == "SCORING_UPDATE" and known is None and usable_price(payload.get("price")) is not None:
            found[symbol] = "score"
    return found
