from .clocks import time_grid, value_bars
from .columns import Column, describe
from .dataset import features
from .export import Export, export_features
from .horizons import fixed_horizon, mark_outs, meta_labels
from .labelling import labels
from .leaks import (
    Baseline,
    Finding,
    check_duplicates,
    check_label_times,
    check_no_lookahead,
    check_splits,
    shuffled_baseline,
)
from .scan import barrier_scan
from .scorers import ClassifierScore
from .splits import CombinatorialPurgedCV, PurgedKFold, WalkForward
from .weights import average_uniqueness, return_weights

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
