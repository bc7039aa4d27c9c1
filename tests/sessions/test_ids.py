"""Ids of sessions that were given none."""

from __future__ import annotations

import pytest

from replaylab.paths import safe_name
from replaylab.sessions.options import BuildOptions, TypeFilter, generated_id


def make_id(start: str, end: str, *symbols: str) -> str:
    return generated_id(BuildOptions.check(start, end, symbols or ("BTCUSDT",), None, None))


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2025-11-18T10:00Z", "2025-11-18T11:00Z", "2025-11-18T10-11-BTCUSDT"),
        ("2025-11-18T10:30Z", "2025-11-18T11:15Z", "2025-11-18T10-30_11-15-BTCUSDT"),
        ("2025-11-18T10:00Z", "2025-11-18T11:15Z", "2025-11-18T10-00_11-15-BTCUSDT"),
        ("2025-11-18T10:30:05Z", "2025-11-18T11:15Z", "2025-11-18T10-30-05_11-15-00-BTCUSDT"),
        ("2025-11-18T22:00Z", "2025-11-19T02:00Z", "2025-11-18T22-2025-11-19T02-BTCUSDT"),
        ("2025-11-18T22:30Z", "2025-11-19T02:00Z", "2025-11-18T22-30_2025-11-19T02-00-BTCUSDT"),
        ("2025-11-18", "2025-11-19", "2025-11-18T00-2025-11-19T00-BTCUSDT"),
        ("2025-11-18T12:00+02:00", "2025-11-18T13:00+02:00", "2025-11-18T10-11-BTCUSDT"),
    ],
)
def test_the_range_is_in_the_id(start: str, end: str, expected: str) -> None:
    assert make_id(start, end) == expected


def test_symbols_are_in_the_id_in_the_order_given() -> None:
    start, end = "2025-11-18T10:00Z", "2025-11-18T11:00Z"
    assert make_id(start, end, "BTCUSDT", "AIUSDT") == "2025-11-18T10-11-BTCUSDT-AIUSDT"
    assert make_id(start, end, *"EDCBAFG") == "2025-11-18T10-11-E-D-C-B-A-and-2-more"
    assert make_id(start, end, "A", "A") == "2025-11-18T10-11-A"


def test_an_id_is_never_too_long_for_a_file_name() -> None:
    long = make_id("2025-11-18T10:00Z", "2025-11-18T11:00Z", *(f"币{number}" * 30 for number in range(5)))
    assert safe_name(f"{long}-123") == f"{long}-123"


def test_type_filter() -> None:
    types = TypeFilter(["SCORING_UPDATE", "EXECUTION_*"])
    assert [types.wants(kind) for kind in ("SCORING_UPDATE", "EXECUTION_ORDER", "SCORING_X")] == [
        True,
        True,
        False,
    ]
    assert not TypeFilter(["*"]).wants("STATE_EVENT")
    assert TypeFilter(["STATE_*"]).wants("STATE_EVENT")
    assert TypeFilter(["A", "B*", "C"]).without_match(["A", "BX"]) == ["C"]


def test_snapshots_of_metrics_are_taken_only_by_patterns_that_name_them() -> None:
    """The default and ``SCORING_*`` take signals, not the snapshots that repeat them."""
    for pattern in ("*", "SCORING*", "SCORING_*", "S*"):
        assert not TypeFilter([pattern]).wants("SCORING_SNAPSHOT")
    assert TypeFilter(["SCORING_S*"]).wants("SCORING_SNAPSHOT")
    assert TypeFilter(["REGIME_SNAPSHOT"]).wants("REGIME_SNAPSHOT")
