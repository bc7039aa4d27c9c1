"""The notebooks on another data root, with other symbols and times, as a user points them at their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import papermill
import pytest

from replaylab import Lab, ScoringParams, TradingParams
from replaylab.importers.synthetic import write_synthetic

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
START, END = "2026-02-03T04:00:00Z", "2026-02-03T04:12:00Z"
SYMBOLS = ["XYZUSDT"]
STRETCH = {"START": START, "END": END, "SYMBOLS": SYMBOLS}
PARAMETERS: dict[str, dict[str, Any]] = {
    "01_explore_logs": {"FRAME": "pandas"},
    "02_build_and_replay": STRETCH,
    "03_sweep_tp_sl_and_thresholds": STRETCH | {"TRAIN": "4m", "TEST": "2m"},
    "04_replay_raw_market_data": STRETCH,
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve minutes of one symbol, three months after the sample, with the logs of a run over them."""
    lab = Lab(tmp_path_factory.mktemp("elsewhere") / "my data")
    write_synthetic(lab.root, seed=3, symbols=SYMBOLS, start=START, hours=0.2)
    params = TradingParams(entry_threshold=0.4, tp1_pct=0.05, tp2_pct=0.1, sl_pct=0.08, max_hold_s=60.0)
    sim = lab.run_sim(params=params, scoring=ScoringParams(interval_ms=1_000))
    assert sim.trades.height > 5
    return lab.root.path


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_notebook_runs_on_another_root(name: str, elsewhere: Path, tmp_path: Path) -> None:
    """Nothing in the cells holds on to the sample: every cell runs, and what it shows is of the other root."""
    done = papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        tmp_path / "done.ipynb",
        parameters={"DATA_ROOT": str(elsewhere), **PARAMETERS[name]},
        cwd=tmp_path,
        progress_bar=False,
        execution_timeout=120,
    )
    injected = [cell for cell in done.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(injected) == 1
    shown = "".join(str(cell.get("outputs", "")) for cell in done.cells)
    assert not [symbol for symbol in ("BTCUSDT", "AIUSDT") if symbol in shown]
