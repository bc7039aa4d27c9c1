"""Logs as a dataset: features, labels, splits and exports that do not leak.

>>> from replaylab import ml
>>> cv = ml.PurgedKFold(5, t_start=[1, 2, 3, 4, 5], t_end=[1, 2, 3, 4, 5])

Parts load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replaylab.ml.splits import CombinatorialPurgedCV as CombinatorialPurgedCV
    from replaylab.ml.splits import PurgedKFold as PurgedKFold
    from replaylab.ml.splits import WalkForward as WalkForward

_HOMES = {
    "CombinatorialPurgedCV": "replaylab.ml.splits",
    "PurgedKFold": "replaylab.ml.splits",
    "WalkForward": "replaylab.ml.splits",
}

__all__ = ["CombinatorialPurgedCV", "PurgedKFold", "WalkForward"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.ml' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
