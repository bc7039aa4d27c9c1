"""A person's way through the dashboard: a real JupyterLab, a real browser.

Screenshots go to the folder that REPLAYLAB_SCREENSHOTS names, or to the test's temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from replaylab.lab import Lab
from replaylab.replay import read_status

REPOSITORY = Path(__file__).parents[2]
TOKEN = "token-of-the-browser-test"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 30_000
# Earlier, JupyterLab would ask which kernel to use.
KERNEL_IS_READY = """() => {
  const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
  return context?.isReady && context.session?.kernel?.connectionStatus === "connected";
}"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    opened = Lab.sample()
    yield opened
    shutil.rmtree(opened.root.path.parent)


@pytest.fixture(scope="module")
def jupyter(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab server on a copy of the dashboard notebook; yields the notebook's address."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "notebooks"
    folder.mkdir()
    notebook = json.loads((REPOSITORY / "notebooks" / "05_dashboard.ipynb").read_text())
    notebook["cells"][1]["source"] = [f"DATA_ROOT = {str(lab.root)!r}"]
    (folder / "05_dashboard.ipynb").write_text(json.dumps(notebook))
    quiet = home / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": TOKEN,
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--ServerApp.root_dir={folder}", "--expose-app-in-browser", "--ServerApp.port_retries=0"]
    with (home / "jupyter.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", home / "jupyter.log")
            yield f"http://127.0.0.1:{port}/lab/tree/05_dashboard.ipynb?reset&token={TOKEN}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(address: str, log: Path) -> None:
    limit = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            if time.monotonic() > limit:
                raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}") from None
        time.sleep(0.2)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page of a headless browser with a profile of its own."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            f"NOT TESTED IN A BROWSER: none of {', '.join(BROWSERS)} is installed (tools/install-chromium)"
        )
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="NOT TESTED IN A BROWSER: playwright is missing"
    )
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=found,
            headless=True,
            args=FLAGS,
            viewport={"width": 1500, "height": 1250},
        )
        context.set_default_timeout(WAIT_MS)
        yield context.pages[0]
        context.close()


@pytest.fixture
def shoot(page: Any, tmp_path: Path) -> Any:
    folder = Path(os.environ.get("REPLAYLAB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png")


def command(page: Any, call: str) -> None:
    """Give JupyterLab a command; its promise is not waited for."""
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute({call}); }}")


def field(page: Any, label: str) -> Any:
    """The input of a widget with that label."""
    return (
        page.locator(".rl-panel .widget-text")
        .filter(has=page.get_by_text(label, exact=True))
        .locator("input")
    )


def button(page: Any, text: str) -> Any:
    return page.locator(".rl-panel button").filter(has_text=re.compile(rf"^\s*{re.escape(text)}\s*$"))


def tab(page: Any, text: str) -> Any:
    return page.locator(".rl-panel .lm-TabBar-tab").filter(has_text=text)


def test_make_run_follow_stop(jupyter: str, page: Any, shoot: Any, lab: Lab) -> None:
    """R9 in a browser: a session is made with the form, played at 20×, seen to move, and stopped."""
    page.goto(jupyter)
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_function(KERNEL_IS_READY)
    command(page, "'notebook:run-all-cells'")
    page.wait_for_selector(".rl-badge.calm")
    command(page, "'application:toggle-left-area'")

    tab(page, "Logs & Events").click()
    field(page, "session id").fill("made-in-the-browser")
    field(page, "session id").press("Tab")
    shoot("1-sessions")
    button(page, "Create session").click()
    page.wait_for_selector(".rl-panel .rl-id.rl-chosen:has-text('made-in-the-browser')")
    assert lab.sessions.get_session("made-in-the-browser") is not None

    handle = page.locator(".rl-panel .noUi-handle[role='slider']").first
    for _ in range(4):
        handle.press("ArrowRight")
    page.wait_for_selector(".rl-panel .widget-readout:has-text('20×')")
    shoot("2-made")
    button(page, "Run").click()
    badge = page.locator(".rl-badge.replay")
    badge.wait_for()
    assert "REPLAY MODE" in badge.inner_text()
    assert "made-in-the-browser" in badge.inner_text()
    assert "20×" in badge.inner_text()
    colours = badge.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).borderTopColor]")
    assert colours == ["rgb(0, 0, 0)", "rgb(138, 43, 226)"], "black and purple"

    hotlist = page.locator(".rl-panel .rl-table").first
    page.wait_for_selector(".rl-panel .rl-table .rl-meter")
    before = hotlist.inner_text()
    page.wait_for_function(
        "before => document.querySelector('.rl-panel .rl-table').innerText !== before", arg=before
    )
    page.wait_for_selector(".rl-panel img[src^='blob:']")
    page.wait_for_timeout(6_000)
    shoot("3-playing")
    command(page, "'apputils:change-theme', {theme: 'JupyterLab Dark'}")
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    page.wait_for_timeout(1_500)
    shoot("4-playing-dark")

    button(page, "Stop").click()
    page.wait_for_selector(".rl-badge.calm")
    assert read_status(lab.root).running is False
    after = hotlist.inner_text()
    page.wait_for_timeout(1_000)
    assert hotlist.inner_text() == after, "nothing moves any more"
    shoot("5-stopped-dark")

    command(page, "'apputils:change-theme', {theme: 'JupyterLab Light'}")
    page.wait_for_selector("body[data-jp-theme-light='true']", state="attached")
    tab(page, "Logs & Events").click()
    button(page, "Load into detail").click()
    page.wait_for_selector(".rl-panel :text('Longest gaps')")
    page.wait_for_timeout(1_000)
    shoot("6-detail")
