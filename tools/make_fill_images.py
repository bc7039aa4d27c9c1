"""Make the images of docs/fills.md: ``python tools/make_fill_images.py [FOLDER]`` (default docs/images).

Every fill in them is the answer of a backtest over a few events made by hand.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
mpl.use("agg")

from matplotlib import pyplot as plt  # noqa: E402

from replaylab import TradingParams  # noqa: E402
from replaylab.sweep import backtest  # noqa: E402
from replaylab.testing import SessionBuilder  # noqa: E402

BLUE, RED, GREEN, GREY, ORANGE = "#2f6fb0", "#c0392b", "#2e8b57", "#8a8f98", "#d98200"
ONE = TradingParams(
    entry_threshold=0.5,
    tp1_fraction=0.0,
    tp1_pct=0.0,
    tp2_pct=0.3,
    sl_pct=1.0,
    taker_fee_bps=0.0,
    maker_fee_bps=0.0,
    max_trades_per_day=1,
)
INSTRUMENT = {
    "S": {"tickSize": 0.1, "lotSize": 0.001, "minNotionalUsd": None, "contractSize": None, "inferred": False}
}


def trade(builder: SessionBuilder, **changes: Any) -> dict[str, Any]:
    """Return the one trade of a session."""
    with tempfile.TemporaryDirectory() as folder:
        session = builder.build(folder, "one", instruments=INSTRUMENT)
        trades = backtest(session, ONE.replace(**changes)).trades
    assert trades.height == 1, trades
    return trades.row(0, named=True)


def market(axis: Any) -> None:
    """A market order for 4 units: the print, the best quote, a walk through three levels."""
    bids, asks = [[99.9, 2.0], [99.8, 3.0]], [[100.1, 1.0], [100.2, 2.0], [100.4, 4.0], [100.5, 2.0]]
    made = SessionBuilder().book("S", bids, asks, at=0).score("S", 1.0, at=1).trade("S", 100.0, at=2)
    entry = {
        fill: trade(made, market_fill=fill, notional_usd=400.6, slippage_bps=0.0)["entry_price"]
        for fill in ("print", "quote", "book")
    }
    left = 4.0
    for price, qty in asks:
        taken = min(left, qty)
        left -= taken
        axis.barh(price, qty, height=0.07, color="#f2c9c4")
        axis.barh(price, taken, height=0.07, color=RED)
    for price, qty in bids:
        axis.barh(price, -qty, height=0.07, color="#c9dcf0")
    for (name, price), color in zip(entry.items(), (GREY, ORANGE, BLUE), strict=True):
        axis.axhline(price, color=color, linewidth=1.4)
        axis.text(4.6, price + 0.012, f"{name}: {price:.3f}", color=color, ha="right", fontsize=9)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set(xlabel="bids   |   quantity   |   asks", ylabel="price", xlim=(-3.4, 4.7))
    axis.set_title("A market order that buys 4", fontsize=10)


def limit(axis: Any) -> None:
    """A target at 100.3: touched, its queue used up, traded through."""
    prices = [100.0, 100.1, 100.2, 100.3, 100.2, 100.3, 100.3, 100.2, 100.3, 100.4, 100.3]
    made = SessionBuilder().book("S", [[99.9, 5.0]], [[100.1, 5.0], [100.2, 4.0], [100.3, 2.0]], at=-1)
    made.score("S", 1.0, at=-0.5)
    for second, price in enumerate(prices):
        made.trade("S", price, at=second, qty=1.0, side="BUY")
    exits = {}
    for fill in ("touch", "queue", "through"):
        found = trade(made, market_fill="print", limit_fill=fill, notional_usd=50.0, slippage_bps=0.0)
        assert found["reason"] == "TP2", found
        exits[fill] = (found["duration_seconds"], found["close_price"])
    axis.step(range(len(prices)), prices, where="post", color=GREY, linewidth=1.2)
    axis.plot(range(len(prices)), prices, "o", color=GREY, markersize=4)
    axis.axhline(100.3, color=GREEN, linewidth=1, linestyle="--")
    axis.text(0, 100.31, "target 100.3, 2 ahead in the queue", color=GREEN, fontsize=9, va="bottom")
    for (name, (second, price)), color in zip(exits.items(), (ORANGE, BLUE, RED), strict=True):
        axis.plot(second, price, "D", color=color, markersize=8)
        axis.annotate(
            name,
            (second, price),
            (second, 100.12),
            color=color,
            ha="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8},
        )
    axis.set(xlabel="seconds", ylabel="price")
    axis.set_title("When the target of a LONG fills", fontsize=10)


def hole(axis: Any) -> None:
    """Two hours without a price: the position ends before them; without the rule it reaches its target after them."""
    times = [0.0, 60.0, 120.0, 180.0, 7_400.0, 7_460.0]
    prices = [100.0, 100.1, 99.9, 100.0, 101.0, 101.1]
    made = SessionBuilder().score("S", 1.0, at=-1)
    for second, price in zip(times, prices, strict=True):
        made.trade("S", price, at=second)
    minutes = [second / 60 for second in times]
    axis.plot(minutes[:4], prices[:4], "o-", color=GREY, markersize=4)
    axis.plot(minutes[4:], prices[4:], "o-", color=GREY, markersize=4)
    axis.axvspan(minutes[3], minutes[4], color="#eeeeee")
    axis.text(63, 100.45, "no prices for 2 h", color=GREY, ha="center", fontsize=9)
    for gap, color, shift in ((900.0, BLUE, -0.16), (None, RED, -0.2)):
        found = trade(made, market_fill="print", slippage_bps=0.0, max_gap_s=gap)
        at = found["duration_seconds"] / 60
        axis.plot(at, found["close_price"], "D", color=color, markersize=8)
        label = (
            f"max_gap_s={gap:g}: {found['reason']}"
            if gap
            else f"max_gap_s=None: {found['reason']}, after 2 h"
        )
        axis.annotate(
            label,
            (at, found["close_price"]),
            (at, found["close_price"] + shift),
            color=color,
            ha="left" if gap else "right",
            fontsize=9,
        )
    axis.set(xlabel="minutes", ylabel="price", ylim=(99.7, 101.3))
    axis.set_title("A LONG from 100.0 and a hole", fontsize=10)


def entry(axis: Any) -> None:
    """A LIMIT entry at the best bid: it rests from its arrival and fills when the market trades through it."""
    prices = [100.1, 100.0, 99.9, 100.0, 99.9, 99.8, 99.9, 100.1]
    made = SessionBuilder().book("S", [[99.9, 5.0]], [[100.1, 5.0]], at=-1).score("S", 1.0, at=-0.5)
    for second, price in enumerate(prices):
        made.trade("S", price, at=second, side="SELL")
    found = trade(made, entry_order="LIMIT", limit_fill="through", max_book_age_s=None)
    at = found["entry_index"] - 2
    axis.step(range(len(prices)), prices, where="post", color=GREY, linewidth=1.2)
    axis.plot(range(len(prices)), prices, "o", color=GREY, markersize=4)
    axis.plot([0, at], [found["entry_price"]] * 2, color=BLUE, linewidth=2)
    axis.plot(at, found["entry_price"], "D", color=BLUE, markersize=8)
    axis.plot(-0.5, 99.9, ">", color=GREEN, markersize=9)
    axis.text(-0.4, 99.83, "decision at\nthe best bid", color=GREEN, fontsize=9, va="top")
    axis.text(
        at + 0.15,
        found["entry_price"] + 0.01,
        "filled at 99.9,\nmaker fee",
        color=BLUE,
        fontsize=9,
        va="bottom",
    )
    axis.text(1.0, 99.91, "rests from the next print", color=BLUE, fontsize=9, va="bottom")
    axis.set(xlabel="seconds", ylabel="price", ylim=(99.7, 100.2))
    axis.set_title("A post-only LIMIT entry", fontsize=10)


IMAGES: dict[str, Callable[[Any], None]] = {
    "fill-market": market,
    "fill-limit": limit,
    "fill-entry": entry,
    "fill-hole": hole,
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in IMAGES.items():
        figure, axis = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        target = folder / f"{name}.png"
        figure.savefig(target, dpi=90, facecolor="white", metadata={"Software": None})
        plt.close(figure)
        print(f"{target}: {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs" / "images")
