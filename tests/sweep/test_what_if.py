"""What if: the logged trades come back under the recorded parameters, and every difference is accounted for."""

from __future__ import annotations

import polars as pl
import pytest

from replaylab.errors import SweepError
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import run_sim
from replaylab.sessions import Session, build_replay_session
from replaylab.sweep import match_trades, what_if
from replaylab.timestamps import iso, to_ns

PARAMS = TradingParams(
    entry_threshold=0.3, tp1_pct=0.05, tp2_pct=0.1, sl_pct=0.05, max_hold_s=120, latency_ms=50, cooldown_s=5
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    root = DataRoot(tmp_path_factory.mktemp("data"))
    write_synthetic(root, seed=7, hours=0.25)
    sim = run_sim(root, params=PARAMS, scoring=ScoringParams(interval_ms=1000))
    assert sim.trades.height > 20
    return root


def cut(root: DataRoot, minutes: float, **options: object) -> Session:
    start = to_ns("2025-11-18T10:00:00Z")
    end = iso(start + round(minutes * 60e9))
    manifest = build_replay_session(
        root, iso(start), end, ["AIUSDT", "BTCUSDT"], **{"if_exists": "reuse", **options}
    )  # type: ignore[arg-type]
    return Session(root, manifest.session_id)


def test_the_recorded_parameters_give_the_logged_trades(root: DataRoot) -> None:
    """On the project's own SIM logs nothing differs: entries, exits, reasons, prices, PnL."""
    session = cut(root, 16)
    found = what_if(session)
    assert found.params == PARAMS
    assert found.is_same
    assert found.counts["same"] == found.trades.height > 20
    assert found.difference == pytest.approx(0.0, abs=1e-9)
    assert found.trades["reason_logged"].null_count() == 0


def test_without_execution_events_the_trade_log_will_do(root: DataRoot) -> None:
    session = cut(
        root,
        16,
        include_types=["SCORING_UPDATE", "REGIME_UPDATE", "MARKET_TRADE", "MARKET_BOOK"],
        session_id="bare",
    )
    found = what_if(session)
    assert found.is_same
    assert found.trades.height > 20
    assert found.trades["reason_logged"].null_count() == 0


def test_what_the_session_cuts_off_is_not_held_against_it(root: DataRoot) -> None:
    """Wherever the session ends: a position that was closed later in the logs is set apart, not called added."""
    some_cut = 0
    for minutes in (5.0, 5.5, 6.0, 6.5, 7.0):
        found = what_if(cut(root, minutes))
        assert found.is_same, minutes
        some_cut += found.cut_off.height
    assert some_cut > 0


def test_other_parameters_change_avoid_and_add(root: DataRoot) -> None:
    """The difference of each trade is the sum of its parts, and all of them that of the PnL."""
    session = cut(root, 16)
    found = what_if(session, PARAMS.replace(sl_pct=0.1, max_hold_s=None, notional_usd=2000.0))
    counts = found.counts
    assert counts["changed"]
    assert counts["avoided"]
    table = found.trades
    pairs = table.filter(pl.col("status") == "changed")
    parts = pairs.select(
        pl.sum_horizontal("size_effect", "entry_effect", "exit_effect", "fee_effect")
    ).to_series()
    assert (parts - pairs["difference"]).abs().max() < 1e-9
    avoided = table.filter(pl.col("status") == "avoided")
    assert (avoided["difference"] + avoided["realized_pnl_logged"]).abs().max() == 0
    assert table["realized_pnl"].sum() - table["realized_pnl_logged"].sum() == pytest.approx(found.difference)
    assert found.summary["trades"].sum() == table.height
    assert "avoided" in found._repr_html_()
    assert "changed" in repr(found)
    assert found.plot()._repr_png_()


def test_no_entries_avoid_everything(root: DataRoot) -> None:
    found = what_if(cut(root, 16), PARAMS.replace(entry_threshold=9.0))
    assert found.counts["avoided"] == found.trades.height
    assert found.difference == pytest.approx(-found.trades["realized_pnl_logged"].sum())


def trades(*rows: tuple[str, int, int, float]) -> pl.DataFrame:
    start = pl.Series([to_ns("2025-11-18") + row[1] * 10**9 for row in rows], dtype=pl.Int64)
    end = pl.Series([to_ns("2025-11-18") + row[2] * 10**9 for row in rows], dtype=pl.Int64)
    size = len(rows)
    return pl.DataFrame(
        {
            "symbol": pl.Series(["BTCUSDT"] * size, dtype=pl.String),
            "side": pl.Series([row[0] for row in rows], dtype=pl.String),
            "entry_time": start.cast(pl.Datetime("ns", "UTC")),
            "exit_time": end.cast(pl.Datetime("ns", "UTC")),
            "entry_price": [100.0] * size,
            "close_price": [100.0 + row[3] for row in rows],
            "qty": [1.0] * size,
            "reason": pl.Series(["TP2"] * size, dtype=pl.String),
            "realized_pnl": [row[3] for row in rows],
        },
        schema_overrides={
            "entry_price": pl.Float64,
            "close_price": pl.Float64,
            "qty": pl.Float64,
            "realized_pnl": pl.Float64,
        },
    )


def test_matching_of_hand_worked_trades() -> None:
    """Same entry first; then the largest overlap, once each; never across sides or without a shared moment."""
    logged = trades(
        ("LONG", 0, 10, 1.0), ("LONG", 20, 30, 2.0), ("LONG", 40, 50, 3.0), ("SHORT", 60, 70, 4.0)
    )
    replayed = trades(
        ("LONG", 0, 10, 1.0), ("LONG", 22, 35, 5.0), ("LONG", 29, 33, 6.0), ("LONG", 62, 70, 7.0)
    )
    found = match_trades(logged, replayed)
    rows = found.select("status", "realized_pnl_logged", "realized_pnl", "difference").rows()
    assert rows == [
        ("same", 1.0, 1.0, 0.0),
        ("changed", 2.0, 5.0, 3.0),
        ("added", None, 6.0, 6.0),
        ("avoided", 3.0, None, -3.0),
        ("avoided", 4.0, None, -4.0),
        ("added", None, 7.0, 7.0),
    ]
    assert found["exit_effect"].to_list()[:2] == [0.0, 3.0]


def test_nothing_logged_and_nothing_replayed() -> None:
    none = trades()
    assert match_trades(none, none).height == 0
    assert match_trades(trades(("LONG", 0, 1, 1.0)), none)["status"].to_list() == ["avoided"]
    assert match_trades(none, trades(("LONG", 0, 1, 1.0)))["status"].to_list() == ["added"]


def test_without_recorded_parameters_they_must_be_named(root: DataRoot) -> None:
    session = cut(root, 16)
    session.__dict__["recorded_params"] = None
    with pytest.raises(SweepError, match="name the parameters"):
        what_if(session)


def test_further_fields_can_be_compared() -> None:
    """``what`` names each field that differs; a field that the log does not have is not compared."""
    logged = trades(("LONG", 0, 10, 1.0)).with_columns(fees=pl.lit(0.5), mfe=pl.lit(None, pl.Float64))
    replayed = trades(("LONG", 0, 11, 2.0)).with_columns(fees=pl.lit(1.0), mfe=pl.lit(3.0))
    found = match_trades(logged, replayed, fields=("exit_time", "reason", "realized_pnl", "fees", "mfe"))
    assert found["what"].to_list() == ["exit_time, realized_pnl, fees"]
    assert found.select("fees_logged", "fees").row(0) == (0.5, 1.0)


def test_changes_start_from_the_recorded_parameters(root: DataRoot) -> None:
    """A dict changes what was recorded; the comparison names both values."""
    found = what_if(cut(root, 16), {"sl_pct": 0.1})
    assert found.params == PARAMS.replace(sl_pct=0.1)
    assert (found.params_source, found.changes) == ("recorded", {"sl_pct": (0.05, 0.1)})
    assert "recorded parameters, sl_pct 0.05 → 0.1" in repr(found)
    assert "AIUSDT trade" in found.assumptions
