"""First-touch tables of a sweep: candidates, the numbering of levels, and the arrays that the chain kernel reads.

A *candidate* is a scoring event at which some combination may enter. All that a trade's outcome needs is found by
candidate: a table's row belongs to a level (a parameter value), its column to a candidate, and a cell holds where the
price first touches that level after the candidate's entry. A cell is filled when first needed, so that a level
is searched once per candidate and not once per combination; threads that fill the same cell write the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaylab.barriers import build_levels
from replaylab.compiled import compiled
from replaylab.sweep import fills
from replaylab.sweep.fills import find_entry
from replaylab.sweep.grid import Codes, Rows
from replaylab.sweep.tape import NEVER, Tape, layout

Array = npt.NDArray[Any]

# The table rows that a combination uses; −1: no table, search instead. ``entry_set`` without tables: a row of
# ``strength``. ``gap``: a row of ``hole_from``.
TABLES = ("entry_set", "gap", "entry", "tp1", "tp2", "stop", "trail", "hold", "leave", "even")
KEYS = np.dtype([(name, "i4") for name in TABLES])
CANDIDATE = layout(i8="ts", f8="direction", i4="index after score symbol")


class Plan(NamedTuple):
    """Arrays for the kernel. ``table`` is [row, candidate]: 0 = not yet known, else what ``cell`` returns: a position,
    and the candidate at which a chain continues from there. ``entries`` is [row, candidate].

    ``next_entry`` is [entry set, candidate]: the first candidate from there on that passes. ``cand_at``: per score the
    first candidate at or after it. ``strength``: [filter, candidate] |score|, −1 where the filter forbids. ``holes``:
    positions of price events after a hole, then the symbol's end; those of symbol ``k`` begin at ``hole_from[gap, k]``.
    """

    ticks: Array
    price: Array
    price_ts: Array
    price_index: Array
    price_from: Array
    price_high: Array
    price_low: Array
    price_offsets: Array
    quote: Array
    flow: Array
    book_levels: Array
    book_from: Array
    score: Array
    score_ts: Array
    score_index: Array
    score_from: Array
    score_high: Array
    score_low: Array
    score_offsets: Array
    score_quote: Array
    all_ts: Array
    all_index: Array
    force_ts: Array
    force_index: Array
    force_from: Array
    funding: Array
    funding_from: Array
    symbol: Array
    carried: Array
    start: Array
    holes: Array
    hole_from: Array
    cands: Array
    cand_at: Array
    cand_ts: Array
    cand_index: Array
    cand_from: Array
    strength: Array
    strength_high: Array
    strength_offsets: Array
    next_entry: Array
    entries: Array
    table: Array


@dataclass(frozen=True)
class Numbered:
    """Each combination's table rows, how many rows there are, and how many entry sets and entry rows."""

    keys: Array
    rows: int
    sets: int
    entries: int

    def nbytes(self, candidates: int) -> int:
        """Bytes of all tables."""
        return candidates * (8 * self.rows + 4 * self.sets + fills.ENTRY.itemsize * self.entries)


def number_tables(tape: Tape, rows: Rows) -> Numbered:
    """Number the distinct levels of some combinations: a table's row for each."""
    params = rows.params
    keys = np.full(len(params), -1, dtype=KEYS)
    with_book = bool((tape.arrays.symbol["has_book"] == 1).any())
    limit = bool((params["entry_order"] == fills.LIMIT).any())
    queue = bool((params["limit_fill"] == fills.QUEUE).any())
    arrival = rows.number("latency_ns", "max_gap_ns", "entry_order")
    sizing = rows.number("notional_usd", "risk_per_trade_usd", "leverage")
    if not np.isnan(params["risk_per_trade_usd"]).all():
        sizing = rows.number(sizing, "sl_pct")
    fill = rows.number(arrival, "slippage_bps", "rounding")
    if with_book:
        fill = rows.number(fill, "market_fill", "max_book_age_ns")
        if not ((params["market_fill"] == fills.PRINT) | (params["market_fill"] == fills.QUOTE)).all():
            fill = rows.number(fill, sizing)
    if limit:
        fill = rows.number(fill, "entry_offset_bps", "entry_ttl_ns", "limit_fill")
        if queue:
            fill = rows.number(fill, sizing, "queue_share")
        arrival = fill
    entry = rows.number(fill, sizing)
    tp1, tp2 = rows.number(fill, "tp1_pct", "limit_fill"), rows.number(fill, "tp2_pct", "limit_fill")
    if queue:
        tp1, tp2 = (
            rows.number(tp1, entry, "queue_share", "tp1_fraction"),
            rows.number(tp2, entry, "queue_share"),
        )
    sets = rows.number("filter", "entry_threshold")
    keys["entry_set"], keys["entry"], keys["gap"] = sets[0], entry[0], rows.number("max_gap_ns")[0]
    total = 0
    for key, (codes, count), on in (
        ("stop", rows.number(fill, "sl_pct"), None),
        (
            "trail",
            rows.number(fill, "trailing_activation_pct", "trailing_distance_pct"),
            ~np.isnan(params["trailing_activation_pct"]),
        ),
        ("hold", rows.number(arrival, "max_hold_ns"), params["max_hold_ns"] >= 0),
        ("leave", rows.number(arrival, "exit_threshold"), None),
        ("even", rows.number(tp1, "break_even_offset_pct"), ~np.isnan(params["break_even_offset_pct"])),
        ("tp1", tp1, params["tp1_fraction"] > 0.0),
        ("tp2", tp2, params["tp1_fraction"] < 1.0),
    ):
        if on is None or on.any():
            keys[key] = codes + total
            total += count
    return Numbered(keys, total, sets[1], entry[1])


def prepare(tape: Tape, allowed: Array, rows: Rows, numbered: Numbered | None) -> tuple[Plan, Array]:
    """Return the plan for some combinations and their keys; with tables if ``numbered``, else with searches only."""
    params, arrays, lookup = rows.params, tape.arrays, tape.lookup
    filters, first_row = np.unique(params["filter"], return_index=True)
    eligible = np.stack([_strength(tape, allowed, params[row]) for row in first_row])
    passes = (eligible >= params["entry_threshold"].min()).any(axis=0)
    at = np.flatnonzero(passes)
    strength = np.ascontiguousarray(eligible[:, at])
    cand_at = np.concatenate(([0], np.cumsum(passes))).astype(np.int32)
    cand_from = cand_at[arrays.score_from].astype(np.int64)
    cands = np.empty(len(at), dtype=CANDIDATE)
    cands["ts"], cands["index"] = arrays.score_ts[at], arrays.score_index[at]
    cands["direction"], cands["after"], cands["score"] = np.sign(arrays.score[at]), lookup.score_after[at], at
    cands["symbol"] = np.searchsorted(arrays.score_from, at, side="right") - 1
    gaps = rows.number("max_gap_ns")
    holes, hole_from = _holes(tape, params, gaps)
    keys = np.full(len(params), -1, dtype=KEYS) if numbered is None else numbered.keys
    parts = [build_levels(row) for row in strength]
    sizes = (0, 0, 0) if numbered is None else (numbered.sets, numbered.entries, numbered.rows)
    names = [name for name in Plan._fields if name in arrays._fields or name in lookup._fields]
    shared = {name: getattr(arrays if name in arrays._fields else lookup, name) for name in names}
    plan = Plan(
        **shared,
        holes=holes,
        hole_from=hole_from,
        cands=cands,
        cand_at=cand_at,
        cand_ts=arrays.score_ts[at],
        cand_index=arrays.score_index[at],
        cand_from=cand_from,
        strength=strength,
        strength_high=np.stack([part[0] for part in parts]),
        strength_offsets=parts[0][2],
        next_entry=np.empty((sizes[0], len(at)), dtype=np.int32),
        entries=np.empty((sizes[1], len(at)), dtype=fills.ENTRY),
        # Pages of zeros take memory only once they are written to.
        table=np.zeros((sizes[2], len(at)), dtype=np.int64),
    )
    keys["gap"] = gaps[0]
    if numbered is None:
        keys["entry_set"] = np.searchsorted(filters, params["filter"])
    else:
        first = np.unique(keys["entry_set"], return_index=True)[1]
        threshold = np.ascontiguousarray(params["entry_threshold"][first])
        filter_row = np.searchsorted(filters, params["filter"][first])
        _fill_next(strength, filter_row, threshold, cand_from, plan.next_entry)
        first = np.unique(keys["entry"], return_index=True)[1]
        _fill_entries(plan, params[first], keys[first])
    return plan, keys


def _holes(tape: Tape, params: Array, gaps: Codes) -> tuple[Array, Array]:
    """Positions of the price events after a hole, by distinct ``max_gap_s`` and symbol, each list ended by the end."""
    starts, pauses, (codes, count) = tape.arrays.price_from, tape.lookup.pauses, gaps
    lists, hole_from, total = [np.empty(0, np.int64)], np.zeros((count, len(starts)), dtype=np.int64), 0
    for code in range(count):
        gap = params["max_gap_ns"][np.argmax(codes == code)]
        after = np.flatnonzero(pauses > gap) if gap >= 0 else np.empty(0, np.int64)
        for k in range(len(starts) - 1):
            hole_from[code, k] = total
            mine = after[np.searchsorted(after, starts[k]) : np.searchsorted(after, starts[k + 1])]
            lists += [mine, starts[k + 1 : k + 2]]
            total += len(mine) + 1
        hole_from[code, -1] = total
    return np.concatenate(lists).astype(np.int64), hole_from


def _strength(tape: Tape, allowed: Array, row: Any) -> Array:
    """|score| where the filter lets an entry through, else −1: below every threshold."""
    score = tape.arrays.score
    good = (score > 0) & bool(row["allow_long"]) | (score < 0) & bool(row["allow_short"])
    good &= tape.arrays.score_blocked == 0
    if row["allowed_regimes_set"] >= 0:
        good &= allowed[row["allowed_regimes_set"]][tape.arrays.score_regime + 1]
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


@compiled
def _fill_entries(plan: Any, params: Any, keys: Any) -> None:
    """Fill the rows of ``entries`` that belong to some combinations."""
    for row in range(len(params)):
        for c in range(len(plan.cands)):
            find_entry(plan, params[row], keys[row].gap, c, plan.entries[keys[row].entry, c])


def is_plain(tape: Tape, params: Array) -> bool:
    """Whether ``run_plain`` covers these combinations."""
    off = ("trailing_activation_pct", "exit_threshold", "max_daily_loss_usd")
    counts = ("max_hold_ns", "max_open_positions", "max_trades_per_day")
    arrays = tape.arrays
    return bool(
        len(tape.symbols) == 1
        and len(arrays.force_ts) == len(arrays.funding) == len(arrays.carried) == 0
        and arrays.symbol["carried_until"][0] == arrays.symbol["last_exit"][0] == -NEVER
        and (params["tp1_fraction"] == 0.0).all()
        and (params["stop_latency_ns"] == 0).all()
        and all((params[name] < 0).all() for name in counts)
        and all(np.isnan(params[name]).all() for name in off)
    )
