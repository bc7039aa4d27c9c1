"""What an import found: rows, what was wrong with them, what was detected; readable, and as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

from replaylab.timestamps import iso

__all__ = ["FileReport", "Gap", "ImportReport", "Reject", "Skew", "TapeReport"]

# So many rejects and gaps are kept one by one; the rest is only counted.
KEPT = 1_000


@dataclass(frozen=True)
class Reject:
    """A line that was not imported. ``line`` counts from 1 in the unpacked file (of Parquet: the row)."""

    file: str
    line: int
    reason: str
    text: str = ""


@dataclass(frozen=True)
class Gap:
    """Something is missing before ``line``: ``what`` is "time" (from, to: ns) or "id" (the ids before and after)."""

    what: str
    start: int
    end: int
    file: str
    line: int

    def __str__(self) -> str:
        if self.what == "time":
            return f"{self.file}:{self.line}: nothing from {iso(self.start)} to {iso(self.end)}"
        return f"{self.file}:{self.line}: ids jump from {self.start} to {self.end}"


@dataclass(frozen=True)
class Skew:
    """Receive time less exchange time, in milliseconds. Negative: the local clock was behind."""

    least: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:.1f} / {self.median:.1f} / {self.most:.1f} ms"


@dataclass
class FileReport:
    """One file (or one member of a zip): ``lines = rows + rejects + blank + other``.

    ``other`` are lines that hold no row of history: a header, a message of another kind. One line may
    hold several rows (``rows_in_lines`` counts the lines that did).
    """

    name: str
    lines: int = 0
    rows: int = 0
    rows_in_lines: int = 0
    rejects: int = 0
    blank: int = 0
    other: int = 0


@dataclass
class TapeReport:
    """One tape (kind and symbol) over all files of the import."""

    kind: str
    symbol: str
    rows: int = 0
    added: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    off_market: int = 0
    first: int | None = None
    last: int | None = None
    gap_count: int = 0
    missing_ids: int = 0
    gaps: list[Gap] = field(default_factory=list)
    skew: Skew | None = None
    checked: int = 0
    disagreed: int = 0

    @property
    def time_gaps(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.what == "time"]

    @property
    def id_gaps(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.what == "id"]

    def figures(self) -> dict[str, Any]:
        """The counts and spans by the names that tables use."""
        return {
            "kind": self.kind,
            "symbol": self.symbol,
            "from": None if self.first is None else iso(self.first),
            "to": None if self.last is None else iso(self.last),
            "rows": self.rows,
            "added": self.added,
            "duplicates": self.duplicates,
            "out of order": self.out_of_order,
            "gaps": self.gap_count,
            "missing ids": self.missing_ids,
            "off market": self.off_market,
            "receive − exchange": None if self.skew is None else str(self.skew),
            "book checks": f"{self.checked - self.disagreed} of {self.checked} agree"
            if self.checked
            else None,
        }


@dataclass
class ImportReport:
    """What an import did and found. ``print(report)`` for people, ``to_dict()`` for programs.

    ``rows`` were read from the files and are in the history now; ``added`` of them were not there before. ``notes``
    say what was detected (header, unit, order) and what to know before using the data.
    """

    format: str
    clock: str
    files: list[FileReport] = field(default_factory=list)
    tapes: list[TapeReport] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(tape.rows for tape in self.tapes)

    @property
    def added(self) -> int:
        return sum(tape.added for tape in self.tapes)

    @property
    def duplicates(self) -> int:
        return sum(tape.duplicates for tape in self.tapes)

    @property
    def rejected(self) -> int:
        """The number of rejected lines; the first of them are in ``rejects``."""
        return sum(file.rejects for file in self.files)

    @property
    def out_of_order(self) -> int:
        return sum(tape.out_of_order for tape in self.tapes)

    @property
    def off_market(self) -> int:
        return sum(tape.off_market for tape in self.tapes)

    @property
    def gaps(self) -> list[Gap]:
        return [gap for tape in self.tapes for gap in tape.gaps]

    def tape(self, kind: str, symbol: str) -> TapeReport:
        """Return the report of one tape, made empty if it is not there yet."""
        for tape in self.tapes:
            if (tape.kind, tape.symbol) == (kind, symbol):
                return tape
        self.tapes.append(TapeReport(kind, symbol))
        return self.tapes[-1]

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def reject(self, file: FileReport, line: int, reason: str, text: str = "") -> None:
        """Count a line that is not imported."""
        file.rejects += 1
        if len(self.rejects) < KEPT:
            self.rejects.append(Reject(file.name, line, reason, text[:200]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: numbers, texts, lists and dicts."""
        totals = ("rows", "added", "duplicates", "rejected", "out_of_order", "off_market")
        return {
            "format": self.format,
            "clock": self.clock,
            **{name: getattr(self, name) for name in totals},
            "files": [vars(file).copy() for file in self.files],
            "tapes": [
                {
                    **{key: value for key, value in vars(tape).items() if key not in ("gaps", "skew")},
                    "gaps": [vars(gap).copy() for gap in tape.gaps],
                    "skew_ms": None if tape.skew is None else vars(tape.skew).copy(),
                }
                for tape in self.tapes
            ],
            "rejects": [vars(reject).copy() for reject in self.rejects],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.format}: {self.rows:,} rows from {len(self.files)} file{'s' * (len(self.files) != 1)}, "
            f"{self.added:,} new, {self.duplicates:,} duplicates, {self.rejected:,} rejected (clock: {self.clock})"
        ]
        for tape in self.tapes:
            lines.append(f"  {tape.symbol} {tape.kind}")
            for name, value in tape.figures().items():
                if name not in ("kind", "symbol") and value not in (None, 0):
                    lines.append(
                        f"    {name:<19}{value:,}" if isinstance(value, int) else f"    {name:<19}{value}"
                    )
            lines += [f"      {gap}" for gap in tape.gaps[:3]]
            if tape.gap_count > 3:
                lines.append(f"      ... and {tape.gap_count - 3:,} more gaps")
        lines += [f"  rejected {one.file}:{one.line}: {one.reason}" for one in self.rejects[:5]]
        if self.rejected > 5:
            lines.append(f"  ... and {self.rejected - 5:,} more rejects")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def _repr_html_(self) -> str:
        rows = [tape.figures() for tape in self.tapes]
        if not rows:
            return f"<pre>{escape(str(self))}</pre>"

        def cell(value: object) -> str:
            return "" if value is None else f"{value:,}" if isinstance(value, int) else escape(str(value))

        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows
        )
        details = [
            *(f"rejected {one.file}:{one.line}: {one.reason}" for one in self.rejects[:10]),
            *self.notes,
        ]
        notes = "".join(f"<li>{escape(line)}</li>" for line in details)
        return (
            f"<p><b>{escape(self.format)}</b>: {self.rows:,} rows, {self.added:,} new, {self.rejected:,} rejected"
            f"</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{notes}</ul>"
        )
