"""Real processes, real SIGKILL at random moments: what was acknowledged is in the log, once, and every file loads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest

from replaylab.logging import FileStreamManager
from replaylab.records import StateEvent, decode_record

WRITER = Path(__file__).parent / "writer.py"
REPOSITORY = Path(__file__).parents[2]


def start(root: Path, name: str, durability: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, WRITER, root, name, durability],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def kill_after(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[str]:
    """Wait until each writes, let them write for a while, kill them, and return what they acknowledged."""
    ledgers = [process.stdout.readline() for process in processes]
    # The pipe would fill up and stop the writer: keep reading while it lives.
    deadline = time.monotonic() + seconds
    for process in processes:
        os.set_blocking(process.stdout.fileno(), False)
    while time.monotonic() < deadline:
        for at, process in enumerate(processes):
            ledgers[at] += process.stdout.read() or b""
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for at, process in enumerate(processes):
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        ledgers[at] += process.stdout.read() or b""
        process.stdout.close()
    # A ledger line that the kill cut short was not acknowledged to us.
    return [text for ledger in ledgers for text in ledger.decode().split("\n")[:-1]]


def check(root: Path, acknowledged: list[str]) -> int:
    """Hold the log against the ledger; returns how many fragments were set aside."""
    path = root / "events" / "BTCUSDT.jsonl"
    FileStreamManager().append_line(path, orjson.dumps({"end": 1}))
    text = path.read_bytes()
    assert text.endswith(b'\n{"end":1}\n')
    rows = [decode_record(StateEvent, line) for line in text.splitlines()[:-1] if line != b'{"end":1}']
    written = Counter(row.reason for row in rows)
    missing = [name for name in acknowledged if name not in written]
    assert not missing, f"{len(missing)} acknowledged lines are missing, the first is {missing[0]}"
    assert max(written.values()) == 1, "a line is there twice"
    torn = path.with_name("BTCUSDT.jsonl.torn")
    return torn.read_bytes().count(b"\n") if torn.exists() else 0


def kills(root: Path, durability: str, count: int, writers: int, seed: int) -> int:
    """Return how many lines were acknowledged."""
    chance = random.Random(seed)
    acknowledged: list[str] = []
    for kill in range(count):
        processes = [start(root, f"{kill}-{writer}", durability) for writer in range(writers)]
        acknowledged += kill_after(processes, chance.uniform(0, 0.06))
        check(root, acknowledged)
    assert len(acknowledged) > count * writers * 2
    return len(acknowledged)


@pytest.mark.parametrize(
    ("durability", "count", "writers"), [("flush", 8, 1), ("flush", 4, 3), ("queue", 4, 1), ("fsync", 4, 2)]
)
def test_twenty_kills_lose_no_acknowledged_line(tmp_path, durability, count, writers):
    kills(tmp_path, durability, count, writers, seed=1)


@pytest.mark.stress
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("durability", "count", "writers"),
    [("flush", 80, 1), ("flush", 40, 3), ("queue", 40, 1), ("fsync", 40, 2)],
)
def test_320_killed_writers_lose_no_acknowledged_line(tmp_path, durability, count, writers):
    lines = kills(tmp_path, durability, count, writers, seed=2)
    dead = count * writers
    print(
        f"kills of writers ({durability}): {dead} injected, {dead} survived: {lines:,} acknowledged lines, 0 lost"
    )
