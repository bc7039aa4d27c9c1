"""How fast are lines logged, and how long is the caller held?

python benchmarks/write.py [--lines N] [--peers PYTHON] [--pino FOLDER] [--folder FOLDER]

Every logger writes the same state events (some 330 bytes, numbers and times vary) to its own file on the same disk,
each in a process of its own. ``--peers`` is an interpreter in whose environment the peers are installed
(pip install structlog orjson loguru python-json-logger), ``--pino`` a folder in which ``npm install pino`` ran.
What is not there is left out, and the table says so.

What it does not show: a disk that is busy with something else; lines of other sizes; loggers that are set up to do
less or more than these. replaylab checks every field of every record and keeps processes apart; the others do
neither. On a machine that does other work the numbers move by tens of percent: compare within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from write_peers import PEERS, events, measure  # noqa: E402 - beside this file

OURS = {
    "replaylab flush": {},
    "replaylab flush, queue": {"queue": True},
    "replaylab fsync": {"durability": "fsync"},
}


def measure_ours(name: str, folder: Path, lines: int, producers: int) -> dict[str, Any]:
    """Log through the Logger with all guards on; at "queue" and "fsync" wait for every acknowledgement at the end."""
    from replaylab.config import LoggingConfig
    from replaylab.logging import Logger

    logger = Logger(folder / name.replace(" ", "_"), LoggingConfig(**OURS[name]))

    def log(event: dict[str, Any]) -> None:
        logger.log_state_event("BTCUSDT", event)

    found = measure(log, lines, producers, finish=logger.flush)
    logger.close()
    stats = logger.stats()
    if stats.failures or stats.drops:
        raise SystemExit(f"{name}: {stats.failures} lines failed, {stats.drops} were dropped")
    return found


def one_fsync_per_line(folder: Path, seconds: float, callers: int) -> float:
    """Lines per second of callers that each write and sync their own line: what group commit is to beat."""
    made = [json.dumps(event).encode() + b"\n" for event in events(100)]
    done = [0] * callers
    deadline = time.perf_counter() + seconds

    def caller(me: int) -> None:
        fd = os.open(folder / "each.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        while time.perf_counter() < deadline:
            os.write(fd, made[done[me] % 100])
            os.fsync(fd)
            done[me] += 1
        os.close(fd)

    return _callers(caller, callers, seconds, done)


def group_commit(folder: Path, seconds: float, callers: int, in_flight: int) -> float:
    """Acknowledged lines per second at "fsync": each caller has so many lines in flight, and waits for the oldest."""
    from replaylab.config import LoggingConfig
    from replaylab.logging import Logger

    logger = Logger(folder / f"group{in_flight}", LoggingConfig(durability="fsync"))
    made = events(1000)
    done = [0] * callers
    deadline = time.perf_counter() + seconds

    def caller(me: int) -> None:
        waiting: list[Any] = []
        n = 0
        while time.perf_counter() < deadline:
            waiting.append(logger.log_state_event("BTCUSDT", made[n % 1000]))
            n += 1
            if len(waiting) >= in_flight:
                # The oldest half, so that the disk always has something to do.
                for handle in waiting[: (in_flight + 1) // 2]:
                    handle.result()
                done[me] += (in_flight + 1) // 2
                del waiting[: (in_flight + 1) // 2]
        for handle in waiting:
            handle.result()
        done[me] += len(waiting)

    rate = _callers(caller, callers, seconds, done)
    logger.close()
    return rate


def group_commit_tasks(folder: Path, seconds: float, callers: int) -> float:
    """The same from one event loop: so many tasks, each awaits every line of its own."""
    from replaylab.config import LoggingConfig
    from replaylab.logging import Logger

    async def main() -> float:
        done = 0
        started = time.perf_counter()

        async def caller() -> None:
            nonlocal done
            n = 0
            while time.perf_counter() < started + seconds:
                await logger.log_state_event("BTCUSDT", made[n % 1000])
                done, n = done + 1, n + 1

        await asyncio.gather(*(caller() for _ in range(callers)))
        return done / (time.perf_counter() - started)

    made = events(1000)
    with Logger(folder / "tasks", LoggingConfig(durability="fsync")) as logger:
        return asyncio.run(main())


def _callers(work: Callable[[int], None], callers: int, seconds: float, done: list[int]) -> float:
    threads = [threading.Thread(target=work, args=(me,)) for me in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def _run(command: list[str | Path], **environment: str) -> dict[str, Any] | None:
    try:
        shown = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), **environment},
        )
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"  left out: {' '.join(map(str, command[:3]))}: {getattr(error, 'stderr', error)!s:.300}")
        return None
    found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    return found


def compare(args: argparse.Namespace, folder: Path) -> None:
    print(f"{args.lines:,} lines, {len(json.dumps(events(1)[0]))} bytes each; the best of {args.repeat} runs")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.platform()}\n")
    jobs: list[tuple[str, int, list[str | Path]]] = []
    for producers in (1, 4):
        jobs += [(name, producers, [sys.executable, __file__, "--worker", name]) for name in OURS]
        jobs += [(name, producers, [args.peers, HERE / "write_peers.py", name]) for name in PEERS]
    best: dict[tuple[str, int], dict[str, Any]] = {}
    # All of one round before the next: a busy minute of the machine then meets everybody.
    for _ in range(args.repeat):
        for name, producers, command in jobs:
            found = _run([*command, folder, str(args.lines), str(producers)])
            if found and found["rate"] > best.get((name, producers), {"rate": 0})["rate"]:
                best[name, producers] = found
        if args.pino:
            for title, length in (("pino sync", 0), ("pino 4 KiB batches", 4096)):
                found = _run(
                    ["node", HERE / "write_pino.cjs", folder, str(args.lines), str(length)],
                    PINO_HOME=args.pino,
                )
                if found and found["rate"] > best.get((title, 1), {"rate": 0})["rate"]:
                    best[title, 1] = found
    print(
        f"{'logger':28s} {'producers':>9s} {'lines/s':>9s} {'CPU µs':>7s} {'p50 µs':>7s} {'p99 µs':>7s} {'max µs':>8s} "
        f"{'ratio':>6s} {'by CPU':>6s}"
    )
    for (name, producers), found in sorted(best.items(), key=lambda item: (item[0][1], item[1]["cpu"])):
        ours = best["replaylab flush", producers]
        print(
            f"{name:28s} {producers:9d} {found['rate']:9,.0f} {found['cpu']:7.2f} {found['p50']:7.1f} "
            f"{found['p99']:7.1f} {found['max']:8.0f} {ours['rate'] / found['rate']:5.2f}x "
            f"{found['cpu'] / ours['cpu']:5.2f}x"
        )
    print(
        "\nCPU: processor time per line, all threads; steadier than lines/s where the machine does other work."
        "\np50, p99, max: how long one call holds its caller."
        "\nratio, by CPU: how many times as fast replaylab at flush is, by lines/s and by processor time."
    )


def compare_fsync(folder: Path, seconds: float) -> None:
    print("\nEvery line safe from the death of the machine, 16 concurrent callers (lines/s acknowledged)")
    single = one_fsync_per_line(folder, seconds, 1)
    each = one_fsync_per_line(folder, seconds, 16)
    rows = [
        ("one fsync per line, 1 caller", single),
        ("one fsync per line, 16 callers", each),
        ("group commit, 16 threads, each waits for every line", group_commit(folder, seconds, 16, 1)),
        ("group commit, 16 tasks, each awaits every line", group_commit_tasks(folder, seconds, 16)),
        ("group commit, 16 threads, 64 lines in flight each", group_commit(folder, seconds, 16, 64)),
        ("group commit, 16 threads, 512 lines in flight each", group_commit(folder, seconds, 16, 512)),
    ]
    for title, rate in rows:
        print(
            f"{title:52s} {rate:10,.0f}   {rate / single:6.1f}x one caller   {rate / each:6.1f}x 16 callers"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each fsync row")
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has the peers")
    parser.add_argument("--pino", help="a folder with node_modules/pino")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder, lines, producers = args.rest
        print(json.dumps(measure_ours(args.worker, Path(folder), int(lines), int(producers))))
        return
    folder = Path(tempfile.mkdtemp(prefix="replaylab-write-", dir=args.folder))
    try:
        compare(args, folder)
        compare_fsync(folder, args.seconds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
