"""How fast a log of state events becomes a DataFrame, beside other readers of JSON Lines.

    python benchmarks/read.py [--events 1000000] [--runs 5]

Every reader runs in a process of its own, in turn, and its file is in the page cache. Peers that are not installed
(DuckDB is no dependency) are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

TASKS = {
    "replaylab": "replaylab load_events",
    "replaylab-first": "replaylab load_events, first large log of a process",
    "replaylab-cache": "replaylab load_events, second load (cache)",
    "replaylab-append": "replaylab load_events, cache and 1 % appended",
    "polars": "polars read_ndjson, schema given",
    "polars-text": "polars read_ndjson, schema given, extra as text",
    "duckdb": "duckdb read_json, types given, extra as text",
    "pyarrow": "pyarrow.json, schema given",
    "pandas": "pandas read_json(lines=True)",
}
EXTRA_NUMBERS = ("score", "price", "confidence", "spread")
EXTRA_TEXTS = ("side", "regime", "note")
TEXTS = ("symbol", "fromState", "toState", "eventType", "reason")


def write_events(path: Path, count: int) -> None:
    """Seeded events as a trading system logs them; what ``extra`` holds varies by type."""
    rng = random.Random(5)
    moment = 1_763_460_000_000
    with path.open("wb") as file:
        for _ in range(count):
            moment += rng.randint(0, 150)
            clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 1000))
            roll = rng.random()
            if roll < 0.75:
                kind, reason = "SCORING_UPDATE", "score below entry threshold"
                extra = {
                    "score": round(rng.uniform(-1, 1), 6),
                    "side": rng.choice(("LONG", "SHORT", "NONE")),
                    "price": round(rng.gauss(95_000, 300), 2),
                    "components": {"flow": rng.random(), "book": rng.random(), "momentum": rng.gauss(0, 1)},
                }
            elif roll < 0.9:
                kind, reason = "REGIME_UPDATE", "volatility changed"
                extra = {"regime": rng.choice(("CALM", "VOLATILE")), "confidence": rng.random()}
            else:
                kind, reason = "EXECUTION_UPDATE", "order acknowledged"
                extra = {"note": "žuti " * rng.randint(0, 3), "spread": rng.random()}
            event = {
                "timestamp": f"{clock}.{moment % 1000:03d}Z",
                "symbol": "BTCUSDT",
                "fromState": rng.choice(("IDLE", "ARMED")),
                "toState": rng.choice(("IDLE", "ARMED", "IN_POSITION")),
                "eventType": kind,
                "reason": reason,
                "extra": extra,
            }
            file.write(orjson.dumps(event) + b"\n")


def load(task: str, root: Path, cache: Path) -> int:
    """Load the file with one reader, timestamps parsed; return the rows."""
    file = root / "events" / "BTCUSDT.jsonl"
    if task.startswith("replaylab"):
        from replaylab import frames

        keeps = task in ("replaylab-cache", "replaylab-append")
        loaded = frames.load_events(root, cache=cache if keeps else None)
        if loaded.lines != loaded.rows + loaded.blank + loaded.rejects.height:
            raise ValueError("lines are missing")
        return loaded.frame.height
    if task.startswith("polars"):
        import polars as pl

        inner = dict.fromkeys(EXTRA_NUMBERS, pl.Float64) | dict.fromkeys(EXTRA_TEXTS, pl.String)
        inner["components"] = pl.Struct(dict.fromkeys(("flow", "book", "momentum"), pl.Float64))
        extra = pl.String if task == "polars-text" else pl.Struct(inner)
        schema = dict.fromkeys(("timestamp", *TEXTS), pl.String) | {"extra": extra}
        frame = pl.read_ndjson(file, schema=schema)
        return frame.with_columns(pl.col("timestamp").str.to_datetime("%+", time_unit="ns")).height
    if task == "duckdb":
        import duckdb

        columns = dict.fromkeys(TEXTS, "VARCHAR") | {"timestamp": "TIMESTAMP", "extra": "VARCHAR"}
        query = f"SELECT * FROM read_json('{file}', format='newline_delimited', columns={columns})"
        table = duckdb.sql(query).to_arrow_table()
        return int(table.num_rows)
    if task == "pyarrow":
        import pyarrow as pa
        import pyarrow.json

        inner = [pa.field(name, pa.float64()) for name in EXTRA_NUMBERS]
        inner += [pa.field(name, pa.string()) for name in EXTRA_TEXTS]
        parts = pa.struct([pa.field(name, pa.float64()) for name in ("flow", "book", "momentum")])
        fields = [pa.field(name, pa.string()) for name in TEXTS]
        fields += [pa.field("timestamp", pa.timestamp("ms"))]
        fields += [pa.field("extra", pa.struct([*inner, pa.field("components", parts)]))]
        options = pyarrow.json.ParseOptions(explicit_schema=pa.schema(fields))
        return int(pyarrow.json.read_json(file, parse_options=options).num_rows)
    import pandas as pd

    return len(pd.read_json(file, lines=True, convert_dates=["timestamp"]))


def run_one(task: str, root: Path, cache: Path) -> dict[str, float]:
    """One load in this process: seconds, CPU seconds, peak memory over that of the imports, rows."""
    # Imports and first calls are no part of it.
    warm = root / "warm"
    if not warm.exists():
        (warm / "events").mkdir(parents=True)
        write_events(warm / "events" / "BTCUSDT.jsonl", 200)
    load(task, warm, cache)
    if task == "replaylab":
        from replaylab.frames.scanner import warm_up

        warm_up()
    before = peak_bytes()
    began, cpu = time.perf_counter(), time.process_time()
    rows = load(task, root, cache)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "peak": peak_bytes() - before,
        "rows": rows,
    }


def peak_bytes() -> int:
    """Highest memory use of this process. On Linux getrusage would report the parent's where that was higher."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(task: str, root: Path, cache: Path) -> dict[str, float] | str:
    """Run one task in a fresh process; its measurements, or the reason for none."""
    command = [sys.executable, __file__, "--task", task, str(root), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:80]
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, root, cache = options.task
        print(json.dumps(run_one(task, Path(root), Path(cache))))
        return
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name) / "data", Path(name) / "cache"
        file = root / "events" / "BTCUSDT.jsonl"
        file.parent.mkdir(parents=True)
        write_events(file, options.events)
        print(
            f"{options.events:,} state events, {file.stat().st_size / 1e6:.0f} MB, median of {options.runs}\n"
        )
        found: dict[str, list[dict[str, float]]] = {}
        failed: dict[str, str] = {}
        for _ in range(options.runs):
            for task in TASKS:
                if task == "replaylab-append" or task in failed:
                    continue
                if task == "replaylab-cache" and not cache.exists():
                    measure(task, root, cache)
                result = measure(task, root, cache)
                if isinstance(result, str):
                    failed[task] = result
                else:
                    found.setdefault(task, []).append(result)
        more = Path(name) / "more.jsonl"
        write_events(more, options.events // 100)
        with file.open("ab") as stream:
            stream.write(more.read_bytes())
        appended = measure("replaylab-append", root, cache)
        if not isinstance(appended, str):
            found["replaylab-append"] = [appended]
        ours = statistics.median(run["seconds"] for run in found["replaylab"])
        print(f"{'':<50}{'s':>8}{'cpu s':>8}{'peak MB':>9}{'rows':>11}{'time / ours':>13}")
        for task, title in TASKS.items():
            if task in failed:
                print(f"{title:<50}  not run: {failed[task]}")
                continue
            seconds, cpu, peak = (
                statistics.median(run[field] for run in found[task]) for field in ("seconds", "cpu", "peak")
            )
            rows = int(found[task][0]["rows"])
            print(
                f"{title:<50}{seconds:>8.3f}{cpu:>8.2f}{peak / 1e6:>9.0f}{rows:>11,}{seconds / ours:>13.2f}"
            )
    print(
        "\nAll readers parse timestamps; only replaylab checks every line against the record, keeps unknown fields and"
        "\nthe text of extra, and accounts for every line. All but pandas use all cores. The first large log"
        "\nin a process loads the scanner's machine code, and once per installation compiles it, some seconds."
        "\nPeak memory is what the load adds to a process that has its libraries loaded. Not shown: files with damaged"
        "\nlines or unknown fields (those lines are read one by one), small logs (below 96 MB the scanner is not worth"
        "\nloading, and msgspec reads them, some 170 MB a second), cold disks."
        "\nOn a machine that is busy with other work, compare the CPU time."
    )


if __name__ == "__main__":
    main()
