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

# The table rows that a combination uses; −1: no table, search instead. ``entry_set`` without tables: a row of
# ``strength``.
TABLES = ("entry_set", "tp1", "tp2", "stop", "trail", "hold", "leave", "even")
KEYS = np.dtype([(name, "i4") for name in TABLES])

# What a chain reads of one price event, and of one candidate: together, so that it costs one trip to memory.
# ``next_cand``: the first candidate at or after the event. ``after``: the first price event after the candidate.
TICK = np.dtype([("price", "f8"), ("ts", "i8"), ("index", "i4"), ("next_cand", "i4")], align=True)
CANDIDATE = np.dtype([("ts", "i8"), ("direction", "f8"), ("index", "i4"), ("after", "i4")], align=True)


class Plan(NamedTuple):
    """Arrays for the kernel. ``table`` is [row, candidate]; 0 = not yet known, else a position + 1.

    The first rows of ``table`` are different: per entry set the next candidate that passes.
    """

    ticks: Array
    price: Array
    price_ts: Array
    price_index: Array
    price_from: Array
    price_high: Array
    price_low: Array
    price_offsets: Array
    score: Array
    score_ts: Array
    score_index: Array
    score_from: Array
    score_high: Array
    score_low: Array
    score_offsets: Array
    force_ts: Array
    force_index: Array
    force_from: Array
    cands: Array
    cand_ts: Array
    cand_index: Array
    cand_from: Array
    strength: Array
    strength_high: Array
    strength_offsets: Array
    table: Array


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
    cand_index, cand_ts = tape.score_index[at], tape.score_ts[at]
    cands = np.empty(n, dtype=CANDIDATE)
    cands["ts"], cands["index"], cands["direction"] = cand_ts, cand_index, np.sign(tape.score[at])
    ticks = np.empty(len(tape.price), dtype=TICK)
    _follow(tape.price, tape.price_ts, tape.price_index, tape.price_from, cand_from, ticks, cands)
    price_high, price_low, price_offsets = build_levels(tape.price)
    scores = tape.score if np.isfinite(params["exit_threshold"]).any() else np.empty(0)
    score_high, score_low, score_offsets = build_levels(scores)
    parts = [build_levels(row) for row in strength]
    if tables:
        keys, rows, sets = _keys(params)
        table = np.zeros((rows, n), dtype=np.int32)
        first = np.unique(keys["entry_set"], return_index=True)[1]
        threshold_of = np.ascontiguousarray(params["entry_threshold"][first])
        _fill_next(
            strength, np.searchsorted(filters, params["filter"][first]), threshold_of, cand_from, table[:sets]
        )
    else:
        keys = np.full(len(params), -1, dtype=KEYS)
        keys["entry_set"] = np.searchsorted(filters, params["filter"])
        table = np.zeros((0, 0), dtype=np.int32)
    plan = Plan(
        ticks=ticks,
        price=tape.price,
        price_ts=tape.price_ts,
        price_index=tape.price_index,
        price_from=tape.price_from,
        price_high=price_high,
        price_low=price_low,
        price_offsets=price_offsets,
        score=tape.score,
        score_ts=tape.score_ts,
        score_index=tape.score_index,
        score_from=tape.score_from,
        score_high=score_high,
        score_low=score_low,
        score_offsets=score_offsets,
        force_ts=tape.force_ts,
        force_index=tape.force_index,
        force_from=tape.force_from,
        cands=cands,
        cand_ts=cand_ts,
        cand_index=cand_index,
        cand_from=cand_from,
        strength=strength,
        strength_high=np.stack([part[0] for part in parts]),
        strength_offsets=parts[0][2],
        table=table,
    )
    return Prepared(plan, keys)


def table_bytes(params: Array, candidates: int) -> int:
    """Return the bytes of all tables for these combinations."""
    return 4 * candidates * _keys(params)[1]


def _strength(tape: Tape, allowed: Array, row: Any) -> Array:
    """|score| where the filter lets an entry through, else −1: below every threshold."""
    score = tape.score
    good = (score > 0) & bool(row["allow_long"]) | (score < 0) & bool(row["allow_short"])
    good &= tape.score_blocked == 0
    if row["regime_set"] >= 0:
        good &= allowed[row["regime_set"]][tape.score_regime + 1]
    strength: Array = np.where(good, np.abs(score), -1.0)
    return strength


def _keys(params: Array) -> tuple[Array, int, int]:
    """Number the distinct levels, a table's row for each; return also the rows in all and those of entry sets."""
    keys = np.full(len(params), -1, dtype=KEYS)
    everyone = np.ones(len(params), dtype=bool)
    late = _number(params["latency_ns"])[0]
    fill = _number(late, params["slippage_bps"])[0]
    # Both targets are levels of one table.
    targets, n_targets = _number(np.tile(fill, 2), np.concatenate([params["tp1_pct"], params["tp2_pct"]]))
    tp1, tp2 = targets[: len(params)], targets[len(params) :]
    activation, offset = params["trailing_activation_pct"], params["break_even_offset_pct"]
    trails = np.isfinite(activation)
    _, sets = _number(params["filter"], params["entry_threshold"])
    rows = 0
    for key, used, columns in (
        ("entry_set", everyone, (params["filter"], params["entry_threshold"])),
        ("stop", everyone, (fill, params["sl_pct"])),
        ("trail", trails, (fill, activation, params["trailing_distance_pct"])),
        ("hold", params["max_hold_ns"] >= 0, (late, params["max_hold_ns"])),
        ("leave", everyone, (late, params["exit_threshold"])),
        ("even", np.isfinite(offset), (tp1, offset)),
    ):
        codes, count = _number(*(column[used] for column in columns))
        column = np.full(len(params), -1, dtype=np.int32)
        column[used] = codes + rows
        keys[key] = column
        rows += count
    keys["tp1"], keys["tp2"] = tp1 + rows, tp2 + rows
    return keys, rows + n_targets, sets


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
    price: Any, price_ts: Any, price_index: Any, price_from: Any, cand_from: Any, ticks: Any, cands: Any
) -> None:
    """Fill ``ticks``, and ``after`` of ``cands``: one walk along both."""
    for k in range(len(price_from) - 1):
        c = cand_from[k]
        for x in range(price_from[k], price_from[k + 1]):
            while c < cand_from[k + 1] and cands[c].index < price_index[x]:
                cands[c].after = x
                c += 1
            ticks[x].price = price[x]
            ticks[x].ts = price_ts[x]
            ticks[x].index = price_index[x]
            ticks[x].next_cand = c
            # A score at a price event's own index comes after that price.
            if c < cand_from[k + 1] and cands[c].index == price_index[x]:
                cands[c].after = x + 1
        while c < cand_from[k + 1]:
            if price_from[k + 1] > price_from[k] and cands[c].index > price_index[price_from[k + 1] - 1]:
                cands[c].after = price_from[k + 1]
            c += 1


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
