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
from typing import Any, Literal

from replaylab.errors import ConfigError, did_you_mean
from replaylab.features import risk_flag, usable_number, usable_price
from replaylab.params import ScoringParams, TradingParams
from replaylab.records import ReplayEvent, StateEvent
from replaylab.timestamps import parse_ns
from replaylab.trading.agreement import Agreement
from replaylab.trading.execution import Execution
from replaylab.trading.orders import OrderRouter, Recorder, Stamp
from replaylab.trading.positions import ClosedTrade
from replaylab.trading.risk import NEVER, RiskEngine, Snapshots
from replaylab.trading.rules import Rules
from replaylab.trading.scoring import Pipeline, ScoreModel, regime_payload, scoring_payload
from replaylab.trading.state import COOLDOWN, IDLE, PENDING_ENTRY, SymbolState, SymbolStates, view

InjectMode = Literal["SCORING_ONLY", "FULL_DECISION"]


class TradingSystem:
    """The trading model of ``docs/model.md``, event by event.

    ``on_event`` takes events in session order: index in the session, ns since 1970, type, symbol, payload. ``finish``
    closes and cancels what is left. Then ``trades`` holds a ClosedTrade per position, in order of closing, and
    ``unusable`` counts by type the events whose payload lacked what the model needs.

    ``price_sources``: symbol → "trade", "book" or "score" (see ``resolve_prices``); a symbol without one has
    no prices. ``recorder``: an object with the central logger's methods, or None to record nothing. In inject mode
    FULL_DECISION, ``scoring`` (ScoringParams, or a model with ``predict``) makes the signals from MARKET_* events, and
    ``agreement`` compares them with recorded ones. ``initial_state`` is the session's (``meta.json``).

    Raises ConfigError for a wrong argument, and InterlockError for mode LIVE while ``run_mode`` is REPLAY.
    """

    def __init__(
        self,
        params: TradingParams | None = None,
        *,
        recorder: Recorder | None = None,
        scoring: ScoringParams | ScoreModel | None = None,
        inject_mode: str = "SCORING_ONLY",
        price_sources: Mapping[str, str] | None = None,
        initial_state: Mapping[str, Any] | None = None,
        mode: str = "SIM",
        run_mode: str = "LIVE",
        starting_balance_usd: float = 10_000.0,
        snapshot_interval_s: float = 10.0,
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
        self.agreement = Agreement()
        self._pipeline = Pipeline(scoring) if inject_mode == "FULL_DECISION" else None
        self._rules = Rules(self.params)
        self._recorder = recorder
        self._stamp = Stamp()
        self._risk = RiskEngine(self._rules, starting_balance_usd)
        self._router = OrderRouter(mode, run_mode=run_mode, recorder=recorder, stamp=self._stamp)
        self._snapshots: Snapshots | None = None
        if recorder is not None:
            interval_ns = round(snapshot_interval_s * 1e9)
            self._snapshots = Snapshots(
                recorder, self._rules, self._risk, self._router, self._stamp, interval_ns
            )
        self._execution = Execution(
            self._rules, self._risk, self._router, recorder, self._stamp, self._snapshots
        )
        self.trades: list[ClosedTrade] = self._execution.trades
        self._finished = False
        self._now = -NEVER
        self._index = -1
        self._handled = 0
        self._warming = False
        self._states = SymbolStates(price_sources or {}, initial_state)
        full = self._pipeline is not None
        self._handlers: dict[str, Callable[[int, int, str, dict[str, Any]], None]] = {
            "SCORING_UPDATE": self._compare_scoring if full else self._on_scoring,
            "REGIME_UPDATE": self._compare_regime if full else self._on_regime,
            "RISK_UPDATE": self._on_risk,
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
        """Take one event of the session; types that the model does not read pass by."""
        handler = self._handlers.get(type)
        if handler is None:
            return
        if ts != self._now:
            self._move_to(ts)
        self._index = index
        if symbol is not None and isinstance(payload, dict):
            handler(index, ts, symbol, payload)
        elif type == "RISK_UPDATE" and isinstance(payload, dict):
            self._on_risk_for_all(index, ts, payload)
        else:
            self._skip(type)

    def handle_event(self, event: ReplayEvent) -> None:
        """Take one event as a record; events are numbered in the order of these calls."""
        self.on_event(self._handled, parse_ns(event.timestamp), event.type, event.symbol, event.payload)
        self._handled += 1

    def finish(self) -> None:
        """End the session: close what is open, cancel what is pending, write the last snapshots. Once is enough."""
        if self._finished:
            return
        self._finished = True
        if self._pipeline is not None:
            if self._pipeline.touched and not self._warming:
                self._compute_signals()
            self.agreement.close()
        self._execution.end(self._states.sorted(), self._now)
        if self._snapshots is not None and self._now > -NEVER:
            self._snapshots.write(self._now, self._states.values())

    # Starting in the middle: what a log shows to have stood before the first event.

    def warm_up(self, ts: int, kind: str, symbol: str, payload: dict[str, Any]) -> None:
        """Take a market event from before the session, in order: the scoring engine learns, nothing is decided.

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
                pipeline.scorer(symbol, state.regime, state.book).book(ts, state.book)
                if state.source == "book":
                    state.last_price = state.book.mid() or state.last_price
        elif payload.get("offMarket") is not True:
            price = usable_price(payload.get("price"))
            if price is not None:
                pipeline.scorer(symbol, state.regime, state.book).take_trade(ts, price, payload)
                if state.source == "trade":
                    state.last_price = price

    def hold(self, symbol: str, *, in_position: bool = True) -> None:
        """Keep a symbol from entering until ``release``; ``in_position`` counts it as open under the limits."""
        state = self._states[symbol]
        state.state = PENDING_ENTRY
        state.pending = 1.0
        state.pending_due = NEVER
        if in_position:
            self._risk.open_count += 1

    def release(self, symbol: str, ts: int, *, in_position: bool = True) -> None:
        """End a hold just before the events of ``ts``; a position that closed then is followed by its cooldown."""
        self._move_to(ts)
        state = self._states[symbol]
        state.pending = 0.0
        state.state = IDLE
        if in_position:
            self._risk.position_gone()
            state.cooldown_end = ts + self._rules.cooldown_ns
            if self._rules.cooldown_ns > 0:
                state.state = COOLDOWN

    # What comes out.

    def views(self) -> list[dict[str, Any]]:
        """Return one plain dict per symbol, sorted by name: what a hotlist shows of it now."""
        return [view(state) for state in self._states.sorted()]

    # Signals.

    def _on_scoring(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        if state.source == "score":
            price = usable_price(payload.get("price"))
            if price is not None:
                self._execution.on_price(state, index, ts, price)
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
        rules = self._rules
        state.score = score
        before = state.state
        if before == COOLDOWN and ts >= state.cooldown_end:
            state.state = IDLE
        position = state.position
        reason: str | None
        if position is not None:
            reason = "position open"
            if (
                rules.params.exit_threshold is not None
                and position.exit_reason is None
                # A score at the entry's own price event came with that price, not after it.
                and index > position.entry_index
                and position.direction * score < rules.params.exit_threshold
            ):
                self._execution.submit_exit(state, position, ts, "SCORE_EXIT")
                reason = "score exit submitted"
        elif state.pending != 0.0:
            reason = "entry pending"
        else:
            reason = _entry_refusal(rules, self._risk, state, ts, score)
            if reason is None:
                reason = "entry submitted"
                self._execution.submit_entry(state, ts, 1.0 if score > 0.0 else -1.0)
        if self._recorder is not None:
            self._log_signal(state, ts, before, "SCORING_UPDATE", reason, payload)

    def _on_regime(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        regime = payload.get("regime")
        if not isinstance(regime, str):
            self._skip("REGIME_UPDATE")
            return
        state = self._states[symbol]
        before = self._leave_cooldown(state, ts)
        state.regime = regime
        if self._recorder is not None:
            self._log_signal(state, ts, before, "REGIME_UPDATE", "regime", payload)

    def _on_risk_for_all(self, index: int, ts: int, payload: dict[str, Any]) -> None:
        blocked = risk_flag(payload, "tradingBlocked")
        if blocked is not None:
            self._states.blocked_by_default = blocked
        for name in sorted(self._states):
            self._on_risk(index, ts, name, payload)

    def _on_risk(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        before = self._leave_cooldown(state, ts)
        blocked = risk_flag(payload, "tradingBlocked")
        reason = "risk"
        if blocked is not None:
            if blocked != state.blocked and self._snapshots is not None:
                self._snapshots.changed()
            state.blocked = blocked
            reason = "trading blocked" if blocked else "trading allowed"
        position = state.position
        if position is not None and position.exit_reason is None and risk_flag(payload, "forceClose"):
            self._execution.submit_exit(state, position, ts, "RISK_EXIT")
            reason = "risk exit submitted"
        if self._recorder is not None:
            self._log_signal(state, ts, before, "RISK_UPDATE", reason, payload)

    # Market data.

    def _on_trade(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        if self._pipeline is None and state.source != "trade":
            return
        if payload.get("offMarket") is True:
            return
        price = usable_price(payload.get("price"))
        if price is None:
            self._skip("MARKET_TRADE")
            return
        if self._pipeline is not None:
            scorer = self._pipeline.scorer(symbol, state.regime, state.book)
            if not scorer.take_trade(ts, price, payload):
                self._skip("MARKET_TRADE")
        if state.source == "trade":
            self._execution.on_price(state, index, ts, price)

    def _on_book(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        state = self._states[symbol]
        if self._pipeline is None and state.source != "book":
            return
        if not state.book.apply(payload):
            self._skip("MARKET_BOOK")
            return
        if self._pipeline is not None:
            self._pipeline.scorer(symbol, state.regime, state.book).book(ts, state.book)
        if state.source == "book":
            mid = state.book.mid()
            if mid is not None:
                self._execution.on_price(state, index, ts, mid)

    # Deciding again: signals from market data.

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
        self._warming = warming
        self._now = ts

    def _compute_signals(self) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            return
        ts = self._now
        for symbol, signal in pipeline.signals(ts):
            state = self._states[symbol]
            if signal.regime != state.regime:
                self.agreement.recompute(ts, "REGIME_UPDATE", state.symbol, signal.regime)
                self._on_regime(self._index, ts, state.symbol, regime_payload(signal))
            self.agreement.recompute(ts, "SCORING_UPDATE", state.symbol, signal.score)
            payload = scoring_payload(signal, state.last_price)
            if state.source == "score":
                self._on_scoring(self._index, ts, state.symbol, payload)
            else:
                # After every market event of this time, as a recorded score would stand in a session.
                self._decide(state, self._index + 1, ts, signal.score, payload)

    def _compare_scoring(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        self.agreement.record(ts, "SCORING_UPDATE", symbol, payload)

    def _compare_regime(self, index: int, ts: int, symbol: str, payload: dict[str, Any]) -> None:
        self.agreement.record(ts, "REGIME_UPDATE", symbol, payload)

    # Helpers.

    def _leave_cooldown(self, state: SymbolState, ts: int) -> str:
        before = state.state
        if before == COOLDOWN and ts >= state.cooldown_end:
            state.state = IDLE
        return before

    def _skip(self, kind: str) -> None:
        self.unusable[kind] = self.unusable.get(kind, 0) + 1

    def _log_signal(
        self, state: SymbolState, ts: int, before: str, kind: str, reason: str, payload: dict[str, Any]
    ) -> None:
        recorder, snapshots = self._recorder, self._snapshots
        if recorder is None or snapshots is None:
            return
        recorder.log_state_event(
            state.symbol,
            StateEvent(
                timestamp=self._stamp(ts),
                symbol=state.symbol,
                from_state=before,
                to_state=state.state,
                event_type=kind,
                reason=reason,
                extra=payload,
            ),
        )
        if ts >= snapshots.due:
            snapshots.write(ts, self._states.values())


def _entry_refusal(rules: Rules, risk: RiskEngine, symbol: SymbolState, ts: int, score: float) -> str | None:
    """Return why a flat symbol with nothing pending does not enter on ``score``, or None if it does."""
    # abs(score) ≥ threshold alone would let a score of 0 in at a threshold of 0.
    if score == 0.0 or abs(score) < rules.params.entry_threshold:
        return "score below entry threshold"
    # The state alone would do, did no session go back in time after the cooldown was left.
    if symbol.state == COOLDOWN or ts < symbol.cooldown_end:
        return "cooling down"
    if not (rules.params.allow_long if score > 0 else rules.params.allow_short):
        return "direction not allowed"
    if rules.allowed_regimes is not None and symbol.regime not in rules.allowed_regimes:
        return "regime not allowed"
    if symbol.blocked:
        return "trading blocked"
    return risk.refusal(ts)
