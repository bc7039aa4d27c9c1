"""How much of the best result is luck: deflated Sharpe ratio, SPA test, overfitting, walk-forward, plateaus.

Arrays and frames in, numbers out; nothing here knows of sessions or files. All Sharpe ratios are per observation (per
trade or per period), never annualised. Formulas with worked examples are in ``docs/statistics.md``.

Sources: Bailey & López de Prado, *The Sharpe Ratio Efficient Frontier*, Journal of Risk 15 (2012); *The Deflated Sharpe
Ratio*, Journal of Portfolio Management 40 (2014); Bailey, Borwein, López de Prado & Zhu, *The Probability of Backtest
Overfitting*, Journal of Computational Finance 20 (2017; working paper 2015); López de Prado, Lipton & Zoonekynd,
*How to Use the Sharpe Ratio* (SSRN 5520741; the "2026" form here); Hansen, *A Test for Superior Predictive Ability*,
Journal of Business & Economic Statistics 23 (2005); Politis & Romano, *The Stationary Bootstrap*, JASA 89 (1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.spatial import KDTree
from scipy.stats import norm

from replaylab.errors import SweepError, did_you_mean

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_EULER = 0.5772156649015329
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


Form = Literal["2026", "2012"]


def probabilistic_sharpe_ratio(
    sharpe: float,
    count: int,
    skew: float = 0.0,
    kurtosis: float = 3.0,
    benchmark: float = 0.0,
    *,
    form: Form = "2026",
    n_trials: float = 1.0,
) -> float:
    """Return the probability that the true Sharpe ratio exceeds ``benchmark``.

    >>> round(probabilistic_sharpe_ratio(0.036 / 0.079, 24, -2.448, 10.164), 3)
    0.987

    ``Φ((SR − SR*)·√n / √(1 − skew·S + (kurtosis − 1)/4·S²))``. ``form`` "2026": the variance of the null hypothesis,
    S = SR* and n = ``count``; "2012": that of the estimate, S = SR and n = ``count`` − 1, which a lucky ratio shrinks
    or inflates itself. ``n_trials`` ("2026"): the ratio is the largest of so many, and varies as that does
    (``maximum_moments``). nan with fewer than two observations.
    """
    if count < 2 or not math.isfinite(sharpe):
        return math.nan
    scale = _variance(sharpe, skew, kurtosis, benchmark, form)
    length = count / maximum_moments(n_trials)[1] if form == "2026" else count - 1
    return float(norm.cdf((sharpe - benchmark) * math.sqrt(length / scale))) if scale > 0 else math.nan


def min_track_record(
    sharpe: float,
    skew: float = 0.0,
    kurtosis: float = 3.0,
    benchmark: float = 0.0,
    confidence: float = 0.95,
    *,
    form: Form = "2026",
) -> float:
    """Return how many observations make ``sharpe`` exceed ``benchmark`` at ``confidence`` (MinTRL).

    >>> round(min_track_record(0.036 / 0.079, -2.448, 10.164), 1)
    13.0

    Infinity if it is not above ``benchmark`` at all. ``form``: as in ``probabilistic_sharpe_ratio``.
    """
    if not sharpe > benchmark:
        return math.inf
    scale = _variance(sharpe, skew, kurtosis, benchmark, form)
    return (form == "2012") + scale * float(norm.ppf(confidence) / (sharpe - benchmark)) ** 2


def _variance(sharpe: float, skew: float, kurtosis: float, benchmark: float, form: Form) -> float:
    """Variance of an estimated Sharpe ratio times the number of observations."""
    if form not in ("2026", "2012"):
        raise SweepError(f'form: expected "2026" or "2012", found {form!r}')
    at = benchmark if form == "2026" else sharpe
    return 1.0 - skew * at + (kurtosis - 1.0) / 4.0 * at**2


def maximum_moments(n_trials: float) -> tuple[float, float]:
    """Return mean and variance of the largest of ``n_trials`` independent standard normal numbers.

    >>> [round(value, 4) for value in maximum_moments(2)]         # 1/√π and 1 − 1/π
    [0.5642, 0.6817]

    By Gauss–Hermite quadrature of its density N·φ(z)·Φ(z)^(N − 1); N need not be whole.
    """
    if n_trials <= 1.0:
        return 0.0, 1.0
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    z = nodes * math.sqrt(2.0)
    density = weights / math.sqrt(math.pi) * n_trials * norm.cdf(z) ** (n_trials - 1.0)
    mean = float((density * z).sum())
    return mean, float((density * z**2).sum()) - mean**2


def expected_max_sharpe(n_trials: float, variance: float) -> float:
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


def effective_trials(pnl: npt.ArrayLike) -> float:
    """Return how many independent trials the columns of ``pnl`` (periods, trials) amount to.

    >>> effective_trials(np.repeat(np.random.default_rng(0).normal(size=(500, 1)), 40, axis=1))
    1.0

    The participation ratio of their correlation matrix, ``(Σλ)²/Σλ² = n²/Σρ²``, with the mean of ρ² off the diagonal
    corrected for what T periods show of independent trials, 1/(T − 1). Columns without spread count for nothing.
    """
    matrix = np.asarray(pnl, dtype=np.float64)
    centred = matrix - matrix.mean(axis=0)
    norms = np.sqrt((centred**2).sum(axis=0))
    usable = norms > 1e-12 * np.abs(matrix).max(initial=0.0)
    trials, periods = int(usable.sum()), len(matrix)
    if trials < 2 or periods < 3:
        return float(max(1, trials))
    scaled = centred[:, usable] / norms[usable]
    # Σρ² over all pairs, from the smaller of the two products.
    total = float(((scaled @ scaled.T if periods < trials else scaled.T @ scaled) ** 2).sum())
    chance = 1.0 / (periods - 1.0)
    seen = (total - trials) / (trials * (trials - 1.0))
    shared = min(1.0, max(0.0, (seen - chance) / (1.0 - chance)))
    return trials / (1.0 + (trials - 1.0) * shared)


def _bootstrap_weights(periods: int, block: float, reps: int, seed: int) -> Floats:
    """Return (reps, periods): how often each period occurs in each resample of the stationary bootstrap."""
    # Loading arch takes a second: with the first verdict, not with the first import.
    from arch.bootstrap import StationaryBootstrap

    # The mean length of a block need not be whole; arch annotates it as if.
    mean: Any = block
    draws = StationaryBootstrap(mean, np.arange(periods), seed=seed)
    return np.array(
        [np.bincount(data[0][0], minlength=periods) for data in draws.bootstrap(reps)], dtype=float
    )


def block_length(series: npt.ArrayLike) -> float:
    """Return the mean block of the stationary bootstrap that suits a series (Politis & White 2004), at least 1."""
    from arch.bootstrap import optimal_block_length

    values = np.asarray(series, dtype=np.float64)
    if len(values) < 8 or not np.ptp(values) > 0:
        return 1.0
    found = float(optimal_block_length(values)["stationary"].iloc[0])
    return min(max(1.0, found), len(values) / 4) if math.isfinite(found) else 1.0


@dataclass(frozen=True)
class Spa:
    """Hansen's test for superior predictive ability: is any trial better than not trading?

    ``p_value``: the consistent one, beside ``lower`` and ``upper``; ``statistic``: the largest studentised mean.
    """

    p_value: float
    lower: float
    upper: float
    statistic: float


def superior_predictive_ability(
    pnl: npt.ArrayLike, *, block: float | None = None, reps: int = 1_000, seed: int = 0
) -> Spa:
    """Return the p-values that no column of ``pnl`` (periods, trials) has a mean above 0.

    The maximum over all trials is compared with its own stationary bootstrap distribution, so that trials which repeat
    each other count for less. ``block``: mean length of a block in periods (default: what suits the best column).
    The resamples are those of ``arch.bootstrap``; means of all of them are one matrix product.
    """
    matrix = np.asarray(pnl, dtype=np.float64)
    periods = len(matrix)
    means, spread = matrix.mean(axis=0), matrix.std(axis=0)
    usable = spread > 1e-12 * np.abs(matrix).max(initial=0.0)
    if periods < 8 or not usable.any():
        return Spa(math.nan, math.nan, math.nan, math.nan)
    matrix, means, spread = matrix[:, usable], means[usable], spread[usable]
    best = int(np.argmax(means / spread))
    length = block_length(matrix[:, best]) if block is None else block
    scale = np.sqrt(_long_run_variance(matrix - means, length) / periods)
    resampled = _bootstrap_weights(periods, length, reps, seed) @ (matrix / (periods * scale))
    ratios = means / scale
    statistic = max(0.0, float(ratios.max()))
    # Trials so bad that they cannot matter are not recentred to zero (consistent), or only to their own mean (lower).
    bound = -math.sqrt(2.0 * math.log(math.log(periods)))
    values = []
    for centre in (np.where(ratios >= bound, means, 0.0), np.maximum(means, 0.0), means):
        largest = np.maximum(0.0, (resampled - centre / scale).max(axis=1))
        values.append(float((largest >= statistic).mean()) if statistic > 0 else 1.0)
    return Spa(values[0], values[1], values[2], statistic)


def _long_run_variance(centred: Floats, block: float) -> Floats:
    """Variance of √T times the mean under the stationary bootstrap, by its kernel (Politis & Romano 1994)."""
    periods = len(centred)
    keep = 1.0 - 1.0 / block
    variance: Floats = (centred**2).mean(axis=0)
    plain = variance.copy()
    for lag in range(1, periods):
        weight = (1.0 - lag / periods) * keep**lag + lag / periods * keep ** (periods - lag)
        if weight < 1e-4:
            continue
        variance = variance + 2.0 * weight * (centred[lag:] * centred[:-lag]).sum(axis=0) / periods
    return np.maximum(variance, 1e-6 * plain)


@dataclass(frozen=True)
class Intervals:
    """Stationary bootstrap intervals (percentiles) of a series' total and Sharpe ratio, each (low, high)."""

    total: tuple[float, float]
    sharpe: tuple[float, float]
    block: float


def bootstrap_intervals(
    pnl: npt.ArrayLike, *, confidence: float = 0.95, reps: int = 1_000, seed: int = 0
) -> Intervals:
    """Return bootstrap intervals of the sum and the Sharpe ratio (per period) of a series of PnL by period."""
    values = np.asarray(pnl, dtype=np.float64)
    block = block_length(values)
    weights = _bootstrap_weights(len(values), block, reps, seed)
    totals = weights @ values
    ratios = sharpe(totals, weights @ values**2, len(values))
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(totals, ends)
    ratios = ratios[np.isfinite(ratios)]
    below, above = np.quantile(ratios, ends) if len(ratios) else (math.nan, math.nan)
    return Intervals((float(low), float(high)), (float(below), float(above)), block)


@dataclass(frozen=True)
class Deflated:
    """A deflated Sharpe ratio and what it was made of.

    ``probability``: that the true Sharpe ratio is above ``threshold``, the one that luck alone would show after
    ``n_trials``. Below 0.95 the result is not distinguishable from the best of that many coin tosses.
    """

    probability: float
    threshold: float
    sharpe: float
    n_trials: float
    variance: float
    moments: Moments


def deflated_sharpe_ratio(
    returns: npt.ArrayLike | Moments,
    n_trials: float | None = None,
    *,
    form: Literal["2026", "2014"] = "2026",
    trial_sharpes: npt.ArrayLike | None = None,
) -> Deflated:
    """Return the deflated Sharpe ratio of the chosen trial.

    ``returns``: the chosen trial's (or their ``Moments``). ``form`` "2026": ``n_trials`` is the effective number of
    trials (``effective_trials``) and their Sharpe ratios have the variance that worthless ones of this length have,
    1/(T − 1): real differences between trials do not count as noise. The largest of them has mean and variance of
    ``maximum_moments``. "2014": the variance is that of
    ``trial_sharpes``, of which ``n_trials`` is by default the number; fewer than two that are finite give nan.
    """
    chosen = returns if isinstance(returns, Moments) else moments(returns)
    if form == "2026":
        if n_trials is None:
            raise SweepError("n_trials: the 2026 form needs the (effective) number of trials")
        variance = 1.0 / (chosen.count - 1.0) if chosen.count > 1 else math.nan
    elif form == "2014" and trial_sharpes is not None:
        ratios = np.asarray(trial_sharpes, dtype=np.float64)
        n_trials = len(ratios) if n_trials is None else n_trials
        ratios = ratios[np.isfinite(ratios)]
        variance = float(ratios.var(ddof=1)) if len(ratios) > 1 else math.nan
    else:
        raise SweepError(f'form: expected "2026", or "2014" with trial_sharpes, found {form!r}')
    trials = max(float(n_trials), 1.0)
    if form == "2026":
        threshold = math.sqrt(variance) * maximum_moments(trials)[0]
    else:
        threshold = expected_max_sharpe(trials, variance) if math.isfinite(variance) else math.nan
    probability = probabilistic_sharpe_ratio(
        chosen.sharpe,
        chosen.count,
        chosen.skew,
        chosen.kurtosis,
        threshold,
        form="2012" if form == "2014" else "2026",
        n_trials=trials,
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


class Clock(NamedTuple):
    """``periods`` of ``length`` nanoseconds from ``start`` (nanoseconds since 1970)."""

    start: int
    length: int
    periods: int

    @property
    def edges(self) -> Ints:
        return np.int64(self.start) + np.arange(self.periods + 1, dtype=np.int64) * np.int64(self.length)


def period_clock(span: tuple[int, int], length: int) -> Clock:
    """Return the periods that cover both ends of ``span``, aligned to whole periods since 1970 (UTC)."""
    first, last = span[0] // length, span[1] // length
    if last - first >= _MOST_PERIODS:
        raise SweepError(f"{last - first + 1:,} periods are too many: take longer ones")
    return Clock(first * length, length, last - first + 1)


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


@cache
def _weights(n: int) -> tuple[Ints, Ints, Floats]:
    """Return for every fact and every set without it: the fact, the set (as bits), and the set's Shapley weight."""
    sets = np.arange(1 << n)
    size = np.array([int(s).bit_count() for s in sets])
    factor = np.array([math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n) for k in range(n)])
    facts, without = np.nonzero((sets[None, :] >> np.arange(n)[:, None] & 1) == 0)
    return facts, without, factor[size[without]]


def shapley(values: Floats) -> Floats:
    """Return the Shapley values of a game of n players; ``values[s]`` is that of the set with the bits of ``s``.

    >>> shapley(np.array([0.0, 1.0, 2.0, 5.0]))
    array([2., 3.])

    ``values`` has 2ⁿ rows; with further axes each is a game of its own. The result sums to ``values[-1] - values[0]``.
    """
    n = len(values).bit_length() - 1
    if n == 0:
        return np.zeros((0, *values.shape[1:]))
    facts, without, weight = _weights(n)
    gain = values[without | (1 << facts)] - values[without]
    found = np.zeros((n, *values.shape[1:]))
    np.add.at(found, facts, weight.reshape(-1, *[1] * (values.ndim - 1)) * gain)
    return found
