"""What every column of a dataset is: unit, lookback, source, meaning. Kept as Arrow field metadata on export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from replaylab.features import CATALOGUE, FeatureParams

__all__ = ["Column", "describe"]

_NOW = "none: the last known"
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
        ("score", "feature", "score's own", _NOW, "SCORING_UPDATE", "signed score (+ long)"),
        ("score_age_s", "feature", "s", _NOW, "SCORING_UPDATE", "age of that score"),
        ("regime", "feature", "name", _NOW, "REGIME_UPDATE", "regime"),
        ("regime_age_s", "feature", "s", _NOW, "REGIME_UPDATE", "time since the regime was told"),
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
        (
            "recent_ret_bps",
            "feature",
            "bps of notional",
            "recent_trades",
            _TRADES,
            "mean return of the last few",
        ),
        ("recent_win_share", "feature", "share", "recent_trades", _TRADES, "share of them that made money"),
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
        ("tp_pct", "label", "%", "", "labels", "target"),
        ("sl_pct", "label", "%", "", "labels", "stop"),
        ("max_hold_s", "label", "s", "", "labels", "time barrier"),
        ("uniqueness", "weight", "(0, 1]", "", "labels", "average uniqueness (López de Prado 2018, ch. 4)"),
        ("return_weight", "weight", "mean 1", "", "labels", "absolute attributed return"),
    )
)
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
        if column.lookback == "recent_trades":
            return Column(
                name, column.role, column.unit, f"{recent_trades} trades", column.source, column.meaning
            )
        return column
    for ending, params in several.items():
        base = name.removesuffix(f"_{ending}") if ending else name
        if base in _CATALOGUE and (not ending or base != name):
            feature = _CATALOGUE[base]
            lookback = _with_values(feature.lookback, params)
            return Column(name, "feature", feature.unit, lookback, feature.source, feature.formula)
    if name.startswith("score_"):
        return Column(
            name, "feature", "score part's own", _NOW, "SCORING_UPDATE components", "part of the score"
        )
    if name.startswith("regime_"):
        return Column(
            name, "feature", "regime part's own", _NOW, "REGIME_UPDATE components", "part of the regime"
        )
    if name.startswith("snapshot_"):
        return Column(
            name, "feature", "as logged", _NOW, "FEATURE_SNAPSHOT", "feature that the live system logged"
        )
    return Column(name, "feature", "not documented", "", "", "")


def _with_values(lookback: str, params: FeatureParams) -> str:
    """Name the fields of FeatureParams in a text with their values: "flow_half_life_s = 10"."""
    for field in sorted(FeatureParams.__struct_fields__, key=len, reverse=True):
        if field in lookback:
            lookback = lookback.replace(field, f"{field} = {getattr(params, field):g}")
    return lookback
