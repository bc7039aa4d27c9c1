"""How fast exchange files come in, beside programs that only parse them.

    python benchmarks/importing.py [--rows 3000000]

Prints rows per second and the highest memory use of each, every one in a process of its own, on seeded files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

START_MS = 1_735_689_600_000
DAY_MS = 86_400_000


def write_files(folder: Path, rows: int) -> dict[str, Path]:
    """One UTC day of seeded trades in three archive formats, and an order book in one."""
    rng = np.random.default_rng(11)
    times = np.sort(rng.integers(0, DAY_MS, rows)) + START_MS
    prices = (9_000_000 + rng.integers(-3, 4, rows).cumsum()) / 100
    lots = rng.integers(1, 100_000, rows)
    maker = rng.random(rows) < 0.5
    binance = pl.DataFrame(
        {
            "id": np.arange(4_500_000_000, 4_500_000_000 + rows),
            "price": prices,
            "qty": lots / 100_000,
            "quoteQty": (prices * lots / 100_000).round(8),
            "time": times * 1000,
            "isBuyerMaker": maker,
            "isBestMatch": True,
        }
    )
    files = {"binance-trades": folder / "BTCUSDT-trades-2025-01-01.csv"}
    binance.write_csv(files["binance-trades"], include_header=False)
    bybit = pl.DataFrame(
        {
            "timestamp": pl.Series(times).cast(pl.String).str.replace(r"(\d{3})$", ".${1}0"),
            "symbol": "BTCUSDT",
            "side": np.where(maker, "Sell", "Buy"),
            "size": lots / 1000,
            "price": prices,
            "tickDirection": "ZeroPlusTick",
            "trdMatchID": pl.Series(rng.integers(0, 2**62, rows)).cast(pl.String),
            "grossValue": 1.0,
            "homeNotional": 1.0,
            "foreignNotional": 1.0,
        }
    )
    files["bybit-trades"] = folder / "BTCUSDT2025-01-01.csv.gz"
    with gzip.open(files["bybit-trades"], "wb", compresslevel=1) as stream:
        stream.write(bybit.write_csv().encode())
    tardis = pl.DataFrame(
        {
            "exchange": "binance",
            "symbol": "BTCUSDT",
            "timestamp": times * 1000,
            "local_timestamp": times * 1000 + 4_321,
            "id": np.arange(rows),
            "side": np.where(maker, "sell", "buy"),
            "price": prices,
            "amount": lots / 1000,
        }
    )
    files["tardis-trades"] = folder / "binance_trades_2025-01-01_BTCUSDT.csv"
    tardis.write_csv(files["tardis-trades"])
    messages = np.arange(rows) // 10
    book = pl.DataFrame(
        {
            "exchange": "binance",
            "symbol": "BTCUSDT",
            "timestamp": START_MS * 1000 + messages * 100_000,
            "local_timestamp": START_MS * 1000 + messages * 100_000 + 1_234,
            "is_snapshot": messages == 0,
            "side": np.where(maker, "bid", "ask"),
            "price": prices,
            "amount": lots / 1000,
        }
    ).with_columns(pl.col("is_snapshot").cast(pl.String))
    files["tardis-book"] = folder / "binance_incremental_book_L2_2025-01-01_BTCUSDT.csv"
    book.write_csv(files["tardis-book"])
    return files


def write_rejects(folder: Path, rows: int) -> dict[str, Path]:
    """A table of trades that is clean, and tables of which every row is rejected for one reason."""
    cells = {
        "clean": ("{time}", "1", "buy"),
        "quantity 0": ("{time}", "0", "buy"),
        "unknown side": ("{time}", "1", "left"),
        "time 0": ("0", "1", "buy"),
        "a column too many": ("{time}", "1", "buy,"),
        "quoted, a column too many": ("{time}", '"1"', "buy,"),
        "a quote not closed": ("{time}", "1", '"buy'),
    }
    files = {}
    for title, (time_cell, qty, side) in cells.items():
        files[title] = folder / f"{title}.csv"
        with files[title].open("w") as stream:
            stream.write("timestamp,price,qty,side\n")
            for number in range(rows):
                cell = time_cell.format(time=START_MS + number)
                stream.write(f"{cell},{100 + number % 7},{qty},{side}\n")
    return files


def run_one(task: str, file: Path, folder: Path) -> dict[str, float]:
    """Do one task in this process; seconds and peak memory."""
    began = time.perf_counter()
    if task == "polars":
        pl.read_csv(file, has_header=False).write_parquet(
            folder / "bare.parquet", compression="zstd", compression_level=1
        )
    elif task == "duckdb":
        import duckdb

        duckdb.sql(
            f"COPY (SELECT * FROM read_csv('{file}')) TO '{folder / 'duck.parquet'}' (COMPRESSION zstd)"
        )
    else:
        from replaylab.errors import HistoryError
        from replaylab.importers import import_history

        options = {"symbol": "X"} if task == "csv" else {}
        with suppress(HistoryError):  # the files of rejects are refused
            import_history(folder / f"{file.name}-history", task, file, **options)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time(), "peak": peak_bytes()}


def peak_bytes() -> int:
    """Highest memory use of this process. On Linux getrusage would report the parent's where that was higher."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, file, folder = options.task
        print(json.dumps(run_one(task, Path(file), Path(folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, options.rows)
        tasks = [
            *((fmt, fmt, file) for fmt, file in files.items()),
            *(
                ("csv", f"csv, every row: {title}" if title != "clean" else "csv, clean", file)
                for title, file in write_rejects(folder, options.rows).items()
            ),
            ("binance-trades", "binance-trades again (all duplicates)", files["binance-trades"]),
            ("polars", "polars read_csv + write_parquet, no checks", files["binance-trades"]),
            ("duckdb", "duckdb COPY csv to parquet, no checks", files["binance-trades"]),
        ]
        clean = 0.0
        print(f"{options.rows:,} rows, one UTC day, in files of one day\n")
        print(f"{'':<44}{'MB file':>9}{'s':>8}{'cpu s':>8}{'rows/s':>13}{'peak MB':>9}")
        for task, title, file in tasks:
            command = [sys.executable, __file__, "--task", task, str(file), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{title:<44}  not run: {done.stderr.strip().splitlines()[-1][:70]}")
                continue
            measured = json.loads(done.stdout)
            clean = measured["seconds"] if title == "csv, clean" else clean
            ratio = f"  {measured['seconds'] / clean:.2f} × clean" if title.startswith("csv, every") else ""
            rate = options.rows / measured["seconds"]
            size = file.stat().st_size / 1e6
            print(
                f"{title:<44}{size:>9.0f}{measured['seconds']:>8.2f}{measured['cpu']:>8.2f}"
                f"{rate:>13,.0f}{measured['peak'] / 1e6:>9.0f}{ratio}"
            )
    print(
        "\nTimes include reading, all checks, sorting, merging and Parquet; the CPU time also starting Python. For"
        "\ntardis-book a row is one level. Not shown: JSON captures (Python parses each message), slow disks, files of"
        "\nmany days. On a machine that is busy with other work, compare the CPU time."
    )


if __name__ == "__main__":
    main()
