"""Presets of known programs and exchanges: freqtrade, ccxt, Bybit, Binance, hummingbot."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab import frames
from replaylab.errors import HistoryError
from replaylab.importers import PRESETS, import_logs

T0 = 1_735_689_600_000  # 2025-01-01T00:00:00Z in ms


def ccxt_trade(
    k: int, side: str, price: float, amount: float, fee: float, currency: str = "USDT"
) -> dict[str, Any]:
    return {
        "id": str(k),
        "order": f"o{k}",
        "timestamp": T0 + k * 1000,
        "symbol": "BTC/USDT:USDT",
        "type": None,
        "side": side,
        "takerOrMaker": "taker",
        "price": price,
        "amount": amount,
        "cost": price * amount,
        "fee": {"cost": fee, "currency": currency},
        "info": {"secret": "s-1"},
    }


def test_ccxt_trades(tmp_path: Path) -> None:
    """Two fills in, one out with a flip, one out: two closed trades."""
    rows = [
        ccxt_trade(0, "buy", 100.0, 1.0, 0.05),
        ccxt_trade(1, "buy", 102.0, 1.0, 0.05),
        ccxt_trade(2, "sell", 103.0, 3.0, 0.15),
        ccxt_trade(3, "buy", 101.0, 1.0, 0.05),
        ccxt_trade(4, "buy", 101.0, 1.0, 0.05),
    ]
    path = tmp_path / "trades.json"
    path.write_text(json.dumps(rows))
    report = import_logs(tmp_path / "data", path, "ccxt-trades")
    trades = frames.load_trades(tmp_path / "data").frame
    assert trades["side"].to_list() == ["LONG", "SHORT"]
    assert trades["entry_price"].to_list() == [101.0, 103.0]
    assert trades["realized_pnl"].to_list() == pytest.approx(
        [4.0 - 0.05 - 0.05 - 0.1, 2.0 - 0.05 - 0.05], abs=1e-12
    )
    assert trades["fees"].to_list() == pytest.approx([0.2, 0.1])
    assert any("open at the end" in note and "BTCUSDT" in note for note in report.notes)
    assert frames.load_orders(tmp_path / "data").frame["status"].to_list() == ["FILLED"] * 5


def test_ccxt_orders(tmp_path: Path) -> None:
    order = {
        "id": "1",
        "timestamp": T0,
        "lastTradeTimestamp": T0 + 70,
        "symbol": "ETH/USDT",
        "side": "sell",
        "type": "limit",
        "timeInForce": "PO",
        "price": 10.0,
        "average": 10.0,
        "amount": 2.0,
        "filled": 2.0,
        "remaining": 0.0,
        "cost": 20.0,
        "status": "closed",
        "reduceOnly": True,
        "triggerPrice": None,
    }
    other = {**order, "id": "2", "status": "canceled", "filled": 0.5, "lastTradeTimestamp": None}
    (tmp_path / "orders.json").write_text(json.dumps([order, other]))
    import_logs(tmp_path / "data", tmp_path / "orders.json", "ccxt-orders")
    found = frames.load_orders(tmp_path / "data").frame
    assert found["status"].to_list() == ["NEW", "CANCELED", "FILLED"]
    assert found["time_in_force"].unique().to_list() == ["PO"]
    assert found["reduce_only"].all()


def test_bybit_executions_with_funding_and_closed_pnl(tmp_path: Path) -> None:
    """Fills make the trade that Bybit's closed PnL names; funding goes to the trade that was open."""
    common = {
        "symbol": "XRPUSDT",
        "orderId": "o",
        "feeCurrency": "USDT",
        "isMaker": False,
        "stopOrderType": "",
    }
    executions = [
        common | {"execId": "1", "execType": "Trade", "execTime": str(T0), "side": "Sell", "execPrice": "2.0"}
        | {"execQty": "100", "execFee": "0.11"},
        common | {"execId": "2", "execType": "Funding", "execTime": str(T0 + 3000), "side": "Sell", "execPrice": "2.0"}
        | {"execQty": "100", "execFee": "-0.02"},
        common | {"execId": "3", "execType": "Trade", "execTime": str(T0 + 9000), "side": "Buy", "execPrice": "1.9"}
        | {"execQty": "100", "execFee": "0.1045"},
    ]  # fmt: skip
    path = tmp_path / "executions.json"
    path.write_text(json.dumps({"retCode": 0, "result": {"list": executions}}))
    import_logs(tmp_path / "data", path, "bybit-executions")
    trade = frames.load_trades(tmp_path / "data").frame.row(0, named=True)
    assert (trade["side"], trade["funding"]) == ("SHORT", 0.02)
    assert trade["realized_pnl"] == pytest.approx(10.0 - 0.11 - 0.1045 + 0.02, abs=1e-12)
    closed = {
        "symbol": "XRPUSDT",
        "side": "Buy",
        "closedSize": "100",
        "avgEntryPrice": "2.0",
        "avgExitPrice": "1.9",
        "closedPnl": "9.7855",
        "createdTime": str(T0),
        "updatedTime": str(T0 + 9000),
        "leverage": "5",
        "execType": "Trade",
        "orderId": "x",
    }
    other = tmp_path / "closed.json"
    other.write_text(json.dumps({"result": {"list": [closed]}}))
    import_logs(tmp_path / "own", other, "bybit-closed-pnl")
    own = frames.load_trades(tmp_path / "own").frame.row(0, named=True)
    assert (own["side"], own["realized_pnl"], own["leverage"]) == ("SHORT", 9.7855, 5.0)


def test_binance_user_trades_in_hedge_mode(tmp_path: Path) -> None:
    """Both sides of a hedge are books of their own; a fee in BNB leaves the trade's fees unknown, and says so."""

    def fill(k: int, side: str, position: str, price: str, qty: str, asset: str = "USDT") -> dict[str, Any]:
        return {
            "id": k,
            "orderId": 100 + k,
            "symbol": "BTCUSDT",
            "side": side,
            "positionSide": position,
            "price": price,
            "qty": qty,
            "quoteQty": "1",
            "commission": "0.5",
            "commissionAsset": asset,
            "realizedPnl": "0",
            "time": T0 + k,
            "maker": False,
            "buyer": side == "BUY",
        }

    rows = [
        fill(0, "BUY", "LONG", "100", "1"),
        fill(1, "SELL", "SHORT", "101", "2"),
        fill(2, "SELL", "LONG", "104", "1"),
        fill(3, "BUY", "SHORT", "100", "2", "BNB"),
    ]
    path = tmp_path / "userTrades.json"
    path.write_text(json.dumps(rows))
    report = import_logs(tmp_path / "data", path, "binance-user-trades")
    trades = frames.load_trades(tmp_path / "data").frame
    assert trades.select("side", "qty", "realized_pnl", "fees").rows() == [
        ("LONG", 1.0, 3.0, 1.0),
        ("SHORT", 2.0, 2.0, None),
    ]
    assert any("1 in BNB" in note for note in report.notes)


_HUMMINGBOT = """
CREATE TABLE "Order" (id TEXT PRIMARY KEY, config_file_path TEXT, strategy TEXT, market TEXT, symbol TEXT,
  base_asset TEXT, quote_asset TEXT, creation_timestamp BIGINT, order_type TEXT, amount {decimal}, leverage INTEGER,
  price {decimal}, last_status TEXT, last_update_timestamp BIGINT, exchange_order_id TEXT, position TEXT);
CREATE TABLE OrderStatus (id INTEGER PRIMARY KEY, order_id TEXT, timestamp BIGINT, status TEXT);
CREATE TABLE TradeFill (config_file_path TEXT, strategy TEXT, market TEXT, symbol TEXT, base_asset TEXT,
  quote_asset TEXT, timestamp BIGINT, order_id TEXT, trade_type TEXT, order_type TEXT, price {decimal},
  amount {decimal}, leverage INTEGER, trade_fee JSON, trade_fee_in_quote {decimal}, exchange_trade_id TEXT,
  position TEXT, PRIMARY KEY (market, order_id, exchange_trade_id));
CREATE TABLE FundingPayment (timestamp BIGINT PRIMARY KEY, config_file_path TEXT, market TEXT, rate FLOAT,
  symbol TEXT, amount FLOAT);
"""


class Hummingbot:
    """A database of its schema; ``unit``: how it stores decimals, whole millionths or (formerly) floats."""

    def __init__(self, path: Path, unit: float = 1_000_000) -> None:
        self.path, self.unit, self.count = path, unit, 0
        with closing(sqlite3.connect(path)) as database:
            database.executescript(_HUMMINGBOT.format(decimal="BIGINT" if unit > 1 else "FLOAT"))

    def run(self, sql: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as database, database:
            database.execute(sql, values)

    def order(self, name: str, side: str, statuses: list[str], price: float, *, kind: str = "LIMIT") -> None:
        base = ("conf.yml", "pmm", "binance", "ABC-USDT", "ABC", "USDT")
        amounts = (self.unit * 4, 1, self.unit * price)
        self.run(
            f'INSERT INTO "Order" VALUES ({", ".join("?" * 16)})',
            *(name, *base, T0, kind, *amounts, statuses[-1], T0 + 500, f"x-{name}", "NIL"),
        )
        for status in (f"{side.title()}OrderCreated", *statuses):
            self.run(
                "INSERT INTO OrderStatus (order_id, timestamp, status) VALUES (?, ?, ?)", name, T0, status
            )

    def fill(
        self,
        name: str,
        side: str,
        price: float,
        fee: Any,
        paid: float | None,
        *,
        amount: float = 4.0,
        **other: Any,
    ) -> None:
        self.count += 1
        given = {"strategy": "pmm", "market": "binance", "position": "NIL", **other}
        scaled = [None if value is None else self.unit * value for value in (price, amount, paid)]
        self.run(
            f"INSERT INTO TradeFill VALUES ({', '.join('?' * 17)})",
            *(
                "conf.yml",
                given["strategy"],
                given["market"],
                "ABC-USDT",
                "ABC",
                "USDT",
                T0 + 1000 * self.count,
            ),
            *(name, side, "LIMIT", scaled[0], scaled[1], 1, json.dumps(fee), scaled[2], f"t{self.count}"),
            given["position"],
        )


@pytest.mark.parametrize("unit", [1_000_000, 1])
def test_hummingbot(tmp_path: Path, unit: float) -> None:
    """Orders that never filled are orders; their side is in their first status; a fill without an order counts."""
    bot = Hummingbot(tmp_path / "hb.sqlite", unit)
    fee = {"fee_type": "AddedToCost", "percent": "0.001", "percent_token": "USDT", "flat_fees": []}
    bot.order("filled", "BUY", ["OrderFilled", "BuyOrderCompleted"], 2.5)
    bot.order("partly", "SELL", ["OrderFilled"], 2.6)
    bot.order("gone", "SELL", ["OrderCancelled"], 2.7)
    bot.order("failed", "BUY", ["OrderFailure"], 0.0, kind="MARKET")
    bot.order("late", "BUY", ["OrderExpired"], 2.4)
    bot.order("open", "SELL", ["SellOrderCreated"], 2.9)
    bot.fill("filled", "BUY", 2.5, fee, 0.01)
    bot.fill("partly", "SELL", 2.6, fee, 0.01, amount=1.0)
    bot.fill("unlisted", "SELL", 2.6, fee, 0.01, amount=3.0)
    bot.run(
        "INSERT INTO FundingPayment VALUES (?, 'conf.yml', 'binance', 0.0001, 'ABC-USDT', -0.05)", T0 + 1500
    )
    before = bot.path.read_bytes()
    report = import_logs(tmp_path / "data", bot.path, "hummingbot")
    assert bot.path.read_bytes() == before
    orders = frames.load_orders(tmp_path / "data").frame
    last = orders.group_by("client_order_id", maintain_order=True).last().sort("client_order_id")
    columns = ("client_order_id", "side", "type", "status", "price", "qty", "filled_qty", "avg_fill_price")
    assert last.select(columns).rows() == [
        ("failed", "BUY", "MARKET", "REJECTED", None, 4.0, 0.0, None),
        ("filled", "BUY", "LIMIT", "FILLED", 2.5, 4.0, 4.0, 2.5),
        ("gone", "SELL", "LIMIT", "CANCELED", 2.7, 4.0, 0.0, None),
        ("late", "BUY", "LIMIT", "EXPIRED", 2.4, 4.0, 0.0, None),
        ("open", "SELL", "LIMIT", "NEW", 2.9, 4.0, 0.0, None),
        ("partly", "SELL", "LIMIT", "PARTIALLY_FILLED", 2.6, 4.0, 1.0, 2.6),
        ("unlisted", "SELL", "MARKET", "FILLED", 2.6, 3.0, 3.0, 2.6),
    ]
    trade = frames.load_trades(tmp_path / "data").frame.row(0, named=True)
    assert (trade["symbol"], trade["qty"], trade["strategy"], trade["funding"]) == (
        "ABCUSDT",
        4.0,
        "pmm",
        -0.05,
    )
    assert trade["realized_pnl"] == pytest.approx(0.4 - 0.03 - 0.05, abs=1e-12)
    assert "1 fills are of orders that the source does not list" in report.notes
    assert "OrderStatus" not in str(report).replace("not used of OrderStatus", "")


@pytest.mark.parametrize(
    ("fee", "paid", "expected"),
    [
        # Taken from what was bought: 0.004 ABC.
        ({"fee_type": "DeductedFromReturns", "percent": "0.001", "flat_fees": []}, 0.01, 3.996),
        ({"percent": "0", "flat_fees": [{"token": "ABC", "amount": "0.004"}]}, 0.01, 3.996),
        # In another coin, as it was converted there; in the quote currency.
        ({"percent": "0", "flat_fees": [{"token": "BNB", "amount": "0.00002"}]}, 0.01, 4.0),
        ({"percent": "0.001", "percent_token": "USDT", "flat_fees": []}, None, 4.0),
    ],
)
def test_hummingbot_fees_in_coins(tmp_path: Path, fee: Any, paid: float | None, expected: float) -> None:
    bot = Hummingbot(tmp_path / "hb.sqlite")
    bot.fill("a", "BUY", 2.5, fee, paid)
    bot.fill("b", "SELL", 2.6, {"percent": "0", "flat_fees": []}, 0.0, amount=expected)
    import_logs(tmp_path / "data", bot.path, "hummingbot")
    (trade,) = frames.load_trades(tmp_path / "data").frame.rows(named=True)
    assert (trade["qty"], trade["fees"]) == (pytest.approx(expected), pytest.approx(0.01))


def test_hummingbot_books_that_must_not_mix(tmp_path: Path) -> None:
    """Two exchanges are refused until one is chosen; closing fills make each side a position of its own."""
    nothing = {"percent": "0", "flat_fees": []}
    two = Hummingbot(tmp_path / "two.sqlite")
    two.fill("a", "BUY", 2.5, nothing, 0.0)
    two.fill("b", "SELL", 2.6, nothing, 0.0, market="kucoin")
    with pytest.raises(HistoryError, match=r"several strategies: pmm@binance \(1 rows\), pmm@kucoin"):
        import_logs(tmp_path / "data", two.path, "hummingbot")
    hedge = Hummingbot(tmp_path / "hedge.sqlite")
    for name, side, price, position in (
        ("a", "BUY", 2.5, "OPEN"),
        ("b", "SELL", 2.6, "OPEN"),
        ("c", "SELL", 2.7, "CLOSE"),
        ("d", "BUY", 2.4, "CLOSE"),
    ):
        hedge.fill(name, side, price, nothing, 0.0, position=position)
    import_logs(tmp_path / "hedge", hedge.path, "hummingbot")
    trades = frames.load_trades(tmp_path / "hedge").frame.select("side", "entry_price", "close_price")
    assert trades.rows() == [("LONG", 2.5, 2.7), ("SHORT", 2.6, 2.4)]


def test_a_query_of_a_database(tmp_path: Path) -> None:
    """A mapping may join tables in SQL; what it reads counts as used, and it cannot write."""
    path = tmp_path / "bot.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(
            "CREATE TABLE pairs (id INTEGER, name TEXT); CREATE TABLE deals (pair INTEGER, at INTEGER, way TEXT, "
            "px REAL, size REAL, memo TEXT); INSERT INTO pairs VALUES (1, 'BTC/USDT');"
        )
        database.execute("INSERT INTO deals VALUES (1, ?, 'buy', 100.0, 1.0, 'm')", (T0,))
        database.execute("INSERT INTO deals VALUES (1, ?, 'sell', 101.0, 1.0, 'm')", (T0 + 1000,))
    query = "SELECT deals.*, pairs.name AS pair_name FROM deals JOIN pairs ON pairs.id = deals.pair"
    columns = {"timestamp": "at", "symbol": "pair_name", "side": "way", "price": "px", "qty": "size"}
    report = import_logs(tmp_path / "data", path, mapping={"fills": {"query": query, "columns": columns}})
    assert frames.load_trades(tmp_path / "data").frame["realized_pnl"].to_list() == [1.0]
    assert not any("tables of the source that are not used" in note for note in report.notes)
    for wrong in ("DELETE FROM deals", "SELECT 1; DELETE FROM deals", "SELECT missing FROM deals", ""):
        with pytest.raises(HistoryError, match=r"mapping\.fills\.query: bot\.sqlite"):
            import_logs(tmp_path / "x", path, mapping={"fills": {"query": wrong, "columns": columns}})
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT COUNT(*) FROM deals").fetchone() == (2,)


def test_contracts_of_ccxt(tmp_path: Path) -> None:
    """An amount in contracts is converted by what it cost; contracts of another kind are refused."""
    fills = [
        {"timestamp": T0 + k * 1000, "symbol": "BTC/USDT:USDT", "id": str(k), "order": str(k), "side": side}
        | {"price": price, "amount": 5.0, "cost": 5.0 * price * 0.01, "takerOrMaker": "taker"}
        for k, (side, price) in enumerate((("buy", 50_000.0), ("sell", 50_100.0)))
    ]
    path = tmp_path / "trades.json"
    path.write_text(json.dumps(fills))
    report = import_logs(tmp_path / "data", path, "ccxt-trades")
    (trade,) = frames.load_trades(tmp_path / "data").frame.rows(named=True)
    assert (trade["qty"], trade["realized_pnl"]) == (pytest.approx(0.05), pytest.approx(5.0))
    assert "BTCUSDT: quantities are contracts of 0.01, converted to base currency" in report.notes
    orders = [
        {
            "timestamp": T0,
            "symbol": "BTC/USDT:USDT",
            "id": name,
            "side": "buy",
            "type": "limit",
            "status": status,
        }
        | {"price": 50_000.0, "amount": 5.0, "filled": filled, "average": 50_000.0, "cost": filled * 500.0}
        for name, status, filled in (("1", "closed", 5.0), ("2", "canceled", 0.0))
    ]
    path.write_text(json.dumps(orders))
    import_logs(tmp_path / "orders", path, "ccxt-orders")
    found = frames.load_orders(tmp_path / "orders").frame.filter(pl.col("status") != "NEW")
    assert found.select("qty", "filled_qty").rows() == [(0.05, 0.05), (0.05, 0.0)]
    for fill in fills:
        fill |= {"symbol": "BTC/USD:BTC", "cost": fill["amount"] * 100.0 / fill["price"]}
    fills[1] |= {"price": 60_000.0, "cost": 500.0 / 60_000.0}
    path.write_text(json.dumps(fills))
    with pytest.raises(HistoryError, match="contracts that are not in base currency"):
        import_logs(tmp_path / "inverse", path, "ccxt-trades")


def test_settlements_are_no_trades(tmp_path: Path) -> None:
    row = {
        "symbol": "BTCUSDT",
        "side": "Sell",
        "avgEntryPrice": "100",
        "closedSize": "1",
        "leverage": "1",
    } | {
        "createdTime": str(T0),
        "updatedTime": str(T0 + 1000),
    }
    rows = [
        row | {"execType": "Trade", "avgExitPrice": "101", "closedPnl": "1"},
        row | {"execType": "SessionSettlePnL", "avgExitPrice": "0", "closedPnl": "0.5"},
    ]
    path = tmp_path / "closed.json"
    path.write_text(json.dumps({"result": {"list": rows}}))
    report = import_logs(tmp_path / "data", path, "bybit-closed-pnl")
    assert frames.load_trades(tmp_path / "data").frame["realized_pnl"].to_list() == [1.0]
    assert "closed: rows are left out by execType: 1 with SessionSettlePnL" in report.notes


def test_freqtrade(tmp_path: Path) -> None:
    """Columns as its migrations leave them; open trades are left out; the strategy of an order is its trade's."""
    with closing(sqlite3.connect(tmp_path / "tradesv3.sqlite")) as database, database:
        database.executescript(
            """
        CREATE TABLE trades (id INTEGER, pair TEXT, is_open BOOLEAN, is_short BOOLEAN, open_rate FLOAT,
          close_rate FLOAT, amount FLOAT, open_date DATETIME, close_date DATETIME, close_profit_abs FLOAT,
          funding_fees FLOAT, leverage FLOAT, exit_reason TEXT, strategy TEXT);
        CREATE TABLE orders (id INTEGER, ft_trade_id INTEGER, ft_pair TEXT, order_id TEXT, status TEXT, side TEXT,
          order_type TEXT, price FLOAT, average FLOAT, amount FLOAT, filled FLOAT, cost FLOAT, stop_price FLOAT,
          order_date DATETIME, order_filled_date DATETIME);
        INSERT INTO trades VALUES (1, 'BTC/USDT:USDT', 0, 1, 100.0, 99.0, 2.0, '2025-01-01 00:00:00.000000',
          '2025-01-01 00:10:00.500000', 1.8, -0.01, 3.0, 'roi', 'Scalp');
        INSERT INTO trades VALUES (2, 'BTC/USDT:USDT', 1, 0, 100.0, NULL, 2.0, '2025-01-01 00:20:00.000000', NULL,
          NULL, 0.0, 3.0, NULL, 'Scalp');
        INSERT INTO orders VALUES (1, 1, 'BTC/USDT:USDT', 'o1', 'closed', 'sell', 'limit', 100.0, 100.0, 2.0, 2.0,
          200.0, NULL, '2025-01-01 00:00:00.000000', '2025-01-01 00:00:01.000000');
            """
        )
    import_logs(tmp_path / "data", tmp_path / "tradesv3.sqlite", "freqtrade")
    trade = frames.load_trades(tmp_path / "data").frame.row(0, named=True)
    assert (trade["side"], trade["realized_pnl"], trade["reason"]) == ("SHORT", 1.8, "roi")
    assert trade["timestamp"].isoformat() == "2025-01-01T00:10:00.500000+00:00"
    orders = frames.load_orders(tmp_path / "data").frame
    assert orders["status"].to_list() == ["NEW", "FILLED"]
    assert orders["strategy"].to_list() == ["Scalp", "Scalp"]


@pytest.mark.stress
def test_a_database_that_freqtrade_itself_wrote(tmp_path: Path) -> None:
    """Trades and orders made by freqtrade's own persistence layer; the PnL of each closed trade is met to 1e-8."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    subprocess.run([tmp_path / "env/bin/pip", "install", "-q", "freqtrade"], check=True, timeout=1500)
    script = Path(__file__).with_name("freqtrade_database.py")
    made = subprocess.run(
        [tmp_path / "env/bin/python", script, tmp_path / "ft.sqlite"],
        check=True,
        capture_output=True,
        text=True,
    )
    expected = json.loads(made.stdout.splitlines()[-1])
    import_logs(tmp_path / "data", tmp_path / "ft.sqlite", "freqtrade")
    found = frames.load_trades(tmp_path / "data").frame["realized_pnl"].sort().to_list()
    assert found == pytest.approx(sorted(expected), abs=1e-8)
    assert len(found) > 30


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_on_another_file_says_what_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(HistoryError, match=r"no column|no table"):
        import_logs(tmp_path / "data", tmp_path / "x.csv", name)
