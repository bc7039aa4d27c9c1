"""Checks a data root, a folder or one file, line by line, against the documented formats."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from replaylab.archive.checks import MOST_FINDINGS, Finding, check_for, finding
from replaylab.frames.loaded import REJECTS_SCHEMA

__all__ = ["VerifyReport", "verify"]


@dataclass
class VerifyReport:
    """What was looked at, and what was found: ``findings`` has the columns file, line, offset, reason, text.

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
    to check. Links are followed, hidden files are not looked at. Reads only. Raises FileNotFoundError.
    """
    start = Path(path).absolute()
    if not start.exists():
        raise FileNotFoundError(f"{start}: there is no such file or folder")
    report = VerifyReport()
    found: list[Finding] = []
    looked = [(start, _check(start, report))] if start.is_file() else _walk(start, report)
    for file, rows in looked:
        name = file.relative_to(start).as_posix() if file != start else file.name
        # A name that is no UTF-8 cannot stand in a table as it is.
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
