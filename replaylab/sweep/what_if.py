"""Recorded trades against recomputed ones: how they pair up, what differs, and what the difference is made of.

::

    what = what_if(session, {"sl_pct": 0.5})
    what.trades                  # a row per trade: same, changed, avoided, added; the PnL difference explained
    what.summary                 # the same by status

    match_trades(recorded_trades(session), recomputed)       # the pairing alone, for any two frames of trades
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import SweepError
from replaylab.features import InitialState
from replaylab.params import ScoringParams, TradingParams
from replaylab.sweep.result import Outcome
from replaylab.sweep.study import backtest
from replaylab.sweep.tape import PriceSource
from replaylab.timestamps import to_ns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from replaylab.sessions import Session

Array = npt.NDArray[Any]
STATUSES = ("same", "changed", "avoided", "added")
COMPARED = ("entry_time", "exit_time", "entry_price", "close_price", "qty", "reason", "realized_pnl")
_EFFECTS = ("size_effect", "entry_effect", "exit_effect", "fee_effect")
# Relative difference up to which two floats are one number that two programs wrote.
_CLOSE = 1e-9
_UTC = pl.Datetime("ns", "UTC")
_Span = tuple[int, int, int]  # entry and exit in nanoseconds, position in the frame
# Fields of an EXECUTION_TRADE payload, by their names in frames.
_PAYLOAD = {
    "side": ("side", pl.String),
    "entry_price": ("entryPrice", pl.Float64),
    "close_price": ("closePrice", pl.Float64),
    "qty": ("qty", pl.Float64),
    "leverage": ("leverage", pl.Float64),
    "realized_pnl": ("realizedPnl", pl.Float64),
    "mfe": ("mfe", pl.Float64),
    "mae": ("mae", pl.Float64),
    "fees": ("fees", pl.Float64),
    "funding": ("funding", pl.Float64),
    "duration_seconds": ("durationSeconds", pl.Float64),
    "reason": ("reason", pl.String),
    "tp1_filled": ("tp1Filled", pl.Boolean),
}


def match_trades(
    recorded: pl.DataFrame,
    recomputed: pl.DataFrame,
    *,
    fields: Sequence[str] = COMPARED,
    tolerance: float = _CLOSE,
) -> pl.DataFrame:
    """Return a row per trade of either side: ``status``, ``what`` differs, and each field of both.

    ``<name>_logged`` is the recorded value, ``<name>`` the recomputed one. Trades of the same symbol, side and entry
    time belong together; of the rest, those of the same symbol and side whose times overlap most. A pair is "same" or
    "changed", a recorded trade without partner "avoided", a recomputed one "added". ``what`` names the fields that
    differ, floats by more than ``tolerance`` relatively; a field that is null on one side is not compared.

    ``difference`` of the PnL (USD) is the sum of ``size_effect`` (other quantity), ``entry_effect``, ``exit_effect``
    (other prices) and ``fee_effect``, for avoided and added trades all of the PnL. Both frames need the columns
    ``symbol``, ``side`` and those of ``COMPARED``, and ``fields`` where these are others.
    """
    names = list(dict.fromkeys((*COMPARED, *fields)))
    pairs = pair_trades(recorded, recomputed)
    left, right = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    table = pl.concat(
        [_gathered(recorded, names, left, "_logged"), _gathered(recomputed, names, right, "")],
        how="horizontal",
    )
    table = table.with_columns(
        symbol=pl.coalesce("symbol_logged", "symbol"), side=pl.coalesce("side_logged", "side")
    )
    differs = []
    for name in fields:
        ours, theirs = pl.col(name), pl.col(f"{name}_logged")
        if table.schema[name].is_float():
            scale = pl.max_horizontal(ours.abs(), theirs.abs(), pl.lit(1e-12))
            test = (ours - theirs).abs() > tolerance * scale
        else:
            test = ours != theirs
        differs.append(pl.when(test.fill_null(value=False)).then(pl.lit(name)))
    paired = pl.col("entry_time").is_not_null() & pl.col("entry_time_logged").is_not_null()
    table = table.with_columns(
        what=pl.when(paired).then(pl.concat_list(differs).list.drop_nulls().list.join(", "))
    ).with_columns(
        status=pl.when(pl.col("entry_time").is_null())
        .then(pl.lit("avoided"))
        .when(pl.col("entry_time_logged").is_null())
        .then(pl.lit("added"))
        .when(pl.col("what") != "")
        .then(pl.lit("changed"))
        .otherwise(pl.lit("same"))
    )
    both = [f"{name}{ending}" for name in names for ending in ("_logged", "")]
    return (
        _explained(table)
        .with_columns(at=pl.coalesce("entry_time_logged", "entry_time"))
        .sort("at", "symbol", maintain_order=True)
        .select("status", "what", "symbol", "side", *both, "difference", *_EFFECTS)
    )


def recorded_trades(session: Session) -> pl.DataFrame:
    """Return the trades that were logged in a session's range, with ``entry_time``, ``exit_time`` and ``reason``.

    From the session's EXECUTION_TRADE events, which outlive the log; where it holds none, and for trades that closed
    after its end, from the trade log of its data root. A log without reasons takes them from EXECUTION_EXIT events.
    """
    events = session.events_of("EXECUTION_TRADE", "EXECUTION_EXIT")
    span = session.manifest.source_date_range
    log = frames.load_trades(session.root, span.from_, None, list(session.manifest.symbols)).frame
    copies = events.filter(pl.col("type") == "EXECUTION_TRADE")
    if copies.height:
        until = pl.lit(to_ns(span.to)).cast(_UTC)
        own = _from_payloads(copies)
        log = pl.concat([own, log.filter(pl.col("timestamp") >= until).select(own.columns)])
    held = (pl.col("duration_seconds") * 1e9).round().cast(pl.Int64).cast(pl.Duration("ns"))
    log = log.with_columns(exit_time=pl.col("timestamp"), entry_time=pl.col("timestamp") - held)
    exits = events.filter(pl.col("type") == "EXECUTION_EXIT")
    reasons = pl.DataFrame(
        {
            "symbol": exits["symbol"],
            "exit_time": exits["timestamp"],
            "exit_reason": pl.Series([_reason(payload) for payload in exits["payload"]], dtype=pl.String),
        }
    ).unique(["symbol", "exit_time"], keep="last")
    joined = log.join(reasons, on=["symbol", "exit_time"], how="left", maintain_order="left")
    return joined.with_columns(reason=pl.coalesce("reason", "exit_reason")).drop("exit_reason")


@dataclass(repr=False, kw_only=True)
class WhatIf(Outcome):
    """Recorded trades beside those of a backtest.

    ``trades``: a row per trade, as ``match_trades`` returns them. ``carried_in``: recorded trades that were decided
    before the session began; ``cut_off``: recomputed trades that the log closes after its end. A session can judge
    neither, and neither is compared. PnL in USD.
    """

    trades: pl.DataFrame
    carried_in: pl.DataFrame
    cut_off: pl.DataFrame

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return (
            f"<WhatIf {self.session_id}: {counts}; PnL difference {self.difference:+,.2f} USD; {self.setup}>"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td style='text-align:right'>{count:,}</td>"
            f"<td style='text-align:right'>{logged:,.2f}</td><td style='text-align:right'>{replayed:,.2f}</td>"
            f"<td style='text-align:right'>{difference:+,.2f}</td></tr>"
            for name, count, logged, replayed, difference in self.summary.iter_rows()
        )
        return (
            f"<div><b>What if</b> in {escape(str(self.session_id))}: PnL difference {self.difference:+,.2f} USD"
            f"<br>not compared: {self.carried_in.height} decided before the session, "
            f"{self.cut_off.height} closed after it"
            "<table><thead><tr><th></th><th>trades</th><th>logged (USD)</th><th>with these parameters (USD)</th>"
            f"<th>difference (USD)</th></tr></thead><tbody>{rows}</tbody></table>{escape(self.assumptions)}</div>"
        )

    @property
    def summary(self) -> pl.DataFrame:
        """``status, trades, pnl_logged, pnl, difference``: a row per status that occurs."""
        grouped = self.trades.group_by("status").agg(
            pl.len().alias("trades"),
            pl.col("realized_pnl_logged").sum().alias("pnl_logged"),
            pl.col("realized_pnl").sum().alias("pnl"),
            pl.col("difference").sum(),
        )
        order = {name: k for k, name in enumerate(STATUSES)}
        return grouped.sort(pl.col("status").replace_strict(order, return_dtype=pl.Int8))

    @property
    def counts(self) -> dict[str, int]:
        """How many trades of each status."""
        return {name: int((self.trades["status"] == name).sum()) for name in STATUSES}

    @property
    def difference(self) -> float:
        """PnL with these parameters minus logged PnL, in USD."""
        return float(self.trades["difference"].sum())

    @property
    def is_same(self) -> bool:
        """Whether every trade is the one that was logged."""
        return bool((self.trades["status"] == "same").all())

    def plot(self) -> Figure:
        """Draw the equity of both."""
        from replaylab import plots

        both = {}
        for name, ending in (("logged", "_logged"), ("with these parameters", "")):
            columns = {key: f"{key}{ending}" for key in ("entry_time", "exit_time", "realized_pnl")}
            both[name] = self.trades.select(**columns).drop_nulls()
        return plots.equity(both, "What if")


def what_if(
    session: Session,
    params: TradingParams | Mapping[str, Any] | None = None,
    *,
    price_source: PriceSource = "auto",
    scoring: Any = None,
    default: TradingParams | None = None,
    default_scoring: ScoringParams | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WhatIf:
    """Compare the trades logged in a session's range with those of a backtest on its recorded signals.

    ``params``: None for the recorded parameters (on the project's own SIM logs nothing then differs), a dict of changes
    to them, or a TradingParams; ``default`` takes the place of parameters that were not recorded. ``price_source``,
    ``scoring``, ``default_scoring``, ``cache_dir``: as in ``backtest``. See ``recorded_trades`` for what is compared,
    ``match_trades`` for how. Raises SweepError where there are neither recorded parameters nor others, or no prices.
    """
    if session.recorded_params is None and default is None and not isinstance(params, TradingParams):
        raise SweepError(f"{session.id} holds no recorded parameters: name the parameters to compare with")
    ran = backtest(
        session,
        params,
        price_source=price_source,
        scoring=scoring,
        default=default,
        default_scoring=default_scoring,
        cache_dir=cache_dir,
    )
    logged, compared, carried_in, cut_off = comparable_trades(session, ran.trades)
    return WhatIf(
        trades=match_trades(logged, compared), carried_in=carried_in, cut_off=cut_off, **ran.provenance()
    )


def comparable_trades(
    session: Session, recomputed: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return the logged and the recomputed trades that a session can judge, then those that it cannot.

    Left out are logged trades that were decided before the session, and recomputed ones that the log closes after it.
    """
    span = session.manifest.source_date_range
    start, end = to_ns(span.from_), to_ns(span.to)
    logged = recorded_trades(session)
    before = _decided_before(session, start)
    after = pl.col("exit_time").dt.timestamp("ns") >= end
    # The session ends while these positions are open; the log closes them later, or at a hole that it sees later.
    closed_later = (
        logged.filter(~before & (after | (pl.col("reason") == "DATA_GAP")))
        .select("symbol", "side", "entry_time")
        .unique()
    )
    cut_off = recomputed.filter(pl.col("reason") == "SESSION_END").join(
        closed_later, on=["symbol", "side", "entry_time"], how="semi"
    )
    compared = recomputed.join(cut_off, on=["symbol", "entry_index"], how="anti")
    key = ["symbol", "side", "entry_time"]
    judged = logged.filter(~before & ~after).join(cut_off, on=key, how="anti")
    return judged, compared, logged.filter(before), cut_off


def _decided_before(session: Session, start: int) -> pl.Expr:
    """Return whether a logged trade was decided before ``start`` (ns), also where its entry filled afterwards.

    A symbol decides no entry while something carried is on, nor in the cooldown after it: what entered by then was
    decided before.
    """
    recorded = session.recorded_params
    cooldown = round(recorded.cooldown_s * 1e9) if recorded is not None else 0
    entered, ended = (pl.col(name).dt.timestamp("ns") for name in ("entry_time", "exit_time"))
    found = entered < start
    for symbol, one in InitialState.read(session.initial_state).symbols.items():
        closed = one.last_exit_ns if one.carried is None else one.carried.closed_ns
        if one.carried is not None and closed is None:
            found |= pl.col("symbol") == symbol
        elif closed is not None:
            found |= (pl.col("symbol") == symbol) & ((entered < closed + cooldown) | (ended <= closed))
    return found


def _explained(table: pl.DataFrame) -> pl.DataFrame:
    """Split the difference: quantity at the logged prices, then each price at the new quantity, then fees."""
    sign = pl.when(pl.col("side") == "LONG").then(1.0).otherwise(-1.0)
    move = {
        end: sign * (pl.col(f"close_price{end}") - pl.col(f"entry_price{end}")) for end in ("", "_logged")
    }
    fees = {end: move[end] * pl.col(f"qty{end}") - pl.col(f"realized_pnl{end}") for end in ("", "_logged")}
    paired = pl.col("status").is_in(["same", "changed"])
    difference = pl.col("realized_pnl").fill_null(0.0) - pl.col("realized_pnl_logged").fill_null(0.0)
    effects = {
        "size_effect": move["_logged"] * (pl.col("qty") - pl.col("qty_logged")),
        "entry_effect": -sign * (pl.col("entry_price") - pl.col("entry_price_logged")) * pl.col("qty"),
        "exit_effect": sign * (pl.col("close_price") - pl.col("close_price_logged")) * pl.col("qty"),
        "fee_effect": fees["_logged"] - fees[""],
    }
    return table.with_columns(
        difference.alias("difference"),
        *(pl.when(paired).then(effect).alias(name) for name, effect in effects.items()),
    )


def pair_trades(recorded: pl.DataFrame, recomputed: pl.DataFrame) -> list[tuple[int, int]]:
    """Return positions (recorded, recomputed) of partners; −1 where there is none."""
    ours, theirs = _spans(recorded), _spans(recomputed)
    pairs: list[tuple[int, int]] = []
    for group in sorted({*ours, *theirs}):
        left, right = ours.get(group, []), theirs.get(group, [])
        at_entry = {entry: k for entry, _, k in right}
        matched = [(k, at_entry.pop(entry)) for entry, _, k in left if entry in at_entry]
        done_left, done_right = {a for a, _ in matched}, {b for _, b in matched}
        left = [item for item in left if item[2] not in done_left]
        right = [item for item in right if item[2] not in done_right]
        for _, a, b in sorted(_overlaps(left, right), reverse=True):
            if -a not in done_left and -b not in done_right:
                matched.append((-a, -b))
                done_left.add(-a)
                done_right.add(-b)
        pairs += matched
        pairs += [(item[2], -1) for item in left if item[2] not in done_left]
        pairs += [(-1, item[2]) for item in right if item[2] not in done_right]
    return pairs


def _overlaps(left: list[_Span], right: list[_Span]) -> Iterator[tuple[int, int, int]]:
    """Yield (shared ns, −position left, −position right) of all spans that share a moment."""
    right = sorted(right)
    entries = [entry for entry, _, _ in right]
    # The latest exit so far never falls, so the first span that may reach a moment is found by bisection.
    latest = list(accumulate((end for _, end, _ in right), max))
    for entry, end, a in left:
        for other, until, b in right[bisect_left(latest, entry) : bisect_right(entries, end)]:
            if entry <= until:
                yield min(end, until) - max(entry, other), -a, -b


def _spans(trades: pl.DataFrame) -> dict[tuple[str, str], list[_Span]]:
    """Return (entry, exit, position) of the trades of each symbol and side, in nanoseconds."""
    groups: dict[tuple[str, str], list[_Span]] = {}
    rows = trades.select(
        "symbol", "side", pl.col("entry_time").dt.timestamp("ns"), pl.col("exit_time").dt.timestamp("ns")
    ).iter_rows()
    for position, (symbol, side, entry, end) in enumerate(rows):
        groups.setdefault((symbol, side), []).append((entry, end, position))
    return groups


def _gathered(
    trades: pl.DataFrame, names: Sequence[str], rows: npt.NDArray[np.int64], ending: str
) -> pl.DataFrame:
    """Return the compared columns at ``rows``, null at −1."""
    places = pl.Series("place", rows).replace(-1, None)
    chosen = trades.select("symbol", "side", *names).select(pl.all().gather(places))
    return chosen.rename({name: f"{name}{ending}" for name in chosen.columns})


def _from_payloads(events: pl.DataFrame) -> pl.DataFrame:
    records = [orjson.loads(payload) for payload in events["payload"]]
    columns = {
        name: pl.Series([record.get(key) for record in records], dtype=dtype, strict=False)
        for name, (key, dtype) in _PAYLOAD.items()
    }
    return pl.DataFrame({"timestamp": events["timestamp"], "symbol": events["symbol"], **columns})


def _reason(payload: str) -> str | None:
    found = orjson.loads(payload)
    reason = found.get("reason") if isinstance(found, dict) else None
    return reason if isinstance(reason, str) else None


@cache
def _weights(n: int) -> tuple[Array, Array, Array]:
    """Return for every fact and every set without it: the fact, the set (as bits), and the set's Shapley weight."""
    sets = np.arange(1 << n)
    size = np.array([int(s).bit_count() for s in sets])
    factor = np.array([math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n) for k in range(n)])
    facts, without = np.nonzero((sets[None, :] >> np.arange(n)[:, None] & 1) == 0)
    return facts, without, factor[size[without]]


def shapley(values: Array) -> Array:
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
