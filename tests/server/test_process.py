"""A real server process and a plain HTTP client: the specification's scenarios, and what must not block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from replaylab.paths import DataRoot
from replaylab.records import StateEvent, decode_record
from replaylab.replay import ReplayControl, ReplayEngine, read_status
from replaylab.sessions import SessionStore, build_replay_session
from tests.roots import END, START, SYMBOLS, fill, signal_root, small_file_system
from tests.server.conftest import SESSION, free_port, serving, session_root, wait_for


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    return session_root(tmp_path_factory.mktemp("served") / "data")


@pytest.fixture(scope="module")
def server(root: DataRoot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(root, tmp_path_factory.mktemp("log") / "server.log") as made:
        yield made


@pytest.fixture
def client(server: httpx.Client, root: DataRoot) -> Iterator[httpx.Client]:
    """The client of the shared server; each test leaves it idle, with the one session."""
    yield server
    server.post("/stop")
    for manifest in server.get("/sessions").json()["sessions"]:
        if manifest["sessionId"] != SESSION:
            server.delete(f"/sessions/{manifest['sessionId']}")


def status(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/status")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def run(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/run", json={"sessionId": SESSION, **body})


def logged(root: DataRoot, run_id: str) -> list[StateEvent]:
    folder = root.run(SESSION, run_id).events_dir
    return [
        decode_record(StateEvent, line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


def test_t5_run_scoring_only(client: httpx.Client, root: DataRoot) -> None:
    """T5: POST run; the state machine receives SCORING_UPDATE events, and they continue while it plays."""
    answer = run(client, speedFactor=20, injectMode="SCORING_ONLY")
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True
    assert "20×" in answer.json()["message"]
    first = status(client)
    assert (first["sessionId"], first["running"], first["totalEvents"]) == (SESSION, True, 1202)
    assert (first["speedFactor"], first["injectMode"]) == (20, "SCORING_ONLY")
    wait_for(lambda: status(client)["currentEventIndex"] > first["currentEventIndex"] + 100, "progress")
    wait_for(lambda: not status(client)["running"], "the end")
    last = status(client)
    assert last["currentEventIndex"] == 1202
    events = logged(root, last["runId"])
    assert sum(event.event_type == "SCORING_UPDATE" for event in events) == 1200
    assert {event.to_state for event in events} >= {"LONG", "SHORT"}, "the machine acted on what it received"


def test_t6_stop(client: httpx.Client, root: DataRoot) -> None:
    """T6: POST stop; running is false at once, and no more events are emitted."""
    run(client, speedFactor=2)
    wait_for(lambda: status(client)["currentEventIndex"] > 10, "progress")
    began = time.perf_counter()
    answer = client.post("/stop")
    assert time.perf_counter() - began < 2
    assert answer.status_code == 200
    assert answer.json()["success"] is True
    stopped = status(client)
    assert stopped["running"] is False
    count = len(logged(root, stopped["runId"]))
    time.sleep(0.5)
    assert status(client)["currentEventIndex"] == stopped["currentEventIndex"]
    assert len(logged(root, stopped["runId"])) == count
    assert client.post("/stop").json() == {"success": False, "message": "no replay is running"}


def test_t7_health(client: httpx.Client) -> None:
    """T7: logging and replay are OK; after a run of a session that does not exist, replay is ERROR."""
    services = client.get("/health").json()["services"]
    assert services["logging"]["status"] == "OK"
    assert services["replay"]["status"] == "OK"
    assert client.post("/run", json={"sessionId": "does-not-exist"}).status_code == 404
    replay = client.get("/health").json()["services"]["replay"]
    assert replay["status"] == "ERROR"
    assert "does-not-exist" in replay["message"]
    run(client, speedFactor="inf")
    wait_for(lambda: not status(client)["running"], "the end")
    assert client.get("/health").json()["services"]["replay"]["status"] in ("OK", "WARN")


def test_running_twice_is_a_conflict(client: httpx.Client) -> None:
    assert run(client, speedFactor=1).status_code == 200
    second = run(client, speedFactor=1)
    assert second.status_code == 409
    assert second.json()["success"] is False
    assert SESSION in second.json()["message"]
    assert client.delete(f"/sessions/{SESSION}").status_code == 409
    client.post("/stop")


def test_steering(client: httpx.Client) -> None:
    """Pause holds, seek moves while held, speed is in the status, resume continues."""
    run(client, speedFactor=1)
    assert client.post("/pause").json()["success"] is True
    held = status(client)
    assert held["paused"] is True
    time.sleep(0.4)
    assert status(client)["currentEventIndex"] == held["currentEventIndex"]
    assert client.post("/seek", json={"to": 600}).status_code == 200
    assert wait_for(lambda: status(client)["currentEventIndex"] >= 600, "the seek")
    assert client.post("/seek", json={"to": "2025-11-18T10:00:45Z"}).status_code == 200
    assert wait_for(lambda: status(client)["currentEventIndex"] >= 900, "the seek by time")
    assert client.post("/seek", json={"to": 100}).status_code == 200
    wait_for(lambda: 100 <= status(client)["currentEventIndex"] < 200, "the seek back")
    assert client.post("/speed", json={"speedFactor": 30}).status_code == 200
    client.post("/resume")
    wait_for(lambda: status(client)["speedFactor"] == 30, "the new speed")
    assert client.post("/speed", json={"speedFactor": "inf"}).status_code == 200
    wait_for(lambda: not status(client)["running"], "the end")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/speed", {"speedFactor": 0}, "speedFactor"),
        ("/speed", {"speedFactor": "fast"}, "speedFactor"),
        ("/speed", {}, "speedFactor"),
        ("/seek", {"to": -1}, "to"),
        ("/seek", {"to": None}, "to"),
        ("/run", {"sessionId": SESSION, "speedFactor": -1}, "speedFactor"),
        ("/run", {"sessionId": SESSION, "injectMode": "BOTH"}, "injectMode"),
        ("/run", {"sessionId": SESSION, "params": {"slPct": -1}}, "slPct"),
        ("/run", {"sessionId": SESSION, "params": {"slPc": 1}}, "slPc"),
    ],
)
def test_bad_orders_name_the_field(client: httpx.Client, path: str, body: dict[str, Any], field: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["field"] == field


def test_a_replay_of_another_process_is_seen_steered_and_stopped(
    client: httpx.Client, root: DataRoot
) -> None:
    """What a notebook kernel (here: this process) plays is in the status, and obeys the HTTP API."""
    engine = ReplayEngine(SessionStore(root))
    engine.start_session(SESSION, speed_factor=1)
    try:
        assert wait_for(lambda: status(client)["running"], "the status")
        assert client.post("/pause").status_code == 200
        at = status(client)["currentEventIndex"]
        assert client.post("/step", json={"n": 3}).status_code == 200
        assert status(client)["currentEventIndex"] == at + 3
        assert client.post("/seek", json={"to": 700}).status_code == 200
        assert status(client)["currentEventIndex"] == 700
        assert client.post("/stop").json()["success"] is True
        assert engine.wait(5)
        assert status(client)["running"] is False
    finally:
        engine.stop()


def test_a_replay_of_the_server_is_seen_and_stopped_elsewhere(client: httpx.Client, root: DataRoot) -> None:
    run(client, speedFactor=1)
    assert read_status(root).running
    assert ReplayControl(root).stop()
    assert status(client)["running"] is False
    assert run(client, speedFactor=1).status_code == 200
    client.post("/stop")


def test_a_killed_replay_does_not_run_forever(client: httpx.Client, root: DataRoot) -> None:
    run(client, speedFactor=1)
    os.kill(json.loads(root.replay_status.read_bytes())["pid"], signal.SIGKILL)
    wait_for(lambda: not status(client)["running"], "the death to be noticed")
    assert status(client)["error"]
    assert run(client, speedFactor=1).status_code == 200
    client.post("/stop")


def test_the_end_of_the_server_ends_its_replay(root: DataRoot, tmp_path: Path) -> None:
    with serving(root, tmp_path / "server.log") as client:
        run(client, speedFactor=1)
        assert read_status(root).running
    wait_for(lambda: not read_status(root).running, "the replay to end with its server")


def messages(client: httpx.Client, enough: threading.Event, found: list[tuple[str, Any]]) -> None:
    with client.stream("GET", "/stream") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, json.loads(line[6:])))
            if enough.is_set():
                return


def test_the_stream_tells_status_emitted_events_and_records(client: httpx.Client) -> None:
    """At a speed that a person can follow nothing is left out: every event of the session comes by, in order."""
    found: list[tuple[str, Any]] = []
    enough = threading.Event()
    listener = threading.Thread(target=messages, args=(client, enough, found))
    listener.start()
    run(client, speedFactor=40)
    # The server is shared: a stream begins with what the replay before this one left.
    mine = status(client)["runId"]
    try:
        wait_for(
            lambda: any(
                name == "status" and value["runId"] == mine and value["currentEventIndex"] == 1202
                for name, value in found
            ),
            "the end",
        )
        time.sleep(0.5)
        enough.set()
        run(client, speedFactor=40)
    finally:
        enough.set()
        listener.join(20)
        client.post("/stop")
    emitted: list[dict[str, Any]] = []
    playing = None
    for name, value in found:
        if name == "status":
            playing = value["runId"]
        elif name == "replay" and playing == mine:
            emitted += value["events"]
    assert len(emitted) == 1202
    assert emitted[0]["type"] == "REGIME_UPDATE"
    stamps = [event["timestamp"] for event in emitted]
    assert stamps == sorted(stamps)
    scores = [
        v["record"]["extra"]["score"]
        for n, v in found
        if n == "record" and v["record"].get("eventType") == "SCORING_UPDATE"
    ]
    assert len(scores) >= 1200


def polled_during_a_build(root: DataRoot, log: Path) -> tuple[dict[str, Any], float]:
    """Build all there is while polling status; returns the manifest and the p99 of the waits (seconds)."""
    with serving(root, log) as client:
        answers: list[httpx.Response] = []
        body = {"from": START, "to": "2025-11-19T00:00:00Z", "symbols": list(SYMBOLS), "sessionId": "large"}
        builder = threading.Thread(
            target=lambda: answers.append(client.post("/sessions", json=body, timeout=300))
        )
        builder.start()
        waits = []
        while builder.is_alive():
            began = time.perf_counter()
            status(client)
            waits.append(time.perf_counter() - began)
            time.sleep(0.005)
        assert answers[0].status_code == 200, answers[0].text
        return answers[0].json(), statistics.quantiles(waits, n=100)[98]


def test_status_is_answered_while_a_large_session_is_built(tmp_path: Path) -> None:
    """A client that keeps polling is answered while the worker builds; a blocked loop would wait for all of it."""
    manifest, p99 = polled_during_a_build(
        signal_root(tmp_path / "data", per_second=200), tmp_path / "server.log"
    )
    assert manifest["totalEvents"] == 24_002
    assert p99 < 0.5


@pytest.mark.stress
def test_status_is_answered_within_100_ms_during_a_build_of_a_million_events(tmp_path: Path) -> None:
    root = signal_root(tmp_path / "data", per_second=1_000, seconds=500)
    manifest, p99 = polled_during_a_build(root, tmp_path / "server.log")
    assert manifest["totalEvents"] == 1_000_002
    assert p99 < 0.1


def test_serve_on_the_command_line(root: DataRoot, tmp_path: Path) -> None:
    """`replaylab serve --data DIR --port N --token T`, ended by Ctrl-C."""
    port = free_port()
    command = [sys.executable, "-c", "from replaylab.cli import main; main()", "serve"]
    command += ["--data", str(root), "--port", str(port), "--token", "word"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/replay") as plain:
                auth = {"Authorization": "token word"}

                def up() -> bool:
                    try:
                        return plain.get("/sessions", headers=auth).status_code == 200
                    except httpx.TransportError:
                        return False

                wait_for(up, "the server")
                assert httpx.get(f"{plain.base_url}sessions").status_code == 403
                wrong = {"Authorization": "token wrong"}
                assert httpx.get(f"{plain.base_url}sessions", headers=wrong).status_code == 403
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def serve(
    root: DataRoot, log: Path, *options: str, config: str = "", port: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`replaylab serve` with a user's Jupyter configuration; yields the process and its address."""
    settings = log.parent / "jupyter"
    settings.mkdir(exist_ok=True)
    (settings / "jupyter_server_config.py").write_text(config)
    chosen = port or free_port()
    command = [sys.executable, "-c", "from replaylab.cli import main; main()", "serve", "--data", str(root)]
    command += ["--port", str(chosen), *options]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(settings)}
    environment.pop("JUPYTER_TOKEN", None)
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            yield process, f"http://127.0.0.1:{chosen}"
        finally:
            process.kill()
            process.wait(20)


def up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/replay/status").status_code in (200, 403)
    except httpx.TransportError:
        return False


EMPTY_TOKEN = "c.IdentityProvider.token = ''\nc.ServerApp.token = ''\n"


def test_a_served_api_is_alone_guarded_and_bounded(root: DataRoot, tmp_path: Path) -> None:
    """An explicit token wins over an empty one in the user's configuration; no kernels, files or terminals; a large
    body is refused unread; and a second server on the port is an error."""
    with serve(root, tmp_path / "log", "--token", "word", config=EMPTY_TOKEN) as (_, url):
        wait_for(lambda: up(url), "the server")
        auth = {"Authorization": "token word"}
        page = httpx.get(url, headers=auth)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert httpx.get(f"{url}/api/replay/status").status_code == 403
        assert httpx.get(f"{url}/api/replay/status", headers=auth).status_code == 200
        for path in (
            "contents",
            "kernels",
            "kernelspecs",
            "sessions",
            "terminals",
            "config/x",
            "events/subscribe",
        ):
            assert httpx.get(f"{url}/api/{path}", headers=auth).status_code == 404, path
        for path in ("files/x", "nbconvert/html/x", "view/x", "api", "metrics"):
            assert httpx.get(f"{url}/{path}", headers=auth).status_code == 404, path
        assert httpx.post(f"{url}/api/kernels", headers=auth, json={}).status_code == 404
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
            raw.sendall(
                b"POST /api/replay/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500000000\r\n\r\n"
            )
            raw.settimeout(10)
            # Closed at once, before the body and without reading it.
            assert raw.recv(100).startswith(b"HTTP/1.1 400") or raw.recv(1) == b""
        taken = tmp_path / "second"
        taken.mkdir()
        port = int(url.rpartition(":")[2])
        with serve(root, taken / "log", "--token", "word", port=port) as (second, _):
            assert second.wait(60) == 1
        assert f"port {port} is not available" in (taken / "log").read_text()


@pytest.mark.parametrize(
    "options",
    [(), ("--token", ""), ("--insecure-no-auth", "--ip", "0.0.0.0")],
    ids=["config", "option", "remote"],
)
def test_a_server_without_authentication_does_not_start(
    root: DataRoot, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with serve(root, tmp_path / "log", *options, config=EMPTY_TOKEN) as (process, _):
        assert process.wait(60) == 1
    assert "refused to start without authentication" in (tmp_path / "log").read_text()


def test_without_authentication_on_request_and_on_loopback_only(root: DataRoot, tmp_path: Path) -> None:
    with serve(root, tmp_path / "log", "--insecure-no-auth") as (_, url):
        wait_for(lambda: up(url), "the server")
        assert httpx.get(f"{url}/api/replay/status").status_code == 200


def test_a_killed_server_leaves_no_build_worker(root: DataRoot, tmp_path: Path) -> None:
    with serve(root, tmp_path / "log", "--token", "word") as (process, url):
        wait_for(lambda: up(url), "the server")
        body = {"from": START, "to": END, "symbols": ["BTCUSDT"], "sessionId": "by-worker"}
        answer = httpx.post(
            f"{url}/api/replay/sessions", headers={"Authorization": "token word"}, json=body, timeout=60
        )
        assert answer.status_code == 200, answer.text
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.kill()
        process.wait()
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert len(gone) == len(children)
    SessionStore(root).delete_session("by-worker")


def test_a_stopped_replay_is_still_a_replay(client: httpx.Client, root: DataRoot) -> None:
    """A status request does not end a replay whose process is stopped (SIGSTOP) for a while."""
    run(client, speedFactor=1)
    pid = json.loads(root.replay_status.read_bytes())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(6):
            assert status(client)["running"] is True
            time.sleep(1)
    finally:
        os.kill(pid, signal.SIGCONT)
    at = status(client)["currentEventIndex"]
    wait_for(lambda: status(client)["currentEventIndex"] > at, "the replay to continue")
    assert client.delete(f"/sessions/{SESSION}").status_code == 409
    client.post("/stop")


def test_two_builds_and_a_replay_at_once(client: httpx.Client, root: DataRoot) -> None:
    """Builds wait for each other and not for the replay."""
    run(client, speedFactor=0.5)
    results: list[int] = []

    def build(name: str) -> None:
        body = {"from": START, "to": END, "symbols": ["BTCUSDT"], "sessionId": name}
        results.append(client.post("/sessions", json=body).status_code)

    threads = [threading.Thread(target=build, args=(f"s{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200, 200, 200]
    assert status(client)["running"] is True
    client.post("/stop")
    assert len(client.get("/sessions").json()["sessions"]) == 4


def test_a_session_that_was_built_by_hand_is_played(client: httpx.Client, root: DataRoot) -> None:
    build_replay_session(root, START, END, ["ETHUSDT"], session_id="only-eth")
    assert client.post("/run", json={"sessionId": "only-eth", "speedFactor": "inf"}).status_code == 200
    wait_for(lambda: not status(client)["running"], "the end")
    assert status(client)["totalEvents"] == 601


def test_a_disk_that_is_really_full_or_read_only_is_507_or_403_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds, replays and deletions; readers are answered all the same, and nothing half made remains."""
    log = tmp_path / "server.log"
    body = {"from": START, "to": END, "symbols": list(SYMBOLS), "sessionId": "another"}
    with small_file_system(tmp_path / "disk", "3m") as disk:
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk / "cache"))
        made = session_root(disk / "data")
        with serving(made, log) as client:
            ballast = fill(disk)
            refused = client.post("/sessions", json=body)
            assert (refused.status_code, "the disk is full" in refused.json()["error"]) == (507, True)
            refused = run(client)
            assert (refused.status_code, refused.json()["success"]) == (507, False)
            assert "No space left" in refused.json()["message"]
            assert "the disk is full" in client.get("/health").json()["services"]["logging"]["message"]
            assert [one["sessionId"] for one in client.get("/sessions").json()["sessions"]] == [SESSION]
            assert [path.name for path in made.sessions_dir.iterdir()] == [SESSION]
            ballast.unlink()
            assert client.post("/sessions", json=body).status_code == 200
            assert run(client, speedFactor=20).status_code == 200
            fill(disk)
            wait_for(lambda: not status(client)["running"], "the end of a replay that cannot log")
            assert status(client)["error"]
            ballast.unlink()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            for refused in (client.post("/sessions", json=body | {"sessionId": "third"}), run(client)):
                assert (refused.status_code, "Read-only" in refused.text) == (403, True)
            refused = client.delete(f"/sessions/{SESSION}")
            assert (refused.status_code, "may not write" in refused.json()["error"]) == (403, True)
            assert client.get(f"/sessions/{SESSION}").status_code == 200
            assert "cannot be written" in client.get("/health").json()["services"]["logging"]["message"]
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            assert client.delete(f"/sessions/{SESSION}").status_code == 200
    assert "Traceback" not in log.read_text()


def test_a_data_root_without_rights_is_403(tmp_path: Path) -> None:
    """The server may read, and not write."""
    made = session_root(tmp_path / "data")
    port = free_port()
    command = [sys.executable, "-c", "from replaylab.cli import main; main()", "serve"]
    command += ["--data", str(made), "--port", str(port), "--token", "word"]
    if not os.getuid():
        if not (drop := shutil.which("setpriv")):
            pytest.skip("root may write everywhere, and there is no setpriv that takes this right away")
        command = [drop, "--bounding-set=-dac_override,-dac_read_search", *command]
    for path in (made.path, *made.path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        auth = {"Authorization": "token word"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/replay", headers=auth, timeout=30) as client:
            wait_for(lambda: process.poll() is not None or answered(client), "the server")
            body = {"from": START, "to": END, "symbols": list(SYMBOLS)}
            for refused in (
                client.post("/sessions", json=body),
                run(client),
                client.delete(f"/sessions/{SESSION}"),
            ):
                assert (refused.status_code, "Permission denied" in refused.text) == (403, True)
            assert client.get("/sessions").json()["sessions"][0]["sessionId"] == SESSION
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        for path in (made.path, *made.path.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert "Traceback" not in (tmp_path / "log").read_text()


def answered(client: httpx.Client) -> bool:
    try:
        return client.get("/sessions").status_code == 200
    except httpx.TransportError:
        return False
