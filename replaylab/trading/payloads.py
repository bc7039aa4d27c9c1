"""The payloads of signals, read and made, and the view of one symbol for screens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replaylab.trading.scoring import Signal
from replaylab.trading.state import SymbolState

__all__ = ["regime_payload", "risk_flag", "scoring_payload", "view"]


def risk_flag(payload: Mapping[str, Any], name: str) -> bool | None:
    """Return a flag of a RISK_UPDATE; at top level it wins over ``riskFlags``. None where there is no bool."""
    value = payload.get(name)
    if isinstance(value, bool):
        return value
    nested = payload.get("riskFlags")
    if isinstance(nested, Mapping):
        value = nested.get(name)
        if isinstance(value, bool):
            return value
    return None


def scoring_payload(signal: Signal, price: float | None) -> dict[str, Any]:
    """Return the ``extra`` of a SCORING_UPDATE, with the symbol's current price."""
    return {"score": signal.score, "side": signal.side, "price": price, "components": signal.components}


def regime_payload(signal: Signal) -> dict[str, Any]:
    """Return the ``extra`` of a REGIME_UPDATE."""
    return {"regime": signal.regime, "confidence": None, "components": signal.regime_components}


def view(state: SymbolState) -> dict[str, Any]:
    """Return what a hotlist shows of a symbol; None where there is nothing."""
    position = state.position
    price = state.last_price
    shown: dict[str, Any] = {
        "symbol": state.symbol,
        "state": state.state,
        "score": state.score,
        "regime": state.regime,
        "blocked": state.blocked,
        "price": price,
        "side": None,
        "qty": None,
        "entry_price": None,
        "unrealized_pnl": None,
        "tp1_price": None,
        "tp2_price": None,
        "stop_price": None,
        "stop_reason": None,
    }
    if position is not None:
        shown |= {
            "side": position.side,
            "qty": position.left,
            "entry_price": position.entry,
            "unrealized_pnl": None if price is None else position.unrealized(price),
            "tp1_price": position.tp1,
            "tp2_price": position.tp2,
            "stop_price": position.stop,
            "stop_reason": position.stop_reason,
        }
    return shown
