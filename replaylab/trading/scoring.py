"""The scoring engine: trades and book of one symbol in, a score in [−1, 1] and a regime out, event by event.

The parts and their parameters are described at ``ScoringParams`` and in ``docs/features.md``. The same arithmetic over
a whole tape at once is ``replaylab.features.score_series``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from replaylab.errors import ConfigError, did_you_mean
from replaylab.features import NAMES, FeatureEngine, OrderBook, trade_sign, usable_number
from replaylab.features.formulas import book_imbalance
from replaylab.features.score_state import (
    OUT,
    REGIMES,
    new_score_state,
    score_constants,
    score_step,
    score_trade,
)
from replaylab.params import ScoringParams


@runtime_checkable
class ScoreModel(Protocol):
    """Anything with scikit-learn's ``predict``: rows of features in, one score per row out.

    Rows hold the features of the catalogue in its order, NaN where not known; a model with ``feature_names_in_`` gets
    those columns. Optional attributes: ``scoring_params`` (times of the signals, and the regime) and
    ``feature_params`` (lookbacks). Scores outside [−1, 1] are cut off there.
    """

    def predict(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Signal:
    """One score of one symbol and its regime. ``volatility`` is in bps per square root of a second."""

    score: float
    components: dict[str, float]
    regime: str
    regime_components: dict[str, float]

    @property
    def side(self) -> str:
        if self.score == 0.0:
            return "NONE"
        return "LONG" if self.score > 0.0 else "SHORT"


class Scorer:
    """The scoring state of one symbol.

    Feed it every usable trade and book change, then call ``step`` once per distinct timestamp, after all market events
    that bear it. ``regime`` is the last one before the first event.
    """

    __slots__ = ("_columns", "_consts", "_features", "_floats", "_ints", "_levels", "_model")

    def __init__(
        self, params: ScoringParams, regime: str | None = None, model: ScoreModel | None = None
    ) -> None:
        self._consts = score_constants(params)
        self._ints, self._floats = new_score_state(regime)
        self._levels = params.book_levels
        self._model = model
        self._features: FeatureEngine | None = None
        self._columns: tuple[int, ...] = ()
        if model is not None:
            self._features = FeatureEngine(getattr(model, "feature_params", None))
            self._columns = model_columns(model)

    def trade(self, ts: int, price: float, qty: float, sign: float) -> None:
        """Take one trade; ``sign`` +1 for a buying taker, −1 for a selling one; 0, with qty 0, where not known."""
        score_trade(self._ints, self._floats, self._consts, ts, price, qty, sign)
        if self._features is not None:
            self._features.trade(ts, price, qty, sign)

    def take_trade(self, ts: int, price: float, payload: Mapping[str, Any]) -> bool:
        """Take a MARKET_TRADE of usable price; return whether quantity and side were usable too."""
        qty = usable_number(payload.get("qty"))
        sign = trade_sign(payload.get("side"))
        if qty is None or qty < 0.0 or sign is None:
            self.trade(ts, price, 0.0, 0.0)
            return False
        self.trade(ts, price, qty, sign)
        return True

    def book(self, ts: int, book: OrderBook) -> None:
        """Take a change of the book; the score reads it at ``step``, only a model's features need each one."""
        if self._features is not None:
            self._features.book(ts, book)

    def step(self, ts: int, book: OrderBook) -> Signal | None:
        """Take the state of the market at the end of ``ts``; return a signal if one is due."""
        mid = book.mid()
        if mid is None:
            due = score_step(self._ints, self._floats, self._consts, ts, math.nan, math.nan)
        else:
            bid, ask = book.depth(self._levels)
            imbalance = book_imbalance(bid, ask)
            due = score_step(self._ints, self._floats, self._consts, ts, mid, imbalance)
        if not due:
            return None
        score, momentum, flow, book_part, sigma, ratio, trend = self._floats[OUT[0] :]
        components = {"momentum": momentum, "volatility": sigma}
        if flow == flow:
            components["flow"] = flow
        if book_part == book_part:
            components["book"] = book_part
        if self._model is not None and self._features is not None:
            row = self._features.row(ts)
            answer = self._model.predict([[row[place] for place in self._columns]])
            score = min(1.0, max(-1.0, float(answer[0])))
        regime = REGIMES[self._ints[-1]]
        return Signal(score, components, regime, {"volatilityRatio": ratio, "trend": trend})


def model_columns(model: ScoreModel) -> tuple[int, ...]:
    """Return which features of the catalogue a model wants, in its order; raises ConfigError for an unknown one."""
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        return tuple(range(len(NAMES)))
    columns = []
    for name in names:
        if str(name) not in NAMES:
            raise ConfigError(
                f"scoring: the model wants a feature {str(name)!r} that there is not."
                f"{did_you_mean(str(name), NAMES)}",
                field="scoring",
            )
        columns.append(NAMES.index(str(name)))
    return tuple(columns)


class Pipeline:
    """Makes signals from market data, as FULL_DECISION and live SIM mode do: a scorer per symbol.

    ``touched``: the book of each symbol that had market events since the last ``signals``.
    """

    __slots__ = ("_model", "_params", "_scorers", "touched")

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
        self._scorers: dict[str, Scorer] = {}
        self.touched: dict[str, OrderBook] = {}

    def scorer(self, symbol: str, regime: str | None, book: OrderBook) -> Scorer:
        """Return the scorer of a symbol for one of its market events; ``regime`` is the last one known."""
        self.touched[symbol] = book
        found = self._scorers.get(symbol)
        if found is None:
            found = self._scorers[symbol] = Scorer(self._params, regime, self._model)
        return found

    def signals(self, ts: int) -> list[tuple[str, Signal]]:
        """Return the signals due at the end of ``ts``, by symbol."""
        touched = sorted(self.touched.items()) if len(self.touched) > 1 else list(self.touched.items())
        self.touched.clear()
        steps = ((symbol, self._scorers[symbol].step(ts, book)) for symbol, book in touched)
        return [(symbol, signal) for symbol, signal in steps if signal is not None]


def scoring_payload(signal: Signal, price: float | None) -> dict[str, Any]:
    """Return the ``extra`` of a SCORING_UPDATE, with the symbol's current price."""
    return {"score": signal.score, "side": signal.side, "price": price, "components": signal.components}


def regime_payload(signal: Signal) -> dict[str, Any]:
    """Return the ``extra`` of a REGIME_UPDATE."""
    return {"regime": signal.regime, "confidence": None, "components": signal.regime_components}
