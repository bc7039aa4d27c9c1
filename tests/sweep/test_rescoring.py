"""Scores computed from market data and swept give the trades that FULL_DECISION gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from replaylab.errors import ConfigError, SessionError, SweepError
from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import ReplayEngine, run_sim
from replaylab.sessions import Session, SessionStore, build_replay_session
from replaylab.sweep import backtest, rescored, sweep
from replaylab.trading import TradingSystem, resolve_prices

PARAMS = TradingParams(
    entry_threshold=0.35,
    exit_threshold=-0.2,
    tp1_pct=0.05,
    tp2_pct=0.1,
    sl_pct=0.05,
    max_open_positions=1,
    allowed_regimes=("CALM", "TRENDING"),
)
BASE = ScoringParams(interval_ms=500, warmup_s=10, volatile_ratio=1.05, trend_half_life_s=20)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    root = DataRoot(tmp_path_factory.mktemp("data"))
    write_synthetic(root, seed=5, hours=0.2)
    run_sim(root, params=PARAMS, scoring=BASE)
    manifest = build_replay_session(
        root, "2025-11-18T10:00:00Z", "2025-11-18T10:15:00Z", ["AIUSDT", "BTCUSDT"]
    )
    return Session(root, manifest.session_id)


Event = tuple[int, str, str | None, dict[str, Any]]


def rows_of(session: Session) -> list[Event]:
    events = session.events
    columns = (events["timestamp"].dt.timestamp("ns"), events["type"], events["symbol"])
    return [
        (*row, orjson.loads(text))
        for *row, text in zip(
            *(column.to_list() for column in columns), events["payload"].to_list(), strict=True
        )
    ]


def decided_again(session: Session, scoring: Any, params: TradingParams) -> pl.DataFrame:
    """The trades of the trading system in FULL_DECISION over the session."""
    return played(session, rows_of(session), params, scoring=scoring, inject_mode="FULL_DECISION")


def played(session: Session, rows: list[Event], params: TradingParams, **options: Any) -> pl.DataFrame:
    """The trades of the trading system over some events, with the session's initial state."""
    system = TradingSystem(
        params,
        **options,
        price_sources=resolve_prices(session),
        instruments=session.instruments,
        initial_state=session.initial_state,
    )
    for index, row in enumerate(rows):
        system.on_event(index, *row)
    system.finish()
    return pl.DataFrame(
        [
            (
                t.symbol,
                t.side,
                t.entry_index,
                t.exit_index,
                t.entry_price,
                t.close_price,
                t.reason,
                t.realized_pnl,
            )
            for t in system.trades
        ],
        schema=COLUMNS,
        orient="row",
    ).sort("exit_index", "entry_index", "symbol")


COLUMNS = {
    "symbol": pl.String,
    "side": pl.String,
    "entry_index": pl.Int64,
    "exit_index": pl.Int64,
    "entry_price": pl.Float64,
    "close_price": pl.Float64,
    "reason": pl.String,
    "realized_pnl": pl.Float64,
}


def same(found: pl.DataFrame, expected: pl.DataFrame) -> bool:
    found = found.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())
    return found.sort("exit_index", "entry_index", "symbol").equals(expected)


@pytest.mark.parametrize("gain", [1.0, 1.5, 2.5])
def test_a_rescored_session_gives_the_trades_of_full_decision(session: Session, gain: float) -> None:
    """Same entries, exits, reasons and PnL, to the bit, at positions of the session itself."""
    scoring = BASE.replace(gain=gain, momentum_weight=0.6)
    again = rescored(session, scoring)
    expected = decided_again(session, scoring, PARAMS)
    assert expected.height > 5
    assert same(again.in_session(backtest(again, PARAMS).trades), expected)


def test_the_recorded_settings_give_the_recorded_scores(session: Session) -> None:
    def scores(frame: pl.DataFrame) -> Any:
        rows = frame.filter(pl.col("type") == "SCORING_UPDATE").sort("timestamp", "symbol")
        return np.array([orjson.loads(text)["score"] for text in rows["payload"]])

    np.testing.assert_allclose(scores(rescored(session, BASE).events), scores(session.events), rtol=1e-9)


def test_a_sweep_over_scoring_and_trading(session: Session) -> None:
    """Each row is the backtest of its own settings; the scoring axes vary slowest."""
    grid = {
        "scoring.gain": [1.0, 2.0],
        "scoring.momentum_weight": np.array([0.3, -0.3]),
        "entry_threshold": [0.3, 0.5],
        "sl_pct": [0.05, 0.1],
    }
    result = sweep(session, grid, PARAMS, scoring=BASE, progress=False)
    frame = result.frame
    assert frame.height == 16
    assert frame.columns[:4] == ["scoring.gain", "scoring.momentum_weight", "entry_threshold", "sl_pct"]
    assert frame["scoring.gain"].to_list() == [1.0] * 8 + [2.0] * 8
    assert frame["net_pnl"].n_unique() > 8
    for row in (0, 7, 10):
        shown = frame.row(row, named=True)
        params = result.params_of(row)
        assert (params.entry_threshold, params.sl_pct) == (shown["entry_threshold"], shown["sl_pct"])
        scoring = BASE.replace(gain=shown["scoring.gain"], momentum_weight=shown["scoring.momentum_weight"])
        trades = result.trades(row)
        assert trades.height == shown["n_trades"]
        assert trades["realized_pnl"].sum() == pytest.approx(shown["net_pnl"])
        assert same(trades, decided_again(session, scoring, params))
    assert result.best(1).height == 1
    assert result.heatmap("scoring.gain", "entry_threshold").axes
    assert 0 <= result.deflated_sharpe().probability <= 1


def test_scoring_axes_mix_with_trading_axes(session: Session) -> None:
    """``scoring.<field>`` beside trading parameters; what is no axis is as recorded. Alone they are a grid, too."""
    grid = {"entry_threshold": [0.3, 0.5], "scoring.gain": [1.0, 1.5]}
    result = sweep(session, grid, PARAMS, progress=False)
    assert list(result.axes) == ["scoring.gain", "entry_threshold"]
    recorded = sweep(session, {"entry_threshold": [0.3, 0.5]}, PARAMS, progress=False)
    assert result.frame["net_pnl"].to_list()[2:] == recorded.frame["net_pnl"].to_list()
    alone = sweep(session.events, {"scoring.gain": [1.0, 1.5, 2.0]}, PARAMS, progress=False)
    assert alone.frame.height == 3
    assert alone.trades(2).height == alone.frame["n_trades"][2]


def test_a_list_of_settings_is_a_grid(session: Session) -> None:
    settings = [BASE, BASE.replace(gain=2.0, flow_half_life_s=2.0)]
    grid = {"entry_threshold": [0.3, 0.4, 0.5]}
    result = sweep(session, grid, PARAMS, scoring=settings, progress=False)
    assert list(result.axes) == ["scoring.flow_half_life_s", "scoring.gain", "entry_threshold"]
    assert result.frame.height == 6


def test_wrong_settings_are_named(session: Session) -> None:
    def swept(axis: str, values: list[float], **options: Any) -> None:
        sweep(session, {axis: values, "sl_pct": [0.1]}, progress=False, **options)

    with pytest.raises(SweepError, match="Did you mean 'gain'"):
        swept("scoring.gian", [1.0])
    with pytest.raises(ConfigError, match="gain"):
        swept("scoring.gain", [-1.0])
    with pytest.raises(SweepError, match="no values"):
        swept("scoring.gain", [])
    with pytest.raises(SweepError, match="price_source"):
        swept("scoring.gain", [1.0], price_source="score")
    with pytest.raises(SweepError, match="exclude each other"):
        swept("scoring.gain", [1.0], scoring=[BASE])
    with pytest.raises(SweepError, match="empty"):
        swept("sl_pct", [0.1], scoring=[])

    class Bare:
        events = session.events.filter(pl.col("type") == "SCORING_UPDATE")

    with pytest.raises(SweepError, match="market data"):
        rescored(Bare(), BASE)


def test_one_sweep_on_recomputed_scores(session: Session) -> None:
    """``sweep(..., scoring=...)``: the trades of FULL_DECISION, at positions in the session itself."""
    scoring = BASE.replace(gain=2.0)
    result = sweep(session, {"entry_threshold": [0.4, 0.6]}, PARAMS, scoring=scoring, progress=False)
    for row, threshold in enumerate([0.4, 0.6]):
        expected = decided_again(session, scoring, PARAMS.replace(entry_threshold=threshold))
        assert same(result.trades(row), expected)


def test_scoring_changes_start_from_the_recorded_settings(session: Session) -> None:
    """A dict changes what was recorded; without a record, the default of the caller."""
    changed = backtest(session, PARAMS, scoring={"gain": 2.0}).trades
    assert same(changed, decided_again(session, BASE.replace(gain=2.0), PARAMS))
    events = session.events
    default = backtest(events, PARAMS, scoring={"gain": 2.0}, default_scoring=BASE).trades
    assert default.equals(backtest(events, PARAMS, scoring=BASE.replace(gain=2.0)).trades)


def with_signals(session: Session, signals: pl.DataFrame) -> list[Event]:
    """The slow form of what ``signals=`` plays: each signal after the last event that is not later than it."""
    has_regimes = "regime" in signals.columns
    dropped = ("SCORING_UPDATE", "REGIME_UPDATE") if has_regimes else ("SCORING_UPDATE",)
    waiting = sorted(signals.to_dicts(), key=lambda row: (row["timestamp"], row["symbol"]))
    stamps = (
        signals.sort("timestamp", "symbol", maintain_order=True)["timestamp"].dt.timestamp("ns").to_list()
    )
    last = {name: state.get("regime") for name, state in session.initial_state["symbols"].items()}
    found: list[Event] = []

    def emit(until: int | None) -> None:
        while waiting and (until is None or stamps[0] < until):
            row, ts = waiting.pop(0), stamps.pop(0)
            regime = row.get("regime")
            if regime is not None and regime != last.get(row["symbol"]):
                found.append((ts, "REGIME_UPDATE", row["symbol"], {"regime": regime}))
                last[row["symbol"]] = regime
            payload = {name: row[name] for name in ("score", "price") if row.get(name) is not None}
            if "score" in payload:
                found.append((ts, "SCORING_UPDATE", row["symbol"], payload))

    for event in rows_of(session):
        emit(event[0])
        if event[1] not in dropped:
            found.append(event)
    emit(None)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_given_signals_act_after_the_events_of_their_time(session: Session, seed: int) -> None:
    """Backtest, sweep and replay over random signals give the trades of the events merged by hand."""
    rng = np.random.default_rng(seed)
    times = session.events["timestamp"]
    size = 120
    at = rng.integers(0, len(times), size)
    shift = np.where(rng.random(size) < 0.5, 0, rng.integers(-3_000_000_000, 3_000_000_000, size))
    stamps = np.minimum(times.dt.timestamp("ns").to_numpy()[at] + shift, times.dt.timestamp("ns")[-1])
    signals = pl.DataFrame(
        {
            "timestamp": pl.Series(stamps).cast(pl.Datetime("ns", "UTC")),
            "symbol": rng.choice(["AIUSDT", "BTCUSDT"], size),
            "score": np.round(rng.uniform(-1, 1, size), 3),
        }
    ).unique(["timestamp", "symbol"], keep="first", maintain_order=True)
    if seed % 2:
        regimes = rng.choice(np.array(["CALM", "TRENDING", 'odd "one"', None], dtype=object), signals.height)
        signals = signals.with_columns(regime=pl.Series(regimes.tolist(), dtype=pl.String))
    expected = played(session, with_signals(session, signals), PARAMS).drop("entry_index", "exit_index")
    assert expected.height > 3
    found = backtest(session, PARAMS, signals=signals)
    assert "signals given by the caller" in found.assumptions
    swept = sweep(session, {"sl_pct": [PARAMS.sl_pct, 9.0]}, PARAMS, signals=signals, progress=False)
    engine = ReplayEngine(
        SessionStore(session.root), params=PARAMS, signals=signals.sample(fraction=1.0, shuffle=True)
    )
    engine.start_session(session.id, speed_factor=float("inf"))
    engine.wait(60)
    run = engine.last_run
    assert run is not None
    assert run.record["signals"] == "given"
    names = ["symbol", "side", "entry_price", "close_price", "reason", "realized_pnl"]
    for trades in (found.trades, swept.trades(0), run.trades):
        assert trades.select(names).sort(names).equals(expected.select(names).sort(names))
    # Positions are those of the session: a trade never begins before its signal.
    where = times.gather(found.trades["entry_index"])
    assert (where == found.trades["entry_time"]).all()


def test_signals_that_cannot_be_used_name_the_row(session: Session) -> None:
    first, last = session.events["timestamp"][0], session.events["timestamp"][-1]
    good = pl.DataFrame({"timestamp": [first, last], "symbol": ["AIUSDT"] * 2, "score": [0.5, -0.5]})
    cases: list[tuple[Any, str]] = [
        (good.head(0), "empty"),
        (good.drop("score"), "score is missing"),
        (good.with_columns(score=pl.Series([0.1, float("nan")])), "row 1 .* not finite"),
        (good.with_columns(score=pl.Series([None, 0.1], dtype=pl.Float64)), "row 0 .* no score"),
        (good.with_columns(symbol=pl.Series(["AIUSDT", None])), "row 1 .* no symbol"),
        (good.with_columns(price=pl.Series([1.0, 0.0])), "row 1 .* price"),
        (good.with_columns(symbol=pl.lit("AIUSD")), "Did you mean 'AIUSDT'"),
        (good.with_columns(pl.col("timestamp").dt.offset_by("1d")), "later than the last event"),
        (7, "DataFrame of signals"),
    ]
    for bad, message in cases:
        with pytest.raises((SweepError, SessionError), match=message):
            backtest(session, PARAMS, signals=bad)
    with pytest.raises(SweepError, match="exclude each other"):
        backtest(session, PARAMS, signals=good, scoring=BASE)
    with pytest.raises(SweepError, match="exclude each other"):
        sweep(session, {"scoring.gain": [1.0]}, PARAMS, signals=good, progress=False)
    some = pl.concat([good, good.with_columns(pl.col("timestamp").dt.offset_by("1d"))])
    with pytest.warns(UserWarning, match="2 signals are later"):
        backtest(session, PARAMS, signals=some)
