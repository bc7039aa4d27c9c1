"""The clean-up: plan, then for each file summarise → fsync → check the summary → delete.

>>> from replaylab.archive import run_retention
>>> run_retention("data", dry_run=True).deleted_files                     # doctest: +SKIP
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import orjson

from replaylab import frames
from replaylab.archive.depart import Leaving, remove_part, rotate_events, settle_finished
from replaylab.archive.listing import (
    DAY_LOGS,
    Problem,
    archived_parts,
    day_files,
    file_state,
    old_lines,
    refuse_links,
    refuse_unsafe,
    running_session,
    session_folder,
    sessions,
    symbol_files,
    tree_bytes,
)
from replaylab.archive.summary import has_account, summary_path
from replaylab.config import RetentionConfig
from replaylab.errors import ReplaylabError, RetentionError
from replaylab.frames import CHUNK_BYTES, ORDERS, TRADES, Loaded, chunks_of, part_info
from replaylab.fsio import lock, lock_folder, make_folder, sync_folder, write_atomic
from replaylab.logging import rotate_lock
from replaylab.paths import DataRoot, symbol_of
from replaylab.records import FileError, RetentionReport, decode_record
from replaylab.timestamps import NS_PER_DAY, date_key, iso, now_ns, parse_ns, to_ns

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
            # The report lists what was deleted, also when the clean-up failed.
            run.write_to(report)
            _write_report(place, report)
    return report


def _write_report(root: DataRoot, report: RetentionReport) -> None:
    try:
        text = orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2)
        write_atomic(root.retention_report, text + b"\n", sync=True)
    except OSError as error:
        # The files are deleted all the same, and the caller has the report.
        _log.warning("the report of the clean-up could not be written: %s", error)
        report.errors.append(FileError(file=root.relative(root.retention_report), error=str(error)))


def last_report(root: DataRoot) -> RetentionReport | None:
    """Return the report of the last clean-up, or None; raises RecordError for a damaged one."""
    try:
        return decode_record(RetentionReport, root.retention_report.read_bytes())
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
        # On a full disk this makes room for the first summaries; each file that they allow to go makes room for more.
        _reserve(self._root).unlink(missing_ok=True)
        self.errors += _sweep_leftovers(self._root)
        made = plan(self._root, self._now, self._config)
        self._kept |= {*made.kept, *(step.path for step in made.steps)}
        self.errors += made.problems
        for step in made.steps:
            self._take(step)
        self._hold_limits()
        if any(step.kind == "session" for step in made.steps):
            with lock(self._root.replay_sessions_index.with_suffix(".lock")):
                _rewrite_index(self._root)
        keep_reserve(self._root)

    def _take(self, step: Step) -> None:
        try:
            gone = take(self._root, step, archive=self._config.archive)
        except (OSError, ValueError, ReplaylabError) as error:
            _log.warning("clean-up of %s failed: %s", step.path, error)
            why = str(error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                why += (
                    ". The disk is full, and a log only goes once its summary is written: free "
                    f"{_RESERVE_BYTES >> 10} KiB (a session, a cache) and run the clean-up again; from then on each "
                    "keeps that room for the next"
                )
            self.errors.append((step.path, why))
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

    def write_to(self, report: RetentionReport) -> None:
        name = self._root.relative
        report.deleted_files = sorted(name(path) for path in self._deleted)
        report.kept_files = sorted(name(path) for path in self._kept)
        report.errors = [FileError(file=name(path), error=why) for path, why in self.errors]


def _reserve(root: DataRoot) -> Path:
    return root.system_dir / ".retention.reserve"


def keep_reserve(root: DataRoot) -> None:
    """Keep room for the first summaries of a clean-up that finds the disk full; without room, nothing is kept."""
    with suppress(OSError):
        make_folder(root.system_dir, sync=True)
        if not _reserve(root).exists():
            # Zero bytes may become a hole, which keeps no room.
            write_atomic(_reserve(root), os.urandom(_RESERVE_BYTES), sync=True)


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
    write_atomic(path, text + b"\n", sync=True)


def _sweep_leftovers(root: DataRoot) -> list[Problem]:
    """Remove what a clean-up that died left half done; return what cannot be judged.

    No other program uses these names.
    """
    problems: list[Problem] = []
    for folder, pattern in (
        (root.events_dir, ".*.jsonl.*.tmp"),
        (root.archive_dir, "**/.part-*.tmp"),
        (root.summary_dir, "**/.day-*.json.*.tmp"),
        (root.sessions_dir, ".deleted-*"),
        (root.system_dir, f".{root.retention_report.name}.*.tmp"),
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
            # Linked folders are skipped; the steps that need them report it.
            continue
        except OSError as error:
            problems.append((folder, str(error)))
    return problems


@contextmanager
def _only_one(root: DataRoot) -> Iterator[None]:
    """Exclude a second clean-up of the same root: a scheduler and a cron job may overlap."""
    make_folder(root.system_dir, sync=True)
    try:
        held = lock(root.system_dir / ".retention.lock", timeout=0)
    except TimeoutError:
        raise RetentionError(f"another clean-up of {root} is running; wait until it is done") from None
    with held:
        yield


# Summaries have some hundred bytes, and file systems give whole blocks.
_RESERVE_BYTES = 64 << 10
_HOUR = 3_600_000_000_000
_FIRST_NS = parse_ns("1678-01-01")
Kind = Literal["day", "events", "session", "market", "part"]


@dataclass(frozen=True)
class Step:
    """One file or folder that goes. Of "events" only the lines before ``cutoff_ns`` go, unless that is the whole.

    ``state`` is that of a "market" file when it was judged.
    """

    kind: Kind
    path: Path
    log: str = ""
    day: str = ""
    cutoff_ns: int = 0
    whole: bool = True
    state: tuple[int, int, int] | None = None


@dataclass
class Plan:
    """Steps in the order in which they are taken; files that stay; what could not be judged."""

    steps: list[Step] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def plan(root: DataRoot, now_ns: int, config: RetentionConfig) -> Plan:
    """Return what is older than the configuration allows. A file is old by its date, never by its place in a list."""
    made = Plan()
    # First what needs no summary: on a full disk it makes room for the summaries of the others.
    _plan_sessions(root, day_before(now_ns, config.replay_sessions_days), made)
    _plan_market(root, now_ns - config.raw_market_data_hours * _HOUR, made)
    for log, days in (("trades_log", config.trades_log_days), ("orders", config.orders_log_days)):
        oldest = day_before(now_ns, days)
        files, problems = day_files(root, log)
        for file in files:
            if file.day < oldest:
                made.steps.append(Step("day", file.path, log, file.day))
            else:
                made.kept.append(file.path)
        made.problems += problems
    _plan_events(root, parse_ns(day_before(now_ns, config.events_days)), made)
    return made


def day_before(now_ns: int, days: int) -> str:
    """Return the UTC day that lies ``days`` days before, or the first that times can hold; earlier days are old."""
    return date_key(max(now_ns - days * NS_PER_DAY, _FIRST_NS))


def over_limit(
    root: DataRoot, config: RetentionConfig, now_ns: int, gone: set[Path], kinds: Container[Kind]
) -> Iterator[Step]:
    """Yield the oldest "day" files and archived "part"s while a limit of bytes is not held; take each when it comes.

    ``gone`` are files that a dry run only pretends to have removed. Files of today stay.
    """
    if config.max_total_bytes is None and config.min_free_bytes is None:
        return
    today = date_key(now_ns)
    candidates = [Step("part", path, day=day) for day, path in archived_parts(root)]
    candidates += [
        Step("day", file.path, log, file.day) for log in DAY_LOGS for file in day_files(root, log)[0]
    ]
    missing = excess(root, config, gone)
    for step in sorted(candidates, key=lambda step: (step.day, step.kind == "day", str(step.path))):
        if step.kind not in kinds or step.day >= today or step.path in gone:
            continue
        # Sizes are counted down, since measuring takes as long as there are files; when it seems enough it is measured:
        # a compacted file has left a part, and one that failed is still there.
        if missing <= 0:
            missing = excess(root, config, gone)
        if missing <= 0:
            return
        size = tree_bytes(step.path)
        yield step
        missing -= size


def excess(root: DataRoot, config: RetentionConfig, gone: set[Path]) -> int:
    """Return by how many bytes a limit is exceeded; 0 or less where all hold."""
    pretended = sum(tree_bytes(path) for path in gone)
    found = [0]
    if config.max_total_bytes is not None:
        folders = ("events", "trades_log", "orders", "replay", "trades", "orderbook", "archive")
        total = sum(tree_bytes(root.path / name) for name in folders) - pretended
        found.append(total - config.max_total_bytes)
    if config.min_free_bytes is not None and root.path.exists():
        found.append(config.min_free_bytes - shutil.disk_usage(root.path).free - pretended)
    return max(found)


def _plan_events(root: DataRoot, cutoff_ns: int, made: Plan) -> None:
    paths, problems = symbol_files(root.events_dir, ".jsonl")
    for path in paths:
        try:
            some, whole = old_lines(path, cutoff_ns)
        except OSError as error:
            problems.append((path, str(error)))
            some = whole = False
        if some:
            made.steps.append(Step("events", path, "events", cutoff_ns=cutoff_ns, whole=whole))
        else:
            made.kept.append(path)
    made.problems += problems


def _plan_sessions(root: DataRoot, oldest: str, made: Plan) -> None:
    found, problems = sessions(root)
    running = running_session(root)
    for session in found:
        if session.problem is not None:
            problems.append((session.path, session.problem))
        if (
            session.problem is None
            and session.created_ns is not None
            and date_key(session.created_ns) < oldest
            and not session.pinned
            and session.session_id != running
        ):
            made.steps.append(Step("session", session.path))
        else:
            made.kept.append(session.path)
    made.problems += problems


def _plan_market(root: DataRoot, cutoff_ns: int, made: Plan) -> None:
    loaders = {"orderbook": frames.load_order_book_json, "trades": frames.load_market_trades_json}
    for folder, load in loaders.items():
        paths, problems = symbol_files(root.path / folder, ".json")
        for path in paths:
            try:
                state = file_state(path)
                # The age is that of the newest entry; without one, that of the file.
                newest = load(root, str(symbol_of(path.stem))).frame["timestamp"].to_physical().max()
            except OSError as error:
                problems.append((path, str(error)))
                made.kept.append(path)
                continue
            age = state[0] if newest is None else int(str(newest))
            if age < cutoff_ns:
                made.steps.append(Step("market", path, state=state))
            else:
                made.kept.append(path)
        made.problems += problems


_SCHEMAS = {"trades_log": TRADES, "orders": ORDERS}


def take(root: DataRoot, step: Step, *, archive: bool) -> bool:
    """Take one step; return whether the file is gone. Raises OSError, ValueError, RetentionError; then it is kept."""
    refuse_links(root, step.path.parent)
    if step.kind == "events":
        return rotate_events(root, str(symbol_of(step.path.stem)), step.cutoff_ns, archive=archive)
    if step.kind == "day":
        _retire_day(root, step, archive=archive)
    elif step.kind == "session":
        _remove_session(root, step.path)
    elif step.kind == "part":
        _remove_part(root, step)
    else:
        _remove_market_file(step)
    return True


def _retire_day(root: DataRoot, step: Step, *, archive: bool) -> None:
    schema = _SCHEMAS[step.log]
    name = root.relative(step.path)
    with step.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size

        def read() -> Iterator[tuple[str, Loaded, int]]:
            # An empty file has its summary too; bytes are counted for the file as a whole.
            yield step.day, Loaded(schema.frame.to_frame()), size
            for loaded in chunks_of(file, schema, name, (None, None), CHUNK_BYTES, end=size):
                yield step.day, loaded, 0

        with Leaving(root, step.path, file.fileno(), size, schema.frame, archive=archive) as leaving:
            leaving.summarise(read())
            leaving.confirm(read())
            with rotate_lock(step.path) as current:
                leaving.check_unchanged(current, may_grow=False)
                leaving.gone = True
                step.path.unlink()


def _remove_session(root: DataRoot, path: Path) -> None:
    session = session_folder(path)
    if session.problem is not None or session.pinned:
        raise RetentionError("this session was changed or pinned meanwhile; it is kept")
    held = lock_folder(path)
    if held is None or running_session(root) == path.name:
        raise RetentionError("this session is being replayed; it is kept until the next clean-up")
    with held:
        doomed = path.with_name(f".deleted-{uuid.uuid4().hex[:8]}")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _remove_part(root: DataRoot, step: Step) -> None:
    """Remove an archived part, which is the last copy of its lines: their summary must be there."""
    info = part_info(step.path)
    log = root.relative(step.path.parent).partition("/")[2]
    if not has_account(root, log, step.day, info.source_sha256):
        raise RetentionError(
            f"{root.relative(summary_path(root, log, step.day))} does not count the lines of this part; the part is "
            "kept. Bring the summary back, or delete the part yourself"
        )
    remove_part(step.path)
    sync_folder(step.path.parent)


def _remove_market_file(step: Step) -> None:
    if file_state(step.path) != step.state:
        raise RetentionError("this file was written meanwhile; it is kept until the next clean-up")
    step.path.unlink()
    sync_folder(step.path.parent)


_MINUTE = 60_000_000_000
# The wall clock is asked again this often: it may be set, and a machine may sleep.
_LOOK_SECONDS = 30.0
_log = logging.getLogger("replaylab.archive")


class RetentionScheduler:
    """A thread that runs the clean-up every day at ``config.daily_at`` (UTC, so no hour is skipped or doubled).

    >>> with RetentionScheduler("data", RetentionConfig(daily_at="03:30")):       # doctest: +SKIP
    ...     run_bot()

    Without ``daily_at`` nothing is started. A day whose time passed while the program was not running is left out; an
    error is logged, kept in ``last_error``, and the next day is tried again. ``clock`` returns ns since 1970.
    """

    def __init__(
        self,
        root: DataRoot | str | os.PathLike[str],
        config: RetentionConfig,
        *,
        clock: Callable[[], int] = now_ns,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self.root = DataRoot(root)
        self.config = config
        self.last_report: RetentionReport | None = None
        self.last_error: str | None = None
        self._clock = clock
        self._look_seconds = look_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self.config.daily_at is None or self._thread is not None:
            return
        if self.root.path.is_dir():
            keep_reserve(self.root)
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="replaylab-retention", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, after a clean-up that is under way."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        last = self._clock()
        while not self._stopped.wait(self._look_seconds):
            now = self._clock()
            if is_due(str(self.config.daily_at), last, now):
                self._clean_up(now)
            # A clock that is set back a little must not make the same time of day pass twice; one that is set back
            # by more than a day had been wrong, and its future days must not silence those that come.
            last = now if last - now > NS_PER_DAY else max(last, now)

    def _clean_up(self, now: int) -> None:
        try:
            self.last_report = run_retention(self.root, now=iso(now), config=self.config)
            self.last_error = None
        # Any exception: ending this thread would end all later clean-ups without a message.
        except Exception as error:
            self.last_error = str(error) or repr(error)
            _log.exception("the daily clean-up of %s failed", self.root)


def is_due(daily_at: str, last_ns: int, now_ns: int) -> bool:
    """Return whether the UTC time of day ``daily_at`` ("HH:MM") lies in last < time ≤ now.

    >>> is_due("03:30", 0, 4 * 3600 * 10**9)
    True
    """
    hours, minutes = daily_at.split(":")
    offset = (int(hours) * 60 + int(minutes)) * _MINUTE
    return (now_ns - offset) // NS_PER_DAY > (last_ns - offset) // NS_PER_DAY
