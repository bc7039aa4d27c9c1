"""Cut a replay session out of the logs: scan, filter, concatenate, sort, truncate, write.

The order of a session's events is total: timestamp (ns), source (book, trades, metrics, state events, orders,
trade log), symbol, line. The same sources and options give the same ``events.jsonl`` to the byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson
import polars as pl

import replaylab
from replaylab.errors import LogReadError, SessionError, SessionExistsError
from replaylab.paths import DataRoot, safe_name
from replaylab.records import ReplayManifest
from replaylab.sessions.initial import InitialState, recorded_params
from replaylab.sessions.options import BuildOptions, generated_id
from replaylab.sessions.session import Session
from replaylab.sessions.sources import ROW_SCHEMA, SORT_KEYS, Sources, in_day_logs, json_lines, known_symbols
from replaylab.sessions.store import HIDDEN, manifest_bytes, remove_session_folder, write_index
from replaylab.timestamps import iso, now_ns

_LINES_AT_A_TIME = 50_000
_TRIES = 4
IfExists = Literal["error", "reuse", "replace"]


def build_replay_session(
    root: str | os.PathLike[str] | DataRoot,
    start: str | datetime,
    end: str | datetime,
    symbols: str | Sequence[str],
    include_types: str | Sequence[str] | None = None,
    max_events: int | None = None,
    session_id: str | None = None,
    notes: str | None = None,
    created_by: Literal["MANUAL", "AUTO", "TEST"] = "MANUAL",
    speed_factor: float = 1.0,
    if_exists: IfExists = "error",
    progress: bool = False,
) -> ReplayManifest:
    """Build a replay session of ``start ≤ timestamp < end`` and return its manifest.

    >>> manifest = build_replay_session("data", "2025-11-18T10:00Z", "2025-11-18T11:00Z", ["BTCUSDT"])  # doctest: +SKIP
    >>> manifest.session_id                                                                           # doctest: +SKIP
    '2025-11-18T10-11-BTCUSDT'

    ``include_types``: ReplayEvent types, a trailing ``*`` for a prefix; None takes all signals (SCORING, REGIME, RISK,
    EXECUTION) and the market data that there is. ``max_events`` keeps the first so many events. ``if_exists``:
    "error", "reuse" (the session with the same options, else an error) or "replace". The session appears complete or
    not at all. Memory is bounded, whatever the size of the logs.

    Raises SessionError (empty range, unknown symbol, bad option), SessionExistsError, TimeError, UnsafeNameError.
    Warns about symbols and types of which the range holds nothing.
    """
    data = DataRoot(root)
    options = BuildOptions.check(start, end, symbols, include_types, max_events)
    if if_exists not in ("error", "reuse", "replace"):
        raise SessionError(f'if_exists is "error", "reuse" or "replace", found {if_exists!r}')
    if session_id is not None:
        safe_name(session_id, "session id")
    manifest = _draft(options, session_id or "draft", notes, created_by, speed_factor)
    chosen = _choose_id(data, options, session_id, if_exists)
    if isinstance(chosen, ReplayManifest):
        return chosen
    _require_logs(data, options)
    with _building_folder(data) as folder:
        meta, complaints = _fill_from_whole_logs(data, options, folder, progress)
        manifest.total_events = meta["totalEvents"]
        manifest.event_types = sorted(meta["eventCounts"])
        manifest.session_id = _move_into_place(data, folder, chosen, manifest, meta, session_id, if_exists)
    write_index(data)
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=2)
    return manifest


def _draft(
    options: BuildOptions, session_id: str, notes: str | None, created_by: str, speed_factor: float
) -> ReplayManifest:
    """Return the manifest, checked before any work is done."""
    return ReplayManifest.from_dict(
        {
            "sessionId": session_id,
            "createdAt": iso(now_ns()),
            "createdBy": created_by,
            "sourceDateRange": {"from": options.start_text, "to": options.end_text},
            "symbols": list(options.symbols),
            "eventTypes": [],
            "speedFactor": speed_factor,
            "notes": notes,
            "totalEvents": 0,
        }
    )


def _choose_id(
    root: DataRoot, options: BuildOptions, session_id: str | None, if_exists: IfExists
) -> str | ReplayManifest:
    """Return the id to build under, or the manifest of the session that is to be used again."""
    wanted = options.to_dict()
    if session_id is not None:
        if not root.manifest(session_id).is_file():
            return session_id
        existing = Session(root, session_id)
        if if_exists == "replace":
            _refuse_pinned(existing)
            return session_id
        if if_exists == "error":
            raise SessionExistsError(
                f'session {session_id!r} exists already; if_exists="reuse" or "replace" allows that'
            )
        if existing.meta.get("options") != wanted:
            raise SessionExistsError(
                f"session {session_id!r} exists, but was built with other options: {existing.meta.get('options')}"
            )
        return existing.manifest
    base = generated_id(options)
    for name in _numbered(base):
        if not root.session_dir(name).exists():
            return name
        if if_exists == "replace":
            if root.manifest(name).is_file():
                _refuse_pinned(Session(root, name))
            return name
        if if_exists == "reuse" and root.manifest(name).is_file():
            existing = Session(root, name)
            if existing.meta.get("options") == wanted:
                return existing.manifest
    raise SessionError("no free session id")  # pragma: no cover - _numbered never ends


def _refuse_pinned(session: Session) -> None:
    try:
        pinned = session.meta.get("pin")
    except SessionError:
        pinned = False  # Its meta.json is damaged: building it anew is the way out.
    if pinned:
        raise SessionError(f"session {session.id!r} is pinned; pin(session_id, False) lets it be replaced")


def _require_logs(root: DataRoot, options: BuildOptions) -> None:
    known = known_symbols(root)
    missing = [symbol for symbol in options.symbols if symbol not in known]
    # Most symbols have files of their own; the day logs hold all symbols, and are looked at only where it matters.
    missing = [symbol for symbol in missing if not in_day_logs(root, symbol)]
    if missing:
        there = ", ".join(known) if known else "none at all"
        raise SessionError(
            f"there is no log or market data of {', '.join(missing)} in {root.path}; symbols with some: {there}"
        )


def _fill_from_whole_logs(
    root: DataRoot, options: BuildOptions, folder: Path, progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """Fill the folder; begin again where retention moved lines of a log away while it was read."""
    for _ in range(_TRIES - 1):
        try:
            return _fill(root, options, folder, progress)
        except LogReadError:
            shutil.rmtree(folder)
            folder.mkdir()
    return _fill(root, options, folder, progress)


def _fill(
    root: DataRoot, options: BuildOptions, folder: Path, progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """Write ``events.jsonl`` into ``folder``; return meta.json's content and what the caller should be warned of."""
    sources = Sources(root, options)
    state = InitialState(root, options.start, options.symbols)
    parts = folder / "parts"
    parts.mkdir()
    sorter = RowSorter(parts)
    for rows in _with_progress(sources.rows(state.see), progress):
        sorter.add(rows)
    with (folder / "events.jsonl").open("wb") as file:
        written = _Writer(file, options.max_events)
        for piece in sorter.sorted_slices():
            if not written.take(piece):
                break
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(parts)
    params = recorded_params(root, options.start, options.end)
    complaints = _complaints(options, written)
    meta = {
        "formatVersion": 1,
        "replaylabVersion": replaylab.__version__,
        "options": options.to_dict(),
        "sources": [source.to_dict(root) for source in sources.files],
        "totalEvents": written.total,
        "eventCounts": dict(sorted(written.types.items())),
        "truncated": sorter.rows > written.total,
        "eventsSha256": written.digest.hexdigest(),
        "eventsBytes": written.size,
        "initialState": state.to_dict(),
        "recordedParams": params[0] if params else None,
        "recordedParamsChanges": params[1:],
        "warnings": complaints,
        "pin": False,
    }
    return meta, complaints


class _Writer:
    """Writes sorted rows as lines, counts and hashes them, and stops at ``limit``."""

    def __init__(self, file: BinaryIO, limit: int | None) -> None:
        self._file = file
        self._limit = limit
        self.total = 0
        self.size = 0
        self.types: Counter[str] = Counter()
        self.symbols: set[str] = set()
        self.digest = hashlib.sha256()

    def take(self, rows: pl.DataFrame) -> bool:
        """Write rows; returns False once the limit is reached."""
        if self._limit is not None:
            rows = rows.head(self._limit - self.total)
        for chunk in rows.iter_slices(_LINES_AT_A_TIME):
            data = json_lines(chunk)
            self._file.write(data)
            self.digest.update(data)
            self.size += len(data)
        self.total += rows.height
        self.types.update(dict(rows.group_by("type").len().iter_rows()))
        self.symbols.update(rows["symbol"].unique().to_list())
        return self._limit is None or self.total < self._limit


def _complaints(options: BuildOptions, written: _Writer) -> list[str]:
    span = f"between {iso(options.start)} and {iso(options.end)}"
    if not written.total:
        return [f"there is nothing to replay {span}: the session holds 0 events"]
    found = []
    silent = [symbol for symbol in options.symbols if symbol not in written.symbols]
    if silent:
        found.append(f"no events of {', '.join(silent)} {span}")
    if options.include_types is not None:
        absent = options.types.without_match(written.types)
        if absent:
            found.append(f"no events of type {', '.join(absent)} {span}")
    return found


@contextmanager
def _building_folder(root: DataRoot) -> Iterator[Path]:
    """Give a hidden folder beside the sessions; whatever happens, it is gone afterwards."""
    root.sessions_dir.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root.sessions_dir)
    folder = root.sessions_dir / f"{HIDDEN}building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(sessions_dir: Path) -> None:
    """Remove what builds left behind whose process was killed."""
    for child in sessions_dir.glob(f"{HIDDEN}building-*-*"):
        pid = child.name.split("-")[1]
        if not (pid.isdecimal() and _is_alive(int(pid))):
            shutil.rmtree(child, ignore_errors=True)
    for child in sessions_dir.glob(f"{HIDDEN}deleted-*"):
        shutil.rmtree(child, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _move_into_place(
    root: DataRoot,
    folder: Path,
    name: str,
    manifest: ReplayManifest,
    meta: dict[str, Any],
    asked: str | None,
    if_exists: IfExists,
) -> str:
    """Finish the files and give the folder its name in one step; returns the name, which another build may change."""
    (folder / "meta.json").write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2) + b"\n")
    names = iter([name]) if asked is not None or if_exists == "replace" else _numbered(name)
    for candidate in names:
        manifest.session_id = candidate
        (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
        target = root.session_dir(candidate)
        if if_exists == "replace" and target.exists():
            remove_session_folder(target)
        if not target.exists():
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():
                    raise
            else:
                return candidate
    raise SessionExistsError(f"session {name!r} was made by somebody else while this one was built")


def _numbered(base: str) -> Iterator[str]:
    yield base
    for number in count(2):
        yield f"{base}-{number}"


def _with_progress(rows: Iterable[pl.DataFrame], show: bool) -> Iterable[pl.DataFrame]:
    if not show:
        return rows
    return _counted(rows)


def _counted(rows: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    from tqdm.auto import tqdm

    with tqdm(unit=" events", unit_scale=True, desc="reading") as bar:
        for frame in rows:
            bar.update(frame.height)
            yield frame


_ROW_GROUP = 16_384


@dataclass(frozen=True)
class _Part:
    """One sorted file: where it is, and every ``_ROW_GROUP``-th of its timestamps."""

    path: Path
    first: int
    last: int
    samples: list[int]


class RowSorter:
    """Takes frames of rows in any order and gives them back sorted, slice by slice.

    >>> sorter = RowSorter(folder, memory_bytes=192_000_000)    # doctest: +SKIP
    >>> sorter.add(rows)                                        # doctest: +SKIP
    >>> for slice_ in sorter.sorted_slices(): ...               # doctest: +SKIP

    Up to ``memory_bytes`` rows stay in memory; beyond that they are sorted and written to ``folder`` as parts.
    Two slices never share a timestamp, so the order of slices is the order of the session.
    """

    def __init__(self, folder: Path, memory_bytes: int = 128_000_000) -> None:
        self._folder = folder
        self._limit = memory_bytes
        self._held: list[pl.DataFrame] = []
        self._held_bytes = 0
        self._parts: list[_Part] = []
        self.rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take a frame of ``ROW_SCHEMA``."""
        if rows.is_empty():
            return
        self.rows += rows.height
        self._held.append(rows)
        self._held_bytes += int(rows.estimated_size())
        if self._held_bytes > self._limit:
            self._spill()

    def sorted_slices(self) -> Iterator[pl.DataFrame]:
        """Yield all rows in session order."""
        if not self._parts:
            yield self._sorted_held()
            return
        if self._held:
            self._spill()
        edges = self._edges()
        for low, high in zip([None, *edges], [*edges, None], strict=True):
            pieces = [
                self._read(part, low, high)
                for part in self._parts
                if (high is None or part.first < high) and (low is None or part.last >= low)
            ]
            if pieces:
                yield _in_order(pl.concat(pieces))

    def _sorted_held(self) -> pl.DataFrame:
        frame = pl.concat(self._held) if self._held else pl.DataFrame(schema=ROW_SCHEMA)
        self._held, self._held_bytes = [], 0
        return _in_order(frame)

    def _spill(self) -> None:
        frame = self._sorted_held()
        path = self._folder / f"part-{len(self._parts):05d}.parquet"
        frame.write_parquet(path, compression="lz4", row_group_size=_ROW_GROUP, statistics=True)
        times = frame["ts"]
        self._parts.append(_Part(path, times[0], times[-1], times.gather_every(_ROW_GROUP).to_list()))

    def _edges(self) -> list[int]:
        """Return the times between slices, about as many rows apart as one part holds, and fewer rows at most."""
        samples = sorted(time for part in self._parts for time in part.samples)
        per_slice = max(1, len(samples) // (len(self._parts) * 2))
        return sorted(set(samples[per_slice::per_slice]))

    @staticmethod
    def _read(part: _Part, low: int | None, high: int | None) -> pl.DataFrame:
        rows = pl.scan_parquet(part.path)
        if low is not None:
            rows = rows.filter(pl.col("ts") >= low)
        if high is not None:
            rows = rows.filter(pl.col("ts") < high)
        return rows.collect()


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(SORT_KEYS, maintain_order=True)


def market_rows(root: DataRoot, start: int, end: int, symbols: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield MARKET_TRADE and MARKET_BOOK rows (columns of ``rows.ROW_SCHEMA``), a bounded piece at a time.

    >>> for rows in market_rows(root, start_ns, end_ns, ["BTCUSDT"]): ...        # doctest: +SKIP

    The order is that of a session over the same range, so what a simulation decides on these rows a replay of the
    session decides again.
    """
    options = BuildOptions.check(iso(start), iso(end), symbols, ["MARKET_*"], None)
    with tempfile.TemporaryDirectory(prefix="replaylab-sort-") as folder:
        sorter = RowSorter(Path(folder))
        for rows in Sources(root, options).market_rows():
            sorter.add(rows)
        yield from sorter.sorted_slices()
