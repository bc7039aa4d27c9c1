"""What a clean-up says of lines before it removes them from their log: summaries, and with an archive, parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from replaylab.archive.compaction import PartWriter, Written, drop_superseded, remove_part, settle_parts
from replaylab.archive.listing import refuse_links
from replaylab.archive.summary import (
    Account,
    Tally,
    add_account,
    check_account,
    drop_accounts,
    settle_accounts,
    sha256_of,
)
from replaylab.errors import RetentionError
from replaylab.frames.archived import archive_folder
from replaylab.frames.fingerprint import begins_with, fingerprint
from replaylab.frames.loaded import Loaded
from replaylab.paths import DataRoot

__all__ = ["Dated", "Leaving"]

# A log may hold lines of thousands of days, and every open part is an open file.
_OPEN_PARTS = 64
_log = logging.getLogger("replaylab.archive")
# A UTC day, lines of that day, and how many bytes of text they are.
Dated = Iterable[tuple[str, Loaded, int]]


class Leaving:
    """Lines that are about to leave a log. Set ``gone`` right before they do; what fails until then is taken back.

    >>> with Leaving(root, path, fd, size, EVENTS.frame, archive=True) as leaving:        # doctest: +SKIP
    ...     leaving.summarise(read())
    ...     leaving.confirm(read())
    ...     leaving.gone = True
    ...     path.unlink()

    Takes the first ``size`` bytes of the open file. What an earlier clean-up that was killed said of lines that the
    file still holds is forgotten first, whatever days it was about: these lines are summarised anew when they go.
    Raises RetentionError where summaries or parts would be written through a symbolic link.
    """

    def __init__(
        self, root: DataRoot, path: Path, fd: int, size: int, schema: pl.Schema, *, archive: bool
    ) -> None:
        self.gone = False
        self.archived: list[Written] = []
        self.content = fingerprint(fd, size)
        self._sha256 = sha256_of(fd, size)
        self._root, self._path, self._fd, self._schema, self._archive = root, path, fd, schema, archive
        folder = archive_folder(root, path)
        self._log = folder.relative_to(root.archive_dir).as_posix()
        self._days: list[str] = []
        self._open: dict[str, PartWriter] = {}
        refuse_links(root, folder, root.summary_dir / self._log)

    def __enter__(self) -> Self:
        drop_superseded(self._root, self._path, self._fd)
        self._drop_accounts(lambda account: begins_with(self._fd, account.fingerprint))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.gone:
            self._take_back()
        elif error is None:
            settle_parts(part.path for part in self.archived)
            for day in self._days:
                settle_accounts(self._root, self._log, day)
        for part in self._open.values():
            part.discard()

    def summarise(self, lines: Dated) -> None:
        """Write the summaries of lines, by day."""
        for day, account in self._accounts(lines).items():
            self._days.append(day)
            add_account(self._root, self._log, day, account)

    def confirm(self, lines: Dated) -> None:
        """Read the lines again, and write their parts; raises ValueError unless the summaries on the disk are right."""
        again = self._accounts(self._archived(lines) if self._archive else lines)
        name = self._root.relative(self._path)
        if sorted(again) != sorted(self._days) or sha256_of(self._fd, self.content.size) != self._sha256:
            raise ValueError(f"{name}: changed while it was summarised; it is kept until the next clean-up")
        for day, account in again.items():
            check_account(self._root, self._log, day, account)
        while self._open:
            self._finish_oldest()
        if self.archived:
            before = sum(part.source_bytes for part in self.archived)
            _log.info(
                "%s: archived, %d bytes are %d", name, before, sum(part.bytes for part in self.archived)
            )

    def check_unchanged(self, current: int, *, may_grow: bool) -> None:
        """Raise RetentionError unless the file that writers now have is the one whose lines were summarised."""
        now = os.fstat(current)
        is_same = os.path.samestat(now, os.fstat(self._fd)) and begins_with(current, self.content)
        if not is_same or (now.st_size > self.content.size and not may_grow):
            name = self._root.relative(self._path)
            raise RetentionError(
                f"{name}: changed while it was summarised; it is kept until the next clean-up"
            )

    def _accounts(self, lines: Dated) -> dict[str, Account]:
        tallies: dict[str, Tally] = {}
        for day, loaded, size in lines:
            tallies.setdefault(day, Tally()).add(loaded, size)
        name = self._root.relative(self._path)
        return {day: tallies[day].account(name, self.content, self._sha256) for day in sorted(tallies)}

    def _archived(self, lines: Dated) -> Dated:
        """Write the parts of lines while they are counted."""
        for day, loaded, size in lines:
            part = self._open.pop(day, None) or PartWriter(self._root, self._path, day, self._schema)
            self._open[day] = part
            part.add(loaded, size)
            if len(self._open) > _OPEN_PARTS:
                self._finish_oldest()
            yield day, loaded, size

    def _finish_oldest(self) -> None:
        day = next(iter(self._open))
        self.archived.append(self._open[day].finish(self.content, self._sha256))
        del self._open[day]

    def _take_back(self) -> None:
        try:
            for part in self.archived:
                remove_part(part.path)
            self._drop_accounts(lambda account: account.sha256 == self._sha256)
        except (OSError, ValueError) as error:
            # They stay pending, and the next clean-up of this log forgets them.
            _log.warning("%s: what was said of its lines stays for now: %s", self._path, error)

    def _drop_accounts(self, is_stale: Callable[[Account], bool]) -> None:
        # Lines of state events may be of any day.
        is_one_day = self._path.parent != self._root.events_dir
        drop_accounts(
            self._root, self._log, f"{self._path.stem}.json" if is_one_day else "day-*.json", is_stale
        )
