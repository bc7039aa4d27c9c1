"""Every record type of the on-disk and wire formats: the only place that knows camelCase.

>>> from replaylab.records import TradeLogRecord, encode_record, decode_record
"""

from replaylab.records.codec import Record, decode_record, encode_record, find_not_finite, prepare_record
from replaylab.records.logs import (
    AccountState,
    DailyRiskStats,
    ExecutionSnapshot,
    FileError,
    HealthSnapshot,
    Lateness,
    OrderLogRecord,
    ReplayEvent,
    ReplayManifest,
    ReplayStatus,
    RetentionReport,
    RiskFlags,
    RiskSnapshot,
    ServiceHealth,
    SourceDateRange,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
)
from replaylab.records.market import (
    FeatureSnapshot,
    MarketTrade,
    OrderBookSnapshot,
    RegimeSnapshot,
    ScoringSnapshot,
)

__all__ = [
    "AccountState",
    "DailyRiskStats",
    "ExecutionSnapshot",
    "FeatureSnapshot",
    "FileError",
    "HealthSnapshot",
    "Lateness",
    "MarketTrade",
    "OrderBookSnapshot",
    "OrderLogRecord",
    "Record",
    "RegimeSnapshot",
    "ReplayEvent",
    "ReplayManifest",
    "ReplayStatus",
    "RetentionReport",
    "RiskFlags",
    "RiskSnapshot",
    "ScoringSnapshot",
    "ServiceHealth",
    "SourceDateRange",
    "StateEvent",
    "TpslSnapshot",
    "TradeLogRecord",
    "decode_record",
    "encode_record",
    "find_not_finite",
]

# msgspec completes a type at its first use, and two threads that do so at once crash the process: all are completed
# here, where the import lock admits one thread (2 ms). ``__del__`` at the end of the interpreter needs them too.
for _cls in [*globals().values()]:
    if isinstance(_cls, type) and issubclass(_cls, Record) and _cls is not Record:
        prepare_record(_cls)
