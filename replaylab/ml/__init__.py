"""Logs as a dataset: features, labels, splits and exports that do not leak.

>>> from replaylab import ml
>>> cv = ml.PurgedKFold(5, t_start=[1, 2, 3, 4, 5], t_end=[1, 2, 3, 4, 5])

``docs/ml.md`` says what leakage is here and how each part guards against it. Parts load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaylab.ml.clocks import time_grid as time_grid
    from replaylab.ml.clocks import value_bars as value_bars
    from replaylab.ml.columns import Column as Column
    from replaylab.ml.columns import describe as describe
    from replaylab.ml.dataset import features as features
    from replaylab.ml.export import Export as Export
    from replaylab.ml.export import export_features as export_features
    from replaylab.ml.horizons import fixed_horizon as fixed_horizon
    from replaylab.ml.horizons import mark_outs as mark_outs
    from replaylab.ml.horizons import meta_labels as meta_labels
    from replaylab.ml.labelling import labels as labels
    from replaylab.ml.leaks import Baseline as Baseline
    from replaylab.ml.leaks import Finding as Finding
    from replaylab.ml.leaks import check_duplicates as check_duplicates
    from replaylab.ml.leaks import check_label_times as check_label_times
    from replaylab.ml.leaks import check_no_lookahead as check_no_lookahead
    from replaylab.ml.leaks import check_splits as check_splits
    from replaylab.ml.leaks import shuffled_baseline as shuffled_baseline
    from replaylab.ml.scan import barrier_scan as barrier_scan
    from replaylab.ml.scorers import ClassifierScore as ClassifierScore
    from replaylab.ml.splits import CombinatorialPurgedCV as CombinatorialPurgedCV
    from replaylab.ml.splits import PurgedKFold as PurgedKFold
    from replaylab.ml.splits import WalkForward as WalkForward
    from replaylab.ml.weights import average_uniqueness as average_uniqueness
    from replaylab.ml.weights import return_weights as return_weights

_HOMES = {
    "Baseline": "leaks",
    "ClassifierScore": "scorers",
    "Column": "columns",
    "CombinatorialPurgedCV": "splits",
    "Export": "export",
    "Finding": "leaks",
    "PurgedKFold": "splits",
    "WalkForward": "splits",
    "average_uniqueness": "weights",
    "barrier_scan": "scan",
    "check_duplicates": "leaks",
    "check_label_times": "leaks",
    "check_no_lookahead": "leaks",
    "check_splits": "leaks",
    "describe": "columns",
    "export_features": "export",
    "features": "dataset",
    "fixed_horizon": "horizons",
    "labels": "labelling",
    "mark_outs": "horizons",
    "meta_labels": "horizons",
    "return_weights": "weights",
    "shuffled_baseline": "leaks",
    "time_grid": "clocks",
    "value_bars": "clocks",
}

__all__ = [
    "Baseline",
    "ClassifierScore",
    "Column",
    "CombinatorialPurgedCV",
    "Export",
    "Finding",
    "PurgedKFold",
    "WalkForward",
    "average_uniqueness",
    "barrier_scan",
    "check_duplicates",
    "check_label_times",
    "check_no_lookahead",
    "check_splits",
    "describe",
    "export_features",
    "features",
    "fixed_horizon",
    "labels",
    "mark_outs",
    "meta_labels",
    "return_weights",
    "shuffled_baseline",
    "time_grid",
    "value_bars",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.ml' has no attribute {name!r}")
    value = getattr(import_module(f"replaylab.ml.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
