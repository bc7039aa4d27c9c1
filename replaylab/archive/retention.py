"""The clean-up: plan, then for each file summarise → fsync → check the summary → delete.

>>> from replaylab.archive import run_retention
>>> run_retention("data", dry_run=True).deleted_files                     # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import BinaryIO

import orjson

from replaylab.archive.compaction import PartWriter, drop_superseded, settle_finished, settle_parts
from replaylab.archive.listing import refuse_unsafe, running_session
from replaylab.archive.plan import Plan, Step, excess, over_limit, plan
from replaylab.archive.rotation import rotate_events
from replaylab.archive.summary import account_of, add_account, settle_accounts, sha256_of, summarise
from replaylab.config import RetentionConfig
from replaylab.errors import ReplaylabError, RetentionError
from replaylab.frames.files import chunks_of
from replaylab.frames.fingerprint import begins_with, fingerprint
from replaylab.frames.loaded import Loaded
from replaylab.frames.logs import ORDERS, TRADES
from replaylab.frames.schema import LogSchema
from replaylab.frames.sources import CHUNK_BYTES
from replaylab.logging import rotate_lock, write_atomic
from replaylab.logging.atomic import sync_folder
from replaylab.paths import DataRoot
from replaylab.records import FileError, RetentionReport, decode_record
from replaylab.timestamps import iso, now_ns, to_ns

__all__ = ["last_report", "report_path", "run_retention"]

_log = logging.getLogger("replaylab.archive")
_SCHEMAS = {"trades_log": TRADES, "orders": ORDERS}


def run_retention(
    root: DataRoot | str | os.PathLike[str],
    now: str | datetime | date | None = None,
    dry_run: bool = False,
    config: RetentionConfig | None = None,
) -> RetentionReport:
    """Delete, or archive, what is older than ``config`` allows; return what was deleted, kept, and failed.

    >>> run_retention("data", now="2025-11-20T00:00:00Z", config=RetentionConfig(trades_log_days=1))  # doctest: +SKIP

    ``now`` (default: the wall clock; without a zone it is UTC) decides ages; a day file is old when its date is before
    the UTC date of ``now`` minus the days. ``dry_run`` changes nothing and reports what would be deleted. Files are
    relative to the root; a session is its folder. A state event log that only loses its old lines is kept. A file that
    could not be summarised, or that grew meanwhile, is kept and is in ``errors``. Raises RetentionError for a root that
    must not be cleaned up, or while another clean-up runs.
    """
    place = DataRoot(root)
    settings = config or RetentionConfig()
    moment = now_ns() if now is None else to_ns(now)
    refuse_unsafe(place)
    report = RetentionReport(timestamp=iso(moment))
    if not place.path.is_dir():
        return report
    if dry_run:
        made = plan(place, moment, settings)
        _pretend(place, moment, settings, made, report)
        return report
    with _only_one(place):
        _sweep_leftovers(place)
        made = plan(place, moment, settings)
        _apply(place, moment, settings, made, report)
        write_atomic(report_path(place), orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2) + b"\n")
    return report


def report_path(root: DataRoot) -> Path:
    """Return where the report of the last clean-up lies."""
    return root.system_dir / "retention_report.json"


def last_report(root: DataRoot) -> RetentionReport | None:
    """Return the report of the last clean-up, or None; raises RecordError for a damaged one."""
    try:
        return decode_record(RetentionReport, report_path(root).read_bytes())
    except FileNotFoundError:
        return None


def _pretend(root: DataRoot, now: int, config: RetentionConfig, made: Plan, report: RetentionReport) -> None:
    gone = {step.path for step in made.steps if step.whole}
    kept = {*made.kept, *(step.path for step in made.steps if not step.whole)}
    for step in over_limit(root, config, now, gone):
        gone.add(step.path)
    report.deleted_files = sorted(root.relative(path) for path in gone)
    report.kept_files = sorted(root.relative(path) for path in kept - gone)
    report.errors = [FileError(file=root.relative(path), error=why) for path, why in made.problems]


def _apply(root: DataRoot, now: int, config: RetentionConfig, made: Plan, report: RetentionReport) -> None:
    deleted: set[Path] = set()
    kept = set(made.kept)
    errors = list(made.problems)

    def take(step: Step, *, archive: bool) -> None:
        try:
            gone = _do(root, step, archive=archive)
        except (OSError, ValueError, ReplaylabError) as error:
            _log.warning("clean-up of %s failed: %s", step.path, error)
            errors.append((step.path, str(error)))
            (kept if step.path.exists() else deleted).add(step.path)
            return
        (deleted if gone else kept).add(step.path)
        if gone:
            kept.discard(step.path)

    for step in made.steps:
        take(step, archive=config.archive)
    failed = {path for path, _ in errors}
    for step in over_limit(root, config, now, set()):
        if step.path not in failed:
            take(step, archive=config.archive and step.kind != "part")
    if config.archive:
        # Compaction made room, and left parts that are now the oldest that can go.
        for step in over_limit(root, config, now, set()):
            if step.kind == "part":
                take(step, archive=False)
    missing = excess(root, config, set())
    if missing > 0:
        errors.append((root.path, f"a limit is exceeded by {missing} bytes, and no file is left that may go"))
    if any(step.kind == "session" for step in made.steps):
        _rewrite_index(root)
    report.deleted_files = sorted(root.relative(path) for path in deleted)
    report.kept_files = sorted(root.relative(path) for path in kept)
    report.errors = [FileError(file=root.relative(path), error=why) for path, why in errors]


def _do(root: DataRoot, step: Step, *, archive: bool) -> bool:
    """Take one step; return whether the file is gone."""
    if step.kind == "events":
        return rotate_events(root, step.path.stem, step.cutoff_ns, archive=archive).removed
    if step.kind == "day":
        _retire_day(root, step, archive=archive)
    elif step.kind == "session":
        _remove_session(root, step.path)
    else:
        step.path.unlink()
        sync_folder(str(step.path.parent))
    return True


def _retire_day(root: DataRoot, step: Step, *, archive: bool) -> None:
    schema = _SCHEMAS[step.log]
    name = root.relative(step.path)
    with step.path.open("rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        content, sha256 = fingerprint(fd, size), sha256_of(fd, size)
        account = account_of(name, content, sha256, _loads(file, schema, name, size))
        add_account(root, step.log, step.day, account, fd)
        # Read once more: what the summary says must be what the file holds, not what memory held.
        again = summarise(loaded.frame for loaded in _loads(file, schema, name, size))
        if again != account.symbols or sha256_of(fd, size) != sha256:
            raise ValueError(f"{name}: the summary is not that of the file; it is kept")
        parts = []
        if archive:
            writer = PartWriter(root, step.path, step.day, schema.frame)
            try:
                for loaded in _loads(file, schema, name, size):
                    writer.add(loaded)
                written = writer.finish(content, sha256, size)
            finally:
                writer.discard()
            parts.append(written.path)
            drop_superseded(root, step.path, fd, keep=parts)
            _log.info("%s: archived, %.1f times smaller", name, written.ratio)
        with rotate_lock(step.path) as current:
            grown = os.fstat(current).st_size != size or not begins_with(current, content)
            if grown:
                raise RetentionError(
                    f"{name}: changed while it was summarised; it is kept until the next clean-up"
                )
            step.path.unlink()
    settle_parts(parts)
    settle_accounts(root, step.log, step.day)


def _loads(file: BinaryIO, schema: LogSchema, name: str, size: int) -> Iterator[Loaded]:
    return chunks_of(file, schema, name, (None, None), CHUNK_BYTES, end=size)


def _remove_session(root: DataRoot, path: Path) -> None:
    if running_session(root) == path.name:
        raise RetentionError("this session is being replayed; it is kept until the next clean-up")
    doomed = path.with_name(f".deleted-{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _rewrite_index(root: DataRoot) -> None:
    """Take the sessions that are gone out of ``system/replay_sessions.json``."""
    path = root.replay_sessions_index
    try:
        index = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return
    if not isinstance(index, dict) or not isinstance(index.get("sessions"), list):
        return
    left = [
        entry
        for entry in index["sessions"]
        if not isinstance(entry, dict) or (root.sessions_dir / str(entry.get("sessionId"))).is_dir()
    ]
    text = orjson.dumps({**index, "timestamp": iso(now_ns()), "sessions": left}, option=orjson.OPT_INDENT_2)
    write_atomic(path, text + b"\n")


def _sweep_leftovers(root: DataRoot) -> None:
    """Remove what a clean-up that died left half done. Nobody else makes files of these names."""
    for folder, pattern in (
        (root.events_dir, ".*.jsonl.*.tmp"),
        (root.archive_dir, "**/.part-*.tmp"),
        (root.summary_dir, "**/.day-*.json.*.tmp"),
    ):
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    if root.archive_dir.is_dir() and not root.archive_dir.is_symlink():
        settle_finished(root)
    if root.sessions_dir.is_dir() and not root.sessions_dir.is_symlink():
        for path in root.sessions_dir.glob(".deleted-*"):
            if not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _only_one(root: DataRoot) -> Iterator[None]:
    """Keep a second clean-up of the same root out: a scheduler and a cron job may meet."""
    root.system_dir.mkdir(exist_ok=True)
    fd = os.open(root.system_dir / ".retention.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise RetentionError(f"another clean-up of {root} is running") from None
        yield
    finally:
        os.close(fd)
