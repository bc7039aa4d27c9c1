"""The panel, clicked from code: a session is made, played, followed, stopped; nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ipywidgets import Widget
from matplotlib import _pylab_helpers

from replaylab.config import Config
from replaylab.lab import Lab
from replaylab.notebook import Panel
from replaylab.notebook.panel import DETAIL, LOGS, OVERVIEW
from replaylab.records import ReplayStatus
from replaylab.replay import ReplayProcess, read_status
from replaylab.sessions import build_replay_session
from tests.roots import END, START, SYMBOLS, signal_root


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    root = signal_root(tmp_path / "data")
    build_replay_session(root, START, END, list(SYMBOLS), session_id="a-minute", speed_factor=20.0)
    return Lab(root)


@pytest.fixture
def panel(lab: Lab) -> Iterator[Panel]:
    made = Panel(lab)
    yield made
    made.close()


def until(panel: Panel, condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Redraw, as the event loop of a notebook would, until a condition holds."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, f"in vain; message: {panel.controls.message.value}"
        panel.tick()
        time.sleep(0.02)


def play(panel: Panel, session_id: str = "a-minute") -> None:
    panel.table.select(session_id)
    panel.run.click()
    until(panel, lambda: panel._status.running and not panel.controls.pause.disabled)


def test_idle_is_calm(panel: Panel) -> None:
    assert "rl-badge calm" in panel.badge.value
    assert "REPLAY MODE" not in panel.badge.value
    assert panel.tabs.selected_index == LOGS
    assert panel.table.visible == ["a-minute"]
    assert panel.run.disabled, "nothing is chosen yet"
    assert panel.actions.asking.layout.display == "none", "no question before a click on Delete"


def test_run_mode_replay_shows_the_badge(lab: Lab) -> None:
    """R9.2: also while nothing plays."""
    panel = Panel(Lab(lab.root, config=Config(run_mode="REPLAY")))
    assert "rl-badge replay" in panel.badge.value
    panel.close()


def test_choosing_a_session_takes_its_speed(panel: Panel) -> None:
    panel.table.ids[0].click()
    assert panel.controls.speed.value == 20.0
    assert not panel.run.disabled


def test_r9_make_run_follow_stop(panel: Panel) -> None:
    """R9.3: make a session from the form, run it, see badge and hotlist move, stop it, see it stop."""
    panel.form.start.value, panel.form.end.value = START, "2025-11-18T10:00:40Z"
    panel.form.session_id.value = "made-here"
    panel.form.create.click()
    until(panel, lambda: panel.table.selected == "made-here")
    panel.controls.speed.value = 20.0
    panel.run.click()
    until(panel, lambda: panel.tabs.selected_index == OVERVIEW)
    until(panel, lambda: "REPLAY MODE · made-here · 20×" in panel.badge.value)
    until(panel, lambda: "SCORING" not in panel.live.hot.value and "BTCUSDT" in panel.live.hot.value)
    before = panel.live.hot.value
    until(panel, lambda: panel.live.hot.value != before)
    until(panel, lambda: panel.controls.timeline.value > 0.1 * panel.controls.timeline.max)
    panel.controls.stop.click()
    until(panel, lambda: not panel._status.running)
    assert "rl-badge calm" in panel.badge.value
    after = panel.controls.where.value
    assert "ended" in after
    time.sleep(0.3)
    panel.tick()
    assert panel.controls.where.value == after


def test_timeline_and_bookmarks(panel: Panel) -> None:
    """A drag of the timeline goes to its last place; a place gets a name, is gone to by it, and loses it again."""
    play(panel)
    panel.controls.pause.click()
    until(panel, lambda: panel.controls.pause.description == "Resume")
    for place in (300, 500, 400):
        panel.controls.timeline.value = place
    until(panel, lambda: panel._status.current_event_index == 400)
    panel.controls.name.value = "<here>"
    panel.controls.keep.click()
    until(panel, lambda: "&lt;here&gt;" in panel.controls.marks.value)
    assert panel.lab.session("a-minute").bookmarks == {"<here>": 400}
    panel.controls.timeline.value = 600
    until(panel, lambda: panel._status.current_event_index == 600)
    panel.controls.bookmark.value = "<here>"
    until(panel, lambda: panel._status.current_event_index == 400)
    panel.controls.forget.click()
    until(panel, lambda: "here" not in panel.controls.marks.value)
    assert panel.lab.session("a-minute").bookmarks == {}
    panel.controls.stop.click()
    until(panel, lambda: not panel._status.running)


def test_pause_step_speed(panel: Panel) -> None:
    play(panel)
    panel.controls.pause.click()
    until(panel, lambda: panel.controls.pause.description == "Resume")
    at = panel._status.current_event_index
    panel.controls.step.click()
    until(panel, lambda: panel._status.current_event_index == at + 1)
    panel.controls.speed.value = 100.0
    until(panel, lambda: panel._status.speed_factor == 100.0)
    panel.controls.pause.click()
    until(panel, lambda: not panel._status.running)
    assert panel._status.current_event_index == 1202
    assert panel.controls.timeline.value == panel.controls.timeline.max


def test_a_speed_that_is_set_while_a_run_starts_is_its_speed(panel: Panel) -> None:
    """A browser sends the slider's last moves behind the click on Run."""
    panel.table.select("a-minute")
    panel.controls.speed.value = 2.0
    panel.run.click()
    panel.controls.speed.value = 5.0
    until(panel, lambda: "a-minute · 5×" in panel.badge.value)


def test_overview_shows_positions_orders_trades_and_a_picture(panel: Panel) -> None:
    play(panel)
    panel.tabs.selected_index = OVERVIEW
    until(panel, lambda: not panel._status.running and not panel._jobs.busy)
    until(panel, lambda: bytes(panel.live.plot.value)[:8] == b"\x89PNG\r\n\x1a\n")
    assert "IDLE → PENDING_ENTRY" in panel.live.changes.value
    assert "FILLED" in panel.live.orders.value
    run = panel.lab.root.run("a-minute", panel._status.run_id or "")
    closed = Lab(run).trades()
    assert (
        panel.live.hotlist.row("BTCUSDT").trades + panel.live.hotlist.row("ETHUSDT").trades
        == closed.height
        > 0
    )
    shown = sum(row.realized_pnl for row in panel.live.hotlist.rows.values())
    assert shown == pytest.approx(closed["realized_pnl"].sum())


def test_a_replay_of_another_process_is_shown_and_steered(panel: Panel) -> None:
    """Whichever process started it, the panel pauses it, steps, changes its speed, resumes and stops it."""
    other = ReplayProcess.start(panel.lab.root, "a-minute", speed_factor=2.0)
    try:
        until(panel, lambda: "REPLAY MODE · a-minute · 2×" in panel.badge.value)
        until(panel, lambda: "BTCUSDT" in panel.live.hot.value)
        assert panel.run.disabled
        panel.controls.pause.click()
        until(panel, lambda: panel.controls.pause.description == "Resume")
        at = panel._status.current_event_index
        panel.controls.step.click()
        until(panel, lambda: panel._status.current_event_index == at + 1)
        panel.controls.speed.value = 5.0
        until(panel, lambda: "a-minute · 5×" in panel.badge.value)
        panel.controls.pause.click()
        until(panel, lambda: panel._status.current_event_index > at + 1)
        panel.controls.stop.click()
        until(panel, lambda: not panel._status.running)
        assert other.wait(5)
    finally:
        other.stop()


def test_detail(panel: Panel) -> None:
    panel.table.select("a-minute")
    panel.actions.load.click()
    assert panel.tabs.selected_index == DETAIL
    assert panel.settle()
    text = panel.detail.text.value
    for expected in (
        "SCORING_UPDATE",
        "1,202 events",
        "Longest gaps",
        "events/BTCUSDT.jsonl",
        "First events",
    ):
        assert expected in text
    assert len(panel.detail.images.children) == 3
    assert all(bytes(image.value).startswith(b"\x89PNG") for image in panel.detail.images.children)


def test_a_pandas_lab_has_the_same_panel(lab: Lab) -> None:
    panel = Panel(Lab(lab.root, frame="pandas"))
    panel.table.select("a-minute")
    panel.actions.load.click()
    play_to_the_end(panel)
    assert "1,202 events" in panel.detail.text.value
    assert "this run" in panel.result.text.value
    panel.close()


def test_delete_asks_first(panel: Panel) -> None:
    panel.table.select("a-minute")
    panel.actions.delete.click()
    assert panel.actions.asking.layout.display == "flex"
    panel.actions.keep.click()
    assert panel.lab.sessions.get_session("a-minute") is not None
    panel.actions.delete.click()
    panel.actions.confirm.click()
    assert panel.settle()
    assert panel.lab.sessions.get_session("a-minute") is None
    assert panel.table.visible == []
    assert panel.actions.asking.layout.display == "none"


def test_a_session_that_is_played_is_not_deleted(panel: Panel) -> None:
    play(panel)
    panel.actions.delete.click()
    panel.actions.confirm.click()
    until(panel, lambda: "stop the replay first" in panel.controls.message.value)
    assert panel.lab.sessions.get_session("a-minute") is not None


def test_a_build_that_fails_says_why_beside_the_field(panel: Panel) -> None:
    panel.form.session_id.value = "a-minute"
    panel.form.create.click()
    assert panel.settle()
    message = panel.form.errors["session_id"].value
    assert "a session named a-minute exists" in message
    assert "if_exists" not in message, "no words of Python"
    assert not panel.form.create.disabled


def test_the_panel_of_a_cell_that_is_run_again_takes_over(lab: Lab) -> None:
    """The earlier one stops redrawing, and the new one steers the replay that the earlier one started."""
    first = Panel(lab)
    play(first)
    second = Panel(Lab(lab.root))
    assert first.closed
    until(second, lambda: not second.controls.pause.disabled)
    second.controls.pause.click()
    until(second, lambda: second.controls.pause.description == "Resume")
    second.close()
    assert not read_status(lab.root).running


@pytest.fixture
def sample() -> Iterator[Panel]:
    """An hour of the sample, with its recorded parameters, trades and prices."""
    lab = Lab.sample()
    for session in lab.sessions.list_sessions():
        lab.sessions.delete_session(session.session_id)
    lab.build_replay_session("2025-11-18T10:00Z", "2025-11-18T11:00Z", ["BTCUSDT", "AIUSDT"])
    made = Panel(lab)
    yield made
    made.close()


def run_at_full_speed(panel: Panel) -> None:
    panel.table.select(panel.table.visible[0])
    panel.controls.set_speed(float("inf"))
    play_to_the_end(panel)


def test_a_run_starts_from_the_recorded_parameters_and_shows_its_result(sample: Panel) -> None:
    """Totals of the run and of the recorded trades, whose parameters ran, and both equity curves."""
    run_at_full_speed(sample)
    session = sample.lab.session(sample.table.visible[0])
    status = read_status(sample.lab.root)
    assert (status.params_source, status.changes) == ("recorded", {})
    assert session.recorded_params is not None
    replayed = Lab(sample.lab.root.run(session.id, status.run_id or "")).trades()
    for trades in (sample.lab.trades(), replayed):
        assert f"{trades['realized_pnl'].sum():+,.2f}" in sample.result.text.value
        assert f'<td class="num">{trades.height}</td>' in sample.result.text.value
    assert "parameters: recorded, unchanged" in sample.result.text.value
    assert bytes(sample.result.plot.value).startswith(b"\x89PNG")


def test_parameters_are_changed_before_a_run(sample: Panel) -> None:
    """Each field has its recorded value next to it; a change is named in the title, in the run and in its result."""
    sample.table.select(sample.table.visible[0])
    recorded = sample.lab.session(sample.table.visible[0]).recorded_params
    assert recorded is not None
    assert sample.params.changes() == {}
    assert f"recorded {recorded.sl_pct:g} %" in sample.params.notes["sl_pct"].value
    sample.params.fields["sl_pct"].value = "0.5"
    sample.params.fields["max_hold_s"].value = "off"
    sample.params.fields["allow_short"].value = False
    assert sample.params.changes() == {"allow_short": False, "max_hold_s": None, "sl_pct": 0.5}
    assert "3 changed" in sample.params.widget.titles[0]
    run_at_full_speed(sample)
    assert read_status(sample.lab.root).changes == {
        "allowShort": [True, False],
        "maxHoldS": [recorded.max_hold_s, None],
        "slPct": [recorded.sl_pct, 0.5],
    }
    assert f"sl_pct {recorded.sl_pct!r} → 0.5" in sample.result.text.value
    sample.params.reset.click()
    assert sample.params.changes() == {}


@pytest.mark.parametrize(
    ("field", "typed", "message"),
    [
        ("sl_pct", "120", "100"),
        ("sl_pct", "wide", "finite number"),
        ("max_open_positions", "1.5", "whole"),
        ("tp2_pct", "0", "tp1_pct"),
    ],
)
def test_an_invalid_parameter_is_refused_next_to_its_field(
    sample: Panel, field: str, typed: str, message: str
) -> None:
    sample.table.select(sample.table.visible[0])
    sample.params.fields[field].value = typed
    sample.run.click()
    assert not sample._jobs.busy, "nothing was started"
    shown = sample.params.notes[field].value + sample.params.problem.value
    assert "rl-error" in shown
    assert message in shown
    assert "invalid" in sample.controls.message.value


def test_the_badge_shows_the_speed_as_fast_as_possible(panel: Panel) -> None:
    status = ReplayStatus(session_id="a-minute", running=True, speed_factor=None)
    assert "a-minute · ∞×" in panel._badge_text(status)
    status.speed_factor = float("inf")
    assert "a-minute · ∞×" in panel._badge_text(status)


def test_warnings_of_a_build_are_shown(panel: Panel) -> None:
    """Of a type of which the range holds nothing, say."""
    panel.form.types.value = ("SCORING_UPDATE", "MARKET_BOOK")
    panel.form.create.click()
    assert panel.settle()
    assert "rl-error" in panel.form.result.value
    assert "MARKET_BOOK" in panel.form.result.value
    assert len(panel.table.visible) == 2


def test_an_empty_session_is_refused(panel: Panel) -> None:
    """A range without events, or types that occur nowhere: the reason is shown, and no session is left."""
    panel.form.types.value = ("MARKET_BOOK",)
    panel.form.session_id.value = "nothing-in-it"
    panel.form.create.click()
    assert panel.settle()
    shown = "".join(field.value for field in panel.form.errors.values()) + panel.form.result.value
    assert "rl-error" in shown
    assert panel.lab.sessions.get_session("nothing-in-it") is None
    assert panel.table.visible == ["a-minute"]


def test_an_empty_root(tmp_path: Path) -> None:
    """A folder that is not there yet gives an empty panel, and is not made."""
    panel = Panel(Lab(tmp_path / "nothing"))
    assert "no sessions yet" in panel.table.count.value
    panel.close()
    assert not (tmp_path / "nothing").exists()


def test_it_redraws_itself_in_an_event_loop_at_most_five_times_a_second(lab: Lab) -> None:
    async def story() -> tuple[int, bool]:
        panel = Panel(lab)
        draws = 0
        original = panel._draw

        def counted(*args: Any) -> None:
            nonlocal draws
            draws += 1
            original(*args)

        panel._draw = counted  # type: ignore[method-assign]
        panel.table.select("a-minute")
        panel.run.click()
        limit = time.monotonic() + 20
        while not panel._status.running and time.monotonic() < limit:
            await asyncio.sleep(0.05)
        draws = 0
        await asyncio.sleep(1.5)
        seen, running = draws, panel._status.running
        await asyncio.to_thread(panel.close)
        return seen, running

    draws, running = asyncio.run(story())
    assert running
    assert 2 <= draws <= 8


def leftovers() -> dict[str, int]:
    gc.collect()
    me = psutil.Process()
    return {
        "threads": threading.active_count(),
        "plots": len(_pylab_helpers.Gcf.figs),
        "children": len(me.children(recursive=True)),
        "files": me.num_fds(),
    }


def repeat(lab: Lab, times: int) -> tuple[dict[str, int], dict[str, int], int]:
    panel = Panel(lab)

    def once() -> None:
        panel.table.select("a-minute")
        panel.controls.set_speed(float("inf"))
        play_to_the_end(panel)

    once()
    # The first plot opens matplotlib's fonts, once and for all.
    panel.live._drawn = ()
    assert panel.live.png() is not None
    before, widgets = leftovers(), len(Widget._instances) if hasattr(Widget, "_instances") else 0
    for _ in range(times):
        once()
    after = leftovers()
    grown = (len(Widget._instances) if hasattr(Widget, "_instances") else 0) - widgets
    panel.close()
    return before, after, grown


def play_to_the_end(panel: Panel) -> None:
    earlier = panel._status.run_id
    panel.run.click()
    until(panel, lambda: panel._status.run_id not in (None, earlier) and not panel._status.running)
    assert panel.settle()
    until(panel, lambda: panel.replay is not None and not panel.replay.running)


def test_runs_leave_nothing_behind(lab: Lab) -> None:
    """No threads, plots, processes or open files after a few runs; the long form does a hundred."""
    before, after, grown = repeat(lab, 3)
    assert after == before
    assert grown == 0


@pytest.mark.stress
def test_a_hundred_runs_leave_nothing_behind(lab: Lab) -> None:
    before, after, grown = repeat(lab, 100)
    assert after == before
    assert grown == 0


@pytest.mark.parametrize("frame", ["polars", "pandas"])
def test_the_verdict_of_the_last_sweep_is_shown(lab: Lab, frame: Any) -> None:
    """The same words as in the repr of the result; a sweep that comes later takes their place."""
    lab = Lab(lab.root, frame=frame)
    panel = Panel(lab)
    try:
        assert panel.verdict.value == ""
        for grid in ({"entry_threshold": [0.3, 0.5]}, {"sl_pct": [0.1, 0.2, 0.3]}):
            result = lab.sweep("a-minute", grid, progress=False)
            panel._slow_at = 0.0
            panel.tick()
            assert "Verdict on the last sweep, of a-minute" in panel.verdict.value
            assert all(line in panel.verdict.value for line in result.verdict().reasons)
        del result
    finally:
        panel.close()
