"""A real server process on a small data root, and a plain HTTP client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from replaylab.paths import DataRoot
from replaylab.sessions import build_replay_session
from tests.roots import END, START, SYMBOLS, signal_root

TOKEN = "secret-of-the-tests"
SESSION = "a-minute"


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """Signals of a minute and one session of them."""
    return session_root(tmp_path / "data")


def session_root(path: Path) -> DataRoot:
    made = signal_root(path)
    build_replay_session(made, START, END, list(SYMBOLS), session_id=SESSION)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(root: DataRoot, log: Path, *options: str) -> Iterator[httpx.Client]:
    """Run `replaylab serve` as a process of its own; yields a client that sends the token."""
    port = free_port()
    command = [sys.executable, "-m", "replaylab.server.app", f"--Replaylab.data_root={root}", *options]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, "JUPYTER_TOKEN": TOKEN}, stdout=out, stderr=subprocess.STDOUT
        )
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api/replay",
            headers={"Authorization": f"token {TOKEN}"},
            timeout=30,
        )
        try:
            wait_for(lambda: answers(client), f"the server: see {log}")
            yield client
        finally:
            client.close()
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Return the first true value of a condition; fails the test when none comes."""
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout:g} s in vain for {what}")
