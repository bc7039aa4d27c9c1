"""Fidelity: the project's own logs decide again as they did; what differs is named; what a cut cannot judge is not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replaylab.errors import ConfigError, ReplayError
from replaylab.importers import import_history
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import fidelity, run_sim
from replaylab.sessions import Session, SessionStore, build_replay_session
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
    counts = report.counts
    assert counts["decisions"]["identical"] == report.decisions.height > 1500
    assert counts["trades"]["identical"] == report.trades.height > 20
    assert counts["orders"]["identical"] == report.orders.height > 60
    assert {"trade", "order", "EXECUTION_FILL", "EXECUTION_EXIT", "SCORING_UPDATE"} <= set(
        report.summary["record"]
    )
    assert set(report.shares.values()) == {1.0}
    assert "100 % identical" in repr(report)
    assert "100 % of PnL" in report.headline
    assert "100 % identical" in report._repr_html_()


@pytest.mark.parametrize("mode", ["SCORING_ONLY", "FULL_DECISION"])
def test_a_cut_out_of_the_middle_decides_exactly_too(root: DataRoot, mode: str) -> None:
    """Positions that were open at the cut are set apart, hold their place under the account's limits, and the scoring
    engine sees the market data from before; all else is identical in both inject modes."""
    seen = set()
    for first in (3, 4.5, 6.2, 7.7, 9.1):
        report = fidelity(cut(root, first, first + 3.3, session_id=f"cut-{first}"), mode)
        assert report.is_identical, (first, report.headline, report.differences)
        counts = report.counts["decisions"]
        assert counts["identical"] > 500
        assert counts["carried_in"] < 0.2 * counts["identical"]
        for kind in report.counts.values():
            seen |= {name for name, count in kind.items() if count}
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
            assert report.is_identical, (first, mode, report.headline)
            assert report.counts["decisions"]["identical"] > 500


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
            assert report.is_identical, (mode, report.headline)
            assert report.counts["decisions"]["identical"] > 300


def test_other_parameters_are_found_out_with_time_inputs_and_reason(root: DataRoot) -> None:
    report = fidelity(cut(root, 0, 16), params=PARAMS.replace(entry_threshold=0.6, sl_pct=0.08))
    share = report.shares["decisions"]
    assert share is not None
    assert 0.2 < share < 0.99
    assert report.changes == {"entry_threshold": (0.3, 0.6), "sl_pct": (0.05, 0.08)}
    decisions = report.differences.filter(kind="decision")
    assert decisions.filter(event="EXECUTION_FILL", status="missing").height > 3
    assert report.differences.filter(kind="trade", status="missing").height > 3
    first = decisions.filter(status="different").row(0, named=True)
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


# Planted changes: each is made in a copy of the logs, after the session was built.

Line = dict[str, Any]
Lines = list[Line]


def field(name: str, change: Callable[[Any], Any]) -> Callable[[Line], None]:
    def apply(line: Line) -> None:
        *path, last = name.split(".")
        for part in path:
            line = line[part]
        line[last] = change(line[last])

    return apply


def one(
    edit: Callable[[Line], object], which: Callable[[Line], bool] = lambda _: True
) -> Callable[[Lines], Lines]:
    """Change one line out of the middle."""

    def apply(lines: Lines) -> Lines:
        chosen = [line for line in lines if which(line)]
        edit(chosen[len(chosen) // 2])
        return lines

    return apply


def without(which: Callable[[Line], bool] = lambda _: True) -> Callable[[Lines], Lines]:
    def apply(lines: Lines) -> Lines:
        chosen = [line for line in lines if which(line)]
        return [line for line in lines if line is not chosen[len(chosen) // 2]]

    return apply


def twice(change: Callable[[Line], object]) -> Callable[[Lines], Lines]:
    """Add a line like one of the middle, a little later."""

    def apply(lines: Lines) -> Lines:
        extra = copy.deepcopy(lines[len(lines) // 2])
        change(extra)
        return [*lines, extra]

    return apply


def filled(line: Line) -> bool:
    return bool(line["status"] == "FILLED")


def score(line: Line) -> bool:
    return bool(line["eventType"] == "SCORING_UPDATE")


def fill(line: Line) -> bool:
    return bool(line["eventType"] == "EXECUTION_FILL")


LATER = "2025-11-18T10:07:00.123Z"
TRADES, ORDERS, EVENTS = "trades_log/*.jsonl", "orders/*.jsonl", "events/BTCUSDT.jsonl"
PLANTED: dict[str, tuple[str, Callable[[Lines], Lines], str, str, str]] = {
    "trade PnL +5": (
        TRADES,
        one(field("realizedPnl", lambda x: x + 5)),
        "trade",
        "different",
        "realized_pnl",
    ),
    "close price +0.1 %": (
        TRADES,
        one(field("closePrice", lambda x: x * 1.001)),
        "trade",
        "different",
        "close_price",
    ),
    "entry price +0.1 %": (
        TRADES,
        one(field("entryPrice", lambda x: x * 1.001)),
        "trade",
        "different",
        "entry_price",
    ),
    "fees doubled": (TRADES, one(field("fees", lambda x: x * 2)), "trade", "different", "fees"),
    "leverage x10": (TRADES, one(field("leverage", lambda x: x * 10)), "trade", "different", "leverage"),
    "MFE changed": (TRADES, one(field("mfe", lambda x: x + 1)), "trade", "different", "mfe"),
    "MAE changed": (TRADES, one(field("mae", lambda x: x - 1)), "trade", "different", "mae"),
    "trade reason": (TRADES, one(field("reason", lambda _: "LIQUIDATED")), "trade", "different", "reason"),
    "trade deleted": (TRADES, without(), "trade", "added", ""),
    "trade added": (
        TRADES,
        twice(lambda line: line.update(timestamp=LATER, entryTimestamp="2025-11-18T10:06:59.000Z")),
        "trade",
        "missing",
        "",
    ),
    "fill price +1 %": (
        ORDERS,
        one(field("avgFillPrice", lambda x: x * 1.01), filled),
        "order",
        "different",
        "avg_fill_price",
    ),
    "order quantity": (ORDERS, one(field("qty", lambda x: x * 2)), "order", "different", "qty"),
    "FILLED line deleted": (ORDERS, without(filled), "order", "added", ""),
    "order added": (ORDERS, twice(lambda line: line.update(timestamp=LATER)), "order", "missing", ""),
    "reason of a state event": (
        EVENTS,
        one(field("reason", lambda _: "because"), score),
        "decision",
        "different",
        "reason",
    ),
    "score": (EVENTS, one(field("extra.score", lambda x: x + 0.01), score), "decision", "different", "score"),
    "a component": (
        EVENTS,
        one(lambda line: line["extra"]["components"].update(flow=9.0), score),
        "decision",
        "different",
        "extra.components.flow",
    ),
    "state after a fill": (
        EVENTS,
        one(field("toState", lambda _: "IDLE"), fill),
        "decision",
        "different",
        "to_state",
    ),
    "state event deleted": (EVENTS, without(score), "decision", "added", ""),
    "state event added": (
        EVENTS,
        twice(lambda line: line.update(timestamp=LATER)),
        "decision",
        "missing",
        "",
    ),
    "event file missing": (EVENTS, lambda lines: [], "decision", "added", ""),
}


@pytest.fixture(scope="module")
def whole(root: DataRoot) -> Session:
    return cut(root, 0, 16)


@pytest.mark.parametrize("mode", ["SCORING_ONLY", "FULL_DECISION"])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_is_found_and_named(whole: Session, tmp_path: Path, name: str, mode: str) -> None:
    """Every change of a logged trade, order or decision shows with its kind, status and field, and below 100 %."""
    pattern, change, kind, status, what = PLANTED[name]
    root = DataRoot(tmp_path / "data")
    for part in ("events", "orders", "trades_log", "replay"):
        shutil.copytree(whole.root.path / part, root.path / part)
    (root.path / "history").symlink_to(whole.root.path / "history", target_is_directory=True)
    (path,) = root.path.glob(pattern)
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = fidelity(SessionStore(root).open(whole.id), mode)
    assert not report.is_identical
    assert report.share is not None
    assert report.share < 1.0
    assert "100 % identical" not in report.headline
    found = report.differences.filter(kind=kind, status=status)
    assert found.height >= 1
    if name == "event file missing":
        assert found.height > 500
        assert "BTCUSDT: no state events are logged" in report.headline
        return
    assert found.height == 1
    assert (found["what"][0] or "") == what
    if what and kind == "trade" and name.endswith("+5"):
        logged, replayed = json.loads(found["logged"][0]), json.loads(found["replayed"][0])
        assert logged["realized_pnl"] == pytest.approx(replayed["realized_pnl"] + 5)
