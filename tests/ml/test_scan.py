"""The table of settings is what the labels of each setting add up to."""

from __future__ import annotations

import polars as pl
import pytest

from replaylab.errors import DatasetError
from replaylab.ml import labelling, scan
from replaylab.ml.labelling import labels
from replaylab.ml.scan import barrier_scan
from replaylab.params import TradingParams
from tests.ml.sessions import START, random_rows, score, session


@pytest.mark.parametrize("cells", [10, 10**6])
@pytest.mark.parametrize("side", ["long", "score"])
def test_each_row_sums_up_the_labels_of_its_setting(
    cells: int, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many settings are searched at once."""
    monkeypatch.setattr(scan, "_CELLS", cells)
    data = session(random_rows(9, 600, ("BTCUSDT", "ETHUSDT")))
    options = {"side": side, "costs": TradingParams(latency_ms=100)}
    levels = ([0.1, 0.3], [0.1, None], [2.0, None])
    table = barrier_scan(data, *levels, **options)
    rows = labels(data, *levels, **options)
    seconds = (pl.col("t_end") - pl.col("entry_time")).dt.total_nanoseconds() / 1e9
    decided = rows.drop_nulls("label")
    wanted = decided.group_by("tp_pct", "sl_pct", "max_hold_s").agg(
        n=pl.len(),
        n_tp=(pl.col("barrier") == "TP").sum(),
        n_sl=(pl.col("barrier") == "SL").sum(),
        n_time=(pl.col("barrier") == "TIME").sum(),
        mean_ret=pl.col("ret").mean(),
        std_ret=pl.col("ret").std(),
        mean_s=seconds.mean(),
    )
    assert table.height == 8
    proposed = rows.filter(pl.col("side") != 0).height // 8
    assert (table["n"] + table["unknown"]).to_list() == [proposed] * 8
    joined = table.join(wanted, on=["tp_pct", "sl_pct", "max_hold_s"], nulls_equal=True, suffix="_wanted")
    assert joined.height == 8
    for name in wanted.columns[3:]:
        assert joined[name].to_list() == pytest.approx(joined[f"{name}_wanted"].to_list(), abs=1e-9), name


def test_nothing_to_label() -> None:
    table = barrier_scan(session([score(START, 0.5)]), [0.1, 0.2], 0.1, 1.0)
    assert table["n"].to_list() == [0, 0]
    assert table["unknown"].to_list() == [1, 1]
    assert table["mean_ret"].to_list() == [None, None]


def test_more_rows_than_a_frame_can_bear_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "_MOST_ROWS", 10)
    with pytest.raises(DatasetError, match="barrier_scan"):
        labels(session(random_rows(1, 100)), [0.1, 0.2, 0.3])
