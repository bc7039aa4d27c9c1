"""The extension: its settings, and how it is wired to the server."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from jupyter_server.base.handlers import APIVersionHandler, PrometheusMetricsHandler
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Bool, Float, Int, Unicode, default

from replaylab.archive import RetentionScheduler
from replaylab.config import Config
from replaylab.server.handlers import MAX_BODY, PAGES, ROUTES
from replaylab.server.service import Service

_NOT_SERVED = (APIVersionHandler, PrometheusMetricsHandler)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ApiServer(ServerApp):
    """The server of ``replaylab serve``: dashboard, API and login; it does not start without authentication."""

    # No kernels, files, contents or terminals.
    default_services = ("auth", "security")  # type: ignore[assignment]
    insecure_no_auth = Bool(False, help="Serve without authentication, on a loopback address only.").tag(
        config=True
    )

    def init_configurables(self) -> None:
        super().init_configurables()
        # An explicit token wins over the configuration files of the user, also over an empty one there.
        token = os.environ.pop("REPLAYLAB_TOKEN", None)
        if token is not None:
            self.identity_provider.token = token
        if self.identity_provider.auth_enabled or (self.insecure_no_auth and self.ip in _LOOPBACK):
            return
        self.log.critical(
            "refused to start without authentication: give a token (replaylab serve --token), or remove the empty one "
            "from Jupyter's configuration; --insecure-no-auth allows it on 127.0.0.1 only"
        )
        self.exit(1)


class Replaylab(ExtensionApp):
    """Replay sessions over HTTP: ``jupyter replaylab``, ``replaylab serve``, or inside JupyterLab."""

    name = "replaylab"
    description = "Replay sessions over HTTP: the API under /api/replay, and a dashboard at /."
    extension_url = "/"
    open_browser = False
    # On its own it serves the dashboard and the API, and nothing else.
    load_other_extensions = False
    serverapp_class = ApiServer
    # In a container the user often is root. Ctrl-C ends the server without a question. A body is buffered before the
    # token is checked, so a large one is refused by its length. A port that is taken is an error.
    serverapp_config: dict[str, Any] = {  # noqa: RUF012  (as in the base)
        "open_browser": False,
        "allow_root": True,
        "answer_yes": True,
        "max_body_size": 2 * MAX_BODY,
        "port_retries": 0,
    }

    data_root = Unicode(help="Data root. Without it: REPLAYLAB_DATA in the environment, else ./data.").tag(
        config=True
    )
    config_path = Unicode(help="replaylab configuration, TOML or JSON; empty for the defaults.").tag(
        config=True
    )
    max_events = Int(
        5_000_000, help="A build that would hold more events than this is refused with 413."
    ).tag(config=True)
    max_waiting_builds = Int(8, help="Further builds are refused with 503 while so many wait.").tag(
        config=True
    )
    start_timeout = Float(60.0, help="Seconds that a replay may take to load its session.").tag(config=True)

    @default("data_root")
    def _default_data_root(self) -> str:
        return os.environ.get("REPLAYLAB_DATA") or "data"

    @classmethod
    def get_extension_package(cls) -> str:
        # The package above this one must import without Jupyter, so the extension lives here.
        return "replaylab.server"

    def initialize_settings(self) -> None:
        config = Config.load(self.config_path) if self.config_path else Config()
        self.service = Service(
            self.data_root,
            config=config,
            max_events=self.max_events,
            max_waiting_builds=self.max_waiting_builds,
            start_timeout=self.start_timeout,
        )
        self.settings["replaylab"] = self.service
        # This process runs for days, so it does the daily clean-up where the configuration has one.
        self.retention = RetentionScheduler(self.service.root, config.retention)
        self.retention.start()
        self.log.info("replaylab serves %s", self.service.root)

    def initialize_handlers(self) -> None:
        self.handlers.extend(ROUTES)
        assert self.serverapp is not None
        # The class is not compared: run as a module, this file is loaded twice, and so are its classes.
        if self.serverapp.starter_app is self:
            self.handlers.extend(PAGES)
            # Jupyter Server's version and metrics: nothing here needs them.
            router = self.serverapp.web_app.wildcard_router
            router.rules = [rule for rule in router.rules if rule.target not in _NOT_SERVED]

    async def stop_extension(self) -> None:
        """Stop what this server plays, builds and cleans up."""
        await asyncio.to_thread(self.retention.stop)
        await self.service.close()


def main() -> None:
    """Start a server for this API alone, and run it until it is interrupted."""
    Replaylab.launch_instance()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
