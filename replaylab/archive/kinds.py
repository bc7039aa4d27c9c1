"""Which kind of log a file is: told by its place in a data root, elsewhere by what its lines are."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from replaylab.frames.decode import decode_block
from replaylab.frames.lines import blocks
from replaylab.frames.logs import EVENTS, ORDERS, PARAMS, REPLAY_EVENTS, TRADES
from replaylab.frames.schema import LogSchema

__all__ = ["at_place", "schema_by_lines", "schema_by_place"]

# Sessions come first: one may have the name of a log's folder.
_PLACES: tuple[tuple[str, LogSchema], ...] = (
    (r"replay/sessions/[^/]+/events\.jsonl", REPLAY_EVENTS),
    (r"events/[^/]+\.jsonl", EVENTS),
    (r"trades_log/[^/]+\.jsonl", TRADES),
    (r"orders/[^/]+\.jsonl", ORDERS),
    (r"system/trading_params\.jsonl", PARAMS),
    (r"events\.jsonl", REPLAY_EVENTS),
)
_BLOCKS = 16


def at_place(path: Path, pattern: str) -> bool:
    """Tell whether the last parts of a path are as ``pattern`` says.

    >>> at_place(Path("data/events/B.jsonl"), r"events/[^/]+[.]jsonl")
    True
    """
    return re.search(f"(?:^|/)(?:{pattern})$", path.as_posix()) is not None


def schema_by_place(path: Path) -> LogSchema | None:
    """Return the kind of a log that lies where logs of that kind lie."""
    return next((schema for pattern, schema in _PLACES if at_place(path, pattern)), None)


def schema_by_lines(path: Path) -> LogSchema | None:
    """Return a kind of which there is a good line in the first 16 MiB; None where there is none. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        for block in islice(blocks(file), _BLOCKS):
            for schema in (EVENTS, TRADES, ORDERS, REPLAY_EVENTS, PARAMS):
                if decode_block(schema, block, "").rows:
                    return schema
    return None
