"""Run a replay in a child process, so that a server or a notebook kernel stays responsive.

>>> replay = ReplayProcess.start(root, "2025-11-18T10-11-BTCUSDT", speed_factor=20.0)              # doctest: +SKIP
>>> replay.control.pause(); replay.control.step(3); replay.stop()                                  # doctest: +SKIP

The child is steered through the data root like every replay (``replaylab.replay.control``). Its pipes serve two ends
only: it reads its options and answers once whether it has started, and it stops when its standard input closes, so
that a replay never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any, Self

import orjson

from replaylab.errors import ReplayError, ReplaylabError, SessionError, UnsafeNameError
from replaylab.params import ScoringParams, Settings, TradingParams
from replaylab.paths import DataRoot
from replaylab.replay.control import ReplayControl, error_of, plain_error, publish_failure
from replaylab.replay.engine import ReplayEngine
from replaylab.sessions import SessionStore


class ReplayProcess:
    """One replay in a child process. Made by ``start``; ends by itself, by ``stop``, or with this process.

    ``control`` steers it; so does any other ``ReplayControl`` of the data root. Methods may be called from several
    threads.
    """

    def __init__(
        self, root: DataRoot, session_id: str, process: subprocess.Popen[bytes], errors: IO[bytes]
    ) -> None:
        self.root = root
        self.session_id = session_id
        self.run_id: str | None = None
        self.control = ReplayControl(root, session_id)
        self._process = process
        self._errors = errors
        self._closing = threading.Lock()

    @classmethod
    def start(
        cls,
        root: DataRoot,
        session_id: str,
        *,
        speed_factor: float | None = None,
        inject_mode: str = "SCORING_ONLY",
        loop: bool = False,
        strict: bool = False,
        paused: bool = False,
        params: TradingParams | Mapping[str, Any] | None = None,
        scoring: ScoringParams | Mapping[str, Any] | None = None,
        default_params: TradingParams | None = None,
        default_scoring: ScoringParams | None = None,
        run_mode: str = "LIVE",
        timeout: float = 60.0,
    ) -> Self:
        """Start playing a session and return once the first event is due; the options are those of ``ReplayEngine``.

        Raises what ``ReplayEngine.start_session`` raises (no such session, another replay running), and ReplayError
        where the session is not loaded within ``timeout`` seconds.
        """
        try:
            SessionStore(root).open(session_id)
        except (SessionError, UnsafeNameError) as error:
            publish_failure(root, session_id, error)
            raise
        options = {
            "root": str(root),
            "sessionId": session_id,
            # JSON has no infinity.
            "speedFactor": None if speed_factor is None else str(float(speed_factor)),
            "injectMode": inject_mode,
            "loop": loop,
            "strict": strict,
            "paused": paused,
            "params": _plain(params),
            "scoring": _plain(scoring),
            "defaultParams": _plain(default_params),
            "defaultScoring": _plain(default_scoring),
            "runMode": run_mode,
        }
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _close)
        process = subprocess.Popen(
            [sys.executable, "-c", "from replaylab.replay.child_process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            # Ctrl-C in a terminal is for this process, which then stops the replay.
            start_new_session=True,
        )
        replay = cls(root, session_id, process, errors)
        try:
            replay.run_id = replay._begin(options, timeout)
        except BaseException:
            replay.kill()
            raise
        return replay

    @property
    def running(self) -> bool:
        """Whether the child process still plays."""
        if self._process.poll() is None:
            return True
        self._close()
        return False

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the replay and wait for the end of its process, which is killed after ``timeout`` seconds."""
        if not self.running:
            return
        # A handler that hangs: killed below.
        with contextlib.suppress(ReplayError):
            self.control.stop(timeout)
        if not self.wait(timeout):
            self.kill()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the process; returns whether it has ended."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._close()
        return True

    def kill(self) -> None:
        """Kill the child process."""
        self._process.kill()
        self.wait()

    def _begin(self, options: dict[str, Any], timeout: float) -> str:
        """Send the options and return the id of the run; raises the error with which the child refused them."""
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise ReplayError("the replay process was started without pipes")
        # A child that died at once is reported below.
        with contextlib.suppress(BrokenPipeError):
            writer.write(orjson.dumps(options, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        if not select.select([reader], [], [], timeout)[0]:
            raise ReplayError(f"the replay of {self.session_id} did not start within {timeout:g} s")
        line = reader.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            raise ReplayError(f"the replay of {self.session_id} died: {lines[-1] if lines else 'no message'}")
        answer = orjson.loads(line)
        if "error" in answer:
            raise error_of(answer["error"])
        return str(answer["runId"])

    def _close(self) -> None:
        with self._closing:
            for pipe in (self._process.stdin, self._process.stdout, self._errors):
                if pipe is not None:
                    pipe.close()


def _plain(given: Settings | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return parameters as JSON: complete settings under "given", a dict under "changes"."""
    if isinstance(given, Settings):
        return {"given": given.to_dict()}
    return None if given is None else {"changes": dict(given)}


def _settings(kind: type[Any], plain: dict[str, Any] | None) -> Any:
    """Return parameters in the form in which ``_plain`` got them."""
    if plain is None or "changes" in plain:
        return None if plain is None else plain["changes"]
    return kind.from_dict(plain["given"])


def _play(options: dict[str, Any], answer: IO[bytes]) -> None:
    """Play one session in this process until it ends or standard input closes."""
    speed = options["speedFactor"]
    try:
        engine = ReplayEngine(
            SessionStore(DataRoot(options["root"])),
            params=_settings(TradingParams, options["params"]),
            scoring=_settings(ScoringParams, options["scoring"]),
            default_params=_settings(TradingParams, options["defaultParams"]),
            default_scoring=_settings(ScoringParams, options["defaultScoring"]),
            run_mode=options["runMode"],
        )
        engine.start_session(
            options["sessionId"],
            speed_factor=None if speed is None else float(speed),
            loop=options["loop"],
            inject_mode=options["injectMode"],
            strict=options["strict"],
            paused=options["paused"],
        )
    except (ReplaylabError, OSError, ValueError, TypeError) as error:
        plain: dict[str, Any] = {"error": plain_error(error)}
    else:
        plain = {"runId": engine.get_status().run_id}
    answer.write(orjson.dumps(plain) + b"\n")
    answer.close()
    if "error" in plain:
        return
    # A daemon thread: it waits on standard input for as long as the parent lives.
    threading.Thread(target=_stop_with_parent, args=(engine,), daemon=True).start()
    # A failure of the run is in the published status, for every screen.
    with contextlib.suppress(ReplayError):
        engine.wait()


def _stop_with_parent(engine: ReplayEngine) -> None:
    while os.read(0, 4096):
        pass
    with contextlib.suppress(ReplayError):
        engine.stop(reason="the process that started this replay ended (a kernel that was restarted, say)")


def main() -> None:
    """Play the session that the first line of standard input describes."""
    # Other output to standard output must not mix with the answer.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    line = sys.stdin.buffer.readline()
    if line:
        with contextlib.suppress(KeyboardInterrupt):
            _play(orjson.loads(line), answer)
