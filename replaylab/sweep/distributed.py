"""Rows of a grid on other processes and machines, through any ``concurrent.futures.Executor``.

A task carries its rows of the grid, not the tape: a worker opens the tape's file if it can see it; else it says that
it has none, and gets it with its next task, once. A row's figures depend on nothing but tape and parameters, so a task
that is lost with its worker is simply done again, here.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.params import TradingParams
from replaylab.sweep.grid import Grid
from replaylab.sweep.rules import RAW
from replaylab.sweep.running import run_rows
from replaylab.sweep.tape import PriceSource, Tape
from replaylab.sweep.tapecache import read_tape, tape_key

__all__ = ["TapeRef", "reference", "run_on"]

Array = npt.NDArray[Any]
# Rows of one task: enough that tables pay, few enough that all workers have some.
_MOST, _FEWEST, _TASKS = 16_384, 256, 64
# Tapes that this process has, as a worker: the last few sessions.
_tapes: dict[str, Tape] = {}


@dataclass(frozen=True)
class TapeRef:
    """Which tape a task is about: its key, and the file that holds it where there is one."""

    key: str
    path: Path | None = None


def reference(tape: Tape, place: Path | None, session: Any, price_source: PriceSource) -> TapeRef:
    """Return how tasks name a tape: by what it was packed from, or by its contents where there is no file."""
    if place is not None:
        key = tape_key(session.digest, price_source, getattr(session, "initial_state", None))
        return TapeRef(key, place)
    digest = hashlib.sha256(repr((tape.symbols, tape.regimes, tape.sources)).encode())
    for array in tape.arrays():
        digest.update(np.ascontiguousarray(array).data)
    return TapeRef(digest.hexdigest())


def run_on(
    executor: Executor,
    tape: Tape,
    ref: TapeRef,
    grid: Grid,
    base: TradingParams,
    method: str = "auto",
    memory: float = 1e9,
    done: Callable[[int], Any] = lambda rows: None,
) -> tuple[Array, str]:
    """Return what ``running.run_rows`` returns, computed by the workers of ``executor``."""
    raw = np.zeros((grid.rows, RAW))
    step = min(_MOST, max(_FEWEST, -(-grid.rows // _TASKS)))
    todo = [(a, min(a + step, grid.rows)) for a in range(0, grid.rows, step)][::-1]
    running: dict[Future[Any], tuple[int, int]] = {}
    used: set[str] = set()
    lost: list[BaseException] = []

    def submit(rows: tuple[int, int], shipped: Tape | None) -> None:
        part = grid.part(*rows)
        running[executor.submit(_work, ref, shipped, part, base, method, memory)] = rows

    def here(rows: tuple[int, int], error: BaseException) -> None:
        # An error of the sweep itself is raised by doing it again.
        lost.append(error)
        keep(rows, run_rows(tape, grid.part(*rows), base, method, memory=memory))

    def keep(rows: tuple[int, int], result: tuple[Array, str]) -> None:
        raw[rows[0] : rows[1]] = result[0]
        used.add(result[1])
        done(rows[1] - rows[0])

    # No more tasks than workers at a time: each says at most once or twice that it lacks the tape.
    width = _workers(executor)
    try:
        while todo or running:
            while todo and len(running) < width and not lost:
                rows = todo.pop()
                try:
                    submit(rows, None)
                except Exception as error:  # a pool that is broken or shut down
                    here(rows, error)
            if not running:
                # Nobody is left to work elsewhere.
                while todo:
                    rows = todo.pop()
                    keep(rows, run_rows(tape, grid.part(*rows), base, method, memory=memory))
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                rows = running.pop(future)
                try:
                    result = future.result()
                    if result is None:
                        submit(rows, tape)
                    else:
                        keep(rows, result)
                except Exception as error:  # a worker died, or the network did
                    here(rows, error)
    finally:
        for future in running:
            future.cancel()
    if lost:
        warnings.warn(
            f"a worker was lost ({type(lost[0]).__name__}: {lost[0]}): its rows were run in this process",
            RuntimeWarning,
            stacklevel=3,
        )
    return raw, "+".join(sorted(used))


def _workers(executor: Executor) -> int:
    known = getattr(executor, "_max_workers", None)
    if isinstance(known, int):
        return max(1, known)
    client = getattr(executor, "_client", None)
    if client is not None:
        return max(1, int(sum(client.nthreads().values())))
    return 2 * (os.cpu_count() or 1)


def _work(
    ref: TapeRef, shipped: Tape | None, grid: Grid, base: TradingParams, method: str, memory: float
) -> tuple[Array, str] | None:
    """Run some rows in a worker; None: this worker has no such tape."""
    tape = _tapes.get(ref.key) or shipped or (read_tape(ref.path, ref.key) if ref.path is not None else None)
    if tape is None:
        return None
    if ref.key not in _tapes:
        while len(_tapes) >= 4:
            _tapes.pop(next(iter(_tapes)))
        _tapes[ref.key] = tape
    return run_rows(tape, grid, base, method, memory=memory)
