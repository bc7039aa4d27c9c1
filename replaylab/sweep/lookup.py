"""What the chain kernel reads of a tape besides its arrays: built once per tape, whatever the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaylab.barriers.index import build_levels
from replaylab.compiled import compiled

if TYPE_CHECKING:
    from replaylab.sweep.tape import TapeArrays

__all__ = ["TICK", "Lookup", "build_lookup"]

Array = npt.NDArray[Any]

# What a chain reads of one price event, together: one trip to memory. ``next_score``: the first score at or after it.
TICK = np.dtype([("price", "f8"), ("ts", "i8"), ("index", "i4"), ("next_score", "i4")], align=True)


class Lookup(NamedTuple):
    """Price events in one piece, block maxima and minima of prices and scores, and per score the price after it."""

    ticks: Array
    score_after: Array
    price_high: Array
    price_low: Array
    price_offsets: Array
    score_high: Array
    score_low: Array
    score_offsets: Array


def build_lookup(tape: TapeArrays) -> Lookup:
    """Return the lookup of a tape's arrays."""
    ticks = np.empty(len(tape.price), dtype=TICK)
    after = np.empty(len(tape.score), dtype=np.int32)
    _follow(
        tape.price,
        tape.price_ts,
        tape.price_index,
        tape.price_from,
        tape.score_index,
        tape.score_from,
        ticks,
        after,
    )
    return Lookup(ticks, after, *build_levels(tape.price), *build_levels(tape.score))


@compiled
def _follow(
    price: Any,
    price_ts: Any,
    price_index: Any,
    price_from: Any,
    score_index: Any,
    score_from: Any,
    ticks: Any,
    after: Any,
) -> None:
    """One walk along prices and scores of each symbol."""
    for k in range(len(price_from) - 1):
        c = score_from[k]
        last = score_from[k + 1]
        end = price_from[k + 1]
        waiting = c
        for x in range(price_from[k], end):
            index = price_index[x]
            while c < last and score_index[c] < index:
                c += 1
            # A score at a price event's own index comes after that price.
            while waiting < c:
                after[waiting] = x
                waiting += 1
            ticks[x].price = price[x]
            ticks[x].ts = price_ts[x]
            ticks[x].index = index
            ticks[x].next_score = c
        while waiting < last:
            after[waiting] = end
            waiting += 1
