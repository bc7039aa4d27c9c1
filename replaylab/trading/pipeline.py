"""From market data to signals: the part of the trading system that FULL_DECISION and live SIM mode run on."""

from __future__ import annotations

from typing import Any

from replaylab.errors import ConfigError
from replaylab.features import trade_sign, usable_number
from replaylab.params import ScoringParams
from replaylab.trading.scoring import ScoreModel, Scorer, Signal
from replaylab.trading.state import SymbolState

__all__ = ["Pipeline"]


class Pipeline:
    """A scorer per symbol, and which symbols had market events at the present time."""

    __slots__ = ("_model", "_params", "touched")

    def __init__(self, scoring: ScoringParams | ScoreModel | None) -> None:
        self._model: ScoreModel | None = None
        if scoring is None:
            params = ScoringParams()
        elif isinstance(scoring, ScoringParams):
            params = scoring
        elif hasattr(scoring, "predict"):
            self._model = scoring
            params = getattr(scoring, "scoring_params", None) or ScoringParams()
        else:
            raise ConfigError(
                f"scoring: expected ScoringParams or an object with predict, found {scoring!r}",
                field="scoring",
            )
        self._params = params
        self.touched: list[SymbolState] = []

    def trade(self, state: SymbolState, ts: int, price: float, payload: dict[str, Any]) -> bool:
        """Take a trade of usable price; return whether quantity and side were usable too."""
        scorer = self._touch(state)
        qty = usable_number(payload.get("qty"))
        sign = trade_sign(payload.get("side"))
        if qty is None or qty < 0.0 or sign is None:
            scorer.trade(ts, price, 0.0, 0.0)
            return False
        scorer.trade(ts, price, qty, sign)
        return True

    def book(self, state: SymbolState, ts: int) -> None:
        """Take a change of a symbol's book."""
        self._touch(state).book(ts, state.book)

    def signals(self, ts: int) -> list[tuple[SymbolState, Signal]]:
        """Return the signals due at the end of ``ts``, by symbol, and forget which symbols were touched."""
        touched = self.touched
        if len(touched) > 1:
            touched.sort(key=_name)
        due = []
        for state in touched:
            state.touched = False
            if state.scorer is not None:
                signal = state.scorer.step(ts, state.book)
                if signal is not None:
                    due.append((state, signal))
        touched.clear()
        return due

    def _touch(self, state: SymbolState) -> Scorer:
        if not state.touched:
            state.touched = True
            self.touched.append(state)
        if state.scorer is None:
            state.scorer = Scorer(self._params, state.regime, self._model)
        return state.scorer


def _name(state: SymbolState) -> str:
    return state.symbol
