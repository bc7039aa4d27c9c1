"""First touch of a trailing stop, skipping every block in which it cannot happen."""

from __future__ import annotations

from typing import Any

from replaylab.barriers.index import BRANCH, SHIFT
from replaylab.compiled import inlined
from replaylab.sweep.rules import stop_hit, trailing_active, trailing_price

__all__ = ["first_trailing"]


@inlined
def first_trailing(
    values: Any,
    high: Any,
    low: Any,
    offsets: Any,
    start: Any,
    end: Any,
    entry: Any,
    direction: Any,
    activation_pct: Any,
    distance_pct: Any,
) -> Any:
    """Return the first i in (start, end) whose price hits the stop that the prices from ``start`` to i − 1 raised.

    ``end`` where there is none. A block is skipped when its worst price does not reach the stop that its best price
    could raise: then no price in it can, whatever their order.
    """
    best = values[start]
    active = trailing_active(best, entry, direction, activation_pct)
    stop = trailing_price(best, direction, distance_pct)
    top = len(offsets) - 1
    i = start + 1
    while i < end:
        if i & (BRANCH - 1) == 0:
            depth = 0
            reached = best
            while depth < top and i & ((1 << (SHIFT * (depth + 1))) - 1) == 0:
                node = offsets[depth] + (i >> (SHIFT * (depth + 1)))
                if direction > 0.0:
                    hoped, worst = max(best, high[node]), low[node]
                else:
                    hoped, worst = min(best, low[node]), high[node]
                if (active or trailing_active(hoped, entry, direction, activation_pct)) and stop_hit(
                    worst, trailing_price(hoped, direction, distance_pct), direction
                ):
                    break
                reached = hoped
                depth += 1
            if depth > 0:
                i += 1 << (SHIFT * depth)
                if reached != best:
                    best = reached
                    active = active or trailing_active(best, entry, direction, activation_pct)
                    stop = trailing_price(best, direction, distance_pct)
                continue
        price = values[i]
        if active and stop_hit(price, stop, direction):
            return i
        if direction * (price - best) > 0.0:
            best = price
            active = active or trailing_active(best, entry, direction, activation_pct)
            stop = trailing_price(best, direction, distance_pct)
        i += 1
    return end
