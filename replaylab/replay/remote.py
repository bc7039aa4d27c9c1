"""A replay in a process of its own, driven from this one: screens draw, the replay keeps time.

>>> replay = RemoteReplay.start(root, "2025-11-18T10-11-BTCUSDT", speed_factor=20.0)      # doctest: +SKIP
>>> replay.pause(); replay.seek("2025-11-18T10:30:00Z"); replay.resume(); replay.stop()   # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any, Self

import orjson

from replaylab import errors
from replaylab.errors import ReplayError, ReplaylabError
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.replay.status import read_status

__all__ = ["RemoteReplay"]

_STATUS_ORDER = orjson.dumps({"call": "get_status", "args": []}) + b"\n"


class RemoteReplay:
    """One replay in a child process. Made by ``start``; ends by itself, by ``stop``, or with this process.

    Its status is published in the data root like that of any replay. Calls may come from several threads.
    """

    def __init__(
        self, root: DataRoot, process: subprocess.Popen[bytes], session_id: str, complaints: IO[bytes]
    ) -> None:
        self.root = root
        self.session_id = session_id
        self._process = process
        self._complaints = complaints
        self._turn = threading.Lock()

    @classmethod
    def start(
        cls,
        root: DataRoot,
        session_id: str,
        *,
        speed_factor: float | None = None,
        inject_mode: str = "SCORING_ONLY",
        loop: bool = False,
        params: TradingParams | None = None,
        scoring: ScoringParams | None = None,
        run_mode: str = "LIVE",
        timeout: float = 60.0,
    ) -> Self:
        """Start playing a session and return once the first event is due.

        Raises what ``ReplayEngine.start_session`` raises (no such session, another replay running), and ReplayError
        where the session is not loaded within ``timeout`` seconds.
        """
        complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed by _close)
        process = subprocess.Popen(
            [sys.executable, "-m", "replaylab.replay.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            bufsize=0,
            # Ctrl-C in a terminal is for the process that started it, which then stops the replay in good order.
            start_new_session=True,
        )
        replay = cls(root, process, session_id, complaints)
        orders = {
            "root": str(root),
            "sessionId": session_id,
            # JSON has no infinity; the worker reads the text.
            "speedFactor": None if speed_factor is None else str(float(speed_factor)),
            "injectMode": inject_mode,
            "loop": loop,
            "params": (params or TradingParams()).to_dict(),
            "scoring": (scoring or ScoringParams()).to_dict(),
            "runMode": run_mode,
        }
        try:
            replay._ask(orders, timeout)
        except BaseException:
            replay.kill()
            raise
        return replay

    @property
    def running(self) -> bool:
        """Whether the child still plays."""
        if self._process.poll() is None:
            return True
        # Not while another thread still reads its last answer; that thread's next look closes the pipes.
        if self._turn.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._turn.release()
        return False

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        """Hold before the next event."""
        self._call("pause")

    def resume(self) -> None:
        """Go on after a pause."""
        self._call("resume")

    def step(self, n: int = 1) -> None:
        """Emit the next ``n`` events at once and hold again."""
        self._call("step", n)

    def seek(self, to: int | str) -> None:
        """Go to an index or an ISO time."""
        self._call("seek", to, timeout=600.0)

    def set_speed(self, factor: float) -> None:
        """Change the speed factor from now on."""
        self._call("set_speed", str(float(factor)))

    def status(self) -> ReplayStatus:
        """Return the status, straight from the engine where it has time to answer, else the published one."""
        # While it seeks through an hour of events it answers nobody, and a screen must not wait for that.
        if self.running and self._turn.acquire(blocking=False):
            try:
                answer = self._exchange(_STATUS_ORDER, 5.0)
                return ReplayStatus.from_dict(answer["value"])
            except (ReplayError, KeyError):
                # It has just ended: what it published last is the truth.
                return read_status(self.root)
            finally:
                self._turn.release()
        return read_status(self.root)

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the replay and wait for the end of its process; without effect when it has ended."""
        if not self.running:
            return
        # It may end by itself just now, or hang: both are settled below.
        with contextlib.suppress(ReplayError):
            self._call("stop", timeout=timeout)
        if not self.wait(timeout):
            self.kill()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; returns whether it has come."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        with self._turn:
            self._close()
        return True

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()
        self.wait()

    def _call(self, name: str, *args: Any, timeout: float = 30.0) -> Any:
        return self._ask({"call": name, "args": args}, timeout)

    def _ask(self, order: dict[str, Any], timeout: float) -> Any:
        with self._turn:
            if self._process.poll() is not None:
                raise ReplayError(f"the replay of {self.session_id} has ended")
            answer = self._exchange(orjson.dumps(order) + b"\n", timeout)
        if "error" in answer:
            kind = getattr(errors, answer["error"]["kind"], ReplayError)
            known = isinstance(kind, type) and issubclass(kind, ReplaylabError)
            raise (kind if known else ReplayError)(answer["error"]["message"])
        return answer["value"]

    def _exchange(self, line: bytes, timeout: float) -> dict[str, Any]:
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise ReplayError("the replay process was started without pipes")
        try:
            writer.write(line)
        except OSError:
            raise self._ended() from None
        limit = time.monotonic() + timeout
        held = b""
        while not held.endswith(b"\n"):
            ready, _, _ = select.select([reader], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                self._process.kill()
                raise ReplayError(f"the replay of {self.session_id} did not answer within {timeout:g} s")
            chunk = reader.read(65_536)
            if not chunk:
                raise self._ended()
            held += chunk
        answer: dict[str, Any] = orjson.loads(held)
        return answer

    def _ended(self) -> ReplayError:
        self._process.wait()
        if self._process.returncode == 0 or self._complaints.closed:
            return ReplayError(f"the replay of {self.session_id} has ended")
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return ReplayError(f"the replay of {self.session_id} died: {lines[-1] if lines else 'no message'}")

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            if pipe is not None:
                pipe.close()
