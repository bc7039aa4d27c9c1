"""Microstructure features: formulas, the incremental form that trading runs on, and the compiled form for whole tapes.

>>> from replaylab.features import CATALOGUE, FeatureEngine, FeatureParams, compute, score_series

``FeatureEngine`` takes event by event; ``compute`` a whole session. Both run the same arithmetic.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
