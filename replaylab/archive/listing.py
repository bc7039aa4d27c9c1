"""Which files of a data root a clean-up may touch: regular files of known names in known folders, and nothing else."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

import orjson

from replaylab.errors import RecordError, RetentionError
from replaylab.frames.decode import is_day
from replaylab.paths import DataRoot, is_safe_name
from replaylab.records import ReplayManifest, decode_record
from replaylab.timestamps import parse_ns

__all__ = [
    "DAY_LOGS",
    "DayFile",
    "SessionFolder",
    "archived_parts",
    "day_files",
    "files_in",
    "refuse_unsafe",
    "running_session",
    "sessions",
    "symbol_files",
    "tree_bytes",
]

DAY_LOGS = ("trades_log", "orders")
_DAY_NAME = re.compile(r"day-(\d{4}-\d\d-\d\d)\.jsonl", re.ASCII)
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class DayFile:
    """One day's log."""

    path: Path
    log: str
    day: str
    bytes: int


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


def files_in(folder: Path, suffix: str) -> tuple[list[Path], list[Path]]:
    """Return the regular files of a folder that end in ``suffix``, and the symbolic links that are left alone.

    A folder that is itself a link is left alone too: what it points to may lie outside the root.
    """
    if folder.is_symlink():
        return [], [folder]
    if not folder.is_dir():
        return [], []
    files, links = [], []
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(suffix) or path.name.startswith("."):
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            links.append(path)
        elif stat.S_ISREG(mode):
            files.append(path)
    return files, links


def day_files(root: DataRoot, log: str) -> tuple[list[DayFile], list[Path]]:
    """Return the day files of a log, oldest first, and links that are left alone. Other names are not ours."""
    paths, links = files_in(root.path / log, ".jsonl")
    found = []
    for path in paths:
        match = _DAY_NAME.fullmatch(path.name)
        if match and is_day(match[1]):
            found.append(DayFile(path, log, match[1], path.stat().st_size))
    return sorted(found, key=lambda file: file.day), links


def symbol_files(folder: Path, suffix: str) -> tuple[list[Path], list[Path]]:
    """Return the files of symbols in a folder, and links that are left alone."""
    paths, links = files_in(folder, suffix)
    return [path for path in paths if is_safe_name(path.name.removesuffix(suffix))], links


def sessions(root: DataRoot) -> tuple[list[SessionFolder], list[Path]]:
    """Return the session folders that have a manifest, and links that are left alone."""
    folder = root.sessions_dir
    if folder.is_symlink() or folder.parent.is_symlink():
        return [], [folder]
    if not folder.is_dir():
        return [], []
    found, links = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_safe_name(path.name):
            continue
        if path.is_symlink():
            links.append(path)
        elif path.is_dir() and (path / "manifest.json").is_file():
            found.append(_session(path))
    return found, links


def archived_parts(root: DataRoot) -> list[tuple[str, Path]]:
    """Return day and path of every archived part, oldest day first."""
    found = []
    folder = root.archive_dir
    if folder.is_symlink() or not folder.is_dir():
        return []
    for log in DAY_LOGS:
        found += [(path.name[4:14], path) for path in files_in(folder / log, ".parquet")[0]]
    events = folder / "events"
    if events.is_dir() and not events.is_symlink():
        for symbol in sorted(events.iterdir()):
            if is_safe_name(symbol.name):
                found += [(path.name[4:14], path) for path in files_in(symbol, ".parquet")[0]]
    return sorted((day, path) for day, path in found if is_day(day))


def tree_bytes(path: Path) -> int:
    """Return the bytes of the regular files under a folder; links are not followed."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(tree_bytes(child) for child in path.iterdir())


def running_session(root: DataRoot) -> str | None:
    """Return the session that a replay is playing now, as the published status says."""
    try:
        status = orjson.loads(root.replay_status.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if isinstance(status, dict) and status.get("running"):
        name = status.get("sessionId")
        return name if isinstance(name, str) else None
    return None


def _session(path: Path) -> SessionFolder:
    pinned, created, problem = False, None, None
    try:
        manifest = decode_record(ReplayManifest, (path / "manifest.json").read_bytes())
        created = parse_ns(manifest.created_at)
    except (OSError, RecordError) as error:
        problem = f"its manifest cannot be read: {error}"
    try:
        meta = orjson.loads((path / "meta.json").read_bytes())
        pinned = isinstance(meta, dict) and bool(meta.get("pin"))
    except FileNotFoundError:
        pinned = False
    except (OSError, orjson.JSONDecodeError) as error:
        # Whether it is pinned cannot be known, so it is kept.
        problem = f"its meta.json cannot be read: {error}"
    return SessionFolder(path, path.name, created, pinned, problem)
