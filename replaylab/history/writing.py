"""How history is written: staged by UTC day, merged with what is there, put in place all at once.

Merging is what makes an import repeatable. Rows with a trade id are the same where the id is. Rows without one are
compared by content, as a multiset: what occurs twice in one source stays twice, what occurs once in each of two
overlapping sources stays once. Importing a file again therefore changes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from replaylab.errors import HistoryError
from replaylab.fsio import Lock, lock, sync_folder
from replaylab.history.tapes import SCHEMAS, Kind, require_schema
from replaylab.paths import DataRoot, safe_symbol
from replaylab.timestamps import NS_PER_DAY, date_key, parse_ns

# Rows that are merged at once; a day with more is merged in slices of time, so that memory stays bounded.
_SLICE_ROWS: dict[Kind, int] = {"trades": 1_000_000, "book": 50_000, "funding": 1_000_000}
_ROW_GROUP: dict[Kind, int] = {"trades": 262_144, "book": 16_384, "funding": 262_144}
_SOURCE = "_source"
_EXISTING = -1  # the source of what is in the history already; it comes first, and what is there stays
_CONTENT: dict[Kind, list[str]] = {
    "trades": ["timestamp", "price", "qty", "side", "off_market"],
    "book": ["timestamp", "kind", "seq"],
    "funding": ["timestamp"],
}


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


@dataclass
class Staging:
    """Collects rows beside the history and puts them in place together.

    ::

        with Staging(root) as staging:
            staging.add("trades", "BTCUSDT", frame)      # as often as needed; each frame is on disk then
            staging.commit()                             # without it nothing changes

    ``add(..., source=n)`` names the file that rows come from: rows without a trade id are duplicates of each other only
    across sources. Memory is bounded by the frame given and one slice of a day. Each day is replaced whole; a crash
    in the middle of ``commit`` leaves every day either old or new, and importing again completes it.
    """

    root: DataRoot
    _folder: Path | None = None
    _lock: Lock | None = None
    _parts: dict[tuple[Kind, str, str], list[_Part]] = field(default_factory=dict)
    _count: int = 0

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def add(self, kind: Kind, symbol: str, frame: pl.DataFrame, source: int = 0) -> None:
        """Stage rows. Raises HistoryError for rows that are not usable, UnsafeNameError for the symbol."""
        safe_symbol(symbol)
        frame = require_schema(frame, kind)
        if frame.is_empty():
            return
        times = frame["timestamp"].to_physical()
        first, last = int(times.min()), int(times.max())  # type: ignore[arg-type]
        for number in range(first // NS_PER_DAY, last // NS_PER_DAY + 1):
            low = number * NS_PER_DAY
            if low <= first and last < low + NS_PER_DAY:
                rows = frame
            else:
                rows = frame.filter((times >= low) & (times < low + NS_PER_DAY))
            if not rows.is_empty():
                self._stage(kind, symbol, date_key(low), rows, source)

    def _stage(self, kind: Kind, symbol: str, day: str, rows: pl.DataFrame, source: int) -> None:
        path = self._open() / f"{self._count}.arrow"
        self._count += 1
        rows.write_ipc(path, compression="uncompressed")
        times = rows["timestamp"].to_physical()
        part = _Part(path, int(times.min()), int(times.max()), rows.height, source)  # type: ignore[arg-type]
        self._parts.setdefault((kind, symbol, day), []).append(part)

    def commit(self) -> dict[tuple[Kind, str], Written]:
        """Merge all that was staged into the history; return what became of it by kind and symbol."""
        done: dict[tuple[Kind, str], Written] = {}
        if not self._parts:
            return _Everything(done)
        with lock(self.root.path / "history" / ".lock"):
            ready: list[tuple[Path, Path]] = []
            for (kind, symbol, day), parts in sorted(self._parts.items()):
                target = self.root.history(kind, symbol, day)
                merged = self._open() / f"{kind}-{len(ready)}.parquet"
                old = done.get((kind, symbol), Written(0, 0, 0))
                new = _merge_day(kind, symbol, day, parts, target, merged)
                done[kind, symbol] = Written(*(a + b for a, b in zip(old, new, strict=True)))
                if new.added:  # else the file stays unchanged, byte for byte
                    ready.append((merged, target))
            for merged, target in ready:
                target.parent.mkdir(parents=True, exist_ok=True)
                merged.replace(target)
            for folder in {target.parent for _, target in ready}:
                sync_folder(folder)
        return _Everything(done)

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


def _merge_day(kind: Kind, symbol: str, day: str, parts: list[_Part], target: Path, merged: Path) -> Written:
    """Write the union of ``parts`` and the file of the day to ``merged``, sorted."""
    existing = pl.scan_parquet(target) if target.exists() else None
    old_rows = 0 if existing is None else int(existing.select(pl.len()).collect().item())
    new_rows = sum(part.rows for part in parts)
    slices = -(-(old_rows + new_rows) // _SLICE_ROWS[kind])
    start = parse_ns(day)
    width = -(-NS_PER_DAY // slices)
    total = 0
    writer: pq.ParquetWriter | None = None
    try:
        for number in range(slices):
            low, high = start + number * width, start + (number + 1) * width
            rows = _union(kind, symbol, _read_slice(parts, existing, low, high, whole=slices == 1))
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
    _sync(merged)
    added = total - old_rows
    return Written(new_rows, added, new_rows - added)


def _read_slice(
    parts: list[_Part], existing: pl.LazyFrame | None, low: int, high: int, *, whole: bool
) -> list[pl.DataFrame]:
    frames = []
    time = pl.col("timestamp").dt.timestamp("ns")
    inside = (time >= low) & (time < high)
    if existing is not None:
        old = (existing if whole else existing.filter(inside)).collect()
        frames.append(old.with_columns(pl.lit(_EXISTING, pl.Int32).alias(_SOURCE)))
    for part in parts:
        if part.last < low or part.first >= high:
            continue
        frame = pl.read_ipc(part.path)
        if part.first < low or part.last >= high:
            frame = frame.filter(inside)
        frames.append(frame.with_columns(pl.lit(part.source, pl.Int32).alias(_SOURCE)))
    return frames


def _union(kind: Kind, symbol: str, frames: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all sources, each once, in order. Sources come with the one that wins first."""
    if not frames:
        return pl.DataFrame(schema=SCHEMAS[kind])
    rows = pl.concat(frames)
    several = rows[_SOURCE].n_unique() > 1
    if kind == "trades":
        named = rows["trade_id"].is_not_null()
        if named.all():
            rows = _unique_ids(rows, symbol)
        elif not named.any():
            rows = _unique_content(kind, rows, several)
        else:
            rows = pl.concat(
                [_unique_ids(rows.filter(named), symbol), _unique_content(kind, rows.filter(~named), several)]
            )
    else:
        rows = _unique_content(kind, rows, several)
    rows = rows.drop(_SOURCE)
    if _in_order(rows, strictly=several):
        return rows
    # Whatever the order of imports, ties come out the same. Within one source they keep its order.
    ties = (["trade_id", "price", "qty", "side"] if kind == "trades" else ["kind"]) if several else []
    return rows.sort(["timestamp", "seq", *ties], maintain_order=True, nulls_last=True)


def _unique_ids(rows: pl.DataFrame, symbol: str) -> pl.DataFrame:
    # Where the sequence is the id, whole numbers are compared and not texts.
    key = "seq" if bool((rows["trade_id"] == rows["seq"].cast(pl.String)).all()) else "trade_id"
    if key == "seq" and bool((rows["seq"].diff() > 0).all()):
        return rows
    if rows[key].n_unique() == rows.height:
        return rows
    first = rows[key].is_first_distinct()
    unique, again = rows.filter(first), rows.filter(~first)
    columns = [key, "price", "qty", "side"]
    pairs = again.select(columns).join(unique.select(columns), on=key, how="left", maintain_order="left")
    differ = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_right")) for name in columns[1:])
    contrary = pairs.filter(differ)
    if not contrary.is_empty():
        one = contrary.row(0, named=True)
        shown = [tuple(one[f"{name}{end}"] for name in columns[1:]) for end in ("_right", "")]
        raise HistoryError(
            f"{symbol}: trade id {one[key]} names different trades, and so do {contrary.height - 1} more: price, "
            f"qty, side are {shown[0]} and {shown[1]}. Aggregated trades, or those of another market, belong under a "
            "symbol name of their own"
        )
    return unique


def _unique_content(kind: Kind, rows: pl.DataFrame, several: bool) -> pl.DataFrame:
    if not several:
        return rows
    key = _CONTENT[kind]
    if kind == "funding":
        _refuse_two_rates(rows)
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


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
