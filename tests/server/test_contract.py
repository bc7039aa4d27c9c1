"""Every route, through Jupyter's own test server: answers, refusals, authentication."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from jupyter_server.utils import url_path_join
from tornado.httpclient import HTTPClientError

import replaylab.server.handlers as handlers
import replaylab.server.service as service_module
from replaylab.params import TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import ReplayEngine
from replaylab.sessions import SessionStore
from tests.roots import END, START

pytest_plugins = ["pytest_jupyter.jupyter_server"]

CONTRACT = yaml.safe_load(Path(handlers.__file__).with_name("rest-api.yml").read_text())
SESSION = "a-minute"
ROUTES = [
    (verb, path.replace("{sessionId}", SESSION).replace("{runId}", "some-run"))
    for path, item in CONTRACT["paths"].items()
    for verb in ("get", "post", "delete")
    if verb in item
] + [("get", "/api/replay/stream")]


@pytest.fixture
def jp_server_config(root: DataRoot) -> dict[str, Any]:
    return {
        "ServerApp": {"jpserver_extensions": {"replaylab.server": True}},
        "Replaylab": {"data_root": str(root), "max_events": 1_000},
    }


@pytest.fixture
def fetch(jp_fetch: Any) -> Any:
    async def call(verb: str, *path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
        data = raw if raw is not None else None if body is None else json.dumps(body)
        if verb == "POST" and data is None:
            data = ""
        try:
            answer = await jp_fetch("api", "replay", *path, method=verb, body=data)
        except HTTPClientError as error:
            answer = error.response
        assert answer.headers["Content-Type"] == "application/json"
        return answer.code, json.loads(answer.body)

    return call


def range_of(**changes: Any) -> dict[str, Any]:
    return {"from": START, "to": END, "symbols": ["BTCUSDT"], **changes}


async def test_sessions_are_listed_with_the_time(fetch: Any) -> None:
    code, answer = await fetch("GET", "sessions")
    assert code == 200
    assert sorted(answer) == ["logsMode", "sessions", "timestamp"]
    assert [manifest["sessionId"] for manifest in answer["sessions"]] == [SESSION]


async def test_setup_and_bookmarks(fetch: Any) -> None:
    """What a run starts from; a name is given, shown in the status, taken away, and refused where wrong."""
    code, answer = await fetch("GET", "sessions", SESSION, "setup")
    assert code == 200
    assert (answer["paramsSource"], answer["bookmarks"]) == ("config", {})
    assert "slPct" in answer["params"]
    marks = ("sessions", SESSION, "bookmarks")
    assert await fetch("POST", *marks, body={"name": "here", "index": 7}) == (200, {"bookmarks": {"here": 7}})
    assert (await fetch("GET", "sessions", SESSION, "setup"))[1]["bookmarks"] == {"here": 7}
    assert (await fetch("POST", *marks, body={"name": "far", "index": 10**9}))[0] == 409
    assert (await fetch("POST", *marks, body={"name": " ", "index": 7}))[0] == 400
    assert await fetch("POST", *marks, body={"name": "here", "index": None}) == (200, {"bookmarks": {}})


async def test_one_session_is_its_manifest(fetch: Any, root: DataRoot) -> None:
    code, answer = await fetch("GET", "sessions", SESSION)
    assert code == 200
    assert answer == json.loads(root.manifest(SESSION).read_text())


async def test_an_unknown_session(fetch: Any) -> None:
    for verb in ("GET", "DELETE"):
        code, answer = await fetch(verb, "sessions", "nope")
        assert (code, list(answer)) == (404, ["error"])
    code, answer = await fetch("POST", "run", body={"sessionId": "nope"})
    assert code == 404
    assert answer["success"] is False
    assert "nope" in answer["message"]


@pytest.mark.parametrize(
    "trick", ["..%2F..%2Fetc", "%2e%2e", ".hidden", "a%00b", "a%5Cb", "a%2F..%2Fb", "%20", "x" * 300]
)
async def test_a_path_trick_in_an_id_is_refused(fetch: Any, trick: str) -> None:
    for verb in ("GET", "DELETE"):
        code, answer = await fetch(verb, "sessions", trick)
        assert code == 400
        assert "session id" in answer["error"]


async def test_build_returns_the_manifest(fetch: Any, root: DataRoot) -> None:
    """R8.3 with every field of the body."""
    body = range_of(includeTypes=["SCORING_UPDATE"], maxEvents=7, sessionId="mine", notes="a note")
    code, answer = await fetch("POST", "sessions", body=body)
    assert code == 200
    assert (answer["sessionId"], answer["totalEvents"], answer["notes"]) == ("mine", 7, "a note")
    assert answer["sourceDateRange"] == {"from": START, "to": END}
    assert root.session_events("mine").is_file()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": 5}, "from"),
        ({"to": START}, "to"),
        ({"symbols": "BTCUSDT"}, "symbols"),
        ({"symbols": []}, "symbols"),
        ({"symbols": ["../x"]}, "symbols"),
        ({"symbols": ["BTCUSDT", 3]}, "symbols[1]"),
        ({"includeTypes": []}, "includeTypes"),
        ({"maxEvents": -1}, "maxEvents"),
        ({"maxEvents": 1.5}, "maxEvents"),
        ({"sessionId": "../../evil"}, "sessionId"),
        ({"notes": 3}, "notes"),
        ({"maxevents": 3}, "maxevents"),
    ],
)
async def test_a_bad_body_names_the_field(fetch: Any, change: dict[str, Any], field: str) -> None:
    code, answer = await fetch("POST", "sessions", body=range_of(**change))
    assert code == 400
    assert answer["field"] == field
    assert field.split("[")[0] in answer["error"]


async def test_a_missing_field_is_named(fetch: Any) -> None:
    code, answer = await fetch("POST", "sessions", body={"from": START, "to": END})
    assert (code, answer["field"]) == (400, "symbols")
    code, answer = await fetch("POST", "run", body={})
    assert (code, answer["field"], answer["success"]) == (400, "sessionId", False)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
async def test_what_is_no_json_object_is_refused(fetch: Any, raw: bytes) -> None:
    for path in ("sessions", "run", "seek", "speed"):
        code, answer = await fetch("POST", path, raw=raw)
        assert code == 400, answer


async def test_an_unknown_symbol_is_told_with_those_that_are_there(fetch: Any) -> None:
    code, answer = await fetch("POST", "sessions", body=range_of(symbols=["XRPUSDT"]))
    assert code == 404
    assert "BTCUSDT, ETHUSDT" in answer["error"]


async def test_an_existing_id_is_a_conflict(fetch: Any) -> None:
    code, answer = await fetch("POST", "sessions", body=range_of(sessionId=SESSION))
    assert code == 409
    assert SESSION in answer["error"]


async def test_a_build_over_the_limit_is_refused_and_leaves_nothing(fetch: Any, root: DataRoot) -> None:
    """This server builds 1,000 events at most, the minute of both symbols holds 1,202."""
    code, answer = await fetch("POST", "sessions", body=range_of(maxEvents=1_001))
    assert (code, "1,000" in answer["error"]) == (413, True)
    code, answer = await fetch("POST", "sessions", body=range_of(symbols=["BTCUSDT", "ETHUSDT"]))
    assert (code, "1,000" in answer["error"]) == (413, True)
    assert [path.name for path in root.sessions_dir.iterdir()] == [SESSION]


async def test_a_huge_body_is_refused(fetch: Any) -> None:
    code, _ = await fetch("POST", "sessions", body=range_of(notes="x" * (2 << 20)))
    assert code == 413


async def test_a_message_is_short_however_long_the_value_is(fetch: Any) -> None:
    code, answer = await fetch("POST", "step", body={"n": "x" * 70_000})
    assert (code, answer["field"], len(answer["error"])) == (400, "n", 2_000)


async def test_delete(fetch: Any, root: DataRoot) -> None:
    code, answer = await fetch("DELETE", "sessions", SESSION)
    assert (code, answer["success"]) == (200, True)
    assert not root.session_dir(SESSION).exists()


async def test_nothing_to_stop_or_steer(fetch: Any) -> None:
    code, answer = await fetch("POST", "stop")
    assert (code, answer) == (409, {"success": False, "message": "no replay is running"})
    bodies = {"pause": None, "resume": {}, "step": {"n": 2}, "seek": {"to": 3}, "speed": {"speedFactor": 2}}
    for path, body in bodies.items():
        code, answer = await fetch("POST", path, body=body)
        assert code == 409
        assert answer["error"].startswith("no replay is running")


async def test_idle_status_has_the_documented_fields(fetch: Any) -> None:
    """R7.2's fields, with their types, before anything was played."""
    code, answer = await fetch("GET", "status")
    assert code == 200
    wanted = {
        "sessionId": None,
        "running": False,
        "currentEventIndex": 0,
        "totalEvents": 0,
        "startedAt": None,
        "lastEventTimestamp": None,
    }
    assert wanted.items() <= answer.items()


async def test_an_unknown_path_answers_in_json(fetch: Any) -> None:
    code, answer = await fetch("GET", "nowhere")
    assert (code, list(answer)) == (404, ["error"])


async def test_a_wrong_verb_names_the_right_ones(jp_fetch: Any) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("api", "replay", "sessions", method="PUT", body="{}")
    assert refused.value.code == 405
    assert refused.value.response is not None
    assert refused.value.response.headers["Allow"] == "GET, POST"


@pytest.mark.parametrize(("verb", "path"), ROUTES)
async def test_nothing_without_authentication(
    verb: str, path: str, jp_serverapp: Any, http_server_client: Any, jp_base_url: str
) -> None:
    """Every verb of every route refuses a client without a token."""
    body = "{}" if verb == "post" else None
    url = jp_base_url.rstrip("/") + path
    with pytest.raises(HTTPClientError) as refused:
        await http_server_client.fetch(url, method=verb.upper(), body=body)
    assert refused.value.code == 403


def test_every_verb_is_authenticated_and_then_authorized() -> None:
    """`authenticated` is the outer decorator: rights are checked only for an authenticated user."""
    source = Path(handlers.__file__).read_text()
    verbs = (
        source.count("    async def get(")
        + source.count("    async def post(")
        + source.count("    async def delete(")
    )
    assert (
        source.count("    @web.authenticated\n    @authorized\n    async def ")
        == verbs
        == len(ROUTES) + len(handlers.PAGES)
    )


async def test_rights_are_asked_for(jp_serverapp: Any, jp_base_url: str, jp_fetch: Any, fetch: Any) -> None:
    """A user without rights gets no page; one who may read and not execute lists sessions and cannot build or run."""

    class ReadOnly:
        def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
            return resource == "replaylab" and action == "read"

    class Nothing:
        def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
            return False

    jp_serverapp.web_app.add_handlers(".*$", [(url_path_join(jp_base_url, "page"), handlers.Dashboard)])
    assert (await jp_fetch("page")).code == 200
    jp_serverapp.web_app.settings["authorizer"] = Nothing()
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("page")
    assert refused.value.code == 403

    jp_serverapp.web_app.settings["authorizer"] = ReadOnly()
    assert (await fetch("GET", "sessions"))[0] == 200
    assert (await fetch("POST", "sessions", body=range_of()))[0] == 403
    assert (await fetch("DELETE", "sessions", SESSION))[0] == 403


def test_the_contract_names_every_route() -> None:
    documented = {re.sub(r"{\w+}", "ID", path) for path in CONTRACT["paths"]} | {"/api/replay/stream"}
    made = {re.sub(r"\(.+?\)", "ID", path) for path, _ in handlers.ROUTES[:-1]}
    assert documented == made


async def test_warnings_of_a_build_are_in_the_answer(fetch: Any) -> None:
    """A type that yields no event: the session is built, and the answer says what is missing."""
    code, answer = await fetch(
        "POST", "sessions", body=range_of(includeTypes=["SCORING_UPDATE", "MARKET_BOOK"])
    )
    assert code == 200
    assert any("MARKET_BOOK" in message for message in answer["warnings"])
    code, answer = await fetch("POST", "sessions", body=range_of(includeTypes=["SCORING_UPDATE"]))
    assert (code, answer["warnings"]) == (200, [])


async def test_runs_of_a_session(fetch: Any, root: DataRoot) -> None:
    """Totals and parameters of every run; one run with its trades as they were logged."""
    assert await fetch("GET", "sessions", SESSION, "runs") == (200, {"sessionId": SESSION, "runs": []})
    params = {"entry_threshold": 0.5, "sl_pct": 0.1, "max_hold_s": 5.0}
    engine = ReplayEngine(SessionStore(root), params=params)
    engine.start_session(SESSION, speed_factor=float("inf"))
    assert engine.wait(20)
    run = engine.last_run
    assert run is not None
    code, answer = await fetch("GET", "sessions", SESSION, "runs")
    assert code == 200
    (listed,) = answer["runs"]
    assert (listed["runId"], listed["outcome"]) == (run.id, "finished")
    assert listed["changes"]["slPct"][1] == 0.1
    assert listed["totals"]["trades"] == run.trades.height > 0
    assert listed["totals"]["realizedPnl"] == pytest.approx(run.trades["realized_pnl"].sum())
    code, one = await fetch("GET", "sessions", SESSION, "runs", run.id)
    assert (code, one["params"]["slPct"], one["digest"]) == (200, 0.1, run.digest)
    assert [trade["realizedPnl"] for trade in one["trades"]] == run.trades["realized_pnl"].to_list()
    for missing in (("nope", "runs"), (SESSION, "runs", "nope")):
        code, answer = await fetch("GET", "sessions", *missing)
        assert code == 404
        assert "nope" in answer["error"]
    assert (await fetch("GET", "sessions", SESSION, "runs", "%2E%2E"))[0] in (400, 404)
    assert (await fetch("GET", "status"))[1]["runMode"] == "LIVE"


def test_the_contract_names_every_parameter() -> None:
    params = CONTRACT["components"]["schemas"]["RunRequest"]["properties"]["params"]
    assert params["propertyNames"]["enum"] == list(TradingParams.__struct_encode_fields__)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("sessions", range_of(**{"from": "1677-10-01T00:00:00Z"}), "from"),
        ("sessions", range_of(to="2250-01-01T00:00:00Z"), "to"),
        ("run", {"sessionId": SESSION, "params": {"slPc": 1}}, "slPc"),
        ("run", {"sessionId": SESSION, "params": {"sl_pct": 1}}, "slPct"),
        ("run", {"sessionId": SESSION, "params": {"slPct": -1}}, "slPct"),
    ],
)
async def test_years_and_parameters_are_those_of_the_contract(
    fetch: Any, path: str, body: dict[str, Any], field: str
) -> None:
    code, answer = await fetch("POST", path, body=body)
    assert (code, answer["field"]) == (400, field)


async def test_a_damaged_session_is_deleted(fetch: Any, root: DataRoot) -> None:
    root.manifest(SESSION).write_text("{")
    assert (await fetch("DELETE", "sessions", SESSION))[0] == 200
    assert not root.session_dir(SESSION).exists()


async def test_too_many_waiting_builds_are_503(fetch: Any, jp_serverapp: Any) -> None:
    service = jp_serverapp.web_app.settings["replaylab"]
    service._waiting_builds = service._max_waiting_builds
    code, answer = await fetch("POST", "sessions", body=range_of(sessionId="late"))
    assert (code, "too many builds" in answer["error"]) == (503, True)
    service._waiting_builds = 0
    assert (await fetch("POST", "sessions", body=range_of(sessionId="late")))[0] == 200


async def test_more_streams_than_the_server_serves_are_503(fetch: Any, jp_serverapp: Any) -> None:
    """No other request waits for them, and a stream that ends makes room for another."""
    service = jp_serverapp.web_app.settings["replaylab"]
    streams = [service.stream(0.1) for _ in range(service_module._MOST_STREAMS)]
    for stream in streams:
        assert (await anext(stream))[0] == "status"
    code, answer = await fetch("GET", "stream")
    assert (code, "64 streams are open" in answer["error"]) == (503, True)
    assert (await fetch("GET", "status"))[0] == 200
    for stream in streams:
        await stream.aclose()
    again = service.stream(0.1)
    assert (await anext(again))[0] == "status"
    await again.aclose()


async def test_a_client_that_reads_nothing_is_disconnected(
    fetch: Any,
    jp_serverapp: Any,
    jp_auth_header: dict[str, str],
    root: DataRoot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (await fetch("GET", "status"))[0] == 200
    monkeypatch.setattr(handlers, "_PATIENCE_S", 0.3)
    service = jp_serverapp.web_app.settings["replaylab"]
    run = root.run(SESSION, "some-run")
    run.events_dir.mkdir(parents=True)
    root.replay_status.write_text(json.dumps({"sessionId": SESSION, "runId": "some-run", "running": False}))
    (run.events_dir / "X.jsonl").write_bytes(
        b"".join(b'{"a":"%b"}\n' % (b"x" * 1_000_000) for _ in range(30))
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", jp_serverapp.port, limit=1024)
    path = url_path_join(jp_serverapp.base_url, "api/replay/stream")
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {jp_auth_header['Authorization']}\r\n\r\n".encode()
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert service._streams == 1
    while service._streams:
        await asyncio.sleep(0.05)
    with suppress(ConnectionResetError):
        while await reader.read(1 << 20):
            pass
    writer.close()


async def test_the_stream_beats_and_survives_what_it_cannot_read(
    jp_serverapp: Any, root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing happens a comment comes; lines that are no records, and files that cannot be read, end nothing."""
    stream = jp_serverapp.web_app.settings["replaylab"].stream(0.4)
    assert (await anext(stream))[0] == "status"
    assert await anext(stream) == ("heartbeat", None)
    run = root.run(SESSION, "some-run")
    run.events_dir.mkdir(parents=True)
    status = {
        "sessionId": SESSION,
        "runId": "some-run",
        "running": False,
        "totalEvents": 5,
        "currentEventIndex": 5,
    }
    root.replay_status.write_text(json.dumps(status))
    lines = [b"[1]", b"{", b'{"a":1}', b"\xff", b'{"long":"' + b"x" * 2_000_000 + b'"}', b'{"b":2}']
    (run.events_dir / "X.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = []
    while {"b": 2} not in [value.get("record") for value in found]:
        name, value = await anext(stream)
        if name == "record":
            found.append(value)
    assert [list(value["record"]) for value in found] == [["a"], ["long"], ["b"]]
    with monkeypatch.context() as patched:
        patched.setattr(
            "replaylab.replay.follow.read_status", lambda _: (_ for _ in ()).throw(PermissionError())
        )
        assert await anext(stream) == ("heartbeat", None)
    root.replay_status.write_text("[]")
    assert (await anext(stream))[0] == "status"
    await stream.aclose()
