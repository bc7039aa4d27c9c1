"""What every loader returns: the rows, and an account of every line that is not among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl

__all__ = ["REJECTS_SCHEMA", "TIMESTAMP", "Loaded", "Reject", "concat", "reject_frame"]

TIMESTAMP = pl.Datetime("ns", "UTC")
REJECTS_SCHEMA = pl.Schema(
    {"file": pl.String, "line": pl.Int64, "offset": pl.Int64, "reason": pl.String, "text": pl.String}
)
_TOGETHER = 32
_SMALL_ROWS = 50_000
Reject = tuple[str, int, int, str, str]


def reject_frame(rejects: Sequence[Reject] = ()) -> pl.DataFrame:
    """Return rejects as a frame; ``line`` counts from 1, ``offset`` is in bytes, ``text`` is a preview."""
    return pl.DataFrame(list(rejects), schema=REJECTS_SCHEMA, orient="row")


@dataclass(frozen=True)
class Loaded:
    """Rows and rejects of one load.

    >>> loaded = load_events("data", "BTCUSDT")                              # doctest: +SKIP
    >>> loaded.lines == loaded.rows + len(loaded.rejects) + loaded.blank     # doctest: +SKIP
    True

    ``rows`` counts the lines that are good records, before ``start``, ``end`` and ``symbols`` choose among them;
    ``frame`` holds the chosen ones in the order of the files. ``rejects`` has the columns file, line, offset
    (bytes), reason, text. ``lines`` are all lines of the files read, ``blank`` those with nothing on them.
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame = field(default_factory=reject_frame)
    lines: int = 0
    blank: int = 0
    rows: int = 0


def concat(parts: Iterable[Loaded], schema: pl.Schema) -> Loaded:
    """Return several loads as one; without any, an empty frame of ``schema``."""
    frames: list[pl.DataFrame] = []
    small: list[pl.DataFrame] = []
    rejects: list[pl.DataFrame] = []
    lines = blank = rows = 0
    for part in parts:
        lines, blank, rows = lines + part.lines, blank + part.blank, rows + part.rows
        if part.rejects.height:
            rejects.append(part.rejects)
        # Small pieces are copied together as they come: their memory is used again, and the whole has few chunks.
        is_small = part.frame.height < _SMALL_ROWS
        if is_small and part.frame.height:
            small.append(part.frame)
        if small and (not is_small or len(small) == _TOGETHER):
            frames.append(pl.concat(small, rechunk=True))
            small = []
        if not is_small:
            frames.append(part.frame)
    if small:
        frames.append(pl.concat(small, rechunk=True))
    return Loaded(
        frame=pl.concat(frames, rechunk=False) if frames else schema.to_frame(),
        rejects=pl.concat(rejects) if rejects else reject_frame(),
        lines=lines,
        blank=blank,
        rows=rows,
    )
