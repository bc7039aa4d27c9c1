"""First touch of price levels, exact and fast: shared by sweeps and by labels for machine learning.

::

    from replaylab.barriers import BlockIndex, first_at_or_above, first_at_or_below

    index = BlockIndex(prices)                                     # prices: float64, in time order, no NaN
    up = first_at_or_above(index, starts, upper_levels, ends)      # int64 positions; the end where never touched
    down = first_at_or_below(index, starts, lower_levels, ends)

``starts`` are the first positions that may touch (the position after an entry, where the entry's own price does not
count), ``ends`` the first that may not (such as the position where the time is up).
"""

from replaylab.barriers.index import (
    BRANCH,
    SHIFT,
    BlockIndex,
    build_levels,
    first_at_or_above,
    first_at_or_below,
    first_ge,
    first_le,
    range_max,
    range_min,
)

__all__ = [
    "BRANCH",
    "SHIFT",
    "BlockIndex",
    "build_levels",
    "first_at_or_above",
    "first_at_or_below",
    "first_ge",
    "first_le",
    "range_max",
    "range_min",
]
