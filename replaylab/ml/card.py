"""The data card of an export: what is in it, where it comes from, and what it cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from replaylab import __version__
from replaylab.features import FeatureParams
from replaylab.ml.columns import Column
from replaylab.ml.dataset import LookBacks
from replaylab.params import Settings
from replaylab.timestamps import iso, to_ns

__all__ = ["CARD_KEY", "LIMITS", "CardBuilder", "readme"]

CARD_KEY = b"replaylab.dataset"
_GAP_S = 60.0
LIMITS = (
    "Prices are those of the recorded tape or book: no market impact, no queue position, no funding.",
    "A label whose barriers the session did not reach is null; dropping those rows leaves fewer long labels.",
    "Rows next to each other share prices: split with purging (PurgedKFold) and weigh by uniqueness.",
    "Position and trade columns are those of the strategy that was recorded; another strategy would have had others.",
    "Few sessions are few market conditions: a model that does well here has been shown to do well here.",
)


class CardBuilder:
    """Collects what the card says, session by session, so that none has to stay in memory."""

    def __init__(self, options: dict[str, Any], params: LookBacks | None) -> None:
        self._options = options
        several = params if isinstance(params, Mapping) else {"": params or FeatureParams()}
        self._params = {name or "all": settings.to_dict() for name, settings in several.items()}
        self._sessions: list[dict[str, Any]] = []
        self._balance: dict[str, int] = {}
        self._nulls: dict[str, int] = {}
        self._rows = 0
        self._labelled = 0

    def add(self, session: Any, frame: pl.DataFrame) -> None:
        """Take one session's rows into account."""
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
    """Return the card as a page to read."""
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
({balance}). Written by replaylab {card["versions"]["replaylab"]}. `dataset.json` holds the same in full.

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
