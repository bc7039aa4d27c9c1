"""What every importer hands its rows to: checks them, counts what is odd, and stages them for the history."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from replaylab.errors import HistoryError, did_you_mean
from replaylab.history import (
    BOOK_SCHEMA,
    FUNDING_SCHEMA,
    TRADES_SCHEMA,
    Kind,
    Staging,
    decimals_of,
    level_lists,
    load_instruments,
    save_instruments,
    step_of,
)
from replaylab.paths import safe_symbol
from replaylab.timestamps import iso

ClockName = Literal["exchange", "receive"]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_SKEW_SAMPLE = 65_536  # per block; small files are measured whole


@dataclass
class _Run:
    """Where a tape stands between two blocks."""

    last_time: int | None = None
    last_id: int | None = None
    file: str = ""
    skews: list[npt.NDArray[np.float64]] = field(default_factory=list)
    least: float = float("inf")
    most: float = float("-inf")


@dataclass
class _Decimals:
    """The decimals that prices and quantities of one symbol have so far; None: more than any tick."""

    price: int | None = 0
    qty: int | None = 0

    def see(self, price: Floats, qty: Floats) -> None:
        if self.price is not None:
            self.price = decimals_of(price, self.price)
        if self.qty is not None:
            self.qty = decimals_of(qty, self.qty)


class Intake:
    """The one way from an importer into the history.

    Importers call ``open`` for their files, ``trades`` and ``book`` with frames, ``reject`` and ``note`` for the rest.
    A frame has a column ``line``, the clocks ``exchange_at`` and ``received_at`` as integer ns (null where there is
    none), and the columns of the tape besides.
    """

    def __init__(
        self,
        staging: Staging,
        report: ImportReport,
        clock: ClockName,
        *,
        symbol: str | None = None,
        save_as: str | None = None,
        gap_s: float = 60.0,
        contract_size: float | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        self.staging, self.report, self.clock = staging, report, clock
        self.symbol = None if symbol is None else safe_symbol(symbol)
        self.save_as = None if save_as is None else safe_symbol(save_as)
        self.gap_ns = round(gap_s * 1e9)
        self.file = FileReport("")
        self.seen_symbols: set[str] = set()
        # What the exchange's own information in the files says, by symbol.
        self.instruments: dict[str, dict[str, Any]] = {}
        # Contract size of symbols whose quantities are contracts, as far as the format knows.
        self.known_contract: Callable[[str], float | None] = lambda symbol: None
        self._contract_size = contract_size
        self._contracts: dict[str, float | None] = {}
        self._decimals: dict[str, _Decimals] = {}
        self._stored_instruments: dict[str, dict[str, Any]] = {}
        self._progress = progress
        self._runs: dict[tuple[str, str], _Run] = {}
        self._stored: set[str] = set()

    def open(self, paths: Iterable[Path]) -> Iterator[LineFile]:
        """Yield each file of lines, with a report of its own begun."""
        for path in paths:
            for file in open_files(path, self._progress):
                self.begin(file.name)
                yield file

    def begin(self, name: str) -> None:
        """Begin the next file."""
        self._judge_file()
        self.file = FileReport(name)
        self.report.files.append(self.file)

    def wants(self, symbol: str) -> bool:
        """Whether rows of ``symbol`` are asked for."""
        self.seen_symbols.add(symbol)
        return self.symbol is None or symbol == self.symbol

    def reject(self, line: int, reason: str, text: str | bytes = "") -> None:
        """Count a line that is not imported."""
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        self.report.reject(self.file, line, reason, shown)

    def refuse(self, line: int, message: str) -> HistoryError:
        """Return the error for a file that contradicts itself."""
        return HistoryError(f"{self.file.name}:{line}: {message}")

    def note(self, text: str) -> None:
        self.report.note(text)

    def tape(self, kind: str, symbol: str) -> TapeReport:
        """Return the report of a tape under the name that it is stored by."""
        return self.report.tape(kind, self.save_as or symbol)

    def gap(self, kind: str, symbol: str, what: str, start: int, end: int, line: int) -> None:
        """Count a gap."""
        tape = self.tape(kind, symbol)
        tape.gap_count += 1
        if len(tape.gaps) < KEPT:
            tape.gaps.append(Gap(what, start, end, self.file.name, line))

    def trades(
        self,
        symbol: str,
        frame: pl.DataFrame,
        *,
        backwards: bool = False,
        numbered: bool = False,
        text: Callable[[int], str] = lambda line: "",
    ) -> None:
        """Take trades. ``numbered``: ``seq`` is the trade id and counts up by one without a gap."""
        frame = self._on_clock(frame)
        frame = self._without_bad_numbers(frame, text)
        if frame.is_empty():
            return
        tape = self.tape("trades", symbol)
        tape.off_market += int(frame["off_market"].sum())
        self._measure(tape, symbol, frame, backwards)
        if numbered:
            self._count_ids(symbol, frame)
        decimals = self._decimals.setdefault(symbol, _Decimals())
        decimals.see(frame["price"].to_numpy(), frame["qty"].to_numpy())
        size = self._contract(symbol)
        if size is not None:
            frame = frame.with_columns(qty=pl.col("qty") * size / pl.col("price"))
        self._stage("trades", symbol, frame.select(list(TRADES_SCHEMA)))

    def book(self, symbol: str, frame: pl.DataFrame) -> None:
        """Take book snapshots and deltas whose levels the importer has checked."""
        frame = self._on_clock(frame)
        if frame.is_empty():
            return
        self._measure(self.tape("book", symbol), symbol, frame, False)
        size = self._contract(symbol)
        for side in ("bids", "asks"):
            levels = frame[side].explode().drop_nulls().to_numpy().reshape(-1, 2)
            # Far levels of a book and sizes of 0 have no other decimals than near ones.
            self._decimals.setdefault(symbol, _Decimals()).see(levels[:, 0], levels[:, 1])
            if size is not None:
                base = np.column_stack([levels[:, 0], levels[:, 1] * size / levels[:, 0]])
                frame = frame.with_columns(level_lists(base.ravel(), frame[side].list.len()).alias(side))
        self._stage("book", symbol, frame.select(list(BOOK_SCHEMA)))

    def finish(self) -> None:
        """Commit what was staged and complete the report. Raises HistoryError where the import makes no sense."""
        self._judge_file()
        if self.symbol is not None and self.seen_symbols and self.symbol not in self.seen_symbols:
            known = ", ".join(sorted(self.seen_symbols)[:10])
            hint = did_you_mean(self.symbol, self.seen_symbols)
            raise HistoryError(f"no {self.symbol!r} in these files: they hold {known}.{hint}")
        if self.save_as is not None and len(self._stored) > 1:
            raise HistoryError(
                f"{', '.join(sorted(self._stored))} cannot all be saved as {self.save_as!r}: choose one with symbol=..."
            )
        for (kind, symbol), run in self._runs.items():
            if run.skews:
                median = float(np.median(np.concatenate(run.skews)))
                self.tape(kind, symbol).skew = Skew(run.least, median, run.most)
        written = self.staging.commit()
        for sentence in save_instruments(self.staging.root, self._found_instruments()):
            self.note(sentence)
        for tape in self.report.tapes:
            done = written[tape.kind, tape.symbol]  # type: ignore[index]
            tape.added, tape.duplicates = done.added, done.duplicates
        self.report.tapes.sort(key=lambda tape: (tape.symbol, tape.kind))

    def funding(self, symbol: str, frame: pl.DataFrame) -> None:
        """Take funding settlements: line, exchange_at, funding_rate, mark_price."""
        tape = self.tape("funding", symbol)
        empty = pl.lit(None, dtype=pl.Int64)
        frame = self._on_clock(frame.with_columns(empty.alias("received_at"), pl.col("line").alias("seq")))
        if not frame.is_empty():
            self._measure(tape, symbol, frame, False, gaps=False)
            self._stage("funding", symbol, frame.select(list(FUNDING_SCHEMA)))

    def store_instruments(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Store the exchange's information of every wanted symbol, also of symbols without a tape."""
        wanted = {symbol: entry for symbol, entry in found.items() if self.wants(symbol)}
        self._stored_instruments |= {self.save_as or symbol: dict(entry) for symbol, entry in wanted.items()}
        self.note(f"{self.file.name}: instruments of {len(wanted):,} symbols")

    def _contract(self, symbol: str) -> float | None:
        """Return the quote currency per contract where quantities are contracts; the report then says so."""
        if symbol not in self._contracts:
            size = self._contract_size
            if size is None:
                entry = load_instruments(self.staging.root).get(self.save_as or symbol, {})
                size = entry.get("contractSize") or self.known_contract(symbol)
            self._contracts[symbol] = size
            if size is not None:
                self.note(
                    f"{symbol}: quantities are contracts of {size:g} in quote currency; stored in base currency, "
                    "contracts · size / price"
                )
        return self._contracts[symbol]

    def _found_instruments(self) -> dict[str, dict[str, Any]]:
        """Return what the files say of the symbols that were stored, or what their numbers let infer."""
        found = dict(self._stored_instruments)
        for symbol, decimals in self._decimals.items():
            size = self._contracts.get(symbol)
            entry = self.instruments.get(symbol)
            if entry is None:
                lot = None if size is not None else step_of(decimals.qty)
                entry = {"tickSize": step_of(decimals.price), "lotSize": lot, "inferred": True}
            if size is not None:
                # A lot of contracts is no fixed quantity of base currency.
                entry = {**entry, "contractSize": size, "lotSize": None}
            found[self.save_as or symbol] = entry
        return found

    def _judge_file(self) -> None:
        """Refuse a file of which more was rejected than read: it is another format."""
        if self.file.rejects > self.file.rows_in_lines:
            first = next(one for one in self.report.rejects if one.file == self.file.name)
            raise HistoryError(
                f"{first.file}:{first.line}: {first.reason}. {self.file.rejects} of {self.file.lines} lines were "
                f"rejected: this does not look like {self.report.format}"
            )

    def _on_clock(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add ``timestamp`` from the chosen clock; ``exchange_at`` stays only where it says something else."""
        chosen = "exchange_at" if self.clock == "exchange" else "received_at"
        if frame[chosen].null_count():
            if self.clock == "receive":
                line = frame["line"][frame[chosen].is_null().arg_max() or 0]
                raise self.refuse(line, 'there is no receive time here: use clock="exchange"')
            self.note("where the exchange gives no time, the time of receipt is used")
            frame = frame.with_columns(timestamp=pl.coalesce("exchange_at", "received_at"))
        else:
            frame = frame.with_columns(timestamp=pl.col(chosen))
        kept = pl.col("exchange_at") if self.clock == "receive" else pl.lit(None, dtype=pl.Int64)
        return frame.with_columns(_skew=pl.col("received_at") - pl.col("exchange_at"), exchange_at=kept)

    def _without_bad_numbers(self, frame: pl.DataFrame, text: Callable[[int], str]) -> pl.DataFrame:
        """Reject rows without a usable time, price or quantity."""
        price, qty = pl.col("price"), pl.col("qty")
        fine = (
            pl.col("timestamp").is_not_null()
            & price.is_finite().fill_null(False)
            & (price > 0).fill_null(False)
            & qty.is_finite().fill_null(False)
            & (qty > 0).fill_null(False)
        )
        good = frame.select(fine.alias("fine"))["fine"]
        rows = int(good.sum())
        self.file.rows_in_lines += rows
        if rows == frame.height:
            return frame
        for row in frame.filter(~good).iter_rows(named=True):
            raw = text(row["line"])
            if row["timestamp"] is None:
                self.reject(row["line"], "no usable time", raw)
            else:
                wrong = "price" if not _above_zero(row["price"]) else "qty"
                found = "nothing readable" if row[wrong] is None else f"{row[wrong]!r}"
                self.reject(row["line"], f"{wrong} must be a number above 0, found {found}", raw)
        return frame.filter(good)

    def _measure(
        self, tape: TapeReport, symbol: str, frame: pl.DataFrame, backwards: bool, *, gaps: bool = True
    ) -> None:
        """Rows, span, order, time gaps and skew."""
        run = self._runs.setdefault((tape.kind, symbol), _Run())
        times = frame["timestamp"].to_numpy()
        tape.rows += len(times)
        self.file.rows += len(times)
        first, last = int(times.min()), int(times.max())
        if run.file != self.file.name:
            if run.last_time is not None and not backwards and first < run.last_time:
                self.note(
                    f"{self.file.name} begins before the end of {run.file}: files overlap or are not in order"
                )
            if run.last_time is not None and (backwards or first < run.last_time):
                run.last_time = None
            run.file = self.file.name
        tape.first = first if tape.first is None else min(first, tape.first)
        tape.last = last if tape.last is None else max(last, tape.last)
        ahead = -times if backwards else times
        start = ahead[0] if run.last_time is None else run.last_time
        reached = np.maximum.accumulate(np.concatenate([[start], ahead]))
        before = reached[:-1]
        run.last_time = int(reached[-1])
        tape.out_of_order += int(np.count_nonzero(ahead < before))
        for index in np.flatnonzero(ahead - before > self.gap_ns).tolist() if gaps else ():
            ends = sorted((abs(int(before[index])), abs(int(ahead[index]))))
            self.gap(tape.kind, symbol, "time", ends[0], ends[1], int(frame["line"][index]))
        skew = frame["_skew"].drop_nulls()
        if not skew.is_empty():
            millis = skew.to_numpy() / 1e6
            run.least, run.most = min(run.least, float(millis.min())), max(run.most, float(millis.max()))
            run.skews.append(millis[:: -(-len(millis) // _SKEW_SAMPLE)])

    def _count_ids(self, symbol: str, frame: pl.DataFrame) -> None:
        run = self._runs["trades", symbol]
        ids = frame["seq"].to_numpy()
        steps = np.diff(ids)
        order: Integers | None = None
        if (steps < 0).any():
            order = np.argsort(ids, kind="stable")
            steps = np.diff(ids[order])
        jumps = (np.flatnonzero(steps > 1) + 1).tolist()
        lowest = ids[0] if order is None else ids[order[0]]
        if run.last_id is not None and lowest > run.last_id + 1:
            jumps.insert(0, 0)
        tape = self.tape("trades", symbol)
        for jump in jumps:
            index = jump if order is None else int(order[jump])
            previous = jump - 1 if order is None else int(order[jump - 1])
            before = int(ids[previous]) if jump else int(run.last_id or 0)
            tape.missing_ids += int(ids[index]) - before - 1
            self.gap("trades", symbol, "id", before, int(ids[index]), int(frame["line"][index]))
        run.last_id = max(int(ids.max()), run.last_id or 0)

    def _stage(self, kind: Kind, symbol: str, frame: pl.DataFrame) -> None:
        self._stored.add(symbol)
        times = (
            pl.col(name).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
            for name in ("timestamp", "received_at", "exchange_at")
        )
        source = len(self.report.files)
        self.staging.add(kind, self.save_as or symbol, frame.with_columns(times), source=source)


def _above_zero(value: float | None) -> bool:
    return value is not None and 0 < value < float("inf")


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

    def metrics(self) -> dict[str, Any]:
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
        """Return plain data: numbers, strings, lists and dicts."""
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
            for name, value in tape.metrics().items():
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
        rows = [tape.metrics() for tape in self.tapes]
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


BLOCK_BYTES = 16 * 1024 * 1024
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Whole lines; ``first_line`` is the number of the first of them, from 1."""

    data: bytes
    first_line: int


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...
    def __enter__(self) -> _Stream: ...
    def __exit__(self, *error: object) -> None: ...


class LineFile:
    """One file of lines, to be read once from its beginning."""

    def __init__(self, path: Path, member: str | None, opened: Callable[[], _Stream]) -> None:
        self.path = path
        self.name = path.name if member is None else f"{path.name}!{member}"
        self.hint = path.name if member is None else member  # the name that may tell a symbol
        self._opened = opened

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield the file in blocks of whole lines of about ``size`` bytes. Raises HistoryError where it is damaged."""
        line, rest, start = 1, b"", True
        with self._opened() as stream:
            while True:
                try:
                    data = stream.read(size)
                except (OSError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
                    raise HistoryError(
                        f"{self.name}: damaged or cut off after line {line + rest.count(10) - 1}: {error}"
                    ) from None
                if start:
                    data, start = data.removeprefix(_BOM), False
                if not data:
                    break
                cut = data.rfind(b"\n") + 1
                if not cut:
                    rest += data
                    continue
                block = rest + data[:cut]
                rest = data[cut:]
                yield Block(block, line)
                line += int(np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")))
        if rest:
            yield Block(rest, line)


def open_files(path: Path, progress: Callable[[int], Any] | None = None) -> Iterator[LineFile]:
    """Yield the files of lines in ``path``: one, or the members of a zip in the order of their names.

    ``progress`` is called with the packed bytes read since the last call. Raises HistoryError for a file that
    is missing, empty or not readable.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise HistoryError(f"{path}: cannot be read: {error.strerror or error}") from None
    packing = next((name for mark, name in _MAGIC.items() if magic.startswith(mark)), None)
    if packing == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(
                    info.filename
                    for info in archive.infolist()
                    if not info.is_dir() and not info.filename.startswith("__MACOSX/")
                )
        except zipfile.BadZipFile as error:
            raise HistoryError(f"{path}: damaged zip: {error}") from None
        if not names:
            raise HistoryError(f"{path}: the zip is empty")
        for name in names:
            yield LineFile(path, name, partial(_Member, path, name, progress))
    else:
        yield LineFile(path, None, partial(_Packed, path, packing, progress))


class _Packed:
    """A plain or compressed file that reports how far into the packed bytes it is."""

    def __init__(self, path: Path, packing: str | None, progress: Callable[[int], Any] | None) -> None:
        self._raw = pa.OSFile(str(path))
        self._stream = self._raw if packing is None else pa.CompressedInputStream(self._raw, packing)
        self._progress, self._told = progress, 0

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if self._progress is not None:
            at = self._raw.tell()
            self._progress(at - self._told)
            self._told = at
        return data

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._raw.close()


class _Member:
    """A member of a zip."""

    def __init__(self, path: Path, name: str, progress: Callable[[int], Any] | None) -> None:
        self._archive = zipfile.ZipFile(path)
        info = self._archive.getinfo(name)
        self._ratio = info.compress_size / max(info.file_size, 1)
        self._stream = self._archive.open(info)
        self._progress = progress

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if self._progress is not None:
            self._progress(round(len(data) * self._ratio))
        return data

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._archive.close()
