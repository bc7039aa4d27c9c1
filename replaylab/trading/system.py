"""The trading system: one event in, decisions, fills and records out.

>>> system = TradingSystem(TradingParams(), price_sources={"BTCUSDT": "trade"})
>>> system.on_event(0, 0, "SCORING_UPDATE", "BTCUSDT", {"score": 0.8})
>>> system.on_event(1, 10, "MARKET_TRADE", "BTCUSDT", {"price": 100.0, "qty": 1.0, "side": "BUY"})
>>> system.on_event(2, 20, "MARKET_TRADE", "BTCUSDT", {"price": 99.0, "qty": 1.0, "side": "SELL"})
>>> system.finish()
>>> [(trade.side, trade.reason) for trade in system.trades]
[('LONG', 'STOP_LOSS')]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from heapq import heappop, heappush
from typing import Any, Literal

from replaylab.errors import ConfigError, did_you_mean
from replaylab.features import InitialState, risk_flag, usable_number, usable_price
from replaylab.params import ScoringParams, TradingParams
from replaylab.records import ReplayEvent
from replaylab.timestamps import parse_ns
from replaylab.trading.execution import EntryCounts, Execution
from replaylab.trading.exit_rules import ExitRule, FeatureRows
from replaylab.trading.orders import Journal, OrderRouter, Recorder
from replaylab.trading.positions import ClosedTrade
from replaylab.trading.prices import ResolvedPrices
from replaylab.trading.risk import RiskEngine, Snapshots
from replaylab.trading.rules import Rules
from replaylab.trading.scoring import Pipeline, ScoreModel, regime_payload, scoring_payload
from replaylab.trading.state import COOLDOWN, NEVER, SymbolState, SymbolStates

InjectMode = Literal["SCORING_ONLY", "FULL_DECISION"]


class TradingSystem:
    """The trading model of ``docs/model.md``, event by event.

    ``on_event`` takes events in session order: index in the session, ns since 1970, type, symbol, payload. ``finish``
    closes and cancels what is left. Then ``trades`` holds a ClosedTrade per position, in order of closing, ``counts``
    the entries that expired, were rejected or cancelled, and ``unusable`` by type the events whose payload lacked what
    the model needs.

    ``price_sources``: see ``resolve_prices``; with a plain mapping of symbols to "trade", "book" or "score" no symbol
    has a book. A symbol without a source has no prices. ``instruments``: symbol → ``{tickSize, lotSize,
    minNotionalUsd}``.
    ``recorder``: an object with the central logger's methods, or None to record nothing. In inject mode FULL_DECISION,
    ``scoring`` (ScoringParams, or a model with ``predict``) makes the signals from MARKET_* events and recorded ones
    are ignored. ``initial_state`` is the session's (``meta.json``).

    Raises ConfigError for a wrong argument, PriceError where a fill model lacks its data, SessionError for a malformed
    ``initial_state``, and InterlockError for mode LIVE while ``run_mode`` is REPLAY.
    """

    def __init__(
        self,
        params: TradingParams | None = None,
        *,
        recorder: Recorder | None = None,
        scoring: ScoringParams | ScoreModel | None = None,
        inject_mode: str = "SCORING_ONLY",
        price_sources: ResolvedPrices | Mapping[str, str] | None = None,
        instruments: Mapping[str, Mapping[str, Any]] | None = None,
        initial_state: InitialState | Mapping[str, Any] | None = None,
        mode: str = "SIM",
        run_mode: str = "LIVE",
        starting_balance_usd: float = 10_000.0,
        snapshot_interval_s: float = 10.0,
        rule: ExitRule | None = None,
        rule_features: FeatureRows | None = None,
    ) -> None:
        if inject_mode not in ("SCORING_ONLY", "FULL_DECISION"):
            hint = did_you_mean(str(inject_mode), ("SCORING_ONLY", "FULL_DECISION"))
            raise ConfigError(
                f'inject_mode: expected "SCORING_ONLY" or "FULL_DECISION", found {inject_mode!r}.{hint}',
                field="inject_mode",
            )
        self.params = params if params is not None else TradingParams()
        self.inject_mode = inject_mode
        self.unusable: dict[str, int] = {}
        resolved = (
            price_sources
            if isinstance(price_sources, ResolvedPrices)
            else ResolvedPrices.of(price_sources or {})
        )
        resolved.check_fills(self.params, instruments)
        initial = InitialState.read(initial_state)
        rules = self._rules = Rules(self.params)
        instruments = instruments or {}
        # What no event changes: copies share it.
        self._fixed = (self.params, rules, resolved, initial, instruments, scoring, rule, rule_features)
        self._pipeline = Pipeline(scoring) if inject_mode == "FULL_DECISION" else None
        self._journal = Journal(recorder)
        self._risk = RiskEngine(rules, starting_balance_usd, initial.account)
        self._router = router = OrderRouter(mode, run_mode=run_mode, journal=self._journal)
        self._snapshots = Snapshots(
            self._journal, rules, self._risk, router, round(snapshot_interval_s * 1e9)
        )
        self._execution = Execution(
            rules,
            self._risk,
            router,
            self._journal,
            self._snapshots,
            self._schedule,
            rule=rule,
            features=rule_features,
        )
        self.trades: list[ClosedTrade] = self._execution.trades
        self.counts: EntryCounts = self._execution.counts
        self._states = SymbolStates(rules, resolved, initial, instruments)
        self._begun = self._finished = False
        self._now = self._last = -NEVER
        self._index = -1
        self._handled = 0
        # Without a limit by day the risk engine has no flags of its own.
        limits = (self.params.max_daily_loss_usd, self.params.max_trades_per_day)
        self._logs_flags = recorder is not None and limits != (None, None)
        self._warming = False
        # What happens by time alone: (ns, number, action), the earliest first.
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._scheduled = 0
        self._carry(initial)
        # The risk engine's own flags as they were logged last.
        self._flags: tuple[bool, bool] | None = None
        full = self._pipeline is not None
        self._handlers: dict[str, Callable[[int, int, str, dict[str, Any]], None]] = {
            "SCORING_UPDATE": self._ignore if full else self._on_scoring,
            "REGIME_UPDATE": self._ignore if full else self._on_regime,
            "RISK_UPDATE": self._on_risk,
            "FUNDING": self._on_funding,
            "MARKET_TRADE": self._on_trade,
            "MARKET_BOOK": self._on_book,
        }

    # What goes in.

    def on_event(
        self,
        index: int,
        ts: int,
        type: str,  # noqa: A002
        symbol: str | None,
        payload: dict[str, Any],
    ) -> None:
        """Take one event of the session; of types that the model does not read only the time counts."""
        handler = self._handlers.get(type)
        if handler is None:
            self._unread(ts)
            return
        if ts != self._now:
            self._move_to(ts)
        self._index = index
        if isinstance(symbol, str) and symbol and isinstance(payload, dict):
            handler(index, ts, symbol, payload)
        elif type == "RISK_UPDATE" and symbol is None and isinstance(payload, dict):
            self._on_risk_for_all(index, ts, payload)
        else:
            self._skip(type)
        if self._logs_flags:
            self._log_flags(ts)

    def handle_event(self, event: ReplayEvent) -> None:
        """Take one event as a record; events are numbered in the order of these calls."""
        self.on_event(self._handled, parse_ns(event.timestamp), event.type, event.symbol, event.payload)
        self._handled += 1

    def finish(self) -> None:
        """End the session: close what is open, cancel what is pending, write the last snapshots. Once is enough."""
        if self._finished:
            return
        self._finished = True
        if self._pipeline is not None and self._pipeline.touched and not self._warming:
            self._compute_signals()
        self._run_due(max(self._now, self._last))
        self._execution.end(self._states.sorted(), self._now)
        if self._journal.on and self._now > -NEVER:
            self._snapshots.write(self._now, self._states.values())

    def warm_up(self, ts: int, kind: str, symbol: str, payload: dict[str, Any]) -> None:
        """Take a market event from before the session, in order: the scoring engine sees it, nothing is decided.

        The initial state is then that before the first of these events. Only in FULL_DECISION does it do anything.
        """
        pipeline = self._pipeline
        if pipeline is None or kind not in ("MARKET_TRADE", "MARKET_BOOK"):
            return
        self._move_to(ts, warming=True)
        self._warming = True
        state = self._states[symbol]
        if kind == "MARKET_BOOK":
            if state.book.apply(payload):
                state.book_ts = ts
                pipeline.scorer(symbol, state.regime, state.book).book(ts, state.book)
                if state.source == "book":
                    state.last_price = state.book.mid() or state.last_price
        elif payload.get("offMarket") is not True:
            price = usable_price(payload.get("price"))
            if price is not None:
                pipeline.scorer(symbol, state.regime, state.book).take_trade(ts, price, payload)
                if state.source == "trade":
                    state.last_price = price

    # What comes out.

    def views(self) -> list[dict[str, Any]]:
        """Return one plain dict per symbol, sorted by name: what a hotlist shows of it now."""
        return [state.view() for state in self._states.sorted()]

    @property
    def shared(self) -> tuple[Any, ...]:
        """What a copy of the system shares with it: all that no event changes, then the recorder and ``trades``."""
        return (*self._fixed, self._journal.recorder, self.trades)

    # Signals.

    def _on_scoring(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        if state.source == "score":
            price = usable_price(payload.get("price"))
            if price is not None:
                self._execution.on_price(state, index, ts, price, payload)
        score = usable_number(payload.get("score"))
        if score is None:
            self._skip("SCORING_UPDATE")
            return
        side = payload.get("side")
        if side == "LONG":
            score = abs(score)
        elif side == "SHORT":
            score = -abs(score)
        self._decide(state, index, ts, score, payload)

    def _decide(self, state: SymbolState, index: int, ts: int, score: float, payload: dict[str, Any]) -> None:
        """Let the state machine handle one score."""
        threshold = self.params.exit_threshold
        state.score = score
        before = state.leave_cooldown(ts)
        position = state.position
        reason: str | None
        if position is not None:
            reason = "position open" if position.closing_due is None else "position closing"
            if (
                threshold is not None
                and position.exit_reason is None
                and position.closing_due is None
                # A score at the entry's own price event came with that price, not after it.
                and index > position.entry_index
                and position.direction * score < threshold
            ):
                self._execution.submit_exit(state, position, ts, "SCORE_EXIT")
                reason = "score exit submitted"
        elif state.pending is not None:
            reason = "entry pending"
        elif state.carried:
            reason = "position carried"
        else:
            reason = self._entry_refusal(state, ts, score)
            if reason is None:
                entered = self._execution.submit_entry(state, ts, 1.0 if score > 0.0 else -1.0)
                reason = "no reference price" if entered is None else "entry submitted"
        self._log_signal(state, ts, before, "SCORING_UPDATE", reason, payload)

    def _entry_refusal(self, state: SymbolState, ts: int, score: float) -> str | None:
        """Return why a flat symbol with nothing pending does not enter on ``score``, or None if it does."""
        p = self.params
        # abs(score) ≥ threshold alone would let a score of 0 in at a threshold of 0.
        if score == 0.0 or abs(score) < p.entry_threshold:
            return "score below entry threshold"
        if state.state == COOLDOWN or ts < state.cooldown_end:
            return "cooling down"
        if not (p.allow_long if score > 0 else p.allow_short):
            return "direction not allowed"
        allowed = self._rules.allowed_regimes
        if allowed is not None and state.regime not in allowed:
            return "regime not allowed"
        if state.blocked:
            return "trading blocked"
        return self._risk.refusal(ts)

    def _on_regime(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        regime = payload.get("regime")
        if not isinstance(regime, str):
            self._skip("REGIME_UPDATE")
            return
        state = self._states[symbol]
        before = state.leave_cooldown(ts)
        state.regime = regime
        self._log_signal(state, ts, before, "REGIME_UPDATE", "regime", payload)

    def _on_risk_for_all(self, index: int, ts: int, payload: dict[str, Any]) -> None:
        blocked = risk_flag(payload, "tradingBlocked")
        if blocked is not None:
            self._states.blocked_by_default = blocked
        for name in sorted(self._states):
            self._on_risk(index, ts, name, payload)

    def _on_risk(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        before = state.leave_cooldown(ts)
        blocked = risk_flag(payload, "tradingBlocked")
        reason = "risk"
        if blocked is not None:
            if blocked != state.blocked:
                self._snapshots.changed()
            state.blocked = blocked
            reason = "trading blocked" if blocked else "trading allowed"
        position = state.position
        if (
            position is not None
            and position.exit_reason is None
            and position.closing_due is None
            and risk_flag(payload, "forceClose")
        ):
            self._execution.submit_exit(state, position, ts, "RISK_EXIT")
            reason = "risk exit submitted"
        self._log_signal(state, ts, before, "RISK_UPDATE", reason, payload)

    # Market data.

    def _on_trade(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        if payload.get("offMarket") is True:
            return
        price = usable_price(payload.get("price"))
        if price is None:
            self._skip("MARKET_TRADE")
            return
        state = self._states[symbol]
        if self._pipeline is not None:
            scorer = self._pipeline.scorer(symbol, state.regime, state.book)
            if not scorer.take_trade(ts, price, payload):
                self._skip("MARKET_TRADE")
        if state.source == "trade":
            self._execution.on_price(state, index, ts, price, payload)

    def _on_book(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        if not state.book.apply(payload):
            self._skip("MARKET_BOOK")
            return
        state.book_ts = ts
        if self._pipeline is not None:
            self._pipeline.scorer(symbol, state.regime, state.book).book(ts, state.book)
        if state.source == "book":
            mid = state.book.mid()
            if mid is not None:
                self._execution.on_price(state, index, ts, mid, payload)

    def _on_funding(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        rate = usable_number(payload.get("fundingRate"))
        if rate is None:
            self._skip("FUNDING")
            return
        state = self._states[symbol]
        if state.position is not None and index > state.position.entry_index:
            self._execution.settle_funding(state, ts, rate, usable_price(payload.get("markPrice")))

    # Deciding again: signals from market data.

    def _compute_signals(self) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            return
        ts = self._now
        for symbol, signal in pipeline.signals(ts):
            state = self._states[symbol]
            if signal.regime != state.regime:
                self._on_regime(self._index, ts, symbol, regime_payload(signal))
            payload = scoring_payload(signal, state.last_price)
            if state.source == "score":
                self._on_scoring(self._index, ts, symbol, payload)
            else:
                # After every market event of this time, as a recorded score would be in a session.
                self._decide(state, self._index + 1, ts, signal.score, payload)
            # At the time of the decision, as where the score is a recorded event.
            if self._logs_flags:
                self._log_flags(ts)

    def _ignore(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        """Pass over a recorded signal: the system makes its own."""

    # Time.

    def _unread(self, ts: int) -> None:
        """Take the time of an event that the model does not read: the session began before, or lasts until then."""
        if not self._begun:
            self._begin(ts)
        self._last = ts

    def _begin(self, ts: int) -> None:
        """Note the first event: the initial books are as old as it."""
        self._begun = True
        for state in self._states.values():
            if state.book.mid() is not None:
                state.book_ts = ts
        self._start(ts)

    def _start(self, ts: int) -> None:
        """Start the session at ``ts``, after a warm-up if there was one: cooldowns from before are over."""
        for state in self._states.values():
            state.leave_cooldown(ts)
        self._flags = self._risk.flags(ts)

    def _move_to(self, ts: int, *, warming: bool = False) -> None:
        """Let time pass: signals are computed once per distinct time, after all market events that bear it."""
        if ts == self._now:
            return
        pipeline = self._pipeline
        if pipeline is not None and pipeline.touched:
            if self._warming:
                for symbol, signal in pipeline.signals(self._now):
                    self._states[symbol].regime = signal.regime
            else:
                self._compute_signals()
        if not self._begun:
            self._begin(ts)
        elif self._warming and not warming:
            self._start(ts)
        self._warming = warming
        self._now = ts
        if self._due and self._due[0][0] <= ts:
            self._run_due(ts)

    def _schedule(self, ts: int, action: Callable[[int], None]) -> None:
        """Have ``action`` called with ``ts`` before the first event at or after that time."""
        heappush(self._due, (ts, self._scheduled, action))
        self._scheduled += 1

    def _run_due(self, ts: int) -> None:
        while self._due and self._due[0][0] <= ts:
            at, _, action = heappop(self._due)
            action(at)

    def _carry(self, initial: InitialState) -> None:
        """Count the carried positions as open until they close, and schedule their closes and realised parts."""
        for symbol, start in initial.symbols.items():
            if start.carried is None:
                continue
            self._risk.open_count += 1
            for part in start.carried.parts:
                self._schedule(part.ns, partial(self._risk.realised, pnl=part.realized_pnl))
            if start.carried.closed_ns is not None:
                self._schedule(start.carried.closed_ns, partial(self._end_carried, self._states[symbol]))

    def _end_carried(self, state: SymbolState, ts: int) -> None:
        state.carried = False
        state.cool_down(ts + self._rules.cooldown_ns, ts)
        self._risk.position_gone()

    # Records.

    def _skip(self, kind: str) -> None:
        self.unusable[kind] = self.unusable.get(kind, 0) + 1

    def _log_signal(
        self, state: SymbolState, ts: int, before: str, kind: str, reason: str, payload: dict[str, Any]
    ) -> None:
        if self._journal.on:
            self._journal.event(ts, state.symbol, (before, state.state), kind, reason, payload)
            if ts >= self._snapshots.due:
                self._snapshots.write(ts, self._states.values())

    def _log_flags(self, ts: int) -> None:
        """Log a RISK_UPDATE for every symbol when the risk engine's own flags have changed."""
        flags = self._risk.flags(ts)
        if flags == self._flags:
            return
        self._flags = flags
        self._snapshots.changed()
        for state in self._states.sorted():
            shown = {"tradingBlocked": state.blocked, "dailyLossLimitHit": flags[0], "maxTradesHit": flags[1]}
            states = (state.state, state.state)
            self._journal.event(ts, state.symbol, states, "RISK_UPDATE", "limits", {"riskFlags": shown})
