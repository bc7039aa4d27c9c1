from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import TimeError
from replaylab.frames.jsonl import parse_times
from replaylab.timestamps import iso, parse_ns

EARLIEST = datetime(1678, 1, 1)  # noqa: DTZ001 - Hypothesis asks for bounds without a zone
LATEST = datetime(2261, 12, 31)  # noqa: DTZ001
digits = st.integers(0, 9)


@st.composite
def near_times(draw: st.DrawFn) -> str:
    """Texts that look like times: right ones, and with fields out of their range or letters in the wrong place."""
    parts = [
        f"{draw(st.integers(1600, 2300)):04d}",
        f"{draw(st.integers(0, 13)):02d}",
        f"{draw(st.integers(0, 32)):02d}",
        f"{draw(st.integers(0, 24)):02d}",
        f"{draw(st.integers(0, 60)):02d}",
        f"{draw(st.integers(0, 60)):02d}",
    ]
    year, month, day, hour, minute, second = parts
    places = draw(st.integers(0, 10))
    decimals = "".join(str(draw(digits)) for _ in range(places))
    zone = draw(st.sampled_from(["Z", "Z", "Z", "", "z", "+05:30", "-0800", "+99:00"]))
    text = f"{year}-{month}-{day}T{hour}:{minute}:{second}{'.' if places else ''}{decimals}{zone}"
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.sampled_from(["x", " ", "٣", ",", "", "/", ":"])) + text[place + 1 :]
    return text


def check(texts: list[str]) -> None:
    values, bad = parse_times(texts)
    for text, value, refused in zip(texts, values.tolist(), bad.tolist(), strict=True):
        try:
            expected = parse_ns(text, clock=True)
        except TimeError:
            assert refused, text
        else:
            assert not refused, text
            assert value == expected, text


@given(st.lists(near_times(), max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_column_of_texts_is_read_as_each_text_alone(texts: list[str]) -> None:
    check(texts)
    for width in {len(text) for text in texts}:
        check([text for text in texts if len(text) == width])


@given(
    st.lists(st.datetimes(EARLIEST, LATEST), min_size=1, max_size=50),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_every_moment_of_the_usable_years_is_exact(moments: list[datetime], decimals: int) -> None:
    texts = [
        moment.replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S") + "." + str(7 * 10 ** (decimals - 1)) + "Z"
        for moment in moments
    ]
    check(texts)


def test_every_day_of_four_centuries_is_where_the_calendar_says() -> None:
    days = np.arange(np.datetime64("1800-01-01"), np.datetime64("2200-01-01"))
    values, bad = parse_times([f"{day}T00:00:00.000Z" for day in days])
    assert not bad.any()
    assert (values == days.astype("datetime64[ns]").astype(np.int64)).all()


@given(st.lists(st.integers(-9_000_000_000_000_000_000, 9_000_000_000_000_000_000), max_size=30))
@settings(max_examples=100, deadline=None)
def test_what_iso_writes_is_read_back(values: list[int]) -> None:
    found, bad = parse_times([iso(value) for value in values])
    assert found.tolist() == values
    assert not bad.any()


def test_texts_whose_lengths_only_add_up_to_a_regular_column_are_not_taken_for_one() -> None:
    good = "2025-11-18T10:00:00.123Z"
    values, bad = parse_times([good, good + good, ""])
    assert bad.tolist() == [False, True, True]
    assert values[0] == parse_ns(good, clock=True)
