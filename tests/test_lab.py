"""The one door: every loader and result through Lab, in polars and in pandas."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from replaylab import Config, Lab, ScoringParams, TradingParams
from replaylab.archive import run_retention
from replaylab.errors import ConfigError, InterlockError, SessionNotFoundError
from replaylab.importers import import_history
from replaylab.importers.synthetic import write_synthetic
from replaylab.ml import export_features, features, labels
from replaylab.replay import ReplayEngine, fidelity, run_sim
from replaylab.sessions import build_replay_session, build_sessions
from replaylab.sweep import SweepResult, backtest, sweep, what_if

RANGE = ("2025-11-18T10:00:00Z", "2025-11-18T10:12:00Z")
PARAMS = TradingParams(entry_threshold=0.3, tp1_pct=0.05, tp2_pct=0.1, sl_pct=0.05)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve minutes of two symbols, simulated, with one session named "session"."""
    folder = tmp_path_factory.mktemp("lab") / "data"
    lab = Lab(folder)
    write_synthetic(lab.root, seed=5, hours=0.2)
    lab.run_sim(params=PARAMS, scoring=ScoringParams(interval_ms=500))
    lab.build_replay_session(*RANGE, ["BTCUSDT", "AIUSDT"], session_id="session")
    return folder


def replayed(lab: Lab) -> Any:
    engine = lab.engine(PARAMS)
    engine.start_session("session", speed_factor=float("inf"))
    engine.wait()
    assert engine.last_run is not None
    return engine.last_run


TABLES: dict[str, Callable[[Lab], Any]] = {
    "events": lambda lab: lab.events(),
    "events of one symbol": lambda lab: lab.events("BTCUSDT", expand=["score"]),
    "trades": lambda lab: lab.trades(),
    "orders": lambda lab: lab.orders(),
    "metrics": lambda lab: lab.metrics(),
    "market trades": lambda lab: lab.market_trades("BTCUSDT"),
    "order book": lambda lab: lab.order_book("BTCUSDT"),
    "rejects": lambda lab: lab.rejects(),
    "daily summary": lambda lab: lab.daily_summary(),
    "run trades": lambda lab: replayed(lab).trades,
    "run orders": lambda lab: replayed(lab).orders,
    "run events": lambda lab: replayed(lab).events,
    "sweep": lambda lab: lab.sweep("session", {"sl_pct": [0.1, 0.2]}, progress=False).frame,
    "sweep best": lambda lab: lab.sweep("session", {"sl_pct": [0.1, 0.2]}, progress=False).best(1),
    "sweep trades": lambda lab: lab.sweep("session", {"sl_pct": [0.1, 0.2]}, PARAMS, progress=False).trades(
        0
    ),
    "session events": lambda lab: lab.session("session").events,
    "backtest trades": lambda lab: lab.backtest("session", PARAMS).trades,
    "backtest equity": lambda lab: lab.backtest("session", PARAMS).equity,
    "features": lambda lab: lab.features("session"),
    "labels": lambda lab: lab.labels("session"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_the_lab_was_asked_for(root: Path, name: str) -> None:
    """Polars by default, pandas throughout with `frame="pandas"`, with the same columns and rows."""
    polars, pandas = TABLES[name](Lab(root)), TABLES[name](Lab(root, frame="pandas"))
    assert isinstance(polars, pl.DataFrame)
    assert isinstance(pandas, pd.DataFrame)
    assert list(pandas.columns) == polars.columns
    assert len(pandas) == polars.height


def test_times_are_nanoseconds_in_utc(root: Path) -> None:
    for frame in (Lab(root).events(), Lab(root).trades(), Lab(root).market_trades()):
        assert frame.schema["timestamp"] == pl.Datetime("ns", "UTC")


def test_a_session_may_be_given_in_many_ways(root: Path) -> None:
    """Its id, its manifest, a Session, or its events as a polars, pandas or pyarrow table."""
    lab = Lab(root)
    session = lab.session("session")
    named = [lab.backtest(which, PARAMS).trades for which in ("session", session, session.manifest)]
    # Events alone carry no instruments: nothing is rounded to ticks and lots.
    frames = (session.events, session.events.to_pandas(), session.events.to_arrow())
    bare = [lab.backtest(frame, PARAMS).trades for frame in frames]
    for trades in (named, bare):
        assert trades[0].height > 0
        assert all(one.equals(trades[0]) for one in trades)


def test_an_unknown_session_gets_the_closest_name(root: Path) -> None:
    with pytest.raises(SessionNotFoundError, match="'session'"):
        Lab(root).session("sesion")


def test_a_missing_root_reads_as_empty_and_says_where_it_looked(tmp_path: Path) -> None:
    """`Lab("typo")` warns with the absolute path, and makes nothing."""
    lab = Lab(tmp_path / "typo")
    with pytest.warns(UserWarning, match=str(tmp_path / "typo")):
        assert lab.trades().is_empty()
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("table", ["events", "trades", "orders", "market_trades", "order_book"])
def test_a_symbol_that_is_not_there_is_warned_of(root: Path, table: str) -> None:
    """In the wrong case, say: the frame is empty, and the warning names the closest symbol."""
    with pytest.warns(UserWarning, match="'btcusdt'.*Did you mean 'BTCUSDT'"):
        assert getattr(Lab(root), table)(symbols="btcusdt").is_empty()


def test_the_simulation_the_replay_and_the_sweep_agree(root: Path) -> None:
    """The logged trades, a replay of the session and the compiled sweep are the same trades."""
    lab = Lab(root)
    logged = lab.trades().sort("timestamp", "symbol")
    assert logged.height > 3
    run = replayed(lab).trades.sort("timestamp", "symbol")
    swept = lab.backtest("session", PARAMS).trades.sort("exit_time", "symbol")
    for column in (
        "symbol",
        "side",
        "entry_price",
        "close_price",
        "qty",
        "realized_pnl",
        "mfe",
        "mae",
        "reason",
    ):
        assert logged[column].to_list() == run[column].to_list() == swept[column].to_list()


def test_the_sample_is_removed_at_the_end_of_its_process() -> None:
    code = (
        "import os, sys\nfrom replaylab import Lab\nlab = Lab.sample()\nchild = os.fork()\n"
        "if child == 0: sys.exit(0)\nos.waitpid(child, 0)\nassert lab.root.path.exists()\nprint(lab.root)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip()).parent
    assert folder.name.startswith("replaylab-sample-")
    assert not folder.exists()


def test_the_sample_is_a_scratch_copy() -> None:
    """What is done to one copy is not seen in the next."""
    first = Lab.sample()
    first.sessions.delete_session(first.sessions.list_sessions()[0].session_id)
    assert first.sessions.list_sessions() == []
    second = Lab.sample()
    assert len(second.sessions.list_sessions()) == 1
    assert {"events", "orders", "trades_log", "system"} <= {path.name for path in second.root.path.iterdir()}
    for name in ("risk", "tpsl", "execution", "health"):
        assert second.snapshot(name) is not None  # type: ignore[arg-type]


def test_replay_mode_keeps_the_live_logs_closed(root: Path) -> None:
    lab = Lab(root, config=Config(run_mode="REPLAY"))
    before = lab.events().height
    with pytest.raises(InterlockError):
        lab.run_sim()
    with pytest.raises(InterlockError):
        lab.logger.log_trade(
            {
                "timestamp": "2025-11-18T10:00:00Z",
                "symbol": "BTCUSDT",
                "side": "LONG",
                "entryPrice": 1,
                "closePrice": 1,
                "qty": 1,
                "leverage": 1,
                "realizedPnl": 0,
                "mfe": 0,
                "mae": 0,
                "durationSeconds": 1,
                "mode": "LIVE",
            }
        )
    assert replayed(lab).trades.height > 0
    assert lab.events().height == before


def test_the_root_comes_from_config_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAYLAB_DATA", str(tmp_path / "environment"))
    assert Lab().root.path == tmp_path / "environment"
    assert Lab(config=Config(data_root=str(tmp_path / "config"))).root.path == tmp_path / "config"
    assert Lab(tmp_path / "named").root.path == tmp_path / "named"


def test_an_unknown_frame_library_is_refused() -> None:
    with pytest.raises(ConfigError, match="polars"):
        Lab(frame="dask")  # type: ignore[arg-type]


def test_reprs_say_what_is_there(root: Path) -> None:
    assert "BTCUSDT" in Lab(root)._repr_html_()
    assert str(root) in repr(Lab(root))


@pytest.mark.parametrize("use", ["config", "engine", "sweep", "backtest", "run_sim"])
def test_what_is_no_setting_is_refused_where_it_is_given(root: Path, use: str) -> None:
    wrong: Any = 5
    lab = Lab(root)
    calls: dict[str, Callable[[], Any]] = {
        "config": lambda: Lab(root, config=wrong),
        "engine": lambda: lab.engine(params=wrong),
        "sweep": lambda: lab.sweep("session", {"sl_pct": [0.1]}, params=wrong, progress=False),
        "backtest": lambda: lab.backtest("session", wrong),
        "run_sim": lambda: lab.run_sim(params=wrong, start=RANGE[1], overlap="append"),
    }
    with pytest.raises(
        ConfigError, match=r"expected (Config|TradingParams), a dict of changes or None, found int"
    ):
        calls[use]()


def test_parameters_may_be_a_plain_dict(root: Path) -> None:
    lab = Lab(root, config={"trading": PARAMS.to_dict()})  # type: ignore[arg-type]
    assert lab.backtest("session").metrics == lab.backtest("session", PARAMS.to_dict()).metrics  # type: ignore[arg-type]


def test_a_pandas_result_is_still_that_result(root: Path) -> None:
    """Of the type that the signature says, with its names for Tab, its own repr, and usable as an argument."""
    lab = Lab(root, frame="pandas")
    result = lab.sweep("session", {"sl_pct": [0.1, 0.2]}, PARAMS, progress=False)
    assert isinstance(result, SweepResult)
    assert {"frame", "best", "trades"} <= set(dir(result))
    assert "n" in inspect.signature(result.best).parameters
    assert repr(result) == repr(result.__wrapped__)  # type: ignore[attr-defined]
    session = lab.session("session")
    assert isinstance(session.events, pd.DataFrame)
    assert lab.backtest(session, PARAMS).trades.equals(lab.backtest("session", PARAMS).trades)
    run = asyncio.run(lab.engine(PARAMS).run_session(session, speed_factor=float("inf")))
    assert isinstance(run.trades, pd.DataFrame)


# What Lab itself supplies: the data root and the settings of its Config.
SUPPLIED = {"root", "store", "logging", "run_mode", "config", "cache", "default", "default_scoring", "fmt"}
SUPPLIED |= {"give", "cache_dir", "default_params"}
MIRRORED: dict[str, Callable[..., Any]] = {
    "build_replay_session": build_replay_session,
    "build_sessions": build_sessions,
    "run_sim": run_sim,
    "engine": ReplayEngine,
    "fidelity": fidelity,
    "sweep": sweep,
    "backtest": backtest,
    "what_if": what_if,
    "features": features,
    "labels": labels,
    "export_features": export_features,
    "import_history": import_history,
    "run_retention": run_retention,
}


@pytest.mark.parametrize("name", MIRRORED)
def test_lab_offers_every_option_of_what_it_calls(name: str) -> None:
    """Names and defaults are the same, so that no option is reachable only without a Lab."""
    wanted = inspect.signature(MIRRORED[name]).parameters
    offered = inspect.signature(getattr(Lab, name)).parameters
    assert not set(wanted) - set(offered) - SUPPLIED
    for option in (set(wanted) & set(offered)) - {"self"}:
        assert offered[option].default == wanted[option].default, option


def test_a_sweep_of_the_engine_keeps_its_packed_session_in_the_configured_cache(tmp_path: Path) -> None:
    """Every way to a sweep uses ``Config.cache_dir``; none packs the session again at each call."""
    sample = Lab.sample()
    lab = Lab(sample.root, Config(cache_dir=str(tmp_path / "cache")))
    session = lab.sessions.list_sessions()[0]
    lab.engine().sweep(session, {"sl_pct": [0.1, 0.2]}, progress=False)
    assert list((tmp_path / "cache").glob("tapes/*.arrow"))
