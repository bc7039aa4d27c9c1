"""The table of sessions (filter as you type, sort by a click, pages of ten rows) and the actions on the chosen one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as w

from replaylab.notebook.style import note
from replaylab.records import ReplayManifest

PAGE = 10
_ID_WIDTH = "25em"
# Column: heading, width, what it sorts by.
_COLUMNS: tuple[tuple[str, str, Callable[[ReplayManifest], Any]], ...] = (
    ("session", _ID_WIDTH, lambda m: m.session_id),
    ("range (UTC)", "17em", lambda m: m.source_date_range.from_),
    ("symbols", "12em", lambda m: (len(m.symbols), m.symbols)),
    ("events", "6em", lambda m: _total(m)),
    ("speed", "5em", lambda m: m.speed_factor),
    ("notes", "1fr", lambda m: m.notes or ""),
)


class SessionTable:
    """``selected`` is the id of the chosen session, or None; ``on_select`` is called when it changes."""

    def __init__(self, on_select: Callable[[str | None], None]) -> None:
        self.selected: str | None = None
        self._on_select = on_select
        self._manifests: list[ReplayManifest] = []
        self._shown: list[ReplayManifest] = []
        self._page = 0
        self._sort: tuple[int, bool] = (1, True)

        self.filter = w.Text(placeholder="filter: session, symbol, note", continuous_update=True)
        self.filter.layout.width = "24em"
        self.filter.observe(self._filtered, names="value")
        self.headings = [self._heading(place) for place in range(len(_COLUMNS))]
        self.ids = [self._id_button(place) for place in range(PAGE)]
        self.cells = [w.HTML(layout=w.Layout(flex="1 1 auto", min_width="0")) for _ in range(PAGE)]
        self.rows = [
            w.HBox([button, cell], layout=w.Layout(align_items="center"))
            for button, cell in zip(self.ids, self.cells, strict=True)
        ]
        for row in self.rows:
            row.add_class("rl-line")
        # In a narrow window headings and rows scroll together.
        self.wide = w.VBox([w.HBox(self.headings), *self.rows])
        self.wide.add_class("rl-wide")
        self.count = w.HTML()
        self.back = w.Button(icon="chevron-left", tooltip="earlier page", layout=w.Layout(width="3em"))
        self.forth = w.Button(icon="chevron-right", tooltip="next page", layout=w.Layout(width="3em"))
        self.back.on_click(lambda _: self._turn(-1))
        self.forth.on_click(lambda _: self._turn(+1))
        self.widget = w.VBox(
            [
                w.HBox(
                    [self.filter, self.back, self.forth, self.count], layout=w.Layout(align_items="center")
                ),
                self.wide,
            ]
        )
        self._draw()

    def set_manifests(self, manifests: Sequence[ReplayManifest]) -> None:
        """Show these sessions; the selection stays where it still exists."""
        self._manifests = list(manifests)
        if self.selected is not None and all(m.session_id != self.selected for m in manifests):
            self._choose(None)
        self._draw()

    def select(self, session_id: str | None) -> None:
        """Choose a session and turn to its page."""
        self._choose(session_id)
        for place, manifest in enumerate(self._shown):
            if manifest.session_id == session_id:
                self._page = place // PAGE
        self._draw()

    @property
    def visible(self) -> list[str]:
        """Ids on this page, in order."""
        return [m.session_id for m in self._shown[self._page * PAGE : (self._page + 1) * PAGE]]

    def manifest(self, session_id: str | None) -> ReplayManifest | None:
        """The manifest of a session in the table."""
        return next((m for m in self._manifests if m.session_id == session_id), None)

    def _heading(self, place: int) -> w.Button:
        name, width, _ = _COLUMNS[place]
        grows = width.endswith("fr")
        layout = w.Layout(flex="1 1 auto", width="auto") if grows else w.Layout(flex="0 0 auto", width=width)
        # The width of the gap between the cells below.
        layout.margin = "2px" if place == 0 else "2px 10px 2px 2px"
        button = w.Button(description=name, tooltip=f"sort by {name}", layout=layout)
        button.add_class("rl-head")
        if name in ("events", "speed"):
            button.add_class("rl-num")
        button.on_click(lambda _: self._sort_by(place))
        return button

    def _id_button(self, place: int) -> w.Button:
        button = w.Button(layout=w.Layout(width=_ID_WIDTH, flex="0 0 auto"))
        button.add_class("rl-id")
        button.on_click(lambda _: self._clicked(place))
        return button

    def _clicked(self, place: int) -> None:
        if place < len(self.visible):
            self._choose(self.visible[place])
            self._draw()

    def _choose(self, session_id: str | None) -> None:
        if session_id != self.selected:
            self.selected = session_id
            self._on_select(session_id)

    def _filtered(self, _: Any) -> None:
        self._page = 0
        self._draw()

    def _sort_by(self, place: int) -> None:
        column, descending = self._sort
        self._sort = (place, not descending if column == place else False)
        self._page = 0
        self._draw()

    def _turn(self, by: int) -> None:
        self._page += by
        self._draw()

    def _draw(self) -> None:
        words = self.filter.value.casefold().split()
        found = [m for m in self._manifests if all(word in _searched(m) for word in words)]
        column, descending = self._sort
        self._shown = sorted(found, key=_COLUMNS[column][2], reverse=descending)
        pages = max(1, -(-len(self._shown) // PAGE))
        self._page = min(max(self._page, 0), pages - 1)
        self.back.disabled, self.forth.disabled = self._page == 0, self._page == pages - 1
        for place, button in enumerate(self.headings):
            arrow = (" ▾" if descending else " ▴") if place == column else ""
            button.description = _COLUMNS[place][0] + arrow
        first = self._page * PAGE
        page = self._shown[first : first + PAGE]
        for place, (button, cell, row) in enumerate(zip(self.ids, self.cells, self.rows, strict=True)):
            manifest = page[place] if place < len(page) else None
            row.layout.display = "flex" if manifest else "none"
            if manifest is not None:
                button.description, button.tooltip = manifest.session_id, f"choose {manifest.session_id}"
                cell.value = _cells(manifest)
                (row.add_class if manifest.session_id == self.selected else row.remove_class)("rl-chosen")
        self.count.value = self._caption(first, len(page))

    def _caption(self, first: int, rows: int) -> str:
        if not self._manifests:
            return '<span class="rl-soft">no sessions yet: build one below</span>'
        if not rows:
            return f'<span class="rl-soft">none of {len(self._manifests):,} matches the filter</span>'
        return f'<span class="rl-soft">{first + 1:,}–{first + rows:,} of {len(self._shown):,}</span>'


def _total(manifest: ReplayManifest) -> int:
    total = manifest.total_events
    return total if isinstance(total, int) else -1


def _searched(manifest: ReplayManifest) -> str:
    return f"{manifest.session_id} {' '.join(manifest.symbols)} {manifest.notes or ''}".casefold()


def _cells(manifest: ReplayManifest) -> str:
    start, end = (text[:19].replace("T", " ") for text in _range(manifest))
    span = f"{start} – {end[11:] if start[:10] == end[:10] else end}"
    total = _total(manifest)
    texts = (
        (span, ""),
        (", ".join(manifest.symbols), ""),
        (f"{total:,}" if total >= 0 else "?", "num"),
        (f"{manifest.speed_factor:g}×", "num"),
        (manifest.notes or "", ""),
    )
    spans = "".join(
        f'<span class="{kind}" title="{escape(text)}">{escape(text)}</span>' for text, kind in texts
    )
    # Notes keep a width in a narrow window, where they would be broken after each letter.
    columns = " ".join(width.replace("1fr", "minmax(12em, 1fr)") for _, width, _ in _COLUMNS[1:])
    return f'<div class="rl-row" style="grid-template-columns:{columns}">{spans}</div>'


def _range(manifest: ReplayManifest) -> tuple[str, str]:
    return manifest.source_date_range.from_, manifest.source_date_range.to


class Actions:
    """Run a session, load it into the detail, delete it after a question.

    Buttons call ``on_run``, ``on_load`` and, once confirmed, ``on_delete(session_id)``.
    """

    def __init__(
        self, *, on_run: Callable[[], None], on_load: Callable[[], None], on_delete: Callable[[str], None]
    ) -> None:
        self._chosen: str | None = None
        self._to_delete: str | None = None
        self._on_delete = on_delete
        self.run = w.Button(
            description="Run", icon="play", button_style="success", layout=w.Layout(width="7.5em")
        )
        self.mode = w.Dropdown(
            options=[
                ("recorded signals", "SCORING_ONLY"),
                ("signals recomputed from market data", "FULL_DECISION"),
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
        self.asking = w.HBox([self.question, self.confirm, self.keep], layout=w.Layout(display="none"))
        self.run.on_click(lambda _: on_run())
        self.load.on_click(lambda _: on_load())
        self.delete.on_click(lambda _: self._ask())
        self.confirm.on_click(lambda _: self._confirmed())
        self.keep.on_click(lambda _: self._cancel())
        self.widget = w.HBox(
            [self.run, self.mode, self.loop, self.load, self.delete, self.asking],
            layout=w.Layout(align_items="center", flex_flow="row wrap"),
        )
        self.offer(None, running=False)

    def offer(self, session_id: str | None, *, running: bool) -> None:
        """Enable what can be done with this session, given whether a replay runs."""
        if session_id != self._chosen:
            self._cancel()
        self._chosen = session_id
        self.load.disabled = self.delete.disabled = session_id is None
        self.run.disabled = session_id is None or running

    def _ask(self) -> None:
        self._to_delete = self._chosen
        if self._to_delete is not None:
            self.question.value = note(f"Delete {self._to_delete} and its runs?")
            self.asking.layout.display = "flex"

    def _confirmed(self) -> None:
        session_id = self._to_delete
        self._cancel()
        if session_id is not None:
            self._on_delete(session_id)

    def _cancel(self) -> None:
        self._to_delete = None
        self.asking.layout.display = "none"
