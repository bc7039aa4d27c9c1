"""The trading model of docs/model.md, implemented slowly and obviously: the judge of the two fast implementations.

::

    model = run(events, params, price_source="auto", initial_state=state, instruments=instruments)
    model.trades, model.counts, model.unusable, model.seen

``events`` is a list of ``(ts, type, symbol, payload)`` with parsed payloads. It imports nothing from the package:
``params`` is read by attribute. Every function quotes the sentence of the page that it implements.
``seen`` counts which sentence decided something, so that tests can prove what they reached.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

DAY = 86_400_000_000_000
Event = tuple[int, str, "str | None", dict[str, Any]]
READ_TYPES = (
    "SCORING_UPDATE",
    "REGIME_UPDATE",
    "RISK_UPDATE",
    "MARKET_TRADE",
    "MARKET_BOOK",
    "FUNDING",
)
REASONS = (
    "STOP_LOSS",
    "BREAK_EVEN",
    "TRAILING",
    "TP1",
    "TP2",
    "TIMEOUT",
    "SCORE_EXIT",
    "RISK_EXIT",
    "SESSION_END",
    "DATA_GAP",
)

# ---- 1. Inputs -------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Quote: "A usable number is a finite JSON number, not text or a bool"."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_price(value: Any) -> bool:
    """Quote: "a price must also be > 0"."""
    return is_number(value) and value > 0


def is_symbol(value: Any) -> bool:
    """Quote: "A symbol is a text that is not empty"."""
    return isinstance(value, str) and value != ""


def nanoseconds(value: float | None, unit: float) -> int | None:
    """Quote: "Seconds and milliseconds of parameters are rounded to whole nanoseconds once"."""
    return None if value is None else round(value * unit)


def iso_ns(text: str) -> int:
    """ISO time in UTC ("...Z") to nanoseconds; up to nine digits after the point."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int((fraction + "000000000")[:9])


def parse_levels(levels: Any) -> dict[float, float] | None:
    """Levels as price → quantity, or None.

    Quote: "a level is `[price, qty]` with a usable price and a usable number ≥ 0 (further elements are ignored); [...]
    of a price that stands twice the last counts; else the order of levels does not matter".
    """
    if not isinstance(levels, list):
        return None
    found: dict[float, float] = {}
    for level in levels:
        if not isinstance(level, list) or len(level) < 2:
            return None
        if not is_price(level[0]) or not is_number(level[1]) or level[1] < 0:
            return None
        found[float(level[0])] = float(level[1])
    return found


def parse_book(payload: Any) -> tuple[dict[float, float], dict[float, float]] | None:
    """Quote: "An unknown `kind`, a missing side or a malformed level makes a whole MARKET_BOOK unusable"."""
    if not isinstance(payload, dict) or payload.get("kind") not in (None, "snapshot", "delta"):
        return None
    bids, asks = parse_levels(payload.get("bids")), parse_levels(payload.get("asks"))
    return None if bids is None or asks is None else (bids, asks)


class Book:
    """The book of one symbol, and the time of the last usable event that made it."""

    def __init__(self) -> None:
        self.bids: dict[float, float] = {}
        self.asks: dict[float, float] = {}
        self.ts: int | None = None

    def apply(self, payload: Any, ts: int) -> bool:
        """Apply a MARKET_BOOK payload or an initial book; False, and no change, where it is unusable.

        Quotes: "qty 0 deletes a level", "a delta before any snapshot applies to an empty book",
        "`kind` null is a snapshot".
        """
        sides = parse_book(payload)
        if sides is None:
            return False
        if payload.get("kind") != "delta":
            self.bids, self.asks = {}, {}
        for mine, levels in ((self.bids, sides[0]), (self.asks, sides[1])):
            for price, qty in levels.items():
                mine.pop(price, None)
                if qty > 0:
                    mine[price] = qty
        self.ts = ts
        return True

    def has_both_sides(self) -> bool:
        return bool(self.bids) and bool(self.asks)

    def mid(self) -> float | None:
        """Quotes: "With one side empty there is no mid"; "mid = (best bid + best ask)/2"."""
        return (max(self.bids) + min(self.asks)) / 2 if self.has_both_sides() else None

    def levels(self, side: str) -> list[tuple[float, float]]:
        """Levels from the best outwards. Quote: "Only the best 25 levels of each side are visible"."""
        if side == "bids":
            return sorted(self.bids.items(), reverse=True)[:25]
        return sorted(self.asks.items())[:25]

    def copy(self) -> Book:
        other = Book()
        other.bids, other.asks, other.ts = dict(self.bids), dict(self.asks), self.ts
        return other


def symbols_of(initial_state: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    return (initial_state or {}).get("symbols") or {}


def initial_books(events: list[Event], initial_state: dict[str, Any] | None) -> dict[str, Book]:
    """Quotes: "for an initial book: the session's first event", "a malformed initial book is none"."""
    books: dict[str, Book] = {}
    for name, state in symbols_of(initial_state).items():
        given = state.get("book")
        book = Book()
        if isinstance(given, dict) and events:
            book.apply({"bids": given.get("bids"), "asks": given.get("asks")}, events[0][0])
        books[name] = book
    return books


def books_at(events: list[Event], initial_state: dict[str, Any] | None) -> list[dict[str, Book]]:
    """Per event, the book of every symbol.

    Quote: "The book of a symbol at event i is the state after all its usable MARKET_BOOK events up to and including i,
    starting with the initial book."
    """
    now = initial_books(events, initial_state)
    found: list[dict[str, Book]] = []
    for ts, kind, symbol, payload in events:
        if kind == "MARKET_BOOK" and is_symbol(symbol):
            book = now[symbol].copy() if symbol in now else Book()
            book.apply(payload, ts)
            now = {**now, symbol: book}
        found.append(now)
    return found


def unusable_by_type(events: list[Event]) -> dict[str, int]:
    """Quote: "An event without the field it needs is unusable: skipped, counted, named in the run's report."""
    counts = Counter(kind for _, kind, symbol, payload in events if is_unusable(kind, symbol, payload))
    return dict(counts)


def is_unusable(kind: str, symbol: Any, payload: dict[str, Any]) -> bool:
    if kind not in READ_TYPES:
        return False  # "others: not read by the model"
    if not is_symbol(symbol):
        # "Only a RISK_UPDATE may have no symbol"
        return not (kind == "RISK_UPDATE" and symbol is None)
    if kind == "MARKET_TRADE":
        return payload.get("offMarket") is not True and not is_price(payload.get("price"))
    return {
        "SCORING_UPDATE": not is_number(payload.get("score")),
        "REGIME_UPDATE": not isinstance(payload.get("regime"), str),
        "MARKET_BOOK": parse_book(payload) is None,
        "FUNDING": not is_number(payload.get("fundingRate")),
        "RISK_UPDATE": False,
    }[kind]


def prices_by_source(
    events: list[Event], books: list[dict[str, Book]]
) -> dict[str, dict[str, dict[int, float]]]:
    """Per symbol and source: the price at each index where that source has a price event."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for i, (_, kind, symbol, payload) in enumerate(events):
        if not is_symbol(symbol):
            continue
        assert symbol is not None
        mine = found.setdefault(symbol, {"trade": {}, "book": {}, "score": {}})
        if kind == "MARKET_TRADE":
            # "`offMarket: true` = no price event"
            if payload.get("offMarket") is not True and is_price(payload.get("price")):
                mine["trade"][i] = float(payload["price"])
        elif kind == "MARKET_BOOK":
            # "`book` (mid after each MARKET_BOOK)", where that event is usable
            mid = books[i][symbol].mid()
            if parse_book(payload) is not None and mid is not None:
                mine["book"][i] = mid
        elif kind == "SCORING_UPDATE" and is_price(payload.get("price")):
            # "`score` and `price` of a SCORING_UPDATE are judged separately"
            mine["score"][i] = float(payload["price"])
    return found


def choose_sources(
    by_source: dict[str, dict[str, dict[int, float]]], price_source: str | dict[str, str]
) -> dict[str, str]:
    """Quotes: "`auto` (the first of these of which some event of the session yields a price for the symbol [...])";
    "`price_source` may also map symbols to sources; one that is missing there is `auto`".
    """
    chosen = {}
    for symbol, found in by_source.items():
        wish = price_source if isinstance(price_source, str) else price_source.get(symbol, "auto")
        if wish == "auto":
            wish = next((name for name in ("trade", "book", "score") if found[name]), "trade")
        chosen[symbol] = wish
    return chosen


@dataclass
class Inputs:
    """What the model reads of a session, parameters apart."""

    events: list[Event]
    initial_state: dict[str, Any] | None
    books: list[dict[str, Book]]  # per event, the book of every symbol
    by_source: dict[str, dict[str, dict[int, float]]]  # symbol → source → index → price
    sources: dict[str, str]  # symbol → source of its price events
    prices: dict[str, dict[int, float]]  # symbol → index → price: its price events
    with_book: set[str]  # symbols with a usable book somewhere


def read_inputs(
    events: list[Event],
    price_source: str | dict[str, str] = "auto",
    initial_state: dict[str, Any] | None = None,
) -> Inputs:
    books = books_at(events, initial_state)
    by_source = prices_by_source(events, books)
    sources = choose_sources(by_source, price_source)
    prices = {symbol: by_source[symbol][source] for symbol, source in sources.items()}
    with_book = {
        name
        for at in [initial_books(events, initial_state), *books]
        for name, book in at.items()
        if book.has_both_sides()
    }
    return Inputs(events, initial_state, books, by_source, sources, prices, with_book)


def signed_score(payload: dict[str, Any]) -> float | None:
    """Quotes: "Optional `side` "LONG"/"SHORT": then the signed score is ±abs(score)"; another `side` is ignored."""
    score = payload.get("score")
    if not is_number(score):
        return None
    if payload.get("side") == "LONG":
        return abs(float(score))
    if payload.get("side") == "SHORT":
        return -abs(float(score))
    return float(score)


def risk_flag(payload: dict[str, Any], name: str) -> bool | None:
    """Quotes: "both may be under `riskFlags`"; "a bool at top level wins over `riskFlags`"; None: absent or no bool."""
    nested = payload.get("riskFlags")
    for place in (payload, nested):
        if isinstance(place, dict) and isinstance(place.get(name), bool):
            return bool(place[name])
    return None


# ---- 2. Parameters ---------------------------------------------------------------------------------------------------


def choose_market_fill(params: Any, symbol: str, with_book: set[str]) -> str:
    """Quote: ""auto" = "book" for a symbol that has a usable book somewhere in the session [...], else "print""."""
    if params.market_fill != "auto":
        return str(params.market_fill)
    return "book" if symbol in with_book else "print"


def refusal(inputs: Inputs, params: Any, instruments: dict[str, Any] | None = None) -> str | None:
    """Why these parameters are refused for this session, or None."""
    for symbol in [name for name in inputs.prices if inputs.prices[name]]:
        if params.limit_fill == "queue":
            # "needs, for every symbol with a price event, the resolved price source "trade", a `tickSize` and rounding
            # "exchange""
            if inputs.sources[symbol] != "trade":
                return f"queue: {symbol} has price source {inputs.sources[symbol]}"
            if params.rounding != "exchange":
                return "queue: rounding is none"
            if fraction_of(((instruments or {}).get(symbol) or {}).get("tickSize")) is None:
                return f"queue: {symbol} has no tickSize"
        # ""quote", "book" and "queue" (chosen, not by "auto") are refused for a symbol that has a price event but no
        # event or initial book with both sides"
        if symbol not in inputs.with_book and (
            params.market_fill in ("quote", "book") or params.limit_fill == "queue"
        ):
            return f"{symbol} has no book"
    return None


# ---- 3. Orders -------------------------------------------------------------------------------------------------------


def fraction_of(size: Any) -> tuple[float, float] | None:
    """(num, den) of a tick or a lot, or None.

    Quotes: "tick = num/den in lowest terms [...]; from the shortest decimal text of `tickSize`; num and den are
    doubles"; "A tickSize or lotSize that is not a usable number > 0 counts as null."
    """
    if not is_price(size):
        return None
    fraction = Fraction(repr(float(size)))
    return float(fraction.numerator), float(fraction.denominator)


def round_up(x: float, tick: tuple[float, float] | None) -> float:
    """Quote: "up(x) = ceil(x·den/num − 1e-6)·num/den, [...] left to right in double precision"; for x > 0."""
    if tick is None or x <= 0:
        return x
    num, den = tick
    return float(math.ceil(x * den / num - 1e-6)) * num / den


def round_down(x: float, tick: tuple[float, float] | None) -> float:
    """Quote: "down(x) = floor(x·den/num + 1e-6)·num/den"; for x > 0."""
    if tick is None or x <= 0:
        return x
    num, den = tick
    return float(math.floor(x * den / num + 1e-6)) * num / den


def round_quantity(q: float, lot: tuple[float, float] | None) -> float:
    """Quote: "Quantities, with lot = num/den: floor(q·den/num + 1e-9)·num/den"."""
    if lot is None:
        return q
    num, den = lot
    return float(math.floor(q * den / num + 1e-9)) * num / den


def round_target(x: float, direction: int, tick: tuple[float, float] | None) -> float:
    """Quote: "Targets: away from the entry (LONG up, SHORT down)"."""
    return round_up(x, tick) if direction > 0 else round_down(x, tick)


def round_stop(x: float, direction: int, tick: tuple[float, float] | None) -> float:
    """Quote: "Stops of every rule: away from the market (LONG down, SHORT up)"."""
    return round_down(x, tick) if direction > 0 else round_up(x, tick)


def round_limit_entry(x: float, direction: int, tick: tuple[float, float] | None) -> float:
    """Quote: "LIMIT entries: away from the market (LONG down, SHORT up)"."""
    return round_down(x, tick) if direction > 0 else round_up(x, tick)


@dataclass
class MarketFill:
    price: float
    thin: bool = False


def print_fill(price: float, d: int, slippage_bps: float | None) -> MarketFill:
    """Quotes: "print: f = p·(1 + d·slip)"; "None = 1.0 for a print fill"."""
    slip = (1.0 if slippage_bps is None else slippage_bps) / 10000
    return MarketFill(price * (1 + d * slip))


def walk(levels: list[tuple[float, float]], qty: float) -> tuple[float, bool]:
    """(Σ price·taken) and whether something was left after the levels.

    Quotes: "walk the opposite side from its best level, taking min(what is left, the level's quantity); when the
    visible levels are used up, the rest is priced at the last of them and the fill is marked thin";
    "What is left after the levels is one more term of the sum, at the last level's price."
    """
    left, total = qty, 0.0
    for price, size in levels:
        taken = min(left, size)
        total += price * taken
        left -= taken
        if left <= 0:
            return total, False
    return total + levels[-1][0] * left, True


def market_fill(
    how: str,
    book: Book | None,
    price: float,
    d: int,
    qty: float,
    slippage_bps: float | None,
    seen: Counter[str],
) -> MarketFill:
    """The fill of a market order; ``book`` is None where no usable book exists at the event."""
    if how == "print":
        seen["fill: print"] += 1
        return print_fill(price, d, slippage_bps)
    if book is None:
        # "With quote or book, where the book at i is not usable: the print rule, with its slippage."
        seen["fill: print for lack of a usable book"] += 1
        return print_fill(price, d, slippage_bps)
    slip = (0.0 if slippage_bps is None else slippage_bps) / 10000  # "0 for a quote or book fill"
    levels = book.levels("asks" if d > 0 else "bids")
    if how == "quote":
        fill, thin = levels[0][0] * (1 + d * slip), False  # "so `f = best·(1 + d·slip)`"
    else:
        total, thin = walk(levels, qty)
        fill = total / qty * (1 + d * slip)
    seen[f"fill: {how}"] += 1
    seen["fill: thin"] += thin
    # "`f` is the worse for the order of this and `p·(1 + d·slip)` with the same slip"
    bound = price * (1 + d * slip)
    worse = max(fill, bound) if d > 0 else min(fill, bound)
    seen["fill: the print was the worse price"] += worse != fill
    seen["fill: the book was the worse price"] += worse != bound
    return MarketFill(worse, thin)


@dataclass
class Resting:
    """A resting limit order: d is +1 if it sells, −1 if it buys (the page's d_l)."""

    price: float
    d: int
    qty: float
    arrival: int
    ahead: float | None = None  # None: only through counts
    traded: float = 0.0


def queue_ahead(order: Resting, book: Book | None, queue_share: float, seen: Counter[str]) -> float | None:
    """Quote: "Where the book at event a is usable and L is one of its visible levels on the order's own side, or
    strictly between the best bid and the best ask, `ahead = queue_share · (the quantity displayed there, 0 inside the
    spread)`".
    """
    if book is None:
        seen["queue: no usable book at arrival"] += 1
        return None
    own = dict(book.levels("asks" if order.d > 0 else "bids"))
    if order.price in own:
        seen["queue: at a visible level"] += 1
        return queue_share * own[order.price]
    best_bid, best_ask = book.levels("bids")[0][0], book.levels("asks")[0][0]
    if best_bid < order.price < best_ask:
        seen["queue: inside the spread"] += 1
        return queue_share * 0.0
    seen["queue: not visible at arrival"] += 1
    return None


def limit_fills(order: Resting, i: int, price: float, event: Event, how: str, seen: Counter[str]) -> bool:
    """Whether a resting order fills at price event i; adds to its queue. Call it for every price event, once."""
    if i <= order.arrival:
        return False  # "at a price event i after its arrival event a"
    beyond = order.d * (price - order.price)
    if how == "touch":  # "touch: d_l·(p − L) ≥ 0"
        seen["limit: touched exactly"] += beyond == 0
        seen["limit: touch"] += beyond >= 0
        return beyond >= 0
    if how == "queue" and order.ahead is not None and add_to_queue(order, price, event, seen):
        seen["limit: queue used up"] += 1
        return True
    seen["limit: touched, not through"] += beyond == 0
    seen["limit: through"] += beyond > 0
    return beyond > 0  # "through: d_l·(p − L) > 0"; "queue: through, or the queue is used up"


def add_to_queue(order: Resting, price: float, event: Event, seen: Counter[str]) -> bool:
    """Quote: "each price event after a, up to and including i, that is a MARKET_TRADE at exactly L whose taker side is
    the opposite one (BUY for a selling order) or neither BUY nor SELL, adds its qty (0 where that is not a usable
    number > 0); the order fills at the first event at which the sum is ≥ ahead + its own quantity".
    """
    _, kind, _, payload = event
    same_side = "SELL" if order.d > 0 else "BUY"
    if kind != "MARKET_TRADE" or price != order.price:
        return False
    if payload.get("side") == same_side:
        seen["queue: a trade of the order's own side does not count"] += 1
        return False
    if payload.get("side") not in ("BUY", "SELL"):
        seen["queue: a trade without a side counts"] += 1
    qty = payload.get("qty")
    if is_number(qty) and qty > 0:
        order.traded += float(qty)
    else:
        seen["queue: an unusable qty adds nothing"] += 1
    assert order.ahead is not None
    return order.traded >= order.ahead + order.qty


# ---- 4. Rules, per symbol --------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """An entry order that is pending: decided at event k, then, if LIMIT, resting from its arrival."""

    dir: int
    k: int
    due: int
    limit: float | None = None  # price of a LIMIT order
    qty: float = 0.0  # of a LIMIT order, fixed at the decision
    resting: Resting | None = None
    expires: int | None = None


@dataclass
class Position:
    dir: int
    entry_index: int
    entry_ts: int
    entry: float
    qty: float
    left: float
    stop: float
    best: float
    tp1: Resting | None
    tp2: Resting | None
    stop_reason: str = "STOP_LOSS"
    tp1_filled: bool = False
    gross: float = 0.0  # Σ dir·(exit − entry)·qty_part
    fees: float = 0.0
    funding: float = 0.0
    exits: list[tuple[float, float]] = field(default_factory=list)  # (price, qty_part)
    thin: bool = False
    mfe: float = 0.0
    mae: float = 0.0
    closing: tuple[int, str] | None = None  # due from ts, reason
    exit: tuple[int, int, str] | None = None  # submitted at index, due from ts, reason
    prices: list[float] = field(default_factory=list)  # since the entry, its own included


# The order of evaluation is that of version 1: "every result is that of version 1, to the bit".


def fee_of(price: float, qty: float, bps: float) -> float:
    """The fee of one fill on its notional, left to right."""
    return price * qty * bps / 10000


def realized_pnl(position: Position) -> float:
    """Quote: "`realizedPnl` = Σ dir·(exit − entry)·qty_part − all fees + funding", left to right."""
    return position.gross - position.fees + position.funding


def close_price(position: Position) -> float:
    """Quote: "close price (quantity-weighted over its exits)"; of one exit, its price."""
    if len(position.exits) == 1:
        return position.exits[0][0]
    return sum(price * qty for price, qty in position.exits) / sum(qty for _, qty in position.exits)


@dataclass
class Symbol:
    regime: str | None = None
    blocked: bool = False
    entry: Entry | None = None
    position: Position | None = None
    cooldown_end: int | None = None
    carried_until: int | None = None  # ts of closedAt
    carried_for_ever: bool = False
    last_index: int | None = None  # of the last price event
    last_ts: int = 0
    last_price: float = 0.0


@dataclass
class Model:
    inputs: Inputs
    p: Any
    instruments: dict[str, Any]
    symbols: dict[str, Symbol] = field(default_factory=dict)
    blocked_for_new: bool = False
    day_pnl: dict[int, float] = field(default_factory=dict)
    day_entries: dict[int, int] = field(default_factory=dict)
    days_lost: set[int] = field(default_factory=set)
    parts: list[tuple[int, float]] = field(default_factory=list)  # carried, not yet realised
    trades: list[dict[str, Any]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    rule: Callable[[dict[str, float], float, str, int], float] | None = None
    expired: int = 0
    rejected: int = 0
    cancelled_hole: int = 0
    cancelled_end: int = 0
    unusable: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Quote: "entries `expired` (ttl), `rejected` (post-only, size, price), `cancelled` (hole, session end)"."""
        cancelled = self.cancelled_hole + self.cancelled_end
        return {"expired": self.expired, "rejected": self.rejected, "cancelled": cancelled}

    # -- helpers ---------------------------------------------------------------------------------------------------

    def symbol(self, name: str) -> Symbol:
        if name not in self.symbols:
            self.symbols[name] = Symbol(blocked=self.blocked_for_new)
        return self.symbols[name]

    def instrument(self, name: str, key: str) -> tuple[float, float] | None:
        """Quote: "Without an instrument's `tickSize` (or `lotSize`), or with rounding "none", x stays x.\""""
        if self.p.rounding == "none":
            return None
        return fraction_of((self.instruments.get(name) or {}).get(key))

    def tick(self, name: str) -> tuple[float, float] | None:
        return self.instrument(name, "tickSize")

    def lot(self, name: str) -> tuple[float, float] | None:
        return self.instrument(name, "lotSize")

    def how(self, name: str) -> str:
        return choose_market_fill(self.p, name, self.inputs.with_book)

    def usable_book(self, i: int, name: str) -> Book | None:
        """The book at event i where market fills may use it.

        Quote: "A book is usable at i when both sides are not empty and its last usable MARKET_BOOK event [...] is at
        most `max_book_age_s` older than i".
        """
        book = self.inputs.books[i].get(name)
        if book is None or book.ts is None or not book.has_both_sides():
            return None
        age = nanoseconds(self.p.max_book_age_s, 1e9)
        if age is not None and self.inputs.events[i][0] - book.ts > age:
            self.seen["book: too old"] += 1
            return None
        if max(book.bids) >= min(book.asks):
            self.seen["book: crossed and usable"] += 1
        if len(book.bids) > 25 or len(book.asks) > 25:
            self.seen["book: more than 25 levels"] += 1
        return book

    def fill_book(self, i: int, name: str) -> Book | None:
        """The usable book where quote or book is in force, else None."""
        return self.usable_book(i, name) if self.how(name) != "print" else None

    # -- time order ------------------------------------------------------------------------------------------------

    def realise(self, ts: int, amount: float) -> None:
        """Quotes: "once a UTC day's realised PnL (events so far, all symbols) has been ≤ −this"; "The daily loss is
        checked after each fill and funding payment."
        """
        day = ts // DAY
        self.day_pnl[day] = self.day_pnl.get(day, 0.0) + amount
        self.check_day(day)

    def check_day(self, day: int) -> None:
        limit = self.p.max_daily_loss_usd
        if limit is not None and self.day_pnl[day] <= -limit:
            self.days_lost.add(day)
        elif day in self.days_lost:
            self.seen["day: loss recovered"] += 1

    # -- carried state -----------------------------------------------------------------------------------------------

    def start(self, initial_state: dict[str, Any] | None) -> None:
        """The state at `from`."""
        cooldown = nanoseconds(self.p.cooldown_s, 1e9) or 0
        for name, state in symbols_of(initial_state).items():
            regime, blocked = state.get("regime"), state.get("tradingBlocked")
            mine = Symbol(regime if isinstance(regime, str) else None, blocked is True)
            self.symbols[name] = mine
            carried = state.get("carried")
            if carried is not None:
                if carried["closedAt"] is None:
                    mine.carried_for_ever = True
                else:
                    # "From `closedAt` on the symbol is flat, with cooldown end = closedAt + cooldown_s."
                    mine.carried_until = iso_ns(carried["closedAt"])
                    mine.cooldown_end = mine.carried_until + cooldown
                for part in carried["parts"]:
                    self.parts.append((iso_ns(part["timestamp"]), float(part["realizedPnl"])))
            elif state.get("lastExitAt") is not None:
                # "Without `carried`, cooldown end = `lastExitAt` + cooldown_s."
                mine.cooldown_end = iso_ns(state["lastExitAt"]) + cooldown
        # "(parts of one timestamp in the order of `symbols`, then of `parts`)": sort is stable.
        self.parts.sort(key=lambda part: part[0])
        account = (initial_state or {}).get("account")
        if account is not None:
            # "The account's day starts at `account`"
            day = iso_ns(account["dateKey"] + "T00:00:00Z") // DAY
            self.day_pnl[day] = float(account["realizedPnl"])
            self.day_entries[day] = int(account["entries"])
            # "is already reached if lowestRealizedPnl ≤ −it"
            limit = self.p.max_daily_loss_usd
            if limit is not None and account["lowestRealizedPnl"] <= -limit:
                self.seen["account: daily loss already reached"] += 1
                self.days_lost.add(day)

    def realise_carried_parts(self, ts: int) -> None:
        """Quote: "Each of its `parts` adds to the realised PnL of its own timestamp's UTC day, before the first event
        with ts ≥ its timestamp; the daily loss is checked after each".
        """
        while self.parts and self.parts[0][0] <= ts:
            moment, amount = self.parts.pop(0)
            lost = len(self.days_lost)
            self.realise(moment, amount)
            self.seen["carried: part realised"] += 1
            self.seen["carried: part reached the daily loss"] += len(self.days_lost) > lost

    def is_carried(self, symbol: Symbol, ts: int) -> bool:
        """Quote: "at every event with ts < `closedAt` (at every event when that is null)"."""
        return symbol.carried_for_ever or (symbol.carried_until is not None and ts < symbol.carried_until)

    # -- entry decision ----------------------------------------------------------------------------------------------

    def decide_entry(self, i: int, ts: int, name: str, score: float) -> None:
        """Entry decision, at a scoring event k."""
        p, symbol = self.p, self.symbol(name)
        if symbol.entry is not None or symbol.position is not None:
            self.seen["no entry: pending"] += symbol.entry is not None
            return
        if score == 0 or abs(score) < p.entry_threshold:
            return
        if self.is_carried(symbol, ts):
            self.seen["no entry: carried"] += 1
            return
        if symbol.cooldown_end is not None and ts < symbol.cooldown_end:
            self.seen["no entry: cooldown"] += 1
            return
        direction = 1 if score > 0 else -1
        if not (p.allow_long if direction > 0 else p.allow_short):
            self.seen["no entry: direction"] += 1
            return
        if p.allowed_regimes is not None and symbol.regime not in p.allowed_regimes:
            self.seen["no entry: regime"] += 1
            return
        if symbol.blocked:
            self.seen["no entry: blocked"] += 1
            return
        if self.limits_reached(ts, symbol):
            return
        entry = Entry(direction, i, ts + (nanoseconds(p.latency_ms, 1e6) or 0))
        if p.entry_order == "LIMIT":
            price = self.limit_price(i, name, direction)
            if price is None:
                self.seen["no entry: no reference price"] += 1
                return  # "with neither there is no decision"
            entry.limit = price
            # "qty = notional_usd / L (or from risk with ref = L), rounded to the lot"
            entry.qty = self.size(price, name) if price > 0 else 0.0
        symbol.entry = entry
        # "An entry counts for `max_trades_per_day` on the UTC day of its decision"
        self.day_entries[ts // DAY] = self.day_entries.get(ts // DAY, 0) + 1

    def limits_reached(self, ts: int, symbol: Symbol) -> bool:
        """Quote: "account limits not reached (they count open, pending and carried positions)"."""
        p, day = self.p, ts // DAY
        others = [other for other in self.symbols.values() if other is not symbol]
        taken = sum(o.position is not None or o.entry is not None for o in others)
        carried = sum(self.is_carried(o, ts) for o in others)
        if p.max_open_positions is not None and taken + carried >= p.max_open_positions:
            self.seen["no entry: max_open_positions"] += 1
            self.seen["no entry: max_open_positions, by a carried position"] += taken < p.max_open_positions
            return True
        if p.max_trades_per_day is not None and self.day_entries.get(day, 0) >= p.max_trades_per_day:
            self.seen["no entry: max_trades_per_day"] += 1
            return True
        if day in self.days_lost:
            self.seen["no entry: max_daily_loss_usd"] += 1
            return True
        self.seen["entry on the day after a lost day"] += any(lost < day for lost in self.days_lost)
        self.seen["entry while another symbol is not flat"] += bool(taken)
        return False

    def limit_price(self, i: int, name: str, direction: int) -> float | None:
        """Quote: "the reference is the best own-side quote (LONG: bid) of the book at event k where `market_fill` in
        force is quote or book and the book is usable, else the price of the symbol's last price event up to and
        including k; [...] L = reference·(1 − dir·entry_offset_bps/10000), rounded".
        """
        symbol, book = self.symbol(name), self.fill_book(i, name)
        if book is not None:
            self.seen["limit entry: reference is the quote"] += 1
            reference = book.levels("bids" if direction > 0 else "asks")[0][0]
        elif symbol.last_index is not None:
            self.seen["limit entry: reference is the last price"] += 1
            reference = symbol.last_price
        else:
            return None
        price = reference * (1 - direction * self.p.entry_offset_bps / 10000)
        return round_limit_entry(price, direction, self.tick(name))

    def size(self, ref: float, name: str) -> float:
        """Quotes: "qty = notional_usd / ref (or from risk), rounded to the lot"; "qty = this / (ref·sl_pct/100), capped
        at leverage·notional_usd / ref"; "With sl_pct = 0, risk sizing uses the cap."
        """
        p = self.p
        qty = p.notional_usd / ref
        if p.risk_per_trade_usd is not None:
            cap = p.leverage * p.notional_usd / ref
            qty = cap if p.sl_pct == 0 else min(p.risk_per_trade_usd / (ref * p.sl_pct / 100), cap)
            self.seen["size: from risk" if qty < cap else "size: from risk, capped"] += 1
        return round_quantity(qty, self.lot(name))

    def too_small(self, qty: float, ref: float, name: str) -> bool:
        """Quote: "If qty is 0, or qty·ref < minNotionalUsd, the order is rejected"."""
        if qty == 0:
            self.seen["rejected: quantity 0"] += 1
            return True
        least = (self.instruments.get(name) or {}).get("minNotionalUsd")
        if self.p.rounding == "exchange" and is_number(least) and qty * ref < least:
            self.seen["rejected: minimum notional"] += 1
            return True
        return False

    # -- arrival -----------------------------------------------------------------------------------------------------

    def arrive(self, i: int, ts: int, name: str, price: float) -> None:
        """Quote: "the first price event a > k with ts_a ≥ ts_k + latency"."""
        symbol = self.symbol(name)
        entry = symbol.entry
        assert entry is not None
        if i <= entry.k or ts < entry.due:
            self.seen["latency: entry not yet due"] += 1
        elif entry.limit is None:
            self.arrive_market(i, ts, name, symbol, entry, price)
        else:
            self.arrive_limit(i, ts, name, symbol, entry, price)

    def arrive_market(self, i: int, ts: int, name: str, symbol: Symbol, entry: Entry, price: float) -> None:
        """Quote: "Size: `ref` = p_a·(1 + dir·slip) for print; for quote and book (book usable at a) best opposite
        level·(1 + dir·slip). [...] Else entry = market fill of qty at a, taker fee."
        """
        d, p = entry.dir, self.p
        book = self.fill_book(i, name)
        if book is None:
            ref = print_fill(price, d, p.slippage_bps).price
        else:
            best = book.levels("asks" if d > 0 else "bids")[0][0]
            ref = best * (1 + d * ((0.0 if p.slippage_bps is None else p.slippage_bps) / 10000))
        qty = self.size(ref, name)
        symbol.entry = None
        if self.too_small(qty, ref, name):
            self.rejected += 1
            return
        fill = market_fill(self.how(name), book, price, d, qty, p.slippage_bps, self.seen)
        self.seen["entry: market"] += 1
        position = self.open(i, ts, name, d, fill.price, qty, price, p.taker_fee_bps)
        position.thin = fill.thin
        # "for a MARKET entry step 6 alone"
        self.trail(name, position, price)

    def arrive_limit(self, i: int, ts: int, name: str, symbol: Symbol, entry: Entry, price: float) -> None:
        """Quote: "At a it is post-only: if it would take, it is rejected and the symbol is flat again from a on."""
        limit, d = entry.limit, entry.dir
        assert limit is not None
        rejected = True
        if not limit > 0:  # "if L is not > 0 the order is rejected at a"
            self.seen["rejected: price"] += 1
        elif not self.too_small(entry.qty, limit, name):
            book = self.fill_book(i, name)
            if book is not None:
                # "It would take when dir·(L − best opposite quote) ≥ 0"
                rejected = d * (limit - book.levels("asks" if d > 0 else "bids")[0][0]) >= 0
                self.seen["rejected: post-only against the quote"] += rejected
            else:
                # "else when dir·(L − p_a) > 0"
                rejected = d * (limit - price) > 0
                self.seen["rejected: post-only against the print"] += rejected
        if rejected:
            symbol.entry = None
            self.rejected += 1
            return
        # "Otherwise it rests from a"; it buys for LONG, so its d_l is −dir.
        entry.resting = self.rest(i, name, limit, -d, entry.qty)
        ttl = nanoseconds(self.p.entry_ttl_s, 1e9)
        entry.expires = None if ttl is None else ts + ttl

    def rest(self, i: int, name: str, price: float, d: int, qty: float) -> Resting:
        """A limit order that arrives at event i."""
        order = Resting(price, d, qty, i)
        if self.p.limit_fill == "queue":
            order.ahead = queue_ahead(order, self.usable_book(i, name), self.p.queue_share, self.seen)
        return order

    def fill_limit_entry(self, i: int, ts: int, name: str, price: float) -> None:
        """A resting entry at a later price event. Quote: "Filled at j: entry = L, maker fee, no slippage."""
        symbol = self.symbol(name)
        entry = symbol.entry
        assert entry is not None
        assert entry.resting is not None
        if not limit_fills(entry.resting, i, price, self.inputs.events[i], self.p.limit_fill, self.seen):
            return
        symbol.entry = None
        self.seen["entry: limit"] += 1
        position = self.open(
            i, ts, name, entry.dir, entry.resting.price, entry.qty, price, self.p.maker_fee_bps
        )
        # "for a LIMIT entry step 1 runs [...], then, unless the position is closed or closing, step 6"
        self.check_stop(i, ts, name, position, price)
        if symbol.position is not None and position.closing is None:
            self.trail(name, position, price)
        else:
            self.seen["entry: limit, stopped at its own event"] += 1

    def expire(self, ts: int) -> None:
        """Quote: "It is cancelled at ts_a + ttl: at any event with ts ≥ ts_a + ttl it counts neither as pending nor for
        account limits (a ttl that ends at or before a hole's event, or at or before the session's last event, comes
        first: expired, not cancelled)."
        """
        for symbol in self.symbols.values():
            entry = symbol.entry
            if entry is not None and entry.expires is not None and ts >= entry.expires:
                symbol.entry = None
                self.expired += 1
                self.seen["entry: expired"] += 1

    # -- position ----------------------------------------------------------------------------------------------------

    def open(
        self, j: int, ts: int, name: str, d: int, price: float, qty: float, p_j: float, bps: float
    ) -> Position:
        """The position after its entry filled at event j, with its levels and target orders."""
        p, tick = self.p, self.tick(name)
        position = Position(
            dir=d,
            entry_index=j,
            entry_ts=ts,
            entry=price,
            qty=qty,
            left=qty,
            stop=round_stop(price * (1 - d * p.sl_pct / 100), d, tick),
            best=p_j,
            tp1=None,
            tp2=None,
        )
        tp1 = round_target(price * (1 + d * p.tp1_pct / 100), d, tick)
        tp2 = round_target(price * (1 + d * p.tp2_pct / 100), d, tick)
        # "TP1's quantity is qty·tp1_fraction rounded to the lot (all of it with fraction 1); if that is 0 or the whole
        # quantity while fraction < 1, the trade runs as with tp1_fraction = 0."
        part = qty if p.tp1_fraction == 1 else round_quantity(qty * p.tp1_fraction, self.lot(name))
        if p.tp1_fraction == 1 or 0 < part < qty:
            position.tp1 = self.rest(j, name, tp1, d, part)
        elif 0 < p.tp1_fraction < 1:
            self.seen["TP1: its quantity rounds to nothing or everything"] += 1
        # "With tp1_fraction = 1 there is no TP2 order. The own quantity of TP2's order [...] is the whole qty."
        if p.tp1_fraction != 1:
            position.tp2 = self.rest(j, name, tp2, d, qty)
        fee = fee_of(price, qty, bps)
        position.fees += fee
        self.symbol(name).position = position
        # "the entry's fee at the entry fill"
        self.realise(ts, -fee)
        self.excursion(position, p_j)
        return position

    def excursion(self, position: Position, price: float) -> None:
        """Quote: "`mfe` and `mae`: best and worst of dir·(p − entry)·qty, with the full quantity, over the price events
        from entry to exit, both included, and 0".
        """
        position.prices.append(price)
        value = position.dir * (price - position.entry) * position.qty
        position.mfe = max(position.mfe, value)
        position.mae = min(position.mae, value)

    def manage(self, i: int, ts: int, name: str, position: Position, price: float) -> None:
        """Quote: "At every later price event i > j with price p, in this order, until the position is closed"."""
        p, symbol = self.p, self.symbol(name)
        self.excursion(position, price)
        # "it closes by a market fill at the first price event i' ≥ i with ts ≥ ts_i + stop latency"
        if position.closing is not None:
            due, reason = position.closing
            if ts >= due:
                self.close_at_market(i, ts, name, position, price, reason)
            else:
                self.seen["latency: stop not yet due"] += 1
            return
        # 1. Stop
        self.check_stop(i, ts, name, position, price)
        if symbol.position is None or position.closing is not None:
            return
        # 2. TP1, once, if it exists
        event = self.inputs.events[i]
        first, second = position.tp1, position.tp2
        jumped = False
        if (
            first is not None
            and not position.tp1_filled
            and limit_fills(first, i, price, event, p.limit_fill, self.seen)
        ):
            jumped = True
            position.tp1_filled = True
            self.fill_exit(ts, position, first.qty, first.price, p.maker_fee_bps)
            if p.tp1_fraction == 1:
                self.close(i, ts, name, position, "TP1")
                return
            self.break_even(name, position)
        # 3. TP2
        if second is not None and limit_fills(second, i, price, event, p.limit_fill, self.seen):
            self.seen["TP1 and TP2 at one event"] += jumped
            self.fill_exit(ts, position, position.left, second.price, p.maker_fee_bps)
            self.close(i, ts, name, position, "TP2")
            return
        # "Place in MODEL.md's order: after step 3, before step 4; reason RULE"
        if self.rule is not None and self.ask(i, ts, name, position, price):
            self.close_at_market(i, ts, name, position, price, "RULE")
            return
        # 4. Time
        hold = nanoseconds(p.max_hold_s, 1e9)
        if hold is not None and ts - position.entry_ts >= hold:
            self.close_at_market(i, ts, name, position, price, "TIMEOUT")
            return
        # 5. A pending market exit that is due: "the first price event with index > k and ts ≥ ts_k + latency"
        if position.exit is not None:
            k, due, reason = position.exit
            if i > k and ts >= due:
                self.close_at_market(i, ts, name, position, price, reason)
                return
            self.seen["latency: exit not yet due"] += 1
        # 6. Trailing
        self.trail(name, position, price)

    def ask(self, i: int, ts: int, name: str, position: Position, price: float) -> bool:
        """Let the exit rule hold (0), close (-1) or move the stop (any price, if that is tighter)."""
        d = position.dir
        order = sorted(position.prices, key=lambda p: d * p)
        seen = {
            "side": float(d),
            "entry_price": position.entry,
            "entry_time": position.entry_ts / 1e9,
            "age_s": (ts - position.entry_ts) / 1e9,
            "best": order[-1],
            "worst": order[0],
            "qty": position.qty,
            "left": position.left,
            "stop": position.stop,
            "tp1_filled": float(position.tp1_filled),
        }
        assert self.rule is not None
        answer = self.rule(seen, price, name, ts)
        if answer > 0:
            stop = round_stop(answer, d, self.tick(name))
            if d * (stop - position.stop) > 0:
                position.stop, position.stop_reason = stop, "RULE"
                self.seen["rule: stop moved"] += 1
        return answer == -1

    def check_stop(self, i: int, ts: int, name: str, position: Position, price: float) -> None:
        """Quote: "if dir·(p − stop) ≤ 0: with `stop_latency_ms` = 0, close all that is left by a market fill at i,
        taker fee. Otherwise the position is closing: nothing else can happen to it".
        """
        if position.dir * (price - position.stop) > 0:
            return
        latency = nanoseconds(self.p.stop_latency_ms, 1e6) or 0
        if latency == 0:
            self.close_at_market(i, ts, name, position, price, position.stop_reason)
        else:
            self.seen["closing by a stop"] += 1
            position.closing = (ts + latency, position.stop_reason)

    def break_even(self, name: str, position: Position) -> None:
        """Quote: "be = entry·(1 + dir·break_even_offset_pct/100), rounded as a stop, and if dir·(be − stop) > 0 the
        stop becomes be"; None = off.
        """
        d, offset = position.dir, self.p.break_even_offset_pct
        if offset is None:
            self.seen["break-even: off"] += 1
            return
        be = round_stop(position.entry * (1 + d * offset / 100), d, self.tick(name))
        if d * (be - position.stop) > 0:
            position.stop, position.stop_reason = be, "BREAK_EVEN"
        else:
            self.seen["break-even: not tighter"] += 1

    def trail(self, name: str, position: Position, price: float) -> None:
        """Quote: "best = the better of best and p. If trailing is on and dir·(best/entry − 1)·100 ≥
        trailing_activation_pct, then t = best·(1 − dir·trailing_distance_pct/100), rounded as a stop, and if dir·(t −
        stop) > 0 the stop becomes t."
        """
        p, d = self.p, position.dir
        position.best = max(position.best, price) if d > 0 else min(position.best, price)
        if p.trailing_activation_pct is None:
            return
        if d * (position.best / position.entry - 1) * 100 >= p.trailing_activation_pct:
            t = round_stop(position.best * (1 - d * p.trailing_distance_pct / 100), d, self.tick(name))
            if d * (t - position.stop) > 0:
                position.stop, position.stop_reason = t, "TRAILING"

    # -- exits -------------------------------------------------------------------------------------------------------

    def add_exit(self, position: Position, qty: float, price: float, bps: float) -> float:
        """Close a part; returns its PnL. Quote: "a part's PnL = dir·(exit − entry)·qty_part − fee"."""
        fee = fee_of(price, qty, bps)
        gross = position.dir * (price - position.entry) * qty
        position.left -= qty
        position.fees += fee
        position.gross += gross
        position.exits.append((price, qty))
        return gross - fee

    def fill_exit(self, ts: int, position: Position, qty: float, price: float, bps: float) -> None:
        self.realise(ts, self.add_exit(position, qty, price, bps))

    def close_at_market(
        self, i: int, ts: int, name: str, position: Position, price: float, reason: str
    ) -> None:
        """Close the rest by a market fill at event i."""
        fill = market_fill(
            self.how(name),
            self.fill_book(i, name),
            price,
            -position.dir,
            position.left,
            self.p.slippage_bps,
            self.seen,
        )
        position.thin = position.thin or fill.thin
        self.fill_exit(ts, position, position.left, fill.price, self.p.taker_fee_bps)
        self.close(i, ts, name, position, reason)

    def close(self, i: int, ts: int, name: str, position: Position, reason: str) -> None:
        symbol = self.symbol(name)
        symbol.position = None
        symbol.cooldown_end = ts + (nanoseconds(self.p.cooldown_s, 1e9) or 0)  # "exit time + this"
        self.record(i, ts, name, position, reason, None)

    def close_unseen(self, name: str, position: Position, reason: str, gap_price: float | None) -> None:
        """Close at the symbol's last price event, by a hole or by the session's end.

        Quotes: "print fill at p_prev (slippage None = 1.0), taker fee, index and time of prev"; "No decision or limit
        sees that close (it does not enter the day's realised PnL; no cooldown follows)"; "`gap_pnl` is its realised PnL
        (fees and funding included) had it been closed by a print fill at p_i instead".
        """
        p, symbol = self.p, self.symbol(name)
        assert symbol.last_index is not None
        gap_pnl = None
        if gap_price is not None:
            other = print_fill(gap_price, -position.dir, p.slippage_bps)
            at_gap = replace(position, exits=list(position.exits))
            self.add_exit(at_gap, position.left, other.price, p.taker_fee_bps)
            gap_pnl = realized_pnl(at_gap)
        fill = print_fill(symbol.last_price, -position.dir, p.slippage_bps)
        self.seen["closed at its own entry"] += symbol.last_index == position.entry_index
        self.seen[f"closing when {reason}"] += position.closing is not None
        self.seen[f"funding before {reason}"] += position.funding != 0
        self.add_exit(position, position.left, fill.price, p.taker_fee_bps)
        symbol.position = None
        self.record(symbol.last_index, symbol.last_ts, name, position, reason, gap_pnl)

    def check_hole(self, ts: int, name: str, price: float) -> None:
        """Quote: "at a price event i of a symbol with ts_i − ts_prev > max_gap_s (prev = its price event before),
        before anything else happens at i: an open or closing position ends at prev [...]; a pending entry is
        cancelled."
        """
        symbol, gap = self.symbol(name), nanoseconds(self.p.max_gap_s, 1e9)
        if gap is None or symbol.last_index is None or ts - symbol.last_ts <= gap:
            return
        self.seen["hole"] += 1
        if symbol.position is not None:
            self.close_unseen(name, symbol.position, "DATA_GAP", price)
        if symbol.entry is not None:
            self.seen["cancelled by a hole: " + ("resting" if symbol.entry.resting else "not arrived")] += 1
            symbol.entry = None
            self.cancelled_hole += 1

    def record(
        self, i: int, ts: int, name: str, position: Position, reason: str, gap_pnl: float | None
    ) -> None:
        """One trade."""
        self.seen[reason] += 1
        self.trades.append(
            {
                "symbol": name,
                "side": "LONG" if position.dir > 0 else "SHORT",
                "entry_index": position.entry_index,
                "exit_index": i,
                "entry_ts": position.entry_ts,
                "exit_ts": ts,
                "entry_price": position.entry,
                "close_price": close_price(position),
                "qty": position.qty,
                "leverage": self.p.leverage,
                "reason": reason,
                "tp1_filled": position.tp1_filled,
                "fees": position.fees,
                "funding": position.funding,
                "thin": position.thin,
                "realized_pnl": realized_pnl(position),
                "gap_pnl": gap_pnl,
                "mfe": position.mfe,
                "mae": position.mae,
                "duration_seconds": (ts - position.entry_ts) / 1e9,
            }
        )

    # -- events ------------------------------------------------------------------------------------------------------

    def on_price(self, i: int, ts: int, name: str, price: float) -> None:
        self.check_hole(ts, name, price)
        symbol = self.symbol(name)
        symbol.last_index, symbol.last_ts, symbol.last_price = i, ts, price
        if symbol.position is not None:
            self.manage(i, ts, name, symbol.position, price)
        elif symbol.entry is not None and symbol.entry.resting is not None:
            self.fill_limit_entry(i, ts, name, price)
        elif symbol.entry is not None:
            self.arrive(i, ts, name, price)

    def on_score(self, i: int, ts: int, name: str, score: float) -> None:
        """Quote: "Score exit: at a scoring event k > j while open, if dir·score < exit_threshold"."""
        position = self.symbol(name).position
        if position is None:
            self.decide_entry(i, ts, name, score)
            return
        bound = self.p.exit_threshold
        if bound is not None and i > position.entry_index and position.dir * score < bound:
            self.submit_exit(i, ts, position, "SCORE_EXIT")

    def submit_exit(self, i: int, ts: int, position: Position, reason: str) -> None:
        """Quote: "The first one submitted stands." A closing position is not touched."""
        if position.exit is None and position.closing is None:
            position.exit = (i, ts + (nanoseconds(self.p.latency_ms, 1e6) or 0), reason)

    def on_risk(self, i: int, ts: int, name: str | None, payload: dict[str, Any]) -> None:
        """Quote: "A flag of a RISK_UPDATE that is absent or not a bool leaves `tradingBlocked` as it was and counts as
        false for `forceClose`"; no symbol: "for every symbol, also those first seen later".
        """
        blocked, force = risk_flag(payload, "tradingBlocked"), risk_flag(payload, "forceClose")
        if name is None:
            self.seen["risk update for every symbol"] += 1
            if blocked is not None:
                self.blocked_for_new = blocked
        for symbol in list(self.symbols.values()) if name is None else [self.symbol(name)]:
            if blocked is not None:
                symbol.blocked = blocked
            if force and symbol.position is not None:
                self.submit_exit(i, ts, symbol.position, "RISK_EXIT")
            # "An entry still pending at a `forceClose` is not affected by it."
            self.seen["force close while pending"] += bool(force) and symbol.entry is not None

    def on_funding(self, i: int, ts: int, name: str, payload: dict[str, Any]) -> None:
        """Quote: "at a FUNDING event of the symbol with index > j while the position is open (or closing),
        `cash = −dir·left·mark·fundingRate`".
        """
        symbol = self.symbol(name)
        position = symbol.position
        if position is None or i <= position.entry_index:
            return
        marked = is_price(payload.get("markPrice"))
        mark = float(payload["markPrice"]) if marked else symbol.last_price
        cash = -position.dir * position.left * mark * float(payload["fundingRate"])
        self.seen["funding at the mark price" if marked else "funding at the last price"] += 1
        self.seen["funding while closing"] += position.closing is not None
        self.seen["funding after TP1"] += position.tp1_filled
        position.funding += cash
        self.realise(ts, cash)

    def step(self, i: int) -> None:
        ts, kind, name, payload = self.inputs.events[i]
        self.realise_carried_parts(ts)
        self.expire(ts)
        if name is None and kind == "RISK_UPDATE":
            self.on_risk(i, ts, None, payload)
        if not is_symbol(name):
            return
        assert name is not None
        # "A scoring event that is also a price event is first a price event, then a scoring event."
        if i in self.inputs.prices[name]:
            self.on_price(i, ts, name, self.inputs.prices[name][i])
        if kind == "SCORING_UPDATE":
            score = signed_score(payload)
            if score is not None:
                self.on_score(i, ts, name, score)
        elif kind == "REGIME_UPDATE" and isinstance(payload.get("regime"), str):
            self.symbol(name).regime = payload["regime"]
        elif kind == "RISK_UPDATE":
            self.on_risk(i, ts, name, payload)
        elif kind == "FUNDING" and is_number(payload.get("fundingRate")):
            self.on_funding(i, ts, name, payload)

    def finish(self) -> None:
        """Quote: "Session end: what is open is closed like that at the symbol's last price event"."""
        for name, symbol in self.symbols.items():
            if symbol.position is not None:
                self.close_unseen(name, symbol.position, "SESSION_END", None)
            if symbol.entry is not None:
                fate = "resting" if symbol.entry.resting else "not arrived"
                self.seen[f"cancelled by the session's end: {fate}"] += 1
                symbol.entry = None
                self.cancelled_end += 1


def run(
    events: list[Event],
    params: Any,
    price_source: str | dict[str, str] = "auto",
    initial_state: dict[str, Any] | None = None,
    instruments: dict[str, Any] | None = None,
    rule: Callable[[dict[str, float], float, str, int], float] | None = None,
) -> Model:
    """Return the finished model: ``.trades`` listed by entry index, ``.counts``, ``.unusable``, ``.seen``."""
    inputs = read_inputs(events, price_source, initial_state)
    model = Model(inputs, params, instruments or {}, unusable=unusable_by_type(events), rule=rule)
    model.start(initial_state)
    for i in range(len(events)):
        model.step(i)
    model.finish()
    model.trades.sort(key=lambda trade: trade["entry_index"])  # "Trades are listed by entry index."
    return model


# ---- 5. Results ------------------------------------------------------------------------------------------------------


def metrics(model: Model) -> dict[str, Any]:
    """The metrics of docs/sweep.md: trades in the order of their exits, over all symbols together."""
    trades = sorted(model.trades, key=lambda trade: (trade["exit_index"], trade["entry_index"]))
    pnl = [trade["realized_pnl"] for trade in trades]
    n, net = len(pnl), math.fsum(pnl)
    profit, loss = math.fsum(x for x in pnl if x > 0), -math.fsum(x for x in pnl if x < 0)
    equity = peak = drawdown = 0.0
    for x in pnl:
        equity += x
        peak = max(peak, equity)
        drawdown = min(drawdown, equity - peak)
    wins = losses = most_wins = most_losses = 0
    for x in pnl:
        wins, losses = (wins + 1 if x > 0 else 0), (losses + 1 if x < 0 else 0)
        most_wins, most_losses = max(most_wins, wins), max(most_losses, losses)
    fees, funding = (math.fsum(trade[name] for trade in trades) for name in ("fees", "funding"))
    exposure = math.fsum(trade["duration_seconds"] for trade in trades)
    deviation = statistics.stdev(pnl) if n > 1 else 0.0
    profit_factor = None if not profit and not loss else (profit / loss if loss else math.inf)
    found: dict[str, Any] = {
        "n_trades": n,
        "n_wins": sum(x > 0 for x in pnl),
        "win_rate": sum(x > 0 for x in pnl) / n if n else None,
        "gross_pnl": net + fees - funding,
        "fees": fees,
        "funding": funding,
        "net_pnl": net,
        "net_pnl_after_gaps": math.fsum(
            trade["realized_pnl"] if trade["gap_pnl"] is None else trade["gap_pnl"] for trade in trades
        ),
        "profit_factor": profit_factor,
        "expectancy": net / n if n else None,
        "max_drawdown": drawdown,
        "max_win_streak": most_wins,
        "max_loss_streak": most_losses,
        "sharpe_per_trade": net / n / deviation if deviation else None,
        "avg_duration_s": exposure / n if n else None,
        "exposure_s": exposure,
        "n_thin": sum(trade["thin"] for trade in trades),
        **{f"n_{name}": count for name, count in model.counts.items()},
    }
    for reason in REASONS:
        found[f"n_{reason.lower()}"] = sum(trade["reason"] == reason for trade in trades)
    return found
