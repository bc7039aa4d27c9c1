"""A sweep's result: what it says of itself, what it keeps, and how it judges its best row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib.figure import Figure

from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep import SweepResult, backtest, sweep
from replaylab.sweep.periods import every_ns, period_edges
from replaylab.sweep.plateaus import plateaus
from replaylab.sweep.statistics import deflated_sharpe_ratio, moments
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
        result.data["sharpe_per_trade"],
        trial_counts=result.data["n_trades"],
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
    assert minutes["pnl"].sum() == pytest.approx(result.data["net_pnl"][row])
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
    assert first["sl_pct"] == result.data["sl_pct"][first["row"]]
    by_sharpe = result.walk_forward("10m", "2m", every="30s", score="sharpe")
    assert by_sharpe.height == steps.height
    with pytest.raises(SweepError, match="multiple"):
        result.walk_forward("7m", "5m")
    with pytest.raises(SweepError, match="two periods"):
        result.walk_forward("10m", "2m", score="sharpe")


def test_robustness_ranks_plateaus(result: SweepResult) -> None:
    found = result.robustness(4)
    wanted = plateaus(result.data.with_row_index("row"), list(GRID), "net_pnl")
    assert found["robustness"].max() == wanted["robustness"].max()
    assert found["neighbours"].max() <= 4


def test_saved_and_loaded_is_the_same(result: SweepResult, tmp_path: Path) -> None:
    """Figures, parameters, digest, trial count and the best row's deflated Sharpe ratio survive; trades do not."""
    result.save(tmp_path / "deep" / "sweep.parquet")
    back = SweepResult.load(tmp_path / "deep" / "sweep.parquet")
    assert back.data.equals(result.data)
    assert (back.axes, back.params, back.session_id, back.digest, back.span) == (
        result.axes,
        result.params,
        result.session_id,
        result.digest,
        result.span,
    )
    assert back.deflated_sharpe() == result.deflated_sharpe()
    with pytest.raises(SweepError, match="figures alone"):
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


def test_pictures_hold_other_axes_where_they_are_told(result: SweepResult) -> None:
    for figure in (
        result.heatmap("tp2_pct", "sl_pct"),
        result.slices(),
        result.parallel_coordinates(),
        result.equity(),
    ):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()
    fixed = result.heatmap("tp2_pct", "sl_pct", fixed={"entry_threshold": 0.3}).axes[0].images[0].get_array()
    mine = result.data.filter(pl.col("entry_threshold") == 0.3).sort("sl_pct", "tp2_pct")["net_pnl"]
    np.testing.assert_array_equal(fixed.ravel(), mine.to_numpy())
    with pytest.raises(SweepError, match=r"there are \[0.3, 0.6\]"):
        result.heatmap("tp2_pct", "sl_pct", fixed={"entry_threshold": 9.0})
    with pytest.raises(SweepError, match="Did you mean 'sl_pct'"):
        result.heatmap("tp2_pct", "sl_pc")


def test_frames_come_as_they_were_asked_for(events: FakeSession) -> None:
    given = sweep(events, GRID, BASE, progress=False, give=lambda frame: frame.to_pandas())
    for frame in (given.frame, given.best(), given.trades(0), given.returns(0, "1h"), given.robustness()):
        assert isinstance(frame, pd.DataFrame)
    assert "deflated" in given._repr_html_()


def test_moments_of_a_row_are_those_of_its_trades(result: SweepResult) -> None:
    row = result.best_row()
    shape = moments(result.trades(row)["realized_pnl"].to_numpy())
    assert shape.sharpe == pytest.approx(result.data["sharpe_per_trade"][row])


@pytest.mark.parametrize("every", ["1w", "h", "0m", "1.5h", ""])
def test_a_period_is_a_length_of_time(every: str) -> None:
    with pytest.raises(SweepError, match="period"):
        every_ns(every)


def test_too_many_periods_are_refused() -> None:
    with pytest.raises(SweepError, match="too many"):
        period_edges((0, 10**18), 10**9)
