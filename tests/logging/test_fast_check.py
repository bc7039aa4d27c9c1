"""The fast check of a state event against the full one: the same line, or the same refusal."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaylab.config import LoggingConfig
from replaylab.errors import RecordError
from replaylab.logging import Logger
from replaylab.logging.fast_check import FastCheck, Redactor
from replaylab.records import StateEvent, encode_record

GOOD: dict[str, Any] = {
    "timestamp": "2025-11-18T10:00:00.123Z",
    "symbol": "BTCUSDT",
    "fromState": "IDLE",
    "toState": "IDLE",
    "eventType": "SCORING_UPDATE",
    "reason": "score below threshold",
    "extra": {"score": 0.4, "components": {"flow": 0.1}},
}
REDACTOR = Redactor(LoggingConfig().redact)


class Text(str):
    __slots__ = ()


keys = st.sampled_from(
    ["score", "side", "components", "flow", "apiKey", "accessToken", "tokens", "ž"]
) | st.text(max_size=3)
odd_values = st.sampled_from(
    [
        *(
            math.nan,
            math.inf,
            -math.inf,
            np.float64(0.5),
            np.float64("nan"),
            np.int64(3),
            np.bool_(True),
            Decimal("0.5"),
        ),
        *(
            2**63,
            2**64,
            -(2**64),
            10**400,
            1.7976931348623157e308,
            b"x",
            Text("x"),
            (0.5, 1),
            {1, 2},
            "\ud83d",
        ),
        dt.datetime(2025, 11, 18, tzinfo=dt.UTC),
    ]
)
values = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.text(max_size=4) | odd_values
deep = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys | st.integers(0, 2), inner, max_size=2),
)
stamps = st.sampled_from(
    [
        *(
            "2025-11-18T10:00:00.123456789Z",
            "2025-11-18T10:00:00Z",
            "2025-11-18t10:00:00Z",
            "2025-11-18T10:00:00z",
        ),
        *("2025-11-18 10:00:00Z", "2025-11-18T10:00:00+01:00", "2025-11-18T10:00", "1600-01-01T00:00:00Z"),
        *(
            "2025-02-29T10:00:00Z",
            "2025-11-18T10:00:60Z",
            "2025-11-18T10:00:00.1234567890Z",
            "",
            "yesterday",
            "2025-11-18",
        ),
    ]
)


@st.composite
def events(draw: st.DrawFn) -> dict[Any, Any]:
    event: dict[Any, Any] = {**GOOD, "extra": draw(st.dictionaries(keys, deep, max_size=3) | deep)}
    if draw(st.booleans()):
        event["timestamp"] = draw(stamps | deep)
    if draw(st.integers(0, 3)) == 0:
        event[draw(st.sampled_from(sorted(GOOD)))] = draw(deep)
    if draw(st.integers(0, 3)) == 0:
        event[draw(keys | st.integers())] = draw(deep)
    if draw(st.integers(0, 5)) == 0:
        del event[draw(st.sampled_from(sorted(GOOD)))]
    return event


def fully_checked(event: dict[Any, Any]) -> bytes:
    line = encode_record(StateEvent, event)
    plain = orjson.loads(line)
    if plain["symbol"] != "BTCUSDT":
        raise RecordError("another symbol")
    return orjson.dumps(REDACTOR.redact(plain)) if REDACTOR.has_secret(plain) else line


@pytest.fixture(scope="module")
def logger(tmp_path_factory: pytest.TempPathFactory) -> Logger:
    return Logger(tmp_path_factory.mktemp("root"))


@given(events())
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_line_is_that_of_the_full_check_whatever_was_learned_before(
    logger: Logger, event: dict[Any, Any]
) -> None:
    """One logger sees all the events: what it learned of one must let no other pass that would be refused."""
    path = Path(logger.root.events("BTCUSDT"))
    before = path.stat().st_size if path.exists() else 0
    try:
        expected = fully_checked(event) + b"\n"
    except RecordError:
        expected = b""
        with pytest.raises(RecordError):
            logger.log_state_event("BTCUSDT", event)
    else:
        logger.log_state_event("BTCUSDT", event).result()
    assert (path.read_bytes()[before:] if path.exists() else b"") == expected


def test_what_was_learned_passes_and_other_keys_do_not() -> None:
    """An event like the last one needs no full check."""
    check = FastCheck()
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(GOOD, check.form)
    check.learn(GOOD["extra"])
    msgspec.convert(GOOD, check.form)
    msgspec.convert({**GOOD, "extra": {"flow": "x", "score": [1, 0.5], "components": {}}}, check.form)
    for extra in (
        {"apiKey": 1},
        {"score": math.nan},
        {"components": {"flow": -math.inf}},
        {"score": {"flow": {"flow": 1}}},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**GOOD, "extra": extra}, check.form)


def test_a_program_that_invents_keys_does_not_make_the_check_grow() -> None:
    check = FastCheck()
    for n in range(1000):
        check.learn({f"key{n}": 1})
    form = check.form
    check.learn({"one more": 1})
    assert check.form is form
    msgspec.convert({**GOOD, "extra": {"key1": 1}}, form)


def test_keys_of_events_with_secrets_are_not_learned(tmp_path: Path) -> None:
    """Also not the harmless ones beside them: the same event again is redacted again."""
    with Logger(tmp_path) as logger:
        for _ in range(3):
            logger.log_state_event(
                "BTCUSDT", {**GOOD, "extra": {"score": 1, "auth": {"apiKey": "k-123"}}}
            ).result()
    text = (tmp_path / "events" / "BTCUSDT.jsonl").read_text()
    assert text.count("[redacted]") == 3
    assert "k-123" not in text


def test_threads_that_log_new_keys_at_once_do_not_crash_the_process(tmp_path: Path) -> None:
    """A new key makes a new type, which msgspec completes at its first use: only by one thread."""
    code = """
import sys, threading
from replaylab.logging import Logger
from tests.logging.sample_records import state_event
sys.setswitchinterval(1e-5)
for round in range(6):
    logger = Logger(f"{sys.argv[1]}/{round}")
    def busy(name):
        for n in range(60):
            logger.log_state_event("BTCUSDT", state_event(extra={f"{name}{n}": 1}))
    threads = [threading.Thread(target=busy, args=(name,)) for name in "abcd"]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    logger.close()
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
