"""A string from the data never becomes HTML: one hostile string in every field that a notebook shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab import Lab
from replaylab.notebook.live import _change, _order, _trade
from replaylab.notebook.session_detail import describe
from replaylab.replay import SimRun
from replaylab.sessions import Session, save_session_frame

HOSTILE = "<img src=x onerror=alert(1)>"


def session(root: Path) -> Session:
    """A session with the string in each event's type and payload and in the notes."""
    frame = pl.DataFrame(
        {
            "timestamp": ["2025-11-18T10:00:00Z", "2025-11-18T10:00:01Z", "2025-11-18T10:00:02Z"],
            "type": [HOSTILE, "REGIME_UPDATE", "SCORING_UPDATE"],
            "symbol": ["A", "A", "A"],
            "payload": [
                orjson.dumps({"x": HOSTILE}).decode(),
                orjson.dumps({"regime": HOSTILE}).decode(),
                orjson.dumps({"score": 0.9, "price": 100.0, "reason": HOSTILE}).decode(),
            ],
        }
    )
    manifest = save_session_frame(root, frame, "s", notes=HOSTILE)
    path = Lab(root).root.manifest("s")
    changed = manifest.to_dict() | {"symbols": [HOSTILE], "eventTypes": [HOSTILE]}
    path.write_bytes(orjson.dumps(changed))
    return Session(root, "s")


def test_sessions_labs_and_runs(tmp_path: Path) -> None:
    root = tmp_path / HOSTILE.replace("/", "")
    shown: list[Any] = [session(root), Lab(root)]
    run = SimRun(Lab(root).root, (HOSTILE,), HOSTILE, HOSTILE, 1, {})
    run.__dict__.update(dict.fromkeys(("events", "orders", "trades"), pl.DataFrame()))
    shown.append(run)
    for one in shown:
        assert "<img" not in one._repr_html_(), one
        assert "&lt;img" in one._repr_html_(), one


def test_the_detail_of_a_session(tmp_path: Path) -> None:
    assert "<img" not in describe(session(tmp_path)).html


def test_lists_of_a_running_replay() -> None:
    text = dict.fromkeys(("symbol", "fromState", "toState", "reason", "side", "type", "status"), HOSTILE)
    numbers = {"avgFillPrice": 1.0, "price": None, "triggerPrice": None, "realizedPnl": 1.0}
    row = {"timestamp": HOSTILE, **text, **numbers}
    for show in (_change, _order, _trade):
        assert "<img" not in show(row)
