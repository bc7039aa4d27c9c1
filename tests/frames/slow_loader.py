"""The slow and obvious loader of a log: line by line, with nothing but the standard library and parse_ns.

It says what the fast loader has to do: which lines are rows, which are blank, which are rejects.
"""

from __future__ import annotations

import json
import math
from typing import Any

from replaylab.timestamps import parse_ns

TEXTS = ("symbol", "fromState", "toState", "eventType", "reason")


def load_state_events(data: bytes) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    """Return rows (with line, ns and unknown fields), line numbers of rejects, line numbers of blank lines."""
    rows, rejects, blank = [], [], []
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if line.strip(b" \t\r") == b"":
            blank.append(number)
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            rows.append({**state_event(line), "line": number})
        except (ValueError, RecursionError):
            rejects.append(number)
    return rows, rejects, blank


def state_event(line: bytes) -> dict[str, Any]:
    plain = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    if not isinstance(plain, dict):
        raise ValueError("not an object")
    _check_usable(plain)
    for field in ("timestamp", *TEXTS):
        if not isinstance(plain.get(field), str):
            raise ValueError(field)
    if not isinstance(plain.get("extra"), dict) or len(plain["timestamp"]) < 16:
        raise ValueError("extra or timestamp")
    known = ("timestamp", *TEXTS, "extra")
    return {
        "ns": parse_ns(plain["timestamp"]),
        **{field: plain[field] for field in TEXTS},
        "extra": plain["extra"],
        "unknown": {key: value for key, value in plain.items() if key not in known} or None,
    }


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _check_usable(value: Any) -> None:
    """Half a surrogate pair is no text, and a number beyond all doubles is no number."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, int | float):
        if math.isinf(_double(value)):
            raise ValueError("infinite")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_usable(key)
            _check_usable(item)
    elif isinstance(value, list):
        for item in value:
            _check_usable(item)


def _double(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
