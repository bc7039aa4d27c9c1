"""The lookbacks of the microstructure features."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from replaylab.params import Settings

__all__ = ["FeatureParams"]

Lookback = Annotated[float, Meta(gt=0, le=1e9)]


class FeatureParams(Settings, kw_only=True, frozen=True):
    """Lookbacks of the features; what each one means stands in ``CATALOGUE`` and ``docs/features.md``.

    >>> FeatureParams(flow_half_life_s=30).flow_half_life_s
    30.0

    Half-lives are in seconds: after one half-life an observation counts half. ``depth_levels``: levels of the book
    in the depth features. ``kyle_interval_s``: length of the bars that Kyle's lambda is fitted on. VPIN looks at the
    last ``vpin_buckets`` buckets of ``vpin_bucket_usd`` traded quote currency each. Raises ConfigError.
    """

    flow_half_life_s: Lookback = 10.0
    vwap_half_life_s: Lookback = 60.0
    intensity_half_life_s: Lookback = 10.0
    volatility_half_life_s: Lookback = 60.0
    momentum_half_life_s: Lookback = 10.0
    depth_levels: Annotated[int, Meta(ge=1, le=1000)] = 5
    kyle_interval_s: Annotated[float, Meta(ge=1e-6, le=1e9)] = 1.0
    kyle_half_life_s: Lookback = 300.0
    vpin_bucket_usd: Annotated[float, Meta(gt=0)] = 100_000.0
    vpin_buckets: Annotated[int, Meta(ge=1, le=100_000)] = 50
