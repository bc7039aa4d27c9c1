"""Compiled loops over a tape, with the functions of ``state`` and ``score_state``; features and scores of a session.

>>> from replaylab.features import compute, score_series
>>> frame = compute(session.events)                                    # doctest: +SKIP
>>> scores = score_series(session.events, ScoringParams(gain=2.0))     # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import polars as pl

from replaylab.compiled import compiled, inlined
from replaylab.errors import DatasetError
from replaylab.features import formulas, score_state, state
from replaylab.features.catalogue import NAMES, FeatureParams
from replaylab.features.formulas import book_imbalance
from replaylab.features.initial import InitialState, SymbolStart
from replaylab.features.score_state import OUT, REGIMES, new_score_state, score_constants
from replaylab.features.state import constants, new_state
from replaylab.features.tape import Floats, Ints, MarketTape, pack_market
from replaylab.params import ScoringParams


def _compile_all(module: Any, names: tuple[str, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Compile functions of a module so that they call each other's compiled form; those called come first."""
    for name in names:
        function: Callable[..., Any] = getattr(module, name)
        bound = FunctionType(function.__code__, {**function.__globals__, **known}, name)
        known[name] = inlined(bound)
    return known


_FORMULAS = _compile_all(
    formulas,
    (
        "blend",
        "book_imbalance",
        "decay",
        "flow_imbalance",
        "microprice",
        "momentum_z",
        "order_flow",
        "squash",
        "volatility",
    ),
    {},
)
_STATE = _compile_all(
    state,
    ("consts_bar", "close_bars", "fill_buckets", "on_price", "on_trade", "on_book", "read_values"),
    dict(_FORMULAS),
)
_SCORE = _compile_all(
    score_state,
    ("next_regime", "advance", "make_signal", "score_trade", "score_step"),
    dict(_FORMULAS),
)
_on_trade, _on_book, _read_values = _STATE["on_trade"], _STATE["on_book"], _STATE["read_values"]
_imbalance = _FORMULAS["book_imbalance"]
_score_trade, _score_step = _SCORE["score_trade"], _SCORE["score_step"]
_FIRST_OUT = score_state.OUT[0]


@compiled
def walk_features(
    kind: Any, ts: Any, columns: Any, known: Any, at: Any, consts: Any, ints: Any, floats: Any, out: Any
) -> None:
    """Fill a row of ``out`` per decision: the features after the first ``known`` events, as they stand at ``at``."""
    event = 0
    for row in range(known.size):
        while event < known[row]:
            c = columns[event]
            if kind[event] == 0:
                _on_trade(ints, floats, consts, ts[event], c[0], c[1], c[2])
            else:
                _on_book(ints, floats, consts, ts[event], c[0], c[1], c[2], c[3], c[4], c[5])
            event += 1
        _read_values(ints, floats, consts, at[row], out[row])


@compiled
def walk_scores(
    kind: Any,
    ts: Any,
    columns: Any,
    consts: Any,
    ints: Any,
    floats: Any,
    mid: float,
    imbalance: float,
    place: Any,
    regime: Any,
    out: Any,
) -> int:
    """Fill a row per signal: place of the last event of its time, regime, outputs; return how many there are.

    ``mid`` and ``imbalance`` are those of the book that stood before the first event, NaN without one.
    """
    found = 0
    for event in range(ts.size):
        c = columns[event]
        if kind[event] == 0:
            _score_trade(ints, floats, consts, ts[event], c[0], c[1], c[2])
        else:
            mid = (c[0] + c[2]) / 2.0
            imbalance = _imbalance(c[4], c[5])
        if event + 1 < ts.size and ts[event + 1] == ts[event]:
            continue
        if _score_step(ints, floats, consts, ts[event], mid, imbalance):
            place[found] = event
            regime[found] = ints[4]
            for column in range(out.shape[1]):
                out[found, column] = floats[_FIRST_OUT + column]
            found += 1
    return found


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

    ``events``: a session's events (timestamp, type, symbol, payload as JSON string), sorted, or the tapes that
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
    state = InitialState.read(initial_state)
    frames = [
        _symbol_scores(tape, consts, state.of(symbol), params.book_levels)
        for symbol, tape in (tapes or {"": _empty_tape()}).items()
    ]
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


def _symbol_scores(tape: MarketTape, consts: Floats, start: SymbolStart, levels: int) -> pl.DataFrame:
    ints, floats = new_score_state(start.regime)
    book = start.order_book()
    mid = book.mid()
    imbalance = math.nan if mid is None else book_imbalance(*book.depth(levels))
    place, labels = np.empty(tape.ts.size, np.int64), np.empty(tape.ts.size, np.int8)
    out = np.empty((tape.ts.size, len(OUT)))
    found = walk_scores(
        tape.kind,
        tape.ts,
        tape.columns,
        consts,
        np.array(ints, dtype=np.int64),
        np.array(floats),
        math.nan if mid is None else mid,
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


def _predict(
    model: Any, events: pl.DataFrame | Tapes, frame: pl.DataFrame, initial_state: Mapping[str, Any] | None
) -> Floats:
    params = getattr(model, "feature_params", None) or FeatureParams()
    decisions = frame.select("index", "timestamp", "symbol")
    rows = compute(events, params, decisions, initial_state=initial_state)
    names = [str(name) for name in getattr(model, "feature_names_in_", NAMES)]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise DatasetError(
            f"the model needs unknown features {', '.join(unknown)}; there are {', '.join(NAMES)}"
        )
    predicted = model.predict(rows.select(pl.col(names).fill_null(np.nan)).to_numpy())
    scores: Floats = np.clip(np.asarray(predicted, dtype=np.float64), -1.0, 1.0)
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
