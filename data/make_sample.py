"""Make the sample data root: a seeded synthetic market, the logs of a SIM run over it, snapshots and one session.

Run it with ``make sample``. Everything in this folder but this file and README.md is what it writes.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path

import orjson
import polars as pl

from replaylab import Lab, ScoringParams, TradingParams, history
from replaylab.importers.synthetic import write_synthetic
from replaylab.fsio import write_atomic
from replaylab.timestamps import iso, to_ns

SEED = 11
START, LOGGED_UNTIL = "2025-11-18T10:00:00.000Z", "2025-11-18T11:00:00.000Z"
HOURS = 1.25  # a quarter of an hour more than the logs: `replaylab sim` has something left to do
SESSION = ("2025-11-18T10:20:00.000Z", "2025-11-18T10:24:00.000Z")
# A signal every two seconds keeps the sample small; levels near the price give trades of every kind.
SCORING = ScoringParams(interval_ms=2_000)
PARAMS = TradingParams(
    entry_threshold=0.55,
    tp1_pct=0.12,
    tp2_pct=0.25,
    sl_pct=0.15,
    max_hold_s=300.0,
    trailing_activation_pct=0.15,
    trailing_distance_pct=0.08,
    cooldown_s=20.0,
)
MADE = (
    "archive",
    "events",
    "history",
    "metrics",
    "orderbook",
    "orders",
    "replay",
    "summary",
    "system",
    "trades",
    "trades_log",
)


def main(folder: Path) -> None:
    for name in MADE:
        shutil.rmtree(folder / name, ignore_errors=True)
    lab = Lab(folder)
    write_synthetic(lab.root, seed=SEED, start=START, hours=HOURS)
    sim = lab.run_sim(start=START, end=LOGGED_UNTIL, params=PARAMS, scoring=SCORING)
    symbols = list(sim.symbols)
    for symbol in symbols:
        write_rolling_files(lab, symbol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest = lab.build_replay_session(*SESSION, symbols, created_by="TEST", notes="four minutes of the sample")
    # The only strings that would differ between two runs of this script.
    manifest.created_at = LOGGED_UNTIL
    lab.sessions.save_session(manifest)
    health = lab.health()
    health.timestamp = LOGGED_UNTIL
    for service in health.services.values():
        service.last_update_at = LOGGED_UNTIL
    lab.logger.write_health_snapshot(health).result()
    lab.close()
    index = lab.root.replay_sessions_index
    content = orjson.loads(index.read_bytes()) | {"timestamp": LOGGED_UNTIL}
    index.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    for left in folder.rglob("*.lock"):
        left.unlink()
    shutil.rmtree(folder / "history" / ".staging", ignore_errors=True)


def write_rolling_files(lab: Lab, symbol: str) -> None:
    """The newest prints, the last book and a feature snapshot a minute, as a live system keeps them."""
    end = to_ns(LOGGED_UNTIL)
    tape = lab.market_trades(symbol, end=LOGGED_UNTIL).tail(200).with_columns(ns=pl.col("timestamp").dt.epoch("ns"))
    prints = [
        {"timestamp": iso(r["ns"]), "price": r["price"], "qty": r["qty"], "side": r["side"], "tradeId": r["trade_id"]}
        for r in tape.iter_rows(named=True)
    ]
    books = history.scan_book(lab.root, symbol, end=end).filter(pl.col("kind") == "snapshot").tail(1).collect()
    book = books.with_columns(ns=pl.col("timestamp").dt.epoch("ns")).row(0, named=True)
    snapshot = {"timestamp": iso(book["ns"]), "symbol": symbol, "bids": book["bids"][:10], "asks": book["asks"][:10]}
    scores = lab.events(symbol).filter(pl.col("event_type") == "SCORING_UPDATE").gather_every(30)
    metrics = [
        {
            "type": "FEATURE_SNAPSHOT",
            "timestamp": iso(row["ns"]),
            "symbol": symbol,
            "features": orjson.loads(row["extra"])["components"],
        }
        for row in scores.with_columns(ns=pl.col("timestamp").dt.epoch("ns")).iter_rows(named=True)
    ]
    for path, content in (
        (lab.root.market_trades(symbol), prints),
        (lab.root.order_book(symbol), snapshot),
        (lab.root.metrics(symbol), metrics),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
