"""The hotlist says what each symbol does now, from what a run logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replaylab.notebook.controls import Hotlist
from replaylab.notebook.live import LiveView
from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.replay import News, RunFollower


def state(symbol: str, kind: str, to_state: str = "IDLE", **extra: Any) -> dict[str, Any]:
    return {
        "timestamp": "2025-11-18T10:00:00.000Z",
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": to_state,
        "eventType": kind,
        "reason": "",
        "extra": extra,
    }


def order(
    order_id: str, status: str, kind: str, price: float | None, trigger: float | None
) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT",
        "clientOrderId": order_id,
        "status": status,
        "type": kind,
        "price": price,
        "triggerPrice": trigger,
        "reduceOnly": kind != "MARKET",
    }


def test_ranked_by_the_size_of_the_score() -> None:
    """A strong short ranks above a weaker long; a symbol without a score comes last."""
    hotlist = Hotlist()
    hotlist.state(state("AAA", "SCORING_UPDATE", score=0.4))
    hotlist.state(state("BBB", "SCORING_UPDATE", score=-0.9))
    hotlist.state(state("CCC", "REGIME_UPDATE", regime="TREND"))
    assert [row.symbol for row in hotlist.ranked()] == ["BBB", "AAA", "CCC"]
    assert hotlist.row("CCC").regime == "TREND"


def test_a_side_gives_the_score_its_sign() -> None:
    """As in the model: with a side of LONG or SHORT the signed score is ±abs(score)."""
    hotlist = Hotlist()
    hotlist.state(state("AAA", "SCORING_UPDATE", score=0.7, side="SHORT"))
    assert hotlist.row("AAA").score == -0.7


def test_an_unusable_score_keeps_the_last_one() -> None:
    hotlist = Hotlist()
    hotlist.state(state("AAA", "SCORING_UPDATE", score=0.7))
    for unusable in (None, "0.9", True, float("nan")):
        hotlist.state(state("AAA", "SCORING_UPDATE", score=unusable))
    assert hotlist.row("AAA").score == 0.7


def test_a_position_from_fill_to_exit() -> None:
    """Open PnL follows the price on what is left; the closed trade moves into realised PnL."""
    hotlist = Hotlist()
    row = hotlist.row("BTCUSDT")
    hotlist.state(state("BTCUSDT", "EXECUTION_FILL", "LONG", price=100.0, qty=2.0))
    hotlist.state(state("BTCUSDT", "SCORING_UPDATE", "LONG", score=0.5, price=101.0))
    assert (row.side, row.qty, row.pnl) == ("LONG", 2.0, 2.0)
    hotlist.state(state("BTCUSDT", "EXECUTION_PARTIAL", "LONG", price=101.0, qty=1.0))
    assert row.pnl == 1.0
    hotlist.state(state("BTCUSDT", "EXECUTION_EXIT", "IDLE", price=101.0, qty=1.0))
    hotlist.trade({"symbol": "BTCUSDT", "realizedPnl": 1.8})
    assert (row.side, row.qty, row.pnl, row.trades) == (None, 0.0, 1.8, 1)


def test_resting_orders_are_the_levels() -> None:
    hotlist = Hotlist()
    row = hotlist.row("BTCUSDT")
    hotlist.order(order("1", "NEW", "MARKET", None, None))
    hotlist.order(order("2", "NEW", "LIMIT", 103.0, None))
    hotlist.order(order("3", "NEW", "STOP_MARKET", None, 97.0))
    assert sorted(row.levels.values()) == [("stop", 97.0), ("target", 103.0)]
    hotlist.order(order("3", "CANCELED", "STOP_MARKET", None, 97.0))
    hotlist.order(order("2", "FILLED", "LIMIT", 103.0, None))
    assert row.levels == {}


@pytest.mark.parametrize("end", ["FILLED", "EXPIRED", "REJECTED", "CANCELED"])
def test_a_limit_entry_is_a_level_until_its_end(end: str) -> None:
    hotlist = Hotlist()
    entry = {**order("1", "NEW", "LIMIT", 99.0, None), "reduceOnly": False}
    hotlist.order(entry)
    assert list(hotlist.row("BTCUSDT").levels.values()) == [("entry", 99.0)]
    hotlist.order({**entry, "status": end})
    assert hotlist.row("BTCUSDT").levels == {}


def test_prices_of_a_symbol_have_one_number_of_decimals() -> None:
    view = LiveView()
    assert [view._price("A", value) for value in (0.12, 0.123456)] == ["0.120000", "0.123456"]
    assert [view._price("B", value) for value in (90_000.0, 90_000.125, None)] == [
        "90,000.00",
        "90,000.12",
        "–",
    ]


def test_regimes_of_the_start_are_shown_until_the_first_update() -> None:
    view = LiveView()
    view.start_from({"A": "CALM"})
    view.draw()
    assert "CALM" in view.hot.value
    view.hotlist.row("A").regime = "STRESS"
    view.start_from({"A": "CALM"})
    assert view.hotlist.row("A").regime == "STRESS"


def test_records_of_several_logs_come_in_order_of_time(tmp_path: Path) -> None:
    run = DataRoot(tmp_path).run("s", "r")
    run.events_dir.mkdir(parents=True)
    times = {"A": ("10:00:00", "10:59:59"), "B": ("10:30:00", "10:55:42")}
    for symbol, moments in times.items():
        lines = [f'{{"symbol": "{symbol}", "timestamp": "2025-11-18T{at}.000Z"}}\n' for at in moments]
        run.events(symbol).write_text("".join(lines))
    follower = RunFollower(tmp_path)
    news = News(ReplayStatus(), changed=False)
    follower._read_logs(run, news)
    assert [record["timestamp"][11:19] for _, record in news.records] == sorted(
        moment for moments in times.values() for moment in moments
    )
