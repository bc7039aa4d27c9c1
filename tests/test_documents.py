"""What the documents show works, and the notebooks stay as they should."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from replaylab import cli

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
REFERENCE = "\n".join(path.read_text() for path in sorted((REPOSITORY / "docs" / "reference").glob("*.md")))


def python_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))


PAGES = [path for path in DOCUMENTS if "```python" in path.read_text()]
# A process of its own, in which `await` works as in a notebook.
RUN = """
import ast, asyncio, inspect, sys

if __name__ == "__main__":
    code = compile(sys.stdin.read(), sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waits = eval(code, {"__name__": "__main__"})
    if inspect.isawaitable(waits):
        asyncio.run(waits)
"""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_code_of_a_page_runs_as_written(path: Path, tmp_path: Path) -> None:
    """Every Python block of the page, one after another, in an empty folder."""
    (tmp_path / "run.py").write_text(RUN)
    done = subprocess.run(
        [sys.executable, "run.py", path.name],
        input=python_blocks(path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_commands_on_the_pages_exist(path: Path) -> None:
    """Each `replaylab` line of a console block names a command and options that it has."""
    app = get_command(cli.app)
    for block in re.findall(r"```(?:console|sh)\n(.*?)```", path.read_text(), flags=re.DOTALL):
        for line in re.findall(r"^(?:\$ )?replaylab (.*)$", block, flags=re.MULTILINE):
            words = shlex.split(line, comments=True)
            command = app.commands[words[0]]
            known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            used = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
            assert used <= known, f"{line}: {used - known}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_thin_and_without_outputs(path: Path) -> None:
    """At most 15 code cells, no outputs, no execution counts, and parameters at the top where there are any."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) <= 15
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert len(cell["source"]) <= 25, "logic belongs into the package"
    if path.stem != "00_start_here":
        assert "parameters" in code[0]["metadata"].get("tags", [])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text()):
        place = path.parent / target
        # What tools/site.py adds to the site.
        if target.startswith("gallery/"):
            place = REPOSITORY / "tests" / "plots" / "images" / f"test_image_{Path(target).name}"
        elif target.startswith("notebooks/") and target.endswith(".html"):
            place = REPOSITORY / "notebooks" / f"{Path(target).stem}.ipynb"
        assert place.exists(), f"{path.name} links to {target}"


def test_the_gallery_has_every_plot() -> None:
    page = (REPOSITORY / "docs" / "gallery.md").read_text()
    images = (REPOSITORY / "tests" / "plots" / "images").glob("*.png")
    for name in (image.stem.removeprefix("test_image_") for image in images):
        assert f"gallery/{name}.png" in page


def test_every_notebook_is_on_the_site() -> None:
    page = (REPOSITORY / "docs" / "notebooks.md").read_text()
    for path in NOTEBOOKS:
        assert f"notebooks/{path.stem}.html" in page


def test_every_notebook_is_linked_from_the_landing_page() -> None:
    landing = (REPOSITORY / "notebooks" / "00_start_here.ipynb").read_text()
    for path in NOTEBOOKS:
        if path.stem != "00_start_here":
            assert path.name in landing


@pytest.mark.parametrize("room", ["barriers", "health", "ml", "notebook", "plots", "replay", "sweep"])
def test_the_reference_covers_what_users_import(room: str) -> None:
    """Every public class and function of the package has its entry, found by its name in the strict build."""
    listed = set(re.findall(r"^::: (\S+)$", REFERENCE, flags=re.MULTILINE))
    module = importlib.import_module(f"replaylab.{room}")
    public = {f"replaylab.{room}.{name}" for name in module.__all__ if callable(getattr(module, name))}
    assert public <= listed


def test_every_entry_of_the_reference_can_be_imported() -> None:
    """Its heading is the path to import it from."""
    for dotted in re.findall(r"^::: (\S+)$", REFERENCE, flags=re.MULTILINE):
        place, _, name = dotted.rpartition(".")
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(place), name), dotted
