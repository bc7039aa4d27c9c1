"""A dataset on disk: partitioned Parquet with a data card, the same bytes for the same inputs.

::

    export_features(session, "dataset")                      # a folder: data/, dataset.json, README.md
    export_features([a, b, c], "dataset.parquet")            # one file, with the card beside it

One session is in memory at a time, whatever their number.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import DatasetError
from replaylab.ml.card import CARD_KEY, CardBuilder, readme
from replaylab.ml.columns import Column, describe
from replaylab.ml.dataset import LookBacks, features
from replaylab.ml.labelling import labels as make_labels
from replaylab.paths import safe_name

__all__ = ["Export", "export_features"]

_REPEATED = ("event_index", "symbol")  # labels carry these too


@dataclass(frozen=True)
class Export:
    """What was written: ``path``, its Parquet ``files``, ``rows``, and the ``card`` as in ``dataset.json``."""

    path: Path
    files: tuple[Path, ...]
    rows: int
    card: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Export {self.path}: {self.rows:,} rows in {len(self.files)} files>"


def export_features(
    sessions: Any,
    path: str | os.PathLike[str],
    format: str = "parquet",  # noqa: A002  (the word the contract uses)
    *,
    labels: Mapping[str, Any] | None = {},
    at: str = "scoring",
    params: LookBacks | None = None,
    recent_trades: int = 5,
    symbols: Iterable[str] | None = None,
) -> Export:
    """Write features and labels of one or more sessions as Parquet (zstd) with a data card.

    ``path``: a folder (``data/<session>/<symbol>.parquet``, ``dataset.json``, ``README.md``), or a name that ends in
    ``.parquet`` for one file with ``<name>.json`` beside it. An earlier export there is replaced, anything else
    refused. ``labels``: options of ``labels`` (one setting), such as ``{"tp_pct": 0.3, "side": "score"}``; None writes
    none. The others as in ``features``. Each field carries its description as Arrow metadata; keys and labels
    are columns of every file. The same inputs and versions give the same bytes. Raises DatasetError.
    """
    if format != "parquet":
        raise DatasetError(f"the format is 'parquet', found {format!r}")
    several = list(sessions) if isinstance(sessions, Iterable) else [sessions]
    if not several:
        raise DatasetError("no sessions to export")
    names = [session.id for session in several]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DatasetError(
            f"sessions named twice: {', '.join(repeated)}: their rows would stand twice in the data"
        )
    target = Path(path)
    single = target.suffix == ".parquet"
    _refuse_foreign(target, single)
    options = {"at": at, "labels": None if labels is None else dict(labels), "recent_trades": recent_trades}
    card = CardBuilder(options, params)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging = target.absolute().with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        pieces = []
        chosen = None if symbols is None else sorted(symbols)
        for given in several:
            # A session keeps the events that it read: a copy of its own lets go of them with the loop.
            session = copy(given)
            frame = _rows(session, labels, at, params, recent_trades, chosen)
            card.add(session, frame)
            pieces += _stage(frame, session.id, staging / "pieces")
            del frame, session
        schema = _schema(pieces, params, recent_trades)
        about = card.finish(describe(schema.names, params, recent_trades))
        schema = schema.with_metadata({CARD_KEY: orjson.dumps(about, option=orjson.OPT_SORT_KEYS)})
        if single:
            _write_single(pieces, schema, staging, target, about)
            return Export(target, (target,), about["rows"], about)
        return _write_folder(pieces, schema, staging, target, about)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _rows(
    session: Any,
    labels: Mapping[str, Any] | None,
    at: str,
    params: LookBacks | None,
    recent_trades: int,
    symbols: list[str] | None,
) -> pl.DataFrame:
    frame = features(session, at=at, params=params, recent_trades=recent_trades, symbols=symbols)
    frame = frame.insert_column(
        0, pl.Series("session_id", [session.id], dtype=pl.String).new_from_index(0, frame.height)
    )
    if labels is None:
        return frame
    # The score's side needs the scores; other decision times are those of the features.
    times: Any = "scoring" if at == "scoring" else frame.select("timestamp", "symbol", "event_index")
    taught = make_labels(session, **{"at": times, "symbols": symbols, **labels})
    if taught.height != frame.height:
        raise DatasetError("a dataset has one label per row: give one target, one stop and one time barrier")
    return pl.concat([frame, taught.drop(_REPEATED)], how="horizontal")


def _stage(frame: pl.DataFrame, session_id: str, folder: Path) -> list[tuple[str, str, Path]]:
    """Write one session's rows, a file per symbol; return (session, symbol, file)."""
    place = folder / safe_name(session_id, "session id")
    place.mkdir(parents=True)
    pieces = []
    for (symbol,), part in sorted(frame.partition_by("symbol", as_dict=True, maintain_order=True).items()):
        file = place / f"{safe_name(str(symbol), 'symbol')}.parquet"
        part.write_parquet(file, compression="lz4")
        pieces.append((session_id, str(symbol), file))
    return pieces


def _schema(pieces: list[tuple[str, str, Path]], params: LookBacks | None, recent_trades: int) -> pa.Schema:
    """Return the fields of all pieces together, in the order of the first, each with its description."""
    fields: dict[str, pa.DataType] = {}
    for _, _, file in pieces:
        for field in pq.read_schema(file):
            kind = pa.string() if pa.types.is_large_string(field.type) else field.type
            if fields.get(field.name, pa.null()) == pa.null():
                fields[field.name] = kind
    described = {column.name: column for column in describe(fields, params, recent_trades)}
    order = {"key": 0, "feature": 1, "label": 2, "weight": 3}
    names = sorted(fields, key=lambda name: order[described[name].role])
    return pa.schema(
        [pa.field(name, fields[name], metadata=_field_metadata(described[name])) for name in names]
    )


def _field_metadata(column: Column) -> dict[str, str]:
    return {
        "role": column.role,
        "unit": column.unit,
        "lookback": column.lookback,
        "source": column.source,
        "meaning": column.meaning,
    }


def _table(file: Path, schema: pa.Schema) -> pa.Table:
    """Return a piece with every field of the schema; what it lacks is null."""
    table = pq.read_table(file)
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _write(table: pa.Table, file: Path) -> None:
    pq.write_table(table, file, compression="zstd", version="2.6", store_schema=True)


def _write_single(
    pieces: list[tuple[str, str, Path]], schema: pa.Schema, staging: Path, target: Path, about: dict[str, Any]
) -> None:
    half = staging / "whole.parquet"
    with pq.ParquetWriter(half, schema, compression="zstd", version="2.6", store_schema=True) as writer:
        for _, _, file in pieces:
            writer.write_table(_table(file, schema))
    half.replace(target)
    beside = staging / "card.json"
    beside.write_bytes(_card_bytes(about))
    beside.replace(target.with_name(f"{target.name}.json"))


def _write_folder(
    pieces: list[tuple[str, str, Path]], schema: pa.Schema, staging: Path, target: Path, about: dict[str, Any]
) -> Export:
    fresh = staging / "fresh"
    written = []
    for session_id, symbol, file in pieces:
        place = Path("data") / session_id / f"{symbol}.parquet"
        (fresh / place).parent.mkdir(parents=True, exist_ok=True)
        _write(_table(file, schema), fresh / place)
        file.unlink()
        written.append(target / place)
    (fresh / "data").mkdir(parents=True, exist_ok=True)
    (fresh / "dataset.json").write_bytes(_card_bytes(about))
    (fresh / "README.md").write_text(readme(about), encoding="utf-8")
    if target.exists():
        # Aside first: at no moment is half of one export and half of another under the name.
        target.replace(staging / "old")
    fresh.replace(target)
    return Export(target, tuple(written), about["rows"], about)


def _card_bytes(about: dict[str, Any]) -> bytes:
    return orjson.dumps(about, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def _refuse_foreign(target: Path, single: bool) -> None:
    """Only an earlier export may be replaced."""
    if single:
        if target.is_dir():
            raise DatasetError(f"{target} is a folder: name a file, or a folder without .parquet at its end")
        if target.is_file() and CARD_KEY not in (_metadata(target) or {}):
            raise DatasetError(f"{target} is there and no earlier export: name another file")
        return
    if target.exists() and not target.is_dir():
        raise DatasetError(f"{target} is a file: a dataset is a folder, or a name that ends in .parquet")
    if target.is_dir() and any(target.iterdir()):
        try:
            mine = orjson.loads((target / "dataset.json").read_bytes()).get("format") == CARD_KEY.decode()
        except (OSError, orjson.JSONDecodeError, AttributeError):
            mine = False
        if not mine:
            raise DatasetError(f"{target} is not empty and no earlier export: name another folder")


def _metadata(file: Path) -> dict[bytes, bytes] | None:
    try:
        found: dict[bytes, bytes] | None = pq.read_schema(file).metadata
    except pa.ArrowInvalid:
        return None
    return found
