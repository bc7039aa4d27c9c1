"""Messages on their way in: levels parsed, rows collected into frames, books kept and checked against snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import polars as pl

from replaylab.history import level_lists
from replaylab.importers.intake import Intake
from replaylab.importers.report import FileReport, TapeReport

__all__ = ["SLICE_ROWS", "BookRows", "KeptBook", "Levels", "SymbolRows", "TradeRows", "levels", "positive"]

Levels = list[tuple[float, float]]
SLICE_ROWS = 50_000  # rows of one symbol that are collected before they go on


def levels(found: Any) -> Levels:
    """Return ``[[price, qty], ...]`` of numbers or texts as floats. Raises ValueError that says what is wrong."""
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
    """Return a number above 0 from a number or text. Raises ValueError."""
    value = float(found)
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number above 0, found {found!r}")
    return value


@dataclass
class BookRows:
    """Rows of a book on their way into a frame."""

    rows: list[tuple[int, int | None, int | None, str, int]] = field(default_factory=list)
    flat: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    counts: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))

    def add(
        self,
        line: int,
        exchange_at: int | None,
        received_at: int | None,
        kind: str,
        bids: Sequence[tuple[float, float]],
        asks: Sequence[tuple[float, float]],
        seq: int,
    ) -> None:
        self.rows.append((line, exchange_at, received_at, kind, seq))
        for flat, counts, side in zip(self.flat, self.counts, (bids, asks), strict=True):
            counts.append(len(side))
            for level in side:
                flat += level

    def frame(self) -> pl.DataFrame:
        """Return the rows as a frame."""
        kinds = {
            "line": pl.Int64,
            "exchange_at": pl.Int64,
            "received_at": pl.Int64,
            "kind": pl.String,
            "seq": pl.Int64,
        }
        return pl.DataFrame(self.rows, schema=kinds, orient="row").with_columns(
            level_lists(self.flat[0], self.counts[0]).alias("bids"),
            level_lists(self.flat[1], self.counts[1]).alias("asks"),
        )


@dataclass
class TradeRows:
    """Trades on their way into a frame: line, exchange and receive time, price, qty, side, id, off market, seq."""

    rows: list[tuple[int, int | None, int | None, float, float, str | None, str, bool, int]] = field(
        default_factory=list
    )

    def frame(self) -> pl.DataFrame:
        kinds = {
            "line": pl.Int64,
            "exchange_at": pl.Int64,
            "received_at": pl.Int64,
            "price": pl.Float64,
            "qty": pl.Float64,
            "side": pl.String,
            "trade_id": pl.String,
            "off_market": pl.Boolean,
            "seq": pl.Int64,
        }
        return pl.DataFrame(self.rows, schema=kinds, orient="row")


class KeptBook:
    """The book as the rows so far make it."""

    def __init__(self) -> None:
        self.bids: dict[float, float] = {}
        self.asks: dict[float, float] = {}
        self.known = False  # a snapshot has been seen

    def replace(self, bids: Levels, asks: Levels) -> None:
        self.bids, self.asks = dict(bids), dict(asks)
        self.known = True

    def apply(self, bids: Levels, asks: Levels) -> None:
        for side, changes in ((self.bids, bids), (self.asks, asks)):
            for price, qty in changes:
                if qty:
                    side[price] = qty
                else:
                    side.pop(price, None)

    def best(self) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        """Return best bid and best ask as (price, qty)."""
        bid, ask = max(self.bids, default=None), min(self.asks, default=None)
        return (
            None if bid is None else (bid, self.bids[bid]),
            None if ask is None else (ask, self.asks[ask]),
        )

    def compare(self, bids: Levels, asks: Levels, tape: TapeReport) -> None:
        """Count in ``tape`` whether the kept book agrees with a snapshot, as deep as the shallower of the two."""
        tape.checked += 1
        depth_bids, depth_asks = min(len(bids), len(self.bids)), min(len(asks), len(self.asks))
        agree = (
            sorted(self.bids.items(), reverse=True)[:depth_bids] == sorted(bids, reverse=True)[:depth_bids]
            and sorted(self.asks.items())[:depth_asks] == sorted(asks)[:depth_asks]
        )
        tape.disagreed += not agree


class SymbolRows:
    """One symbol of a stream of messages: trades, book rows, and the book that they make.

    Deltas that come before the first snapshot wait: a snapshot that follows contains them, and on an empty book
    they would only make false prices. Where none follows, they are kept, to build on the file before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trades = TradeRows()
        self.book = BookRows()
        self.early = BookRows()
        self.early_files: list[FileReport] = []
        self.kept = KeptBook()
        self.left_out = 0
        self.kept_early = 0

    def delta(
        self,
        file: FileReport,
        line: int,
        exchange: int | None,
        received: int | None,
        bids: Levels,
        asks: Levels,
        seq: int,
    ) -> None:
        rows = self.book
        if not self.kept.known:
            rows = self.early
            self.early_files.append(file)
        rows.add(line, exchange, received, "delta", bids, asks, seq)
        self.kept.apply(bids, asks)

    def snapshot(
        self, line: int, exchange: int | None, received: int | None, bids: Levels, asks: Levels, seq: int
    ) -> None:
        """Take a snapshot; levels are put best first."""
        self.replace(bids, asks)
        self.book.add(line, exchange, received, "snapshot", sorted(bids, reverse=True), sorted(asks), seq)

    def replace(self, bids: Levels, asks: Levels) -> None:
        """Start the book anew; what waited for that is not needed any more."""
        self.left_out += len(self.early.rows)
        for file in self.early_files:
            file.rows_in_lines -= 1
            file.other += 1
        self.early, self.early_files = BookRows(), []
        self.kept.replace(bids, asks)

    def hand_over(self, intake: Intake, at_least: int = 1) -> None:
        """Give what has been collected to ``intake``, where it is so many rows."""
        if len(self.trades.rows) >= at_least:
            trades, self.trades = self.trades.frame(), TradeRows()
            # The intake counts a table's lines; those of messages are counted where they are read.
            lines = intake.file.rows_in_lines
            intake.trades(self.name, trades, numbered=self.numbered)
            intake.file.rows_in_lines = lines
        if len(self.early.rows) >= SLICE_ROWS:
            self._give_up_waiting()
        if len(self.book.rows) >= at_least:
            book, self.book = self.book.frame(), BookRows()
            intake.book(self.name, book)

    numbered = False  # whether trade ids count up by one

    def finish(self, intake: Intake) -> None:
        """Hand over everything, and say what became of the deltas before the first snapshot."""
        self._give_up_waiting()
        self.hand_over(intake)
        if self.left_out:
            intake.note(
                f"{self.name}: {self.left_out} deltas before the first snapshot left out: it contains them"
            )
        if self.kept_early:
            intake.note(
                f"{self.name}: {self.kept_early} deltas without a snapshot before them: they build on the book that "
                "the history has until then, else on an empty one"
            )

    def _give_up_waiting(self) -> None:
        if self.early.rows:
            self.kept_early += len(self.early.rows)
            self.book, self.early, self.early_files = self.early, BookRows(), []
