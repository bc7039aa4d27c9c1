"""The page about importing shows what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replaylab.importers import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "importing.md"


def test_the_examples_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "ids jump from 4500000002 to 4500000004" in printed
    assert "nothing from 2025-01-01T00:00:00.000456Z" in printed


def test_every_format_and_option_is_on_the_page() -> None:
    text = PAGE.read_text()
    for name, fmt in FORMATS.items():
        assert f"`{name}`" in text
        for option in fmt.options:
            assert f"`{option}`" in text or f"`{option}=" in text, f"{name}: {option}"
