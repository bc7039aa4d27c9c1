"""Building from logs larger than the memory that it may use."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sessions.logs import state_event

HERE = Path(__file__).parents[2]
CODE = """
import sys
from replaylab import build_replay_session
manifest = build_replay_session(sys.argv[1], "2025-11-18", "2025-11-19", sys.argv[2].split(","), ["SCORING_UPDATE"])
# Not getrusage: a child begins with the peak of its parent there.
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
print(manifest.total_events, peak)
"""


def write_logs(root: Path, size: int, symbols: list[str]) -> int:
    """Write state events of one day, out of order by up to a minute, until the files hold ``size`` bytes."""
    rng = random.Random(5)
    components = {name: rng.random() for name in ("flow", "book", "momentum", "volatility", "spread")}
    extra = {"score": 0.123456789, "side": "LONG", "price": 50_000.5, "components": components}
    line = (
        json.dumps(state_event("2025-11-18T00:00:00.000Z", symbol="XXXX", **extra)).replace("XXXX", "%s")
        + "\n"
    )
    line = line.replace("2025-11-18T00:00:00.000Z", "2025-11-18T%s.%03dZ")
    lines = size // len(line) // len(symbols)
    clocks = [f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}" for s in range(86_400)]
    (root / "events").mkdir(parents=True)
    for symbol in symbols:
        with (root / "events" / f"{symbol}.jsonl").open("w") as file:
            for number in range(lines):
                second = min(86_399, number * 86_340 // lines + rng.randrange(60))
                file.write(line % (clocks[second], rng.randrange(1_000), symbol))
    return lines * len(symbols)


def build(root: Path, symbols: list[str]) -> tuple[int, int]:
    answer = subprocess.run(
        [sys.executable, "-c", CODE, str(root), ",".join(symbols)],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
    )
    total, peak = answer.stdout.split()
    return int(total), int(peak)


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.timeout(1200)
def test_two_gigabytes_of_logs_in_less_than_one_of_memory(tmp_path: Path) -> None:
    symbols = ["AAAUSDT", "BBBUSDT"]
    lines = write_logs(tmp_path, 2 << 30, symbols)
    total, peak = build(tmp_path, symbols)
    assert total == lines
    assert peak < 1 << 30


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_logs(tmp_path: Path) -> None:
    """Three times the logs, and nowhere near three times the memory."""
    peaks = []
    for size in (100 << 20, 300 << 20):
        root = tmp_path / str(size)
        lines = write_logs(root, size, ["AAAUSDT"])
        total, peak = build(root, ["AAAUSDT"])
        assert total == lines
        peaks.append(peak)
    assert peaks[1] < 1 << 30
    assert peaks[1] < 1.7 * peaks[0]
