"""Records that the logging tests write, in their on-disk form."""

from __future__ import annotations

from typing import Any


def state_event(symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    return {
        "timestamp": "2025-11-18T10:00:00.123Z",
        "symbol": symbol,
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": "SCORING_UPDATE",
        "reason": "score below threshold",
        "extra": {"score": 0.41, "side": "LONG", "price": 91_234.5, "components": {"flow": 0.2}},
        **changes,
    }


def trade(**changes: Any) -> dict[str, Any]:
    return {
        "timestamp": "2025-11-18T10:05:00.000Z",
        "dateKey": "2025-11-18",
        "symbol": "BTCUSDT",
        "side": "LONG",
        "entryPrice": 91_000.5,
        "closePrice": 91_100,
        "qty": 0.01,
        "leverage": 1,
        "realizedPnl": 0.99,
        "mfe": 1.5,
        "mae": -0.4,
        "durationSeconds": 61.5,
        "mode": "SIM",
        **changes,
    }


def order(**changes: Any) -> dict[str, Any]:
    return {
        "timestamp": "2025-11-18T10:00:00.200Z",
        "clientOrderId": "sim-1",
        "exchangeOrderId": None,
        "symbol": "BTCUSDT",
        "side": "BUY",
        "type": "MARKET",
        "timeInForce": "IOC",
        "price": None,
        "triggerPrice": None,
        "qty": 0.01,
        "reduceOnly": False,
        "status": "FILLED",
        "filledQty": 0.01,
        "avgFillPrice": 91_000.5,
        "notionalUsd": 910.005,
        "mode": "SIM",
        "source": "STATE_MACHINE",
        "lastError": None,
        **changes,
    }


def snapshots() -> dict[str, dict[str, Any]]:
    at = "2025-11-18T10:00:00.000Z"
    return {
        "risk": {
            "timestamp": at,
            "account": {"equityUsd": 1000.5, "venue": "sim"},
            "dailyStats": {"dateKey": "2025-11-18", "realizedPnl": -1.5},
            "riskFlags": {"tradingBlocked": False},
        },
        "tpsl": {
            "timestamp": at,
            "symbol": "BTCUSDT",
            "side": "LONG",
            "entryPrice": 100,
            "tp1Price": 101,
            "tp2Price": 102,
            "stopLossPrice": 99,
            "breakEvenPrice": 100.1,
            "trailingActive": False,
            "trailingDistancePct": 0.2,
            "pumpOverrideApplied": False,
            "spoofingOverrideApplied": False,
            "volatilityOverrideApplied": False,
        },
        "execution": {
            "timestamp": at,
            "mode": "SIM",
            "safeMode": False,
            "pendingOrdersCount": 0,
            "activeOrdersCount": 2,
            "lastErrorAt": None,
            "lastErrorMessage": None,
        },
        "health": {
            "timestamp": at,
            "services": {"logging": {"status": "OK", "lastUpdateAt": at, "message": None}},
        },
    }


def manifest(session_id: str = "s1") -> dict[str, Any]:
    return {
        "sessionId": session_id,
        "createdAt": "2025-11-18T12:00:00.000Z",
        "createdBy": "TEST",
        "sourceDateRange": {"from": "2025-11-18T10:00:00.000Z", "to": "2025-11-18T11:00:00.000Z"},
        "symbols": ["BTCUSDT"],
        "eventTypes": ["SCORING_UPDATE"],
        "speedFactor": 1,
        "notes": None,
    }
