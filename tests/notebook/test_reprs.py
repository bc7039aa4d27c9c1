"""What a notebook shows of an object that is the last line of a cell: helpful, and nothing of the data is markup."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from replaylab import Lab, TradingParams, ml
from replaylab.ml.leaks import Finding, Findings
from replaylab.records import HealthSnapshot, ReplayStatus, ServiceHealth

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab.sample()


def test_records_are_tables_and_escaped() -> None:
    status = ReplayStatus(session_id=HOSTILE, running=True, total_events=1_234_567)._repr_html_()
    assert HOSTILE not in status
    assert "1,234,567" in status
    assert ">yes<" in status
    service = ServiceHealth(status="WARN", message=HOSTILE, last_update_at="2025-11-18T10:00:00.000Z")
    health = HealthSnapshot(timestamp="2025-11-18T10:00:00.000Z", services={HOSTILE: service})._repr_html_()
    assert HOSTILE not in health
    assert "WARN" in health


def test_parameters_show_what_differs_first() -> None:
    shown = TradingParams(sl_pct=0.77)._repr_html_()
    first, rest = shown.split("<details>")
    assert "sl_pct" in first
    assert "0.77" in first
    assert "tp1_pct" not in first
    assert "tp1_pct" in rest
    assert "all at their defaults" in TradingParams()._repr_html_()


def test_a_store_lists_its_sessions(lab: Lab, tmp_path: Path) -> None:
    manifest = lab.sessions.list_sessions()[0]
    assert manifest.session_id in lab.sessions._repr_html_()
    assert "sourceDateRange" in manifest._repr_html_() or "source_date_range" in manifest._repr_html_()
    risk = lab.snapshot("risk")
    assert risk is not None
    assert "account" in risk._repr_html_()


def test_results_say_what_they_rest_on(lab: Lab) -> None:
    session = lab.sessions.list_sessions()[0].session_id
    result = lab.backtest(session)
    shown = result._repr_html_()
    assert "net_pnl" in shown
    assert result.assumptions[:20] in shown


def test_a_check_says_what_it_checked() -> None:
    data = pl.DataFrame({"timestamp": [1, 2], "symbol": ["A", "A"], "x": [1.0, 2.0]})
    found = ml.check_duplicates(data)
    assert found == []
    assert repr(found).startswith("nothing leaks: 2 rows")
    bad = Findings([Finding("splits", HOSTILE, 1_000, "why")], "3 splits")
    assert "1,000 rows" in repr(bad)
    assert HOSTILE not in bad._repr_html_()
