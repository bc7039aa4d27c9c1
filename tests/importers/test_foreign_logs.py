"""Logs of other programs: what is written, what stays null, what is refused; trades rebuilt from fills."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from replaylab import frames
from replaylab.archive import verify
from replaylab.cli import app
from replaylab.errors import HistoryError, RecordError
from replaylab.history import write_trades
from replaylab.importers import PRESETS, ImportReport, import_logs, suggest_mapping
from replaylab.lab import Lab
from replaylab.paths import DataRoot
from replaylab.timestamps import parse_ns

T0 = 1_735_689_600_000  # 2025-01-01T00:00:00Z in ms

BOT = {
    "time_unit": "ms",
    "signals": {
        "table": "signals",
        "columns": {
            "timestamp": "at",
            "symbol": "market",
            "score": "strength",
            "price": "px",
            "regime": "phase",
        },
        "extra": ["raw"],
    },
    "orders": {
        "table": "orders",
        "columns": {
            "timestamp": "created",
            "updated_at": "updated",
            "symbol": "market",
            "order_id": "id",
            "side": "side",
            "price": "px",
            "qty": "size",
            "status": "state",
            "filled_qty": "done",
        },
        "constants": {"type": "LIMIT", "mode": "paper"},
    },
    "trades": {
        "table": "trades",
        "columns": {
            "timestamp": "closed",
            "entry_time": "opened",
            "symbol": "market",
            "side": "dir",
            "entry_price": "px_in",
            "close_price": "px_out",
            "qty": "size",
            "realized_pnl": "pnl",
        },
        "constants": {"mode": "SIM"},
    },
}


def bot_database(path: Path, *, wal: bool = False) -> sqlite3.Connection:
    """A database as a scalper of one's own writes it."""
    database = sqlite3.connect(path)
    if wal:
        database.execute("PRAGMA journal_mode=WAL")
    database.executescript(
        """
        CREATE TABLE signals (at INTEGER, market TEXT, strength REAL, px REAL, phase TEXT, raw TEXT, api_key TEXT);
        CREATE TABLE orders (id TEXT, created INTEGER, updated INTEGER, market TEXT, side TEXT, px REAL, size REAL,
                             state TEXT, done REAL);
        CREATE TABLE trades (opened INTEGER, closed INTEGER, market TEXT, dir TEXT, px_in REAL, px_out REAL, size REAL,
                             pnl REAL);
        """
    )
    database.executemany(
        "INSERT INTO signals VALUES (?,?,?,?,?,?,?)",
        [
            (
                T0 + 1000 * k,
                "BTC/USDT",
                0.1 * (k % 9) - 0.4,
                100.0 + k % 3,
                "CALM" if k < 5 else "WILD",
                json.dumps({"apiKey": "k-123", "depth": k}),
                "k-123",
            )
            for k in range(10)
        ],
    )
    database.executemany(
        "INSERT INTO orders VALUES (?,?,?,?,?,?,?,?,?)",
        [
            ("a", T0, T0 + 40, "BTC/USDT", "buy", 100.0, 1.0, "Filled", 1.0),
            ("b", T0 + 500, T0 + 900, "BTC/USDT", "sell", 101.0, 1.0, "cancelled", 0.0),
            ("c", T0 + 2000, T0 + 2050, "BTC/USDT", "sell", 100.5, 1.0, "closed", None),
            ("d", T0 + 3000, None, "BTC/USDT", "buy", 99.0, 1.0, "open", None),
        ],
    )
    database.execute(
        "INSERT INTO trades VALUES (?,?,?,?,?,?,?,?)",
        (T0 + 40, T0 + 2050, "BTC/USDT", "long", 100.0, 100.5, 1.0, 0.4),
    )
    database.commit()
    return database


def digest(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if not p.name.endswith("-shm")
    }


def test_a_database_of_ones_own(tmp_path: Path) -> None:
    """Signals, orders and trades arrive with nulls for what is not known; nothing of a secret; twice adds nothing."""
    (tmp_path / "bot").mkdir()
    bot_database(tmp_path / "bot" / "bot.sqlite").close()
    before = digest(tmp_path / "bot")
    lab = Lab(tmp_path / "data")
    report = lab.import_logs(tmp_path / "bot" / "bot.sqlite", mapping=BOT)
    assert isinstance(report, ImportReport)
    assert digest(tmp_path / "bot") == before, "a source is never written"
    events = lab.events(expand=["score", "regime"])
    assert events.filter(pl.col("event_type") == "SCORING_UPDATE")["score"].to_list() == pytest.approx(
        [0.1 * (k % 9) - 0.4 for k in range(10)]
    )
    assert events.filter(pl.col("event_type") == "REGIME_UPDATE")["regime"].to_list() == ["CALM", "WILD"]
    assert b"k-123" not in b"".join(p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file())
    orders = lab.orders()
    assert list(zip(orders["client_order_id"], orders["status"], orders["filled_qty"], strict=True)) == [
        ("a", "NEW", 0.0),
        ("a", "FILLED", 1.0),
        ("b", "NEW", 0.0),
        ("b", "CANCELED", 0.0),
        ("c", "NEW", 0.0),
        ("c", "FILLED", 1.0),
        ("d", "NEW", 0.0),
    ]
    assert set(orders["mode"]) == {"SIM"}
    assert orders["time_in_force"].is_null().all()
    assert orders["notional_usd"].is_null().all()
    trade = lab.trades().row(0, named=True)
    assert trade["symbol"] == "BTCUSDT"
    assert (trade["mfe"], trade["mae"], trade["leverage"], trade["fees"]) == (None, None, None, None)
    assert trade["duration_seconds"] == 2.01
    assert lab.rejects().is_empty()
    assert verify(lab.root).findings.is_empty()
    again = lab.import_logs(tmp_path / "bot" / "bot.sqlite", mapping=BOT)
    assert (again.added, again.duplicates) == (0, report.rows)


def test_only_what_is_new_is_added(tmp_path: Path) -> None:
    database = bot_database(tmp_path / "bot.sqlite")
    lab = Lab(tmp_path / "data")
    lab.import_logs(tmp_path / "bot.sqlite", mapping=BOT)
    database.execute("UPDATE orders SET state = 'filled', updated = ?, done = 1 WHERE id = 'd'", (T0 + 9000,))
    database.commit()
    report = lab.import_logs(tmp_path / "bot.sqlite", mapping=BOT)
    assert report.added == 1
    last = lab.orders().row(-1, named=True)
    assert (last["client_order_id"], last["status"]) == ("d", "FILLED")


def test_a_database_is_read_while_its_bot_writes(tmp_path: Path) -> None:
    """In WAL mode, with a writer that holds a transaction open: the committed rows are read."""
    database = bot_database(tmp_path / "bot.sqlite", wal=True)
    database.execute("BEGIN IMMEDIATE")
    database.execute(
        "INSERT INTO signals VALUES (?,?,?,?,?,?,?)", (T0 + 99_000, "BTC/USDT", 0.5, 1.0, "X", "{}", "")
    )
    report = import_logs(tmp_path / "data", tmp_path / "bot.sqlite", mapping={"signals": BOT["signals"]})
    assert report.tape("signals", "BTCUSDT").rows == 12
    database.rollback()


def test_the_imported_log_goes_through_the_whole_toolkit(tmp_path: Path) -> None:
    """MFE and MAE from the tape; a session; its features, fidelity's refusal, what-if and reconciliation."""
    bot_database(tmp_path / "bot.sqlite").close()
    lab = Lab(tmp_path / "data")
    times = np.arange(60) * 100_000_000 + T0 * 1_000_000
    write_trades(
        lab.root,
        "BTCUSDT",
        pl.DataFrame(
            {
                "timestamp": pl.Series(times).cast(pl.Datetime("ns", "UTC")),
                "price": 100.0 + 0.8 * np.sin(np.arange(60) / 6),
                "qty": np.ones(60),
                "side": ["BUY", "SELL"] * 30,
            }
        ),
    )
    report = lab.import_logs(tmp_path / "bot.sqlite", mapping=BOT)
    assert any("MFE and MAE of 1 trades" in note for note in report.notes)
    trade = lab.trades().row(0, named=True)
    inside = 100.0 + 0.8 * np.sin(np.arange(1, 21) / 6)
    assert trade["mfe"] == pytest.approx(inside.max() - 100.0)
    assert trade["mae"] == pytest.approx(min(inside.min() - 100.0, 0.0))
    manifest = lab.build_replay_session("2025-01-01T00:00", "2025-01-01T00:01", ["BTCUSDT"])
    session = lab.session(manifest)
    assert session.recorded_params is None
    position = lab.features(session)["position"]
    assert set(position) == {0, 1}
    what = lab.reconcile(session, {"entry_threshold": 0.2})
    assert what.live_pnl == pytest.approx(0.4)
    assert any("have no fees" in note for note in what.notes)
    lab.what_if(session, lab.config.trading)


def test_logging_from_python_stays_strict(tmp_path: Path) -> None:
    """An imported line may have null; ``log_trade`` refuses it."""
    record = {
        "timestamp": "2025-01-01T00:00:00Z",
        "dateKey": "2025-01-01",
        "symbol": "BTCUSDT",
        "side": "LONG",
        "entryPrice": 1.0,
        "closePrice": 1.0,
        "qty": 1.0,
        "leverage": None,
        "realizedPnl": 0.0,
        "mfe": None,
        "mae": None,
        "durationSeconds": None,
        "mode": "LIVE",
    }
    with pytest.raises(RecordError, match="leverage"):
        Lab(tmp_path).logger.log_trade(record)
    missing = {key: value for key, value in record.items() if key != "mfe"}
    (tmp_path / "trades_log").mkdir(exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in (record, missing))
    (tmp_path / "trades_log" / "day-2025-01-01.jsonl").write_text(lines)
    loaded = frames.load_trades(tmp_path)
    assert (loaded.frame.height, loaded.rejects.height) == (1, 1)
    assert "mfe" in loaded.rejects["reason"][0]


@pytest.mark.parametrize("kind", ["csv", "semicolon", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_log(tmp_path: Path, kind: str) -> None:
    rows = [
        {"time": "2025-01-01 01:00:00", "id": f"o{k}", "pair": "ETH-USDT", "side": "Buy", "type": "limit"}
        | {"price": 3000.5 + k, "amount": 0.25, "status": "open", "note": ""}
        for k in range(3)
    ]
    path = tmp_path / f"orders.{kind if kind != 'semicolon' else 'csv'}"
    if kind == "json":
        path.write_text(json.dumps({"result": {"list": rows}}))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        pl.DataFrame(rows).write_csv(path, separator="," if kind == "csv" else ";")
    mapping = {"time_zone": "Europe/Berlin", **suggest_mapping(path)}
    report = import_logs(tmp_path / "data", path, mapping=mapping)
    assert report.unmapped["orders"] == ["note"]
    loaded = frames.load_orders(tmp_path / "data").frame
    assert loaded["client_order_id"].to_list() == ["o0", "o1", "o2"]
    assert loaded["price"].to_list() == [3000.5, 3001.5, 3002.5]
    assert loaded["symbol"].unique().to_list() == ["ETHUSDT"]
    assert loaded["timestamp"].dt.to_string("%H:%M")[0] == "00:00"


def test_a_mapping_from_a_toml_file_and_a_dry_run(tmp_path: Path) -> None:
    bot_database(tmp_path / "bot.sqlite").close()
    shown = CliRunner().invoke(app, ["import-logs", str(tmp_path / "bot.sqlite"), "--suggest"])
    assert shown.exit_code == 0, shown.output
    assert "[orders.columns]" in shown.output
    (tmp_path / "bot.toml").write_text(
        textwrap.dedent(
            """
            time_unit = "ms"
            [trades]
            table = "trades"
            [trades.columns]
            timestamp = "closed"
            symbol = "market"
            side = "dir"
            entry_price = "px_in"
            close_price = "px_out"
            qty = "size"
            realized_pnl = "pnl"
            """
        )
    )
    options = ["import-logs", str(tmp_path / "bot.sqlite"), "--mapping", str(tmp_path / "bot.toml")]
    dry = CliRunner().invoke(app, [*options, "--data", str(tmp_path / "data"), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "nothing was written" in dry.output
    assert "not used of trades: opened" in dry.output
    assert not (tmp_path / "data").exists()
    done = CliRunner().invoke(app, [*options, "--data", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    assert frames.load_trades(tmp_path / "data").frame["entry_timestamp"].is_null().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orderz": {}}, r"mapping has no 'orderz'.*Did you mean 'orders'"),
        ({"orders": {"columns": {"quantity": "size"}}}, r"mapping.orders.columns has no 'quantity'"),
        (
            {"orders": {"columns": {"qty": "siez"}}},
            r"orders: no column 'siez' for orders.qty. Did you mean 'size'",
        ),
        ({"orders": {"table": "order"}}, r"no table 'order'.*Did you mean 'orders'"),
        ({"orders": {"words": {"side": {"UP": ["buy"]}}}}, r"words of a side has no 'UP'"),
        ({"orders": {"constants": {"type": None}}}, r"type"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bot_database(tmp_path / "bot.sqlite").close()
    mapping: dict[str, Any] = {"orders": dict(BOT["orders"]), "time_unit": "ms"}  # type: ignore[arg-type]
    for key, value in change.items():
        merged = dict(mapping.get(key, {}))
        for part, items in value.items():
            merged[part] = {**merged.get(part, {}), **items} if isinstance(items, dict) else items
        mapping[key] = merged
    with pytest.raises(HistoryError, match=message):
        import_logs(tmp_path / "data", tmp_path / "bot.sqlite", mapping=mapping)
    assert not (tmp_path / "data").exists()


def test_rejects_are_named_and_many_are_refused(tmp_path: Path) -> None:
    """One bad row of many is a reject with file, row and reason; more than 1 % for one reason refuses the table."""
    rows = [
        {
            "timestamp": T0 + k,
            "id": str(k),
            "symbol": "A",
            "side": "buy",
            "type": "x",
            "qty": 1.0,
            "status": "open",
        }
        for k in range(300)
    ]
    rows[7]["side"] = "hold"
    path = tmp_path / "orders.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_logs(tmp_path / "data", path, mapping=suggest_mapping(path))
    assert (report.added, report.rejected) == (299, 1)
    assert (report.rejects[0].line, report.rejects[0].file) == (8, "orders.jsonl:orders")
    assert "found 'hold'; name it in mapping.orders.words.side" in report.rejects[0].reason
    for row in rows[:30]:
        row["qty"] = "many"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(HistoryError, match=r"29 of 300 rows rejected: qty: no usable number"):
        import_logs(tmp_path / "other", path, mapping=suggest_mapping(path))
    assert not (tmp_path / "other").exists()
    allowed = import_logs(tmp_path / "other", path, mapping=suggest_mapping(path), max_rejects=0.2)
    assert allowed.added == 270


def test_strategies_are_never_mixed(tmp_path: Path) -> None:
    rows = [
        {
            "timestamp": T0 + k,
            "id": str(k),
            "symbol": "A",
            "side": "buy",
            "type": "x",
            "qty": 1.0,
            "status": "open",
        }
        | {"strategy": "fast" if k % 3 else "slow"}
        for k in range(9)
    ]
    path = tmp_path / "orders.json"
    path.write_text(json.dumps(rows))
    mapping = suggest_mapping(path)
    with pytest.raises(HistoryError, match=r"several strategies: fast \(6 rows\), slow \(3 rows\)"):
        import_logs(tmp_path / "data", path, mapping=mapping)
    assert import_logs(tmp_path / "data", path, mapping=mapping, strategy="fast").added == 6
    assert frames.load_orders(tmp_path / "data").frame["strategy"].unique().to_list() == ["fast"]
    with pytest.raises(HistoryError, match="holds orders or trades of the strategy fast"):
        import_logs(tmp_path / "data", path, mapping=mapping, strategy="slow")
    with pytest.raises(HistoryError, match=r"no strategy 'slo'"):
        import_logs(tmp_path / "data", path, mapping=mapping, strategy="slo")
    import_logs(tmp_path / "both", path, mapping=mapping, strategy="*")
    assert sorted(frames.load_orders(tmp_path / "both").frame["symbol"].unique()) == ["A_fast", "A_slow"]


# ---- Presets -------------------------------------------------------------------------------------------------


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
    database = sqlite3.connect(tmp_path / "tradesv3.sqlite")
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
    database.commit()
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


def test_an_unknown_preset_and_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="Did you mean 'freqtrade'"):
        import_logs(tmp_path, "x", "freqtrad")
    with pytest.raises(HistoryError, match="name a preset"):
        import_logs(tmp_path, "x")


# ---- Readers of orders ---------------------------------------------------------------------------------------


def order_event(at: int, **fields: Any) -> dict[str, Any]:
    base = {"clientOrderId": "a", "side": "BUY", "status": "FILLED", "filledQty": 1.0, "avgFillPrice": 100.0}
    return {"at": at, "type": "EXECUTION_ORDER", "payload": {**base, **fields}}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # Filled in parts, the last line twice.
        ([order_event(1, status="PARTIALLY_FILLED", filledQty=0.5), order_event(2), order_event(2)], [0, 1, 1, 1]),
        # Cancelled and expired orders that had filled in part.
        ([order_event(1, status="CANCELED", filledQty=0.3)], [0, 1, 1, 1]),
        ([order_event(1, status="Expired", filledQty=0.3)], [0, 1, 1, 1]),
        ([order_event(1, status="canceled", filledQty=0.0)], [0, 0, 0, 0]),
        # Spot: a sell that closes without reduceOnly; words in any case.
        ([order_event(1), order_event(2, clientOrderId="b", side="sell", status="filled")], [0, 1, 0, 0]),
        # A flip.
        ([order_event(1), order_event(2, clientOrderId="b", side="SELL", filledQty=3.0)], [0, 1, -1, -1]),
        # Closed in parts.
        (
            [order_event(1, filledQty=1.0), *(order_event(2 + k, clientOrderId=f"x{k}", side="SELL", filledQty=0.5)
                                             for k in range(2))],
            [0, 1, 1, 0],
        ),
        # Closed by the trade log alone.
        (
            [
                order_event(1),
                {
                    "at": 2,
                    "type": "EXECUTION_TRADE",
                    "payload": {"side": "LONG", "qty": 1.0, "realizedPnl": 1.0},
                },
            ],
            [0, 1, 0, 0],
        ),
    ],
)  # fmt: skip
def test_position_understands_real_order_logs(events: list[dict[str, Any]], expected: list[int]) -> None:
    """The feature ``position`` half a second after each second."""
    start = parse_ns("2025-01-01")
    rows = [(start + k * 1_000_000_000 + 500_000_000, "SCORING_UPDATE", {"score": 0.1}) for k in range(4)]
    rows += [(start + e["at"] * 1_000_000_000, e["type"], e["payload"]) for e in events]
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series([r[0] for r in rows]).cast(pl.Datetime("ns", "UTC")),
            "type": [r[1] for r in rows],
            "symbol": ["A"] * len(rows),
            "payload": [json.dumps(r[2]) for r in rows],
        }
    ).sort("timestamp", maintain_order=True)
    assert Lab("unused").features(frame)["position"].to_list() == expected


def test_the_initial_state_understands_them_too(tmp_path: Path) -> None:
    """A session that begins inside a position of a spot bot carries it, and one after its close does not."""
    (tmp_path / "orders.json").write_text(
        json.dumps(
            [
                {
                    "id": str(k),
                    "timestamp": T0 + 60_000 * k,
                    "symbol": "BTC/USDT",
                    "side": side,
                    "type": "market",
                }
                | {"price": 100.0, "average": 100.0, "amount": 1.0, "filled": 1.0, "status": "closed"}
                for k, side in enumerate(("buy", "sell"))
            ]
        )
    )
    lab = Lab(tmp_path / "data")
    lab.import_logs(tmp_path / "orders.json", "ccxt-orders")
    signal = {
        "timestamp": "2025-01-01T00:00:40Z",
        "symbol": "BTCUSDT",
        "fromState": "IDLE",
        "toState": "IDLE",
    }
    for minute in ("00:00:40", "00:02:00"):
        lab.logger.log_state_event(
            "BTCUSDT",
            signal
            | {
                "timestamp": f"2025-01-01T{minute}Z",
                "eventType": "SCORING_UPDATE",
                "reason": "",
                "extra": {"score": 0.1},
            },
        )
    lab.logger.flush()
    inside = lab.session(lab.build_replay_session("2025-01-01T00:00:30", "2025-01-01T00:00:50", ["BTCUSDT"]))
    assert inside.initial_state["symbols"]["BTCUSDT"]["carried"] is not None
    after = lab.session(lab.build_replay_session("2025-01-01T00:01:30", "2025-01-01T00:03:00", ["BTCUSDT"]))
    assert after.initial_state["symbols"]["BTCUSDT"]["carried"] is None


def test_mfe_and_mae_stay_null_in_a_dataset_without_prices(tmp_path: Path) -> None:
    """Nulls reach the archive's verification and a pandas reader unchanged."""
    bot_database(tmp_path / "bot.sqlite").close()
    lab = Lab(tmp_path / "data", frame="pandas")
    lab.import_logs(tmp_path / "bot.sqlite", mapping=BOT)
    assert lab.trades()["mfe"].isna().all()
    assert DataRoot(tmp_path / "data").files("trades_log")
