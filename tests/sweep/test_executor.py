"""Sweeps on other processes: the same result to the bit, also when a worker is killed in the middle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from distributed import Client, LocalCluster

from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sessions import SessionStore, save_session_frame
from replaylab.sweep import run, sweep
from replaylab.sweep.grid import make_grid
from replaylab.sweep.run import run_on, run_rows
from replaylab.sweep.tape import pack
from tests.strategies import make_session

BASE = TradingParams(market_fill="print", limit_fill="touch", rounding="none")
GRID = {
    "entry_threshold": [0.2, 0.5, 0.7],
    "sl_pct": np.linspace(0.1, 1.0, 10),
    "tp2_pct": np.linspace(0.3, 1.2, 20),
    "trailing_activation_pct": [None, 0.1],
}


@pytest.fixture(scope="module")
def pool() -> Any:
    # Spawned, as everywhere but on old Linux defaults: nothing is inherited.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def test_processes_give_the_same_result_to_the_bit(pool: ProcessPoolExecutor) -> None:
    session = make_session(3, 3000, 2)
    here = sweep(session, GRID, progress=False)
    there = sweep(session, GRID, progress=False, executor=pool)
    assert there.frame.equals(here.frame)
    assert there.trades(7).equals(here.trades(7))


class Counting(Executor):
    """Runs tasks at once, in a worker that forgets its tapes on demand, and counts shipped tapes."""

    def __init__(self) -> None:
        self.shipped = 0
        self.tasks = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks += 1
        self.shipped += args[1] is not None
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_a_worker_is_sent_the_tape_once() -> None:
    run._tapes.clear()
    session = make_session(11, 2000, 2)
    executor = Counting()
    sweep(session, GRID, progress=False, executor=executor)
    assert executor.tasks > 3
    assert executor.shipped == 1
    sweep(session, GRID, progress=False, executor=executor)
    assert executor.shipped == 1


def test_a_worker_killed_in_the_middle_loses_nothing() -> None:
    tape = pack(make_session(4, 3000, 2))
    grid, base = make_grid(GRID), TradingParams()
    expected, _ = run_rows(tape, grid, base)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        executor.submit(time.sleep, 0).result()
        victim = next(iter(executor._processes))
        threading.Timer(0.2, os.kill, (victim, signal.SIGKILL)).start()
        # Both workers are busy until after the kill.
        for _ in range(2):
            executor.submit(time.sleep, 1)
        with pytest.warns(RuntimeWarning, match="a worker was lost"):
            found, _ = run_on(executor, tape, None, grid, base, {})
    assert np.array_equal(found, expected)


def test_an_error_of_the_sweep_itself_is_raised() -> None:
    with pytest.raises(ValueError, match="method"):
        sweep(make_session(1), {"sl_pct": [0.1]}, progress=False, executor=Counting(), method="fast")


class Killing(Executor):
    """Hands tasks to another executor, and kills a process before one of them."""

    def __init__(self, executor: Executor, before: int, pid: int) -> None:
        self.executor, self.before, self.pid = executor, before, pid

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.before -= 1
        if self.before == 0:
            os.kill(self.pid, signal.SIGKILL)
        return self.executor.submit(fn, *args, **kwargs)


def test_a_dask_cluster_that_loses_a_worker_gives_the_same_result_to_the_bit(tmp_path: Path) -> None:
    events = make_session(3, 3000, 2).events.filter(pl.col("symbol") != "")
    for name, days in (("one", "0d"), ("two", "1d"), ("three", "2d")):
        save_session_frame(tmp_path, events.with_columns(pl.col("timestamp").dt.offset_by(days)), name)
    sessions = [SessionStore(tmp_path).open(name) for name in ("one", "two", "three")]
    here = sweep(sessions, GRID, BASE, progress=False)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        before = set(client.run(os.getpid).values())
        killing = Killing(client.get_executor(), before=4, pid=min(before))
        there = sweep(sessions, GRID, BASE, progress=False, executor=killing)
        assert killing.before < 0
        assert min(before) not in set(client.run(os.getpid).values())
    assert there.frame.equals(here.frame)
    assert there.trades(7).equals(here.trades(7))


def test_what_cannot_take_work_is_refused() -> None:
    """Rather than run everything here and say that a worker was lost."""
    executor: Any = "my-cluster"
    with pytest.raises(
        SweepError, match=r"executor: expected a concurrent.futures.Executor or None, found 'my-cl"
    ):
        sweep(make_session(1, 100, 1).events, {"sl_pct": [0.1]}, executor=executor, progress=False)


FORKED = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from replaylab import Lab

lab = Lab.sample()
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    result = lab.sweep(lab.sessions.list_sessions()[0], {"sl_pct": [0.1, 0.2]}, progress=False, executor=pool)
print(result.frame.height)
"""


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_forked_workers_do_not_compile(tmp_path: Path) -> None:
    """On a cold cache a fork that compiled would wait forever for threads of its parent; the parent compiles first."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "2"
