"""The health of logging, replay and retention, from what they left behind: a snapshot that any process can make."""

from __future__ import annotations

import os
from typing import Any

import orjson

from replaylab.archive import last_report
from replaylab.config import Config
from replaylab.errors import RecordError, ReplaylabError, UnsafeNameError
from replaylab.frames import load_snapshot
from replaylab.logging import Logger, LogStats, judge
from replaylab.paths import DataRoot
from replaylab.records import HealthSnapshot, ServiceHealth
from replaylab.replay import read_status
from replaylab.timestamps import NS_PER_DAY, iso, now_ns, parse_ns

__all__ = ["LATE_MS", "check_health"]

# A timed replay whose slowest hundredth of events is later than this no longer looks like the market it replays.
LATE_MS = 100.0
_FRESH_NS = 300 * 1_000_000_000
Judged = tuple[str, str | None, str]


def check_health(
    root: DataRoot | str | os.PathLike[str], logger: Logger | None = None, config: Config | None = None
) -> HealthSnapshot:
    """Return the health of the services "logging", "replay" and "retention" of a data root.

    >>> check_health("data").services["logging"].status                       # doctest: +SKIP

    ``logger``: its failures, drops and queue count; without it the disk is checked, and the logger's health that a bot
    wrote to ``health_snapshot.json`` during the last five minutes. ``replay`` is
    WARN when a timed replay runs late (p99 over 100 ms) or its session has lines that cannot be read, ERROR when the
    session that was asked for does not exist or the run died. ``retention`` is WARN when the last clean-up had errors,
    or a daily one is overdue.
    """
    place = DataRoot(root)
    settings = config or Config()
    moment = now_ns()
    logging = (
        logger.health() if logger is not None else _worse(judge(place, _QUIET), _reported(place, moment))
    )
    services = {
        "logging": logging.to_dict(),
        "replay": _service(*_replay(place, moment)),
        "retention": _service(*_retention(place, settings, moment)),
    }
    return HealthSnapshot.from_dict({"timestamp": iso(moment), "services": services})


_QUIET = LogStats(0, 0, 0, 0, None, None, (), 0.0, None, 0, 1, 0.0, 0)


def _reported(root: DataRoot, moment: int) -> ServiceHealth | None:
    """Return the health of its logger that a bot wrote in the last five minutes, or None."""
    try:
        snapshot = load_snapshot(root, "health")
    except (OSError, ReplaylabError):
        return None
    reported = snapshot.services.get("logging") if isinstance(snapshot, HealthSnapshot) else None
    if reported is None or moment - parse_ns(reported.last_update_at) >= _FRESH_NS:
        return None
    return reported


def _worse(one: ServiceHealth, other: ServiceHealth | None) -> ServiceHealth:
    order = ("OK", "WARN", "ERROR")
    return one if other is None or order.index(other.status) < order.index(one.status) else other


def _service(status: str, message: str | None, when: str) -> dict[str, Any]:
    return {"status": status, "lastUpdateAt": when, "message": message}


def _replay(root: DataRoot, moment: int) -> Judged:
    try:
        status = read_status(root)
        when = iso(root.replay_status.stat().st_mtime_ns)
    except FileNotFoundError:
        return "OK", None, iso(moment)
    except OSError as error:
        return "WARN", f"the replay status cannot be read: {error}", iso(moment)
    if status.error is not None:
        return "ERROR", status.error, when
    if status.session_id is None:
        return "OK", None, when
    try:
        found = root.manifest(status.session_id).is_file()
    except UnsafeNameError as error:
        return "WARN", f"the replay status is damaged: {error}", when
    if not found:
        # A session may go once it was played; one that is being played may not.
        missing = f"replay session {status.session_id!r} does not exist"
        return ("ERROR", missing, when) if status.running else ("OK", None, when)
    reasons = []
    if status.lateness is not None and status.lateness.p99 > LATE_MS:
        reasons.append(f"events were late: p99 {status.lateness.p99:.0f} ms, up to {LATE_MS:.0f} ms is fine")
    if status.rejects:
        reasons.append(f"{status.rejects} lines of session {status.session_id!r} could not be read")
    rejects = _rejects(root, status.session_id)
    if rejects:
        reasons.append(f"{rejects} lines of the sources of session {status.session_id!r} could not be read")
    return ("WARN" if reasons else "OK"), ("; ".join(reasons) or None), when


def _rejects(root: DataRoot, session_id: str) -> int:
    """Return how many lines the build of a session could not read, as its ``meta.json`` says."""
    try:
        meta = orjson.loads(root.session_meta(session_id).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return 0
    sources = meta.get("sources") if isinstance(meta, dict) else None
    if not isinstance(sources, list):
        return 0
    counts = [source.get("rejects") for source in sources if isinstance(source, dict)]
    return sum(count for count in counts if isinstance(count, int))


def _retention(root: DataRoot, config: Config, moment: int) -> Judged:
    daily = config.retention.daily_at
    try:
        report = last_report(root)
    except (OSError, RecordError) as error:
        return "WARN", f"the report of the last clean-up cannot be read: {error}", iso(moment)
    if report is None:
        message = None if daily is None else f"no clean-up has run yet; it is due daily at {daily} UTC"
        return "OK", message, iso(moment)
    ran = root.retention_report.stat().st_mtime_ns
    reasons = []
    if report.errors:
        first = report.errors[0]
        reasons.append(
            f"{len(report.errors)} files could not be cleaned up, first {first.file}: {first.error}"
        )
    if daily is not None and moment - ran > 2 * NS_PER_DAY:
        reasons.append(f"the daily clean-up at {daily} UTC last ran at {iso(ran)}")
    message = "; ".join(reasons) or f"{len(report.deleted_files)} deleted, {len(report.kept_files)} kept"
    return ("WARN" if reasons else "OK"), message, iso(ran)
