"""Replay sessions: cut them out of the logs, keep them, open them.

>>> from replaylab.sessions import SessionStore, build_replay_session
"""

from replaylab.sessions.build import build_replay_session, build_sessions, market_rows
from replaylab.sessions.check import Finding, Findings, check_events
from replaylab.sessions.frame import (
    AnySession,
    EventFrame,
    as_session,
    feature_frame,
    save_session_frame,
    signal_frame,
)
from replaylab.sessions.initial import initial_state
from replaylab.sessions.session import Session, read_bookmarks
from replaylab.sessions.sources import iso_strings, known_symbols, load_books, load_tape
from replaylab.sessions.store import SessionStore, playing

buildReplaySession = build_replay_session  # noqa: N816 - the specification's name

__all__ = [
    "AnySession",
    "EventFrame",
    "Finding",
    "Findings",
    "Session",
    "SessionStore",
    "as_session",
    "buildReplaySession",
    "build_replay_session",
    "build_sessions",
    "check_events",
    "feature_frame",
    "initial_state",
    "iso_strings",
    "known_symbols",
    "load_books",
    "load_tape",
    "market_rows",
    "playing",
    "read_bookmarks",
    "save_session_frame",
    "signal_frame",
]
