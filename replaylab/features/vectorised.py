"""Features and scores of a whole session at once.

>>> from replaylab.features import compute, score_series
>>> frame = compute(session.events)                                    # doctest: +SKIP
>>> scores = score_series(session.events, ScoringParams(gain=2.0))     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features.book import OrderBook
from replaylab.features.catalogue import NAMES
from replaylab.features.formulas import book_imbalance
from replaylab.features.kernel import walk_features, walk_scores
from replaylab.features.params import FeatureParams
from replaylab.features.score_state import OUT, REGIMES, new_score_state, score_constants
from replaylab.features.state import constants, new_state
from replaylab.features.tape import Floats, Ints, MarketTape, pack_market
from replaylab.params import ScoringParams

__all__ = ["compute", "feature_rows", "score_series"]

Tapes = Mapping[str, MarketTape]
_PARTS = ("momentum", "flow", "book", "volatility")


def compute(
    events: pl.DataFrame | Tapes,
    params: FeatureParams | None = None,
    decisions: pl.DataFrame | None = None,
    *,
    initial_state: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Return a row per decision with every feature of the catalogue, as known at that moment.

    ``events``: a session's events (timestamp, type, symbol, payload as JSON text), sorted, or the tapes that
    ``pack_market`` made of them with ``params.depth_levels``.

    ``decisions``: a frame with ``symbol`` and ``timestamp`` and, better, ``index``. With ``index`` (a position in
    ``events``) a decision knows the market events up to and including that position. Without it, those with a smaller
    timestamp. None: one decision per symbol and distinct timestamp, after all its market events that bear it.

    Columns: ``index`` (if the decisions have it), ``timestamp``, ``symbol``, then the names of ``CATALOGUE`` in its
    order; null where a feature is not known. Rows come in the order of ``decisions``; by default by index and symbol.
    Nothing that comes after a decision changes its row. Raises DatasetError.
    """
    params = params if params is not None else FeatureParams()
    tapes = _tapes(events, params.depth_levels, initial_state)
    if decisions is None:
        decisions = _decision_times(tapes)
    missing = [name for name in ("symbol", "timestamp") if name not in decisions.columns]
    if missing:
        raise DatasetError(f"decisions lack the column {', '.join(missing)}; they have {decisions.columns}")
    values = np.full((decisions.height, len(NAMES)), np.nan)
    at = decisions["timestamp"].dt.timestamp("ns").to_numpy()
    index = decisions["index"].to_numpy().astype(np.int64) if "index" in decisions.columns else None
    symbols = decisions["symbol"].to_numpy()
    for symbol, tape in tapes.items():
        rows = np.flatnonzero(symbols == symbol)
        if rows.size == 0:
            continue
        if index is not None:
            known = np.searchsorted(tape.index, index[rows], side="right")
        else:
            known = np.searchsorted(tape.ts, at[rows], side="left")
        # The loop walks forward once; decisions in any order are brought into its order and back.
        order = np.lexsort((at[rows], known))
        values[rows[order]] = feature_rows(tape, params, known[order], at[rows][order])
    keys = [name for name in ("index", "timestamp", "symbol") if name in decisions.columns]
    columns = {name: values[:, place] for place, name in enumerate(NAMES)}
    table = pl.DataFrame(columns).with_columns(pl.all().fill_nan(None))
    return decisions.select(keys).hstack(table)


def feature_rows(tape: MarketTape, params: FeatureParams, known: Ints, at: Ints) -> Floats:
    """Return the features after the first ``known`` events of a tape as they stand at ``at`` (ns), NaN where not known.

    ``known`` ascends. Shape: decisions × features of the catalogue. Raises DatasetError for a time before an event
    that the decision knows.
    """
    some = known > 0
    if bool((at[some] < tape.ts[known[some] - 1]).any()):
        raise DatasetError(f"{tape.symbol}: a decision knows an event that is later than its own time")
    ints, floats = new_state(params)
    out = np.empty((known.size, len(NAMES)))
    walk_features(
        tape.kind,
        tape.ts,
        tape.columns,
        known.astype(np.int64),
        at.astype(np.int64),
        np.array(constants(params)),
        np.array(ints, dtype=np.int64),
        np.array(floats),
        out,
    )
    return out


def score_series(
    events: pl.DataFrame | Tapes,
    scoring: Any = None,
    *,
    initial_state: Mapping[str, Any] | None = None,
    parts: bool = False,
) -> pl.DataFrame:
    """Return the signals that the scoring engine makes of a session's market data, as FULL_DECISION makes them.

    ``scoring``: ScoringParams, or a model with ``predict`` (see ``replaylab.trading.ScoreModel``). ``events`` as in
    ``compute``; tapes must have been packed with ``scoring.book_levels`` as their depth, and pay off where many
    settings are tried. ``initial_state``: the session's, for its books and regimes.

    Columns: ``index`` (position of the last event of that time: the signal stands after it), ``timestamp``,
    ``symbol``, ``score``, ``regime``; with ``parts`` also momentum, flow, book (null where not known) and volatility
    (bps per √second). Sorted by timestamp, then symbol.
    """
    model = None
    params = scoring if isinstance(scoring, ScoringParams) else ScoringParams()
    if scoring is not None and not isinstance(scoring, ScoringParams):
        model = scoring
        params = getattr(model, "scoring_params", None) or params
    tapes = _tapes(events, params.book_levels, initial_state)
    consts = np.array(score_constants(params))
    known = (initial_state or {}).get("symbols")
    frames = []
    for symbol, tape in tapes.items():
        start = known.get(symbol) if isinstance(known, Mapping) else None
        regime = start.get("regime") if isinstance(start, Mapping) else None
        book = start.get("book") if isinstance(start, Mapping) else None
        frames.append(_symbol_scores(tape, consts, regime, book, params.book_levels))
    if not frames:
        frames = [_symbol_scores(_empty_tape(), consts, None, None, 1)]
    frame = pl.concat(frames)
    if isinstance(events, pl.DataFrame) and frame.height:
        # The last event of that time, of any symbol and type: where a recorded score would stand.
        ts = events["timestamp"].dt.timestamp("ns").to_numpy()
        last = np.searchsorted(ts, frame["timestamp"].dt.timestamp("ns").to_numpy(), side="right") - 1
        frame = frame.with_columns(pl.Series("index", last.astype(np.int64)))
    if model is not None and frame.height:
        frame = frame.with_columns(pl.Series("score", _predict(model, events, frame, initial_state)))
    frame = frame.sort("timestamp", "symbol", maintain_order=True)
    return frame if parts else frame.drop(_PARTS)


def _symbol_scores(
    tape: MarketTape, consts: Floats, regime: str | None, book: Mapping[str, Any] | None, levels: int
) -> pl.DataFrame:
    ints, floats = new_score_state(regime)
    mid, imbalance = _standing(book, levels)
    place, labels = np.empty(tape.ts.size, np.int64), np.empty(tape.ts.size, np.int8)
    out = np.empty((tape.ts.size, len(OUT)))
    found = walk_scores(
        tape.kind,
        tape.ts,
        tape.columns,
        consts,
        np.array(ints, dtype=np.int64),
        np.array(floats),
        mid,
        imbalance,
        place,
        labels,
        out,
    )
    place, out = place[:found], out[:found]
    return pl.DataFrame(
        {
            "index": tape.index[place],
            "timestamp": pl.Series(tape.ts[place]).cast(pl.Datetime("ns", "UTC")),
            "symbol": pl.Series([tape.symbol], dtype=pl.String).new_from_index(0, found),
            "score": out[:, 0],
            "regime": pl.Series(REGIMES).gather(labels[:found].astype(np.uint32)),
            **{name: out[:, 1 + column] for column, name in enumerate(_PARTS)},
        }
    ).with_columns(pl.col("flow", "book").fill_nan(None))


def _standing(start: Mapping[str, Any] | None, levels: int) -> tuple[float, float]:
    book = OrderBook()
    if isinstance(start, Mapping):
        book.apply({**start, "kind": "snapshot"})
    mid = book.mid()
    return (np.nan, np.nan) if mid is None else (mid, book_imbalance(*book.depth(levels)))


def _predict(
    model: Any, events: pl.DataFrame | Tapes, frame: pl.DataFrame, initial_state: Mapping[str, Any] | None
) -> Floats:
    params = getattr(model, "feature_params", None) or FeatureParams()
    decisions = frame.select("index", "timestamp", "symbol")
    rows = compute(events, params, decisions, initial_state=initial_state)
    names = [str(name) for name in getattr(model, "feature_names_in_", NAMES)]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise DatasetError(f"the model wants features that there are not: {', '.join(unknown)}")
    answer = model.predict(rows.select(pl.col(names).fill_null(np.nan)).to_numpy())
    scores: Floats = np.clip(np.asarray(answer, dtype=np.float64), -1.0, 1.0)
    return scores


def _tapes(events: pl.DataFrame | Tapes, depth_levels: int, initial_state: Mapping[str, Any] | None) -> Tapes:
    if isinstance(events, pl.DataFrame):
        return pack_market(events, depth_levels, initial_state=initial_state)
    return events


def _decision_times(tapes: Tapes) -> pl.DataFrame:
    frames = []
    for symbol, tape in tapes.items():
        last = np.ones(tape.ts.size, dtype=bool)
        last[:-1] = tape.ts[1:] != tape.ts[:-1]
        frames.append(
            pl.DataFrame(
                {
                    "index": tape.index[last],
                    "timestamp": pl.Series(tape.ts[last]).cast(pl.Datetime("ns", "UTC")),
                }
            ).with_columns(symbol=pl.lit(symbol))
        )
    if not frames:
        return pl.DataFrame(
            schema={"index": pl.Int64(), "timestamp": pl.Datetime("ns", "UTC"), "symbol": pl.String()}
        )
    return pl.concat(frames).sort("index", "symbol")


def _empty_tape() -> MarketTape:
    none = np.empty(0, np.int64)
    return MarketTape("", np.empty(0, np.int8), none, none, np.empty((0, 6)))
