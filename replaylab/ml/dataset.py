"""Features: a row per decision time, with only what was known then.

::

    data = features(session)                                        # a row per SCORING_UPDATE
    data = features(session, at="1s")                               # a row per second and symbol
    data = features(session, params={"fast": FeatureParams(flow_half_life_s=2), "slow": FeatureParams()})

A row at event position k knows the events up to and including k, in session order; a row of a time grid those strictly
before its time. ``docs/ml.md`` says what that does and does not guard against; ``check_no_lookahead`` proves it on
your data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features import (
    FeatureParams,
    compute,
    pack_market,
    risk_flags,
    scores,
    usable_number,
    usable_price,
)
from replaylab.ml.asof import Ints, Known, known_rows, number_columns, payloads
from replaylab.ml.clocks import time_grid
from replaylab.ml.tape import Decisions, SessionLike, decisions, event_times

__all__ = ["features"]

_TIME = pl.Datetime("ns", "UTC")
LookBacks = FeatureParams | Mapping[str, FeatureParams]


def features(
    session: SessionLike,
    *,
    at: str | pl.DataFrame = "scoring",
    symbols: Sequence[str] | None = None,
    params: LookBacks | None = None,
    recent_trades: int = 5,
) -> pl.DataFrame:
    """Return a row per decision: keys, score and its parts, regime, risk, market, own position and recent trades.

    ``at``: "scoring" (every SCORING_UPDATE), a period such as "500ms", "1s" or "5m" (a grid of time), or a frame with
    ``timestamp`` (or ``t_start``), ``symbol`` and optionally ``event_index`` (``value_bars`` and ``meta_labels`` give
    such). ``params``: lookbacks of the market features, or several by name: columns then end in ``_<name>``.
    ``recent_trades``: how many closed trades the recent averages look back on.

    Keys are ``event_index, timestamp, symbol``; what is not known is null. Position and trades are those of the logged
    EXECUTION_ORDER and EXECUTION_TRADE events; a session built without them shows a flat position. ``describe`` has
    unit, lookback and source of every column. Raises DatasetError.
    """
    if recent_trades < 1:
        raise DatasetError(f"recent_trades must be ≥ 1, found {recent_trades}")
    if isinstance(at, str) and at != "scoring":
        at = time_grid(session, at, symbols)
    found = decisions(session, at, symbols)
    events, ts = session.events, event_times(session)
    initial: Mapping[str, Any] = getattr(session, "initial_state", None) or {}
    pieces = [_signals(events, ts, part, initial, recent_trades) for part in found]
    keys = pl.concat([_keys(part) for part in found]) if found else _keys_schema()
    rows = pl.concat(pieces, how="diagonal") if pieces else pl.DataFrame()
    market = _market(events, keys, params, initial)
    frame = pl.concat([keys, rows, market], how="horizontal").sort("row", maintain_order=True).drop("row")
    return _with_position_return(frame, params).select(_ordered(frame.columns))


def _keys(part: Decisions) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row": part.row,
            "event_index": part.index,
            "timestamp": pl.Series(part.ts).cast(_TIME),
            "symbol": pl.repeat(part.symbol, len(part.ts), dtype=pl.String, eager=True),
        },
        schema_overrides={"row": pl.Int64, "event_index": pl.Int64},
    )


def _keys_schema() -> pl.DataFrame:
    return pl.DataFrame(
        schema={"row": pl.Int64, "event_index": pl.Int64, "timestamp": _TIME, "symbol": pl.String}
    )


def _signals(
    events: pl.DataFrame, ts: Ints, part: Decisions, initial: Mapping[str, Any], recent: int
) -> pl.DataFrame:
    """Everything but the market features of one symbol."""
    mine = (events["symbol"] == part.symbol).fill_null(value=False)
    state: Mapping[str, Any] = (initial.get("symbols") or {}).get(part.symbol) or {}

    def kind(name: str) -> pl.Series:
        return mine & (events["type"] == name)

    columns: dict[str, Any] = {}
    _add_score(columns, known_rows(events, ts, kind("SCORING_UPDATE"), own=True), part)
    _add_regime(columns, known_rows(events, ts, kind("REGIME_UPDATE")), part, state.get("regime"))
    for_all = (events["symbol"].is_null()) & (events["type"] == "RISK_UPDATE")
    _add_risk(
        columns, known_rows(events, ts, kind("RISK_UPDATE") | for_all), part, state.get("tradingBlocked")
    )
    _add_snapshots(columns, known_rows(events, ts, kind("FEATURE_SNAPSHOT")), part)
    _add_position(columns, known_rows(events, ts, kind("EXECUTION_ORDER"), own=True), part)
    _add_trades(columns, known_rows(events, ts, kind("EXECUTION_TRADE"), own=True), part, recent)
    frame = pl.DataFrame(columns)
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def _add_score(columns: dict[str, Any], known: Known, part: Decisions) -> None:
    score, _ = scores(known.texts)
    # An event without a usable score is no score: the one before it stands.
    usable = np.flatnonzero(np.isfinite(score))
    kept = Known(known.since[usable], known.ts[usable], known.rows[usable], [known.texts[k] for k in usable])
    place = kept.last(part.index)
    columns["score"] = kept.take(score[usable], place)
    columns["score_age_s"] = kept.age_s(part.ts, place)
    for name, values in number_columns(payloads(kept.texts), len(kept.texts), "components").items():
        columns[f"score_{name}"] = kept.take(values, place)


def _add_regime(columns: dict[str, Any], known: Known, part: Decisions, start: Any) -> None:
    records = list(payloads(known.texts))
    usable = [k for k, record in enumerate(records) if isinstance(record.get("regime"), str)]
    kept = Known(known.since[usable], known.ts[usable], known.rows[usable], [known.texts[k] for k in usable])
    place = kept.last(part.index)
    names = [start if isinstance(start, str) else None, *(records[k]["regime"] for k in usable)]
    columns["regime"] = pl.Series(names, dtype=pl.String).gather(place + 1)
    columns["regime_age_s"] = kept.age_s(part.ts, place)
    for name, values in number_columns([records[k] for k in usable], len(usable), "components").items():
        columns[f"regime_{name}"] = kept.take(values, place)


def _add_risk(columns: dict[str, Any], known: Known, part: Decisions, start: Any) -> None:
    blocked, _, _ = risk_flags(known.texts)
    said = np.flatnonzero(blocked >= 0)
    kept = Known(known.since[said], known.ts[said], known.rows[said], [])
    place = kept.last(part.index)
    columns["trading_blocked"] = kept.take(blocked[said].astype(bool), place, bool(start))


def _add_snapshots(columns: dict[str, Any], known: Known, part: Decisions) -> None:
    place = known.last(part.index)
    for name, values in number_columns(payloads(known.texts), len(known.texts), "features").items():
        columns[f"snapshot_{name}"] = known.take(values, place)


def _add_position(columns: dict[str, Any], known: Known, part: Decisions) -> None:
    """Own position from filled orders: entries add, reduce-only orders take away."""
    side, entry_price = np.zeros(len(known.texts)), np.zeros(len(known.texts))
    entry_ts = np.zeros(len(known.texts), dtype=np.int64)
    held = held_side = price = 0.0
    since = 0
    for row, record in enumerate(payloads(known.texts)):
        qty = usable_number(record.get("filledQty"))
        if record.get("status") == "FILLED" and qty:
            if record.get("reduceOnly") is True:
                held -= qty
                # Parts of a quantity do not add up to it in floats.
                held = held if held > 1e-9 * qty else 0.0
            else:
                held += qty
                held_side = 1.0 if record.get("side") == "BUY" else -1.0
                price = usable_price(record.get("avgFillPrice")) or np.nan
                since = int(known.ts[row])
        side[row], entry_price[row], entry_ts[row] = (held_side if held else 0.0), price, since
    place = known.last(part.index)
    now = known.take(side, place, 0.0)
    opened = known.take(entry_ts, place, 0)
    columns["position"] = now.astype(np.int8)
    columns["position_age_s"] = np.where(now != 0, (part.ts - opened) / 1e9, np.nan)
    columns["position_entry"] = np.where(now != 0, known.take(entry_price, place), np.nan)


def _add_trades(columns: dict[str, Any], known: Known, part: Decisions, recent: int) -> None:
    ret = np.full(len(known.texts), np.nan)
    for row, record in enumerate(payloads(known.texts)):
        pnl, qty = usable_number(record.get("realizedPnl")), usable_number(record.get("qty"))
        price = usable_price(record.get("entryPrice"))
        if pnl is not None and qty and price:
            ret[row] = pnl / (price * qty) * 1e4
    place = known.last(part.index)
    series = pl.Series(ret).fill_nan(None)
    mean = series.rolling_mean(recent, min_samples=1).fill_null(np.nan).to_numpy()
    wins = (series > 0).cast(pl.Float64).rolling_mean(recent, min_samples=1).fill_null(np.nan).to_numpy()
    columns["trades_closed"] = (place + 1).astype(np.int64)
    columns["last_trade_ret_bps"] = known.take(ret, place)
    columns["recent_ret_bps"] = known.take(mean, place)
    columns["recent_win_share"] = known.take(wins, place)
    columns["since_exit_s"] = known.age_s(part.ts, place)


def _market(
    events: pl.DataFrame, keys: pl.DataFrame, params: LookBacks | None, initial: Mapping[str, Any]
) -> pl.DataFrame:
    several = params if isinstance(params, Mapping) else {"": params or FeatureParams()}
    wanted = keys.select(index="event_index", timestamp="timestamp", symbol="symbol")
    names = sorted(set(keys["symbol"].to_list()))
    pieces = []
    tapes: dict[int, Any] = {}
    for ending, chosen in several.items():
        if chosen.depth_levels not in tapes:
            tapes[chosen.depth_levels] = pack_market(
                events, chosen.depth_levels, initial_state=initial, symbols=names
            )
        table = compute(tapes[chosen.depth_levels], chosen, wanted, initial_state=initial)
        table = table.drop("index", "timestamp", "symbol")
        pieces.append(table.rename({name: f"{name}_{ending}" for name in table.columns}) if ending else table)
    return pl.concat(pieces, how="horizontal")


def _with_position_return(frame: pl.DataFrame, params: LookBacks | None) -> pl.DataFrame:
    ending = f"_{next(iter(params))}" if isinstance(params, Mapping) else ""
    reference = pl.coalesce(f"mid{ending}", f"last_price{ending}")
    move = pl.col("position") * (reference / pl.col("position_entry") - 1.0) * 1e4
    if "position_entry" not in frame.columns:
        return frame
    return frame.with_columns(position_ret_bps=move)


def _ordered(columns: list[str]) -> list[str]:
    """Keys, then score, regime and risk, then the market, then what is one's own."""
    own = [
        "position",
        "position_age_s",
        "position_ret_bps",
        "trades_closed",
        "last_trade_ret_bps",
        "recent_ret_bps",
        "recent_win_share",
        "since_exit_s",
    ]
    if "position" not in columns:
        return columns
    keys = ["event_index", "timestamp", "symbol"]
    signals = [n for n in columns if n.startswith(("score", "regime", "trading_blocked", "snapshot_"))]
    skipped = {*keys, *own, *signals, "position_entry"}
    return [*keys, *signals, *(n for n in columns if n not in skipped), *own]
