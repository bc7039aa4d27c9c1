"""Times: exact to the nanosecond, in both directions."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import TimeError
from replaylab.timestamps import (
    NS_PER_DAY,
    check_time,
    date_key,
    decimal_to_ns,
    is_day,
    iso,
    now_ns,
    parse_ns,
    period_ns,
    to_ns,
)

FIRST, LAST = parse_ns("1678-01-01T00:00:00Z"), parse_ns("2261-12-31T23:59:59.999999999Z")
TIMES = st.integers(FIRST, LAST)


@settings(max_examples=200, deadline=None)
@given(TIMES)
def test_iso_and_parse_are_inverse_to_the_nanosecond(ns):
    text = iso(ns)
    assert parse_ns(text) == ns
    assert len(text) in (24, 27, 30), "milliseconds, or six or nine decimals where needed"


@settings(max_examples=100, deadline=None)
@given(TIMES, st.integers(-1439, 1439))
def test_an_offset_moves_the_text_and_not_the_time(ns, minutes):
    shifted = iso(ns + minutes * 60_000_000_000)
    if not FIRST <= ns + minutes * 60_000_000_000 <= LAST:
        return
    offset = f"{'+' if minutes >= 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    assert parse_ns(shifted[:-1] + offset) == ns
    assert parse_ns(shifted[:-1] + offset.replace(":", "")) == ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00", 0),
        ("1970-01-01 00:00:01", 1_000_000_000),
        ("1970-01-01T00:00:00.1Z", 100_000_000),
        ("1970-01-01T00:00:00,000000001z", 1),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("2025-11-18T10:00:00.123456789Z", 1_763_460_000_123_456_789),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000_000),
    ],
)
def test_known_times(text, ns):
    assert parse_ns(text) == ns


@pytest.mark.parametrize(
    "text",
    ["", "now", "2025", "2025-1-1", "2025-02-30", "2025-11-18T", "2025-11-18T10", "2025-11-18T25:00", "2025-W01-1",
     "2025-11-18T10:00:00.0000000001Z", "2025-11-18T10:00:00 Z", " 2025-11-18", "1677-12-31", "2262-01-01",
     "٢٠٢٥-01-01", "2025-11-18T10:00:00+24:00", "2025-11-18\n", None, 5, b"2025-11-18"],
)  # fmt: skip
def test_what_is_not_a_time_says_what_was_expected_and_found(text):
    with pytest.raises(TimeError, match=r"^expected .*found") as caught:
        parse_ns(text)
    assert repr(text) in str(caught.value)


def test_to_ns_takes_what_users_have():
    expected = 1_763_460_000_000_000_000
    assert to_ns("2025-11-18T10:00:00Z") == expected
    assert to_ns(datetime(2025, 11, 18, 10)) == expected  # noqa: DTZ001 - a naive time is UTC
    assert to_ns(datetime(2025, 11, 18, 12, tzinfo=timezone(timedelta(hours=2)))) == expected
    assert to_ns(datetime(2025, 11, 18, 10, 0, 0, 1, tzinfo=UTC)) == expected + 1_000
    assert to_ns(date(2025, 11, 18)) == expected - 10 * 3_600 * 10**9
    assert to_ns(pd.Timestamp("2025-11-18T10:00:00.123456789Z")) == expected + 123_456_789
    for wrong in (None, 5, 5.0):
        with pytest.raises(TimeError, match=r"expected an ISO string or a datetime"):
            to_ns(wrong)


@settings(max_examples=100, deadline=None)
@given(TIMES)
def test_date_key_is_the_utc_day(ns):
    assert date_key(ns) == iso(ns)[:10]
    assert parse_ns(date_key(ns)) <= ns < parse_ns(date_key(ns)) + NS_PER_DAY


def test_days_compare_as_texts_also_before_the_year_1000():
    assert date_key(-379_588 * NS_PER_DAY) == "0930-09-22"


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**18), 10**18), st.sampled_from([("s", 9), ("ms", 6), ("us", 3), ("ns", 0)]))
def test_decimal_texts_keep_every_digit(ns, unit):
    name, digits = unit
    sign, number = ("-" if ns < 0 else ""), str(abs(ns)).rjust(digits + 1, "0")
    text = sign + (f"{number[:-digits]}.{number[-digits:]}" if digits else number)
    assert decimal_to_ns(text, name) == ns


@pytest.mark.parametrize("text", ["1733011200.1234", "1709251200"])
def test_floats_would_be_wrong_in_the_last_digits(text):
    assert decimal_to_ns(text, "s") == int(text.replace(".", "").ljust(19, "0"))


@pytest.mark.parametrize(
    ("text", "unit"),
    [("1.0000000001", "s"), ("1e9", "s"), ("", "s"), ("1", "h"), ("nan", "s"), ("1.2.3", "ms")],
)
def test_decimals_that_are_refused(text, unit):
    with pytest.raises(TimeError):
        decimal_to_ns(text, unit)


def test_trailing_zeros_beyond_the_nanosecond_are_harmless():
    assert decimal_to_ns("1.0000000000", "s") == 10**9


def test_the_clock_is_the_wall_clock():
    assert abs(now_ns() - int(datetime.now(UTC).timestamp() * 1e9)) < 10**9


def test_a_time_that_is_none_is_refused_in_words():
    """pandas' NaT is a datetime to isinstance."""
    with pytest.raises(TimeError, match="found NaT"):
        to_ns(pd.NaT)


NEAR_TIMES = st.lists(
    st.sampled_from(
        ["2025", "19", "-", "11", "18", "T", "10", ":", "00", ".", "5", "123", "Z", "W01", "+01:00", " "]
    ),
    max_size=16,
).map("".join)


def is_time(text):
    try:
        parse_ns(text, clock=True)
    except TimeError:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(NEAR_TIMES | TIMES.map(iso) | st.tuples(TIMES.map(iso), st.integers(0, 29), st.characters()).map(
    lambda case: case[0][: case[1]] + case[2] + case[0][case[1] + 1 :]
))  # fmt: skip
def test_the_fast_check_accepts_what_the_parser_accepts(text):
    try:
        check_time(text)
    except TimeError:
        assert not is_time(text)
    else:
        assert is_time(text)


def test_a_record_needs_a_clock():
    for text in ("2025-11-18", "", None, 5):
        with pytest.raises(TimeError, match="expected an ISO time such as"):
            check_time(text)
        with pytest.raises(TimeError):
            parse_ns(text, clock=True)


@settings(max_examples=100, deadline=None)
@given(TIMES.map(date_key) | NEAR_TIMES)
def test_a_day_is_ten_characters_of_the_calendar(text):
    try:
        expected = len(text) == 10 and parse_ns(text) % NS_PER_DAY == 0
    except TimeError:
        expected = False
    assert is_day(text) == expected


@pytest.mark.parametrize(
    ("every", "ns"),
    [
        ("500ms", 500_000_000),
        ("30s", 30 * 10**9),
        ("5m", 300 * 10**9),
        ("1h", 3600 * 10**9),
        ("1d", NS_PER_DAY),
    ],
)
def test_a_period_is_a_count_of_a_unit(every: str, ns: int) -> None:
    """A string and a timedelta of the same length are the same period."""
    assert period_ns(every) == ns == period_ns(timedelta(microseconds=ns // 1000))


@pytest.mark.parametrize("every", ["1w", "h", "0m", "1.5h", "", " 1h", "-1h", 5, timedelta(0)])
def test_what_is_no_period_is_refused(every: object) -> None:
    with pytest.raises(TimeError, match="period"):
        period_ns(every)  # type: ignore[arg-type]
