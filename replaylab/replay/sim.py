"""SIM mode: run the trading system over imported market data and write the logs that a live system would write."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl

from replaylab import frames, history
from replaylab.config import LoggingConfig
from replaylab.errors import InterlockError, ReplayError
from replaylab.features import FeatureEngine, OrderBook, usable_number
from replaylab.fsio import write_atomic
from replaylab.logging import Logger, rotate_lock
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import StateEvent
from replaylab.sessions import Session, initial_state, load_books, load_tape, market_rows
from replaylab.timestamps import iso, now_ns, parse_ns, to_ns
from replaylab.trading import ResolvedPrices, TradingSystem

Moment = str | datetime
_ROLLING = 10_000
_ROLLING_NS = 60_000_000_000
_ROLLING_LEVELS = 25


@dataclass(frozen=True)
class SimRun:
    """What a simulation logged: ``trades``, ``orders`` and ``events`` are read back from the logs it wrote."""

    root: DataRoot
    symbols: tuple[str, ...]
    start: str
    end: str
    n_market_events: int
    unusable: dict[str, int]
    # Where the logs of an earlier simulation are now (``overlap="replace"``).
    replaced: Path | None = None

    @cached_property
    def trades(self) -> pl.DataFrame:
        """Closed trades."""
        return frames.load_trades(self.root, self.start, self.end, self.symbols).frame

    @cached_property
    def orders(self) -> pl.DataFrame:
        """Orders with each of their statuses."""
        return frames.load_orders(self.root, self.start, self.end, self.symbols).frame

    @cached_property
    def events(self) -> pl.DataFrame:
        """State events: every signal and every change of state."""
        return frames.load_events(self.root, self.symbols, self.start, self.end).frame

    def _repr_html_(self) -> str:
        return (
            f"<b>SIM</b> {escape(', '.join(self.symbols))} · {escape(str(self.start))} to {escape(str(self.end))}<br>"
            f"{self.n_market_events:,} market events → {len(self.events):,} state events, "
            f"{len(self.orders):,} order lines, {len(self.trades):,} trades"
        )


def run_sim(
    root: DataRoot,
    symbols: Sequence[str] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    params: TradingParams | None = None,
    scoring: ScoringParams | Any | None = None,
    *,
    logging: LoggingConfig = LoggingConfig(),  # noqa: B008 - immutable
    run_mode: Literal["LIVE", "REPLAY"] = "LIVE",
    overlap: Literal["error", "append", "replace"] = "error",
    write_market: bool = False,
    progress: bool = True,
) -> SimRun:
    """Run the trading system in SIM mode over tape and book, and write the live logs of this root.

    >>> sim = run_sim(DataRoot("data"), ["BTCUSDT"], params=TradingParams(entry_threshold=0.4))  # doctest: +SKIP
    >>> sim.trades                                                                              # doctest: +SKIP

    ``symbols``: all with market data if not named. ``start``: if not given, where the logs of these symbols end, like
    a bot that starts again, or the beginning of the tape. ``scoring``: ScoringParams, or a model with ``predict``.
    A range in which these symbols have logs already is refused, since every session would contain their signals
    twice; ``overlap="append"`` allows it, and ``"replace"`` moves the logs of an earlier simulation in the range to
    ``replaced/`` first (refused where an order or a trade is not of mode SIM).
    ``write_market`` also writes the rolling files of a live system:
    ``metrics/``, ``trades/`` and ``orderbook/`` with the newest scores, regimes, prints and book of each symbol.
    The health snapshot is written at the end. Memory is bounded by a block of the tape.

    Raises ReplayError when there is nothing to simulate, InterlockError in run mode REPLAY, LogWriteError when a
    line could not be written.
    """
    if run_mode == "REPLAY":
        raise InterlockError("a simulation writes the live logs, which run mode REPLAY forbids")
    params = TradingParams.of(params, "params")
    names = _symbols(root, symbols)
    from_ns, until_ns = _range(root, names, start, end, overlap)
    replaced = _set_aside(root, names, from_ns, until_ns) if overlap == "replace" else None
    made = scoring if scoring is not None else ScoringParams()
    with Logger(root, logging) as logger:
        known = made if isinstance(made, ScoringParams) else None
        logger.log_trading_params(iso(from_ns), params, known).result()
        rolling = _RollingFiles(logger) if write_market else None
        recorder: Any = _Strict(logger, rolling)
        system = TradingSystem(
            params,
            recorder=recorder,
            scoring=made,
            inject_mode="FULL_DECISION",
            price_sources=_prices(root, names, from_ns, until_ns),
            instruments=history.load_instruments(root),
            # As in a session that begins here: the book and the last regimes are known to a bot that starts.
            initial_state=initial_state(root, from_ns, names),
        )
        count = 0
        for index, (ts, kind, symbol, payload) in enumerate(
            _events(root, names, from_ns, until_ns, progress)
        ):
            system.on_event(index, ts, kind, symbol, payload)
            if rolling is not None:
                rolling.market(ts, kind, symbol, payload)
            count = index + 1
        system.finish()
        if rolling is not None:
            rolling.write()
        health = {"timestamp": iso(now_ns()), "services": {"logging": logger.health().to_dict()}}
        logger.write_health_snapshot(health).result()
    return SimRun(root, tuple(names), iso(from_ns), iso(until_ns), count, dict(system.unusable), replaced)


def _range(
    root: DataRoot, names: Sequence[str], start: Moment | None, end: Moment | None, overlap: str
) -> tuple[int, int]:
    """The half-open range to simulate; raises ReplayError when it is empty or has logs already."""
    first, last = _span(root, names)
    logged = _last_logged(root, names) if overlap == "error" else None
    until = last + 1 if end is None else min(to_ns(end), last + 1)
    begin = to_ns(start) if start is not None else first if logged is None else max(first, logged + 1)
    if begin >= until:
        there = f"the logs reach to {iso(logged)}, " if logged is not None else ""
        raise ReplayError(
            f"nothing to simulate from {iso(begin)} to {iso(until)}: {there}market data reaches to {iso(last)}. "
            'Import more, use another data root, or simulate again with overlap="replace" (sim --replace)'
        )
    if logged is not None and logged >= begin:
        raise ReplayError(
            f"{', '.join(names)}: there are logs up to {iso(logged)} already, and the simulation would begin at "
            f'{iso(begin)}; use another data root, or simulate again with overlap="replace" (sim --replace)'
        )
    return begin, until


def _set_aside(root: DataRoot, names: Sequence[str], start: int, until: int) -> Path | None:
    """Move the log lines of an earlier simulation to ``replaced/``; raises ReplayError where others would go too."""
    logs = [path for name in names for _, path in root.files("events", symbol=name)]
    first, last = iso(start)[:10], iso(until - 1)[:10]
    for kind in ("orders", "trades_log"):
        logs += [path for place, path in root.files(kind) if first <= str(place.day) <= last]

    def belongs(path: Path, line: bytes) -> bool:
        try:
            row = orjson.loads(line)
            mine = row["symbol"] in names and start <= parse_ns(row["timestamp"]) < until
        except (ValueError, KeyError, TypeError):
            return False
        if mine and row.get("mode", "SIM") != "SIM":
            raise ReplayError(
                f"{path}: {row['symbol']} has records of mode {row['mode']} in the range, which no simulation wrote; "
                "use another data root"
            )
        return mine

    for path in logs:
        with path.open("rb") as file:
            for line in file:
                belongs(path, line)
    aside = root.path / "replaced" / iso(now_ns()).replace(":", "-")
    for path in logs:
        with rotate_lock(path) as current, os.fdopen(os.dup(current), "rb") as file:
            lines = [(belongs(path, line), line) for line in file]
            gone = b"".join(line for mine, line in lines if mine)
            if gone:
                write_atomic(aside / path.relative_to(root.path), gone, sync=True)
                write_atomic(path, b"".join(line for mine, line in lines if not mine), sync=True)
    return aside if aside.exists() else None


@dataclass(frozen=True)
class WarmUp:
    """Market data from before the range for the scoring engine, and the initial state before that."""

    root: DataRoot
    symbols: list[str]
    since: int
    start: int
    initial_state: dict[str, Any]

    @classmethod
    def of(cls, session: Session, scoring: Any) -> WarmUp | None:
        """Return the warm-up back to where the recorded run began; None where the session begins there, too."""
        recorded = session.meta.get("recordedParams")
        began = recorded.get("timestamp") if isinstance(recorded, dict) else None
        start = parse_ns(session.manifest.source_date_range.from_)
        if not isinstance(began, str) or parse_ns(began) >= start:
            return None
        params = scoring if isinstance(scoring, ScoringParams) else ScoringParams()
        longest = max(params.baseline_half_life_s, params.volatility_half_life_s, params.trend_half_life_s)
        # After forty half-lives less than 1e-12 of a weight is left.
        since = max(parse_ns(began), start - round((params.warmup_s + 40 * longest) * 1e9))
        symbols = session.manifest.symbols
        if not any(rows.height for rows in market_rows(session.root, since, start, symbols)):
            return None
        now = ((session.initial_state or {}).get("symbols")) or {}
        before = initial_state(session.root, since, symbols)["symbols"]
        for symbol, state in before.items():
            # Blocking comes from outside: market data does not lead to it.
            state["tradingBlocked"] = bool((now.get(symbol) or {}).get("tradingBlocked"))
            state |= {name: (now.get(symbol) or {}).get(name) for name in ("carried", "lastExitAt")}
        account = (session.initial_state or {}).get("account")
        return cls(session.root, symbols, since, start, {"symbols": before, "account": account})

    def feed(self, system: TradingSystem) -> None:
        for piece in market_rows(self.root, self.since, self.start, self.symbols):
            columns = (piece[name].to_list() for name in ("ts", "type", "symbol", "payload"))
            for ts, kind, symbol, payload in zip(*columns, strict=True):
                system.warm_up(ts, kind, symbol, orjson.loads(payload))


class _RollingFiles:
    """The newest metrics and prints of each symbol, and its book; written once per minute of event time.

    Metrics are every score and regime, and the features of the catalogue at each writing.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._metrics: dict[str, deque[dict[str, Any]]] = {}
        self._tape: dict[str, deque[dict[str, Any]]] = {}
        self._books: dict[str, OrderBook] = {}
        self._features: dict[str, FeatureEngine] = {}
        self._now = self._written = 0

    def signal(self, symbol: str, event: StateEvent) -> None:
        """Add a score or regime that the system logged."""
        kind = {"SCORING_UPDATE": "SCORING_SNAPSHOT", "REGIME_UPDATE": "REGIME_SNAPSHOT"}.get(
            event.event_type
        )
        if kind is not None:
            snapshot = {**event.extra, "type": kind, "timestamp": event.timestamp, "symbol": symbol}
            self._metrics.setdefault(symbol, deque(maxlen=_ROLLING)).append(snapshot)

    def market(self, ts: int, kind: str, symbol: str, payload: dict[str, Any]) -> None:
        """Add a print or a change of a book."""
        self._now = ts
        features = self._features.setdefault(symbol, FeatureEngine())
        if kind == "MARKET_BOOK":
            book = self._books.setdefault(symbol, OrderBook())
            book.apply(payload)
            features.book(ts, book)
        elif (
            kind == "MARKET_TRADE"
            and payload.get("side") in ("BUY", "SELL")
            and payload.get("offMarket") is not True
        ):
            fields = {name: payload.get(name) for name in ("price", "qty", "side", "tradeId")}
            self._tape.setdefault(symbol, deque(maxlen=_ROLLING)).append({"timestamp": iso(ts), **fields})
            price, qty = usable_number(fields["price"]), usable_number(fields["qty"])
            if price is not None and price > 0 and qty is not None:
                features.trade(ts, price, qty, 1.0 if fields["side"] == "BUY" else -1.0)
        if ts - self._written > _ROLLING_NS:
            self.write()

    def write(self) -> None:
        """Write all files."""
        self._written = self._now
        for symbol, engine in self._features.items():
            values = {"timestamp": iso(self._now), "symbol": symbol, "features": engine.values(self._now)}
            metrics = self._metrics.setdefault(symbol, deque(maxlen=_ROLLING))
            metrics.append({"type": "FEATURE_SNAPSHOT", **values})
        handles = [self._logger.write_metrics(symbol, rows) for symbol, rows in self._metrics.items()]
        handles += [self._logger.write_tape(symbol, rows) for symbol, rows in self._tape.items()]
        for symbol, book in self._books.items():
            bids, asks = book.top(_ROLLING_LEVELS)
            snapshot = {"timestamp": iso(self._now), "symbol": symbol, "bids": bids, "asks": asks}
            handles.append(self._logger.write_order_book(symbol, snapshot))
        for handle in handles:
            handle.result()
        self._metrics.clear()
        self._tape.clear()


class _Strict:
    """The logger as a recorder: each line must be acknowledged before the next event is handled."""

    log_state_event: Callable[[str, StateEvent], object]

    def __init__(self, logger: Logger, rolling: _RollingFiles | None) -> None:
        for name in (
            "log_state_event",
            "log_trade",
            "log_order",
            "write_risk_snapshot",
            "write_tpsl_snapshot",
            "write_execution_snapshot",
        ):
            setattr(self, name, self._checked(getattr(logger, name)))
        if rolling is not None:
            log = self.log_state_event

            def both(symbol: str, event: StateEvent) -> None:
                log(symbol, event)
                rolling.signal(symbol, event)

            self.log_state_event = both

    @staticmethod
    def _checked(method: Any) -> Any:
        return lambda *arguments: method(*arguments).result()


def _events(
    root: DataRoot, names: Sequence[str], start: int, end: int, progress: bool
) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
    from tqdm.auto import tqdm

    loads = orjson.loads
    minutes = max(1, (end - start) // 60_000_000_000)
    with tqdm(total=minutes, unit="min", desc="simulating", delay=1.0, disable=not progress) as bar:
        done = 0
        for piece in market_rows(root, start, end, names):
            columns = (piece[name].to_list() for name in ("ts", "type", "symbol", "payload"))
            for ts, kind, symbol, payload in zip(*columns, strict=True):
                yield ts, kind, symbol, loads(payload)
                if progress and (now := (ts - start) // 60_000_000_000) > done:
                    bar.update(now - done)
                    done = now


def _symbols(root: DataRoot, symbols: Sequence[str] | None) -> list[str]:
    there = sorted(
        {
            *history.symbols(root, "trades"),
            *history.symbols(root, "book"),
            *root.symbols("market_trades"),
            *root.symbols("order_book"),
        }
    )
    if symbols is None:
        if not there:
            raise ReplayError(
                f"{root}: no market data to simulate on; import some first (lab.import_history, replaylab import)"
            )
        return there
    missing = sorted(set(symbols) - set(there))
    if missing or not symbols:
        raise ReplayError(
            f"{root}: no market data of {', '.join(missing) or 'no symbol'}; there is {', '.join(there) or 'none'}"
        )
    return sorted(set(symbols))


def _span(root: DataRoot, names: Sequence[str]) -> tuple[int, int]:
    """Return the first and last time of all market data of these symbols."""
    times: list[int] = []
    for name in names:
        covered = [history.coverage(root, "trades", name), history.coverage(root, "book", name)]
        times += [edge for span in covered if span is not None for edge in (span.first, span.last)]
        if not any(covered):
            for loaded in (load_tape(root, [name]), load_books(root, [name])):
                column = loaded.frame["timestamp"].dt.epoch("ns")
                times += [int(edge) for edge in (column.min(), column.max()) if edge is not None]  # type: ignore[arg-type]
    if not times:
        raise ReplayError(f"{root}: the market data of {', '.join(names)} is empty")
    return min(times), max(times)


def _last_logged(root: DataRoot, names: Sequence[str]) -> int | None:
    latest: int | None = None
    for name in names:
        for loaded in frames.scan_event_chunks(root, name):
            moment = loaded.frame["timestamp"].dt.epoch("ns").max()
            if isinstance(moment, int):
                latest = moment if latest is None else max(latest, moment)
    return latest


def _prices(root: DataRoot, names: Sequence[str], start: int, end: int) -> ResolvedPrices:
    """Return the price source of each symbol, and which symbols have books in the range."""
    sources = {name: _price_source(root, name, start, end) for name in names}
    return ResolvedPrices.of(sources, [name for name in names if _has_book(root, name, start, end)])


def _has_book(root: DataRoot, name: str, start: int, end: int) -> bool:
    if history.scan_book(root, name, start, end).head(1).collect().height:
        return True
    return bool(load_books(root, [name], iso(start), iso(end)).frame.height)


def _price_source(root: DataRoot, name: str, start: int, end: int) -> str:
    """Return "trade" where the symbol has a trade in the range, else "book": the choice of "auto" for a session."""
    prints = history.scan_trades(root, name, start, end).filter(~pl.col("off_market")).head(1).collect()
    if prints.is_empty():
        prints = load_tape(root, [name], iso(start), iso(end)).frame.filter(~pl.col("off_market"))
    return "book" if prints.is_empty() else "trade"
