"""The contract against the real server, by a tool that reads only the contract."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from replaylab.paths import DataRoot
from replaylab.server import handlers
from tests.server.conftest import SESSION, TOKEN, serving

CONTRACT = Path(handlers.__file__).with_name("rest-api.yml")


def schemathesis(client: httpx.Client, contract: Path, folder: Path, *options: str) -> None:
    tool = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
    if tool is None:
        pytest.skip("schemathesis is not installed")
    address = f"{client.base_url.scheme}://{client.base_url.netloc.decode()}"
    command = [tool, "run", str(contract), "--url", address, "-H", f"Authorization: token {TOKEN}"]
    command += ["--no-color", "--continue-on-failure", "--seed", "7", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_it_finds_nothing(root: DataRoot, tmp_path: Path) -> None:
    with serving(root, tmp_path / "server.log") as client:
        schemathesis(client, CONTRACT, tmp_path, "--max-examples", "12")


def test_it_finds_nothing_behind_names_that_exist(root: DataRoot, tmp_path: Path) -> None:
    """With names of this data root in the contract the requests get through: sessions are built, played, deleted.

    A range that ends before it begins cannot be excluded by a schema, so its refusal is no finding here.
    """
    plain = yaml.safe_load(CONTRACT.read_text())
    build = plain["components"]["schemas"]["BuildRequest"]["properties"]
    build["symbols"]["items"] = {"enum": ["BTCUSDT", "ETHUSDT"]}
    build["sessionId"] = {"enum": [None, "one", "two", SESSION]}
    plain["components"]["schemas"]["RunRequest"]["properties"]["sessionId"] = {"enum": ["one", SESSION]}
    plain["paths"]["/api/replay/sessions/{sessionId}"]["parameters"][0]["schema"] = {"enum": ["one", "two"]}
    known = tmp_path / "known.yml"
    known.write_text(yaml.safe_dump(plain))
    with serving(root, tmp_path / "server.log") as client:
        schemathesis(
            client, known, tmp_path, "--max-examples", "12", "--exclude-checks", "positive_data_acceptance"
        )
        log = (tmp_path / "server.log").read_text()
        assert "Traceback" not in log, log[-4000:]
