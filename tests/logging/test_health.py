"""Health of logging, with real and injected causes, and at durability "flush"."""

from __future__ import annotations

import errno
import logging

import pytest

from replaylab.errors import LogWriteError
from replaylab.logging import Logger, health
from tests.logging import sample_records as sample
from tests.logging.faults import FaultyDisk


def test_t7_logging_is_ok_then_warn_when_a_write_fails_then_ok_again(tmp_path, caplog):
    """T7: disk full gives the caller the error and health WARN with the reason; the logger recovers by itself."""
    disk = FaultyDisk()
    logger = Logger(tmp_path, disk=disk)
    logger.log_order(sample.order()).result()
    assert (logger.health().status, logger.health().message) == ("OK", None)
    disk.write_error = errno.ENOSPC
    for _ in range(3):
        with pytest.raises(LogWriteError, match="No space left on device"):
            logger.log_order(sample.order()).result()
    with pytest.raises(LogWriteError):
        logger.write_risk_snapshot(sample.snapshots()["risk"]).result()
    found = logger.health()
    assert found.status == "WARN"
    assert "2 files cannot be written" in found.message
    assert "4 lines failed" in found.message
    assert "No space left" in found.message
    disk.write_error = 0
    logger.log_order(sample.order()).result()
    logger.write_risk_snapshot(sample.snapshots()["risk"]).result()
    assert logger.health().status == "OK"
    assert "4 lines failed" in logger.health().message, "what failed earlier is not forgotten"
    assert logger.stats().failures == 4
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("cannot write" in text for text in warned) == 2, "each file is reported once, not each line"
    assert sum("writing again" in text for text in warned) == 2


def test_awaiting_a_failed_line_raises(tmp_path):
    import asyncio

    disk = FaultyDisk()
    disk.open_error = errno.EACCES
    logger = Logger(tmp_path, disk=disk)

    async def main() -> None:
        await logger.log_trade(sample.trade())

    with pytest.raises(LogWriteError) as caught:
        asyncio.run(main())
    assert caught.value.errno == errno.EACCES
    assert str(caught.value.filename).endswith("day-2025-11-18.jsonl")
    assert isinstance(caught.value, OSError)


def test_logging_is_in_error_when_the_root_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    logger = Logger(tmp_path / "file" / "root")
    with pytest.raises(LogWriteError):
        logger.log_trade(sample.trade()).result()
    assert logger.health().status == "ERROR"


def test_logging_is_in_error_when_every_write_has_failed_for_a_minute(tmp_path, monkeypatch):
    disk = FaultyDisk()
    disk.write_error = errno.EIO
    logger = Logger(tmp_path, disk=disk)
    clock = 1000.0
    monkeypatch.setattr(health.time, "monotonic", lambda: clock)
    assert not logger.log_trade(sample.trade()).done() or logger.health().status == "WARN"
    clock += 61
    # Silence is no failure; a minute of failures is.
    assert logger.health().status == "WARN"
    logger.log_trade(sample.trade())
    monkeypatch.setattr("replaylab.logging.logger.time.monotonic", lambda: clock)
    assert logger.health().status == "ERROR"


def test_a_disk_that_is_low_is_a_warning(tmp_path):
    logger = Logger(tmp_path)
    found = logger.health(low_disk_bytes=1 << 62)
    assert found.status == "WARN"
    assert "disk is low" in found.message


def test_a_file_that_nobody_writes_to_any_more_does_not_keep_the_warning(tmp_path, monkeypatch):
    disk = FaultyDisk()
    logger = Logger(tmp_path, disk=disk)
    disk.write_error = errno.ENOSPC
    logger.log_trade(sample.trade())
    disk.write_error = 0
    real = health.time.monotonic
    monkeypatch.setattr(health.time, "monotonic", lambda: real() + 120)
    logger.log_trade(sample.trade(dateKey="2025-11-19")).result()
    assert logger.health().status == "OK"
