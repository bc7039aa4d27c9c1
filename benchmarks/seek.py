"""How long a seek takes in a large session.

    python benchmarks/seek.py                                        # 5 M events, some minutes
    python benchmarks/seek.py --events 500000 --mode FULL_DECISION

The session is generated: trades of three symbols every 10 ms, every tenth event a score. Measured, from the call to its
return, when the system is in the state of its aim:

- the first seek to the end right after the start, where no scout has been;
- after a pause in which the scout has played ahead: seeks to anywhere, uniformly, and a drag to and fro in small steps.

After the last seek the run is played to its end: its digest and logs must be those of straight play.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from replaylab import ReplayEngine, TradingParams
from replaylab.sessions import Session, SessionStore, save_session_frame

PARAMS = TradingParams(entry_threshold=0.5, max_hold_s=60)
SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")


def session_of(root: Path, events: int) -> Session:
    """Write a session: a trade every 10 ms, and after every tenth one a score."""
    rng = np.random.default_rng(7)
    times = 1_763_460_000_000_000_000 + np.arange(events, dtype=np.int64) * 10_000_000
    kinds = np.where(np.arange(events) % 10 == 9, "SCORING_UPDATE", "MARKET_TRADE")
    symbols = np.array(SYMBOLS)[(np.arange(events) // 10) % len(SYMBOLS)]
    prices = np.round(100 * np.exp(np.cumsum(rng.normal(0, 2e-5, events))), 4)
    scores = np.round(np.clip(rng.normal(0, 0.4, events), -1, 1), 3)
    sizes = np.round(rng.uniform(0.1, 2, events), 3)
    payloads = [
        f'{{"score":{score},"price":{price}}}'
        if kind == "SCORING_UPDATE"
        else f'{{"price":{price},"qty":{size},"side":"{"BUY" if score > 0 else "SELL"}"}}'
        for kind, price, size, score in zip(kinds, prices, sizes, scores, strict=True)
    ]
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series(times).cast(pl.Datetime("ns", "UTC")),
            "type": kinds,
            "symbol": symbols,
            "payload": payloads,
        }
    )
    save_session_frame(root, frame, "large")
    return SessionStore(root).open("large")


def straight(session: Session, mode: str) -> tuple[str, float]:
    """Return digest and seconds of straight play."""
    engine = ReplayEngine(SessionStore(session.root), params=PARAMS)
    began = time.monotonic()
    engine.start_session(session, math.inf, inject_mode=mode)
    engine.wait()
    assert engine.last_run is not None
    return engine.last_run.digest, time.monotonic() - began


def timed(engine: ReplayEngine, index: int) -> float:
    """Seek; return the milliseconds that it took."""
    began = time.perf_counter_ns()
    engine.seek(index)
    return (time.perf_counter_ns() - began) / 1e6


def show(name: str, found: list[float]) -> None:
    p50, p95 = np.percentile(found, [50, 95])
    print(
        f"{name:<28} {len(found):>4} seeks   p50 {p50:7.1f}   p95 {p95:7.1f}   max {max(found):7.1f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--mode", choices=("SCORING_ONLY", "FULL_DECISION"), default="SCORING_ONLY")
    parser.add_argument("--seeks", type=int, default=200)
    chosen = parser.parse_args()
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(Path(folder), chosen.events)
        total = session.events.height
        digest, seconds = straight(session, chosen.mode)
        print(f"{total:,} events, {chosen.mode}: straight play in {seconds:.1f} s", flush=True)
        engine = ReplayEngine(SessionStore(session.root), params=PARAMS)
        engine.start_session(session, 1.0, inject_mode=chosen.mode, paused=True)
        show("first, to the end", [timed(engine, total)])
        engine.stop()
        began = time.monotonic()
        engine.start_session(session, 1.0, inject_mode=chosen.mode, paused=True)
        while engine.get_status().seek_ready != total:
            time.sleep(0.05)
        print(f"scout at the end after {time.monotonic() - began:.1f} s of pause", flush=True)
        show("anywhere", [timed(engine, rng.randrange(total)) for _ in range(chosen.seeks)])
        at, found = total // 2, []
        for _ in range(chosen.seeks):
            at = min(total, max(0, at + rng.randrange(-total // 100, total // 100)))
            found.append(timed(engine, at))
        show("drag to and fro", found)
        engine.set_speed(math.inf)
        engine.resume()
        engine.wait()
        assert engine.last_run is not None
        assert engine.last_run.digest == digest, "the run is not that of straight play"
        print("digest equal to straight play")


if __name__ == "__main__":
    main()
