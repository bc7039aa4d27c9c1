"""Records of the live logs and snapshots (what the trading system says about itself), of replays and of clean-up."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType, field

from replaylab.errors import RecordError
from replaylab.records.codec import QuickForm, Record
from replaylab.timestamps import is_day, iso, now_ns

Mode = Literal["SIM", "DRY_RUN", "LIVE"]
PositionSide = Literal["LONG", "SHORT"]
ServiceStatus = Literal["OK", "WARN", "ERROR"]


class _StateEventForm(msgspec.Struct, kw_only=True, rename="camel", gc=False):
    timestamp: datetime
    symbol: str
    from_state: str
    to_state: str
    event_type: str
    reason: str
    extra: msgspec.Raw


class StateEvent(Record, kw_only=True):
    """A signal that the state machine handled, or a change of its state; one line of ``events/<symbol>.jsonl``.

    >>> event = StateEvent(timestamp="2025-11-18T10:00:00.000Z", symbol="BTCUSDT", from_state="IDLE",
    ...                    to_state="IDLE", event_type="SCORING_UPDATE", reason="score below threshold",
    ...                    extra={"score": 0.41})
    """

    times = ("timestamp",)
    timestamp: str
    symbol: str
    from_state: str
    to_state: str
    event_type: str
    reason: str
    extra: dict[str, Any]

    quick_form = QuickForm(_StateEventForm, "extra")


class TradeLogRecord(Record, kw_only=True):
    """A closed trade; one line of ``trades_log/day-YYYY-MM-DD.jsonl``.

    Prices and PnL in quote currency, ``qty`` in base currency, ``mfe`` and ``mae`` in quote currency on the full
    quantity. The fields from ``entry_timestamp`` on are replaylab's additions, and optional: ``funding`` and ``thin``
    are left out where they are 0 and false, ``gap_pnl`` where the reason is not DATA_GAP, ``strategy``
    is that of an imported log.
    """

    times = ("timestamp", "entry_timestamp")
    null_when_imported = frozenset({"leverage", "mfe", "mae", "duration_seconds"})
    timestamp: str
    date_key: str
    symbol: str
    side: PositionSide
    entry_price: float
    close_price: float
    qty: float
    leverage: float
    realized_pnl: float
    mfe: float
    mae: float
    duration_seconds: float
    mode: Mode
    entry_timestamp: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    tp1_filled: bool | UnsetType = UNSET
    fees: float | UnsetType = UNSET
    funding: float | UnsetType = UNSET
    thin: bool | UnsetType = UNSET
    gap_pnl: float | UnsetType = UNSET
    strategy: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if not is_day(self.date_key):
            raise RecordError(
                f'dateKey: expected a day as YYYY-MM-DD, found "{self.date_key}"', field="dateKey"
            )


class OrderLogRecord(Record, kw_only=True):
    """An order as it was sent or came back; one line of ``orders/day-YYYY-MM-DD.jsonl``."""

    times = ("timestamp",)
    null_when_imported = frozenset({"time_in_force", "notional_usd"})
    timestamp: str
    client_order_id: str
    exchange_order_id: str | None
    symbol: str
    side: Literal["BUY", "SELL"]
    type: str
    time_in_force: str
    price: float | None
    trigger_price: float | None
    qty: float
    reduce_only: bool
    status: str
    filled_qty: float
    avg_fill_price: float | None
    notional_usd: float
    mode: Mode
    source: str
    last_error: str | None
    strategy: str | UnsetType = UNSET


class AccountState(Record, kw_only=True):
    """The account at one moment, in USD. Other fields are accepted and kept."""

    equity_usd: float = 0.0
    balance_usd: float = 0.0
    used_margin_usd: float = 0.0
    open_positions: int = 0


class DailyRiskStats(Record, kw_only=True):
    """One UTC day's trading so far. ``max_drawdown_usd`` is ≤ 0. Other fields are accepted and kept."""

    date_key: str = ""
    realized_pnl: float = 0.0
    trades_count: int = 0
    wins: int = 0
    losses: int = 0
    max_drawdown_usd: float = 0.0


class RiskFlags(Record, kw_only=True):
    """What the risk engine forbids or demands. Other fields are accepted and kept."""

    trading_blocked: bool = False
    force_close: bool = False
    daily_loss_limit_hit: bool = False
    max_trades_hit: bool = False
    reason: str | None = None


class RiskSnapshot(Record, kw_only=True):
    """``system/risk_snapshot.json``."""

    times = ("timestamp",)
    timestamp: str
    account: AccountState
    daily_stats: DailyRiskStats
    risk_flags: RiskFlags


class TpslSnapshot(Record, kw_only=True):
    """``system/tpsl_snapshot.json``: the levels of the position that changed last. Prices in quote currency."""

    times = ("timestamp",)
    timestamp: str
    symbol: str
    side: PositionSide
    entry_price: float
    tp1_price: float
    tp2_price: float
    stop_loss_price: float
    break_even_price: float
    trailing_active: bool
    trailing_distance_pct: float
    pump_override_applied: bool
    spoofing_override_applied: bool
    volatility_override_applied: bool


class ExecutionSnapshot(Record, kw_only=True):
    """``system/execution_snapshot.json``."""

    times = ("timestamp", "last_error_at")
    timestamp: str
    mode: Mode
    safe_mode: bool
    pending_orders_count: int | float
    active_orders_count: int | float
    last_error_at: str | None
    last_error_message: str | None

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        # A number in the specification: other programs may write 1.0.
        for name, count in (
            ("pendingOrdersCount", self.pending_orders_count),
            ("activeOrdersCount", self.active_orders_count),
        ):
            if count != int(count):
                raise ValueError(f"{name}: expected a whole number, found {count}")


class ServiceHealth(Record, kw_only=True):
    """The health of one service."""

    times = ("last_update_at",)
    status: ServiceStatus
    last_update_at: str
    message: str | None


class HealthSnapshot(Record, kw_only=True):
    """``system/health_snapshot.json``: services by name."""

    times = ("timestamp",)
    timestamp: str
    services: dict[str, ServiceHealth]


class ReplayEvent(Record, kw_only=True):
    """One event of a session; one line of ``replay/sessions/<sessionId>/events.jsonl``.

    ``timestamp`` is the original one. ``symbol`` is None for what concerns every symbol.
    """

    times = ("timestamp",)
    timestamp: str
    type: str
    symbol: str | None = None
    payload: dict[str, Any]


class SourceDateRange(Record, kw_only=True, rename={"from_": "from"}):
    """The half-open range of a session: from ≤ timestamp < to."""

    times = ("from_", "to")
    from_: str
    to: str


class ReplayManifest(Record, kw_only=True):
    """``replay/sessions/<sessionId>/manifest.json``: what a session holds."""

    times = ("created_at",)
    session_id: str
    created_at: str
    created_by: Literal["MANUAL", "AUTO", "TEST"]
    source_date_range: SourceDateRange
    symbols: list[str]
    event_types: list[str]
    speed_factor: float
    notes: str | None
    total_events: int | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if not self.speed_factor > 0:
            raise RecordError(
                f"speedFactor: expected a number above 0, found {self.speed_factor}", field="speedFactor"
            )


class Lateness(Record, kw_only=True):
    """How late events were emitted, in milliseconds: actual minus due time."""

    p50: float
    p99: float
    max: float


class ReplayStatus(Record, kw_only=True):
    """What a replay is doing. The fields from ``speed_factor`` on are replaylab's additions.

    ``rejects``: lines of the session's events that could not be read, and are not played. ``rewinds``: how often the
    run went back. ``seek_ready``: the last index that a seek reaches from a checkpoint, in a moment; None where a seek
    back plays from the start. ``bookmarks``: names of events of the session, with their indices; the reader of the
    status adds them.
    """

    session_id: str | None = None
    running: bool = False
    current_event_index: int = 0
    total_events: int = 0
    started_at: str | None = None
    last_event_timestamp: str | None = None
    speed_factor: float | None = None
    paused: bool = False
    inject_mode: str | None = None
    run_id: str | None = None
    lateness: Lateness | None = None
    rejects: int = 0
    error: str | None = None
    run_mode: str | None = None
    params_source: str | None = None
    changes: dict[str, list[Any]] | None = None
    rewinds: int = 0
    seek_ready: int | None = None
    bookmarks: dict[str, int] = field(default_factory=dict)


class FileError(Record, kw_only=True):
    """A file that a clean-up could not handle, and why."""

    file: str
    error: str


class RetentionReport(Record, kw_only=True):
    """What a clean-up deleted and kept; files relative to the data root."""

    timestamp: str = field(default_factory=lambda: iso(now_ns()))
    deleted_files: list[str] = field(default_factory=list)
    kept_files: list[str] = field(default_factory=list)
    errors: list[FileError] = field(default_factory=list)
