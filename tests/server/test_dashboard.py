"""The dashboard at / of `replaylab serve`: who gets it, what it may load, and its login cookie."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import replaylab.server.handlers as handlers
from tests.server.conftest import SESSION, TOKEN, serving, session_root

PAGE = Path(handlers.__file__).with_name("dashboard.html").read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root address of a server, without a token."""
    root = session_root(tmp_path_factory.mktemp("served") / "data")
    with serving(root, tmp_path_factory.mktemp("log") / "server.log") as client:
        yield str(client.base_url).removesuffix("/api/replay/")


def test_the_page_needs_authentication(address: str) -> None:
    """Without or with a wrong token the login page is named, and nothing of the dashboard is sent."""
    for path in ("/", "/?token=wrong"):
        answer = httpx.get(address + path)
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/login?")
        assert "REPLAY MODE" not in answer.text


def test_a_chart_needs_the_token_and_reaches_nothing(address: str) -> None:
    """The frame's page is in a sandbox without an origin: its scripts have no cookie and may fetch nothing."""
    assert httpx.get(f"{address}/chart/{SESSION}").status_code == 403
    assert httpx.get(f"{address}/chart/nowhere", params={"token": TOKEN}).status_code == 404
    answer = httpx.get(f"{address}/chart/{SESSION}", params={"token": TOKEN, "symbol": "ETHUSDT"}, timeout=90)
    assert answer.status_code == 200
    assert "ETHUSDT" in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "connect-src" not in policy
    for path in ("contents", "kernels", "terminals", "sessions"):
        assert httpx.get(f"{address}/api/{path}", params={"token": TOKEN}).status_code == 404


def test_the_page_is_html_that_runs_its_own_script_only(address: str) -> None:
    """The content type is HTML; the policy names the hashes of the script and the style, and no other source."""
    answer = httpx.get(address, params={"token": TOKEN})
    assert answer.status_code == 200
    assert answer.text == PAGE
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")


def test_the_page_makes_no_html_of_data_and_loads_nothing(address: str) -> None:
    """No sink that parses HTML or code is used, and no address outside the server is named."""
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert sink not in PAGE
    assert not re.findall(r"https?://|\bsrc=|<link|@import|url\(", PAGE)


def test_after_the_login_a_post_needs_the_xsrf_header(address: str) -> None:
    """The token in the address logs a browser in; its cookies alone steer nothing, with the header they do."""
    with httpx.Client(base_url=address) as browser:
        assert browser.get("/", params={"token": TOKEN}).status_code == 200
        assert browser.get("/").status_code == 200, "the cookie is enough"
        body = {"sessionId": SESSION, "speedFactor": 10}
        assert browser.post("/api/replay/run", json=body).status_code == 403
        header = {"X-XSRFToken": browser.cookies["_xsrf"]}
        assert browser.post("/api/replay/run", json=body, headers=header).status_code == 200
        assert browser.post("/api/replay/stop", json={}, headers=header).status_code == 200
