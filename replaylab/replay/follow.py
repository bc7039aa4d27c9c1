"""Follow the replay of a data root through its files, whichever process runs it.

>>> follower = RunFollower("data")                               # doctest: +SKIP
>>> for name, value in follower.poll().messages(): ...           # doctest: +SKIP

A replay emits the session's own events up to its published position; its decisions are in the logs of its run. So a
screen needs no connection to the replay and cannot slow it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from replaylab.errors import TimeError
from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.replay.control import read_status
from replaylab.timestamps import parse_ns

_MOST_EVENTS = 500
_MOST_BYTES = 1 << 20
Kind = Literal["state", "order", "trade"]


@dataclass
class News:
    """Everything that is new since the last poll.

    ``events``: emitted session events (plain dicts), the newest of them where there were too many; ``skipped`` counts
    the others. ``records``: ``(kind, record)`` that the run logged, in order of time over all of its logs.
    ``began``: a run that the follower had not seen yet, or the run went back: discard the state of the earlier one.
    """

    status: ReplayStatus
    changed: bool
    began: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    records: list[tuple[Kind, dict[str, Any]]] = field(default_factory=list)

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield it as ``("status" | "began" | "replay" | "record", plain data)``, status first."""
        if self.changed or self.began:
            yield "status", self.status
        if self.began:
            yield "began", {"runId": self.status.run_id}
        if self.events or self.skipped:
            yield "replay", {"events": self.events, "skipped": self.skipped}
        for kind, record in self.records:
            yield "record", {"kind": kind, "record": record}


class _Tail:
    """New complete lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._inode: int | None = None

    def lines(self) -> list[bytes] | None:
        """Return new lines, about a megabyte at a time, a longer line whole; None where read ones were taken back."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_size < self._offset or (self._offset and about.st_ino != self._inode):
                    return None
                self._inode = about.st_ino
                file.seek(self._offset)
                chunk = file.read(_MOST_BYTES)
                if len(chunk) == _MOST_BYTES and b"\n" not in chunk:
                    chunk += file.readline()
        except FileNotFoundError:
            return None if self._offset else []
        # A line that is being written has no newline yet: it is read next time.
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()


class RunFollower:
    """Follows the replay of one data root: call ``poll`` as often as a screen is drawn, from one thread."""

    def __init__(self, root: str | os.PathLike[str] | DataRoot, *, events: bool = True) -> None:
        self.root = DataRoot(root)
        self._with_events = events
        self._last: dict[str, Any] | None = None
        self._run: tuple[str | None, str | None] = (None, None)
        self._tails: dict[Path, tuple[Kind, _Tail]] = {}
        self._file: IO[bytes] | None = None
        self._index = self._rewinds = 0

    def poll(self) -> News:
        """Return everything new. Reads at most about a megabyte per log, so a poll is short."""
        status = read_status(self.root)
        plain = status.to_dict()
        news = News(status, changed=plain != self._last)
        self._last = plain
        run = (status.session_id, status.run_id)
        back = status.rewinds != self._rewinds or status.current_event_index < self._index
        if run != self._run or back:
            news.began = True
            self._begin(run)
            self._rewinds = status.rewinds
        if status.session_id is None or status.run_id is None:
            return news
        if self._with_events:
            self._read_events(status.current_event_index, news)
        logs = self.root.run(status.session_id, status.run_id)
        if not self._read_logs(logs, news):
            # The run went back, and the status that says so was not read yet.
            news.began = True
            news.records.clear()
            self._tails = {}
            self._read_logs(logs, news)
        return news

    def close(self) -> None:
        """Close the session's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, run: tuple[str | None, str | None]) -> None:
        self.close()
        self._run = run
        self._tails = {}
        self._index = 0

    def _read_events(self, position: int, news: News) -> None:
        session_id = news.status.session_id
        if position <= self._index or session_id is None:
            return
        if self._file is None:
            path = self.root.session_events(session_id)
            if not path.is_file():
                return
            self._file = path.open("rb")
        keep_from = position - _MOST_EVENTS
        while self._index < position:
            line = self._file.readline()
            if not line:
                break
            if line.isspace():
                continue
            if self._index < keep_from:
                news.skipped += 1
            else:
                # The loader has counted a line that is no event among the rejects: it has no index.
                with suppress(orjson.JSONDecodeError):
                    news.events.append(orjson.loads(line))
            self._index += 1
        self._index = position

    def _read_logs(self, run: DataRoot, news: News) -> bool:
        """Read what is new in the logs; returns whether all that was read before is still there."""
        kinds: tuple[tuple[Kind, Path], ...] = (
            ("state", run.events_dir),
            ("order", run.orders_dir),
            ("trade", run.trades_log_dir),
        )
        for kind, folder in kinds:
            if folder.is_dir():
                for path in sorted(folder.glob("*.jsonl")):
                    self._tails.setdefault(path, (kind, _Tail(path)))
        found: list[tuple[int, Kind, dict[str, Any]]] = []
        for kind, tail in self._tails.values():
            at, lines = 0, tail.lines()
            if lines is None:
                return False
            for line in lines:
                with suppress(orjson.JSONDecodeError):
                    record = orjson.loads(line)
                    if isinstance(record, dict):
                        # Never before the line above it: the order within a log stays.
                        at = max(at, _moment(record))
                        found.append((at, kind, record))
        # Logs are read one after another; what happened first comes first.
        found.sort(key=itemgetter(0))
        news.records += [(kind, record) for _, kind, record in found]
        return True


def _moment(record: dict[str, Any]) -> int:
    try:
        return parse_ns(record.get("timestamp"))  # type: ignore[arg-type]  # a damaged line: TimeError
    except (TimeError, TypeError):
        return 0
