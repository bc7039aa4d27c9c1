"""The clock, the meter, coalescing and the recorder, each by itself."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaylab.errors import LogWriteError, RecordError, ReplayError
from replaylab.features import OrderBook
from replaylab.paths import DataRoot
from replaylab.records import StateEvent
from replaylab.replay.checkpoints import RunRecorder
from replaylab.replay.player import Meter, Pacer, check_speed, coalesce


@given(st.integers(0, 10**18), st.integers(0, 10**15), st.sampled_from([0.1, 1.0, 7.0, 100.0]))
def test_deadlines_do_not_drift(start: int, distance: int, speed: float) -> None:
    """Every deadline comes from the same origin, however far away it is."""
    pacer = Pacer(speed)
    pacer.begin(start)
    assert abs((pacer.due(start + distance) - pacer.due(start)) - distance / speed) <= 1


def test_waiting_ends_at_the_deadline_and_not_before() -> None:
    wake = threading.Event()
    for wait in (0.0, 0.0001, 0.003, 0.02):
        deadline = time.monotonic_ns() + round(wait * 1e9)
        assert Pacer.wait_until(deadline, wake)
        assert time.monotonic_ns() >= deadline
    wake.set()
    assert not Pacer.wait_until(time.monotonic_ns() + 10**12, wake)


def test_a_wait_of_centuries_can_be_begun() -> None:
    wake = threading.Event()
    threading.Timer(0.05, wake.set).start()
    assert not Pacer.wait_until(time.monotonic_ns() + 10**19, wake)


@pytest.mark.parametrize("speed", [0, -1, math.nan, "x", "7200", "inf", None, True])
def test_wrong_speeds_are_refused(speed: object) -> None:
    """A string that holds a number, too: ``float("7200")`` would hide a value that was never converted."""
    with pytest.raises(ReplayError, match="speed factor"):
        check_speed(speed)  # type: ignore[arg-type]
    assert check_speed(np.float64(2)) == 2.0
    assert check_speed(math.inf) == math.inf


def test_meter() -> None:
    meter = Meter(10)
    assert meter.lateness() is None
    values = np.random.default_rng(1).integers(0, 10**7, 5_000)
    for value in values.tolist():
        meter.note(value)
    found = meter.lateness(exact=True)
    assert found is not None
    latest = values[-1_024:] / 1e6
    assert found.p50 == pytest.approx(np.percentile(latest, 50))
    assert found.p99 == pytest.approx(np.percentile(latest, 99))
    assert found.max == values.max() / 1e6


def test_coalescing_keeps_the_newest_of_each_kind_in_order() -> None:
    late: list[Any] = [
        (0, "MARKET_TRADE", "A", {"price": 1}),
        (1, "MARKET_BOOK", "A", {"bids": [[1, 1]], "asks": []}),
        (2, "MARKET_TRADE", "B", {"price": 2}),
        (3, "MARKET_TRADE", "A", {"price": 3, "offMarket": True}),
        (4, "MARKET_TRADE", "A", {"price": 4}),
        (5, "MARKET_BOOK", "A", {"bids": [[2, 1]], "asks": []}),
    ]
    assert [index for index, *_ in coalesce(late)] == [2, 3, 4, 5]
    bad: list[Any] = [
        (0, "MARKET_BOOK", "A", {"bids": "x", "asks": []}),
        (1, "MARKET_BOOK", "A", {"kind": "delta", "bids": [], "asks": []}),
    ]
    assert coalesce(bad) == bad


LEVELS = st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(0, 3).map(float)), max_size=4)
BOOKS = st.tuples(st.sampled_from(["snapshot", "delta"]), LEVELS, LEVELS)


@given(st.lists(BOOKS, max_size=10))
def test_a_book_that_lost_its_late_deltas_is_the_same_book(found: list[Any]) -> None:
    """Merged deltas leave the book of a handler as all of them would."""
    payloads = []
    for kind, bids, asks in found:
        # One quantity per level, as exchanges send it.
        sides = {"bids": dict(bids), "asks": dict(asks)}
        if kind == "snapshot":
            sides = {name: {p: q for p, q in side.items() if q > 0} for name, side in sides.items()}
        payloads.append(
            {"kind": kind} | {name: [[p, q] for p, q in side.items()] for name, side in sides.items()}
        )
    whole, merged = OrderBook(), OrderBook()
    for payload in payloads:
        assert whole.apply(payload)
    for *_, payload in coalesce([(n, "MARKET_BOOK", "A", payload) for n, payload in enumerate(payloads)]):
        assert merged.apply(payload)
    assert whole.top(99) == merged.top(99)


def state_event(number: int, symbol: str = "AAA") -> StateEvent:
    return StateEvent(
        timestamp="2025-11-18T10:00:00.000Z",
        symbol=symbol,
        from_state="IDLE",
        to_state="IDLE",
        event_type="SCORING_UPDATE",
        reason="test",
        extra={"score": number},
    )


def test_the_recorder_writes_in_large_pieces_and_its_digest_is_over_every_record(tmp_path: Path) -> None:
    recorder = RunRecorder(DataRoot(tmp_path))
    path = tmp_path / "events" / "AAA.jsonl"
    recorder.log_state_event("AAA", state_event(1))
    assert not path.exists()
    recorder.flush()
    recorder.log_state_event("AAA", state_event(2))
    recorder.log_state_event("AAA", state_event(3))
    digest = recorder.digest
    recorder.flush()
    assert path.read_bytes().count(b"\n") == 3
    assert digest == recorder.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    recorder.begin_again()
    assert not path.exists()
    assert recorder.digest == hashlib.sha256().hexdigest()
    for number in range(10_000):
        recorder.log_state_event("AAA", state_event(number))
    assert path.stat().st_size > 1_000_000


def test_the_recorder_refuses_what_is_no_record(tmp_path: Path) -> None:
    recorder = RunRecorder(DataRoot(tmp_path))
    bad = state_event(1)
    bad.extra["score"] = math.nan
    with pytest.raises(RecordError, match="score"):
        recorder.log_state_event("AAA", bad)


def test_a_run_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    recorder = RunRecorder(DataRoot(tmp_path))
    recorder.log_state_event("AAA", state_event(1))
    with pytest.raises(LogWriteError):
        recorder.flush()
