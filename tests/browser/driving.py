"""A real JupyterLab server on the dashboard notebook, and a real browser on it."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

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


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def jupyterlab(root: Path, home: Path) -> Iterator[str]:
    """Serve a copy of the dashboard notebook that opens ``root``; yields the notebook's address."""
    folder = home / "notebooks"
    folder.mkdir()
    notebook = json.loads((REPOSITORY / "notebooks" / "05_dashboard.ipynb").read_text())
    notebook["cells"][1]["source"] = [f"DATA_ROOT = {str(root)!r}"]
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


@contextmanager
def browser_page(executable: str, profile: Path) -> Iterator[Any]:
    """A page of a headless browser with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            headless=True,
            args=FLAGS,
            viewport={"width": 1500, "height": 1250},
        )
        context.set_default_timeout(WAIT_MS)
        yield context.pages[0]
        context.close()


def open_dashboard(page: Any, address: str) -> None:
    """Open the notebook, run it, and give the panel the whole window's width."""
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_function(KERNEL_IS_READY)
    command(page, "'notebook:run-all-cells'")
    page.wait_for_selector(".rl-badge.calm")
    command(page, "'application:toggle-left-area'")


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
