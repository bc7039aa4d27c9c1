"""A sweep's result on disk: one Parquet file whose metadata says what it is the answer to."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab import __version__
from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sweep.statistics import Moments

if TYPE_CHECKING:
    from replaylab.sweep.result import SweepResult

__all__ = ["read", "write"]

_KEY = b"replaylab.sweep"


def write(result: SweepResult, shape: Moments | None, path: Path) -> Path:
    """Write a result; the file appears whole or not at all."""
    about = {
        "version": __version__,
        "params": result.params.to_dict(),
        "axes": list(result.axes),
        "session_id": result.session_id,
        "digest": result.digest,
        "left_out": result.left_out,
        "method": result.method,
        "span": result.span,
        "earlier_trials": result.earlier_trials,
        "best_moments": None if shape is None else asdict(shape),
    }
    table = result.data.to_arrow()
    metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(about).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table.replace_schema_metadata(metadata), half, compression="zstd")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return path


def read(path: Path) -> dict[str, Any]:
    """Return the fields of a saved result."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise SweepError(f"{path}: not a saved sweep: {error}") from None
    about = (table.schema.metadata or {}).get(_KEY)
    if about is None:
        raise SweepError(f"{path}: not a saved sweep: its metadata holds no {_KEY.decode()}")
    known = json.loads(about)
    data = pl.DataFrame(table)
    return {
        "data": data,
        "axes": {name: data[name].unique(maintain_order=True).to_list() for name in known["axes"]},
        "params": TradingParams.from_dict(known["params"]),
        "session_id": known["session_id"],
        "digest": known["digest"],
        "left_out": known["left_out"],
        "method": known["method"],
        "span": None if known.get("span") is None else tuple(known["span"]),
        "earlier_trials": known.get("earlier_trials", 0),
        "saved_moments": None if known.get("best_moments") is None else Moments(**known["best_moments"]),
    }
