"""Times as exact integers: nanoseconds since 1970 in UTC, and their ISO strings.

The only parser and formatter of ISO time. Compiled and columnar forms elsewhere are held equal to these by tests.
No float is ever between a string and its nanoseconds: ``int(float(text) * 1e9)`` is wrong in the last digits.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from replaylab.errors import TimeError

__all__ = [
    "NS_PER_DAY",
    "check_time",
    "date_key",
    "decimal_to_ns",
    "is_day",
    "iso",
    "now_ns",
    "parse_ns",
    "period_ns",
    "to_ns",
]

NS_PER_DAY = 86_400_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ]((?!24)\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?(Z|z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_DECIMAL = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?", re.ASCII)
_PERIODS = {
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": NS_PER_DAY,
}
_DIGITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}
# Polars, pandas and numpy hold nanoseconds in 64 bits; the last year that fits whole is 2261.
_MIN_YEAR, _MAX_YEAR = 1678, 2261


def parse_ns(text: str, *, clock: bool = False) -> int:
    """Return the nanoseconds since 1970 (UTC) of an ISO 8601 string; exact to the last digit.

    >>> parse_ns("2025-11-18T10:00:00.123456789Z")
    1763460000123456789

    A date, optionally a time with up to nine decimals, optionally ``Z`` or an offset; without one it is UTC. With
    ``clock=True`` the time of day is required, as in every record. Raises TimeError for anything else.
    """
    match = _ISO.fullmatch(text) if isinstance(text, str) else None
    if match is None or (clock and match[2] is None):
        raise TimeError(f"expected an ISO time such as 2025-11-18T10:00:00.123Z, found {text!r:.200}")
    day, time, fraction, zone = match.groups()
    try:
        offset = "+00:00" if zone in (None, "Z", "z") else zone
        moment = datetime.fromisoformat(f"{day}T{time or '00:00:00'}{offset}")
    except ValueError as error:
        raise TimeError(f"expected an ISO time, found {text!r:.200}: {error!s:.200}") from None
    if not _MIN_YEAR <= moment.year <= _MAX_YEAR:
        raise TimeError(f"expected a time in the years {_MIN_YEAR} to {_MAX_YEAR}, found {text!r:.200}")
    return _datetime_ns(moment) + (int(fraction.ljust(9, "0")) if fraction else 0)


def check_time(text: str) -> None:
    """Raise TimeError unless ``parse_ns(text, clock=True)`` accepts ``text``; several times as fast for most.

    >>> check_time("2025-11-18T10:00:00.123Z")
    """
    # datetime's own parser is in C, but accepts more forms (weeks, no colons): the punctuation is compared first.
    if (
        isinstance(text, str)
        and (len(text) == 20 or (22 <= len(text) <= 27 and text[19] == "."))
        and text[10] == "T"
        and text[-1] == "Z"
        and text[7] == "-"
        and text[13] == ":"
        and text[16] == ":"
        and text[:2] in ("20", "19")
        and text[11:13] != "24"  # which Python 3.14 accepts
    ):
        try:
            datetime.fromisoformat(text)
            return
        except ValueError:
            pass  # parse_ns names the reason
    parse_ns(text, clock=True)


def is_day(text: str) -> bool:
    """Return whether a string is a day of the calendar as ``YYYY-MM-DD``.

    >>> is_day("2025-11-18"), is_day("2025-11-31")
    (True, False)
    """
    if not isinstance(text, str) or len(text) != 10:
        return False
    try:
        parse_ns(text)
    except TimeError:
        return False
    return True


def to_ns(value: str | datetime | date) -> int:
    """Return nanoseconds since 1970 of an ISO string, a datetime or a date; without a zone it is UTC.

    >>> to_ns(datetime(2025, 11, 18, 10)) == to_ns("2025-11-18T10:00:00Z")
    True

    A pandas Timestamp keeps its nanoseconds. Raises TimeError.
    """
    if isinstance(value, str):
        return parse_ns(value)
    if isinstance(value, datetime) and value == value:  # pandas' NaT is a datetime, and equals nothing
        aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        # pandas.Timestamp is a datetime with an extra field of 0 to 999 nanoseconds.
        return _datetime_ns(aware) + int(getattr(value, "nanosecond", 0))
    if isinstance(value, date) and not isinstance(value, datetime):
        return _datetime_ns(datetime(value.year, value.month, value.day, tzinfo=UTC))
    raise TimeError(f"expected an ISO string or a datetime, found {value!r:.200}")


def iso(ns: int) -> str:
    """Return the ISO string of nanoseconds since 1970: milliseconds, or six or nine decimals where needed.

    >>> iso(1763460000123000000), iso(1763460000123456789)
    ('2025-11-18T10:00:00.123Z', '2025-11-18T10:00:00.123456789Z')
    """
    seconds, rest = divmod(ns, 1_000_000_000)
    if rest % 1_000_000 == 0:
        decimals = f"{rest // 1_000_000:03d}"
    elif rest % 1_000 == 0:
        decimals = f"{rest // 1_000:06d}"
    else:
        decimals = f"{rest:09d}"
    return f"{_second_text(seconds)}.{decimals}Z"


# Logs stamp many records of the same second, one after the other.
@lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"


def date_key(ns: int) -> str:
    """Return the UTC day as ``YYYY-MM-DD``; years have four digits, so that days compare as strings.

    >>> date_key(1763460000123000000)
    '2025-11-18'
    """
    return (_EPOCH + timedelta(days=ns // NS_PER_DAY)).date().isoformat()


def decimal_to_ns(text: str, unit: str) -> int:
    """Return whole nanoseconds of a decimal number of ``unit`` ("s", "ms", "us" or "ns"), without rounding.

    >>> decimal_to_ns("1733011200.1234", "s")
    1733011200123400000

    Raises TimeError when the string is not a plain decimal number or is finer than a nanosecond.
    """
    match = _DECIMAL.fullmatch(text.strip())
    if match is None or unit not in _DIGITS:
        raise TimeError(f"expected a decimal number of s, ms, us or ns, found {text!r:.200} in {unit!r:.200}")
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    digits = _DIGITS[unit]
    if len(fraction) > digits:
        raise TimeError(f"{text!r:.200} {unit} is finer than a nanosecond")
    value: int = int(whole) * 10**digits + int(fraction.ljust(digits, "0") or 0)
    return -value if sign == "-" else value


def now_ns() -> int:
    """Return the wall clock in nanoseconds since 1970. Nothing in ``trading/`` may call it."""
    return _datetime_ns(datetime.now(UTC))


def _datetime_ns(moment: datetime) -> int:
    return ((moment - _EPOCH) // _MICROSECOND) * 1_000


def period_ns(every: str | timedelta) -> int:
    """Return the nanoseconds of a period: a timedelta, or a string such as "500ms", "30s", "5m", "1h", "1d".

    >>> period_ns("5m")
    300000000000

    Raises TimeError for anything else, and for a period that is not above 0.
    """
    if isinstance(every, timedelta):
        length = (every // timedelta(microseconds=1)) * 1_000
    else:
        match = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", every) if isinstance(every, str) else None
        if match is None:
            raise TimeError(
                f'expected a period such as "500ms", "30s", "5m", "1h", "1d" or a timedelta, found {every!r:.200}'
            )
        length = int(match[1]) * _PERIODS[match[2]]
    if length <= 0:
        raise TimeError(f"expected a period above 0, found {every!r:.200}")
    return length
