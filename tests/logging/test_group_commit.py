"""The queued writer: group commit, bounded waiting, and what happens when the disk stalls or fails."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from replaylab.config import LoggingConfig
from replaylab.errors import LogWriteError
from replaylab.logging import Logger, rotate_lock
from tests.logging import sample_records as sample
from tests.logging.faults import FaultyDisk

FSYNC = LoggingConfig(durability="fsync")


def events(tmp_path, symbol: str = "BTCUSDT") -> list[dict]:
    path = tmp_path / "events" / f"{symbol}.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def stalled(**settings) -> tuple[FaultyDisk, LoggingConfig]:
    disk = FaultyDisk()
    disk.gate = threading.Event()
    return disk, LoggingConfig(queue=True, **settings)


def wait_until(fact, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.mark.parametrize(
    "config", [FSYNC, LoggingConfig(queue=True), LoggingConfig(queue=True, max_delay_ms=5)]
)
def test_lines_keep_the_order_of_the_calls_and_all_arrive(tmp_path, config):
    with Logger(tmp_path, config) as logger:
        for n in range(500):
            logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n)))
            logger.log_state_event("ETHUSDT", sample.state_event("ETHUSDT", reason=str(n)))
        logger.log_trade(sample.trade()).result(timeout=10)
        logger.flush()
        assert logger.stats().lines == 1001
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert [event["reason"] for event in events(tmp_path, symbol)] == [str(n) for n in range(500)]


def test_an_acknowledged_line_was_synced_before(tmp_path):
    disk = FaultyDisk()
    with Logger(tmp_path, FSYNC, disk=disk) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event()).result(5)
        assert any(name.endswith("BTCUSDT.jsonl") or name.isdigit() for name in disk.synced)
        disk.synced.clear()
        logger.write_risk_snapshot(sample.snapshots()["risk"]).result(5)
        assert len(disk.synced) == 3, "the name of the new folder, the snapshot, and its name"


def test_many_callers_share_one_write_and_one_sync(tmp_path):
    """While the disk is busy the lines of all callers gather, and go out in one write and one sync per file."""
    disk = FaultyDisk()
    disk.gate = threading.Event()
    with Logger(tmp_path, FSYNC, disk=disk) as logger:
        first = logger.log_state_event("BTCUSDT", sample.state_event())
        wait_until(lambda: logger.stats().queued == 0)
        threads = [
            threading.Thread(
                target=lambda: logger.log_state_event("BTCUSDT", sample.state_event()).result(10)
            )
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: logger.stats().queued == 16)
        assert not first.done()
        disk.gate.set()
        for thread in threads:
            thread.join()
        assert first.done()
        assert disk.writes == 2
    assert len(events(tmp_path)) == 17


def test_max_delay_lets_a_group_gather(tmp_path):
    disk = FaultyDisk()
    with Logger(tmp_path, LoggingConfig(durability="fsync", max_delay_ms=300), disk=disk) as logger:
        started = time.monotonic()
        handles = []
        for _ in range(5):
            handles.append(logger.log_state_event("BTCUSDT", sample.state_event()))
            time.sleep(0.01)
        handles[-1].result(5)
        assert time.monotonic() - started > 0.25
        assert disk.writes == 1
        logger.log_state_event("BTCUSDT", sample.state_event())
        started = time.monotonic()
        logger.flush()
        assert time.monotonic() - started < 0.25, "flush does not wait for the group to gather"


def test_awaited_handles_wake_their_loop(tmp_path):
    async def main() -> None:
        async with Logger(tmp_path, FSYNC) as logger:
            await logger.log_state_event("BTCUSDT", sample.state_event())
            await asyncio.gather(
                *(logger.log_state_event("BTCUSDT", sample.state_event()) for _ in range(200))
            )
            handle = logger.log_trade(sample.trade())
            await asyncio.wait_for(handle, 5)
            await handle

    asyncio.run(main())
    assert len(events(tmp_path)) == 201


def test_a_caller_that_is_cancelled_leaves_the_line_on_its_way(tmp_path):
    disk, config = stalled()
    logger = Logger(tmp_path, config, disk=disk)

    async def main() -> None:
        handle = logger.log_state_event("BTCUSDT", sample.state_event())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.01)
        disk.gate.set()
        await asyncio.wait_for(handle, 5)

    asyncio.run(main())
    logger.close()
    assert len(events(tmp_path)) == 1


def test_a_stalled_disk_never_blocks_an_event_loop(tmp_path):
    """With the queue full and the disk stalled, a loop that logs 200 lines is held for a bounded time in all."""
    disk, config = stalled(queue_size=10)
    logger = Logger(tmp_path, config, disk=disk)
    longest = 0.0

    async def main() -> int:
        nonlocal longest
        refused = 0
        for _ in range(200):
            started = time.perf_counter()
            handle = logger.log_state_event("BTCUSDT", sample.state_event())
            longest = max(longest, time.perf_counter() - started)
            refused += handle.done()
            await asyncio.sleep(0)
        return refused

    started = time.perf_counter()
    refused = asyncio.run(main())
    assert refused >= 200 - 10 - 10
    assert longest < 1.0
    assert time.perf_counter() - started < 2.0
    assert logger.stats().drops == refused
    disk.gate.set()
    logger.close()
    assert sum(event["eventType"] == "SCORING_UPDATE" for event in events(tmp_path)) == 200 - refused


def test_a_file_that_another_process_holds_stalls_the_writer_and_not_the_loop(tmp_path):
    """A real stall, no seam: the file's lock is held elsewhere; other files wait too, and nothing is lost."""

    async def main() -> None:
        async with Logger(tmp_path, LoggingConfig(queue=True)) as logger:
            await logger.log_state_event("BTCUSDT", sample.state_event())
            with rotate_lock(tmp_path / "events" / "BTCUSDT.jsonl"):
                started = time.perf_counter()
                handles = [logger.log_state_event("BTCUSDT", sample.state_event()) for _ in range(100)]
                assert time.perf_counter() - started < 1.0
                await asyncio.sleep(0.05)
                assert not any(handle.done() for handle in handles)
                with pytest.raises(TimeoutError):
                    handles[0].result(timeout=0.01)
                with pytest.raises(TimeoutError, match="wait for the disk"):
                    logger.flush(timeout=0.01)
            await asyncio.gather(*handles)

    asyncio.run(main())
    assert len(events(tmp_path)) == 101


def test_a_full_queue_makes_a_thread_wait_and_loses_nothing(tmp_path):
    disk, config = stalled(queue_size=5)
    logger = Logger(tmp_path, config, disk=disk)
    logged = []

    def log() -> None:
        for n in range(50):
            logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n)))
            logged.append(n)

    caller = threading.Thread(target=log)
    caller.start()
    wait_until(lambda: logger.stats().queued == 5)
    time.sleep(0.05)
    assert len(logged) <= 5 + 5 + 1, "the caller waits: the queue is bounded"
    assert logger.health().status == "WARN"
    assert "near full" in logger.health().message
    disk.gate.set()
    caller.join(10)
    logger.close()
    assert [event["reason"] for event in events(tmp_path)] == [str(n) for n in range(50)]
    assert logger.stats().drops == 0
    assert logger.health().status == "OK"


def test_dropped_lines_are_counted_in_health_and_in_the_log_itself(tmp_path):
    """overflow="drop": rows + what the log says was dropped = lines that were logged."""
    disk, config = stalled(queue_size=5, overflow="drop")
    logger = Logger(tmp_path, config, disk=disk)
    handles = []
    for n in range(40):
        if n == 1:
            # The writer takes the first line and stalls with it; from then on the queue only fills.
            wait_until(lambda: logger.stats().queued == 0)
        event = sample.state_event(timestamp=f"2025-11-18T10:00:{n:02d}.000Z")
        handles.append(logger.log_state_event("BTCUSDT", event))
    trade = logger.log_trade(sample.trade())
    event = {"timestamp": "2025-11-18T10:00:00.000Z", "type": "X", "symbol": None, "payload": {}}
    replay = logger.append_replay_event("s1", event)
    logger.write_risk_snapshot(sample.snapshots()["risk"])
    dropped = [handle for handle in handles if handle.done()]
    assert len(dropped) >= 30
    with pytest.raises(LogWriteError, match="queue is full"):
        dropped[0].result(5)
    with pytest.raises(LogWriteError):
        trade.result(5)
    with pytest.raises(LogWriteError):
        replay.result(5)
    assert logger.stats().drops == len(dropped) + 3
    assert logger.health().status == "WARN"
    assert f"{len(dropped) + 3} lines dropped" in logger.health().message
    disk.gate.set()
    logger.close()
    found = events(tmp_path)
    marker = found[-1]
    assert marker["eventType"] == "LOG_LINES_DROPPED"
    assert marker["extra"]["dropped"] == len(dropped) + 1
    assert marker["extra"]["streams"] == {"STATE_EVENT": len(dropped), "TRADE_LOG": 1}
    assert marker["extra"]["lastTimestamp"] == marker["timestamp"]
    assert len(found) - 1 + len(dropped) == 40
    (report,) = (tmp_path / "replay/sessions/s1/events.jsonl").read_text().splitlines()
    assert json.loads(report)["payload"]["dropped"] == 1


def test_the_caller_and_health_learn_of_a_failure_and_the_logger_recovers(tmp_path):
    disk = FaultyDisk()
    logger = Logger(tmp_path, FSYNC, disk=disk)
    logger.log_trade(sample.trade()).result(5)
    for fault in ("write_error", "fsync_error"):
        setattr(disk, fault, errno.ENOSPC)
        with pytest.raises(LogWriteError, match="No space left") as caught:
            logger.log_trade(sample.trade()).result(5)
        assert caught.value.errno == errno.ENOSPC
        assert logger.health().status == "WARN"
        assert "No space left" in logger.health().message
        setattr(disk, fault, 0)
        logger.log_trade(sample.trade()).result(5)
        assert logger.health().status == "OK"
    logger.close()
    assert logger.stats().failures == 2
    assert len((tmp_path / "trades_log/day-2025-11-18.jsonl").read_text().splitlines()) == 3


def test_one_file_that_fails_does_not_fail_the_others_of_its_group(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "BTCUSDT.jsonl").mkdir()
    with Logger(tmp_path, FSYNC) as logger:
        bad = logger.log_state_event("BTCUSDT", sample.state_event())
        good = logger.log_state_event("ETHUSDT", sample.state_event("ETHUSDT"))
        good.result(5)
        with pytest.raises(LogWriteError, match="Is a directory"):
            bad.result(5)


def test_of_many_snapshots_that_wait_only_the_newest_is_written_and_all_are_acknowledged(tmp_path):
    disk, config = stalled()
    logger = Logger(tmp_path, config, disk=disk)
    snapshot = sample.snapshots()["execution"]
    handles = [logger.write_execution_snapshot({**snapshot, "activeOrdersCount": n}) for n in range(50)]
    disk.gate.set()
    for handle in handles:
        handle.result(5)
    logger.close()
    assert json.loads((tmp_path / "system/execution_snapshot.json").read_text())["activeOrdersCount"] == 49
    assert disk.writes <= 3


def test_a_process_that_ends_without_close_writes_what_waits(tmp_path):
    code = """
import sys
from replaylab.config import LoggingConfig
from replaylab.logging import Logger
from tests.logging.sample_records import trade
logger = Logger(sys.argv[1], LoggingConfig(queue=True, max_delay_ms=200))
for _ in range(1000): logger.log_trade(trade())
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert len((tmp_path / "trades_log/day-2025-11-18.jsonl").read_text().splitlines()) == 1000


def test_a_closed_queue_starts_again(tmp_path):
    logger = Logger(tmp_path, FSYNC)
    for _ in range(3):
        logger.log_trade(sample.trade()).result(5)
        logger.close()
        assert logger._writer._token is None
    assert logger.stats().lines == 3


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_logs_with_a_thread_of_its_own(tmp_path):
    logger = Logger(tmp_path, FSYNC)
    logger.log_trade(sample.trade()).result(5)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            logger.log_trade(sample.trade()).result(5)
            status = 0
        finally:
            os._exit(status)
    logger.log_trade(sample.trade()).result(5)
    assert os.waitpid(child, 0)[1] == 0
    logger.close()
    assert len((tmp_path / "trades_log/day-2025-11-18.jsonl").read_text().splitlines()) == 3
