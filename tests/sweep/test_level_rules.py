"""Level rules: the block index, the loop, the event-driven system and the oracle give the same trades."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import polars as pl
import pytest

from replaylab import CLOSE, HOLD, Lab, TradingParams, exit_rule, level_rule
from replaylab.errors import ConfigError, PriceError, ReplayError, SweepError
from replaylab.sweep import backtest, make_grid, pack, sweep
from replaylab.sweep.run import BoundRule, rule_identity, run_rows
from replaylab.trading import LevelRule
from tests import oracle
from tests.strategies import RandomSession, allow, make_case
from tests.sweep.test_exit_rules import (
    equal,
    features_of,
    session_of_one_trade,
    trades_of_system,
)

NS = 1_000_000_000


@level_rule("target", every_s=2.0, start_pct=0.6, per_second=0.02)
def falling_target(side, entry_price, age_s, start_pct, per_second):
    return entry_price * (1.0 + side * max(start_pct - per_second * age_s, 0.0) / 100.0)


@level_rule("stop", every_s=1.0, start_pct=0.5, per_second=0.02)
def rising_stop(side, entry_price, age_s, start_pct, per_second):
    return entry_price * (1.0 - side * max(start_pct - per_second * age_s, -2.0) / 100.0)


@level_rule("target", every_s=5.0, features=("atr",), mult=0.1)
def atr_target(side, entry_price, age_s, features, mult):
    if not features.atr > 0.0:
        return HOLD
    return entry_price * (1.0 + side * mult * features.atr / 100.0)


@level_rule("stop", every_s=3.0, features=("atr", "tilt"), mult=0.15)
def atr_stop(side, entry_price, age_s, features, mult):
    if age_s < 3.0 or not features.atr > 0.0 or features.tilt != features.tilt:
        return HOLD
    return entry_price * (1.0 - side * mult * features.atr / 100.0)


@level_rule("stop", every_s=0.5, seconds=20.0)
def time_is_up(side, entry_price, age_s, seconds):
    return CLOSE if age_s >= seconds else HOLD


@level_rule("target", every_s=1.0, pct=0.2)
def now_and_then(side, entry_price, age_s, pct):
    """No level in every third step, and another one in each of the others."""
    step = int(age_s) % 3
    return HOLD if step == 0 else entry_price * (1.0 + side * pct * (step - 1.5) / 100.0)


@level_rule("stop", every_s=1.0, pct=0.3)
def to_and_fro(side, entry_price, age_s, pct):
    """A stop that is asked to loosen again: it does not."""
    return entry_price * (1.0 - side * pct * (1.0 - 0.4 * (int(age_s) % 4)) / 100.0)


@level_rule("stop", every_s=0.1, pct=0.3)
def on_the_lattice(side, entry_price, age_s, pct):
    """Levels that meet those of other stops: the first of equal ones gives the reason."""
    return entry_price * (1.0 - side * max(round(pct - 0.1 * (age_s // 4.0), 1), -2.0) / 100.0)


RULES: list[LevelRule] = [
    falling_target,
    rising_stop,
    atr_target,
    atr_stop,
    time_is_up,
    now_and_then,
    to_and_fro,
    on_the_lattice,
]


def asked_of(rule: LevelRule, frame: pl.DataFrame | None) -> Any:
    """The rule as a function that the oracle asks at each price: written from the documentation alone."""
    known: dict[str, list[dict[str, Any]]] = {}
    if frame is not None:
        for row in frame.with_columns(pl.col("timestamp").dt.timestamp("ns")).sort("timestamp").to_dicts():
            known.setdefault(row["symbol"], []).append(row)

    def ask(seen: dict[str, float], price: float, symbol: str, ts: int) -> float:
        age = round(Fraction(seen["age_s"]) * NS)
        steps = age // round(Fraction(rule.step_ns))
        args: list[Any] = [seen["side"], seen["entry_price"], steps * rule.step_ns / NS]
        if rule.features:
            before = [row for row in known.get(symbol, []) if row["timestamp"] <= ts - age]
            values = [before[-1][name] if before else None for name in rule.features]
            args.append(rule.view(*[float("nan") if value is None else value for value in values]))
        level = float(rule.function(*args, *rule.values.values()))
        if rule.kind == "stop" or level in (HOLD, CLOSE):
            return level
        return CLOSE if (price >= level if seen["side"] > 0 else price <= level) else HOLD

    return ask


def compare(rule: LevelRule, seeds: range) -> Counter[str]:
    """Hold all implementations equal; return how often each reason occurred."""
    reasons: Counter[str] = Counter()
    for seed in seeds:
        session, params = make_case(seed)
        params = allow(session, params)
        frame = features_of(session, seed).with_columns(
            tilt=pl.col("noise") if seed % 2 else pl.lit(None, pl.Float64)
        )
        bound = rule.on(frame) if rule.features else rule
        try:
            loop = backtest(session, params, price_source=session.price_source, rule=bound).trades
        except PriceError:  # a symbol of the random session has no price
            continue
        what = f"{rule!r}, seed {seed}"
        expected = oracle.run(
            session.raw,
            params,
            session.price_source,
            session.initial_state,
            session.instruments,
            asked_of(rule, frame if rule.features else None),
        ).trades
        equal(loop.sort("entry_index").to_dicts(), expected, f"loop, {what}")
        equal(trades_of_system(session, params, bound), expected, f"system, {what}")
        by_index(session, params, bound, what)
        reasons.update(loop["reason"].to_list())
    return reasons


def by_index(session: RandomSession, params: TradingParams, rule: LevelRule, what: str) -> None:
    """Every method gives the loop's sums to the bit, on rows around the case's parameters."""
    tape = pack(session, session.price_source)
    base = params.replace(max_hold_s=None)
    axes = {
        "max_hold_s": [None, params.max_hold_s or 60.0],
        "sl_pct": [params.sl_pct, min(2.0 * params.sl_pct, 99.0)],
    }
    grid = make_grid(axes, base)
    bound = BoundRule.of(rule, tape, session)
    expected, _ = run_rows(tape, grid, base, "loop", rule=bound)
    for method in ("index", "tables"):
        found, how = run_rows(tape, grid, base, method, rule=bound)
        assert how == method
        assert found.tobytes() == expected.tobytes(), (what, method)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.function.__name__)
def test_a_level_rule_gives_the_same_trades_everywhere(rule: LevelRule) -> None:
    reasons = compare(rule, range(80))
    assert reasons["RULE"] >= 3, reasons


@pytest.mark.stress
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.function.__name__)
def test_many_random_cases(rule: LevelRule) -> None:
    compare(rule, range(1000, 3000))


def test_axes_threads_and_executors_give_the_loops_rows(tmp_path: Any) -> None:
    """A sweep over a level rule's arguments: each row is its backtest, on all methods, and in a study."""
    lab = Lab.sample()
    manifest = lab.build_replay_session("2025-11-18T10:00", "2025-11-18T10:30", ["AIUSDT"], session_id="h")
    grid = {"rule.start_pct": [0.1, 0.3], "rule.per_second": [0.0, 0.002], "sl_pct": [0.1, 0.3]}
    result = lab.sweep(manifest, grid, rule=falling_target, method="index", progress=False)
    assert result.method == "index"
    assert result.frame["n_rule"].sum() > 0
    for method in ("tables", "loop", "auto"):
        other = lab.sweep(manifest, grid, rule=falling_target, method=method, progress=False)
        assert other.frame.equals(result.frame), method
    alone = lab.backtest(manifest, {"sl_pct": 0.3}, rule=falling_target.with_values(start_pct=0.3))
    row = result.frame.with_row_index("row").filter(
        (pl.col("rule.start_pct") == 0.3) & (pl.col("rule.per_second") == 0.002) & (pl.col("sl_pct") == 0.3)
    )
    other_value = lab.backtest(
        manifest, {"sl_pct": 0.3}, rule=falling_target.with_values(start_pct=0.3, per_second=0.002)
    )
    assert row["net_pnl"].item() == other_value.metrics["net_pnl"]
    assert alone.metrics["net_pnl"] != other_value.metrics["net_pnl"]
    study = lab.sweep([manifest], grid, rule=falling_target, folder=tmp_path, progress=False)
    assert study.frame["net_pnl"].to_list() == pytest.approx(result.frame["net_pnl"].to_list())


def test_the_replay_runs_a_level_rule() -> None:
    lab = Lab.sample()

    @level_rule("stop", every_s=10.0, features=("realised_volatility_bps",), mult=0.1)
    def by_volatility(side, entry_price, age_s, features, mult):
        if not features.realised_volatility_bps > 0.0:
            return HOLD
        width = max(mult * features.realised_volatility_bps - 0.001 * age_s, 0.0)
        return entry_price * (1.0 - side * width / 100.0)

    lab.build_replay_session("2025-11-18T10:00", "2025-11-18T10:40", ["AIUSDT", "BTCUSDT"], session_id="h")
    ran = lab.backtest("h", rule=by_volatility)
    assert ran.metrics["n_rule"] > 0
    found = lab.sweep(
        "h", {"sl_pct": [ran.params.sl_pct]}, rule=by_volatility, method="index", progress=False
    )
    assert found.frame["net_pnl"].item() == ran.metrics["net_pnl"]
    engine = lab.engine(rule=by_volatility)
    engine.start_session("h", speed_factor=float("inf"))
    engine.wait()
    trades = engine.last_run.trades
    assert trades["realized_pnl"].sum() == pytest.approx(ran.metrics["net_pnl"])
    assert (trades["reason"] == "RULE").sum() == ran.metrics["n_rule"]


def test_a_fault_is_one_where_the_loop_asks() -> None:
    """No answer at a price of a trade names it on every method; after a trade's end the rule is not asked."""

    @level_rule("target", every_s=1.0, seconds=5.0)
    def breaks(side, entry_price, age_s, seconds):
        return entry_price * 1.5 if age_s < seconds else -3.0

    session, changes = session_of_one_trade()
    for method in ("loop", "index", "tables"):
        with pytest.raises(SweepError, match=r"breaks\(seconds=5\) returned -3.0 .*event 3, at event \d+ \("):
            sweep(session, {"sl_pct": [0.5, 1.0]}, changes, rule=breaks, method=method, progress=False)
    with pytest.raises(ReplayError, match=r"breaks\(seconds=5\) returned -3.0 for the trade that entered"):
        trades_of_system(session, TradingParams(**changes), breaks)
    # The time is up before the rule breaks, at a price that also ends the look ahead.
    early = {**changes, "max_hold_s": 4.0}
    expected = sweep(session, {"sl_pct": [0.5, 1.0]}, early, method="loop", progress=False)
    for method in ("loop", "index", "tables"):
        found = sweep(session, {"sl_pct": [0.5, 1.0]}, early, rule=breaks, method=method, progress=False)
        assert found.frame.equals(expected.frame), method


def test_wrong_level_rules_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r'expected "stop" or "target", found .stops.\. Did you mean .stop.'
    ):
        level_rule("stops", every_s=1.0)
    for wrong in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(ConfigError, match="every_s: expected seconds from"):
            level_rule("stop", every_s=wrong)
    with pytest.raises(ConfigError, match="expected the arguments side, entry_price, age_s, pct, found"):

        @level_rule("stop", every_s=1.0, pct=0.5)
        def wrong_arguments(trade, price, pct):
            return HOLD

    session, changes = session_of_one_trade()
    with pytest.raises(ConfigError, match="Did you mean 'pct'"):
        sweep(session, {"rule.pc": [1.0]}, changes, rule=to_and_fro, progress=False)

    @level_rule("stop", every_s=1.0)
    def notes(side, entry_price, age_s):
        kept.append(age_s)
        return HOLD

    kept: list[float] = []
    with pytest.raises(SweepError, match="notes: numba cannot compile this rule"):
        sweep(session, {"sl_pct": [1.0]}, changes, rule=notes, method="index", progress=False)


def test_uncompiled_level_rules_run_if_asked() -> None:
    ages: list[float] = []

    @level_rule("stop", every_s=3.0, compiled=False)
    def noted(side, entry_price, age_s):
        ages.append(age_s)
        return CLOSE if age_s >= 9.0 else HOLD

    session, changes = session_of_one_trade()
    found = sweep(session, {"sl_pct": [1.0]}, changes, rule=noted, method="index", progress=False)
    assert found.frame["n_rule"].item() == 1
    assert set(ages) <= {0.0, 3.0, 6.0, 9.0, 12.0, 15.0}


def test_kind_and_step_make_the_rule() -> None:
    """Kept parts of a study belong to one kind and one step; an exit rule of the same function is another rule."""

    def same(a, b, c):  # type: ignore[no-untyped-def]
        return HOLD

    made = [
        level_rule("stop", every_s=1.0)(same),
        level_rule("stop", every_s=2.0)(same),
        level_rule("target", every_s=1.0)(same),
    ]
    assert len({rule_identity(rule) for rule in made}) == 3
    assert rule_identity(level_rule("stop", every_s=1.0)(same)) == rule_identity(made[0])
    assert repr(made[0]) == "same()"
    with pytest.raises(ConfigError):
        exit_rule(same)
