"""Compile the kernels ahead of time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from replaylab.compiled import one_at_a_time
from replaylab.params import TradingParams
from replaylab.sweep.grid import Grid
from replaylab.sweep.kernel_chain import run_chain
from replaylab.sweep.kernel_pairs import run_pairs
from replaylab.sweep.plan import number_tables, prepare
from replaylab.sweep.rules import RAW
from replaylab.sweep.tape import Tape, TapeArrays
from replaylab.sweep.trades import allowed_table, trades_of

__all__ = ["compile_chain", "compile_loop", "compile_pairs", "warm_up"]


def warm_up() -> None:
    """Compile all kernels, or load them when that was done before: the first sweep then does not wait.

    >>> warm_up()

    Once per installation and version; some ten seconds. Processes that do it at the same time wait for each other.
    """
    with one_at_a_time():
        compile_loop()
        compile_chain()
        compile_pairs()


def compile_loop() -> None:
    """Compile or load the plain loop."""
    trades_of(_tiny_tape(), TradingParams())


def compile_chain() -> None:
    """Compile or load the walk from trade to trade, and what prepares it."""
    _run(run_chain)


def compile_pairs() -> None:
    """Compile or load the walk of targets and stops."""
    _run(run_pairs)


def _run(kernel: Callable[..., None]) -> None:
    tape, params = _tiny_tape(), TradingParams()
    rows = Grid({}, {}, 1, {}).pack(params)
    plan, keys = prepare(tape, allowed_table(tape, [None]), rows, number_tables(rows))
    kernel(plan, rows.params, keys, np.zeros((1, RAW)))


def _tiny_tape() -> Tape:
    i4, i8, f8 = np.int32, np.int64, np.float64
    arrays = TapeArrays(
        price=np.array([100.0, 101.0], f8),
        price_ts=np.array([1, 3], i8),
        price_index=np.array([0, 2], i4),
        price_from=np.array([0, 2], i8),
        score=np.array([1.0], f8),
        score_ts=np.array([2], i8),
        score_index=np.array([1], i4),
        score_regime=np.array([-1], i4),
        score_blocked=np.array([0], np.uint8),
        score_from=np.array([0, 1], i8),
        force_ts=np.empty(0, i8),
        force_index=np.empty(0, i4),
        force_from=np.array([0, 0], i8),
        order=np.array([0, 1, 0], i4),
    )
    return Tape(("A",), (), ("trade",), 3, **arrays._asdict())
