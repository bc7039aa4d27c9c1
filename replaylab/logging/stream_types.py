"""The names of the log streams."""

from enum import StrEnum

__all__ = ["StreamType"]


class StreamType(StrEnum):
    """The kinds of log streams."""

    STATE_EVENT = "STATE_EVENT"
    TRADE_LOG = "TRADE_LOG"
    ORDER_LOG = "ORDER_LOG"
    RISK_SNAPSHOT = "RISK_SNAPSHOT"
    TPSL_SNAPSHOT = "TPSL_SNAPSHOT"
    EXECUTION_SNAPSHOT = "EXECUTION_SNAPSHOT"
    REPLAY_SESSION_MANIFEST = "REPLAY_SESSION_MANIFEST"
    REPLAY_EVENTS = "REPLAY_EVENTS"
    HEALTH_SNAPSHOT = "HEALTH_SNAPSHOT"
