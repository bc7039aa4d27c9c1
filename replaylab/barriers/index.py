"""First touch of a level without reading every price: a tree of block minima and maxima.

::

    index = BlockIndex(prices)
    first_at_or_above(index, starts, levels, ends)      # position of the first price ≥ level, or the end

A block whose maximum is below a level cannot touch it, and is skipped whole; blocks of blocks likewise. The answer is
exactly that of a loop over all prices, at a cost that grows with the logarithm of the distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.compiled import compiled, inlined

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

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Sixteen prices share two cache lines: scanning them costs about as much as going one level up.
SHIFT = 4
BRANCH = 1 << SHIFT


@dataclass(frozen=True)
class BlockIndex:
    """Prices with the maxima and minima of their blocks of 16, 256, 4096, ...

    ``high`` and ``low`` hold level 1 first; level ``k`` starts at ``offsets[k - 1]``. NaN prices are refused by the
    callers: a comparison with NaN would hide a whole block. Memory: 2/15 of the prices'.
    """

    prices: Floats
    high: Floats
    low: Floats
    offsets: Ints

    def __init__(self, prices: npt.ArrayLike) -> None:
        values = np.ascontiguousarray(prices, dtype=np.float64)
        high, low, offsets = build_levels(values)
        for name, value in (("prices", values), ("high", high), ("low", low), ("offsets", offsets)):
            object.__setattr__(self, name, value)


def build_levels(values: Floats) -> tuple[Floats, Floats, Ints]:
    """Return the block maxima, the block minima and where each level of them starts (one more entry ends them)."""
    highs, lows, offsets = [], [], [0]
    high = low = values
    while len(high) > 1:
        starts = np.arange(0, len(high), BRANCH)
        high, low = np.maximum.reduceat(high, starts), np.minimum.reduceat(low, starts)
        highs.append(high)
        lows.append(low)
        offsets.append(offsets[-1] + len(high))
    empty = np.empty(0)
    return (
        np.concatenate(highs) if highs else empty,
        np.concatenate(lows) if lows else empty,
        np.array(offsets, dtype=np.int64),
    )


@inlined
def first_ge(values: Any, high: Any, offsets: Any, start: Any, end: Any, level: Any) -> Any:
    """Return the first i in [start, end) with values[i] ≥ level, else end."""
    i = start
    stop = min(end, ((start >> SHIFT) + 1) << SHIFT)
    while i < stop:
        if values[i] >= level:
            return i
        i += 1
    # Up while nothing touches, level by level; each step up covers sixteen times as much.
    if i >= end:
        return end
    depth = 0
    top = len(offsets) - 1
    node = i >> SHIFT
    while True:
        if depth >= top or (node << (SHIFT * (depth + 1))) >= end:
            return end
        base = offsets[depth]
        size = offsets[depth + 1] - base
        stop = min(size, ((node >> SHIFT) + 1) << SHIFT)
        while node < stop and not high[base + node] >= level:
            node += 1
        if node < stop:
            break
        if node == size:
            return end
        node >>= SHIFT
        depth += 1
    # Down into the first block that touches.
    while depth > 0:
        depth -= 1
        base = offsets[depth]
        node <<= SHIFT
        while not high[base + node] >= level:
            node += 1
    i = node << SHIFT
    while i < end:
        if values[i] >= level:
            return i
        i += 1
    return end


@inlined
def first_le(values: Any, low: Any, offsets: Any, start: Any, end: Any, level: Any) -> Any:
    """Return the first i in [start, end) with values[i] ≤ level, else end."""
    i = start
    stop = min(end, ((start >> SHIFT) + 1) << SHIFT)
    while i < stop:
        if values[i] <= level:
            return i
        i += 1
    if i >= end:
        return end
    depth = 0
    top = len(offsets) - 1
    node = i >> SHIFT
    while True:
        if depth >= top or (node << (SHIFT * (depth + 1))) >= end:
            return end
        base = offsets[depth]
        size = offsets[depth + 1] - base
        stop = min(size, ((node >> SHIFT) + 1) << SHIFT)
        while node < stop and not low[base + node] <= level:
            node += 1
        if node < stop:
            break
        if node == size:
            return end
        node >>= SHIFT
        depth += 1
    while depth > 0:
        depth -= 1
        base = offsets[depth]
        node <<= SHIFT
        while not low[base + node] <= level:
            node += 1
    i = node << SHIFT
    while i < end:
        if values[i] <= level:
            return i
        i += 1
    return end


@inlined
def range_max(values: Any, high: Any, offsets: Any, start: Any, end: Any) -> Any:
    """Return the largest of values[start:end]; −inf when empty."""
    best = -np.inf
    i = start
    while i < end:
        # The widest block that starts here and ends inside.
        depth = 0
        while (
            depth < len(offsets) - 1
            and i & ((1 << (SHIFT * (depth + 1))) - 1) == 0
            and i + (1 << (SHIFT * (depth + 1))) <= end
        ):
            depth += 1
        value = values[i] if depth == 0 else high[offsets[depth - 1] + (i >> (SHIFT * depth))]
        best = max(best, value)
        i += 1 << (SHIFT * depth)
    return best


@inlined
def range_min(values: Any, low: Any, offsets: Any, start: Any, end: Any) -> Any:
    """Return the smallest of values[start:end]; +inf when empty."""
    best = np.inf
    i = start
    while i < end:
        depth = 0
        while (
            depth < len(offsets) - 1
            and i & ((1 << (SHIFT * (depth + 1))) - 1) == 0
            and i + (1 << (SHIFT * (depth + 1))) <= end
        ):
            depth += 1
        value = values[i] if depth == 0 else low[offsets[depth - 1] + (i >> (SHIFT * depth))]
        best = min(best, value)
        i += 1 << (SHIFT * depth)
    return best


@compiled
def _touch_above(
    values: Any, high: Any, offsets: Any, starts: Any, levels: Any, ends: Any, found: Any
) -> None:
    for i in range(len(starts)):
        found[i] = first_ge(values, high, offsets, starts[i], ends[i], levels[i])


@compiled
def _touch_below(
    values: Any, low: Any, offsets: Any, starts: Any, levels: Any, ends: Any, found: Any
) -> None:
    for i in range(len(starts)):
        found[i] = first_le(values, low, offsets, starts[i], ends[i], levels[i])


def first_at_or_above(
    index: BlockIndex, starts: npt.ArrayLike, levels: npt.ArrayLike, ends: npt.ArrayLike | None = None
) -> Ints:
    """Return, per row, the first position in [start, end) whose price is ≥ the level; the end where there is none.

    ``starts`` and ``ends`` are positions in ``index.prices`` (``ends`` default: the end of the prices), ``levels``
    prices; scalars are broadcast. Raises ValueError for positions outside the prices.
    """
    rows = _rows(index, starts, levels, ends)
    _touch_above(index.prices, index.high, index.offsets, *rows)
    return rows[3]


def first_at_or_below(
    index: BlockIndex, starts: npt.ArrayLike, levels: npt.ArrayLike, ends: npt.ArrayLike | None = None
) -> Ints:
    """Return, per row, the first position in [start, end) whose price is ≤ the level; the end where there is none."""
    rows = _rows(index, starts, levels, ends)
    _touch_below(index.prices, index.low, index.offsets, *rows)
    return rows[3]


def _rows(
    index: BlockIndex, starts: npt.ArrayLike, levels: npt.ArrayLike, ends: npt.ArrayLike | None
) -> tuple[Ints, Floats, Ints, Ints]:
    size = len(index.prices)
    first, level, last = np.broadcast_arrays(
        np.asarray(starts, dtype=np.int64),
        np.asarray(levels, dtype=np.float64),
        np.asarray(size if ends is None else ends, dtype=np.int64),
    )
    if first.size and (first.min() < 0 or first.max() > size or last.min() < 0 or last.max() > size):
        raise ValueError(f"positions must lie in 0 to {size}")
    shape = first.shape
    copies = [np.array(values).reshape(-1) for values in (first, level, last)]
    return copies[0], copies[1], copies[2], np.empty(shape, dtype=np.int64).reshape(-1)
