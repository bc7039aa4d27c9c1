"""The snapshots in ``system/``: one record each."""

from __future__ import annotations

import os

from replaylab.errors import RecordError
from replaylab.paths import DataRoot
from replaylab.records import (
    ExecutionSnapshot,
    HealthSnapshot,
    Record,
    RiskSnapshot,
    TpslSnapshot,
    decode_record,
)

__all__ = ["SNAPSHOT_RECORDS", "load_snapshot"]

SNAPSHOT_RECORDS: dict[str, type[Record]] = {
    "risk": RiskSnapshot,
    "tpsl": TpslSnapshot,
    "execution": ExecutionSnapshot,
    "health": HealthSnapshot,
}


def load_snapshot(root: DataRoot | str | os.PathLike[str], name: str) -> Record | None:
    """Return the snapshot ``name`` ("risk", "tpsl", "execution", "health"), or None where there is none.

    Raises RecordError, naming the file, for one that is not the record it should be; UnsafeNameError for other names.
    """
    path = DataRoot(root).snapshot(name)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return decode_record(SNAPSHOT_RECORDS[name], data)
    except RecordError as error:
        raise RecordError(f"{path}: {error}", field=error.field) from None
