"""Fidelity: a session decided again under its recorded parameters, decision by decision beside what was logged.

::

    report = fidelity(session)               # or lab.fidelity(session_id, inject_mode="FULL_DECISION")
    report.share                             # 1.0: every logged decision came out the same
    report.differences                       # the others: time, inputs, what was logged, what came out
    report.plot()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from replaylab import frames
from replaylab.errors import ReplayError
from replaylab.features import Carried, InitialState, usable_number
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import StateEvent
from replaylab.replay.player import EventFeed
from replaylab.replay.targets import check_inject_mode
from replaylab.sessions import Session, initial_state, market_rows
from replaylab.timestamps import parse_ns
from replaylab.trading import TradingSystem, resolve_prices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUSES = ("identical", "different", "missing", "added", "carried_in", "cut_off")
_COUNTED = STATUSES[:4]
_NUMBERS = ("score", "price", "qty")
_TEXTS = ("from_state", "to_state", "outcome")
_KEY = ("timestamp", "symbol", "event_type", "nth")
# Floats closer than this, relatively, are one number computed on two machines.
_CLOSE = 1e-9
_EVENTS = ("SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE", "EXECUTION_FILL", "EXECUTION_PARTIAL")
_NO_END = 2**62
_ENDINGS = ("EXECUTION_EXIT", "EXECUTION_CANCEL")


@dataclass(repr=False)
class Fidelity:
    """Every decision of the session's range with its status.

    identical: logged and replayed alike. different: another state, fill, price, quantity, score or regime. missing:
    logged only. added: replayed only. A session cannot judge carried_in (a symbol's decisions while its position,
    order or cooldown from before the range lasted) and cut_off (positions that the session's end closes, and only it);
    neither counts. ``share`` is identical / (identical + different + missing + added), None without any.
    """

    table: pl.DataFrame
    session_id: str
    inject_mode: str
    params: TradingParams

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        return f"<Fidelity {self.session_id} {self.inject_mode}: {self._percent}; {counts or 'no decisions'}>"

    def _repr_html_(self) -> str:
        by_type = self.summary
        head = "".join(f"<th>{escape(name)}</th>" for name in by_type.columns)
        rows = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:right'>{escape(str(cell))}</td>" for cell in row)
            + "</tr>"
            for row in by_type.iter_rows()
        )
        return (
            f"<div><b>Fidelity</b> of {escape(self.session_id)}, {self.inject_mode}: <b>{self._percent}</b>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )

    @cached_property
    def counts(self) -> dict[str, int]:
        """Decisions by status."""
        found = dict(self.table["status"].value_counts().iter_rows())
        return {name: found.get(name, 0) for name in STATUSES}

    @property
    def share(self) -> float | None:
        """Share of the decisions that came out identical."""
        total = sum(self.counts[name] for name in _COUNTED)
        return self.counts["identical"] / total if total else None

    @property
    def is_identical(self) -> bool:
        """Whether every decision that the session can judge came out identical."""
        return not any(self.counts[name] for name in _COUNTED[1:])

    @property
    def decisions(self) -> pl.DataFrame:
        """All decisions by time: status, what differs, states, outcome, numbers of both, inputs (JSON string)."""
        return self.table

    @property
    def differences(self) -> pl.DataFrame:
        """The decisions that are different, missing or added."""
        return self.table.filter(pl.col("status").is_in(_COUNTED[1:]))

    @property
    def summary(self) -> pl.DataFrame:
        """Counts by type of event and status."""
        counts = [(pl.col("status") == name).sum().alias(name) for name in STATUSES]
        return self.table.group_by("event_type").agg(counts).sort("event_type")

    def plot(self) -> Figure:
        """Plot decisions over time, by symbol and status."""
        from replaylab import plots

        return plots.fidelity(self.table, f"{self.session_id}, {self.inject_mode}: {self._percent}")

    @property
    def _percent(self) -> str:
        if self.share is None:
            return "nothing to compare"
        # 99.999 % must not read as all.
        exact = "100 %" if self.share == 1.0 else f"{min(self.share * 100, 99.99):.2f} %"
        return f"{exact} identical"


def fidelity(
    session: Session,
    inject_mode: str = "SCORING_ONLY",
    *,
    params: TradingParams | None = None,
    scoring: Any = None,
    price_source: str | Mapping[str, str] = "auto",
) -> Fidelity:
    """Replay a session under its recorded parameters and compare every decision with the logs of its data root.

    A decision is what the state machine did at a signal or a fill: states before and after, the outcome of an
    execution (ENTRY, TP1, STOP_LOSS, …), score or regime, price, quantity. Logged and replayed ones belong together
    when they have the same time, symbol and type. ``params`` and ``scoring`` replace the recorded ones (ScoringParams,
    or the model that made the signals); of parameters that changed within the range, those at its start are used.

    Raises ReplayError where no parameters were recorded and none are given, or the range has no logs any more;
    ConfigError for a wrong mode.
    """
    check_inject_mode(inject_mode)
    chosen = params if params is not None else session.recorded_params
    if chosen is None:
        raise ReplayError(f"{session.id} holds no recorded parameters: name params= to compare with")
    if scoring is None:
        scoring = session.recorded_scoring
    if inject_mode == "FULL_DECISION" and scoring is None:
        raise ReplayError(f"{session.id} holds no recorded scoring parameters: name scoring=")
    logged = _logged(session)
    if logged.is_empty():
        raise ReplayError(
            f"{session.id}: its data root has no state events in its range any more, nothing to compare with"
        )
    feed = EventFeed(session)
    kept = _Kept()
    carried = _carried_in(logged)
    warm_up = _WarmUp.of(session, scoring) if inject_mode == "FULL_DECISION" else None
    system = TradingSystem(
        chosen,
        recorder=kept,
        scoring=scoring,
        inject_mode=inject_mode,
        price_sources=resolve_prices(session, price_source),
        instruments=getattr(session, "instruments", None),
        initial_state=_with_carried(
            session.initial_state if warm_up is None else warm_up.initial_state,
            carried,
            round(chosen.cooldown_s * 1e9),
        ),
        run_mode="REPLAY",
    )
    if warm_up is not None:
        warm_up.feed(system)
    _play(system, feed)
    table = compare_decisions(logged, _decisions(kept.rows), carried)
    return Fidelity(table, session.id, inject_mode, chosen)


@dataclass(frozen=True)
class _Carried:
    """What a symbol brought into the range: until when, and whether it was a position or order, or a cooldown."""

    until: int | None
    in_position: bool


def _carried_in(logged: pl.DataFrame) -> dict[str, _Carried]:
    """Read from the log which symbols began the range with something open, and when that ended."""
    found = {}
    rows = logged.with_columns(pl.col("timestamp").dt.timestamp("ns"))
    for (symbol,), part in rows.group_by("symbol", maintain_order=True):
        began = part["from_state"][0]
        if began == "COOLDOWN":
            end = part.filter(pl.col("to_state") != "COOLDOWN")
        elif began in ("PENDING_ENTRY", "LONG", "SHORT"):
            end = part.filter(pl.col("event_type").is_in(_ENDINGS))
        else:
            continue
        until = int(end["timestamp"][0]) if end.height else None
        found[str(symbol)] = _Carried(until, began != "COOLDOWN")
    return found


def _with_carried(
    initial_state: Mapping[str, Any] | None, carried: Mapping[str, _Carried], cooldown_ns: int
) -> InitialState:
    """Return the initial state with what the log shows as carried in, where the session does not know it."""
    initial = InitialState.read(initial_state)
    symbols = dict(initial.symbols)
    for symbol, what in carried.items():
        start = initial.of(symbol)
        if start.carried is not None or start.last_exit_ns is not None:
            continue
        if what.in_position:
            symbols[symbol] = replace(start, carried=Carried(what.until, ()))
        else:
            # A cooldown without an end in the log lasts to the end of the range.
            end = _NO_END if what.until is None else what.until
            symbols[symbol] = replace(start, last_exit_ns=end - cooldown_ns)
    return replace(initial, symbols=symbols)


def _play(system: TradingSystem, feed: EventFeed) -> None:
    index = 0
    while index < feed.total:
        block = feed.block(index)
        for place, payload in enumerate(block.payloads()):
            system.on_event(index, block.times[place], block.types[place], block.symbols[place], payload)
            index += 1
    system.finish()


@dataclass(frozen=True)
class _WarmUp:
    """The market data that the scoring engine had seen before the range, and what stood before that."""

    root: DataRoot
    symbols: list[str]
    since: int
    start: int
    initial_state: dict[str, Any]

    @classmethod
    def of(cls, session: Session, scoring: Any) -> _WarmUp | None:
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


def compare_decisions(
    logged: pl.DataFrame, replayed: pl.DataFrame, carried: Mapping[str, _Carried] | None = None
) -> pl.DataFrame:
    """Return a row per decision of either side with ``status`` and ``what`` differs; sorted by time and symbol.

    Both frames: timestamp, symbol, event_type, from_state, to_state, outcome, reason, score, price, qty, inputs.
    """
    both = _numbered(logged).join(_numbered(replayed), on=_KEY, how="full", coalesce=True, suffix="_replayed")
    differs = []
    for name in _NUMBERS:
        ours, theirs = pl.col(name), pl.col(f"{name}_replayed")
        gap = (ours - theirs).abs() > _CLOSE * pl.max_horizontal(ours.abs(), theirs.abs(), pl.lit(1e-3))
        differs.append((name, gap.fill_null(value=False) | (ours.is_null() != theirs.is_null())))
    differs.extend((name, pl.col(name).ne_missing(pl.col(f"{name}_replayed"))) for name in _TEXTS)
    what = (
        pl.concat_list([pl.when(test).then(pl.lit(name)) for name, test in differs])
        .list.drop_nulls()
        .list.join(", ")
    )
    session_end = pl.col("event_type").is_in(_ENDINGS) & (
        (pl.col("outcome_replayed") == "SESSION_END") | (pl.col("event_type") == "EXECUTION_CANCEL")
    )
    status = (
        pl.when(pl.col("logged").is_null() & session_end.fill_null(value=False))
        .then(pl.lit("cut_off"))
        .when(pl.col("logged").is_null())
        .then(pl.lit("added"))
        .when(pl.col("logged_replayed").is_null())
        .then(pl.lit("missing"))
        .when(what != "")
        .then(pl.lit("different"))
        .otherwise(pl.lit("identical"))
    )
    table = both.with_columns(
        status=status,
        what=pl.when(pl.col("logged").is_not_null() & pl.col("logged_replayed").is_not_null()).then(what),
        order=pl.coalesce("logged", "logged_replayed"),
    ).sort("timestamp", "symbol", "order", "event_type", "nth")
    pairs = [name for field in (*_TEXTS, "reason", *_NUMBERS) for name in (field, f"{field}_replayed")]
    for symbol, what_carried in (carried or {}).items():
        table = table.with_columns(status=_mark_carried_in(symbol, what_carried))
    inputs = pl.coalesce("inputs", "inputs_replayed").alias("inputs")
    return table.select("timestamp", "symbol", "event_type", "status", "what", *pairs, inputs)


def signal_agreement(recorded: pl.DataFrame, recomputed: pl.DataFrame) -> dict[str, Any]:
    """Compare recorded scores and regimes with recomputed ones: counts, and the first 20 differences.

    Both frames: timestamp, type, symbol, payload (JSON string).
    """
    table = compare_decisions(_signals(recorded), _signals(recomputed))
    counts = dict(table["status"].value_counts().iter_rows())
    gap = (table["score"] - table["score_replayed"]).abs().max()
    differing = table.filter(pl.col("status") != "identical").head(20)
    return {
        "recorded": table.height - counts.get("added", 0),
        **{name: counts.get(name, 0) for name in _COUNTED},
        "maxDifference": gap if isinstance(gap, float) else 0.0,
        "differences": [
            {
                "ts": int(row["timestamp"]),
                "symbol": row["symbol"],
                "type": row["event_type"],
                "recorded": row["outcome"] if row["score"] is None else row["score"],
                "recomputed": row["outcome_replayed"]
                if row["score_replayed"] is None
                else row["score_replayed"],
            }
            for row in differing.with_columns(pl.col("timestamp").dt.timestamp("ns")).iter_rows(named=True)
        ],
    }


def _signals(events: pl.DataFrame) -> pl.DataFrame:
    """Return the usable scores and regimes of session events as decisions without states."""
    rows: list[tuple[Any, ...]] = []
    chosen = events.filter(pl.col("type").is_in(["SCORING_UPDATE", "REGIME_UPDATE"]))
    columns = (pl.col("timestamp").dt.timestamp("ns"), "symbol", "type", "payload")
    for ts, symbol, kind, text in chosen.select(columns).iter_rows():
        payload = orjson.loads(text)
        regime, score, side = payload.get("regime"), usable_number(payload.get("score")), payload.get("side")
        if kind == "REGIME_UPDATE":
            value = {"regime": regime} if isinstance(regime, str) else None
        elif score is None:
            value = None
        else:
            value = {"score": {"LONG": abs(score), "SHORT": -abs(score)}.get(side, score)}
        if value is not None:
            rows.append((ts, symbol, kind, None, None, None, value))
    return _decisions(rows)


def _mark_carried_in(symbol: str, carried: _Carried) -> pl.Expr:
    """Set apart what a symbol decided up to the end of what it carried in."""
    mine = pl.col("symbol") == symbol
    if carried.until is not None:
        until = pl.lit(carried.until).cast(pl.Datetime("ns", "UTC"))
        # At its last moment the position's own closing belongs to it; a signal there is a decision again.
        closing = pl.col("event_type").str.starts_with("EXECUTION_") | pl.lit(not carried.in_position)
        mine &= (pl.col("timestamp") < until) | ((pl.col("timestamp") == until) & closing)
    return pl.when(mine).then(pl.lit("carried_in")).otherwise(pl.col("status"))


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """Number decisions of one time, symbol and type in their order, and keep that order as ``logged``."""
    key = ["timestamp", "symbol", "event_type"]
    return frame.with_row_index("logged").with_columns(nth=pl.int_range(pl.len()).over(key))


def _logged(session: Session) -> pl.DataFrame:
    """The state events of the session's range as decisions; of a truncated session, up to its last event."""
    span = session.manifest.source_date_range
    frame = frames.load_events(session.root, session.manifest.symbols, span.from_, span.to).frame
    if session.meta.get("truncated") and session.events.height:
        frame = frame.filter(pl.col("timestamp") <= session.events["timestamp"].max())
    columns = ("timestamp", "symbol", "event_type", "from_state", "to_state", "reason", "extra")
    rows = frame.sort("timestamp", "symbol", "line").select(
        pl.col("timestamp").dt.timestamp("ns"), *columns[1:]
    )
    return _decisions([(*row[:-1], orjson.loads(row[-1] or "{}")) for row in rows.iter_rows()])


class _Kept:
    """A recorder that keeps decisions and nothing else."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self._stamp = ("", 0)

    def log_state_event(self, symbol: str, event: StateEvent) -> None:
        if event.timestamp != self._stamp[0]:
            self._stamp = (event.timestamp, parse_ns(event.timestamp))
        states = (event.from_state, event.to_state)
        self.rows.append((self._stamp[1], symbol, event.event_type, *states, event.reason, event.extra))

    def _ignore(self, record: Any) -> None:
        """Orders, trades and snapshots follow from the decisions."""

    log_trade = log_order = write_risk_snapshot = write_tpsl_snapshot = write_execution_snapshot = _ignore


def _decisions(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Turn (ns, symbol, type, from, to, reason, extra) into the frame that ``compare_decisions`` takes."""
    found = []
    for ts, symbol, kind, before, after, reason, extra in rows:
        if kind not in _EVENTS and kind not in _ENDINGS:
            continue
        extra = extra if isinstance(extra, dict) else {}
        outcome = extra.get("regime") if kind == "REGIME_UPDATE" else None
        if kind.startswith("EXECUTION_"):
            outcome = extra.get("reason")
        score = usable_number(extra.get("score")) if kind == "SCORING_UPDATE" else None
        numbers = (score, usable_number(extra.get("price")), usable_number(extra.get("qty")))
        outcome = outcome if isinstance(outcome, str) else None
        inputs = orjson.dumps(extra).decode()
        found.append((ts, symbol, kind, before, after, outcome, reason, *numbers, inputs))
    schema: dict[str, Any] = dict.fromkeys(
        ("symbol", "event_type", "from_state", "to_state", "outcome", "reason"), pl.String
    )
    schema = {"timestamp": pl.Int64, **schema, **dict.fromkeys(_NUMBERS, pl.Float64), "inputs": pl.String}
    frame = pl.DataFrame(found, schema=schema, orient="row")
    return frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
