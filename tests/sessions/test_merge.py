"""Sorting rows with bounded memory gives what sorting them at once gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.sessions.build import RowSorter
from replaylab.sessions.sources import ROW_SCHEMA, SORT_KEYS, iso_strings, json_lines
from replaylab.timestamps import iso

ROWS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.integers(0, 5),
        st.sampled_from(["A", "B"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


def frame(rows: list[tuple[int, int, str, int]]) -> pl.DataFrame:
    full = [
        (ts, rank, symbol, seq, "T", str(ts), f'{{"n":{n}}}')
        for n, (ts, rank, symbol, seq) in enumerate(rows)
    ]
    return pl.DataFrame(full, schema=ROW_SCHEMA, orient="row")


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 8))
def test_parts_on_disk_change_nothing(rows: list[tuple[int, int, str, int]], size: int) -> None:
    """Any cut into pieces, each spilled to disk, gives the stable sort of all rows; slices share no timestamp."""
    whole = frame(rows)
    with tempfile.TemporaryDirectory() as folder:
        sorter = RowSorter(Path(folder), memory_bytes=0)
        for piece in whole.iter_slices(size):
            sorter.add(piece)
        slices = list(sorter.sorted_slices())
        assert len(list(Path(folder).iterdir())) == -(-len(rows) // size)
    assert sorter.rows == whole.height
    times = [set(piece["ts"].to_list()) for piece in slices]
    assert sum(map(len, times)) == len(set().union(*times))
    assert pl.concat([whole.clear(), *slices]).equals(whole.sort(SORT_KEYS, maintain_order=True))


@given(st.lists(st.integers(-(10**17), 10**18), min_size=64, max_size=80))
def test_columns_of_times_are_written_like_single_times(values: list[int]) -> None:
    assert iso_strings(pl.Series(values, dtype=pl.Int64)).to_list() == [iso(value) for value in values]


def test_types_are_escaped() -> None:
    rows = frame([(1, 0, "A", 0)]).with_columns(type=pl.lit('a"b\\'))
    assert json_lines(rows) == b'{"timestamp":"1","type":"a\\"b\\\\","symbol":"A","payload":{"n":0}}\n'
