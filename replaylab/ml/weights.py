"""Sample weights for labels that overlap in time: average uniqueness, and weight by return.

Labels that share prices are not independent: ten that overlap fully are one observation, not ten. Source: M. López de
Prado, *Advances in Financial Machine Learning*, Wiley 2018, chapter 4; here in continuous time instead of bars.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.errors import DatasetError
from replaylab.ml.intervals import Int64, interval_arrays, time_ns

__all__ = ["average_uniqueness", "return_weights"]

Floats = npt.NDArray[np.float64]


def average_uniqueness(t_start: Any, t_end: Any) -> Floats:
    """Return each label's uniqueness in (0, 1]: the time average of 1 / (labels open) over its interval.

    >>> average_uniqueness([0, 2, 10], [4, 6, 12]).tolist()
    [0.75, 0.75, 1.0]

    A label of zero length counts the labels open at that instant. Use it as ``sample_weight``, per symbol.
    """
    start, end = interval_arrays(t_start, t_end)
    if not len(start):
        return np.empty(0)
    points = np.unique(np.concatenate([start, end]))
    opened, closed = np.sort(start), np.sort(end)
    # Between two points the number of open labels is constant: those started at or before, not ended at or before.
    open_count = np.searchsorted(opened, points[:-1], side="right") - np.searchsorted(
        closed, points[:-1], side="right"
    )
    length = np.diff(points).astype(np.float64)
    share = np.divide(length, open_count, out=np.zeros_like(length), where=open_count > 0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    first, last = np.searchsorted(points, start), np.searchsorted(points, end)
    instant = end == start
    at_once = np.searchsorted(opened, start, side="right") - np.searchsorted(closed, start, side="left")
    with np.errstate(invalid="ignore", divide="ignore"):
        average = (total[last] - total[first]) / (end - start)
    return np.where(instant, 1.0 / at_once, np.minimum(average, 1.0))


def return_weights(t_start: Any, t_end: Any, price_times: Any, prices: npt.ArrayLike) -> Floats:
    """Return weights by absolute attributed return, scaled to a mean of 1.

    ``|Σ r_k / c_k|`` over the prices k with ``t_start < time_k ≤ t_end``, r the log return since the price before, c
    the labels open then. All zero (prices stood still): every weight is 1.
    """
    start, end = interval_arrays(t_start, t_end)
    when = time_ns(price_times, "price_times")
    price = np.asarray(prices, dtype=np.float64)
    if len(when) != len(price) or (len(when) > 1 and bool((np.diff(when) < 0).any())):
        raise DatasetError("price_times must ascend and be as many as the prices")
    if not len(start):
        return np.empty(0)
    change = np.diff(np.log(price), prepend=np.log(price[0])) if len(price) else np.empty(0)
    count = np.searchsorted(np.sort(start), when, side="left") - np.searchsorted(
        np.sort(end), when, side="left"
    )
    share = np.divide(change, count, out=np.zeros_like(change), where=count > 0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    weight = np.abs(total[_after(when, end)] - total[_after(when, start)])
    mean = weight.mean()
    return weight / mean if mean > 0 else np.ones_like(weight)


def _after(when: Int64, moment: Int64) -> npt.NDArray[np.intp]:
    return np.searchsorted(when, moment, side="right")
