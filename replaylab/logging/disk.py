"""The narrow seam between the logger and the operating system.

Everything that can fail when a line is written passes through one object of four functions, so that tests can put
short writes, full disks and failing syncs in their place.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["Disk"]


class Disk:
    """What the writer asks of the operating system. Subclass it to inject faults."""

    # Bound as they are: a Python frame around each would cost as much as the system call.
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    truncate = staticmethod(os.ftruncate)

    def open(self, path: str, flags: int) -> int:
        """Return a descriptor of ``path``; folders that are missing are made."""
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o644)
