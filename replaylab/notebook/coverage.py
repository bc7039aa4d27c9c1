"""What the logs and tapes of a data root cover: cheap enough to look at every few seconds."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from replaylab import frames, history
from replaylab.errors import TimeError
from replaylab.paths import DataRoot
from replaylab.timestamps import parse_ns

__all__ = ["covered"]

_EDGE_BYTES = 65_536


def covered(root: DataRoot) -> tuple[list[str], tuple[int, int] | None]:
    """Return the symbols that have logs or tapes, and the first and last moment of them (ns), or None.

    Of each event log only the first and last lines are read.
    """
    logged = frames.list_symbols(root)
    taped = history.symbols(root, "trades")
    moments: list[int] = []
    for symbol in logged:
        moments += _edges(root.events(symbol))
    for symbol in taped:
        found = history.coverage(root, "trades", symbol)
        if found is not None:
            moments += [found[0], found[1]]
    return sorted({*logged, *taped}), (min(moments), max(moments)) if moments else None


def _edges(path: Path) -> list[int]:
    """Timestamps of the first and the last readable line near the edges of a log."""
    try:
        with path.open("rb") as file:
            head = file.read(_EDGE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _EDGE_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return []
    first = next((ns for line in head.splitlines() if (ns := _moment(line)) is not None), None)
    last = next((ns for line in reversed(tail.splitlines()) if (ns := _moment(line)) is not None), None)
    return [ns for ns in (first, last) if ns is not None]


def _moment(line: bytes) -> int | None:
    try:
        return parse_ns(orjson.loads(line)["timestamp"])
    except (orjson.JSONDecodeError, TimeError, KeyError, TypeError):
        return None
