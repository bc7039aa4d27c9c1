"""Keep secrets out of the logs: the values of keys named like ``apiKey`` never reach the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["REDACTED", "Redactor"]

REDACTED = "[redacted]"
_SCALARS = frozenset({str, float, int, bool, type(None)})
# Keys repeat from line to line; a program that invents them must not fill the memory.
_REMEMBERED = 4096


class Redactor:
    """Replaces the values of secret keys, at any depth, in plain data.

    >>> Redactor(["apiKey", "token"]).redact({"score": 0.4, "auth": {"bybit_api_key": "k-123"}})
    {'score': 0.4, 'auth': {'bybit_api_key': '[redacted]'}}

    A key is secret when it ends with one of the names; case, ``_``, ``-``, ``.`` and blanks do not count. So
    ``token`` covers ``accessToken``, and leaves ``tokenSymbol`` and ``tokens`` alone.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._endings = tuple(folded for name in names if (folded := _fold(name)))
        self._harmless: set[str] = set()

    def has_secret(self, value: Any) -> bool:
        """Whether a secret key is anywhere inside, or may be; on the way of many lines, so it allocates nothing."""
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
            # The encoder may write it as an object (a dataclass, a struct): the line itself has to be looked at.
            return type(value) not in _SCALARS
        return False

    def redact(self, value: Any) -> Any:
        """Return a copy with the values of secret keys replaced."""
        if isinstance(value, Mapping):
            return {
                key: REDACTED if self._is_secret(key) else self.redact(item) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.redact(item) for item in value]
        return value

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
