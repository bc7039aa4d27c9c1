"""Make the images of README.md from the sample: ``python tools/make_images.py [FOLDER]`` (default docs/images).

``heatmap.png`` and ``equity.png`` are what ``replaylab.plots`` returns; ``panel.png`` is a screenshot of the dashboard
in a real JupyterLab, taken with Chromium (``tools/install-chromium``). The sample is a synthetic market.
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from replaylab import Lab, plots  # noqa: E402
from tests.browser.driving import (  # noqa: E402
    browser_page,
    button,
    find_browser,
    jupyterlab,
    open_dashboard,
    tab,
)

START, END = "2025-11-18T10:00:00Z", "2025-11-18T11:00:00Z"
SYMBOLS = ["BTCUSDT", "AIUSDT"]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lab = Lab.sample()
    hour = lab.build_replay_session(START, END, SYMBOLS, session_id="the-hour", notes="all of the sample")
    grid = {
        "entry_threshold": np.round(np.arange(0.30, 0.81, 0.05), 2),
        "sl_pct": [0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3],
        "tp1_pct": [0.05, 0.1, 0.15, 0.2, 0.3],
        "max_hold_s": [None, 60.0, 300.0],
    }
    result = lab.sweep(hour, grid, {"tp2_pct": 0.6}, progress=False)
    best = result.trades(int(result.best(1)["row"][0]))
    tries = f"{result.frame.height:,} parameter sets on an hour of a synthetic market"
    drawn = {
        "heatmap": plots.heatmap(result.frame, "entry_threshold", "sl_pct", title=tries),
        "equity": plots.equity({"best of the sweep": best, "as recorded": lab.trades()}, title="Equity"),
    }
    for name, figure in drawn.items():
        data = BytesIO()
        # Pages that show README may be dark: the image has a white background.
        figure.savefig(data, format="png", dpi=100, facecolor="white")
        save(Image.open(data), folder / f"{name}.png")
    photograph(lab, folder / "panel.png")


def photograph(lab: Lab, target: Path) -> None:
    """Play the hour at 20× until trades have closed, and save a screenshot of the panel."""
    executable = find_browser()
    if executable is None:
        raise SystemExit("no Chromium on this machine: run tools/install-chromium")
    with (
        tempfile.TemporaryDirectory() as home,
        jupyterlab(lab.root.path, Path(home)) as address,
        browser_page(executable, Path(home) / "profile") as page,
    ):
        open_dashboard(page, address)
        tab(page, "Logs & Events").click()
        page.locator(".rl-panel .rl-id").filter(has_text="the-hour").click()
        handle = page.locator(".rl-panel .widget-hslider:not(.rl-timeline) .noUi-handle[role='slider']").first
        for _ in range(4):
            handle.press("ArrowRight")
        page.wait_for_selector(".rl-panel .widget-readout:has-text('20×')")
        button(page, "Run").click()
        page.locator(".rl-badge.replay").wait_for()
        # A quarter of an hour of the market, so that trades have been opened and closed.
        page.wait_for_timeout(45_000)
        data = page.locator(".rl-panel").first.screenshot()
        button(page, "Stop").click()
        page.wait_for_selector(".rl-badge.calm")
    save(Image.open(BytesIO(data)), target)


def save(image: Image.Image, target: Path) -> None:
    image.convert("RGB").save(target, optimize=True)
    print(f"{target}: {target.stat().st_size // 1024} KiB, {image.width} × {image.height}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "docs" / "images")
