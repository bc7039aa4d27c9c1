"""The fast check of a state event, in one call of msgspec, and the redaction of secrets in what is logged.

``records.encode_record`` defines a valid state event. The fast check accepts a part of those, three times as fast,
and only without secrets; everything else takes the full way. A property test holds the two equal: the same line, or
the same refusal.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from replaylab.logging.files import forget_dead_threads
from replaylab.records import StateEvent

# A program that invents keys must not make the type ever larger.
_MOST_KEYS = 256
_MOST = sys.float_info.max
# NaN and infinity are outside of these bounds.
_Plain = Annotated[float, msgspec.Meta(ge=-_MOST, le=_MOST)] | str | bool | None


class FastCheck:
    """A type that plain state events are compared with: ``msgspec.convert(event, check.form)`` raises or passes.

    An event that passes has the fields of a StateEvent and no others, each of its kind, an ISO time as its timestamp
    (in a grammar a little wider than ours), finite numbers, and in ``extra``, two levels deep, only known keys: those
    of earlier events in which the full check found no secret. An event that does not pass may be valid all the same.
    """

    def __init__(self) -> None:
        self._keys = {""}
        self.form = _form(self._keys)
        self.start_fresh()

    def start_fresh(self) -> None:
        """Make the lock again: in a forked child, that of another thread stays locked."""
        self._lock = threading.RLock()

    def learn(self, extra: Any) -> None:
        """Add the keys of an ``extra`` that holds no secret."""
        if not isinstance(extra, dict):
            return
        keys = {key for level in (extra, *extra.values()) if isinstance(level, Mapping) for key in level}
        forget_dead_threads()
        with self._lock:
            new = {key for key in keys - self._keys if type(key) is str}
            if new and len(self._keys) + len(new) <= _MOST_KEYS:
                self._keys |= new
                self.form = _form(self._keys)


def _form(keys: set[str]) -> type[msgspec.Struct]:
    key: Any = Literal[tuple(sorted(keys))]
    flat = _Plain | list[_Plain]
    kinds: dict[str, Any] = dict.fromkeys(StateEvent.__struct_fields__, str)
    kinds |= {"timestamp": datetime, "extra": dict[key, flat | dict[key, flat]]}
    form = msgspec.defstruct(
        "StateEventForm", kinds.items(), rename="camel", forbid_unknown_fields=True, kw_only=True, gc=False
    )
    # msgspec completes a type at its first use; two threads that do so at once crash the process.
    with suppress(msgspec.ValidationError):
        msgspec.convert({}, form)
    return form


REDACTED = "[redacted]"
_SCALARS = frozenset({str, float, int, bool, type(None)})
# Keys repeat from line to line; a program that invents them must not fill the memory.
_REMEMBERED = 4096


class Redactor:
    """Replaces the values of secret keys, at any depth, in plain data.

    >>> Redactor(["apiKey", "accessToken"]).redact({"token": "BTC", "auth": {"bybit_api_key": "k-123"}})
    {'token': 'BTC', 'auth': {'bybit_api_key': '[redacted]'}}

    A key is secret when it ends with one of the names, also followed by ``s`` or ``key`` (``API_SECRET_KEY``); case,
    ``_``, ``-``, ``.`` and blanks do not count.
    ``on_redacted`` is called with the key of each value that is replaced.
    """

    def __init__(self, names: Iterable[str], on_redacted: Callable[[str], None] | None = None) -> None:
        self._on_redacted = on_redacted
        known = [folded for name in names if (folded := _fold(name))]
        self._endings = tuple(name + more for name in known for more in ("", "s", "key"))
        self._harmless: set[str] = set()

    def has_secret(self, value: Any) -> bool:
        """Whether a secret key is anywhere inside, or may be. Runs for most lines, so it allocates nothing."""
        if isinstance(value, (dict, Mapping)):
            harmless = self._harmless
            for key, item in value.items():
                if key not in harmless and self._is_secret(key):
                    return True
                if type(item) not in _SCALARS and self.has_secret(item):
                    return True
        elif isinstance(value, (list, tuple)):
            for item in value:
                if type(item) not in _SCALARS and self.has_secret(item):
                    return True
        else:
            # The encoder may write it as an object (a dataclass, a struct): the encoded line decides.
            return type(value) not in _SCALARS
        return False

    def redact(self, value: Any) -> Any:
        """Return a copy with the values of secret keys replaced."""
        if isinstance(value, Mapping):
            return {
                key: self._replaced(key) if self._is_secret(key) else self.redact(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.redact(item) for item in value]
        return value

    def _replaced(self, key: str) -> str:
        if self._on_redacted is not None:
            self._on_redacted(key)
        return REDACTED

    def _is_secret(self, key: Any) -> bool:
        if not isinstance(key, str):
            return False
        if _fold(key).endswith(self._endings):
            return True
        if len(self._harmless) < _REMEMBERED:
            self._harmless.add(key)
        return False


def _fold(name: str) -> str:
    return "".join(mark for mark in name.casefold() if mark not in "_-. ")
