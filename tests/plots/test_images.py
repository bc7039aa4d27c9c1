"""Each public plot compared with a reviewed image (``tests/plots/images``).

``pytest --mpl-generate-path=tests/plots/images tests/plots/test_images.py`` draws them again after an intended change.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib import ft2font
from matplotlib.figure import Figure

from replaylab import plots
from replaylab.params import TradingParams

# The class of plots, its colours, and two helpers for frames.
NO_PLOTS = {"Plot", "CYCLE", "INK", "LONG", "LOSS", "SHORT", "WIN", "as_frame", "with_entry_times"}
START = datetime(2025, 11, 18, 10, tzinfo=UTC)
# With the FreeType that drew the kept images (the wheels of matplotlib bring their own) only rounding differs: one
# colour of a few small marks is then seen. Another FreeType moves every panel by a pixel or two, which costs up to 30.
DRAWN_WITH = "2.14.3"
TOLERANCE = 1.5 if ft2font.__freetype_version__ == DRAWN_WITH else 30.0


def waves(count: int, *periods: float) -> np.ndarray:
    """Return a curve shaped like a price and is the same with every version of NumPy."""
    places = np.arange(count)
    return sum(np.sin(2 * np.pi * places / period + period) for period in periods) / len(periods)


def moments(count: int, step_s: float) -> pl.Series:
    return pl.Series([START + timedelta(seconds=step_s * place) for place in range(count)]).cast(
        pl.Datetime("ns", "UTC")
    )


def tape(count: int = 900, step_s: float = 2.0) -> pl.DataFrame:
    price = 60_000 + 60 * waves(count, 611.0, 173.0, 37.0, 7.3)
    return pl.DataFrame({"timestamp": moments(count, step_s), "price": price})


def trades(count: int = 24, shift: float = 0.0) -> pl.DataFrame:
    prices = tape()["price"].to_numpy()
    entry = np.arange(count) * 36 + 5
    leave = entry + 6 + (np.arange(count) * 7) % 23
    sign = np.where(np.arange(count) % 3 == 1, -1, 1)
    pnl = sign * (prices[leave] - prices[entry]) * 0.1 + shift
    when = moments(900, 2.0)
    return pl.DataFrame(
        {
            "symbol": ["BTCUSDT"] * count,
            "side": np.where(sign > 0, "LONG", "SHORT"),
            "entry_time": when.gather(entry),
            "exit_time": when.gather(leave),
            "entry_price": prices[entry],
            "close_price": prices[leave],
            "qty": [0.1] * count,
            "realized_pnl": pnl,
            "mfe": np.maximum(pnl, 0) + 2 + 2 * waves(count, 7.0, 3.1),
            "mae": np.minimum(pnl, 0) - 2 - 2 * waves(count, 5.0, 2.3),
            "reason": np.where(pnl > 1, "TP2", np.where(pnl < -1, "STOP_LOSS", "TIME_LIMIT")),
        }
    )


def swept() -> pl.DataFrame:
    thresholds = [round(0.3 + 0.05 * step, 2) for step in range(8)]
    rows = list(product(thresholds, [0.05, 0.1, 0.15, 0.2, 0.3], [60.0, 300.0, None]))
    schema = {"entry_threshold": pl.Float64, "sl_pct": pl.Float64, "max_hold_s": pl.Float64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    hill = -90 * (pl.col("entry_threshold") - 0.5) ** 2 - 60 * (pl.col("sl_pct") - 0.15) ** 2
    few = (pl.col("entry_threshold") > 0.55) & (pl.col("sl_pct") < 0.25)
    return frame.with_columns(
        net_pnl=1.2 + hill + pl.col("max_hold_s").fill_null(0.0) / 600,
        n_trades=pl.when(few).then(12).otherwise(80),
    )


def scored() -> pl.DataFrame:
    frame = tape(300, 6.0)
    return frame.with_columns(score=pl.Series(0.9 * waves(300, 97.0, 41.0)))


def events() -> pl.DataFrame:
    """Market trades that come and go, with a hole; and a signal a second."""
    rate = np.round(12 + 10 * waves(1800, 397.0, 61.0)).astype(int)
    rate[1000:1240] = 0
    seconds = moments(1800, 1.0).to_frame("timestamp")
    market = seconds[np.repeat(np.arange(1800), rate)].with_columns(type=pl.lit("MARKET_TRADE"))
    return pl.concat([market, seconds.with_columns(type=pl.lit("SCORING_UPDATE"))])


def overfitting() -> SimpleNamespace:
    inside = 1 + waves(70, 13.0, 5.0)
    outside = 0.4 - 0.5 * (inside - 1) + 0.6 * waves(70, 9.0, 3.7)
    logits = 1.5 * waves(70, 11.0, 4.3) + 0.5
    return SimpleNamespace(
        probability=float((logits <= 0).mean()),
        slope=-0.5,
        loss_probability=float((outside < 0).mean()),
        logits=logits,
        in_sample=inside,
        out_of_sample=outside,
    )


def steps() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "in_sample": [1.9, 1.4, 2.2, 1.1, 1.6],
            "out_of_sample": [0.7, -0.6, 0.4, 0.9, -1.2],
            "test_start": [START + timedelta(minutes=10 * step) for step in range(5)],
        }
    )


def decisions() -> pl.DataFrame:
    count = 120
    places = np.arange(count)
    status = np.full(count, "identical", dtype=object)
    status[[17, 64]], status[[30]], status[[90, 91]] = "different", "missing", "added"
    status[:2], status[-3:] = "carried_in", "cut_off"
    return pl.DataFrame(
        {
            "timestamp": moments(count, 15.0),
            "symbol": np.where(places % 3 == 0, "AIUSDT", "BTCUSDT"),
            "status": status.tolist(),
        }
    )


def judged() -> dict[str, Any]:
    hour = int(START.timestamp()) * 1_000_000_000
    return {
        "sharpes": 0.1 * waves(300, 97.0, 41.0),
        "luck": 0.12,
        "best": 0.15,
        "in_sample": 1 + waves(70, 13.0, 5.0),
        "out_of_sample": 0.3 + waves(70, 9.0, 3.7),
        "loss_probability": 0.31,
        "edges": hour + np.arange(97, dtype=np.int64) * 60_000_000_000,
        "pnl": 0.1 + waves(96, 23.0, 7.0),
        "later": [1.0, -2.0, 3.0, 1.0],
    }


AXES = ["entry_threshold", "sl_pct", "max_hold_s"]
PLOTS: dict[str, Callable[[], Figure]] = {
    "density": lambda: plots.density(events(), "What the session holds"),
    "equity": lambda: plots.equity({"best of the sweep": trades(), "default": trades(shift=-0.8)}, "Equity"),
    "excursions": lambda: plots.excursions(trades()),
    "exit_reasons": lambda: plots.exit_reasons(trades()),
    "fidelity": lambda: plots.fidelity(decisions()),
    "heatmap": lambda: plots.heatmap(swept(), "entry_threshold", "sl_pct"),
    "overfitting": lambda: plots.overfitting(overfitting()),
    "parallel_coordinates": lambda: plots.parallel_coordinates(swept(), AXES, n=40),
    "price_with_trades": lambda: plots.price_with_trades(
        tape(),
        trades().with_columns(tp1_filled=pl.col("realized_pnl") > 1),
        "BTCUSDT",
        params=TradingParams(tp1_pct=0.02, tp2_pct=0.1),
    ),
    "scores": lambda: plots.scores(scored(), 0.5, "BTCUSDT"),
    "slices": lambda: plots.slices(swept(), AXES),
    "verdict": lambda: plots.verdict("Luck: not distinguishable", ["One reason.", "Another one."], judged()),
    "walk_forward": lambda: plots.walk_forward(steps()),
    "waterfall": lambda: plots.waterfall(
        -20.0, {"fees": -4.0, "entry_price": 9.5, "missed_entry": -1.5}, -16.0, "Live"
    ),
    "estimates": lambda: plots.estimates(
        {"latency_ms (ms)": 80 + 5 * waves(400, 31.0, 7.0)}, {"latency_ms (ms)": (80.0, 76.0, 84.0)}, "Costs"
    ),
}


def test_each_public_plot_is_compared(request: pytest.FixtureRequest) -> None:
    """And the comparison is switched on: without it the tests below would pass whatever is drawn."""
    assert request.config.getoption("--mpl")
    assert set(PLOTS) == set(plots.__all__) - NO_PLOTS
    kept = {path.stem.removeprefix("test_image_") for path in (Path(__file__).parent / "images").glob("*")}
    assert kept == set(PLOTS)


@pytest.mark.mpl_image_compare(
    baseline_dir="images",
    style="default",
    tolerance=TOLERANCE,
    savefig_kwargs={"dpi": 60, "facecolor": "white"},
)
@pytest.mark.parametrize("name", PLOTS)
def test_image(name: str) -> Figure:
    return PLOTS[name]()
