"""The state of one symbol's features and what an event does to it: written once, run in two ways.

A state is a row of whole numbers and a row of floats. Event by event both are Python lists; over a whole tape they are
numpy arrays and these same functions are compiled. So the incremental and the vectorised form cannot drift apart.
NaN means "not known". Times are ns since 1970 and stay whole numbers: a float would lose their last digits.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence

from replaylab.features.book import OrderBook
from replaylab.features.catalogue import NAMES, FeatureParams
from replaylab.features.formulas import (
    LN2,
    blend,
    book_imbalance,
    decay,
    flow_imbalance,
    microprice,
    order_flow,
    volatility,
)

Ints = MutableSequence[int]
Floats = MutableSequence[float]

# Constants: half-lives in ns, and the rest of the parameters.
_FLOW, _VWAP, _INTENSITY, _VOLATILITY, _MOMENTUM, _KYLE, _KYLE_BAR, _BUCKET, _BUCKETS = range(9)

# Whole numbers.
_T_TRADE, _T_PRICE, _T_BOOK, _BAR, _RING_AT, _RING_FULL = range(6)
_N_INTS = 6

# Floats; the VPIN ring follows them.
(
    _SIGNED,
    _TRADED,
    _VWAP_VALUE,
    _VWAP_QTY,
    _RATE,
    _LAST,
    _FIRST,
    _REF,
    _REF_PRICE,
    _AVERAGE,
    _SQUARES,
    _SECONDS,
    _BID,
    _BID_QTY,
    _ASK,
    _ASK_QTY,
    _BID_DEPTH,
    _ASK_DEPTH,
    _OFI,
    _BAR_SIGNED,
    _BAR_PRICE,
    _XY,
    _XX,
    _FILL,
    _FILL_BUY,
    _RING_SUM,
) = range(26)
_RING = 26

# One place per feature of the catalogue, in its order.
N_VALUES = 24


def constants(params: FeatureParams) -> list[float]:
    """Return the parameters as the row of numbers that the functions below read."""
    return [
        params.flow_half_life_s * 1e9,
        params.vwap_half_life_s * 1e9,
        params.intensity_half_life_s * 1e9,
        params.volatility_half_life_s * 1e9,
        params.momentum_half_life_s * 1e9,
        params.kyle_half_life_s * 1e9,
        params.kyle_interval_s * 1e9,
        params.vpin_bucket_usd,
        float(params.vpin_buckets),
    ]


def new_state(params: FeatureParams) -> tuple[list[int], list[float]]:
    """Return the state of a symbol of which nothing is known."""
    floats = [0.0] * (_RING + params.vpin_buckets)
    for place in (_LAST, _FIRST, _REF_PRICE, _BID, _BID_QTY, _ASK, _ASK_QTY, _BID_DEPTH, _ASK_DEPTH):
        floats[place] = math.nan
    return [0] * _N_INTS, floats


def on_trade(
    ints: Ints, floats: Floats, consts: Sequence[float], ts: int, price: float, qty: float, sign: float
) -> None:
    """Take one trade. Where quantity or taker side is not known both are 0, and it only has a price."""
    floats[_LAST] = price
    first = floats[_FIRST] != floats[_FIRST]
    # While there is a book, its mid is the reference price: it does not bounce between bid and ask.
    if floats[_BID] != floats[_BID] or floats[_ASK] != floats[_ASK]:
        on_price(ints, floats, consts, ts, price)
    if qty <= 0.0 or sign == 0.0:
        return
    dt = ts - ints[_T_TRADE]
    if dt > 0:
        kept = decay(dt, consts[_FLOW])
        floats[_SIGNED] *= kept
        floats[_TRADED] *= kept
        kept = decay(dt, consts[_VWAP])
        floats[_VWAP_VALUE] *= kept
        floats[_VWAP_QTY] *= kept
        floats[_RATE] *= decay(dt, consts[_INTENSITY])
        ints[_T_TRADE] = ts
    floats[_SIGNED] += sign * qty
    floats[_TRADED] += qty
    floats[_VWAP_VALUE] += price * qty
    floats[_VWAP_QTY] += qty
    floats[_RATE] += LN2 / (consts[_INTENSITY] / 1e9)
    close_bars(ints, floats, consts, ts)
    # The price before the very first trade is not known, so neither is what that trade did to it.
    if not first:
        floats[_BAR_SIGNED] += sign * qty
    fill_buckets(ints, floats, consts, price * qty, sign)


def on_book(
    ints: Ints,
    floats: Floats,
    consts: Sequence[float],
    ts: int,
    bid: float,
    bid_qty: float,
    ask: float,
    ask_qty: float,
    bid_depth: float,
    ask_depth: float,
) -> None:
    """Take the book after one change; NaN for the price of an empty side."""
    both = bid == bid and ask == ask
    if both and floats[_BID] == floats[_BID] and floats[_ASK] == floats[_ASK]:
        flow = order_flow(
            bid,
            bid_qty,
            ask,
            ask_qty,
            floats[_BID],
            floats[_BID_QTY],
            floats[_ASK],
            floats[_ASK_QTY],
        )
        dt = ts - ints[_T_BOOK]
        if dt > 0:
            floats[_OFI] *= decay(dt, consts[_FLOW])
        floats[_OFI] += flow
        ints[_T_BOOK] = ts
    elif both:
        if ints[_T_BOOK] > 0:
            floats[_OFI] *= decay(ts - ints[_T_BOOK], consts[_FLOW])
        ints[_T_BOOK] = ts
    floats[_BID], floats[_BID_QTY] = bid, bid_qty
    floats[_ASK], floats[_ASK_QTY] = ask, ask_qty
    floats[_BID_DEPTH], floats[_ASK_DEPTH] = bid_depth, ask_depth
    if both:
        on_price(ints, floats, consts, ts, (bid + ask) / 2.0)


def on_price(ints: Ints, floats: Floats, consts: Sequence[float], ts: int, price: float) -> None:
    """Take a new reference price: the mid, or the trade price of a symbol without a book."""
    if floats[_FIRST] != floats[_FIRST]:
        floats[_FIRST] = price
        floats[_REF_PRICE] = floats[_BAR_PRICE] = price
        ints[_T_PRICE] = ts
        ints[_BAR] = int(ts // consts_bar(consts))
        return
    close_bars(ints, floats, consts, ts)
    # Logs of prices relative to the first keep the digits that logs of large prices would lose.
    level = math.log(price / floats[_FIRST])
    dt = ts - ints[_T_PRICE]
    if dt > 0:
        floats[_AVERAGE] = blend(floats[_AVERAGE], floats[_REF], decay(dt, consts[_MOMENTUM]))
        kept = decay(dt, consts[_VOLATILITY])
        floats[_SQUARES] *= kept
        floats[_SECONDS] = floats[_SECONDS] * kept + (1.0 - kept) * (consts[_VOLATILITY] / 1e9) / LN2
        ints[_T_PRICE] = ts
    change = level - floats[_REF]
    floats[_SQUARES] += change * change
    floats[_REF] = level
    floats[_REF_PRICE] = price


def consts_bar(consts: Sequence[float]) -> int:
    """Length of a bar in whole ns."""
    return int(consts[_KYLE_BAR])


def close_bars(ints: Ints, floats: Floats, consts: Sequence[float], ts: int) -> None:
    """Close the bar of Kyle's lambda when the first event of a later bar arrives."""
    length = consts_bar(consts)
    bar = ts // length
    if bar <= ints[_BAR] or floats[_FIRST] != floats[_FIRST]:
        return
    flow = floats[_BAR_SIGNED]
    change = floats[_REF_PRICE] - floats[_BAR_PRICE]
    kept = decay((bar - ints[_BAR]) * length, consts[_KYLE])
    floats[_XY] = floats[_XY] * kept + flow * change
    floats[_XX] = floats[_XX] * kept + flow * flow
    floats[_BAR_SIGNED] = 0.0
    floats[_BAR_PRICE] = floats[_REF_PRICE]
    ints[_BAR] = bar


def fill_buckets(ints: Ints, floats: Floats, consts: Sequence[float], value: float, sign: float) -> None:
    """Pour a trade's value into VPIN's buckets; a full one goes into the ring of the last ones."""
    bucket = consts[_BUCKET]
    buckets = int(consts[_BUCKETS])
    if value > bucket * (buckets + 1):
        # All buckets of the ring would hold this one trade: those that it would push out again are left away.
        value -= bucket * math.floor(value / bucket - buckets - 1)
    while True:
        room = bucket - floats[_FILL]
        part = value if value < room else room
        floats[_FILL] += part
        if sign > 0.0:
            floats[_FILL_BUY] += part
        if value < room:
            return
        value -= room
        place = _RING + ints[_RING_AT]
        imbalance = abs(2.0 * floats[_FILL_BUY] - bucket)
        floats[_RING_SUM] += imbalance - floats[place]
        floats[place] = imbalance
        ints[_RING_AT] = (ints[_RING_AT] + 1) % buckets
        if ints[_RING_FULL] < buckets:
            ints[_RING_FULL] += 1
        floats[_FILL] = 0.0
        floats[_FILL_BUY] = 0.0


def read_values(ints: Ints, floats: Floats, consts: Sequence[float], ts: int, out: Floats) -> None:
    """Write the features as they stand at ``ts`` into ``out``; changes nothing of the state."""
    bid, bid_qty, ask, ask_qty = floats[_BID], floats[_BID_QTY], floats[_ASK], floats[_ASK_QTY]
    for place in range(N_VALUES):
        out[place] = math.nan
    out[0], out[1], out[2], out[3] = bid, bid_qty, ask, ask_qty
    out[10], out[11] = floats[_BID_DEPTH], floats[_ASK_DEPTH]
    price = floats[_LAST]
    if bid == bid and ask == ask:
        mid = (bid + ask) / 2.0
        price = mid
        micro = microprice(bid, bid_qty, ask, ask_qty)
        out[4] = mid
        out[5] = ask - bid
        out[6] = (ask - bid) / mid * 1e4
        out[7] = micro
        out[8] = (micro / mid - 1.0) * 1e4
        out[9] = book_imbalance(bid_qty, ask_qty)
        out[12] = book_imbalance(floats[_BID_DEPTH], floats[_ASK_DEPTH])
        out[13] = floats[_OFI] * decay(ts - ints[_T_BOOK], consts[_FLOW])
    out[14] = floats[_LAST]
    if floats[_VWAP_QTY] > 0.0:
        dt = ts - ints[_T_TRADE]
        kept = decay(dt, consts[_FLOW])
        out[15] = floats[_SIGNED] * kept
        out[16] = floats[_TRADED] * kept
        out[17] = flow_imbalance(floats[_SIGNED], floats[_TRADED])
        vwap = floats[_VWAP_VALUE] / floats[_VWAP_QTY]
        out[18] = (price / vwap - 1.0) * 1e4
        out[19] = floats[_RATE] * decay(dt, consts[_INTENSITY])
    if floats[_FIRST] == floats[_FIRST]:
        dt = ts - ints[_T_PRICE]
        kept = decay(dt, consts[_VOLATILITY])
        seconds = floats[_SECONDS] * kept + (1.0 - kept) * (consts[_VOLATILITY] / 1e9) / LN2
        if seconds > 0.0:
            out[20] = volatility(floats[_SQUARES] * kept, seconds) * 1e4
        average = blend(floats[_AVERAGE], floats[_REF], decay(dt, consts[_MOMENTUM]))
        out[21] = (floats[_REF] - average) * 1e4
    if floats[_XX] > 0.0:
        out[22] = floats[_XY] / floats[_XX]
    if ints[_RING_FULL] > 0:
        out[23] = floats[_RING_SUM] / (ints[_RING_FULL] * consts[_BUCKET])


class FeatureEngine:
    """Feed it usable events in order; ``values(ts)`` returns every feature of the catalogue as known then.

    Times in ns since 1970. ``sign`` is +1 for a buying taker, −1 for a selling one; 0, with quantity 0, where either
    is not known. A feature that is not known yet is None.
    """

    __slots__ = ("_consts", "_floats", "_ints", "_levels", "_out")

    def __init__(self, params: FeatureParams | None = None) -> None:
        params = params if params is not None else FeatureParams()
        self._consts = constants(params)
        self._ints, self._floats = new_state(params)
        self._levels = params.depth_levels
        self._out = [math.nan] * len(NAMES)

    def trade(self, ts: int, price: float, qty: float, sign: float) -> None:
        """Take one trade."""
        on_trade(self._ints, self._floats, self._consts, ts, price, qty, sign)

    def book(self, ts: int, book: OrderBook) -> None:
        """Take the book after a change."""
        on_book(self._ints, self._floats, self._consts, ts, *book_columns(book, self._levels))

    def row(self, ts: int) -> list[float]:
        """Return the values at ``ts`` in the catalogue's order, NaN where not known: a row for a model."""
        read_values(self._ints, self._floats, self._consts, ts, self._out)
        return list(self._out)

    def values(self, ts: int) -> dict[str, float | None]:
        """Return the values at ``ts`` by name."""
        return {
            name: None if value != value else value for name, value in zip(NAMES, self.row(ts), strict=True)
        }


def book_columns(book: OrderBook, levels: int) -> tuple[float, float, float, float, float, float]:
    """Return best bid, its quantity, best ask, its quantity, and the depth of both sides; NaN for an empty side."""
    bid, ask = book.best_bid(), book.best_ask()
    bid_depth, ask_depth = book.depth(levels)
    bid_price, bid_qty = bid if bid is not None else (math.nan, math.nan)
    ask_price, ask_qty = ask if ask is not None else (math.nan, math.nan)
    return bid_price, bid_qty, ask_price, ask_qty, bid_depth, ask_depth
