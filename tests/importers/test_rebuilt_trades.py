"""Closed trades rebuilt from fills: average cost against unit lots, fees in other currencies, overlapping pages."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from replaylab import frames
from replaylab.errors import HistoryError
from replaylab.history import write_trades
from replaylab.importers import ImportReport, import_logs
from replaylab.importers.rebuilt_trades import rebuild_trades
from replaylab.timestamps import parse_ns

T0 = 1_735_689_600_000  # 2025-01-01T00:00:00Z in ms


def fills_of(rows: list[tuple[str, float, float, float]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=["side", "price", "qty", "fee"], orient="row").with_row_index("row")
    nothing = pl.lit(None, pl.String)
    return frame.with_columns(
        timestamp=pl.col("row").cast(pl.Int64) * 1_000_000_000 + parse_ns("2025-01-01"),
        symbol=pl.lit("ABCUSDT"),
        strategy=nothing,
        fee_currency=nothing,
        position_side=nothing,
        mode=nothing,
        leverage=pl.lit(None, pl.Float64),
    )


def lots(rows: list[tuple[str, float, float, float]]) -> Iterator[float]:
    """The oracle: lots of one unit each, all at the average price of the position; a trade ends when none is left."""
    held: list[float] = []
    pnl = 0.0
    for side, price, qty, fee in rows:
        for _ in range(round(qty)):
            sign = 1.0 if side == "BUY" else -1.0
            pnl -= fee / qty
            if held and held[0] * sign < 0:
                average = sum(map(abs, held)) / len(held)
                direction = math.copysign(1.0, held[0])
                held.pop()
                held = [direction * average] * len(held)
                pnl += direction * (price - average)
                if not held:
                    yield pnl
                    pnl = 0.0
            else:
                held.append(sign * price)


@pytest.mark.parametrize("seed", range(40))
def test_rebuilt_trades_are_those_of_average_cost(seed: int) -> None:
    """PnL of every trade equals that of unit lots at average cost, through scaling, partial closes and flips."""
    rng = np.random.default_rng(seed)
    rows, held = [], 0.0
    for _ in range(80):
        side = "BUY" if rng.random() < (0.75 if held < 0 else 0.25) else "SELL"
        qty = float(rng.integers(1, 6))
        held += qty if side == "BUY" else -qty
        rows.append((side, float(rng.uniform(90, 110)), qty, float(rng.uniform(0, 1))))
    report = ImportReport("fills", "source")
    found = rebuild_trades(fills_of(rows), report)
    expected = list(lots(rows))
    assert len(expected) > 2
    assert found["realized_pnl"].to_list() == pytest.approx(expected, abs=1e-8)
    direction = pl.when(pl.col("side") == "LONG").then(1.0).otherwise(-1.0)
    gross = found.select(
        direction * (pl.col("close_price") - pl.col("entry_price")) * pl.col("qty") - pl.col("fees")
    )
    assert gross.to_series().to_list() == pytest.approx(found["realized_pnl"].to_list(), abs=1e-8)


def test_spot_fees_in_the_base_currency_reduce_the_position() -> None:
    frame = fills_of([("BUY", 100.0, 1.0, 0.001), ("SELL", 110.0, 0.999, 0.1)]).with_columns(
        fee_currency=pl.Series(["ABC", "USDT"])
    )
    found = rebuild_trades(frame, ImportReport("fills", "source"))
    assert found["realized_pnl"].to_list() == pytest.approx([0.999 * 10.0 - 0.1 - 0.1], abs=1e-9)


def binance_fill(k: int, side: str, price: str, fee: str = "0.5", asset: str = "USDT") -> dict[str, Any]:
    return {
        "id": k,
        "orderId": 100 + k,
        "symbol": "BTCUSDT",
        "side": side,
        "positionSide": "BOTH",
        "price": price,
        "qty": "1",
        "commission": fee,
        "commissionAsset": asset,
        "realizedPnl": "0",
        "time": T0 + 60_000 * k,
        "maker": False,
    }


def income(k: int, kind: str, amount: str) -> dict[str, Any]:
    return {"symbol": "BTCUSDT", "incomeType": kind, "income": amount, "asset": "USDT", "time": T0 + k}


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_income_beside_the_user_trades_is_their_funding(tmp_path: Path) -> None:
    fills = saved(
        tmp_path / "userTrades.json", [binance_fill(0, "BUY", "100"), binance_fill(2, "SELL", "110")]
    )
    paid = saved(
        tmp_path / "income.json", [income(60_000, "FUNDING_FEE", "-0.25"), income(0, "COMMISSION", "-0.5")]
    )
    for preset in ("binance-user-trades", "binance-income"):
        root = tmp_path / preset
        import_logs(root, [fills, paid], preset)
        trades = frames.load_trades(root).frame
        assert trades.select("realized_pnl", "funding").rows() == [(10.0 - 1.0 - 0.25, -0.25)]


def test_income_alone_is_refused(tmp_path: Path) -> None:
    paid = saved(tmp_path / "income.json", [income(60_000, "FUNDING_FEE", "-0.25")])
    with pytest.raises(HistoryError, match="import them together with the trades or fills"):
        import_logs(tmp_path / "data", paid, "binance-income")
    assert not (tmp_path / "data" / "trades").exists()


def test_funding_that_is_known_later_does_not_repeat_a_trade(tmp_path: Path) -> None:
    fills = saved(
        tmp_path / "userTrades.json", [binance_fill(0, "BUY", "100"), binance_fill(2, "SELL", "110")]
    )
    paid = saved(tmp_path / "income.json", [income(60_000, "FUNDING_FEE", "-0.25")])
    import_logs(tmp_path / "data", fills, "binance-user-trades")
    report = import_logs(tmp_path / "data", [fills, paid], "binance-user-trades")
    assert frames.load_trades(tmp_path / "data").frame["realized_pnl"].to_list() == [9.0]
    assert any("1 trades are in the log with another PnL" in note for note in report.notes)


def test_several_files_are_one_answer_and_may_overlap(tmp_path: Path) -> None:
    rows = [binance_fill(k, "BUY" if k % 2 == 0 else "SELL", str(100 + k)) for k in range(6)]
    pages = [saved(tmp_path / "p1.json", rows[:4]), saved(tmp_path / "p2.json", rows[2:])]
    report = import_logs(tmp_path / "data", pages, "binance-user-trades")
    assert frames.load_trades(tmp_path / "data").frame["realized_pnl"].to_list() == [0.0, 0.0, 0.0]
    assert any("2 rows are in several files" in note for note in report.notes)
    # Overlapping pages in one file.
    saved(tmp_path / "all.json", rows[:4] + rows[2:])
    import_logs(tmp_path / "one", tmp_path / "all.json", "binance-user-trades")
    assert frames.load_trades(tmp_path / "one").frame.equals(frames.load_trades(tmp_path / "data").frame)


def test_a_fee_in_a_third_currency_is_converted_at_known_prices(tmp_path: Path) -> None:
    rows = [binance_fill(0, "BUY", "100"), binance_fill(2, "SELL", "110", "0.001", "BNB")]
    path = saved(tmp_path / "userTrades.json", rows)
    start = parse_ns("2025-01-01")
    prices = pl.DataFrame(
        {"timestamp": [start, start + 180_000_000_000], "price": [600.0, 900.0], "qty": [1.0, 1.0]}
    )
    write_trades(
        tmp_path / "data", "BNBUSDT", prices.with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
    )
    report = import_logs(tmp_path / "data", path, "binance-user-trades")
    trades = frames.load_trades(tmp_path / "data").frame
    assert trades["fees"].to_list() == pytest.approx([0.5 + 0.6])
    assert trades["realized_pnl"].to_list() == pytest.approx([10.0 - 1.1])
    assert any("1 fills in BNB were converted" in note for note in report.notes)
    report = import_logs(tmp_path / "bare", path, "binance-user-trades")
    assert frames.load_trades(tmp_path / "bare").frame["fees"].to_list() == [None]
    assert any("import the prices" in note for note in report.notes)


def test_equal_trades_without_an_id_are_two_records(tmp_path: Path) -> None:
    """Two closes of one size at one moment both count; a second import adds neither again."""
    path = tmp_path / "trades.csv"
    row = "2025-01-01T00:01:00Z,2025-01-01T00:00:00Z,BTCUSDT,LONG,100,101,1,1.0"
    path.write_text("closed_at,opened_at,symbol,side,entry_price,close_price,qty,pnl\n" + f"{row}\n" * 2)
    names = ("symbol", "side", "entry_price", "close_price", "qty")
    columns = {
        "timestamp": "closed_at",
        "entry_time": "opened_at",
        "realized_pnl": "pnl",
        **{n: n for n in names},
    }
    for _ in range(2):
        import_logs(tmp_path / "data", path, mapping={"trades": {"columns": columns}})
        assert frames.load_trades(tmp_path / "data").frame["realized_pnl"].to_list() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bot.sqlite", b"SQLite format 3\0" + bytes(range(256)) * 40, "cannot be read as SQLite"),
        ("fills.parquet", b"PAR1" + bytes(5000) + b"PAR1", "cannot be read as Parquet"),
        ("fills.json", b"[]", "holds no rows"),
        ("fills.json", b'{"result": {"list": []}}', "holds no rows"),
    ],
)
def test_damaged_and_empty_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HistoryError, match=message):
        import_logs(tmp_path / "data", tmp_path / name, "ccxt-trades")


def test_columns_of_a_table_that_two_sections_read(tmp_path: Path) -> None:
    """Unmapped is what neither section names; a table that no section reads is noted."""
    fill = {
        "execType": "Trade",
        "execTime": str(T0),
        "symbol": "BTCUSDT",
        "execId": "1",
        "orderId": "o",
        "side": "Buy",
    }
    fill |= {
        "execPrice": "100",
        "execQty": "1",
        "execFee": "0",
        "feeCurrency": "USDT",
        "isMaker": False,
        "seq": 7,
    }
    saved(tmp_path / "executions.json", [fill, {**fill, "execId": "2", "side": "Sell"}])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    report = import_logs(
        tmp_path / "data", [tmp_path / "executions.json", tmp_path / "other.csv"], "bybit-executions"
    )
    assert report.unmapped == {"executions": ["seq"]}
    assert any("not used: other" in note for note in report.notes)
