"""Features: a row per decision time, with only what was known then.

::

    data = features(session)                                        # a row per SCORING_UPDATE
    data = features(session, at="1s")                               # a row per second and symbol
    data = features(session, params={"fast": FeatureParams(flow_half_life_s=2), "slow": FeatureParams()})

A row at event position k knows the events up to and including k, in session order; a row of a time grid those strictly
before its time. A value counts from the event that carries it, in session order; where a payload says when it was
received (``receivedAt``, ISO) and that is later than the event's own time, only for decisions strictly after that
moment. ``check_no_lookahead`` tests it on given data; ``docs/ml.md`` has what it does and does not guard against.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import DatasetError, TimeError
from replaylab.features import (
    CATALOGUE,
    FeatureParams,
    compute,
    pack_market,
    risk_flags,
    scores,
    usable_number,
    usable_price,
)
from replaylab.ml.decisions import (
    MAX_GAP_S,
    Decisions,
    SessionLike,
    decisions,
    event_times,
    gap_ns,
    time_grid,
)
from replaylab.timestamps import parse_ns

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_ANY = msgspec.json.Decoder()
_BLOCK = 4096
# Statuses of an order that may have filled, in whole or in part.
_FILLING = ("FILLED", "PARTIALLY_FILLED", "CANCELED", "CANCELLED", "EXPIRED")
# A quantity below this share of what was held is the rest of a rounding.
_DUST = 1e-9
_KEYS = pl.Schema(
    [
        ("row", pl.Int64()),
        ("event_index", pl.Int64()),
        ("timestamp", pl.Datetime("ns", "UTC")),
        ("symbol", pl.String()),
    ]
)
LookBacks = FeatureParams | Mapping[str, FeatureParams]


def features(
    session: SessionLike,
    *,
    at: str | pl.DataFrame = "scoring",
    symbols: Sequence[str] | None = None,
    params: LookBacks | None = None,
    recent_trades: int = 5,
    max_gap_s: float | None = MAX_GAP_S,
) -> pl.DataFrame:
    """Return a row per decision: keys, score and its parts, regime, risk, market, own position and recent trades.

    ``at``: "scoring" (every SCORING_UPDATE), a period such as "500ms", "1s" or "5m" (a grid of time), or a frame with
    ``timestamp`` (or ``t_start``), ``symbol`` and optionally ``event_index`` (``value_bars`` and ``meta_labels`` give
    such). ``params``: lookbacks of the market features, or several by name: columns then end in ``_<name>``.
    ``recent_trades``: how many closed trades the recent averages cover. ``max_gap_s``: on a grid of time the
    column ``in_hole`` is true where the symbol's last MARKET_* event is older than that, and features are null there
    (a row does not know what follows, so its features stay for the first ``max_gap_s`` of a hole).

    Keys are ``event_index, timestamp, symbol``; what is not known is null. Position and trades are those of the logged
    EXECUTION_ORDER and EXECUTION_TRADE events; a session built without them shows a flat position. ``describe`` has
    unit, lookback and source of every column. Raises DatasetError.
    """
    if recent_trades < 1:
        raise DatasetError(f"recent_trades must be ≥ 1, found {recent_trades}")
    on_grid = isinstance(at, str) and at != "scoring"
    if isinstance(at, str) and on_grid:
        at = time_grid(session, at, symbols)
    gap = gap_ns(max_gap_s)
    found = decisions(session, at, symbols)
    events, ts = session.events, event_times(session)
    initial: Mapping[str, Any] = getattr(session, "initial_state", None) or {}
    pieces = [_signals(events, ts, part, initial, recent_trades) for part in found]
    keys = pl.concat([pl.DataFrame(schema=_KEYS), *(_keys(part) for part in found)])
    rows = pl.concat(pieces, how="diagonal") if pieces else pl.DataFrame()
    market = _market(events, keys, params, initial)
    holes = [_holes(events, ts, found, gap)] if on_grid else []
    frame = pl.concat([keys, rows, market, *holes], how="horizontal").sort("row", maintain_order=True)
    frame = _with_position_return(frame.drop("row"), params).select(_ordered(frame.drop("row").columns))
    if not holes:
        return frame
    known = ~pl.col("in_hole")
    return frame.with_columns(pl.when(known).then(pl.exclude(*_KEYS, "in_hole")))


def _holes(events: pl.DataFrame, ts: Ints, found: list[Decisions], gap: int | None) -> pl.DataFrame:
    """Whether the last market event that a decision knows is over ``gap`` nanoseconds old; not before the first."""
    pieces = [np.empty(0, dtype=bool)]
    market = events["type"].is_in(["MARKET_TRADE", "MARKET_BOOK"])
    for part in found:
        rows = np.flatnonzero((market & (events["symbol"] == part.symbol)).fill_null(value=False).to_numpy())
        place = np.searchsorted(rows, part.index, side="right") - 1
        last = ts[rows[np.maximum(place, 0)]] if len(rows) else part.ts
        pieces.append(
            (place >= 0) & (part.ts - last > gap) if gap is not None else np.zeros(len(place), bool)
        )
    return pl.DataFrame({"in_hole": np.concatenate(pieces)})


def _keys(part: Decisions) -> pl.DataFrame:
    names = [part.symbol] * len(part.ts)
    columns = {"row": part.row, "event_index": part.index, "timestamp": part.ts, "symbol": names}
    return pl.DataFrame(columns, schema_overrides={"symbol": pl.String}).cast(_KEYS)


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
    records = kind("EXECUTION_ORDER") | kind("EXECUTION_TRADE")
    _add_position(columns, known_rows(events, ts, records, own=True), part)
    _add_trades(columns, known_rows(events, ts, kind("EXECUTION_TRADE"), own=True), part, recent)
    frame = pl.DataFrame(columns)
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def _add_score(columns: dict[str, Any], known: Known, part: Decisions) -> None:
    score, _ = scores(known.texts)
    # An event without a usable score is no score: the one before it remains.
    usable = np.flatnonzero(np.isfinite(score))
    kept = known.only(usable)
    place = kept.last(part.index)
    columns["score"] = kept.take(score[usable], place)
    columns["score_age_s"] = kept.age_s(part.ts, place)
    for name, values in number_columns(payloads(kept.texts), len(kept.texts), "components").items():
        columns[f"score_{name}"] = kept.take(values, place)


def _add_regime(columns: dict[str, Any], known: Known, part: Decisions, start: Any) -> None:
    records = list(payloads(known.texts))
    usable = [k for k, record in enumerate(records) if isinstance(record.get("regime"), str)]
    kept = known.only(usable)
    place = kept.last(part.index)
    names = [start if isinstance(start, str) else None, *(records[k]["regime"] for k in usable)]
    columns["regime"] = pl.Series(names, dtype=pl.String).gather(place + 1)
    columns["regime_age_s"] = kept.age_s(part.ts, place)
    for name, values in number_columns([records[k] for k in usable], len(usable), "components").items():
        columns[f"regime_{name}"] = kept.take(values, place)


def _add_risk(columns: dict[str, Any], known: Known, part: Decisions, start: Any) -> None:
    blocked, _, _ = risk_flags(known.texts)
    stated = np.flatnonzero(blocked >= 0)
    kept = known.only(stated)
    place = kept.last(part.index)
    columns["trading_blocked"] = kept.take(blocked[stated].astype(bool), place, bool(start))


def _add_snapshots(columns: dict[str, Any], known: Known, part: Decisions) -> None:
    place = known.last(part.index)
    for name, values in number_columns(payloads(known.texts), len(known.texts), "features").items():
        columns[f"snapshot_{name}"] = known.take(values, place)


class _Held:
    """A position as order and trade records tell of it: quantity (signed), price and time of its entry.

    ``filledQty`` of an order's lines are sums so far, so a line that comes twice adds nothing; an order of the other
    side closes also where it is not reduce-only (spot), and beyond the position it opens the other side.
    """

    def __init__(self) -> None:
        self.qty = self.price = self.closed = 0.0
        self.since = 0
        self._filled: dict[Any, float] = {}

    def order(self, record: Mapping[str, Any], ts: int) -> None:
        status = str(record.get("status")).upper()
        total = usable_number(record.get("filledQty")) or 0.0
        if status not in _FILLING or total <= 0.0:
            return
        name = record.get("clientOrderId")
        qty = total - (self._filled.get(name, 0.0) if name else 0.0)
        if name:
            self._filled[name] = max(total, self._filled.get(name, 0.0))
        if qty <= _DUST * total:
            return
        signed = qty if str(record.get("side")).upper() == "BUY" else -qty
        if self.qty * signed < 0.0:
            part = min(qty, abs(self.qty))
            self._close(part)
            signed = math.copysign(qty - part, signed)
        elif record.get("reduceOnly") is True:
            return
        if record.get("reduceOnly") is not True and abs(signed) > _DUST * qty:
            price = usable_price(record.get("avgFillPrice")) or usable_price(record.get("price")) or math.nan
            if self.qty:
                price = (self.price * abs(self.qty) + price * abs(signed)) / (abs(self.qty) + abs(signed))
            else:
                self.since, self.closed = ts, 0.0
            self.qty, self.price = self.qty + signed, price

    def trade(self, record: Mapping[str, Any]) -> None:
        """Take a closed trade: what no order closed of it is closed now."""
        qty = usable_number(record.get("qty")) or 0.0
        direction = {"LONG": 1.0, "SHORT": -1.0}.get(str(record.get("side")).upper(), 0.0)
        if self.qty * direction > 0.0 and qty - self.closed > _DUST * qty:
            self._close(min(qty - self.closed, abs(self.qty)))

    def _close(self, part: float) -> None:
        self.closed += part
        left = abs(self.qty) - part
        # Parts of a quantity do not add up to it in floats.
        self.qty = math.copysign(left, self.qty) if left > _DUST * self.closed else 0.0


def _add_position(columns: dict[str, Any], known: Known, part: Decisions) -> None:
    """Own position from the records of orders and trades."""
    side, entry_price = np.zeros(len(known.texts)), np.zeros(len(known.texts))
    entry_ts = np.zeros(len(known.texts), dtype=np.int64)
    held = _Held()
    for row, record in enumerate(payloads(known.texts)):
        if "realizedPnl" in record:
            held.trade(record)
        else:
            held.order(record, int(known.ts[row]))
        side[row], entry_price[row], entry_ts[row] = np.sign(held.qty), held.price, held.since
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
    """Keys, then score, regime and risk, then the market, then own position and trades."""
    own = [column.name for column in _FIXED if column.source.startswith((_ORDERS, _TRADES))]
    if "position" not in columns:
        return columns
    keys = ["event_index", "timestamp", "symbol"]
    signals = [n for n in columns if n.startswith(("score", "regime", "trading_blocked", "snapshot_"))]
    holes = [n for n in columns if n == "in_hole"]
    skipped = {*keys, *holes, *own, *signals, "position_entry"}
    return [*keys, *holes, *signals, *(n for n in columns if n not in skipped), *own]


@dataclass(frozen=True)
class Known:
    """Events of one kind and symbol in the order in which they became known.

    ``since``: the first event position at which a decision knows it; ``ts``: its own time; ``rows``: its position.
    """

    since: Ints
    ts: Ints
    rows: Ints
    texts: list[str]

    def only(self, which: Ints | list[int]) -> Known:
        """Return some of these events."""
        texts = [self.texts[k] for k in which]
        return Known(self.since[which], self.ts[which], self.rows[which], texts)

    def last(self, decision_index: Ints) -> Ints:
        """Return, per decision, the place of the last event known; −1 where there is none yet."""
        return np.searchsorted(self.since, decision_index, side="right").astype(np.int64) - 1

    def take(self, values: npt.NDArray[Any], place: Ints, empty: Any = np.nan) -> npt.NDArray[Any]:
        """Return ``values`` (one per event) at places; ``empty`` at −1."""
        if not len(values):
            return np.full(len(place), empty, dtype=values.dtype)
        return np.where(place >= 0, values[np.maximum(place, 0)], empty)

    def age_s(self, decision_ts: Ints, place: Ints) -> Floats:
        """Return seconds since the time of the event at each place; nan at −1."""
        age: Floats = np.where(place >= 0, (decision_ts - self.take(self.ts, place, 0)) / 1e9, np.nan)
        return age


def known_rows(events: pl.DataFrame, ts: Ints, mask: pl.Series, *, own: bool = False) -> Known:
    """Return the events under ``mask``. ``own``: made by this system, so known at once whatever they say."""
    rows = np.flatnonzero(mask.fill_null(value=False).to_numpy()).astype(np.int64)
    texts = events["payload"].gather(rows)
    since = rows.copy()
    if not own:
        for place in np.flatnonzero(texts.str.contains('"receivedAt"', literal=True).to_numpy()):
            received = _received(texts[int(place)])
            if received is not None and received > ts[rows[place]]:
                since[place] = np.searchsorted(ts, received, side="right")
    order = np.argsort(since, kind="stable")
    kept = texts.gather(order).to_list()
    return Known(since[order], ts[rows][order], rows[order], kept)


def payloads(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield parsed payloads; an empty one where a string is no JSON object."""
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        try:
            # One call for thousands of texts costs a fraction of a call each.
            found: list[Any] = _ANY.decode(f"[{','.join(block)}]")
        except (msgspec.DecodeError, TypeError):
            found = []
        if len(found) != len(block):
            found = [_payload(text) for text in block]
        for payload in found:
            yield payload if isinstance(payload, dict) else {}


def number_columns(records: Iterable[Mapping[str, Any]], count: int, key: str) -> dict[str, Floats]:
    """Return the numbers in the object under ``key`` of ``count`` records as columns by name; nan where not usable."""
    columns: dict[str, Floats] = {}
    for row, record in enumerate(records):
        numbers = record.get(key)
        if not isinstance(numbers, dict):
            continue
        for name, value in numbers.items():
            number = usable_number(value)
            if number is not None:
                if name not in columns:
                    columns[name] = np.full(count, np.nan)
                columns[name][row] = number
    return dict(sorted(columns.items()))


def _payload(text: str) -> Any:
    try:
        return _ANY.decode(text)
    except (msgspec.DecodeError, TypeError):
        return None


def _received(text: str) -> int | None:
    value = next(payloads([text])).get("receivedAt")
    try:
        return parse_ns(value) if isinstance(value, str) else None
    except TimeError:
        return None


_NOW = "none: the last known"
_RECENT = "recent_trades"
_ORDERS = "EXECUTION_ORDER"
_TRADES = "EXECUTION_TRADE"


@dataclass(frozen=True)
class Column:
    """One column: ``role`` is "key", "feature", "label" or "weight"."""

    name: str
    role: str
    unit: str
    lookback: str
    source: str
    meaning: str


_FIXED = tuple(
    Column(*row)
    for row in (
        ("event_index", "key", "position in session.events", "", "session", "last event that the row knows"),
        ("timestamp", "key", "UTC", "", "session", "decision time"),
        ("symbol", "key", "", "", "session", "symbol"),
        ("session_id", "key", "", "", "session", "session that the row comes from"),
        (
            "in_hole",
            "key",
            "true/false",
            "max_gap_s",
            "MARKET_*",
            "no market data for longer: features are null",
        ),
        ("score", "feature", "score's own", _NOW, "SCORING_UPDATE", "signed score (+ long)"),
        ("score_age_s", "feature", "s", _NOW, "SCORING_UPDATE", "age of that score"),
        ("regime", "feature", "name", _NOW, "REGIME_UPDATE", "regime"),
        ("regime_age_s", "feature", "s", _NOW, "REGIME_UPDATE", "time since that regime was set"),
        ("trading_blocked", "feature", "true/false", _NOW, "RISK_UPDATE", "whether entries are blocked"),
        ("position", "feature", "−1, 0, 1", _NOW, _ORDERS, "own position: short, flat, long"),
        ("position_age_s", "feature", "s", _NOW, _ORDERS, "time since its entry fill"),
        (
            "position_ret_bps",
            "feature",
            "bps of entry",
            _NOW,
            f"{_ORDERS}, mid",
            "its unrealised move, no costs",
        ),
        ("trades_closed", "feature", "trades", "session so far", _TRADES, "own closed trades of the symbol"),
        ("last_trade_ret_bps", "feature", "bps of notional", "1 trade", _TRADES, "return of the last one"),
        ("recent_ret_bps", "feature", "bps of notional", _RECENT, _TRADES, "mean return of the last few"),
        ("recent_win_share", "feature", "share", _RECENT, _TRADES, "share of them that made money"),
        ("since_exit_s", "feature", "s", _NOW, _TRADES, "time since the last exit"),
        ("t_start", "label", "UTC", "", "labels", "start of the label's interval: the decision"),
        ("t_end", "label", "UTC", "", "labels", "when the label was decided"),
        ("side", "label", "−1, 0, 1", "", "labels", "direction that the label judges"),
        ("entry_time", "label", "UTC", "", "labels", "first price behind the decision"),
        ("entry_price", "label", "quote currency", "", "labels", "entry price"),
        ("exit_price", "label", "quote currency", "", "labels", "price at the barrier"),
        ("barrier", "label", "TP, SL, TIME", "", "labels", "barrier touched first"),
        ("label", "label", "−1, 0, 1", "", "labels", "1 target, −1 stop, 0 time"),
        ("ret", "label", "fraction of notional", "", "labels", "return at the barrier"),
        ("hole", "label", "true/false", "", "labels", "no label: a hole before its end"),
        ("tp_pct", "label", "%", "", "labels", "target"),
        ("sl_pct", "label", "%", "", "labels", "stop"),
        ("max_hold_s", "label", "s", "", "labels", "time barrier"),
        ("uniqueness", "weight", "(0, 1]", "", "labels", "average uniqueness (López de Prado 2018, ch. 4)"),
        ("return_weight", "weight", "mean 1", "", "labels", "absolute attributed return"),
    )
)
# Columns that a log adds, by the start of their names.
_PARTS = {
    "score_": ("score part's own", "SCORING_UPDATE components", "part of the score"),
    "regime_": ("regime part's own", "REGIME_UPDATE components", "part of the regime"),
    "snapshot_": ("as logged", "FEATURE_SNAPSHOT", "feature that the live system logged"),
}
_KNOWN = {column.name: column for column in _FIXED}
_CATALOGUE = {feature.name: feature for feature in CATALOGUE}


def describe(
    names: Iterable[str],
    params: FeatureParams | Mapping[str, FeatureParams] | None = None,
    recent_trades: int = 5,
) -> list[Column]:
    """Return the description of each column, lookbacks with their values.

    >>> describe(["spread_bps", "score"])[0].unit
    'bps of mid'
    """
    several = params if isinstance(params, Mapping) else {"": params or FeatureParams()}
    return [_describe(name, several, recent_trades) for name in names]


def _describe(name: str, several: Mapping[str, FeatureParams], recent_trades: int) -> Column:
    if name in _KNOWN:
        column = _KNOWN[name]
        return replace(column, lookback=f"{recent_trades} trades") if column.lookback == _RECENT else column
    for ending, params in several.items():
        base = name.removesuffix(f"_{ending}") if ending else name
        if base in _CATALOGUE and (not ending or base != name):
            feature = _CATALOGUE[base]
            lookback = _with_values(feature.lookback, params)
            return Column(name, "feature", feature.unit, lookback, feature.source, feature.formula)
    for prefix, (unit, source, meaning) in _PARTS.items():
        if name.startswith(prefix):
            return Column(name, "feature", unit, _NOW, source, meaning)
    return Column(name, "feature", "not documented", "", "", "")


def _with_values(lookback: str, params: FeatureParams) -> str:
    """Add the values of the fields of FeatureParams to a lookback: "flow_half_life_s = 10"."""
    for field in sorted(FeatureParams.__struct_fields__, key=len, reverse=True):
        if field in lookback:
            lookback = lookback.replace(field, f"{field} = {getattr(params, field):g}")
    return lookback
