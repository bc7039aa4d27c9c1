"""An export of many sessions holds one of them at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from functools import cached_property

from replaylab.ml.export import export_features
from tests.ml.sessions import FakeSession, random_rows, session

class OnDisk:
    rejects = None
    initial_state = None

    def __init__(self, number, rows):
        self.id, self.digest, self.rows = f"session-{number:03d}", f"{number:064x}", rows

    @cached_property
    def events(self):
        return session(self.rows).events

def peak():
    # Not getrusage: a child begins with the peak of its parent there.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

rows = random_rows(1, int(sys.argv[3]), ("BTCUSDT", "ETHUSDT"))
before = peak()
several = [OnDisk(number, rows) for number in range(int(sys.argv[2]))]
made = export_features(several, sys.argv[1], labels={"tp_pct": 0.1, "sl_pct": 0.1, "max_hold_s": 5.0})
assert made.rows > len(rows) // 6 * len(several)
assert not any("events" in one.__dict__ for one in several)
print(before, peak())
"""


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.timeout(900)
def test_a_hundred_sessions_stay_under_a_gigabyte(tmp_path: Path) -> None:
    """100 sessions of 60,000 events: peak resident memory of the whole process below 1 GB."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "set"), "100", "60000"],
        check=True,
        capture_output=True,
        text=True,
    )
    _, peak = (int(number) for number in run.stdout.split())
    assert peak < 1000, f"{peak} MB"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_sessions_are_let_go_one_by_one(tmp_path: Path) -> None:
    """No session that was handed in keeps the events that the export read from it."""
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "set"), "2", "3000"], check=True)
