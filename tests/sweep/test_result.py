"""A sweep's result: what it says of itself, what it keeps, and how it judges its best row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep import SweepResult, backtest, sweep
from replaylab.sweep.evidence import deflated_sharpe_ratio, moments, plateaus
from tests.ml.sessions import FakeSession, random_rows, session

GRID = {"entry_threshold": [0.3, 0.6], "tp2_pct": [0.2, 0.4], "sl_pct": [0.1, 0.2, 0.3]}
BASE = TradingParams(tp1_pct=0.1, taker_fee_bps=0.5, maker_fee_bps=0.2, slippage_bps=0.1)


@pytest.fixture(scope="module")
def events() -> FakeSession:
    return session(random_rows(11, 6000, ("BTCUSDT", "ETHUSDT")))


@pytest.fixture(scope="module")
def result(events: FakeSession) -> SweepResult:
    return sweep(events, GRID, BASE, progress=False)


def test_best_and_trades_belong_to_the_same_row(events: FakeSession, result: SweepResult) -> None:
    top = result.best(3)
    assert top["net_pnl"].is_sorted(descending=True)
    row = result.best_row()
    assert row == top["row"][0]
    trades = result.trades(row)
    assert trades["realized_pnl"].sum() == pytest.approx(top["net_pnl"][0])
    assert trades.equals(backtest(events, result.params_of(row)).trades)


def test_deflated_sharpe_counts_all_rows_and_what_was_tried_before(result: SweepResult) -> None:
    row = result.best_row("sharpe_per_trade")
    found = result.deflated_sharpe(row)
    wanted = deflated_sharpe_ratio(
        result.trades(row)["realized_pnl"].to_numpy(),
        result.frame["sharpe_per_trade"],
        trial_counts=result.frame["n_trades"],
    )
    assert found == wanted
    assert found.n_trials == 12
    more = sweep(session(random_rows(11, 500)), GRID, BASE, progress=False)
    more.earlier_trials = 1000
    assert more.deflated_sharpe().threshold > 0
    assert more.n_trials == 1012


def test_returns_add_up_to_the_pnl(result: SweepResult) -> None:
    """Every trade falls into one period, quiet periods are there with 0, and periods start on the clock."""
    row = result.best_row()
    minutes = result.returns(row, "5m")
    assert minutes["pnl"].sum() == pytest.approx(result.frame["net_pnl"][row])
    assert (minutes["timestamp"].dt.minute() % 5 == 0).all()
    assert minutes["timestamp"].diff().drop_nulls().n_unique() == 1
    exits = result.trades(row)
    third = minutes.row(2, named=True)
    inside = exits.filter(
        pl.col("exit_time").is_between(third["timestamp"], minutes["timestamp"][3], closed="left")
    )
    assert third["pnl"] == pytest.approx(inside["realized_pnl"].sum())


def test_overfitting_and_walk_forward_run_over_the_rows(result: SweepResult) -> None:
    found = result.overfitting(n_blocks=6)
    assert found.n_trials == 12
    assert 0 <= found.probability <= 1
    steps = result.walk_forward("10m", "2m")
    assert steps.height >= 2
    first = steps.row(0, named=True)
    train = [
        result.trades(row).filter(
            pl.col("exit_time").is_between(first["train_start"], first["test_start"], closed="left")
        )
        for row in range(12)
    ]
    assert first["row"] == int(np.argmax([frame["realized_pnl"].sum() for frame in train]))
    assert first["in_sample"] == pytest.approx(train[first["row"]]["realized_pnl"].sum() / 5)
    assert first["sl_pct"] == result.frame["sl_pct"][first["row"]]
    by_sharpe = result.walk_forward("10m", "2m", every="30s", score="sharpe")
    assert by_sharpe.height == steps.height
    with pytest.raises(SweepError, match="multiple"):
        result.walk_forward("7m", "5m")
    with pytest.raises(SweepError, match="two periods"):
        result.walk_forward("10m", "2m", score="sharpe")


def test_robustness_ranks_plateaus(result: SweepResult) -> None:
    found = result.robustness(4)
    wanted = plateaus(result.frame.with_row_index("row"), list(GRID), "net_pnl")
    assert found["robustness"].max() == wanted["robustness"].max()
    assert found["neighbours"].max() <= 4


def test_saved_and_loaded_is_the_same(result: SweepResult, tmp_path: Path) -> None:
    """Metrics, parameters, digest, trial count and the best row's deflated Sharpe ratio survive; trades do not."""
    result.save(tmp_path / "deep" / "sweep.parquet")
    back = SweepResult.load(tmp_path / "deep" / "sweep.parquet")
    assert back.frame.equals(result.frame)
    assert (back.axes, back.params, back.session_id, back.digest, back.span) == (
        result.axes,
        result.params,
        result.session_id,
        result.digest,
        result.span,
    )
    assert back.deflated_sharpe() == result.deflated_sharpe()
    with pytest.raises(SweepError, match="metrics alone"):
        back.trades(0)
    other = (result.best_row() + 1) % 12
    assert back.deflated_sharpe(other).moments.kurtosis == 3.0
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["sweep.parquet"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(SweepError, match="not a saved sweep"):
            SweepResult.load(tmp_path / name)


def test_the_cell_shows_best_rows_trials_and_the_judgement(result: SweepResult) -> None:
    html = result._repr_html_()
    assert "Sweep of 12 combinations" in html
    assert "12 trials" in html
    assert "deflated Sharpe ratio" in html
    assert html.count("<tr>") == 6
    assert "12 combinations" in repr(result)


def test_a_result_without_trades_says_so(events: FakeSession) -> None:
    none = sweep(events, {"entry_threshold": [5.0, 6.0]}, BASE, progress=False)
    assert "too few trades (0)" in none._repr_html_()
    assert math.isnan(none.deflated_sharpe().probability)
    assert none.robustness()["robustness"].to_list() == [0.0, 0.0]


def test_plots_hold_other_axes_where_they_are_fixed(result: SweepResult) -> None:
    for figure in (
        result.heatmap("tp2_pct", "sl_pct"),
        result.slices(),
        result.parallel_coordinates(),
        result.equity(),
    ):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()
    fixed = result.heatmap("tp2_pct", "sl_pct", fixed={"entry_threshold": 0.3}).axes[0].images[0].get_array()
    mine = result.frame.filter(pl.col("entry_threshold") == 0.3).sort("sl_pct", "tp2_pct")["net_pnl"]
    np.testing.assert_array_equal(fixed.ravel(), mine.to_numpy())
    with pytest.raises(SweepError, match=r"there are \[0.3, 0.6\]"):
        result.heatmap("tp2_pct", "sl_pct", fixed={"entry_threshold": 9.0})
    with pytest.raises(SweepError, match="Did you mean 'sl_pct'"):
        result.heatmap("tp2_pct", "sl_pc")


def test_moments_of_a_row_are_those_of_its_trades(result: SweepResult) -> None:
    row = result.best_row()
    shape = moments(result.trades(row)["realized_pnl"].to_numpy())
    assert shape.sharpe == pytest.approx(result.frame["sharpe_per_trade"][row])


def test_a_session_runs_its_recorded_parameters(events: FakeSession) -> None:
    """None: the recorded parameters, or the default; a dict: changes to them; every result states which."""
    recorded = session(random_rows(11, 800))
    recorded.recorded_params = BASE  # type: ignore[attr-defined]
    result = sweep(recorded, {"sl_pct": [0.1, 0.2]}, progress=False)
    assert (result.params, result.params_source, result.changes) == (BASE, "recorded", {})
    assert "recorded parameters" in repr(result)
    changed = backtest(recorded, {"tp1_pct": 0.2})
    assert changed.params == BASE.replace(tp1_pct=0.2)
    assert changed.changes == {"tp1_pct": (0.1, 0.2)}
    assert "tp1_pct 0.1 → 0.2" in repr(changed)
    assert backtest(events, default=BASE).params_source == "config"
    assert backtest(recorded, TradingParams()).params_source == "given"


def test_assumptions_name_prices_and_parameters(result: SweepResult, tmp_path: Path) -> None:
    """One line: source and median spacing per symbol, and whose parameters; a saved result keeps it."""
    assert "BTCUSDT trade (" in result.assumptions
    assert "s apart)" in result.assumptions
    assert result.assumptions.endswith(result.setup)
    back = SweepResult.load(result.save(tmp_path / "sweep.parquet"))
    assert (back.assumptions, back.changes) == (result.assumptions, result.changes)
