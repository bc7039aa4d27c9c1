"""Market events straight from the tapes, in session order, without a session on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from replaylab.paths import DataRoot
from replaylab.sessions.merge import RowSorter
from replaylab.sessions.options import BuildOptions
from replaylab.sessions.sources import Sources
from replaylab.timestamps import iso

__all__ = ["market_rows"]


def market_rows(root: DataRoot, start: int, end: int, symbols: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield MARKET_TRADE and MARKET_BOOK rows (columns of ``rows.ROW_SCHEMA``), a bounded piece at a time.

    >>> for rows in market_rows(root, start_ns, end_ns, ["BTCUSDT"]): ...        # doctest: +SKIP

    The order is that of a session over the same range, so what a simulation decides on these rows a replay of the
    session decides again.
    """
    options = BuildOptions.check(iso(start), iso(end), symbols, ["MARKET_*"], None)
    with tempfile.TemporaryDirectory(prefix="replaylab-sort-") as folder:
        sorter = RowSorter(Path(folder))
        for rows in Sources(root, options).market_rows():
            sorter.add(rows)
        yield from sorter.sorted_slices()
