"""A seeded market: trades and an order book of no real exchange, for the demo, the samples and the tests.

>>> tapes = generate_market(seed=7, hours=0.1)
>>> tapes["BTCUSDT"].trades.columns[:4]
['timestamp', 'received_at', 'price', 'qty']

What is like a real market: arrivals come in clusters (a branching process, the cluster form of a Hawkes process);
an aggressive order prints against several resting ones, so that many trades share a millisecond; regimes switch
between calm, trending and volatile and change volatility, activity and spread; orders eat the book and move the
price; the symbols share a part of their moves.

**What is built in on purpose:** a hidden, slowly changing pressure tilts the sides of orders and the sizes at the best
bid and ask, and pushes the price along. So trade flow and book imbalance carry a modest signal over the next seconds to
minutes. A strategy that earns on this market has found what was put there, and says nothing about a real one.

The same arguments give the same bytes on every machine: all randomness is the raw stream of PCG64, and only
operations that IEEE 754 rounds exactly (no exp, log or sin of a platform's library) come between it and the prices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import floor, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import HistoryError
from replaylab.history import BOOK_SCHEMA, TRADES_SCHEMA, Staging, level_lists, save_instruments
from replaylab.paths import DataRoot, safe_symbol
from replaylab.timestamps import to_ns

Floats = npt.NDArray[np.float64]
_NS_PER_MS = 1_000_000
_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class Market:
    """What one symbol is like. Prices are whole ticks, quantities whole lots."""

    price: float
    tick: float
    lot: float
    volatility_bps: float  # of a calm minute, one standard deviation
    order_lots: float  # the smallest typical aggressive order
    depth_lots: float  # typical size at a level
    shared: float = 0.6  # share of the volatility (not variance) that all symbols have in common


class SyntheticTape(NamedTuple):
    """The frames of one symbol, in the columns of ``replaylab.history``."""

    trades: pl.DataFrame
    book: pl.DataFrame


MARKETS = {
    "BTCUSDT": Market(91_500.0, 1.0, 0.001, 5.0, 12.0, 900.0),
    "AIUSDT": Market(0.08450, 0.00001, 1.0, 8.0, 300.0, 16_000.0),
}
_ANY = Market(100.0, 0.01, 0.01, 5.0, 20.0, 1_200.0)


_PRESSURE_S = 25.0  # how long pressure lasts
_PRESSURE_NOISE = 0.115  # per root second: a standard deviation of about 0.4
_PUSH = 0.16  # of a calm root second's volatility, per second and unit of pressure
_CHILD_DELAY_MS = 220.0


def generate_market(
    seed: int = 7,
    symbols: Sequence[str] = ("BTCUSDT", "AIUSDT"),
    start: str | datetime = "2025-11-18T10:00:00Z",
    hours: float = 1.0,
    *,
    trades_per_hour: int = 20_000,
    book_per_hour: int = 10_000,
    levels: int = 10,
    snapshot_every_s: float = 60.0,
) -> dict[str, SyntheticTape]:
    """Return trades and book of each symbol, sorted, with millisecond timestamps.

    >>> tape = generate_market(seed=1, symbols=["BTCUSDT"], hours=0.05)["BTCUSDT"]
    >>> tape.book["kind"][0]
    'snapshot'

    ``trades_per_hour`` and ``book_per_hour`` are averages: what comes out varies with the regimes. The book is
    ``levels`` deep: a snapshot at the start and every ``snapshot_every_s``, deltas between. A symbol's tape does not
    depend on which other symbols are generated. Raises HistoryError for sizes that make no market.
    """
    if not (hours > 0 and trades_per_hour > 0 and book_per_hour > 0 and levels > 0 and snapshot_every_s > 0):
        raise HistoryError(
            "hours, trades_per_hour, book_per_hour, levels and snapshot_every_s must be above 0"
        )
    if isinstance(symbols, str) or not symbols:
        raise HistoryError(f"expected a list of symbols, found {symbols!r}")
    start_ms, rest = divmod(to_ns(start), _NS_PER_MS)
    if rest:
        raise HistoryError(f"the start must be a whole millisecond, found {start!r}")
    end_ms = round(hours * _MS_PER_HOUR)
    weather = Weather(seed, end_ms)
    rates = (trades_per_hour / _MS_PER_HOUR, book_per_hour / _MS_PER_HOUR)
    tapes = {}
    for symbol in symbols:
        draws = Draws([seed, *safe_symbol(symbol).encode()])
        maker = _Maker(MARKETS.get(symbol, _ANY), weather, draws, levels, round(snapshot_every_s * 1000))
        maker.run(end_ms, *rates)
        tapes[symbol] = maker.frames(start_ms)
    return tapes


def write_synthetic(
    root: str | os.PathLike[str] | DataRoot,
    seed: int = 7,
    *,
    symbols: Sequence[str] = ("BTCUSDT", "AIUSDT"),
    start: str | datetime = "2025-11-18T10:00:00Z",
    hours: float = 1.0,
    trades_per_hour: int = 20_000,
    book_per_hour: int = 10_000,
    levels: int = 10,
    snapshot_every_s: float = 60.0,
) -> dict[str, SyntheticTape]:
    """Generate a market and merge it into the history of ``root``; return what was generated.

    >>> write_synthetic("data", seed=7, hours=2)                                      # doctest: +SKIP

    Options as in :func:`generate_market`. Ticks and lots go to ``system/instruments.json``.
    """
    tapes = generate_market(
        seed,
        symbols,
        start,
        hours,
        trades_per_hour=trades_per_hour,
        book_per_hour=book_per_hour,
        levels=levels,
        snapshot_every_s=snapshot_every_s,
    )
    with Staging(DataRoot(root)) as staging:
        for symbol, tape in tapes.items():
            staging.add("trades", symbol, tape.trades)
            staging.add("book", symbol, tape.book)
        staging.commit()
    markets = {symbol: MARKETS.get(symbol, _ANY) for symbol in tapes}
    steps = {
        name: {"tickSize": one.tick, "lotSize": one.lot, "minNotionalUsd": 5.0}
        for name, one in markets.items()
    }
    save_instruments(root, steps)
    return tapes


class _Maker:
    """One symbol: walks through orders and book updates in time order and writes both down."""

    def __init__(
        self, market: Market, weather: Weather, draws: Draws, levels: int, snapshot_every_ms: int
    ) -> None:
        self.market, self.weather, self.draws = market, weather, draws
        self.levels, self.snapshot_every_ms = levels, snapshot_every_ms
        self.uniform, self.normal = draws.stream("uniform"), draws.stream("normal")
        self.mid = market.price / market.tick  # in ticks
        self.sigma = market.volatility_bps / 10_000 / sqrt(60.0) * self.mid  # ticks per root second, calm
        self.pressure = 0.0
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.changed_bids: set[int] = set()
        self.changed_asks: set[int] = set()
        self.trades: list[tuple[int, int, int, int]] = []  # ms, tick, lots, 1 for a buyer
        self.book: list[tuple[int, bool, list[tuple[int, int]], list[tuple[int, int]]]] = []

    def orders(self, rate: float, end_ms: int) -> list[tuple[int, int, int]]:
        """Aggressive orders (ms, own number, parent's number or −1): Poisson ones, each with a tree of followers."""
        # With 0.55 followers on average, 1 / (1 − 0.55) orders come of each; an order prints about 2.15 times.
        times = self.weather.times(self.draws, rate * 0.45 / 2.15, end_ms)
        numbers = np.arange(len(times))
        made = [np.stack([times, numbers, np.full(len(times), -1)])]
        count = len(times)
        while len(times):
            luck = self.draws.uniform(len(times))
            followers = (luck < 0.40).astype(np.int64) + (luck < 0.15)
            times = (
                np.repeat(times, followers) + self.draws.exponential(int(followers.sum())) * _CHILD_DELAY_MS
            )
            parents = np.repeat(numbers, followers)
            inside = times < end_ms
            times, parents = times[inside], parents[inside]
            numbers = count + np.arange(len(times))
            count += len(times)
            made.append(np.stack([times, numbers, parents]))
        every = np.concatenate(made, axis=1)
        every = every[:, np.lexsort((every[1], np.floor(every[0])))]
        return [(int(ms), int(number), int(parent)) for ms, number, parent in every.T.tolist()]

    def run(self, end_ms: int, trade_rate: float, book_rate: float) -> None:
        updates = np.unique(
            np.floor(self.weather.times(self.draws, book_rate, end_ms)).astype(np.int64)
        ).tolist()
        orders = self.orders(trade_rate, end_ms)
        # At one millisecond the book comes first, as it does in a session.
        agenda = sorted(
            [(ms, 0, 0, 0) for ms in {0, *updates}] + [(ms, 1, own, of) for ms, own, of in orders]
        )
        sides: dict[int, int] = {}
        part, next_snapshot, before = 0, 0, 0
        starts = self.weather.starts
        for ms, what, own, parent in agenda:
            while part + 1 < len(starts) and starts[part + 1] <= ms:
                part += 1
            regime = REGIMES[self.weather.regimes[part]]
            self._drift(before, ms, regime, self.weather.trends[part])
            before = ms
            if what:
                sides[own] = self._order(ms, sides.get(parent, 0))
            else:
                self._quote(regime)
                snapshot = ms >= next_snapshot
                if snapshot:
                    next_snapshot = ms - ms % self.snapshot_every_ms + self.snapshot_every_ms
                self._publish(ms, snapshot)

    def _drift(self, before: int, now: int, regime: Regime, trend: float) -> None:
        """Move pressure and price from one moment to the next."""
        seconds = (now - before) / 1000
        if seconds == 0:
            return
        root = sqrt(seconds)
        pull = seconds / _PRESSURE_S if seconds < _PRESSURE_S else 1.0
        pressure = self.pressure + (trend - self.pressure) * pull + _PRESSURE_NOISE * root * next(self.normal)
        self.pressure = min(max(pressure, -1.0), 1.0)
        path = self.weather.path
        shared = self.market.shared * (path[now // STEP_MS] - path[before // STEP_MS])
        own = sqrt(1 - self.market.shared * self.market.shared) * regime.volatility * root * next(self.normal)
        push = _PUSH * regime.push * self.pressure * seconds
        self.mid = max(self.mid + self.sigma * (shared + own + push), 50.0)

    def _order(self, ms: int, parent_side: int) -> int:
        """An aggressive order eats the book; returns its side (1 buys, −1 sells)."""
        if parent_side and next(self.uniform) < 0.8:
            side = parent_side
        else:
            side = 1 if next(self.uniform) < 0.5 + 0.3 * self.pressure else -1
        levels, changed = (self.asks, self.changed_asks) if side > 0 else (self.bids, self.changed_bids)
        left = int(self.market.order_lots * min(1.0 / sqrt(next(self.uniform)), 60.0)) or 1
        total = 0
        for tick in sorted(levels, reverse=side < 0)[:-1]:  # the last level always stays
            available = levels[tick]
            filled = min(left, available)
            total += filled
            left -= filled
            changed.add(tick)
            if filled == available:
                del levels[tick]
            else:
                levels[tick] = available - filled
            prints = min(1 + int(3.2 * next(self.uniform)), filled)  # against so many resting orders
            each = filled // prints
            for number in range(prints):
                lots = filled - each * (prints - 1) if number == 0 else each
                self.trades.append((ms, tick, lots, side))
            if not left:
                break
        self.mid += side * self.sigma * 0.05 * sqrt(total / self.market.order_lots)
        return side

    def _quote(self, regime: Regime) -> None:
        """Makers move their quotes to where the price is now, and refresh some sizes."""
        uniform = self.uniform
        spread = 1
        while spread < 6 and next(uniform) < regime.wide:
            spread += 1
        bid = floor(self.mid - (spread - 1) / 2)
        for levels, changed, best, way in (
            (self.bids, self.changed_bids, bid, -1),
            (self.asks, self.changed_asks, bid + spread, 1),
        ):
            wanted = range(best, best + way * self.levels, way)
            for tick in [tick for tick in levels if tick not in wanted]:
                del levels[tick]
                changed.add(tick)
            fresh = 1 + int(next(uniform) * 2)  # the best levels change most
            lean = 1.0 - way * 0.55 * self.pressure
            for depth, tick in enumerate(wanted):
                if depth < fresh or tick not in levels:
                    size = (
                        self.market.depth_lots
                        * (0.25 + 0.15 * depth + next(uniform))
                        * (lean if depth < 3 else 1)
                    )
                    levels[tick] = int(size) or 1
                    changed.add(tick)

    def _publish(self, ms: int, snapshot: bool) -> None:
        if snapshot:
            bids = sorted(self.bids.items(), reverse=True)
            asks = sorted(self.asks.items())
        else:
            bids = [(tick, self.bids.get(tick, 0)) for tick in sorted(self.changed_bids, reverse=True)]
            asks = [(tick, self.asks.get(tick, 0)) for tick in sorted(self.changed_asks)]
        self.book.append((ms, snapshot, bids, asks))
        self.changed_bids.clear()
        self.changed_asks.clear()

    def frames(self, start_ms: int) -> SyntheticTape:
        return SyntheticTape(self._trades_frame(start_ms), self._book_frame(start_ms))

    def _trades_frame(self, start_ms: int) -> pl.DataFrame:
        rows = np.array(self.trades, dtype=np.int64).reshape(-1, 4)
        times = rows[:, 0] + start_ms
        number = np.arange(len(rows), dtype=np.int64)
        return pl.DataFrame(
            {
                "timestamp": times * _NS_PER_MS,
                "received_at": self._received(times),
                "price": _scaled(rows[:, 1], self.market.tick),
                "qty": _scaled(rows[:, 2], self.market.lot),
                "side": pl.Series(rows[:, 3] > 0).replace_strict(
                    {True: "BUY", False: "SELL"}, return_dtype=pl.String
                ),
                "trade_id": pl.Series(number + 1).cast(pl.String),
                "off_market": np.zeros(len(rows), dtype=np.bool_),
                "seq": number,
                "exchange_at": pl.Series([None] * len(rows), dtype=pl.Int64),
            }
        ).cast(TRADES_SCHEMA)

    def _book_frame(self, start_ms: int) -> pl.DataFrame:
        times = np.array([row[0] for row in self.book], dtype=np.int64) + start_ms
        return pl.DataFrame(
            {
                "timestamp": times * _NS_PER_MS,
                "received_at": self._received(times),
                "kind": ["snapshot" if row[1] else "delta" for row in self.book],
                "bids": self._levels([row[2] for row in self.book]),
                "asks": self._levels([row[3] for row in self.book]),
                "seq": np.arange(len(times), dtype=np.int64),
                "exchange_at": pl.Series([None] * len(times), dtype=pl.Int64),
            }
        ).cast(BOOK_SCHEMA)

    def _received(self, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """2 to 20 ms later, mostly little, never before what was sent earlier."""
        luck = self.draws.uniform(len(times))
        delay = 2_000_000 + (luck * luck * luck * 18_000).astype(np.int64) * 1_000
        return np.maximum.accumulate(times * _NS_PER_MS + delay)

    def _levels(self, rows: list[list[tuple[int, int]]]) -> pl.Series:
        flat = np.array([level for row in rows for level in row], dtype=np.int64).reshape(-1, 2)
        pairs = np.stack(
            [_scaled(flat[:, 0], self.market.tick), _scaled(flat[:, 1], self.market.lot)], axis=1
        )
        return level_lists(pairs.ravel(), [len(row) for row in rows])


def _scaled(whole: npt.NDArray[np.int64], step: float) -> Floats:
    """``whole`` · ``step`` as the float nearest to the decimal number: 3 · 0.1 is 0.3, not 0.30000000000000004."""
    per_unit = round(1 / step)
    return np.asarray(whole / per_unit if per_unit > 1 else whole * step, dtype=np.float64)


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
