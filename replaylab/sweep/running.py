"""Run the rows of a grid on this machine: which method, how much memory, which rows at a time, on how many threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.compiled import one_at_a_time, was_compiled
from replaylab.errors import SweepError, did_you_mean
from replaylab.params import TradingParams
from replaylab.sweep.grid import Grid
from replaylab.sweep.kernel_chain import run_chain
from replaylab.sweep.kernel_loop import TRADE, run_loop
from replaylab.sweep.kernel_pairs import run_pairs, suits_pairs
from replaylab.sweep.plan import Numbered, Plan, number_tables, prepare
from replaylab.sweep.rows import Rows
from replaylab.sweep.rules import RAW, N
from replaylab.sweep.tape import Tape
from replaylab.sweep.trades import allowed_table
from replaylab.sweep.warm import compile_chain, compile_loop, compile_pairs

__all__ = ["METHODS", "parts", "run_rows"]

Array = npt.NDArray[Any]
METHODS = ("auto", "tables", "index", "loop")
# Rows that are packed, run and turned into figures together: bounds memory, far beyond what tables need to pay.
PART = 131_072
_log = logging.getLogger("replaylab.sweep")

# Estimates for choosing, in ns per event (loop) or per trade and search; only their ratios matter, and only for time:
# the results are the same.
_EVENT_NS = 1.5
_TRADE_NS = 60.0
_SEARCH_NS = 120.0
# Below this many combinations × events a loop is done before another kernel is loaded.
_SMALL = 3e7
_PILOTS = 8


def parts(rows: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows that are run together."""
    for start in range(0, rows, PART):
        yield start, min(start + PART, rows)


def run_rows(
    tape: Tape,
    grid: Grid,
    base: TradingParams,
    method: str = "auto",
    *,
    threads: int = 1,
    memory: float = 1e9,
    done: Callable[[int], Any] = lambda rows: None,
    say: Callable[[str], Any] = lambda text: None,
) -> tuple[Array, str]:
    """Return the raw figures of every row of a grid, and the method that was used.

    ``method``: "tables", "index", "loop" or "auto", which estimates what is fastest; the figures are the same to the
    bit. ``memory``: bytes that first-touch tables may take. ``done`` is called with counts of finished rows, ``say``
    with what is being waited for.
    """
    if method not in METHODS:
        raise SweepError(
            f"method: expected {', '.join(METHODS)}, found {method!r}.{did_you_mean(method, METHODS)}"
        )
    allowed = allowed_table(tape, grid.regime_sets(base))
    rows = grid.pack(base)
    raw = np.zeros((len(rows), RAW))
    numbered = number_tables(rows) if method in ("auto", "tables") else None
    if method == "auto":
        method = _choose(tape, allowed, rows, numbered, say)
    if method == "loop":
        _compile("the plain loop", run_loop, compile_loop, say)
        arrays, none, params = tape.arrays(), np.empty(0, dtype=TRADE), rows.params
        _share(raw, threads, done, lambda a, b: run_loop(arrays, allowed, params[a:b], raw[a:b], none))
        return raw, method
    _compile("the sweep", run_chain, compile_chain, say)
    used = set()
    for start, stop, tables in _fitting(tape, rows, numbered if method == "tables" else None, memory):
        used.add("tables" if tables else "index")
        some = rows.part(slice(start, stop))
        plan, keys = prepare(tape, allowed, some, tables)
        kernel = run_chain
        if tables and suits_pairs(tape, some.params):
            _compile("the sweep of targets and stops", run_pairs, compile_pairs, say)
            kernel = run_pairs
        _share(raw[start:stop], threads, done, _Chain(kernel, plan, some.params, keys, raw[start:stop]))
    return raw, "+".join(sorted(used, reverse=True))


@dataclass(frozen=True)
class _Chain:
    kernel: Callable[..., None]
    plan: Plan
    params: Array
    keys: Array
    raw: Array

    def __call__(self, a: int, b: int) -> None:
        self.kernel(self.plan, self.params[a:b], self.keys[a:b], self.raw[a:b])


def _share(raw: Array, threads: int, done: Callable[[int], Any], work: Callable[[int, int], Any]) -> None:
    """Run ``work`` on ranges of rows, on threads; small ranges, because neighbours cost alike."""
    step = max(1, min(512, len(raw) // (threads * 16)))
    ranges = [(a, min(a + step, len(raw))) for a in range(0, len(raw), step)]
    if threads == 1:
        for a, b in ranges:
            work(a, b)
            done(b - a)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="sweep") as pool:
        futures = [(pool.submit(work, a, b), b - a) for a, b in ranges]
        try:
            for future, rows in futures:
                future.result()
                done(rows)
        except BaseException:
            # An interrupt in a notebook ends the sweep now, not after all rows.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _choose(
    tape: Tape, allowed: Array, rows: Rows, numbered: Numbered | None, say: Callable[[str], Any]
) -> str:
    """Estimate from a few rows how many trades a row has, and from that what each method costs."""
    events = len(tape.order)
    if events * len(rows) < _SMALL or numbered is None:
        return "loop"
    _compile("the sweep", run_chain, compile_chain, say)
    pilots = rows.part(np.linspace(0, len(rows) - 1, _PILOTS).astype(np.int64))
    raw = np.zeros((len(pilots), RAW))
    plan, keys = prepare(tape, allowed, pilots, None)
    run_chain(plan, pilots.params, keys, raw)
    trades = float(raw[:, N].mean())
    params = pilots.params
    searches = (
        2.0 + (~np.isnan(params["trailing_activation_pct"])).mean() + (params["tp1_fraction"] > 0).mean()
    )
    # How many rows share a level: with none shared (random samples) a table is only a detour.
    shared = len(rows) * (searches + 1.0) / max(1, numbered.rows)
    loop = events * _EVENT_NS + trades * _TRADE_NS
    index = trades * (_TRADE_NS + searches * _SEARCH_NS)
    table = trades * (_TRADE_NS + searches * _SEARCH_NS / min(shared, 8.0)) if shared >= 2.0 else np.inf
    cheapest = min(loop, index, table)
    return "loop" if cheapest == loop else "tables" if cheapest == table else "index"


def _fitting(
    tape: Tape, rows: Rows, numbered: Numbered | None, memory: float
) -> list[tuple[int, int, Numbered | None]]:
    """Ranges of rows with tables that fit into memory; neighbours share levels, so halves need less."""
    if numbered is None:
        return [(0, len(rows), None)]
    candidates = int(np.count_nonzero(np.abs(tape.score) >= rows.params["entry_threshold"].min()))
    ranges: list[tuple[int, int, Numbered | None]] = []
    waiting = [(0, len(rows), numbered)]
    while waiting:
        start, stop, tables = waiting.pop()
        if tables.nbytes(candidates) <= memory:
            ranges.append((start, stop, tables))
        elif stop - start <= 256:
            ranges.append((start, stop, None))
        else:
            middle = (start + stop) // 2
            for a, b in ((middle, stop), (start, middle)):
                waiting.append((a, b, number_tables(rows.part(slice(a, b)))))
    return ranges


def _compile(name: str, kernel: Any, warm: Callable[[], None], say: Callable[[str], Any]) -> None:
    if was_compiled(kernel):
        return
    text = f"compiling {name} (once per installation, some ten seconds)"
    _log.info(text)
    say(text)
    with one_at_a_time():
        warm()
    say("")
