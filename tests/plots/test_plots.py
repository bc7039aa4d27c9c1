"""Plots: what is drawn, on which axes, and that nothing needs pyplot."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from replaylab import plots
from replaylab.params import TradingParams
from replaylab.plots.style import label
from tests.plots.test_images import NO_PLOTS

START = datetime(2025, 11, 18, 10, tzinfo=UTC)


def prices(rows: int = 600) -> pl.DataFrame:
    walk = 60_000 + np.cumsum(np.random.default_rng(1).normal(size=rows))
    return pl.DataFrame({"timestamp": [START + timedelta(seconds=i) for i in range(rows)], "price": walk})


def trades() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "symbol": ["BTCUSDT"] * 3,
            "side": ["LONG", "SHORT", "LONG"],
            "entry_time": [START + timedelta(seconds=s) for s in (10, 100, 300)],
            "exit_time": [START + timedelta(seconds=s) for s in (60, 150, 420)],
            "entry_price": [60_000.0, 60_010.0, 60_020.0],
            "close_price": [60_030.0, 60_020.0, 60_060.0],
            "qty": [0.1, 0.1, 0.1],
            "realized_pnl": [3.0, -1.0, 4.0],
            "mfe": [4.0, 0.5, 5.0],
            "mae": [-1.0, -1.5, 0.0],
            "reason": ["TP2", "STOP_LOSS", "TP2"],
        }
    ).with_columns(pl.col("entry_time", "exit_time").cast(pl.Datetime("ns", "UTC")))


def sweep_frame() -> pl.DataFrame:
    rows = list(product([0.1, 0.2, 0.3], [0.5, 1.0], [None, 30.0]))
    frame = pl.DataFrame(
        rows, schema={"sl_pct": pl.Float64, "tp2_pct": pl.Float64, "max_hold_s": pl.Float64}, orient="row"
    )
    return frame.with_columns(net_pnl=pl.Series(np.arange(12.0) - 5))


class Report:
    probability, slope, loss_probability = 0.25, -0.5, 0.5
    logits = np.array([-1.0, 0.5, 0.7, 1.2])
    in_sample = np.array([1.0, 2.0, 3.0, 4.0])
    out_of_sample = np.array([1.0, -1.0, -2.0, 0.5])


def every_plot() -> dict[str, Figure]:
    scores = prices(50).with_columns(score=pl.Series(np.linspace(-1, 1, 50)))
    events = pl.DataFrame(
        {"timestamp": prices(50)["timestamp"], "type": ["MARKET_TRADE", "SCORING_UPDATE"] * 25}
    )
    steps = pl.DataFrame(
        {"in_sample": [1.0, 2.0], "out_of_sample": [0.5, -1.0], "test_start": [START, START]}
    )
    decisions = pl.DataFrame(
        {
            "timestamp": [START] * 3,
            "symbol": ["BTCUSDT", "BTCUSDT", "AIUSDT"],
            "status": ["identical", "missing", "cut_off"],
        }
    )
    axes = ["sl_pct", "tp2_pct", "max_hold_s"]
    return {
        "price_with_trades": plots.price_with_trades(prices(), trades(), "title"),
        "equity": plots.equity({"one": trades(), "two": trades()}),
        "excursions": plots.excursions(trades()),
        "exit_reasons": plots.exit_reasons(trades()),
        "heatmap": plots.heatmap(sweep_frame(), "sl_pct", "tp2_pct"),
        "slices": plots.slices(sweep_frame(), axes),
        "parallel_coordinates": plots.parallel_coordinates(sweep_frame(), axes, n=6),
        "overfitting": plots.overfitting(Report()),
        "walk_forward": plots.walk_forward(steps),
        "verdict": plots.verdict(
            "Luck",
            ["A reason."],
            {
                "sharpes": np.array([-0.1, 0.0, 0.2]),
                "luck": 0.1,
                "best": 0.2,
                "in_sample": Report.in_sample,
                "out_of_sample": Report.out_of_sample,
                "loss_probability": 0.5,
                "edges": np.arange(9) * 1_000_000_000,
                "pnl": np.arange(8.0),
                "later": [1.0, 2.0],
            },
        ),
        "waterfall": plots.waterfall(1.0, {"fees": -0.5}, 0.5),
        "estimates": plots.estimates({"x (ms)": np.arange(9.0)}, {"x (ms)": (4.0, 1.0, 8.0)}),
        "density": plots.density(events),
        "scores": plots.scores(scores, 0.6),
        "fidelity": plots.fidelity(decisions),
    }


def test_every_plot_draws_and_labels_its_axes() -> None:
    """Each renders to PNG; every bottom and left axis says what it shows; the background is transparent."""
    drawn = every_plot()
    assert set(drawn) | NO_PLOTS == set(plots.__all__)
    for name, figure in drawn.items():
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG"), name
        assert figure.get_facecolor()[3] == 0
        words = [a.get_xlabel() + a.get_ylabel() for a in figure.axes] + [figure.get_supylabel()]
        assert any("(" in word for word in words) or name in ("parallel_coordinates", "density"), name


def test_drawing_never_loads_pyplot() -> None:
    """pyplot keeps global state and picks a backend: a library must not."""
    code = (
        "import sys, replaylab.plots as p; assert 'matplotlib' not in sys.modules;"
        "f = p.exit_reasons({'reason': ['TP2'], 'realized_pnl': [1.0]}); f._repr_png_();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_carry_units() -> None:
    assert label("sl_pct") == "sl (%)"
    assert label("max_hold_s") == "max hold (s)"
    assert label("net_pnl") == "net PnL (USD)"
    assert label("n_trades") == "n trades"


def test_the_heatmap_shows_the_cells_it_was_given() -> None:
    """Rows y, columns x, both ascending; of rows that share a cell the median, or what ``how`` says."""
    figure = plots.heatmap(sweep_frame(), "sl_pct", "tp2_pct")
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (2, 3)
    np.testing.assert_array_equal(image[:, 0], [-4.5, -2.5])
    best = plots.heatmap(sweep_frame(), "sl_pct", "tp2_pct", how="max").axes[0].images[0].get_array()
    np.testing.assert_array_equal(best[:, 0], [-4, -2])
    np.testing.assert_array_equal(
        plots.heatmap(sweep_frame(), "sl_pct", "tp2_pct", how="min").axes[0].images[0].get_array()[:, 0],
        [-5, -3],
    )


def test_zero_is_white_whatever_the_cells_are() -> None:
    """Also where all cells lose or all gain, where a scale from lowest to highest would change its meaning."""
    for shift in (-100.0, 0.0, 100.0):
        frame = sweep_frame().with_columns(pl.col("net_pnl") + shift)
        image = plots.heatmap(frame, "sl_pct", "tp2_pct").axes[0].images[0]
        np.testing.assert_allclose(image.cmap(image.norm(0.0))[:3], 1.0, atol=0.04)


def test_cells_with_few_trades_are_hatched_and_never_ringed() -> None:
    """The highest cell of two rows without enough trades is hatched, the ring is on the highest of the others."""
    frame = sweep_frame().with_columns(n_trades=pl.when(pl.col("sl_pct") == 0.3).then(3).otherwise(50))
    axes = plots.heatmap(frame, "sl_pct", "tp2_pct").axes[0]
    hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
    ringed = {patch.get_xy() for patch in axes.patches if not patch.get_hatch()}
    assert hatched == [(1.5, -0.5), (1.5, 0.5)]
    assert ringed == {(0.54, 0.54)}
    assert "fewer than 30 trades" in axes.get_xlabel()
    assert len(axes.texts) == 6
    none = plots.heatmap(frame.with_columns(n_trades=pl.lit(1)), "sl_pct", "tp2_pct").axes[0]
    assert all(patch.get_hatch() for patch in none.patches)


def test_ratios_stand_with_the_number_of_their_trades() -> None:
    """In the cells and in the title; of a sum they would say nothing."""
    frame = sweep_frame().with_columns(n_trades=pl.int_range(31, 31 + pl.len()), sharpe_per_trade=pl.lit(0.5))
    figure = plots.heatmap(frame, "sl_pct", "tp2_pct", "sharpe_per_trade")
    assert all(re.fullmatch(r"0\.5\n\(\d\d\)", mark.get_text()) for mark in figure.axes[0].texts)
    wanted = f"of 31 to {30 + frame.height} trades"
    assert wanted in figure.get_suptitle()
    assert wanted in plots.slices(frame, ["sl_pct"], "sharpe_per_trade").get_suptitle()
    assert "trades" not in plots.heatmap(frame, "sl_pct", "tp2_pct").get_suptitle()


def test_exits_are_drawn_where_their_parts_filled() -> None:
    """Half closed at TP1 = 101, half at 99: the mean 100 is no price at which anything filled."""
    when = pl.Series([START + timedelta(seconds=s) for s in range(4)]).cast(pl.Datetime("ns", "UTC"))
    tape = pl.DataFrame({"timestamp": when, "price": [100.0, 101.0, 100.0, 99.0]})
    one = {
        "side": ["LONG"],
        "entry_price": [100.0],
        "close_price": [100.0],
        "realized_pnl": [0.0],
        "tp1_filled": [True],
    }
    trade = pl.DataFrame(one).with_columns(entry_time=when[0], exit_time=when[3])
    params = TradingParams(tp1_pct=1.0, tp2_pct=2.0, tp1_fraction=0.5)
    axes = plots.price_with_trades(tape, trade, params=params).axes[0]
    drawn = {mark.get_label(): mark.get_offsets()[0][1] for mark in axes.collections}
    assert drawn["TP1"] == pytest.approx(101.0)
    assert drawn["exit, loss"] == pytest.approx(99.0)


def test_a_rule_that_is_off_is_an_axis_value_of_its_own() -> None:
    figure = plots.heatmap(sweep_frame(), "max_hold_s", "sl_pct")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["30", "off"]


def test_equity_ends_at_the_sum_and_draws_the_drawdown() -> None:
    figure = plots.equity(trades())
    curve = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(curve, [0, 3, 2, 6])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0, 0, -1, 0])


def test_a_long_tape_is_thinned_but_keeps_its_extremes() -> None:
    tape = prices(50_000)
    tape[31_234, "price"] = 90_000.0
    tape[7_777, "price"] = 10_000.0
    line = plots.price_with_trades(tape, trades().clear()).axes[0].lines[0].get_ydata()
    assert len(line) < 5000
    assert (line.max(), line.min()) == (90_000.0, 10_000.0)


def test_the_trade_log_and_pandas_will_do() -> None:
    """Trades of the log have their closing time and a duration; frames may be pandas."""
    log = trades().select(
        "symbol",
        "side",
        "entry_price",
        "close_price",
        "realized_pnl",
        timestamp="exit_time",
        duration_seconds=(pl.col("exit_time") - pl.col("entry_time")).dt.total_seconds(fractional=True),
    )
    figure = plots.price_with_trades(prices().to_pandas(), log.to_pandas())
    wanted = plots.price_with_trades(prices(), trades())
    for ours, theirs in zip(figure.axes[0].lines, wanted.axes[0].lines, strict=True):
        np.testing.assert_array_equal(ours.get_ydata(), theirs.get_ydata())


def test_an_empty_plot_says_why() -> None:
    none = trades().clear()
    for figure in (plots.equity(none), plots.excursions(none), plots.exit_reasons(none)):
        assert "no trades" in [text.get_text() for axes in figure.axes for text in axes.texts]
        figure._repr_png_()
    plots.density(pl.DataFrame({"timestamp": [], "type": []}))._repr_png_()


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'net_pnl'"):
        plots.heatmap(sweep_frame(), "sl_pct", "tp2_pct", "net_pln")
