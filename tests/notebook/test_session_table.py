"""The table of sessions: plain objects that are clicked from code."""

from __future__ import annotations

from time import perf_counter

from replaylab.notebook.session_table import PAGE, SessionTable
from replaylab.records import ReplayManifest


def manifest(number: int, symbol: str = "BTCUSDT", notes: str | None = None) -> ReplayManifest:
    return ReplayManifest.from_dict(
        {
            "sessionId": f"session-{number:04d}",
            "createdAt": "2025-11-18T10:00:00.000Z",
            "createdBy": "MANUAL",
            "sourceDateRange": {
                "from": f"2025-11-{1 + number % 28:02d}T10:00:00Z",
                "to": f"2025-11-{1 + number % 28:02d}T11:00:00Z",
            },
            "symbols": [symbol],
            "eventTypes": ["SCORING_UPDATE"],
            "speedFactor": 1.0,
            "notes": notes,
            "totalEvents": number * 10,
        }
    )


def chosen(table: SessionTable) -> list[str]:
    return [
        button.description
        for button, row in zip(table.ids, table.rows, strict=True)
        if "rl-chosen" in row._dom_classes and button.description in table.visible
    ]


def test_a_click_selects_and_calls_back() -> None:
    seen: list[str | None] = []
    table = SessionTable(seen.append)
    table.set_manifests([manifest(1), manifest(2)])
    table.ids[1].click()
    assert seen == [table.visible[1]] == [table.selected] == chosen(table)


def test_the_filter_matches_id_symbol_and_notes_as_one_types() -> None:
    table = SessionTable(lambda _: None)
    table.set_manifests(
        [manifest(1, "BTCUSDT"), manifest(2, "ETHUSDT", "Crash at noon"), manifest(3, "ETHUSDT")]
    )
    table.filter.value = "eth"
    assert sorted(table.visible) == ["session-0002", "session-0003"]
    table.filter.value = "eth CRASH"
    assert table.visible == ["session-0002"]
    table.filter.value = "0001"
    assert table.visible == ["session-0001"]
    table.filter.value = "nothing like it"
    assert table.visible == []
    assert "matches the filter" in table.count.value


def test_a_heading_sorts_and_a_second_click_turns_it_round() -> None:
    table = SessionTable(lambda _: None)
    table.set_manifests([manifest(n) for n in (3, 1, 2)])
    events = table.headings[3]
    events.click()
    assert table.visible == ["session-0001", "session-0002", "session-0003"]
    events.click()
    assert table.visible == ["session-0003", "session-0002", "session-0001"]


def test_a_thousand_sessions_are_comfortable() -> None:
    """Pages of a few rows, and a keystroke in the filter costs far less than a blink."""
    table = SessionTable(lambda _: None)
    table.set_manifests([manifest(n) for n in range(1_000)])
    assert len(table.visible) == PAGE
    table.forth.click()
    assert f"{PAGE + 1:,}–{2 * PAGE:,} of 1,000" in table.count.value
    began = perf_counter()
    table.filter.value = "session-05"
    assert perf_counter() - began < 0.5
    assert "of 100" in table.count.value


def test_the_selection_survives_a_refresh_and_ends_with_its_session() -> None:
    seen: list[str | None] = []
    table = SessionTable(seen.append)
    table.set_manifests([manifest(n) for n in range(50)])
    table.select("session-0042")
    assert chosen(table) == ["session-0042"]
    table.set_manifests([manifest(n) for n in range(45)])
    assert table.selected == "session-0042"
    table.set_manifests([manifest(n) for n in range(5)])
    assert table.selected is None
    assert seen == ["session-0042", None]


def test_what_a_manifest_says_cannot_become_markup() -> None:
    table = SessionTable(lambda _: None)
    table.set_manifests([manifest(1, notes='<img src=x onerror="alert(1)">')])
    assert "<img" not in table.cells[0].value
    assert "&lt;img" in table.cells[0].value
