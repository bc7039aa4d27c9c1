"""Exports: the same bytes, every library reads them, the card says what is in them, nothing foreign is replaced."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from replaylab.errors import DatasetError
from replaylab.features import FeatureParams
from replaylab.ml.dataset import features
from replaylab.ml.export import export_features
from replaylab.ml.labelling import labels
from replaylab.ml.splits import PurgedKFold
from replaylab.params import TradingParams
from tests.ml.sessions import FakeSession, random_rows, score, session

LABELS: dict[str, Any] = {"tp_pct": 0.1, "sl_pct": 0.1, "max_hold_s": 5.0}


def make(seed: int, name: str, **more: Any) -> FakeSession:
    return session(random_rows(seed, 400, ("BTCUSDT", "ETHUSDT")), id=name, digest=f"{seed:064x}", **more)


@pytest.fixture(scope="module")
def two() -> list[FakeSession]:
    return [make(1, "first"), make(2, "second")]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_a_rerun_gives_the_same_bytes(two: list[FakeSession], tmp_path: Path) -> None:
    """Into another folder and over the old one."""
    export_features(two, tmp_path / "a", labels=LABELS)
    export_features([make(1, "first"), make(2, "second")], tmp_path / "b", labels=LABELS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    export_features(two, tmp_path / "a", labels=LABELS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
    assert sorted(digests(tmp_path / "a")) == [
        "README.md",
        "data/first/BTCUSDT.parquet",
        "data/first/ETHUSDT.parquet",
        "data/second/BTCUSDT.parquet",
        "data/second/ETHUSDT.parquet",
        "dataset.json",
    ]


def test_every_library_reads_all_rows_and_columns(two: list[FakeSession], tmp_path: Path) -> None:
    made = export_features(two, tmp_path / "set", labels=LABELS)
    data = tmp_path / "set" / "data"
    frames = {
        "polars": pl.read_parquet(data / "**" / "*.parquet"),
        "pandas": pl.from_pandas(pd.read_parquet(data)),
        "pyarrow": pl.DataFrame(ds.dataset(data).to_table()),
    }
    for name, frame in frames.items():
        assert frame.height == made.rows, name
        assert frame.columns == [column["name"] for column in made.card["columns"]], name
        assert set(frame["symbol"]) == {"BTCUSDT", "ETHUSDT"}, name


def test_the_rows_are_features_and_labels_side_by_side(two: list[FakeSession], tmp_path: Path) -> None:
    export_features(two[0], tmp_path / "one.parquet", labels=LABELS)
    found = pl.read_parquet(tmp_path / "one.parquet").sort("event_index")
    wanted = features(two[0]).sort("event_index")
    outcome = labels(two[0], **LABELS).sort("event_index")
    assert found.select(wanted.columns).equals(wanted, null_equal=True)
    assert found["label"].equals(outcome["label"])
    assert found["t_end"].equals(outcome["t_end"])


def test_fields_carry_their_description(two: list[FakeSession], tmp_path: Path) -> None:
    made = export_features(two, tmp_path / "set", labels=LABELS, params=FeatureParams(flow_half_life_s=3))
    schema = pq.read_schema(made.files[0])
    about = schema.field("ofi").metadata
    assert about[b"lookback"] == b"flow_half_life_s = 3"
    assert about[b"unit"] == b"base currency"
    assert schema.field("label").metadata[b"role"] == b"label"
    assert json.loads(schema.metadata[b"replaylab.dataset"]) == made.card
    assert pq.ParquetFile(made.files[0]).metadata.row_group(0).column(0).compression == "ZSTD"


def test_the_card_says_what_is_in_it(two: list[FakeSession], tmp_path: Path) -> None:
    made = export_features(two, tmp_path / "set", labels={**LABELS, "costs": TradingParams(taker_fee_bps=1)})
    card = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert card == made.card
    rows = pl.read_parquet(tmp_path / "set" / "data" / "**" / "*.parquet")
    assert card["rows"] == rows.height
    assert card["labelledRows"] == rows["label"].drop_nulls().len()
    assert card["labelBalance"] == {
        str(k): (rows["label"] == k).sum() for k in sorted(set(rows["label"].drop_nulls()), key=str)
    }
    assert [one["digest"] for one in card["sessions"]] == [f"{1:064x}", f"{2:064x}"]
    nulls = {one["name"]: one["nulls"] for one in card["columns"]}
    assert nulls == {name: rows[name].null_count() for name in rows.columns}
    assert card["options"]["labels"]["costs"]["takerFeeBps"] == 1
    page = (tmp_path / "set" / "README.md").read_text()
    assert "Known limits" in page
    assert all(f"`{column['name']}`" in page for column in card["columns"])


def test_sessions_with_other_columns_share_one_schema(tmp_path: Path) -> None:
    """A score part that only the second session has is null in the first; files stay readable as one."""
    plain = session([score(10**18 + k, 0.1) for k in range(3)], id="plain")
    rich = session([score(10**18 + k, 0.1, components={"extra": 1.0}) for k in range(3)], id="rich")
    for order in ([plain, rich], [rich, plain]):
        export_features(order, tmp_path / "set", labels=None)
        found = pd.read_parquet(tmp_path / "set" / "data").set_index("session_id")
        assert found.loc["plain", "score_extra"].isna().all()
        assert (found.loc["rich", "score_extra"] == 1.0).all()
    made = export_features([plain, rich], tmp_path / "one.parquet", labels=None)
    assert pl.read_parquet(tmp_path / "one.parquet").height == made.rows == 6
    assert (tmp_path / "one.parquet.json").is_file()


def test_grids_of_time_and_the_side_of_the_score(two: list[FakeSession], tmp_path: Path) -> None:
    made = export_features(two, tmp_path / "grid", at="1s", labels=LABELS)
    assert made.rows > 0
    proposed = export_features(two, tmp_path / "meta", labels={**LABELS, "side": "score"})
    sides = pl.read_parquet(proposed.files[0])["side"]
    assert set(sides) == {-1, 0, 1}


def test_a_scikit_learn_model_trains_on_it(two: list[FakeSession], tmp_path: Path) -> None:
    """The lines of the README, run."""
    export_features(two, tmp_path / "set", labels=LABELS)
    card = json.loads((tmp_path / "set" / "dataset.json").read_text())
    names = [column["name"] for column in card["columns"] if column["role"] == "feature"]
    rows = pl.read_parquet(tmp_path / "set" / "data" / "**" / "*.parquet").drop_nulls("label")
    x = rows.select(pl.col(names).exclude(pl.String).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
    cv = PurgedKFold(3, t_start=rows["t_start"], t_end=rows["t_end"], embargo=5.0)
    impute = SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True)
    model = make_pipeline(impute, StandardScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_score(model, x, rows["label"].to_numpy(), cv=cv)
    assert np.isfinite(scores).all()


def test_nothing_foreign_is_replaced(two: list[FakeSession], tmp_path: Path) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="no earlier export"):
        export_features(two, foreign)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "mine.parquet")
    with pytest.raises(DatasetError, match="no earlier export"):
        export_features(two, tmp_path / "mine.parquet")
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "mine.parquet"]


def test_a_failed_export_leaves_the_old_one(two: list[FakeSession], tmp_path: Path) -> None:
    export_features(two[0], tmp_path / "set", labels=LABELS)
    before = digests(tmp_path / "set")
    with pytest.raises(DatasetError, match="one label per row"):
        export_features(two, tmp_path / "set", labels={"tp_pct": [0.1, 0.2]})
    assert digests(tmp_path / "set") == before
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def test_nonsense_is_refused(two: list[FakeSession], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="format"):
        export_features(two, tmp_path / "x", format="csv")
    with pytest.raises(DatasetError, match="named twice: first"):
        export_features([two[0], two[0]], tmp_path / "x")
    with pytest.raises(DatasetError, match="no sessions"):
        export_features([], tmp_path / "x")


CODE = """
import sys
from functools import cached_property

from replaylab.ml.export import export_features
from tests.ml.sessions import FakeSession, random_rows, session

class OnDisk:
    rejects = None
    initial_state = None

    def __init__(self, number, rows):
        self.id, self.digest, self.rows = f"session-{number:03d}", f"{number:064x}", rows

    @cached_property
    def events(self):
        return session(self.rows).events

def peak():
    # Not getrusage: a child begins with the peak of its parent there.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

rows = random_rows(1, int(sys.argv[3]), ("BTCUSDT", "ETHUSDT"))
before = peak()
several = [OnDisk(number, rows) for number in range(int(sys.argv[2]))]
made = export_features(several, sys.argv[1], labels={"tp_pct": 0.1, "sl_pct": 0.1, "max_hold_s": 5.0})
assert made.rows > len(rows) // 6 * len(several)
assert not any("events" in one.__dict__ for one in several)
print(before, peak())
"""


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.timeout(900)
def test_a_hundred_sessions_stay_under_a_gigabyte(tmp_path: Path) -> None:
    """100 sessions of 60,000 events: peak resident memory of the whole process below 1 GB."""
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "set"), "100", "60000"],
        check=True,
        capture_output=True,
        text=True,
    )
    _, peak = (int(number) for number in run.stdout.split())
    assert peak < 1000, f"{peak} MB"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_sessions_are_let_go_one_by_one(tmp_path: Path) -> None:
    """No session that was handed in keeps the events that the export read from it."""
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "set"), "2", "3000"], check=True)
