"""History on disk: schema, order, half-open reads, merging, and that nothing is half written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replaylab import history
from replaylab.errors import HistoryError, UnsafeNameError
from replaylab.history import writing
from replaylab.timestamps import NS_PER_DAY, parse_ns

DAY = parse_ns("2025-11-18")


def trades(rows: list[tuple[int, float, float, str | None, str | None]]) -> pl.DataFrame:
    """Trades of (ns after the day's start, price, qty, side, id)."""
    schema = {
        "timestamp": pl.Int64,
        "price": pl.Float64,
        "qty": pl.Float64,
        "side": pl.String,
        "trade_id": pl.String,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.with_columns((pl.col("timestamp") + DAY).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC"))


def stored(root: Path, symbol: str = "BTCUSDT") -> pl.DataFrame:
    return history.scan_trades(root, symbol).collect()


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.parquet")}


def test_rows_come_back_exactly_in_their_schema(tmp_path: Path) -> None:
    frame = trades([(1, 0.1 + 0.2, 1e-9, "BUY", "a"), (999_999_999, 91_500.5, 3.0, None, None)])
    assert history.write_trades(tmp_path, "BTCUSDT", frame) == (2, 2, 0)
    found = stored(tmp_path)
    assert dict(found.schema) == dict(history.TRADES_SCHEMA)
    assert found["timestamp"].to_physical().to_list() == [DAY + 1, DAY + 999_999_999]
    assert found["price"].to_list() == [0.1 + 0.2, 91_500.5]
    assert found["seq"].to_list() == [0, 1]
    assert found["off_market"].to_list() == [False, False]


def test_ties_keep_the_order_of_the_source(tmp_path: Path) -> None:
    frame = trades([(5, 3.0, 1.0, "BUY", None), (5, 1.0, 1.0, "BUY", None), (2, 9.0, 1.0, "BUY", None)])
    history.write_trades(tmp_path, "BTCUSDT", frame)
    assert stored(tmp_path)["price"].to_list() == [9.0, 3.0, 1.0]


def test_days_are_files_and_reads_are_half_open(tmp_path: Path) -> None:
    frame = trades(
        [
            (0, 1.0, 1.0, None, None),
            (NS_PER_DAY - 1, 2.0, 1.0, None, None),
            (NS_PER_DAY, 3.0, 1.0, None, None),
        ]
    )
    history.write_trades(tmp_path, "BTCUSDT", frame)
    assert history.days(tmp_path, "trades", "BTCUSDT") == ["2025-11-18", "2025-11-19"]
    assert history.coverage(tmp_path, "trades", "BTCUSDT") == (DAY, DAY + NS_PER_DAY, 3)
    inside = history.scan_trades(tmp_path, "BTCUSDT", "2025-11-18", "2025-11-19").collect()
    assert inside["price"].to_list() == [1.0, 2.0]
    assert history.scan_trades(tmp_path, "BTCUSDT", DAY + NS_PER_DAY).collect()["price"].to_list() == [3.0]
    assert history.scan_trades(tmp_path, "BTCUSDT", "2025-11-20").collect().is_empty()


def test_a_symbol_without_history_is_an_empty_frame_of_the_same_columns(tmp_path: Path) -> None:
    assert dict(history.scan_book(tmp_path, "NONE").collect().schema) == dict(history.BOOK_SCHEMA)
    assert history.coverage(tmp_path, "book", "NONE") is None
    assert history.symbols(tmp_path) == []
    with pytest.raises(UnsafeNameError):
        history.scan_trades(tmp_path, "../x")


def test_book_levels_come_back(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series([DAY, DAY + 1]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC"),
            "kind": ["snapshot", "delta"],
            "bids": history.level_lists([1.0, 2.0, 0.5, 3.0], [2, 0]),
            "asks": history.level_lists([1.5, 0.0], [0, 1]),
        }
    )
    assert history.write_book(tmp_path, "BTCUSDT", frame).added == 2
    assert history.write_book(tmp_path, "BTCUSDT", frame).added == 0
    found = history.scan_book(tmp_path, "BTCUSDT").collect()
    assert found["bids"].to_list() == [[[1.0, 2.0], [0.5, 3.0]], []]
    assert found["asks"].to_list() == [[], [[1.5, 0.0]]]
    assert history.symbols(tmp_path, "book") == ["BTCUSDT"]
    assert history.symbols(tmp_path, "trades") == []


row = st.tuples(
    st.integers(0, 3),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(["BUY", None]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(row, max_size=8), second=st.lists(row, max_size=8))
def test_without_ids_merging_is_the_union_of_multisets(
    tmp_path_factory: pytest.TempPathFactory, first: list, second: list
) -> None:
    """Each row occurs as often as in the source where it occurs most; in either order; again changes no byte."""
    one, two = (trades([(*row, None) for row in rows]) for rows in (first, second))
    roots = [tmp_path_factory.mktemp("merge") for _ in range(2)]
    for root, sources in zip(roots, ((one, two), (two, one)), strict=True):
        for source in (*sources, *sources):
            history.write_trades(root, "X", source)
        before = files(root)
        history.write_trades(root, "X", one)
        assert files(root) == before
    columns = ["timestamp", "price", "qty", "side"]
    expected = {}
    for rows in (first, second):
        for key in {*rows}:
            expected[key] = max(expected.get(key, 0), rows.count(key))
    for root in roots:
        found = stored(root, "X").select(columns)
        counts = {}
        for time, price, qty, side in found.with_columns(pl.col("timestamp").to_physical() - DAY).rows():
            counts[time, price, qty, side] = counts.get((time, price, qty, side), 0) + 1
        assert counts == expected


def test_with_ids_a_trade_is_there_once_and_ids_may_be_numbers_or_texts(tmp_path: Path) -> None:
    for symbol, ids in (("NUM", ["7", "8", "8", "9"]), ("TXT", ["b", "a", "a", "c"])):
        frame = trades([(number, 1.0, 1.0, "BUY", ids[number]) for number in range(4)])
        frame = frame.with_columns(
            seq=pl.col("trade_id").cast(pl.Int64) if symbol == "NUM" else pl.Series(range(4))
        )
        assert history.write_trades(tmp_path, symbol, frame) == (4, 3, 1)
        assert history.write_trades(tmp_path, symbol, frame[1:]) == (3, 0, 3)
        assert stored(tmp_path, symbol)["trade_id"].to_list() == [ids[0], ids[1], ids[3]]


@pytest.mark.parametrize("ids", [["5", "5"], ["x", "x"]])
def test_an_id_with_two_prices_is_refused_and_nothing_changes(tmp_path: Path, ids: list[str]) -> None:
    history.write_trades(tmp_path, "BTCUSDT", trades([(0, 1.0, 1.0, "BUY", ids[0])]))
    before = files(tmp_path)
    with pytest.raises(HistoryError, match=r"trade id .* names different trades.*1\.0.*2\.0"):
        history.write_trades(tmp_path, "BTCUSDT", trades([(0, 2.0, 1.0, "BUY", ids[1])]))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": 0.0}, "price above 0"),
        ({"price": float("nan")}, "price above 0"),
        ({"qty": -1.0}, "quantity of 0 or more"),
        ({"side": "Buy"}, "BUY, SELL or null"),
        ({"timestamp": None}, "lack a timestamp"),
        ({"colour": 1}, "no column 'colour'"),
    ],
)
def test_rows_that_are_not_usable_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    frame = trades([(0, 1.0, 1.0, "BUY", None)])
    frame = frame.with_columns(
        pl.lit(value, dtype=frame.schema.get(name)).alias(name) for name, value in change.items()
    )
    with pytest.raises(HistoryError, match=message):
        history.write_trades(tmp_path, "BTCUSDT", frame)
    assert not (tmp_path / "history" / "trades").exists()


def test_staged_rows_change_nothing_until_the_commit(tmp_path: Path) -> None:
    root = history.writing.DataRoot(tmp_path)
    with history.Staging(root) as staging:
        staging.add("trades", "BTCUSDT", trades([(0, 1.0, 1.0, None, None)]))
        assert history.symbols(tmp_path) == []
    assert history.symbols(tmp_path) == []
    assert list((tmp_path / "history" / ".staging").iterdir()) == []


def test_what_a_dead_import_left_is_swept_away_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "history" / ".staging" / "dead"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "0.arrow").write_bytes(b"x")
    alive = history.Staging(history.writing.DataRoot(tmp_path))
    alive.add("trades", "A", trades([(0, 1.0, 1.0, None, None)]))
    assert not left.exists()
    history.write_trades(tmp_path, "B", trades([(0, 1.0, 1.0, None, None)]))
    assert alive.commit()["trades", "A"].added == 1, "a staging that is in use is left alone"
    alive.discard()


def test_a_day_that_is_merged_in_slices_is_the_same_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices bound the memory; they must not show in the result."""
    rows = [
        (number * 7_919_000_000_000 % NS_PER_DAY, 1.0 + number % 5, 1.0, "BUY", str(number))
        for number in range(500)
    ]
    whole, sliced = tmp_path / "whole", tmp_path / "sliced"
    history.write_trades(whole, "X", trades(rows))
    monkeypatch.setitem(writing._SLICE_ROWS, "trades", 60)
    for part in (rows[:300], rows[200:]):
        history.write_trades(sliced, "X", trades(part).with_columns(seq=pl.col("trade_id").cast(pl.Int64)))
    assert stored(sliced, "X").drop("seq").equals(stored(whole, "X").drop("seq"))
    assert stored(sliced, "X")["timestamp"].is_sorted()


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Each merges into the same day file; a lock makes them take turns."""
    parts = [
        trades([(100 * part + number, 1.0, 1.0, "BUY", f"{part}-{number}") for number in range(50)])
        for part in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(lambda part: history.write_trades(tmp_path, "X", part).added, parts))
    assert added == [50] * 6
    assert stored(tmp_path, "X").height == 300


def funding(*rows: tuple[str, float, float | None]) -> pl.DataFrame:
    times, rates, marks = zip(*rows, strict=True)
    return pl.DataFrame(
        {
            "timestamp": pl.Series(times).str.to_datetime(time_unit="ns", time_zone="UTC"),
            "funding_rate": pl.Series(rates, dtype=pl.Float64),
            "mark_price": pl.Series(marks, dtype=pl.Float64),
        }
    )


def test_funding_is_kept_once_and_a_second_rate_is_refused(tmp_path: Path) -> None:
    rows = funding(("2025-11-18T08:00:00Z", 0.0001, None), ("2025-11-18T16:00:00Z", -0.0002, 91_500.0))
    assert history.write_funding(tmp_path, "BTC/USDT:USDT", rows) == (2, 2, 0)
    assert history.write_funding(tmp_path, "BTC/USDT:USDT", rows) == (2, 0, 2)
    assert history.symbols(tmp_path, "funding") == ["BTC/USDT:USDT"]
    kept = history.scan_funding(tmp_path, "BTC/USDT:USDT", "2025-11-18T10:00").collect()
    assert kept.select("funding_rate", "mark_price").rows() == [(-0.0002, 91_500.0)]
    with pytest.raises(HistoryError, match="two rates"):
        history.write_funding(tmp_path, "BTC/USDT:USDT", funding(("2025-11-18T08:00:00Z", 0.0002, None)))
    with pytest.raises(HistoryError, match="finite funding rate"):
        history.write_funding(tmp_path, "A", funding(("2025-11-18T08:00:00Z", float("nan"), None)))


def test_a_symbol_that_differs_from_another_only_in_case_is_refused(tmp_path: Path) -> None:
    """In one import and in the next; a symbol that is stored is imported again."""
    frame = trades([(1, 1.0, 1.0, "BUY", "a")])
    with writing.Staging(writing.DataRoot(tmp_path)) as staging:
        staging.add("trades", "BTCUSDT", frame)
        with pytest.raises(UnsafeNameError, match="'btcusdt' differs from 'BTCUSDT'"):
            staging.add("trades", "btcusdt", frame)
    history.write_trades(tmp_path, "BTCUSDT", frame)
    with pytest.raises(UnsafeNameError, match=r"'BtcUsdt' differs from 'BTCUSDT'.*only in case"):
        history.write_trades(tmp_path, "BtcUsdt", frame)
    assert history.write_trades(tmp_path, "BTCUSDT", frame).duplicates == 1
    assert history.symbols(tmp_path) == ["BTCUSDT"]
