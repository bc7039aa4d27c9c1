"""Logs as a dataset: features, labels, splits and exports that do not leak.

>>> from replaylab import ml
>>> cv = ml.PurgedKFold(5, t_start=[1, 2, 3, 4, 5], t_end=[1, 2, 3, 4, 5])

``docs/ml.md`` says what leakage is here and how each part guards against it. Parts load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaylab.ml.horizons import fixed_horizon as fixed_horizon
    from replaylab.ml.horizons import mark_outs as mark_outs
    from replaylab.ml.horizons import meta_labels as meta_labels
    from replaylab.ml.labelling import labels as labels
    from replaylab.ml.splits import CombinatorialPurgedCV as CombinatorialPurgedCV
    from replaylab.ml.splits import PurgedKFold as PurgedKFold
    from replaylab.ml.splits import WalkForward as WalkForward
    from replaylab.ml.weights import average_uniqueness as average_uniqueness
    from replaylab.ml.weights import return_weights as return_weights

_HOMES = {
    "CombinatorialPurgedCV": "splits",
    "PurgedKFold": "splits",
    "WalkForward": "splits",
    "average_uniqueness": "weights",
    "fixed_horizon": "horizons",
    "labels": "labelling",
    "mark_outs": "horizons",
    "meta_labels": "horizons",
    "return_weights": "weights",
}

__all__ = [
    "CombinatorialPurgedCV",
    "PurgedKFold",
    "WalkForward",
    "average_uniqueness",
    "fixed_horizon",
    "labels",
    "mark_outs",
    "meta_labels",
    "return_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.ml' has no attribute {name!r}")
    value = getattr(import_module(f"replaylab.ml.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
