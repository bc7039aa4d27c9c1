"""The chart in a real JupyterLab: it is drawn at first sight, and a zoom in the page fetches prices from the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replaylab import Lab
from tests.browser import driving

CELLS = (
    "",
    "",
    "from replaylab import Lab\n"
    "lab = Lab(DATA_ROOT)\n"
    "lab.build_replay_session('2025-11-18T10:00', '2025-11-18T11:00', ['BTCUSDT', 'AIUSDT'], session_id='h')\n"
    "chart = lab.chart('h', symbol='BTCUSDT')\n"
    "chart",
    "print('SPAN', round(chart._plot.x_range.end - chart._plot.x_range.start), len(chart._bids.data['x']))",
)


def test_a_zoom_reaches_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First sight without an error; after turning the wheel the kernel knows the range, and sends the quotes in it."""
    browser = driving.find_browser()
    if browser is None:
        pytest.skip("no Chromium")
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": [text]}
        for text in CELLS
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    folder = tmp_path / "repository" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "05_dashboard.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(driving, "REPOSITORY", tmp_path / "repository")
    lab = Lab.sample()
    with (
        driving.jupyterlab(lab.root.path, tmp_path) as address,
        driving.browser_page(browser, tmp_path / "profile") as page,
    ):
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        page.wait_for_function(driving.KERNEL_IS_READY)
        driving.command(page, "'notebook:run-all-cells'")
        figure = page.locator(".bk-Figure").first
        figure.wait_for(timeout=90_000)
        page.get_by_text("SPAN").last.wait_for()
        box = figure.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 150)
        for _ in range(8):
            page.mouse.wheel(0, -300)
            page.wait_for_timeout(150)
        page.wait_for_timeout(1_500)
        page.locator(".jp-CodeCell").last.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.jp-OutputArea-output')]"
            ".some(e => /SPAN (\\d+) [1-9]/.test(e.innerText) && +e.innerText.match(/SPAN (\\d+)/)[1] < 1e6)"
        )
        assert wrong == []
