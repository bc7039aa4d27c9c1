"""Reconciliation: planted differences land on their cause, the parts add up exactly, a foreign bot is called one."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from replaylab.cli import app
from replaylab.errors import ReplayError
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import Reconciliation, reconcile, run_sim
from replaylab.replay.reconcile import CAUSES
from replaylab.sessions import Session, build_replay_session
from replaylab.sweep import shapley
from replaylab.timestamps import iso, parse_ns

PARAMS = TradingParams(
    entry_threshold=0.3,
    exit_threshold=-0.5,
    tp1_pct=0.05,
    tp2_pct=0.1,
    sl_pct=0.05,
    max_hold_s=60,
    cooldown_s=8,
    market_fill="print",
    slippage_bps=1.0,
)
SCORING = ScoringParams(interval_ms=500, warmup_s=20)
# Without copies of the trade log: the log itself is compared, and edited below.
TYPES = ["SCORING_UPDATE", "REGIME_UPDATE", "MARKET_*"]
SECOND = 1_000_000_000


def made(root: DataRoot, params: TradingParams) -> Session:
    """Simulate a quarter of an hour with ``params`` and cut it into a session."""
    write_synthetic(root, seed=11, hours=0.25)
    sim = run_sim(root, params=params, scoring=SCORING, progress=False)
    assert sim.trades.height > 10
    manifest = build_replay_session(
        root, "2025-11-18T10:00:00Z", "2025-11-18T10:16:00Z", ["AIUSDT", "BTCUSDT"], include_types=TYPES
    )
    return Session(root, manifest.session_id)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return made(DataRoot(tmp_path_factory.mktemp("live")), PARAMS)


def landed(report: Reconciliation, causes: set[str]) -> float:
    """Return the share of the trades' differences that lies on ``causes``."""
    parts = report.trades.select(pl.col(name).abs().sum() for name in CAUSES).row(0, named=True)
    return sum(parts[name] for name in causes) / sum(parts.values())


def adds_up(report: Reconciliation) -> None:
    assert abs(float(report.causes["pnl"].sum()) - (report.live_pnl - report.model_pnl)) < 1e-9
    rows = report.trades.select(pl.sum_horizontal(*CAUSES) - pl.col("difference")).to_series()
    assert rows.abs().max() < 1e-9  # type: ignore[operator]


def test_own_logs_have_no_difference(session: Session) -> None:
    """Live and model are the same under the recorded parameters: every cause is zero."""
    report = reconcile(session)
    assert report.difference == pytest.approx(0.0, abs=1e-9)
    assert report.matched == 1.0
    assert report.causes["pnl"].abs().max() < 1e-9  # type: ignore[operator]
    assert report.reasons == []
    adds_up(report)


@pytest.mark.parametrize(
    ("live", "causes"),
    [
        ({"latency_ms": 900.0}, {"entry_delay", "exit_delay"}),
        ({"stop_latency_ms": 2000.0}, {"exit_delay"}),
        ({"sl_pct": 0.12}, {"exit_decision"}),
        ({"tp2_pct": 0.3}, {"exit_decision"}),
        ({"max_hold_s": 20.0}, {"exit_decision"}),
        ({"exit_threshold": None}, {"exit_decision"}),
        ({"taker_fee_bps": 2.0}, {"fees"}),
        ({"maker_fee_bps": -1.0}, {"fees"}),
        ({"notional_usd": 400.0}, {"quantity"}),
        ({"entry_threshold": 0.36}, {"signal"}),
        ({"cooldown_s": 20.0}, {"signal"}),
        ({"slippage_bps": 3.0}, {"entry_price", "exit_price"}),
    ],
)
def test_another_parameter_lands_on_its_cause(tmp_path: Path, live: dict[str, Any], causes: set[str]) -> None:
    """A bot that ran with one other parameter: at least 95 % of the difference, its consequences included."""
    report = reconcile(made(DataRoot(tmp_path), PARAMS.replace(**live)), PARAMS)
    assert landed(report, causes) >= 0.95, report.causes
    adds_up(report)


class Logs:
    """The trade and the order log of a data root as lists of records, to edit and write back."""

    def __init__(self, root: Path) -> None:
        self.paths = {name: next((root / name).glob("*.jsonl")) for name in ("trades_log", "orders")}
        self.trades, self.orders = (
            [json.loads(line) for line in path.read_text().splitlines()] for path in self.paths.values()
        )

    def write(self) -> None:
        for path, records in zip(self.paths.values(), (self.trades, self.orders), strict=True):
            path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def fill(self, trade: dict[str, Any], *, entry: bool) -> dict[str, Any]:
        """Return the order line that filled the entry or the last exit of a trade."""
        at = trade["entryTimestamp" if entry else "timestamp"]
        side = "BUY" if (trade["side"] == "LONG") == entry else "SELL"
        return next(
            o
            for o in self.orders
            if (o["timestamp"], o["symbol"], o["side"], o["status"]) == (at, trade["symbol"], side, "FILLED")
            and o["reduceOnly"] != entry
        )

    def sent(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the first line of an order."""
        return next(o for o in self.orders if o["clientOrderId"] == order["clientOrderId"])


class Planter:
    """Changes one cause in some trades of the log; prices come from the tape by the print rule."""

    def __init__(self, logs: Logs, session: Session, seed: int) -> None:
        self.logs, self.rng = logs, np.random.default_rng(seed)
        prints = session.events.filter(pl.col("type") == "MARKET_TRADE")
        self.prints = {
            symbol: (
                part["timestamp"].dt.timestamp("ns").to_numpy(),
                np.array([json.loads(payload)["price"] for payload in part["payload"]]),
            )
            for (symbol,), part in prints.group_by("symbol", maintain_order=True)
        }

    def plant(self, cause: str) -> int:
        """Change the cause in a third of the trades that it fits; return how many."""
        fitting = [t for t in self.logs.trades if self.fits(cause, t)]
        size = max(1, len(fitting) // 3)
        chosen = self.rng.choice(len(fitting), size=size, replace=False)
        for place in chosen:
            getattr(self, cause)(fitting[place])
        return size

    def fits(self, cause: str, trade: dict[str, Any]) -> bool:
        if cause == "exit_delay":
            return trade["reason"] == "STOP_LOSS" and not trade["tp1Filled"]
        # Of another quantity TP1 would close another share: whole lots.
        if cause in ("exit_decision", "exit_price", "quantity"):
            return not trade["tp1Filled"] and trade["durationSeconds"] > 4
        return bool(trade["durationSeconds"] > 4)

    def at(self, trade: dict[str, Any], ns: int, side: float) -> tuple[int, float]:
        times, prices = self.prints[trade["symbol"]]
        place = min(int(np.searchsorted(times, ns)), len(times) - 1)
        return int(times[place]), float(prices[place] * (1.0 + side * 1e-4))

    def earn(self, trade: dict[str, Any], pnl: float, fees: float = 0.0) -> None:
        trade["realizedPnl"] += pnl - fees
        trade["fees"] += fees

    def move_exit(self, trade: dict[str, Any], ts: int, price: float) -> None:
        direction = 1.0 if trade["side"] == "LONG" else -1.0
        gained = direction * (price - trade["closePrice"]) * trade["qty"]
        self.earn(trade, gained, (price - trade["closePrice"]) * trade["qty"] * 5.5e-4)
        trade["closePrice"], trade["timestamp"] = price, iso(ts)
        trade["durationSeconds"] = (ts - parse_ns(trade["entryTimestamp"])) / 1e9

    def move_entry(self, trade: dict[str, Any], ts: int, price: float) -> None:
        direction = 1.0 if trade["side"] == "LONG" else -1.0
        lost = direction * (price - trade["entryPrice"]) * trade["qty"]
        self.earn(trade, -lost, (price - trade["entryPrice"]) * trade["qty"] * 5.5e-4)
        order = self.logs.fill(trade, entry=True)
        order["timestamp"], order["avgFillPrice"] = iso(ts), price
        trade["entryPrice"], trade["entryTimestamp"] = price, iso(ts)
        trade["durationSeconds"] = (parse_ns(trade["timestamp"]) - ts) / 1e9

    def signal(self, trade: dict[str, Any]) -> None:
        start = parse_ns(self.logs.sent(self.logs.fill(trade, entry=True))["timestamp"])
        end = parse_ns(trade["timestamp"])
        self.logs.orders[:] = [
            o
            for o in self.logs.orders
            if o["symbol"] != trade["symbol"] or not start <= parse_ns(o["timestamp"]) <= end
        ]
        self.logs.trades.remove(trade)

    def missed_entry(self, trade: dict[str, Any]) -> None:
        sent = dict(self.logs.sent(self.logs.fill(trade, entry=True)))
        self.signal(trade)
        self.logs.orders += [sent, {**sent, "timestamp": trade["timestamp"], "status": "CANCELED"}]
        self.logs.orders.sort(key=lambda o: parse_ns(o["timestamp"]))

    def entry_delay(self, trade: dict[str, Any]) -> None:
        side = 1.0 if trade["side"] == "LONG" else -1.0
        ts, price = self.at(trade, parse_ns(trade["entryTimestamp"]) + SECOND, side)
        self.move_entry(trade, ts, price)

    def entry_price(self, trade: dict[str, Any]) -> None:
        side = 1.0 if trade["side"] == "LONG" else -1.0
        price = trade["entryPrice"] * (1.0 + side * self.rng.uniform(1e-4, 4e-4))
        self.move_entry(trade, parse_ns(trade["entryTimestamp"]), price)

    def quantity(self, trade: dict[str, Any]) -> None:
        share = self.rng.uniform(0.2, 0.8)
        for name in ("qty", "realizedPnl", "fees", "mfe", "mae"):
            trade[name] *= share
        order = self.logs.fill(trade, entry=True)
        order["filledQty"] *= share

    def exit_decision(self, trade: dict[str, Any]) -> None:
        start, end = parse_ns(trade["entryTimestamp"]), parse_ns(trade["timestamp"])
        side = -1.0 if trade["side"] == "LONG" else 1.0
        filled = self.logs.fill(trade, entry=False)
        ts, price = self.at(trade, (start + end) // 2, side)
        # A target was a maker fill.
        self.earn(
            trade,
            0.0,
            trade["closePrice"] * trade["qty"] * (3.5e-4 if trade["reason"] in ("TP1", "TP2") else 0.0),
        )
        self.move_exit(trade, ts, price)
        trade["reason"] = "MANUAL"
        filled.update(timestamp=iso(ts), type="MARKET", avgFillPrice=price, clientOrderId=f"manual-{ts}")
        self.logs.orders.sort(key=lambda o: parse_ns(o["timestamp"]))

    def exit_delay(self, trade: dict[str, Any]) -> None:
        side = -1.0 if trade["side"] == "LONG" else 1.0
        filled = self.logs.fill(trade, entry=False)
        ts, price = self.at(trade, parse_ns(trade["timestamp"]) + 2 * SECOND, side)
        self.move_exit(trade, ts, price)
        filled.update(timestamp=iso(ts), avgFillPrice=price)

    def exit_price(self, trade: dict[str, Any]) -> None:
        price = trade["closePrice"] * (1.0 + self.rng.uniform(-4e-4, 4e-4))
        self.logs.fill(trade, entry=False)["avgFillPrice"] = price
        self.move_exit(trade, parse_ns(trade["timestamp"]), price)

    def fees(self, trade: dict[str, Any]) -> None:
        self.earn(trade, 0.0, trade["qty"] * trade["entryPrice"] * self.rng.uniform(-3e-4, 3e-4))

    def funding(self, trade: dict[str, Any]) -> None:
        paid = trade["qty"] * trade["entryPrice"] * self.rng.uniform(-3e-4, 3e-4)
        trade["funding"] = paid
        self.earn(trade, paid)

    def unexplained(self, trade: dict[str, Any]) -> None:
        self.earn(trade, self.rng.uniform(0.1, 0.5))


def planted(session: Session, tmp_path: Path, seeds: int) -> Iterator[tuple[str, int, float]]:
    """Plant every cause ``seeds`` times; yield the cause, the number of trades changed and the share that landed."""
    copy = tmp_path / "copy"
    shutil.copytree(session.root.path, copy)
    edited = Session(DataRoot(copy), session.id)
    logs = Logs(copy)
    kept = {path: path.read_text() for path in logs.paths.values()}
    for cause, seed in itertools.product(CAUSES, range(seeds)):
        changed = Planter(logs, edited, seed).plant(cause)
        logs.write()
        report = reconcile(edited)
        adds_up(report)
        yield cause, changed, landed(report, {cause})
        for path, text in kept.items():
            path.write_text(text)
        logs = Logs(copy)


def test_planted_differences_land_on_their_cause(session: Session, tmp_path: Path) -> None:
    """Each cause planted in the log's own lines: at least 95 % of the difference is given to it."""
    found = list(planted(session, tmp_path, 2))
    assert {cause for cause, _, _ in found} == set(CAUSES)
    missed = [(cause, share) for cause, _, share in found if share < 0.95]
    assert not missed


@pytest.mark.stress
def test_200_planted_differences(session: Session, tmp_path: Path) -> None:
    found = list(planted(session, tmp_path, 19))
    missed = [(cause, share) for cause, _, share in found if share < 0.95]
    print(f"{len(found)} planted differences in {sum(n for _, n, _ in found)} trades, {len(missed)} missed")
    assert len(found) >= 200
    assert not missed


def test_a_bot_of_another_kind_is_called_one_first(session: Session, tmp_path: Path) -> None:
    """Trades at other times than the model's: the first words say so, with the likely reason, before any number."""
    shutil.copytree(session.root.path, tmp_path / "copy")
    logs = Logs(tmp_path / "copy")
    for order in logs.orders:
        order["timestamp"] = iso(parse_ns(order["timestamp"]) + 45 * SECOND)
        if order["status"] == "FILLED" and not order["reduceOnly"] and len(order["clientOrderId"]) % 2:
            order["status"] = "CANCELED"
    for trade in logs.trades:
        trade["side"] = "SHORT" if trade["side"] == "LONG" else "LONG"
    logs.write()
    report = reconcile(Session(DataRoot(tmp_path / "copy"), session.id))
    assert not report.is_described
    assert report.summary.startswith("the model does not describe this bot (0 of")
    assert report.reasons
    adds_up(report)


def test_without_recorded_trades_it_says_so(session: Session, tmp_path: Path) -> None:
    shutil.copytree(session.root.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "trades_log")
    with pytest.raises(ReplayError, match="no recorded trade lies in the session"):
        reconcile(Session(DataRoot(tmp_path / "copy"), session.id))


def test_the_command_says_by_its_exit_code(session: Session) -> None:
    """0 where live and model agree, 1 where they differ."""
    options = ["reconcile", session.id, "--data", str(session.root.path)]
    agreed = CliRunner().invoke(app, options)
    assert agreed.exit_code == 0, agreed.output
    differ = CliRunner().invoke(app, [*options, "-p", "taker_fee_bps=2", "--json"])
    assert differ.exit_code == 1
    assert json.loads(differ.output)["causes"]["fees"] < 0


def test_shapley_values_are_means_over_all_orders() -> None:
    """The weights by set give what every order of the players, one by one, gives."""
    rng = np.random.default_rng(3)
    for n in range(1, 6):
        values = rng.normal(size=(1 << n, 2))
        slow = np.zeros((n, 2))
        orders = list(itertools.permutations(range(n)))
        for order in orders:
            held = 0
            for player in order:
                slow[player] += values[held | 1 << player] - values[held]
                held |= 1 << player
        np.testing.assert_allclose(shapley(values), slow / len(orders), atol=1e-12)
        np.testing.assert_allclose(shapley(values).sum(axis=0), values[-1] - values[0], atol=1e-12)


def test_the_plot_and_the_page_show_the_causes(session: Session) -> None:
    report = reconcile(session, {"taker_fee_bps": 2.0})
    assert "fees" in report._repr_html_()
    assert report.plot().axes[0].get_ylabel() == "PnL (USD)"
