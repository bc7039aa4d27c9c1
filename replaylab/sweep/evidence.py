"""How much of the best result is luck: deflated Sharpe ratio, overfitting probability, walk-forward, plateaus.

Arrays and frames in, numbers out; nothing here knows of sessions or files. All Sharpe ratios are per observation (per
trade or per period), never annualised. Formulas with worked examples are in ``docs/statistics.md``.

Sources: Bailey & López de Prado, *The Sharpe Ratio Efficient Frontier*, Journal of Risk 15 (2012); *The Deflated Sharpe
Ratio*, Journal of Portfolio Management 40 (2014); Bailey, Borwein, López de Prado & Zhu, *The Probability of Backtest
Overfitting*, Journal of Computational Finance 20 (2017; working paper 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.spatial import KDTree
from scipy.stats import norm

from replaylab.errors import SweepError, did_you_mean

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_EULER = 0.5772156649015329
# Below this many observations a Sharpe ratio's own distribution has hardly a variance.
_FEW = 10
_MOST_PERIODS = 1_000_000


@dataclass(frozen=True)
class Moments:
    """Sharpe ratio and shape of a series of returns: ``count``, ``sharpe``, ``skew``, ``kurtosis`` (normal = 3)."""

    count: int
    sharpe: float
    skew: float
    kurtosis: float


def moments(returns: npt.ArrayLike) -> Moments:
    """Return the Sharpe ratio (standard deviation with n − 1), skewness and kurtosis of ``returns``.

    >>> moments([1.0, 2.0, 3.0]).sharpe
    2.0

    Skewness and kurtosis are population moments. With fewer than two returns, or no spread, they are nan.
    """
    values = np.asarray(returns, dtype=np.float64)
    count = len(values)
    spread = float(values.std(ddof=1)) if count > 1 else math.nan
    # Equal returns leave a spread of rounding errors only.
    if not spread > 1e-12 * float(np.abs(values).max(initial=0.0)):
        return Moments(count, math.nan, math.nan, math.nan)
    centred = values - values.mean()
    variance = float((centred**2).mean())
    return Moments(
        count=count,
        sharpe=float(values.mean()) / spread,
        skew=float((centred**3).mean()) / variance**1.5,
        kurtosis=float((centred**4).mean()) / variance**2,
    )


def probabilistic_sharpe_ratio(
    sharpe: float, count: int, skew: float = 0.0, kurtosis: float = 3.0, benchmark: float = 0.0
) -> float:
    """Return the probability that the true Sharpe ratio exceeds ``benchmark``.

    ``Φ((SR − SR*)·√(n − 1) / √(1 − skew·SR + (kurtosis − 1)/4·SR²))``; nan with fewer than two observations.
    """
    if count < 2 or not math.isfinite(sharpe):
        return math.nan
    scale = 1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2
    if not scale > 0:
        return math.nan
    return float(norm.cdf((sharpe - benchmark) * math.sqrt(count - 1) / math.sqrt(scale)))


def min_track_record(
    sharpe: float, skew: float = 0.0, kurtosis: float = 3.0, benchmark: float = 0.0, confidence: float = 0.95
) -> float:
    """Return how many observations make ``sharpe`` exceed ``benchmark`` at ``confidence``.

    Infinity if it is not above ``benchmark`` at all.
    """
    if not sharpe > benchmark:
        return math.inf
    scale = 1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2
    return 1.0 + scale * float(norm.ppf(confidence) / (sharpe - benchmark)) ** 2


def expected_max_sharpe(n_trials: int, variance: float) -> float:
    """Return the Sharpe ratio that the best of ``n_trials`` worthless trials is expected to show.

    ``√V · ((1 − γ)·Φ⁻¹(1 − 1/N) + γ·Φ⁻¹(1 − 1/(N·e)))`` with γ = 0.5772 (Euler–Mascheroni) and V the variance of the
    trials' Sharpe ratios. One trial: 0.
    """
    if n_trials < 1 or variance < 0:
        raise SweepError(f"expected trials ≥ 1 and a variance ≥ 0, found {n_trials} and {variance}")
    if n_trials == 1:
        return 0.0
    # The tail 1/N itself, not 1 − 1/N: the latter rounds for millions of trials.
    spread = (1 - _EULER) * norm.isf(1 / n_trials) + _EULER * norm.isf(1 / (n_trials * math.e))
    return math.sqrt(variance) * float(spread)


@dataclass(frozen=True)
class Deflated:
    """A deflated Sharpe ratio and what it was made of.

    ``probability``: that the true Sharpe ratio is above ``threshold``, the one that luck alone would show after
    ``n_trials``. Below 0.95 the result is not distinguishable from the best of that many coin tosses.
    """

    probability: float
    threshold: float
    sharpe: float
    n_trials: int
    variance: float
    moments: Moments


def deflated_sharpe_ratio(
    returns: npt.ArrayLike | Moments,
    trial_sharpes: npt.ArrayLike,
    n_trials: int | None = None,
    *,
    trial_counts: npt.ArrayLike | None = None,
) -> Deflated:
    """Return the deflated Sharpe ratio of the chosen trial.

    ``returns``: the chosen trial's (or their ``Moments``); ``trial_sharpes``: those of all trials, in the same unit.
    Trials without a Sharpe ratio (no trades) count as trials but not in the variance. ``n_trials`` overrides the count:
    set it higher when more was tried elsewhere, lower only with an estimate of independent trials.

    The formula takes all trials to be as long as the chosen one. ``trial_counts`` (observations of each) is for trials
    that are not: a ratio is then scaled by ``√(its count / the chosen one's)``, which makes its noise comparable, and
    trials of fewer than 10 observations are left out of the variance, their ratios being little but noise.
    """
    chosen = returns if isinstance(returns, Moments) else moments(returns)
    sharpes = np.asarray(trial_sharpes, dtype=np.float64)
    trials = len(sharpes) if n_trials is None else n_trials
    usable = np.isfinite(sharpes)
    if trial_counts is not None:
        counts = np.asarray(trial_counts, dtype=np.float64)
        usable &= counts >= _FEW
        sharpes = sharpes * np.sqrt(counts / max(chosen.count, 1))
    variance = float(sharpes[usable].var(ddof=1)) if usable.sum() > 1 else 0.0
    threshold = expected_max_sharpe(max(trials, 1), variance)
    probability = probabilistic_sharpe_ratio(
        chosen.sharpe, chosen.count, chosen.skew, chosen.kurtosis, threshold
    )
    return Deflated(probability, threshold, chosen.sharpe, trials, variance, chosen)


def sharpe(total: Floats, squares: Floats, count: int | Floats) -> Floats:
    """Return Sharpe ratios (n − 1) from sums and sums of squares; 0 where there is neither mean nor spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / count
        variance = (squares - total * mean) / (np.asarray(count) - 1.0)
        # What cancellation leaves of a series without spread counts as none.
        variance = np.where(variance > 1e-12 * np.abs(squares), variance, 0.0)
        return np.where(total == 0, 0.0, mean / np.sqrt(variance))


@dataclass(frozen=True)
class Overfitting:
    """Outcome of combinatorially symmetric cross-validation (CSCV), one entry per split in the arrays.

    ``probability`` (PBO): how often the trial that was best in sample lands at or below the median out of sample.
    ``logits``: of its relative rank out of sample (≤ 0: below the median). ``chosen``: its column. ``in_sample``,
    ``out_of_sample``: its score in both halves. ``loss_probability``: how often that is negative out of sample.
    ``slope``: of out-of-sample over in-sample score (negative: the better in sample, the worse out of sample; nan
    without spread).
    """

    probability: float
    logits: Floats
    chosen: npt.NDArray[np.intp]
    in_sample: Floats
    out_of_sample: Floats
    loss_probability: float
    slope: float
    n_blocks: int
    n_trials: int


def overfitting_probability(
    returns: npt.ArrayLike, n_blocks: int = 16, score: str = "sharpe", max_splits: int | None = None
) -> Overfitting:
    """Return the probability of backtest overfitting of choosing the best column of ``returns``.

    ``returns``: (periods, trials), the PnL of each trial in equal periods. The periods are cut into ``n_blocks`` (even)
    blocks of time; every choice of half of them is in sample once (12,870 for 16), the other half out of sample.
    ``score``: "sharpe" or "mean" of the periods. Rows beyond a multiple of ``n_blocks`` are left out at the start.
    ``max_splits`` takes that many splits spread evenly over all. Ties share a rank. Raises SweepError.
    """
    matrix = np.ascontiguousarray(returns, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 2 or not np.isfinite(matrix).all():
        raise SweepError("expected finite returns of at least two trials, in the form (periods, trials)")
    if n_blocks < 2 or n_blocks % 2 or n_blocks > len(matrix):
        raise SweepError(f"n_blocks must be even, ≥ 2 and ≤ the {len(matrix)} periods, found {n_blocks}")
    if score not in ("sharpe", "mean"):
        raise SweepError(f"score must be 'sharpe' or 'mean', found {score!r}")
    trials, size = matrix.shape[1], len(matrix) // n_blocks
    blocks = matrix[len(matrix) - size * n_blocks :].reshape(n_blocks, size, trials)
    sums, squares = blocks.sum(axis=1), (blocks**2).sum(axis=1)
    half = size * n_blocks // 2
    if score == "sharpe" and half < 2:
        raise SweepError("a Sharpe ratio needs two periods in each half: use more periods or score='mean'")

    def scores(mask: Floats) -> Floats:
        return mask @ sums / half if score == "mean" else sharpe(mask @ sums, mask @ squares, half)

    parts: list[tuple[npt.NDArray[np.intp], Floats, Floats, Floats]] = []
    for mask in _masks(n_blocks, trials, max_splits):
        inside, outside = scores(mask), scores(1.0 - mask)
        rows, best = np.arange(len(mask)), inside.argmax(axis=1)
        reached = outside[rows, best]
        below = (outside < reached[:, None]).sum(axis=1)
        equal = (outside == reached[:, None]).sum(axis=1)
        rank = (below + (equal + 1) / 2) / (trials + 1)
        parts.append((best, inside[rows, best], reached, np.log(rank / (1 - rank))))
    chosen, in_sample, out_of_sample, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Overfitting(
        probability=float((logits <= 0).mean()),
        logits=logits,
        chosen=chosen,
        in_sample=in_sample,
        out_of_sample=out_of_sample,
        loss_probability=float((out_of_sample < 0).mean()),
        slope=_slope(in_sample, out_of_sample),
        n_blocks=n_blocks,
        n_trials=trials,
    )


def _masks(n_blocks: int, trials: int, max_splits: int | None) -> Iterator[Floats]:
    """Yield chunks of in-sample masks (splits, blocks), small enough for a few (splits, trials) arrays of 32 MB."""
    total = math.comb(n_blocks, n_blocks // 2)
    step = 1 if max_splits is None else max(1, math.ceil(total / max_splits))
    choices = islice(combinations(range(n_blocks), n_blocks // 2), 0, None, step)
    while chunk := list(islice(choices, max(1, 4_000_000 // trials))):
        mask = np.zeros((len(chunk), n_blocks))
        np.put_along_axis(mask, np.array(chunk), 1.0, axis=1)
        yield mask


def _slope(x: Floats, y: Floats) -> float:
    usable = np.isfinite(x) & np.isfinite(y)
    x, y = x[usable], y[usable]
    if len(x) < 2 or not np.ptp(x) > 0:
        return math.nan
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())


@dataclass(frozen=True)
class WalkForwardStep:
    """One step: periods ``[train_from, train_to)`` chose ``chosen``, ``[train_to, test_to)`` report on it.

    ``in_sample``, ``out_of_sample``: the score there; ``rank``: share of trials that did worse out of sample
    (ties count half), 0.5 = no better than any.
    """

    train_from: int
    train_to: int
    test_to: int
    chosen: int
    in_sample: float
    out_of_sample: float
    rank: float


def walk_forward_steps(
    returns: npt.ArrayLike,
    train: int,
    test: int,
    *,
    score: str | Callable[[Floats], Any] = "total",
    expanding: bool = False,
) -> list[WalkForwardStep]:
    """Choose the best column on ``train`` periods, report on the next ``test`` periods, step on by ``test``.

    ``score``: "total", "sharpe", or a function from (periods, trials) to one number per trial, higher better.
    ``expanding`` keeps all periods since the start for training. Of equal trials the first is chosen.
    Raises SweepError when there are too few periods for one step.
    """
    matrix = np.asarray(returns, dtype=np.float64)
    if train < 1 or test < 1 or matrix.ndim != 2 or len(matrix) < train + test:
        raise SweepError(
            f"{len(matrix)} periods are too few for one step of {train} to choose on and {test} to report on"
        )

    def scores(part: Floats) -> Floats:
        if callable(score):
            return np.asarray(score(part), dtype=np.float64)
        if score == "total":
            return np.asarray(part.sum(axis=0))
        if score == "sharpe":
            return sharpe(part.sum(axis=0), (part**2).sum(axis=0), len(part))
        raise SweepError(f"score must be 'total', 'sharpe' or a function, found {score!r}")

    steps = []
    for split in range(train, len(matrix) - test + 1, test):
        first = 0 if expanding else split - train
        inside, outside = scores(matrix[first:split]), scores(matrix[split : split + test])
        chosen = int(np.nanargmax(inside))
        worse, same = (outside < outside[chosen]).mean(), (outside == outside[chosen]).mean()
        steps.append(
            WalkForwardStep(
                first,
                split,
                split + test,
                chosen,
                float(inside[chosen]),
                float(outside[chosen]),
                float(worse + same / 2),
            )
        )
    return steps


def period_edges(span: tuple[int, int], length: int) -> Ints:
    """Return the edges of periods that cover both ends of ``span``, aligned to whole periods since 1970 (UTC)."""
    first, last = span[0] // length, span[1] // length
    if last - first >= _MOST_PERIODS:
        raise SweepError(f"{last - first + 1:,} periods are too many: take longer ones")
    return np.arange(first, last + 2, dtype=np.int64) * length


def period_pnl(trades: Callable[[int], pl.DataFrame], rows: Iterable[int], edges: Ints) -> Floats:
    """Return (periods, rows): realised PnL by the time of the exit; a trade counts whole where it closes."""
    columns = []
    for row in rows:
        frame = trades(row)
        exits = frame["exit_time"].dt.timestamp("ns").to_numpy()
        place = np.searchsorted(edges, exits, side="right") - 1
        columns.append(np.bincount(place, weights=frame["realized_pnl"].to_numpy(), minlength=len(edges) - 1))
    return np.column_stack(columns) if columns else np.empty((len(edges) - 1, 0))


def plateaus(frame: pl.DataFrame, axes: Sequence[str], value: str) -> pl.DataFrame:
    """Return ``frame`` with ``neighbours``, ``neighbour_mean``, ``neighbour_min`` and ``robustness``.

    >>> grid = pl.DataFrame({"sl_pct": [0.1, 0.2, 0.3], "net_pnl": [5.0, 5.0, 5.0]})
    >>> plateaus(grid, ["sl_pct"], "net_pnl")["robustness"].to_list()
    [5.0, 5.0, 5.0]

    Neighbours of a combination on a grid are those one step away on one axis, the others equal. Numbers are ordered;
    categories, booleans and ``None`` ("rule off") are not: between them there is no step. Rows that lie on no grid
    (random or Sobol samples) take the nearest rows instead, in ranks per axis scaled to 0..1.

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
        members = count + own
        centre = (total + np.where(own, values, 0.0)) / members
        spread = (squares + np.where(own, values**2, 0.0)) / members - centre**2
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
            plain = series.map_elements(str, return_dtype=pl.String) if series.dtype == pl.Object else series
            names = plain.hash() if plain.dtype.is_nested() else plain.cast(pl.String, strict=False)
            rank = names.rank("dense")
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
