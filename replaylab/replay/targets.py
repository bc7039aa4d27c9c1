"""What a replay drives: the reference trading system with its recorder, or any object with ``handle_event``."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import polars as pl

from replaylab.errors import ConfigError, PriceError, ReplayError, did_you_mean
from replaylab.features import usable_number
from replaylab.params import Resolved, ScoringParams, Settings, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import (
    ReplayEvent,
    StateEvent,
)
from replaylab.replay.checkpoints import Checkpoint, Checkpoints, RunRecorder, Scout
from replaylab.replay.player import EventFeed, OnEvent
from replaylab.sessions import Session
from replaylab.sweep import GIVEN_SIGNALS, FeatureTable
from replaylab.trading import (
    PRICE_TYPES,
    ExitRule,
    ResolvedPrices,
    TradingSystem,
    assumptions,
    resolve_prices,
)

_INJECT_MODES = ("SCORING_ONLY", "FULL_DECISION")
_STRICT = ("SCORING_UPDATE", "REGIME_UPDATE")
_HASH_ROWS = 65_536
# Events from one checkpoint to the next: a few milliseconds of play.
_STRIDE = {"SCORING_ONLY": 2_048, "FULL_DECISION": 512}
_SHORT_NS = 2_000_000
_LONG_NS = 10_000_000
_NAP_S = 0.002


@dataclass(frozen=True)
class RunSetup:
    """The settings of one run: inject mode, parameters with their provenance, and price sources.

    ``scoring`` is a Resolved, or a model with ``predict``. ``strict``: only SCORING_UPDATE and REGIME_UPDATE are
    delivered, the minimum of the specification. ``signals``: "recorded", or "given" by the caller.
    """

    inject_mode: str
    strict: bool
    params: Resolved[TradingParams]
    scoring: Any
    prices: ResolvedPrices
    signals: str = "recorded"
    rule: ExitRule | None = None
    rule_features: FeatureTable | None = None

    @classmethod
    def of(
        cls,
        session: Session,
        params: Resolved[TradingParams],
        scoring: Any,
        *,
        inject_mode: str,
        strict: bool = False,
        price_source: str | Mapping[str, str] = "auto",
        events: pl.DataFrame | None = None,
        rule: ExitRule | None = None,
    ) -> RunSetup:
        """Return the setup of a run over a session; raises PriceError where a symbol with scores has no prices.

        ``events``: played in place of the session's own, with signals that the caller gave.
        """
        signals = "recorded" if events is None else "given"
        events = session.events if events is None else events
        if strict:
            events = events.filter(pl.col("type").is_in(_STRICT))
        prices = resolve_prices(events, price_source, initial_state=session.initial_state)
        if inject_mode == "FULL_DECISION" and events.height:
            if not {"trade", "book"} & set(prices.sources.values()):
                raise PriceError(
                    f"inject_mode FULL_DECISION computes signals from market data; session {session.id} has no usable "
                    "price. Build it with include_types that contain MARKET_TRADE or MARKET_BOOK."
                )
        else:
            scores = events.filter(
                (pl.col("type") == "SCORING_UPDATE") & ~pl.col("symbol").is_in(list(prices.sources))
            )
            usable = {
                symbol
                for symbol, payload in scores.select("symbol", "payload").iter_rows()
                if symbol and usable_number(orjson.loads(payload).get("score")) is not None
            }
            prices.require(usable)
        table = None if rule is None else FeatureTable.of(rule, session)
        return cls(inject_mode, strict, params, scoring, prices, signals, rule, table)

    @property
    def model(self) -> Any:
        """The ScoringParams or the model that makes the scores."""
        return self.scoring.params if isinstance(self.scoring, Resolved) else self.scoring

    def provenance(self) -> dict[str, Any]:
        """Return which parameters run, where they came from and what was changed, as ``run.json`` holds them."""
        found = {
            "params": self.params.params.to_dict(),
            "paramsSource": self.params.source,
            "changes": _camel(TradingParams, self.params.changes),
            "signals": self.signals,
            **({} if self.rule is None else {"rule": repr(self.rule)}),
        }
        if not isinstance(self.scoring, Resolved):
            return {**found, "scoring": repr(self.scoring), "scoringSource": "given", "scoringChanges": {}}
        return {
            **found,
            "scoring": self.scoring.params.to_dict(),
            "scoringSource": self.scoring.source,
            "scoringChanges": _camel(ScoringParams, self.scoring.changes),
        }

    def assumptions(self, feed: EventFeed, trades: pl.DataFrame) -> str:
        """Return on what the result rests: prices, fill models in force, holes, whose parameters, in one line."""
        times = {
            symbol: feed.frame.filter(type=PRICE_TYPES[source], symbol=symbol)["timestamp"].dt.epoch("ns")
            for symbol, source in self.prices.sources.items()
        }
        text = assumptions(self.prices, times, self.params, trades=trades)
        return text if self.signals == "recorded" else f"{text}; {GIVEN_SIGNALS}"


def _camel(settings: type[Settings], changes: Mapping[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
    names = dict(zip(settings.__struct_fields__, settings.__struct_encode_fields__, strict=True))
    return {names[name]: list(pair) for name, pair in changes.items()}


class SystemTarget:
    """The reference trading system in SIM mode, recording into the run's folder.

    With ``checkpoints`` a seek goes to the last checkpoint before its aim, which the run itself or a scout made, and
    plays on from there; without them one back plays from the start.
    """

    on_event: OnEvent | None = None
    handle: Callable[[ReplayEvent], Any] | None = None

    def __init__(
        self, run_root: DataRoot, feed: EventFeed, setup: RunSetup, *, checkpoints: bool = True
    ) -> None:
        self.recorder = RunRecorder(run_root)
        self.setup = setup
        self._feed = feed
        self.stride = _STRIDE[setup.inject_mode]
        self._checkpoints = Checkpoints(self.stride) if checkpoints else None
        self._scout: Scout | None = None
        self._scouting = checkpoints
        # Code of the user's own may take long at an event, and would make the next one late.
        self._only_paused = setup.rule is not None or not isinstance(setup.scoring, Resolved)
        self._start()

    @property
    def seek_ready(self) -> int | None:
        """The last index that a seek reaches from a checkpoint; None without checkpoints."""
        return None if self._checkpoints is None else max(0, self._checkpoints.last)

    @property
    def decisions(self) -> int | None:
        """Signals that were acted upon or refused, orders and trades so far, those of events played again included."""
        return self.recorder.decisions

    def begin(self, *, rewinding: bool = False) -> None:
        self.recorder.begin_again()
        if self._checkpoints is not None:
            self._checkpoints = Checkpoints(self.stride)
            self._scout, self._scouting = None, True
        self._start()
        self.keep(0)

    def go_to(self, index: int, present: int) -> int:
        checkpoints = self._checkpoints
        if checkpoints is None:
            if index < present:
                self.begin(rewinding=True)
            return 0 if index < present else present
        if index < present > checkpoints.last:
            checkpoints.add(present, self.system, self.recorder)
        found = checkpoints.before(index)
        if found.index <= present <= index:
            return present
        self._go_to(found, checkpoints)
        return found.index

    def keep(self, index: int) -> None:
        checkpoints = self._checkpoints
        if checkpoints is None or index % checkpoints.stride:
            return
        if index <= checkpoints.last:
            found = checkpoints.before(index)
            if found.index == index and found.place.digest.digest() != bytes.fromhex(self.recorder.digest):
                raise ReplayError(
                    f"the events before {index} were played twice and gave other records the second time: the exit "
                    "rule or the scoring model keeps a state of its own. Let it depend on its arguments alone, or "
                    'play with overload="skip", where a seek back plays from the start.'
                )
        elif checkpoints.due(index):
            checkpoints.add(index, self.system, self.recorder)

    def idle(self, index: int, room_ns: int | None = None) -> bool:
        if self.recorder.behind:
            if self.recorder.settled:
                self.recorder.flush()
            elif room_ns is None:
                time.sleep(_NAP_S)
            return room_ns is None or self.recorder.settled
        checkpoints = self._checkpoints
        if checkpoints is None or (room_ns is not None and room_ns < 3 * checkpoints.cost_ns):
            return False
        self.keep(index)
        if not self._scouting or (self._only_paused and room_ns is not None):
            return False
        try:
            if not self.recorder.tape.apart:
                self.recorder.tape.copy()
                return True
            scout = self._scout
            if scout is None or scout.index <= index:
                scout = self._scout = self._new_scout(index, checkpoints)
            rows, limit = (self.stride, _LONG_NS) if room_ns is None else (256, _SHORT_NS)
            self._scouting = scout is not None and scout.play(rows, limit)
        except Exception:  # of the user's code, or the disk: the run itself meets it when it gets there
            self._scouting = False
        if not self._scouting:
            self._scout = None
        return self._scouting

    def settle(self, result: Any) -> None:
        """Do nothing: ``on_event`` returns nothing."""

    def finish(self) -> None:
        self.system.finish()

    def flush(self) -> None:
        self.recorder.flush()

    def close(self) -> None:
        self.recorder.close()

    def report(self, emitted: int) -> dict[str, Any]:
        return {
            "digest": self.recorder.digest,
            "counts": dict(self.recorder.counts),
            "realizedPnl": self.recorder.realized_pnl,
            "unusable": dict(self.system.unusable),
            "priceSources": self.setup.prices.sources,
            "entries": asdict(self.system.counts),
            **self.setup.provenance(),
        }

    def _start(self) -> None:
        setup = self.setup
        # REPLAY whatever the configuration says: from here no order can reach a real market.
        self.system = TradingSystem(
            setup.params.params,
            recorder=self.recorder,
            scoring=setup.model,
            inject_mode=setup.inject_mode,
            price_sources=setup.prices,
            instruments=getattr(self._feed.session, "instruments", None),
            initial_state=self._feed.session.initial_state,
            mode="SIM",
            run_mode="REPLAY",
            rule=setup.rule,
            rule_features=setup.rule_features,
        )
        self.on_event = self._entry(self.system)

    def _entry(self, system: TradingSystem) -> OnEvent:
        """Return what takes the events of a system."""

        def strictly(index: int, ts: int, kind: str, symbol: str | None, payload: dict[str, Any]) -> None:
            if kind in _STRICT:
                system.on_event(index, ts, kind, symbol, payload)

        return strictly if self.setup.strict else system.on_event

    def _go_to(self, found: Checkpoint, checkpoints: Checkpoints) -> None:
        self.system = checkpoints.system_at(found, self.system, self.recorder)
        self.on_event = self._entry(self.system)

    def _new_scout(self, index: int, checkpoints: Checkpoints) -> Scout | None:
        """Return a scout that continues from the last checkpoint, or from where the run is; None at the end."""
        if index > checkpoints.last:
            checkpoints.add(index, self.system, self.recorder)
        if checkpoints.last >= self._feed.total:
            return None
        recorder = RunRecorder(self.recorder.root, self.recorder.tape)
        system = checkpoints.system_at(checkpoints.before(self._feed.total), self.system, recorder)
        return Scout(self._feed, checkpoints, checkpoints.last, system, recorder, self._entry)


class HandlerTarget:
    """A user's object with ``handle_event``, plain or async; ``reset`` and ``finish`` are called where it has them.

    It receives signals, RISK_UPDATE, FUNDING and market data; with ``strict`` SCORING_UPDATE and REGIME_UPDATE alone.
    STATE_EVENT and EXECUTION_*, the recorded consequences, reach subscribers only. FULL_DECISION withholds recorded
    scores and regimes. ``deliver="state_events"`` turns each signal into a StateEvent, one per symbol where it is for
    all, and delivers nothing else.
    """

    on_event: OnEvent | None = None
    handle: Callable[[ReplayEvent], Any] | None = None
    decisions: int | None = None
    stride = 1 << 62
    seek_ready: int | None = None

    def __init__(
        self,
        handler: Any,
        feed: EventFeed,
        inject_mode: str,
        *,
        strict: bool = False,
        deliver: str = "replay_events",
    ) -> None:
        if not callable(getattr(handler, "handle_event", None)):
            raise ReplayError(
                f"a handler needs a method handle_event(event), {type(handler).__name__} has none"
            )
        self._handler = handler
        self._feed = feed
        self._mode = f"{inject_mode}{' strict' if strict else ''}\n".encode()
        self._withheld: tuple[str, ...] = ("STATE_EVENT", "EXECUTION")
        if inject_mode == "FULL_DECISION":
            self._withheld += ("SCORING", "REGIME")
        self._strict = strict
        self._loop: asyncio.AbstractEventLoop | None = None
        self.handle = self._handle_state_event if deliver == "state_events" else self._handle_event

    def begin(self, *, rewinding: bool = False) -> None:
        reset = getattr(self._handler, "reset", None)
        if callable(reset):
            self.settle(reset())
        elif rewinding:
            raise ReplayError(
                f"seeking back needs a method reset() that restores the initial state; "
                f"{type(self._handler).__name__} has none"
            )

    def go_to(self, index: int, present: int) -> int:
        if index >= present:
            return present
        self.begin(rewinding=True)
        return 0

    def keep(self, index: int) -> None:
        """Do nothing: what a handler keeps cannot be copied."""

    def idle(self, index: int, room_ns: int | None = None) -> bool:
        return False

    def finish(self) -> None:
        finish = getattr(self._handler, "finish", None)
        if callable(finish):
            self.settle(finish())

    def flush(self) -> None:
        """Do nothing: a handler writes its own records."""

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._loop = None

    def report(self, emitted: int) -> dict[str, Any]:
        return {
            "digest": self._digest(emitted),
            "counts": {},
            "unusable": {},
            "handler": type(self._handler).__qualname__,
        }

    def settle(self, result: Any) -> None:
        """Run a coroutine to its end, on a loop of the replay's own thread."""
        if inspect.isawaitable(result):
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(_awaited(result))

    def _is_delivered(self, kind: str) -> bool:
        return kind in _STRICT if self._strict else not kind.startswith(self._withheld)

    def _handle_event(self, event: ReplayEvent) -> Any:
        return self._handler.handle_event(event) if self._is_delivered(event.type) else None

    def _handle_state_event(self, event: ReplayEvent) -> None:
        if not event.type.startswith(("SCORING", "REGIME", "RISK")) or not self._is_delivered(event.type):
            return
        symbols = self._feed.session.manifest.symbols if event.symbol is None else [event.symbol]
        for symbol in symbols:
            self.settle(
                self._handler.handle_event(
                    StateEvent(
                        timestamp=event.timestamp,
                        symbol=symbol,
                        # The states of the recorded system: a session holds its signals, not its states.
                        from_state="UNKNOWN",
                        to_state="UNKNOWN",
                        event_type=event.type,
                        reason="replay",
                        extra=dict(event.payload),
                    )
                )
            )

    def _digest(self, emitted: int) -> str:
        """Hash the events that were played: the only output that every handler has."""
        found = hashlib.sha256(self._mode)
        for rows in self._feed.frame.head(emitted).iter_slices(_HASH_ROWS):
            found.update(rows["timestamp"].dt.timestamp("ns").to_numpy().astype("<i8").tobytes())
            for column in ("type", "symbol", "payload"):
                found.update(orjson.dumps(rows[column].to_list()))
        return found.hexdigest()


async def _awaited(result: Any) -> Any:
    return await result


def check_inject_mode(inject_mode: str) -> str:
    """Return the inject mode; raises ConfigError for any other value."""
    if inject_mode not in _INJECT_MODES:
        hint = did_you_mean(str(inject_mode), _INJECT_MODES)
        raise ConfigError(
            f'inject_mode: expected "SCORING_ONLY" or "FULL_DECISION", found {inject_mode!r}.{hint}',
            field="inject_mode",
        )
    return inject_mode
