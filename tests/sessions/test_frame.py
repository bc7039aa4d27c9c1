"""A user's own DataFrame is a session: as an argument, and written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from replaylab import Lab, TradingParams
from replaylab.errors import SessionError, SessionExistsError
from replaylab.features import InitialState
from replaylab.history import save_instruments
from replaylab.sessions import SessionStore, as_session, save_session_frame
from replaylab.testing import SessionBuilder

START = "2025-11-18T10:00:00Z"


@pytest.fixture
def events(tmp_path: Path) -> pl.DataFrame:
    builder = SessionBuilder(START)
    for second, price in enumerate((100.0, 100.5, 101.0, 100.2, 99.0)):
        builder.trade("BTCUSDT", price, at=second).score("BTCUSDT", 0.9, at=second + 0.5, price=price)
    return builder.risk(at=6, trading_blocked=False).build(tmp_path / "source").events


def test_polars_pandas_and_arrow_frames_are_the_same_session(events: pl.DataFrame) -> None:
    """One conversion: the same events have the same id and digest, whatever library holds them."""
    whole = as_session(events)
    pandas = events.to_pandas()
    dicts = pandas.assign(payload=[eval(text, {"null": None, "false": False}) for text in pandas["payload"]])
    ids = {as_session(form).id for form in (events.lazy(), pandas, dicts, events.to_arrow(), whole)}
    assert ids == {whole.id}
    assert whole.events.equals(events)
    assert whole.manifest.symbols == ["BTCUSDT"]
    assert (whole.initial_state, whole.instruments, whole.recorded_params) == (None, {}, None)


def test_iso_strings_naive_datetimes_and_structs(events: pl.DataFrame) -> None:
    """Naive times are UTC; null fields of a struct are left out of a payload."""
    frame = pl.DataFrame(
        {
            "timestamp": ["2025-11-18T10:00:00.000000001Z", "2025-11-18T10:00:01Z"],
            "type": ["SCORING_UPDATE", "REGIME_UPDATE"],
            "symbol": ["BTC/USDT:USDT", None],
            "payload": [{"score": 0.5, "regime": None}, {"score": None, "regime": "CALM"}],
            "more": [1, 2],
        }
    )
    session = as_session(frame)
    assert session.events["payload"].to_list() == ['{"score":0.5}', '{"regime":"CALM"}']
    assert session.events["timestamp"].dt.timestamp("ns")[0] % 1000 == 1
    assert session.events["symbol"].to_list() == ["BTC/USDT:USDT", None]
    naive = frame.with_columns(session.events["timestamp"].dt.replace_time_zone(None))
    assert as_session(naive).id == session.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": [2, 1]}, "row 1 of the events has a timestamp before"),
        ({"timestamp": [1, None]}, "row 1 of the events has no timestamp"),
        ({"payload": ["{}", "[1]"]}, "row 1 of the events has an unusable payload"),
        ({"payload": ["{}", "{"]}, "row 1 of the events has an unusable payload"),
        ({"type": [None, "A"]}, "row 0 of the events has no type"),
        ({"symbol": ["", "A"]}, "row 0 of the events has an empty symbol"),
    ],
)
def test_a_row_at_fault_is_named(change: dict[str, list[Any]], message: str) -> None:
    columns: dict[str, list[Any]] = {
        "timestamp": [1, 2],
        "type": ["A", "B"],
        "symbol": ["X", "Y"],
        "payload": ["{}", "{}"],
    }
    frame = pl.DataFrame(columns | change).with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
    with pytest.raises(SessionError, match=message):
        as_session(frame)


@pytest.mark.parametrize(
    "value", [5, pl.DataFrame({"timestamp": [1]}), [1, 2], pd.DataFrame({"type": ["A"]})]
)
def test_other_things_are_refused_with_the_columns_that_a_frame_needs(value: Any) -> None:
    with pytest.raises(SessionError, match="timestamp, type, symbol, payload"):
        as_session(value)


def test_save_session_writes_a_session_of_its_own(tmp_path: Path, events: pl.DataFrame) -> None:
    lab = Lab(tmp_path / "data")
    state = {"symbols": {"BTCUSDT": {"regime": "CALM"}}, "account": {"dateKey": "2025-11-18", "entries": 2}}
    manifest = lab.save_session(events, notes="mine", initial_state=state)
    assert manifest.session_id == "2025-11-18T10-00-00_10-00-07-BTCUSDT"
    assert lab.save_session(events).session_id == manifest.session_id + "-2"
    session = lab.session(manifest)
    assert session.events.equals(events)
    assert InitialState.read(session.initial_state).of("BTCUSDT").regime == "CALM"
    assert (session.manifest.notes, session.manifest.total_events) == ("mine", events.height)
    assert [one.session_id for one in lab.sessions.list_sessions()] == [
        manifest.session_id,
        manifest.session_id + "-2",
    ]
    with pytest.raises(SessionExistsError, match="exists"):
        lab.save_session(events, manifest.session_id)
    with pytest.raises(SessionError, match="no events"):
        lab.save_session(events.head(0))
    with pytest.raises(SessionError, match="dateKey"):
        lab.save_session(events, initial_state={"account": {}})


def test_parameters_and_instruments_of_a_saved_frame(tmp_path: Path, events: pl.DataFrame) -> None:
    params = TradingParams(sl_pct=0.4)
    steps = {"BTCUSDT": {"tickSize": 0.1, "lotSize": "x"}}
    save_session_frame(tmp_path, events, "one", instruments=steps, recorded_params=params)
    session = SessionStore(tmp_path).open("one")
    assert session.recorded_params == params
    assert session.instruments == {
        "BTCUSDT": {
            "tickSize": 0.1,
            "lotSize": None,
            "minNotionalUsd": None,
            "contractSize": None,
            "inferred": False,
        }
    }


def test_a_frame_goes_in_where_a_session_does(tmp_path: Path, events: pl.DataFrame) -> None:
    """A backtest of a frame is that of the session that holds the same events."""
    lab = Lab(tmp_path / "data")
    saved = lab.session(lab.save_session(events))
    for form in (events, events.to_pandas()):
        assert lab.session(form).events.equals(saved.events)
        assert lab.backtest(form).trades.equals(lab.backtest(saved).trades)


def test_a_replayed_frame_becomes_a_session_of_the_engines_root(tmp_path: Path, events: pl.DataFrame) -> None:
    """Its runs need a place; replaying the same frame again uses the same session."""
    lab = Lab(tmp_path / "data")
    engine = lab.engine()
    for _ in range(2):
        manifest = engine.load_session(events)
        engine.start_session(manifest, speed_factor=float("inf"))
        engine.wait()
        assert engine.last_run is not None
        assert engine.last_run.trades.height == lab.backtest(events).trades.height
    assert [one.session_id for one in lab.sessions.list_sessions()] == [manifest.session_id]


def test_a_session_of_another_root_is_adopted_unless_its_id_is_taken(
    tmp_path: Path, events: pl.DataFrame
) -> None:
    save_session_frame(tmp_path / "one", events, "same")
    save_session_frame(tmp_path / "two", events.head(3), "same")
    first, store = SessionStore(tmp_path / "one").open("same"), SessionStore(tmp_path / "three")
    assert store.adopt(first).events.equals(events)
    assert store.adopt(first).root.path == tmp_path / "three"
    with pytest.raises(SessionError, match="with other events"):
        store.adopt(SessionStore(tmp_path / "two").open("same"))


def test_a_frame_takes_ticks_and_lots_of_the_root(tmp_path: Path) -> None:
    """Through a store, and when it is saved; without a store it has none."""
    save_instruments(
        tmp_path, {"AAA": {"tickSize": 0.5, "lotSize": 1.0, "inferred": False}, "BBB": {"tickSize": 1.0}}
    )
    frame = SessionBuilder().trade("AAA", 100.0, at=0).build(tmp_path / "other").events
    session = as_session(frame, SessionStore(tmp_path))
    assert {name: entry["tickSize"] for name, entry in session.instruments.items()} == {"AAA": 0.5}
    assert as_session(frame).instruments == {}
    assert session.id != as_session(frame).id
    saved = save_session_frame(tmp_path, frame, "saved")
    assert SessionStore(tmp_path).open(saved).instruments == session.instruments
    bare = save_session_frame(tmp_path, frame, "bare", instruments={})
    assert SessionStore(tmp_path).open(bare).instruments == {}
