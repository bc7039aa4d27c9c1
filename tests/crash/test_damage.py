"""Damaged files and full disks: every line is accounted for, nothing raises, and the logger continues by itself."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from replaylab.archive import RetentionScheduler, daily_summary, last_report, run_retention
from replaylab.config import RetentionConfig
from replaylab.errors import LogWriteError
from replaylab.frames import load_events, load_snapshot
from replaylab.logging import Handle, Logger
from replaylab.paths import DataRoot
from tests.archive.roots import write_session
from tests.logging.sample_records import snapshots, state_event
from tests.roots import fill, small_file_system


def write_log(root: Path, count: int) -> Path:
    with Logger(root) as logger:
        for n in range(count):
            extra = {"n": n, "text": "žarko €"[: n % 8], "none": None}
            logger.log_state_event("BTCUSDT", state_event(reason=str(n), extra=extra)).result()
    return root / "events" / "BTCUSDT.jsonl"


def assert_reconciled(root: Path, text: bytes) -> int:
    """Load, and hold rows + rejects + blank lines against the lines of the file; returns the rows."""
    loaded = load_events(root)
    lines = text.count(b"\n") + (not text.endswith(b"\n") and text != b"")
    assert loaded.lines == lines
    assert loaded.frame.height + loaded.rejects.height + loaded.blank == lines
    return loaded.frame.height


def test_a_file_cut_at_every_byte_offset_loads_and_can_be_appended_to(tmp_path):
    """Cut anywhere: rows + rejects + blank = lines; then a logger appends, and all whole lines and the new one load."""
    path = write_log(tmp_path, 4)
    whole = path.read_bytes()
    torn = path.with_name("BTCUSDT.jsonl.torn")
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        torn.unlink(missing_ok=True)
        assert_reconciled(tmp_path, whole[:cut])
        with Logger(tmp_path) as logger:
            logger.log_state_event("BTCUSDT", state_event(reason="next")).result()
        text = path.read_bytes()
        # A record of which only the newline is missing counts as whole.
        expected = sum(end - 1 <= cut for end in ends)
        assert assert_reconciled(tmp_path, text) == expected + 1
        assert load_events(tmp_path).rejects.height == 0
        assert torn.exists() == (cut not in {0, *ends, *(end - 1 for end in ends)})


@pytest.mark.parametrize("seed", range(3))
def test_bit_flips_in_the_tail_are_rejects_and_never_exceptions(tmp_path, seed):
    path = write_log(tmp_path, 8)
    whole = path.read_bytes()
    chance = random.Random(seed)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 1, 8))):
            damaged[chance.randrange(len(whole) // 2, len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        assert_reconciled(tmp_path, bytes(damaged))
        with Logger(tmp_path) as logger:
            logger.log_state_event("BTCUSDT", state_event(reason="next")).result()
        text = path.read_bytes()
        assert_reconciled(tmp_path, text)
        assert load_events(tmp_path).frame["reason"][-1] == "next"


def test_a_tail_of_zero_bytes_is_moved_aside(tmp_path):
    """What a power loss leaves on many file systems: the size grew, the bytes did not arrive."""
    path = write_log(tmp_path, 3)
    with path.open("ab") as file:
        file.write(b"\0" * 100_000)
    assert_reconciled(tmp_path, path.read_bytes())
    with Logger(tmp_path) as logger:
        logger.log_state_event("BTCUSDT", state_event(reason="next")).result()
    assert load_events(tmp_path).frame["reason"].to_list() == ["0", "1", "2", "next"]
    assert path.with_name("BTCUSDT.jsonl.torn").stat().st_size == 100_001


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB; RLIMIT_FSIZE is tested elsewhere."""
    with small_file_system(tmp_path / "small", "256k") as folder:
        yield folder


def failure_of(handle: Handle) -> LogWriteError | None:
    try:
        handle.result()
    except LogWriteError as error:
        return error
    return None


def test_a_disk_that_is_really_full_fails_the_line_and_recovers(small_disk):
    root = small_disk / "data"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    logger = Logger(root)
    logger.write_risk_snapshot(snapshots()["risk"]).result()
    written = 0
    while (
        failure := failure_of(logger.log_state_event("BTCUSDT", state_event(reason=str(written))))
    ) is None:
        written += 1
    assert "No space left" in str(failure)
    assert written > 100
    failure = failure_of(logger.write_risk_snapshot({**snapshots()["risk"], "pad": "x" * 300_000}))
    assert "No space left" in str(failure)
    found = logger.health()
    assert found.status == "WARN"
    assert "No space left" in found.message
    assert "the disk is full" in found.message
    loaded = load_events(root)
    assert (loaded.frame.height, loaded.rejects.height) == (written, 0), (
        "no torn line is left by the full disk"
    )
    snapshot = orjson.loads((root / "system" / "risk_snapshot.json").read_bytes())
    assert snapshot == snapshots()["risk"], "the old snapshot stays whole"
    ballast.unlink()
    logger.log_state_event("BTCUSDT", state_event(reason="after")).result()
    logger.write_risk_snapshot({**snapshots()["risk"], "pad": "x"}).result()
    assert logger.health(low_disk_bytes=0).status == "OK"
    assert load_events(root).frame["reason"].to_list() == [*map(str, range(written)), "after"]
    logger.close()


def test_a_full_disk_fails_only_the_lines_that_do_not_fit(tmp_path):
    """Lines that could not be written are those whose handles failed: rows + failed handles = lines logged."""
    from tests.logging.faults import FaultyDisk

    disk, chance = FaultyDisk(), random.Random(5)
    logger = Logger(tmp_path, disk=disk)
    expected = []
    for n in range(300):
        disk.write_error = 28 if chance.random() < 0.3 else 0
        disk.torn = chance.randrange(1, 60) if disk.write_error and chance.random() < 0.5 else 0
        disk.no_truncate = chance.random() < 0.5
        disk.short = chance.choice((0, 0, 7, 100))
        try:
            logger.log_state_event("BTCUSDT", state_event(reason=str(n))).result()
            expected.append(str(n))
        except LogWriteError:
            pass
    disk.write_error = disk.torn = disk.short = 0
    disk.no_truncate = False
    logger.log_state_event("BTCUSDT", state_event(reason="end")).result()
    logger.close()
    loaded = load_events(tmp_path)
    assert loaded.rejects.height == 0
    assert loaded.frame["reason"].to_list() == [*expected, "end"]
    assert 100 < len(expected) < 280
    assert logger.stats().failures == 300 - len(expected)


def test_snapshots_survive_any_kill_whole(tmp_path):
    """A process that is killed while it overwrites a snapshot leaves the old one or the new one."""
    import os
    import sys
    import time

    code = """
import sys
from replaylab.logging import Handle, Logger
from replaylab.paths import DataRoot
from tests.logging.sample_records import snapshots
logger, n = Logger(sys.argv[1]), 0
while True:
    logger.write_risk_snapshot({**snapshots()["risk"], "n": n, "pad": "x" * (n % 20_000)}).result()
    print(n, flush=True)
    n += 1
"""
    chance = random.Random(3)
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", code, tmp_path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        ) as process:
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.03))
            process.kill()
            acknowledged = [int(text) for text in process.stdout.read().split(b"\n")[:-1] if text]
        found = orjson.loads((tmp_path / "system" / "risk_snapshot.json").read_bytes())
        assert found["n"] >= max(acknowledged, default=0)
        assert load_snapshot(tmp_path, "risk") is not None


@pytest.mark.parametrize("kept_by", ["clean-up", "scheduler"])
def test_retention_makes_room_on_a_full_disk(small_disk, kept_by):
    """A clean-up, and a scheduler that starts, keep some room for summaries: the next frees a disk without a byte."""
    root = small_disk / "data"
    run_retention(root)
    with Logger(root) as logger:
        logger.log_state_event("BTCUSDT", state_event()).result()
    if kept_by == "clean-up":
        run_retention(root)
    else:
        with RetentionScheduler(root, RetentionConfig(daily_at="03:30")):
            pass
    for day in ("2020-01-01", "2020-01-02"):
        path = root / f"trades_log/day-{day}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("not a trade\n" * 2000)
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_bytes(b"x" * 4096)
    (small_disk / "more").unlink()
    report = run_retention(root)
    assert report.deleted_files[-2:] == [f"trades_log/day-2020-01-0{n}.jsonl" for n in (1, 2)]
    assert report.errors == []
    assert last_report(DataRoot(root)) == report
    assert daily_summary(root).filter(log="trades_log")["rejects"].to_list() == [2000, 2000]


def test_a_first_clean_up_of_a_full_disk_takes_what_needs_no_summary_and_says_what_to_do(small_disk):
    """Without room for a summary no log goes; a session makes the room, and then the logs go in the same clean-up."""
    root = small_disk / "data"
    path = root / "trades_log/day-2020-01-01.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("not a trade\n" * 2000)
    ballast = small_disk / "ballast"
    (root / "system").mkdir()
    (root / "system" / ".retention.lock").touch()
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    report = run_retention(root)
    assert report.deleted_files == []
    assert "No space left" in report.errors[0].error
    assert "free 64 KiB" in report.errors[0].error
    assert path.stat().st_size == 24_000
    with ballast.open("rb+") as file:
        file.truncate(ballast.stat().st_size - 80_000)
    session = write_session(root, "old", "2020-01-01")
    (session / "events.jsonl").write_bytes(b"x" * 60_000)
    fill(small_disk)
    report = run_retention(root)
    assert report.deleted_files == ["replay/sessions/old", "trades_log/day-2020-01-01.jsonl"]
    assert report.errors == []
