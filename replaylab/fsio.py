"""Files and processes: atomic writes, locks between processes, tails of logs, digests, liveness of a process.

::

    write_atomic("system/risk_snapshot.json", b"{}")                # a reader sees the old content or the new one
    with atomic_path("sweep.parquet") as part:                      # the same for a library that writes by name
        pq.write_table(table, part)
    with lock("history/.lock"):                                     # one process at a time
        ...
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = [
    "Disk",
    "FolderLock",
    "Lock",
    "after_last_newline",
    "atomic_path",
    "exchange",
    "last_line",
    "lock",
    "lock_folder",
    "make_folder",
    "process_alive",
    "process_started",
    "remembered_sha256",
    "remove_leftovers",
    "scratch_folder",
    "sha256_of",
    "sync_folder",
    "write_all",
    "write_atomic",
]

_Path = str | os.PathLike[str]

_CHUNK = 1 << 16
_HASH_CHUNK = 1 << 20
_counter = itertools.count()
# A writer takes far less than this from making its temporary file to renaming it.
_ABANDONED_S = 600.0
_POLL_S = 0.01
# The start of a process is known to a hundredth of a second; the boot time that Linux derives it from, to a second.
_START_TOLERANCE_S = 1.5


class Disk:
    """The system calls of a writer. Tests subclass it to inject short writes, full disks and failing syncs."""

    # Bound directly: a Python frame around each would cost as much as the system call.
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    truncate = staticmethod(os.ftruncate)

    def open(self, path: str, flags: int, opened: list[int]) -> None:
        """Open ``path`` and add its descriptor to ``opened``; with O_CREAT, missing folders are made.

        Both happen in one call of C: a signal handler that raises cannot leave an open file behind.
        """
        arguments = (path,), (flags,), (0o644,)
        try:
            opened.extend(map(os.open, *arguments))
        except FileNotFoundError:
            if opened or not flags & os.O_CREAT:
                raise
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            opened.extend(map(os.open, *arguments))


_DISK = Disk()


def make_folder(folder: _Path, *, sync: bool = False, disk: Disk = _DISK) -> None:
    """Make a folder and those above it; with ``sync`` the names of the new ones survive a crash of the machine."""
    missing = []
    place = Path(folder)
    while not place.is_dir():
        missing.append(place)
        place = place.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        if sync:
            sync_folder(made.parent, disk)


def write_atomic(path: _Path, data: bytes, *, sync: bool = False, disk: Disk = _DISK) -> None:
    """Overwrite ``path`` so that a reader or a crash of the process sees the old content or the new one.

    >>> write_atomic("system/risk_snapshot.json", b"{}", sync=True)  # doctest: +SKIP

    A temporary file in the same folder is written and renamed; missing folders are made. With ``sync=True`` the
    content and its name also survive a crash of the machine. Raises OSError; ``path`` then has its old content.
    """
    target = os.fspath(path)
    temporary = _temporary(target)
    if sync:
        make_folder(os.path.dirname(target) or ".", sync=True, disk=disk)  # noqa: PTH120 - as below
    opened: list[int] = []
    try:
        try:
            disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, opened)
            write_all(opened[0], data, disk)
            if sync:
                disk.fsync(opened[0])
        finally:
            for fd in opened:
                os.close(fd)
        os.replace(temporary, target)  # noqa: PTH105 - a Path costs more than the call, and snapshots are frequent
    except BaseException:
        if opened:
            Path(temporary).unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(os.path.dirname(target), disk)  # noqa: PTH120 - as above


def scratch_folder(prefix: str) -> Path:
    """Make a temporary folder that is removed when this process ends; a fork that ends leaves it."""
    import shutil
    import tempfile

    folder, owner = tempfile.mkdtemp(prefix=prefix), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


@contextmanager
def atomic_path(path: _Path, *, sync: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; what was written there gets the name at the end of the block.

    >>> with atomic_path("result.parquet") as part:  # doctest: +SKIP
    ...     frame.write_parquet(part)

    The folder is made. When the block raises, nothing is left of it. ``sync``: as in ``write_atomic``. With
    ``overwrite=False`` a file of that name that exists by then is kept and FileExistsError is raised.
    """
    target = Path(path)
    make_folder(target.parent, sync=sync)
    temporary = Path(_temporary(os.fspath(target)))
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        if overwrite:
            temporary.replace(target)
        else:
            # A rename replaces without a question; a second name for the file refuses one that exists.
            target.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_folder(target.parent)


def remove_leftovers(path: _Path, *, older_than_s: float = _ABANDONED_S) -> None:
    """Delete temporary files of ``path`` whose writers were killed: those older than ``older_than_s`` seconds."""
    folder, name = os.path.split(os.fspath(path))
    oldest = time.time() - older_than_s
    prefix = f".{_short(name)}."
    with suppress(FileNotFoundError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                # Another process may delete it at the same time.
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        Path(entry.path).unlink()


def sync_folder(folder: _Path, disk: Disk = _DISK) -> None:
    """Make the names in ``folder`` survive a crash of the machine."""
    fd = os.open(os.fspath(folder) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, disk: Disk = _DISK) -> None:
    """Write all of ``data`` to a descriptor, also where the system takes it in pieces."""
    view = memoryview(data)
    while view:
        view = view[disk.write(fd, view) :]


def _temporary(target: str) -> str:
    """A name unique among threads and processes: hidden, and with a suffix that no loader reads."""
    folder, name = os.path.split(target)
    return os.path.join(  # noqa: PTH118 - a Path costs more than the join
        folder, f".{_short(name)}.{os.getpid()}.{threading.get_ident()}.{next(_counter)}.tmp"
    )


def _short(name: str) -> str:
    # A name has at most 255 bytes, and the temporary one is longer than its target's.
    return name if len(os.fsencode(name)) <= 205 else name[:50]


class Lock:
    """An exclusive lock between processes and threads that is held; ``release()`` it, or use it in ``with``."""

    __slots__ = ("_held",)

    def __init__(self, held: FileLock) -> None:
        self._held = held

    def release(self) -> None:
        """Release the lock; without effect when it is released already."""
        self._held.release(force=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock(path: _Path, *, timeout: float | None = None) -> Lock:
    """Acquire the exclusive lock file ``path`` and return it, held.

    >>> with lock("data/history/.lock"):  # doctest: +SKIP
    ...     merge()

    Waits for ``timeout`` seconds (None: without a limit; 0: not at all) and then raises TimeoutError. The system
    releases the lock of a process that dies. Missing folders are made; the file stays. It excludes other holders of a
    ``flock`` on the same file, and a forked child does not inherit it.
    """
    import filelock

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file_lock = filelock.FileLock(
        path, timeout=-1 if timeout is None else timeout, thread_local=False, poll_interval=_POLL_S
    )
    try:
        file_lock.acquire()
    except filelock.Timeout:
        raise TimeoutError(
            errno.ETIMEDOUT, f"another process holds this lock, waited {timeout:g} s", os.fspath(path)
        ) from None
    return Lock(file_lock)


class FolderLock:
    """A lock on a folder that is held; ``release()`` it, or use it in ``with``. It follows the folder's renames."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Release the lock; without effect when it is released already."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # A forked child may have the descriptor too: closing it would not be enough.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_folder(folder: _Path, *, shared: bool = False) -> FolderLock | None:
    """Lock a folder without waiting, alone or ``shared``; None where another holder excludes that.

    The system releases the lock of a process that dies. Raises OSError, FileNotFoundError where there is no folder.
    A file system without such locks (some network ones) locks nothing.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    held = FolderLock(fd)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        held.release()
        return None
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            held.release()
            raise
    try:
        # Renamed or replaced between the two calls: the lock would be on another folder.
        same = os.path.samestat(os.fstat(fd), Path(folder).stat())
    except FileNotFoundError:
        same = False
    if not same:
        held.release()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(folder))
    return held


def exchange(one: _Path, other: _Path) -> None:
    """Exchange the names of two files or folders in one step. Raises OSError, ENOSYS where the system cannot."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, 2)
        else:
            failed = library.renameat2(-100, names[0], -100, names[1], 2)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.fspath(other)) from None
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(one), None, os.fspath(other))


def after_last_newline(fd: int, size: int) -> int:
    """Return the offset after the last newline among the first ``size`` bytes of an open file; 0 without one."""
    end = size
    while end > 0:
        begin = max(0, end - _CHUNK)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def last_line(path: _Path) -> bytes | None:
    """Return the last complete line of a file without its newline; None where there is no file or no such line.

    Bytes after the last newline, which a writer may still be completing, are not a line.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        end = after_last_newline(fd, os.fstat(fd).st_size)
        if end == 0:
            return None
        start = after_last_newline(fd, end - 1)
        return os.pread(fd, end - 1 - start, start)
    finally:
        os.close(fd)


def sha256_of(file: _Path | int, size: int | None = None) -> str:
    """Return the SHA-256 of a file or an open descriptor, or of its first ``size`` bytes, as hexadecimal digits."""
    if not isinstance(file, int):
        with Path(file).open("rb") as opened:
            return sha256_of(opened.fileno(), size)
    digest = hashlib.sha256()
    place = 0
    while size is None or place < size:
        data = os.pread(file, _HASH_CHUNK if size is None else min(_HASH_CHUNK, size - place), place)
        if not data:
            break
        digest.update(data)
        place += len(data)
    return digest.hexdigest()


def remembered_sha256(file: _Path, note: _Path) -> str:
    """Return ``sha256_of(file)``, from ``note`` (a small JSON file) where the file has not changed since.

    The file is known by size, inode, time of change of its content (mtime) and of its entry (ctime, which no program
    sets). A digest is only remembered if both times lay at least two seconds back when it was computed: within the
    resolution of a file system's clock, a later edit could keep the same time. A note that cannot be written is done
    without: within this process the digest is remembered all the same.
    """
    state = Path(file).stat()
    identity = [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
    key = os.path.abspath(file)  # noqa: PTH100 - resolving links costs a system call for each part
    with suppress(OSError, ValueError):
        if key not in _digests:
            _digests[key] = json.loads(Path(note).read_bytes())
    with suppress(KeyError, TypeError):
        if _digests[key]["identity"] == identity:
            return str(_digests[key]["sha256"])
    settled = time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) >= 2_000_000_000
    digest = sha256_of(file)
    if settled:
        _digests[key] = {"identity": identity, "sha256": digest}
        with suppress(OSError):
            write_atomic(note, json.dumps(_digests[key]).encode())
    return digest


_digests: dict[str, dict[str, Any]] = {}


def process_started(pid: int | None = None) -> float | None:
    """Return when a process (None: this one) began, in seconds; None where no such process runs.

    Keep it beside the process id: ``process_alive`` then recognises a later process with the same id. On
    Linux the seconds count from the boot, so that a step of the wall clock does not move them.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        started = float(process.create_time())
    except psutil.AccessDenied:
        return 0.0
    except (psutil.NoSuchProcess, OverflowError, ValueError):
        return None
    return started - psutil.boot_time() if psutil.LINUX else started


def process_alive(pid: int, started: float | None = None) -> bool:
    """Return whether a process of this machine runs; a zombie is dead.

    With ``started`` (its ``process_started``, recorded while it ran) a later process with the same id does not count.
    """
    found = process_started(pid) if pid > 0 else None
    return found is not None and (started is None or abs(found - started) <= _START_TOLERANCE_S)
