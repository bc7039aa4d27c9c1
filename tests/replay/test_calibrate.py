"""Calibration: parameters of known SIM runs are found again; missing evidence is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from replaylab.cli import app
from replaylab.errors import ReplayError
from replaylab.history import level_lists, save_instruments, write_book, write_trades
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import Calibration, calibrate, run_sim
from replaylab.sessions import Session, build_replay_session
from replaylab.timestamps import iso, parse_ns

START = parse_ns("2025-11-18T10:00:00Z")
PARAMS = TradingParams(entry_threshold=0.3, tp1_pct=0.05, tp2_pct=0.1, sl_pct=0.05, max_hold_s=40.0)
SCORING = ScoringParams(interval_ms=500, warmup_s=20)


def of_sim(root: DataRoot, hours: float, **changes: Any) -> Session:
    """The session of a SIM run with known parameters over the generated market."""
    write_synthetic(root, seed=5, hours=hours)
    run_sim(root, params=PARAMS.replace(**changes), scoring=SCORING, progress=False)
    end = iso(START + round(hours * 3.6e12))
    return Session(root, build_replay_session(root, iso(START), end, ["AIUSDT", "BTCUSDT"]).session_id)


def queue_market(root: DataRoot, seconds: int, seed: int) -> None:
    """A market of one tick's spread with long queues: trades eat the best level, and its end moves the price."""
    rng = np.random.default_rng(seed)
    bid, sizes = 1000, [float(rng.integers(10, 60)), float(rng.integers(10, 60))]
    trades, books = [], []
    for step in range(seconds * 10):
        now = START + step * 100_000_000
        bids = [((bid - k) * 0.1, sizes[0] if k == 0 else 50.0) for k in range(4)]
        asks = [((bid + 1 + k) * 0.1, sizes[1] if k == 0 else 50.0) for k in range(4)]
        books.append((now, bids, asks))
        side = int(rng.random() < 0.5 + 0.1 * np.sin(step / 400))
        qty = float(rng.integers(1, 6))
        trades.append((now + 50_000_000, (bid + side) * 0.1, qty, "BUY" if side else "SELL"))
        sizes[side] -= qty
        if sizes[side] <= 0:
            bid += 1 if side else -1
            sizes = [float(rng.integers(10, 60)), float(rng.integers(10, 60))]
    times = pl.Datetime("ns", "UTC")
    frame = pl.DataFrame(trades, schema=["timestamp", "price", "qty", "side"], orient="row")
    write_trades(
        root, "QQQUSDT", frame.with_columns(pl.col("timestamp").cast(times), pl.col("price").round(1))
    )
    columns = {
        name: level_lists(
            [number for book in books for price, qty in book[place] for number in (round(price, 1), qty)],
            [4] * len(books),
        )
        for name, place in (("bids", 1), ("asks", 2))
    }
    stamps = pl.Series([book[0] for book in books]).cast(times)
    frame = pl.DataFrame({"timestamp": stamps, "kind": ["snapshot"] * len(books), **columns})
    write_book(root, "QQQUSDT", frame)
    save_instruments(root, {"QQQUSDT": {"tickSize": 0.1, "lotSize": 0.01, "inferred": False}})


def row(found: Calibration, name: str) -> dict[str, Any]:
    return found.table.filter(pl.col("parameter") == name).row(0, named=True)


@pytest.mark.parametrize(
    "known",
    [
        {"latency_ms": 250.0, "stop_latency_ms": 700.0, "slippage_bps": 1.7},
        {"taker_fee_bps": 4.2, "maker_fee_bps": -0.5, "latency_ms": 40.0},
    ],
)
def test_known_parameters_are_found_again(tmp_path: Path, known: dict[str, float]) -> None:
    """From some 2,000 orders each is within 5 %, inside its interval, and ready for a run."""
    found = calibrate(of_sim(DataRoot(tmp_path), 1.5, **known))
    assert found.orders > 1500
    for name, value in known.items():
        estimate = row(found, name)
        assert estimate["estimate"] == pytest.approx(value, rel=0.05)
        assert estimate["low"] - 1e-6 <= value <= estimate["high"] + 1e-6
        assert found.changes[name] == pytest.approx(value, rel=0.05)
    TradingParams(**{k: v for k, v in found.changes.items() if k != "limit_fill"})


def test_the_queue_share_and_the_fills_of_limit_orders(tmp_path: Path) -> None:
    """In a market with queues the share is found, and the forecast beats "touch" by far on orders it did not see."""
    root = DataRoot(tmp_path)
    queue_market(root, 3600, seed=3)
    params = TradingParams(
        entry_threshold=0.05,
        entry_order="LIMIT",
        entry_ttl_s=8.0,
        limit_fill="queue",
        queue_share=0.45,
        tp1_fraction=0.0,
        tp1_pct=0.1,
        tp2_pct=0.1,
        sl_pct=0.3,
        max_hold_s=15.0,
    )
    run_sim(root, params=params, scoring=ScoringParams(interval_ms=1000, warmup_s=5), progress=False)
    manifest = build_replay_session(root, iso(START), iso(START + 3600 * 10**9), ["QQQUSDT"])
    found = calibrate(Session(root, manifest.session_id))
    share = row(found, "queue_share")
    assert share["orders"] > 200
    assert share["estimate"] == pytest.approx(0.45, rel=0.05)
    assert share["low"] <= 0.45 <= share["high"]
    brier = dict(found.fills.select("limit_fill", "brier").iter_rows())
    assert brier["queue"] <= 0.7 * brier["touch"]
    assert found.changes["limit_fill"] == "queue"
    assert found.changes["queue_share"] == pytest.approx(0.45, rel=0.05)


def test_too_few_orders_are_named(tmp_path: Path) -> None:
    """A few minutes of orders: notes in place of estimates, and no changes from them."""
    found = calibrate(of_sim(DataRoot(tmp_path), 0.04))
    assert any("not enough (at least 30)" in note for note in found.notes)
    assert "latency_ms" not in found.changes
    assert row(found, "latency_ms")["estimate"] is None
    assert "not enough" in found._repr_html_()


def test_without_orders_it_is_an_error(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    write_synthetic(root, seed=5, hours=0.02)
    manifest = build_replay_session(root, iso(START), iso(START + 60 * 10**9), ["BTCUSDT"])
    with pytest.raises(ReplayError, match="no orders are logged"):
        calibrate(Session(root, manifest.session_id))


def test_the_command_and_the_plot(tmp_path: Path) -> None:
    session = of_sim(DataRoot(tmp_path), 0.3, latency_ms=120.0)
    shown = CliRunner().invoke(app, ["calibrate", session.id, "--data", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "-p latency_ms=" in shown.output
    plain = CliRunner().invoke(app, ["calibrate", session.id, "--data", str(tmp_path), "--json"])
    assert json.loads(plain.output)["changes"]["latency_ms"] == pytest.approx(120.0, rel=0.05)
    found = calibrate(session)
    assert len(found.plot().axes) == found.table.drop_nulls("estimate").height
