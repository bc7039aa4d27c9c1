"""The unit of a column of times, detected from its size and held to for the whole import."""

from __future__ import annotations

import polars as pl

from replaylab.errors import HistoryError
from replaylab.timestamps import parse_ns

__all__ = ["UNITS", "Clock"]

UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
# No exchange kept such records before, and the ranges of the four units stay far apart.
_FIRST, _LAST = parse_ns("2009-01-01"), parse_ns("2100-01-01")


class Clock:
    """Turns numbers of one clock into nanoseconds.

    >>> clock = Clock("local time")
    >>> clock.ns(1721347020984, "a.gz", 1)
    1721347020984000000

    The first time decides the unit unless it is given. A later time that is in another unit contradicts it:
    HistoryError with file and line.
    """

    def __init__(self, name: str, unit: str | None = None, allowed: tuple[str, ...] = tuple(UNITS)) -> None:
        if unit is not None and unit not in UNITS:
            raise HistoryError(f"a time unit is one of {', '.join(UNITS)}, found {unit!r}")
        self.name, self.unit, self.allowed = name, unit, allowed
        self.given = unit is not None

    def detect(self, value: int, file: str, line: int) -> str:
        """Return the unit, found from ``value`` if it is not known yet. Raises HistoryError."""
        if self.unit is None:
            self.unit = next((unit for unit in self.allowed if _fits(value, unit)), None)
        if self.unit is None:
            raise HistoryError(
                f"{file}:{line}: {self.name} {value} is no time between 2009 and 2100 in {' or '.join(self.allowed)}"
            )
        return self.unit

    def ns(self, value: int, file: str, line: int) -> int:
        """Return the nanoseconds of one time."""
        unit = self.detect(value, file, line)
        if not _fits(value, unit):
            self._refuse(value, file, line)
        return value * UNITS[unit]

    def column(self, values: pl.Series, lines: pl.Series, file: str) -> pl.Series:
        """Return nanoseconds of a column of whole numbers; nulls stay."""
        present = values.drop_nulls()
        if present.is_empty():
            return values.cast(pl.Int64)
        first = values.is_not_null().arg_max() or 0
        unit = self.detect(int(values[first]), file, int(lines[first]))
        least, most = int(present.min()), int(present.max())  # type: ignore[arg-type]
        if not (_fits(least, unit) and _fits(most, unit)):
            low, high = -(-_FIRST // UNITS[unit]), _LAST // UNITS[unit]
            bad = ((values < low) | (values >= high)).fill_null(False).arg_max() or 0
            self._refuse(int(values[bad]), file, int(lines[bad]))
        return values.cast(pl.Int64) * UNITS[unit]

    def _refuse(self, value: int, file: str, line: int) -> None:
        other = next((unit for unit in UNITS if _fits(value, unit)), None)
        was = "was given as" if self.given else "began in"
        raise HistoryError(
            f"{file}:{line}: {self.name} {value} is "
            + (f"in {other}" if other else "no time between 2009 and 2100")
            + f", but the {self.name} {was} {self.unit}"
        )


def _fits(value: int, unit: str) -> bool:
    return _FIRST <= value * UNITS[unit] < _LAST
