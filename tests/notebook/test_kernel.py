"""The panel in a real notebook kernel: it redraws itself between cells, whichever ipykernel is installed."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from replaylab.paths import DataRoot
from replaylab.replay import ReplayControl, read_status
from replaylab.sessions import build_replay_session
from tests.roots import END, START, SYMBOLS, signal_root


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    made = signal_root(tmp_path / "data")
    build_replay_session(made, START, END, list(SYMBOLS), session_id="a-minute", speed_factor=2.0)
    return made


@pytest.fixture
def cell() -> Iterator[Callable[[str], str]]:
    """Run a cell; returns what it printed, and fails with its traceback."""
    manager, client = start_new_kernel()

    def run(code: str) -> str:
        asked = client.execute(code)
        printed = ""
        while True:
            try:
                message: dict[str, Any] = client.get_iopub_msg(timeout=60)
            except queue.Empty:
                raise AssertionError(f"the kernel is silent after:\n{code}") from None
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            if message["msg_type"] == "error":
                raise AssertionError("\n".join(content["traceback"]))
            if message["msg_type"] == "stream":
                printed += content["text"]
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                return printed

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def test_the_panel_follows_a_replay_by_itself(cell: Callable[[str], str], root: DataRoot) -> None:
    """After Run is clicked nothing else is called: badge, hotlist and progress move because the event loop runs."""
    cell(f"from replaylab import Lab\nlab = Lab({str(root)!r})\npanel = lab.panel()\npanel")
    cell("panel.table.select('a-minute'); panel.run.click()")
    limit = time.monotonic() + 30
    while "REPLAY MODE · a-minute · 2×" not in cell("print(panel.badge.value)"):
        assert time.monotonic() < limit
        time.sleep(0.1)
    first = cell("print(panel.controls.where.value, panel.live.hot.value)")
    time.sleep(1)
    assert cell("print(panel.controls.where.value, panel.live.hot.value)") != first
    assert ReplayControl(root).stop(), "another process stops it"
    limit = time.monotonic() + 10
    while "rl-badge calm" not in cell("print(panel.badge.value)"):
        assert time.monotonic() < limit
        time.sleep(0.1)
    cell("panel.close()")


def test_the_end_of_the_kernel_ends_its_replay(cell: Callable[[str], str], root: DataRoot) -> None:
    cell(f"from replaylab import Lab\npanel = Lab({str(root)!r}).panel()")
    cell("panel.table.select('a-minute'); panel.run.click(); panel.settle()")
    assert read_status(root).running
    cell("import os, signal, threading; threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()")
    limit = time.monotonic() + 15
    while read_status(root).running:
        assert time.monotonic() < limit
        time.sleep(0.05)
