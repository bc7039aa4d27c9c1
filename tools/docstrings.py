"""An extension of griffe: docstrings as their authors wrote them become Markdown that a page can show.

Examples with prompts become Python blocks without prompts (they can be copied), what they print becomes a comment;
``::`` and ``:func:`` of reStructuredText go. A record or a set of parameters gets a table of its fields.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SKIP = re.compile(r"\s*# doctest: \+\w+\s*$")
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")


_STRUCTS = ("Record", "Settings", "msgspec.Struct", "Struct")


class Markdown(griffe.Extension):
    """Rewrites each docstring once, when its object is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        obj.docstring.value = markdown(obj.docstring.value)
        if isinstance(obj, griffe.Class) and any(str(base) in _STRUCTS for base in obj.bases):
            obj.docstring.value += fields(obj)


def fields(struct: griffe.Class) -> str:
    """Return a table of the annotated attributes, empty where there are none."""
    rows = [
        f"| `{name}` | `{str(member.annotation).replace('|', chr(0x2223))}` | {_default(member)} |"
        for name, member in struct.members.items()
        if isinstance(member, griffe.Attribute) and member.annotation and not name.startswith("_")
    ]
    return "\n\n| field | type | default |\n|---|---|---|\n" + "\n".join(rows) if rows else ""


def _default(member: griffe.Attribute) -> str:
    return "required" if member.value is None else f"`{member.value}`"


def markdown(text: str) -> str:
    """Return the docstring with its examples in fences.

    >>> print(markdown("Add.\\n\\n>>> add(1, 1)\\n2").replace("`" * 3, "~~~"))
    Add.
    <BLANKLINE>
    ~~~python
    add(1, 1)
    # 2
    ~~~
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        bare = line.strip()
        if not inside and bare.startswith(">>>"):
            lines.append("```python")
            inside = True
        elif inside and not bare:
            lines.append("```")
            inside = False
        if not inside:
            lines.append(_ROLE.sub(r"`\1`", "" if bare == "::" else line))
        elif bare.startswith((">>>", "...")):
            lines.append(_SKIP.sub("", bare[4:]))
        else:
            lines.append(f"# {bare}")
    if inside:
        lines.append("```")
    return "\n".join(lines)
