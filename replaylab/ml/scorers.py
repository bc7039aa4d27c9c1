"""A trained model as a scoring engine, and its scores in the place of the recorded ones.

::

    model = ClassifierScore(pipeline, names)                 # trained on features() and labels()
    lab.engine(scoring=model)                                # FULL_DECISION: the model makes the signals
    sweep(rescored(session, model), grid)                    # thousands of thresholds on the model's score
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features import NAMES, FeatureParams, score_series
from replaylab.ml.tape import SessionLike
from replaylab.params import ScoringParams

__all__ = ["ClassifierScore", "Rescored", "rescored"]

_SIGNALS = ("SCORING_UPDATE", "REGIME_UPDATE")


class ClassifierScore:
    """A classifier of triple-barrier labels as a score: P(label = 1) − P(label = −1), in [−1, 1].

    ``classifier``: trained, with scikit-learn's ``predict_proba`` and ``classes_``; its labels must hold 1 and −1.
    ``names``: the columns it was trained on, in order; market features only (``replaylab.features.NAMES``), since
    that is what the scoring engine has. ``features``: lookbacks it was trained with. ``scoring``: how
    often it speaks (``interval_ms``) and how regimes are told. NaN stands for a feature that is not known: give
    the classifier an imputer if it takes none. Raises DatasetError.
    """

    def __init__(
        self,
        classifier: Any,
        names: Sequence[str] = NAMES,
        *,
        features: FeatureParams | None = None,
        scoring: ScoringParams | None = None,
    ) -> None:
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise DatasetError(
                f"the scoring engine has no feature {', '.join(unknown)}: train on market features only"
            )
        classes = [float(name) for name in classifier.classes_]
        if 1.0 not in classes or -1.0 not in classes:
            raise DatasetError(f"the labels must hold 1 and −1, the classifier knows {classes}")
        self.classifier = classifier
        self.feature_names_in_ = list(names)
        self.feature_params = features
        self.scoring_params = scoring
        self._up, self._down = classes.index(1.0), classes.index(-1.0)

    def predict(self, rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return one score per row of features."""
        chances = self.classifier.predict_proba(np.asarray(rows, dtype=np.float64))
        score: npt.NDArray[np.float64] = np.asarray(
            chances[:, self._up] - chances[:, self._down], dtype=np.float64
        )
        return score


@dataclass(frozen=True)
class Rescored:
    """A session whose signals are those of another scoring engine; what sweeps, features and labels read."""

    events: pl.DataFrame
    id: str
    digest: str
    initial_state: Mapping[str, Any] | None


def rescored(session: SessionLike, scoring: Any = None) -> Rescored:
    """Return a session with the SCORING_UPDATE and REGIME_UPDATE events that ``scoring`` makes of its market data.

    ``scoring``: ScoringParams, or a model with ``predict``. The signals stand after the last event of their timestamp,
    symbols in order, a regime (where it changed) before its score: as in a FULL_DECISION replay, with the same
    trades. Only the market features that were known then reach the model. Train it on earlier sessions.
    """
    state = getattr(session, "initial_state", None)
    made = score_series(session.events, scoring, initial_state=state)
    kept = session.events.with_row_index("at").filter(~pl.col("type").is_in(_SIGNALS).fill_null(value=False))
    whole = pl.concat(
        [
            kept.with_columns(pl.col("at").cast(pl.Int64), rank=pl.lit(0, pl.Int8)),
            _signals(made.filter(_regime_changed(made, state)), "REGIME_UPDATE", 1),
            _signals(made, "SCORING_UPDATE", 2),
        ],
        how="diagonal",
    )
    # Signals come after all events of their time, by symbol, regime first.
    after = pl.when(pl.col("rank") > 0).then(pl.col("symbol"))
    ordered = whole.sort("at", pl.col("rank") > 0, after, "rank", maintain_order=True)
    events = ordered.select(session.events.columns)
    name = getattr(session, "id", "session")
    digest = sha256("\n".join(events["payload"].to_list()).encode()).hexdigest()
    return Rescored(events, f"{name} (rescored)", digest, state)


def _signals(made: pl.DataFrame, kind: str, rank: int) -> pl.DataFrame:
    if kind == "REGIME_UPDATE":
        records: list[dict[str, Any]] = [{"regime": regime} for regime in made["regime"]]
    else:
        sides = ["LONG" if score > 0 else "SHORT" if score < 0 else "NONE" for score in made["score"]]
        records = [{"score": score, "side": side} for score, side in zip(made["score"], sides, strict=True)]
    return made.select(
        at=pl.col("index").cast(pl.Int64),
        timestamp="timestamp",
        type=pl.lit(kind),
        symbol="symbol",
        payload=pl.Series([orjson.dumps(record).decode() for record in records], dtype=pl.String),
        rank=pl.lit(rank, pl.Int8),
    )


def _regime_changed(made: pl.DataFrame, state: Mapping[str, Any] | None) -> pl.Series:
    """Whether each signal tells another regime than the one before it of its symbol."""
    known = {
        symbol: entry.get("regime")
        for symbol, entry in ((state or {}).get("symbols") or {}).items()
        if isinstance(entry, Mapping)
    }
    changed = []
    for symbol, regime in made.select("symbol", "regime").iter_rows():
        changed.append(known.get(symbol) != regime)
        known[symbol] = regime
    return pl.Series(changed, dtype=pl.Boolean)
