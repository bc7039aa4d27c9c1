"""Statistics and plateau scores: published and hand-worked numbers, and the definitions written as loops."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kurtosis, norm, skew

from replaylab.errors import SweepError
from replaylab.sweep import evidence, plateaus, walk_forward_steps


def test_moments_of_a_hand_worked_series() -> None:
    """1, 2, 3, 6: mean 3, sample variance 14/3, third moment 18/4, fourth 98/4, population variance 14/4."""
    found = evidence.moments([1.0, 2.0, 3.0, 6.0])
    assert found.count == 4
    assert found.sharpe == pytest.approx(3 / math.sqrt(14 / 3))
    assert found.skew == pytest.approx(4.5 / 3.5**1.5)
    assert found.kurtosis == pytest.approx(24.5 / 3.5**2)


def test_moments_agree_with_scipy() -> None:
    values = np.random.default_rng(3).standard_t(5, 500)
    found = evidence.moments(values)
    assert found.skew == pytest.approx(skew(values))
    assert found.kurtosis == pytest.approx(kurtosis(values, fisher=False))


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0], [0.1] * 7])
def test_no_spread_has_no_sharpe_ratio(values: list[float]) -> None:
    assert math.isnan(evidence.moments(values).sharpe)


def test_probabilistic_sharpe_of_hand_worked_numbers() -> None:
    """SR 0.5, n 5, skew 0, kurtosis 3: Φ(0.5·√5) under the null; in the 2012 form Φ(0.5·2/√1.125)."""
    assert evidence.probabilistic_sharpe_ratio(0.5, 5) == pytest.approx(norm.cdf(0.5 * math.sqrt(5)))
    old = evidence.probabilistic_sharpe_ratio(0.5, 5, form="2012")
    assert old == pytest.approx(norm.cdf(1 / math.sqrt(1.125)))
    assert evidence.probabilistic_sharpe_ratio(0.5, 5, benchmark=0.5) == 0.5
    assert math.isnan(evidence.probabilistic_sharpe_ratio(0.5, 1))


def test_the_published_example_of_2026() -> None:
    """SSRN 5520741: monthly mean 3.6 %, deviation 7.9 %, 24 months, skewness −2.448, kurtosis 10.164."""
    ratio = 0.036 / 0.079
    assert evidence.probabilistic_sharpe_ratio(ratio, 24, -2.448, 10.164) == pytest.approx(0.987, abs=5e-4)
    assert evidence.min_track_record(ratio, -2.448, 10.164) == pytest.approx(13.029, abs=5e-4)


@pytest.mark.parametrize(
    ("trials", "skewness", "tails", "probability"),
    [(100, -3, 10, 0.9004), (46, -3, 10, 0.9505), (88, 0, 3, 0.9505)],
)
def test_deflated_sharpe_of_the_published_example(
    trials: int, skewness: float, tails: float, probability: float
) -> None:
    """Bailey & López de Prado 2014: annualised SR 2.5 of 1,250 days, trial variance 1/2 a year, 250 days a year."""
    threshold = evidence.expected_max_sharpe(trials, 0.5 / 250)
    if trials == 100:
        assert threshold == pytest.approx(0.1132, abs=5e-5)
    found = evidence.probabilistic_sharpe_ratio(
        2.5 / math.sqrt(250), 1250, skewness, tails, threshold, form="2012"
    )
    assert found == pytest.approx(probability, abs=5e-5)


def test_deflated_sharpe_from_trials_in_the_form_of_2014() -> None:
    """The variance is that of the trials' ratios; trials without trades count as trials only."""
    returns = np.array([1.0, 2.0, 3.0, 6.0])
    found = evidence.deflated_sharpe_ratio(returns, form="2014", trial_sharpes=[0.0, 1.0, 2.0, math.nan])
    assert (found.n_trials, found.variance) == (4, 1.0)
    gamma = 0.5772156649015329
    wanted = (1 - gamma) * norm.ppf(0.75) + gamma * norm.ppf(1 - 1 / (4 * math.e))
    assert found.threshold == pytest.approx(wanted)
    shape = found.moments
    old = evidence.probabilistic_sharpe_ratio(
        shape.sharpe, 4, shape.skew, shape.kurtosis, wanted, form="2012"
    )
    assert found.probability == pytest.approx(old)
    alone = evidence.deflated_sharpe_ratio(returns, form="2014", trial_sharpes=[1.0])
    assert math.isnan(alone.probability)
    with pytest.raises(SweepError, match="number of trials"):
        evidence.deflated_sharpe_ratio(returns)


def test_deflated_sharpe_under_the_null() -> None:
    """16 trials of 101 observations: luck shows E[max]/10, and the ratio varies as the largest of 16 does."""
    mean, variance = evidence.maximum_moments(16)
    assert (mean, variance) == (pytest.approx(1.7660, abs=1e-4), pytest.approx(0.2951, abs=2e-4))
    found = evidence.deflated_sharpe_ratio(evidence.Moments(101, 0.3, 0.0, 3.0), 16)
    assert found.threshold == pytest.approx(mean / 10)
    spread = math.sqrt((1 + found.threshold**2 / 2) * variance / 101)
    assert found.probability == pytest.approx(norm.cdf((0.3 - found.threshold) / spread))


def test_a_row_of_four_trades_is_not_called_skill() -> None:
    """Luck must show more than 0.000 however large the ratio is and however few trades the other rows have."""
    found = evidence.deflated_sharpe_ratio(evidence.Moments(4, 3518.0, 0.0, 3.0), 36)
    assert found.threshold > 1.0


def test_noise_of_many_lengths_is_not_called_skill() -> None:
    """The best of 100 independent worthless trials is above the 95 % level in about one case of twenty."""
    rng = np.random.default_rng(8)
    called = 0
    for _ in range(200):
        trials = rng.normal(size=(100, 120))
        best = trials[int(np.argmax(trials.mean(axis=1) / trials.std(axis=1)))]
        called += evidence.deflated_sharpe_ratio(best, 100).probability >= 0.95
    assert called <= 20


def test_effective_trials_of_known_correlations() -> None:
    """Copies are one trial, independent series as many as there are, and ρ between all gives 1/ρ² in the limit."""
    rng = np.random.default_rng(2)
    assert evidence.effective_trials(np.repeat(rng.normal(size=(200, 1)), 30, axis=1)) == pytest.approx(1.0)
    assert evidence.effective_trials(rng.normal(size=(96, 400))) == pytest.approx(400, rel=0.25)
    common = math.sqrt(0.5) * rng.normal(size=(2_000, 1)) + math.sqrt(0.5) * rng.normal(size=(2_000, 500))
    assert evidence.effective_trials(common) == pytest.approx(4.0, rel=0.1)
    flat = np.column_stack([rng.normal(size=50), np.zeros(50)])
    assert evidence.effective_trials(flat) == 1.0


def test_spa_equals_that_of_arch() -> None:
    """arch compares plain means: with columns scaled to the same long-run variance both are one test."""
    from arch.bootstrap import SPA

    rng = np.random.default_rng(4)
    for shift in (-0.1, 0.0, 0.1):
        matrix = rng.normal(size=(120, 15)) * rng.uniform(0.5, 2.0, 15) + shift
        found = evidence.superior_predictive_ability(matrix, block=4, reps=500, seed=3)
        centred = np.ascontiguousarray((matrix - matrix.mean(axis=0)).T)
        scale = np.sqrt(evidence._long_run_variance(centred, 4))
        theirs = SPA(np.zeros(120), -matrix / scale, block_size=4, reps=500, seed=3)
        theirs.compute()
        wanted = [theirs.pvalues[name] for name in ("consistent", "lower", "upper")]
        assert [found.p_value, found.lower, found.upper] == pytest.approx(wanted, abs=0.005)


def spa_column_by_column(pnl: np.ndarray, block: float, reps: int, seed: int) -> list[float]:
    """The definition: means of every resample of arch, studentised and recentred; p-values by counting."""
    from arch.bootstrap import StationaryBootstrap

    periods = len(pnl)
    means, centred = pnl.mean(axis=0), pnl - pnl.mean(axis=0)
    keep = 1 - 1 / block
    variance = (centred**2).mean(axis=0)
    for lag in range(1, periods):
        weight = (1 - lag / periods) * keep**lag + lag / periods * keep ** (periods - lag)
        if weight >= 1e-4:
            variance = variance + 2 * weight * (centred[lag:] * centred[:-lag]).sum(axis=0) / periods
    scale = np.sqrt(np.maximum(variance, 1e-6 * (centred**2).mean(axis=0)) / periods)
    draws = StationaryBootstrap(block, np.arange(periods), seed=seed)  # type: ignore[arg-type]
    resampled = np.array([pnl[data[0][0]].mean(axis=0) for data in draws.bootstrap(reps)])
    statistic = max(0.0, float((means / scale).max()))
    good = means / scale >= -math.sqrt(2 * math.log(math.log(periods)))
    found = []
    for centre in (np.where(good, means, 0.0), np.maximum(means, 0.0), means):
        largest = np.maximum(0.0, ((resampled - centre) / scale).max(axis=1))
        found.append(float((largest >= statistic).mean()) if statistic > 0 else 1.0)
    return [*found, statistic]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1.0, 2.5, 12.0]),
    st.sampled_from([-0.5, -0.1, 0.0, 0.2]),
    st.sampled_from([3, 40, 700]),
)
def test_spa_equals_its_definition(seed: int, block: float, shift: float, trials: int) -> None:
    """On arch's resamples, with columns that repeat each other and such that never trade."""
    rng = np.random.default_rng(seed)
    pnl = rng.normal(shift, 1.0, (40, trials)) * rng.lognormal(0, 1, trials)
    pnl[:, rng.integers(0, trials, trials // 3)] = pnl[:, :1]
    wanted = spa_column_by_column(pnl, block, 100, seed)
    still = np.column_stack([np.zeros(40), pnl])
    for matrix in (pnl, np.asfortranarray(pnl), still):
        found = evidence.superior_predictive_ability(matrix, block=block, reps=100, seed=seed)
        assert [found.p_value, found.lower, found.upper] == wanted[:3]
        assert found.statistic == pytest.approx(wanted[3])


def test_spa_of_noise_and_of_skill() -> None:
    rng = np.random.default_rng(6)
    noise = [
        evidence.superior_predictive_ability(rng.normal(size=(96, 40)), reps=300).p_value for _ in range(60)
    ]
    assert np.mean(np.array(noise) <= 0.05) <= 0.15
    skill = rng.normal(size=(96, 40)) + np.where(np.arange(40) == 7, 0.6, 0.0)
    assert evidence.superior_predictive_ability(skill).p_value <= 0.01
    assert math.isnan(evidence.superior_predictive_ability(np.zeros((96, 3))).p_value)


def test_bootstrap_intervals_hold_the_truth() -> None:
    """Of independent values: total ± 1.96·σ·√n, as the normal distribution has it."""
    values = np.random.default_rng(9).normal(0.2, 1.0, 400)
    found = evidence.bootstrap_intervals(values, reps=4_000)
    width = 1.96 * values.std() * 20
    assert found.total == (
        pytest.approx(values.sum() - width, rel=0.25),
        pytest.approx(values.sum() + width, rel=0.25),
    )
    assert found.sharpe[0] < values.mean() / values.std() < found.sharpe[1]


def test_expected_maximum_is_that_of_simulated_noise() -> None:
    draws = np.random.default_rng(5).normal(size=(4000, 200)).max(axis=1).mean()
    assert evidence.expected_max_sharpe(200, 1.0) == pytest.approx(draws, rel=0.02)


def test_min_track_record_is_the_length_that_reaches_the_confidence() -> None:
    length = evidence.min_track_record(0.1, skew=-0.5, kurtosis=5.0)
    assert evidence.probabilistic_sharpe_ratio(0.1, round(length), -0.5, 5.0) == pytest.approx(0.95, abs=1e-3)
    old = evidence.min_track_record(0.1, skew=-0.5, kurtosis=5.0, form="2012")
    reached = evidence.probabilistic_sharpe_ratio(0.1, round(old), -0.5, 5.0, form="2012")
    assert reached == pytest.approx(0.95, abs=1e-3)
    assert evidence.min_track_record(0.1, benchmark=0.1) == math.inf


def test_overfitting_of_hand_worked_numbers() -> None:
    """A = 3 1 3 1, B = 2 2 2 2, C = 0: four splits choose A on a tie with B and end in a tie with it (rank 2.5 of 4);
    the two that see only A's good or bad blocks choose what comes second outside (rank 2 of 4, the median)."""
    returns = np.array([[3, 2, 0], [1, 2, 0], [3, 2, 0], [1, 2, 0]], dtype=float)
    found = evidence.overfitting_probability(returns, n_blocks=4, score="mean")
    high = math.log(2.5 / 1.5)
    np.testing.assert_allclose(found.logits, [high, 0, high, high, 0, high])
    np.testing.assert_array_equal(found.chosen, [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(found.in_sample, [2, 3, 2, 2, 2, 2])
    np.testing.assert_array_equal(found.out_of_sample, [2, 1, 2, 2, 2, 2])
    assert found.probability == pytest.approx(1 / 3)
    assert "loses on the other half in 0% of 6 splits (PBO 0.33, slope -1.00)" in repr(found)
    assert found.slope == pytest.approx(-1.0)
    assert found.loss_probability == 0.0


def split_by_split(returns: np.ndarray, n_blocks: int, score: str) -> list[np.ndarray]:
    """The definition: every split scores all columns on both sides; ranks by counting.

    Sums are those of the first half of time and of the second, each in order of time.
    """
    size, trials = len(returns) // n_blocks, returns.shape[1]
    used = returns[len(returns) - size * n_blocks :]
    blocks = [used[b * size : (b + 1) * size] for b in range(n_blocks)]
    sums, squares = [sum(block) for block in blocks], [sum(block**2) for block in blocks]
    half = size * n_blocks // 2

    def over(chosen: tuple[int, ...], blocks: list[np.ndarray]) -> np.ndarray:
        early, late = (
            sum(blocks[b] for b in chosen if (b < n_blocks // 2) == side) for side in (True, False)
        )
        return np.asarray(early + late)

    def scores(chosen: tuple[int, ...]) -> np.ndarray:
        if score == "mean":
            return over(chosen, sums) / half
        return evidence.sharpe(over(chosen, sums), over(chosen, squares), half)

    found = []
    for chosen in combinations(range(n_blocks), n_blocks // 2):
        inside = scores(chosen)
        outside = scores(tuple(b for b in range(n_blocks) if b not in chosen))
        best = int(np.argmax(inside))
        place = sum(outside < outside[best]) + (sum(outside == outside[best]) + 1) / 2
        share = place / (trials + 1)
        found.append((best, inside[best], outside[best], np.log(share / (1 - share))))
    return [np.array(part) for part in zip(*found, strict=True)]


def assert_equals_definition(returns: np.ndarray, n_blocks: int, score: str) -> None:
    """To the bit, in any layout of memory."""
    chosen, in_sample, out_of_sample, logits = split_by_split(returns, n_blocks, score)
    for matrix in (returns, np.asfortranarray(returns)):
        found = evidence.overfitting_probability(matrix, n_blocks, score)
        np.testing.assert_array_equal(found.chosen, chosen)
        np.testing.assert_array_equal(found.in_sample, in_sample)
        np.testing.assert_array_equal(found.out_of_sample, out_of_sample)
        np.testing.assert_array_equal(found.logits, logits)


# Quiet periods, repeated values (ties, columns without spread) and any others.
PNL = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.1, 2.5]) | st.floats(-1e3, 1e3).map(lambda x: round(x, 6))


@settings(deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(8, 14), st.integers(2, 6)), elements=PNL),
    st.sampled_from([2, 4, 6]),
    st.sampled_from(["sharpe", "mean"]),
    st.integers(1, 60),
)
def test_overfitting_equals_its_definition(
    returns: np.ndarray, n_blocks: int, score: str, copies: int
) -> None:
    """Columns repeat each other, as rows of a grid do, so that ties span the groups that are scored together."""
    assert_equals_definition(np.tile(returns, copies), n_blocks, score)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 0.95]), st.sampled_from([-3.0, 0.0, 0.3]))
def test_overfitting_equals_its_definition_for_many_columns(seed: int, quiet: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    returns = rng.normal(shift, 1.0, (16, 300)) * rng.lognormal(0, 2, 300)
    returns[rng.random(returns.shape) < quiet] = 0.0
    flat = rng.integers(0, 300, 5)
    returns[:, flat] = np.round(returns[0, flat], 1) + rng.choice([0.0, 1e-13, 1e-7], 5) * returns[:, flat]
    assert_equals_definition(returns, 4, "sharpe")


def test_splits_that_are_shared_among_threads_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.3 million scores: more than a group, in order; ``done`` counts every split."""
    returns = np.random.default_rng(3).normal(size=(48, 1_500))
    counted = []
    shared = evidence.overfitting_probability(
        returns, 12, done=lambda splits, total: counted.append((splits, total))
    )
    assert sum(splits for splits, _ in counted) == len(shared.logits) == 924
    assert {total for _, total in counted} == {924}
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = evidence.overfitting_probability(returns, 12)
    np.testing.assert_array_equal(shared.logits, alone.logits)
    np.testing.assert_array_equal(shared.chosen, alone.chosen)


@given(arrays(np.float64, (9, 3), elements=st.integers(-3, 3).map(float)))
def test_sharpe_from_sums_is_the_plain_one(returns: np.ndarray) -> None:
    found = evidence.sharpe(returns.sum(axis=0), (returns**2).sum(axis=0), 9)
    spread = returns.std(axis=0, ddof=1)
    for column in range(3):
        if returns[:, column].sum() == 0:
            assert found[column] == 0
        elif spread[column] == 0:
            assert abs(found[column]) == math.inf
        else:
            assert found[column] == pytest.approx(returns[:, column].mean() / spread[column])


def test_noise_overfits_and_skill_does_not() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(160, 50))
    assert evidence.overfitting_probability(noise, n_blocks=8).probability > 0.3
    noise[:, 7] += 1.0
    assert evidence.overfitting_probability(noise, n_blocks=8).probability < 0.01


def test_fewer_splits_are_spread_over_all() -> None:
    found = evidence.overfitting_probability(
        np.random.default_rng(1).normal(size=(64, 5)), 12, max_splits=100
    )
    assert 80 <= len(found.logits) <= 100


@pytest.mark.parametrize(
    ("returns", "options", "message"),
    [
        (np.zeros((8, 1)), {}, "at least two trials"),
        (np.zeros((8, 2)), {"n_blocks": 3}, "even"),
        (np.zeros((8, 2)), {"n_blocks": 16}, "8 periods"),
        (np.zeros((64, 2)), {"n_blocks": 64}, "≤ 24 "),
        (np.zeros((8, 2)), {"n_blocks": 4, "max_splits": 0}, "max_splits must be ≥ 1"),
        (np.zeros((16, 2)), {"score": "median"}, "'sharpe' or 'mean'"),
        (np.full((16, 2), np.nan), {}, "32 values that are not finite"),
        (np.zeros(16), {}, "found the form"),
    ],
)
def test_nonsense_is_refused(returns: np.ndarray, options: dict[str, object], message: str) -> None:
    with pytest.raises(SweepError, match=message):
        evidence.overfitting_probability(returns, **options)  # type: ignore[arg-type]


def test_walk_forward_of_hand_worked_numbers() -> None:
    """Train 2, test 1: the first step takes column 0 (3 > 2) and earns 0, the second column 1 (3 > 1), and so on."""
    returns = np.array([[2, 1], [1, 1], [0, 2], [5, -1], [0, 4]], dtype=float)
    steps = walk_forward_steps(returns, train=2, test=1)
    assert [(s.train_from, s.train_to, s.test_to) for s in steps] == [(0, 2, 3), (1, 3, 4), (2, 4, 5)]
    assert [s.chosen for s in steps] == [0, 1, 0]
    assert [s.in_sample for s in steps] == [3, 3, 5]
    assert [s.out_of_sample for s in steps] == [0, -1, 0]
    assert [s.rank for s in steps] == [0.25, 0.25, 0.25]
    grown = walk_forward_steps(returns, train=2, test=1, expanding=True)
    assert [s.train_from for s in grown] == [0, 0, 0]
    assert grown[2].chosen == 0


def test_walk_forward_never_sees_what_it_reports_on() -> None:
    """Changing the test periods changes no choice."""
    rng = np.random.default_rng(2)
    returns = rng.normal(size=(12, 6))
    changed = returns.copy()
    changed[9:] = rng.normal(size=(3, 6)) * 100
    before = walk_forward_steps(returns, 6, 3, score="sharpe")
    after = walk_forward_steps(changed, 6, 3, score="sharpe")
    assert [s.chosen for s in before] == [s.chosen for s in after]


def test_walk_forward_needs_enough_periods() -> None:
    with pytest.raises(SweepError, match="too few"):
        walk_forward_steps(np.zeros((3, 2)), 3, 1)


def test_a_plateau_beats_a_lone_peak() -> None:
    """On a line 5 5 5 0 20 0: the middle of the plateau keeps 5; the peak falls to 20/3 − √(800/9)."""
    frame = pl.DataFrame({"sl_pct": [1.0, 2, 3, 4, 5, 6], "net_pnl": [5.0, 5, 5, 0, 20, 0]})
    found = plateaus(frame, ["sl_pct"], "net_pnl")
    assert found["neighbours"].to_list() == [1, 2, 2, 2, 2, 1]
    assert found["neighbour_mean"].to_list() == [5, 5, 2.5, 12.5, 0, 20]
    assert found["neighbour_min"].to_list() == [5, 5, 0, 5, 0, 20]
    assert found["robustness"][1] == 5
    assert found["robustness"][4] == pytest.approx(20 / 3 - (800 / 9) ** 0.5)
    assert found.sort("robustness", descending=True)["sl_pct"][0] in (1.0, 2.0)


@given(st.data())
def test_neighbours_equal_brute_force(data: st.DataObject) -> None:
    """A neighbour differs by one step of the sorted values on one ordered axis, and in nothing else."""
    first = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=1, unique=True))
    second = data.draw(st.lists(st.sampled_from([1, 2, 7, None]), min_size=1, unique=True))
    rows = list(product(first, second, ["calm", "wild"]))
    kept = data.draw(st.lists(st.sampled_from(rows), min_size=1, unique=True))
    values = data.draw(st.lists(st.integers(-9, 9), min_size=len(kept), max_size=len(kept)))
    frame = pl.DataFrame(
        {
            "a": [row[0] for row in kept],
            "b": pl.Series([row[1] for row in kept], dtype=pl.Int64),
            "regime": [row[2] for row in kept],
            "v": [float(v) for v in values],
        }
    )
    places = [sorted({row[0] for row in kept}), sorted({row[1] for row in kept} - {None})]

    def step(row: tuple[object, ...], axis: int) -> int | None:
        return None if row[axis] is None else places[axis].index(row[axis])

    def near(x: tuple[object, ...], y: tuple[object, ...]) -> bool:
        for axis in (0, 1):
            others_equal = all(x[k] == y[k] for k in range(3) if k != axis)
            a, b = step(x, axis), step(y, axis)
            if others_equal and a is not None and b is not None and abs(a - b) == 1:
                return True
        return False

    counts = [sum(near(x, y) for y in kept) for x in kept]
    if sum(counts) // 2 < len(kept) // 2:
        return  # too sparse for a grid: the nearest rows are taken
    found = plateaus(frame, ["a", "b", "regime"], "v")
    assert found["neighbours"].to_list() == counts
    for row, x in enumerate(kept):
        around = [v for v, y in zip(values, kept, strict=True) if near(x, y)]
        if around:
            assert found["neighbour_mean"][row] == pytest.approx(np.mean(around))
            assert found["neighbour_min"][row] == min(around)
            members = [*around, values[row]]
            assert found["robustness"][row] == pytest.approx(np.mean(members) - np.std(members), abs=1e-6)
        else:
            assert found["robustness"][row] is None


def test_random_samples_take_the_nearest_rows() -> None:
    """Off the grid, the rows of a broad hill outrank a single high row among losses."""
    rng = np.random.default_rng(4)
    x, y = rng.random(300), rng.random(300)
    value = 10 * np.exp(-((x - 0.3) ** 2 + (y - 0.3) ** 2) / 0.05)
    lone = int(np.argmax(x + y))
    value[lone] = 30.0
    frame = pl.DataFrame({"x": x, "y": y, "v": value})
    found = plateaus(frame, ["x", "y"], "v").with_row_index()
    assert found["neighbours"].min() >= 4
    best = found.sort("robustness", descending=True, nulls_last=True)
    assert best["index"][0] != lone
    assert abs(best["x"][0] - 0.3) < 0.15


def test_missing_values_and_categories_have_no_neighbours() -> None:
    frame = pl.DataFrame({"regime": ["a", "b"], "v": [1.0, None]})
    found = plateaus(frame, ["regime"], "v")
    assert found["neighbours"].to_list() == [0, 0]
    assert found["robustness"].to_list() == [None, None]


def test_a_misspelt_column_is_named() -> None:
    with pytest.raises(SweepError, match="Did you mean 'net_pnl'"):
        plateaus(pl.DataFrame({"a": [1], "net_pnl": [1.0]}), ["a"], "net_pln")


def test_a_bootstrap_of_nothing_is_refused() -> None:
    noise = np.random.default_rng(0).normal(size=(30, 2))
    for options in ({"reps": 0}, {"block": 0.5}):
        with pytest.raises(SweepError, match="a bootstrap needs"):
            evidence.superior_predictive_ability(noise, **options)  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="found 0 periods"):
        evidence.bootstrap_intervals([])
    with pytest.raises(SweepError, match="found the form"):
        evidence.effective_trials(noise[:, 0])
