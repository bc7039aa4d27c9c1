"""A sweep's result: what it says of itself, what it keeps, and how it judges its best row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from benchmarks import evidence as benchmark
from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep import SweepResult, backtest, plateaus, sweep
from replaylab.sweep.evidence import deflated_sharpe_ratio, effective_trials
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
    """2026: as many trials as the rows amount to; 2014: the rows and the variance of their ratios."""
    row = result.best_row("sharpe_per_trade")
    found = result.deflated_sharpe(row)
    _, pnl = result.pnl_by_period()
    own = result.trades(row)["realized_pnl"].to_numpy()
    assert found == deflated_sharpe_ratio(own, effective_trials(pnl))
    enough = result.frame.filter(pl.col("n_trades") >= 30)["sharpe_per_trade"].to_numpy()
    old = result.deflated_sharpe(row, form="2014")
    assert old == deflated_sharpe_ratio(own, 12, form="2014", trial_sharpes=enough)
    more = replace(result, earlier_trials=1000)
    assert more.deflated_sharpe(row).threshold > found.threshold
    assert more.n_trials == 1012


def test_pnl_by_period_is_that_of_the_trades(result: SweepResult) -> None:
    """Every row's PnL by the exits of its trades; the best row takes part however few rows do."""
    rows, pnl = result.pnl_by_period(20)
    assert pnl.shape == (20, 12)
    edges = result.clock(20).edges
    for row in rows:
        trades = result.trades(row)
        place = np.searchsorted(edges, trades["exit_time"].dt.timestamp("ns").to_numpy(), side="right") - 1
        wanted = np.bincount(place, trades["realized_pnl"].to_numpy(), minlength=20)
        np.testing.assert_allclose(pnl[:, row], wanted, atol=1e-9)
    few, _ = result.pnl_by_period(20, max_trials=2)
    assert result.best_row() in few


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
    """Metrics, parameters, digest, trial count and the verdict survive; trades do not."""
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
    assert back.verdict().to_dict() == result.verdict().to_dict()
    with pytest.raises(SweepError, match="metrics alone"):
        back.trades(0)
    with pytest.raises(SweepError, match="metrics alone"):
        back.overfitting()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["sweep.parquet"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(SweepError, match="not a saved sweep"):
            SweepResult.load(tmp_path / name)


def test_the_best_row_takes_part_in_every_statistic(result: SweepResult) -> None:
    """Rows are spread evenly over a large result, and the best one is added where it is not among them."""
    best = result.best_row()
    for most in range(2, 12):
        rows, pnl = result.pnl_by_period(max_trials=most)
        assert best in rows
        assert pnl.shape == (96, len(rows))
    assert result.overfitting(8, max_trials=2).n_trials in (2, 3)


def test_every_repr_shows_the_verdict(result: SweepResult) -> None:
    verdict = result.verdict()
    html = result._repr_html_()
    assert "Sweep of 12 combinations" in html
    assert html.count("<tr>") == 6
    assert "12 combinations" in repr(result)
    for shown in (html, repr(result)):
        assert verdict.title in shown
        assert verdict.reasons[0].split(":")[0] in shown


def test_a_result_without_trades_says_so(events: FakeSession) -> None:
    none = sweep(events, {"entry_threshold": [5.0, 6.0]}, BASE, progress=False)
    assert none.verdict().level == "insufficient"
    assert "the most is 0" in none._repr_html_()
    assert none.robustness()["robustness"].to_list() == [0.0, 0.0]


def test_rows_with_few_trades_come_last_and_are_marked(result: SweepResult) -> None:
    """A lucky row of one trade is not first, and a row without trades does not beat rows that lose."""
    counts = [1, 0, 40, 50, 29, 31, 0, 2, 3, 4, 5, 6]
    pnl = [99.0, 0.0, -5.0, -4.0, 50.0, -9.0, 0.0, 1.0, -1.0, 1.0, 1.0, 1.0]
    frame = result.frame.with_columns(
        n_trades=pl.Series(counts, dtype=pl.Int32),
        net_pnl=pl.Series(pnl),
        sharpe_per_trade=pl.Series(pnl),
    )
    other = replace(result, frame=frame)
    top = other.best(12)
    assert top["row"].to_list()[:5] == [3, 2, 5, 0, 4]
    assert set(top["row"].to_list()[-2:]) == {1, 6}
    assert top["enough_trades"].to_list() == [True] * 3 + [False] * 9
    assert top.columns[:7] == ["row", "net_pnl", "n_trades", "enough_trades", *GRID]
    assert other.best(3, "sharpe_per_trade").columns[:3] == ["row", "sharpe_per_trade", "net_pnl"]
    assert other.best_row() == 3
    assert other.best(1, min_trades=1)["row"][0] == 0
    robust = other.robustness(12)
    assert robust["enough_trades"].to_list() == [True] * 3 + [False] * 9
    assert robust.columns[:8] == ["row", "robustness", "net_pnl", "n_trades", "enough_trades", *GRID]
    assert "pale: fewer than 30 trades" in other._repr_html_()
    assert other._repr_html_().count("opacity:0.5") == 2
    thick = [line for line in other.parallel_coordinates().axes[0].lines if line.get_linewidth() == 2.4]
    assert len(thick) == 3


def test_plots_hold_other_axes_where_they_are_fixed(result: SweepResult) -> None:
    for figure in (
        result.heatmap("tp2_pct", "sl_pct"),
        result.slices(),
        result.parallel_coordinates(),
        result.equity(),
    ):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()
    fixed = (
        result.heatmap("tp2_pct", "sl_pct", fixed={"entry_threshold": 0.3}, min_trades=0)
        .axes[0]
        .images[0]
        .get_array()
    )
    mine = result.frame.filter(pl.col("entry_threshold") == 0.3).sort("sl_pct", "tp2_pct")["net_pnl"]
    np.testing.assert_array_equal(fixed.ravel(), mine.to_numpy())
    with pytest.raises(SweepError, match=r"there are \[0.3, 0.6\]"):
        result.heatmap("tp2_pct", "sl_pct", fixed={"entry_threshold": 9.0})
    with pytest.raises(SweepError, match="Did you mean 'sl_pct'"):
        result.heatmap("tp2_pct", "sl_pc")


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


def test_the_heatmap_shows_as_many_profits_as_there_are() -> None:
    """Of costless noise about half of the rows earn; the maximum over hidden axes shows nearly all cells green."""
    events = benchmark.tape(np.random.default_rng(21))
    grid = {
        "entry_threshold": [0.8, 1.2],
        "tp1_pct": [0.03, 0.05, 0.08],
        "sl_pct": [0.03, 0.05, 0.08],
        "max_hold_s": [20.0, 60.0, 120.0],
        "cooldown_s": [0.0, 30.0, 60.0, 90.0],
    }
    result = sweep(events, grid, benchmark.base(**benchmark.FREE), progress=False)
    rows = float((result.frame["net_pnl"] > 0).mean())
    shares = {}
    for how in ("median", "max"):
        figure = result.heatmap("tp1_pct", "sl_pct", how=how)
        cells = np.ma.getdata(figure.axes[0].images[0].get_array()).ravel()
        assert len(cells) == 9
        shares[how] = float((cells > 0).mean())
    assert 0.2 < rows < 0.8
    assert shares["max"] == 1.0
    assert abs(shares["median"] - rows) < 0.3


def test_too_many_periods_are_refused(result: SweepResult) -> None:
    with pytest.raises(SweepError, match="1,000,000,001 periods are too many"):
        replace(result, span=(0, 10**18)).clock("1s")
