"""How fast labels and features are made, beside mlfinpy's triple barrier on the same work.

    python benchmarks/ml.py --peer-python /path/to/python-with-mlfinpy

Without ``--peer-python`` only replaylab runs. Prints tables: what is compared, on what, and what it does not show.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import polars as pl

from replaylab.barriers import BlockIndex
from replaylab.features import FeatureParams, compute, pack_market
from replaylab.ml import PurgedKFold
from replaylab.ml.labelling import STOP, TARGET, Barriers, touch_barriers

TICKS, EVENTS = 1_000_000, 10_000
LEVELS = np.linspace(0.05, 0.5, 10)
HOLD_S = 300.0


def median(work: Callable[[], object], rounds: int = 5) -> float:
    """Median seconds of some rounds, after one that is not counted (compiling, caches)."""
    work()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def market(seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Times (ns) and prices of a random walk: 0.2 s a tick on average, 0.2 bps a step."""
    rng = np.random.default_rng(seed)
    ts = (
        1_763_460_000_000_000_000
        + np.cumsum(rng.exponential(0.2e9, TICKS)).astype(np.int64)
        + np.arange(TICKS)
    )
    return ts, 60_000 * np.exp(np.cumsum(rng.normal(0, 2e-5, TICKS)))


def labels(peer: str | None, part: int) -> None:
    ts, price = market()
    # The last entry's time barrier lies inside the tape: every event has a label on both sides of the comparison.
    last = int(np.searchsorted(ts, ts[-1] - int(2 * HOLD_S * 1e9)))
    entries = np.sort(np.random.default_rng(1).choice(last, EVENTS, replace=False)).astype(np.int64)
    tp, sl = (grid.ravel() for grid in np.meshgrid(LEVELS, LEVELS, indexing="ij"))
    settings = Barriers(tp, sl, np.full(len(tp), HOLD_S))
    sides = np.ones(EVENTS, dtype=np.int8)

    def ours(count: int = len(tp)) -> object:
        return touch_barriers(BlockIndex(price), ts, entries, sides, settings.part(0, count))

    all_settings, one_setting = median(ours), median(lambda: ours(1))
    work = f"{TICKS:,} ticks × {EVENTS:,} events"
    print(f"\nTriple-barrier labels: {work} × {len(tp)} settings (10 targets × 10 stops, {HOLD_S:g} s)\n")
    print(f"  replaylab, {len(tp)} settings, with the index built     {all_settings:10.4f} s")
    print(f"  replaylab,   1 setting,  with the index built     {one_setting:10.4f} s")
    if peer is None:
        return
    chosen = np.linspace(0, len(tp) - 1, part).astype(int)
    some = Barriers(tp[chosen], sl[chosen], np.full(part, HOLD_S))
    found = touch_barriers(BlockIndex(price), ts, entries, sides, some)
    ends = np.searchsorted(ts, ts[entries] + int(HOLD_S * 1e9), side="left")
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(
            given,
            ts=ts,
            price=price,
            entries=entries,
            tp=tp[chosen],
            sl=sl[chosen],
            ends=np.stack([ends] * part),
        )
        script = Path(__file__).with_name("ml_peer.py")
        run = subprocess.run(
            [peer, str(script), str(given), str(answer)], check=True, capture_output=True, text=True
        )
        seconds = json.loads(run.stdout)
        theirs = np.load(answer)
        mine = np.where(found.barrier == TARGET, 1, np.where(found.barrier == STOP, -1, 0))
        same_label = (mine == theirs["label"]).mean()
        same_end = (ts[found.position] == theirs["end"]).mean()
    each = statistics.median(seconds)
    print(f"  mlfinpy,     1 setting (median of {part} run)       {each:10.4f} s")
    print(f"  mlfinpy,   {len(tp)} settings, extrapolated           {each * len(tp):10.1f} s")
    print(
        f"\n  ratio {each * len(tp) / all_settings:,.0f} × for {len(tp)} settings, {each / one_setting:,.0f} × for one"
    )
    print(
        f"  equal labels {same_label:.2%}, equal end times {same_end:.2%} on the {part} settings that both ran"
    )
    print("  One process each. mlfinpy's settings are run one after the other, which is what it offers.")


def features() -> None:
    ts, price = market()
    rng = np.random.default_rng(2)
    qty = rng.integers(1, 50, TICKS) / 100
    buys = rng.random(TICKS) < 0.5
    texts = [
        orjson.dumps({"price": p, "qty": q, "side": "BUY" if b else "SELL", "tradeId": None}).decode()
        for p, q, b in zip(price.tolist(), qty.tolist(), buys.tolist(), strict=True)
    ]
    events = pl.DataFrame(
        {"timestamp": pl.Series(ts).cast(pl.Datetime("ns", "UTC")), "payload": texts}
    ).with_columns(type=pl.lit("MARKET_TRADE"), symbol=pl.lit("BTCUSDT"))
    tapes = pack_market(events)
    index = np.arange(0, TICKS, 10)
    some = pl.DataFrame({"index": index, "timestamp": events["timestamp"].gather(index)}).with_columns(
        symbol=pl.lit("BTCUSDT")
    )
    params = FeatureParams()
    rows = {
        "pack: JSON payloads to arrays": median(lambda: pack_market(events), 3),
        "all features, a row every 10 events": median(lambda: compute(tapes, params, some), 3),
        "all features, a row every event": median(lambda: compute(tapes, params), 3),
    }
    print(f"\nFeatures: {TICKS:,} trades of one symbol, no book\n")
    for name, seconds in rows.items():
        print(f"  {name:42} {seconds:8.3f} s {TICKS / seconds / 1e6:8.2f} million events/s")
    print("  A book costs more to pack: each MARKET_BOOK is applied to a book of its own, level by level.")


def splits() -> None:
    count = 100_000
    start = np.sort(np.random.default_rng(3).integers(0, 10**14, count))
    cv = PurgedKFold(5, t_start=start, t_end=start + 60 * 10**9, embargo=30.0)
    seconds = median(lambda: list(cv.split()))
    print(f"\nPurgedKFold: {count:,} labels of 60 s, 5 folds, embargo 30 s: {seconds:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="an interpreter that has mlfinpy installed")
    parser.add_argument("--peer-settings", type=int, default=3, help="how many settings the peer runs")
    options = parser.parse_args()
    labels(options.peer_python, options.peer_settings)
    features()
    splits()
    print("\nOne machine, seeded random walk: not a market. Medians of 3 to 5 rounds after one to warm up.")


if __name__ == "__main__":
    main()
