"""The peers of benchmarks/write.py: other loggers write the same events, one line and one flush each.

python benchmarks/write_peers.py NAME FOLDER LINES PRODUCERS     (prints JSON; run by write.py)

Runs with an interpreter of its own that has the peers installed: they are no dependencies of replaylab.
Each is set up as its documentation advises for JSON lines in a file, with nothing added that the others lack.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Log = Callable[[dict[str, Any]], Any]


def events(count: int) -> list[dict[str, Any]]:
    """State events of some 330 bytes whose numbers and times change from line to line."""
    made = []
    for n in range(count):
        score = round(((n * 7919) % 2000 - 1000) / 1000, 3)
        clock = f"{n // 3_600_000 % 24:02d}:{n // 60_000 % 60:02d}:{n // 1000 % 60:02d}.{n % 1000:03d}"
        made.append(
            {
                "timestamp": f"2025-11-18T{clock}Z",
                "symbol": "BTCUSDT",
                "fromState": "IDLE",
                "toState": "IDLE",
                "eventType": "SCORING_UPDATE",
                "reason": "score below threshold",
                "extra": {
                    "score": score,
                    "side": "LONG" if score > 0 else "SHORT",
                    "price": 91_000 + n % 997 / 10,
                    "components": {"flow": score / 2, "book": score / 3, "momentum": -score / 5},
                },
            }
        )
    return made


def structlog_orjson(path: Path) -> tuple[Log, Callable[[], None]]:
    """The set-up of structlog's page on performance: orjson, bytes, level, time stamp, a filtering logger."""
    import orjson
    import structlog

    file = path.open("ab")
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=structlog.make_filtering_bound_logger(20),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="loggedAt"),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        logger_factory=structlog.BytesLoggerFactory(file=file),
    )
    log = structlog.get_logger()
    return lambda event: log.info("event", **event), file.close


def structlog_bare(path: Path) -> tuple[Log, Callable[[], None]]:
    """structlog with the renderer and nothing else: no level, no time."""
    import orjson
    import structlog

    file = path.open("ab", buffering=0)
    log = structlog.wrap_logger(
        structlog.BytesLogger(file),
        processors=[structlog.processors.JSONRenderer(serializer=orjson.dumps)],
        wrapper_class=structlog.BoundLogger,
    ).bind()
    return lambda event: log.info("event", **event), file.close


def stdlib_json(path: Path) -> tuple[Log, Callable[[], None]]:
    import logging

    from pythonjsonlogger.json import JsonFormatter

    handler = logging.FileHandler(path)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("bench")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return lambda event: log.info("event", extra=event), handler.close


def loguru(path: Path) -> tuple[Log, Callable[[], None]]:
    from loguru import logger

    logger.remove()
    sink = logger.add(path, serialize=True)
    return lambda event: logger.bind(**event).info("event"), lambda: logger.remove(sink)


def bare(path: Path) -> tuple[Log, Callable[[], None]]:
    """No logger at all: orjson and one write call, nothing checked."""
    import os

    import orjson

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    return lambda event: os.write(fd, orjson.dumps(event) + b"\n"), lambda: os.close(fd)


PEERS = {
    "structlog, orjson": structlog_orjson,
    "structlog, renderer only": structlog_bare,
    "logging, python-json-logger": stdlib_json,
    "loguru": loguru,
    "no logger: orjson, os.write": bare,
}


def measure(
    log: Log, count: int, producers: int, finish: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Return lines per second, processor time per line, and how long a caller is held: p50, p99, max; microseconds.

    ``finish`` waits until every line is as safe as the logger promises; its time counts.
    """
    made = events(count // producers)
    for event in made[:5000]:
        log(event)
    finish()

    def fast() -> None:
        for event in made:
            log(event)

    started, busy = time.perf_counter(), time.process_time()
    _run(fast, producers)
    finish()
    rate = len(made) * producers / (time.perf_counter() - started)
    work = (time.process_time() - busy) / (len(made) * producers)

    held: list[list[int]] = []

    def timed() -> None:
        clock, mine = time.perf_counter_ns, []
        for event in made:
            begin = clock()
            log(event)
            mine.append(clock() - begin)
        held.append(mine)

    _run(timed, producers)
    finish()
    every = sorted(taken for mine in held for taken in mine)
    return {
        "rate": rate,
        "cpu": work * 1e6,
        "p50": every[len(every) // 2] / 1e3,
        "p99": every[len(every) * 99 // 100] / 1e3,
        "max": every[-1] / 1e3,
    }


def _run(work: Callable[[], None], producers: int) -> None:
    if producers == 1:
        work()
        return
    threads = [threading.Thread(target=work) for _ in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    name, folder, count, producers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    log, close = PEERS[name](folder / f"{name}.jsonl")
    found = measure(log, count, producers)
    close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
