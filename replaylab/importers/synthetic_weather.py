"""What drives the synthetic market: random numbers that are equal everywhere, regimes, and a shared price path."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["REGIMES", "STEP_MS", "Draws", "Regime", "Weather"]

Floats = npt.NDArray[np.float64]
STEP_MS = 100  # of the moves that the symbols share


class Regime(NamedTuple):
    share: float
    volatility: float
    activity: float
    wide: float  # chance of each further tick of spread
    push: float  # how strongly pressure moves the price


REGIMES = (
    Regime(0.45, 1.0, 0.8, 0.10, 1.0),  # calm
    Regime(0.30, 1.1, 1.1, 0.15, 2.0),  # trending
    Regime(0.25, 2.6, 1.7, 0.45, 1.5),  # volatile
)
_TRENDING = 1
_REGIME_MS = 210_000.0  # mean length


class Draws:
    """Random numbers from the raw bits of PCG64, whose stream numpy guarantees."""

    def __init__(self, entropy: list[int]) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def uniform(self, count: int) -> Floats:
        """Uniform in (0, 1), never an end."""
        return ((self._bits.random_raw(count) >> 12).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> Floats:
        """Nearly normal: the sum of twelve uniforms less six (no tails beyond six deviations)."""
        total = np.full(count, -6.0)
        for _ in range(12):
            total += self.uniform(count)
        return total

    def exponential(self, count: int) -> Floats:
        """Exponential with mean 1."""
        return -_log(self.uniform(count))

    def stream(self, draw: str) -> Iterator[float]:
        """One number after the other, drawn in blocks."""
        while True:
            yield from getattr(self, draw)(8192).tolist()


def _log(x: Floats) -> Floats:
    """The natural logarithm by its atanh series: sums, products and quotients only, so equal on every machine."""
    mantissa, exponent = np.frexp(x)
    ratio = (mantissa - 0.75) / (mantissa + 0.75)  # ln(m) = ln(3/4) + 2·atanh(ratio), |ratio| ≤ 1/5
    square = ratio * ratio
    series = np.zeros_like(x)
    for odd in range(25, 0, -2):
        series = series * square + 1.0 / odd
    return exponent * 0.6931471805599453 + (-0.2876820724517809 + 2.0 * ratio * series)


class Weather:
    """What all symbols share: the regimes, and a part of the price moves."""

    def __init__(self, seed: int, end_ms: int) -> None:
        draws = Draws([seed])
        uniform = draws.stream("uniform")
        lengths = draws.stream("exponential")
        self.starts: list[int] = []
        self.regimes: list[int] = []
        self.trends: list[float] = []
        at, regime = 0, 0
        while at < end_ms:
            self.starts.append(at)
            self.regimes.append(regime)
            self.trends.append((0.5 if next(uniform) < 0.5 else -0.5) if regime == _TRENDING else 0.0)
            at += 30_000 + int(next(lengths) * (_REGIME_MS - 30_000))
            others = [index for index in range(len(REGIMES)) if index != regime]
            first = REGIMES[others[0]].share / (REGIMES[others[0]].share + REGIMES[others[1]].share)
            regime = others[0] if next(uniform) < first else others[1]
        steps = end_ms // STEP_MS + 2
        which = np.searchsorted(self.starts, np.arange(steps) * STEP_MS, side="right") - 1
        volatility = np.array([REGIMES[regime].volatility for regime in self.regimes])[which]
        # The shared path, in units of a symbol's calm volatility of a root second.
        self.path: list[float] = np.cumsum(draws.normal(steps) * volatility * sqrt(STEP_MS / 1000)).tolist()

    def times(self, draws: Draws, rate: float, end_ms: int) -> Floats:
        """Times (ms) of a Poisson process whose rate follows the activity of the regimes; ``rate`` is the mean."""
        starts = np.array([*self.starts, max(end_ms, self.starts[-1] + 1)], dtype=np.float64)
        activity = np.array([REGIMES[regime].activity for regime in self.regimes])
        grown = np.concatenate([[0.0], np.cumsum((starts[1:] - starts[:-1]) * activity)])
        grown *= rate / (grown[-1] / starts[-1])  # expected count up to each start
        gaps = draws.exponential(int(grown[-1] + 8 * sqrt(grown[-1]) + 32))
        counts = np.cumsum(gaps)
        counts = counts[counts < grown[-1]]
        which = np.searchsorted(grown, counts, side="right") - 1
        share = (counts - grown[which]) / (grown[which + 1] - grown[which])
        return np.asarray(starts[which] + share * (starts[which + 1] - starts[which]))
