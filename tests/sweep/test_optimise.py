"""The optimiser: sets that it tried are those of a sweep, its errors are clear, and the ledger counts each set."""

from __future__ import annotations

import sys
from typing import Any

import polars as pl
import pytest

from replaylab import CLOSE, HOLD, Lab, exit_rule
from replaylab.errors import ConfigError, SweepError

SPACE = {
    "entry_threshold": (0.3, 0.8),
    "sl_pct": (0.05, 0.5, 0.05),
    "max_hold_s": [None, 60.0, 300.0],
}


@pytest.fixture(scope="module")
def lab() -> Lab:
    lab = Lab.sample()
    for name, start, end in (("a", "10:00", "10:30"), ("b", "10:30", "11:00")):
        lab.build_replay_session(
            f"2025-11-18T{start}", f"2025-11-18T{end}", ["BTCUSDT", "AIUSDT"], session_id=name
        )
    return lab


def test_every_row_is_that_of_a_sweep(lab: Lab) -> None:
    """Metrics, trades, PnL by period; equal seeds try equal sets; the best so far never falls."""
    found = lab.optimise("a", SPACE, trials=40, batch=16, min_trades=2, progress=False)
    assert found.frame.height == 40
    axes = list(SPACE)
    swept = lab.sweep("a", found.frame.select(axes), progress=False)
    metrics = [name for name in swept.frame.columns if name not in axes]
    assert found.frame.select(metrics).equals(swept.frame.select(metrics))
    for row in (0, 17, 39):
        assert found.trades(row).equals(swept.trades(row))
    assert (found.pnl_by_period()[1] == swept.pnl_by_period()[1]).all()
    again = lab.optimise("a", SPACE, trials=40, batch=16, min_trades=2, progress=False)
    assert again.frame.equals(found.frame)
    best = found.history["best_so_far"].drop_nulls()
    assert best.is_sorted()
    assert best[-1] == found.best(1, min_trades=2)["net_pnl"][0]
    assert "Optimisation" in repr(found)
    assert "sets chosen with feedback (TPESampler)" in found.assumptions
    assert found.study.best_value == best[-1]
    steps = found.frame["sl_pct"] / 0.05
    assert ((steps - steps.round()).abs() < 1e-9).all()


def test_every_set_is_a_trial_of_the_ledger(lab: Lab) -> None:
    before = lab.trials()["rows"].sum() if lab.trials().height else 0
    found = lab.optimise(
        "b", {"sl_pct": (0.05, 0.5)}, trials=24, batch=8, seed=5, min_trades=1, progress=False
    )
    assert lab.trials()["rows"].sum() - before == 24
    assert found.n_trials == 24
    later = lab.sweep("b", {"sl_pct": [0.111, 0.222]}, progress=False)
    assert later.n_trials == 26


def test_several_sessions_are_pooled(lab: Lab) -> None:
    found = lab.optimise(["a", "b"], {"sl_pct": (0.05, 0.5)}, trials=6, batch=3, progress=False)
    swept = lab.sweep(["a", "b"], found.frame.select("sl_pct"), progress=False)
    assert found.frame["net_pnl"].to_list() == swept.frame["net_pnl"].to_list()
    assert found.trades(4).equals(swept.trades(4))
    assert found.verdict().level == swept.verdict().level


def test_axes_of_rules_and_scoring(lab: Lab) -> None:
    @exit_rule(seconds=30.0)
    def too_old(trade, price, seconds):  # type: ignore[no-untyped-def]
        return CLOSE if trade.age_s > seconds else HOLD

    space = {"rule.seconds": (5.0, 60.0), "scoring.gain": [1.0, 2.0], "sl_pct": (0.05, 0.5)}
    found = lab.optimise("a", space, trials=5, batch=5, min_trades=1, rule=too_old, progress=False)
    assert found.frame.columns[:3] == ["rule.seconds", "scoring.gain", "sl_pct"]
    for row in range(found.frame.height):
        values = found.frame.row(row, named=True)
        alone = lab.backtest(
            "a",
            {"sl_pct": values["sl_pct"]},
            rule=too_old.with_values(seconds=values["rule.seconds"]),
            scoring={"gain": values["scoring.gain"]},
        )
        assert values["net_pnl"] == alone.metrics["net_pnl"]
        assert found.trades(row).equals(alone.trades)


def test_sets_that_contradict_themselves_do_not_run(lab: Lab) -> None:
    space = {"tp1_pct": (0.1, 0.6), "tp2_pct": (0.1, 0.6)}
    found = lab.optimise("a", space, trials=30, batch=10, min_trades=1, progress=False)
    assert 0 < found.refused < 30
    assert found.frame.height == 30 - found.refused
    assert (found.frame["tp2_pct"] >= found.frame["tp1_pct"]).all()
    with pytest.raises(SweepError, match=r"all 8 proposed sets contradict themselves.*tp2_pct < tp1_pct"):
        lab.optimise(
            "a", {"tp1_pct": (0.5, 0.6)}, trials=8, params={"tp2_pct": 0.5, "tp1_pct": 0.4}, progress=False
        )


def test_whole_numbers_and_logarithms(lab: Lab) -> None:
    space = {"max_trades_per_day": (1, 500), "cooldown_s": (0.1, 100.0)}
    found = lab.optimise("a", space, trials=20, min_trades=1, log=["cooldown_s"], progress=False)
    assert found.frame["max_trades_per_day"].dtype == pl.Int64
    assert (found.frame["cooldown_s"] < 10.0).sum() > 5


def test_a_search_without_feedback_says_so(lab: Lab) -> None:
    """Sets with too few trades teach the optimiser nothing: it draws at random."""
    with pytest.warns(UserWarning, match="no set had 1000000 trades and a net_pnl: the search had nothing"):
        found = lab.optimise(
            "a", {"sl_pct": (0.1, 0.5)}, trials=4, min_trades=10**6, log="sl_pct", progress=False
        )
    assert found.history["best_so_far"].null_count() == 4


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({}, {}, "names no axis"),
        ({"sl_pt": (0.1, 0.2)}, {}, "Did you mean 'sl_pct'"),
        ({"sl_pct": (0.1, 200.0)}, {}, "sl_pct: expected"),
        ({"sl_pct": (0.2, 0.1)}, {}, "low < high"),
        ({"sl_pct": (0.1, 0.2, 0.5)}, {}, "low < high"),
        ({"sl_pct": 0.1}, {}, "expected a range"),
        ({"sl_pct": []}, {}, "expected a range"),
        ({"sl_pct": (0.0, 0.2)}, {"log": ["sl_pct"]}, "low > 0"),
        ({"sl_pct": (0.1, 0.2)}, {"log": ["sl_pc"]}, "Did you mean 'sl_pct'"),
        ({"sl_pct": (0.1, 0.2)}, {"metric": "net_pln"}, "Did you mean 'net_pnl'"),
        ({"sl_pct": (0.1, 0.2)}, {"trials": 0}, "at least one trial"),
        ({"sl_pct": (0.1, 0.2)}, {"trials": 2.5}, "at least one trial"),
        ({"sl_pct": (0.1, 0.2)}, {"sampler": "tpe"}, "sampler: expected one of optuna.samplers"),
        ([("sl_pct", (0.1, 0.2))], {}, "space: expected a mapping"),
        ({"rule.seconds": (0.1, 0.2)}, {}, "no rule= is given"),
        ({"scoring.gian": (0.1, 0.2)}, {}, "Did you mean 'gain'"),
        ({"max_trades_per_day": (1, 10, 0.5)}, {}, "whole numbers"),
    ],
)
def test_wrong_spaces_are_named(
    lab: Lab, space: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((SweepError, ConfigError), match=message):
        lab.optimise("a", space, progress=False, **options)


def test_without_optuna_it_says_what_to_install(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"pip install '\.\[optimise\]'"):
        lab.optimise("a", {"sl_pct": (0.1, 0.2)})
