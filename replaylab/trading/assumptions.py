"""One line that says on what a result rests: prices, fills in force, holes, thin fills, late exits, parameters.

>>> from replaylab.params import Resolved, TradingParams
>>> prices = ResolvedPrices.of({"BTCUSDT": "trade"})
>>> ran = Resolved(TradingParams(max_hold_s=60.0), "given", {})
>>> times = {"BTCUSDT": pl.Series([0, 1, 2, 2000]) * 10**9}                              # doctest: +SKIP
>>> print(assumptions(prices, times, ran))                                              # doctest: +SKIP
prices (median spacing): BTCUSDT trade (1 s apart), market fill print, limit fill through, 1 hole (longest 33.3 min); \
given parameters

The same for a backtest, a sweep, a what-if and a replay run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any

from replaylab.params import Resolved, TradingParams
from replaylab.trading.prices import ResolvedPrices

_SHOWN = 5
# Above this share of trades that end by DATA_GAP a result says that the prices come too seldom.
_SPARSE = 0.1
# An exit is late where it comes more than this share of max_hold_s after it.
_LATE = 0.1


def assumptions(
    prices: ResolvedPrices,
    times: Mapping[str, Any],
    ran: Resolved[TradingParams],
    *,
    axes: Mapping[str, Sequence[Any]] | None = None,
    trades: Any = None,
    table: Any = None,
    others: Iterable[tuple[ResolvedPrices, Mapping[str, Any]]] = (),
) -> str:
    """Return one line with the prices and fill models of each symbol, what went wrong with them, and whose parameters.

    ``times``: the times of each symbol's price events in nanoseconds, a polars Series. ``axes``: the values of fields
    that a sweep varied. ``trades``: the frame of one run's (``reason``, ``duration_seconds`` and ``thin``, as far as it
    has them); ``table``: that of a sweep's metrics in place of it (``n_trades``, ``n_data_gap``, ``n_thin``).
    ``others``: prices and times of more sessions of a study, read one at a time: spacings are then medians of those of
    the sessions, and holes those within them.
    """
    varied = axes or {}

    def values(field: str) -> list[Any]:
        return list(varied.get(field, [getattr(ran.params, field)]))

    known = [gap for gap in values("max_gap_s") if gap is not None]
    found: dict[str, _Prices] = {}
    for resolved, at in chain([(prices, times)], others):
        for symbol, ts in at.items():
            if symbol not in found:
                found[symbol] = _Prices()
            if len(found) <= _SHOWN or symbol in list(found)[:_SHOWN]:
                fills = {resolved.market_fill(symbol, chosen) for chosen in values("market_fill")}
                found[symbol].add(resolved.sources[symbol], fills, ts, min(known, default=None))
    shown = [
        f"{symbol} {one.say()}, limit fill {' or '.join(map(str, values('limit_fill')))}, {one.holes(known)}"
        for symbol, one in list(found.items())[:_SHOWN]
    ]
    if len(found) > _SHOWN:
        shown.append(f"and {len(found) - _SHOWN} more symbols")
    parts = [f"prices (median spacing): {'; '.join(shown) or 'none'}"]
    if trades is not None:
        parts += _of_trades(trades, ran.params)
    if table is not None:
        parts += _of_table(table)
    return "; ".join([*parts, ran.describe()])


@dataclass
class _Prices:
    """The prices of a symbol over some sessions: sources, market fills, spacings and longest pauses (ns), holes."""

    sources: set[str] = field(default_factory=set)
    fills: set[str] = field(default_factory=set)
    spacings: list[float] = field(default_factory=list)
    longest: int = 0
    count: int = 0

    def add(self, source: str, fills: set[str], ts: Any, gap: float | None) -> None:
        """Add the times of one session; pauses longer than ``gap`` seconds are holes."""
        # Many prints share one time: what counts is how long nothing is known.
        steps = ts.unique().sort().diff().drop_nulls()
        self.sources.add(source)
        self.fills |= fills
        if len(steps):
            self.spacings.append(steps.median())
            self.longest = max(self.longest, int(steps.max()))
            self.count += 0 if gap is None else int((steps > gap * 1e9).sum())

    def say(self) -> str:
        """Say source, spacing and market fill."""
        spacing = f"{median(self.spacings) / 1e9:.3g} s apart" if self.spacings else "one price"
        return (
            f"{' or '.join(sorted(self.sources))} ({spacing}), market fill {' or '.join(sorted(self.fills))}"
        )

    def holes(self, known: list[float]) -> str:
        """Say how many holes there are, of the values of ``max_gap_s`` that are known."""
        longest = _duration(self.longest / 1e9)
        if not known:
            return f"pauses are no holes (longest {longest})"
        plural = "s" if self.count > 1 else ""
        return f"{self.count:,} hole{plural} (longest {longest})" if self.count else "no holes"


def _of_trades(trades: Any, params: TradingParams) -> list[str]:
    if not trades.height:
        return []
    found = []
    thin = int(trades["thin"].sum()) if "thin" in trades.columns else 0
    if thin:
        found.append(f"{thin:,} of {trades.height:,} trades have a thin fill (beyond the visible book)")
    gaps = int((trades["reason"] == "DATA_GAP").sum()) if "reason" in trades.columns else 0
    if gaps:
        sparse = gaps > _SPARSE * trades.height
        found.append(
            f"{gaps:,} of {trades.height:,} trades end by DATA_GAP"
            + (f": prices come too seldom for max_gap_s = {params.max_gap_s:g}" if sparse else "")
        )
    if params.max_hold_s is not None and "duration_seconds" in trades.columns:
        held = trades["duration_seconds"]
        late = int((held > params.max_hold_s * (1.0 + _LATE)).sum())
        if late:
            found.append(
                f"{late:,} of {trades.height:,} trades are held longer than max_hold_s by more than a tenth, up to "
                f"{_duration(float(held.max()))}: prices are sparse"
            )
    return found


def _of_table(table: Any) -> list[str]:
    """Say in how many combinations of a sweep there are thin fills, and too many trades that end at a hole."""
    found = []
    if "n_thin" in table.columns and (thin := int((table["n_thin"] > 0).sum())):
        found.append(f"{thin:,} of {table.height:,} combinations have thin fills (beyond the visible book)")
    if "n_data_gap" in table.columns:
        sparse = int((table["n_data_gap"] > _SPARSE * table["n_trades"]).sum())
        if sparse:
            found.append(
                f"in {sparse:,} of {table.height:,} combinations more than a tenth of the trades end by DATA_GAP: "
                "prices come too seldom for their max_gap_s"
            )
    return found


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
