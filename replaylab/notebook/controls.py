"""Replay controls: progress, speed, and the buttons that steer a replay."""

from __future__ import annotations

import math
from collections.abc import Callable

import ipywidgets as w

from replaylab.notebook.style import error, note
from replaylab.records import ReplayStatus

SPEEDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0, math.inf)


class Controls:
    """Buttons call ``on_pause``, ``on_step``, ``on_stop`` and ``on_speed``; ``show`` draws a status."""

    def __init__(
        self,
        *,
        on_pause: Callable[[], None],
        on_step: Callable[[], None],
        on_stop: Callable[[], None],
        on_speed: Callable[[float], None],
    ) -> None:
        narrow = w.Layout(width="7.5em")
        self.pause = w.Button(description="Pause", icon="pause", layout=narrow)
        self.step = w.Button(
            description="Step", icon="step-forward", layout=narrow, tooltip="one event, then hold"
        )
        self.stop = w.Button(description="Stop", icon="stop", layout=narrow, button_style="danger")
        self.speed = w.SelectionSlider(
            description="speed",
            options=[(speed_label(factor), factor) for factor in SPEEDS],
            value=1.0,
            continuous_update=True,
            layout=w.Layout(width="26em"),
            style={"description_width": "3.5em"},
        )
        self.progress = w.FloatProgress(min=0, max=1, value=0, layout=w.Layout(width="22em", height="14px"))
        self.progress.style.bar_color = "#8a2be2"
        self.where = w.HTML()
        self.message = w.HTML()
        self._drawing = False
        self.pause.on_click(lambda _: on_pause())
        self.step.on_click(lambda _: on_step())
        self.stop.on_click(lambda _: on_stop())
        self._on_speed = on_speed
        self.speed.observe(lambda change: self._moved(float(change["new"])), names="value")
        middle = w.Layout(align_items="center", flex_flow="row wrap")
        self.widget = w.VBox(
            [
                w.HBox([self.progress, self.where], layout=middle),
                w.HBox([self.pause, self.step, self.stop, self.speed, self.message], layout=middle),
            ]
        )
        self.show(ReplayStatus())

    def _moved(self, value: float) -> None:
        if not self._drawing:
            self._on_speed(value)

    def set_speed(self, factor: float) -> None:
        """Move the slider without sending a command; a factor that is not on it is added."""
        self._drawing = True
        known = [value for _, value in self.speed.options]
        if factor not in known:
            self.speed.options = [(speed_label(value), value) for value in sorted({*known, factor})]
        self.speed.value = factor
        self._drawing = False

    def show(self, status: ReplayStatus) -> None:
        """Draw a status, of a replay of any process."""
        self.stop.disabled = self.pause.disabled = self.step.disabled = not status.running
        self.pause.description, self.pause.icon = ("Resume", "play") if status.paused else ("Pause", "pause")
        total = max(status.total_events, 1)
        self.progress.value = min(1.0, status.current_event_index / total) if status.session_id else 0.0
        self.where.value = self._where(status)

    def _where(self, status: ReplayStatus) -> str:
        if status.session_id is None:
            return note("no replay runs: choose a session and press Run")
        parts = [f"{status.current_event_index:,} of {status.total_events:,} events"]
        if status.last_event_timestamp:
            parts.append(f"event time {status.last_event_timestamp[:23].rstrip('Z').replace('T', ' ')}")
        if status.lateness is not None:
            parts.append(f"lateness p50 {status.lateness.p50:.2f} ms, p99 {status.lateness.p99:.2f} ms")
        if status.paused:
            parts.append("paused")
        if not status.running:
            parts.append("ended")
        text = "&nbsp; " + note(" · ".join(parts))
        return f"{text} {error(status.error)}" if status.error else text

    def say(self, text: str) -> None:
        """Show a message next to the buttons."""
        self.message.value = note(text)

    def complain(self, text: str) -> None:
        """Show an error next to the buttons."""
        self.message.value = error(text)


def speed_label(factor: float) -> str:
    return "as fast as it can" if math.isinf(factor) else f"{factor:,.10g}×"
