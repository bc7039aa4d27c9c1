"""What if: the trades that were really logged, beside those that other parameters would have made.

::

    what = what_if(session, TradingParams(sl_pct=0.5))
    what.trades                  # a row per trade: same, changed, avoided, added; the PnL difference explained
    what.summary                 # the same by status
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep.engine import backtest
from replaylab.sweep.tape import PriceSource
from replaylab.timestamps import to_ns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from replaylab.sessions import Session

__all__ = ["WhatIf", "compare_trades", "what_if"]

STATUSES = ("same", "changed", "avoided", "added")
_COMPARED = ("entry_time", "exit_time", "entry_price", "close_price", "qty", "reason", "realized_pnl")
_EFFECTS = ("size_effect", "entry_effect", "exit_effect", "fee_effect")
# Two floats that differ by less are the same number written by two programs.
_CLOSE = 1e-9


def _same(frame: pl.DataFrame) -> Any:
    return frame


@dataclass(repr=False)
class WhatIf:
    """The comparison of logged with replayed trades.

    ``trades``: a row per trade; ``summary``: count and PnL by status. PnL in USD. ``carried_in``: logged trades that
    were open before the session began, ``cut_off``: replayed trades that the logs show to close after its end; a
    session cannot judge either, and neither is compared.
    """

    table: pl.DataFrame
    params: TradingParams
    session_id: str
    carried_in: pl.DataFrame
    cut_off: pl.DataFrame
    give: Callable[[pl.DataFrame], Any] = _same

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"<WhatIf {self.session_id}: {counts}; PnL difference {self.difference:+,.2f} USD>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td style='text-align:right'>{count:,}</td>"
            f"<td style='text-align:right'>{logged:,.2f}</td><td style='text-align:right'>{replayed:,.2f}</td>"
            f"<td style='text-align:right'>{difference:+,.2f}</td></tr>"
            for name, count, logged, replayed, difference in self._summary().iter_rows()
        )
        apart = (
            f"<br>not compared: {self.carried_in.height} open before the session, "
            f"{self.cut_off.height} closed after it"
        )
        return (
            f"<div><b>What if</b> in {escape(self.session_id)}: PnL difference {self.difference:+,.2f} USD{apart}"
            "<table><thead><tr><th></th><th>trades</th><th>logged (USD)</th><th>with these parameters (USD)</th>"
            f"<th>difference (USD)</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )

    @property
    def trades(self) -> Any:
        """A row per trade in order of time: ``status``, both versions of each figure, the difference and its parts."""
        return self.give(self.table)

    @property
    def summary(self) -> Any:
        """``status, trades, pnl_logged, pnl, difference``: a row per status that occurs."""
        return self.give(self._summary())

    @property
    def counts(self) -> dict[str, int]:
        """How many trades of each status."""
        return {name: int((self.table["status"] == name).sum()) for name in STATUSES}

    @property
    def difference(self) -> float:
        """PnL with these parameters minus logged PnL, in USD."""
        return float(self.table["difference"].sum())

    @property
    def is_same(self) -> bool:
        """Whether every trade is the one that was logged."""
        return bool((self.table["status"] == "same").all())

    def picture(self) -> Figure:
        """Draw the equity of both."""
        from replaylab import plots

        both = {}
        for name, ending in (("logged", "_logged"), ("with these parameters", "")):
            columns = {key: f"{key}{ending}" for key in ("entry_time", "exit_time", "realized_pnl")}
            both[name] = self.table.select(**columns).drop_nulls()
        return plots.equity(both, "What if")

    def _summary(self) -> pl.DataFrame:
        grouped = self.table.group_by("status").agg(
            pl.len().alias("trades"),
            pl.col("realized_pnl_logged").sum().alias("pnl_logged"),
            pl.col("realized_pnl").sum().alias("pnl"),
            pl.col("difference").sum(),
        )
        order = pl.col("status").replace_strict(
            {name: k for k, name in enumerate(STATUSES)}, return_dtype=pl.Int8
        )
        return grouped.sort(order)


def what_if(
    session: Session,
    params: TradingParams | None = None,
    price_source: PriceSource = "auto",
    *,
    give: Callable[[pl.DataFrame], Any] = _same,
) -> WhatIf:
    """Compare the logged trades of a session's range with those that ``params`` give on its recorded signals.

    ``params=None`` takes the recorded parameters: on the project's own SIM logs nothing then differs. Logged trades are
    the session's EXECUTION_TRADE events, and the trade log of its data root where it holds none. See ``compare_trades``
    for how they are matched. Raises SweepError where there are no recorded parameters, or no prices.
    """
    chosen = params if params is not None else session.recorded_params
    if chosen is None:
        raise SweepError(f"{session.id} holds no recorded parameters: name the parameters to compare with")
    date_range = session.manifest.source_date_range
    start, end = to_ns(date_range.from_), to_ns(date_range.to)
    logged = _logged(session)
    entry = pl.col("entry_time").dt.timestamp("ns")
    began_before, later = entry < start, pl.col("exit_time").dt.timestamp("ns") >= end
    inside = logged.filter(~began_before & ~later)
    replayed: pl.DataFrame = backtest(session, chosen, price_source).trades
    # The session ends while the position is open; in the logs it was closed later.
    closed_later = logged.filter(~began_before & later).select("symbol", "side", "entry_time").unique()
    cut_off = replayed.filter(pl.col("reason") == "SESSION_END").join(
        closed_later, on=["symbol", "side", "entry_time"], how="semi"
    )
    compared = replayed.join(cut_off, on=["symbol", "entry_index"], how="anti")
    return WhatIf(
        table=compare_trades(inside, compared),
        params=chosen,
        session_id=session.id,
        carried_in=logged.filter(began_before),
        cut_off=cut_off,
        give=give,
    )


def compare_trades(logged: pl.DataFrame, replayed: pl.DataFrame) -> pl.DataFrame:
    """Return a row per trade with ``status`` and, of the figures of both, ``<name>_logged`` and ``<name>``.

    Trades of the same symbol, side and entry time belong together; of the rest, those of the same symbol and side whose
    times overlap most. A pair is "same" or "changed", a logged trade without partner "avoided", a replayed one "added".
    ``difference`` of the PnL (USD) is the sum of ``size_effect`` (other quantity), ``entry_effect``, ``exit_effect``
    (other prices) and ``fee_effect``, for avoided and added trades all of the PnL.
    """
    pairs = _pairs(logged, replayed)
    left, right = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    parts = [_picked(logged, left, "_logged"), _picked(replayed, right, "")]
    table = pl.concat(parts, how="horizontal")
    table = table.with_columns(
        symbol=pl.coalesce("symbol_logged", "symbol"), side=pl.coalesce("side_logged", "side")
    ).drop("symbol_logged", "side_logged")
    changed = pl.lit(value=False)
    for name in _COMPARED:
        ours, theirs = pl.col(name), pl.col(f"{name}_logged")
        if table.schema[name].is_float():
            scale = pl.max_horizontal(ours.abs(), theirs.abs(), pl.lit(1e-12))
            differs = (ours - theirs).abs() > _CLOSE * scale
        else:
            # A log without reasons says nothing about them.
            differs = ours != theirs
        changed = changed | differs.fill_null(value=False)
    status = (
        pl.when(pl.col("entry_time").is_null())
        .then(pl.lit("avoided"))
        .when(pl.col("entry_time_logged").is_null())
        .then(pl.lit("added"))
        .when(changed)
        .then(pl.lit("changed"))
        .otherwise(pl.lit("same"))
    )
    table = _explained(table.with_columns(status=status))
    first = ["status", "symbol", "side"]
    compared = [f"{name}{ending}" for name in _COMPARED for ending in ("_logged", "")]
    return (
        table.with_columns(at=pl.coalesce("entry_time_logged", "entry_time"))
        .sort("at", "symbol", maintain_order=True)
        .select(*first, *compared, "difference", *_EFFECTS)
    )


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


def _pairs(logged: pl.DataFrame, replayed: pl.DataFrame) -> list[tuple[int, int]]:
    """Return positions (logged, replayed) of partners; −1 where there is none."""
    ours, theirs = _spans(logged), _spans(replayed)
    pairs: list[tuple[int, int]] = []
    for group in sorted({*ours, *theirs}):
        left, right = ours.get(group, []), theirs.get(group, [])
        at_entry = {entry: k for entry, _, k in right}
        matched = [(k, at_entry.pop(entry)) for entry, _, k in left if entry in at_entry]
        done_left, done_right = {a for a, _ in matched}, {b for _, b in matched}
        left = [item for item in left if item[2] not in done_left]
        right = [item for item in right if item[2] not in done_right]
        overlaps = sorted(
            (
                (min(a[1], b[1]) - max(a[0], b[0]), -a[2], -b[2])
                for a in left
                for b in right
                if a[0] <= b[1] and b[0] <= a[1]
            ),
            reverse=True,
        )
        for _, a, b in overlaps:
            if -a not in done_left and -b not in done_right:
                matched.append((-a, -b))
                done_left.add(-a)
                done_right.add(-b)
        pairs += matched
        pairs += [(item[2], -1) for item in left if item[2] not in done_left]
        pairs += [(-1, item[2]) for item in right if item[2] not in done_right]
    return pairs


def _spans(trades: pl.DataFrame) -> dict[tuple[str, str], list[tuple[int, int, int]]]:
    groups: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    rows = trades.select(
        "symbol", "side", pl.col("entry_time").dt.timestamp("ns"), pl.col("exit_time").dt.timestamp("ns")
    ).iter_rows()
    for position, (symbol, side, entry, end) in enumerate(rows):
        groups.setdefault((symbol, side), []).append((entry, end, position))
    return groups


def _picked(trades: pl.DataFrame, rows: np.ndarray[Any, np.dtype[np.int64]], ending: str) -> pl.DataFrame:
    """Return the compared columns at ``rows``, null at −1."""
    chosen = trades.select("symbol", "side", *_COMPARED)
    places = pl.Series("place", rows).replace(-1, None)
    return chosen.select(pl.all().gather(places)).rename({name: f"{name}{ending}" for name in chosen.columns})


def _logged(session: Session) -> pl.DataFrame:
    """Logged trades with entry and exit times and the reason of the exit, where the log or the events tell it."""
    events = session.events
    held = (pl.col("duration_seconds") * 1e9).round().cast(pl.Int64).cast(pl.Duration("ns"))
    manifest = session.manifest
    symbols = list(manifest.symbols)
    start = manifest.source_date_range.from_
    trades = frames.load_trades(session.root, start, None, symbols).frame
    recorded = events.filter(pl.col("type") == "EXECUTION_TRADE")
    if recorded.height:
        # The session's own copy outlives the log; what closed after its end only the log can tell.
        until = pl.lit(to_ns(manifest.source_date_range.to)).cast(pl.Datetime("ns", "UTC"))
        own = _from_payloads(recorded)
        trades = pl.concat([own, trades.filter(pl.col("timestamp") >= until).select(own.columns)])
    trades = trades.with_columns(exit_time=pl.col("timestamp"), entry_time=pl.col("timestamp") - held)
    exits = events.filter(pl.col("type") == "EXECUTION_EXIT")
    reasons = pl.DataFrame(
        {
            "symbol": exits["symbol"],
            "exit_time": exits["timestamp"],
            "said": pl.Series([_reason(text) for text in exits["payload"]], dtype=pl.String),
        }
    ).unique(["symbol", "exit_time"], keep="last")
    joined = trades.join(reasons, on=["symbol", "exit_time"], how="left", maintain_order="left")
    return joined.with_columns(reason=pl.coalesce("reason", "said")).drop("said")


def _from_payloads(events: pl.DataFrame) -> pl.DataFrame:
    names = {
        "side": ("side", pl.String),
        "entry_price": ("entryPrice", pl.Float64),
        "close_price": ("closePrice", pl.Float64),
        "qty": ("qty", pl.Float64),
        "realized_pnl": ("realizedPnl", pl.Float64),
        "duration_seconds": ("durationSeconds", pl.Float64),
        "reason": ("reason", pl.String),
    }
    records = [orjson.loads(text) for text in events["payload"]]
    columns = {
        ours: pl.Series([record.get(theirs) for record in records], dtype=kind, strict=False)
        for ours, (theirs, kind) in names.items()
    }
    return pl.DataFrame({"timestamp": events["timestamp"], "symbol": events["symbol"], **columns})


def _reason(text: str) -> str | None:
    payload = orjson.loads(text)
    reason = payload.get("reason") if isinstance(payload, dict) else None
    return reason if isinstance(reason, str) else None
