"""The main job, as a user does it from the command line: on the generated market and on recorded ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from replaylab import Lab, TradingParams


def replaylab(*arguments: object, data: Path | None = None, check: bool = True) -> str:
    environment = {**os.environ, **({"REPLAYLAB_DATA": str(data)} if data else {})}
    done = subprocess.run(
        [sys.executable, "-m", "replaylab", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout if check else done.stdout + done.stderr


def test_demo_runs_from_end_to_end(tmp_path: Path) -> None:
    """`replaylab demo` leaves logs, a session, tables and plots, and the replays agree with each other."""
    out = tmp_path / "results"
    summary = json.loads(replaylab("demo", "-o", out, "--json"))
    assert summary["replay_is_deterministic"] is True
    assert summary["n_combinations"] > 1_000
    assert summary["n_trades"] > 0
    for name in ("price_with_trades.png", "equity.png", "sweep_heatmap.png"):
        assert (out / "plots" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert pl.read_parquet(out / "tables" / "sweep.parquet").height == summary["n_combinations"]
    report = Path(summary["report"])
    assert report.parent == out
    assert "<h2>Verdict" in report.read_text()
    lab = Lab(out / "data")
    assert lab.events().height > 1_000
    assert lab.rejects().is_empty()
    # What the simulation logged is what the sweep's model says, trade for trade.
    logged = lab.trades().sort("timestamp", "symbol")
    again = lab.backtest(summary["session_id"], TradingParams()).trades.sort("exit_time", "symbol")
    assert logged["realized_pnl"].to_list() == again["realized_pnl"].to_list()
    assert logged["reason"].to_list() == again["reason"].to_list()


def test_demo_never_replaces_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    text = replaylab("demo", "-o", tmp_path, check=False)
    assert "not of an earlier demo" in text
    assert (tmp_path / "mine.txt").read_text() == "precious"


def play(root: Path, symbol: str, start: str, end: str) -> dict[str, object]:
    """sim, build, replay, sweep: the same job as the demo, by the commands a user types."""
    replaylab("sim", "--symbol", symbol, "--param", "entry_threshold=0.3", data=root)
    manifest = json.loads(
        replaylab("build", "--from", start, "--to", end, "--symbol", symbol, "--json", data=root)
    )
    session = manifest["sessionId"]
    replay = json.loads(
        replaylab("replay", session, "--speed", "inf", "--param", "entry_threshold=0.3", "--json", data=root)
    )
    target = root / "sweep.parquet"
    replaylab(
        "sweep",
        session,
        "--grid",
        "entry_threshold=0.2,0.3,0.5",
        "--grid",
        "sl_pct=0.05,0.1",
        "-o",
        target,
        data=root,
    )
    assert pl.read_parquet(target).height == 6
    return {"session": session, "replay": replay, "manifest": manifest}


@pytest.mark.timeout(600)
def test_the_main_job_on_a_recorded_futures_capture(real_data: Path, tmp_path: Path) -> None:
    """Two capture files come in as tape and book, and go through sim, build, replay and sweep.

    10,713 is the count of messages with `"e":"trade"` in both files (zcat | grep -c), less those whose `X` is not
    MARKET, which stay in the tape but make no price.
    """
    root = tmp_path / "data"
    files = [real_data / "binance-capture" / f"btcusdt_202407{day}.gz" for day in (18, 19)]
    replaylab("import", "binance-capture", *files, "--symbol", "BTCUSDT", data=root)
    done = play(root, "BTCUSDT", "2024-07-18T23:50:00Z", "2024-07-19T00:10:00Z")
    lab = Lab(root)
    logged = lab.trades()
    run = lab.session(done["session"])
    assert run.events.filter(pl.col("type") == "MARKET_TRADE").height == lab.market_trades().height
    again = lab.backtest(done["session"], TradingParams(entry_threshold=0.3)).trades
    assert logged.height == again.height > 0
    assert logged["realized_pnl"].to_list() == pytest.approx(again["realized_pnl"].to_list(), abs=0)
    first = again.row(0, named=True)
    # Checked against the tape itself: the entry pays the book, near the next print and never better than it.
    price = json.loads(run.events["payload"][first["entry_index"]])["price"]
    direction = 1 if first["side"] == "LONG" else -1
    assert 0 <= direction * (first["entry_price"] - price) < 0.001 * price


@pytest.mark.timeout(600)
def test_the_main_job_on_a_recorded_tape_of_half_a_day(real_data: Path, tmp_path: Path) -> None:
    """199,020 trades from a Parquet file with other column names, no side and no ids."""
    root = tmp_path / "data"
    file = real_data / "binance-trades" / "btcusdt_20220115_00h-12h.parquet"
    replaylab(
        "import",
        "parquet",
        file,
        "--symbol",
        "BTCUSDT",
        "--timestamp-unit",
        "ms",
        "--timestamp",
        "timestamp",
        "--price",
        "price",
        "--qty",
        "quantity",
        data=root,
    )
    assert Lab(root).market_trades().height == 199_020
    done = play(root, "BTCUSDT", "2022-01-15", "2022-01-15T12:00:00Z")
    lab = Lab(root)
    again = lab.backtest(done["session"], TradingParams(entry_threshold=0.3)).trades
    assert lab.trades()["realized_pnl"].to_list() == again["realized_pnl"].to_list()
    assert again.height > 0
