"""The compiled loops over a tape: the functions of ``state`` and ``score_state``, one event after the other."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from replaylab.compiled import compiled, inlined
from replaylab.features import formulas, score_state, state

__all__ = ["walk_features", "walk_scores"]


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
