"""Takes one step of a plan. What was true when it was made is looked at again right before anything goes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from replaylab.archive.compaction import remove_part
from replaylab.archive.leaving import Leaving
from replaylab.archive.listing import file_state, refuse_links, running_session, session_folder
from replaylab.archive.plan import Step
from replaylab.archive.rotation import rotate_events
from replaylab.archive.summary import has_account, summary_path
from replaylab.errors import RetentionError
from replaylab.frames.archived import part_info
from replaylab.frames.files import chunks_of
from replaylab.frames.loaded import Loaded
from replaylab.frames.logs import ORDERS, TRADES
from replaylab.frames.sources import CHUNK_BYTES
from replaylab.logging import rotate_lock
from replaylab.logging.atomic import sync_folder
from replaylab.paths import DataRoot

__all__ = ["take"]

_SCHEMAS = {"trades_log": TRADES, "orders": ORDERS}


def take(root: DataRoot, step: Step, *, archive: bool) -> bool:
    """Take one step; return whether the file is gone. Raises OSError, ValueError, RetentionError; then it is kept."""
    refuse_links(root, step.path.parent)
    if step.kind == "events":
        return rotate_events(root, step.path.stem, step.cutoff_ns, archive=archive)
    if step.kind == "day":
        _retire_day(root, step, archive=archive)
    elif step.kind == "session":
        _remove_session(root, step.path)
    elif step.kind == "part":
        _remove_part(root, step)
    else:
        _remove_market_file(step)
    return True


def _retire_day(root: DataRoot, step: Step, *, archive: bool) -> None:
    schema = _SCHEMAS[step.log]
    name = root.relative(step.path)
    with step.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size

        def read() -> Iterator[tuple[str, Loaded, int]]:
            # An empty file has its summary too; the bytes are told with no line, since pieces do not know theirs.
            yield step.day, Loaded(schema.frame.to_frame()), size
            for loaded in chunks_of(file, schema, name, (None, None), CHUNK_BYTES, end=size):
                yield step.day, loaded, 0

        with Leaving(root, step.path, file.fileno(), size, schema.frame, archive=archive) as leaving:
            leaving.summarise(read())
            leaving.confirm(read())
            with rotate_lock(step.path) as current:
                leaving.check_unchanged(current, may_grow=False)
                leaving.gone = True
                step.path.unlink()


def _remove_session(root: DataRoot, path: Path) -> None:
    session = session_folder(path)
    if session is None or session.problem is not None or session.pinned:
        raise RetentionError("this session was changed or pinned meanwhile; it is kept")
    if running_session(root) == path.name:
        raise RetentionError("this session is being replayed; it is kept until the next clean-up")
    doomed = path.with_name(f".deleted-{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _remove_part(root: DataRoot, step: Step) -> None:
    """Remove an archived part, which is the last copy of its lines: their summary must be there."""
    info = part_info(step.path)
    log = root.relative(step.path.parent).partition("/")[2]
    if not has_account(root, log, step.day, info.source_sha256):
        raise RetentionError(
            f"{root.relative(summary_path(root, log, step.day))} does not count the lines of this part; the part is "
            "kept. Bring the summary back, or delete the part yourself"
        )
    remove_part(step.path)
    sync_folder(str(step.path.parent))


def _remove_market_file(step: Step) -> None:
    if file_state(step.path) != step.state:
        raise RetentionError("this file was written meanwhile; it is kept until the next clean-up")
    step.path.unlink()
    sync_folder(str(step.path.parent))
