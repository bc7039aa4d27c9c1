"""The events of a session, decoded a block at a time: what is held in memory is the text, not the objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.records import ReplayEvent
from replaylab.sessions import Session

__all__ = ["Block", "EventFeed", "PlayedEvent"]

_BLOCK_BYTES = 1 << 20
_MOST_ROWS = 4_096


class PlayedEvent(ReplayEvent, kw_only=True):
    """A ReplayEvent that was checked when its session was loaded, and is not checked again."""

    def __post_init__(self) -> None:
        pass


class Block:
    """A few events: parallel lists; ``start`` is the index of the first."""

    __slots__ = ("_stamps", "due", "frame", "payload_texts", "start", "stop", "symbols", "times", "types")

    def __init__(self, frame: pl.DataFrame, start: int, times: list[int], due: list[int]) -> None:
        self.frame = frame
        self.start = start
        self.stop = start + frame.height
        self.times = times
        self.due = due
        self.types: list[str] = frame["type"].to_list()
        self.symbols: list[str | None] = frame["symbol"].to_list()
        self.payload_texts: list[str] = frame["payload"].to_list()
        self._stamps: list[str] | None = None

    def payload(self, place: int) -> dict[str, Any]:
        """Decode one payload, anew each time: a handler may change what it is given."""
        found: dict[str, Any] = orjson.loads(self.payload_texts[place])
        return found

    def payloads(self) -> list[dict[str, Any]]:
        """Decode all payloads at once."""
        found: list[dict[str, Any]] = orjson.loads("[" + ",".join(self.payload_texts) + "]")
        return found

    def event(self, place: int, payload: dict[str, Any]) -> ReplayEvent:
        """Return one event as a record."""
        if self._stamps is None:
            self._stamps = self.frame["timestamp_text"].to_list()
        return PlayedEvent(
            timestamp=self._stamps[place],
            type=self.types[place],
            symbol=self.symbols[place],
            payload=payload,
        )


class EventFeed:
    """All events of a session by index; ``times`` in ns since 1970, ``due`` never going back."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.frame = session.events.with_columns(session.timestamp_texts)
        self.total = self.frame.height
        self.times: npt.NDArray[np.int64] = (
            self.frame["timestamp"].dt.timestamp("ns").to_numpy().astype(np.int64, copy=False)
        )
        # Files made by other programs may be out of order; an event is never due before the one it follows.
        self.due: npt.NDArray[np.int64] = np.maximum.accumulate(self.times) if self.total else self.times
        size = self.frame["payload"].str.len_bytes().sum() or 0
        average = max(1, int(size) // max(1, self.total))
        self._rows = max(16, min(_MOST_ROWS, _BLOCK_BYTES // average))

    def block(self, index: int) -> Block:
        """Return the block that begins with an event."""
        frame = self.frame.slice(index, self._rows)
        part = slice(index, index + frame.height)
        return Block(frame, index, self.times[part].tolist(), self.due[part].tolist())

    def index_of_time(self, ts: int) -> int:
        """Return the index of the first event at or after a time."""
        return int(np.searchsorted(self.due, ts, side="left"))

    def next_of_type(self, pattern: str, index: int) -> int | None:
        """Return the first event from ``index`` on whose type is ``pattern``, or begins with it before a ``*``."""
        kinds = self.frame["type"].slice(index)
        hits = kinds.str.starts_with(pattern[:-1]) if pattern.endswith("*") else kinds == pattern
        found = hits.arg_true()
        return index + int(found[0]) if len(found) else None

    def next_gap(self, seconds: float, index: int) -> int | None:
        """Return the first event after ``index`` that comes more than ``seconds`` after the one before it."""
        wide = np.flatnonzero(np.diff(self.due[index:]) > round(seconds * 1e9))
        return index + int(wide[0]) + 1 if len(wide) else None
