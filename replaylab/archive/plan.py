"""What a clean-up would do, before it does anything."""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from replaylab import frames
from replaylab.archive.listing import (
    DAY_LOGS,
    Problem,
    archived_parts,
    day_files,
    file_state,
    running_session,
    sessions,
    symbol_files,
    tree_bytes,
)
from replaylab.archive.pieces import old_lines
from replaylab.config import RetentionConfig
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key, parse_ns

__all__ = ["Kind", "Plan", "Step", "over_limit", "plan"]

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
    _plan_sessions(root, day_before(now_ns, config.replay_sessions_days), made)
    _plan_market(root, now_ns - config.raw_market_data_hours * _HOUR, made)
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
                # The newest entry says how old the content is; where there is none, the file's own time does.
                newest = load(root, path.stem).frame["timestamp"].to_physical().max()
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
