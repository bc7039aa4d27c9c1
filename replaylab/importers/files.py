"""Files of lines: found, checked against their checksums, unpacked, cut into blocks of whole lines."""

from __future__ import annotations

import codecs
import glob
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replaylab.errors import HistoryError
from replaylab.fsio import sha256_of

BLOCK_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_WHOLE_BYTES = 1024 * 1024 * 1024  # of files that are read in one piece (JSON)
# Recorded data packs to a tenth or a twentieth; a file that unpacks to so much more holds nothing.
_MAX_RATIO, _FREE_BYTES = 200, 256 * 1024 * 1024
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip"}
_SUM = re.compile(
    r"(?:SHA256\s+)?(?P<sum>[0-9a-f]{64})(?:\s+\*?(?P<name>.+))?|SHA256 ?\((?P<bsd>.+)\) ?= ?(?P<last>[0-9a-f]{64})",
    re.IGNORECASE,
)
_OTHER_MAGIC = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
_DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, pa.ArrowException)
_BOM = b"\xef\xbb\xbf"


@dataclass
class Block:
    """Whole lines; ``first_line`` is the number of the first of them, from 1."""

    data: bytes
    first_line: int

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Position after each line, its line break included."""
        found = np.flatnonzero(np.frombuffer(self.data, dtype=np.uint8) == ord("\n")) + 1
        whole = not self.data or self.data.endswith(b"\n")
        return found if whole else np.append(found, len(self.data))

    def line(self, number: int) -> bytes:
        """Return a line by its number in the file."""
        index = number - self.first_line
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].rstrip(b"\r\n")


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...
    def __enter__(self) -> _Stream: ...
    def __exit__(self, *error: object) -> None: ...


class LineFile:
    """One file of lines, to be read once from its beginning. ``packed``: its bytes as they are stored."""

    def __init__(self, path: Path, member: str | None, packed: int, opened: Callable[[], _Stream]) -> None:
        self.path = path
        self.name = path.name if member is None else f"{path.name}!{member}"
        self.hint = path.name if member is None else member  # the name that may tell a symbol
        self._opened = opened
        self._line = 1  # the next one
        self._most = packed * _MAX_RATIO + _FREE_BYTES

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """Yield the file in blocks of whole lines of about ``size`` bytes.

        Raises HistoryError for a damaged file, a line of more than 16 MiB, a file that unpacks to over 200 times its
        size, one packed twice, and one in UTF-16.
        """
        line = self._line = 1
        rest = b""
        for data in self._pieces(size):
            cut = data.rfind(b"\n") + 1
            if not cut:
                rest += data
                if len(rest) > MAX_LINE_BYTES:
                    raise HistoryError(
                        f"{self.name}:{line}: the line is longer than {MAX_LINE_BYTES:,} bytes"
                    )
                continue
            block = Block(rest + data[:cut], line)
            rest = data[cut:]
            yield block
            line = self._line = line + len(block.ends)
        if rest:
            yield Block(rest, line)

    def whole(self) -> bytes:
        """Return the content. Raises HistoryError as ``blocks`` does, and for more than 1 GiB."""
        pieces, total = [], 0
        for data in self._pieces(BLOCK_BYTES):
            pieces.append(data)
            self._line += data.count(b"\n")
            total += len(data)
            if total > MAX_WHOLE_BYTES:
                raise HistoryError(
                    f"{self.name}: is read in one piece, and has more than {MAX_WHOLE_BYTES:,} bytes"
                )
        return b"".join(pieces)

    def _pieces(self, size: int) -> Iterator[bytes]:
        total = 0
        try:
            opened = self._opened()
        except _DAMAGE as error:
            raise HistoryError(f"{self.name}: cannot be read: {error}") from None
        with opened as stream:
            while True:
                try:
                    data = stream.read(size)
                except _DAMAGE as error:
                    raise HistoryError(
                        f"{self.name}: damaged or cut off after line {self._line - 1}: {error}"
                    ) from None
                if not total:
                    self._check_start(data)
                    data = data.removeprefix(_BOM)
                if not data:
                    return
                total += len(data)
                if total > self._most:
                    raise HistoryError(f"{self.name}: unpacks to more than {_MAX_RATIO} times its size")
                yield data

    def _check_start(self, data: bytes) -> None:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[1:2] == b"\0" or (data[:1] == b"\0" and data[1:2]):
            raise HistoryError(f"{self.name}: is text in UTF-16, or binary: convert it to UTF-8")
        packing = next((name for mark, name in _MAGIC.items() if data.startswith(mark)), None)
        if packing:
            raise HistoryError(f"{self.name}: is {packing} inside another packing: unpack it once")
        other = next((name for mark, name in _OTHER_MAGIC.items() if data.startswith(mark)), None)
        if other:
            raise HistoryError(
                f"{self.name}: is packed with {other}, which is not read: unpack it, or use gz, zst or zip"
            )


def find_files(given: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files of paths, folders (with the folders below) and patterns such as ``*.zip``, in order of names.

    Where ``NAME.CHECKSUM`` is next to a file, its SHA-256 is compared. Raises HistoryError where nothing is found or a
    checksum differs.
    """
    found: list[Path] = []
    for each in given:
        one, path = os.fspath(each), Path(each)
        if path.is_dir():
            some = [
                file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))
            ]
        elif not path.exists() and glob.has_magic(one):
            # Path.glob takes no absolute pattern.
            some = [Path(file) for file in glob.glob(one, recursive=True) if Path(file).is_file()]  # noqa: PTH207
        else:
            found.append(path)
            continue
        some = sorted(file for file in some if file.suffix != ".CHECKSUM" and not file.name.startswith("."))
        if not some:
            raise HistoryError(f"{one}: no files here")
        found += some
    for file in found:
        note = file.with_name(file.name + ".CHECKSUM")
        if note.is_file() and file.is_file():
            expected, actual = _expected_sum(note, file.name), sha256_of(file)
            if actual != expected:
                raise HistoryError(
                    f"{file}: its SHA-256 is {actual}, but {note.name} says {expected!r}: download it again"
                )
    return found


def _expected_sum(note: Path, name: str) -> str:
    """Return the SHA-256 that a checksum file gives a file, as ``sha256sum``, BSD tools or PowerShell write it."""
    with note.open("rb") as file:
        data = file.read(1 << 16)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    found = [
        match
        for line in data.decode(encoding, "replace").splitlines()
        if (match := _SUM.fullmatch(line.strip()))
    ]
    named = {re.split(r"[/\\]", match["bsd"] or match["name"] or "")[-1]: match for match in found}
    # The one sum of a file that was renamed with its note counts too.
    match = named.get(name) or (found[0] if len(found) == 1 else None)
    if match is not None:
        return (match["sum"] or match["last"]).lower()
    raise HistoryError(f"{note}: holds no SHA-256 of {name}: delete it, or download it again")


def _hidden(path: Path) -> bool:
    """Whether a file system made the file for itself: it, or a folder that it is in, begins with a point."""
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in path.parts)


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
                members = {
                    info.filename: info.compress_size
                    for info in archive.infolist()
                    if not info.is_dir() and not _hidden(Path(info.filename))
                }
        except zipfile.BadZipFile as error:
            raise HistoryError(f"{path}: damaged zip: {error}") from None
        if not members:
            raise HistoryError(f"{path}: the zip is empty")
        for name, packed in sorted(members.items()):
            yield LineFile(path, name, packed, partial(_Member, path, name, progress))
    else:
        size = path.stat().st_size
        yield LineFile(path, None, size, partial(_Packed, path, packing, progress))


class _Packed:
    """A plain or compressed file that reports how far into the packed bytes it is."""

    def __init__(self, path: Path, packing: str | None, progress: Callable[[int], Any] | None) -> None:
        self._raw = pa.OSFile(str(path))
        self._stream = self._raw if packing is None else pa.CompressedInputStream(self._raw, packing)
        self._progress, self._reported = progress, 0

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if self._progress is not None:
            at = self._raw.tell()
            self._progress(at - self._reported)
            self._reported = at
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
