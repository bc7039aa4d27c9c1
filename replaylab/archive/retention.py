"""The clean-up: plan, then for each file summarise → fsync → check the summary → delete.

>>> from replaylab.archive import run_retention
>>> run_retention("data", dry_run=True).deleted_files                     # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import orjson

from replaylab.archive.compaction import settle_finished
from replaylab.archive.listing import Problem, refuse_links, refuse_unsafe
from replaylab.archive.plan import Kind, Plan, Step, excess, over_limit, plan
from replaylab.archive.removal import take
from replaylab.config import RetentionConfig
from replaylab.errors import ReplaylabError, RetentionError
from replaylab.logging import write_atomic
from replaylab.paths import DataRoot
from replaylab.records import FileError, RetentionReport, decode_record
from replaylab.timestamps import iso, now_ns, to_ns

__all__ = ["last_report", "report_path", "run_retention"]

_log = logging.getLogger("replaylab.archive")


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
        run = _Run(place, moment, settings)
        try:
            run.all()
        except Exception as error:
            run.errors.append((place.path, f"the clean-up stopped: {error or repr(error)}"))
            raise
        finally:
            # What went until then is told, whatever happened.
            run.tell(report)
            text = orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2)
            write_atomic(report_path(place), text + b"\n")
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
    for kinds in _turns(config):
        for step in over_limit(root, config, now, gone, kinds):
            gone.add(step.path)
    report.deleted_files = sorted(root.relative(path) for path in gone)
    report.kept_files = sorted(root.relative(path) for path in kept - gone)
    report.errors = [FileError(file=root.relative(path), error=why) for path, why in made.problems]


def _turns(config: RetentionConfig) -> tuple[tuple[Kind, ...], ...]:
    """Return what goes first to hold a limit: nothing that is the last copy, while compaction may suffice."""
    return (("day",), ("part",)) if config.archive else (("day", "part"),)


class _Run:
    """One clean-up, and what it has done so far."""

    def __init__(self, root: DataRoot, now: int, config: RetentionConfig) -> None:
        self._root, self._now, self._config = root, now, config
        self._deleted: set[Path] = set()
        self._kept: set[Path] = set()
        self.errors: list[Problem] = []

    def all(self) -> None:
        self.errors += _sweep_leftovers(self._root)
        made = plan(self._root, self._now, self._config)
        self._kept |= {*made.kept, *(step.path for step in made.steps)}
        self.errors += made.problems
        for step in made.steps:
            self._take(step)
        self._hold_limits()
        if any(step.kind == "session" for step in made.steps):
            _rewrite_index(self._root)

    def _take(self, step: Step) -> None:
        try:
            gone = take(self._root, step, archive=self._config.archive)
        except (OSError, ValueError, ReplaylabError) as error:
            _log.warning("clean-up of %s failed: %s", step.path, error)
            self.errors.append((step.path, str(error)))
            gone = not step.path.exists()
        if gone:
            self._deleted.add(step.path)
            self._kept.discard(step.path)
        else:
            self._kept.add(step.path)

    def _hold_limits(self) -> None:
        failed = {path for path, _ in self.errors}
        for kinds in _turns(self._config):
            for step in over_limit(self._root, self._config, self._now, set(), kinds):
                # A file that could not be taken by its age cannot be taken now.
                if step.path not in failed:
                    self._take(step)
        missing = excess(self._root, self._config, set())
        if missing > 0:
            why = f"a limit is exceeded by {missing} bytes, and no file is left that may go"
            self.errors.append((self._root.path, why))

    def tell(self, report: RetentionReport) -> None:
        name = self._root.relative
        report.deleted_files = sorted(name(path) for path in self._deleted)
        report.kept_files = sorted(name(path) for path in self._kept)
        report.errors = [FileError(file=name(path), error=why) for path, why in self.errors]


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


def _sweep_leftovers(root: DataRoot) -> list[Problem]:
    """Remove what a clean-up that died left half done; return what cannot be judged.

    Nobody else makes files of these names.
    """
    problems: list[Problem] = []
    for folder, pattern in (
        (root.events_dir, ".*.jsonl.*.tmp"),
        (root.archive_dir, "**/.part-*.tmp"),
        (root.summary_dir, "**/.day-*.json.*.tmp"),
        (root.sessions_dir, ".deleted-*"),
        (root.system_dir, f".{report_path(root).name}.*.tmp"),
    ):
        try:
            refuse_links(root, folder)
            for path in folder.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if folder == root.archive_dir:
                problems += settle_finished(root)
        except RetentionError:
            # What lies behind a link is left alone; steps that would need it say so.
            continue
        except OSError as error:
            problems.append((folder, str(error)))
    return problems


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
