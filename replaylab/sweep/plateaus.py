"""Robustness of a parameter set: how its neighbours fare. A lone peak is luck, a plateau is a property.

::

    frame = plateaus(result.frame, ["tp2_pct", "sl_pct"], "net_pnl")     # adds four columns

Neighbours of a combination on a grid are those one step away on one axis, the others equal. Numbers are ordered;
categories, booleans and ``None`` ("rule off") are not: between them there is no step. Rows that lie on no grid
(random or Sobol samples) take the nearest rows instead, in ranks per axis scaled to 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.spatial import KDTree

from replaylab.errors import SweepError, did_you_mean

__all__ = ["plateaus"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def plateaus(frame: pl.DataFrame, axes: Sequence[str], value: str) -> pl.DataFrame:
    """Return ``frame`` with ``neighbours``, ``neighbour_mean``, ``neighbour_min`` and ``robustness``.

    ``neighbours`` counts them. ``robustness`` = mean − standard deviation (population) of ``value`` over the row and
    its neighbours, in the unit of ``value``: it equals the value on a flat plateau and falls far below it on a lone
    peak. A missing ``value`` counts as absent; a row without neighbours has null there. Raises SweepError.
    """
    for name in (*axes, value):
        if name not in frame.columns:
            raise SweepError(f"no column {name!r}.{did_you_mean(name, frame.columns)}")
    values = frame[value].cast(pl.Float64).to_numpy()
    steps, ordered = _steps(frame, axes)
    pairs = _grid_pairs(steps, ordered)
    # A grid of n rows and d axes has some n·d such pairs; a random sample hardly any.
    if len(pairs) < frame.height // 2 and any(ordered):
        pairs = _nearest_pairs(steps, ordered)
    count, total, squares, lowest = _gather(pairs, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        own = np.isfinite(values)
        everyone = count + own
        centre = (total + np.where(own, values, 0.0)) / everyone
        spread = (squares + np.where(own, values**2, 0.0)) / everyone - centre**2
        robustness = centre - np.sqrt(np.maximum(spread, 0.0))
    alone = count == 0
    return frame.with_columns(
        pl.Series("neighbours", count.astype(np.int64)),
        _nullable("neighbour_mean", mean, alone),
        _nullable("neighbour_min", lowest, alone),
        _nullable("robustness", robustness, alone | ~own),
    )


def _steps(frame: pl.DataFrame, axes: Sequence[str]) -> tuple[Ints, list[bool]]:
    """Return the step number of each row on each axis (rows, axes), and which axes are ordered."""
    steps = np.empty((frame.height, len(axes)), dtype=np.int64)
    ordered = []
    for column, name in enumerate(axes):
        series = frame[name]
        numeric = series.dtype.is_numeric()
        if numeric:
            rank = series.rank("dense")
        else:
            text = series.map_elements(str, return_dtype=pl.String) if series.dtype == pl.Object else series
            rank = text.cast(pl.String, strict=False) if not text.dtype.is_nested() else text.hash()
            rank = rank.rank("dense")
        steps[:, column] = rank.cast(pl.Int64).fill_null(0).to_numpy() - 1
        ordered.append(numeric)
    return steps, ordered


def _grid_pairs(steps: Ints, ordered: list[bool]) -> Ints:
    """Return pairs (row, neighbour one step up on one axis); each pair once."""
    sizes = steps.max(axis=0, initial=0) + 2
    if float(np.prod(sizes.astype(np.float64))) > 2**62:
        return np.empty((0, 2), dtype=np.int64)
    weights = np.concatenate([np.cumprod(sizes[::-1].astype(np.int64))[::-1][1:], [1]]).astype(np.int64)
    keys = (steps + 1) @ weights
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    found = []
    for axis, is_ordered in enumerate(ordered):
        if not is_ordered:
            continue
        rows = np.flatnonzero(steps[:, axis] >= 0)
        wanted = keys[rows] + weights[axis]
        rows, wanted = (part[steps[rows, axis] + 2 < sizes[axis]] for part in (rows, wanted))
        place = np.searchsorted(sorted_keys, wanted)
        hit = (place < len(keys)) & (sorted_keys[np.minimum(place, len(keys) - 1)] == wanted)
        found.append(np.column_stack([rows[hit], order[place[hit]]]))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _nearest_pairs(steps: Ints, ordered: list[bool]) -> Ints:
    """Return pairs (row, near row) within rows of the same categories: twice as many as there are ordered axes."""
    numeric = steps[:, ordered].astype(np.float64)
    scale = np.maximum(numeric.max(axis=0, initial=0.0), 1.0)
    off = numeric < 0  # None: as far from every number as the axis is long
    points = np.where(off, 2.0, numeric / scale)
    kind = np.column_stack([steps[:, [not flag for flag in ordered]], off.astype(np.int64)])
    _, group = np.unique(kind, axis=0, return_inverse=True)
    wanted = 2 * sum(ordered)
    found = [np.empty((0, 2), dtype=np.int64)]
    for number in range(int(group.max(initial=-1)) + 1):
        rows = np.flatnonzero(group.ravel() == number)
        take = min(wanted, len(rows) - 1)
        if take < 1:
            continue
        _, near = KDTree(points[rows]).query(points[rows], k=take + 1)
        # The row itself goes last. Where duplicates hide it among its neighbours, the furthest is last already.
        itself = near == np.arange(len(rows))[:, None]
        others = np.take_along_axis(near, np.argsort(itself, axis=1, kind="stable"), axis=1)
        found.append(np.column_stack([np.repeat(rows, take), rows[others[:, :take].ravel()]]))
    one_way = np.concatenate(found)
    return np.unique(np.sort(one_way, axis=1), axis=0)


def _gather(pairs: Ints, values: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return count, sum, sum of squares and minimum of the finite values of each row's neighbours."""
    rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
    others = values[np.concatenate([pairs[:, 1], pairs[:, 0]])]
    usable = np.isfinite(others)
    rows, others = rows[usable], others[usable]
    size = len(values)
    lowest = np.full(size, np.inf)
    np.minimum.at(lowest, rows, others)
    count, total, squares = (
        np.bincount(rows, weights=weights, minlength=size).astype(np.float64)
        for weights in (np.ones(len(rows)), others, others**2)
    )
    return count, total, squares, lowest


def _nullable(name: str, values: Floats, missing: npt.NDArray[np.bool_]) -> pl.Series:
    return pl.Series(name, np.where(missing, np.nan, values)).fill_nan(None)
