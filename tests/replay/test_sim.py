"""SIM mode writes the live logs as a bot would, once, and never over others."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import polars as pl
import pytest

from replaylab import frames
from replaylab.errors import InterlockError, ReplayError
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import HealthSnapshot
from replaylab.replay import fidelity, run_sim
from replaylab.sessions import SessionStore, build_replay_session

SCORING = ScoringParams(interval_ms=500)
PARAMS = TradingParams(entry_threshold=0.3, tp1_pct=0.05, tp2_pct=0.1, sl_pct=0.05)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("market") / "data"
    write_synthetic(DataRoot(root), seed=3, hours=0.2)
    return root


@pytest.fixture
def root(market: Path, tmp_path: Path) -> DataRoot:
    """A root with twelve minutes of two symbols and no logs."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "history").symlink_to(market / "history", target_is_directory=True)
    return DataRoot(tmp_path / "data")


def test_t3_every_simulated_order_is_in_the_order_log(root: DataRoot) -> None:
    """T3: orders of a SIM run are in `orders/day-YYYY-MM-DD.jsonl`, each with its NEW and its final line."""
    sim = run_sim(root, params=PARAMS, scoring=SCORING)
    assert root.orders("2025-11-18").is_file()
    orders = frames.load_orders(root).frame
    assert orders.height == sim.orders.height > 10
    assert set(orders["mode"]) == {"SIM"}
    for (_,), lines in orders.sort("line").group_by("client_order_id", maintain_order=True):
        assert lines["status"].to_list()[0] == "NEW"
        assert lines["status"].to_list()[1:] in (["FILLED"], ["CANCELED"])
    entries = orders.filter((pl.col("status") == "FILLED") & ~pl.col("reduce_only"))
    assert entries.height == sim.trades.height


def test_every_signal_is_logged_also_those_that_led_to_nothing(root: DataRoot) -> None:
    sim = run_sim(root, params=PARAMS.replace(allow_long=False, allow_short=False), scoring=SCORING)
    assert sim.trades.is_empty()
    assert sim.events.filter(pl.col("event_type") == "SCORING_UPDATE").height > 500


def test_the_parameters_in_force_are_logged(root: DataRoot) -> None:
    run_sim(root, params=PARAMS, scoring=SCORING)
    logged = frames.load_trading_params(root).frame.row(0, named=True)
    assert TradingParams.from_dict(json.loads(logged["params"])) == PARAMS


def test_a_second_run_goes_on_where_the_logs_end(root: DataRoot) -> None:
    """Like a bot that starts again: no signal stands twice."""
    run_sim(root, end="2025-11-18T10:06:00Z", params=PARAMS, scoring=SCORING)
    first = frames.load_events(root).frame
    run_sim(root, params=PARAMS, scoring=SCORING)
    both = frames.load_events(root).frame
    assert both.height > first.height
    signals = both.filter(pl.col("event_type") == "SCORING_UPDATE")
    assert not signals.select("symbol", "timestamp").is_duplicated().any()
    with pytest.raises(ReplayError, match="nothing to simulate"):
        run_sim(root, params=PARAMS, scoring=SCORING)


def test_logs_of_the_same_time_are_not_doubled(root: DataRoot) -> None:
    run_sim(root, params=PARAMS, scoring=SCORING)
    before = {path: path.read_bytes() for path in root.events_dir.iterdir()}
    with pytest.raises(ReplayError, match="replace"):
        run_sim(root, start="2025-11-18T10:00:00Z", params=PARAMS, scoring=SCORING)
    assert {path: path.read_bytes() for path in root.events_dir.iterdir()} == before


def test_a_simulation_replaces_an_earlier_one_and_nothing_else(root: DataRoot) -> None:
    """The earlier logs move to replaced/; those of other symbols stay, and orders of a live bot stop it."""
    run_sim(root, params=PARAMS, scoring=SCORING)
    before = {path.relative_to(root.path): path.read_bytes() for path in root.path.glob("*/*.jsonl")}
    other = PARAMS.replace(entry_threshold=0.9)
    result = run_sim(root, ["BTCUSDT"], params=other, scoring=SCORING, overlap="replace")
    assert result.replaced is not None
    assert (result.replaced / "events/BTCUSDT.jsonl").read_bytes() == before[Path("events/BTCUSDT.jsonl")]
    assert (root.path / "events/AIUSDT.jsonl").read_bytes() == before[Path("events/AIUSDT.jsonl")]
    moved = (result.replaced / "orders/day-2025-11-18.jsonl").read_bytes().splitlines()
    assert all(json.loads(line)["symbol"] == "BTCUSDT" for line in moved)
    events = frames.load_events(root, ["BTCUSDT"]).frame.filter(pl.col("event_type") == "SCORING_UPDATE")
    assert not events.select("timestamp").is_duplicated().any()
    logged = frames.load_trading_params(root).frame.row(-1, named=True)
    assert TradingParams.from_dict(json.loads(logged["params"])) == other
    # Again with the first parameters: the logs of the first run, to the byte.
    run_sim(root, ["BTCUSDT"], params=PARAMS, scoring=SCORING, overlap="replace")
    assert (root.path / "events/BTCUSDT.jsonl").read_bytes() == before[Path("events/BTCUSDT.jsonl")]
    path = root.path / "orders/day-2025-11-18.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"mode":"SIM"', b'"mode":"LIVE"', 1))
    kept = {each: each.read_bytes() for each in root.path.glob("*/*.jsonl")}
    with pytest.raises(ReplayError, match="mode LIVE"):
        run_sim(root, params=PARAMS, scoring=SCORING, overlap="replace")
    assert {each: each.read_bytes() for each in root.path.glob("*/*.jsonl")} == kept


def test_two_runs_on_equal_roots_write_equal_logs(root: DataRoot, tmp_path: Path) -> None:
    other = DataRoot(tmp_path / "other")
    other.path.mkdir()
    (other.path / "history").symlink_to(root.path / "history", target_is_directory=True)
    for each in (root, other):
        run_sim(each, params=PARAMS, scoring=SCORING)
    for name in ("events/BTCUSDT.jsonl", "events/AIUSDT.jsonl", "trades_log/day-2025-11-18.jsonl"):
        assert (root.path / name).read_bytes() == (other.path / name).read_bytes()


def test_a_symbol_without_market_data_is_named(root: DataRoot) -> None:
    with pytest.raises(ReplayError, match=r"DOGEUSDT.*there is AIUSDT, BTCUSDT"):
        run_sim(root, ["DOGEUSDT"])


def test_replay_mode_forbids_a_simulation(root: DataRoot) -> None:
    with pytest.raises(InterlockError):
        run_sim(root, run_mode="REPLAY")
    assert not root.events_dir.exists()


def test_a_simulation_leaves_the_whole_tree(tmp_path: Path) -> None:
    """With write_market: metrics, tape and book of each symbol as the logs and history have them; health always."""
    root = DataRoot(tmp_path)
    write_synthetic(root, seed=3, hours=0.05)
    sim = run_sim(root, params=TradingParams(entry_threshold=0.3), write_market=True)
    assert isinstance(frames.load_snapshot(root, "health"), HealthSnapshot)
    for symbol in sim.symbols:
        metrics = frames.load_metrics(root, symbol)
        assert metrics.rejects.is_empty()
        logged = sim.events.filter(symbol=symbol)
        for kind in ("SCORING", "REGIME"):
            rolled = metrics.frame.filter(type=f"{kind}_SNAPSHOT")
            assert rolled.height == logged.filter(event_type=f"{kind}_UPDATE").height
        features = metrics.frame.filter(type="FEATURE_SNAPSHOT")
        assert features.height >= 3  # one a minute
        assert any(orjson.loads(features["payload"][-1])["features"].values())
        tape = frames.load_market_trades_json(root, symbol)
        assert tape.rejects.is_empty()
        assert tape.frame.height > 50
        (book,) = frames.load_order_book_json(root, symbol).frame.iter_rows(named=True)
        assert book["bids"]
        assert book["asks"]
    session = build_replay_session(root, sim.start, sim.end, list(sim.symbols))
    assert fidelity(SessionStore(root).open(session.session_id)).is_identical
