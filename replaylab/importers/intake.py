"""What every importer hands its rows to: checks them, counts what is odd, and stages them for the history."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import HistoryError, did_you_mean
from replaylab.history import (
    BOOK_SCHEMA,
    FUNDING_SCHEMA,
    TRADES_SCHEMA,
    Conflicts,
    Kind,
    Staging,
    decimals_of,
    level_lists,
    load_instruments,
    save_instruments,
    step_of,
)
from replaylab.importers.files import LineFile, open_files
from replaylab.paths import safe_symbol
from replaylab.timestamps import iso

ClockName = Literal["exchange", "receive"]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NO_TEXT: Callable[[int], bytes] = lambda line: b""  # noqa: E731  (a default of several functions)
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
        max_rejects: float = 0.01,
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        self.staging, self.report, self.clock = staging, report, clock
        self.symbol = None if symbol is None else safe_symbol(symbol)
        self.save_as = None if save_as is None else safe_symbol(save_as)
        self.gap_ns = round(gap_s * 1e9)
        self.max_rejects = max_rejects
        self.file = FileReport("")
        # By number of the file and kind of reason: how many, and the first.
        self._rejected: dict[tuple[int, str], tuple[int, Reject]] = {}
        self._number = 0  # of the file, from 1
        self._left_out = False  # this file has rows that the caller's choice of symbol or market leaves out
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
        self._left_out = False
        self.file = FileReport(name)
        self._number += 1
        self.report.files.append(self.file)

    def wants(self, symbol: str) -> bool:
        """Whether rows of ``symbol`` are asked for."""
        self.seen_symbols.add(symbol)
        wanted = self.symbol is None or symbol == self.symbol
        self._left_out |= not wanted
        return wanted

    def leave_out(self) -> None:
        """Say that a row of this file belongs to what the caller did not choose."""
        self._left_out = True

    def reject(self, line: int, reason: str, text: bytes = b"") -> None:
        """Count a line that is not imported."""
        self.reject_all([line], lambda _: reason, lambda _: text)

    def reject_all(
        self, lines: Sequence[int] | pl.Series, reason: Callable[[int], str], text: Callable[[int], bytes]
    ) -> None:
        """Count lines that are not imported for one kind of reason; reason and text are asked for a few of them."""
        if not len(lines):
            return
        self.file.rejects += len(lines)
        kept = self.report.rejects
        room = KEPT - len(kept)
        shown = [
            Reject(self.file.name, line, _cut(reason(line), 500), text(line)[:200].decode("utf-8", "replace"))
            for line in lines[: max(room, 1)]
        ]
        kept += shown[:room]
        key = (self._number, _kind_of(shown[0].reason))
        count, first = self._rejected.get(key, (0, shown[0]))
        self._rejected[key] = (count + len(lines), first)

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

    def doubtful(self, symbol: str, what: str, start: int, end: int) -> None:
        """Keep an interval in which the book is doubtful: messages are "missing", or it is "crossed"."""
        row = {"timestamp": [start], "end": [end], "what": [what], "seq": [0]}
        self._stage("gaps", symbol, pl.DataFrame(row))
        self.tape("book", symbol).doubtful_s += (end - start) / 1e9

    def moment(self, exchange: int | None, received: int | None) -> int | None:
        """Return the time on the chosen clock."""
        if self.clock == "receive":
            return received
        return received if exchange is None else exchange

    def trades(
        self,
        symbol: str,
        frame: pl.DataFrame,
        *,
        backwards: bool = False,
        numbered: bool = False,
        tick_rule: bool = False,
        text: Callable[[int], bytes] = NO_TEXT,
    ) -> None:
        """Take trades. ``numbered``: ``seq`` is the trade id and counts up by one without a gap. ``tick_rule``: there
        are no sides, the history finds them by the tick rule."""
        frame = self._usable_trades(self._on_clock(frame), text)
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
        self._stage("trades", symbol, frame.select("line", *TRADES_SCHEMA), tick_rule)

    def book(self, symbol: str, frame: pl.DataFrame) -> None:
        """Take book snapshots and deltas whose levels the importer has checked."""
        frame = self._with_times(self._on_clock(frame))
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
        written = self.staging.commit(self._reject_conflicts)
        order = {file.name: number for number, file in enumerate(self.report.files)}
        self.report.rejects.sort(key=lambda one: (order[one.file], one.line))
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
        frame = frame.with_columns(empty.alias("received_at"), pl.col("line").alias("seq"))
        frame = self._with_times(self._on_clock(frame))
        if not frame.is_empty():
            self._measure(tape, symbol, frame, False, gaps=False)
            self._stage("funding", symbol, frame.select(list(FUNDING_SCHEMA)))

    def store_instruments(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Store the exchange's information of every wanted symbol, also of symbols without a tape."""
        wanted = {symbol: entry for symbol, entry in found.items() if self.wants(symbol)}
        self._left_out = True  # a file of instruments has no rows
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
        """Refuse a file of which too much was rejected for one reason, and one that stores nothing."""
        file, number = self.file, self._number
        most = max(self.max_rejects * (file.lines - file.blank), 1)
        found = sorted(
            (one for key, one in self._rejected.items() if key[0] == number), key=lambda one: -one[0]
        )
        if found and (found[0][0] > most or not file.rows_in_lines):
            count, first = found[0]
            raise HistoryError(
                f"{first.file}:{first.line}: {first.reason}. {count:,} of {file.lines:,} lines were rejected for this "
                f"reason, allowed are {100 * self.max_rejects:.4g} % (max_rejects, --max-rejects). This file, or these "
                f"options, do not suit {self.report.format}"
            )
        if number and not file.rows_in_lines and not self._left_out:
            notes = " ".join(note for note in self.report.notes if note.startswith(file.name))
            raise HistoryError(
                f"{file.name}: nothing to store as {self.report.format} in {file.lines:,} lines, of which "
                f"{file.blank:,} are blank and {file.other:,} hold no row. {_cut(notes, 500)}".rstrip()
            )

    def _on_clock(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add ``timestamp`` from the chosen clock, null where there is none; ``exchange_at`` stays only where it says
        something else."""
        if self.clock == "receive":
            chosen = pl.col("received_at")
        else:
            chosen = pl.coalesce("exchange_at", "received_at")
            if frame.select(
                (pl.col("exchange_at").is_null() & pl.col("received_at").is_not_null()).any()
            ).item():
                self.note("where the exchange gives no time, the time of receipt is used")
        kept = pl.col("exchange_at") if self.clock == "receive" else pl.lit(None, dtype=pl.Int64)
        skew = pl.col("received_at") - pl.col("exchange_at")
        return frame.with_columns(timestamp=chosen, _skew=skew, exchange_at=kept)

    def _no_time(self) -> str:
        """Why a row has no ``timestamp``."""
        if self.clock == "receive":
            return 'there is no receive time here: use clock="exchange"'
        return "no usable time"

    def _with_times(self, frame: pl.DataFrame) -> pl.DataFrame:
        if frame["timestamp"].null_count():
            raise self.refuse(frame["line"][frame["timestamp"].is_null().arg_max() or 0], self._no_time())
        return frame

    def _usable_trades(self, frame: pl.DataFrame, text: Callable[[int], bytes]) -> pl.DataFrame:
        """Reject rows without a usable time, price or quantity."""
        for name in ("timestamp", "price", "qty"):
            value = pl.col(name)
            fine = value.is_not_null() if name == "timestamp" else value.is_finite() & (value > 0)
            good = frame.select(fine.fill_null(False).alias("good"))["good"]
            if not good.all():
                bad = frame.filter(~good)
                found = dict(zip(bad["line"].head(KEPT), bad[name].head(KEPT), strict=True))
                self.reject_all(
                    bad["line"],
                    lambda line, name=name, found=found: (  # type: ignore[misc]
                        self._no_time()
                        if name == "timestamp"
                        else f"{name} must be a number above 0, found {_shown(found[line])}"
                    ),
                    text,
                )
                frame = frame.filter(good)
        self.file.rows_in_lines += frame.height
        return frame

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

    def _stage(self, kind: Kind, symbol: str, frame: pl.DataFrame, tick_rule: bool = False) -> None:
        self._stored.add(symbol)
        times = (
            pl.col(name).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
            for name in frame.columns
            if name in ("timestamp", "received_at", "exchange_at", "end")
        )
        lines = frame["line"] if "line" in frame.columns else None
        frame = frame.with_columns(times).drop("line", strict=False)
        if tick_rule:
            self.note(f"{self.file.name}: no side column, sides by the tick rule")
        self.staging.add(
            kind, self.save_as or symbol, frame, source=self._number, lines=lines, tick_rule=tick_rule
        )

    def _reject_conflicts(self, found: Conflicts) -> None:
        """Reject rows whose trade id names another trade, in the files that they come from."""
        for (symbol, source), rows in found.group_by("symbol", "source", maintain_order=True):
            self._number, self.file = int(source), self.report.files[int(source) - 1]
            self.tape("trades", str(symbol)).rows -= rows.height
            self.file.rows -= rows.height
            rows = rows.unique("line", keep="first", maintain_order=True)
            self.file.rows_in_lines -= rows.height
            first = {row["line"]: row for row in rows.head(KEPT).iter_rows(named=True)}

            def reason(line: int, first: dict[int, dict[str, Any]] = first) -> str:
                one = first[line]
                was, now = (
                    f"{one['price' + end]:g} × {one['qty' + end]:g} {one['side' + end]} {one['timestamp' + end]}"
                    for end in ("_right", "")
                )
                return (
                    f"the trade id {one['trade_id']!r} is that of another trade, found {now}, the other is {was}. "
                    "Aggregated trades, or those of another market, belong under a name of their own (save_as)"
                )

            self.reject_all(rows["line"], reason, NO_TEXT)
            self._judge_file()


def _shown(value: float | None) -> str:
    return "nothing readable" if value is None else repr(value)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _kind_of(reason: str) -> str:
    """Return a reason without the values that it names."""
    return re.sub(r"'[^']*'?|\d[\d.]*", "…", reason.partition(", found")[0])[:80]


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
    """One file (or one member of a zip): ``lines = rows_in_lines + rejects + blank + other``.

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
    doubtful_s: float = 0.0  # seconds in which a book was crossed or lacked messages

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
            "doubtful s": round(self.doubtful_s, 3) or None,
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
        text = _cut(text, 500)
        if text not in self.notes:
            self.notes.append(text)

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
