"""Check a data root, a folder or one file, line by line, against the documented formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl

from replaylab import frames
from replaylab.archive.listing import schema_by_lines, schema_by_place
from replaylab.archive.summary import read_summary
from replaylab.errors import RecordError, ReplaylabError
from replaylab.frames import (
    EVENTS,
    ORDERS,
    REJECTS_SCHEMA,
    REPLAY_EVENTS,
    TRADES,
    Loaded,
    LogSchema,
    chunks_of,
    opened_log,
    part_info,
    read_part,
)
from replaylab.fsio import sha256_of
from replaylab.paths import SNAPSHOTS, DataRoot, classify, live_of, symbol_of
from replaylab.records import Record, ReplayManifest, ReplayStatus, RetentionReport, decode_record


@dataclass
class VerifyReport:
    """Files and lines checked, and findings: ``findings`` has the columns file, line, offset, reason, text.

    ``line`` and ``offset`` are null where a finding is about a whole file. At most 1000 findings of a file
    are listed. ``skipped`` counts the files of other kinds, for which there is no check.
    """

    files: int = 0
    lines: int = 0
    skipped: int = 0
    findings: pl.DataFrame = field(default_factory=lambda: REJECTS_SCHEMA.to_frame())

    def to_dict(self) -> dict[str, object]:
        return {
            "files": self.files,
            "lines": self.lines,
            "skipped": self.skipped,
            "findings": self.findings.to_dicts(),
        }


def verify(path: str | os.PathLike[str]) -> VerifyReport:
    """Return what is wrong in a data root, in a folder of one, or in one of its files.

    >>> verify("data").findings.height                         # doctest: +SKIP
    0

    A line is wrong when a loader would reject it, when its symbol or day is not that of its file, or when the events
    of a session go back in time. A ``.jsonl`` file that lies in no log's folder is taken for what its lines are.
    Snapshots, manifests, rolling files, summaries and archived parts are checked as a whole. What cannot be opened is
    a finding, and so are a file that there is no check for, when it is named itself, and a folder without any file
    to check. Links are followed, hidden files are skipped. Reads only. Raises FileNotFoundError.
    """
    start = Path(path).absolute()
    if not start.exists():
        raise FileNotFoundError(f"{start}: there is no such file or folder")
    report = VerifyReport()
    found: list[Finding] = []
    looked = [(start, _check(start, report))] if start.is_file() else _walk(start, report)
    for file, rows in looked:
        name = file.relative_to(start).as_posix() if file != start else file.name
        # A file name that is not UTF-8 is escaped, since a frame holds only UTF-8.
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        found += [{**row, "file": shown} for row in rows]
    if not report.files and not found:
        reason = f"there is nothing to check in {start}: give a data root, a folder of one, or a log"
        if start.is_file():
            reason = (
                "there is no check for a file of this name and place: give a .jsonl log (unpacked), or a file "
                "that lies where it belongs in a data root"
            )
        found = [{**finding(reason), "file": start.name}]
    if found:
        report.findings = pl.DataFrame(found, schema=REJECTS_SCHEMA, orient="row")
    return report


def _walk(
    folder: Path, report: VerifyReport, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[Path, list[Finding]]]:
    """Yield every file under a folder with its findings; ``above`` are the folders on the way here."""
    try:
        state = folder.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:
            yield folder, [finding("a link to a folder that holds it: not followed; remove the link")]
            return
        children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
        kinds = [(child, child.is_dir(), child.is_file()) for child in children]
    except OSError as error:
        yield folder, [_unreadable(error)]
        return
    for child, is_folder, is_file in kinds:
        if is_folder:
            yield from _walk(child, report, above | {here})
        elif is_file:
            yield child, _check(child, report)
        elif child.is_symlink():
            yield child, [finding("a link to nothing: restore what it pointed to, or remove the link")]
        else:
            report.skipped += 1


def _check(file: Path, report: VerifyReport) -> list[Finding]:
    """Return the findings of one file, and count it."""
    check = check_for(file)
    if check is None:
        report.skipped += 1
        return []
    rows: list[Finding] = []
    report.files += 1
    try:
        for lines, findings in check(file):
            report.lines += lines
            rows += findings[: MOST_FINDINGS - len(rows)]
    except FileNotFoundError:
        # Retention removes files while others read.
        report.files -= 1
    except OSError as error:
        rows.append(_unreadable(error))
    return rows


def _unreadable(error: OSError) -> Finding:
    return finding(f"cannot be read: {error.strerror or error}; check permissions and the disk")


Finding = dict[str, object]
# Yields the findings of a file piece by piece, each with the number of lines checked.
Check = Callable[[Path], Iterator[tuple[int, list[Finding]]]]

_CHUNK_BYTES = 1 << 20
# So many findings of a file are listed.
MOST_FINDINGS = 1000
_ROLLING: dict[str, Callable[..., Loaded]] = {
    "metrics": frames.load_metrics,
    "market_trades": frames.load_market_trades_json,
    "order_book": frames.load_order_book_json,
}


def finding(reason: str, line: int | None = None) -> Finding:
    """Return one row of the table; without a line it is about the whole file."""
    return {"file": "", "line": line, "offset": None, "reason": reason, "text": None}


def check_for(path: Path) -> Check | None:
    """Return the check of a file by its place; None for a file that replaylab does not write."""
    place = classify(path)
    if path.suffix == ".jsonl" or live_of(path) is not None:
        return _log
    if place is not None:
        return _SNAPSHOTS[place.snapshot] if place.snapshot is not None else _CHECKS.get(place.kind)
    if path.name == "manifest.json":
        return _record(ReplayManifest)
    # Other parts of a trading system keep files there too.
    return _json() if path.parent.name == "system" and path.suffix == ".json" else None


def _log(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    """Check each line; its symbol or day must be that of the file name, and a session must not go back in time."""
    named = live_of(path) or path
    place, schema = classify(named), schema_by_place(named)
    if schema is None:
        schema = schema_by_lines(path)
        if schema is None:
            yield 0, [finding(_NO_LOG)]
            return
        wrong = None
    elif schema in (TRADES, ORDERS):
        if place is None or place.day is None:
            yield 0, [finding(_NO_DAY)]
            return
        held = pl.col("date_key") if schema is TRADES else pl.col("timestamp").dt.date().cast(pl.String)
        wrong = ("dateKey" if schema is TRADES else "timestamp", held, place.day)
    else:
        symbol = symbol_of(named.stem) or named.stem
        wrong = ("symbol", pl.col("symbol"), symbol) if schema is EVENTS else None
    if place is not None and place.kind == "session_events" and not path.with_name("manifest.json").exists():
        yield (
            0,
            [
                finding(
                    "manifest.json is missing: this is not listed as a session; build it again or delete it"
                )
            ],
        )
    lines = 0
    for count, findings in _lines(path, schema, wrong):
        lines += count
        yield count, findings
    if place is not None and place.kind == "session_events":
        yield 0, _as_built(path, lines)


def _as_built(path: Path, lines: int) -> list[Finding]:
    """Compare a session's events with the bytes, the digest and the count that its build recorded."""
    recorded: dict[str, object] = {}
    with suppress(OSError, orjson.JSONDecodeError):
        meta = orjson.loads(path.with_name("meta.json").read_bytes())
        recorded = meta if isinstance(meta, dict) else {}
    found: dict[str, object] = {"eventsBytes": path.stat().st_size, "totalEvents": lines}
    if isinstance(recorded.get("eventsSha256"), str):
        # Read, not remembered: a disk that fails changes no time.
        found["eventsSha256"] = sha256_of(path)
    wrong = [
        f"{name} is {value}, recorded were {recorded[name]}"
        for name, value in found.items()
        if recorded.get(name, value) != value
    ]
    if not wrong:
        return []
    what = f"restore the file, build the session again, or accept the change: replaylab sessions {path.parent.name}"
    return [finding(f"changed since the build: {'; '.join(wrong)}; {what} --rehash")]


_NO_LOG = (
    "no line of it is a record of any log: expected state events, closed trades, orders, events of a session or "
    "trading parameters; if it is a damaged log, restore it"
)
_NO_DAY = "not a day file: expected day-YYYY-MM-DD.jsonl with a day of the calendar; no loader reads it"


def _lines(
    path: Path, schema: LogSchema, wrong: tuple[str, pl.Expr, str] | None
) -> Iterator[tuple[int, list[Finding]]]:
    """Check the lines of a log; ``wrong`` is a field, the text that it holds, and the text that it should hold."""
    last = None
    with opened_log(path) as (file, problem):
        if problem is not None:
            yield 0, [finding(problem)]
        for loaded in chunks_of(file, schema, "", (None, None), _CHUNK_BYTES):
            findings: list[Finding] = _rejects(loaded)
            if wrong is not None:
                field, held, expected = wrong
                others = loaded.frame.select("line", held.alias("held")).filter(pl.col("held") != expected)
                findings += [
                    finding(f"{field}: found {value!r} in the file of {expected!r}", line)
                    for line, value in others.head(MOST_FINDINGS).iter_rows()
                ]
            if schema is REPLAY_EVENTS and loaded.frame.height:
                times = loaded.frame["timestamp"].to_physical()
                steps = times.diff() if last is None else (times - times.shift(1, fill_value=last))
                back = loaded.frame["line"].filter((steps < 0).fill_null(False))
                findings += [
                    finding("timestamp: earlier than that of the line before", line)
                    for line in back.head(MOST_FINDINGS)
                ]
                last = int(times[-1])
            yield loaded.lines, sorted(findings, key=lambda row: int(str(row["line"])))


def _rejects(loaded: Loaded) -> list[Finding]:
    return list(loaded.rejects.head(MOST_FINDINGS).iter_rows(named=True))


def _record(kind: type[Record]) -> Check:
    def check(path: Path) -> Iterator[tuple[int, list[Finding]]]:
        try:
            decode_record(kind, path.read_bytes())
        except RecordError as error:
            yield 0, [finding(str(error))]
        else:
            yield 0, []

    return check


def _manifest(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    """Check a session's manifest, and that its id is the folder's name."""
    found = []
    try:
        manifest = decode_record(ReplayManifest, path.read_bytes())
    except RecordError as error:
        found.append(finding(str(error)))
    else:
        if manifest.session_id != path.parent.name:
            found.append(
                finding(
                    f"sessionId: found {manifest.session_id!r} in the folder of {path.parent.name!r}: "
                    "the session is not listed; give both the same name"
                )
            )
    if not path.with_name("events.jsonl").exists():
        found.append(finding("events.jsonl is missing: the session is empty; build it again"))
    yield 0, found


def _summary(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    """Check that a summary can be read and is of the log and day of its place."""
    try:
        summary = read_summary(path)
    except ValueError as error:
        yield 0, [finding(str(error))]
        return
    if summary is not None:
        expected = f"summary/{summary.log}/day-{summary.day}.json"
        if not path.as_posix().endswith(f"/{expected}"):
            yield 0, [finding(f"log, day: they are those of {expected}")]
            return
    yield 0, []


def _json(kind: type = object) -> Check:
    """Check that a file without a record type of its own holds JSON of one kind."""

    def check(path: Path) -> Iterator[tuple[int, list[Finding]]]:
        try:
            found = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            yield 0, [finding(f"not valid JSON: {error}")]
        else:
            reason = f"expected a JSON object, found {type(found).__name__}"
            yield 0, [] if isinstance(found, kind) else [finding(reason)]

    return check


def _rolling(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    place = classify(path)
    if place is None:
        return
    loaded = _ROLLING[place.kind](DataRoot(path.parent.parent), place.symbol)
    yield loaded.lines, _rejects(loaded)


def _part(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    schema = {"trades_log": TRADES, "orders": ORDERS}.get(path.parent.name, EVENTS)
    try:
        info = part_info(path)
        rows = 0
        for loaded in read_part(path, info, schema.frame):
            rows += loaded.rows
            yield loaded.lines, _rejects(loaded)
        if rows != info.rows:
            yield 0, [finding(f"it holds {rows} rows, its metadata count {info.rows}")]
    except (OSError, ValueError, ReplaylabError, pl.exceptions.PolarsError) as error:
        yield 0, [finding(f"cannot be read: {error}")]


_SNAPSHOTS = {name: _record(frames.SNAPSHOT_RECORDS[name]) for name in SNAPSHOTS}
_CHECKS: dict[str, Check] = {
    "manifest": _manifest,
    **dict.fromkeys(("session_meta", "bookmarks", "run", "replay_sessions_index"), _json(dict)),
    **dict.fromkeys(("summary_events", "summary_trades_log", "summary_orders"), _summary),
    **dict.fromkeys(("archived_events", "archived_trades_log", "archived_orders"), _part),
    **dict.fromkeys(_ROLLING, _rolling),
    "replay_status": _record(ReplayStatus),
    "retention_report": _record(RetentionReport),
}
