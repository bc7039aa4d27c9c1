"""What can be done with the chosen session: run it, load it into the detail, delete it after a question."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w

from replaylab.notebook.style import note

__all__ = ["Actions"]


class Actions:
    """Buttons call ``on_run``, ``on_load`` and, once it is confirmed, ``on_delete(session_id)``."""

    def __init__(
        self, *, on_run: Callable[[], None], on_load: Callable[[], None], on_delete: Callable[[str], None]
    ) -> None:
        self._chosen: str | None = None
        self._doomed: str | None = None
        self._on_delete = on_delete
        self.run = w.Button(
            description="Run", icon="play", button_style="success", layout=w.Layout(width="7.5em")
        )
        self.mode = w.Dropdown(
            options=[
                ("recorded signals", "SCORING_ONLY"),
                ("decide again from market data", "FULL_DECISION"),
            ],
            layout=w.Layout(width="17em"),
        )
        self.loop = w.Checkbox(description="loop", indent=False, layout=w.Layout(width="5em"))
        self.load = w.Button(description="Load into detail", icon="search", layout=w.Layout(width="11em"))
        self.delete = w.Button(description="Delete", icon="trash", layout=w.Layout(width="7.5em"))
        self.confirm = w.Button(
            description="Yes, delete", button_style="danger", layout=w.Layout(width="9em")
        )
        self.keep = w.Button(description="Keep", layout=w.Layout(width="6em"))
        self.question = w.HTML()
        self.asking = w.HBox([self.question, self.confirm, self.keep])
        self.run.on_click(lambda _: on_run())
        self.load.on_click(lambda _: on_load())
        self.delete.on_click(lambda _: self._ask())
        self.confirm.on_click(lambda _: self._confirmed())
        self.keep.on_click(lambda _: self._forget())
        self.widget = w.HBox(
            [self.run, self.mode, self.loop, self.load, self.delete, self.asking],
            layout=w.Layout(align_items="center", flex_flow="row wrap"),
        )
        self.offer(None, running=False)

    def offer(self, session_id: str | None, *, running: bool) -> None:
        """Offer what can be done with a session while a replay runs or not."""
        if session_id != self._chosen:
            self._forget()
        self._chosen = session_id
        self.load.disabled = self.delete.disabled = session_id is None
        self.run.disabled = session_id is None or running

    def _ask(self) -> None:
        self._doomed = self._chosen
        if self._doomed is not None:
            self.question.value = note(f"Delete {self._doomed} and its runs?")
            self.asking.layout.display = "flex"

    def _confirmed(self) -> None:
        doomed = self._doomed
        self._forget()
        if doomed is not None:
            self._on_delete(doomed)

    def _forget(self) -> None:
        self._doomed = None
        self.asking.layout.display = "none"
