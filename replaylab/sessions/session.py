"""A replay session on disk: its manifest, its events, and what the build knew about them."""

from __future__ import annotations

import hashlib
import mmap
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import ConfigError, RecordError, SessionError, SessionNotFoundError
from replaylab.fsio import remembered_sha256, write_atomic
from replaylab.history import normalised
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayManifest, decode_record
from replaylab.sessions.check import Findings, check_events
from replaylab.timestamps import iso

_VERSION_1 = {
    "marketFill": "print",
    "limitFill": "touch",
    "maxGapS": None,
    "rounding": "none",
    "slippageBps": 1.0,
}
# Bytes of text in a block of events; a session that is not larger is one block.
_BLOCK_BYTES = 32 << 20


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
        # What is loaded, and the identity of its file.
        self._held: tuple[tuple[int, ...], frames.Loaded, pl.DataFrame] | None = None
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
        # A session without a count (of another program) has no number to show.
        total = f"{manifest.total_events:,} " if isinstance(manifest.total_events, int) else ""
        lines = (
            f"{manifest.source_date_range.from_} to {manifest.source_date_range.to}",
            f"{', '.join(manifest.symbols)}: {total}events of {', '.join(manifest.event_types)}",
        )
        return "<br>".join([f"<b>{escape(self.id)}</b>", *map(escape, lines)])

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

    @property
    def _loaded(self) -> frames.Loaded:
        """The events, loaded again once their file has changed."""
        path = self.root.session_events(self.id)
        identity = self._identity()
        if self._held is None or self._held[0] != identity:
            digest = self.digest
            loaded = frames.Loaded(pl.DataFrame(schema={**EVENT_SCHEMA, "timestamp_text": pl.String}))
            if path.is_file():
                loaded = frames.load_replay_events(path, keep_text=True)
            self._warn_of(loaded.rejects.height)
            _require_order(path, loaded.frame)
            self._require_unchanged(identity, digest)
            self._held = (identity, loaded, loaded.frame.select(*EVENT_SCHEMA))
        return self._held[1]

    def _warn_of(self, rejects: int) -> None:
        if rejects:
            path = self.root.session_events(self.id)
            warnings.warn(
                f"{rejects} lines of {path} are no replay events; session.rejects lists them", stacklevel=5
            )

    def _require_unchanged(self, identity: tuple[int, ...], digest: str) -> None:
        if self._identity() != identity or self.digest != digest:
            path = self.root.session_events(self.id)
            raise SessionError(f"{path} changed while it was read: load it again")

    def _identity(self) -> tuple[int, ...]:
        try:
            found = self.root.session_events(self.id).stat()
        except FileNotFoundError:
            return ()
        return (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def events(self) -> pl.DataFrame:
        loaded = self._loaded
        return loaded.frame if self._held is None else self._held[2]

    def event_blocks(self) -> Iterator[pl.DataFrame]:
        """Yield the events in blocks of some 32 MB of text: for sessions beyond memory.

        A session that ``events`` has loaded, or that is not larger than a block, comes in one piece. Warnings and
        errors are those of ``events``; some come with the last block.
        """
        path = self.root.session_events(self.id)
        identity = self._identity()
        small = not identity or identity[0] <= _BLOCK_BYTES
        if small or (self._held is not None and self._held[0] == identity):
            yield self.events
            return
        digest = self.digest
        before, rejects = None, 0
        with path.open("rb", buffering=0) as file:
            for loaded in frames.chunks_of(file, frames.REPLAY_EVENTS, str(path), (None, None), _BLOCK_BYTES):
                rejects += loaded.rejects.height
                if loaded.frame.height:
                    _require_order(
                        path, loaded.frame if before is None else pl.concat([before, loaded.frame])
                    )
                    before = loaded.frame.tail(1)
                    yield loaded.frame.select(*EVENT_SCHEMA)
        self._warn_of(rejects)
        self._require_unchanged(identity, digest)

    def events_of(self, *types: str) -> pl.DataFrame:
        """Return the events of some types.

        >>> session.events_of("EXECUTION_TRADE", "EXECUTION_EXIT")     # doctest: +SKIP

        A large file that ``events`` has not loaded is searched for their names, and only those lines are parsed.
        """
        path, identity = self.root.session_events(self.id), self._identity()
        counts = self.meta.get("eventCounts")
        held = self._held is not None and self._held[0] == identity
        if not held and isinstance(counts, dict) and identity and identity[0] > _BLOCK_BYTES:
            digest = self.digest
            expected = {name: counts[name] for name in types if counts.get(name)}
            lines = list(_lines_with(path, expected)) if expected else []
            frame = frames.decode_block(
                frames.REPLAY_EVENTS, frames.Block(b"\n".join(lines), 0, 1, len(lines)), str(path)
            ).frame
            self._require_unchanged(identity, digest)
            found = frame.select(*EVENT_SCHEMA).filter(pl.col("type").is_in(types))
            # Fewer were found where another program wrote a name with escapes.
            if dict(found.group_by("type").len().iter_rows()) == expected:
                return found
        return self.events.filter(pl.col("type").is_in(types))

    @property
    def timestamp_texts(self) -> pl.Series:
        """The events' timestamps as ``events.jsonl`` has them."""
        return self._loaded.frame["timestamp_text"]

    @property
    def rejects(self) -> pl.DataFrame:
        """Lines of ``events.jsonl`` that are no replay events: file, line, offset, reason, text."""
        return self._loaded.rejects

    @property
    def digest(self) -> str:
        """SHA-256 of ``events.jsonl`` in hex; the file is read again only after a change (``remembered_sha256``).

        Raises SessionError where the file is not the one that ``meta.json`` describes (``eventsBytes``,
        ``eventsSha256``): it was cut or edited. ``SessionStore.rehash`` accepts it with its changes.
        """
        path = self.root.session_events(self.id)
        size = path.stat().st_size if path.is_file() else 0
        if self._changed(size) is not None:
            # Replaced or accepted since this object read its meta.json.
            for name in ("manifest", "meta", "recorded_params", "recorded_scoring"):
                self.__dict__.pop(name, None)
            if (change := self._changed(size)) is not None:
                raise SessionError(
                    f"session {self.id!r} was changed since it was built: {path} has {change}. Restore the file, "
                    f"build the session again, or accept the change: replaylab sessions {self.id} --rehash, or "
                    f"SessionStore.rehash({self.id!r})"
                )
        return self._found_digest()

    def _found_digest(self) -> str:
        path = self.root.session_events(self.id)
        if not path.is_file():
            return hashlib.sha256().hexdigest()
        return remembered_sha256(path, self.root.session_digest(self.id))

    def _changed(self, size: int) -> str | None:
        """Return how ``events.jsonl``, of ``size`` bytes, differs from what ``meta.json`` says of it, or None."""
        written, sha256 = self.meta.get("eventsBytes"), self.meta.get("eventsSha256")
        if isinstance(written, int) and written != size:
            return f"{size:,} bytes, and {written:,} were written"
        if isinstance(sha256, str) and sha256 != self._found_digest():
            return "other content than was written (its SHA-256 differs)"
        return None

    @property
    def initial_state(self) -> dict[str, Any] | None:
        """The state at the start of the range, or None for a session that starts from nothing."""
        found = self.meta.get("initialState")
        return found if isinstance(found, dict) else None

    @property
    def initial_regimes(self) -> dict[str, str]:
        """Regimes by symbol at the start of the range; those that the session records."""
        found = (self.initial_state or {}).get("symbols")
        states = found.items() if isinstance(found, dict) else ()
        named = {symbol: about.get("regime") for symbol, about in states if isinstance(about, dict)}
        return {symbol: regime for symbol, regime in named.items() if isinstance(regime, str)}

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

    def check(self) -> Findings:
        """Return findings about the data: clock of the signals, holes, books, missing ids, mixed logs; computed once.

        >>> session.check().warnings                             # doctest: +SKIP
        """
        return self._checked

    @cached_property
    def _checked(self) -> Findings:
        gaps = self.meta.get("gaps")
        return check_events(
            self.events,
            initial_state=self.initial_state,
            recorded_params=self.recorded_params,
            gaps=gaps if isinstance(gaps, dict) else None,
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
        return read_bookmarks(self.root, self.id)

    def set_bookmark(self, name: str, index: int | None) -> None:
        """Give the event at ``index`` a name; None takes the name away again."""
        marks = self.bookmarks
        if index is None:
            marks.pop(name, None)
        elif not 0 <= index <= self.events.height:
            raise SessionError(f"a bookmark is an event index from 0 to {self.events.height}, found {index}")
        else:
            marks[name] = index
        write_atomic(self.root.bookmarks(self.id), orjson.dumps(marks, option=orjson.OPT_INDENT_2))

    def _recorded(self, part: str) -> Mapping[str, Any] | None:
        recorded = self.meta.get("recordedParams")
        found = recorded.get(part) if isinstance(recorded, dict) else None
        return found if isinstance(found, dict) else None


def read_bookmarks(root: DataRoot, session_id: str) -> dict[str, int]:
    """Return the bookmarks of a session, sorted by index. Raises SessionError where their file cannot be read."""
    path = root.bookmarks(session_id)
    if not path.is_file():
        return {}
    try:
        found = {str(name): int(at) for name, at in orjson.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SessionError(
            f"{path}: expected an object of names and event indices: {error}; correct or delete the file"
        ) from None
    return dict(sorted(found.items(), key=lambda item: item[1]))


EVENT_SCHEMA: dict[str, Any] = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "type": pl.String,
    "symbol": pl.String,
    "payload": pl.String,
}


def _lines_with(path: Path, names: Iterable[str]) -> Iterator[bytes]:
    """Yield the lines that hold one of some names in quotes."""
    pattern = re.compile(b"|".join(re.escape(f'"{name}"'.encode()) for name in names))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        place = 0
        while (match := pattern.search(text, place)) is not None:
            start, place = text.rfind(b"\n", 0, match.start()) + 1, text.find(b"\n", match.end())
            place = len(text) if place < 0 else place
            yield text[start:place]


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
