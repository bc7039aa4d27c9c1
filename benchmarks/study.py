"""A study over many sessions: peak memory, its cost beside a single session, and a cluster that loses a worker.

    python benchmarks/study.py --days 6 --symbols 4 --ticks 200000
    python benchmarks/study.py                  # 30 days × 10 symbols × 1,000,000 ticks × 1,000 sets: 40 GB of disk

Generated sessions, one a day with all symbols, as ``lab.build_sessions`` makes them: seeded walks, a score after every
fiftieth tick. Each step runs in a process of its own, so that its peak memory is its own: packing the days into tapes,
the sets on one day, the sets on all days, and all days once more on a ``LocalCluster`` of two workers of which one is
killed when half of the days are done. The pooled metrics of the last two must be equal to the bit.

The rate is processor time, so that what else the machine does changes it little.

What this does not show: sessions that overlap in time need a second pass for the order of their exits. A session that
is not packed yet costs its packing once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
from sweep import SECOND, grids, make_events

from replaylab import Config, Lab
from replaylab.sessions import save_session_frame
from replaylab.sweep import make_grid, open_tape, warm_up


def day_of(day: int, symbols: int, ticks: int) -> pl.DataFrame:
    """The events of one day, all symbols in order of time; no day overlaps another."""
    length = max(86_400, int(0.11 * ticks)) * SECOND
    parts = [
        make_events(ticks, 50, 0.5, seed=1000 * day + k).with_columns(
            symbol=pl.lit(f"S{k:02d}USDT"),
            timestamp=(pl.col("timestamp").dt.timestamp("ns") + day * length).cast(pl.Datetime("ns", "UTC")),
        )
        for k in range(symbols)
    ]
    return pl.concat(parts).sort("timestamp", maintain_order=True)


def build(lab: Lab, args: argparse.Namespace) -> dict[str, Any]:
    """Write the sessions."""
    for day in range(args.days):
        save_session_frame(lab.root, day_of(day, args.symbols, args.ticks), f"day-{day:03d}")
    files = [path.stat().st_size for path in Path(args.folder).rglob("*.jsonl")]
    return {"disk_mb": sum(files) / 1e6}


def packed(lab: Lab, args: argparse.Namespace) -> dict[str, Any]:
    """Pack every session into its tape, one at a time."""
    sizes = []
    for day in range(args.days):
        tape, _ = open_tape(lab.session(f"day-{day:03d}"), cache_dir=lab.config.cache_path)
        sizes.append(tape.nbytes)
    return {"tape_mb": sum(sizes) / len(sizes) / 1e6}


def single(lab: Lab, args: argparse.Namespace) -> dict[str, Any]:
    """Run the sets on each of some days alone, each for the first time; the median without that of the first day."""
    axes, base = grids("sparse", args.sets)
    times = []
    for session in opened(lab, args)[:5]:
        began = time.process_time()
        found = lab.sweep(session, axes, base, progress=False)
        times.append(time.process_time() - began)
    return {"timed": statistics.median(times[1:]), "method": found.method}


def study(lab: Lab, args: argparse.Namespace, executor: Any = None, name: str = "alone") -> dict[str, Any]:
    """Run the sets on all days; the frame is written for the comparison."""
    axes, base = grids("sparse", args.sets)
    # What a process does once is not counted, as for the single days.
    lab.sweep(opened(lab, args)[:1], {"sl_pct": [0.3]}, base, progress=False)
    began = time.process_time()
    found = lab.sweep(
        opened(lab, args), axes, base, progress=False, folder=f"{args.folder}/{name}", executor=executor
    )
    took = time.process_time() - began
    found.frame.write_parquet(f"{args.folder}/{name}.parquet")
    parts = [path.stat().st_size for path in Path(f"{args.folder}/{name}").iterdir()]
    part = sum(parts) / len(parts) / found.frame.height
    return {"timed": took, "trades": float(found.frame["n_trades"].mean()), "part": part}


def cluster(lab: Lab, args: argparse.Namespace) -> dict[str, Any]:
    """Run ``study`` on two workers; one is killed when half of the days are done."""
    from distributed import Client, LocalCluster

    killed: list[int] = []
    folder = Path(args.folder) / "cluster"

    def kill(pid: int) -> None:
        while len(list(folder.glob("*.parquet"))) < max(1, args.days // 2):
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as workers,
        Client(workers) as client,
    ):
        pid = min(client.run(os.getpid).values())
        threading.Thread(target=kill, args=(pid,), daemon=True).start()
        found = study(lab, args, client.get_executor(), "cluster")
        gone = pid not in client.run(os.getpid).values()
    same = pl.read_parquet(f"{args.folder}/cluster.parquet").equals(
        pl.read_parquet(f"{args.folder}/alone.parquet")
    )
    del found["timed"]
    return {**found, "killed": bool(killed) and gone, "same": same}


def opened(lab: Lab, args: argparse.Namespace) -> list[Any]:
    return [lab.session(f"day-{day:03d}") for day in range(args.days)]


def peak_mb() -> float:
    """Peak memory of this process in MB; what the kernel keeps starts again at exec, as getrusage's does not."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux names the peak memory of a process in /proc/self/status"
    return int(found.group(1)) / 1024


STEPS = {"build": build, "pack": packed, "single": single, "study": study, "cluster": cluster}


def step(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one step in a process of its own; returns what it found, its seconds and its peak memory."""
    options = [f"--{key}={getattr(args, key)}" for key in ("days", "symbols", "ticks", "sets", "folder")]
    done = subprocess.run(
        [sys.executable, __file__, "--step", name, *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def report(args: argparse.Namespace) -> None:
    axes, base = grids("sparse", args.sets)
    sets = make_grid(axes, base).rows
    ticks = args.days * args.symbols * args.ticks
    warm_up()
    print(
        f"{args.days} days × {args.symbols} symbols × {args.ticks:,} ticks × {sets:,} sets = "
        f"{ticks * sets:.3g} ticks × sets; {os.cpu_count()} cores"
    )
    print(
        f"  {'step':<26} {'seconds':>9} {'processor':>10} {'ps per tick and set':>20} {'peak memory, MB':>16}"
    )
    found = {}
    for name in STEPS:
        one = found[name] = step(name, args)
        work = ticks / args.days if name == "single" else ticks
        cpu = f"{one['timed']:.3f}" if "timed" in one else ""
        rate = f"{1e12 * one['timed'] / work / sets:.3f}" if "timed" in one else ""
        shown = {"single": "the sets on one day", "study": "the sets on all days", "pack": "packing all days"}
        label = {**shown, "cluster": "two workers, one killed", "build": "writing the sessions"}[name]
        print(
            f"  {label:<26} {one['seconds']:>9.2f} {cpu:>10} {rate:>20} {one['peak_mb']:>16,.0f}", flush=True
        )
    alone, all_days, lost = found["single"]["timed"], found["study"], found["cluster"]
    print(
        f"  a tape is {found['pack']['tape_mb']:,.0f} MB, the sessions {found['build']['disk_mb']:,.0f} MB; "
        f"{all_days['trades']:,.0f} trades per set ({found['single']['method']}); a part of the result "
        f"{all_days['part']:,.0f} bytes a set"
    )
    print(f"  all days beside one: {all_days['timed'] / args.days / alone:.2f} × per tick and set")
    print(
        f"  a worker was killed: {'yes' if lost['killed'] else 'NO'}; equal to the bit: "
        f"{'yes' if lost['same'] else 'NO'}"
    )
    if not (lost["same"] and lost["killed"]):
        raise SystemExit("the cluster's result means nothing")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=30, help="at least 2")
    parser.add_argument("--symbols", type=int, default=10)
    parser.add_argument("--ticks", type=int, default=1_000_000, help="of each symbol, a day")
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--folder", help="where the sessions are written; a temporary folder by default")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is None:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            args.folder = folder
            report(args)
        return
    lab = Lab(args.folder, config=Config(cache_dir=f"{args.folder}/cache"))
    warm_up()
    began = time.perf_counter()
    found = STEPS[args.step](lab, args)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_mb": peak_mb(), **found}))


if __name__ == "__main__":
    main()
