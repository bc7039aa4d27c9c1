"""What every importer hands its rows to: checks them, counts what is odd, and stages them for the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import HistoryError, did_you_mean
from replaylab.history import BOOK_SCHEMA, TRADES_SCHEMA, Staging
from replaylab.importers.reading import LineFile, open_files
from replaylab.importers.report import KEPT, FileReport, Gap, ImportReport, Skew, TapeReport
from replaylab.paths import safe_name

__all__ = ["ClockName", "Intake"]

ClockName = Literal["exchange", "receive"]
Integers = npt.NDArray[np.int64]
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
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        self.staging, self.report, self.clock = staging, report, clock
        self.symbol = None if symbol is None else safe_name(symbol, "symbol")
        self.save_as = None if save_as is None else safe_name(save_as, "symbol")
        self.gap_ns = round(gap_s * 1e9)
        self.file = FileReport("")
        self.seen_symbols: set[str] = set()
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
        self._stage("trades", symbol, frame.select(list(TRADES_SCHEMA)))

    def book(self, symbol: str, frame: pl.DataFrame) -> None:
        """Take book snapshots and deltas whose levels the importer has checked."""
        frame = self._on_clock(frame)
        if frame.is_empty():
            return
        self._measure(self.tape("book", symbol), symbol, frame, False)
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
        for tape in self.report.tapes:
            done = written[tape.kind, tape.symbol]  # type: ignore[index]
            tape.added, tape.duplicates = done.added, done.duplicates
        self.report.tapes.sort(key=lambda tape: (tape.symbol, tape.kind))

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
            self.note("where the exchange gives no time, the time of receipt stands for it")
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

    def _measure(self, tape: TapeReport, symbol: str, frame: pl.DataFrame, backwards: bool) -> None:
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
        for index in np.flatnonzero(ahead - before > self.gap_ns).tolist():
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

    def _stage(self, kind: Literal["trades", "book"], symbol: str, frame: pl.DataFrame) -> None:
        self._stored.add(symbol)
        times = (
            pl.col(name).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
            for name in ("timestamp", "received_at", "exchange_at")
        )
        source = len(self.report.files)
        self.staging.add(kind, self.save_as or symbol, frame.with_columns(times), source=source)


def _above_zero(value: float | None) -> bool:
    return value is not None and 0 < value < float("inf")
