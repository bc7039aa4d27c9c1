"""The trial ledger: what counts, what does not, and that several processes may add to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replaylab import Lab
from replaylab.errors import SweepError
from replaylab.paths import DataRoot
from replaylab.sweep import ledger_path, read_trials, reset_trials
from replaylab.sweep.verdict import add_trial


def test_sweeps_on_a_root_count_as_trials_of_the_next() -> None:
    """On the same tape, in whichever notebook; the same cell run twice is one trial; a reset needs a reason."""
    lab = Lab.sample()
    manifest = lab.sessions.list_sessions()[0]
    first = lab.sweep(manifest, {"sl_pct": [0.1, 0.2, 0.3]}, progress=False)
    again = lab.sweep(manifest, {"sl_pct": [0.1, 0.2, 0.3]}, progress=False)
    other = Lab(lab.root.path).sweep(manifest, {"tp1_pct": [0.1, 0.15]}, progress=False)
    assert (first.earlier_trials, again.earlier_trials, other.earlier_trials) == (0, 0, 3)
    assert other.n_trials == 5
    assert other.verdict().metrics["n_trials"] == 5
    assert lab.trials()["rows"].to_list() == [3, 2]
    with pytest.raises(SweepError, match="expected a reason"):
        lab.reset_trials(" ")
    lab.reset_trials("new data")
    assert lab.trials()["reason"].to_list() == [None, None, "new data"]
    assert lab.sweep(manifest, {"tp1_pct": [0.1, 0.15]}, progress=False).earlier_trials == 0


def test_another_tape_has_other_trials(tmp_path: Path) -> None:
    path = ledger_path(DataRoot(tmp_path))
    assert add_trial(path, tape="a", rows=10, grid="x", session_id=None) == 0
    assert add_trial(path, tape="b", rows=5, grid="x", session_id=None) == 0
    assert add_trial(path, tape="a", rows=1, grid="y", session_id=None) == 10


def test_a_read_only_root_has_its_ledger_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    path = ledger_path(DataRoot(tmp_path / "data"), tmp_path / "cache")
    assert path.parent == tmp_path / "cache"
    assert path != ledger_path(DataRoot(tmp_path / "other"), tmp_path / "cache")


def test_torn_lines_are_left_out(tmp_path: Path) -> None:
    path = ledger_path(DataRoot(tmp_path))
    add_trial(path, tape="a", rows=10, grid="x", session_id=None)
    with path.open("ab") as file:
        file.write(b'{"tape":"a","ro')
    assert read_trials(path).height == 1


def test_processes_add_at_the_same_time(tmp_path: Path) -> None:
    """Four processes of 25 sweeps each: a hundred lines, none lost or torn."""
    path = ledger_path(DataRoot(tmp_path))
    code = (
        "import sys; from pathlib import Path; from replaylab.sweep.verdict import add_trial\n"
        "for k in range(25): add_trial(Path(sys.argv[1]), tape='a', rows=1, grid=f'{sys.argv[2]}-{k}', session_id=None)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(number)]) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert read_trials(path)["rows"].sum() == 100
    reset_trials(path, "done")
    assert read_trials(path).height == 101
