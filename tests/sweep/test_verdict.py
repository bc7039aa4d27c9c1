"""Verdicts: what each level takes, what is stated with it, and how often it is wrong (a short run of the benchmark)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from benchmarks import evidence as benchmark
from replaylab import Lab, plots
from replaylab.sessions import Finding, Findings
from replaylab.sweep import SweepResult, sweep
from replaylab.sweep import verdict as module


def swept(seed: int, edge: float = 0.0, kind: str = "edge", **base: object) -> SweepResult:
    grid, more = benchmark.KINDS.get(kind, benchmark.EDGE)
    events = benchmark.tape(np.random.default_rng([seed, 2]), edge)
    params = benchmark.base(**{**more, **benchmark.FREE, **base})
    return sweep(events, grid, params, progress=False, threads=1)


@pytest.fixture(scope="module")
def planted() -> SweepResult:
    return swept(1, 0.4)


def test_a_planted_edge_is_supported(planted: SweepResult) -> None:
    """And its page, sentences and numbers are there; n stands with the ratio."""
    verdict = planted.verdict()
    assert verdict.level == "supported"
    assert verdict.metrics["dsr"] >= 0.95
    assert verdict.metrics["spa_p_value"] <= 0.05
    assert f"{verdict.metrics['n_trades']:,} trades" in verdict.reasons[0]
    assert isinstance(verdict.plot(), Figure)
    assert planted.verdict() is verdict


def test_noise_is_luck() -> None:
    verdict = swept(3).verdict()
    assert verdict.level == "luck"
    assert verdict.metrics["dsr"] < 0.95 or verdict.metrics["spa_p_value"] > 0.05


def test_too_few_trades_are_insufficient(planted: SweepResult) -> None:
    verdict = planted.verdict(min_trades=100_000)
    assert verdict.level == "insufficient"
    assert "No combination has 100000 trades" in verdict.reasons[0]
    assert isinstance(verdict.plot(), Figure)


def test_an_edge_of_the_first_half_fails_out_of_sample() -> None:
    """The best row earns in the first half what it loses, less of it, in the second."""
    early, late = (
        benchmark.tape(np.random.default_rng(5), 0.4),
        benchmark.tape(np.random.default_rng(6), -0.1),
    )
    later = late.with_columns(pl.col("timestamp") + pl.duration(seconds=benchmark.TICKS, time_unit="ns"))
    events = pl.concat([early, later])
    grid, more = benchmark.EDGE
    result = sweep(events, grid, benchmark.base(**more, **benchmark.FREE), progress=False, threads=1)
    assert result.verdict().level == "fails_out_of_sample"


def test_small_wins_without_a_stop_are_not_skill(planted: SweepResult) -> None:
    """A row that won 40 times the same, whose stop has not been hit yet, has a Sharpe ratio without bound."""

    win = pl.Series(np.where(np.arange(40) % 2, 0.011, 0.010))
    lucky = planted.trades(0).head(40).with_columns(realized_pnl=win, reason=pl.lit("TP2"))
    stop = planted.params_of(0).sl_pct
    assert stop * 1_000 / 100 > 0.1
    assert module._one_more_stop(lucky, stop) < -0.1


def test_costs_of_nothing_are_named(planted: SweepResult) -> None:
    assert any("costs of 0" in line for line in planted.verdict().caveats)
    assert planted.assumptions in planted.verdict().caveats


def test_prints_of_a_thin_book_and_warnings_of_the_data_are_named(planted: SweepResult) -> None:
    """Where rows fill at the last print of a thin book, and what session.check() warns of, in the title too."""
    thin = Finding("thin_book", "note", "A", 12.0, "A: the spread is 12 bps (median): fills are too good")
    clock = Finding("clock_offset", "warning", "A", 1.3, "A: the clock of the signals is 1,300 ms behind")
    doubtful = replace(
        planted, params=planted.params.replace(market_fill="print"), checks=lambda: Findings([thin, clock])
    ).verdict()
    assert any('market_fill="print" on a thin book: A: the spread' in line for line in doubtful.caveats)
    assert clock.message in doubtful.caveats
    assert doubtful.level == planted.verdict().level == "supported"
    assert doubtful.title == planted.verdict().title + "; but session.check() warns of the data"
    plain = replace(planted, checks=lambda: Findings([thin])).verdict()
    assert not any("thin book" in line for line in plain.caveats)


def test_best_of_a_real_half_day_has_enough_trades(real_data: Path, tmp_path: Path) -> None:
    """12 hours of trades, momentum scores: rows with one trade or none are not first, anywhere."""
    lab = Lab(tmp_path)
    path = real_data / "binance-trades" / "btcusdt_20220115_00h-12h.parquet"
    columns = {"timestamp": "timestamp", "timestamp_unit": "ms", "price": "price", "qty": "quantity"}
    lab.import_history("parquet", path, symbol="BTCUSDT", **columns)
    session = lab.build_replay_session("2022-01-15T00:00Z", "2022-01-15T12:00Z", ["BTCUSDT"])
    prices = (
        pl.read_parquet(path).group_by(t=pl.col("timestamp") // 1000).agg(pl.col("price").last()).sort("t")
    )
    move = pl.col("price").log().diff(60)
    scored = prices.with_columns(score=(move / move.rolling_std(1800) / 4).clip(-1, 1)).drop_nulls()
    signals = scored.head(-1).select(
        timestamp=((pl.col("t") + 1) * 1_000_000_000).cast(pl.Datetime("ns", "UTC")),
        symbol=pl.lit("BTCUSDT"),
        score="score",
        price="price",
    )
    grid = {
        "entry_threshold": np.linspace(0.3, 0.95, 14),
        "tp1_pct": [0.1, 0.3, 0.6],
        "sl_pct": [0.1, 0.2, 0.4],
    }
    costs = {"tp2_pct": 1.0, "taker_fee_bps": 2.0, "slippage_bps": 0.5}
    result = lab.sweep(session, grid, params=costs, signals=signals, progress=False)
    counts = result.frame["n_trades"]
    assert counts.min() <= 5 < 30 <= counts.max()
    few = result.frame.filter(pl.col("n_trades") < 30)["net_pnl"].max()
    for top in (result.best(1), result.robustness(1)):
        assert top["n_trades"][0] >= 30
        assert top["net_pnl"][0] < few, "rows of few trades lost less, and do not rank first"
    verdict = result.verdict()
    assert verdict.metrics["n_trades"] >= 30
    assert verdict.level == "luck"
    axes = result.heatmap("entry_threshold", "sl_pct").axes[0]
    rings = [patch.get_xy() for patch in axes.patches if not patch.get_hatch()]
    hatched = {patch.get_xy() for patch in axes.patches if patch.get_hatch()}
    assert rings
    assert hatched
    assert not {(x - 0.04, y - 0.04) for x, y in rings} & hatched


def test_noise_with_costs_has_a_small_pbo_and_loses_in_every_split() -> None:
    """Rows differ by what they pay, so their order repeats itself: the headline must not be PBO alone."""
    result = swept(4, kind="symmetric", **benchmark.COSTS)
    found = result.overfitting(8)
    assert found.loss_probability > 0.9
    assert result.verdict().level == "luck"
    titles = [axes.get_title() for axes in plots.overfitting(found).axes]
    assert any("loses out of sample" in title for title in titles)


def test_few_verdicts_on_noise_are_supported() -> None:
    """A few sweeps of each kind; `benchmarks/evidence.py` runs a thousand."""
    for kind in benchmark.KINDS:
        found = benchmark.false_alarms(kind, benchmark.FREE, 3)
        assert found.get("supported", 0) <= benchmark.most_allowed(3), kind


def test_short_sweeps_of_noise_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 ticks: rows of some thirty trades, whose ratios vary most."""
    monkeypatch.setattr(benchmark, "TICKS", 1_500)
    for kind in ("symmetric", "scalping", "long"):
        found = benchmark.false_alarms(kind, benchmark.FREE, 10)
        assert found.get("supported", 0) <= benchmark.most_allowed(10), kind


def test_a_row_of_few_trades_cannot_be_supported(planted: SweepResult) -> None:
    """Whatever its Sharpe ratio: it is not a candidate, and rows without trades do not beat rows that lose."""
    counts = planted.frame["n_trades"].to_numpy().copy()
    counts[5] = 4
    frame = planted.frame.with_columns(
        n_trades=pl.Series(counts, dtype=pl.Int32),
        net_pnl=pl.when(pl.int_range(pl.len()) == 5).then(1e6).otherwise(pl.col("net_pnl")),
    )
    assert replace(planted, frame=frame).verdict().metrics["row"] != 5


def test_rejected_entries_are_named_where_there_are_no_trades(planted: SweepResult) -> None:
    none = planted.frame.with_columns(n_trades=pl.lit(0, pl.Int32), n_rejected=pl.lit(2_239, pl.Int32))
    assert "up to 2,239 entries were rejected" in replace(planted, frame=none).verdict().reasons[0]


def test_planted_edges_are_found() -> None:
    assert benchmark.power(0.2, 3).get("supported", 0) >= 2


def test_progress_covers_what_follows_the_pnl(
    planted: SweepResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every step is named while it runs, the bar only grows and ends full; without ``progress`` there is none."""

    class Eager(module.tqdm):  # type: ignore[misc, name-defined]
        def __init__(self, *given: object, **options: object) -> None:
            super().__init__(*given, **{**options, "delay": 0, "mininterval": 0})

    monkeypatch.setattr(module, "tqdm", Eager)
    watched = replace(planted, progress=True)
    watched.verdict()
    watched.overfitting(8)
    watched.walk_forward("1h", "30m")
    shown = capsys.readouterr().err
    steps = ("assumptions and session.check()", "PnL by period", "trades of the best combination", "SPA test")
    for step in (*steps, "overfitting", "walk-forward and intervals"):
        assert f"verdict: {step}" in shown
    for name in ("verdict", "overfitting", "walk-forward"):
        percents = [int(found) for found in re.findall(rf"\r{name}: [^%]*?(\d+)%", shown)]
        assert percents == sorted(percents), name
        assert percents[-1] == 100, name
    replace(planted).verdict()
    assert capsys.readouterr().err == ""


@pytest.mark.stress
@pytest.mark.timeout(20_000)
@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_at_most_one_verdict_of_twenty_on_noise_is_supported(kind: str) -> None:
    for costs in (benchmark.FREE, benchmark.COSTS):
        assert benchmark.false_alarms(kind, costs, 1_000).get("supported", 0) <= 50


@pytest.mark.stress
@pytest.mark.timeout(20_000)
@pytest.mark.parametrize(("edge", "share"), benchmark.EDGES.items())
def test_planted_edges_are_found_as_often_as_stated(edge: float, share: float) -> None:
    assert benchmark.power(edge, 1_000).get("supported", 0) >= 1_000 * share
