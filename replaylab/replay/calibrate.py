"""Costs learned from one's own orders: latency, slippage, fees, and how limit orders fill.

::

    found = calibrate([monday, tuesday])         # or lab.calibrate(session_ids)
    found.table                                  # parameter, estimate, interval, number of orders
    found.changes                                # what the data supports: lab.sweep(session, grid, found.changes)
    found.notes                                  # what the data cannot tell
    found.plot()

Every order bounds a parameter from both sides: an order that filled at the third price after its decision had a latency
between the times of the second and the third. The estimate is the value that misses the bounds of all orders by the
least sum; where a bot's latency varies, that is its median. Intervals are those of the bootstrap over orders (B. Efron
and R. Tibshirani, "An Introduction to the Bootstrap", 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab import frames
from replaylab.errors import ReplayError
from replaylab.params import TradingParams
from replaylab.replay.order_log import Order, Orders
from replaylab.sessions import Session
from replaylab.sweep import Positions, open_tape, recorded_trades

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
# With fewer orders a parameter is not estimated.
ENOUGH = 30
_SAMPLES = 400
_SEED = 7
_STOPS = ("STOP", "STOP_MARKET")
# A queue share that is known no better than this is not put into ``changes``.
_WIDE = 0.2
_OWN = 1e-9  # share of a price up to which two are one
_UNITS = {
    "latency_ms": "ms",
    "stop_latency_ms": "ms",
    "slippage_bps": "bps",
    "taker_fee_bps": "bps",
    "maker_fee_bps": "bps",
    "queue_share": "share",
}


@dataclass(repr=False, kw_only=True)
class Calibration:
    """Parameters of the model estimated from order logs.

    ``table``: ``parameter, estimate, low, high, unit, orders``; the interval holds 95 % of bootstrap samples.
    ``slippage``: by notional and volatility, in bps. ``fills``: per limit fill model, the share of limit orders whose
    fate it gets wrong out of sample (the Brier score of its 0-or-1 forecast), and the share that it fills.
    """

    table: pl.DataFrame
    slippage: pl.DataFrame
    fills: pl.DataFrame
    changes: dict[str, Any]
    notes: list[str]
    orders: int
    sessions: list[str]
    samples: dict[str, Floats] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Calibration of {self.orders:,} orders in {len(self.sessions)} sessions: {self.summary}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td>{_number(value)}</td><td>{_number(low)} to {_number(high)}</td><td>{unit}</td>"
            f"<td>{count:,}</td></tr>"
            for name, value, low, high, unit, count in self.table.iter_rows()
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        head = (
            "<tr><th>parameter</th><th>estimate</th><th>95 % interval</th><th>unit</th><th>orders</th></tr>"
        )
        return (
            f"<div><b>Calibration</b> from {self.orders:,} orders in {len(self.sessions)} sessions"
            f"<table><thead>{head}</thead><tbody>{rows}</tbody></table><ul>{notes}</ul></div>"
        )

    @property
    def summary(self) -> str:
        """The estimates in one line."""
        known = self.table.drop_nulls("estimate")
        parts = [
            f"{name} {_number(value)}" for name, value in known.select("parameter", "estimate").iter_rows()
        ]
        if "limit_fill" in self.changes:
            parts.append(f"limit_fill {self.changes['limit_fill']}")
        return ", ".join(parts) or "nothing could be estimated"

    def plot(self) -> Figure:
        """Plot the bootstrap samples of each parameter with its estimate and interval."""
        from replaylab import plots

        estimates = {
            f"{name} ({unit})": (value, low, high)
            for name, value, low, high, unit, _ in self.table.drop_nulls("estimate").iter_rows()
        }
        samples = {f"{name} ({_UNITS[name]})": values for name, values in self.samples.items()}
        return plots.estimates(samples, estimates, title="Costs from one's own orders")

    def to_dict(self) -> dict[str, Any]:
        """Return tables, changes and notes as plain data."""
        return {
            "sessions": self.sessions,
            "orders": self.orders,
            "table": self.table.to_dicts(),
            "slippage": self.slippage.to_dicts(),
            "fills": self.fills.to_dicts(),
            "changes": self.changes,
            "notes": self.notes,
        }


def calibrate(
    sessions: Session | Iterable[Session],
    *,
    price_source: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Calibration:
    """Estimate latency, slippage, fees and limit fills from the order logs of sessions and their prices.

    latency_ms: from an order's first line to its fill. stop_latency_ms: from the touch of a stop's trigger to its fill.
    slippage_bps: what market orders paid beyond the book (or the print) at that moment. Fees: from the trade log, by
    the notional of maker and taker fills. limit_fill and queue_share: the model that forecasts best which limit orders
    filled, judged on the other half of the orders. ``changes`` holds what at least 30 orders support.

    Raises ReplayError for sessions without orders.
    """
    from tqdm.auto import tqdm

    given = [sessions] if isinstance(sessions, Session) else list(sessions)
    evidence = _Evidence()
    for session in tqdm(given, desc="calibrating", unit=" sessions", disable=not progress or len(given) < 3):
        evidence.take(session, price_source, cache_dir)
    if not evidence.orders:
        names = ", ".join(session.id for session in given[:3])
        raise ReplayError(
            f"no orders are logged in the range of {names or 'no session'}: calibration reads orders/ of the data root"
        )
    return evidence.estimate([session.id for session in given])


class _Estimate(NamedTuple):
    value: float
    low: float
    high: float
    samples: Floats


class _Evidence:
    """What the orders of all sessions bound: an interval (low, high) per order and parameter."""

    def __init__(self) -> None:
        self.orders = 0
        self.latency: list[tuple[float, float]] = []
        self.stop_latency: list[tuple[float, float]] = []
        self.slippage: list[tuple[float, float, float]] = []  # bps, notional, volatility in bps per second
        self.fees: list[tuple[float, float, float]] = []  # paid, maker notional, taker notional
        self.limits: list[_Limit] = []
        self.unpriced: set[str] = set()

    def take(self, session: Session, price_source: str, cache_dir: Any) -> None:
        """Add the orders and trades of one session."""
        span, symbols = session.manifest.source_date_range, list(session.manifest.symbols)
        logged = frames.load_orders(session.root, span.from_, span.to, symbols).frame
        tape, _ = open_tape(session, price_source, cache_dir)
        # Fills without slippage; what the bot paid beyond them is its own.
        positions = Positions(tape, TradingParams(slippage_bps=0.0))
        known = {symbol: Orders.of(logged, symbol) for symbol in symbols}
        for symbol, orders in known.items():
            self.orders += len(orders.filled) + len(orders.unfilled)
            if symbol not in tape.symbols:
                self.unpriced |= {symbol} if orders.filled else set()
                continue
            prices = _Prices(tape, symbol, positions)
            for order in orders.filled:
                self._filled(order, prices)
            for order in (*orders.filled, *orders.unfilled):
                if order.kind in ("LIMIT", "TAKE_PROFIT") and order.price == order.price:
                    found = prices.limit(order)
                    if found is not None:
                        self.limits.append(found)
        self._trades(session, known)

    def _filled(self, order: Order, prices: _Prices) -> None:
        if order.kind in _STOPS and order.trigger == order.trigger:
            bounds = prices.stop_bounds(order)
            if bounds is not None:
                self.stop_latency.append(bounds)
        elif order.kind == "MARKET" and order.sent < order.filled:
            self.latency.append(prices.bounds(order.sent, order.filled))
        if order.kind in ("MARKET", *_STOPS) and order.qty > 0.0 and order.average == order.average:
            paid, volatility = prices.slippage(order)
            if paid is not None:
                self.slippage.append((paid, order.qty * order.average, volatility))

    def _trades(self, session: Session, orders: dict[str, Orders]) -> None:
        """Add fees with the notional of maker and of taker fills of each trade."""
        trades = recorded_trades(session).filter(pl.col("fees").is_not_null())
        columns = ("symbol", "side", "entry_price", "qty", "fees")
        times = pl.col("entry_time", "exit_time").dt.timestamp("ns")
        for start, end, symbol, side, entry, qty, fees in trades.select(times, *columns).iter_rows():
            known = orders.get(symbol)
            entered = known.at(start, buys=side == "LONG", reduces=False) if known is not None else None
            if known is None or entered is None:
                continue
            parts = known.between(start, end, buys=side != "LONG")
            exits = [(o.qty * o.average, o.kind == "LIMIT") for o in parts]
            if abs(sum(o.qty for o in parts) - qty) > 1e-6 * qty:
                continue
            legs = [(entry * qty, entered.kind == "LIMIT"), *exits]
            maker = sum(value for value, makes in legs if makes)
            self.fees.append((fees, maker, sum(value for value, _ in legs) - maker))

    def estimate(self, sessions: list[str]) -> Calibration:
        rng = np.random.default_rng(_SEED)
        rows: list[tuple[Any, ...]] = []
        samples: dict[str, Floats] = {}
        notes = []

        estimators: tuple[tuple[str, str, Floats, Any], ...] = (
            ("latency_ms", "market orders whose sending is logged", np.array(self.latency), _least),
            ("stop_latency_ms", "stops that filled", np.array(self.stop_latency), _least),
            ("slippage_bps", "market fills", np.array([one[0] for one in self.slippage]), _median),
        )
        for name, what, data, estimate in estimators:
            if len(data) < ENOUGH:
                notes.append(f"{name}: {len(data):,} {what}: not enough (at least {ENOUGH})")
                rows.append((name, None, None, None, _UNITS[name], len(data)))
                continue
            found = _sampled(data, estimate, rng)
            samples[name] = found.samples
            rows.append((name, *found[:3], _UNITS[name], len(data)))
        changes = {name: round(value, 6) for name, value, *_ in rows if value is not None}
        changes |= self._fee_rows(rows, samples, notes, rng)
        fills = self._fill_models(rows, samples, notes, rng, changes)
        if self.unpriced:
            notes.append(
                f"no prices in the session for {', '.join(sorted(self.unpriced))}: its orders are not used"
            )
        schema = {
            "parameter": pl.String,
            "estimate": pl.Float64,
            "low": pl.Float64,
            "high": pl.Float64,
            "unit": pl.String,
            "orders": pl.Int64,
        }
        # The model refuses a negative slippage: better than the book is taken as none.
        if changes.get("slippage_bps", 0.0) < 0.0:
            notes.append(
                f"fills were better than the book by {-changes['slippage_bps']:.3g} bps: slippage_bps is 0 in changes"
            )
            changes["slippage_bps"] = 0.0
        return Calibration(
            table=pl.DataFrame(rows, schema=schema, orient="row"),
            slippage=_by_size(self.slippage),
            fills=fills,
            changes=changes,
            notes=notes,
            orders=self.orders,
            sessions=sessions,
            samples=samples,
        )

    def _fee_rows(
        self, rows: list[Any], samples: dict[str, Floats], notes: list[str], rng: np.random.Generator
    ) -> dict[str, float]:
        """Estimate both fee rates by least squares of what trades paid on the notional of their fills."""
        table = np.array(self.fees).reshape(-1, 3)
        used = {
            name: int((table[:, column] > 0).sum())
            for name, column in (("taker_fee_bps", 2), ("maker_fee_bps", 1))
        }
        columns = [
            column for name, column in (("taker_fee_bps", 2), ("maker_fee_bps", 1)) if used[name] >= ENOUGH
        ]
        found = {}
        draws = [
            table,
            *(table[rng.integers(0, len(table), len(table))] for _ in range(_SAMPLES if columns else 0)),
        ]
        rates = (
            [np.linalg.lstsq(t[:, columns], t[:, 0], rcond=None)[0] * 1e4 for t in draws] if columns else []
        )
        for name, column in (("taker_fee_bps", 2), ("maker_fee_bps", 1)):
            if column not in columns:
                notes.append(
                    f"{name}: {used[name]:,} trades with such a fill and known fees: not enough (at least {ENOUGH})"
                )
                rows.append((name, None, None, None, "bps", used[name]))
                continue
            values = np.array([rate[columns.index(column)] for rate in rates])
            low, high = np.quantile(values[1:], [0.025, 0.975])
            samples[name], found[name] = values[1:], round(float(values[0]), 6)
            rows.append((name, float(values[0]), float(low), float(high), "bps", used[name]))
        return found

    def _fill_models(
        self,
        rows: list[Any],
        samples: dict[str, Floats],
        notes: list[str],
        rng: np.random.Generator,
        changes: dict[str, Any],
    ) -> pl.DataFrame:
        """Choose the limit fill model that forecasts best out of sample, and its queue share."""
        limits = self.limits
        if len(limits) < ENOUGH:
            notes.append(
                f"limit_fill, queue_share: {len(limits):,} limit orders: not enough (at least {ENOUGH})"
            )
            rows.append(("queue_share", None, None, None, "share", len(limits)))
            return pl.DataFrame(schema={"limit_fill": pl.String, "brier": pl.Float64, "fills": pl.Float64})
        truth = np.array([one.filled for one in limits])
        visible = [one for one in limits if one.bounds is not None]
        folds = rng.permutation(len(limits)) % 2
        forecasts = {
            "touch": np.array([one.touched for one in limits]),
            "through": np.array([one.through for one in limits]),
        }
        wide = False
        if len(visible) >= ENOUGH:
            forecast = np.zeros(len(limits), dtype=bool)
            for fold in (0, 1):
                trained = [
                    one.bounds
                    for one, f in zip(limits, folds, strict=True)
                    if f != fold and one.bounds is not None
                ]
                share = float(np.mean(_best_share(np.array(trained))))
                for place in np.flatnonzero(folds == fold):
                    forecast[place] = limits[place].queued(share)
            forecasts["queue"] = forecast
            found = _sampled(np.array([one.bounds for one in visible]), _best_share, rng)
            samples["queue_share"] = found.samples
            rows.append(("queue_share", *found[:3], "share", len(visible)))
            wide = found.high - found.low > _WIDE
            if wide:
                notes.append(
                    f"queue_share: anything from {found.low:.2f} to {found.high:.2f} fits these orders alike"
                )
        else:
            notes.append(
                f"queue_share: {len(visible):,} limit orders at a visible price: not enough (at least {ENOUGH})"
            )
            rows.append(("queue_share", None, None, None, "share", len(visible)))
        table = pl.DataFrame(
            [
                (name, float(((forecast != truth) ** 2).mean()), float(forecast.mean()))
                for name, forecast in forecasts.items()
            ],
            schema={"limit_fill": pl.String, "brier": pl.Float64, "fills": pl.Float64},
            orient="row",
        ).sort("brier", maintain_order=True)
        best = table["limit_fill"][0]
        changes["limit_fill"] = best
        if best == "queue" and not wide:
            changes["queue_share"] = round(float(rows[-1][1]), 6)
        notes.append(
            f"{truth.mean():.1%} of {len(limits):,} limit orders filled; {best!r} forecasts them best"
        )
        return table


@dataclass
class _Limit:
    """One limit order: whether it filled, and what the models say.

    ``bounds``: of the queue share that fits its fate, (low, high].
    """

    filled: bool
    touched: bool
    through: bool
    # Traded at its price, own quantity and displayed quantity; None where its price was not visible.
    queue: tuple[float, float, float] | None
    bounds: tuple[float, float] | None

    def queued(self, share: float) -> bool:
        """Forecast of the queue model with this share."""
        if self.through or self.queue is None:
            return self.through
        traded, own, shown = self.queue
        return traded >= share * shown + own


class _Prices:
    """The price events of one symbol."""

    def __init__(self, tape: Any, symbol: str, positions: Positions) -> None:
        k = tape.symbols.index(symbol)
        self.low, self.end = (int(n) for n in tape.arrays.price_from[k : k + 2])
        self.ts = tape.arrays.price_ts[self.low : self.end]
        self.price = tape.arrays.price[self.low : self.end]
        self.flow = tape.arrays.flow[self.low : self.end] if len(tape.arrays.flow) else None
        self.positions = positions
        steps = np.diff(np.log(self.price), prepend=np.log(self.price[0]))
        self._squares = np.concatenate([[0.0], np.cumsum(steps * steps)])

    def first(self, ts: int) -> int:
        return min(int(np.searchsorted(self.ts, ts)), len(self.ts) - 1)

    def bounds(self, since: int, filled: int) -> tuple[float, float]:
        """Return between which delays (ms) an order of ``since`` meets the price event of its fill."""
        x = self.first(filled)
        before = int(self.ts[x - 1]) if x > 0 else since
        return (max(before - since, 0) / 1e6, max(int(self.ts[x]) - since, 0) / 1e6)

    def stop_bounds(self, order: Order) -> tuple[float, float] | None:
        """The same for a stop, from the touch of its trigger; None where the tape does not touch it."""
        start, end = self.first(order.sent) + 1, self.first(order.filled) + 1
        side = 1.0 if order.buys else -1.0
        touched = side * (self.price[start:end] - order.trigger) >= 0.0
        if not touched.any():
            return None
        at = int(self.ts[start + int(np.argmax(touched))])
        return (0.0, 0.0) if at >= order.filled else self.bounds(at, order.filled)

    def slippage(self, order: Order) -> tuple[float | None, float]:
        """Return what a market fill paid beyond the model's (bps), and the volatility before it (bps per √s)."""
        x = self.first(order.filled)
        if self.ts[x] != order.filled:
            return None, 0.0
        side = 1.0 if order.buys else -1.0
        # Events of one time: the one that comes closest is the one that filled it.
        last = int(np.searchsorted(self.ts, order.filled, side="right"))
        fills = [
            self.positions.market_fill(self.low + k, side * order.qty) for k in range(x, min(last, x + 50))
        ]
        paid = min((side * (order.average / fill - 1.0) * 1e4 for fill in fills), key=abs)
        first = self.first(int(order.filled) - 60_000_000_000)
        seconds = max((int(self.ts[x]) - int(self.ts[first])) / 1e9, 1e-9)
        return paid, float(np.sqrt((self._squares[x + 1] - self._squares[first + 1]) / seconds) * 1e4)

    def limit(self, order: Order) -> _Limit | None:
        """Return what became of a limit order beside what the models say; None without a price while it rested."""
        start = self.first(order.sent)
        until = order.filled if order.filled >= 0 else order.ended
        if order.filled < 0 and order.ended == order.sent:
            # Nothing says when it ended.
            return None
        end = int(np.searchsorted(self.ts, until, side="right" if order.filled >= 0 else "left"))
        if end <= start + 1:
            return None
        side = -1.0 if order.buys else 1.0
        price = self.price[start + 1 : end]
        beyond = side * (price - order.price)
        at = np.abs(beyond) <= _OWN * order.price
        through = (beyond > 0.0) & ~at
        shown = self.positions.displayed(self.low + start, order.price, sells=not order.buys)
        own = order.qty if order.filled >= 0 else 0.0
        own = own or order.size
        queue = bounds = None
        if shown is not None and self.flow is not None:
            taken = np.where(at, self.flow["buys" if order.buys else "sells"][start + 1 : end], 0.0)
            stop = int(np.argmax(through)) if through.any() else len(price)
            traded = float(taken[:stop].sum())
            queue = (traded, own, shown)
            if shown > 0.0:
                last = np.flatnonzero(at[:stop])
                before = traded - float(taken[last[-1]]) if len(last) else 0.0
                if order.filled >= 0 and stop == len(price):
                    bounds = ((before - own) / shown, (traded - own) / shown)
                else:
                    # Not filled by what was traded at its price: more stood ahead.
                    bounds = ((traded - own) / shown, np.inf)
        return _Limit(order.filled >= 0, bool((at | through).any()), bool(through.any()), queue, bounds)


# ---- Estimates ---------------------------------------------------------------------------------------------


def _least(bounds: Floats) -> tuple[float, float]:
    """Return between which values the sum of what intervals are missed by is least."""
    ends = np.sort(bounds[np.isfinite(bounds)])
    lows, highs = np.sort(bounds[:, 0]), np.sort(bounds[:, 1])

    def slope(side: Any) -> Any:
        # Of the sum at each end: the highs below it minus the lows above it.
        return np.searchsorted(highs, ends, side=side) - (len(lows) - np.searchsorted(lows, ends, side=side))

    flat = ends[(slope("left") <= 0) & (slope("right") >= 0)]
    return (float(flat[0]), float(flat[-1])) if len(flat) else (float(ends[-1]), float(ends[-1]))


def _best_share(bounds: Floats) -> tuple[float, float]:
    """Return between which queue shares in [0, 1] the most orders fit their fate."""
    grid = np.linspace(0.0, 1.0, 1001)
    fits = ((bounds[:, :1] < grid) & (grid <= bounds[:, 1:])).sum(axis=0)
    best = grid[fits == fits.max()]
    return float(best[0]), float(best[-1])


def _sampled(
    data: Floats, estimate: Callable[[Floats], tuple[float, float]], rng: np.random.Generator
) -> _Estimate:
    """Return an estimate that is known between two values, and the same of bootstrap samples."""
    low, high = estimate(data)
    draws = np.array([estimate(data[rng.integers(0, len(data), len(data))]) for _ in range(_SAMPLES)])
    # What one sample leaves open is open: the interval spans it.
    ends = (float(np.quantile(draws[:, 0], 0.025)), float(np.quantile(draws[:, 1], 0.975)))
    return _Estimate((low + high) / 2.0, min(ends[0], low), max(ends[1], high), draws.mean(axis=1))


def _median(values: Floats) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, middle


def _by_size(slippage: Sequence[tuple[float, float, float]]) -> pl.DataFrame:
    """Return slippage by thirds of notional and of volatility."""
    frame = pl.DataFrame(
        slippage,
        schema={"bps": pl.Float64, "notional": pl.Float64, "volatility": pl.Float64},
        orient="row",
    )

    def third(name: str) -> Iterator[pl.Expr]:
        rank = (pl.col(name).rank("ordinal") * 3 / (pl.len() + 1)).cast(pl.Int64).clip(0, 2)
        yield rank.replace_strict({0: "low", 1: "middle", 2: "high"}, return_dtype=pl.String).alias(name)

    grouped = frame.with_columns(*third("notional"), *third("volatility"), value="notional")
    return (
        grouped.group_by("notional", "volatility")
        .agg(pl.len().alias("orders"), pl.col("bps").median(), mean_notional=pl.col("value").mean())
        .sort("mean_notional", "volatility")
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
