"""Lab: the one door that a notebook opens on a data root. It wires the parts together and decides nothing."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from replaylab.config import Config
from replaylab.errors import ConfigError, ReplaylabError
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import HealthSnapshot, Record, ReplayManifest, RetentionReport

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from replaylab.frames import Loaded
    from replaylab.importers import ImportReport
    from replaylab.logging import Logger
    from replaylab.notebook import Panel
    from replaylab.replay import Fidelity, ReplayEngine, SimRun
    from replaylab.sessions import Session, SessionStore
    from replaylab.sweep import Backtest, SweepResult, WhatIf

    AnySession = str | Session | ReplayManifest

__all__ = ["Lab"]

Moment = str | datetime | None
Symbols = Sequence[str] | str | None
_Result = TypeVar("_Result")
Frame = Any  # a polars or pandas DataFrame, as the Lab was asked for


class Lab:
    """A data root: write its logs, load them, cut sessions, replay, sweep, export.

    >>> lab = Lab.sample()                                         # doctest: +SKIP
    >>> lab.trades().head()                                        # doctest: +SKIP
    >>> manifest = lab.build_replay_session("2025-11-18T10:00Z", "2025-11-18T11:00Z", ["BTCUSDT"])  # doctest: +SKIP
    >>> lab.sweep(manifest, {"entry_threshold": [0.5, 0.6, 0.7]}).best()                            # doctest: +SKIP

    ``root``: the folder; made by the first write. None: ``Config.data_root``, else ``$REPLAYLAB_DATA``, else ``data``.
    ``frame``: "polars" or "pandas", what every table is returned as; a Session's own ``events`` stay polars, which is
    what sweeps, features and engines take them as. Times in arguments are ISO texts or datetimes
    (UTC where they name no zone); ranges are half-open. Wherever a session is asked for, its id, its manifest or a
    Session will do.
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

    @classmethod
    def sample(cls, config: Config | None = None, frame: Literal["polars", "pandas"] = "polars") -> Self:
        """Open a scratch copy of the sample data root: an hour of a synthetic market, its logs and a session.

        The copy is in a new temporary folder (``lab.root``); what is done to it changes nothing else.
        """
        here = Path(__file__).parent
        source = next(
            (place for place in (here.parent / "data", here / "_sample") if (place / "events").is_dir()), None
        )
        if source is None:
            raise ReplaylabError("the sample data is not installed; run `make sample` in a checkout")
        target = Path(tempfile.mkdtemp(prefix="replaylab-sample-")) / "data"
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
            f"<b>Lab</b> <code>{self.root}</code> · run mode {self.config.run_mode}<br>"
            f"symbols: {symbols} · replay sessions: {sessions}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the logger, if it was used; nothing acknowledged is lost without it."""
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
        """State events; ``extra`` is a JSON text column. ``expand`` gives fields of extra columns of their own."""
        from replaylab import frames

        cache = self.config.cache_path
        loaded = frames.load_events(self.root, _names(symbols), start, end, expand=expand, cache=cache)
        return self._load(loaded)

    def trades(self, start: Moment = None, end: Moment = None, symbols: Symbols = None) -> Frame:
        """The trade log: closed trades by the time they closed."""
        from replaylab import frames

        return self._load(frames.load_trades(self.root, start, end, _names(symbols)))

    def orders(self, start: Moment = None, end: Moment = None, symbols: Symbols = None) -> Frame:
        """The order log: a row each time an order was sent or came back."""
        from replaylab import frames

        return self._load(frames.load_orders(self.root, start, end, _names(symbols)))

    def metrics(self, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> Frame:
        """Feature, scoring and regime snapshots of ``metrics/<symbol>.json``."""
        from replaylab import frames

        return self._load(frames.load_metrics(self.root, _names(symbols), start, end))

    def market_trades(self, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> Frame:
        """The tape: imported history, and ``trades/<symbol>.json`` where there is none."""
        from replaylab import sessions

        return self._load(sessions.load_tape(self.root, _names(symbols), start, end))

    def order_book(self, symbols: Symbols = None, start: Moment = None, end: Moment = None) -> Frame:
        """Order book snapshots and deltas: imported history, and ``orderbook/<symbol>.json`` where there is none."""
        from replaylab import sessions

        return self._load(sessions.load_books(self.root, _names(symbols), start, end))

    def snapshot(self, name: Literal["risk", "tpsl", "execution", "health"]) -> Record | None:
        """The last snapshot of that name as a record, or None."""
        from replaylab import frames

        return frames.load_snapshot(self.root, name)

    def rejects(self) -> Frame:
        """What the loads so far could not read: file, line, byte offset and reason, a row each."""
        import polars as pl

        from replaylab.frames import REJECTS_SCHEMA

        empty = pl.DataFrame(schema=REJECTS_SCHEMA)
        return self._give(pl.concat([empty, *self._rejects]).unique(maintain_order=True))

    def daily_summary(self) -> Frame:
        """One row per day, log and symbol: also of days whose files are gone."""
        from replaylab import archive

        return self._give(archive.daily_summary(self.root))

    # Build and store

    @cached_property
    def sessions(self) -> SessionStore:
        """The replay sessions of this root."""
        from replaylab.sessions import SessionStore

        return SessionStore(self.root)

    def session(self, session: AnySession) -> Session:
        """Open a session; raises SessionNotFoundError with the closest id."""
        from replaylab.sessions import Session

        if isinstance(session, Session):
            return session
        return self.sessions.open(session.session_id if isinstance(session, ReplayManifest) else session)

    def build_replay_session(
        self, start: str | datetime, end: str | datetime, symbols: Sequence[str] | str, **options: Any
    ) -> ReplayManifest:
        """Cut a replay session out of the logs; see ``replaylab.build_replay_session`` for the options."""
        from replaylab.sessions import build_replay_session

        return build_replay_session(self.root, start, end, _names(symbols) or [], **options)

    # Replay

    def run_sim(
        self,
        symbols: Symbols = None,
        start: Moment = None,
        end: Moment = None,
        params: TradingParams | None = None,
        scoring: ScoringParams | Any | None = None,
        **options: Any,
    ) -> SimRun:
        """Run the trading system in SIM mode over the imported market data and log as though live.

        Returns a SimRun with ``trades``, ``orders`` and ``events``. See ``replaylab.replay.run_sim``.
        """
        from replaylab.replay import run_sim

        return run_sim(
            self.root,
            symbols=_names(symbols),
            start=start,
            end=end,
            params=params or self.config.trading,
            scoring=self.config.scoring if scoring is None else scoring,
            logging=self.config.logging,
            run_mode=self.config.run_mode,
            **options,
        )

    def engine(
        self, params: TradingParams | None = None, scoring: ScoringParams | Any | None = None, **options: Any
    ) -> ReplayEngine:
        """Return a ReplayEngine that drives the reference trading system."""
        from replaylab.replay import ReplayEngine

        return ReplayEngine(
            self.sessions,
            params=params or self.config.trading,
            scoring=self.config.scoring if scoring is None else scoring,
            run_mode=self.config.run_mode,
            **options,
        )

    def fidelity(self, session: AnySession, **options: Any) -> Fidelity:
        """Replay a session under its recorded parameters and compare every decision with what was logged."""
        from replaylab.replay import fidelity

        return fidelity(self.session(session), **options)

    # Sweep

    def sweep(
        self, session: AnySession, grid: Any, params: TradingParams | None = None, **options: Any
    ) -> SweepResult:
        """Run every combination of a grid over a session; see ``replaylab.sweep.sweep`` for the options."""
        from replaylab.sweep import sweep

        options.setdefault("cache_dir", self.config.cache_path)
        return self._shown(sweep(self.session(session), grid, params, default=self.config.trading, **options))

    def backtest(
        self,
        session: AnySession,
        params: TradingParams | None = None,
        **options: Any,
    ) -> Backtest:
        """Run one combination: ``.trades``, ``.metrics``, ``.equity``."""
        from replaylab.sweep import backtest

        options.setdefault("cache_dir", self.config.cache_path)
        return self._shown(backtest(self.session(session), params, default=self.config.trading, **options))

    def what_if(self, session: AnySession, params: TradingParams | None = None, **options: Any) -> WhatIf:
        """Compare the trades that were logged with those that other parameters would have made."""
        from replaylab.sweep import what_if

        options.setdefault("cache_dir", self.config.cache_path)
        return self._shown(what_if(self.session(session), params, default=self.config.trading, **options))

    # Features, labels, datasets

    def features(self, session: AnySession, **options: Any) -> Frame:
        """A row per decision time, with only what was known then; see ``replaylab.ml.features``."""
        from replaylab.ml import features

        return self._give(features(self.session(session), **options))

    def labels(
        self,
        session: AnySession,
        tp_pct: float = 0.2,
        sl_pct: float = 0.15,
        max_hold_s: float = 60.0,
        **options: Any,
    ) -> Frame:
        """Triple-barrier labels: ``t_start, t_end, label, ret, barrier, ...``; see ``replaylab.ml.labels``."""
        from replaylab.ml import labels

        return self._give(labels(self.session(session), tp_pct, sl_pct, max_hold_s, **options))

    def export_features(
        self,
        sessions: AnySession | Iterable[AnySession],
        path: str | os.PathLike[str],
        **options: Any,
    ) -> Any:
        """Write features and labels of one or more sessions as a Parquet dataset with a data card."""
        from replaylab.ml import export_features
        from replaylab.sessions import Session

        several = [sessions] if isinstance(sessions, str | Session | ReplayManifest) else sessions
        return export_features([self.session(item) for item in several], path, **options)

    # Operate

    def run_retention(self, now: Moment = None, dry_run: bool = False) -> RetentionReport:
        """Summarise and delete what is older than ``Config.retention`` says; ``dry_run`` only reports."""
        from replaylab import archive

        return archive.run_retention(self.root, now=now, dry_run=dry_run, config=self.config.retention)

    def health(self, *, write: bool = False) -> HealthSnapshot:
        """The health of logging, replay and retention.

        With ``write`` it also becomes ``system/health_snapshot.json``. A bot that calls it so every minute lets other
        processes see how its logger is: they have no logger that could tell.
        """
        from replaylab.health import check_health

        logger = self.__dict__.get("logger")
        found = check_health(self.root, logger=logger, config=self.config)
        if write:
            self.logger.write_health_snapshot(found).result()
        return found

    def import_history(
        self,
        format: str,  # noqa: A002  (the word the contract uses)
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        symbol: str | None = None,
        **options: Any,
    ) -> ImportReport:
        """Bring exchange archives in as tape and book; see ``docs/importing.md`` for the formats."""
        from replaylab.importers import import_history

        several = [files] if isinstance(files, str | os.PathLike) else list(files)
        return import_history(self.root, format, several, symbol=symbol, **options)

    def panel(self, **options: Any) -> Panel:
        """The dashboard for a notebook cell."""
        from replaylab.notebook import Panel

        return Panel(self, **options)

    # How tables are handed out

    def _load(self, loaded: Loaded) -> Frame:
        if not self.root.path.is_dir():
            warnings.warn(
                f"there is no data root at {self.root}: it reads as empty (the first write makes it)",
                stacklevel=3,
            )
        if loaded.rejects.height:
            self._rejects.append(loaded.rejects)
        return self._give(loaded.frame)

    def _shown(self, result: _Result) -> _Result:
        return result if self.frame == "polars" else cast("_Result", _InPandas(result))

    def _give(self, frame: pl.DataFrame) -> pl.DataFrame | pd.DataFrame:
        return frame if self.frame == "polars" else frame.to_pandas()


def _names(symbols: Symbols) -> list[str] | None:
    return [symbols] if isinstance(symbols, str) else None if symbols is None else list(symbols)


class _InPandas:
    """A result whose tables are returned as pandas; everything else is the result's own."""

    def __init__(self, result: Any) -> None:
        object.__setattr__(self, "_result", result)

    def __getattr__(self, name: str) -> Any:
        return self._converted(getattr(self._result, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._result, name, value)

    def __dir__(self) -> list[str]:
        return dir(self._result)

    def __repr__(self) -> str:
        return repr(self._result)

    @classmethod
    def _converted(cls, value: Any) -> Any:
        import polars as pl

        if isinstance(value, pl.DataFrame):
            return value.to_pandas()
        if not inspect.ismethod(value):
            return value

        @wraps(value)
        def call(*args: Any, **options: Any) -> Any:
            return cls._converted(value(*args, **options))

        return call
