"""A replay session on disk: its manifest, its events, and what the build knew about them."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import ConfigError, RecordError, SessionError, SessionNotFoundError
from replaylab.fsio import process_alive, remembered_sha256, write_atomic
from replaylab.history import normalised
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayManifest, decode_record
from replaylab.timestamps import iso, now_ns, parse_ns

_HEARTBEAT_NS = 15_000_000_000
_VERSION_1 = {
    "marketFill": "print",
    "limitFill": "touch",
    "maxGapS": None,
    "rounding": "none",
    "slippageBps": 1.0,
}


class Session:
    """One session of a data root; files are read when first asked for.

    >>> session = lab.session("2025-11-18T10-11-BTCUSDT")      # doctest: +SKIP
    >>> session.events.head()                                  # doctest: +SKIP

    ``events`` has the columns timestamp, type, symbol, payload (JSON string); a row's position is the event's index.
    Raises SessionNotFoundError when there is no such session.
    """

    def __init__(self, root: str | Path | DataRoot, session_id: str) -> None:
        self.root = DataRoot(root)
        self.id = session_id
        self.path = self.root.session_dir(session_id)
        if not self.root.manifest(session_id).is_file():
            raise SessionNotFoundError(
                f"there is no replay session {session_id!r} in {self.root.sessions_dir}"
            )

    def __repr__(self) -> str:
        manifest = self.manifest
        span = f"{manifest.source_date_range.from_} … {manifest.source_date_range.to}"
        return f"Session({self.id!r}, {span}, {', '.join(manifest.symbols)})"

    def _repr_html_(self) -> str:
        manifest = self.manifest
        return (
            f"<b>{self.id}</b><br>{manifest.source_date_range.from_} to {manifest.source_date_range.to}<br>"
            f"{', '.join(manifest.symbols)}: {manifest.total_events:,} events of {', '.join(manifest.event_types)}"
        )

    @cached_property
    def manifest(self) -> ReplayManifest:
        return decode_record(ReplayManifest, self.root.manifest(self.id).read_bytes())

    @cached_property
    def meta(self) -> dict[str, Any]:
        """``meta.json``: provenance, options, initial state, recorded parameters; empty where there is none."""
        path = self.root.session_meta(self.id)
        if not path.is_file():
            return {}
        try:
            found = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise SessionError(f"{path}: cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise SessionError(f"{path}: expected an object, found {type(found).__name__}")
        return found

    @cached_property
    def _loaded(self) -> frames.Loaded:
        path = self.root.session_events(self.id)
        if not path.is_file():
            return frames.Loaded(pl.DataFrame(schema={**EVENT_SCHEMA, "timestamp_text": pl.String}))
        loaded = frames.load_replay_events(path, keep_text=True)
        if loaded.rejects.height:
            warnings.warn(
                f"{loaded.rejects.height} lines of {path} are no replay events; session.rejects lists them",
                stacklevel=4,
            )
        _require_order(path, loaded.frame)
        return loaded

    @cached_property
    def events(self) -> pl.DataFrame:
        return self._loaded.frame.select(*EVENT_SCHEMA)

    @property
    def timestamp_texts(self) -> pl.Series:
        """The events' timestamps as ``events.jsonl`` has them."""
        return self._loaded.frame["timestamp_text"]

    @property
    def rejects(self) -> pl.DataFrame:
        """Lines of ``events.jsonl`` that are no replay events: file, line, offset, reason, text."""
        return self._loaded.rejects

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``events.jsonl`` in hex; the file is read again only after a change (``remembered_sha256``)."""
        path = self.root.session_events(self.id)
        if not path.is_file():
            return hashlib.sha256().hexdigest()
        return remembered_sha256(path, self.root.session_digest(self.id))

    @property
    def initial_state(self) -> dict[str, Any] | None:
        """The state at the start of the range, or None for a session that starts from nothing."""
        found = self.meta.get("initialState")
        return found if isinstance(found, dict) else None

    @property
    def warnings(self) -> list[str]:
        """What the build warned of: symbols and types of which the range holds nothing."""
        found = self.meta.get("warnings")
        return [str(message) for message in found] if isinstance(found, list) else []

    @property
    def instruments(self) -> dict[str, dict[str, Any]]:
        """Tick, lot, minimum notional, contract size and ``inferred`` by symbol, as of the build; {} where unknown."""
        found = self.meta.get("instruments")
        entries = found.items() if isinstance(found, dict) else ()
        return {symbol: normalised(entry) for symbol, entry in entries if isinstance(entry, dict)}

    def require_unused(self) -> None:
        """Raise SessionError where the session may not be replaced or deleted: it is pinned, or is being replayed.

        A damaged meta.json pins nothing: a new build mends it.
        """
        if _replayed(self.root) == self.id:
            raise SessionError(f"session {self.id!r} is being replayed: stop the replay first")
        try:
            pinned = self.meta.get("pin")
        except SessionError:
            return
        if pinned:
            raise SessionError(
                f"session {self.id!r} is pinned; pin({self.id!r}, False) allows to replace or delete it"
            )

    @cached_property
    def recorded_params(self) -> TradingParams | None:
        """The trading parameters in force at the start, or None where none were logged.

        Parameters logged before there were fill models are those of version 1 of the trading model: print fills, limits
        at the touch, no holes, no rounding.
        """
        found = self._recorded("params")
        if found is None:
            return None
        recorded: TradingParams = _settings(
            self, TradingParams, found if "marketFill" in found else {**_VERSION_1, **found}
        )
        return recorded

    @cached_property
    def recorded_scoring(self) -> ScoringParams | None:
        """The scoring parameters in force at the start, or None where none were logged."""
        found = self._recorded("scoring")
        return None if found is None else _settings(self, ScoringParams, found)

    @property
    def bookmarks(self) -> dict[str, int]:
        """Names that were given to events, with the event's index; sorted by index."""
        path = self.path / "bookmarks.json"
        if not path.is_file():
            return {}
        found = orjson.loads(path.read_bytes())
        return dict(sorted(((str(name), int(at)) for name, at in found.items()), key=lambda item: item[1]))

    def set_bookmark(self, name: str, index: int | None) -> None:
        """Give the event at ``index`` a name; None takes the name away again."""
        marks = self.bookmarks
        if index is None:
            marks.pop(name, None)
        elif not 0 <= index <= self.events.height:
            raise SessionError(f"a bookmark is an event index from 0 to {self.events.height}, found {index}")
        else:
            marks[name] = index
        write_atomic(self.path / "bookmarks.json", orjson.dumps(marks, option=orjson.OPT_INDENT_2))

    def _recorded(self, part: str) -> Mapping[str, Any] | None:
        recorded = self.meta.get("recordedParams")
        found = recorded.get(part) if isinstance(recorded, dict) else None
        return found if isinstance(found, dict) else None


EVENT_SCHEMA: dict[str, Any] = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "type": pl.String,
    "symbol": pl.String,
    "payload": pl.String,
}


def _replayed(root: DataRoot) -> str | None:
    """Return the id of the session that a live process replays on this data root, or None."""
    try:
        status = orjson.loads(root.replay_status.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    if not isinstance(status, dict) or not status.get("running"):
        return None
    pid, started, host = status.get("pid"), status.get("processStart"), status.get("host")
    if isinstance(pid, int) and host == platform.node():
        alive = process_alive(pid, started if isinstance(started, int | float) else None)
    else:
        # On another machine only the heartbeat shows it.
        beat = status.get("heartbeatAt")
        alive = isinstance(beat, str) and now_ns() - parse_ns(beat) < _HEARTBEAT_NS
    found = status.get("sessionId")
    return found if alive and isinstance(found, str) else None


def _require_order(path: Path, frame: pl.DataFrame) -> None:
    """Raise SessionError with the line where an event is earlier than the one before it."""
    ns = frame["timestamp"].dt.timestamp("ns")
    back = (ns.diff() < 0).fill_null(False)
    if back.any():
        row = back.arg_max() or 0
        raise SessionError(
            f"{path}:{frame['line'][row]}: the event at {iso(ns[row])} comes after one at {iso(ns[row - 1])}; "
            "a session is in order of time: build it again, or sort its lines"
        )


def _settings(session: Session, kind: type[Any], found: Mapping[str, Any]) -> Any:
    try:
        return kind.from_dict(found)
    except (ConfigError, RecordError) as error:
        raise SessionError(f"{session.id}: the recorded parameters cannot be used: {error}") from None
