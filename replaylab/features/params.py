"""The lookbacks of the microstructure features."""

from __future__ import annotations

from replaylab.params import Settings

__all__ = ["FeatureParams"]

_MAX_SECONDS = 1e9


class FeatureParams(Settings, kw_only=True, frozen=True):
    """Lookbacks of the features; what each one means stands in ``CATALOGUE`` and ``docs/features.md``.

    >>> FeatureParams(flow_half_life_s=30).flow_half_life_s
    30.0

    Half-lives are in seconds: after one half-life an observation counts half. ``depth_levels``: levels of the book
    in the depth features. ``kyle_interval_s``: length of the bars that Kyle's lambda is fitted on. VPIN looks at the
    last ``vpin_buckets`` buckets of ``vpin_bucket_usd`` traded quote currency each. Raises ConfigError.
    """

    flow_half_life_s: float = 10.0
    vwap_half_life_s: float = 60.0
    intensity_half_life_s: float = 10.0
    volatility_half_life_s: float = 60.0
    momentum_half_life_s: float = 10.0
    depth_levels: int = 5
    kyle_interval_s: float = 1.0
    kyle_half_life_s: float = 300.0
    vpin_bucket_usd: float = 100_000.0
    vpin_buckets: int = 50

    def __post_init__(self) -> None:
        for field in (
            "flow_half_life_s",
            "vwap_half_life_s",
            "intensity_half_life_s",
            "volatility_half_life_s",
            "momentum_half_life_s",
            "kyle_half_life_s",
        ):
            self._number(field, above=0, high=_MAX_SECONDS)
        self._number("kyle_interval_s", low=1e-6, high=_MAX_SECONDS)
        self._number("depth_levels", low=1, high=1000, whole=True)
        self._number("vpin_bucket_usd", above=0)
        self._number("vpin_buckets", low=1, high=100_000, whole=True)
