"""The peer of benchmarks/ml.py: mlfinpy's triple barrier on the same prices, events and barriers.

python benchmarks/ml_peer.py INPUT.npz OUTPUT.npz     (prints seconds as JSON; run by ml.py)

Runs with an interpreter of its own that has mlfinpy installed: it is no dependency of replaylab.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import pandas as pd


def main() -> None:
    warnings.filterwarnings("ignore")
    from mlfinpy.labeling.labeling import triple_barriers

    given = np.load(sys.argv[1])
    close = pd.Series(given["price"], index=pd.DatetimeIndex(given["ts"].astype("datetime64[ns]")))
    starts = close.index[given["entries"]]
    seconds, touched = [], []
    for tp, sl, ends in zip(given["tp"], given["sl"], given["ends"], strict=True):
        events = pd.DataFrame({"t1": close.index[ends], "trgt": 0.01, "side": 1.0}, index=starts)
        begun = time.perf_counter()
        found = triple_barriers(close, events, [tp, sl], events.index)
        seconds.append(time.perf_counter() - begun)
        first = found[["t1", "pt", "sl"]].astype("datetime64[ns]").min(axis=1)
        stopped = (found["sl"].notna() & (found["sl"] == first)).to_numpy()
        won = (found["pt"].notna() & (found["pt"] == first)).to_numpy() & ~stopped
        touched.append((first.to_numpy().astype(np.int64), np.where(won, 1, np.where(stopped, -1, 0))))
    np.savez(sys.argv[2], end=np.stack([a for a, _ in touched]), label=np.stack([b for _, b in touched]))
    print(json.dumps(seconds))


main()
