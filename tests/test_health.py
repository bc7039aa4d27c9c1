"""T7: the health of logging, replay and retention, each state by a real cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replaylab.archive import run_retention
from replaylab.config import Config, LoggingConfig, RetentionConfig
from replaylab.errors import LogWriteError, PriceError, ReplaylabError, SessionNotFoundError
from replaylab.fsio import Disk
from replaylab.health import check_health
from replaylab.lab import Lab
from replaylab.logging import Logger
from replaylab.paths import DataRoot
from replaylab.records import HealthSnapshot, ReplayEvent, ReplayStatus
from replaylab.replay import ReplayEngine, read_status
from replaylab.replay.control import publish
from replaylab.sessions import SessionStore
from replaylab.testing import SessionBuilder
from tests.archive.roots import event, trade, write_lines, write_session


class Handler:
    def handle_event(self, event: ReplayEvent) -> None:
        pass


def status_of(snapshot: HealthSnapshot, service: str) -> tuple[str, str | None]:
    found = snapshot.services[service]
    return found.status, found.message


def test_t7_an_empty_root_is_well(tmp_path: Path) -> None:
    snapshot = check_health(tmp_path)
    assert {name: service.status for name, service in snapshot.services.items()} == {
        "logging": "OK",
        "replay": "OK",
        "retention": "OK",
    }
    assert HealthSnapshot.from_dict(snapshot.to_dict()).to_dict() == snapshot.to_dict()


def test_t7_logging_is_ok_after_good_writes(tmp_path: Path) -> None:
    with Logger(DataRoot(tmp_path)) as logger:
        logger.log_state_event("BTCUSDT", event("2025-11-18")).result()
        assert status_of(check_health(tmp_path, logger), "logging") == ("OK", None)


def test_t7_logging_warns_when_a_write_fails_and_recovers(tmp_path: Path) -> None:
    """A folder stands where the file should be: the write fails for real."""
    root = DataRoot(tmp_path)
    blocker = root.events("BTCUSDT")
    blocker.mkdir(parents=True)
    with Logger(root) as logger:
        with pytest.raises(LogWriteError):
            logger.log_state_event("BTCUSDT", event("2025-11-18")).result()
        status, message = status_of(check_health(root, logger), "logging")
        assert status == "WARN"
        assert "BTCUSDT.jsonl" in str(message)
        blocker.rmdir()
        logger.log_state_event("BTCUSDT", event("2025-11-18")).result()
        assert status_of(check_health(root, logger), "logging")[0] == "OK"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_t7_logging_warns_when_the_disk_is_full(tmp_path: Path) -> None:
    """The log is a link to /dev/full, which answers every write with "No space left on device"."""
    root = DataRoot(tmp_path)
    root.events_dir.mkdir(parents=True)
    root.events("BTCUSDT").symlink_to("/dev/full")
    with Logger(root) as logger:
        with pytest.raises(LogWriteError, match="No space left"):
            logger.log_state_event("BTCUSDT", event("2025-11-18")).result()
        status, message = status_of(check_health(root, logger), "logging")
        assert status == "WARN"
        assert "No space left on device" in str(message)


def test_t7_logging_warns_when_lines_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()
    real = os.write

    class Stalled(Disk):
        @staticmethod
        def write(fd: int, data: bytes) -> int:  # type: ignore[override]
            gate.wait(10)
            return real(fd, data)

    config = LoggingConfig(queue=True, queue_size=2, overflow="drop")
    logger = Logger(DataRoot(tmp_path), config, disk=Stalled())
    try:
        for second in range(20):
            logger.log_state_event("BTCUSDT", event("2025-11-18", second))
        status, message = status_of(check_health(tmp_path, logger), "logging")
        assert status == "WARN"
        assert "dropped" in str(message)
    finally:
        gate.set()
        logger.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_t7_logging_is_in_error_when_the_root_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert status_of(check_health(tmp_path), "logging")[0] == "ERROR"
    finally:
        tmp_path.chmod(0o700)


def test_t7_logging_is_in_error_when_the_root_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file", encoding="utf-8")
    assert status_of(check_health(tmp_path / "data"), "logging")[0] == "ERROR"


def played(root: DataRoot, **fields: object) -> None:
    publish(root, ReplayStatus.from_dict({"sessionId": "s1", **fields}))


def test_t7_replay_is_ok_while_and_after_it_plays(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    folder = write_session(tmp_path, "s1", "2025-11-18")
    for running in (True, False):
        played(root, running=running, lateness={"p50": 0.1, "p99": 1.0, "max": 2.0})
        assert status_of(check_health(root), "replay") == ("OK", None)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    # A session that was played may be deleted afterwards.
    assert status_of(check_health(root), "replay")[0] == "OK"


def test_t7_replay_warns_of_lateness_and_rejects(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    folder = write_session(tmp_path, "s1", "2025-11-18")
    played(root, running=True, lateness={"p50": 80.0, "p99": 250.0, "max": 900.0})
    assert status_of(check_health(root), "replay") == (
        "WARN",
        "events were late: p99 250 ms, up to 100 ms is fine",
    )
    played(root, running=True)
    write_lines(folder / "meta.json", {"sources": [{"file": "events/B.jsonl", "rejects": 3}]})
    status, message = status_of(check_health(root), "replay")
    assert status == "WARN"
    assert "3 lines" in str(message)


def test_t7_replay_is_in_error_when_the_session_does_not_exist(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    played(root, running=True)
    assert status_of(check_health(root), "replay") == ("ERROR", "replay session 's1' does not exist")


def test_t7_replay_is_in_error_after_a_session_was_asked_for_that_is_not_there(tmp_path: Path) -> None:
    """Until a session is played again."""
    root = DataRoot(tmp_path)
    write_session(tmp_path, "s1", "2025-11-18")
    engine = ReplayEngine(SessionStore(root))
    with pytest.raises(SessionNotFoundError):
        engine.start_session("s2")
    status, message = status_of(check_health(root), "replay")
    assert status == "ERROR"
    assert "'s2'" in str(message)
    engine.start_session("s1", float("inf"))
    assert engine.wait(20)
    assert status_of(check_health(root), "replay")[0] == "OK"


def test_t7_replay_is_in_error_when_its_process_was_killed(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    write_session(tmp_path, "s1", "2025-11-18")
    code = (
        "import os, signal, sys\n"
        "from replaylab.paths import DataRoot\n"
        "from replaylab.records import ReplayStatus\n"
        "from replaylab.replay.control import publish\n"
        "publish(DataRoot(sys.argv[1]), ReplayStatus(session_id='s1', running=True))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert not read_status(root).running
    assert status_of(check_health(root), "replay")[0] == "ERROR"


def test_retention_reports_its_last_run_and_its_errors(tmp_path: Path) -> None:
    write_lines(tmp_path / "trades_log/day-2025-01-01.jsonl", trade("2025-01-01"))
    run_retention(tmp_path, now="2025-11-18")
    assert status_of(check_health(tmp_path), "retention") == ("OK", "1 deleted, 0 kept")
    write_lines(tmp_path / "trades_log/day-2025-01-02.jsonl", trade("2025-01-02"))
    write_lines(tmp_path / "summary/trades_log/day-2025-01-02.json", "{broken")
    run_retention(tmp_path, now="2025-11-18")
    status, message = status_of(check_health(tmp_path), "retention")
    assert status == "WARN"
    assert "day-2025-01-02.jsonl" in str(message)


def test_a_daily_clean_up_that_is_overdue_is_told(tmp_path: Path) -> None:
    run_retention(tmp_path)
    report = tmp_path / "system/retention_report.json"
    long_ago = report.stat().st_mtime - 3 * 86_400
    os.utime(report, (long_ago, long_ago))
    config = Config(retention=RetentionConfig(daily_at="03:30"))
    assert status_of(check_health(tmp_path, config=config), "retention")[0] == "WARN"
    assert status_of(check_health(tmp_path), "retention")[0] == "OK"
    report.write_text(json.dumps([]), encoding="utf-8")
    assert status_of(check_health(tmp_path), "retention")[0] == "WARN"


def test_t7_replay_warns_of_a_session_whose_lines_cannot_be_read(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    write_session(tmp_path, "s1", "2025-11-18")
    good = (
        '{"timestamp":"2025-11-18T10:00:00.000Z","type":"SCORING_UPDATE","symbol":"A","payload":{"score":1}}'
    )
    root.session_events("s1").write_text(f"{good}\n{{broken\n{good}\n")
    engine = ReplayEngine(SessionStore(root), Handler())
    with pytest.warns(UserWarning, match="1 lines of"):
        engine.start_session("s1", speed_factor=float("inf"))
    assert engine.wait(10)
    assert read_status(root).rejects == 1
    status, message = status_of(check_health(root), "replay")
    assert status == "WARN"
    assert "1 lines of session 's1' could not be read" in str(message)


@pytest.mark.parametrize("session_id", ["a/b", "s1"])
def test_t7_replay_is_in_error_after_it_could_not_start(tmp_path: Path, session_id: str) -> None:
    """A name that leaves its folder, and a run folder that cannot be made."""
    root = DataRoot(tmp_path)
    write_session(tmp_path, "s1", "2025-11-18")
    root.session_events("s1").with_name("runs").write_text("no folder")
    engine = ReplayEngine(SessionStore(root))
    with pytest.raises(ReplaylabError):
        engine.start_session(session_id)
    assert status_of(check_health(root), "replay")[0] == "ERROR"


def test_t7_replay_is_in_error_after_a_session_without_prices(tmp_path: Path) -> None:
    """A replay that would give no trades is refused; health names the symbol and the event types."""
    SessionBuilder("2025-11-18T10:00:00Z").score("AAA", 0.9, at=0).build(tmp_path, "scores")
    with pytest.raises(PriceError):
        ReplayEngine(SessionStore(tmp_path)).start_session("scores")
    status, message = status_of(check_health(tmp_path), "replay")
    assert status == "ERROR"
    assert "AAA" in str(message)
    assert "MARKET_TRADE" in str(message)


def test_health_says_what_is_wrong_with_a_damaged_status(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    publish(root, ReplayStatus(session_id="s1"))
    root.replay_status.write_text(root.replay_status.read_text().replace("s1", "../x"))
    status, message = status_of(check_health(root), "replay")
    assert status == "WARN"
    assert "../x" in str(message)


def test_a_bot_that_writes_its_health_lets_other_processes_see_its_logger(tmp_path: Path) -> None:
    (tmp_path / "events" / "BTCUSDT.jsonl").mkdir(parents=True)
    bot = Lab(tmp_path)
    with pytest.raises(LogWriteError):
        bot.logger.log_state_event("BTCUSDT", event("2025-11-18")).result()
    assert status_of(check_health(tmp_path), "logging")[0] == "OK"
    assert bot.health(write=True).services["logging"].status == "WARN"
    status, message = status_of(check_health(tmp_path), "logging")
    assert status == "WARN"
    assert "1 files cannot be written" in str(message)
    bot.logger.close()
