"""JSON that is valid, but that nobody can read later: numbers beyond all doubles, and nesting without end."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

__all__ = ["HUGE", "has_huge_number", "is_deep"]

HUGE = r"\d[eE]\+?0*[1-9]\d\d|\d{309}"
_HUGE_BYTES = re.compile(HUGE.encode())
_ZERO = ord("0")
_SPOTS = [0, 16, 32, 48, 64, 80, 96, 112, 127]
# orjson reads 1024 levels; whatever may have more is looked at one by one.
_DEPTH = 1000


def has_huge_number(text: bytes, data: npt.NDArray[np.uint8]) -> bool:
    """Tell whether some number may be beyond all doubles: three digits of an exponent, or very many digits."""
    after_digit = ((data[1:] | 0x20) == ord("e")) & ((data[:-1] - _ZERO) < 10)
    places = np.flatnonzero(after_digit)
    if len(places) and any(_HUGE_BYTES.match(text, place) for place in places.tolist()):
        return True
    # A run of 309 digits covers a whole row of 128 bytes: nine places tell nearly always that it is none.
    rows = data[: len(data) // 128 * 128].reshape(-1, 128)
    spots = (rows[:, _SPOTS] - _ZERO) < 10
    full = np.flatnonzero(spots.all(axis=1))
    return any(rows[place].tobytes().isdigit() for place in full.tolist())


def is_deep(text: bytes, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> bool:
    """Tell whether what stands between some ``begins`` and ``ends`` may be nested more deeply than orjson reads."""
    long = np.flatnonzero(ends - begins > 2 * _DEPTH)
    for start, end in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
        if text.count(b"{", start, end) + text.count(b"[", start, end) >= _DEPTH:
            return True
    return False
