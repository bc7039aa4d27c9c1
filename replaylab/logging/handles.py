"""What every log method returns: a promise that can be awaited, or waited for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any

from replaylab.errors import LogWriteError

__all__ = ["DONE", "DoneHandle", "Handle", "fresh_error"]


class Handle(ABC):
    """The fate of one line or snapshot: await it, or call ``result()``.

    >>> await logger.log_trade(record)                    # doctest: +SKIP
    >>> logger.log_trade(record).result(timeout=5)        # doctest: +SKIP

    Both return None when the line is as safe as the durability setting says, and raise LogWriteError when it could
    not be written.
    """

    __slots__ = ()

    @abstractmethod
    def result(self, timeout: float | None = None) -> None:
        """Wait until the line is written; raises LogWriteError, or TimeoutError after ``timeout`` seconds."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the line is written, or has failed."""

    @abstractmethod
    def __await__(self) -> Generator[Any, None, None]: ...


class DoneHandle(Handle):
    """A handle whose line was written, or failed, before the call returned."""

    __slots__ = ("_error",)

    def __init__(self, error: LogWriteError | None = None) -> None:
        self._error = error

    def result(self, timeout: float | None = None) -> None:
        if self._error is not None:
            raise fresh_error(self._error)

    def done(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()
        self.result()


# One for all lines that were written at once: a line costs no allocation.
DONE = DoneHandle()


def fresh_error(error: LogWriteError) -> LogWriteError:
    """Return a copy to raise: several callers may wait for one failure, and each adds its own traceback."""
    return LogWriteError(error.errno, error.strerror, error.filename)
