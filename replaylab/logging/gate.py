"""The quick look at a state event: valid beyond doubt and without secrets, or to be looked at properly."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from replaylab.records import StateEvent

__all__ = ["Gate"]

# A program that invents keys must not make the type ever larger.
_MOST_KEYS = 256
_MOST = sys.float_info.max
# NaN and infinity are outside of these bounds.
_Plain = Annotated[float, msgspec.Meta(ge=-_MOST, le=_MOST)] | str | bool | None


class Gate:
    """A type that plain state events are compared with, in one call of msgspec: ``msgspec.convert(event, gate.form)``.

    What passes has the fields of a StateEvent and no others, each of its kind, a time as its timestamp (within a
    grammar a little wider than ours), finite numbers, and in ``extra``, two levels deep, only keys that were learned:
    those of events in which a proper look found no secret. What does not pass may be fine all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._keys = {""}
        self.form = _form(self._keys)

    def learn(self, extra: Any) -> None:
        """Remember the keys of an ``extra`` that holds no secret."""
        if not isinstance(extra, dict):
            return
        keys = {key for level in (extra, *extra.values()) if isinstance(level, Mapping) for key in level}
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
    return msgspec.defstruct(
        "StateEventForm", kinds.items(), rename="camel", forbid_unknown_fields=True, kw_only=True, gc=False
    )
