"""The wheel: what is inside, and that it works where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parent.parent
FROM_THE_WHEEL = """
import json, sys
from pathlib import Path
import replaylab
from jupyter_core.paths import jupyter_config_path
from jupyter_server.extension.config import ExtensionConfigManager
from jupyter_server.extension.manager import ExtensionPackage
from replaylab import Lab

manager = ExtensionConfigManager(read_config_path=[str(Path(path)) for path in jupyter_config_path()])
lab = Lab.sample()
print(json.dumps({
    "home": replaylab.__file__,
    "trades": lab.trades().height,
    "sessions": len(lab.sessions.list_sessions()),
    "enabled": manager.get_jpserver_extensions(section_name="jupyter_server_config"),
    "loads": ExtensionPackage(name="replaylab.server", enabled=True).validate(),
}))
"""


def run(*command: str | Path, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_wheel_works_in_a_fresh_environment(tmp_path: Path) -> None:
    """Built, installed where there is no checkout: the sample, the server extension and the demo are all there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JUPYTER_"))
    }
    environment |= {"HOME": str(outside), "PIP_NO_INDEX": "1"}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, REPOSITORY]
    run(*pip, *build, folder=outside, environment=environment)
    (wheel,) = tmp_path.glob("replaylab-*.whl")

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = next(name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entries).decode()
    served = {"replaylab/server/rest-api.yml", "replaylab/server/dashboard.html"}
    assert {"replaylab/py.typed", *served} <= set(names)
    assert any(name.endswith("etc/jupyter/jupyter_server_config.d/replaylab.json") for name in names)
    assert any(name.startswith("replaylab/_sample/history/book/") for name in names)
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]
    assert "replaylab = replaylab.cli:main" in commands
    assert "jupyter-replaylab = replaylab.server.app:main" in commands

    home = tmp_path / "fresh"
    venv.create(home)
    python = home / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel, folder=outside, environment=environment)
    (site,) = home.glob("lib/python*/site-packages")
    # The dependencies are lent by this environment; a path file is not followed into further path files, so that the
    # checkout, which is installed there by one, stays out.
    (site / "dependencies.pth").write_text(f"{Path(np.__file__).parents[1]}\n")

    found = json.loads(
        run(python, "-c", FROM_THE_WHEEL, folder=outside, environment=environment).splitlines()[-1]
    )
    assert Path(found["home"]).is_relative_to(site)
    assert found["trades"] > 0
    assert found["sessions"] == 1
    assert found["enabled"]["replaylab.server"] is True
    assert found["loads"] is True

    output = run(home / "bin" / "replaylab", "demo", "-o", "results", folder=outside, environment=environment)
    assert "the same decisions" in output
    assert (outside / "results" / "plots" / "equity.png").stat().st_size > 5_000
