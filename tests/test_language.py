"""Code comments, docstrings, messages and pages are written in technical terms: one term per thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
# The word, and what to write.
INSTEAD = {
    r"figures": "metrics (of a result), numbers, plots",
    r"pictures?": "plot",
    r"ISO texts?|JSON texts?": "ISO string, JSON string",
    r"taught|look(?:s|ed|ing)? at|told|tells|said": "validate, read, report, document",
    r"gets? hold of|lets? go|letting go": "acquire, release",
    r"stands? for|what was taken|what stands": "means; order, fill, position",
    r"(?:un)?usual(?:ly)?": "sparse, dense, most",
    r"as it is|anew": "unchanged, again",
    r"whoever|nobody|somebody": "name who does it",
    r"beside it|goes on|go on|in the time of a glance": "next to, continues, in one call",
}
WORDS = re.compile(r"\b(?:" + "|".join(INSTEAD) + r")\b", re.IGNORECASE)
PLACES = ("replaylab", "docs", "notebooks", "tests", "benchmarks", "tools", "data")
ENDINGS = {".py", ".pyi", ".md", ".ipynb", ".yml", ".yaml"}


def documents() -> list[Path]:
    found = [path for place in PLACES for path in (REPOSITORY / place).rglob("*") if path.suffix in ENDINGS]
    found += REPOSITORY.glob("*.md")
    # The change log names what things were called.
    skipped = {Path(__file__), REPOSITORY / "CHANGELOG.md"}
    return sorted(path for path in found if path not in skipped and ".ipynb_checkpoints" not in path.parts)


def room(path: Path) -> str:
    return "/".join(path.relative_to(REPOSITORY).parts[:2])


@pytest.mark.parametrize("place", sorted({room(path) for path in documents()}))
def test_words_not_to_use(place: str) -> None:
    """Vague words of everyday speech hide what code does; each has a technical term."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match.group(0)!r} in {line.strip()[:90]!r}"
        for path in documents()
        if room(path) == place
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in WORDS.finditer(line)
    ]
    assert not found, "\n".join(found)
