"""Findings about a session's data: each planted fault is found, and clean data has none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from replaylab import Lab
from replaylab.history import scan_gaps
from replaylab.params import TradingParams
from replaylab.sessions import as_session, check_events
from replaylab.sweep import sweep
from replaylab.timestamps import iso

SECOND = 1_000_000_000
START = 1_763_460_000_000_000_000
Row = tuple[int, str, str, dict[str, Any]]


def frame(rows: list[Row]) -> pl.DataFrame:
    rows = sorted(rows, key=lambda row: row[0])
    return pl.DataFrame(
        {
            "timestamp": pl.Series([row[0] for row in rows], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC")),
            "type": [row[1] for row in rows],
            "symbol": [row[2] for row in rows],
            "payload": [json.dumps(row[3]) for row in rows],
        }
    )


def market(seconds: int = 600) -> list[Row]:
    """Trades every 200 ms on a random walk, and the score's price each second: the last trade's."""
    rng = np.random.default_rng(3)
    prices = np.round(100 * np.exp(np.cumsum(rng.normal(0, 2e-4, 5 * seconds))), 3)
    rows: list[Row] = []
    for place, price in enumerate(prices.tolist()):
        at = START + place * SECOND // 5
        rows.append((at, "MARKET_TRADE", "A", {"price": price, "qty": 1.0, "tradeId": str(place)}))
        if place % 5 == 4:
            rows.append((at + 20_000_000, "SCORING_UPDATE", "A", {"score": 0.5, "price": price}))
    return rows


def moved(rows: list[Row], seconds: float) -> list[Row]:
    """The same with the signals stamped earlier: a clock that is behind."""
    shift = round(seconds * SECOND)
    return [(row[0] - shift * (row[1] == "SCORING_UPDATE"), *row[1:]) for row in rows]


@pytest.mark.parametrize("offset", [1.3, 0.5, -0.7, -3.0])
def test_a_clock_that_is_off_is_found(offset: float) -> None:
    """Within a price's spacing of the truth, as a warning that names the effect."""
    found = check_events(frame(moved(market(), offset))).of("clock_offset")
    assert [one.level for one in found] == ["warning"]
    assert found[0].value == pytest.approx(offset, abs=0.2)
    assert ("makes an edge" in found[0].message) == (offset > 0)


def test_clean_data_has_no_warnings() -> None:
    found = check_events(frame(market()), recorded_params=TradingParams())
    assert found.warnings == []
    assert [one.kind for one in found] == ["density"]
    assert "0.2 s apart" in repr(found)
    assert "<table>" in found._repr_html_()
    assert found.frame.columns == ["level", "kind", "symbol", "value", "message"]


def test_holes_and_missing_ids_are_found() -> None:
    rows = [row for row in market(3_000) if not START + 600 * SECOND <= row[0] < START + 2_000 * SECOND]
    found = check_events(frame(rows))
    assert found.of("hole")[0].value == pytest.approx(1_400, abs=1)
    assert found.of("missing_ids")[0].value == 7_000
    assert found.of("stale_prices") == []
    assert check_events(frame(rows), recorded_params=TradingParams(max_gap_s=None)).of("hole") == []


def test_crossed_and_thin_books_are_found() -> None:
    rows = market(60)
    for place in range(50):
        bid, ask = (100.0, 99.9) if place == 7 else (99.9, 100.1)
        book = {"bids": [[bid, 1.0]], "asks": [[ask, 1.0]], "kind": "snapshot"}
        rows.append((START + place * SECOND, "MARKET_BOOK", "A", book))
    found = check_events(frame(rows))
    assert [(one.level, one.value) for one in found.of("crossed_book")] == [("warning", 1.0)]
    assert found.of("thin_book")[0].value == pytest.approx(20.0)


def test_signals_without_prices_are_found() -> None:
    rows = [(START, "SCORING_UPDATE", "B", {"score": 0.5})]
    assert [one.symbol for one in check_events(frame([*market(30), *rows])).of("no_prices")] == ["B"]


def test_two_strategies_in_one_log_are_found() -> None:
    """Positions of one symbol that overlap; those that follow each other do not."""

    def closed(end: float, held: float) -> Row:
        return (START + round(end * SECOND), "EXECUTION_TRADE", "A", {"durationSeconds": held})

    apart = [closed(10, 5), closed(20, 10), closed(31, 2)]
    assert check_events(frame([*market(60), *apart])).of("overlapping_positions") == []
    mixed = check_events(frame([*market(60), *apart, closed(25, 12)])).of("overlapping_positions")
    assert mixed[0].level == "warning"
    assert mixed[0].value >= 1


def test_carried_positions_and_parameters_are_stated() -> None:
    state = {"symbols": {"A": {"carried": {"side": "LONG"}}, "B": {}}}
    found = check_events(frame(market(30)), initial_state=state)
    assert "carried in: A" in found.of("carried")[0].message
    assert found.of("parameters")


def test_a_session_is_checked_when_asked_and_when_built(tmp_path: Any) -> None:
    lab = Lab.sample()
    session = lab.session(lab.sessions.list_sessions()[0])
    assert session.check() is session.check()
    assert session.check().warnings == []


def test_what_the_import_found_in_a_book_reaches_its_sessions(tmp_path: Any) -> None:
    """Intervals of missing messages are in meta.json of each session that they touch, and among its findings."""
    lab = Lab(tmp_path / "data")
    lines = []
    for place in range(60):
        # The numbers of the updates skip at 20 and at 40.
        number = 100 + place + (5 if place >= 20 else 0) + (9 if place >= 40 else 0)
        kind = "snapshot" if place in (0, 25, 45) else "delta"
        lines.append(
            json.dumps(
                {
                    "topic": "orderbook.50.BTCUSDT",
                    "type": kind,
                    "ts": START // 1_000_000 + 1000 * place,
                    "data": {
                        "s": "BTCUSDT",
                        "b": [["100.0", "1"]],
                        "a": [["100.2", "1"]],
                        "u": number,
                        "seq": number,
                    },
                    "cts": START // 1_000_000 + 1000 * place,
                }
            )
        )
    (tmp_path / "book.jsonl").write_text("\n".join(lines) + "\n")
    lab.import_history("bybit-book", [tmp_path / "book.jsonl"])
    gaps = scan_gaps(lab.root, "BTCUSDT").collect()
    assert gaps["what"].to_list() == ["missing", "missing"]
    start = START // SECOND
    whole = lab.session(lab.build_replay_session(_iso(start), _iso(start + 60), ["BTCUSDT"]))
    assert whole.meta["gaps"]["BTCUSDT"]["missing"]["count"] == 2
    found = whole.check().of("book_missing")
    assert "2 intervals" in found[0].message
    assert found[0].value == pytest.approx(
        gaps.select((pl.col("end") - pl.col("timestamp")).dt.total_seconds().sum()).item()
    )
    late = lab.session(lab.build_replay_session(_iso(start + 30), _iso(start + 60), ["BTCUSDT"]))
    assert late.meta["gaps"]["BTCUSDT"]["missing"]["count"] == 1
    none = lab.session(lab.build_replay_session(_iso(start + 50), _iso(start + 60), ["BTCUSDT"]))
    assert none.check().of("book_missing") == []


def _iso(seconds: int) -> str:
    return iso(seconds * SECOND)


def momentum_bot(offset_s: float, seed: int = 11) -> list[Row]:
    """A bot that scores the move of the last second of a random walk; its clock is behind by ``offset_s``."""
    rng = np.random.default_rng(seed)
    size = 36_000
    prices = np.round(50_000 * np.exp(np.cumsum(rng.normal(0, 3e-5, size))), 1)
    rows: list[Row] = []
    for place, price in enumerate(prices.tolist()):
        at = START + place * SECOND // 10
        rows.append((at, "MARKET_TRADE", "A", {"price": price, "qty": 1.0}))
        if place >= 10 and place % 10 == 9:
            move = float(np.log(price / prices[place - 10]) / 1.5e-4)
            logged = at + 20_000_000 - round(offset_s * SECOND)
            rows.append((logged, "SCORING_UPDATE", "A", {"score": max(-1.0, min(1.0, move)), "price": price}))
    return rows


def test_a_clock_that_is_off_manufactures_an_edge_and_is_warned_of() -> None:
    """All combinations earn on the wrong clock, few on the right one; the verdict's caveats name the clock."""
    grid = {"entry_threshold": [0.3, 0.5, 0.8], "tp1_pct": [0.02, 0.03, 0.05], "sl_pct": [0.02, 0.03, 0.05]}
    costs = {
        "tp1_fraction": 0.0,
        "max_hold_s": 5.0,
        "taker_fee_bps": 0.2,
        "maker_fee_bps": 0.2,
        "slippage_bps": 0.0,
    }
    profitable = {}
    for offset in (0.0, 1.3):
        session = as_session(frame(momentum_bot(offset)))
        result = sweep(session, grid, TradingParams(**costs), progress=False)
        profitable[offset] = int((result.frame["net_pnl"] > 0).sum())
        verdict = result.verdict()
        warned = [one for one in verdict.caveats if "clock of the signals" in one]
        assert bool(warned) == (offset > 0)
        for shown in (repr(result), result._repr_html_()):
            assert ("clock of the signals" in shown) == (offset > 0)
        if offset:
            assert verdict.title.endswith("but session.check() warns of the data")
            assert "supported" in verdict.title.lower()
        assert [round(one.value or 0, 1) for one in session.check().of("clock_offset")] == (
            [1.3] if offset else []
        )
    assert profitable[1.3] == 27
    assert profitable[0.0] <= 3
