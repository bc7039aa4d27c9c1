"""Tells whether a file still begins with the bytes that were read from it, without reading them all again."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Any

import msgspec

__all__ = ["Fingerprint", "begins_with", "fingerprint"]

_EDGE = 4096


class Fingerprint(msgspec.Struct, frozen=True):
    """The first ``size`` bytes of a file: digests of the first and of the last 4 KiB of them."""

    size: int
    head: str
    tail: str

    def to_dict(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


def fingerprint(fd: int, size: int) -> Fingerprint:
    """Return the fingerprint of the first ``size`` bytes of an open file."""
    start = max(0, size - _EDGE)
    return Fingerprint(
        size, _digest(os.pread(fd, min(_EDGE, size), 0)), _digest(os.pread(fd, size - start, start))
    )


def begins_with(fd: int, known: Fingerprint) -> bool:
    """Tell whether an open file still begins with the bytes of which ``known`` is the fingerprint."""
    return os.fstat(fd).st_size >= known.size and fingerprint(fd, known.size) == known


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
