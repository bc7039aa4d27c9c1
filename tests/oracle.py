"""The trading model of docs/model.md as slowly and obviously as it can be said: the judge of the two fast ones.

It shares no code with the package but the names of the parameters. ``events`` is a list of
``(ts, type, symbol, payload)``; payloads are parsed JSON. ``run(...).trades`` is a list of dicts,
``run(...).seen`` names every rule that made a difference, so that tests can show what they reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

DAY = 86_400_000_000_000
Event = tuple[int, str, "str | None", dict[str, Any]]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_price(value: Any) -> bool:
    return is_number(value) and value > 0


class Book:
    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self.bids: dict[float, float] = {}
        self.asks: dict[float, float] = {}
        if start:
            self.apply({"kind": "snapshot", **start})

    def apply(self, payload: dict[str, Any]) -> bool:
        """Apply a MARKET_BOOK payload; False (and no change) when it is unusable."""
        kind = payload.get("kind", "snapshot")
        if kind not in ("snapshot", "delta"):
            return False
        for side in ("bids", "asks"):
            levels = payload.get(side)
            if not isinstance(levels, list):
                return False
            for level in levels:
                if not isinstance(level, list) or len(level) != 2:
                    return False
                if not is_price(level[0]) or not is_number(level[1]) or level[1] < 0:
                    return False
        if kind == "snapshot":
            self.bids, self.asks = {}, {}
        for mine, levels in ((self.bids, payload["bids"]), (self.asks, payload["asks"])):
            for price, qty in levels:
                if qty == 0:
                    mine.pop(float(price), None)
                else:
                    mine[float(price)] = float(qty)
        return True

    def mid(self) -> float | None:
        return (max(self.bids) + min(self.asks)) / 2 if self.bids and self.asks else None


def price_events(events: list[Event], initial: dict[str, Any]) -> dict[str, dict[str, dict[int, float]]]:
    """Per symbol and source: the price at each index that has a usable price event of that source."""
    books = {name: Book(state.get("book")) for name, state in initial.items()}
    found: dict[str, dict[str, dict[int, float]]] = {}
    for i, (_, kind, symbol, payload) in enumerate(events):
        if symbol is None:
            continue
        mine = found.setdefault(symbol, {"trade": {}, "book": {}, "score": {}})
        if kind == "MARKET_TRADE" and is_price(payload.get("price")) and payload.get("offMarket") is not True:
            mine["trade"][i] = float(payload["price"])
        elif kind == "MARKET_BOOK":
            book = books.setdefault(symbol, Book())
            if book.apply(payload):
                mid = book.mid()
                if mid is not None:
                    mine["book"][i] = mid
        elif kind == "SCORING_UPDATE" and is_price(payload.get("price")):
            mine["score"][i] = float(payload["price"])
    return found


def choose_prices(
    events: list[Event], initial: dict[str, Any], price_source: str | dict[str, str]
) -> dict[str, dict[int, float]]:
    chosen = {}
    for symbol, sources in price_events(events, initial).items():
        wish = price_source if isinstance(price_source, str) else price_source.get(symbol, "auto")
        if wish == "auto":
            wish = next((name for name in ("trade", "book", "score") if sources[name]), "trade")
        chosen[symbol] = sources[wish]
    return chosen


def signed_score(payload: dict[str, Any]) -> float | None:
    score = payload.get("score")
    if not is_number(score):
        return None
    if payload.get("side") == "LONG":
        return abs(float(score))
    if payload.get("side") == "SHORT":
        return -abs(float(score))
    return float(score)


def risk_flag(payload: dict[str, Any], name: str) -> bool | None:
    if isinstance(payload.get(name), bool):
        return bool(payload[name])
    nested = payload.get("riskFlags")
    if isinstance(nested, dict) and isinstance(nested.get(name), bool):
        return bool(nested[name])
    return None


@dataclass
class Position:
    dir: int
    entry_index: int
    entry_ts: int
    entry: float
    qty: float
    left: float
    stop: float
    tp1: float
    tp2: float
    best: float
    stop_reason: str = "STOP_LOSS"
    tp1_filled: bool = False
    fees: float = 0.0
    gross: float = 0.0
    parts: list[tuple[float, float]] = field(default_factory=list)
    mfe: float = 0.0
    mae: float = 0.0
    exit_pending: tuple[int, int, str] | None = None  # decided at index, due from ts, reason


@dataclass
class Symbol:
    regime: str | None = None
    blocked: bool = False
    pending: tuple[int, int, int] | None = None  # decided at index, due from ts, dir
    position: Position | None = None
    cooldown_end: int | None = None


class Model:
    def __init__(self, params: Any, initial: dict[str, Any]) -> None:
        self.p = params
        self.symbols: dict[str, Symbol] = {}
        self.blocked_for_new = False
        self.day_pnl: dict[int, float] = {}
        self.day_entries: dict[int, int] = {}
        self.days_lost: set[int] = set()
        self.trades: list[dict[str, Any]] = []
        self.seen: set[str] = set()
        for name, state in initial.items():
            self.symbols[name] = Symbol(state.get("regime"), bool(state.get("tradingBlocked", False)))

    def symbol(self, name: str) -> Symbol:
        if name not in self.symbols:
            self.symbols[name] = Symbol(blocked=self.blocked_for_new)
        return self.symbols[name]

    def ns(self, value: float, unit: float) -> int:
        return round(value * unit)

    def realise(self, ts: int, amount: float) -> None:
        day = ts // DAY
        self.day_pnl[day] = self.day_pnl.get(day, 0.0) + amount
        limit = self.p.max_daily_loss_usd
        if limit is not None and self.day_pnl[day] <= -limit:
            self.days_lost.add(day)
        elif day in self.days_lost:
            self.seen.add("daily loss recovered")

    # -- price events ------------------------------------------------------------------------------------------

    def on_price(self, i: int, ts: int, name: str, price: float) -> None:
        symbol = self.symbol(name)
        if symbol.position is not None:
            self.manage(i, ts, name, symbol, symbol.position, price)
        elif symbol.pending is not None:
            decided, due, direction = symbol.pending
            if i > decided and ts >= due:
                self.fill_entry(i, ts, symbol, direction, price)
            else:
                self.seen.add("entry latency")

    def fill_entry(self, i: int, ts: int, symbol: Symbol, d: int, price: float) -> None:
        p = self.p
        entry = price * (1 + d * p.print_slippage_bps / 10000)
        qty = p.notional_usd / entry
        if p.risk_per_trade_usd is not None:
            qty = cap = p.leverage * p.notional_usd / entry
            if p.sl_pct > 0:
                qty = min(p.risk_per_trade_usd / (entry * p.sl_pct / 100), cap)
            self.seen.add("risk size" if qty < cap else "risk size capped")
        position = Position(
            dir=d,
            entry_index=i,
            entry_ts=ts,
            entry=entry,
            qty=qty,
            left=qty,
            stop=entry * (1 - d * p.sl_pct / 100),
            tp1=entry * (1 + d * p.tp1_pct / 100),
            tp2=entry * (1 + d * p.tp2_pct / 100),
            best=price,
        )
        fee = entry * qty * p.taker_fee_bps / 10000
        position.fees += fee
        symbol.pending, symbol.position = None, position
        self.realise(ts, -fee)
        self.excursion(position, price)
        self.trail(position, price)

    def excursion(self, position: Position, price: float) -> None:
        value = position.dir * (price - position.entry) * position.qty
        position.mfe = max(position.mfe, value)
        position.mae = min(position.mae, value)

    def trail(self, position: Position, price: float) -> None:
        p, d = self.p, position.dir
        position.best = max(position.best, price) if d > 0 else min(position.best, price)
        if p.trailing_activation_pct is None:
            return
        if d * (position.best / position.entry - 1) * 100 >= p.trailing_activation_pct:
            stop = position.best * (1 - d * p.trailing_distance_pct / 100)
            if d * (stop - position.stop) > 0:
                position.stop, position.stop_reason = stop, "TRAILING"

    def manage(self, i: int, ts: int, name: str, symbol: Symbol, position: Position, price: float) -> None:
        p, d = self.p, position.dir
        self.excursion(position, price)
        market = price * (1 - d * p.print_slippage_bps / 10000)
        if d * (price - position.stop) <= 0:
            self.fill_exit(i, ts, position, position.left, market, p.taker_fee_bps)
            return self.close(i, ts, name, symbol, position, position.stop_reason)
        if p.tp1_fraction > 0 and not position.tp1_filled and d * (price - position.tp1) >= 0:
            position.tp1_filled = True
            part = p.tp1_fraction * position.qty
            self.fill_exit(i, ts, position, part, position.tp1, p.maker_fee_bps)
            if p.tp1_fraction == 1:
                return self.close(i, ts, name, symbol, position, "TP1")
            if p.break_even_offset_pct is not None:
                stop = position.entry * (1 + d * p.break_even_offset_pct / 100)
                if d * (stop - position.stop) > 0:
                    position.stop, position.stop_reason = stop, "BREAK_EVEN"
                else:
                    self.seen.add("break-even not tighter")
            if d * (price - position.tp2) >= 0:
                self.seen.add("TP1 and TP2 in one jump")
        if d * (price - position.tp2) >= 0:
            self.fill_exit(i, ts, position, position.left, position.tp2, p.maker_fee_bps)
            return self.close(i, ts, name, symbol, position, "TP2")
        if p.max_hold_s is not None and ts - position.entry_ts >= self.ns(p.max_hold_s, 1e9):
            self.fill_exit(i, ts, position, position.left, market, p.taker_fee_bps)
            return self.close(i, ts, name, symbol, position, "TIMEOUT")
        if position.exit_pending is not None:
            decided, due, reason = position.exit_pending
            if i > decided and ts >= due:
                self.fill_exit(i, ts, position, position.left, market, p.taker_fee_bps)
                return self.close(i, ts, name, symbol, position, reason)
            self.seen.add("exit latency")
        self.trail(position, price)
        return None

    def fill_exit(self, i: int, ts: int, position: Position, qty: float, price: float, bps: float) -> None:
        fee = price * qty * bps / 10000
        gross = position.dir * (price - position.entry) * qty
        position.left -= qty
        position.fees += fee
        position.gross += gross
        position.parts.append((price, qty))
        self.realise(ts, gross - fee)

    def close(self, i: int, ts: int, name: str, symbol: Symbol, position: Position, reason: str) -> None:
        symbol.position = None
        symbol.cooldown_end = ts + self.ns(self.p.cooldown_s, 1e9)
        self.record(i, ts, name, position, reason)

    def record(self, i: int, ts: int, name: str, position: Position, reason: str) -> None:
        parts = position.parts
        close_price = parts[0][0]
        if len(parts) > 1:
            close_price = sum(price * qty for price, qty in parts) / sum(qty for _, qty in parts)
        self.trades.append(
            {
                "symbol": name,
                "side": "LONG" if position.dir > 0 else "SHORT",
                "entry_index": position.entry_index,
                "exit_index": i,
                "entry_ts": position.entry_ts,
                "exit_ts": ts,
                "entry_price": position.entry,
                "close_price": close_price,
                "qty": position.qty,
                "leverage": self.p.leverage,
                "reason": reason,
                "tp1_filled": position.tp1_filled,
                "fees": position.fees,
                "realized_pnl": position.gross - position.fees,
                "mfe": position.mfe,
                "mae": position.mae,
                "duration_seconds": (ts - position.entry_ts) / 1e9,
            }
        )

    # -- signals -----------------------------------------------------------------------------------------------

    def on_score(self, i: int, ts: int, name: str, score: float) -> None:
        p, symbol = self.p, self.symbol(name)
        latency = self.ns(p.latency_ms, 1e6)
        position = symbol.position
        if position is not None:
            wanted = p.exit_threshold is not None and position.dir * score < p.exit_threshold
            if wanted and i > position.entry_index and position.exit_pending is None:
                position.exit_pending = (i, ts + latency, "SCORE_EXIT")
            return
        if symbol.pending is not None or score == 0 or abs(score) < p.entry_threshold:
            return
        if symbol.cooldown_end is not None and ts < symbol.cooldown_end:
            self.seen.add("cooldown")
            return
        d = 1 if score > 0 else -1
        if not (p.allow_long if d > 0 else p.allow_short):
            self.seen.add("direction")
            return
        if p.allowed_regimes is not None and symbol.regime not in p.allowed_regimes:
            self.seen.add("regime")
            return
        if symbol.blocked:
            self.seen.add("blocked")
            return
        day = ts // DAY
        others = [s for n, s in self.symbols.items() if n != name]
        open_now = sum(s.position is not None or s.pending is not None for s in others)
        if p.max_open_positions is not None and open_now >= p.max_open_positions:
            self.seen.add("max_open_positions")
            return
        if p.max_trades_per_day is not None and self.day_entries.get(day, 0) >= p.max_trades_per_day:
            self.seen.add("max_trades_per_day")
            return
        if day in self.days_lost:
            self.seen.add("max_daily_loss_usd")
            return
        if any(d < day for d in self.days_lost):
            self.seen.add("entry on the day after a lost day")
        if open_now:
            self.seen.add("open in two symbols")
        self.day_entries[day] = self.day_entries.get(day, 0) + 1
        symbol.pending = (i, ts + latency, d)

    def on_risk(self, i: int, ts: int, name: str | None, payload: dict[str, Any]) -> None:
        blocked, force = risk_flag(payload, "tradingBlocked"), risk_flag(payload, "forceClose")
        if name is None and blocked is not None:
            self.blocked_for_new = blocked
            self.seen.add("risk for every symbol")
        for symbol in list(self.symbols.values()) if name is None else [self.symbol(name)]:
            if blocked is not None:
                symbol.blocked = blocked
            if force and symbol.position is not None and symbol.position.exit_pending is None:
                due = ts + self.ns(self.p.latency_ms, 1e6)
                symbol.position.exit_pending = (i, due, "RISK_EXIT")
            if force and symbol.pending is not None:
                self.seen.add("force close while pending")

    def finish(self, last: dict[str, tuple[int, int, float]]) -> None:
        for name, symbol in self.symbols.items():
            if symbol.position is not None:
                i, ts, price = last[name]
                position = symbol.position
                market = price * (1 - position.dir * self.p.print_slippage_bps / 10000)
                self.fill_exit(i, ts, position, position.left, market, self.p.taker_fee_bps)
                self.record(i, ts, name, position, "SESSION_END")
                if i == position.entry_index:
                    self.seen.add("closed at its own entry")
            if symbol.pending is not None:
                self.seen.add("entry never filled")


def run(
    events: list[Event],
    params: Any,
    price_source: str | dict[str, str] = "auto",
    initial_state: dict[str, Any] | None = None,
) -> Model:
    """Return the finished model: ``.trades`` sorted by exit index, ``.seen``."""
    initial = (initial_state or {}).get("symbols", {})
    prices = choose_prices(events, initial, price_source)
    model = Model(params, initial)
    last: dict[str, tuple[int, int, float]] = {}
    for i, (ts, kind, name, payload) in enumerate(events):
        if name is not None and i in prices[name]:
            last[name] = (i, ts, prices[name][i])
            model.on_price(i, ts, name, prices[name][i])
        if kind == "SCORING_UPDATE" and name is not None:
            score = signed_score(payload)
            if score is not None:
                model.on_score(i, ts, name, score)
        elif kind == "REGIME_UPDATE" and name is not None and isinstance(payload.get("regime"), str):
            model.symbol(name).regime = payload["regime"]
        elif kind == "RISK_UPDATE":
            model.on_risk(i, ts, name, payload)
    model.finish(last)
    model.trades.sort(key=lambda trade: (trade["exit_index"], trade["entry_index"]))
    model.seen |= {trade["reason"] for trade in model.trades}
    return model
