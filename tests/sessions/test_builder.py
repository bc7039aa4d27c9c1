"""Building sessions: what goes in, in which order, and what is refused."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab import Lab, buildReplaySession
from replaylab.errors import RecordError, SessionError, SessionExistsError, TimeError, UnsafeNameError
from replaylab.history import save_instruments, write_book, write_funding, write_trades
from replaylab.paths import DataRoot
from replaylab.records import ReplayManifest, decode_record
from replaylab.sessions import SessionStore, build_replay_session, build_sessions
from tests.sessions.logs import append, lines_of, log_events, order_record, state_event, trade_record

TEN, ELEVEN = "2025-11-18T10:00:00Z", "2025-11-18T11:00:00Z"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with logs of every kind, two symbols, some of it outside 10:00 to 11:00."""
    log_events(
        tmp_path,
        "BTCUSDT",
        state_event("2025-11-18T09:59:59.999Z", score=0.1),
        state_event("2025-11-18T10:00:00.000Z", score=0.2, price=100.5),
        state_event("2025-11-18T10:10:00.000Z", "REGIME_UPDATE", regime="CALM"),
        state_event("2025-11-18T10:20:00.000Z", "RISK_UPDATE", tradingBlocked=True),
        state_event("2025-11-18T10:30:00.000Z", "EXECUTION_FILL", to="LONG", price=101, qty=1),
        state_event("2025-11-18T10:40:00.000Z", "CUSTOM", x=1),
        state_event("2025-11-18T11:00:00.000Z", score=0.9),
    )
    log_events(tmp_path, "AIUSDT", state_event("2025-11-18T10:10:00.000Z", symbol="AIUSDT", score=-0.4))
    append(tmp_path / "orders" / "day-2025-11-18.jsonl", order_record("2025-11-18T10:30:00.000Z"))
    append(tmp_path / "trades_log" / "day-2025-11-18.jsonl", trade_record("2025-11-18T10:45:00.000Z"))
    append(
        tmp_path / "metrics" / "BTCUSDT.json",
        json.dumps(
            [
                {
                    "type": "FEATURE_SNAPSHOT",
                    "timestamp": "2025-11-18T10:05:00Z",
                    "symbol": "BTCUSDT",
                    "features": {"vwap": 1},
                },
                {
                    "type": "REGIME_SNAPSHOT",
                    "timestamp": "2025-11-18T10:05:00Z",
                    "symbol": "BTCUSDT",
                    "regime": "CALM",
                },
            ]
        ),
    )
    tape = pl.DataFrame(
        {"timestamp": ["2025-11-18T10:10:00.000Z"] * 2, "price": [100.0, 1e-7], "qty": [0.5, 2.0]}
    )
    tape = tape.with_columns(
        pl.col("timestamp").str.to_datetime(time_unit="ns", time_zone="UTC"),
        pl.Series("side", ["BUY", "SELL"]),
        pl.Series("trade_id", ['7"', None], dtype=pl.String),
        pl.Series("off_market", [False, True]),
    )
    write_trades(DataRoot(tmp_path), "BTCUSDT", tape)
    return tmp_path


def test_t4_build_a_session(root: Path) -> None:
    """T4: a range inside a day that has logs gives a manifest, events.jsonl and manifest.json that agree with it."""
    manifest = build_replay_session(root, TEN, ELEVEN, ["BTCUSDT"], ["SCORING_UPDATE", "REGIME_UPDATE"])
    folder = root / "replay" / "sessions" / manifest.session_id
    on_disk = decode_record(ReplayManifest, (folder / "manifest.json").read_bytes())
    assert on_disk == manifest
    assert manifest.symbols == ["BTCUSDT"]
    assert manifest.event_types == ["REGIME_UPDATE", "SCORING_UPDATE"]
    assert (manifest.source_date_range.from_, manifest.source_date_range.to) == (TEN, ELEVEN)
    assert manifest.total_events == 2
    assert manifest.created_by == "MANUAL"
    assert [event["type"] for event in lines_of(root, manifest.session_id)] == [
        "SCORING_UPDATE",
        "REGIME_UPDATE",
    ]


def test_default_types_are_all_signals_and_the_market_data_there_is(root: Path) -> None:
    manifest = build_replay_session(root, TEN, ELEVEN, ["BTCUSDT", "AIUSDT"])
    assert manifest.session_id == "2025-11-18T10-11-BTCUSDT-AIUSDT"
    assert [
        (event["timestamp"][11:16], event["type"], event["symbol"])
        for event in lines_of(root, manifest.session_id)
    ] == [
        ("10:00", "SCORING_UPDATE", "BTCUSDT"),
        ("10:10", "MARKET_TRADE", "BTCUSDT"),
        ("10:10", "MARKET_TRADE", "BTCUSDT"),
        ("10:10", "SCORING_UPDATE", "AIUSDT"),
        ("10:10", "REGIME_UPDATE", "BTCUSDT"),
        ("10:20", "RISK_UPDATE", "BTCUSDT"),
        ("10:30", "EXECUTION_FILL", "BTCUSDT"),
        ("10:30", "EXECUTION_ORDER", "BTCUSDT"),
        ("10:45", "EXECUTION_TRADE", "BTCUSDT"),
    ]


def test_payloads(root: Path) -> None:
    """A signal's payload is its extra; an order's and a trade's the record; a print's price, qty, side, tradeId."""
    kinds = ["SCORING_UPDATE", "EXECUTION_*", "MARKET_TRADE", "FEATURE_SNAPSHOT"]
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", kinds)
    found: dict[str, list[object]] = {}
    for event in lines_of(root, manifest.session_id):
        assert list(event) == ["timestamp", "type", "symbol", "payload"]
        found.setdefault(event["type"], []).append(event["payload"])
    assert found == {
        "SCORING_UPDATE": [{"score": 0.2, "price": 100.5}],
        "EXECUTION_FILL": [{"price": 101, "qty": 1}],
        "EXECUTION_ORDER": [order_record("2025-11-18T10:30:00.000Z")],
        "EXECUTION_TRADE": [trade_record("2025-11-18T10:45:00.000Z")],
        "FEATURE_SNAPSHOT": [{"features": {"vwap": 1}}],
        "MARKET_TRADE": [
            {"price": 100.0, "qty": 0.5, "side": "BUY", "tradeId": '7"'},
            {"price": 1e-7, "qty": 2.0, "side": "SELL", "tradeId": None, "offMarket": True},
        ],
    }


def test_a_trade_keeps_the_nanoseconds_of_its_entry(tmp_path: Path) -> None:
    entry = {"entryTimestamp": "2025-11-18T10:44:00.123456789Z", "reason": "TP2"}
    append(
        tmp_path / "trades_log" / "day-2025-11-18.jsonl",
        trade_record("2025-11-18T10:45:00.000Z") | entry,
        trade_record("2025-11-18T10:46:00.000Z"),
    )
    manifest = build_replay_session(tmp_path, TEN, ELEVEN, "BTCUSDT")
    first, second = (event["payload"] for event in lines_of(tmp_path, manifest.session_id))
    assert first == trade_record("2025-11-18T10:45:00.000Z") | entry
    assert second == trade_record("2025-11-18T10:46:00.000Z"), "what was left out stays out"


@pytest.mark.parametrize("given", [5, None, [5], [], [None], {}])
def test_symbols_that_are_none_are_refused(root: Path, given: Any) -> None:
    with pytest.raises((SessionError, UnsafeNameError), match="symbol"):
        build_replay_session(root, TEN, ELEVEN, given)


@pytest.mark.parametrize("given", [5, [5], [], ["*X"], [""]])
def test_types_that_are_none_are_refused(root: Path, given: Any) -> None:
    with pytest.raises(SessionError, match="include_types"):
        build_replay_session(root, TEN, ELEVEN, "BTCUSDT", given)


@pytest.mark.parametrize("name", ["kept", None])
def test_a_pinned_session_is_not_replaced(root: Path, name: str | None) -> None:
    options: dict[str, Any] = {"session_id": name, "if_exists": "replace"}
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", **options)
    store = SessionStore(root)
    store.pin(manifest.session_id)
    with pytest.raises(SessionError, match="is pinned"):
        build_replay_session(root, TEN, ELEVEN, "BTCUSDT", **options)
    store.pin(manifest.session_id, False)
    again = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", **options)
    assert again.session_id == manifest.session_id


def test_state_events_whole_only_where_asked(root: Path) -> None:
    """STATE_EVENT carries the whole record, and neither the default nor a bare * takes it."""
    every = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["*"], session_id="every")
    assert "STATE_EVENT" not in every.event_types
    assert "CUSTOM" in every.event_types
    build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["STATE_EVENT"], session_id="whole")
    events = lines_of(root, "whole")
    assert [event["type"] for event in events] == ["STATE_EVENT"] * 5
    assert events[0]["payload"] == state_event("2025-11-18T10:00:00.000Z", score=0.2, price=100.5)


def test_max_events_keeps_the_first(root: Path) -> None:
    whole = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="whole")
    cut = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="cut", max_events=3)
    none = build_replay_session_quietly(root, session_id="none", max_events=0)
    assert (whole.total_events, cut.total_events, none.total_events) == (8, 3, 0)
    assert lines_of(root, "cut") == lines_of(root, "whole")[:3]
    assert SessionStore(root).open("cut").meta["truncated"] is True
    assert SessionStore(root).open("whole").meta["truncated"] is False


def build_replay_session_quietly(root: Path, **options: object) -> ReplayManifest:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_replay_session(root, TEN, ELEVEN, "BTCUSDT", **options)  # type: ignore[arg-type]


def test_meta_records_where_everything_came_from(root: Path) -> None:
    path = log_events(root, "BTCUSDT", '{"torn', "")
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT")
    meta = SessionStore(root).open(manifest.session_id).meta
    source = next(item for item in meta["sources"] if item["kind"] == "events")
    assert source == {
        "file": "events/BTCUSDT.jsonl",
        "kind": "events",
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "lines": 9,
        "rows": 7,
        "rejects": 1,
        "taken": 4,
    }
    events = root / "replay" / "sessions" / manifest.session_id / "events.jsonl"
    assert meta["eventsSha256"] == hashlib.sha256(events.read_bytes()).hexdigest()
    assert meta["options"]["symbols"] == ["BTCUSDT"]
    assert {item["kind"] for item in meta["sources"]} == {"events", "history trades", "orders", "trades_log"}
    assert meta["eventCounts"]["MARKET_TRADE"] == 2


def test_initial_state(root: Path) -> None:
    """The state at `from`: last regime, tradingBlocked, last exit, the book rebuilt from history."""
    time = ["2025-11-18T10:50:00Z", "2025-11-18T10:50:01Z", "2025-11-18T10:51:00Z", "2025-11-18T11:30:00Z"]
    levels = pl.List(pl.Array(pl.Float64, 2))
    book = pl.DataFrame(
        {
            "timestamp": pl.Series(time).str.to_datetime(time_unit="ns", time_zone="UTC"),
            "kind": ["delta", "snapshot", "delta", "delta"],
            "bids": pl.Series(
                [[[1.0, 1.0]], [[99.0, 1.0], [98.0, 2.0]], [[99.0, 0.0], [98.5, 3.0]], []], dtype=levels
            ),
            "asks": pl.Series([[], [[101.0, 1.0]], [[100.5, 4.0]], [[100.0, 1.0]]], dtype=levels),
        }
    )
    write_book(DataRoot(root), "BTCUSDT", book)
    manifest = build_replay_session(root, "2025-11-18T11:00:00Z", "2025-11-18T12:00:00Z", ["BTCUSDT"])
    state = SessionStore(root).open(manifest.session_id).initial_state
    assert state is not None
    assert state["symbols"] == {
        "BTCUSDT": {
            "regime": "CALM",
            "tradingBlocked": True,
            "book": {"bids": [[98.5, 3.0], [98.0, 2.0]], "asks": [[100.5, 4.0], [101.0, 1.0]]},
            "carried": None,
            "lastExitAt": "2025-11-18T10:45:00.000Z",
        }
    }
    assert state["reported"]["day"] == {"dateKey": "2025-11-18", "realizedPnl": 1.5, "tradesCount": 1}
    assert state["reported"]["openPositions"] == []


def test_initial_state_reports_an_open_position(tmp_path: Path) -> None:
    log_events(
        tmp_path,
        "BTCUSDT",
        state_event("2025-11-18T09:00:00.000Z", "EXECUTION_FILL", to="SHORT", price=100.5, qty=2),
        state_event("2025-11-18T09:30:00.000Z", to="SHORT", score=0.1),
        state_event("2025-11-18T10:30:00.000Z", to="SHORT", score=0.1),
    )
    manifest = build_replay_session(tmp_path, TEN, ELEVEN, "BTCUSDT")
    state = SessionStore(tmp_path).open(manifest.session_id).initial_state
    assert state is not None
    assert state["reported"]["openPositions"] == [
        {
            "symbol": "BTCUSDT",
            "side": "SHORT",
            "entryTimestamp": "2025-11-18T09:00:00.000Z",
            "entryPrice": 100.5,
            "qty": 2,
        }
    ]
    # No order, no trade record: the state events alone say that a position was on.
    assert state["symbols"]["BTCUSDT"]["carried"] == {"closedAt": None, "parts": []}


def test_recorded_params(root: Path) -> None:
    """The parameters in force at `from` are copied, with the changes inside the range beside them."""
    path = root / "system" / "trading_params.jsonl"
    for hour, threshold in ((8, 0.4), (9, 0.5), (10, 0.7), (12, 0.9)):
        append(
            path, {"timestamp": f"2025-11-18T{hour:02d}:30:00.000Z", "params": {"entryThreshold": threshold}}
        )
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT")
    session = SessionStore(root).open(manifest.session_id)
    assert session.recorded_params is not None
    assert session.recorded_params.entry_threshold == 0.5
    assert [change["params"]["entryThreshold"] for change in session.meta["recordedParamsChanges"]] == [0.7]


def test_rolling_files_fill_what_history_does_not_cover(root: Path) -> None:
    append(
        root / "trades" / "BTCUSDT.json",
        json.dumps(
            [
                {
                    "timestamp": f"2025-11-18T10:{minute}:00.000Z",
                    "price": 5,
                    "qty": 1,
                    "side": "BUY",
                    "tradeId": None,
                }
                for minute in ("10", "50")
            ]
        ),
    )
    append(
        root / "orderbook" / "BTCUSDT.json",
        {"timestamp": "2025-11-18T10:55:00.000Z", "symbol": "BTCUSDT", "bids": [[1, 2]], "asks": [[3, 4]]},
    )
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["MARKET_*"])
    assert [
        (event["timestamp"][14:16], event["payload"].get("price"))
        for event in lines_of(root, manifest.session_id)
    ] == [
        ("10", 100.0),
        ("10", 1e-7),
        ("50", 5.0),
        ("55", None),
    ]
    assert lines_of(root, manifest.session_id)[-1]["payload"] == {
        "bids": [[1.0, 2.0]],
        "asks": [[3.0, 4.0]],
        "kind": "snapshot",
    }


def test_unknown_symbol_names_those_there_are(root: Path) -> None:
    with pytest.raises(SessionError, match=r"BTCUSD in .*AIUSDT, BTCUSDT"):
        build_replay_session(root, TEN, ELEVEN, "BTCUSD")
    assert not list((root / "replay").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"start": ELEVEN, "end": TEN}, SessionError),
        ({"start": TEN, "end": TEN}, SessionError),
        ({"start": "yesterday"}, TimeError),
        ({"symbols": []}, SessionError),
        ({"symbols": ["../x"]}, UnsafeNameError),
        ({"session_id": "../x"}, UnsafeNameError),
        ({"max_events": -1}, SessionError),
        ({"max_events": 1.5}, SessionError),
        ({"include_types": []}, SessionError),
        ({"include_types": ["A*B"]}, SessionError),
        ({"created_by": "ME"}, RecordError),
        ({"speed_factor": 0}, RecordError),
        ({"if_exists": "maybe"}, SessionError),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(
    root: Path, options: dict, error: type[Exception]
) -> None:
    with pytest.raises(error):
        build_replay_session(root, **{"start": TEN, "end": ELEVEN, "symbols": ["BTCUSDT"], **options})
    assert not (root / "replay").exists()


def test_an_empty_range_gives_an_empty_session_and_a_warning(root: Path) -> None:
    with pytest.warns(UserWarning, match="nothing to replay"):
        manifest = build_replay_session(root, "2024-01-01", "2024-01-02", "BTCUSDT")
    assert manifest.total_events == 0
    assert manifest.event_types == []
    assert (root / "replay" / "sessions" / manifest.session_id / "events.jsonl").read_bytes() == b""


def test_silent_symbols_and_types_are_named(root: Path) -> None:
    with pytest.warns(UserWarning, match=r"no events of AIUSDT"):
        build_replay_session(root, TEN, "2025-11-18T10:05:00Z", ["BTCUSDT", "AIUSDT"])
    with pytest.warns(UserWarning, match=r"no events of type MARKET_BOOK, X\*"):
        build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["SCORING_UPDATE", "MARKET_BOOK", "X*"])


def test_if_exists(root: Path) -> None:
    first = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="s", notes="first")
    with pytest.raises(SessionExistsError):
        build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="s")
    assert build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="s", if_exists="reuse") == first
    with pytest.raises(SessionExistsError, match="other options"):
        build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="s", if_exists="reuse", max_events=1)
    new = build_replay_session(
        root, TEN, ELEVEN, "BTCUSDT", session_id="s", if_exists="replace", max_events=1
    )
    assert new.total_events == 1
    assert SessionStore(root).get_session("s") == new


def test_generated_ids_are_numbered(root: Path) -> None:
    names = [build_replay_session(root, TEN, ELEVEN, "BTCUSDT").session_id for _ in range(3)]
    assert names == ["2025-11-18T10-11-BTCUSDT", "2025-11-18T10-11-BTCUSDT-2", "2025-11-18T10-11-BTCUSDT-3"]
    again = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", if_exists="reuse")
    assert again.session_id == names[0]
    other = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", max_events=1, if_exists="reuse")
    assert other.session_id == "2025-11-18T10-11-BTCUSDT-4"


def test_the_index_lists_what_the_folders_hold(root: Path) -> None:
    build_replay_session(root, TEN, ELEVEN, "BTCUSDT", session_id="s")
    index = json.loads((root / "system" / "replay_sessions.json").read_text())
    assert [session["sessionId"] for session in index["sessions"]] == ["s"]


def test_an_interrupted_build_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("replaylab.sessions.build.json_lines", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_replay_session(root, TEN, ELEVEN, "BTCUSDT")
    assert list((root / "replay" / "sessions").iterdir()) == []


def test_the_specification_name_is_the_same_function() -> None:
    assert buildReplaySession is build_replay_session


def test_timestamps_stay_as_they_were_written(tmp_path: Path) -> None:
    """Whatever form of ISO time a log used, the session repeats it; the order goes by what it means."""
    texts = [
        "2025-11-18T10:00:00Z",
        "2025-11-18T11:00:00.5+01:00",
        "2025-11-18T10:00:00.600000Z",
        "2025-11-18 10:00:01",
    ]
    log_events(tmp_path, "BTCUSDT", *(state_event(text, score=0.1) for text in reversed(texts)))
    append(tmp_path / "orders" / "day-2025-11-18.jsonl", order_record("2025-11-18T10:59:59Z"))
    build_replay_session(
        tmp_path, TEN, ELEVEN, "BTCUSDT", ["SCORING_UPDATE", "STATE_*", "EXECUTION_*"], session_id="s"
    )
    events = lines_of(tmp_path, "s")
    assert [event["timestamp"] for event in events[:-1:2]] == texts
    assert [event["payload"]["timestamp"] for event in events[1::2]] == texts
    assert events[-1]["timestamp"] == events[-1]["payload"]["timestamp"] == "2025-11-18T10:59:59Z"


def test_a_symbol_may_be_in_the_day_logs_alone(tmp_path: Path) -> None:
    append(tmp_path / "orders" / "day-2025-11-18.jsonl", order_record("2025-11-18T10:30:00.000Z", "XYZ"))
    assert build_replay_session(tmp_path, TEN, ELEVEN, "XYZ").event_types == ["EXECUTION_ORDER"]


def test_the_options_object_of_the_specification_builds_the_same_session(root: Path) -> None:
    """Keys in camelCase; null where nothing is chosen."""
    options = {
        "from": TEN,
        "to": ELEVEN,
        "symbols": ["BTCUSDT"],
        "includeTypes": ["SCORING_UPDATE"],
        "maxEvents": None,
        "sessionId": "one",
        "notes": "kept",
    }
    by_object = buildReplaySession(root, options)
    by_arguments = build_replay_session(root, TEN, ELEVEN, ["BTCUSDT"], ["SCORING_UPDATE"], session_id="two")
    assert (by_object.session_id, by_object.notes) == ("one", "kept")
    assert lines_of(root, "one") == lines_of(root, "two")
    assert by_arguments.event_types == by_object.event_types


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from": TEN, "to": ELEVEN, "symbol": ["BTCUSDT"]}, "Did you mean 'symbols'"),
        ({"from": TEN, "symbols": ["BTCUSDT"]}, "needs end"),
        ({"to": ELEVEN, "symbols": ["BTCUSDT"]}, "needs start"),
    ],
)
def test_a_wrong_options_object_is_refused(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SessionError, match=message):
        build_replay_session(root, options)


def test_an_option_may_not_be_given_twice(root: Path) -> None:
    options = {"from": TEN, "to": ELEVEN, "symbols": ["BTCUSDT"], "notes": "a"}
    with pytest.raises(SessionError, match="notes is given twice"):
        build_replay_session(root, options, notes="b")


def test_funding_settlements_enter_a_session_after_the_prices_of_their_time(root: Path) -> None:
    """FUNDING events have fundingRate, and markPrice where the history has one."""
    times = pl.Series(["2025-11-18T10:10:00Z", "2025-11-18T10:50:00Z"])
    write_funding(
        DataRoot(root),
        "BTCUSDT",
        pl.DataFrame(
            {
                "timestamp": times.str.to_datetime(time_unit="ns", time_zone="UTC"),
                "funding_rate": [0.0001, -2e-5],
                "mark_price": [None, 100.5],
            }
        ),
    )
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["MARKET_*", "FUNDING", "REGIME_UPDATE"])
    found = [(event["type"], event["payload"]) for event in lines_of(root, manifest.session_id)]
    assert [kind for kind, _ in found] == [
        "MARKET_TRADE",
        "MARKET_TRADE",
        "FUNDING",
        "REGIME_UPDATE",
        "FUNDING",
    ]
    assert found[2][1] == {"fundingRate": 0.0001}
    assert found[4][1] == {"fundingRate": -2e-05, "markPrice": 100.5}


def test_snapshots_of_metrics_enter_a_session_when_asked_for(root: Path) -> None:
    manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["REGIME_SNAPSHOT"])
    assert [(e["type"], e["payload"]) for e in lines_of(root, manifest.session_id)] == [
        ("REGIME_SNAPSHOT", {"regime": "CALM"})
    ]


def test_warnings_and_instruments_stay_with_the_session(root: Path) -> None:
    """What the build warned of is in the manifest; ticks and lots are those of the build."""
    save_instruments(root, {"BTCUSDT": {"tickSize": 0.5}, "OTHER": {"tickSize": 1.0}})
    with pytest.warns(UserWarning, match="no events of type FUNDING"):
        manifest = build_replay_session(root, TEN, ELEVEN, "BTCUSDT", ["SCORING_UPDATE", "FUNDING"])
    session = SessionStore(root).open(manifest)
    assert manifest.warnings == session.warnings == session.manifest.warnings
    assert list(session.instruments) == ["BTCUSDT"]
    assert session.instruments["BTCUSDT"]["tickSize"] == 0.5
    save_instruments(root, {"BTCUSDT": {"tickSize": 0.1}})
    assert SessionStore(root).open(manifest).instruments["BTCUSDT"]["tickSize"] == 0.5


def test_one_session_per_period(root: Path) -> None:
    """Periods begin at multiples in UTC; one without events gives no session, with one warning for all."""
    with pytest.warns(
        UserWarning, match="no events in 4 periods from 2025-11-18T10:05:00.000Z, 2025-11-18T10:15"
    ):
        built = build_sessions(
            root, "2025-11-18T10:05:00Z", ELEVEN, "BTCUSDT", "15m", include_types="SCORING_UPDATE"
        )
    assert built == []
    built = Lab(root).build_sessions("2025-11-18T09:30:00Z", "2025-11-18T11:30:00Z", "BTCUSDT", "1h")
    assert [one.source_date_range.from_[11:16] for one in built] == ["09:30", "10:00", "11:00"]
    assert [one.session_id for one in SessionStore(root).list_sessions()][::-1] == [
        one.session_id for one in built
    ]
    for wrong in ("1w", "0d", "d", "-1d"):
        with pytest.raises(SessionError, match="every: expected"):
            build_sessions(root, TEN, ELEVEN, "BTCUSDT", wrong)
