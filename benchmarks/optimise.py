"""What feedback is worth: the best set that an optimiser finds, beside Sobol points, with as many sets.

    python benchmarks/optimise.py

On a generated hour of two symbols (seeded), for spaces of three and eight axes: median over seeds of the best net PnL
found, and the seconds that it took. It shows how fast a maximum is found, not that it holds on other data.
"""

from __future__ import annotations

import argparse
import statistics
import time

from replaylab import Lab
from replaylab.sweep import sample

SMALL = {"entry_threshold": (0.3, 0.9), "sl_pct": (0.05, 1.0), "tp2_pct": (0.3, 2.0)}
LARGE = {
    **SMALL,
    "exit_threshold": (0.0, 0.3),
    "max_hold_s": (10.0, 900.0),
    "cooldown_s": (0.0, 120.0),
    "trailing_activation_pct": (0.05, 0.5),
    "trailing_distance_pct": (0.02, 0.4),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, nargs="+", default=[64, 256, 1024])
    given = parser.parse_args()
    lab = Lab.sample()
    session = lab.session(
        lab.build_replay_session(
            "2025-11-18T10:00", "2025-11-18T11:00", ["BTCUSDT", "AIUSDT"], progress=False
        )
    )
    lab.sweep(session, sample(SMALL, 8), progress=False)
    print("axes  sets   Sobol: best net PnL, s     feedback: best net PnL, s")
    for space in (SMALL, LARGE):
        for trials in given.trials:
            found: dict[str, list[tuple[float, float]]] = {"sobol": [], "feedback": []}
            for seed in range(given.seeds):
                began = time.perf_counter()
                drawn = lab.sweep(session, sample(space, trials, seed=seed), progress=False)
                best = drawn.best(1, min_trades=10)["net_pnl"][0]
                found["sobol"].append((best, time.perf_counter() - began))
                began = time.perf_counter()
                searched = lab.optimise(
                    session, space, trials=trials, min_trades=10, seed=seed, progress=False
                )
                best = searched.best(1, min_trades=10)["net_pnl"][0]
                found["feedback"].append((best, time.perf_counter() - began))
            cells = [
                f"{statistics.median(pnl for pnl, _ in one):14.2f} {statistics.median(s for _, s in one):9.2f}"
                for one in found.values()
            ]
            print(f"{len(space):4d} {trials:5d}   {cells[0]}     {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
