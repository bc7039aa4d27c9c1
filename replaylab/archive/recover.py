"""Copies what can be read of a damaged log."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import orjson
import polars as pl

from replaylab.errors import RecordError
from replaylab.frames.decode import decode_block, is_day
from replaylab.frames.lines import Block, blocks, is_blank, preview, without_mark
from replaylab.frames.loaded import REJECTS_SCHEMA, Reject, reject_frame
from replaylab.frames.logs import EVENTS, ORDERS, REPLAY_EVENTS, TRADES
from replaylab.frames.schema import LogSchema

__all__ = ["RecoverReport", "recover"]

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass
class RecoverReport:
    """Lines kept (``repaired`` of them were whole records inside damaged lines), and what was lost.

    ``lost`` has the columns file, line, offset, reason, text: one row for each stretch that is not in the output.
    """

    kept: int = 0
    repaired: int = 0
    lines: int = 0
    blank: int = 0
    lost: pl.DataFrame = field(default_factory=lambda: REJECTS_SCHEMA.to_frame())

    def to_dict(self) -> dict[str, object]:
        return {
            "kept": self.kept,
            "repaired": self.repaired,
            "lines": self.lines,
            "blank": self.blank,
            "lost": self.lost.to_dicts(),
        }


def recover(file: str | os.PathLike[str], out: str | os.PathLike[str]) -> RecoverReport:
    """Write the good lines of ``file`` to ``out``, byte for byte, and return what was kept and lost.

    >>> recover("events/BTCUSDT.jsonl", "recovered.jsonl").lost.height            # doctest: +SKIP

    The kind of log is told by the folder; elsewhere a line is good when it is a JSON object. In a line with damage,
    whole records before and after it are looked for. The input is never changed. Raises FileExistsError when ``out``
    exists, and OSError.
    """
    source, target = Path(file).absolute(), Path(out).absolute()
    schema = _schema_of(source)
    report = RecoverReport()
    lost: list[Reject] = []
    with source.open("rb", buffering=0) as reader, target.open("xb") as writer:
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
                    pieces, rest = _salvage(schema, text)
                    for piece in pieces:
                        writer.write(piece + b"\n")
                    report.kept += len(pieces)
                    report.repaired += len(pieces)
                    if rest.strip(b" \t\r\0"):
                        lost.append((source.name, number, offset, bad[number], preview(rest)))
        writer.flush()
        os.fsync(writer.fileno())
    report.lost = reject_frame(lost)
    return report


def _schema_of(path: Path) -> LogSchema | None:
    if path.parent.name == "events":
        return EVENTS
    if path.stem.startswith("day-") and is_day(path.stem.removeprefix("day-")):
        return {"trades_log": TRADES, "orders": ORDERS}.get(path.parent.name)
    return REPLAY_EVENTS if path.name == "events.jsonl" else None


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


def _salvage(schema: LogSchema | None, text: bytes) -> tuple[list[bytes], bytes]:
    """Return whole records found inside a damaged line, and what is left of it.

    A torn line and the next one run together, two writers without a lock, zeros before a record: all begin anew at
    a ``{"``, so each such place is tried, and the longest record that begins there and ends at a ``}`` is taken.
    """
    pieces: list[bytes] = []
    rest = bytearray()
    place = 0
    # A long line has many such places and each is tried against each end: beyond this size it is left as lost.
    if len(text) > 1 << 16:
        return [], text
    while place < len(text):
        start = text.find(b'{"', place)
        if start < 0:
            rest += text[place:]
            break
        rest += text[place:start]
        piece = _record_at(schema, text, start)
        if piece is None:
            rest += text[start : start + 1]
            place = start + 1
        else:
            pieces.append(piece)
            place = start + len(piece)
    return pieces, bytes(rest)


def _record_at(schema: LogSchema | None, text: bytes, start: int) -> bytes | None:
    end = text.find(b"}", start)
    while end >= 0:
        piece = text[start : end + 1]
        try:
            _OBJECT.decode(piece)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            end = text.find(b"}", end + 1)
            continue
        return piece if _is_good(schema, piece) else None
    return None


def _is_good(schema: LogSchema | None, piece: bytes) -> bool:
    if schema is None:
        return True
    try:
        return decode_block(schema, Block(piece, 0, 1, 1), "").rows == 1
    except RecordError:
        return False
