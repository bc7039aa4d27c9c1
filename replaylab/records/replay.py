"""Records of replay sessions, replay status and clean-up."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType, field

from replaylab.errors import RecordError
from replaylab.records.codec import Record
from replaylab.timestamps import iso, now_ns


class ReplayEvent(Record, kw_only=True):
    """One event of a session; one line of ``replay/sessions/<sessionId>/events.jsonl``.

    ``timestamp`` is the original one. ``symbol`` is None for what concerns every symbol.
    """

    times = ("timestamp",)
    timestamp: str
    type: str
    symbol: str | None = None
    payload: dict[str, Any]


class SourceDateRange(Record, kw_only=True, rename={"from_": "from"}):
    """The half-open range of a session: from ≤ timestamp < to."""

    times = ("from_", "to")
    from_: str
    to: str


class ReplayManifest(Record, kw_only=True):
    """``replay/sessions/<sessionId>/manifest.json``: what a session holds."""

    times = ("created_at",)
    session_id: str
    created_at: str
    created_by: Literal["MANUAL", "AUTO", "TEST"]
    source_date_range: SourceDateRange
    symbols: list[str]
    event_types: list[str]
    speed_factor: float
    notes: str | None
    total_events: int | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if not self.speed_factor > 0:
            raise RecordError(
                f"speedFactor: expected a number above 0, found {self.speed_factor}", field="speedFactor"
            )


class Lateness(Record, kw_only=True):
    """How late events were emitted, in milliseconds: actual minus due time."""

    p50: float
    p99: float
    max: float


class ReplayStatus(Record, kw_only=True):
    """What a replay is doing. The fields from ``speed_factor`` on are replaylab's additions.

    ``rejects``: lines of the session's events that could not be read, and are not played.
    """

    session_id: str | None = None
    running: bool = False
    current_event_index: int = 0
    total_events: int = 0
    started_at: str | None = None
    last_event_timestamp: str | None = None
    speed_factor: float | None = None
    paused: bool = False
    inject_mode: str | None = None
    run_id: str | None = None
    lateness: Lateness | None = None
    rejects: int = 0
    error: str | None = None
    run_mode: str | None = None
    params_source: str | None = None
    changes: dict[str, list[Any]] | None = None


class FileError(Record, kw_only=True):
    """A file that a clean-up could not handle, and why."""

    file: str
    error: str


class RetentionReport(Record, kw_only=True):
    """What a clean-up deleted and kept; files relative to the data root."""

    timestamp: str = field(default_factory=lambda: iso(now_ns()))
    deleted_files: list[str] = field(default_factory=list)
    kept_files: list[str] = field(default_factory=list)
    errors: list[FileError] = field(default_factory=list)
