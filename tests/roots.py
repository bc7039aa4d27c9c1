"""Small data roots for tests of the screens: signals with prices, written by the central logger; small disks."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from replaylab.logging import Logger
from replaylab.paths import DataRoot
from replaylab.timestamps import iso, parse_ns

__all__ = ["END", "START", "SYMBOLS", "fill", "signal_root", "small_file_system"]

START, END = "2025-11-18T10:00:00Z", "2025-11-18T10:01:00Z"
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def signal_root(path: Path, *, per_second: int = 10, seconds: int = 60) -> DataRoot:
    """Write scores of two symbols that swing between −1 and 1, with prices, and a regime at the start."""
    root = DataRoot(path)
    first, step = parse_ns(START), 1_000_000_000 // per_second
    with Logger(root) as logger:
        for place in range(seconds * per_second):
            at = iso(first + place * step)
            for number, symbol in enumerate(SYMBOLS):
                if place == 0:
                    _log(logger, symbol, at, "REGIME_UPDATE", {"regime": "TREND", "confidence": 0.9})
                score = round(math.sin(place / per_second / (2 + number)), 4)
                price = round((90_000.0, 3_000.0)[number] * (1 + 0.002 * math.sin(place / per_second / 3)), 2)
                _log(logger, symbol, at, "SCORING_UPDATE", {"score": score, "price": price})
    return root


def _log(logger: Logger, symbol: str, at: str, kind: str, extra: dict[str, object]) -> None:
    event = {
        "timestamp": at,
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": kind,
        "reason": "recorded",
        "extra": extra,
    }
    logger.log_state_event(symbol, event)


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a real file system of a size such as "256k"; skips the test where this user may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until the file system has no byte left."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)
    return ballast
