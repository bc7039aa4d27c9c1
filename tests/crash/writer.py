"""The process that the crash tests kill: logs as fast as it can, and reports which lines were acknowledged.

python writer.py ROOT NAME DURABILITY     (acknowledged numbers go to standard output, one line each)

The ledger is the pipe: what this process wrote into it survives its death in the reader's process.
"""

from __future__ import annotations

import asyncio
import os
import sys

from replaylab.config import LoggingConfig
from replaylab.logging import Logger
from tests.logging.sample_records import state_event

PAD = "x" * 5_000


def event(name: str, n: int) -> dict:
    # Every tenth line is longer than a page, so that kills find writes that take a while.
    return state_event(reason=f"{name}:{n}", extra={"n": n, "pad": PAD[: 5_000 if n % 10 == 0 else n % 300]})


def acknowledge(name: str, n: int) -> None:
    os.write(1, f"{name}:{n}\n".encode())


def flush(logger: Logger, name: str) -> None:
    n = 0
    while True:
        logger.log_state_event("BTCUSDT", event(name, n)).result()
        acknowledge(name, n)
        n += 1


async def grouped(logger: Logger, name: str) -> None:
    async def caller(first: int) -> None:
        n = first
        while True:
            await logger.log_state_event("BTCUSDT", event(name, n))
            acknowledge(name, n)
            n += 8

    await asyncio.gather(*(caller(first) for first in range(8)))


def main() -> None:
    root, name, durability = sys.argv[1:]
    if durability == "flush":
        flush(Logger(root), name)
    else:
        config = LoggingConfig(queue=True, durability="fsync" if durability == "fsync" else "flush")
        asyncio.run(grouped(Logger(root, config), name))


if __name__ == "__main__":
    main()
