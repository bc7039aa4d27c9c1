"""The parameters of the next run: every field editable, the recorded value next to it, one reset for all."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from replaylab.errors import ConfigError
from replaylab.notebook.style import error, note
from replaylab.params import Declaration, TradingParams

_COLUMNS = 2
_OFF, _NONE = "off", "none"
_FLAGS = {True: "yes", False: "no"}


class RunParams:
    """A field for each declared parameter; ``changes`` is what differs from the base, ready for a replay.

    ``offer`` sets the base: the parameters that the chosen session recorded, or those of the configuration.
    """

    def __init__(self) -> None:
        self.base = TradingParams()
        self.source = "configured"
        self._declared = {one.name: one for one in TradingParams.declarations()}
        self.fields = {name: _field(one) for name, one in self._declared.items()}
        self.notes = {name: w.HTML(layout=w.Layout(width="13em")) for name in self._declared}
        self.reset = w.Button(description="Reset", icon="undo", tooltip="back to the recorded values")
        self.reset.on_click(lambda _: self._show(self.base))
        self.problem = w.HTML()
        rows = [
            w.HBox([self.fields[name], self.notes[name]], layout=w.Layout(align_items="center"))
            for name in self._declared
        ]
        height = -(-len(rows) // _COLUMNS)
        columns = [w.VBox(rows[start : start + height]) for start in range(0, len(rows), height)]
        self.widget = w.Accordion(
            [
                w.VBox(
                    [
                        w.HBox(columns, layout=w.Layout(flex_flow="row wrap", grid_gap="0 16px")),
                        w.HBox([self.reset, self.problem], layout=w.Layout(align_items="center")),
                    ]
                )
            ],
            selected_index=None,
        )
        self._showing = False
        for name, field in self.fields.items():
            field.observe(lambda _, name=name: self._edited(name), names="value")
        self.offer(self.base, "configured")

    def offer(self, base: TradingParams, source: str, used: TradingParams | None = None) -> None:
        """Set the base and where it comes from ("recorded", "configured"), and show ``used`` (default: the base)."""
        self.base, self.source = base, source
        self._show(used or base)

    def changes(self) -> dict[str, Any] | None:
        """Return the changed fields and their values, or None with a message next to each invalid field."""
        found: dict[str, Any] = {}
        valid = True
        for name in self._declared:
            try:
                value = self._read(name)
            except ConfigError as problem:
                self.notes[name].value = error(str(problem))
                valid = False
                continue
            if value != getattr(self.base, name):
                found[name] = value
        if not valid:
            return None
        try:
            self.base.with_changes(found)
        except ConfigError as problem:
            self.problem.value = error(str(problem))
            return None
        self.problem.value = ""
        return found

    def _show(self, params: TradingParams) -> None:
        self._showing = True
        for name, field in self.fields.items():
            field.value = _shown(self._declared[name], getattr(params, name))
        self._showing = False
        for name in self._declared:
            self._annotate(name)
        self._title()

    def _edited(self, name: str) -> None:
        if not self._showing:
            self._annotate(name)
            self._title()

    def _annotate(self, name: str) -> None:
        declared = self._declared[name]
        base = getattr(self.base, name)
        unit = f" {declared.unit}" if declared.unit and base is not None else ""
        shown = _FLAGS[base] if declared.kind == "flag" else _shown(declared, base)
        text = f"{self.source} {shown}{unit}"
        try:
            changed = self._read(name) != base
        except ConfigError as problem:
            self.notes[name].value = error(str(problem))
            return
        self.notes[name].value = f"<b>{note(text)}</b> ✎" if changed else note(text)

    def _title(self) -> None:
        changes = self.changes()
        count = "invalid" if changes is None else f"{len(changes)} changed" if changes else "unchanged"
        self.widget.titles = (f"Parameters of the run: {self.source}, {count}",)

    def _read(self, name: str) -> Any:
        declared, value = self._declared[name], self.fields[name].value
        if isinstance(value, str):
            value = _parsed(declared, value.strip())
        try:
            declared.check(value)
        except ValueError:
            raise ConfigError(f"{name}: expected {declared.allowed}, found {value!r}") from None
        return value


def _field(declared: Declaration) -> Any:
    common = {
        "description": declared.name,
        "tooltip": declared.help,
        "style": {"description_width": "13em"},
        "layout": w.Layout(width="21em"),
    }
    if declared.kind == "flag":
        return w.Dropdown(options=[(word, flag) for flag, word in _FLAGS.items()], **common)
    if declared.kind == "choice":
        return w.Dropdown(options=declared.choices, **common)
    return w.Text(placeholder=_OFF, **common)


def _shown(declared: Declaration, value: Any) -> Any:
    if declared.kind in ("flag", "choice"):
        return value
    if value is None:
        return _OFF
    if declared.kind == "names":
        return ", ".join(value) or _NONE
    return repr(value).removesuffix(".0")


def _parsed(declared: Declaration, text: str) -> Any:
    """Return what a text field holds; raises ConfigError."""
    if declared.kind == "choice":
        return text
    if text in ("", _OFF):
        return None
    if declared.kind == "names":
        return () if text == _NONE else tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return int(text) if declared.kind == "whole" else float(text)
    except ValueError:
        raise ConfigError(f"{declared.name}: expected {declared.allowed}, found {text!r}") from None
