"""Payload texts to arrays: typed decoding in blocks, row by row only where a block holds something unusual."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from replaylab.features.book import OrderBook
from replaylab.features.payloads import risk_flag, usable_number, usable_price

__all__ = ["book_mids", "regime_names", "risk_flags", "scores", "trade_prices"]

Array = npt.NDArray[Any]
T = TypeVar("T")
_BLOCK = 4096
_NAN = math.nan


class _Trade(msgspec.Struct, gc=False):
    price: float | None = None
    off_market: Any = msgspec.field(default=None, name="offMarket")


class _Score(msgspec.Struct, gc=False):
    score: float | None = None
    side: Any = None
    price: float | None = None


_TRADES = msgspec.json.Decoder(list[_Trade])
_SCORES = msgspec.json.Decoder(list[_Score])
_ANY = msgspec.json.Decoder()


def trade_prices(texts: Sequence[str]) -> tuple[Array, Array]:
    """Return price (NaN: unusable) and ``offMarket`` of MARKET_TRADE payloads."""

    def one(payload: Mapping[str, Any]) -> _Trade:
        return _Trade(usable_price(payload.get("price")), payload.get("offMarket"))

    price, off = np.empty(len(texts)), np.zeros(len(texts), dtype=bool)
    for start, block in _blocks(texts, _TRADES, one):
        price[start : start + len(block)] = [_NAN if t.price is None else t.price for t in block]
        off[start : start + len(block)] = [t.off_market is True for t in block]
    return _positive(price), off


def scores(texts: Sequence[str]) -> tuple[Array, Array]:
    """Return the signed score and the price of SCORING_UPDATE payloads, each NaN where unusable."""

    def one(payload: Mapping[str, Any]) -> _Score:
        return _Score(
            usable_number(payload.get("score")), payload.get("side"), usable_price(payload.get("price"))
        )

    score, price, side = np.empty(len(texts)), np.empty(len(texts)), np.zeros(len(texts), dtype=np.int8)
    signs = {"LONG": 1, "SHORT": -1}
    for start, block in _blocks(texts, _SCORES, one):
        part = slice(start, start + len(block))
        score[part] = [_NAN if s.score is None else s.score for s in block]
        price[part] = [_NAN if s.price is None else s.price for s in block]
        side[part] = [signs.get(s.side, 0) if isinstance(s.side, str) else 0 for s in block]
    score[~np.isfinite(score)] = np.nan
    return np.where(side == 0, score, side * np.abs(score)), _positive(price)


def regime_names(texts: Sequence[str]) -> list[str | None]:
    """Return the ``regime`` of REGIME_UPDATE payloads; None where it is not a text."""
    names = []
    for text in texts:
        name = _payload(text).get("regime")
        names.append(name if isinstance(name, str) else None)
    return names


def risk_flags(texts: Sequence[str]) -> tuple[Array, Array, int]:
    """Return ``tradingBlocked`` (1, 0, −1: not said), ``forceClose`` and how many payloads say neither."""
    blocked = np.full(len(texts), -1, dtype=np.int8)
    force = np.zeros(len(texts), dtype=bool)
    silent = 0
    for i, text in enumerate(texts):
        payload = _payload(text)
        says_block, says_force = risk_flag(payload, "tradingBlocked"), risk_flag(payload, "forceClose")
        silent += says_block is None and says_force is None
        if says_block is not None:
            blocked[i] = says_block
        force[i] = bool(says_force)
    return blocked, force, silent


def book_mids(texts: Sequence[str], start: Mapping[str, Any] | None) -> tuple[Array, int]:
    """Return the mid after each MARKET_BOOK of one symbol (NaN: unusable or a side is empty), and the unusable count.

    ``start`` is the book at the session's start.
    """
    book = OrderBook()
    if isinstance(start, Mapping):
        book.apply({**start, "kind": "snapshot"})
    mids = np.full(len(texts), np.nan)
    bad = 0
    for i, text in enumerate(texts):
        if not book.apply(_payload(text)):
            bad += 1
            continue
        mid = book.mid()
        if mid is not None:
            mids[i] = mid
    return mids, bad


def _payload(text: str) -> dict[str, Any]:
    try:
        payload = _ANY.decode(text)
    except (msgspec.DecodeError, TypeError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _blocks(
    texts: Sequence[str], decoder: msgspec.json.Decoder[list[T]], one: Callable[[Mapping[str, Any]], T]
) -> Any:
    """Yield (start, decoded rows). One call of the decoder for thousands of rows costs a fraction of a call each."""
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        try:
            rows = decoder.decode(f"[{','.join(block)}]")
        except (msgspec.DecodeError, TypeError):
            rows = []
        if len(rows) != len(block):
            rows = [one(_payload(text)) for text in block]
        yield start, rows


def _positive(price: Array) -> Array:
    """NaN where a price is not finite and above zero."""
    good = (price > 0) & np.isfinite(price)
    result: Array = np.where(good, price, np.nan)
    return result
