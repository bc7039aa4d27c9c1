"""The other end of RemoteReplay: plays one session, told by lines on standard input, answering on standard output.

Started as ``python -m replaylab.replay.worker``. The first line holds the orders of RemoteReplay.start; each later
line is ``{"call": name, "args": [...]}``. Every line is answered by one line: ``{"value": ...}``, or ``{"error":
{"kind", "message"}}``. It ends when the replay ends, and stops the replay when standard input closes: a replay never
outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from functools import partial
from typing import Any

import orjson

from replaylab.errors import ReplayError, ReplaylabError
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot

__all__: list[str] = []

_CALLS = ("pause", "resume", "step", "seek", "set_speed", "stop", "get_status")
_POLL_S = 0.05


class _Lines:
    """Lines of a file descriptor, with a time limit for each."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""

    def next(self, timeout: float | None) -> bytes | None:
        """The next line; None when none came in time; EOFError when there will be no more."""
        while b"\n" not in self._held:
            ready, _, _ = select.select([self._fd], [], [], timeout)
            if not ready:
                return None
            chunk = os.read(self._fd, 65_536)
            if not chunk:
                raise EOFError
            self._held += chunk
        line, _, self._held = self._held.partition(b"\n")
        return line


def _engine(orders: dict[str, Any]) -> Any:
    from replaylab.replay.engine import ReplayEngine
    from replaylab.sessions import SessionStore

    engine = ReplayEngine(
        SessionStore(DataRoot(orders["root"])),
        params=TradingParams.from_dict(orders["params"]),
        scoring=ScoringParams.from_dict(orders["scoring"]),
        run_mode=orders["runMode"],
    )
    engine.start_session(
        orders["sessionId"],
        speed_factor=None if orders["speedFactor"] is None else float(orders["speedFactor"]),
        loop=orders["loop"],
        inject_mode=orders["injectMode"],
    )
    return engine


def _serve(lines: _Lines, out: int) -> None:
    def answer(value: Any) -> None:
        os.write(out, orjson.dumps(value) + b"\n")

    def attempt(action: Any) -> Any:
        try:
            value = action()
        except (ReplaylabError, OSError, ValueError, TypeError) as error:
            answer({"error": {"kind": type(error).__name__, "message": str(error)}})
            return None
        answer({"value": value.to_dict() if hasattr(value, "to_dict") else None})
        return value

    first = lines.next(None)
    if first is None:
        return
    found: list[Any] = []
    attempt(lambda: found.append(_engine(orjson.loads(first))))
    if not found:
        return
    engine = found[0]
    try:
        while engine.get_status().running:
            line = lines.next(_POLL_S)
            if line is None:
                continue
            order = orjson.loads(line)
            if order["call"] in _CALLS:
                # A speed comes as text, since JSON has no infinity.
                args = (
                    [float(arg) for arg in order["args"]] if order["call"] == "set_speed" else order["args"]
                )
                attempt(partial(getattr(engine, order["call"]), *args))
    except EOFError:
        engine.stop()
    # A handler's failure is in the published status, for every screen.
    with contextlib.suppress(ReplayError):
        engine.wait()


def main() -> None:
    """Play until the replay ends or standard input closes."""
    # Whatever else writes to standard output must not get between the answers.
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        _serve(_Lines(sys.stdin.fileno()), out)
    except (EOFError, KeyboardInterrupt):
        sys.exit(0)


if __name__ == "__main__":
    main()
