"""How much of the best result is luck: deflated Sharpe ratio, SPA test, overfitting.

Arrays in, numbers out; nothing here knows of sessions or files. All Sharpe ratios are per observation (per
trade or per period), never annualised. Formulas with worked examples are in ``docs/statistics.md``.

Sources: Bailey & López de Prado, *The Sharpe Ratio Efficient Frontier*, Journal of Risk 15 (2012); *The Deflated Sharpe
Ratio*, Journal of Portfolio Management 40 (2014); Bailey, Borwein, López de Prado & Zhu, *The Probability of Backtest
Overfitting*, Journal of Computational Finance 20 (2017; working paper 2015); López de Prado, Lipton & Zoonekynd,
*How to Use the Sharpe Ratio* (SSRN 5520741; the "2026" form here); Hansen, *A Test for Superior Predictive Ability*,
Journal of Business & Economic Statistics 23 (2005); Politis & Romano, *The Stationary Bootstrap*, JASA 89 (1994).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.special import ndtr, ndtri

from replaylab.compiled import compiled, inlined, merged, one_at_a_time, was_compiled
from replaylab.errors import SweepError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_EULER = 0.5772156649015329
# 24 blocks have 2.7 million splits. Splits of a task: each makes its tables of sums.
_MOST_BLOCKS, _GROUP = 24, 512


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
    return float(ndtr((sharpe - benchmark) * math.sqrt(length / scale))) if scale > 0 else math.nan


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
    return (form == "2012") + scale * float(ndtri(confidence) / (sharpe - benchmark)) ** 2


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
    nodes, weights = _hermite()
    z = nodes * math.sqrt(2.0)
    density = weights / math.sqrt(math.pi) * n_trials * ndtr(z) ** (n_trials - 1.0)
    mean = float((density * z).sum())
    return mean, float((density * z**2).sum()) - mean**2


@cache
def _hermite() -> tuple[Floats, Floats]:
    return np.polynomial.hermite.hermgauss(200)


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
    spread = (1 - _EULER) * -ndtri(1 / n_trials) + _EULER * -ndtri(1 / (n_trials * math.e))
    return math.sqrt(variance) * float(spread)


def effective_trials(pnl: npt.ArrayLike) -> float:
    """Return how many independent trials the columns of ``pnl`` (periods, trials) amount to.

    >>> round(effective_trials(np.repeat(np.random.default_rng(0).normal(size=(500, 1)), 40, axis=1)), 9)
    1.0

    The participation ratio of their correlation matrix, ``(Σλ)²/Σλ² = n²/Σρ²``, with the mean of ρ² off the diagonal
    corrected for what T periods show of independent trials, 1/(T − 1). Columns without spread count for nothing.
    """
    by_trial, means, spread = _spread(pnl)
    trials, periods = by_trial.shape
    if trials < 2 or periods < 3:
        return float(max(1, trials))
    scaled: Floats = (by_trial - means[:, None]) / (spread[:, None] * math.sqrt(periods))
    # Σρ² over all pairs, from the smaller of the two products.
    total = float(((scaled.T @ scaled if periods < trials else scaled @ scaled.T) ** 2).sum())
    chance = 1.0 / (periods - 1.0)
    seen = (total - trials) / (trials * (trials - 1.0))
    shared = min(1.0, max(0.0, (seen - chance) / (1.0 - chance)))
    return float(trials / (1.0 + (trials - 1.0) * shared))


# The SPA test and the intervals of the best row often ask for the same ones.
@lru_cache(maxsize=2)
def _bootstrap_weights(periods: int, block: float, reps: int, seed: int) -> Floats:
    """Return (reps, periods): how often each period occurs in each resample of the stationary bootstrap."""
    # Loading arch takes a second: with the first verdict, not with the first import.
    from arch.bootstrap import StationaryBootstrap

    if reps < 1 or not block >= 1.0 or periods < 1:
        raise SweepError(
            f"a bootstrap needs a period, a resample and blocks of 1 period or more, found {periods} periods, "
            f"{reps} resamples, blocks of {block:g}"
        )
    # The mean length of a block need not be whole; arch annotates it as if.
    mean: Any = block
    draws = StationaryBootstrap(mean, np.arange(periods), seed=seed)
    places = np.concatenate([draws.update_indices() + start for start in range(0, reps * periods, periods)])
    return np.bincount(places, minlength=reps * periods).reshape(reps, periods).astype(np.float64)


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
    pnl: npt.ArrayLike,
    *,
    block: float | None = None,
    reps: int = 1_000,
    seed: int = 0,
    done: Callable[[int, int], Any] = lambda part, parts: None,
) -> Spa:
    """Return the p-values that no column of ``pnl`` (periods, trials) has a mean above 0.

    The maximum over all trials is compared with its own stationary bootstrap distribution, so that trials which repeat
    each other count for less. ``block``: mean length of a block in periods (default: what suits the best column).
    The resamples are those of ``arch.bootstrap``. ``done`` is called with the number of groups of columns that were
    finished since the last call, and of all.
    """
    by_trial, means, spread = _spread(pnl)
    periods = by_trial.shape[1]
    if periods < 8 or not len(by_trial):
        return Spa(math.nan, math.nan, math.nan, math.nan)
    best = int(np.argmax(means / spread))
    length = block_length(by_trial[best]) if block is None else block
    scale = np.sqrt(_long_run_variance(by_trial - means[:, None], length) / periods)
    ratios = means / scale
    statistic = max(0.0, float(ratios.max()))
    if statistic == 0.0:
        return Spa(1.0, 1.0, 1.0, 0.0)
    # Trials so bad that they cannot matter are not recentred to zero (consistent), or only to their own mean (lower).
    bound = -math.sqrt(2.0 * math.log(math.log(periods)))
    centres = np.stack([means, np.where(ratios >= bound, means, 0.0), np.maximum(means, 0.0)]) / scale
    weights = _bootstrap_weights(periods, length, reps, seed).astype(np.float32)
    # What rounding to single precision may change in a resample's studentised mean (Cauchy–Schwarz), and as much again.
    norms = np.sqrt((spread**2 + means**2) / periods) / scale
    slack = 2.0**-23 * (periods + 8) * math.sqrt(float((weights**2).sum(axis=1).max())) * norms
    reached, left = np.zeros((reps, 3), dtype=bool), np.arange(reps)
    compile_statistics()
    # Columns far apart in the grid together: resamples that reach the statistic under all three centres do so soon.
    count = -(-len(by_trial) // 2_500)
    for part in range(count):
        scaled = by_trial[part::count] / (periods * scale[part::count, None])
        draws, found = weights[left], reached[left]
        needed = centres[:, part::count] + statistic
        reaches(draws @ scaled.T.astype(np.float32), needed, slack[part::count].copy(), draws, scaled, found)
        reached[left] = found
        done(1, count)
        left = left[~found[:, 2]]
    upper, consistent, lower = reached.mean(axis=0)
    return Spa(float(consistent), float(lower), float(upper), statistic)


def pnl_matrix(pnl: npt.ArrayLike) -> Floats:
    """Return PnL as an array (periods, trials); raises SweepError where it is of another form, or not finite."""
    matrix = np.asarray(pnl, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise SweepError(
            f"expected finite PnL in the form (periods, trials), found the form {matrix.shape} with "
            f"{np.count_nonzero(~np.isfinite(matrix))} values that are not finite"
        )
    return matrix


def _spread(pnl: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return the columns of ``pnl`` that have a spread, as rows, with their means and standard deviations."""
    by_trial = np.ascontiguousarray(pnl_matrix(pnl).T)
    means = by_trial.mean(axis=1)
    centred = by_trial - means[:, None]
    spread = np.sqrt(np.einsum("ij,ij->i", centred, centred) / by_trial.shape[1])
    usable = spread > 1e-12 * max(by_trial.max(initial=0.0), -by_trial.min(initial=0.0))
    return (by_trial, means, spread) if usable.all() else (by_trial[usable], means[usable], spread[usable])


def _long_run_variance(centred: Floats, block: float) -> Floats:
    """Variance of √T times the mean under the stationary bootstrap, by its kernel (Politis & Romano 1994).

    Its weight of lag k is that of lag T − k: a circular convolution, so the sum over lags is one over frequencies.
    """
    periods = centred.shape[1]
    keep, lags = 1.0 - 1.0 / block, np.arange(periods)
    weights = (1.0 - lags / periods) * keep**lags + lags / periods * keep ** (periods - lags)
    of_lags = fft.rfft(np.where(weights >= 1e-4, weights, 0.0)).real
    # All frequencies but 0 and, of an even number of periods, the last count for two.
    twice = np.full(len(of_lags), 2.0)
    twice[[0] if periods % 2 else [0, -1]] = 1.0
    parts = fft.rfft(centred, axis=1).view(np.float64)
    variance: Floats = parts**2 @ np.repeat(np.column_stack([twice * of_lags, twice]), 2, axis=0) / periods**2
    return np.maximum(variance[:, 0], 1e-6 * variance[:, 1])


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

    def __repr__(self) -> str:
        return (
            f"<Overfitting: of {self.n_trials:,} trials the one chosen on half of the time loses on the other half in "
            f"{self.loss_probability:.0%} of {len(self.logits):,} splits (PBO {self.probability:.2f}, slope "
            f"{self.slope:+.2f})>"
        )

    def _repr_html_(self) -> str:
        """The probability in words, and the numbers."""
        rows = {
            "PBO: the best in sample lands at or below the median out of sample": f"{self.probability:.0%}",
            "it loses out of sample": f"{self.loss_probability:.0%}",
            "slope of out-of-sample over in-sample score": f"{self.slope:+.2f}",
            "trials, blocks, splits": f"{self.n_trials:,}, {self.n_blocks:,}, {len(self.logits):,}",
        }
        left = "style='text-align:left'"
        body = "".join(f"<tr><td {left}>{name}</td><td>{value}</td></tr>" for name, value in rows.items())
        return f"<div><b>Overfitting</b><table><tbody>{body}</tbody></table></div>"


def overfitting_probability(
    returns: npt.ArrayLike,
    n_blocks: int = 16,
    score: str = "sharpe",
    max_splits: int | None = None,
    *,
    done: Callable[[int, int], Any] = lambda splits, total: None,
) -> Overfitting:
    """Return the probability of backtest overfitting of choosing the best column of ``returns``.

    ``returns``: (periods, trials), the PnL of each trial in equal periods. The periods are cut into ``n_blocks`` (even)
    blocks of time, 24 at most; every choice of half of them is in sample once (12,870 for 16), the other half out of
    sample.
    ``score``: "sharpe" or "mean" of the periods. Periods beyond a multiple of ``n_blocks`` are left out at the start.
    ``max_splits`` takes that many splits spread evenly over all. Ties share a rank. ``done`` is called with the number
    of splits that were finished since the last call, and of all. Raises SweepError.
    """
    matrix = pnl_matrix(returns)
    if matrix.shape[1] < 2:
        raise SweepError(f"expected returns of at least two trials, found {matrix.shape[1]}")
    most = min(_MOST_BLOCKS, len(matrix))
    if n_blocks % 2 or not 2 <= n_blocks <= most:
        raise SweepError(
            f"n_blocks must be even, ≥ 2 and ≤ {most} (of {len(matrix)} periods), found {n_blocks}"
        )
    if max_splits is not None and max_splits < 1:
        raise SweepError(f"max_splits must be ≥ 1, or None for all, found {max_splits}")
    if score not in ("sharpe", "mean"):
        raise SweepError(f"score must be 'sharpe' or 'mean', found {score!r}")
    size, trials = len(matrix) // n_blocks, matrix.shape[1]
    half = size * n_blocks // 2
    if score == "sharpe" and half < 2:
        raise SweepError("a Sharpe ratio needs two periods in each half: use more periods or score='mean'")
    compile_statistics()
    tiles = np.zeros((-(-trials // _TILE), n_blocks, 2, _TILE))
    block_sums(np.ascontiguousarray(matrix.T), tiles, score == "mean")
    every = math.comb(n_blocks, n_blocks // 2)
    step = 1 if max_splits is None else max(1, math.ceil(every / max_splits))
    total = -(-every // step)

    def work(inside: Ints) -> tuple[Ints, Floats]:
        places, scores = np.empty((3, len(inside)), dtype=np.int64), np.empty((2, len(inside)))
        both = np.array([(1 << n_blocks // 2) - 1] * 2)
        rank_splits(tiles, trials, inside, both - inside, half, score == "mean", places, scores)
        return places, scores

    parts = []
    for places, scores in _on_threads(work, _splits(n_blocks, step), total * trials):
        parts.append((places, scores))
        done(places.shape[1], total)
    chosen, below, equal = np.concatenate([places for places, _ in parts], axis=1)
    in_sample, out_of_sample = np.concatenate([scores for _, scores in parts], axis=1)
    rank = (below + (equal + 1) / 2) / (trials + 1)
    logits = np.log(rank / (1 - rank))
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


def _splits(n_blocks: int, step: int) -> Iterator[Ints]:
    """Yield groups of splits, arrays (splits, 2): the blocks in sample of each half of time, as bits."""
    half = n_blocks // 2
    bits = 1 << np.arange(n_blocks) % half
    choices = islice(combinations(range(n_blocks), half), 0, None, step)
    while group := list(islice(choices, _GROUP)):
        blocks = np.array(group)
        early = np.where(blocks < half, bits[blocks], 0).sum(axis=1)
        yield np.column_stack([early, bits[blocks].sum(axis=1) - early])


def _on_threads(work: Callable[[Ints], Any], groups: Iterator[Ints], amount: float) -> Iterator[Any]:
    """Yield ``work`` of each group in their order; on the machine's cores where the amount is worth it."""
    threads = os.cpu_count() or 1
    if threads == 1 or amount < 1e6:
        yield from map(work, groups)
        return
    # An interrupt in a notebook cancels the groups that have not begun.
    with ThreadPoolExecutor(threads, thread_name_prefix="evidence") as pool:
        yield from pool.map(work, groups)


def _slope(x: Floats, y: Floats) -> float:
    usable = np.isfinite(x) & np.isfinite(y)
    x, y = x[usable], y[usable]
    if len(x) < 2 or not np.ptp(x) > 0:
        return math.nan
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())


# ---- Compiled ------------------------------------------------------------------------------------------------
#
# Of each split only the best column in sample and its rank out of sample are wanted. The Sharpe ratio rises with
# t·|t|/q (t: sum, q: sum of squares), so a comparison of t·|t| with a multiple of q decides for nearly all columns
# without a division or a root; those within rounding of the bound are scored in full. The sums over the blocks of a
# half are those of its blocks in the first and in the second half of time, each looked up in a table of all such sets.

# Columns that are scored together: their tables, for 16 blocks, fit into the second cache.
_TILE = 64


@compiled
def block_sums(by_trial: Any, tiles: Any, mean: bool) -> None:
    """Sum PnL and its squares per block into ``tiles`` (tiles, blocks, 2, columns); for a mean the squares are 1."""
    n_blocks, width = tiles.shape[1], tiles.shape[3]
    size, first = by_trial.shape[1] // n_blocks, by_trial.shape[1] % n_blocks
    for row in range(len(by_trial)):
        tile, place = row // width, row % width
        for block in range(n_blocks):
            total = square = 0.0
            for value in by_trial[row, first + block * size : first + (block + 1) * size]:
                total += value
                square += value * value
            tiles[tile, block, 0, place] = total
            tiles[tile, block, 1, place] = 1.0 if mean else square


@merged
def _score(total: float, square: float, count: int, mean: bool) -> float:
    """What ``sharpe`` computes, operation by operation; or the mean."""
    if mean:
        return total / count
    if total == 0.0:
        return 0.0
    average = total / count
    variance = (square - total * average) / (count - 1.0)
    return average / math.sqrt(variance if variance > 1e-12 * abs(square) else 0.0)


@merged
def _bounds(score: float, count: int, blocks: int, mean: bool) -> Any:
    """Return (low, high): a column with t·|t| < low·q scores less than ``score`` for certain, above high·q more."""
    sign = 1.0 if score > 0.0 else -1.0 if score < 0.0 else 0.0
    if mean:
        middle = sign * score * score * count * count / blocks
    else:
        slope = (count - 1.0) / count / count
        middle = sign * count if math.isinf(score) else sign * score**2 / (slope + score**2 / count)
        # So little spread is cut off as none: there the ratio jumps to infinity.
        flat = count * (1.0 - 4e-12 * count)
        if abs(middle) >= flat:
            edge = sign * flat * (1.0 - 1e-13)
            return (edge, math.inf) if sign > 0.0 else (-math.inf, edge)
    return middle - 1e-13 * abs(middle), middle + 1e-13 * abs(middle)


@inlined
def _add_sets(tile: Any, sets: Any) -> None:
    """Fill ``sets`` (2, sets, 2, columns): sums of every set of blocks in each half of time, added in its order."""
    early = len(tile) // 2
    for part in range(2):
        for chosen in range(1, 1 << (len(tile) - early if part else early)):
            last = 0
            while chosen >> (last + 1):
                last += 1
            block = part * early + last
            for kind in range(2):
                for place in range(tile.shape[2]):
                    before = sets[part, chosen ^ (1 << last), kind, place]
                    sets[part, chosen, kind, place] = before + tile[block, kind, place]


@compiled
def _choose(tiles: Any, trials: int, inside: Any, count: int, mean: bool, chosen: Any, scores: Any) -> None:
    """Find the first best column of each split in sample, and its score there."""
    half, width = tiles.shape[1] // 2, tiles.shape[3]
    sets = np.zeros((2, 1 << (tiles.shape[1] - half), 2, width))
    bound = np.full(len(inside), -math.inf)
    chosen[:] = 0
    scores[:] = -math.inf
    for tile in range(len(tiles)):
        columns = min(width, trials - tile * width)
        _add_sets(tiles[tile], sets)
        for split in range(len(inside)):
            early, late = sets[0, inside[split, 0]], sets[1, inside[split, 1]]
            # Columns that are 0 throughout: they count where the best so far loses.
            low, slack = bound[split], -1e-300 if scores[split] < 0.0 else 0.0
            possible = 0
            for place in range(columns):
                total, square = early[0, place] + late[0, place], early[1, place] + late[1, place]
                possible += total * abs(total) > low * square + slack
            if possible == 0 and tile > 0:
                continue
            best = scores[split]
            for place in range(columns):
                total, square = early[0, place] + late[0, place], early[1, place] + late[1, place]
                if tile == 0 or total * abs(total) > low * square + slack:
                    value = _score(total, square, count, mean)
                    if value > best:
                        best, chosen[split] = value, tile * width + place
            if best > scores[split]:
                scores[split], bound[split] = best, _bounds(best, count, half, mean)[0]


@compiled
def _count_below(
    tiles: Any, trials: int, outside: Any, count: int, mean: bool, places: Any, scores: Any
) -> None:
    """Score the chosen columns out of sample; count the columns below them, and equal to them (itself among these)."""
    half, width = tiles.shape[1] // 2, tiles.shape[3]
    sets = np.zeros((2, 1 << (tiles.shape[1] - half), 2, width))
    bounds = np.empty((len(outside), 2))
    places[1:] = 0
    for split in range(len(outside)):
        tile, place = places[0, split] // width, places[0, split] % width
        sums = np.zeros((2, 2))
        for block in range(tiles.shape[1]):
            part = block // half
            if outside[split, part] >> (block - part * half) & 1:
                sums[part] += tiles[tile, block, :, place]
        scores[split] = _score(sums[0, 0] + sums[1, 0], sums[0, 1] + sums[1, 1], count, mean)
        bounds[split, 0], bounds[split, 1] = _bounds(scores[split], count, half, mean)
    for tile in range(len(tiles)):
        columns = min(width, trials - tile * width)
        _add_sets(tiles[tile], sets)
        for split in range(len(outside)):
            early, late = sets[0, outside[split, 0]], sets[1, outside[split, 1]]
            low, high, reached = bounds[split, 0], bounds[split, 1], scores[split]
            below = above = zero = equal = 0
            for place in range(columns):
                total, square = early[0, place] + late[0, place], early[1, place] + late[1, place]
                signed, other = total * abs(total), total != 0.0
                zero += total == 0.0
                below += other & (signed < low * square)
                above += other & (signed > high * square)
            if below + above + zero < columns:
                for place in range(columns):
                    total, square = early[0, place] + late[0, place], early[1, place] + late[1, place]
                    signed = total * abs(total)
                    if total == 0.0 or signed < low * square or signed > high * square:
                        continue
                    value = _score(total, square, count, mean)
                    below += value < reached
                    equal += value == reached
            places[1, split] += below + (zero if reached > 0.0 else 0)
            places[2, split] += equal + (zero if reached == 0.0 else 0)


@compiled
def rank_splits(
    tiles: Any, trials: int, inside: Any, outside: Any, count: int, mean: bool, places: Any, scores: Any
) -> None:
    """Find the best column of each split in sample, and its rank out of sample.

    ``inside`` and ``outside``: the blocks of each split, as bits: (those of the first half of time, of the second).
    ``count``: periods in a half. Into ``places``: chosen, below, equal; into ``scores``: in and out of sample.
    """
    _choose(tiles, trials, inside, count, mean, places[0], scores[0])
    _count_below(tiles, trials, outside, count, mean, places, scores[1])


@compiled
def reaches(sums: Any, needed: Any, slack: Any, weights: Any, scaled: Any, found: Any) -> None:
    """Note for each resample whether any column's mean reaches what is ``needed``, of which each row asks for more.

    ``sums`` are the means ``weights @ scaled.T`` in single precision; within ``slack`` they are computed again.
    """
    columns = sums.shape[1]
    low = np.empty(needed.shape, dtype=np.float32)
    for kind in range(len(needed)):
        for place in range(columns):
            low[kind, place] = needed[kind, place] - slack[place]
    for row in range(len(sums)):
        for kind in range(len(needed)):
            possible = 0
            if not found[row, kind]:
                for place in range(columns):
                    possible += sums[row, place] >= low[kind, place]
            place = 0
            while possible > 0 and not found[row, kind]:
                if sums[row, place] >= low[kind, place]:
                    possible -= 1
                    found[row, kind] = sums[row, place] >= needed[kind, place] + slack[place]
                    if not found[row, kind]:
                        mean = 0.0
                        for period in range(scaled.shape[1]):
                            mean += weights[row, period] * scaled[place, period]
                        found[row, kind] = mean >= needed[kind, place]
                place += 1
            if not found[row, kind]:
                break


def compile_statistics() -> None:
    """Compile the kernels, once per installation; processes that do it at the same time wait for each other."""
    if was_compiled(reaches):
        return
    with one_at_a_time():
        tiles = np.zeros((1, 2, 2, _TILE))
        block_sums(np.zeros((2, 2)), tiles, False)
        halves = np.array([[1, 0], [0, 1]])
        found = np.empty((3, 2), dtype=np.int64), np.empty((2, 2))
        rank_splits(tiles, 2, halves, halves[::-1].copy(), 2, False, *found)
        one, none = np.zeros((1, 1)), np.zeros((1, 1), dtype=np.float32)
        reaches(none, np.zeros((3, 1)), np.zeros(1), none, one, np.zeros((1, 3), dtype=bool))
