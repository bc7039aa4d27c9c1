"""What the chain kernel prepares once per sweep: candidates and first-touch tables.

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

from replaylab.barriers.index import build_levels
from replaylab.compiled import compiled
from replaylab.sweep.rows import Rows
from replaylab.sweep.tape import Tape

__all__ = ["KEYS", "Numbered", "Plan", "number_tables", "prepare"]

Array = npt.NDArray[Any]

# The table rows that a combination uses; −1: no table, search instead. ``entry_set`` without tables: a row of
# ``strength``.
TABLES = ("entry_set", "tp1", "tp2", "stop", "trail", "hold", "leave", "even")
KEYS = np.dtype([(name, "i4") for name in TABLES])
CANDIDATE = np.dtype([("ts", "i8"), ("direction", "f8"), ("index", "i4"), ("after", "i4")], align=True)


class Plan(NamedTuple):
    """Arrays for the kernel. ``table`` is [row, candidate]: 0 = not yet known, else what ``links.cell`` says: a
    position, and the candidate at which a chain goes on from there.

    ``next_entry`` is [entry set, candidate]: the first candidate from there on that passes. ``cand_at``: per score the
    first candidate at or after it. ``strength``: [filter, candidate] |score|, −1 where the filter forbids.
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
    cand_at: Array
    cand_ts: Array
    cand_index: Array
    cand_from: Array
    strength: Array
    strength_high: Array
    strength_offsets: Array
    next_entry: Array
    table: Array


@dataclass(frozen=True)
class Numbered:
    """Each combination's table rows, how many rows there are, and how many entry sets."""

    keys: Array
    rows: int
    sets: int

    def nbytes(self, candidates: int) -> int:
        """Bytes of all tables."""
        return 4 * candidates * (2 * self.rows + self.sets)


def number_tables(rows: Rows) -> Numbered:
    """Number the distinct levels of some combinations: a table's row for each."""
    params = rows.params
    keys = np.full(len(params), -1, dtype=KEYS)
    late = rows.number("latency_ns")
    fill = rows.number(late, "slippage_bps")
    sets = rows.number("filter", "entry_threshold")
    tp1, tp2 = rows.number(fill, "tp1_pct"), rows.number(fill, "tp2_pct")
    keys["entry_set"] = sets[0]
    total = 0
    for key, (codes, count), on in (
        ("stop", rows.number(fill, "sl_pct"), None),
        (
            "trail",
            rows.number(fill, "trailing_activation_pct", "trailing_distance_pct"),
            ~np.isnan(params["trailing_activation_pct"]),
        ),
        ("hold", rows.number(late, "max_hold_ns"), params["max_hold_ns"] >= 0),
        ("leave", rows.number(late, "exit_threshold"), None),
        ("even", rows.number(tp1, "break_even_offset_pct"), ~np.isnan(params["break_even_offset_pct"])),
        ("tp1", tp1, params["tp1_fraction"] > 0.0),
        ("tp2", tp2, params["tp1_fraction"] < 1.0),
    ):
        if on is None or on.any():
            keys[key] = codes + total
            total += count
    return Numbered(keys, total, sets[1])


def prepare(tape: Tape, allowed: Array, rows: Rows, numbered: Numbered | None) -> tuple[Plan, Array]:
    """Return the plan for some combinations and their keys; with tables if ``numbered``, else with searches only."""
    params = rows.params
    filters, first_row = np.unique(params["filter"], return_index=True)
    eligible = np.stack([_strength(tape, allowed, params[row]) for row in first_row])
    passes = (eligible >= params["entry_threshold"].min()).any(axis=0)
    at = np.flatnonzero(passes)
    strength = np.ascontiguousarray(eligible[:, at])
    cand_at = np.concatenate(([0], np.cumsum(passes))).astype(np.int32)
    cand_from = cand_at[tape.score_from].astype(np.int64)
    lookup = tape.lookup
    cands = np.empty(len(at), dtype=CANDIDATE)
    cands["ts"], cands["index"] = tape.score_ts[at], tape.score_index[at]
    cands["direction"], cands["after"] = np.sign(tape.score[at]), lookup.score_after[at]
    if numbered is None:
        keys = np.full(len(params), -1, dtype=KEYS)
        keys["entry_set"] = np.searchsorted(filters, params["filter"])
        next_entry = np.zeros((0, 0), dtype=np.int32)
        table = np.zeros((0, 0), dtype=np.int64)
    else:
        keys = numbered.keys
        # Pages of zeros take memory only once they are written to.
        table = np.zeros((numbered.rows, len(at)), dtype=np.int64)
        next_entry = np.empty((numbered.sets, len(at)), dtype=np.int32)
        first = np.unique(keys["entry_set"], return_index=True)[1]
        threshold = np.ascontiguousarray(params["entry_threshold"][first])
        filter_row = np.searchsorted(filters, params["filter"][first])
        _fill_next(strength, filter_row, threshold, cand_from, next_entry)
    parts = [build_levels(row) for row in strength]
    plan = Plan(
        ticks=lookup.ticks,
        price=tape.price,
        price_ts=tape.price_ts,
        price_index=tape.price_index,
        price_from=tape.price_from,
        price_high=lookup.price_high,
        price_low=lookup.price_low,
        price_offsets=lookup.price_offsets,
        score=tape.score,
        score_ts=tape.score_ts,
        score_index=tape.score_index,
        score_from=tape.score_from,
        score_high=lookup.score_high,
        score_low=lookup.score_low,
        score_offsets=lookup.score_offsets,
        force_ts=tape.force_ts,
        force_index=tape.force_index,
        force_from=tape.force_from,
        cands=cands,
        cand_at=cand_at,
        cand_ts=tape.score_ts[at],
        cand_index=tape.score_index[at],
        cand_from=cand_from,
        strength=strength,
        strength_high=np.stack([part[0] for part in parts]),
        strength_offsets=parts[0][2],
        next_entry=next_entry,
        table=table,
    )
    return plan, keys


def _strength(tape: Tape, allowed: Array, row: Any) -> Array:
    """|score| where the filter lets an entry through, else −1: below every threshold."""
    score = tape.score
    good = (score > 0) & bool(row["allow_long"]) | (score < 0) & bool(row["allow_short"])
    good &= tape.score_blocked == 0
    if row["regime_set"] >= 0:
        good &= allowed[row["regime_set"]][tape.score_regime + 1]
    strength: Array = np.where(good, np.abs(score), -1.0)
    return strength


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
