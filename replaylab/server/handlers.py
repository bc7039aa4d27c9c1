"""The routes of the HTTP API: each reads a request, asks the service and answers. The table is at the end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from contextlib import aclosing
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import orjson
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web
from tornado.iostream import StreamClosedError

from replaylab.errors import ReplaylabError
from replaylab.params import TradingParams
from replaylab.records import Record
from replaylab.server.service import (
    BookmarkRequest,
    BuildRequest,
    EmptyRequest,
    Request,
    RunRequest,
    SeekRequest,
    Service,
    SpeedRequest,
    StepRequest,
    read_body,
    status_of,
)

R = TypeVar("R", bound=Request)
# No request of this API is large; a tape is not uploaded here.
MAX_BODY = 1 << 20
MAX_MESSAGE = 2_000  # characters; a message may name a value of the body
_HEARTBEAT_S = 10.0
# A client of the stream that reads nothing for so long is disconnected.
_PATIENCE_S = 60.0
_PARAMS = dict(zip(TradingParams.__struct_fields__, TradingParams.__struct_encode_fields__, strict=True))
_VERBS = ("get", "post", "delete")
# What an error of the system means, before the data root and the system's own words.
_OF_THE_DISK = {
    403: "this server may not write, and nothing is changed in",
    507: "the disk is full: free some room and ask again. Nothing is stored in",
}


class ReplayHandler(APIHandler):
    """Base of all routes: the service, JSON answers, and the form of errors."""

    auth_resource = "replaylab"
    # `run` and `stop` answer {success, message} also when they fail; the others {error}.
    answers_success = False

    @property
    def service(self) -> Service:
        service: Service = self.settings["replaylab"]
        return service

    def body(self, cls: type[R]) -> R:
        raw: bytes = self.request.body
        if len(raw) > MAX_BODY:
            raise web.HTTPError(413, f"the body is larger than {MAX_BODY:,} bytes")
        if cls is EmptyRequest and not raw.strip():
            return cls()
        return read_body(cls, raw)

    def answer(self, value: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        self.finish(orjson.dumps(value, default=_plain))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        field = None
        if isinstance(error, ReplaylabError | OSError):
            status_code, message = status_of(error), str(error)
            if isinstance(error, OSError):
                message = f"{_OF_THE_DISK.get(status_code, 'the data root')} {self.service.root}: {message}"
            field = getattr(error, "field", None)
            # A parameter is named as the body names it.
            field = _PARAMS.get(str(field), field)
        elif isinstance(error, web.HTTPError):
            text = error.log_message
            message = text % error.args if text else HTTPStatus(status_code).phrase
        else:
            message = HTTPStatus(status_code).phrase
        self.set_status(status_code)
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header(
                "Allow", ", ".join(verb.upper() for verb in _VERBS if verb in type(self).__dict__)
            )
        form: dict[str, Any] = (
            {"success": False, "message": message[:MAX_MESSAGE]}
            if self.answers_success
            else {"error": message[:MAX_MESSAGE]}
        )
        self.finish(json.dumps(form | ({"field": field} if field else {})))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        # A refused request is no fault of the server: a traceback in the log would hide real ones.
        if isinstance(value, ReplaylabError) or (isinstance(value, OSError) and status_of(value) != 500):
            self.log.info("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


class Sessions(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer(await self.service.sessions())

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.answer(await self.service.build(self.body(BuildRequest)))


class OneSession(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.answer(await self.service.session(session_id))

    @web.authenticated
    @authorized
    async def delete(self, session_id: str) -> None:
        self.answer(await self.service.delete(session_id))


class Setup(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.answer(await self.service.setup(session_id))


class Bookmarks(ReplayHandler):
    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        self.answer(await self.service.set_bookmark(session_id, self.body(BookmarkRequest)))


class Runs(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.answer(await self.service.runs(session_id))


class OneRun(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str, run_id: str) -> None:
        self.answer(await self.service.one_run(session_id, run_id))


class Run(ReplayHandler):
    answers_success = True

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.answer(await self.service.run(self.body(RunRequest)))


class Stop(ReplayHandler):
    answers_success = True

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.body(EmptyRequest)
        self.answer(await self.service.stop())


class Status(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer(await self.service.status())


class Pause(ReplayHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.body(EmptyRequest)
        self.answer(await self.service.pause())


class Resume(ReplayHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.body(EmptyRequest)
        self.answer(await self.service.resume())


class Step(ReplayHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        asked = self.body(StepRequest)
        self.answer(await self.service.step(asked.n, asked.unit))


class Seek(ReplayHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.answer(await self.service.seek(self.body(SeekRequest).to))


class Speed(ReplayHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.answer(await self.service.set_speed(float(self.body(SpeedRequest).speed_factor)))


class Health(ReplayHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.answer(await self.service.health())


class Stream(ReplayHandler):
    """Server-sent events: ``status`` at each change, ``replay`` for emitted events, ``record`` for what a run logs."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")
        try:
            async with aclosing(self.service.stream(_HEARTBEAT_S)) as messages:
                async for name, value in messages:
                    if name == "heartbeat":
                        self.write(": still here\n\n")
                    else:
                        data = orjson.dumps(value, default=_plain)
                        self.write(b"event: %b\ndata: %b\n\n" % (name.encode(), data))
                    await asyncio.wait_for(self.flush(), _PATIENCE_S)
        except TimeoutError:
            self.log.warning("a client of the stream read nothing for %g s: disconnected", _PATIENCE_S)
            self.detach().close()
        except (StreamClosedError, asyncio.CancelledError):
            # The client closed the connection.
            return

    def finish(self, *args: Any, **kwargs: Any) -> Any:
        kind = "text/event-stream" if self.get_status() == HTTPStatus.OK else "application/json"
        return super().finish(*args, set_content_type=kind, **kwargs)


class Nowhere(ReplayHandler):
    """Other paths below /api/replay: a JSON error instead of Jupyter's page."""

    async def prepare(self) -> None:  # type: ignore[override]
        await super().prepare()
        raise web.HTTPError(404, "there is no such path in this API")


class Dashboard(JupyterHandler):
    """The page that shows and steers replays in a browser; without a login it redirects to the login page."""

    auth_resource = "replaylab"

    @web.authenticated
    @authorized
    async def get(self) -> None:
        # Reading it sets the cookie that the page sends back with each POST.
        _ = self.xsrf_token
        page, policy = _dashboard()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", policy)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        # Only this origin is sent a referrer, so that a token in the address goes to no other site.
        self.set_header("Referrer-Policy", "same-origin")
        self.finish(page)


class ChartPage(ReplayHandler):
    """The chart of a session, for a frame of the dashboard: scripts may run in it, and reach nothing of this server."""

    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        page = await self.service.chart(session_id, self.get_query_argument("symbol", None))
        self.set_header("Cache-Control", "no-store")
        # In a sandbox without an origin of its own: no cookies, no requests.
        self.set_header(
            "Content-Security-Policy",
            "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
            "style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'self'",
        )
        self.finish(page, set_content_type="text/html; charset=utf-8")


@cache
def _dashboard() -> tuple[bytes, str]:
    """The page, and a policy that allows its own script and style and no others."""
    page = Path(__file__).with_name("dashboard.html").read_bytes()

    def source(tag: bytes) -> str:
        code = page.split(b"<%b>" % tag, 1)[1].split(b"</%b>" % tag, 1)[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'"

    policy = f"default-src 'none'; script-src {source(b'script')}; style-src {source(b'style')}; "
    return (
        page,
        policy
        + "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    raise TypeError(f"{type(value).__name__} has no JSON form")


ROUTES = [
    (r"/api/replay/sessions", Sessions),
    (r"/api/replay/sessions/([^/]+)/setup", Setup),
    (r"/api/replay/sessions/([^/]+)/bookmarks", Bookmarks),
    (r"/api/replay/sessions/([^/]+)/runs", Runs),
    (r"/api/replay/sessions/([^/]+)/runs/([^/]+)", OneRun),
    (r"/api/replay/sessions/(.+)", OneSession),
    (r"/api/replay/run", Run),
    (r"/api/replay/stop", Stop),
    (r"/api/replay/status", Status),
    (r"/api/replay/pause", Pause),
    (r"/api/replay/resume", Resume),
    (r"/api/replay/step", Step),
    (r"/api/replay/seek", Seek),
    (r"/api/replay/speed", Speed),
    (r"/api/replay/health", Health),
    (r"/api/replay/stream", Stream),
    (r"/api/replay(?:/.*)?", Nowhere),
]
# For a server of its own; inside JupyterLab the root belongs to JupyterLab.
PAGES = [(r"/", Dashboard), (r"/chart/([^/]+)", ChartPage)]
