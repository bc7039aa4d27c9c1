"""Compile with numba once per installation, and never run machine code of an older source.

::

    @compiled
    def add(a, b):
        return a + b

numba keys its cache by the file of a function alone: a change in a function that it calls from another file would go
unseen. Here the cache folder's name carries a digest of every source file that holds compiled code, numba's version
and Python's, so that an upgrade compiles afresh and an old process keeps its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config

__all__ = ["cache_folder", "compiled", "inlined", "merged", "one_at_a_time", "was_compiled"]

F = TypeVar("F", bound=Callable[..., Any])
_njit: Any = numba.njit
_numba_config: Any = config

_PACKAGE = Path(__file__).resolve().parent
_SOURCES = ("compiled.py", "barriers", "sweep", "trading/formulas.py", "ml", "features", "frames")


def inlined(function: F) -> F:
    """Compile a function for use inside compiled ones; it has no cache of its own."""
    # numpy's rules for division: a zero gives infinity or NaN, as in vectorised code, and the loop stays free of
    # branches that raise.
    wrapped: F = _njit(nogil=True, error_model="numpy")(function)
    return wrapped


def merged(function: F) -> F:
    """Compile a small function into each place that calls it: a call with arrays costs ten times what it does."""
    wrapped: F = _njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return wrapped


def compiled(function: F) -> F:
    """Compile an entry point: cached on disk, runs without the interpreter's lock, so that threads share the work.

    Call it with arrays of one set of types only: two processes that compile different types at the same moment could
    mix up their cache entries.
    """
    before = _numba_config.CACHE_DIR
    _numba_config.CACHE_DIR = str(cache_folder())
    try:
        wrapped: F = _njit(nogil=True, error_model="numpy", cache=True)(function)
    finally:
        _numba_config.CACHE_DIR = before
    return wrapped


def cache_folder() -> Path:
    """Return the folder of this version's machine code; made when first asked for.

    ``$NUMBA_CACHE_DIR``, ``$XDG_CACHE_HOME`` or ``~/.cache`` decide, the temporary folder where none can be written.
    """
    global _folder
    if _folder is None:
        _folder = _writable_folder(f"replaylab-{_source_digest()}")
    return _folder


def was_compiled(function: Callable[..., Any]) -> bool:
    """Whether machine code of a ``compiled`` function waits in memory or on disk."""
    dispatcher: Any = function
    if dispatcher.signatures:
        return True
    name = dispatcher.py_func.__name__
    return any(cache_folder().rglob(f"*.{name}-*.nbi"))


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold other processes off while this one compiles: they then load what it wrote."""
    with (cache_folder() / "compiling.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_folder: Path | None = None


def _source_digest() -> str:
    digest = hashlib.sha256(f"{numba.__version__} {sys.version} {platform.machine()}".encode())
    for name in _SOURCES:
        path = _PACKAGE / name
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        for file in files:
            text = file.read_bytes()
            if path.is_dir() and b"compiled" not in text and b"inlined" not in text and b"merged" not in text:
                continue
            digest.update(file.name.encode())
            digest.update(text)
    return digest.hexdigest()[:16]


def _writable_folder(name: str) -> Path:
    named = os.environ.get("NUMBA_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    for base in ([named] if named else []) + [str(Path(home) / "replaylab" / "compiled")]:
        folder = Path(base) / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="replaylab-"))
