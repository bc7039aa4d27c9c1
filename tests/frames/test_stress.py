"""Gigabytes of logs in little memory. Runs under ``make stress``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replaylab.timestamps import iso

CORPUS_BYTES = 2_200_000_000
PEAK = """
import sys
from replaylab import frames
rows = lines = 0
for loaded in frames.scan_event_chunks(sys.argv[1], "BTCUSDT"):
    rows, lines = rows + loaded.rows, lines + loaded.lines
    assert loaded.rejects.is_empty()
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
print(rows, lines, peak)
"""


def write_corpus(path: Path, size: int) -> int:
    """Write state events of about ``size`` bytes; return how many."""
    path.parent.mkdir(parents=True)
    note = "x" * 900
    lines = 0
    with path.open("wb") as file:
        while file.tell() < size:
            texts = [
                f'{{"timestamp":"{iso(1_763_460_000_000_000_000 + (lines + at) * 7_000_000)}","symbol":"BTCUSDT",'
                f'"fromState":"IDLE","toState":"IDLE","eventType":"SCORING_UPDATE","reason":"test",'
                f'"extra":{{"score":0.{at},"note":"{note}"}}}}\n'
                for at in range(10_000)
            ]
            lines += len(texts)
            file.write("".join(texts).encode())
    return lines


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_two_gigabytes_of_events_are_scanned_in_less_than_one(tmp_path: Path) -> None:
    lines = write_corpus(tmp_path / "events" / "BTCUSDT.jsonl", CORPUS_BYTES)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], check=True, capture_output=True, text=True
    )
    rows, found, peak = map(int, done.stdout.split())
    assert (rows, found) == (lines, lines)
    assert peak < 1_000_000_000
    print(f"{lines:,} lines, peak {peak / 1e6:.0f} MB")
