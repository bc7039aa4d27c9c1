"""Sort rows of any number by time with bounded memory: sorted parts on disk, merged one time slice after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from replaylab.sessions.rows import ROW_SCHEMA, SORT_KEYS

__all__ = ["RowSorter"]

_ROW_GROUP = 16_384


@dataclass(frozen=True)
class _Part:
    """One sorted file: where it is, and every ``_ROW_GROUP``-th of its timestamps."""

    path: Path
    first: int
    last: int
    samples: list[int]


class RowSorter:
    """Takes frames of rows in any order and gives them back sorted, slice by slice.

    >>> sorter = RowSorter(folder, memory_bytes=192_000_000)    # doctest: +SKIP
    >>> sorter.add(rows)                                        # doctest: +SKIP
    >>> for slice_ in sorter.sorted_slices(): ...               # doctest: +SKIP

    Up to ``memory_bytes`` rows stay in memory; beyond that they are sorted and written to ``folder`` as parts.
    Two slices never share a timestamp, so the order of slices is the order of the session.
    """

    def __init__(self, folder: Path, memory_bytes: int = 128_000_000) -> None:
        self._folder = folder
        self._limit = memory_bytes
        self._held: list[pl.DataFrame] = []
        self._held_bytes = 0
        self._parts: list[_Part] = []
        self.rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take a frame of ``ROW_SCHEMA``."""
        if rows.is_empty():
            return
        self.rows += rows.height
        self._held.append(rows)
        self._held_bytes += int(rows.estimated_size())
        if self._held_bytes > self._limit:
            self._spill()

    def sorted_slices(self) -> Iterator[pl.DataFrame]:
        """Yield all rows in session order."""
        if not self._parts:
            yield self._sorted_held()
            return
        if self._held:
            self._spill()
        edges = self._edges()
        for low, high in zip([None, *edges], [*edges, None], strict=True):
            pieces = [
                self._read(part, low, high)
                for part in self._parts
                if (high is None or part.first < high) and (low is None or part.last >= low)
            ]
            if pieces:
                yield _in_order(pl.concat(pieces))

    def _sorted_held(self) -> pl.DataFrame:
        frame = pl.concat(self._held) if self._held else pl.DataFrame(schema=ROW_SCHEMA)
        self._held, self._held_bytes = [], 0
        return _in_order(frame)

    def _spill(self) -> None:
        frame = self._sorted_held()
        path = self._folder / f"part-{len(self._parts):05d}.parquet"
        frame.write_parquet(path, compression="lz4", row_group_size=_ROW_GROUP, statistics=True)
        times = frame["ts"]
        self._parts.append(_Part(path, times[0], times[-1], times.gather_every(_ROW_GROUP).to_list()))

    def _edges(self) -> list[int]:
        """Return the times between slices, about as many rows apart as one part holds, and fewer rows at most."""
        samples = sorted(time for part in self._parts for time in part.samples)
        per_slice = max(1, len(samples) // (len(self._parts) * 2))
        return sorted(set(samples[per_slice::per_slice]))

    @staticmethod
    def _read(part: _Part, low: int | None, high: int | None) -> pl.DataFrame:
        rows = pl.scan_parquet(part.path)
        if low is not None:
            rows = rows.filter(pl.col("ts") >= low)
        if high is not None:
            rows = rows.filter(pl.col("ts") < high)
        return rows.collect()


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(SORT_KEYS, maintain_order=True)
