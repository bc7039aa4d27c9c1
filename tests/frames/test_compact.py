"""The quick reader takes what loggers write, and gives exactly what the line by line reader gives."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.frames import decode
from replaylab.frames.limits import HUGE
from replaylab.frames.lines import whole
from replaylab.frames.logs import EVENTS, REPLAY_EVENTS
from replaylab.records import StateEvent, encode_record
from tests.frames.slow_loader import load_state_events

GOOD: dict[str, Any] = {
    "timestamp": "2025-11-18T10:00:00.123Z",
    "symbol": "BTCUSDT",
    "fromState": "IDLE",
    "toState": "ARMED",
    "eventType": "SCORING_UPDATE",
    "reason": "r",
    "extra": {"score": 0.5},
}
# Texts around the twelve bytes that fit into a view, and beyond; without what JSON escapes.
words = st.text(
    st.characters(exclude_characters='"\\', min_codepoint=32, exclude_categories=["Cs"]), max_size=16
)


def as_text(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


@given(
    st.lists(
        st.tuples(words, words, words, st.dictionaries(words, words | st.integers(), max_size=3)), min_size=1
    )
)
@settings(max_examples=150, deadline=None)
def test_compact_lines_are_read_quickly_and_right(rows: list[tuple[str, str, str, dict[str, Any]]]) -> None:
    events = [
        {**GOOD, "symbol": symbol, "fromState": state, "reason": reason, "extra": extra}
        for symbol, state, reason, extra in rows
    ]
    data = b"".join(map(as_text, events))
    assert EVENTS.compact is not None
    # A text such as 0E100 might be a number beyond all doubles: it asks for a closer look.
    assert EVENTS.compact.read(data) is not None or re.search(HUGE, data.decode())
    quick = decode.decode_block(EVENTS, whole(data), "f")
    slow = decode._by_line(EVENTS, whole(data), "f")
    assert quick.frame.equals(slow.frame)
    assert (quick.lines, quick.rows) == (slow.lines, slow.rows)
    assert [json.loads(text) for text in quick.frame["extra"]] == [event["extra"] for event in events]


def test_what_the_logger_writes_is_compact() -> None:
    record = StateEvent.from_dict(GOOD)
    assert EVENTS.compact is not None
    assert EVENTS.compact.read(encode_record(StateEvent, record) + b"\n") is not None
    event = {"timestamp": GOOD["timestamp"], "type": "X", "symbol": "B", "payload": {"a": 1}}
    assert REPLAY_EVENTS.compact is not None
    assert REPLAY_EVENTS.compact.read(as_text(event)) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"r"', b'"a\\nb"'),
        lambda line: line.replace(b'"r"', b'"a\\"b"'),
        lambda line: line.replace(b'"r"', b'"a\\",\\"extra\\":{"'),
        lambda line: line.replace(b'"r"', b'"r","extra":{"x":1}'),
        lambda line: line.replace(b'"r"', b'"r","zzz":1'),
        lambda line: line.replace(b"}}\n", b'},"late":{"a":1}}\n'),
        lambda line: line.replace(b"}}\n", b'},"extra":{"a":1}}\n'),
        lambda line: line.replace(b"}}\n", b"} }\n"),
        lambda line: line.replace(b"}}\n", b"}}\r\n"),
        lambda line: line.replace(b"}}\n", b"}}}\n"),
        lambda line: line.replace(b"}}\n", b"}\n"),
        lambda line: line.replace(b'"score":', b'"score":\n'),
        lambda line: line[:-1] + line,
        lambda line: line + b"\n" + line[:-1] + line,
        lambda line: line.replace(b'"symbol":"BTCUSDT",', b""),
        lambda line: line.replace(b'"BTCUSDT"', b"7"),
        lambda line: line.replace(b".123Z", b"Z"),
        lambda line: line.replace(b"-11-18T", b"-11-31T"),
        lambda line: line.replace(b"0.5", b"1e999"),
        lambda line: line.replace(b"0.5", b'"\xff"'),
        lambda line: line.replace(b'"r"', b'"\xff"'),
        lambda line: line.replace(b'"r"', b'"\x07"'),
        lambda line: line.replace(b'{"score":0.5}', b"[]"),
        lambda line: line.replace(b'{"score":0.5}', b"{}"),
        lambda line: line[:-1],
        lambda line: b" " + line,
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_line_that_is_not_compact_is_read_as_the_slow_loader_reads_it(change: Any, place: int) -> None:
    lines = [as_text(GOOD)] * 3
    lines[place] = change(lines[place])
    data = b"".join(lines)
    loaded = decode.decode_block(EVENTS, whole(data), "f")
    rows, rejects, blank = load_state_events(data)
    assert loaded.rejects["line"].to_list() == rejects
    assert loaded.blank == len(blank)
    assert loaded.frame["line"].to_list() == [row["line"] for row in rows]
    assert loaded.frame["reason"].to_list() == [row["reason"] for row in rows]
    assert [json.loads(text) for text in loaded.frame["extra"]] == [row["extra"] for row in rows]
    unknown = [None if text is None else json.loads(text) for text in loaded.frame["unknown_fields"]]
    assert unknown == [row["unknown"] for row in rows]
