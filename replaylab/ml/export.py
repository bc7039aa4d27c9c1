"""A dataset on disk: partitioned Parquet with a data card, the same bytes for the same inputs.

::

    export_features(session, "dataset")                      # a folder: data/, dataset.json, README.md
    export_features([a, b, c], "dataset.parquet")            # one file, with its card in dataset.parquet.json

One session is in memory at a time, whatever their number.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab import __version__
from replaylab.errors import DatasetError
from replaylab.features import NAMES, FeatureParams
from replaylab.fsio import atomic_path, write_atomic
from replaylab.ml.dataset import Column, LookBacks, describe, features
from replaylab.ml.decisions import MAX_GAP_S
from replaylab.ml.labelling import labels as make_labels
from replaylab.params import ScoringParams, Settings
from replaylab.paths import file_name, safe_name
from replaylab.timestamps import iso, to_ns

CARD_KEY = b"replaylab.dataset"
_GAP_S = 60.0
LIMITS = (
    "Prices are those of the recorded tape or book: no market impact, no queue position, no funding.",
    "A label whose barriers the session did not reach, or with a hole before its end, is null; dropping those rows "
    "leaves fewer long labels.",
    "Rows next to each other share prices: split with purging (PurgedKFold) and weigh by uniqueness.",
    "Position and trade columns are those of the strategy that was recorded; another strategy would have had others.",
    "Few sessions are few market conditions: a model that does well here has been shown to do well here.",
)
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
    max_gap_s: float | None = MAX_GAP_S,
    symbols: Iterable[str] | None = None,
    progress: bool = True,
) -> Export:
    """Write features and labels of one or more sessions as Parquet (zstd) with a data card.

    ``path``: a folder (``data/<session>/<symbol>.parquet``, ``dataset.json``, ``README.md``), or a name that ends in
    ``.parquet`` for one file, with its card in ``<name>.json``. An earlier export there is replaced, anything else
    refused. ``labels``: options of ``labels`` (one setting), such as ``{"tp_pct": 0.3, "side": "score"}``; None writes
    none. The others as in ``features``; ``max_gap_s`` is that of the labels, too. Each field carries its description as
    Arrow metadata; keys and labels are columns of every file. The same inputs and versions give the same bytes.
    ``progress``: show a bar of the sessions. Raises DatasetError.
    """
    from tqdm.auto import tqdm

    if format != "parquet":
        raise DatasetError(f"the format is 'parquet', found {format!r}")
    several = list(sessions) if isinstance(sessions, Iterable) else [sessions]
    if not several:
        raise DatasetError("no sessions to export")
    names = [session.id for session in several]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DatasetError(
            f"sessions named twice: {', '.join(repeated)}: their rows would be in the data twice"
        )
    target = Path(path)
    single = target.suffix == ".parquet"
    _refuse_foreign(target, single)
    options: dict[str, Any] = {
        "at": at,
        "labels": None if labels is None else dict(labels),
        "recent_trades": recent_trades,
    }
    options["max_gap_s"] = max_gap_s
    card = CardBuilder(options, params)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging = target.absolute().with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        pieces = []
        chosen = None if symbols is None else sorted(symbols)
        for given in tqdm(several, desc="exporting", unit=" sessions", delay=1.0, disable=not progress):
            # A session caches the events that it read: those of a copy are freed at the end of each round.
            session = copy(given)
            frame = features(
                session,
                at=at,
                params=params,
                recent_trades=recent_trades,
                max_gap_s=max_gap_s,
                symbols=chosen,
            )
            if labels is not None:
                given_labels = {"symbols": chosen, "max_gap_s": max_gap_s, **labels}
                frame = _with_labels(session, frame, at, given_labels)
            frame = frame.select(pl.lit(session.id).alias("session_id"), pl.all())
            card.add(session, frame)
            pieces += _stage(frame, session.id, staging / "pieces")
            del frame, session
        schema = _schema(pieces, params, recent_trades)
        about = card.finish(describe(schema.names, params, recent_trades))
        schema = schema.with_metadata({CARD_KEY: orjson.dumps(about, option=orjson.OPT_SORT_KEYS)})
        if single:
            return _write_single(pieces, schema, target, about)
        return _write_folder(pieces, schema, staging, target, about)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _with_labels(session: Any, frame: pl.DataFrame, at: str, options: Mapping[str, Any]) -> pl.DataFrame:
    # The score's side needs the scores; other decision times are those of the features.
    times: Any = "scoring" if at == "scoring" else frame.select("timestamp", "symbol", "event_index")
    labelled = make_labels(session, **{"at": times, **options})
    if labelled.height != frame.height:
        raise DatasetError("a dataset has one label per row: give one target, one stop and one time barrier")
    return pl.concat([frame, labelled.drop(_REPEATED)], how="horizontal")


def _stage(frame: pl.DataFrame, session_id: str, folder: Path) -> list[tuple[str, str, Path]]:
    """Write one session's rows, a file per symbol; return (session, symbol, file)."""
    place = folder / safe_name(session_id, "session id")
    place.mkdir(parents=True)
    pieces = []
    for (symbol,), part in sorted(frame.partition_by("symbol", as_dict=True, maintain_order=True).items()):
        file = place / f"{file_name(str(symbol))}.parquet"
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
    notes = {
        name: {k: v for k, v in asdict(column).items() if k != "name"} for name, column in described.items()
    }
    return pa.schema([pa.field(name, fields[name], metadata=notes[name]) for name in names])


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


def _write_single(
    pieces: list[tuple[str, str, Path]], schema: pa.Schema, target: Path, about: dict[str, Any]
) -> Export:
    with (
        atomic_path(target) as half,
        pq.ParquetWriter(half, schema, compression="zstd", version="2.6", store_schema=True) as writer,
    ):
        for _, _, file in pieces:
            writer.write_table(_table(file, schema))
    write_atomic(target.with_name(f"{target.name}.json"), _card_bytes(about))
    return Export(target, (target,), about["rows"], about)


def _write_folder(
    pieces: list[tuple[str, str, Path]], schema: pa.Schema, staging: Path, target: Path, about: dict[str, Any]
) -> Export:
    fresh = staging / "fresh"
    written = []
    for session_id, symbol, file in pieces:
        place = Path("data") / session_id / f"{file_name(symbol)}.parquet"
        (fresh / place).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            _table(file, schema), fresh / place, compression="zstd", version="2.6", store_schema=True
        )
        file.unlink()
        written.append(target / place)
    (fresh / "data").mkdir(parents=True, exist_ok=True)
    (fresh / "dataset.json").write_bytes(_card_bytes(about))
    (fresh / "README.md").write_text(readme(about), encoding="utf-8")
    if target.exists():
        # Two renames: at no moment are parts of two exports under one name.
        target.replace(staging / "old")
    fresh.replace(target)
    return Export(target, tuple(written), about["rows"], about)


def _card_bytes(about: dict[str, Any]) -> bytes:
    return orjson.dumps(about, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def _refuse_foreign(target: Path, single: bool) -> None:
    """Only an earlier export may be replaced."""
    if single and target.is_dir():
        raise DatasetError(f"{target} is a folder: name a file, or a folder without .parquet at its end")
    if not single and target.is_file():
        raise DatasetError(f"{target} is a file: a dataset is a folder, or a name that ends in .parquet")
    occupied = any(target.iterdir()) if target.is_dir() else target.exists()
    if occupied and not _is_export(target):
        place = "file" if single else "folder"
        raise DatasetError(f"{target} exists and is no earlier export: name another {place}")


def _is_export(target: Path) -> bool:
    try:
        if target.is_dir():
            card = orjson.loads((target / "dataset.json").read_bytes())
            return isinstance(card, dict) and card.get("format") == CARD_KEY.decode()
        return CARD_KEY in (pq.read_schema(target).metadata or {})
    except (OSError, orjson.JSONDecodeError, pa.ArrowInvalid):
        return False


class CardBuilder:
    """Collects the content of the card, session by session, so that none has to stay in memory."""

    def __init__(self, options: dict[str, Any], params: LookBacks | None) -> None:
        self._options = options
        several = params if isinstance(params, Mapping) else {"": params or FeatureParams()}
        self._params = {name or "all": settings.to_dict() for name, settings in several.items()}
        self._sessions: list[dict[str, Any]] = []
        self._balance: dict[str, int] = {}
        self._nulls: dict[str, int] = {}
        self._rows = 0
        self._labelled = 0
        self._holes = {"label": 0, "features": 0}

    def add(self, session: Any, frame: pl.DataFrame) -> None:
        """Add one session's rows."""
        rejects = getattr(session, "rejects", None)
        recorded = getattr(session, "recorded_params", None)
        self._sessions.append(
            {
                "sessionId": session.id,
                "digest": session.digest,
                "rows": frame.height,
                "rowsBySymbol": _counts(frame["symbol"]),
                "events": session.events.height,
                "firstEvent": _moment(session.events["timestamp"].min()),
                "lastEvent": _moment(session.events["timestamp"].max()),
                "gaps": _gaps(session.events),
                "rejects": 0 if rejects is None else rejects.height,
                "recordedParams": None if recorded is None else recorded.to_dict(),
            }
        )
        self._rows += frame.height
        for name in frame.columns:
            # Columns that another session lacks are null there.
            self._nulls[name] = self._nulls.get(name, 0) + frame.height - frame[name].null_count()
        for kind, name in (("label", "hole"), ("features", "in_hole")):
            self._holes[kind] += int(frame[name].sum()) if name in frame.columns else 0
        if "label" in frame.columns:
            self._labelled += frame.height - frame["label"].null_count()
            for value, count in _counts(frame["label"].drop_nulls()).items():
                self._balance[value] = self._balance.get(value, 0) + count

    def finish(self, columns: list[Column]) -> dict[str, Any]:
        """Return the card. It holds no clock and no path: the same inputs give the same card."""
        return {
            "format": CARD_KEY.decode(),
            "formatVersion": 1,
            "versions": {"replaylab": __version__},
            "rows": self._rows,
            "labelledRows": self._labelled,
            "rowsWithoutLabelForAHole": self._holes["label"],
            "rowsWithoutFeaturesForAHole": self._holes["features"],
            "labelBalance": dict(sorted(self._balance.items())),
            "options": _plain(self._options),
            "featureParams": self._params,
            "sessions": self._sessions,
            "columns": [
                {**asdict(column), "nulls": self._rows - self._nulls.get(column.name, 0)}
                for column in columns
            ],
            "limits": list(LIMITS),
        }


def readme(card: Mapping[str, Any]) -> str:
    """Return the card as a Markdown page."""
    sessions = "\n".join(
        f"| {one['sessionId']} | {one['firstEvent']} | {one['lastEvent']} | {one['rows']:,} | "
        f"{one['gaps']['longest_s']:,.1f} | {one['rejects']:,} | `{one['digest'][:12]}` |"
        for one in card["sessions"]
    )
    columns = "\n".join(
        f"| `{one['name']}` | {one['role']} | {one['unit']} | {one['lookback']} | {one['source']} | "
        f"{one['meaning'].replace('|', chr(92) + '|')} | {one['nulls']:,} |"
        for one in card["columns"]
    )
    balance = ", ".join(f"{name}: {count:,}" for name, count in card["labelBalance"].items()) or "no labels"
    limits = "\n".join(f"- {line}" for line in card["limits"])
    return f"""# Dataset

{card["rows"]:,} rows from {len(card["sessions"])} replay sessions, {card["labelledRows"]:,} of them labelled \
({balance}). Holes in the recording leave {card["rowsWithoutLabelForAHole"]:,} rows without a label and \
{card["rowsWithoutFeaturesForAHole"]:,} without features. \
Written by replaylab {card["versions"]["replaylab"]}. `dataset.json` holds the same in full.

## Load

```python
import polars as pl
data = pl.read_parquet("data/**/*.parquet")

import pandas as pd
data = pd.read_parquet("data")

import pyarrow.dataset as ds
data = ds.dataset("data").to_table()           # field metadata: unit, lookback, source, meaning

import duckdb
data = duckdb.sql("SELECT * FROM 'data/**/*.parquet'")

import datasets
data = datasets.load_dataset("parquet", data_files="data/**/*.parquet")

# scikit-learn and PyTorch: numbers of the feature columns, rows with a label; NaN where a feature is not known
names = [c["name"] for c in card["columns"] if c["role"] == "feature"]      # card = json.load(open("dataset.json"))
rows = pl.read_parquet("data/**/*.parquet").drop_nulls("label")
X = rows.select(pl.col(names).exclude(pl.String).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
y = rows["label"].to_numpy()
tensor = torch.nan_to_num(torch.from_numpy(X))
```

Split with `replaylab.ml.PurgedKFold(5, t_start=rows["t_start"], t_end=rows["t_end"], embargo=60.0)`.

## Sessions

| session | first event | last event | rows | longest gap (s) | rejected lines | digest |
|---|---|---|---|---|---|---|
{sessions}

## Columns

| name | role | unit | lookback | source | meaning | nulls |
|---|---|---|---|---|---|---|
{columns}

## Known limits

{limits}
"""


def _gaps(events: pl.DataFrame) -> dict[str, Any]:
    """Longest time without any event, and how many are over a minute."""
    steps = np.diff(events["timestamp"].dt.timestamp("ns").to_numpy()) / 1e9
    longest = float(steps.max()) if len(steps) else 0.0
    return {"longest_s": longest, "over_60_s": int((steps > _GAP_S).sum())}


def _counts(values: pl.Series) -> dict[str, int]:
    return {str(value): count for value, count in values.value_counts().sort(values.name).iter_rows()}


def _moment(value: Any) -> str | None:
    return None if value is None else iso(to_ns(value))


def _plain(value: Any) -> Any:
    """Return options as JSON values."""
    if isinstance(value, Settings):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class ClassifierScore:
    """A classifier of triple-barrier labels as a score: P(label = 1) − P(label = −1), in [−1, 1].

    ``classifier``: trained, with scikit-learn's ``predict_proba`` and ``classes_``; its labels must hold 1 and −1.
    ``names``: the columns it was trained on, in order; market features only (``replaylab.features.NAMES``), since
    that is what the scoring engine has. ``features``: lookbacks it was trained with. ``scoring``: how
    often it speaks (``interval_ms``) and how regimes are computed. A feature that is not known is NaN: give
    the classifier an imputer if it takes none. Raises DatasetError.
    """

    def __init__(
        self,
        classifier: Any,
        names: Sequence[str] = NAMES,
        *,
        features: FeatureParams | None = None,
        scoring: ScoringParams | None = None,
    ) -> None:
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise DatasetError(
                f"the scoring engine has no feature {', '.join(unknown)}: train on market features only"
            )
        classes = [float(name) for name in classifier.classes_]
        if 1.0 not in classes or -1.0 not in classes:
            raise DatasetError(f"the labels must hold 1 and −1, the classifier knows {classes}")
        self.classifier = classifier
        self.feature_names_in_ = list(names)
        self.feature_params = features
        self.scoring_params = scoring
        self._up, self._down = classes.index(1.0), classes.index(-1.0)

    def predict(self, rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return one score per row of features."""
        chances = self.classifier.predict_proba(np.asarray(rows, dtype=np.float64))
        score: npt.NDArray[np.float64] = np.asarray(
            chances[:, self._up] - chances[:, self._down], dtype=np.float64
        )
        return score
