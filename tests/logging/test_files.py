"""Streams: whole lines among threads and processes, whatever happens to the file meanwhile."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from replaylab.errors import RecordError
from replaylab.fsio import write_atomic
from replaylab.logging import FileStreamManager, rotate_lock
from tests.logging.faults import FaultyDisk


def test_lines_from_threads_are_whole_and_none_is_lost(tmp_path):
    path = tmp_path / "a" / "b.jsonl"
    streams = FileStreamManager()

    def write(name: int) -> None:
        for n in range(2_000):
            streams.append_line(path, json.dumps([name, n]))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    streams.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(found) == [[name, n] for name in range(4) for n in range(2_000)]
    assert streams.written == (8_000, path.stat().st_size)


_PROCESS = """
import sys
from replaylab.logging import FileStreamManager
streams, path, name, count = FileStreamManager(), sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
for n in range(count):
    streams.append_line(path, '{"name":"%s","n":%d,"pad":"%s"}' % (name, n, name * (n % 97)))
"""


def test_four_processes_of_50_000_lines_tear_and_lose_nothing(tmp_path):
    path, count = tmp_path / "shared.jsonl", 50_000
    workers = [
        subprocess.Popen([sys.executable, "-c", _PROCESS, path, name, str(count)], stdin=subprocess.PIPE)
        for name in "abcd"
    ]
    for worker in workers:
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.stdin.close()
        assert worker.wait() == 0
    seen: Counter[str] = Counter()
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        assert record["n"] == seen[record["name"]], "each process's lines are in its own order"
        assert record["pad"] == record["name"] * (record["n"] % 97)
        seen[record["name"]] += 1
    assert seen == dict.fromkeys("abcd", count)


@pytest.mark.parametrize("how", ["removed", "renamed", "folder removed", "replaced", "emptied"])
def test_a_file_that_somebody_else_moved_is_noticed_and_opened_again(tmp_path, how):
    path = tmp_path / "logs" / "x.jsonl"
    streams = FileStreamManager()
    streams.append_line(path, "1")
    if how == "removed":
        path.unlink()
    elif how == "renamed":
        path.rename(path.with_suffix(".old"))
    elif how == "folder removed":
        shutil.rmtree(path.parent)
    elif how == "replaced":
        write_atomic(path, b"new\n")
    else:
        os.truncate(path, 0)
    time.sleep(0.06)
    streams.append_line(path, "2")
    assert path.read_text() == ("new\n2\n" if how == "replaced" else "2\n")


def test_a_rotation_under_the_lock_loses_no_line_of_a_running_writer(tmp_path):
    """Lines written before, during and after many rotations are each once in the kept or the moved part."""
    path, moved = tmp_path / "x.jsonl", []
    streams = FileStreamManager()
    streams.append_line(path, "first")
    stop, written = threading.Event(), []

    def write() -> None:
        n = 0
        while not stop.is_set():
            streams.append_line(path, str(n))
            written.append(str(n))
            n += 1

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(50):
        with rotate_lock(path) as fd:
            kept = os.pread(fd, os.fstat(fd).st_size, 0).splitlines(keepends=True)
            moved += kept[:-1]
            write_atomic(path, b"".join(kept[-1:]), sync=False)
        time.sleep(0.002)
    with rotate_lock(path):
        moved += path.read_bytes().splitlines(keepends=True)
        path.unlink()
    stop.set()
    writer.join()
    rest = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    assert [line.decode().strip() for line in [*moved, *rest]] == ["first", *written]


@pytest.mark.parametrize("replace", [True, False])
def test_what_was_replaced_keeps_its_bytes_until_the_folder_is_synced(tmp_path, monkeypatch, replace):
    """After a power failure the old name must not lead to a file that was emptied already."""
    path = tmp_path / "x.jsonl"
    path.write_text("1\n2\n")
    seen = []
    with rotate_lock(path) as fd:
        if replace:
            write_atomic(path, b"2\n", sync=False)
        else:
            path.unlink()
        monkeypatch.setattr(
            "replaylab.logging.files.sync_folder", lambda folder: seen.append((folder, os.fstat(fd).st_size))
        )
    assert seen == [(str(tmp_path), 4)]


def test_rotate_lock_gives_up_on_a_file_that_stays_held(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("1\n")
    with pytest.raises(FileNotFoundError), rotate_lock(tmp_path / "none"):
        pass
    with rotate_lock(path), pytest.raises(TimeoutError, match="held"), rotate_lock(path, timeout=0.02):
        pass
    assert path.read_text() == "1\n"


@pytest.mark.parametrize(
    ("tail", "fragment"),
    [
        (b'{"a":2,"b', b'{"a":2,"b'),
        (b"\0" * 70_000, b"\0" * 70_000),
        (b'{"a":2}\0\0\0', b'{"a":2}\0\0\0'),
        (b'{"a":2}\n{"a', b'{"a'),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"12", b"12"),
    ],
)
def test_a_torn_tail_is_moved_aside_and_new_lines_start_fresh(tmp_path, tail, fragment):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a":1}\n' + tail)
    disk = FaultyDisk()
    FileStreamManager(disk=disk).append_line(path, '{"a":3}')
    assert path.read_bytes() == b'{"a":1}\n' + tail[: len(tail) - len(fragment)] + b'{"a":3}\n'
    assert (tmp_path / "x.jsonl.torn").read_bytes() == fragment + b"\n"
    if disk.synced[0].startswith("/"):
        assert disk.synced[0].endswith(".torn"), "the fragment is safe before the log is cut"


def test_a_whole_record_that_only_lacks_its_newline_is_kept(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}')
    FileStreamManager().append_line(path, '{"a":3}')
    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n{"a":3}\n'
    assert not (tmp_path / "x.jsonl.torn").exists()


def test_a_fragment_left_by_another_process_while_the_file_is_open_is_moved_too(tmp_path):
    """Process B dies in the middle of a line; the next line of process A, which had the file open, stays whole."""
    path = tmp_path / "x.jsonl"
    streams = FileStreamManager()
    streams.append_line(path, "1")
    with path.open("ab") as other:
        other.write(b'{"half')
    streams.append_line(path, "2")
    assert path.read_bytes() == b"1\n2\n"
    assert (tmp_path / "x.jsonl.torn").read_bytes() == b'{"half\n'


def test_truncation_at_every_byte_keeps_every_whole_line(tmp_path):
    """Wherever a crash cuts the file: whole lines stay, the fragment moves, the next line is whole."""
    records = [json.dumps({"n": n, "text": "žarko €\u2028"[: n + 2]}, ensure_ascii=False) for n in range(5)]
    whole = "".join(record + "\n" for record in records).encode()
    path, torn = tmp_path / "x.jsonl", tmp_path / "x.jsonl.torn"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        torn.unlink(missing_ok=True)
        FileStreamManager().append_line(path, '{"n":"next"}')
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert lines.pop() == b'{"n":"next"}'
        fragment = torn.read_bytes()[:-1] if torn.exists() else b""
        rejoined = b"".join(line + b"\n" for line in lines) + fragment
        assert rejoined.rstrip(b"\n") == whole[:cut].rstrip(b"\n")
        assert [json.loads(line) for line in lines] == [
            json.loads(record) for record in records[: len(lines)]
        ]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_write_leaves_nothing_behind_and_the_next_one_works(tmp_path, code):
    disk = FaultyDisk()
    streams, path = FileStreamManager(disk=disk), tmp_path / "x.jsonl"
    streams.append_line(path, "1")
    disk.write_error, disk.torn = code, 1
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        streams.append_line(path, "22222")
    assert caught.value.errno == code
    assert path.read_bytes() == b"1\n", "the bytes that were written before the failure are taken back"
    disk.write_error = 0
    streams.append_line(path, "3")
    assert path.read_bytes() == b"1\n3\n"
    assert not (tmp_path / "x.jsonl.torn").exists()


def test_a_fragment_that_cannot_be_taken_back_is_moved_when_the_disk_recovers(tmp_path):
    disk = FaultyDisk()
    streams, path = FileStreamManager(disk=disk), tmp_path / "x.jsonl"
    streams.append_line(path, "1")
    disk.write_error, disk.torn, disk.no_truncate = errno.ENOSPC, 3, True
    with pytest.raises(OSError, match="No space left"):
        streams.append_line(path, '{"a":1}')
    assert path.read_bytes() == b'1\n{"a'
    disk.write_error, disk.no_truncate = 0, False
    streams.append_line(path, "2")
    assert path.read_bytes() == b"1\n2\n"


def test_short_writes_are_completed(tmp_path):
    disk = FaultyDisk()
    disk.short = 3
    path = tmp_path / "x.jsonl"
    FileStreamManager(disk=disk).append_line(path, "0123456789")
    assert path.read_bytes() == b"0123456789\n"
    assert disk.writes == 4


def test_a_failed_sync_takes_the_lines_back(tmp_path):
    """Lines whose sync failed were never acknowledged; after the error the file does not hold them."""
    disk = FaultyDisk()
    streams, path = FileStreamManager(disk=disk), tmp_path / "x.jsonl"
    streams.append(str(path), b"1\n", sync=True)
    disk.fsync_error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        streams.append(str(path), b"2\n", sync=True)
    disk.fsync_error = 0
    streams.append(str(path), b"3\n", sync=True)
    assert path.read_bytes() == b"1\n3\n"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to name descriptors by")
def test_a_new_file_is_synced_with_the_names_of_its_folders(tmp_path):
    disk = FaultyDisk()
    path = tmp_path / "a" / "b" / "x.jsonl"
    streams = FileStreamManager(disk=disk)
    streams.append(str(path), b"1\n", sync=True)
    assert set(disk.synced) == {str(path), str(path.parent), str(tmp_path / "a"), str(tmp_path)}
    disk.synced.clear()
    streams.append(str(path), b"2\n", sync=True)
    assert disk.synced == [str(path)]


def test_a_real_limit_on_file_size_is_an_error_and_no_torn_line(tmp_path):
    """RLIMIT_FSIZE acts as a full disk: the process gets EFBIG from the kernel, with short writes before it."""
    code = """
import resource, sys
from replaylab.logging import FileStreamManager
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
streams, path, failed = FileStreamManager(), sys.argv[1], 0
for n in range(100):
    try: streams.append_line(path, '{"n":%d,"pad":"............................."}' % n)
    except OSError: failed += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
streams.append_line(path, '{"n":"recovered"}')
print(failed)
"""
    path = tmp_path / "x.jsonl"
    shown = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    found = [json.loads(line)["n"] for line in path.read_text().splitlines()]
    assert found == [*range(100 - int(shown.stdout)), "recovered"]
    assert 0 < int(shown.stdout) < 100


def test_many_files_share_a_bounded_number_of_descriptors(tmp_path):
    streams = FileStreamManager(max_open=8)
    for n in range(3):
        for name in range(100):
            streams.append_line(tmp_path / f"{name}.jsonl", str(n))
            assert streams.open_files <= 8
    assert all((tmp_path / f"{name}.jsonl").read_text() == "0\n1\n2\n" for name in range(100))
    assert streams.written == (300, 600)


def test_a_forked_child_and_its_parent_write_whole_lines(tmp_path):
    """A child does not share the parent's descriptors: their locks would not keep the two apart."""
    path = tmp_path / "x.jsonl"
    streams = FileStreamManager()
    streams.append_line(path, "parent")

    def child() -> None:
        assert streams.open_files == 0
        for _ in range(500):
            streams.append_line(path, "child" * 20)

    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    for _ in range(500):
        streams.append_line(path, "parent")
    worker.join()
    assert worker.exitcode == 0
    assert Counter(path.read_text().splitlines()) == {"parent": 501, "child" * 20: 500}


def test_a_process_that_dies_with_the_lock_does_not_block_others(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("1\n")
    code = (
        "import sys, time; from replaylab.logging import rotate_lock\n"
        "with rotate_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    done = threading.Event()
    writer = threading.Thread(target=lambda: (FileStreamManager().append_line(path, "2"), done.set()))
    writer.start()
    assert not done.wait(0.2), "the writer waits while the file is held"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    writer.join(5)
    assert path.read_text() == "1\n2\n"


def test_write_atomic_keeps_the_old_content_when_it_fails(tmp_path):
    path = tmp_path / "deep" / "s.json"
    write_atomic(path, b"old")
    disk = FaultyDisk()
    disk.write_error, disk.torn = errno.ENOSPC, 1
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new", disk=disk)
    disk.write_error, disk.fsync_error = 0, errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(path, b"new", sync=True, disk=disk)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["s.json"]


def test_temporary_files_of_killed_writers_are_removed_when_they_are_old(tmp_path):
    old, young = tmp_path / ".s.json.1.2.3.tmp", tmp_path / ".s.json.1.2.4.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    FileStreamManager().write_json(tmp_path / "s.json", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [young.name, "s.json"]


def test_append_line_takes_one_line(tmp_path):
    with pytest.raises(ValueError, match="one line"):
        FileStreamManager().append_line(tmp_path / "x.jsonl", "a\nb")
    assert not list(tmp_path.iterdir())


def test_write_json_has_an_indent_of_two(tmp_path):
    FileStreamManager().write_json(tmp_path / "s.json", {"a": [1]})
    assert (tmp_path / "s.json").read_text() == '{\n  "a": [\n    1\n  ]\n}'


def test_both_calls_of_a_stream_manager_can_be_awaited(tmp_path):
    """The specification has them asynchronous."""
    streams = FileStreamManager()

    async def write():
        await streams.append_line(tmp_path / "x.jsonl", '{"a":1}')
        await streams.write_json(tmp_path / "s.json", {"a": 1})
        with pytest.raises(IsADirectoryError):
            await streams.append_line(tmp_path, "a folder")

    asyncio.run(write())
    assert (tmp_path / "x.jsonl").read_text() == '{"a":1}\n'
    assert (tmp_path / "s.json").read_text() == '{\n  "a": 1\n}'


def test_write_json_refuses_what_would_become_null(tmp_path):
    with pytest.raises(RecordError, match=r"a\[1\].b: expected a finite number, found nan") as caught:
        FileStreamManager().write_json(tmp_path / "s.json", {"a": [1, {"b": float("nan")}]})
    assert caught.value.field == "a[1].b"
    assert not list(tmp_path.iterdir())


def test_readers_never_see_half_a_snapshot(tmp_path):
    path = tmp_path / "s.json"
    streams, stop = FileStreamManager(), threading.Event()
    streams.write_json(path, ["0" * 10_000])

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            streams.write_json(path, [str(n % 10) * 10_000], sync=False)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            (text,) = json.loads(path.read_text())
            assert len(set(text)) == 1
            assert len(text) == 10_000
    finally:
        stop.set()
        writer.join()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to count descriptors by")
def test_a_logger_that_nobody_closed_leaves_no_file_open(tmp_path):
    def opened() -> int:
        return sum(
            str(tmp_path) in str(link.readlink())
            for link in Path("/proc/self/fd").iterdir()
            if link.is_symlink()
        )

    FileStreamManager().append_line(tmp_path / "x.jsonl", "1")
    gc.collect()
    assert opened() == 0
