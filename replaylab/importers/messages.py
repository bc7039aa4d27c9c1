"""Messages of a websocket capture: lines read and counted, levels parsed, rows collected, books kept and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from replaylab.errors import HistoryError
from replaylab.features import Levels, OrderBook
from replaylab.history import level_lists
from replaylab.importers.intake import FileReport, Intake

_SLICE_ROWS = 10_000  # rows of one symbol that are collected before they are handed over
_EARLY_ROWS = 50_000  # deltas that wait for a snapshot
_CHECK_LINES = 1_024
# The deepest snapshot of an exchange has some 400 KB.
_MAX_MESSAGE = 4 << 20


class Arrival(NamedTuple):
    """Where and when a message came: line of its file, time of the exchange and of receipt (ns, None: not known)."""

    line: int
    exchange: int | None
    received: int | None


def read_lines(
    files: Iterable[Path],
    intake: Intake,
    symbols: Mapping[str, SymbolRows],
    take: Callable[[bytes, int], bool],
) -> None:
    """Call ``take(line, number)`` for every line that is not blank, and count what becomes of it.

    It returns whether the line made rows; KeyError, TypeError, ValueError and AttributeError reject the line with
    their message. HistoryError ends the import.
    """
    for file in intake.open(files):
        for block in file.blocks():
            for number, line in enumerate(block.data.splitlines(), block.first_line):
                intake.file.lines += 1
                if line.strip():
                    _count(take, line, number, intake)
                else:
                    intake.file.blank += 1
                if number % _CHECK_LINES == 0:
                    for one in symbols.values():
                        one.hand_over(intake, _SLICE_ROWS)
        for one in symbols.values():
            one.hand_over(intake)


def _count(take: Callable[[bytes, int], bool], line: bytes, number: int, intake: Intake) -> None:
    if len(line) > _MAX_MESSAGE:
        intake.reject(
            number, f"the line has {len(line):,} bytes, a message has at most {_MAX_MESSAGE:,}", line
        )
        return
    try:
        rows = take(line, number)
    except HistoryError:
        raise
    except KeyError as error:
        intake.reject(number, f"no field {error}", line)
    except (TypeError, ValueError, AttributeError) as error:
        intake.reject(number, str(error), line)
    else:
        if rows:
            intake.file.rows_in_lines += 1
        else:
            intake.file.other += 1


def levels(found: Any) -> Levels:
    """Return ``[[price, qty], ...]`` of numbers or strings as floats. Raises ValueError that says what is wrong."""
    if not isinstance(found, list):
        raise ValueError(f"levels must be a list, found {found!r:.80}")
    parsed = []
    for level in found:
        if not isinstance(level, list) or len(level) < 2:
            raise ValueError(f"a level must be [price, qty], found {level!r:.80}")
        price, qty = float(level[0]), float(level[1])
        if not (isfinite(price) and price > 0 and isfinite(qty) and qty >= 0):
            raise ValueError(
                f"a level must have a price above 0 and a quantity of 0 or more, found {level!r:.80}"
            )
        parsed.append((price, qty))
    return parsed


def positive(found: Any, name: str) -> float:
    """Return a number above 0 from a number or string. Raises ValueError."""
    value = float(found)
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number above 0, found {found!r:.80}")
    return value


def number_of(found: Any) -> float | None:
    """Return a number from a number or string; None where it is none."""
    try:
        return None if found is None else float(found)
    except (TypeError, ValueError):
        return None


_LINE = {"line": pl.Int64, "exchange_at": pl.Int64, "received_at": pl.Int64}
_TRADE = {
    **_LINE,
    "price": pl.Float64,
    "qty": pl.Float64,
    "side": pl.String,
    "trade_id": pl.String,
    "off_market": pl.Boolean,
    "seq": pl.Int64,
}
_BOOK = {**_LINE, "kind": pl.String, "seq": pl.Int64}


@dataclass
class _BookRows:
    """Rows of a book on their way into a frame."""

    rows: list[tuple[int, int | None, int | None, str, int]] = field(default_factory=list)
    flat: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    counts: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))

    def add(self, at: Arrival, kind: str, bids: Levels, asks: Levels, seq: int) -> None:
        self.rows.append((*at, kind, seq))
        for flat, counts, side in zip(self.flat, self.counts, (bids, asks), strict=True):
            counts.append(len(side))
            for level in side:
                flat += level

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.rows, schema=_BOOK, orient="row").with_columns(
            level_lists(self.flat[0], self.counts[0]).alias("bids"),
            level_lists(self.flat[1], self.counts[1]).alias("asks"),
        )


class Doubts:
    """Finds the intervals of a stream in which its book is crossed, or lacks messages."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Arrival, Arrival]] = []
        self._since: dict[str, Arrival] = {}
        self._last: Arrival | None = None

    def see(self, book: OrderBook, at: Arrival, snapshot: bool) -> None:
        """Take the book after an update."""
        bid, ask = book.best_bid(), book.best_ask()
        if bid is not None and ask is not None and bid[0] >= ask[0]:
            self._since.setdefault("crossed", at)
        else:
            self._end("crossed", at)
        if snapshot:
            self._end("missing", at)
        self._last = at

    def miss(self) -> None:
        """Begin an interval at the last update: messages are missing after it."""
        if self._last is not None:
            self._since.setdefault("missing", self._last)

    def store(self, symbol: str, intake: Intake) -> None:
        """End what is open at the last update, and give all intervals to the history."""
        for what in [*self._since]:
            self._end(what, self._last or self._since[what])
        for what, start, end in self.found:
            begin, until = intake.moment(*start[1:]), intake.moment(*end[1:])
            if begin is not None and until is not None:
                intake.doubtful(symbol, what, min(begin, until), until)

    def _end(self, what: str, at: Arrival) -> None:
        if what in self._since:
            self.found.append((what, self._since.pop(what), at))


def watch(frame: pl.DataFrame, book: OrderBook, doubts: Doubts) -> None:
    """Apply rows of a book to ``book`` and watch whether it is crossed."""
    columns = ("line", "exchange_at", "received_at", "kind", "bids", "asks")
    for line, exchange, received, kind, bids, asks in frame.select(columns).iter_rows():
        (book.reset if kind == "snapshot" else book.update)(
            [(p, q) for p, q in bids], [(p, q) for p, q in asks]
        )
        doubts.see(book, Arrival(line, exchange, received), kind == "snapshot")


class SymbolRows:
    """One symbol of a stream of messages: trades, book rows, and the book that they make.

    Deltas that come before the first snapshot wait: a snapshot that follows contains them, and on an empty book
    they would only make false prices. Where none follows, they are kept, to build on the file before.
    ``numbered``: trade ids count up by one.
    """

    numbered = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.book = OrderBook()
        self.known = False  # a snapshot has been seen
        self.last_update: int | None = None  # id of the last update of the book
        self._trades: list[tuple[Any, ...]] = []
        self._rows = _BookRows()
        self._early = _BookRows()
        self._early_files: list[FileReport] = []
        self._left_out = 0
        self._doubts = Doubts()
        self._kept_early = 0

    def trade(
        self,
        at: Arrival,
        price: float,
        qty: float,
        side: str,
        *,
        trade_id: str,
        off_market: bool,
        seq: int,
    ) -> None:
        self._trades.append((*at, price, qty, side, trade_id, off_market, seq))

    def delta(self, file: FileReport, at: Arrival, bids: Levels, asks: Levels, seq: int) -> None:
        rows = self._rows
        if not self.known:
            rows = self._early
            self._early_files.append(file)
        rows.add(at, "delta", bids, asks, seq)
        self.book.update(bids, asks)
        if self.known:
            self._doubts.see(self.book, at, False)

    def snapshot(self, at: Arrival, bids: Levels, asks: Levels, seq: int) -> None:
        """Add a snapshot; levels are put best first."""
        self.replace(bids, asks)
        self._doubts.see(self.book, at, True)
        self._rows.add(at, "snapshot", sorted(bids, reverse=True), sorted(asks), seq)

    def replace(self, bids: Levels, asks: Levels) -> None:
        """Replace the book; the deltas that waited for that are not needed any more."""
        self._left_out += len(self._early.rows)
        for file in self._early_files:
            file.rows_in_lines -= 1
            file.other += 1
        self._early, self._early_files = _BookRows(), []
        self.book.reset(bids, asks)
        self.known = True

    def gap(self, intake: Intake, before: int, after: int, number: int) -> None:
        """Count missing updates: the ids before and after. The book is doubtful from its last row to a snapshot."""
        intake.gap("book", self.name, "id", before, after, number)
        self._doubts.miss()

    def compare(self, bids: Levels, asks: Levels, intake: Intake) -> None:
        """Count whether the kept book agrees with a snapshot, as deep as the shallower of the two."""
        tape = intake.tape("book", self.name)
        tape.checked += 1
        sides = zip(self.book.levels(), (sorted(bids, reverse=True), sorted(asks)), strict=True)
        tape.disagreed += any(
            kept[: min(len(kept), len(given))] != given[: min(len(kept), len(given))] for kept, given in sides
        )

    def hand_over(self, intake: Intake, at_least: int = 1) -> None:
        """Give what has been collected to ``intake``, where it is so many rows."""
        if len(self._trades) >= at_least:
            trades, self._trades = pl.DataFrame(self._trades, schema=_TRADE, orient="row"), []
            # The intake counts a table's lines; those of messages are counted where they are read.
            lines = intake.file.rows_in_lines
            intake.trades(self.name, trades, numbered=self.numbered)
            intake.file.rows_in_lines = lines
        if len(self._early.rows) >= _EARLY_ROWS:
            self._give_up_waiting()
        if len(self._rows.rows) >= at_least:
            book, self._rows = self._rows.frame(), _BookRows()
            intake.book(self.name, book)

    def finish(self, intake: Intake) -> None:
        """Hand over everything, and say what became of the deltas before the first snapshot."""
        self._give_up_waiting()
        self.hand_over(intake)
        self._doubts.store(self.name, intake)
        if self._left_out:
            intake.note(
                f"{self.name}: {self._left_out} deltas before the first snapshot left out: it contains them"
            )
        if self._kept_early:
            intake.note(
                f"{self.name}: {self._kept_early} deltas without a snapshot before them: they build on the book that "
                "the history has until then, else on an empty one"
            )

    def _give_up_waiting(self) -> None:
        if self._early.rows:
            self._kept_early += len(self._early.rows)
            self._rows, self._early, self._early_files = self._early, _BookRows(), []
