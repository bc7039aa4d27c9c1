"""Logs as a dataset: features, labels, splits and exports that do not leak.

>>> from replaylab import ml
>>> cv = ml.PurgedKFold(5, t_start=[1, 2, 3, 4, 5], t_end=[1, 2, 3, 4, 5])

``docs/ml.md`` says what leakage is here and how each part guards against it. Parts load when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
