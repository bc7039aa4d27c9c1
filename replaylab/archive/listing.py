"""List the files of a data root that a clean-up may touch: regular files of known names in known folders only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.errors import RecordError, RetentionError
from replaylab.frames import (
    EVENTS,
    ORDERS,
    PARAMS,
    REPLAY_EVENTS,
    TRADES,
    Block,
    Loaded,
    LogSchema,
    blocks,
    decode_block,
)
from replaylab.fsio import after_last_newline
from replaylab.paths import DataRoot, classify, is_safe_name
from replaylab.records import ReplayManifest, decode_record
from replaylab.timestamps import parse_ns

DAY_LOGS = ("trades_log", "orders")
_PACKAGE = Path(__file__).parents[1]
_LINK = "a symbolic link; it is not followed and left alone"
Int64s = npt.NDArray[np.int64]
# A file that stays, and why.
Problem = tuple[Path, str]


@dataclass(frozen=True)
class DayFile:
    """One day's log."""

    path: Path
    log: str
    day: str


@dataclass(frozen=True)
class SessionFolder:
    """One replay session. ``created_ns`` is None where its manifest cannot be read."""

    path: Path
    session_id: str
    created_ns: int | None
    pinned: bool
    problem: str | None


def refuse_unsafe(root: DataRoot) -> None:
    """Raise RetentionError for a root on which no clean-up may run."""
    place = root.path.resolve()
    checkout = _PACKAGE.parent / "data"
    is_sample = place == (_PACKAGE / "_sample").resolve()
    if is_sample or (place == checkout.resolve() and (checkout / "make_sample.py").exists()):
        raise RetentionError(
            f"{place} is the sample that comes with the package; clean up a copy (Lab.sample())"
        )
    parts = place.parts
    if len(parts) >= 5 and parts[-2] == "runs" and parts[-5:-3] == ("replay", "sessions"):
        raise RetentionError(f"{place} is a run of a replay; it goes when its session is deleted")
    # The report and the lock are written there.
    refuse_links(root, root.system_dir)


def refuse_links(root: DataRoot, *folders: Path) -> None:
    """Raise RetentionError where a folder, or one on the way to it from the root, is a symbolic link."""
    for folder in folders:
        for place in (folder, *folder.parents):
            if place == root.path:
                break
            if place.is_symlink():
                raise RetentionError(f"{root.relative(place)} is {_LINK}; make it a folder of the data root")


def files_in(folder: Path, suffix: str) -> tuple[list[Path], list[Problem]]:
    """Return the regular files of a folder that end in ``suffix``, and what is left alone: links, what is unreadable.

    A folder that is itself a link is left alone too: what it points to may lie outside the root.
    """
    if folder.is_symlink():
        return [], [(folder, _LINK)]
    files: list[Path] = []
    problems: list[Problem] = []
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are enough, and there may be many
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        return [], [(folder, str(error))]
    for name in names:
        if not name.endswith(suffix) or name.startswith("."):
            continue
        path = folder / name
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            problems.append((path, str(error)))
            continue
        if stat.S_ISLNK(mode):
            problems.append((path, _LINK))
        elif stat.S_ISREG(mode):
            files.append(path)
    return files, problems


def day_files(root: DataRoot, log: str) -> tuple[list[DayFile], list[Problem]]:
    """Return the day files of a log, oldest first, and what is left alone. Other names are not ours."""
    paths, problems = files_in(root.path / log, ".jsonl")
    found = []
    for path in paths:
        place = classify(path)
        if place is not None and place.day is not None:
            found.append(DayFile(path, log, place.day))
    return sorted(found, key=lambda file: file.day), problems


def symbol_files(folder: Path, suffix: str) -> tuple[list[Path], list[Problem]]:
    """Return the files of symbols in a folder, and what is left alone."""
    paths, problems = files_in(folder, suffix)
    return [path for path in paths if classify(path) is not None], problems


def sessions(root: DataRoot) -> tuple[list[SessionFolder], list[Problem]]:
    """Return the session folders, and what is left alone."""
    folder = root.sessions_dir
    if folder.is_symlink() or folder.parent.is_symlink():
        return [], [(folder, _LINK)]
    found: list[SessionFolder] = []
    problems: list[Problem] = []
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        return [], [(folder, str(error))]
    for path in paths:
        if path.name.startswith(".") or not is_safe_name(path.name):
            continue
        if path.is_symlink():
            problems.append((path, _LINK))
        elif path.is_dir():
            found.append(session_folder(path))
    return found, problems


def archived_parts(root: DataRoot) -> list[tuple[str, Path]]:
    """Return day and path of every archived part, oldest day first."""
    folder = root.archive_dir
    if folder.is_symlink() or not folder.is_dir():
        return []
    folders = [folder / log for log in DAY_LOGS]
    events = folder / "events"
    if events.is_dir() and not events.is_symlink():
        folders += sorted(events.iterdir())
    paths = [path for inside in folders for path in files_in(inside, ".parquet")[0]]
    places = [(classify(path), path) for path in paths]
    return sorted((place.day, path) for place, path in places if place is not None and place.day is not None)


def tree_bytes(path: Path) -> int:
    """Return the bytes of the regular files under a folder; links are not followed, and pipes hold nothing."""
    # Files may disappear between listing and stat; a file without stat cannot be deleted either.
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return found.st_size
        if stat.S_ISDIR(found.st_mode):
            return sum(tree_bytes(child) for child in path.iterdir())
    return 0


def file_state(path: Path) -> tuple[int, int, int]:
    """Return (mtime in ns, size, inode): differs after every write."""
    found = path.lstat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def running_session(root: DataRoot) -> str | None:
    """Return the id of the session that a replay is playing, from the published status."""
    try:
        status = orjson.loads(root.replay_status.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if isinstance(status, dict) and status.get("running"):
        name = status.get("sessionId")
        return name if isinstance(name, str) else None
    return None


def session_folder(path: Path) -> SessionFolder:
    """Return what is known of a session folder; one without a manifest is as old as its last change."""
    pinned, created, problem = False, None, None
    try:
        manifest = decode_record(ReplayManifest, (path / "manifest.json").read_bytes())
        created = parse_ns(manifest.created_at)
    except FileNotFoundError:
        created = _last_change_ns(path)
    except (OSError, RecordError) as error:
        problem = f"its manifest cannot be read: {error}"
    # Where it cannot be known whether it is pinned, it is kept.
    try:
        meta = orjson.loads((path / "meta.json").read_bytes())
        if isinstance(meta, dict):
            pinned = bool(meta.get("pin"))
        else:
            problem = f"its meta.json cannot be read: expected an object, found {type(meta).__name__}"
    except FileNotFoundError:
        pinned = False
    except (OSError, orjson.JSONDecodeError) as error:
        problem = f"its meta.json cannot be read: {error}"
    return SessionFolder(path, path.name, created, pinned, problem)


def _last_change_ns(folder: Path) -> int | None:
    """Return the newest time of change of a folder and of what is directly inside; None where it is gone."""
    with suppress(OSError):
        return max(path.lstat().st_mtime_ns for path in (folder, *folder.iterdir()))
    return None


_BLOCKS = 16


_SCHEMAS = {
    "events": EVENTS,
    "trades_log": TRADES,
    "orders": ORDERS,
    "session_events": REPLAY_EVENTS,
    "trading_params": PARAMS,
}


def schema_by_place(path: Path) -> LogSchema | None:
    """Return the schema of a log from its place; also of a file with a wrong name in the folder of a log."""
    place = classify(path)
    if place is not None:
        return _SCHEMAS.get(place.kind)
    return REPLAY_EVENTS if path.name == "events.jsonl" else _SCHEMAS.get(path.parent.name)


def schema_by_lines(path: Path) -> LogSchema | None:
    """Return a kind of which there is a good line in the first 16 MiB; None where there is none. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        for block in islice(blocks(file), _BLOCKS):
            for schema in (EVENTS, TRADES, ORDERS, REPLAY_EVENTS, PARAMS):
                if decode_block(schema, block, "").rows:
                    return schema
    return None


@dataclass(frozen=True)
class Piece:
    """A block with the time of each of its lines, and where they start and end in it."""

    block: Block
    loaded: Loaded
    times: Int64s
    starts: Int64s
    ends: Int64s


class LineTimes:
    """Dates the lines of one log, in their order: a line without a time of its own has that of the line before it.

    Lines before the first row of the first load have the time of that row; ``undated`` is for lines of loads before
    any row.
    """

    def __init__(self, undated: int) -> None:
        self._last = undated
        self._is_first = True

    def of(self, frame: pl.DataFrame, lines: Int64s) -> Int64s:
        """Return the times of the given line numbers of the next load, of which ``frame`` are the rows."""
        stamps = frame["timestamp"].to_physical().to_numpy()
        before = int(stamps[0]) if self._is_first and len(stamps) else self._last
        self._is_first = False
        if len(stamps):
            self._last = int(stamps[-1])
        places = np.searchsorted(frame["line"].to_numpy(), lines, side="right")
        return np.concatenate([np.array([before], np.int64), stamps])[places]


def pieces(file: BinaryIO, size: int, name: str) -> Iterator[Piece]:
    """Yield the first ``size`` bytes of an open log, which are whole lines."""
    # What cannot be dated at all is as old as the last change of the file.
    times = LineTimes(os.fstat(file.fileno()).st_mtime_ns)
    for block in blocks(file, end=size):
        loaded = decode_block(EVENTS, block, name)
        text = np.frombuffer(block.data, np.uint8)
        ends = np.flatnonzero(text == ord("\n")).astype(np.int64) + 1
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        lines = np.arange(block.line, block.line + len(ends), dtype=np.int64)
        yield Piece(block, loaded, times.of(loaded.frame, lines), starts, ends)


def old_lines(path: Path, cutoff_ns: int) -> tuple[bool, bool]:
    """Return whether some, and whether all lines of a log are older than ``cutoff_ns``."""
    some, whole = False, True
    with path.open("rb") as file:
        size = after_last_newline(file.fileno(), os.fstat(file.fileno()).st_size)
        for piece in pieces(file, size, path.name):
            old = piece.times < cutoff_ns
            some = some or bool(old.any())
            whole = whole and bool(old.all())
            if some and not whole:
                break
        return some, some and whole and size == os.fstat(file.fileno()).st_size
