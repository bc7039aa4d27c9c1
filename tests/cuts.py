"""Simulated runs, and sessions that begin and end anywhere inside them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from replaylab.importers.synthetic import write_synthetic
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import run_sim
from replaylab.sessions import Session, build_replay_session
from replaylab.timestamps import iso, to_ns

__all__ = ["VARIANTS", "random_cuts", "simulate"]

MINUTE = 60_000_000_000
MINUTES = 12
SYMBOLS = ("AIUSDT", "BTCUSDT")
_BASE: dict[str, Any] = {"entry_threshold": 0.3, "tp1_pct": 0.05, "tp2_pct": 0.1, "sl_pct": 0.05}
# Each: the clock at which the run starts, and its parameters.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no limits": ("10:00", {"max_hold_s": 120, "exit_threshold": -0.5, "trailing_activation_pct": 0.03}),
    "daily loss": ("10:00", {"max_daily_loss_usd": 6.0, "latency_ms": 200, "tp1_fraction": 0.3}),
    "daily trades": ("10:00", {"max_trades_per_day": 12, "tp1_pct": 0.02, "tp2_pct": 0.3, "sl_pct": 0.2}),
    "latency": (
        "10:00",
        {"latency_ms": 400, "stop_latency_ms": 300, "cooldown_s": 8, "max_open_positions": 1},
    ),
    "midnight": ("23:54", {"max_trades_per_day": 8, "max_daily_loss_usd": 4.0, "latency_ms": 800}),
    "limit entries": ("10:00", {"entry_order": "LIMIT", "entry_ttl_s": 10.0, "latency_ms": 100}),
    "limit entries, cooldown": (
        "10:00",
        {"entry_order": "LIMIT", "entry_ttl_s": 10.0, "entry_offset_bps": 2.0, "cooldown_s": 15},
    ),
    "limit entries, midnight": (
        "23:54",
        {
            "entry_order": "LIMIT",
            "entry_ttl_s": 20.0,
            "entry_offset_bps": 1.0,
            "max_trades_per_day": 10,
            "cooldown_s": 5,
        },
    ),
}


def simulate(root: DataRoot, variant: str, seed: int = 11) -> None:
    """Run the trading system in SIM mode over twelve minutes of a synthetic market of two symbols."""
    clock, changes = VARIANTS[variant]
    write_synthetic(root, seed=seed, hours=MINUTES / 60, start=f"2025-11-18T{clock}:00Z")
    sim = run_sim(
        root,
        params=TradingParams(**{**_BASE, **changes}),
        scoring=ScoringParams(interval_ms=500, warmup_s=20),
    )
    assert sim.trades.height >= 5, sim.trades.height


def random_cuts(root: DataRoot, variant: str, count: int) -> Iterator[Session]:
    """Yield sessions of random ranges of a simulated run, at least half a minute long."""
    start = to_ns(f"2025-11-18T{VARIANTS[variant][0]}:00Z")
    rng = random.Random(variant)
    for number in range(count):
        first, last = sorted(rng.uniform(0, MINUTES) for _ in range(2))
        manifest = build_replay_session(
            root,
            iso(start + round(first * MINUTE)),
            iso(start + round((last + 0.5) * MINUTE)),
            SYMBOLS,
            session_id=f"cut-{number}",
        )
        yield Session(root, manifest.session_id)
