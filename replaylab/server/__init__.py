"""The HTTP API of replay sessions, as a Jupyter Server extension that installation enables.

    $ replaylab serve --data data --port 8899 --token secret
    $ curl -H 'Authorization: token secret' http://127.0.0.1:8899/api/replay/sessions

The contract is ``rest-api.yml`` in this folder; ``docs/http.md`` explains it.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from replaylab.server.app import Replaylab

    return [{"module": "replaylab.server.app", "app": Replaylab}]
