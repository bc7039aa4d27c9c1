"""Lab: what a notebook opens on a data root. It connects the packages and converts DataFrames; it decides nothing."""

from __future__ import annotations

import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, cast

from replaylab.config import Config
from replaylab.errors import ConfigError, ReplaylabError
from replaylab.fsio import scratch_folder
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import HealthSnapshot, Record, ReplayManifest, RetentionReport

if TYPE_CHECKING:
    import polars as pl

    from replaylab.features import FeatureParams
    from replaylab.frames import Loaded
    from replaylab.importers import ImportReport, LogImportReport
    from replaylab.logging import Logger
    from replaylab.ml import Export
    from replaylab.notebook import Chart, Panel
    from replaylab.replay import Calibration, Fidelity, Reconciliation, ReplayControl, ReplayEngine, SimRun
    from replaylab.sessions import AnySession, EventFrame, Session, SessionStore
    from replaylab.sweep import Backtest, Optimisation, SweepResult, WhatIf
    from replaylab.trading import ExitRule

    LookBacks: TypeAlias = FeatureParams | Mapping[str, FeatureParams]

__all__ = ["Lab"]

Moment = str | datetime | None
Symbols = Sequence[str] | str | None
Params = TradingParams | Mapping[str, Any] | None
Scoring = ScoringParams | Any | None
PriceSource = str | Mapping[str, str]
Numbers = float | None | Sequence[float | None]
T = TypeVar("T")
Frame = Any  # a polars or pandas DataFrame, as the Lab was asked for


class Lab:
    """A data root: write its logs, load them, build sessions, replay, sweep, export.

    >>> lab = Lab.sample()                                         # doctest: +SKIP
    >>> lab.trades().head()                                        # doctest: +SKIP
    >>> manifest = lab.build_replay_session("2025-11-18T10:00Z", "2025-11-18T11:00Z", ["BTCUSDT"])  # doctest: +SKIP
    >>> lab.sweep(manifest, {"entry_threshold": [0.5, 0.6, 0.7]}).best()                            # doctest: +SKIP

    ``root``: the folder; made by the first write. None: ``Config.data_root``, else ``$REPLAYLAB_DATA``, else ``data``.
    ``frame``: "polars" or "pandas", the type of every DataFrame that this Lab and its results return. Times in
    arguments are ISO strings or datetimes (UTC where they name no zone); ranges are half-open. Wherever a session is
    asked for, its id, its manifest, a Session, or a DataFrame with the columns of ``session.events`` will do.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | DataRoot | None = None,
        config: Config | None = None,
        frame: Literal["polars", "pandas"] = "polars",
    ) -> None:
        if frame not in ("polars", "pandas"):
            raise ConfigError(f'frame: expected "polars" or "pandas", found {frame!r}', field="frame")
        self.config = Config.of(config, "config")
        chosen = root or self.config.data_root or os.environ.get("REPLAYLAB_DATA") or "data"
        self.root = DataRoot(chosen)
        self.frame = frame
        self._rejects: list[pl.DataFrame] = []
        self._last_sweep: Callable[[], SweepResult | None] = lambda: None

    @classmethod
    def sample(cls, config: Config | None = None, frame: Literal["polars", "pandas"] = "polars") -> Self:
        """Open a scratch copy of the sample data root: an hour of a synthetic market, its logs and a session.

        The copy is in a new temporary folder (``lab.root``), which is removed when Python ends.
        """
        here = Path(__file__).parent
        source = next(
            (place for place in (here.parent / "data", here / "_sample") if (place / "events").is_dir()), None
        )
        if source is None:
            raise ReplaylabError("the sample data is not installed; run `make sample` in a checkout")
        target = scratch_folder("replaylab-sample-") / "data"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        return cls(target, config=config, frame=frame)

    def __repr__(self) -> str:
        state = "" if self.root.path.is_dir() else ", not there yet"
        return f"Lab({str(self.root)!r}{state}, frame={self.frame!r})"

    def _repr_html_(self) -> str:
        from replaylab.frames import list_symbols

        symbols = ", ".join(list_symbols(self.root)) or "none yet"
        sessions = len(self.sessions.list_sessions())
        return (
            f"<b>Lab</b> <code>{escape(str(self.root))}</code> · run mode {escape(self.config.run_mode)}<br>"
            f"symbols: {escape(symbols)} · replay sessions: {sessions}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the logger, if it was used; acknowledged lines are safe without it."""
        if "logger" in self.__dict__:
            self.logger.close()

    # Write

    @cached_property
    def logger(self) -> Logger:
        """The central logger of this root; see ``replaylab.logging.Logger``."""
        from replaylab.logging import Logger

        return Logger(self.root, self.config.logging, run_mode=self.config.run_mode)

    # Read

    def events(
        self,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        expand: Sequence[str] | None = None,
    ) -> Frame:
        """Load state events; ``extra`` is a JSON string column. ``expand`` names fields of extra to add as columns."""
        from replaylab import frames

        cache = self.config.cache_path
        loaded = frames.load_events(self.root, _names(symbols), start, end, expand=expand, cache=cache)
        return self._load(loaded, symbols)

    def trades(self, start: Moment = None, end: Moment = None, symbols: Symbols = None) -> Frame:
        """Load the trade log: closed trades in the order of their closing time."""
        from replaylab import frames

        return self._load(frames.load_trades(self.root, start, end, _names(symbols)), symbols)

    def orders(self, start: Moment = None, end: Moment = None, symbols: Symbols = None) -> Frame:
        """Load the order log: a row for each status change of an order."""
        from replaylab import frames

        return self._load(frames.load_orders(self.root, start, end, _names(symbols)), symbols)

    def metrics(self, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> Frame:
        """Load feature, scoring and regime snapshots of ``metrics/<symbol>.json``."""
        from replaylab import frames

        return self._load(frames.load_metrics(self.root, _names(symbols), start, end), symbols)

    def market_trades(self, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> Frame:
        """Load the tape: imported history, else ``trades/<symbol>.json``."""
        from replaylab import sessions

        return self._load(sessions.load_tape(self.root, _names(symbols), start, end), symbols)

    def order_book(self, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> Frame:
        """Load order book snapshots and deltas: imported history, else ``orderbook/<symbol>.json``."""
        from replaylab import sessions

        return self._load(sessions.load_books(self.root, _names(symbols), start, end), symbols)

    def snapshot(self, name: Literal["risk", "tpsl", "execution", "health"]) -> Record | None:
        """Return the last snapshot of that name as a record, or None."""
        from replaylab import frames

        return frames.load_snapshot(self.root, name)

    def rejects(self) -> Frame:
        """Return what the loads so far could not read, a row each: file, line, byte offset, reason."""
        import polars as pl

        from replaylab.frames import REJECTS_SCHEMA

        empty = pl.DataFrame(schema=REJECTS_SCHEMA)
        return self._give(pl.concat([empty, *self._rejects]).unique(maintain_order=True))

    def daily_summary(self) -> Frame:
        """Return a row per day, log and symbol, also for days whose files were deleted."""
        from replaylab import archive

        return self._give(archive.daily_summary(self.root))

    # Build and store

    @cached_property
    def sessions(self) -> SessionStore:
        """The replay sessions of this root."""
        from replaylab.sessions import SessionStore

        return SessionStore(self.root)

    def session(self, session: AnySession) -> Session:
        """Open a session. Raises SessionNotFoundError with the closest id."""
        return self._give(self._open(session))

    def build_replay_session(
        self,
        start: str | datetime | Mapping[str, Any],
        end: Moment = None,
        symbols: Symbols = None,
        include_types: str | Sequence[str] | None = None,
        max_events: int | None = None,
        *,
        session_id: str | None = None,
        notes: str | None = None,
        created_by: Literal["MANUAL", "AUTO", "TEST"] = "MANUAL",
        speed_factor: float = 1.0,
        if_exists: Literal["error", "reuse", "replace"] = "error",
        progress: bool = True,
    ) -> ReplayManifest:
        """Build a replay session of ``start ≤ timestamp < end``; see ``replaylab.build_replay_session``."""
        from replaylab.sessions import build_replay_session

        return build_replay_session(
            self.root,
            start,
            end,
            _names(symbols),
            include_types,
            max_events,
            session_id=session_id,
            notes=notes,
            created_by=created_by,
            speed_factor=speed_factor,
            if_exists=if_exists,
            progress=progress,
        )

    def build_sessions(
        self,
        start: str | datetime,
        end: str | datetime,
        symbols: str | Sequence[str],
        every: str = "1d",
        *,
        include_types: str | Sequence[str] | None = None,
        max_events: int | None = None,
        notes: str | None = None,
        created_by: Literal["MANUAL", "AUTO", "TEST"] = "MANUAL",
        speed_factor: float = 1.0,
        if_exists: Literal["error", "reuse", "replace"] = "error",
        progress: bool = True,
    ) -> list[ReplayManifest]:
        """Build one session per UTC day (or other period) of a range; see ``replaylab.sessions.build_sessions``."""
        from replaylab.sessions import build_sessions

        return build_sessions(
            self.root,
            start,
            end,
            symbols,
            every,
            include_types=include_types,
            max_events=max_events,
            notes=notes,
            created_by=created_by,
            speed_factor=speed_factor,
            if_exists=if_exists,
            progress=progress,
        )

    def save_session(
        self,
        frame: EventFrame,
        session_id: str | None = None,
        notes: str | None = None,
        initial_state: Mapping[str, Any] | None = None,
    ) -> ReplayManifest:
        """Write a DataFrame of events as a session; see ``replaylab.sessions.save_session_frame``."""
        from replaylab.sessions import save_session_frame

        return save_session_frame(self.root, frame, session_id, notes, initial_state)

    # Replay

    def run_sim(
        self,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        params: Params = None,
        scoring: Scoring = None,
        *,
        overlap: Literal["error", "append", "replace"] = "error",
        write_market: bool = False,
        progress: bool = True,
    ) -> SimRun:
        """Run the trading system in SIM mode over the imported market data and log as though live.

        Returns a SimRun with ``trades``, ``orders`` and ``events``. See ``replaylab.replay.run_sim``.
        """
        from replaylab.replay import run_sim

        run = run_sim(
            self.root,
            _names(symbols),
            start,
            end,
            params=TradingParams.of(params, "params", self.config.trading),
            scoring=scoring
            if hasattr(scoring, "predict")
            else ScoringParams.of(scoring, "scoring", self.config.scoring),
            logging=self.config.logging,
            run_mode=self.config.run_mode,
            overlap=overlap,
            write_market=write_market,
            progress=progress,
        )
        return self._give(run)

    def engine(
        self,
        params: Params = None,
        scoring: Scoring = None,
        *,
        signals: Frame | None = None,
        rule: ExitRule | None = None,
        handler: Any = None,
        deliver: Literal["replay_events", "state_events"] = "replay_events",
    ) -> ReplayEngine:
        """Return a ReplayEngine that drives the reference trading system, or ``handler`` in its place."""
        from replaylab.replay import ReplayEngine

        engine = ReplayEngine(
            self.sessions,
            handler,
            params=params,
            scoring=scoring,
            signals=signals,
            rule=self._with_features(rule),
            default_params=self.config.trading,
            default_scoring=self.config.scoring,
            deliver=deliver,
            run_mode=self.config.run_mode,
            cache_dir=self.config.cache_path,
        )
        return self._give(engine)

    def control(self, session_id: str | None = None) -> ReplayControl:
        """Steer the replay that runs on this data root, whichever process runs it: pause, resume, step, seek, stop."""
        from replaylab.replay import ReplayControl

        return ReplayControl(self.root, session_id)

    def fidelity(
        self,
        session: AnySession,
        inject_mode: Literal["SCORING_ONLY", "FULL_DECISION"] = "SCORING_ONLY",
        *,
        params: Params = None,
        scoring: Scoring = None,
        price_source: PriceSource = "auto",
    ) -> Fidelity:
        """Replay a session under its recorded parameters and compare every decision with the logged one."""
        from replaylab.replay import fidelity

        found = fidelity(
            self._open(session),
            inject_mode,
            params=params,
            scoring=scoring,
            price_source=price_source,
        )
        return self._give(found)

    def reconcile(
        self,
        session: AnySession,
        params: Params = None,
        *,
        price_source: PriceSource = "auto",
        progress: bool = True,
    ) -> Reconciliation:
        """Split live PnL minus model PnL by cause; see ``replaylab.replay.reconcile``."""
        from replaylab.replay import reconcile

        default, cache = self.config.trading, self.config.cache_path
        options: Any = {"price_source": price_source, "default": default, "progress": progress}
        return self._give(reconcile(self._open(session), params, cache_dir=cache, **options))

    def calibrate(
        self,
        sessions: AnySession | Sequence[AnySession],
        *,
        price_source: str = "auto",
        progress: bool = True,
    ) -> Calibration:
        """Learn latency, slippage, fees and limit fills from one's own orders; see ``replaylab.replay.calibrate``."""
        from replaylab.replay import calibrate

        opened, cache = self._opened(sessions), self.config.cache_path
        return self._give(calibrate(opened, price_source=price_source, cache_dir=cache, progress=progress))

    # Sweep

    def sweep(
        self,
        session: AnySession | Sequence[AnySession],
        grid: Any,
        params: Params = None,
        *,
        price_source: PriceSource = "auto",
        scoring: Scoring = None,
        signals: Frame | None = None,
        rule: ExitRule | None = None,
        progress: bool = True,
        executor: Executor | None = None,
        method: Literal["auto", "tables", "index", "loop"] = "auto",
        threads: int | None = None,
        table_memory: float = 1e9,
        folder: str | os.PathLike[str] | None = None,
    ) -> SweepResult:
        """Run every combination of a grid over a session, or a list of them; see ``replaylab.sweep.sweep``."""
        from replaylab.sweep import sweep

        result = sweep(
            self._opened(session),
            grid,
            params,
            price_source=price_source,
            progress=progress,
            executor=executor,
            scoring=scoring,
            signals=signals,
            rule=self._with_features(rule),
            default=self.config.trading,
            default_scoring=self.config.scoring,
            method=method,
            threads=threads,
            table_memory=table_memory,
            folder=folder,
            cache_dir=self.config.cache_path,
        )
        self._last_sweep = weakref.ref(result)
        return self._give(result)

    def optimise(
        self,
        session: AnySession | Sequence[AnySession],
        space: Mapping[str, Any],
        metric: str = "net_pnl",
        trials: int = 256,
        params: Params = None,
        *,
        batch: int = 32,
        min_trades: int = 30,
        log: Sequence[str] = (),
        seed: int | None = 0,
        sampler: Any = None,
        price_source: PriceSource = "auto",
        scoring: Scoring = None,
        signals: Frame | None = None,
        rule: ExitRule | None = None,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Optimisation:
        """Search a space of parameters with feedback, in batches; see ``replaylab.sweep.optimise``."""
        from replaylab.sweep import optimise

        data: Any = {"price_source": price_source, "scoring": scoring, "signals": signals}
        base: Any = {"default": self.config.trading, "default_scoring": self.config.scoring}
        search: Any = {"batch": batch, "min_trades": min_trades, "log": log, "seed": seed, "sampler": sampler}
        runs: Any = {"executor": executor, "progress": progress, "cache_dir": self.config.cache_path}
        rule, opened = self._with_features(rule), self._opened(session)
        found = optimise(opened, space, metric, trials, params, rule=rule, **data, **base, **search, **runs)
        self._last_sweep = weakref.ref(found)
        return self._give(found)

    @property
    def last_sweep(self) -> SweepResult | None:
        """The result of the last sweep of this Lab, while it is in use; the panel shows its verdict."""
        return self._give(self._last_sweep())

    def backtest(
        self,
        session: AnySession,
        params: Params = None,
        *,
        price_source: PriceSource = "auto",
        scoring: Scoring = None,
        signals: Frame | None = None,
        rule: ExitRule | None = None,
    ) -> Backtest:
        """Run one parameter set: ``.trades``, ``.metrics``, ``.equity``; see ``replaylab.sweep.backtest``."""
        from replaylab.sweep import backtest

        result = backtest(
            self._open(session),
            params,
            price_source=price_source,
            scoring=scoring,
            signals=signals,
            rule=self._with_features(rule),
            default=self.config.trading,
            default_scoring=self.config.scoring,
            cache_dir=self.config.cache_path,
        )
        return self._give(result)

    def what_if(
        self,
        session: AnySession,
        params: Params = None,
        *,
        price_source: PriceSource = "auto",
        scoring: Scoring = None,
    ) -> WhatIf:
        """Compare the logged trades with those of changed parameters; see ``replaylab.sweep.what_if``."""
        from replaylab.sweep import what_if

        result = what_if(
            self._open(session),
            params,
            price_source=price_source,
            scoring=scoring,
            default=self.config.trading,
            default_scoring=self.config.scoring,
            cache_dir=self.config.cache_path,
        )
        return self._give(result)

    def trials(self) -> Frame:
        """Return the trial ledger: a row per sweep or reset on this root. Verdicts count what was tried before."""
        from replaylab.sweep import ledger_path, read_trials

        return self._give(read_trials(ledger_path(self.root, self.config.cache_path)))

    def reset_trials(self, reason: str) -> None:
        """Start the count of trials again, such as after new data; the ledger keeps the reason."""
        from replaylab.sweep import ledger_path, reset_trials

        reset_trials(ledger_path(self.root, self.config.cache_path), reason)

    # Features, labels, datasets

    def features(
        self,
        session: AnySession,
        *,
        at: str | Frame = "scoring",
        symbols: Sequence[str] | None = None,
        params: LookBacks | None = None,
        recent_trades: int = 5,
        max_gap_s: float | None = 900.0,
    ) -> Frame:
        """Return a row per decision time, with only what was known then; see ``replaylab.ml.features``."""
        from replaylab.ml import features

        rows: Any = {"at": at, "symbols": symbols, "recent_trades": recent_trades, "max_gap_s": max_gap_s}
        return self._give(features(self._open(session), params=params, **rows))

    def labels(
        self,
        session: AnySession,
        tp_pct: Numbers = 0.2,
        sl_pct: Numbers = 0.15,
        max_hold_s: Numbers = 60.0,
        *,
        side: Literal["long", "short", "score"] = "long",
        at: str | Frame = "scoring",
        symbols: Sequence[str] | None = None,
        price_source: PriceSource = "auto",
        costs: TradingParams | None = None,
        latency_ms: float | None = None,
        max_gap_s: float | None = 900.0,
        time_label: Literal["zero", "sign"] = "zero",
        weights: bool | None = None,
    ) -> Frame:
        """Return triple-barrier labels: ``t_start, t_end, label, ret, barrier, ...``; see ``replaylab.ml.labels``."""
        from replaylab.ml import labels

        found = labels(
            self._open(session),
            tp_pct,
            sl_pct,
            max_hold_s,
            side=side,
            at=at,
            symbols=symbols,
            price_source=price_source,
            costs=costs,
            latency_ms=latency_ms,
            max_gap_s=max_gap_s,
            time_label=time_label,
            weights=weights,
        )
        return self._give(found)

    def export_features(
        self,
        sessions: AnySession | Sequence[AnySession],
        path: str | os.PathLike[str],
        format: Literal["parquet"] = "parquet",  # noqa: A002  (the word of the contract)
        *,
        labels: Mapping[str, Any] | None = {},
        at: str = "scoring",
        params: LookBacks | None = None,
        recent_trades: int = 5,
        max_gap_s: float | None = 900.0,
        symbols: Iterable[str] | None = None,
        progress: bool = True,
    ) -> Export:
        """Write features and labels of sessions as a Parquet dataset with a data card; see ``replaylab.ml``."""
        from replaylab.ml import export_features

        several = sessions if isinstance(sessions, list | tuple) else [sessions]
        opened = [self._open(session) for session in several]
        rows: Any = {"at": at, "params": params, "recent_trades": recent_trades, "max_gap_s": max_gap_s}
        return export_features(
            opened, path, format, labels=labels, symbols=symbols, progress=progress, **rows
        )

    # Operate

    def run_retention(self, now: Moment = None, dry_run: bool = False) -> RetentionReport:
        """Summarise and delete what is older than ``Config.retention`` allows; ``dry_run`` only reports."""
        from replaylab import archive

        return archive.run_retention(self.root, now=now, dry_run=dry_run, config=self.config.retention)

    def health(self, *, write: bool = False) -> HealthSnapshot:
        """Check logging, replay and retention.

        ``write`` also writes it to ``system/health_snapshot.json``. A bot that does so every minute shows other
        processes the health of its logger, which they cannot see otherwise.
        """
        from replaylab.health import check_health

        logger = self.__dict__.get("logger")
        found = check_health(self.root, logger=logger, config=self.config)
        if write:
            self.logger.write_health_snapshot(found).result()
        return found

    def import_history(
        self,
        format: str,  # noqa: A002  (the word of the contract)
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        symbol: str | None = None,
        progress: bool = True,
        *,
        clock: Literal["exchange", "receive"] = "exchange",
        save_as: str | None = None,
        gap_s: float = 60.0,
        contract_size: float | None = None,
        max_rejects: float = 0.01,
        market: str | None = None,
        timestamp: str | None = None,
        timestamp_unit: str | None = None,
        time_zone: str | None = None,
        price: str | None = None,
        qty: str | None = None,
        side: str | None = None,
        buyer_maker: str | None = None,
        trade_id: str | None = None,
        received_at: str | None = None,
        buy_word: str | None = None,
        sell_word: str | None = None,
        delimiter: str | None = None,
        columns: str | list[str] | None = None,
        funding_rate: str | None = None,
        mark_price: str | None = None,
    ) -> ImportReport:
        """Import files of an exchange archive as tape, book or funding; see ``docs/importing.md`` for the formats."""
        from replaylab.importers import import_history

        times: Any = {"timestamp": timestamp, "timestamp_unit": timestamp_unit, "time_zone": time_zone}
        trade: Any = {
            "price": price,
            "qty": qty,
            "side": side,
            "trade_id": trade_id,
            "received_at": received_at,
        }
        words: Any = {"buyer_maker": buyer_maker, "buy_word": buy_word, "sell_word": sell_word}
        table: Any = {
            "delimiter": delimiter,
            "columns": columns,
            "market": market,
            "contract_size": contract_size,
        }
        funding: Any = {"funding_rate": funding_rate, "mark_price": mark_price}
        rules: Any = {"clock": clock, "save_as": save_as, "gap_s": gap_s, "max_rejects": max_rejects}
        fields = {**times, **trade, **words, **table, **funding}
        return import_history(self.root, format, files, symbol, progress, **rules, **fields)

    def import_logs(
        self,
        source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        preset: str | None = None,
        mapping: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        symbol: str | None = None,
        strategy: str | None = None,
        dry_run: bool = False,
        *,
        max_rejects: float = 0.01,
    ) -> LogImportReport:
        """Import the log of another program; see ``replaylab.importers.import_logs`` and ``docs/your-bot.md``."""
        from replaylab.importers import import_logs

        options: Any = {"dry_run": dry_run, "max_rejects": max_rejects, "config": self.config}
        return self._give(import_logs(self.root, source, preset, mapping, symbol, strategy, **options))

    def chart(
        self,
        session: AnySession,
        run: Any = None,
        *,
        symbol: str | None = None,
        depth: bool = False,
        width: int | None = None,
        height: int = 420,
    ) -> Chart:
        """Show prices and trades to zoom and hover; ``run``: a run, a backtest, trades, or several by name."""
        from replaylab.notebook import Chart

        opened, cache = self._open(session), self.config.cache_path
        return Chart(opened, run, symbol=symbol, depth=depth, cache_dir=cache, width=width, height=height)

    def report(
        self,
        subject: Any,
        path: str | os.PathLike[str] = "report.html",
        *,
        run: Any = None,
        symbol: str | None = None,
    ) -> Path:
        """Write one HTML file about a result, a run or a session, which opens without replaylab and a network.

        It has the chart, the verdict, the best combinations or metrics, parameters, assumptions and provenance.
        """
        from replaylab.notebook import write_report

        return write_report(
            subject, path, self._open, run=run, symbol=symbol, cache_dir=self.config.cache_path
        )

    def panel(self, *, params: TradingParams | None = None) -> Panel:
        """Show the dashboard in a notebook cell. ``params``: the parameters that Run uses."""
        from replaylab.notebook import Panel

        return Panel(self, params=params)

    # Sessions in, DataFrames out

    def _open(self, session: Any) -> Session:
        from replaylab.sessions import as_session

        return as_session(session, self.sessions)

    def _with_features(self, rule: ExitRule | None) -> ExitRule | None:
        """Let a rule without a frame of its own read ``lab.features`` of each session that it runs on."""
        if rule is None or not getattr(rule, "features", ()) or rule.source is not None:
            return rule
        from replaylab.ml import features

        return rule.on(features)

    def _opened(self, session: Any) -> Any:
        return (
            [self._open(one) for one in session] if isinstance(session, list | tuple) else self._open(session)
        )

    def _load(self, loaded: Loaded, symbols: Symbols) -> Frame:
        if self.root.path.is_dir():
            problems = loaded.missing(symbols)
        else:
            problems = [f"there is no data root at {self.root}: it reads as empty (the first write makes it)"]
        for problem in problems:
            warnings.warn(problem, stacklevel=3)
        if loaded.rejects.height:
            self._rejects.append(loaded.rejects)
        return self._give(loaded.frame)

    def _give(self, value: T) -> T:
        if self.frame == "polars":
            return value
        from replaylab.frames import to_pandas

        return cast("T", to_pandas(value))


def _names(symbols: Symbols) -> list[str] | None:
    return [symbols] if isinstance(symbols, str) else None if symbols is None else list(symbols)
