"""What the trading system hands its records to: the method set of the central logger."""

from __future__ import annotations

from typing import Any, Protocol

from replaylab.records import (
    ExecutionSnapshot,
    OrderLogRecord,
    RiskSnapshot,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
)
from replaylab.timestamps import iso

__all__ = ["Recorder", "Stamp"]


class Recorder(Protocol):
    """Anything with these methods; ``replaylab.logging.Logger`` is one. What they return is not looked at."""

    def log_state_event(self, symbol: str, event: StateEvent) -> Any: ...

    def log_trade(self, record: TradeLogRecord) -> Any: ...

    def log_order(self, record: OrderLogRecord) -> Any: ...

    def write_risk_snapshot(self, snapshot: RiskSnapshot) -> Any: ...

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot) -> Any: ...

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot) -> Any: ...


class Stamp:
    """ISO text of an event's time. Many records share one time, so the last text is kept."""

    __slots__ = ("_text", "_ts")

    def __init__(self) -> None:
        self._ts = -1
        self._text = ""

    def __call__(self, ts: int) -> str:
        if ts != self._ts:
            self._ts = ts
            self._text = iso(ts)
        return self._text
