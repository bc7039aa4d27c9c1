"""Cuts a JSON Lines file into blocks of whole lines. A line ends at ``\\n``; the last one may lack it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

__all__ = ["Block", "blocks", "is_blank", "meetings", "preview", "whole", "without_mark"]

BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_NEWLINE, _RETURN, _OPEN, _CLOSE = (ord(mark) for mark in "\n\r{}")


@dataclass(frozen=True)
class Block:
    """Whole lines of one file: ``offset`` of the first byte, ``line`` number of the first line (from 1)."""

    data: bytes
    offset: int
    line: int
    count: int

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield line number, byte offset and bytes (without newline) of every line."""
        offset, line = self.offset, self.line
        texts = self.data.split(b"\n")
        if not texts[-1]:
            texts.pop()
        for text in texts:
            yield line, offset, text
            offset += len(text) + 1
            line += 1


def blocks(
    file: BinaryIO, *, start: int = 0, line: int = 1, end: int | None = None, size: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Yield the lines of an open file from byte ``start`` (where ``line`` begins) up to ``end`` or its last byte.

    A block is about ``size`` bytes, longer where one line is. Bytes appended while reading are read too.
    """
    file.seek(start)
    offset = start
    place = start
    # Pieces of a line whose end has not been read yet: a list, since a torn tail may be a gigabyte of NULs.
    rest: list[bytes] = []
    while True:
        chunk = file.read(size if end is None else min(size, end - place))
        if not chunk:
            break
        place += len(chunk)
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest.append(chunk)
            continue
        data = b"".join((*rest, chunk[:cut]))
        rest = [chunk[cut:]] if cut < len(chunk) else []
        count = _newlines(data)
        yield Block(data, offset, line, count)
        offset += len(data)
        line += count
    if rest:
        yield Block(b"".join(rest), offset, line, 1)


def whole(data: bytes) -> Block:
    """Return all of a file as one block."""
    return Block(data, 0, 1, _newlines(data) + bool(data and not data.endswith(b"\n")))


def meetings(data: bytes) -> int:
    """Return how often a ``}`` is followed by a line end and a ``{``."""
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    ends = ends[(ends > 0) & (ends < len(text) - 1)]
    before = text[ends - 1]
    # A Windows line end: look one further back.
    before = np.where((before == _RETURN) & (ends > 1), text[ends - 2], before)
    return int(np.count_nonzero((before == _CLOSE) & (text[ends + 1] == _OPEN)))


def is_blank(text: bytes) -> bool:
    """Tell whether a line holds nothing but JSON white space (``\\r`` of a Windows line end included)."""
    return not text.strip(b" \t\r")


def without_mark(text: bytes, offset: int) -> bytes:
    """Return a line without the byte order mark that some editors put at the start of a file."""
    return text[len(_BOM) :] if offset == 0 and text.startswith(_BOM) else text


def preview(text: bytes, length: int = 200) -> str:
    """Return the beginning of a line as text; bytes that are not UTF-8 become ``\\xNN``."""
    return text[:length].decode("utf-8", "backslashreplace").replace("\x00", "\\x00")


def _newlines(data: bytes) -> int:
    # Several times as fast as bytes.count, which stops at every one of them.
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))
