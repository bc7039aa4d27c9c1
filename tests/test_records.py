"""Records: round trips, and errors that name the field, what was found and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab import records
from replaylab.errors import RecordError
from replaylab.records import (
    ExecutionSnapshot,
    FeatureSnapshot,
    FileError,
    HealthSnapshot,
    MarketTrade,
    OrderBookSnapshot,
    OrderLogRecord,
    Record,
    RegimeSnapshot,
    ReplayEvent,
    ReplayManifest,
    ReplayStatus,
    RetentionReport,
    RiskSnapshot,
    ScoringSnapshot,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
    decode_record,
    encode_record,
    find_not_finite,
)
from tests.logging import sample_records as sample

AT = "2025-11-18T10:00:00.000Z"
EXAMPLES: dict[type[Record], dict[str, Any]] = {
    StateEvent: sample.state_event(),
    TradeLogRecord: sample.trade(),
    OrderLogRecord: sample.order(),
    RiskSnapshot: sample.snapshots()["risk"],
    TpslSnapshot: sample.snapshots()["tpsl"],
    ExecutionSnapshot: sample.snapshots()["execution"],
    HealthSnapshot: sample.snapshots()["health"],
    ReplayManifest: sample.manifest(),
    ReplayEvent: {"timestamp": AT, "type": "RISK_UPDATE", "symbol": None, "payload": {"a": [1, None]}},
    ReplayStatus: {"sessionId": None, "running": False, "lateness": {"p50": 0.1, "p99": 1, "max": 2}},
    RetentionReport: {
        "timestamp": AT,
        "deletedFiles": ["a"],
        "keptFiles": [],
        "errors": [{"file": "b", "error": "c"}],
    },
    ScoringSnapshot: {
        "timestamp": AT,
        "symbol": "A",
        "score": -0.5,
        "side": "SHORT",
        "price": None,
        "components": {},
    },
    RegimeSnapshot: {
        "timestamp": AT,
        "symbol": "A",
        "regime": "CALM",
        "confidence": 0.5,
        "components": {"v": 1},
    },
    FeatureSnapshot: {"timestamp": AT, "symbol": "A", "features": {"spread": 0.5, "flow": None}},
    MarketTrade: {"timestamp": AT, "price": 1, "qty": 2.5, "side": "BUY", "tradeId": "7"},
    OrderBookSnapshot: {"timestamp": AT, "symbol": "A", "bids": [[1, 2.5]], "asks": []},
}
OF_A_KIND = pytest.mark.parametrize(
    ("cls", "plain"), EXAMPLES.items(), ids=lambda value: getattr(value, "__name__", "")
)


def refused(cls: type[Record], plain: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        encode_record(cls, plain)
    return caught.value


def required_fields() -> list[tuple[type[Record], str]]:
    return [
        (cls, field.encode_name)
        for cls in EXAMPLES
        for field in msgspec.structs.fields(cls)
        if field.required
    ]


@OF_A_KIND
def test_a_record_survives_the_disk_with_unknown_fields_and_all(cls, plain):
    plain = {**plain, "exchange": "bybit", "more": {"deep": [None, "€"]}}
    record = cls.from_dict(plain)
    assert record.unknown_fields == {"exchange": "bybit", "more": {"deep": [None, "€"]}}
    line = encode_record(cls, record)
    assert b"\n" not in line
    again = decode_record(cls, line)
    assert again == record
    assert again.unknown_fields == record.unknown_fields
    written = orjson.loads(line)
    assert written == orjson.loads(orjson.dumps(record.to_dict()))
    for name, value in plain.items():
        if isinstance(value, dict):
            assert {**written[name], **value} == written[name], (
                "nested objects may gain defaults, and lose nothing"
            )
        else:
            assert written[name] == value


@OF_A_KIND
def test_a_plain_dict_is_written_as_it_is_keys_in_their_order(cls, plain):
    reordered = dict(reversed([*plain.items(), ("zebra", 1)]))
    assert encode_record(cls, reordered) == orjson.dumps(reordered)
    assert encode_record(cls, MappingProxyType(reordered)) == orjson.dumps(reordered)


@OF_A_KIND
def test_keys_on_disk_are_camel_case_and_attributes_snake_case(cls, plain):
    for attribute, name in zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True):
        assert "_" not in name
        assert attribute == attribute.lower()


@pytest.mark.parametrize(("cls", "name"), required_fields())
def test_every_missing_field_is_named(cls, name):
    plain = {key: value for key, value in EXAMPLES[cls].items() if key != name}
    error = refused(cls, plain)
    assert error.field == name
    assert str(error) == f"{cls.__name__}.{name}: this field is missing."
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(("cls", "name"), required_fields())
def test_every_wrong_field_is_named_with_what_was_found(cls, name):
    wrong = "wrong" if name in ("symbols", "eventTypes", "bids", "asks") else ["wrong"]
    error = refused(cls, {**EXAMPLES[cls], name: wrong})
    assert error.field is not None
    assert error.field.startswith(name)
    assert f"{cls.__name__}.{name}" in str(error)
    assert "expected" in str(error)
    assert "wrong" in str(error)


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (StateEvent, {"reason": 3}, "StateEvent.reason: expected a string, found 3"),
        (StateEvent, {"extra": []}, "StateEvent.extra: expected an object, found []"),
        (
            TradeLogRecord,
            {"side": "BUY"},
            'TradeLogRecord.side: expected one of "LONG", "SHORT", found "BUY"',
        ),
        (
            TradeLogRecord,
            {"side": "long"},
            'TradeLogRecord.side: expected one of "LONG", "SHORT", found "long"',
        ),
        (TradeLogRecord, {"qty": "1"}, 'TradeLogRecord.qty: expected a number, found "1"'),
        (TradeLogRecord, {"qty": True}, "TradeLogRecord.qty: expected a number, found true"),
        (TradeLogRecord, {"qty": None}, "TradeLogRecord.qty: expected a number, found null"),
        (
            TradeLogRecord,
            {"mode": None},
            'TradeLogRecord.mode: expected one of "DRY_RUN", "LIVE", "SIM", found null',
        ),
        (OrderLogRecord, {"price": "x"}, 'OrderLogRecord.price: expected a number or null, found "x"'),
        (OrderLogRecord, {"reduceOnly": 1}, "OrderLogRecord.reduceOnly: expected true or false, found 1"),
        (
            ExecutionSnapshot,
            {"pendingOrdersCount": 1.5},
            "pendingOrdersCount: expected a whole number, found 1.5",
        ),
        (
            RiskSnapshot,
            {"account": {"equityUsd": "1"}},
            'RiskSnapshot.account.equityUsd: expected a number, found "1"',
        ),
        (ReplayManifest, {"symbols": ["A", 3]}, "ReplayManifest.symbols[1]: expected a string, found 3"),
        (
            ReplayManifest,
            {"speedFactor": 0},
            "ReplayManifest.speedFactor: expected a number above 0, found 0.0",
        ),
        (
            ReplayManifest,
            {"sourceDateRange": {"from": "x", "to": AT}},
            "sourceDateRange.from: expected an ISO time",
        ),
        (
            OrderBookSnapshot,
            {"bids": [[1, 2], [3]]},
            "OrderBookSnapshot.bids[1]: expected a list of 2, found [3]",
        ),
        (
            OrderBookSnapshot,
            {"bids": [[1, "2"]]},
            'OrderBookSnapshot.bids[0][1]: expected a number, found "2"',
        ),
        (FeatureSnapshot, {"features": {"a.b": "x"}}, 'features.a.b: expected a number or null, found "x"'),
        (
            RetentionReport,
            {"errors": [{"file": "a"}]},
            "RetentionReport.errors[0].error: this field is missing.",
        ),
    ],
)
def test_messages_say_where_what_was_found_and_what_is_allowed(cls, changes, message):
    assert message in str(refused(cls, {**EXAMPLES[cls], **changes}))


@pytest.mark.parametrize(
    ("service", "field", "message"),
    [
        (
            {"status": "BAD"},
            "services.market data.status",
            'expected one of "ERROR", "OK", "WARN", found "BAD"',
        ),
        ({"lastUpdateAt": "now"}, "services.market data.lastUpdateAt", "expected an ISO time such as"),
        ({"message": 3}, "services.market data.message", "expected a string or null, found 3"),
    ],
)
def test_a_field_inside_a_dict_of_records_is_named_by_its_key(service, field, message):
    whole = {"status": "OK", "lastUpdateAt": AT, "message": None}
    services = {"config": whole, "market data": {**whole, **service}}
    error = refused(HealthSnapshot, {"timestamp": AT, "services": services})
    assert error.field == field
    assert message in str(error)


def test_a_misspelt_field_is_pointed_at():
    plain = sample.trade()
    plain["realisedPnl"] = plain.pop("realizedPnl")
    assert str(refused(TradeLogRecord, plain)).endswith("this field is missing. It has 'realisedPnl'.")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("deep", ["extra.score", "extra.list[1].x", "extra.tuple[0]", "more"])
def test_nan_and_infinity_are_refused_wherever_they_are(bad, deep):
    extra = {"score": 1.0, "list": [0.5, {"x": 2.5}], "tuple": (1.5,), "none": None}
    plain = sample.state_event(extra=extra, more=1.0)
    match deep:
        case "extra.score":
            extra["score"] = bad
        case "extra.list[1].x":
            extra["list"][1]["x"] = bad
        case "extra.tuple[0]":
            extra["tuple"] = (bad,)
        case _:
            plain["more"] = bad
    error = refused(StateEvent, plain)
    assert error.field == deep
    assert "expected a finite number" in str(error)


def test_nan_in_a_record_object_is_refused():
    order = OrderLogRecord.from_dict(sample.order())
    order.price = math.nan
    assert refused(OrderLogRecord, order).field == "price"
    risk = RiskSnapshot.from_dict(sample.snapshots()["risk"])
    risk.account.equity_usd = math.inf
    assert refused(RiskSnapshot, risk).field == "account.equityUsd"
    event = StateEvent.from_dict(sample.state_event())
    event.extra["score"] = math.nan
    assert refused(StateEvent, event).field == "extra.score"


def test_an_attribute_set_to_something_wrong_is_found_when_it_is_written():
    trade = TradeLogRecord.from_dict(sample.trade())
    trade.side = "BUY"
    assert refused(TradeLogRecord, trade).field == "side"


@pytest.mark.parametrize(
    ("extra", "field", "message"),
    [
        ({"a": [object()]}, "extra.a[0]", "expected plain data, found object"),
        ({1: 2}, "extra", "expected keys that are strings, found the key int 1"),
        ({"a": 2**70}, "extra.a", "at most 64 bits"),
        ({"a": "\ud800"}, "extra.a", "UTF-8"),
        ({"a": {1, 2}}, "extra.a", "expected plain data, found set"),
    ],
)
def test_what_json_cannot_hold_is_named(extra, field, message):
    error = refused(StateEvent, sample.state_event(extra=extra))
    assert error.field == field
    assert message in str(error)


def test_numbers_of_numpy_are_written_as_plain_numbers():
    """What pandas and numpy compute needs no conversion, in a dict or a record, in a field or deep in extra."""
    extra = {
        "score": np.float64(0.5),
        "parts": [{"n": np.int64(3)}],
        "ok": np.bool_(True),
        "x": np.float32(0.25),
    }
    plain = {"score": 0.5, "parts": [{"n": 3}], "ok": True, "x": 0.25}
    event = StateEvent.from_dict(sample.state_event())
    event.extra = extra
    for value in (sample.state_event(extra=extra), event):
        assert orjson.loads(encode_record(StateEvent, value))["extra"] == plain
    trade = TradeLogRecord.from_dict(sample.trade())
    trade.qty = np.float64(1.5)
    written = orjson.loads(encode_record(TradeLogRecord, trade))
    assert written["qty"] == 1.5
    assert "entryTimestamp" not in written, "a field that is not set is not written"


@pytest.mark.parametrize("number", [float("nan"), np.float64("nan"), np.float32("inf")])
def test_what_is_no_number_is_refused_from_numpy_too(number):
    error = refused(StateEvent, sample.state_event(extra={"a": [np.float64(1), number]}))
    assert error.field == "extra.a[1]"
    trade = TradeLogRecord.from_dict(sample.trade())
    trade.realized_pnl = number
    assert refused(TradeLogRecord, trade).field == "realizedPnl"


def test_an_error_of_a_record_names_the_field_as_the_file_has_it():
    trade = TradeLogRecord.from_dict(sample.trade())
    trade.entry_price = object()
    assert refused(TradeLogRecord, trade).field == "entryPrice"
    event = sample.state_event(extra={"scores": np.array(["a"])})
    assert refused(StateEvent, event).field == "extra.scores"


def test_arrays_and_decimals_are_written_as_lists_and_numbers():
    """In a dict and in a record alike; NaN inside an array or a Decimal is named."""
    extra = {
        "weights": np.array([[1, 2], [3, 4]]),
        "p": np.array([0.5]),
        "d": Decimal("0.10"),
        "z": np.array(2),
    }
    plain = {"weights": [[1, 2], [3, 4]], "p": [0.5], "d": 0.1, "z": 2}
    event = StateEvent.from_dict(sample.state_event())
    event.extra = extra
    for value in (sample.state_event(extra=extra), event):
        assert orjson.loads(encode_record(StateEvent, value))["extra"] == plain
    event.extra = {"d": Decimal("1E+2")}
    assert orjson.loads(encode_record(StateEvent, event))["extra"] == {"d": 100}
    for bad in (np.array([1.0, math.nan]), Decimal("NaN"), Decimal("Infinity")):
        for value in (sample.state_event(extra={"a": bad}), event):
            event.extra = {"a": bad}
            assert refused(StateEvent, value).field.startswith("extra.a")


def test_data_that_is_nested_without_end_is_refused():
    loop: dict[str, Any] = {}
    for _ in range(5000):
        loop = {"a": loop}
    with pytest.raises(RecordError):
        encode_record(StateEvent, sample.state_event(extra=loop))


@pytest.mark.parametrize("value", [None, 3, "text", [], TradeLogRecord.from_dict(sample.trade())])
def test_something_else_than_the_record_is_refused(value):
    assert "expected a StateEvent or a dict, found a " in str(refused(StateEvent, value))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'{"timestamp":1}{}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"\0\0",
        "€",
        b'"' * 99,
    ],
)
def test_a_line_that_is_no_object_is_a_record_error(line):
    with pytest.raises(RecordError, match=r"not valid JSON|expected a JSON object"):
        decode_record(StateEvent, line)


@pytest.mark.parametrize(
    "text",
    [
        "2025-11-18T10:00:00Z",
        "2025-11-18T10:00:00.1Z",
        "2025-11-18T10:00:00.123456789Z",
        "2025-11-18T10:00:00,123Z",
        "2025-11-18 10:00:00.123+01:00",
        "2025-11-18T10:00:00.123-0530",
        "2025-11-18T10:00",
        "2024-02-29T23:59:59.999Z",
        "1700-01-01T00:00:00Z",
    ],
)
def test_timestamps_that_are_iso_times(text):
    for cls in (StateEvent, MarketTrade):
        encode_record(cls, {**EXAMPLES[cls], "timestamp": text})


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "",
        "2025-11-18",
        "20251118T100000Z",
        "2025-W47-2T10:00:00Z",
        "2025-11-18T100000.000Z",
        "2025-11-18T10:00:00.Z",
        "2025-11-18T10:00:00.1234567890Z",
        "2025-11-18t10:00:00Z",
        "2025-02-29T10:00:00Z",
        "2025-11-18T24:00:00Z",
        "2025-11-18T10:00:60Z",
        "2025-11-18T10:60:00Z",
        "2025-11-18T10:00:00+25:00",
        "1500-01-01T00:00:00Z",
        "2300-01-01T00:00:00Z",
        "٢٠٢٥-11-18T10:00:00Z",
        "2025-11-18T10:00:00Z\n",
    ],
)
def test_timestamps_that_are_not(text):
    for cls in (StateEvent, MarketTrade):
        error = refused(cls, {**EXAMPLES[cls], "timestamp": text})
        assert error.field == "timestamp"
        assert ": expected a" in str(error)
        assert repr(text) in str(error)


@pytest.mark.parametrize("day", ["2025-13-01", "20251118", "2025-11-18T10:00:00Z", "", "day", "2025-02-30"])
def test_a_date_key_is_a_day(day):
    error = refused(TradeLogRecord, sample.trade(dateKey=day))
    assert error.field == "dateKey"
    assert "expected a day as YYYY-MM-DD" in str(error)


def test_a_record_object_with_a_bad_time_cannot_be_made():
    with pytest.raises(RecordError, match="timestamp: expected an ISO time"):
        MarketTrade(timestamp="now", price=1.0, qty=1.0, side="BUY")


def test_unknown_fields_of_a_nested_record_are_written_again():
    """Also when the outer record has none of its own, and inside lists and dicts of records."""
    risk = RiskSnapshot.from_dict({**sample.snapshots()["risk"], "account": {"venue": "sim"}})
    assert risk.account.unknown_fields == {"venue": "sim"}
    assert orjson.loads(encode_record(RiskSnapshot, risk))["account"]["venue"] == "sim"
    service = {"status": "OK", "lastUpdateAt": AT, "message": None, "pid": 7}
    health = HealthSnapshot.from_dict({"timestamp": AT, "services": {"logging": service}})
    assert orjson.loads(encode_record(HealthSnapshot, health))["services"]["logging"] == service
    error = {"file": "a", "error": "b", "errno": 28}
    report = RetentionReport.from_dict({"timestamp": AT, "errors": [error]})
    assert isinstance(report.errors[0], FileError)
    assert report.to_dict()["errors"] == [error]


def test_optional_fields_that_are_absent_stay_absent():
    line = encode_record(TradeLogRecord, TradeLogRecord.from_dict(sample.trade()))
    assert set(orjson.loads(line)) == set(sample.trade())
    assert "totalEvents" not in orjson.loads(
        encode_record(ReplayManifest, ReplayManifest.from_dict(sample.manifest()))
    )


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5), st.text())
def test_any_json_in_extra_comes_back_as_it_was(extra, reason):
    plain = sample.state_event(extra=extra, reason=reason)
    line = encode_record(StateEvent, plain)
    assert b"\n" not in line
    assert orjson.loads(line) == plain
    record = decode_record(StateEvent, line)
    assert (record.extra, record.reason) == (extra, reason)
    assert orjson.loads(encode_record(StateEvent, record)) == plain


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*sample.state_event(), "more"]), JSON_VALUES, max_size=4),
    st.text(alphabet="0129-:.TZz+ ", min_size=15, max_size=33)
    | st.sampled_from([AT, "2025-11-18T10:00:00.5+01:00"]),
)
def test_the_quick_check_of_state_events_accepts_what_the_whole_check_accepts(changes, timestamp):
    """encode_record and decode_record agree on every event, whichever way it was checked."""
    plain = {**sample.state_event(timestamp=timestamp), **changes}
    try:
        encode_record(StateEvent, plain)
        written = True
    except RecordError:
        written = False
    try:
        msgspec.json.decode(orjson.dumps(plain), type=StateEvent)
        read = True
    except msgspec.ValidationError:
        read = False
    assert written == read


@settings(max_examples=60, deadline=None)
@given(
    st.datetimes(
        min_value=datetime(1900, 1, 1),  # noqa: DTZ001 - Hypothesis wants it so
        max_value=datetime(2099, 1, 1),  # noqa: DTZ001
    ),
    st.integers(0, 9),
)
def test_iso_texts_of_any_time_pass_the_quick_check(moment, digits):
    text = moment.isoformat(timespec="microseconds") + "000"
    text = text[:19] + (text[19 : 20 + digits] if digits else "") + "Z"
    encode_record(StateEvent, sample.state_event(timestamp=text))
    encode_record(MarketTrade, {**EXAMPLES[MarketTrade], "timestamp": text})


@settings(max_examples=60, deadline=None)
@given(JSON_VALUES | st.floats())
def test_find_not_finite_finds_all_and_only_what_is_not_finite(value):
    def has(value: Any) -> bool:
        if isinstance(value, float):
            return not math.isfinite(value)
        if isinstance(value, Mapping):
            return any(map(has, value.values()))
        return isinstance(value, list) and any(map(has, value))

    assert (find_not_finite(value) is not None) == has(value)


def test_the_public_names_are_sorted_and_complete():
    assert records.__all__ == sorted(records.__all__)
    public = {
        name for name, value in vars(records).items() if isinstance(value, type) and issubclass(value, Record)
    }
    assert public <= set(records.__all__)


def test_half_of_a_surrogate_pair_is_a_record_error() -> None:
    """msgspec decodes it, orjson does not."""
    line = b'{"timestamp":"2025-11-18T10:00:00Z","type":"X","symbol":null,"payload":{"a":"\\ud800"}}'
    with pytest.raises(RecordError, match="not valid JSON"):
        decode_record(ReplayEvent, line)
