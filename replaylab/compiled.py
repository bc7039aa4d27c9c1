"""Compile with numba once per installation, and never run machine code of an older source.

::

    @compiled
    def add(a, b):
        return a + b

numba keeps the machine code of a function in ``__pycache__`` beside its source file (or in ``$NUMBA_CACHE_DIR``) and
discards it when that one file changes: a change in a function that it calls from another file is not noticed. So
entry points are compiled under the name of a copy of their source file, in a folder whose name has a digest of every
source file with compiled code, of numba's version and of Python's. An upgrade compiles again, and processes of
several versions keep their own machine code.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import platform
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.extending
from llvmlite import ir

from replaylab.fsio import Lock, lock, write_atomic

__all__ = [
    "cache_folder",
    "call_address",
    "callback",
    "compiled",
    "inlined",
    "inlined_rule",
    "merged",
    "one_at_a_time",
    "was_compiled",
]

F = TypeVar("F", bound=Callable[..., Any])
_njit: Any = numba.njit

_PACKAGE = Path(__file__).resolve().parent
_SOURCES = ("compiled.py", "barriers", "sweep", "trading/formulas.py", "ml", "features", "frames")


def inlined(function: F) -> F:
    """Compile a function for use inside compiled ones; it has no cache of its own, and makes and returns no arrays.

    So numba counts no references to arrays in it: each count is an atomic write to memory, and a function that is
    given a tape would count all of its arrays, at every call.
    """
    # numpy's rules for division: a zero gives infinity or NaN, as in vectorised code, and the loop stays free of
    # branches that raise.
    wrapped: F = _njit(nogil=True, error_model="numpy", _nrt=False)(function)
    return wrapped


def merged(function: F) -> F:
    """Compile a small function into each place that calls it: a call with arrays costs ten times what it does."""
    wrapped: F = _njit(nogil=True, error_model="numpy", forceinline=True, _nrt=False)(function)
    return wrapped


def compiled(function: F) -> F:
    """Compile an entry point: cached on disk, runs without the interpreter's lock, so that threads share the work.

    Call it with arrays of one set of types only: two processes that compile different types at the same moment could
    mix up their cache entries.
    """
    wrapped: F = _njit(nogil=True, error_model="numpy", cache=True)(_under_digest(function))
    return wrapped


_types: Any = numba.types
_POINTER = _types.CPointer(_types.float64)
_CALLBACK = _types.float64(_POINTER, _POINTER, _POINTER)


def inlined_rule(function: F) -> F:
    """Compile a user's function for a ``callback``: it raises where Python does."""
    wrapped: F = _njit(error_model="python")(getattr(function, "py_func", function))
    return wrapped


def callback(source: str, names: dict[str, Any]) -> Any:
    """Compile ``source``, which defines ``entry(a, b, c)`` over three arrays of numbers; ``.address`` is its address.

    ``names``: what the source refers to. Compiled code calls it with ``call_address``, without being compiled again.
    """
    scope = dict(names)
    exec(source, scope)  # our own text; only names in it are the caller's
    return numba.cfunc(_CALLBACK)(scope["entry"])


def _call_address(context: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Call a ``callback`` by its address with the addresses of three arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.get_value_type(numba.types.float64)
        pointer = number.as_pointer()
        kind = ir.FunctionType(number, [pointer] * 3)
        function = builder.inttoptr(args[0], kind.as_pointer())
        return builder.call(function, [builder.inttoptr(one, pointer) for one in args[1:]])

    word = numba.types.intp
    return numba.types.float64(numba.types.int64, word, word, word), generate


call_address: Any = numba.extending.intrinsic(_call_address)


def was_compiled(function: Callable[..., Any]) -> bool:
    """Return whether machine code of a ``compiled`` function is in memory or on disk."""
    dispatcher: Any = function
    if dispatcher.signatures:
        return True
    name = dispatcher.py_func.__name__
    return any(Path(dispatcher.stats.cache_path).glob(f"*.{name}-*.nbi"))


def one_at_a_time() -> Lock:
    """Exclude other processes while this one compiles: they then load what it wrote. Use it in ``with``."""
    return lock(cache_folder() / "compiling.lock")


@functools.cache
def cache_folder() -> Path:
    """Return the folder of this version's source copies and machine code; made when first called.

    It is in ``$NUMBA_CACHE_DIR``, else in ``$XDG_CACHE_HOME/replaylab/compiled`` (``~/.cache`` without that
    variable), else, where none can be written, a temporary folder.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    for base in ([named] if named else []) + [str(Path(home) / "replaylab" / "compiled")]:
        folder = Path(base) / f"replaylab-{_source_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="replaylab-"))


def _under_digest(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the same code, whose source file is the copy in the cache folder."""
    source = Path(inspect.getfile(function)).resolve()
    if not source.is_relative_to(_PACKAGE):
        return function
    copy = cache_folder() / source.relative_to(_PACKAGE)
    if not copy.exists():
        write_atomic(copy, source.read_bytes())
    same = types.FunctionType(
        function.__code__.replace(co_filename=str(copy)),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    functools.update_wrapper(same, function)
    del same.__wrapped__  # type: ignore[attr-defined]
    return same


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
