"""A clean-up that is killed at any moment loses no line, shows none twice, and the next one finishes the work."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replaylab import frames
from replaylab.archive import daily_summary, run_retention, verify
from replaylab.config import RetentionConfig
from tests.archive.roots import event, order, trade, tree, write_lines, write_session

NOW = "2025-11-20T12:00:00Z"
CHILD = """
import sys
from replaylab.archive import run_retention
from replaylab.config import RetentionConfig
sys.stdin.readline()
run_retention(sys.argv[1], now=sys.argv[2], config=RetentionConfig(archive=True))
"""


def make_root(root: Path) -> None:
    days = [f"2025-10-{day:02d}" for day in range(1, 9)]
    for day in days:
        write_lines(
            root / f"trades_log/day-{day}.jsonl", *(trade(day, second) for second in range(40)), "broken"
        )
        write_lines(root / f"orders/day-{day}.jsonl", *(order(day, second) for second in range(40)))
    for symbol in ("BTCUSDT", "AIUSDT"):
        lines = [event(day, second, symbol) for day in [*days, "2025-11-20"] for second in range(200)]
        write_lines(root / f"events/{symbol}.jsonl", *lines)
    write_session(root, "old", "2025-01-01")


def everything(root: Path) -> dict[str, object]:
    """What the loaders and the summaries say: it must not change."""
    events, trades, orders = frames.load_events(root), frames.load_trades(root), frames.load_orders(root)
    summary = daily_summary(root).drop_nulls("symbol")
    return {
        "events": events.frame.drop("line").sort("symbol", "timestamp", maintain_order=True).rows(),
        "trades": trades.frame.drop("line", "file").sort("timestamp").rows(),
        "orders": orders.frame.drop("line", "file").sort("timestamp").rows(),
        "rejects": sorted(trades.rejects["text"].to_list()),
        "lines": (events.lines, trades.lines, orders.lines),
        "summary": summary.select(
            "day", "log", "symbol", "rows", "wins", "event_types", "score_count"
        ).rows(),
    }


def kill_at_random_moments(root: Path, kills: int, seed: int) -> int:
    """Start clean-ups and kill them; return how many died before they were done."""
    rng = random.Random(seed)
    died = 0
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(root), NOW], stdin=subprocess.PIPE)
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
        # Nearly all of the time goes into imports; the lock file shows that the work has begun.
        lock = root / "system" / ".retention.lock"
        limit = time.monotonic() + 60
        while not lock.exists() and child.poll() is None and time.monotonic() < limit:
            time.sleep(0.001)
        time.sleep(rng.random() ** 2 * 0.8)
        child.kill()
        died += child.wait() != 0
        child.stdin.close()
        lock.unlink(missing_ok=True)
    return died


def check_kills(root: Path, kills: int, seed: int) -> int:
    """Return how many clean-ups died; the others were faster than their kill."""
    make_root(root)
    before = everything(root)
    died = kill_at_random_moments(root, kills, seed)
    assert died
    assert everything(root) == before
    run_retention(root, now=NOW, config=RetentionConfig(archive=True))
    assert everything(root) == before
    assert [path.name for path in (root / "trades_log").iterdir()] == []
    assert [name for name in tree(root) if name.endswith((".tmp", ".pending")) or ".deleted" in name] == []
    assert set(verify(root).findings["text"].to_list()) == {"broken"}
    return died


def test_killed_clean_ups_lose_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, 4, seed=1)


@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_210_killed_clean_ups_lose_nothing(tmp_path: Path) -> None:
    died = sum(check_kills(tmp_path / str(seed), 5, seed=100 + seed) for seed in range(42))
    print(f"kills of clean-ups: 210 injected ({died} hit), 210 survived: no line lost or counted twice")
