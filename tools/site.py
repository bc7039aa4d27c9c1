"""A hook of mkdocs: plots of the tests for the gallery, and the notebooks with their outputs, as pages of the site.

The notebooks are committed without outputs. `make notebooks` runs copies of them in build/notebooks; where that was not
done, the site shows them without outputs and the log says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
PLOTS = REPOSITORY / "tests" / "plots" / "images"
NOTEBOOKS = REPOSITORY / "notebooks"
EXECUTED = REPOSITORY / "build" / "notebooks"


def on_files(files: Files, config: Any) -> Files:
    """Add what is not in docs/: an image per plot, an HTML page per notebook."""
    for image in sorted(PLOTS.glob("*.png")):
        name = f"gallery/{image.stem.removeprefix('test_image_')}.png"
        files.append(File.generated(config, name, abs_src_path=str(image)))
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        executed = EXECUTED / notebook.name
        if not executed.is_file():
            logging.getLogger("mkdocs.hooks").info(
                "%s is shown without outputs: run make notebooks", notebook.name
            )
        html = page(executed if executed.is_file() else notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.html", content=html))
    return files


def page(notebook: Path) -> str:
    """Return a notebook as an HTML page; links between notebooks lead to their pages."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        exclude_input_prompt=True, exclude_output_prompt=True, mathjax_url="", require_js_url=""
    )
    body: str = exporter.from_filename(str(notebook))[0]
    return body.replace('.ipynb"', '.html"')
