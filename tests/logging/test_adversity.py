"""What a recorder meets in a long life: signals, forks, files taken away, handlers that raise, hidden secrets."""

from __future__ import annotations

import collections
import dataclasses
import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from replaylab.config import LoggingConfig
from replaylab.errors import LogWriteError
from replaylab.logging import Logger
from tests.logging import sample_records as sample
from tests.logging.faults import FaultyDisk

FSYNC = LoggingConfig(durability="fsync")


def wait_until(happened: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def events(root: Path, symbol: str = "BTCUSDT") -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (root / "events" / f"{symbol}.jsonl").read_bytes().splitlines()]


def run_alone(code: str, root: Path, settings: dict[str, Any]) -> str:
    """Run code in a process of its own, so that a deadlock is a failed test; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(root), repr(settings)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_symbol_that_is_no_file_name_is_reported_elsewhere_when_its_line_is_dropped(tmp_path: Path) -> None:
    """Orders may carry any symbol; the writer thread survives, and every line is acknowledged or refused."""
    disk = FaultyDisk()
    disk.gate = threading.Event()
    logger = Logger(tmp_path, LoggingConfig(queue=True, queue_size=2, overflow="drop"), disk=disk)
    handles = [logger.log_order(sample.order(symbol="BTC USDT"))]
    wait_until(lambda: logger.stats().queued == 0)
    handles += [logger.log_order(sample.order(symbol="BTC USDT")) for _ in range(9)]
    disk.gate.set()
    logger.flush(5)
    logger.log_order(sample.order()).result(5)
    logger.close()
    assert [handle.done() for handle in handles] == [True] * 10
    (report,) = events(tmp_path, "LOGGER")
    assert report["extra"]["streams"] == {"ORDER_LOG": 7}


def test_what_was_dropped_is_report_at_the_close_where_no_further_line_comes(tmp_path: Path) -> None:
    disk = FaultyDisk()
    disk.gate = threading.Event()
    logger = Logger(tmp_path, LoggingConfig(queue=True, queue_size=1, overflow="drop"), disk=disk)
    logger.log_state_event("BTCUSDT", sample.state_event())
    wait_until(lambda: logger.stats().queued == 0)
    for _ in range(5):
        logger.log_state_event("BTCUSDT", sample.state_event())
    disk.write_error = errno.ENOSPC
    disk.gate.set()
    logger.flush()
    disk.write_error = 0
    logger.close()
    assert [event["extra"].get("dropped") for event in events(tmp_path)] == [4]


def test_a_log_handler_that_raises_does_not_end_the_writer(tmp_path: Path) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("a handler of the user's")

    standard = logging.getLogger("replaylab.logging")
    handler = Raising()
    standard.addHandler(handler)
    try:
        disk = FaultyDisk()
        logger = Logger(tmp_path, FSYNC, disk=disk)
        disk.write_error = errno.EIO
        with pytest.raises(LogWriteError):
            logger.log_trade(sample.trade()).result(5)
        disk.write_error = 0
        logger.log_trade(sample.trade()).result(5)
        logger.close()
    finally:
        standard.removeHandler(handler)


@pytest.mark.parametrize("settings", [{}, {"queue": True}])
def test_a_signal_handler_may_log_whatever_it_interrupts(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Every line is there, each whole."""
    code = """
        import signal, sys, time
        from pathlib import Path
        from replaylab.config import LoggingConfig
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample

        logger = Logger(sys.argv[1], LoggingConfig(**eval(sys.argv[2])))
        counts = [0, 0]

        def handler(*_):
            logger.log_state_event("BTCUSDT", sample.state_event(reason="signal"))
            counts[1] += 1
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            for _ in range(200):
                logger.log_state_event("BTCUSDT", sample.state_event())
                counts[0] += 1
            # Slow stretches too, in which the file's lock is taken for each line.
            time.sleep(0.05 if counts[0] % 20_000 < 200 else 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        logger.close()
        print(*counts)
    """
    printed = run_alone(code, tmp_path, settings)
    plain, signals = map(int, printed.split())
    found = events(tmp_path)
    assert signals > 100
    assert sum(event["reason"] == "signal" for event in found) == signals
    assert len(found) == plain + signals


@pytest.mark.parametrize("config", [LoggingConfig(), FSYNC])
def test_lines_after_a_log_was_removed_are_in_a_new_one(tmp_path: Path, config: LoggingConfig) -> None:
    with Logger(tmp_path, config) as logger:
        for n in range(5):
            logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n))).result(5)
            if n in (0, 2):
                (tmp_path / "events" / "BTCUSDT.jsonl").unlink()
    assert [event["reason"] for event in events(tmp_path)] == ["3", "4"]


def test_a_rotation_that_is_killed_half_way_takes_no_later_line_with_it(tmp_path: Path) -> None:
    """The new file is there, the old one is not emptied yet: the next line goes to the new one."""
    code = """
        import os, signal, sys
        from replaylab.logging import rotate_lock
        from replaylab.fsio import write_atomic
        with rotate_lock(sys.argv[1]) as fd:
            write_atomic(sys.argv[1], b"", sync=False)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "events" / "BTCUSDT.jsonl"
    with Logger(tmp_path) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event(reason="before")).result()
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        logger.log_state_event("BTCUSDT", sample.state_event(reason="after")).result()
    assert [event["reason"] for event in events(tmp_path)] == ["after"]


@dataclasses.dataclass
class Credentials:
    apiKey: str  # noqa: N815 - as a program may name it


@pytest.mark.parametrize(
    "inside",
    [
        collections.OrderedDict(apiKey="S3CRET"),
        collections.defaultdict(str, apiKey="S3CRET"),
        ({"apiKey": "S3CRET"},),
        [[{"apiSecret": "S3CRET"}]],
        Credentials("S3CRET"),
        {
            "API_SECRET_KEY": "S3CRET",
            "private-key": "S3CRET",
            "Authorization": "Bearer S3CRET",
            "passwords": "S3CRET",
        },
    ],
    ids=lambda inside: type(inside).__name__,
)
def test_secrets_are_found_in_whatever_the_encoder_writes_as_an_object(tmp_path: Path, inside: Any) -> None:
    with Logger(tmp_path) as logger:
        logger.log_state_event("BTCUSDT", sample.state_event(extra={"score": 1, "auth": inside})).result()
        logger.log_trade({**sample.trade(), "auth": inside}).result()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert written.count(b"[redacted]") >= 2
    assert b"S3CRET" not in written


def test_fsync_syncs_the_name_of_a_file_that_somebody_else_made(tmp_path: Path) -> None:
    """The process that made it may not have synced its folder, and a file without a name is lost."""
    with Logger(tmp_path) as logger:
        logger.log_trade(sample.trade()).result()
    disk = FaultyDisk()
    with Logger(tmp_path, FSYNC, disk=disk) as logger:
        logger.log_trade(sample.trade()).result(5)
    assert str(tmp_path / "trades_log") in disk.synced


def test_lines_whose_folder_cannot_be_synced_are_taken_back(tmp_path: Path) -> None:
    class NoFolders(FaultyDisk):
        refuse = True

        def fsync(self, fd: int) -> None:
            if self.refuse and Path(f"/proc/self/fd/{fd}").readlink().is_dir():
                raise OSError(errno.EIO, "the folder cannot be synced")
            super().fsync(fd)

    disk = NoFolders()
    path = tmp_path / "events" / "BTCUSDT.jsonl"
    with Logger(tmp_path, FSYNC, disk=disk) as logger:
        with pytest.raises(LogWriteError, match="folder"):
            logger.log_state_event("BTCUSDT", sample.state_event()).result(5)
        assert path.read_bytes() == b""
        disk.refuse = False
        logger.log_state_event("BTCUSDT", sample.state_event()).result(5)
    assert len(events(tmp_path)) == 1


def test_a_fragment_that_finds_no_room_beside_the_log_takes_none(tmp_path: Path) -> None:
    """However often it is tried: half a fragment for each attempt would fill the disk that is full."""

    class Small(FaultyDisk):
        room = 10

        def write(self, fd: int, data: bytes) -> int:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".torn") and self.room < len(data):  # noqa: PTH115
                if not self.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                data, self.room = data[: self.room], 0
            return super().write(fd, data)

    path = tmp_path / "events" / "BTCUSDT.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"\0" * 100)
    disk = Small()
    with Logger(tmp_path, disk=disk) as logger:
        for _ in range(3):
            with pytest.raises(LogWriteError, match="No space"):
                logger.log_state_event("BTCUSDT", sample.state_event()).result()
            assert path.with_name("BTCUSDT.jsonl.torn").stat().st_size == 0
        disk.room = 1000
        logger.log_state_event("BTCUSDT", sample.state_event()).result()
    assert len(events(tmp_path)) == 1
    assert path.with_name("BTCUSDT.jsonl.torn").stat().st_size == 101


def _log_and_leave(root: str) -> None:
    logger = Logger(root, LoggingConfig(queue=True, max_delay_ms=50))
    for n in range(300):
        logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_worker_of_multiprocessing_that_ends_writes_what_waits(tmp_path: Path, method: str) -> None:
    """Such a process leaves without Python's exit handlers."""
    worker = multiprocessing.get_context(method).Process(target=_log_and_leave, args=(str(tmp_path),))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    assert [event["reason"] for event in events(tmp_path)] == [str(n) for n in range(300)]


def test_where_no_thread_can_be_started_the_caller_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    logger = Logger(tmp_path, LoggingConfig(queue=True))
    with monkeypatch.context() as patched:
        patched.setattr("replaylab.logging.group_commit.start_new_thread", refuse)
        for _ in range(2):
            assert logger.log_state_event("BTCUSDT", sample.state_event()).done()
    logger.log_state_event("BTCUSDT", sample.state_event()).result(5)
    logger.close()
    assert len(events(tmp_path)) == 3


def test_health_tells_of_a_disk_that_does_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultyDisk()
    disk.gate = threading.Event()
    logger = Logger(tmp_path, LoggingConfig(queue=True), disk=disk)
    logger.log_trade(sample.trade())
    wait_until(lambda: logger.stats().busy_seconds > 0)
    assert logger.health().status == "OK"
    real = time.monotonic
    for seconds, status in ((6, "WARN"), (61, "ERROR")):
        with monkeypatch.context() as patched:
            patched.setattr(
                "replaylab.logging.group_commit.time.monotonic", lambda seconds=seconds: real() + seconds
            )
            health = logger.health()
        assert health.status == status
        assert "not finished the last lines" in (health.message or "")
    disk.gate.set()
    logger.close()
    assert logger.health().status == "OK"


def test_a_trade_without_a_time_is_refused_with_its_name(tmp_path: Path) -> None:
    trade = {key: value for key, value in sample.trade(timestamp="").items() if key != "dateKey"}
    with Logger(tmp_path) as logger, pytest.raises(ValueError, match="TradeLogRecord"):
        logger.log_trade(trade)


@pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="Python 3.14 runs handlers between the acquisition of a lock and its `with` block: docs/durability.md",
)
@pytest.mark.parametrize("settings", [{}, {"queue": True}])
def test_a_signal_handler_that_raises_leaves_no_lock_behind(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Ctrl-C at any moment: afterwards other threads and other processes log on."""
    code = """
        import signal, sys, threading, time
        from replaylab.config import LoggingConfig
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample

        class Stop(Exception):
            pass

        def handler(*_):
            raise Stop

        logger = Logger(sys.argv[1], LoggingConfig(**eval(sys.argv[2])))
        signal.signal(signal.SIGALRM, handler)
        end, n = time.monotonic() + 3, 0
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003 + n % 7 * 0.0001)
                # msgspec drops what is raised while it examines a type, at the first event: then no Stop comes.
                late = time.monotonic() + 0.05
                while time.monotonic() < late:
                    logger.log_state_event("BTCUSDT", sample.state_event())
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                n += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        other = threading.Thread(
            target=lambda: logger.log_state_event("BTCUSDT", sample.state_event(reason="other thread")).result(5)
        )
        other.start()
        other.join(10)
        assert not other.is_alive()
        Logger(sys.argv[1]).log_state_event("BTCUSDT", sample.state_event(reason="other logger")).result()
        logger.close()
        print(n)
    """
    printed = run_alone(code, tmp_path, settings)
    assert int(printed) > 100
    assert {"other thread", "other logger"} <= {event["reason"] for event in events(tmp_path)}
