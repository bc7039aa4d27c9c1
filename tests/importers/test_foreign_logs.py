"""Logs of other programs: what is written, what stays null, what is refused; trades rebuilt from fills."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import textwrap
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
from replaylab.importers import ImportReport, import_logs, suggest_mapping
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
