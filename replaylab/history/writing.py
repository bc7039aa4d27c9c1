"""How history is written: staged by UTC day, merged with what is there, put in place all at once.

Merging is what makes an import repeatable. Rows with a trade id are the same where the id is. Rows without one are
compared by content, as a multiset: what occurs twice in one source stays twice, what occurs once in each of two
overlapping sources stays once. Importing a file again therefore changes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from replaylab.errors import HistoryError
from replaylab.fsio import Lock, lock, sync_folder
from replaylab.history.tapes import SCHEMAS, Kind, day_files, require_schema
from replaylab.paths import DataRoot, check_case, other_case, safe_symbol
from replaylab.timestamps import NS_PER_DAY, date_key, parse_ns

# Rows that are merged at once; a day with more is merged in slices of time, so that memory stays bounded.
_SLICE_ROWS: dict[Kind, int] = {"trades": 1_000_000, "book": 50_000, "funding": 1_000_000, "gaps": 1_000_000}
_ROW_GROUP: dict[Kind, int] = {"trades": 262_144, "book": 16_384, "funding": 262_144, "gaps": 262_144}
_SOURCE, _LINE, _TICK = "_source", "_line", "_tick"
_EXISTING = -1  # the source of what is in the history already; it comes first, and what is there stays
_CONTENT: dict[Kind, list[str]] = {
    "trades": ["timestamp", "price", "qty", "side", "off_market"],
    "book": ["timestamp", "kind", "seq"],
    "funding": ["timestamp"],
    "gaps": ["timestamp", "end", "what"],
}
_ID_ROWS = 20_000_000  # trade ids that are compared across days at once
# Two sources of one trade may give its time in other units.
_SAME_TIME_NS = 1_000_000
# Rows whose trade id names another trade: symbol, source, line, trade_id, and price, qty, side and timestamp; those of
# the trade that has the id are "price_right" and so on.
Conflicts = pl.DataFrame


class Written(NamedTuple):
    """What a write did: rows given, rows that were new, rows that were there already or came twice."""

    rows: int
    added: int
    duplicates: int


def write_trades(root: str | os.PathLike[str] | DataRoot, symbol: str, frame: pl.DataFrame) -> Written:
    """Merge trades into the history of ``symbol``; writing the same rows again changes nothing.

    >>> write_trades("data", "BTCUSDT", frame)                                        # doctest: +SKIP
    Written(rows=1000, added=1000, duplicates=0)

    Columns: those of ``TRADES_SCHEMA``; ``received_at``, ``side``, ``trade_id``, ``off_market`` and ``seq`` may be
    missing. Raises HistoryError where a row is not usable, or has a known trade id with another price or quantity.
    """
    return _write(DataRoot(root), "trades", symbol, frame)


def write_book(root: str | os.PathLike[str] | DataRoot, symbol: str, frame: pl.DataFrame) -> Written:
    """Merge book snapshots and deltas into the history of ``symbol``, as :func:`write_trades` does.

    Rows are the same where timestamp, kind and seq are.
    """
    return _write(DataRoot(root), "book", symbol, frame)


def write_funding(root: str | os.PathLike[str] | DataRoot, symbol: str, frame: pl.DataFrame) -> Written:
    """Merge funding settlements into the history of ``symbol``, as :func:`write_trades` does.

    Columns: ``timestamp``, ``funding_rate`` (0.0001 is 0.01 %), optionally ``mark_price``. A second rate for a
    settlement that the history has raises HistoryError.
    """
    return _write(DataRoot(root), "funding", symbol, frame)


def _write(root: DataRoot, kind: Kind, symbol: str, frame: pl.DataFrame) -> Written:
    with Staging(root) as staging:
        staging.add(kind, symbol, frame)
        return staging.commit()[kind, symbol]


@dataclass
class _Part:
    path: Path
    first: int
    last: int
    rows: int
    source: int
    tick_rule: bool


@dataclass
class Staging:
    """Collects rows beside the history and puts them in place together.

    ::

        with Staging(root) as staging:
            staging.add("trades", "BTCUSDT", frame)      # as often as needed; each frame is on disk then
            staging.commit()                             # without it nothing changes

    ``add(..., source=n)`` names the file that rows come from: rows without a trade id are duplicates of each other only
    across sources. ``lines``: where rows are in their file. ``tick_rule=True``: rows have no side, and get it by the
    tick rule once all rows are in order. Memory is bounded by the frame given and one slice of a day. Each day is
    replaced whole; a crash in the middle of ``commit`` leaves every day either old or new, and importing again
    completes it.
    """

    root: DataRoot
    _folder: Path | None = None
    _lock: Lock | None = None
    _parts: dict[tuple[Kind, str, str], list[_Part]] = field(default_factory=dict)
    _spellings: dict[str, str] = field(default_factory=dict)
    _count: int = 0
    _conflicts: list[Conflicts] = field(default_factory=list)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def add(
        self,
        kind: Kind,
        symbol: str,
        frame: pl.DataFrame,
        source: int = 0,
        *,
        lines: pl.Series | None = None,
        tick_rule: bool = False,
    ) -> None:
        """Stage rows. Raises HistoryError for rows that are not usable, UnsafeNameError for the symbol."""
        self._check_case(kind, safe_symbol(symbol))
        frame = require_schema(frame, kind)
        if frame.is_empty():
            return
        given = pl.lit(None, dtype=pl.Int64) if lines is None else lines
        frame = frame.with_columns(given.alias(_LINE))
        times = frame["timestamp"].to_physical()
        first, last = int(times.min()), int(times.max())  # type: ignore[arg-type]
        for number in range(first // NS_PER_DAY, last // NS_PER_DAY + 1):
            low = number * NS_PER_DAY
            if low <= first and last < low + NS_PER_DAY:
                rows = frame
            else:
                rows = frame.filter((times >= low) & (times < low + NS_PER_DAY))
            if not rows.is_empty():
                self._stage(kind, symbol, date_key(low), rows, source, tick_rule)

    def _check_case(self, kind: Kind, symbol: str) -> None:
        known = self._spellings.setdefault(symbol.casefold(), symbol)
        folder = self.root.history_dir(kind, symbol)
        if known != symbol and not folder.exists():
            raise other_case(symbol, known)
        check_case(folder, symbol)

    def _stage(
        self, kind: Kind, symbol: str, day: str, rows: pl.DataFrame, source: int, tick_rule: bool
    ) -> None:
        path = self._open() / f"{self._count}.arrow"
        self._count += 1
        rows.write_ipc(path, compression="uncompressed")
        times = rows["timestamp"].to_physical()
        first, last = int(times.min()), int(times.max())  # type: ignore[arg-type]
        part = _Part(path, first, last, rows.height, source, tick_rule)
        self._parts.setdefault((kind, symbol, day), []).append(part)

    def commit(self, judge: Callable[[Conflicts], None] | None = None) -> dict[tuple[Kind, str], Written]:
        """Merge all that was staged into the history; return what became of it by kind and symbol.

        Rows whose trade id names another trade are left out, counted neither as rows nor as duplicates, and given to
        ``judge``; where that raises, or is None, nothing changes. An id is looked for in the days of the import and
        those next to them.
        """
        done: dict[tuple[Kind, str], Written] = {}
        if not self._parts:
            return _Everything(done)
        with lock(self.root.path / "history" / ".lock"):
            ready: list[tuple[Path, Path]] = []
            for symbol in {symbol for kind, symbol, _ in self._parts if kind == "trades"}:
                done["trades", symbol] = self._leave_out_ids_of_other_days(symbol)
            sides = _LastSide()
            for (kind, symbol, day), parts in sorted(self._parts.items()):
                target = self.root.history(kind, symbol, day)
                merged = self._open() / f"{kind}-{len(ready)}.parquet"
                old = done.get((kind, symbol), Written(0, 0, 0))
                if any(part.tick_rule for part in parts):
                    sides.find(self.root, symbol, day)
                new = self._merge_day(kind, symbol, day, target, merged, sides)
                done[kind, symbol] = Written(*(a + b for a, b in zip(old, new, strict=True)))
                if new.added:  # else the file stays unchanged, byte for byte
                    ready.append((merged, target))
            if self._conflicts:
                (judge or _refuse_conflicts)(pl.concat(self._conflicts))
            for merged, target in ready:
                target.parent.mkdir(parents=True, exist_ok=True)
                merged.replace(target)
            for folder in {target.parent for _, target in ready}:
                sync_folder(folder)
        return _Everything(done)

    def _merge_day(
        self, kind: Kind, symbol: str, day: str, target: Path, merged: Path, sides: _LastSide
    ) -> Written:
        """Write the union of the staged rows and the file of the day to ``merged``, sorted."""
        parts = self._parts[kind, symbol, day]
        known = len(self._conflicts)
        existing = pl.scan_parquet(target) if target.exists() else None
        old_rows = 0 if existing is None else int(existing.select(pl.len()).collect().item())
        new_rows = sum(part.rows for part in parts)
        slices = -(-(old_rows + new_rows) // _SLICE_ROWS[kind])
        start = parse_ns(day)
        width = -(-NS_PER_DAY // max(slices, 1))
        total = 0
        writer: pq.ParquetWriter | None = None
        try:
            for number in range(slices):
                low, high = start + number * width, start + (number + 1) * width
                frames = _read_slice(parts, existing, low, high, whole=slices == 1)
                rows = _union(kind, symbol, frames, sides, self._conflicts)
                if rows.is_empty():
                    continue
                table = rows.to_arrow()
                if writer is None:
                    writer = pq.ParquetWriter(
                        merged,
                        table.schema,
                        compression="zstd",
                        compression_level=1,
                        use_dictionary=["side", "kind"],
                    )
                writer.write_table(table, row_group_size=_ROW_GROUP[kind])
                total += rows.height
        finally:
            if writer is not None:
                writer.close()
        if writer is not None:
            _sync(merged)
        added = total - old_rows
        contrary = sum(frame.height for frame in self._conflicts[known:])
        return Written(new_rows - contrary, added, new_rows - added - contrary)

    def _leave_out_ids_of_other_days(self, symbol: str) -> Written:
        """Take staged trades out whose id another day has already; return how many were duplicates."""
        staged = {
            day: parts for (kind, one, day), parts in self._parts.items() if (kind, one) == ("trades", symbol)
        }
        near = {date_key(parse_ns(day) + step * NS_PER_DAY) for day in staged for step in (-1, 0, 1)}
        kept = {day: path for day, path in day_files(self.root, "trades", symbol).items() if day in near}
        sources: list[tuple[str, Path, _Part | None]] = [(day, path, None) for day, path in kept.items()]
        sources += [(day, part.path, part) for day, parts in staged.items() for part in parts]
        if len({day for day, _, _ in sources}) < 2:
            return Written(0, 0, 0)
        again = _ids_of_several_days([(day, path) for day, path, _ in sources])
        if again.is_empty():
            return Written(0, 0, 0)
        first: dict[str, str] = {}  # the day that has an id
        found: list[pl.DataFrame] = []
        duplicates = 0
        for day, path, part in sources:
            rows = _open_tape(path).filter(pl.col("trade_id").is_in(again.implode())).collect()
            source = _EXISTING if part is None else part.source
            line = [] if part is not None else [pl.lit(None, dtype=pl.Int64).alias(_LINE)]
            rows = rows.with_columns(*line, pl.lit(source, pl.Int32).alias(_SOURCE))
            mine = pl.Series(
                [first.setdefault(one, day) == day for one in rows["trade_id"]], dtype=pl.Boolean
            )
            found.append(rows.filter(mine).unique("trade_id", keep="first", maintain_order=True))
            other = rows.filter(~mine)
            if part is None or other.is_empty():
                continue
            contrary = _contrary(
                symbol,
                pl.concat(found, how="diagonal").unique("trade_id", keep="first", maintain_order=True),
                other,
            )
            if not contrary.is_empty():
                self._conflicts.append(contrary)
            duplicates += other.height - contrary.height
            whole = pl.read_ipc(part.path)
            whole = whole.filter(~whole["trade_id"].is_in(other["trade_id"].implode()).fill_null(False))
            part.path, part.rows = self._open() / f"{self._count}.arrow", whole.height
            self._count += 1
            whole.write_ipc(part.path, compression="uncompressed")
        return Written(duplicates, 0, duplicates)

    def discard(self) -> None:
        """Forget what was staged and not committed."""
        self._parts = {}
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open(self) -> Path:
        if self._folder is None:
            base = self.root.path / "history" / ".staging"
            base.mkdir(parents=True, exist_ok=True)
            with lock(self.root.path / "history" / ".lock"):
                _delete_abandoned(base)
                self._folder = Path(tempfile.mkdtemp(dir=base))
                self._lock = lock(self._folder / "lock")
        return self._folder


class _Everything(dict[tuple[Kind, str], Written]):
    """Results by kind and symbol; what was never staged had no rows."""

    def __missing__(self, key: tuple[Kind, str]) -> Written:
        return Written(0, 0, 0)


@dataclass
class _LastSide:
    """Price and side of the trade before a day, for the tick rule."""

    symbol: str = ""
    day: str = ""
    price: float | None = None
    side: str | None = None

    def find(self, root: DataRoot, symbol: str, day: str) -> None:
        """Take the trade before ``day`` from the history, unless that of a later day is known from this merge."""
        if symbol != self.symbol:
            self.symbol, self.day, self.price, self.side = symbol, "", None, None
        before = [
            (one, path) for one, path in day_files(root, "trades", symbol).items() if self.day < one < day
        ]
        if before:
            market = pl.scan_parquet(before[-1][1]).filter(~pl.col("off_market"))
            last = market.select("price", "side").tail(1).collect().rows()
            self.price, self.side = last[0] if last else (None, None)
        self.day = day

    def fill(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Give rows in order their sides: BUY after a rise, SELL after a fall, as before at the same price.

        Before the first move there is no side. Prints off the market move nothing. Source: C. M. C. Lee and M. J.
        Ready, "Inferring trade direction from intraday data", Journal of Finance 46 (1991).
        """
        price = rows["price"].set(rows["off_market"], None).fill_null(strategy="forward")
        before = price.shift(1)
        if self.price is not None:
            price, before = price.fill_null(self.price), before.fill_null(self.price)
        moved = pl.select(
            pl.when(price > before).then(pl.lit("BUY")).when(price < before).then(pl.lit("SELL"))
        ).to_series()
        side = moved.fill_null(strategy="forward")
        if self.side is not None:
            side = side.fill_null(self.side)
        self.price, self.side = price[-1], side[-1]
        return rows.with_columns(pl.when(_TICK).then(side).otherwise("side").alias("side"))


def _read_slice(
    parts: list[_Part], existing: pl.LazyFrame | None, low: int, high: int, *, whole: bool
) -> list[pl.DataFrame]:
    frames = []
    time = pl.col("timestamp").dt.timestamp("ns")
    inside = (time >= low) & (time < high)

    def marked(frame: pl.DataFrame, source: int, tick: bool) -> pl.DataFrame:
        return frame.with_columns(pl.lit(source, pl.Int32).alias(_SOURCE), pl.lit(tick).alias(_TICK))

    if existing is not None:
        old = (existing if whole else existing.filter(inside)).collect()
        old = old.with_columns(pl.lit(None, dtype=pl.Int64).alias(_LINE))
        frames.append(marked(old, _EXISTING, False))
    for part in parts:
        if part.last < low or part.first >= high:
            continue
        frame = pl.read_ipc(part.path)
        if part.first < low or part.last >= high:
            frame = frame.filter(inside)
        frames.append(marked(frame, part.source, part.tick_rule))
    return frames


def _union(
    kind: Kind, symbol: str, frames: list[pl.DataFrame], sides: _LastSide, conflicts: list[Conflicts]
) -> pl.DataFrame:
    """The rows of all sources, each once, in order. Sources come with the one that wins first."""
    if not frames:
        return pl.DataFrame(schema=SCHEMAS[kind])
    rows = pl.concat(frames)
    several = rows[_SOURCE].n_unique() > 1
    tick = bool(rows[_TICK].any())
    if kind == "trades":
        named = rows["trade_id"].is_not_null()
        if named.all():
            rows = _unique_ids(rows, symbol, conflicts)
        elif not named.any():
            rows = _unique_content(kind, rows, several)
        else:
            ids = _unique_ids(rows.filter(named), symbol, conflicts)
            rows = pl.concat([ids, _unique_content(kind, rows.filter(~named), several)])
    else:
        rows = _unique_content(kind, rows, several)
    if not _in_order(rows, strictly=several):
        # Whatever the order of imports, ties come out the same. Within one source they keep its order.
        ties = (
            {"trades": ["trade_id", "price", "qty", "side"], "book": ["kind"]}.get(kind, [])
            if several
            else []
        )
        rows = rows.sort(["timestamp", "seq", *ties], maintain_order=True, nulls_last=True)
    return (sides.fill(rows) if tick else rows).drop(_SOURCE, _LINE, _TICK)


def _unique_ids(rows: pl.DataFrame, symbol: str, conflicts: list[Conflicts]) -> pl.DataFrame:
    # Where the sequence is the id, whole numbers are compared and not texts.
    key = "seq" if bool((rows["trade_id"] == rows["seq"].cast(pl.String)).all()) else "trade_id"
    if key == "seq" and bool((rows["seq"].diff() > 0).all()):
        return rows
    if rows[key].n_unique() == rows.height:
        return rows
    first = rows[key].is_first_distinct()
    unique = rows.filter(first)
    contrary = _contrary(symbol, unique, rows.filter(~first))
    if not contrary.is_empty():
        conflicts.append(contrary)
    return unique


def _contrary(symbol: str, first: pl.DataFrame, again: pl.DataFrame) -> Conflicts:
    """Return the rows of ``again`` that are another trade than the one that has their id in ``first``.

    The same trade on another clock, in another unit of time, or without a side is the same trade.
    """
    columns = ["trade_id", "price", "qty", "side", "timestamp", "exchange_at"]
    pairs = again.select(*columns, _SOURCE, _LINE).join(
        first.select(columns), on="trade_id", how="left", maintain_order="left"
    )
    moments = [pl.coalesce(f"exchange_at{end}", f"timestamp{end}").to_physical() for end in ("", "_right")]
    differ = (
        (pl.col("price") != pl.col("price_right"))
        | (pl.col("qty") != pl.col("qty_right"))
        | (pl.col("side") != pl.col("side_right")).fill_null(False)
        | ((moments[0] - moments[1]).abs() >= _SAME_TIME_NS)
    )
    return pairs.filter(differ).select(
        pl.lit(symbol).alias("symbol"),
        pl.col(_SOURCE).alias("source"),
        pl.col(_LINE).alias("line"),
        *columns[:5],
        *(f"{name}_right" for name in columns[1:5]),
    )


def _refuse_conflicts(found: Conflicts) -> None:
    one = found.row(0, named=True)
    shown = [
        tuple(str(one[f"{name}{end}"]) for name in ("price", "qty", "side", "timestamp"))
        for end in ("_right", "")
    ]
    raise HistoryError(
        f"{one['symbol']}: trade id {one['trade_id']} names different trades, so do {found.height - 1} more: price, "
        f"qty, side, time are {shown[0]} and {shown[1]}. Aggregated trades, or those of another market, belong under a "
        "symbol name of their own"
    )


def _unique_content(kind: Kind, rows: pl.DataFrame, several: bool) -> pl.DataFrame:
    if kind == "funding":
        _refuse_two_rates(rows)
    if not several:
        return rows
    # A side by the tick rule is not known yet where the same row may have it already.
    key = [name for name in _CONTENT[kind] if name != "side" or not rows[_TICK].any()]
    occurrence = pl.int_range(pl.len()).over([_SOURCE, *key])
    first = rows.select(pl.struct(*key, occurrence.alias("occurrence")).is_first_distinct().alias("first"))
    return rows.filter(first["first"])


def _refuse_two_rates(rows: pl.DataFrame) -> None:
    rates = rows.group_by("timestamp").agg(pl.col("funding_rate").unique())
    double = rates.filter(pl.col("funding_rate").list.len() > 1)
    if not double.is_empty():
        ts, found = double.sort("timestamp").row(0)
        raise HistoryError(
            f"funding at {ts} has two rates, {found}: quoted or predicted rates are not settlements"
        )


def _in_order(rows: pl.DataFrame, *, strictly: bool) -> bool:
    time, seq = pl.col("timestamp").to_physical(), pl.col("seq")
    step, tie = time.diff(), seq.diff()
    tied = tie > 0 if strictly else tie >= 0
    return bool(rows.select(((step > 0) | ((step == 0) & tied)).all()).item())


def _delete_abandoned(base: Path) -> None:
    """Delete the folders of imports whose process died: their locks are free."""
    for folder in base.iterdir():
        if not (folder / "lock").is_file():
            continue  # not made here: every staging folder has its lock from the start
        try:
            held = lock(folder / "lock", timeout=0)
        except TimeoutError:
            continue
        with held:
            shutil.rmtree(folder, ignore_errors=True)


def _open_tape(path: Path) -> pl.LazyFrame:
    return pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_ipc(path)


def _ids_of_several_days(sources: list[tuple[str, Path]]) -> pl.Series:
    """Return the trade ids that more than one day has. Of ids that count up the ranges decide."""
    ranges: dict[str, tuple[int, int]] = {}
    total, counting = 0, True
    for day, path in sources:
        counts = pl.col("trade_id") == pl.col("seq").cast(pl.String)
        low, high, rows, same = (
            _open_tape(path)
            .filter(pl.col("trade_id").is_not_null())
            .select(
                pl.col("seq").min(),
                pl.col("seq").max().alias("most"),
                pl.len(),
                counts.head(1_000).all().alias("same"),
            )
            .collect()
            .row(0)
        )
        if rows:
            old = ranges.get(day, (low, high))
            ranges[day] = min(old[0], low), max(old[1], high)
        total, counting = total + rows, counting and same
    spans = sorted(ranges.values())
    if counting and all(one[1] < two[0] for one, two in pairwise(spans)):
        return pl.Series([], dtype=pl.String)
    passes = -(-max(total, 1) // _ID_ROWS)
    again = []
    for number in range(passes):
        days: dict[str, list[pl.Series]] = {}
        for day, path in sources:
            ids = _open_tape(path).select(pl.col("trade_id").drop_nulls()).collect().to_series()
            days.setdefault(day, []).append(ids if passes == 1 else ids.filter(ids.hash() % passes == number))
        ids = pl.concat([pl.concat(some).unique() for some in days.values()])
        again.append(ids.filter(ids.is_duplicated()).unique())
    return pl.concat(again)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
