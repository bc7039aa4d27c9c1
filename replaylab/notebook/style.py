"""Style sheet and HTML fragments of the panel, in JupyterLab's own colours: readable in both themes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """<style>
.rl-panel { --rl-line: var(--jp-border-color2, #bbb); --rl-soft: var(--jp-ui-font-color2, #777);
  --rl-up: #1a9c6c; --rl-down: #d6455d; color: var(--jp-ui-font-color1, inherit); }
.rl-panel .widget-html-content { line-height: 1.45; }
.rl-badge { display: inline-block; padding: 6px 14px; border-radius: 6px; font-weight: 600; letter-spacing: .03em; }
.rl-badge.replay { background: #000; color: #c9a0ff; border: 2px solid #8a2be2; }
.rl-badge.calm { border: 2px solid var(--rl-line); color: var(--rl-soft); }
.rl-beat::after { content: "not renewed for 10 s: the kernel is busy, or ended (run the cell again)"; margin-left: 14px;
  font-weight: 600; color: var(--rl-down); display: inline-block; max-width: 0; max-height: 0; overflow: hidden;
  animation: rl-stale 0s 10s forwards; vertical-align: middle; }
@keyframes rl-stale { to { max-width: 60em; max-height: 5em; } }
.rl-badge.replay { animation: rl-dead 0s 10s forwards; }
@keyframes rl-dead { to { background: transparent; color: var(--rl-soft); border-color: var(--rl-line); } }
.rl-health { display: inline-block; margin-left: 14px; color: var(--rl-soft); }
.rl-dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin: 0 5px 0 12px; }
.rl-table { border-collapse: collapse; width: auto; min-width: min(100%, 34em); font-size: 13px;
  color: var(--jp-ui-font-color1, inherit); }
.rl-table th { text-align: left; font-weight: 600; border-bottom: 1px solid var(--rl-line); padding: 3px 10px 3px 0; }
.rl-table td { padding: 2px 10px 2px 0; white-space: nowrap; border-bottom: 1px solid transparent; }
.rl-table .num { text-align: right; font-variant-numeric: tabular-nums; }
.rl-up { color: var(--rl-up); } .rl-down { color: var(--rl-down); }
.rl-soft { color: var(--rl-soft); }
.rl-error { color: var(--rl-down); font-weight: 600; }
.rl-meter { display: inline-block; width: 72px; height: 8px; background: var(--rl-line); border-radius: 4px;
  vertical-align: middle; overflow: hidden; }
.rl-meter > span { display: block; height: 100%; }
.rl-row { display: grid; grid-template-columns: 22em 11em 5.5em 4.5em 1fr; column-gap: 12px; align-items: center;
  font-size: 13px; }
.rl-row > span { overflow-wrap: anywhere; white-space: normal; min-width: 0; }
.rl-row .num { text-align: right; font-variant-numeric: tabular-nums; }
.rl-panel .rl-id { text-align: left; background: transparent; box-shadow: none; padding: 0 6px;
  color: var(--jp-content-link-color, #2868c8); }
.rl-panel .rl-line.rl-chosen { background: var(--jp-brand-color3, #cfe3ff); }
.rl-panel .rl-line.rl-chosen, .rl-panel .rl-line.rl-chosen .rl-id { color: #111; }
.rl-panel .rl-line.rl-chosen .rl-id { font-weight: 600; }
.rl-panel .rl-wide { overflow-x: auto; }
.rl-panel .rl-wide > .widget-hbox { min-width: 84em; overflow: visible; font-size: 13px; }
.rl-panel .rl-head { background: transparent; box-shadow: none; padding: 0; text-align: left; font-weight: 600;
  color: var(--jp-ui-font-color1, inherit); }
.rl-panel .rl-head.rl-num { text-align: right; }
.rl-panel .rl-head:first-child { padding-left: 6px; }
.rl-panel .rl-timeline .noUi-connect { background: #8a2be2; }
.rl-marks { position: relative; height: 12px; margin: 0 8px; }
.rl-marks i { position: absolute; top: 0; width: 0; height: 0; margin-left: -5px; border: 5px solid transparent;
  border-top-width: 0; border-bottom: 9px solid #d99a00; }
.rl-heading { font-weight: 600; margin: 8px 0 2px; }
</style>"""

_HEALTH_COLOURS = {"OK": "#1a9c6c", "WARN": "#d99a00", "ERROR": "#d6455d"}


def badge(text: str, *, replay: bool) -> str:
    """The status badge: black and purple for a replay, calm otherwise."""
    return f'<span class="rl-badge {"replay" if replay else "calm"}">{escape(text)}</span>'


def dot(status: str) -> str:
    colour = _HEALTH_COLOURS.get(status, "#888")
    return f'<span class="rl-dot" style="background:{colour}"></span>'


def health(services: Iterable[tuple[str, str, str | None]]) -> str:
    """Names of services with a coloured dot and the status as a word, readable without colours."""
    parts = [
        f"{dot(status)}{escape(name)} {escape(status)}{': ' + escape(message) if message and status != 'OK' else ''}"
        for name, status, message in services
    ]
    return f'<span class="rl-health">{"".join(parts)}</span>'


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A number with thousands separators; signed ones green or red."""
    if value is None:
        return '<span class="rl-soft">–</span>'
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    if not signed or value == 0:
        return text
    return f'<span class="{"rl-up" if value > 0 else "rl-down"}">{text}</span>'


def bar(score: float | None) -> str:
    """A small meter of abs(score), green for long and red for short."""
    if score is None:
        return ""
    width = min(100.0, abs(score) * 100)
    colour = "var(--rl-up)" if score > 0 else "var(--rl-down)"
    return f'<span class="rl-meter"><span style="width:{width:.0f}%;background:{colour}"></span></span>'


def cells(values: Sequence[Any]) -> str:
    """Plain values as escaped table cells."""
    return "".join(f"<td>{escape(str(value))}</td>" for value in values)


def table(columns: Sequence[str], rows: Iterable[str], *, empty: str = "nothing yet") -> str:
    """A table of ready-made rows (``<td>...``); columns that begin with # are numbers."""
    head = "".join(
        f'<th class="num">{escape(name[1:])}</th>' if name.startswith("#") else f"<th>{escape(name)}</th>"
        for name in columns
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    if not body:
        body = f'<tr><td class="rl-soft" colspan="{len(columns)}">{escape(empty)}</td></tr>'
    return f'<table class="rl-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def error(text: str) -> str:
    """An error message; an empty one clears it."""
    return f'<span class="rl-error">{escape(text)}</span>' if text else ""


def note(text: str) -> str:
    """A remark in a soft colour."""
    return f'<span class="rl-soft">{escape(text)}</span>' if text else ""
