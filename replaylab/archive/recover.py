"""Copy the readable records of a damaged log."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson
import polars as pl

from replaylab.archive.listing import schema_by_lines, schema_by_place
from replaylab.errors import RecordError
from replaylab.frames import (
    REJECTS_SCHEMA,
    Block,
    LogSchema,
    Reject,
    blocks,
    decode_block,
    is_blank,
    preview,
    reject_frame,
    without_mark,
)
from replaylab.fsio import atomic_path

_LISTED = 10_000
# A stretch is read from each place where a record may begin. So many failures, or such a length, and it is left as
# lost: the time for a line of rubbish must not grow with the square of its length.
_FAILURES = 100
_MOST_BYTES = 1 << 20
_NULS = re.compile(rb"\0+")
_DECODER = json.JSONDecoder()


@dataclass
class RecoverReport:
    """Lines kept (``repaired`` of them were whole records inside damaged lines), and what was lost.

    ``lost`` has the columns file, line, offset, reason, text: one row for each line of which something is not in the
    output. At most 10,000 are listed; ``unlisted`` counts the others.
    """

    kept: int = 0
    repaired: int = 0
    lines: int = 0
    blank: int = 0
    lost: pl.DataFrame = field(default_factory=lambda: REJECTS_SCHEMA.to_frame())
    unlisted: int = 0

    def to_dict(self) -> dict[str, object]:
        return {
            "kept": self.kept,
            "repaired": self.repaired,
            "lines": self.lines,
            "blank": self.blank,
            "lost": self.lost.to_dicts(),
            "unlisted": self.unlisted,
        }


def recover(file: str | os.PathLike[str], out: str | os.PathLike[str]) -> RecoverReport:
    """Write the good lines of ``file`` to ``out``, byte for byte, and return what was kept and lost.

    >>> recover("events/BTCUSDT.jsonl", "recovered.jsonl").lost.height            # doctest: +SKIP

    The kind of log follows from its place in a data root, elsewhere from its first valid line; when no line is a record
    of any log, a line is good when it is a JSON object. In a damaged line, whole records are searched before and after
    the damage and behind NULs, in a file of unknown kind only before it. The input is never changed, and ``out``
    appears complete or not at all. Raises FileExistsError when ``out`` exists, and OSError.
    """
    source, target = Path(file).absolute(), Path(out).absolute()
    schema = schema_by_place(source) or schema_by_lines(source)
    report = RecoverReport()
    lost: list[Reject] = []
    with source.open("rb", buffering=0) as reader, _written_whole(target) as writer:
        for block in blocks(reader):
            report.lines += block.count
            bad = _bad_lines(schema, block, source.name)
            for number, offset, text in block.lines():
                if is_blank(text):
                    report.blank += 1
                elif number not in bad:
                    writer.write(without_mark(text, offset) + b"\n")
                    report.kept += 1
                else:
                    pieces, rest, is_searched = _salvage(schema, text)
                    for piece in pieces:
                        writer.write(piece + b"\n")
                    report.kept += len(pieces)
                    report.repaired += len(pieces)
                    if pieces and not rest.strip():
                        continue
                    if len(lost) == _LISTED:
                        report.unlisted += 1
                        continue
                    reason = bad[number] if is_searched else f"{bad[number]}; {_NOT_SEARCHED}"
                    lost.append((source.name, number, offset, reason, preview(rest or text)))
    report.lost = reject_frame(lost)
    return report


_NOT_SEARCHED = "not all of it was searched for whole records: it is too long, or too much of it is damaged"


@contextmanager
def _written_whole(target: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name once everything is written and synced; a failed one is deleted."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "there is a file of this name already; give another", str(target))
    with atomic_path(target, sync=True, overwrite=False) as part, part.open("xb") as writer:
        yield writer


def _bad_lines(schema: LogSchema | None, block: Block, name: str) -> dict[int, str]:
    """Return line numbers of the lines that are not good, with the reason."""
    if schema is not None:
        rejects = decode_block(schema, block, name).rejects
        return dict(zip(rejects["line"].to_list(), rejects["reason"].to_list(), strict=True))
    bad = {}
    for number, offset, text in block.lines():
        if not is_blank(text):
            try:
                if not isinstance(orjson.loads(without_mark(text, offset)), dict):
                    bad[number] = "not a JSON object"
            except orjson.JSONDecodeError as error:
                bad[number] = f"not valid JSON: {error}"
    return bad


def _salvage(schema: LogSchema | None, text: bytes) -> tuple[list[bytes], bytes, bool]:
    """Return whole records found inside a damaged line, what is left of it, and whether all of it was searched.

    A torn line followed by the next one, two writers without a lock, zeros before a record: in each case a whole record
    starts at a ``{"``, so each such position is tried.
    """
    pieces: list[bytes] = []
    rest = bytearray()
    is_searched = True
    for stretch in _NULS.split(text):
        # What lies inside an object that has no end may be a part of it: only a known kind of log can decide.
        is_inside = schema is None and bool(rest.strip())
        if is_inside or len(stretch) > _MOST_BYTES:
            rest += stretch
            is_searched = is_searched and is_inside
            continue
        # One character for each byte: the places are the same.
        letters = stretch.decode("latin-1")
        place = failures = 0
        while (start := stretch.find(b'{"', place)) >= 0:
            if schema is None and stretch[place:start].strip():
                break
            rest += stretch[place:start]
            piece = _object_at(letters, start)
            if piece and _is_good(schema, piece):
                pieces.append(piece)
                place = start + len(piece)
                continue
            rest += stretch[start : start + 1]
            place = start + 1
            failures += 1
            if schema is None or failures == _FAILURES:
                is_searched = schema is None
                break
        rest += stretch[place:]
    return pieces, bytes(rest), is_searched


def _object_at(letters: str, start: int) -> bytes:
    """Return the JSON object that begins at ``start``; nothing where it has no end."""
    try:
        _, end = _DECODER.raw_decode(letters, start)
    except (ValueError, RecursionError):
        return b""
    return letters[start:end].encode("latin-1")


def _is_good(schema: LogSchema | None, piece: bytes) -> bool:
    try:
        if schema is None:
            return isinstance(orjson.loads(piece), dict)
        return decode_block(schema, Block(piece, 0, 1, 1), "").rows == 1
    except (RecordError, orjson.JSONDecodeError):
        return False
