"""ISO texts to nanoseconds, a column at a time, exactly as ``timestamps.parse_ns`` reads each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from replaylab.errors import TimeError
from replaylab.timestamps import parse_ns

__all__ = ["parse_time", "parse_times"]

_ZERO = ord("0")
# Where the digits of "2025-11-18T10:00:00.123Z" are, and what stands between them.
_DATE = (0, 1, 2, 3, 5, 6, 8, 9)
_CLOCK = (11, 12, 14, 15, 17, 18)
_MARKS = ((4, ord("-")), (7, ord("-")), (10, ord("T")), (13, ord(":")), (16, ord(":")))
_NS = 1_000_000_000


def parse_time(text: str) -> int:
    """Return nanoseconds of a record's timestamp: as ``parse_ns``, but a date without a clock is a TimeError."""
    if len(text) < 16:
        raise TimeError(f"expected an ISO time such as 2025-11-18T10:00:00.123Z, found {text!r}")
    return parse_ns(text)


def parse_times(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return nanoseconds since 1970 of each text, and a mask of those that are no times (their value is 0).

    Texts of the common form with ``Z`` and the same number of decimals are computed as columns of digits; all
    others one by one.
    """
    count = len(texts)
    values = np.zeros(count, np.int64)
    bad = np.zeros(count, np.bool_)
    if not count:
        return values, bad
    width = len(texts[0])
    joined = "".join(texts)
    regular = (width == 20 or 22 <= width <= 30) and joined.isascii() and set(map(len, texts)) == {width}
    if regular:
        matrix = np.frombuffer(joined.encode(), np.uint8).reshape(count, width)
        values, sure = _columns(matrix, width)
        rest = np.flatnonzero(~sure)
    else:
        rest = np.arange(count)
    for place in rest.tolist():
        try:
            values[place] = parse_time(texts[place])
        except TimeError:
            values[place] = 0
            bad[place] = True
    return values, bad


def _columns(
    matrix: npt.NDArray[np.uint8], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the values, and a mask of the rows that are certainly right; the others need a closer look."""
    fraction = tuple(range(20, width - 1))
    sure = matrix[:, width - 1] == ord("Z")
    for place, mark in _MARKS:
        sure &= matrix[:, place] == mark
    if fraction:
        sure &= matrix[:, 19] == ord(".")
    # Below "0" wraps around to a large number, so one comparison finds every byte that is not a digit.
    digits = {place: matrix[:, place] - _ZERO for place in (*_DATE, *_CLOCK, *fraction)}
    for column in digits.values():
        sure &= column <= 9

    def number(*places: int) -> npt.NDArray[np.int64]:
        total = digits[places[0]].astype(np.int64)
        for place in places[1:]:
            total *= 10
            total += digits[place]
        return total

    year, month, day = number(0, 1, 2, 3), number(5, 6), number(8, 9)
    hour, minute, second = number(11, 12), number(14, 15), number(17, 18)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    lengths = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
    in_month = (month >= 1) & (month <= 12)
    last = lengths[np.where(in_month, month, 0)] + (leap & (month == 2))
    sure &= in_month & (day >= 1) & (day <= last) & (year >= 1678) & (year <= 2261)
    sure &= (hour < 24) & (minute < 60) & (second < 60)
    # Days since 1970 of a proleptic Gregorian date, with years that begin in March so that the leap day is last.
    shifted = year - (month <= 2)
    era_year = shifted % 400
    from_march = (month + 9) % 12
    day_of_year = (153 * from_march + 2) // 5 + day - 1
    days = (
        (shifted // 400) * 146_097 + era_year * 365 + era_year // 4 - era_year // 100 + day_of_year - 719_468
    )
    seconds = days * 86_400 + hour * 3_600 + minute * 60 + second
    values = np.where(sure, seconds, 0) * _NS
    if fraction:
        values += np.where(sure, number(*fraction) * 10 ** (9 - len(fraction)), 0)
    return values, sure
