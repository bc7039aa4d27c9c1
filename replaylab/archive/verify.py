"""Checks a data root, a folder or one file, line by line, against the documented formats."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import RecordError, ReplaylabError
from replaylab.frames.archived import part_info, read_part
from replaylab.frames.decode import is_day
from replaylab.frames.files import chunks_of, is_safe_name
from replaylab.frames.loaded import REJECTS_SCHEMA, Loaded
from replaylab.frames.logs import EVENTS, ORDERS, PARAMS, REPLAY_EVENTS, TRADES
from replaylab.frames.schema import LogSchema
from replaylab.frames.sources import CHUNK_BYTES
from replaylab.paths import SNAPSHOTS, DataRoot
from replaylab.records import Record, ReplayManifest, ReplayStatus, RetentionReport, decode_record

__all__ = ["VerifyReport", "verify"]

_DAY_FILE = re.compile(r"day-(\d{4}-\d\d-\d\d)\.jsonl", re.ASCII)
_SHOWN = 1000


@dataclass
class VerifyReport:
    """What was looked at, and what was found: ``findings`` has the columns file, line, offset, reason, text.

    ``line`` and ``offset`` are null where a finding is about a whole file. At most 1000 findings of a file
    are listed.
    """

    files: int = 0
    lines: int = 0
    findings: pl.DataFrame = field(default_factory=lambda: REJECTS_SCHEMA.to_frame())

    def to_dict(self) -> dict[str, object]:
        return {"files": self.files, "lines": self.lines, "findings": self.findings.to_dicts()}


def verify(path: str | os.PathLike[str]) -> VerifyReport:
    """Return what is wrong in a data root, in a folder of one, or in one of its files.

    >>> verify("data").findings.height                         # doctest: +SKIP
    0

    A line is wrong when a loader would reject it, when its symbol or day is not that of its file, or when the events
    of a session go back in time. Snapshots, manifests, rolling files and archived parts are checked as a whole.
    Reads only. Raises FileNotFoundError.
    """
    start = Path(path).absolute()
    if not start.exists():
        raise FileNotFoundError(f"{start}: there is no such file or folder")
    report = VerifyReport()
    found: list[Finding] = []
    for file, check in _checks(start):
        report.files += 1
        rows: list[Finding] = []
        for lines, findings in check(file):
            report.lines += lines
            rows += findings[: _SHOWN - len(rows)]
        name = file.relative_to(start).as_posix() if file != start else file.name
        found += [{**row, "file": name} for row in rows]
    if found:
        report.findings = pl.DataFrame(found, schema=REJECTS_SCHEMA, orient="row")
    return report


Finding = dict[str, object]
Check = Callable[[Path], Iterator[tuple[int, list[Finding]]]]


def _checks(start: Path) -> Iterator[tuple[Path, Check]]:
    paths = [start] if start.is_file() else sorted(path for path in start.rglob("*") if path.is_file())
    for path in paths:
        if path.name.startswith("."):
            continue
        check = _check_for(path)
        if check is not None:
            yield path, check


def _check_for(path: Path) -> Check | None:
    """Return what a file is checked by, chosen by its name and folder; None for files of other kinds."""
    folder = path.parent.name
    if path.suffix == ".jsonl":
        if folder == "events":
            return _log(EVENTS, "symbol", path.stem)
        if folder in ("trades_log", "orders"):
            day = _DAY_FILE.fullmatch(path.name)
            if day is None or not is_day(day[1]):
                return _misnamed
            return _log(TRADES, "date_key", day[1]) if folder == "trades_log" else _log(ORDERS)
        if path.name == "events.jsonl":
            return _log(REPLAY_EVENTS, ordered=True)
        return _log(PARAMS) if path.name == "trading_params.jsonl" else None
    if path.suffix == ".json":
        if folder == "system":
            return _system(path)
        if path.name == "manifest.json":
            return _record(ReplayManifest)
        loaders = {
            "metrics": frames.load_metrics,
            "trades": frames.load_market_trades_json,
            "orderbook": frames.load_order_book_json,
        }
        return _rolling(loaders[folder]) if folder in loaders and is_safe_name(path.stem) else None
    if path.suffix == ".parquet" and "archive" in path.parts:
        return _part
    return None


def _log(schema: LogSchema, column: str = "", expected: str = "", *, ordered: bool = False) -> Check:
    """Check each line; ``column`` must hold ``expected``, and an ordered file must not go back in time."""

    def check(path: Path) -> Iterator[tuple[int, list[Finding]]]:
        last = None
        with path.open("rb", buffering=0) as file:
            for loaded in chunks_of(file, schema, "", (None, None), CHUNK_BYTES):
                findings: list[Finding] = list(loaded.rejects.iter_rows(named=True))
                if column:
                    wrong = loaded.frame.filter(pl.col(column) != expected).select("line", column)
                    findings += [
                        _finding(f"{column}: found {value!r} in the file of {expected!r}", line)
                        for line, value in wrong.iter_rows()
                    ]
                if ordered and loaded.frame.height:
                    times = loaded.frame["timestamp"].to_physical()
                    steps = times.diff() if last is None else (times - times.shift(1, fill_value=last))
                    back = loaded.frame["line"].filter((steps < 0).fill_null(False))
                    findings += [
                        _finding("timestamp: earlier than that of the line before", line) for line in back
                    ]
                    last = int(times[-1])
                yield loaded.lines, sorted(findings, key=lambda row: int(str(row["line"])))

    return check


def _record(kind: type[Record]) -> Check:
    def check(path: Path) -> Iterator[tuple[int, list[Finding]]]:
        try:
            decode_record(kind, path.read_bytes())
        except RecordError as error:
            yield 0, [_finding(str(error))]
        else:
            yield 0, []

    return check


def _system(path: Path) -> Check | None:
    kinds: dict[str, type[Record]] = {
        f"{name}_snapshot.json": frames.SNAPSHOT_RECORDS[name] for name in SNAPSHOTS
    }
    kinds |= {"replay_status.json": ReplayStatus, "retention_report.json": RetentionReport}
    kind = kinds.get(path.name)
    return _json if kind is None else _record(kind)


def _json(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    try:
        orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        yield 0, [_finding(f"not valid JSON: {error}")]
    else:
        yield 0, []


def _rolling(load: Callable[..., Loaded]) -> Check:
    def check(path: Path) -> Iterator[tuple[int, list[Finding]]]:
        loaded = load(DataRoot(path.parent.parent), path.stem)
        yield loaded.lines, list(loaded.rejects.iter_rows(named=True))

    return check


def _part(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    schema = {"trades_log": TRADES, "orders": ORDERS}.get(path.parent.name, EVENTS)
    try:
        info = part_info(path)
        rows = 0
        for loaded in read_part(path, info, schema.frame):
            rows += loaded.rows
            yield loaded.lines, list(loaded.rejects.iter_rows(named=True))
        if rows != info.rows:
            yield 0, [_finding(f"it holds {rows} rows and says {info.rows}")]
    except (OSError, ValueError, ReplaylabError, pl.exceptions.PolarsError) as error:
        yield 0, [_finding(f"cannot be read: {error}")]


def _misnamed(path: Path) -> Iterator[tuple[int, list[Finding]]]:
    yield (
        0,
        [
            _finding(
                "not a day file: expected day-YYYY-MM-DD.jsonl with a day of the calendar; no loader reads it"
            )
        ],
    )


def _finding(reason: str, line: int | None = None) -> Finding:
    return {"file": "", "line": line, "offset": None, "reason": reason, "text": None}
