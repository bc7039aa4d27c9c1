"""What ``overload="skip"`` leaves out when a handler is too slow: market data that newer market data replaces."""

from __future__ import annotations

from typing import Any

__all__ = ["Late", "coalesce"]

Late = tuple[int, str, str | None, dict[str, Any]]  # index, type, symbol, payload


def coalesce(late: list[Late]) -> list[Late]:
    """Return the newest event of each symbol and type out of a run of late MARKET_* events, in order.

    A book delta is merged into the book event before it, so the book that a handler keeps stays right; of trades the
    last one is kept, an off-market print beside it. What cannot be merged, because it is malformed, is kept.
    """
    kept: dict[Any, Late] = {}
    for event in late:
        index, kind, symbol, payload = event
        key: Any = (kind, symbol, payload.get("offMarket") is True)
        if kind == "MARKET_BOOK" and payload.get("kind") == "delta" and key in kept:
            merged = _merge(kept[key][3], payload)
            if merged is None:
                # The earlier one stays under a key of its own, and merging goes on from here.
                kept[index, "malformed"] = kept.pop(key)
            else:
                event = (index, kind, symbol, merged)
        kept.pop(key, None)
        kept[key] = event
    return sorted(kept.values(), key=lambda event: event[0])


def _merge(earlier: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any] | None:
    """Return one book event that does what two do; None when either is malformed."""
    whole = earlier.get("kind", "snapshot") == "snapshot"
    merged: dict[str, Any] = {"kind": "snapshot" if whole else "delta"}
    for side in ("bids", "asks"):
        try:
            levels = {price: qty for price, qty in earlier[side]}  # noqa: C416 - pairs, or it raises
            levels |= {price: qty for price, qty in delta[side]}  # noqa: C416
            rows = [[price, qty] for price, qty in levels.items() if not whole or qty > 0]
            merged[side] = sorted(rows, key=lambda row: row[0], reverse=side == "bids")
        except (KeyError, TypeError, ValueError):
            return None
    return merged
