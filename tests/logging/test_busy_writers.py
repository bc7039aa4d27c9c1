"""Writers that are busy keep a file's lock from line to line, and give way to others all the same."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replaylab.logging import FileStreamManager, rotate_lock
from tests.logging.faults import FaultyDisk


def keep_busy(streams: FileStreamManager, path: Path, seconds: float = 0.12) -> int:
    """Write fast enough, long enough, for the lock to be kept from line to line; returns how many lines."""
    deadline, n = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        streams.append_line(path, str(n))
        n += 1
    return n


def test_a_busy_writer_gives_way_to_another_process(tmp_path):
    """While one process writes without a break, another gets its lines in, and none is lost."""
    path = tmp_path / "x.jsonl"
    streams = FileStreamManager()
    keep_busy(streams, path)
    assert streams._streams[str(path)].kept
    code = (
        "import sys; from replaylab.logging import FileStreamManager\n"
        "for n in range(20): FileStreamManager().append_line(sys.argv[1], 'other')"
    )
    other = subprocess.Popen([sys.executable, "-c", code, path])
    deadline = time.monotonic() + 30
    while other.poll() is None:
        keep_busy(streams, path, 0.01)
        assert time.monotonic() < deadline, "the other process never got the lock"
    assert other.returncode == 0
    assert path.read_text().splitlines().count("other") == 20


def test_a_writer_that_falls_silent_gives_up_the_lock(tmp_path):
    path = tmp_path / "x.jsonl"
    streams = FileStreamManager()
    keep_busy(streams, path)
    assert streams._streams[str(path)].kept
    with rotate_lock(path, timeout=5):
        assert not streams._streams[str(path)].kept
    deadline = time.monotonic() + 5
    while any(thread.name == "replaylab-log-releaser" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread that gives up locks ends with its work"
        time.sleep(0.01)


def test_two_busy_managers_of_one_thread_do_not_wait_for_each_other_for_ever(tmp_path):
    path = tmp_path / "x.jsonl"
    first, second = FileStreamManager(), FileStreamManager()
    total = keep_busy(first, path) + keep_busy(second, path) + keep_busy(first, path)
    for _ in range(100):
        first.append_line(path, "a")
        second.append_line(path, "b")
    assert len(path.read_text().splitlines()) == total + 200


def test_a_busy_writer_notices_that_its_file_was_removed(tmp_path):
    path = tmp_path / "x.jsonl"
    streams = FileStreamManager()
    keep_busy(streams, path)
    path.unlink()
    lines = keep_busy(streams, path, 0.3)
    streams.close()
    assert 0 < len(path.read_text().splitlines()) <= lines


def test_a_short_write_of_a_busy_writer_takes_back_its_own_bytes_only(tmp_path):
    """Another program appends without the lock; its line survives our failed write."""
    disk = FaultyDisk()
    streams, path = FileStreamManager(disk=disk), tmp_path / "x.jsonl"
    keep_busy(streams, path)
    before = path.read_bytes()
    with path.open("ab") as other:
        other.write(b"foreign\n")
    disk.write_error, disk.torn = errno.ENOSPC, 2
    with pytest.raises(OSError, match="No space"):
        streams.append_line(path, "12345")
    assert path.read_bytes() == before + b"foreign\n"
