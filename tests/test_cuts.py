"""Whatever range of the recorded hour is cut out: the recorded parameters give the recorded trades."""

from __future__ import annotations

from pathlib import Path

import pytest

from replaylab.paths import DataRoot
from replaylab.replay import fidelity
from replaylab.sweep import what_if
from tests.cuts import VARIANTS, random_cuts, simulate


def check_cuts(root: DataRoot, variant: str, count: int) -> int:
    """Compare ``count`` cuts with the logs in every way; return how many trades were compared."""
    simulate(root, variant)
    compared = 0
    for session in random_cuts(root, variant, count):
        found = what_if(session)
        assert found.is_same, (session.manifest.source_date_range, found.trades)
        compared += found.counts["same"]
        for mode in ("SCORING_ONLY", "FULL_DECISION"):
            report = fidelity(session, mode)
            assert report.is_identical, (session.manifest.source_date_range, mode, report.differences)
    return compared


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_session_gives_the_trades_that_were_decided_inside_it(tmp_path: Path, variant: str) -> None:
    """Three ranges of each run: ``what_if`` says "same" for all, ``fidelity`` 100 % in both inject modes."""
    check_cuts(DataRoot(tmp_path), variant, 3)


@pytest.mark.stress
def test_two_hundred_sessions_give_the_trades_that_were_decided_inside_them(tmp_path: Path) -> None:
    """Daily limits, latency, LIMIT entries, midnight, TP1 already filled, pending entries, two symbols."""
    compared = [check_cuts(DataRoot(tmp_path / name), name, 25) for name in VARIANTS]
    assert sum(compared) > 400
