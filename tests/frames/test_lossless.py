"""The fast loader against the slow one: the same rows, the same rejects, every line accounted for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.frames import scanner
from replaylab.frames.jsonl import Loaded, blocks, concat, decode_block, whole
from replaylab.frames.logs import EVENTS, ORDERS, REPLAY_EVENTS, load_events
from replaylab.frames.scanner import SLACK, scan_lines
from replaylab.frames.schema import LogSchema
from replaylab.records import ReplayEvent
from tests.frames.slow_loader import load_state_events

GOOD: dict[str, Any] = {
    "timestamp": "2025-11-18T10:00:00.123Z",
    "symbol": "BTCUSDT",
    "fromState": "IDLE",
    "toState": "ARMED",
    "eventType": "SCORING_UPDATE",
    "reason": "score above threshold",
    "extra": {"score": 0.5, "note": "日本 }\n{ \\ é"},
}
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
stamps = st.sampled_from(
    [
        "2025-11-18T10:00:00.123Z",
        "2024-02-29T23:59:59Z",
        "2025-11-18T10:00:00.123456789Z",
        "2025-11-18T10:00:00+05:30",
        "2025-11-18 10:00",
        "2025-02-29T10:00:00.000Z",
        "2025-11-18T24:00:00.000Z",
        "2025-11-18",
        "yesterday",
    ]
)


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    event = dict(GOOD)
    event["extra"] = draw(st.dictionaries(st.text(max_size=5), plain, max_size=3) | plain)
    if draw(st.booleans()):
        event["timestamp"] = draw(stamps)
    if draw(st.integers(0, 4)) == 0:
        event[draw(st.text(max_size=6))] = draw(plain)
    if draw(st.integers(0, 6)) == 0:
        del event[draw(st.sampled_from(sorted(event)))]
    if draw(st.integers(0, 6)) == 0:
        event[draw(st.sampled_from(sorted(event)))] = draw(plain)
    keys = draw(st.permutations(sorted(event))) if draw(st.booleans()) else list(event)
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    text = json.dumps(
        {key: event[key] for key in keys}, ensure_ascii=draw(st.booleans()), separators=separators
    )
    return text.encode("utf-8", "surrogatepass")


odd_lines = st.sampled_from(
    [
        b"",
        b" \t ",
        b"\r",
        b"{}",
        b"[]",
        b"null",
        b"}",
        b"{",
        b"\x00\x00\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"extra":NaN}',
        json.dumps(GOOD).encode() + b" " + json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode().replace(b"0.5", b"1e999"),
        json.dumps(GOOD).encode().replace(b"0.5", b"1e-999"),
        json.dumps(GOOD).encode().replace(b"0.5", b'"1e999"'),
        json.dumps(GOOD).encode().replace(b"ARMED", b"\\ud83d"),
        json.dumps(GOOD).encode().replace(b"ARMED", b"\\ud83d\\ude00"),
        json.dumps(GOOD).encode().replace(b"0.5", b'"\\udc00"'),
        json.dumps(GOOD).encode().replace(b"0.5", b'"\xed\xa0\x80"'),
        json.dumps(GOOD).encode().replace(b"SCORING", b"\x01"),
    ]
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    parts = draw(st.lists(json_lines() | json_lines() | odd_lines, max_size=8))
    data = end.join(parts) + (end if draw(st.booleans()) else b"")
    if data and draw(st.booleans()):
        place = draw(st.integers(0, len(data) - 1))
        damage = draw(st.sampled_from(["cut", "flip", "zeros"]))
        if damage == "cut":
            data = data[:place]
        elif damage == "flip":
            data = data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
        else:
            data = data[:place] + b"\x00" * 20 + draw(st.sampled_from([b"", b"\n"]))
    return data


def load(data: bytes, size: int) -> Loaded:
    parts = [decode_block(EVENTS, block, "f") for block in blocks(io.BytesIO(data), size=size)]
    return concat(parts, EVENTS.frame)


def load_quickly(data: bytes, size: int, schema: LogSchema = EVENTS, few: int = scanner._FEW) -> Loaded:
    """The same through the compiled scanner, and what it leaves through the blocks."""
    file = io.BytesIO(data)
    parts: list[Loaded] = []
    fields = scanner.fields_for(schema)
    assert fields is not None
    pieces = scanner.scan_blocks(file, schema, fields, "f", start=0, line=1, end=None, piece=size)
    with mock.patch.object(scanner, "_FEW", few):
        while True:
            try:
                parts.append(next(pieces)[0])
            except StopIteration as end:
                start, line = end.value
                break
    parts += [decode_block(schema, block, "f") for block in blocks(file, start=start, line=line, size=size)]
    return concat(parts, schema.frame)


def check_against_slow(data: bytes, size: int) -> None:
    check_way(load(data, size), data)
    check_way(load_quickly(data, size), data)
    # However many lines are odd, each by itself.
    check_way(load_quickly(data, size, few=0), data)


def check_way(loaded: Loaded, data: bytes) -> None:
    rows, rejects, blank = load_state_events(data)
    assert loaded.rejects["line"].to_list() == rejects, loaded.rejects.to_dicts()
    assert loaded.blank == len(blank)
    assert loaded.lines == loaded.rows + loaded.rejects.height + loaded.blank
    assert loaded.lines == len(rows) + len(rejects) + len(blank)
    found = [
        {
            "ns": row["ns"],
            "symbol": row["symbol"],
            "fromState": row["from_state"],
            "toState": row["to_state"],
            "eventType": row["event_type"],
            "reason": row["reason"],
            "extra": json.loads(row["extra"]),
            "unknown": None if row["unknown_fields"] is None else json.loads(row["unknown_fields"]),
            "line": row["line"],
        }
        for row in loaded.frame.with_columns(ns=loaded.frame["timestamp"].to_physical()).to_dicts()
    ]
    assert found == rows
    starts = [0]
    for text in data.split(b"\n"):
        starts.append(starts[-1] + len(text) + 1)
    assert loaded.rejects["offset"].to_list() == [starts[line - 1] for line in rejects]


@given(files(), st.sampled_from([1, 64, 700, 1 << 19]))
@settings(max_examples=400, deadline=None)
def test_rows_rejects_and_blank_lines_are_those_of_the_slow_loader(data: bytes, size: int) -> None:
    check_against_slow(data, size)


@given(st.lists(json_lines(), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_good_lines_in_any_key_order_load_the_same_in_blocks_of_any_size(lines: list[bytes]) -> None:
    data = b"\n".join(lines) + b"\n"
    for size in (1, 50, 1 << 19):
        check_against_slow(data, size)


def test_a_file_cut_at_any_byte_loads_and_accounts_for_every_line() -> None:
    line = json.dumps(GOOD, ensure_ascii=False).encode() + b"\n"
    data = line + b"\r\n" + line[:-1] + b"\r\n" + line
    for cut in range(len(data) + 1):
        check_against_slow(data[:cut], 1 << 19)


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_anywhere_in_the_last_line_never_raises(bit: int) -> None:
    line = json.dumps(GOOD, ensure_ascii=False).encode() + b"\n"
    for place in range(len(line), 2 * len(line)):
        data = bytearray(line * 2)
        data[place] ^= 1 << bit
        check_against_slow(bytes(data), 1 << 19)


def test_two_values_on_one_line_and_a_blank_line_do_not_hide_each_other() -> None:
    line = json.dumps(GOOD).encode()
    loaded = load(line + line + b"\n\n" + line + b"\n", 1 << 19)
    assert (loaded.rows, loaded.rejects.height, loaded.blank) == (1, 1, 1)
    assert loaded.frame["line"].to_list() == [3]


def test_a_value_over_two_lines_is_two_rejects() -> None:
    line = json.dumps(GOOD).encode().replace(b", ", b",\n", 1)
    loaded = load(line + b"\n", 1 << 19)
    assert (loaded.rows, loaded.rejects.height) == (0, 2)


def test_a_key_that_comes_late_in_a_large_file_is_kept() -> None:
    """Readers that infer a schema from the first lines lose such a key."""
    early = json.dumps(GOOD).encode() + b"\n"
    late = json.dumps({**GOOD, "botId": 7}).encode() + b"\n"
    loaded = load(early * 50_000 + late + early, 1 << 19)
    assert loaded.frame["unknown_fields"].drop_nulls().to_list() == ['{"botId":7}']
    assert loaded.frame.filter(unknown_fields=loaded.frame["unknown_fields"][50_000])["line"][0] == 50_001


def test_extra_and_unknown_fields_keep_their_text_to_the_letter() -> None:
    line = json.dumps(GOOD).encode()[:-1] + b', "big": 12345678901234567890123, "e": 1.0e1}'
    line = line.replace(b"0.5", b"0.50")
    loaded = load(line, 1 << 19)
    assert loaded.frame["extra"][0].startswith('{"score": 0.50, ')
    assert loaded.frame["unknown_fields"][0] == '{"big":12345678901234567890123,"e":1.0e1}'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"timestamp": "2025-13-18T10:00:00Z"}, "timestamp"),
        ({"timestamp": 5}, "StateEvent.timestamp: expected a string, found 5"),
        ({"extra": [1]}, "StateEvent.extra: expected an object, found [1]"),
        ({"extra": "x"}, "StateEvent.extra"),
        ({"reason": None}, "StateEvent.reason"),
    ],
)
def test_a_reject_names_the_field(change: dict[str, Any], reason: str) -> None:
    line = json.dumps({**GOOD, **change}).encode() + b"\n"
    loaded = load(json.dumps(GOOD).encode() + b"\n" + line, 1 << 19)
    row = loaded.rejects.to_dicts()[0]
    assert reason in row["reason"]
    assert (row["file"], row["line"], row["offset"]) == ("f", 2, len(json.dumps(GOOD)) + 1)
    assert row["text"] == line[:200].decode().rstrip("\n")


def test_missing_field_and_torn_tail_say_so() -> None:
    line = json.dumps({key: value for key, value in GOOD.items() if key != "reason"}).encode()
    loaded = load(line + b"\n" + json.dumps(GOOD).encode()[:40], 1 << 19)
    reasons = loaded.rejects["reason"].to_list()
    assert reasons[0].startswith("StateEvent.reason: this field is missing")
    assert reasons[1].startswith("torn last line: StateEvent: not valid JSON")


def test_a_tail_of_zeros_is_one_reject() -> None:
    loaded = load(json.dumps(GOOD).encode() + b"\n" + b"\x00" * 3_000_000, 1 << 19)
    assert (loaded.rows, loaded.rejects.height) == (1, 1)
    assert "NUL" in loaded.rejects["reason"][0]


@pytest.mark.parametrize(
    "number", ["1e309", "-1E+400", "1e0309", "9" * 309, "0." + "1" * 400, "1e-400", "1e308", "9" * 200]
)
@pytest.mark.parametrize("before", range(0, 130, 13))
def test_numbers_beyond_all_doubles_are_rejects_wherever_they_stand(number: str, before: int) -> None:
    """They are JSON, but later readers of the JSON could not read them."""
    line = (
        json.dumps({**GOOD, "extra": {"x" * before: 1, "n": 0}})
        .encode()
        .replace(b"0}", number.encode() + b"}")
    )
    data = json.dumps(GOOD).encode() + b"\n" + line + b"\n"
    check_against_slow(data, 1 << 19)


@pytest.mark.parametrize("depth", [200, 300, 900, 5000])
def test_a_deeply_nested_value_where_a_text_belongs_is_a_reject(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    line = json.dumps(GOOD).encode().replace(b'"IDLE"', deep)
    loaded = load(json.dumps(GOOD).encode() + b"\n" + line + b"\n", 1 << 19)
    assert (loaded.rows, loaded.rejects["line"].to_list()) == (1, [2])


@pytest.mark.parametrize("first", [b'{"a\xff":1}', b'{"a":1e999}'])
@pytest.mark.parametrize("others", [0, 1, 9])
def test_a_line_that_is_no_row_alone_is_none_beside_others(first: bytes, others: int) -> None:
    """A name that is there twice: the value that counts is fine, the one that it replaces is not."""
    good = json.dumps(GOOD).encode()
    twice = good.replace(b'"extra": ', b'"extra": ' + first + b', "extra": ')
    data = b"".join(line + b"\n" for line in [*[good] * others, twice])
    for loaded in (load(data, 1 << 19), load_quickly(data, 1 << 19), load_quickly(data, 1 << 19, few=0)):
        assert (loaded.rows, loaded.rejects.height) == (others, 1)


@pytest.mark.parametrize("depth", [50, 500, 1100, 5000, 200_000])
def test_nesting_that_nobody_can_read_is_a_reject(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    line = json.dumps({**GOOD, "extra": {"n": 0}}).encode().replace(b": 0}", b": " + deep + b"}")
    loaded = load(json.dumps(GOOD).encode() + b"\n" + line + b"\n", 1 << 19)
    assert loaded.lines == 2
    assert loaded.rejects.height == (depth > 1000)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"timestamp": stamps, "type": st.text(max_size=30)},
            optional={
                "symbol": st.none()
                | st.sampled_from(["A", "BTCUSDT", "a symbol of more than twelve bytes", "ž" * 6]),
                "payload": st.dictionaries(st.text(max_size=5), plain, max_size=3) | st.none(),
            },
        ),
        max_size=30,
    ),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_both_ways_give_the_same_frame_of_a_session(
    events: list[dict[str, Any]], ascii_only: bool, keep_text: bool
) -> None:
    """Symbols that are null or missing, texts beyond twelve bytes, the timestamp as it was written."""
    schema = LogSchema(ReplayEvent, keep_text=keep_text)
    lines = [json.dumps(event, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for event in events]
    data = b"".join(line + b"\n" for line in lines)
    careful = decode_block(schema, whole(data), "f")
    for few in (scanner._FEW, 0):
        loaded = load_quickly(data, 1 << 16, schema, few)
        assert loaded.frame.equals(careful.frame)
        assert loaded.rejects.equals(careful.rejects)
        assert (loaded.lines, loaded.rows, loaded.blank) == (careful.lines, careful.rows, careful.blank)


def test_the_scanner_takes_the_regular_form_only() -> None:
    """So that the quick way is one: of lines as Python, JavaScript and replaylab write them, none is left over."""
    regular = [
        json.dumps(GOOD),
        json.dumps(GOOD, ensure_ascii=False, separators=(",", ":")),
        json.dumps({key: GOOD[key] for key in sorted(GOOD)}),
        json.dumps({**GOOD, "timestamp": "2025-11-18T10:00:00Z", "extra": {}}) + "\r",
        json.dumps({**GOOD, "timestamp": "2024-02-29T10:00:00.123456+00:00", "reason": ""}),
        json.dumps(
            {**GOOD, "extra": {"a": [[], {}, [1, -0.5, 2e-7, True, False, None, "\u017e\n"]], "b": {"c": 0}}}
        ),
    ]
    odd = [
        json.dumps({**GOOD, "botId": 7}),
        json.dumps({**GOOD, "reason": "\u017euti"}),
        json.dumps({**GOOD, "timestamp": "2025-11-18T10:00:00"}),
        json.dumps({**GOOD, "extra": {"n": 0}}).replace(": 0", ": 01"),
        json.dumps(GOOD) + "x",
        "",
    ]
    texts = [line.encode() + b"\n" for line in (*regular, *odd)]
    data = b"".join(texts)
    fields = scanner.fields_for(EVENTS)
    assert fields is not None
    found = scanner._room(len(texts), len(fields), len(data))
    taken = scan_lines(np.frombuffer(bytearray(data + bytes(SLACK)), np.uint8), len(data), fields, found)
    assert (taken[0], taken[2]) == (len(regular), len(odd))
    assert found.line[: len(regular)].tolist() == list(range(len(regular)))
    assert found.odd[: len(odd), 0].tolist() == list(range(len(regular), len(texts)))


def test_logs_with_numbers_of_their_own_go_the_careful_way() -> None:
    assert scanner.fields_for(REPLAY_EVENTS) is not None
    assert scanner.fields_for(ORDERS) is None


def test_a_large_log_goes_the_quick_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the loader itself, over several pieces, with an odd line in each and a torn tail."""
    line = json.dumps(GOOD, ensure_ascii=False).encode() + b"\n"
    odd = json.dumps({**GOOD, "botId": 7}).encode() + b"\n"
    path = tmp_path / "events" / "BTCUSDT.jsonl"
    path.parent.mkdir()
    path.write_bytes((line * 9_999 + odd) * 5 + line[:50])
    sent: list[int] = []
    scan = scanner._scan
    monkeypatch.setattr(
        scanner, "_scan", lambda *given, **named: sent.append(given[3]) or scan(*given, **named)
    )
    loaded = load_events(tmp_path)
    assert len(sent) > 2
    assert (loaded.lines, loaded.rows, loaded.rejects.height) == (50_001, 50_000, 1)
    assert loaded.frame["line"].to_list() == list(range(1, 50_001))
    assert loaded.frame["unknown_fields"].drop_nulls().to_list() == ['{"botId":7}'] * 5
    assert loaded.rejects["offset"].to_list() == [path.stat().st_size - 50]
