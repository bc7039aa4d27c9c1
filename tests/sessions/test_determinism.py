"""The same logs and options give the same events.jsonl to the byte, whatever the memory, the order of reading, or who
runs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.history import write_book, write_trades
from replaylab.importers.synthetic import generate_market
from replaylab.paths import DataRoot
from replaylab.sessions import SessionStore, build, build_replay_session
from replaylab.sessions.build import RowSorter
from tests.sessions.logs import append, lines_of, log_events, order_record, state_event, trade_record

# The trades of these tests overlap, which a built session is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*the log mixes two strategies or accounts")

TEN, ELEVEN = "2025-11-18T10:00:00Z", "2025-11-18T11:00:00Z"
KINDS = ["SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE", "EXECUTION_FILL", "OTHER"]


def stamp(ms: int) -> str:
    return f"2025-11-18T10:00:{ms // 1000:02d}.{ms % 1000:03d}Z"


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS), st.sampled_from("AB")), max_size=25)


def make_logs(root: Path, events: list[tuple[int, str, str]]) -> None:
    for symbol in "AB":
        log_events(root, symbol, *[])
    for number, (ms, kind, symbol) in enumerate(events):
        log_events(root, symbol, state_event(stamp(ms), kind, symbol, n=number))
        if kind == "EXECUTION_FILL":
            append(root / "orders" / "day-2025-11-18.jsonl", order_record(stamp(ms), symbol))
            append(root / "trades_log" / "day-2025-11-18.jsonl", trade_record(stamp(ms), symbol, pnl=number))


@pytest.mark.filterwarnings("ignore:no events:UserWarning", "ignore:there is nothing:UserWarning")
@settings(max_examples=25, deadline=None)
@given(EVENTS)
def test_order_is_total_and_memory_does_not_matter(events: list[tuple[int, str, str]]) -> None:
    """Logs out of order and full of equal times: sorted by time, source, symbol, line; the same with parts on disk."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_logs(root, events)
        build_replay_session(root, TEN, ELEVEN, ["A", "B"], ["*"], session_id="one")

        def tiny(folder: Path) -> RowSorter:
            return RowSorter(folder, memory_bytes=0)

        with patch.object(build, "RowSorter", tiny):
            build_replay_session(root, TEN, ELEVEN, ["B", "A"], ["*"], session_id="two")
        one, two = (root / "replay" / "sessions" / name / "events.jsonl" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        found = lines_of(root, "one")
    ranks = {"EXECUTION_ORDER": 4, "EXECUTION_TRADE": 5}
    keys = [
        (event["timestamp"], ranks.get(event["type"], 3), event["symbol"], event["payload"].get("n", 0))
        for event in found
    ]
    assert keys == sorted(keys)
    fills = sum(kind == "EXECUTION_FILL" for _, kind, _ in events)
    assert len(found) == len(events) + 2 * fills


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(7)
    make_logs(tmp_path, [(rng.randrange(4000), rng.choice(KINDS), rng.choice("AB")) for _ in range(300)])
    root = DataRoot(tmp_path)
    for symbol, (trades, book) in generate_market(3, ["A", "B"], TEN, 0.02).items():
        write_trades(root, symbol, trades)
        write_book(root, symbol, book)
    build_replay_session(tmp_path, TEN, ELEVEN, ["A", "B"], session_id="here")
    code = (
        "from replaylab import build_replay_session as build;"
        f"build({str(tmp_path)!r}, {TEN!r}, {ELEVEN!r}, ['B', 'A'], session_id='there')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "99", "POLARS_MAX_THREADS": "1", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[2])
    store = SessionStore(tmp_path)
    here, there = store.open("here"), store.open("there")
    assert here.digest == there.digest
    assert here.events.height > 1_000
    assert (here.path / "events.jsonl").read_bytes() == (there.path / "events.jsonl").read_bytes()


def test_killed_builds_leave_no_session_and_are_cleaned_up(tmp_path: Path) -> None:
    """A build that is killed is nowhere to be seen, and the next build removes what it left."""
    log_events(tmp_path, "A", *(state_event(stamp(n % 60_000), symbol="A", n=n) for n in range(2_000)))
    code = (
        "import os, signal; from replaylab.sessions import build, build_replay_session;"
        "build.json_lines = lambda rows: os.kill(os.getpid(), signal.SIGKILL);"
        f"build_replay_session({str(tmp_path)!r}, {TEN!r}, {ELEVEN!r}, 'A', session_id='s')"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -9
    folder = tmp_path / "replay" / "sessions"
    assert [child.name.split("-")[0] for child in folder.iterdir()] == [".building"]
    assert SessionStore(tmp_path).list_sessions() == []
    build_replay_session(tmp_path, TEN, ELEVEN, "A", session_id="s")
    assert [child.name for child in folder.iterdir()] == ["s"]
