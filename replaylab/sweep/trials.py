"""The trial ledger: which sweeps were run on which tape, in every notebook and process that uses a data root.

::

    lab.trials()                                     # a row per sweep: tape, rows, time, grid
    reset_trials(root, "new data vendor")            # starts again; the reason stays in the file
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab.errors import SweepError
from replaylab.fsio import lock, write_all
from replaylab.paths import DataRoot
from replaylab.timestamps import iso, now_ns

_SCHEMA = {
    "time": pl.String,
    "tape": pl.String,
    "rows": pl.Int64,
    "grid": pl.String,
    "session_id": pl.String,
    "reason": pl.String,
}


def ledger_path(root: DataRoot, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return ``system/trials.jsonl`` of a data root, or a file in ``cache_dir`` where the root is read-only."""
    own = root.trials
    if own.exists():
        writable = os.access(own, os.W_OK)
    else:
        folder = next(place for place in own.parents if place.exists())
        writable = os.access(folder, os.W_OK)
    if writable or cache_dir is None:
        return own
    name = hashlib.sha256(os.fsencode(root.path.resolve())).hexdigest()[:16]
    return Path(cache_dir) / f"trials-{name}.jsonl"


def read_trials(path: Path) -> pl.DataFrame:
    """Return a row per sweep: ``time, tape, rows, grid, session_id, reason``; a reset has a reason and no rows.

    Lines that are no entries, such as the torn last one of a killed process, are left out.
    """
    entries: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(entry, dict):
                entries.append({name: entry.get(name) for name in _SCHEMA})
    return pl.DataFrame(entries, schema=_SCHEMA)


def add_trial(path: Path, *, tape: str, rows: int, grid: str, session_id: str | None) -> int:
    """Add a sweep and return how many other rows were tried on the same tape before, since the last reset.

    A sweep whose ``grid`` digest is in the ledger for this tape is not added again: the same cell, run twice, is one
    trial. Safe with several processes: under a lock, one ``write`` for each line. A ledger that cannot be written only
    counts what it holds.
    """
    try:
        with lock(path.with_suffix(".lock"), timeout=10.0):
            known = current_trials(path).filter(pl.col("tape") == tape)
            if grid not in known["grid"]:
                entry = {
                    "time": iso(now_ns()),
                    "tape": tape,
                    "rows": rows,
                    "grid": grid,
                    "session_id": session_id,
                }
                _append(path, entry)
    except OSError:
        known = current_trials(path).filter(pl.col("tape") == tape)
    return int(known.filter(pl.col("grid") != grid)["rows"].sum())


def current_trials(path: Path) -> pl.DataFrame:
    """Return the entries after the last reset."""
    entries = read_trials(path).with_row_index("line")
    resets = entries.filter(pl.col("reason").is_not_null())["line"].max()
    return entries.filter(pl.col("line") > (-1 if resets is None else resets)).drop("line")


def reset_trials(path: Path, reason: str) -> None:
    """Start the count again. ``reason`` stays in the ledger; raises SweepError without one."""
    if not reason.strip():
        raise SweepError("reset of the trial ledger: expected a reason, found an empty one")
    with lock(path.with_suffix(".lock"), timeout=10.0):
        _append(path, {"time": iso(now_ns()), "reason": reason})


def _append(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(fd, orjson.dumps(entry) + b"\n")
    finally:
        os.close(fd)
