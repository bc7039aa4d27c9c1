"""The store: folders are the truth, an index beside them, pins and deletion."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab import Config, Lab, fsio
from replaylab.archive import verify
from replaylab.errors import RecordError, SessionError, SessionNotFoundError, UnsafeNameError
from replaylab.fsio import process_started, sha256_of
from replaylab.params import TradingParams
from replaylab.records import ReplayManifest
from replaylab.replay import ReplayEngine
from replaylab.sessions import SessionStore
from replaylab.sessions import session as session_module
from replaylab.testing import SessionBuilder


def make(root: Path, name: str, start: str = "2025-11-18T10:00:00Z") -> None:
    SessionBuilder(start).score("BTCUSDT", 0.5, at=0).score("ETHUSDT", -0.5, at=1).build(root, name)


def test_list_and_get(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    assert store.list_sessions() == []
    make(tmp_path, "old", "2025-11-17T10:00:00Z")
    make(tmp_path, "new")
    assert [manifest.session_id for manifest in store.list_sessions()] == ["new", "old"]
    assert store.get_session("nothing") is None
    manifest = store.get_session("old")
    assert manifest is not None
    assert (manifest.symbols, manifest.total_events) == (["BTCUSDT", "ETHUSDT"], 2)
    with pytest.raises(UnsafeNameError):
        store.get_session("../old")


def test_folders_are_the_truth_and_the_index_follows(tmp_path: Path) -> None:
    make(tmp_path, "a")
    (tmp_path / "system" / "replay_sessions.json").write_text("{broken")
    (tmp_path / "replay" / "sessions" / ".building-1-x").mkdir()
    (tmp_path / "replay" / "sessions" / "no-manifest").mkdir()
    broken = tmp_path / "replay" / "sessions" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"sessionId": 5}')
    store = SessionStore(tmp_path)
    assert [manifest.session_id for manifest in store.list_sessions()] == ["a"]
    assert "sessionId" in store.unreadable()["broken"]
    with pytest.raises(SessionError, match="manifest"):
        store.get_session("broken")
    make(tmp_path, "b")
    index = json.loads((tmp_path / "system" / "replay_sessions.json").read_text())
    assert [session["sessionId"] for session in index["sessions"]] == ["a", "b"]


def test_save_a_manifest(tmp_path: Path) -> None:
    """A manifest may be changed, or come first: then its session has no events yet."""
    plain = {
        "sessionId": "mine",
        "createdAt": "2025-11-18T10:00:00Z",
        "createdBy": "TEST",
        "sourceDateRange": {"from": "2025-11-18T10:00:00Z", "to": "2025-11-18T11:00:00Z"},
        "symbols": ["BTCUSDT"],
        "eventTypes": [],
        "speedFactor": 1,
        "notes": None,
        "colour": "blue",
    }
    store = SessionStore(tmp_path)
    store.save_session(plain)
    manifest = store.get_session("mine")
    assert manifest is not None
    assert manifest.unknown_fields == {"colour": "blue"}
    assert store.open("mine").events.height == 0
    manifest.notes = "checked"
    store.save_session(manifest)
    assert store.list_sessions()[0].notes == "checked"
    assert json.loads((tmp_path / "replay/sessions/mine/manifest.json").read_text())["colour"] == "blue"
    with pytest.raises(RecordError):
        store.save_session({**plain, "speedFactor": 0})


def test_open_says_what_there_is(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    with pytest.raises(SessionNotFoundError, match="There are none"):
        store.open("morning")
    make(tmp_path, "morning")
    with pytest.raises(SessionNotFoundError, match="Did you mean 'morning'"):
        store.open("mornign")
    manifest = store.get_session("morning")
    assert isinstance(manifest, ReplayManifest)
    assert store.open(manifest).id == "morning"
    assert store.open(store.open("morning")).id == "morning"


def test_delete_and_pin(tmp_path: Path) -> None:
    make(tmp_path, "s")
    store = SessionStore(tmp_path)
    store.pin("s")
    assert store.open("s").meta["pin"] is True
    with pytest.raises(SessionError, match="pinned"):
        store.delete_session("s")
    store.pin("s", False)
    store.delete_session("s")
    assert store.list_sessions() == []
    assert json.loads((tmp_path / "system" / "replay_sessions.json").read_text())["sessions"] == []
    with pytest.raises(SessionNotFoundError):
        store.delete_session("s")


def test_a_damaged_session_says_so_and_plays_the_rest(tmp_path: Path) -> None:
    make(tmp_path, "s")
    path = tmp_path / "replay" / "sessions" / "s" / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"timestamp": "2025')
    store = SessionStore(tmp_path)
    with pytest.raises(SessionError, match="was changed since it was built"):
        store.open("s").events  # noqa: B018
    with pytest.warns(UserWarning, match="1 lines of"):
        store.rehash("s")
    session = store.open("s")
    with pytest.warns(UserWarning, match="1 lines of"):
        assert session.events.height == 2
    assert session.rejects["line"].to_list() == [3]


@pytest.mark.parametrize("cut", ["half", "all", "edited", "appended"])
def test_a_session_that_was_cut_or_edited_is_refused_until_it_is_accepted(tmp_path: Path, cut: str) -> None:
    """Cut at the end of a line, emptied, one digit changed, appended to: every door says so, and what to do."""
    session = (
        SessionBuilder().trade("A", 100, at=0).score("A", 0.9, at=1).trade("A", 101, at=2).build(tmp_path)
    )
    assert session.events.height == 3
    before = session.digest
    path = session.root.session_events(session.id)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {
        "half": b"".join(lines[:1]),
        "all": b"",
        "edited": path.read_bytes().replace(b"101", b"102"),
        "appended": path.read_bytes() + lines[-1],
    }[cut]
    path.write_bytes(changed)
    store = SessionStore(tmp_path)
    engine = ReplayEngine(store)
    grid = {"entry_threshold": [0.5]}
    doors: list[Callable[[], Any]] = [
        lambda: store.open(session.id).events,
        lambda: store.open(session.id).digest,
        # The object that was opened before the change, too.
        lambda: session.events,
        lambda: engine.start_session(session.id, speed_factor=math.inf),
        lambda: Lab(tmp_path).sweep(session.id, grid, progress=False),
        lambda: Lab(tmp_path).backtest(session.id),
    ]
    for door in doors:
        with pytest.raises(SessionError, match=r"was changed since .* --rehash, or SessionStore\.rehash"):
            door()
    findings = verify(tmp_path).findings
    assert findings["file"].to_list() == [f"replay/sessions/{session.id}/events.jsonl"]
    assert "--rehash" in findings["reason"][0]
    assert store.rehash(session.id).total_events == len(changed.splitlines())
    assert session.digest == store.open(session.id).digest == hashlib.sha256(changed).hexdigest() != before
    assert session.events.height == len(changed.splitlines())
    assert verify(tmp_path).findings.height == 0


def test_a_sweep_after_an_accepted_change_is_one_of_the_changed_events(tmp_path: Path) -> None:
    """Never the cached tape of the events before, and never their digest in run.json."""
    lab = Lab(tmp_path, config=Config(cache_dir=str(tmp_path / "cache")))
    builder = SessionBuilder().trade("A", 100, at=0).score("A", 0.9, at=1).trade("A", 100, at=2)
    session = builder.trade("A", 103, at=3).build(tmp_path)
    grid = {"entry_threshold": [0.5]}
    first = lab.sweep(session.id, grid, progress=False).frame["net_pnl"][0]
    path = session.root.session_events(session.id)
    path.write_bytes(path.read_bytes().replace(b"103", b"100"))
    lab.sessions.rehash(session.id)
    assert lab.sweep(session.id, grid, progress=False).frame["net_pnl"][0] != first
    engine = lab.engine()
    engine.start_session(session.id, speed_factor=math.inf)
    assert engine.wait(30)
    assert engine.last_run is not None
    assert engine.last_run.record["sessionDigest"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_is_computed_once_for_many_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``lab.sweep("id", grid)`` opens the session again and does not read its file again to hash it."""
    session = (
        SessionBuilder().trade("A", 100, at=0).score("A", 0.9, at=1).trade("A", 101, at=2).build(tmp_path)
    )
    path = session.root.session_events(session.id)
    state = path.stat()
    monkeypatch.setattr(fsio.time, "time_ns", lambda: state.st_ctime_ns + 3_000_000_000)
    hashed: list[Any] = []
    monkeypatch.setattr(fsio, "sha256_of", lambda *given: hashed.append(given) or sha256_of(*given))
    for _ in range(5):
        Lab(tmp_path).sweep(session.id, {"entry_threshold": [0.5, 0.6]}, progress=False)
    # By path and then by descriptor: one file read once.
    assert len(hashed) == 2


@pytest.mark.parametrize("kind", ["plain", "escaped", "loaded"])
def test_events_of_some_types_are_those_of_all_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A large file is searched for them: a name inside a payload or written with escapes changes nothing."""
    lines = [
        {"timestamp": f"2025-11-18T10:00:0{k}.000Z", "type": name, "symbol": "A", "payload": payload}
        for k, (name, payload) in enumerate(
            [
                ("MARKET_TRADE", {"price": 100}),
                ("EXECUTION_EXIT", {"reason": "STOP"}),
                ("CUSTOM", {"about": "EXECUTION_TRADE", "line": "\n"}),
                ("EXECUTION_TRADE", {"note": "\u00e4"}),
                ("EXECUTION_EXIT", {"reason": "EXECUTION_EXIT"}),
            ]
        )
    ]
    frame = pl.DataFrame([{**line, "payload": json.dumps(line["payload"])} for line in lines])
    saved = Lab(tmp_path).session(Lab(tmp_path).save_session(frame, session_id="five"))
    path = saved.root.session_events(saved.id)
    if kind == "escaped":
        path.write_bytes(path.read_bytes().replace(b'"EXECUTION_TRADE","s', b'"EXECUTION\\u005fTRADE","s'))
        SessionStore(tmp_path).rehash(saved.id)
    monkeypatch.setattr(session_module, "_BLOCK_BYTES", 100)
    one = Lab(tmp_path).session(saved.id)
    if kind == "loaded":
        one.events  # noqa: B018
    for types in (["EXECUTION_TRADE", "EXECUTION_EXIT"], ["EXECUTION_EXIT"], ["CUSTOM"], ["NONE"], []):
        expected = Lab(tmp_path).session(saved.id).events.filter(pl.col("type").is_in(types))
        assert one.events_of(*types).equals(expected)
        if kind == "plain":
            assert one._held is None, "no other line is parsed"


def test_a_session_out_of_time_order_is_refused_with_the_line(tmp_path: Path) -> None:
    session = SessionBuilder().score("A", 0.5, at=1).score("A", 0.5, at=2).build(tmp_path)
    path = session.root.session_events(session.id)
    first, second = path.read_text().splitlines()
    path.write_text(f"{second}\n{first}\n")
    # A session of another program, which records no digest.
    session.root.session_meta(session.id).unlink()
    with pytest.raises(SessionError, match=r"events\.jsonl:2: the event at .* comes after"):
        SessionStore(tmp_path).open(session.id).events  # noqa: B018


@pytest.mark.parametrize("running", [True, False])
def test_a_session_that_is_being_replayed_is_not_deleted(tmp_path: Path, running: bool) -> None:
    """The status of a live process protects it; that of a dead one does not."""
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path)
    status = {
        "running": True,
        "sessionId": session.id,
        "pid": os.getpid() if running else 2**22 + 1,
        "processStart": process_started(),
        "host": platform.node(),
    }
    path = session.root.replay_status
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(status))
    store = SessionStore(tmp_path)
    if running:
        with pytest.raises(SessionError, match="is being replayed: stop the replay first"):
            store.delete_session(session.id)
        assert store.get_session(session.id) is not None
    else:
        store.delete_session(session.id)
        assert store.get_session(session.id) is None


def test_a_folder_without_a_manifest_is_listed_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "replay" / "sessions" / "half").mkdir(parents=True)
    assert SessionStore(tmp_path).unreadable() == {"half": "it has no manifest.json"}
    assert SessionStore(tmp_path).list_sessions() == []


def test_parameters_recorded_before_fill_models_are_those_of_version_1(tmp_path: Path) -> None:
    """Such a record replays to itself: what it left out is what version 1 of the model did, not today's default."""
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path, recorded_params=TradingParams())
    path = session.root.session_meta(session.id)
    meta = json.loads(path.read_text())
    assert session.recorded_params == TradingParams()
    meta["recordedParams"]["params"] = {"slPct": 0.4, "slippageBps": 2.0}
    path.write_text(json.dumps(meta))
    assert SessionStore(tmp_path).open(session.id).recorded_params == TradingParams(
        sl_pct=0.4,
        slippage_bps=2.0,
        market_fill="print",
        limit_fill="touch",
        max_gap_s=None,
        rounding="none",
    )
