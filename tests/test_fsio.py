"""Files and processes: whole files, one holder of a lock, last lines, digests, and which process runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replaylab import fsio
from replaylab.fsio import (
    Disk,
    after_last_newline,
    atomic_path,
    last_line,
    lock,
    process_alive,
    process_started,
    remembered_sha256,
    remove_leftovers,
    sha256_of,
    write_atomic,
)


class FullDisk(Disk):
    """Takes three bytes of each write, and none after ``room``."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: memoryview) -> int:  # type: ignore[override]
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        done = os.write(fd, data[: min(3, self.room)])
        self.room -= done
        return done


def test_a_write_that_fails_keeps_the_old_content_and_leaves_no_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_atomic(path, b"old", sync=True)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"a longer text", disk=FullDisk(5))
    assert path.read_bytes() == b"old"
    write_atomic(path, b"a longer text", disk=FullDisk(50))
    assert path.read_bytes() == b"a longer text"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_reader_never_sees_a_mixture(tmp_path):
    path = tmp_path / "a.json"
    contents = {bytes([65 + k]) * 100_000 for k in range(8)}
    write_atomic(path, b"A" * 100_000)
    threads = [threading.Thread(target=write_atomic, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    assert path.read_bytes() in contents


def test_a_file_written_by_name_gets_its_name_at_the_end(tmp_path):
    path = tmp_path / ("x" * 250)
    with atomic_path(path, sync=True) as part:
        part.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), atomic_path(path) as part:
        part.write_bytes(b"half" * (1 // 0))
    with pytest.raises(FileExistsError), atomic_path(path, overwrite=False) as part:
        part.write_bytes(b"other")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"new"
    with atomic_path(tmp_path / "fresh", overwrite=False) as part:
        part.write_bytes(b"fresh")
    assert (tmp_path / "fresh").read_bytes() == b"fresh"


def test_only_old_leftovers_of_that_file_are_removed(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.json.1.tmp", ".a.json.2.tmp", ".b.json.1.tmp"))
    for file in (old, young, other):
        file.write_bytes(b"")
    for file in (old, other):
        os.utime(file, (0, 0))
    remove_leftovers(tmp_path / "a.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == [young.name, other.name]
    remove_leftovers(tmp_path / "none" / "a.json")


def test_a_lock_has_one_holder_among_threads_and_processes(tmp_path):
    path = tmp_path / "system" / "a.lock"
    held = lock(path)
    with pytest.raises(TimeoutError, match="another process holds this lock"):
        lock(path, timeout=0)
    script = "import sys\nfrom replaylab.fsio import lock\nlock(sys.argv[1], timeout=0.02)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert "TimeoutError" in done.stderr
    held.release()
    held.release()
    with lock(path, timeout=0), pytest.raises(TimeoutError):
        lock(path, timeout=0.02)
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)


def test_the_lock_of_a_process_that_dies_is_free(tmp_path):
    script = "import os, sys\nfrom replaylab.fsio import lock\nheld = lock(sys.argv[1])\nos._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.lock")], check=True)
    lock(tmp_path / "a.lock", timeout=0).release()


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_the_last_complete_line_is_found_across_blocks(tmp_path, length):
    path = tmp_path / "a.jsonl"
    assert last_line(path) is None
    path.write_bytes(b"no newline")
    assert last_line(path) is None
    path.write_bytes(b"first\n" + b"x" * length + b"\ntorn")
    assert last_line(path) == b"x" * length
    with path.open("rb") as file:
        assert after_last_newline(file.fileno(), 6 + length + 5) == 6 + length + 1


def test_a_digest_is_that_of_the_bytes(tmp_path):
    data = os.urandom(3_000_000)
    path = tmp_path / "a"
    path.write_bytes(data)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()
    assert sha256_of(path, 1_500_000) == hashlib.sha256(data[:1_500_000]).hexdigest()
    with path.open("rb") as file:
        assert sha256_of(file.fileno(), 10**9) == sha256_of(path)


def test_a_process_is_known_by_id_and_start():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_started(child.pid)
    assert started is not None
    assert process_alive(child.pid)
    assert process_alive(child.pid, started)
    assert not process_alive(child.pid, started - 60)
    child.kill()
    deadline = time.monotonic() + 10
    while process_alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process_alive(child.pid), "a zombie is dead"
    child.communicate()
    assert not process_alive(child.pid)
    assert process_started() == pytest.approx(process_started(os.getpid()))
    assert not any(process_alive(pid) for pid in (0, -1, 2**31, 2**70))


def test_a_remembered_digest_follows_every_edit(tmp_path, monkeypatch):
    """Also one that keeps size and mtime; an unchanged file is read once, also by later processes."""
    path, note = tmp_path / "events.jsonl", tmp_path / "digest.json"
    path.write_bytes(b"one")
    read = []
    monkeypatch.setattr(fsio, "sha256_of", lambda file, *size: read.append(file) or sha256_of(file, *size))
    assert remembered_sha256(path, note) == hashlib.sha256(b"one").hexdigest()
    assert not note.exists(), "just written: a later edit could have the same time"
    time.sleep(2.1)
    for _ in range(3):
        assert remembered_sha256(path, note) == hashlib.sha256(b"one").hexdigest()
    fsio._digests.clear()
    assert remembered_sha256(path, note) == hashlib.sha256(b"one").hexdigest()
    assert read.count(path) == 2
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert remembered_sha256(path, note) == hashlib.sha256(b"two").hexdigest()
    note.write_text("[1]")
    fsio._digests.clear()
    assert remembered_sha256(path, note) == hashlib.sha256(b"two").hexdigest()


def test_folders_made_for_a_synced_file_are_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file survives a crash of the machine only if the names of all new folders above it do."""
    synced: list[str] = []
    real = fsio.sync_folder
    monkeypatch.setattr(
        fsio, "sync_folder", lambda folder, *rest: synced.append(str(folder)) or real(folder, *rest)
    )
    write_atomic(tmp_path / "a/b/c.json", b"{}", sync=True)
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
    synced.clear()
    with fsio.atomic_path(tmp_path / "d/e", sync=True) as part:
        part.write_bytes(b"")
    assert synced == [str(tmp_path), str(tmp_path / "d")]
