"""Exit rules: ten give the same trades in the oracle, the event-driven system and the loop; faults are named."""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pytest

from replaylab import CLOSE, HOLD, Lab, exit_rule
from replaylab.errors import ConfigError, PriceError, ReplayError, SessionError, SweepError
from replaylab.sweep import FeatureTable, backtest, sweep
from replaylab.sweep.run import rule_identity
from replaylab.trading import ExitRule, OpenTrade, TradingSystem, resolve_prices
from tests import oracle
from tests.strategies import RandomSession, allow, make_case


@exit_rule(seconds=5.0)
def too_old(trade, price, seconds):
    return CLOSE if trade.age_s > seconds else HOLD


@exit_rule(pct=0.4)
def chandelier(trade, price, pct):
    return trade.best * (1.0 - trade.side * pct / 100.0)


@exit_rule(start_pct=1.0, per_minute=0.5)
def decaying_target(trade, price, start_pct, per_minute):
    gain = trade.side * (price / trade.entry_price - 1.0) * 100.0
    return CLOSE if gain >= max(start_pct - per_minute * trade.age_s / 60.0, 0.0) else HOLD


@exit_rule(step_pct=0.05)
def ladder(trade, price, step_pct):
    steps = math.floor(trade.side * (trade.best / trade.entry_price - 1.0) * 100.0 / step_pct)
    if steps < 1:
        return HOLD
    return trade.entry_price * (1.0 + trade.side * (steps - 1) * step_pct / 100.0)


@exit_rule(share=0.5)
def gives_back(trade, price, share):
    won = trade.side * (trade.best - trade.entry_price)
    return CLOSE if won > 0.0 and trade.side * (price - trade.entry_price) < share * won else HOLD


@exit_rule(pct=0.2)
def after_tp1(trade, price, pct):
    if trade.tp1_filled == 0.0:
        return HOLD
    return trade.entry_price * (1.0 + trade.side * pct / 100.0)


@exit_rule(seconds=30.0, pct=0.1)
def no_progress(trade, price, seconds, pct):
    if trade.age_s < seconds:
        return HOLD
    return CLOSE if trade.side * (trade.best / trade.entry_price - 1.0) * 100.0 < pct else HOLD


@exit_rule(mult=1.5, features=("atr",))
def atr_stop(trade, price, features, mult):
    if not features.atr > 0.0:
        return HOLD
    return max(trade.best - trade.side * mult * features.atr, 1e-9)


@exit_rule(limit=0.8, features=("noise",))
def kill_switch(trade, price, features, limit):
    return CLOSE if features.noise > limit else HOLD


@exit_rule(weight=0.5, features=("tilt", "noise"))
def weighted(trade, price, features, weight):
    if features.tilt != features.tilt:
        return HOLD
    return CLOSE if trade.side * features.tilt + weight * features.noise < 0.0 else HOLD


RULES: list[ExitRule] = [
    too_old,
    chandelier,
    decaying_target,
    ladder,
    gives_back,
    after_tp1,
    no_progress,
    atr_stop,
    kill_switch,
    weighted,
]
FIELDS = ("symbol", "side", "entry_index", "exit_index", "reason", "tp1_filled")
NUMBERS = ("entry_price", "close_price", "qty", "fees", "funding", "realized_pnl", "mfe", "mae")


def features_of(session: RandomSession, seed: int) -> pl.DataFrame:
    """Random features at some times of the session, by symbol; null here and there."""
    rng = np.random.default_rng(seed)
    times = np.sort(np.array([event[0] for event in session.raw]))
    rows = [
        (int(ts), symbol, float(rng.uniform(0.1, 2.0)), float(rng.random()), float(rng.normal()))
        for symbol in ("AAA", "BBB", "CCC")
        for ts in rng.choice(times, size=min(len(times), 40))
    ]
    frame = pl.DataFrame(rows, schema=["timestamp", "symbol", "atr", "noise", "tilt"], orient="row")
    return frame.with_columns(
        pl.col("timestamp").cast(pl.Datetime("ns", "UTC")),
        tilt=pl.when(pl.col("noise") > 0.1).then("tilt"),
    ).unique(["timestamp", "symbol"], maintain_order=True)


def trades_of_system(session: RandomSession, params: Any, rule: ExitRule) -> list[dict[str, Any]]:
    system = TradingSystem(
        params,
        price_sources=resolve_prices(session, session.price_source),
        instruments=session.instruments,
        initial_state=session.initial_state,
        rule=rule,
        rule_features=FeatureTable.of(rule, session),
    )
    for index, event in enumerate(session.raw):
        system.on_event(index, *event)
    system.finish()
    found = [{name: getattr(t, name) for name in (*FIELDS, *NUMBERS)} for t in system.trades]
    return sorted(found, key=lambda trade: trade["entry_index"])


def equal(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], what: str) -> None:
    assert len(ours) == len(theirs), what
    for one, other in zip(ours, theirs, strict=True):
        assert {n: one[n] for n in FIELDS} == {n: other[n] for n in FIELDS}, what
        for name in NUMBERS:
            assert one[name] == pytest.approx(other[name], rel=1e-9, abs=1e-9), (what, name)


def compare(rule: ExitRule, seeds: range) -> Counter[str]:
    """Hold the three implementations equal; return how often each reason occurred."""
    reasons: Counter[str] = Counter()
    for seed in seeds:
        session, params = make_case(seed)
        params = allow(session, params)
        bound = rule.on(features_of(session, seed)) if rule.features else rule
        table = FeatureTable.of(bound, session)

        def asked(
            seen: dict[str, float], price: float, name: str, ts: int, bound: Any = bound, table: Any = table
        ) -> float:
            row = bound.view(*table.at(name, ts).tolist()) if bound.features else None
            return float(bound.ask(OpenTrade(**seen), price, row))

        try:
            loop = backtest(session, params, price_source=session.price_source, rule=bound).trades
        except PriceError:  # a symbol of the random session has no price
            continue
        expected = oracle.run(
            session.raw, params, session.price_source, session.initial_state, session.instruments, asked
        ).trades
        what = f"{rule!r}, seed {seed}"
        equal(loop.sort("entry_index").to_dicts(), expected, f"loop, {what}")
        equal(trades_of_system(session, params, bound), expected, f"system, {what}")
        reasons.update(loop["reason"].to_list())
    return reasons


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.function.__name__)
def test_a_rule_gives_the_same_trades_everywhere(rule: ExitRule) -> None:
    reasons = compare(rule, range(60))
    assert reasons["RULE"] >= 3, reasons


@pytest.mark.stress
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.function.__name__)
def test_many_random_cases(rule: ExitRule) -> None:
    compare(rule, range(1000, 3000))


def test_a_rule_with_features_runs_on_a_session_without_scores() -> None:
    """Nothing to trade is a result without trades, with a rule and without one."""
    times = pl.Series([1, 2], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC"))
    events = pl.DataFrame(
        {"timestamp": times, "type": "MARKET_TRADE", "symbol": "A", "payload": '{"price":1.0}'}
    )
    noise = pl.DataFrame({"timestamp": times, "symbol": "A", "noise": [1.0, 2.0]})

    @exit_rule(features=("noise",))
    def closes(trade, price, features):  # type: ignore[no-untyped-def]
        return CLOSE

    rule = closes.on(noise)
    assert backtest(events, rule=rule).metrics["n_trades"] == 0
    assert sweep(events, {"sl_pct": [0.1, 0.2]}, rule=rule, progress=False).frame["n_trades"].sum() == 0


def test_axes_of_a_rule_are_swept(tmp_path: Any) -> None:
    """Each row is the backtest of its values; threads and an executor give the same; the columns come first."""
    lab = Lab.sample()
    manifest = lab.build_replay_session("2025-11-18T10:00", "2025-11-18T10:30", ["AIUSDT"], session_id="h")
    grid = {"rule.seconds": [20.0, 90.0], "sl_pct": [0.1, 0.3]}
    result = lab.sweep(manifest, grid, rule=too_old, progress=False)
    assert result.frame.columns[:2] == ["rule.seconds", "sl_pct"]
    assert result.method == "loop"
    for row, (seconds, stop) in enumerate([(20.0, 0.1), (20.0, 0.3), (90.0, 0.1), (90.0, 0.3)]):
        alone = lab.backtest(manifest, {"sl_pct": stop}, rule=too_old.with_values(seconds=seconds))
        assert result.frame.row(row, named=True)["net_pnl"] == alone.metrics["net_pnl"]
        assert result.trades(row).equals(alone.trades)
        assert f"too_old(seconds={seconds:g})" in alone.assumptions
    with ThreadPoolExecutor(2) as pool:
        other = lab.sweep(manifest, grid, rule=too_old, executor=pool, progress=False)
    assert other.frame.equals(result.frame)
    several = lab.sweep([manifest], grid, rule=too_old, progress=False, folder=tmp_path)
    assert several.frame["net_pnl"].to_list() == pytest.approx(result.frame["net_pnl"].to_list())


_LIMIT = 3.0


def test_kept_parts_of_a_study_are_those_of_the_same_rule() -> None:
    """Code, constants, closures, globals, values and features make the rule; the same text again does not."""

    def made(factor: float) -> ExitRule:
        @exit_rule(seconds=20.0)
        def rule(trade, price, seconds):  # type: ignore[no-untyped-def]
            return CLOSE if trade.age_s > factor * seconds + _LIMIT else HOLD

        return rule

    global _LIMIT
    first = rule_identity(made(1.0))
    assert rule_identity(made(1.0)) == first
    assert rule_identity(made(2.0)) != first
    assert rule_identity(made(1.0).with_values(seconds=21.0)) != first
    _LIMIT = 4.0
    try:
        assert rule_identity(made(1.0)) != first
    finally:
        _LIMIT = 3.0
    frame = pl.DataFrame({"timestamp": [1, 2], "symbol": ["A", "A"], "x": [1.0, 2.0]}).cast(
        {"timestamp": pl.Datetime("ns", "UTC")}
    )

    @exit_rule(features=("x",))
    def reads(trade, price, features):  # type: ignore[no-untyped-def]
        return CLOSE if features.x > 1.0 else HOLD

    known = rule_identity(reads.on(frame))
    assert rule_identity(reads.on(frame.with_columns(y=pl.lit(1)))) == known
    assert rule_identity(reads.on(frame.with_columns(x=pl.col("x") + 1.0))) != known


def test_a_lab_computes_the_features_that_a_rule_names() -> None:
    """Columns of lab.features without a frame of one's own; the replay gives the sweep's trades."""

    @exit_rule(mult=0.15, features=("realised_volatility_bps",))
    def by_volatility(trade, price, features, mult):
        if not features.realised_volatility_bps > 0.0:
            return HOLD
        return trade.best * (1.0 - trade.side * mult * features.realised_volatility_bps / 100.0)

    lab = Lab.sample()
    lab.build_replay_session("2025-11-18T10:00", "2025-11-18T10:40", ["AIUSDT", "BTCUSDT"], session_id="h")
    ran = lab.backtest("h", rule=by_volatility)
    assert ran.metrics["n_rule"] > 0
    engine = lab.engine(rule=by_volatility)
    engine.start_session("h", speed_factor=float("inf"))
    engine.wait()
    run = engine.last_run
    assert run.trades["realized_pnl"].sum() == pytest.approx(ran.metrics["net_pnl"])
    assert (run.trades["reason"] == "RULE").sum() == ran.metrics["n_rule"]
    filled = run.orders.filter((pl.col("status") == "FILLED") & pl.col("reduce_only"))
    assert filled.height >= run.trades.height


def session_of_one_trade() -> tuple[RandomSession, Any]:
    raw = [(k * 1_000_000_000, "MARKET_TRADE", "AAA", {"price": 100.0}) for k in range(1, 20)]
    raw.insert(2, (2_500_000_000, "SCORING_UPDATE", "AAA", {"score": 1.0}))
    return RandomSession(raw, {}, "auto"), {"entry_threshold": 0.5, "market_fill": "print"}


def test_a_fault_names_the_trade_and_the_event() -> None:
    """What a rule raises or returns by mistake, in the kernel and in the event-driven system."""

    @exit_rule()
    def divides(trade, price):
        return 1.0 / (trade.qty - trade.qty)

    @exit_rule()
    def lost(trade, price):
        return -3.0

    session, changes = session_of_one_trade()
    with pytest.raises(
        SweepError, match=r"divides\(\) raised ZeroDivisionError.*entered at event 3, at event 4"
    ):
        backtest(session, changes, rule=divides)
    with pytest.raises(SweepError, match=r"lost\(\) returned -3.0 for the trade that entered at event 3"):
        sweep(session, {"sl_pct": [0.5, 1.0]}, changes, rule=lost, progress=False)
    params = allow(
        session, make_case(1)[1].replace(entry_threshold=0.1, entry_order="MARKET", market_fill="print")
    )
    with pytest.raises(ReplayError, match=r"lost\(\) returned -3.0 for the trade that entered at event"):
        trades_of_system(session, params.replace(allowed_regimes=None, allow_long=True, latency_ms=0.0,
                                                 max_open_positions=None, max_trades_per_day=None), lost)  # fmt: skip


def test_what_numba_cannot_compile_runs_if_asked() -> None:
    """The error has the line; compiled=False calls the Python function, with the same trades."""
    kept: list[float] = []

    @exit_rule(seconds=5.0)
    def notes(trade, price, seconds):
        kept.append(price)
        return CLOSE if trade.age_s > seconds else HOLD

    session, changes = session_of_one_trade()
    with pytest.raises(SweepError, match=r"notes: numba cannot compile this rule.*line \d+.*compiled=False"):
        backtest(session, changes, rule=notes)

    @exit_rule(seconds=5.0, compiled=False)
    def in_python(trade, price, seconds):
        kept.append(price)
        return CLOSE if trade.age_s > seconds else HOLD

    ran = backtest(session, changes, rule=in_python)
    assert ran.trades["reason"].to_list() == ["RULE"]
    assert kept
    assert ran.trades.equals(backtest(session, changes, rule=too_old).trades)


def test_wrong_rules_and_axes_are_named() -> None:
    session, changes = session_of_one_trade()
    with pytest.raises(ConfigError, match="expected the arguments trade, price, features, level"):

        @exit_rule(level=1.0, features=("score",))
        def wrong(trade, price, level):
            return HOLD

    with pytest.raises(ConfigError, match="Did you mean 'seconds'"):
        sweep(session, {"rule.second": [1.0]}, changes, rule=too_old, progress=False)
    with pytest.raises(SweepError, match="no rule= is given"):
        sweep(session, {"rule.seconds": [1.0]}, changes, progress=False)
    with pytest.raises(
        ConfigError, match=r"expected a function with @replaylab\.exit_rule or .*, found function"
    ):
        backtest(session, changes, rule=lambda trade, price: HOLD)
    with pytest.raises(SweepError, match="an exit rule runs in the loop"):
        sweep(session, {"sl_pct": [1.0]}, changes, rule=too_old, method="tables", progress=False)
    with pytest.raises(ConfigError, match=r"name the DataFrame with rule\.on"):
        backtest(session, changes, rule=atr_stop)
    frame = pl.DataFrame({"timestamp": [1], "symbol": ["AAA"], "atrs": [1.0]})
    with pytest.raises(SessionError, match=r"no column 'atr'\. Did you mean 'atrs'"):
        backtest(session, changes, rule=atr_stop.on(frame))


@pytest.mark.parametrize(
    ("answer", "compiled", "message"),
    [
        (None, False, "None is no answer.*entered at event 3"),
        (True, False, "True is no answer.*entered at event 3"),
        ("close", False, "'close' is no answer.*entered at event 3"),
        (True, True, "it returns .*bool.*, expected HOLD, CLOSE or a price"),
        ((CLOSE, 1), True, "it returns Tuple.*expected HOLD, CLOSE or a price"),
        ("close", True, "numba cannot compile this rule: could not convert string"),
    ],
)
def test_an_answer_that_is_no_number_is_refused(answer: Any, compiled: bool, message: str) -> None:
    """Not taken for a price, as True would be."""

    @exit_rule(compiled=compiled)
    def odd(trade, price):
        return answer

    session, changes = session_of_one_trade()
    with pytest.raises(SweepError, match=message):
        backtest(session, changes, rule=odd)


def test_bytecode_that_numba_does_not_know_is_named() -> None:
    @exit_rule
    def imports(trade, price):
        import re

        return CLOSE if re.match("a", "a") else HOLD

    session, changes = session_of_one_trade()
    with pytest.raises(SweepError, match=r"imports: numba cannot compile this rule: .*IMPORT_NAME"):
        backtest(session, changes, rule=imports)


def test_a_rule_follows_what_its_closure_holds_now() -> None:
    """As in the replay, which calls the Python function; also where numba compiled it before."""
    limit = 3.0

    @exit_rule
    def rule(trade, price):
        return CLOSE if trade.age_s > limit else HOLD

    session, changes = session_of_one_trade()
    short = backtest(session, changes, rule=rule).trades["duration_seconds"].to_list()
    limit = 9.0
    assert short == [4.0]
    assert backtest(session, changes, rule=rule).trades["duration_seconds"].to_list() == [10.0]


def test_wrong_decorations_are_named() -> None:
    def rule(trade, price, features):
        return HOLD

    for features in ("spread_bps", ("a b",), ("a", "a"), ("class",), ("_a",)):
        with pytest.raises(ConfigError, match="features: expected a tuple of different names"):
            exit_rule(features=features)(rule)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a function, found"):
        exit_rule(functools.partial(rule))
    with pytest.raises(ConfigError, match="rule: expected a function with @replaylab"):
        Lab.sample().engine(rule=rule)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rule: expected a function with @replaylab"):
        Lab.sample().sweep(session_of_one_trade()[0].events, {"sl_pct": [0.1]}, rule=rule, progress=False)  # type: ignore[arg-type]
    assert too_old.with_values(seconds=np.float32(0.5)).values == {"seconds": 0.5}
    session, changes = session_of_one_trade()
    for values, message in (
        ([], "the axis has no values"),
        (["a"], "finite number"),
        ([True], "finite number"),
    ):
        with pytest.raises((SweepError, ConfigError), match=message):
            sweep(session, {"rule.seconds": values}, changes, rule=too_old, progress=False)


def test_frames_of_features_that_cannot_be_used_are_named() -> None:
    """A number is no time: milliseconds read as nanoseconds would let the rule see what comes later."""

    @exit_rule(features=("x",))
    def reads(trade, price, features):
        return CLOSE if features.x == 1.0 else HOLD

    session, changes = session_of_one_trade()
    frame = pl.DataFrame({"timestamp": ["1970-01-01T00:00:04Z"], "symbol": ["AAA"], "x": [1.0]})
    late = backtest(session, changes, rule=reads.on(frame))
    assert late.trades["exit_time"].dt.timestamp("ms").to_list() == [4000]
    same = (
        frame.lazy(),
        frame.to_pandas(),
        frame.with_columns(pl.col("timestamp").str.to_datetime(time_zone="UTC")),
    )
    for other in same:
        assert backtest(session, changes, rule=reads.on(other)).trades.equals(late.trades)
    for wrong, message in (
        (frame.with_columns(timestamp=pl.lit(4_000)), "timestamps are datetimes or ISO strings, found"),
        (frame.with_columns(timestamp=pl.lit(None, pl.String)), "row 0 of the features has no timestamp"),
        (frame.with_columns(symbol=pl.lit(None, pl.String)), "row 0 of the features has no symbol"),
        (frame.with_columns(x=pl.lit("a")), "wrong type"),
        ({"x": [1.0]}, "expected a DataFrame of features"),
    ):
        with pytest.raises(SessionError, match=message):
            backtest(session, changes, rule=reads.on(wrong))
    with pytest.warns(UserWarning, match=r"the features of reads\(\) have no row for AAA"):
        ran = backtest(session, changes, rule=reads.on(frame.with_columns(symbol=pl.lit("B"))))
    assert ran.metrics["n_rule"] == 0


def test_threads_share_a_rule() -> None:
    """Many threads at once, each with values of its own."""
    session, changes = session_of_one_trade()
    expected = {
        s: backtest(session, changes, rule=too_old.with_values(seconds=s)).metrics["net_pnl"]
        for s in (2.0, 9.0)
    }
    wrong: list[float] = []

    def run(seconds: float) -> None:
        for _ in range(20):
            found = backtest(session, changes, rule=too_old.with_values(seconds=seconds)).metrics["net_pnl"]
            if found != expected[seconds]:
                wrong.append(seconds)

    threads = [threading.Thread(target=run, args=(s,)) for s in (2.0, 9.0) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
