"""Files as blocks of whole lines, whatever they are packed in: plain, gz, zst, or a zip with one or more members.

What a file is packed in is read from its first bytes, not from its name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from replaylab.errors import HistoryError

__all__ = ["BLOCK_BYTES", "Block", "LineFile", "open_files"]

BLOCK_BYTES = 16 * 1024 * 1024
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Whole lines; ``first_line`` is the number of the first of them, from 1."""

    data: bytes
    first_line: int


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...
    def __enter__(self) -> _Stream: ...
    def __exit__(self, *error: object) -> None: ...


class LineFile:
    """One file of lines, to be read once from its beginning."""

    def __init__(self, path: Path, member: str | None, opened: Callable[[], _Stream]) -> None:
        self.path = path
        self.name = path.name if member is None else f"{path.name}!{member}"
        self.hint = path.name if member is None else member  # the name that may tell a symbol
        self._opened = opened

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield the file in blocks of whole lines of about ``size`` bytes. Raises HistoryError where it is damaged."""
        line, rest, start = 1, b"", True
        with self._opened() as stream:
            while True:
                try:
                    data = stream.read(size)
                except (OSError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
                    raise HistoryError(
                        f"{self.name}: damaged or cut off after line {line + rest.count(10) - 1}: {error}"
                    ) from None
                if start:
                    data, start = data.removeprefix(_BOM), False
                if not data:
                    break
                cut = data.rfind(b"\n") + 1
                if not cut:
                    rest += data
                    continue
                block = rest + data[:cut]
                rest = data[cut:]
                yield Block(block, line)
                line += int(np.count_nonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")))
        if rest:
            yield Block(rest, line)


def open_files(path: Path, progress: Callable[[int], Any] | None = None) -> Iterator[LineFile]:
    """Yield the files of lines in ``path``: one, or the members of a zip in the order of their names.

    ``progress`` is called with the packed bytes read since the last call. Raises HistoryError for a file that
    is missing, empty or not readable.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise HistoryError(f"{path}: cannot be read: {error.strerror or error}") from None
    packing = next((name for mark, name in _MAGIC.items() if magic.startswith(mark)), None)
    if packing == "zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(
                    info.filename
                    for info in archive.infolist()
                    if not info.is_dir() and not info.filename.startswith("__MACOSX/")
                )
        except zipfile.BadZipFile as error:
            raise HistoryError(f"{path}: damaged zip: {error}") from None
        if not names:
            raise HistoryError(f"{path}: the zip is empty")
        for name in names:
            yield LineFile(path, name, partial(_Member, path, name, progress))
    else:
        yield LineFile(path, None, partial(_Packed, path, packing, progress))


class _Packed:
    """A plain or compressed file that reports how far into the packed bytes it is."""

    def __init__(self, path: Path, packing: str | None, progress: Callable[[int], Any] | None) -> None:
        self._raw = pa.OSFile(str(path))
        self._stream = self._raw if packing is None else pa.CompressedInputStream(self._raw, packing)
        self._progress, self._told = progress, 0

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if self._progress is not None:
            at = self._raw.tell()
            self._progress(at - self._told)
            self._told = at
        return data

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._raw.close()


class _Member:
    """A member of a zip."""

    def __init__(self, path: Path, name: str, progress: Callable[[int], Any] | None) -> None:
        self._archive = zipfile.ZipFile(path)
        info = self._archive.getinfo(name)
        self._ratio = info.compress_size / max(info.file_size, 1)
        self._stream = self._archive.open(info)
        self._progress = progress

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if self._progress is not None:
            self._progress(round(len(data) * self._ratio))
        return data

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._archive.close()
