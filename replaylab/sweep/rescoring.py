"""Scores computed from the market data of a session, or given by the user, in place of the recorded ones.

::

    backtest(rescored(session, model))                   # a model of the user's own
    sweep(session, {"scoring.gain": [1.0, 1.5, 2.0], "entry_threshold": [0.4, 0.6]})
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.errors import ConfigError, SweepError, did_you_mean
from replaylab.features import MarketTape, pack_market, score_series
from replaylab.params import ScoringParams, TradingParams, resolve_scoring
from replaylab.sessions import signal_frame
from replaylab.sweep.tape import PriceSource, SessionLike

_SIGNALS = ("SCORING_UPDATE", "REGIME_UPDATE")
_PREFIX = "scoring."
# What the assumptions of a result say.
GIVEN_SIGNALS = "signals given by the caller, not recorded"


@dataclass(frozen=True)
class Rescored:
    """A session with other scores and regimes than the recorded ones: ``sweep`` and ``backtest`` take it.

    ``place[i]`` is the position that event ``i`` had in the session itself, −1 for a new signal.
    """

    events: pl.DataFrame
    initial_state: Mapping[str, Any] | None
    instruments: Mapping[str, Any]
    recorded_params: TradingParams | None
    recorded_scoring: ScoringParams | None
    id: str | None
    place: npt.NDArray[np.int64]

    def in_session(self, trades: pl.DataFrame) -> pl.DataFrame:
        """Return trades with ``entry_index`` and ``exit_index`` as positions in the session itself."""
        places = pl.Series(self.place)
        return trades.with_columns(
            pl.Series(name, places.gather(trades[name])) for name in ("entry_index", "exit_index")
        )


def rescored(
    session: SessionLike | pl.DataFrame,
    scoring: Any = None,
    *,
    default: ScoringParams | None = None,
    tapes: Mapping[str, MarketTape] | None = None,
) -> Rescored:
    """Return the session with the signals that ``scoring`` computes from its market data instead of the recorded ones.

    ``scoring``: ScoringParams, None for the recorded ones (``default`` where there are none), a dict of changes to
    them, or a model with ``predict``. The signals have the places at which FULL_DECISION computes them: after all
    events of their time, by symbol, a changed regime before the score. They carry no price, so prices must come from
    trades or the book. ``tapes``: what ``pack_market`` returned for the session with ``scoring.book_levels``, where
    many settings are tried. Raises SweepError for a session without market data.
    """
    scoring = _resolved(scoring, session, default)
    events = session if isinstance(session, pl.DataFrame) else session.events
    state = getattr(session, "initial_state", None)
    scores = score_series(events if tapes is None else tapes, scoring, initial_state=state)
    if scores.is_empty():
        raise SweepError(
            "scoring: no scores can be computed: the session holds no market data, or none after the warm-up"
        )
    return _with_signals(session, scores.select("timestamp", "symbol", "score", "regime"))


def signalled(session: SessionLike | pl.DataFrame, signals: Any, *, allow_empty: bool = False) -> Rescored:
    """Return the session with a user's own signals instead of the recorded ones.

    >>> signalled(session, pl.DataFrame({"timestamp": [...], "symbol": [...], "score": [...]}))   # doctest: +SKIP

    ``signals``: see ``sessions.signal_frame``. A signal acts after all events that bear its time, as in FULL_DECISION:
    it is not known before. One from before the session's first event comes first. Without a column ``regime`` the
    recorded regimes stay. Raises SweepError for a symbol that the session does not have, and where every signal is
    later than its last event.
    """
    events = session if isinstance(session, pl.DataFrame) else session.events
    frame = signal_frame(signals)
    if frame.is_empty() and not allow_empty:
        raise SweepError("the frame of signals is empty: it needs a row per signal")
    names = events["symbol"].drop_nulls().unique().to_list()
    for symbol in sorted(set(frame["symbol"].unique().to_list()) - set(names)):
        raise SweepError(
            f"signals: symbol {symbol!r} is not in the session, which has {', '.join(sorted(names))}."
            f"{did_you_mean(symbol, names)}"
        )
    inside = frame if events.is_empty() else frame.filter(pl.col("timestamp") <= events["timestamp"][-1])
    if inside.is_empty() and frame.height:
        raise SweepError("signals: all of them are later than the last event of the session")
    if inside.height < frame.height:
        late = frame.height - inside.height
        warnings.warn(
            f"{late:,} signals are later than the last event of the session and left out", stacklevel=3
        )
    if "regime" not in inside.columns:
        inside = inside.with_columns(regime=pl.lit(None, pl.String))
    return _with_signals(session, inside)


def _with_signals(session: SessionLike | pl.DataFrame, scores: pl.DataFrame) -> Rescored:
    """Put scores behind all events of their time, in place of the recorded ones.

    ``scores``: timestamp, symbol, score, regime, price if known. Recorded regimes are replaced where it holds any.
    """
    events = session if isinstance(session, pl.DataFrame) else session.events
    state = getattr(session, "initial_state", None)
    ts = events["timestamp"].dt.timestamp("ns").to_numpy()
    at = scores["timestamp"].dt.timestamp("ns").to_numpy()
    scores = scores.with_row_index("row").with_columns(
        place=pl.Series(np.searchsorted(ts, at, side="right") - 1)
    )
    symbols = (state or {}).get("symbols") or {}
    first = pl.DataFrame(
        {"symbol": list(symbols), "before": [(entry or {}).get("regime") for entry in symbols.values()]},
        schema={"symbol": pl.String, "before": pl.String},
    )
    known = pl.col("regime").forward_fill().over("symbol")
    regimes = (
        scores.join(first, on="symbol", how="left", maintain_order="left")
        .with_columns(last=pl.coalesce(known.shift(1).over("symbol"), "before"))
        .filter(pl.col("regime").is_not_null() & pl.col("regime").ne_missing(pl.col("last")))
    )
    replaced = _SIGNALS if scores["regime"].is_not_null().any() else _SIGNALS[:1]
    kept = events.with_row_index("place").filter(~pl.col("type").is_in(replaced))
    payload = pl.lit('{"score":') + pl.col("score").cast(pl.String)
    if "price" in scores.columns:
        payload += pl.lit(',"price":') + pl.col("price").cast(pl.String).fill_null("null")
    texts = {name: orjson.dumps({"regime": name}).decode() for name in regimes["regime"].unique()}
    new = [
        _signals(
            regimes,
            "REGIME_UPDATE",
            pl.col("regime").replace_strict(texts, default=None, return_dtype=pl.String),
            1,
        ),
        _signals(scores.filter(pl.col("score").is_not_null()), "SCORING_UPDATE", payload + pl.lit("}"), 2),
    ]
    old = kept.select(
        pl.col("place").cast(pl.Int64),
        "timestamp",
        "type",
        "symbol",
        "payload",
        row=pl.lit(0, pl.UInt32),
        rank=pl.lit(0, pl.Int8),
    )
    # One of the session's own events has a place of its own: time, symbol, row and rank order the new ones alone.
    keys = ("place", pl.col("rank") > 0, "timestamp", "symbol", "row", "rank")
    merged = pl.concat([old, *new]).sort(*keys, maintain_order=True)
    place = merged.select(pl.when(pl.col("rank") == 0).then("place").otherwise(-1)).to_series().to_numpy()
    name = getattr(session, "id", None)
    return Rescored(
        merged.select("timestamp", "type", "symbol", "payload"),
        state,
        getattr(session, "instruments", {}),
        getattr(session, "recorded_params", None),
        getattr(session, "recorded_scoring", None),
        name if isinstance(name, str) else None,
        place,
    )


@dataclass(frozen=True)
class Rescorer:
    """The scoring settings of a sweep, and the session under each of them.

    ``settings``: a single None for the recorded scores, or for a session that was rescored before. ``axes``: the fields
    (``scoring.<field>``) by which the settings differ.
    """

    source: SessionLike | pl.DataFrame
    settings: Sequence[Any]
    axes: dict[str, list[Any]]
    tapes: dict[int, Mapping[str, MarketTape]]

    @classmethod
    def of(
        cls,
        session: SessionLike | pl.DataFrame,
        grid: Any,
        scoring: Any,
        price_source: PriceSource,
        default: ScoringParams | None,
    ) -> tuple[Rescorer, Any]:
        """Return the scoring settings that a grid and ``scoring`` name, and the grid without them."""
        signals: dict[str, Any] = {}
        if isinstance(grid, Mapping):
            signals = {str(name): values for name, values in grid.items() if str(name).startswith(_PREFIX)}
            grid = {name: values for name, values in grid.items() if name not in signals}
        several = isinstance(scoring, Sequence) and not isinstance(scoring, str)
        if not signals and scoring is None:
            return cls(session, [None], {}, {}), grid
        if price_source == "score":
            raise SweepError(
                'price_source: scores that are computed from market data carry no price; expected "auto", "trade" or '
                '"book", found "score"'
            )
        if several and signals:
            raise SweepError(f"scoring: a list of settings and the axes {list(signals)} exclude each other")
        if several:
            settings, axes = _listed(scoring)
        elif signals:
            settings, axes = _product(signals, resolve_scoring(scoring, session, default).params)
        else:
            settings, axes = [_resolved(scoring, session, default)], {}
        return cls(session, settings, {_PREFIX + name: values for name, values in axes.items()}, {}), grid

    @property
    def count(self) -> int:
        return len(self.settings)

    def session(self, number: int) -> SessionLike | pl.DataFrame:
        """Return the session under the setting of that number."""
        chosen = self.settings[number]
        if chosen is None:
            return self.source
        if not isinstance(chosen, ScoringParams):
            return rescored(self.source, chosen)
        if chosen.book_levels not in self.tapes:
            events = self.source if isinstance(self.source, pl.DataFrame) else self.source.events
            state = getattr(self.source, "initial_state", None)
            self.tapes[chosen.book_levels] = pack_market(events, chosen.book_levels, initial_state=state)
        return rescored(self.source, chosen, tapes=self.tapes[chosen.book_levels])

    def columns(self, number: int, rows: int) -> list[pl.Series]:
        """Return the columns of these axes for the rows of one setting."""
        chosen = self.settings[number]
        return [
            pl.Series(name, [getattr(chosen, name.removeprefix(_PREFIX))]).new_from_index(0, rows)
            for name in self.axes
        ]


def _resolved(scoring: Any, session: Any, default: ScoringParams | None) -> Any:
    """Return the scoring parameters that a run uses, or the model that takes their place."""
    if scoring is None or isinstance(scoring, Mapping):
        return resolve_scoring(scoring, session, default).params
    return scoring


def _product(
    signals: Mapping[str, Any], base: ScoringParams
) -> tuple[list[ScoringParams], dict[str, list[Any]]]:
    """All combinations of the values of some scoring fields."""
    fields = ScoringParams.__struct_fields__
    axes: dict[str, list[Any]] = {}
    for name, values in signals.items():
        field = name.removeprefix(_PREFIX)
        if field not in fields:
            raise SweepError(
                f"the grid has an axis {name!r}, which is no scoring parameter.{did_you_mean(field, fields)}"
            )
        listed = values.tolist() if hasattr(values, "tolist") else values
        axes[field] = list(listed) if isinstance(listed, Sequence) else [listed]
        if not axes[field]:
            raise SweepError(f"{name}: the axis has no values")
    return [base.replace(**dict(zip(axes, chosen, strict=True))) for chosen in product(*axes.values())], axes


def _listed(settings: Sequence[Any]) -> tuple[list[ScoringParams], dict[str, list[Any]]]:
    """Settings that were listed, and the fields by which they differ."""
    if not settings:
        raise SweepError("scoring: the list of settings is empty")
    for chosen in settings:
        if not isinstance(chosen, ScoringParams):
            raise ConfigError(f"scoring: expected a list of ScoringParams, found {chosen!r} in it")
    values = {name: {getattr(one, name) for one in settings} for name in ScoringParams.__struct_fields__}
    return list(settings), {name: sorted(some) for name, some in values.items() if len(some) > 1}


def _signals(frame: pl.DataFrame, kind: str, payload: pl.Expr, rank: int) -> pl.DataFrame:
    return frame.select(
        pl.col("place").cast(pl.Int64),
        "timestamp",
        pl.lit(kind).alias("type"),
        "symbol",
        payload.alias("payload"),
        "row",
        rank=pl.lit(rank, pl.Int8),
    )
