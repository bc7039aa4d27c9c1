"""Cut a replay session out of the logs: scan, filter, concatenate, sort, truncate, write.

The order of a session's events is total: timestamp (ns), source (book, trades, metrics, state events, orders,
trade log), symbol, line. The same sources and options give the same ``events.jsonl`` to the byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl
from msgspec import UNSET

import replaylab
from replaylab import frames, history
from replaylab.errors import LogReadError, SessionError, SessionExistsError
from replaylab.paths import DataRoot, safe_name
from replaylab.records import ReplayManifest
from replaylab.sessions.check import check_events
from replaylab.sessions.initial import StateBefore, recorded_params
from replaylab.sessions.options import BuildOptions, generated_id, moment_ns, option_arguments
from replaylab.sessions.session import Session
from replaylab.sessions.sources import ROW_SCHEMA, SORT_KEYS, Sources, in_day_logs, json_lines, known_symbols
from replaylab.sessions.store import (
    build_folder,
    json_bytes,
    publish_folder,
    remove_session_folder,
    unused,
    write_index,
)
from replaylab.timestamps import NS_PER_DAY, iso, now_ns

_LINES_AT_A_TIME = 50_000
_TRIES = 4
# Sessions of at most so many events are checked when they are built.
_CHECKED = 300_000
_ROW_GROUP = 16_384
IfExists = Literal["error", "reuse", "replace"]
CreatedBy = Literal["MANUAL", "AUTO", "TEST"]
Moment = str | datetime


def build_replay_session(
    root: str | os.PathLike[str] | DataRoot,
    start: Moment | Mapping[str, Any],
    end: Moment | None = None,
    symbols: str | Sequence[str] | None = None,
    include_types: str | Sequence[str] | None = None,
    max_events: int | None = None,
    *,
    session_id: str | None = None,
    notes: str | None = None,
    created_by: CreatedBy = "MANUAL",
    speed_factor: float = 1.0,
    if_exists: IfExists = "error",
    progress: bool = True,
) -> ReplayManifest:
    """Build a replay session of ``start ≤ timestamp < end`` and return its manifest.

    >>> manifest = build_replay_session("data", "2025-11-18T10:00Z", "2025-11-18T11:00Z", ["BTCUSDT"])  # doctest: +SKIP
    >>> manifest.session_id                                                                           # doctest: +SKIP
    '2025-11-18T10-11-BTCUSDT'
    >>> build_replay_session("data", {"from": "2025-11-18T10:00Z", "to": "2025-11-18T11:00Z",
    ...                               "symbols": ["BTCUSDT"], "maxEvents": 50_000})                    # doctest: +SKIP

    ``start`` may be the specification's options object: from, to, symbols, includeTypes, maxEvents, sessionId, notes
    (also createdBy, speedFactor, ifExists); no option may then be given twice. ``include_types``: ReplayEvent types, a
    trailing ``*`` for a prefix; None takes all signals (SCORING, REGIME, RISK, EXECUTION), funding and the market data
    that there is. ``max_events`` keeps the first so many events. ``if_exists``: "error", "reuse" (the session with the
    same options, else an error) or "replace". The session appears complete or not at all. Memory is bounded, whatever
    the size of the logs.

    Raises SessionError (empty range, unknown symbol or option), SessionExistsError, TimeError, UnsafeNameError.
    Warns of symbols and types of which the range holds nothing; ``manifest.warnings`` keeps the messages.
    """
    arguments: dict[str, Any] = {
        "end": end,
        "symbols": symbols,
        "include_types": include_types,
        "max_events": max_events,
        "session_id": session_id,
        "notes": notes,
        "created_by": created_by,
        "speed_factor": speed_factor,
        "if_exists": if_exists,
    }
    if isinstance(start, Mapping):
        _merge_options(arguments, option_arguments(start))
    else:
        arguments["start"] = start
    for name, key in (("start", "from"), ("end", "to"), ("symbols", "symbols")):
        if arguments.get(name) is None:
            raise SessionError(f"a session needs {name} (in an options object: {key!r})")
    return _build(DataRoot(root), progress=progress, **arguments)


def build_sessions(
    root: str | os.PathLike[str] | DataRoot,
    start: Moment,
    end: Moment,
    symbols: str | Sequence[str],
    every: str = "1d",
    *,
    include_types: str | Sequence[str] | None = None,
    max_events: int | None = None,
    notes: str | None = None,
    created_by: CreatedBy = "MANUAL",
    speed_factor: float = 1.0,
    if_exists: IfExists = "error",
    progress: bool = True,
) -> list[ReplayManifest]:
    """Build one session per period of a range and return their manifests, oldest first.

    >>> build_sessions("data", "2025-11-01", "2025-12-01", ["BTCUSDT"], every="1d")          # doctest: +SKIP

    ``every``: a whole number of s, m, h or d ("1d", "4h"); periods begin at multiples of it in UTC, the first and the
    last end with the range. A period without events gives no session; one warning lists them. Other arguments as in
    :func:`build_replay_session`. Raises SessionError.
    """
    first, last = moment_ns(start, "start"), moment_ns(end, "end")
    step = _period_ns(every)
    built, empty = [], []
    while first < last:
        until = min(first - first % step + step, last)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            manifest = build_replay_session(
                root,
                iso(first),
                iso(until),
                symbols,
                include_types,
                max_events,
                notes=notes,
                created_by=created_by,
                speed_factor=speed_factor,
                if_exists=if_exists,
                progress=progress,
            )
        if manifest.total_events:
            built.append(manifest)
        else:
            remove_session_folder(DataRoot(root).session_dir(manifest.session_id))
            empty.append(iso(first))
        first = until
    if empty:
        write_index(DataRoot(root))
        warnings.warn(f"no events in {len(empty)} periods from {', '.join(empty[:5])}", stacklevel=2)
    return built


_UNITS_NS = {"s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000, "d": NS_PER_DAY}


def _period_ns(every: str) -> int:
    number, unit = every[:-1], every[-1:]
    if unit not in _UNITS_NS or not number.isascii() or not number.isdigit() or not int(number):
        raise SessionError(f'every: expected a whole number of s, m, h or d such as "1d", found {every!r}')
    return int(number) * _UNITS_NS[unit]


# The defaults of ``build_replay_session``: an argument that has another value was given.
_DEFAULTS: dict[str, Any] = {"created_by": "MANUAL", "speed_factor": 1.0, "if_exists": "error"}


def _merge_options(arguments: dict[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in arguments and arguments[name] != _DEFAULTS.get(name):
            raise SessionError(f"{name} is given twice: in the options object and as an argument")
        if value is not None or name not in _DEFAULTS:
            arguments[name] = value


def _build(
    root: DataRoot,
    *,
    start: Moment,
    end: Moment,
    symbols: str | Sequence[str],
    include_types: str | Sequence[str] | None,
    max_events: int | None,
    session_id: str | None,
    notes: str | None,
    created_by: str,
    speed_factor: float,
    if_exists: str,
    progress: bool,
) -> ReplayManifest:
    options = BuildOptions.check(start, end, symbols, include_types, max_events)
    if if_exists not in ("error", "reuse", "replace"):
        raise SessionError(f'if_exists is "error", "reuse" or "replace", found {if_exists!r}')
    if session_id is not None:
        safe_name(session_id, "session id")
    manifest = _draft(options, session_id or "draft", notes, created_by, speed_factor)
    chosen = _choose_id(root, options, session_id, if_exists)
    if isinstance(chosen, ReplayManifest):
        return chosen
    _require_logs(root, options)
    with build_folder(root) as folder:
        meta = _fill_from_whole_logs(root, options, folder, progress)
        meta["warnings"] += _doubts(folder, meta)
        manifest.total_events = meta["totalEvents"]
        manifest.event_types = sorted(meta["eventCounts"])
        manifest.warnings = meta["warnings"] or UNSET
        (folder / "meta.json").write_bytes(json_bytes(meta))
        fixed = session_id is not None or if_exists == "replace"
        names = [chosen] if fixed else numbered(chosen)
        manifest = move_into_place(root, folder, manifest, names, if_exists, options.to_dict())
    write_index(root)
    for message in meta["warnings"]:
        warnings.warn(message, stacklevel=3)
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
    root: DataRoot, options: BuildOptions, session_id: str | None, if_exists: str
) -> str | ReplayManifest:
    """Return the id to build under, or the manifest of the session to reuse."""
    wanted = options.to_dict()
    if session_id is not None:
        if not root.manifest(session_id).is_file():
            return session_id
        existing = Session(root, session_id)
        if if_exists == "replace":
            with unused(root, session_id):
                return session_id
        if if_exists == "error":
            raise SessionExistsError(
                f'session {session_id!r} exists; if_exists="reuse" or "replace" allows that'
            )
        if existing.meta.get("options") != wanted:
            raise SessionExistsError(
                f"session {session_id!r} exists, but was built with other options: {existing.meta.get('options')}"
            )
        return existing.manifest
    for name in numbered(generated_id(options)):
        if not root.session_dir(name).exists():
            return name
        if if_exists == "replace":
            with unused(root, name):
                return name
        if if_exists == "reuse" and (reused := _reusable(root, name, wanted)) is not None:
            return reused
    raise SessionError("no free session id")  # pragma: no cover - numbered never ends


def _require_logs(root: DataRoot, options: BuildOptions) -> None:
    known = known_symbols(root)
    missing = [symbol for symbol in options.symbols if symbol not in known]
    # Most symbols have files of their own; the day logs of all symbols are read only for the others.
    missing = [symbol for symbol in missing if not in_day_logs(root, symbol)]
    if missing:
        available = ", ".join(known) if known else "none"
        raise SessionError(
            f"no log or market data of {', '.join(missing)} in {root.path}; symbols with some: {available}"
        )


def _fill_from_whole_logs(
    root: DataRoot, options: BuildOptions, folder: Path, progress: bool
) -> dict[str, Any]:
    """Fill the folder; start again where retention moved lines of a log away while it was read."""
    for _ in range(_TRIES - 1):
        try:
            return _fill(root, options, folder, progress)
        except LogReadError:
            shutil.rmtree(folder)
            folder.mkdir()
    return _fill(root, options, folder, progress)


def _doubts(folder: Path, meta: Mapping[str, Any]) -> list[str]:
    """Return findings that distort results. A long session is checked when asked: memory stays bounded here."""
    if meta["totalEvents"] > _CHECKED:
        return []
    found = check_events(frames.load_replay_events(folder / "events.jsonl").frame)
    return [one.message for one in found if one.level == "warning" and one.kind != "no_prices"]


def _fill(root: DataRoot, options: BuildOptions, folder: Path, progress: bool) -> dict[str, Any]:
    """Write ``events.jsonl`` into ``folder`` and return the content of ``meta.json``."""
    sources = Sources(root, options)
    state = StateBefore(root, options.start, options.symbols)
    parts = folder / "parts"
    parts.mkdir()
    sorter = RowSorter(parts)
    rows = sources.rows(state)
    for piece in _with_progress(rows) if progress else rows:
        sorter.add(piece)
    with (folder / "events.jsonl").open("wb") as file:
        written = _Writer(file, options.max_events)
        for piece in sorter.sorted_slices():
            if not written.take(piece):
                break
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(parts)
    params = recorded_params(root, options.start, options.end)
    return {
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
        "instruments": recorded_instruments(root, options.symbols),
        "gaps": recorded_gaps(root, options),
        "warnings": _warnings(options, written),
        "pin": False,
    }


def recorded_instruments(root: DataRoot, symbols: Sequence[str]) -> dict[str, dict[str, Any]]:
    known = history.load_instruments(root)
    return {symbol: known[symbol] for symbol in sorted(symbols) if symbol in known}


def recorded_gaps(root: DataRoot, options: BuildOptions) -> dict[str, Any]:
    """Return by symbol and kind ("missing", "crossed") what imports found doubtful in the book inside the range.

    ``{"BTCUSDT": {"missing": {"count": 2, "seconds": 3.5, "first": "2025-11-18T10:02:11Z"}}}``
    """
    found: dict[str, Any] = {}
    for symbol in options.symbols:
        rows = history.scan_gaps(root, symbol, None, iso(options.end)).collect()
        start = pl.lit(options.start).cast(rows.schema["timestamp"])
        rows = rows.filter(pl.col("end").fill_null(pl.col("timestamp")) >= start).with_columns(
            seconds=(pl.col("end") - pl.max_horizontal("timestamp", start)).dt.total_nanoseconds() / 1e9
        )
        for (what,), part in rows.sort("timestamp").partition_by("what", as_dict=True).items():
            first = iso(int(part["timestamp"].dt.timestamp("ns")[0]))
            about = {"count": part.height, "seconds": float(part["seconds"].sum()), "first": first}
            found.setdefault(symbol, {})[str(what)] = about
    return found


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


def _warnings(options: BuildOptions, written: _Writer) -> list[str]:
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


def move_into_place(
    root: DataRoot,
    folder: Path,
    manifest: ReplayManifest,
    names: Iterable[str],
    if_exists: str,
    options: Mapping[str, Any] | None = None,
) -> ReplayManifest:
    """Write the manifest and publish the folder under the first of ``names`` that is free; return the manifest.

    With ``if_exists="reuse"`` it is that of a session with the same ``options`` that another build has published.
    """
    for name in names:
        manifest.session_id = name
        (folder / "manifest.json").write_bytes(json_bytes(manifest.to_dict()))
        target = root.session_dir(name)
        replace = if_exists == "replace" and target.exists()
        with unused(root, name) if replace else nullcontext():
            if publish_folder(folder, target, replace=replace):
                return manifest
        if if_exists == "reuse" and (existing := _reusable(root, name, options)) is not None:
            return existing
    raise SessionExistsError(f"another build made session {manifest.session_id!r} while this one ran")


def _reusable(root: DataRoot, name: str, options: Any) -> ReplayManifest | None:
    """Return the manifest of an existing session if it was built with these options."""
    existing = Session(root, name) if root.manifest(name).is_file() else None
    return existing.manifest if existing is not None and existing.meta.get("options") == options else None


def numbered(base: str) -> Iterator[str]:
    yield base
    for number in count(2):
        yield f"{base}-{number}"


def _with_progress(rows: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    from tqdm.auto import tqdm

    with tqdm(unit=" events", unit_scale=True, desc="reading", delay=1.0) as bar:
        for frame in rows:
            bar.update(frame.height)
            yield frame


def market_rows(root: DataRoot, start: int, end: int, symbols: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield MARKET_TRADE, MARKET_BOOK and FUNDING rows (columns ``ROW_SCHEMA``), a bounded piece at a time.

    >>> for rows in market_rows(root, start_ns, end_ns, ["BTCUSDT"]): ...        # doctest: +SKIP

    The order is that of a session over the same range, so what a simulation decides on these rows a replay of the
    session decides again.
    """
    options = BuildOptions.check(iso(start), iso(end), symbols, ["MARKET_*", "FUNDING"], None)
    with tempfile.TemporaryDirectory(prefix="replaylab-sort-") as folder:
        sorter = RowSorter(Path(folder))
        for rows in Sources(root, options).market_rows():
            sorter.add(rows)
        yield from sorter.sorted_slices()


@dataclass(frozen=True)
class _Part:
    """One sorted file, and every ``_ROW_GROUP``-th of its timestamps."""

    path: Path
    first: int
    last: int
    samples: list[int]


class RowSorter:
    """Sorts rows of any number with bounded memory: sorted parts on disk, merged one time slice after another.

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
        """Add a frame of ``ROW_SCHEMA``."""
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
                yield pl.concat(pieces).sort(SORT_KEYS, maintain_order=True)

    def _sorted_held(self) -> pl.DataFrame:
        frame = pl.concat(self._held) if self._held else pl.DataFrame(schema=ROW_SCHEMA)
        self._held, self._held_bytes = [], 0
        return frame.sort(SORT_KEYS, maintain_order=True)

    def _spill(self) -> None:
        frame = self._sorted_held()
        path = self._folder / f"part-{len(self._parts):05d}.parquet"
        frame.write_parquet(path, compression="lz4", row_group_size=_ROW_GROUP, statistics=True)
        times = frame["ts"]
        self._parts.append(_Part(path, times[0], times[-1], times.gather_every(_ROW_GROUP).to_list()))

    def _edges(self) -> list[int]:
        """Return the times between slices, at most about as many rows apart as one part holds."""
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
