"""A trained classifier as a scoring engine.

::

    model = ClassifierScore(pipeline, names)                 # trained on features() and labels()
    lab.engine(scoring=model)                                # FULL_DECISION: the model makes the signals
    lab.sweep(session, grid, scoring=model)                  # thousands of thresholds on the model's score
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replaylab.errors import DatasetError
from replaylab.features import NAMES, FeatureParams
from replaylab.params import ScoringParams


class ClassifierScore:
    """A classifier of triple-barrier labels as a score: P(label = 1) − P(label = −1), in [−1, 1].

    ``classifier``: trained, with scikit-learn's ``predict_proba`` and ``classes_``; its labels must hold 1 and −1.
    ``names``: the columns it was trained on, in order; market features only (``replaylab.features.NAMES``), since
    that is what the scoring engine has. ``features``: lookbacks it was trained with. ``scoring``: how
    often it speaks (``interval_ms``) and how regimes are computed. A feature that is not known is NaN: give
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
