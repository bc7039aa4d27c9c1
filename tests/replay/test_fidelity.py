"""Fidelity: the project's own logs decide again as they did; what differs is named; what a cut cannot judge is not."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from replaylab.errors import ConfigError, ReplayError
from replaylab.importers import import_history
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import fidelity, run_sim
from replaylab.sessions import Session, build_replay_session
from replaylab.timestamps import iso, to_ns

START = to_ns("2025-11-18T10:00:00Z")
MINUTE = 60_000_000_000
PARAMS = TradingParams(
    entry_threshold=0.3,
    exit_threshold=-0.5,
    tp1_pct=0.05,
    tp2_pct=0.1,
    sl_pct=0.05,
    trailing_activation_pct=0.03,
    max_hold_s=120,
    latency_ms=50,
    cooldown_s=5,
    max_open_positions=1,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    root = DataRoot(tmp_path_factory.mktemp("data"))
    write_synthetic(root, seed=7, hours=0.25)
    sim = run_sim(root, params=PARAMS, scoring=ScoringParams(interval_ms=500, warmup_s=20))
    assert sim.trades.height > 20
    return root


def cut(root: DataRoot, first: float, last: float, **options: object) -> Session:
    manifest = build_replay_session(
        root,
        iso(START + round(first * MINUTE)),
        iso(START + round(last * MINUTE)),
        ["AIUSDT", "BTCUSDT"],
        **{"if_exists": "reuse", **options},  # type: ignore[arg-type]
    )
    return Session(root, manifest.session_id)


@pytest.mark.parametrize("mode", ["SCORING_ONLY", "FULL_DECISION"])
def test_own_logs_are_decided_again_exactly(root: DataRoot, mode: str) -> None:
    """Every signal, fill and exit of the SIM run: 100 % identical in both inject modes."""
    report = fidelity(cut(root, 0, 16), mode)
    assert report.share == 1.0
    assert report.is_identical
    assert report.counts["identical"] == report.decisions.height > 1500
    assert report.counts["carried_in"] == report.counts["cut_off"] == 0
    assert {"EXECUTION_FILL", "EXECUTION_EXIT", "SCORING_UPDATE", "REGIME_UPDATE"} <= set(
        report.summary["event_type"]
    )
    assert "100 % identical" in repr(report)
    assert "100 % identical" in report._repr_html_()


@pytest.mark.parametrize("mode", ["SCORING_ONLY", "FULL_DECISION"])
def test_a_cut_out_of_the_middle_decides_exactly_too(root: DataRoot, mode: str) -> None:
    """Positions that were open at the cut are set apart, hold their place under the account's limits, and the scoring
    engine sees the market data from before; all else is identical in both inject modes."""
    seen = set()
    for first in (3, 4.5, 6.2, 7.7, 9.1):
        report = fidelity(cut(root, first, first + 3.3, session_id=f"cut-{first}"), mode)
        counts = report.counts
        assert report.is_identical, (first, counts)
        assert counts["identical"] > 500
        assert counts["carried_in"] < 0.2 * counts["identical"]
        seen |= {name for name, count in counts.items() if count}
    assert seen == {"identical", "carried_in", "cut_off"}


def test_a_bot_that_started_again_is_replayed_from_what_it_knew(
    root: DataRoot, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two runs, one after the other. The second began with the book and regimes of that moment, and so does a replay of
    its range, or of a piece of it."""
    other = DataRoot(tmp_path_factory.mktemp("again"))
    (other.path / "history").symlink_to(root.path / "history", target_is_directory=True)
    scoring = ScoringParams(interval_ms=500, warmup_s=20, trend_half_life_s=15)
    run_sim(other, end=iso(START + 6 * MINUTE), params=PARAMS, scoring=scoring)
    again = run_sim(other, params=PARAMS.replace(allowed_regimes=("CALM", "TRENDING")), scoring=scoring)
    assert again.trades.height > 5
    for first in ((to_ns(again.start) - START) / MINUTE, 8.5):
        session = cut(other, first, 16, session_id=f"again-{first:.0f}")
        assert session.initial_state is not None
        assert session.initial_state["symbols"]["BTCUSDT"]["regime"] is not None
        for mode in ("SCORING_ONLY", "FULL_DECISION"):
            report = fidelity(session, mode)
            assert report.is_identical, (first, mode, report.counts)
            assert report.counts["identical"] > 500


def test_recorded_markets_are_decided_again_exactly(real_data: Path, tmp_path: Path) -> None:
    """A simulation over a captured BTCUSDT market (trades, book snapshot and deltas; three minutes): identical in both
    modes, whole and cut."""
    root = DataRoot(tmp_path)
    import_history(root, "binance-capture", real_data / "binance-capture" / "btcusdt_20240718.gz")
    params = PARAMS.replace(tp1_pct=0.01, tp2_pct=0.02, sl_pct=0.01, max_hold_s=10)
    sim = run_sim(root, params=params, scoring=ScoringParams(interval_ms=100, warmup_s=10))
    assert sim.trades.height > 5
    start, end = to_ns(sim.start), to_ns(sim.end)
    for first, last in ((start, end), (start + (end - start) // 3, end - (end - start) // 4)):
        manifest = build_replay_session(root, iso(first), iso(last), ["BTCUSDT"])
        for mode in ("SCORING_ONLY", "FULL_DECISION"):
            report = fidelity(Session(root, manifest.session_id), mode)
            assert report.is_identical, (mode, report.counts)
            assert report.counts["identical"] > 300


def test_other_parameters_are_found_out_with_time_inputs_and_reason(root: DataRoot) -> None:
    report = fidelity(cut(root, 0, 16), params=PARAMS.replace(entry_threshold=0.6, sl_pct=0.08))
    assert report.share is not None
    assert 0.2 < report.share < 0.99
    missing = report.differences.filter(
        (pl.col("event_type") == "EXECUTION_FILL") & (pl.col("status") == "missing")
    )
    assert missing.height > 3
    first = report.differences.filter(pl.col("status") == "different").row(0, named=True)
    assert "to_state" in first["what"]
    assert (first["reason"], first["reason_replayed"]) == ("entry submitted", "score below entry threshold")
    assert 0.3 <= abs(json.loads(first["inputs"])["score"]) < 0.6
    assert report.plot().axes


def test_another_scoring_is_found_out(root: DataRoot) -> None:
    scoring = ScoringParams(interval_ms=500, warmup_s=20, gain=1.6)
    report = fidelity(cut(root, 0, 16), "FULL_DECISION", scoring=scoring)
    signals = report.decisions.filter(pl.col("event_type") == "SCORING_UPDATE")
    assert (signals["status"] == "different").mean() > 0.9
    assert "score" in signals.row(0, named=True)["what"]


def test_what_is_lacking_is_named(root: DataRoot, tmp_path_factory: pytest.TempPathFactory) -> None:
    session = cut(root, 0, 16)
    with pytest.raises(ConfigError, match="FULL_DECISION"):
        fidelity(session, "FULL")
    session.__dict__["recorded_params"] = None
    with pytest.raises(ReplayError, match="recorded parameters"):
        fidelity(session)
    session.__dict__["recorded_params"] = PARAMS
    session.__dict__["recorded_scoring"] = None
    with pytest.raises(ReplayError, match="scoring"):
        fidelity(session, "FULL_DECISION")
