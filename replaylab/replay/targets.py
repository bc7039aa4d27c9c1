"""What a replay drives: the reference trading system, or any object with ``handle_event``."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import orjson

from replaylab.errors import ConfigError, ReplayError, did_you_mean
from replaylab.params import Settings, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent
from replaylab.replay.feed import EventFeed
from replaylab.replay.recorder import RunRecorder
from replaylab.trading import TradingSystem, resolve_prices

__all__ = ["HandlerTarget", "SystemTarget", "Target", "check_inject_mode", "price_sources"]

_INJECT_MODES = ("SCORING_ONLY", "FULL_DECISION")
_HASH_ROWS = 65_536
OnEvent = Callable[[int, int, str, str | None, dict[str, Any]], None]


class Target(Protocol):
    """What the player needs of whatever it plays to: one of two ways to be given an event, and a beginning and end."""

    on_event: OnEvent | None  # index, ns since 1970, type, symbol, payload
    handle: Callable[[ReplayEvent], Any] | None

    def settle(self, result: Any) -> None:
        """Take what ``handle`` returned, where that is not None."""

    def begin(self, *, rewinding: bool = False) -> None:
        """Start from nothing but the session's initial state; ``rewinding`` where what follows must be identical."""

    def finish(self) -> None:
        """Take note that the session's last event was played."""

    def flush(self) -> None:
        """Write what was recorded."""

    def close(self) -> None:
        """Let go of everything; called once, whatever happened."""

    def report(self, emitted: int) -> dict[str, Any]:
        """Return digest, counts and unusable events for ``run.json``, after ``emitted`` events."""


class SystemTarget:
    """The reference trading system in SIM mode, recording into the run's folder."""

    on_event: OnEvent | None = None
    handle: Callable[[ReplayEvent], Any] | None = None

    def __init__(
        self,
        run_root: DataRoot,
        feed: EventFeed,
        params: TradingParams,
        scoring: Any,
        inject_mode: str,
        sources: Mapping[str, str],
    ) -> None:
        self.recorder = RunRecorder(run_root)
        self._feed = feed
        self._params = params
        self._scoring = scoring
        self._inject_mode = inject_mode
        self._sources = dict(sources)
        self.system = self._new_system()
        self.on_event = self.system.on_event

    def begin(self, *, rewinding: bool = False) -> None:
        self.recorder.begin_again()
        self.system = self._new_system()
        self.on_event = self.system.on_event

    def settle(self, result: Any) -> None:
        """Nothing: the system returns nothing."""

    def finish(self) -> None:
        self.system.finish()

    def flush(self) -> None:
        self.recorder.flush()

    def close(self) -> None:
        self.recorder.flush()

    def report(self, emitted: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "digest": self.recorder.digest,
            "counts": dict(self.recorder.counts),
            "unusable": dict(self.system.unusable),
            "priceSources": self._sources,
            "params": self._params.to_dict(),
            "scoring": self._scoring.to_dict()
            if isinstance(self._scoring, Settings)
            else repr(self._scoring),
        }
        if self._inject_mode == "FULL_DECISION":
            agreement = self.system.agreement
            found["agreement"] = {
                "recorded": agreement.recorded,
                "identical": agreement.identical,
                "different": agreement.different,
                "missing": agreement.missing,
                "added": agreement.added,
                "maxDifference": agreement.max_difference,
                "differences": [asdict(difference) for difference in agreement.differences[:20]],
            }
        return found

    def _new_system(self) -> TradingSystem:
        # REPLAY whatever the configuration says: from here no order can reach a real market.
        return TradingSystem(
            self._params,
            recorder=self.recorder,
            scoring=self._scoring,
            inject_mode=self._inject_mode,
            price_sources=self._sources,
            initial_state=self._feed.session.initial_state,
            mode="SIM",
            run_mode="REPLAY",
        )


class HandlerTarget:
    """A user's own system: ``handle_event``, plain or async; ``reset`` and ``finish`` where it has them."""

    on_event: OnEvent | None = None
    handle: Callable[[ReplayEvent], Any] | None = None

    def __init__(self, handler: Any, feed: EventFeed, inject_mode: str) -> None:
        if not callable(getattr(handler, "handle_event", None)):
            raise ReplayError(
                f"a handler needs a method handle_event(event), {type(handler).__name__} has none"
            )
        self._handler = handler
        self._feed = feed
        self._recomputes = inject_mode == "FULL_DECISION"
        self._loop: asyncio.AbstractEventLoop | None = None
        self.handle = self._only_fed(handler.handle_event) if self._recomputes else handler.handle_event

    def begin(self, *, rewinding: bool = False) -> None:
        reset = getattr(self._handler, "reset", None)
        if callable(reset):
            self.settle(reset())
        elif rewinding:
            raise ReplayError(
                f"to go back, {type(self._handler).__name__} needs a method reset() that takes it to its beginning"
            )

    def finish(self) -> None:
        finish = getattr(self._handler, "finish", None)
        if callable(finish):
            self.settle(finish())

    def flush(self) -> None:
        """Nothing: what a user's system records is its own business."""

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

    @staticmethod
    def _only_fed(handle: Callable[[ReplayEvent], Any]) -> Callable[[ReplayEvent], Any]:
        """Keep recorded signals from a system that makes its own; recorded risk events reach it."""

        def fed(event: ReplayEvent) -> Any:
            return None if event.type.startswith(("SCORING", "REGIME")) else handle(event)

        return fed

    def _digest(self, emitted: int) -> str:
        """Hash the events that were played: there is nothing else that every handler emits."""
        found = hashlib.sha256(b"FULL_DECISION\n" if self._recomputes else b"SCORING_ONLY\n")
        for rows in self._feed.frame.head(emitted).iter_slices(_HASH_ROWS):
            found.update(rows["timestamp"].dt.timestamp("ns").to_numpy().astype("<i8").tobytes())
            for column in ("type", "symbol", "payload"):
                found.update(orjson.dumps(rows[column].to_list()))
        return found.hexdigest()


async def _awaited(result: Any) -> Any:
    return await result


def check_inject_mode(inject_mode: str) -> str:
    """Return the inject mode; raises ConfigError for another text."""
    if inject_mode not in _INJECT_MODES:
        hint = did_you_mean(str(inject_mode), _INJECT_MODES)
        raise ConfigError(
            f'inject_mode: expected "SCORING_ONLY" or "FULL_DECISION", found {inject_mode!r}.{hint}',
            field="inject_mode",
        )
    return inject_mode


def price_sources(feed: EventFeed, price_source: str | Mapping[str, str]) -> dict[str, str]:
    """Return each symbol's price source."""
    return resolve_prices(feed.frame, price_source, initial_state=feed.session.initial_state).sources
