"""What the chain kernel prepares once per sweep: candidates, block indexes, first-touch tables.

A *candidate* is a scoring event at which some combination may enter. All that a trade's outcome needs is looked up by
candidate: a table's row belongs to a level (a parameter value), its column to a candidate, and a cell holds where the
price first touches that level after the candidate's entry. Cells are filled when first asked for, so that a level
is searched once per candidate and not once per combination; threads that fill the same cell write the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaylab.barriers.compiled import compiled
from replaylab.barriers.index import build_levels
from replaylab.sweep.tape import Tape

__all__ = ["KEYS", "Plan", "Prepared", "prepare", "table_bytes"]

Array = npt.NDArray[Any]

# Rows of the tables that a combination uses; −1: no table, search instead.
KEYS = np.dtype(
    [(name, "i4") for name in ("entry_set", "tp1", "tp2", "stop", "trail", "hold", "leave", "even")]
)


class Plan(NamedTuple):
    """Arrays for the kernel. ``cand_*`` by candidate, tables by [row, candidate] with 0 = not yet known."""

    price_high: Array
    price_low: Array
    price_offsets: Array
    score_high: Array
    score_low: Array
    score_offsets: Array
    cand_index: Array
    cand_ts: Array
    cand_direction: Array
    cand_after: Array
    cand_from: Array
    next_cand: Array
    strength: Array
    strength_high: Array
    strength_offsets: Array
    next_entry: Array
    target: Array
    stop: Array
    trail: Array
    hold: Array
    leave: Array
    even: Array


@dataclass(frozen=True)
class Prepared:
    """A plan with each combination's table rows."""

    plan: Plan
    keys: Array


def prepare(tape: Tape, allowed: Array, params: Array, tables: bool) -> Prepared:
    """Return what ``run_chain`` needs for the rows of ``params``; with tables, or with searches only."""
    filters, filter_row = np.unique(params["filter"], return_index=True)
    eligible = np.stack([_strength(tape, allowed, params[row]) for row in filter_row])
    threshold = float(params["entry_threshold"].min())
    at = np.flatnonzero((eligible >= threshold).any(axis=0))
    strength = np.ascontiguousarray(eligible[:, at])
    n = len(at)
    cand_from = np.searchsorted(at, tape.score_from).astype(np.int64)
    cand_index = tape.score_index[at]
    next_cand = np.empty(len(tape.price), dtype=np.int32)
    cand_after = np.empty(n, dtype=np.int32)
    _follow(tape.price_index, tape.price_from, cand_index, cand_from, next_cand, cand_after)
    price_high, price_low, price_offsets = build_levels(tape.price)
    scores = tape.score if np.isfinite(params["exit_threshold"]).any() else np.empty(0)
    score_high, score_low, score_offsets = build_levels(scores)
    parts = [build_levels(row) for row in strength]
    keys, rows = _keys(params)
    if not tables:
        # The row of ``strength`` to search; no other table.
        keys = np.full(len(params), -1, dtype=KEYS)
        keys["entry_set"] = np.searchsorted(filters, params["filter"])
        rows = {}
    next_entry = np.empty((rows.get("entry_set", 0), n), dtype=np.int32)
    if tables:
        first = np.unique(keys["entry_set"], return_index=True)[1]
        threshold_of = np.ascontiguousarray(params["entry_threshold"][first])
        _fill_next(
            strength, np.searchsorted(filters, params["filter"][first]), threshold_of, cand_from, next_entry
        )
    table = {
        name: np.zeros((rows.get(name, 0), n), dtype=np.int32)
        for name in ("target", "stop", "trail", "hold", "leave", "even")
    }
    plan = Plan(
        price_high=price_high,
        price_low=price_low,
        price_offsets=price_offsets,
        score_high=score_high,
        score_low=score_low,
        score_offsets=score_offsets,
        cand_index=cand_index,
        cand_ts=tape.score_ts[at],
        cand_direction=np.sign(tape.score[at]),
        cand_after=cand_after,
        cand_from=cand_from,
        next_cand=next_cand,
        strength=strength,
        strength_high=np.stack([part[0] for part in parts]),
        strength_offsets=parts[0][2],
        next_entry=next_entry,
        **table,
    )
    return Prepared(plan, keys)


def table_bytes(params: Array, candidates: int) -> int:
    """Return the bytes of all tables for these combinations."""
    return 4 * candidates * sum(_keys(params)[1].values())


def _strength(tape: Tape, allowed: Array, row: Any) -> Array:
    """|score| where the filter lets an entry through, else −1: below every threshold."""
    score = tape.score
    good = (score > 0) & bool(row["allow_long"]) | (score < 0) & bool(row["allow_short"])
    good &= tape.score_blocked == 0
    if row["regime_set"] >= 0:
        good &= allowed[row["regime_set"]][tape.score_regime + 1]
    strength: Array = np.where(good, np.abs(score), -1.0)
    return strength


def _keys(params: Array) -> tuple[Array, dict[str, int]]:
    """Number the distinct levels: a table's row for each."""
    keys = np.full(len(params), -1, dtype=KEYS)
    rows = {}
    keys["entry_set"], rows["entry_set"] = _number(params["filter"], params["entry_threshold"])
    late = _number(params["latency_ns"])[0]
    fill = _number(late, params["slippage_bps"])[0]
    # Both targets are levels of one table.
    both = np.concatenate([params["tp1_pct"], params["tp2_pct"]])
    codes, rows["target"] = _number(np.tile(fill, 2), both)
    keys["tp1"], keys["tp2"] = codes[: len(params)], codes[len(params) :]
    keys["stop"], rows["stop"] = _number(fill, params["sl_pct"])
    activation, offset = params["trailing_activation_pct"], params["break_even_offset_pct"]
    for key, used, columns in (
        ("trail", np.isfinite(activation), (fill, activation, params["trailing_distance_pct"])),
        ("hold", params["max_hold_ns"] >= 0, (late, params["max_hold_ns"])),
        ("leave", np.ones(len(params), dtype=bool), (late, params["exit_threshold"])),
        ("even", np.isfinite(offset), (keys["tp1"], offset)),
    ):
        codes, rows[key] = _number(*(column[used] for column in columns))
        column = np.full(len(params), -1, dtype=np.int32)
        column[used] = codes
        keys[key] = column
    return keys, rows


def _number(*columns: Array) -> tuple[Array, int]:
    """Codes of the distinct rows of some columns, and how many there are; NaN equals NaN."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        if len(column) and (column == column[0]).all():
            continue
        values, inverse = np.unique(column, return_inverse=True)
        code = np.unique(code * len(values) + inverse, return_inverse=True)[1]
    return code.astype(np.int32), int(code.max()) + 1 if len(code) else 0


@compiled
def _follow(
    price_index: Any, price_from: Any, cand_index: Any, cand_from: Any, next_cand: Any, cand_after: Any
) -> None:
    """Per price event the first candidate at or after it; per candidate the first price event after it."""
    for k in range(len(price_from) - 1):
        c = cand_from[k]
        for x in range(price_from[k], price_from[k + 1]):
            while c < cand_from[k + 1] and cand_index[c] < price_index[x]:
                c += 1
            next_cand[x] = c
        x = price_from[k]
        for c in range(cand_from[k], cand_from[k + 1]):
            while x < price_from[k + 1] and price_index[x] <= cand_index[c]:
                x += 1
            cand_after[c] = x


@compiled
def _fill_next(strength: Any, filter_row: Any, threshold: Any, cand_from: Any, next_entry: Any) -> None:
    """Per entry set and candidate the first candidate from there on that passes; its symbol's end where none does."""
    for row in range(len(threshold)):
        f = filter_row[row]
        for k in range(len(cand_from) - 1):
            found = cand_from[k + 1]
            for c in range(cand_from[k + 1] - 1, cand_from[k] - 1, -1):
                if strength[f, c] >= threshold[row]:
                    found = c
                next_entry[row, c] = found
