"""The panel: sessions, a replay, and the market that it shows, in one notebook cell.

>>> panel = lab.panel()                    # doctest: +SKIP
>>> panel                                  # doctest: +SKIP

Every part is a plain Python object (``panel.table``, ``panel.form``, ``panel.controls``, ``panel.live``,
``panel.chart``, ``panel.detail``) whose buttons can be clicked from code. A click only starts a job or sends a command
to the replay; the replay runs in a process of its own, and the screen is drawn at most five times a second.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import ipywidgets as w

from replaylab import frames
from replaylab.errors import ReplaylabError, SessionError
from replaylab.notebook.controls import Controls, RunParams
from replaylab.notebook.live import ChartView, LiveView, MarketTrack
from replaylab.notebook.session_detail import DetailView, RunResult, RunResultView, describe, run_result
from replaylab.notebook.session_form import BuildForm, BuildRequest, covered
from replaylab.notebook.session_table import Actions, SessionTable
from replaylab.notebook.style import STYLE, badge, error, health, note
from replaylab.params import TradingParams
from replaylab.records import ReplayManifest, ReplayStatus
from replaylab.replay import News, ReplayControl, ReplayProcess, ReplayRun, RunFollower
from replaylab.timestamps import iso

if TYPE_CHECKING:
    from replaylab.lab import Lab

_PERIOD_S = 0.2
_END_S = 10.0
_PLOT_PERIOD_S = 1.0
_SLOW_PERIOD_S = 2.0
OVERVIEW, LOGS, DETAIL, CHART = 0, 1, 2, 3


class Panel:
    """The dashboard of a Lab. Shown by being the last line of a cell; ``close()`` ends it.

    ``params``: what the parameter fields show for a chosen session (default: what it recorded). Where an event loop
    runs (in a notebook) the panel redraws itself; elsewhere ``tick()`` does, and ``settle()`` waits for jobs first.
    """

    def __init__(self, lab: Lab, *, params: TradingParams | None = None) -> None:
        self.lab = lab
        self.given = params
        self.replay: ReplayProcess | None = None
        self.control = ReplayControl(lab.root)
        self.closed = False
        self._jobs = Jobs()
        self._follower = RunFollower(lab.root, events=False)
        self._status = ReplayStatus()
        self._plot_at = self._slow_at = 0.0
        self._starting = False
        self._health = ""
        self._beat = 0
        self._track_of: tuple[str, int] | None = None
        self._result_of: str | None = None
        self._seen: tuple[int, ...] | None = None
        self._mode: str | None = None
        self._wanted: int | str | None = None
        self._seeking = False

        self.table = SessionTable(self._selected)
        self.form = BuildForm(self._build)
        self.params = RunParams()
        self.live = LiveView()
        self.result = RunResultView()
        self.verdict = w.HTML()
        self._judged: Any = None
        self.detail = DetailView()
        self.controls = Controls(
            on_pause=self._pause,
            on_step=lambda: self._tell(lambda control: control.step(1)),
            on_decision=lambda: self._tell(lambda control: control.step(1, "decision")),
            on_stop=self._stop,
            on_speed=lambda factor: self._tell(lambda control: control.set_speed(factor), quiet=True),
            on_seek=self._seek,
            on_bookmark=self._bookmark,
        )
        self.chart = ChartView(self._load_chart, lambda moment: self._seek(iso(moment)))
        self._build_widgets()
        self._task: asyncio.Task[None] | None = None
        self._take_over()
        self.tick()
        try:
            self._task = asyncio.get_running_loop().create_task(self._redraw())
        except RuntimeError:
            # No event loop: a script or a test, which calls tick().
            self._task = None

    def _take_over(self) -> None:
        """One panel per data root redraws itself: the newest. The cell was run again, say."""
        earlier = _SHOWN.get(str(self.lab.root))
        if earlier is not None and not earlier.closed:
            self.replay, earlier.replay = earlier.replay, None
            earlier.controls.say("a newer panel shows this data root")
            earlier.halt()
        _SHOWN[str(self.lab.root)] = self

    def _build_widgets(self) -> None:
        self.badge = w.HTML()
        self.actions = Actions(on_run=self._run, on_load=self._load, on_delete=self._delete)
        self.run = self.actions.run
        sessions = w.VBox(
            [
                w.HTML('<div class="rl-heading">Replay sessions</div>'),
                self.table.widget,
                self.actions.widget,
                self.params.widget,
                self.form.widget,
            ]
        )
        self.tabs = w.Tab(
            children=[
                w.VBox([self.live.widget, self.result.widget, self.verdict]),
                sessions,
                self.detail.widget,
                self.chart.widget,
            ],
            titles=("Overview", "Logs & Events", "Detail", "Chart"),
            selected_index=LOGS,
        )
        self.widget = w.VBox([w.HTML(STYLE), self.badge, self.controls.widget, self.tabs])
        self.widget.add_class("rl-panel")
        self._selected(None)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)

    # Redrawing

    def tick(self) -> None:
        """Read the data root and redraw, now."""
        self._draw(*self._gather())
        self._jobs.collect()

    def settle(self, timeout: float = 60.0) -> bool:
        """Wait for started jobs and redraw; for scripts and tests. Returns whether all ended in time."""
        done = self._jobs.settle(timeout)
        self.tick()
        return done

    async def _redraw(self) -> None:
        while not self.closed:
            try:
                self._draw(*await asyncio.to_thread(self._gather))
                self._jobs.collect()
            except (ReplaylabError, OSError, ValueError) as problem:
                # The panel continues: the next read may succeed (a file was just being replaced, say).
                self.controls.complain(str(problem))
            await asyncio.sleep(_PERIOD_S)

    def _gather(self) -> tuple[News, bytes | None, dict[str, Any] | None]:
        """Read files, draw plots and judge the last sweep, which takes time; touches no widget."""
        news = self._follower.poll()
        self.live.take(news)
        now = time.monotonic()
        png = slow = None
        if self.tabs.selected_index == OVERVIEW and now - self._plot_at >= _PLOT_PERIOD_S:
            self._plot_at = now
            png = self.live.png()
        if now - self._slow_at >= _SLOW_PERIOD_S:
            self._slow_at = now
            slow = {
                "manifests": self._new_manifests(),
                "health": self.lab.health(),
                "covered": covered(self.lab.root),
                "verdict": self._new_verdict(),
                "mode": frames.held_mode(self.lab.root),
            }
        return news, png, slow

    def _draw(self, news: News, png: bytes | None, slow: dict[str, Any] | None) -> None:
        status = news.status
        self._status = status
        if status.session_id is not None:
            self._load_track(status.session_id)
            self._load_result(status)
        if self.tabs.selected_index == CHART:
            self._load_chart()
            self.chart.follow(status)
        if slow is not None:
            self._mode = slow["mode"]
        self.controls.show(status)
        self.controls.offer_bookmarks(status.bookmarks)
        self._go()
        self.live.draw()
        self.live.show_plot(png)
        if slow is not None:
            self._beat += 1
            self._health = health(
                (name, service.status, service.message) for name, service in slow["health"].services.items()
            )
            if slow["manifests"] is not None:
                self.table.set_manifests(slow["manifests"])
            self.form.offer(*slow["covered"])
            if slow["verdict"] is not None:
                self.verdict.value = slow["verdict"]
        # A new number every two seconds: the style sheet marks a badge that was not renewed for ten.
        beat = f'<span class="rl-beat" data-beat="{self._beat}"></span>'
        self.badge.value = self._badge_text(status) + beat + self._health
        self.actions.offer(self.table.selected, running=status.running or self._starting)

    def _new_verdict(self) -> str | None:
        """Return the verdict of the last sweep as HTML; None where there was no other sweep since the last call."""
        result = getattr(self.lab.last_sweep, "__wrapped__", self.lab.last_sweep)
        if result is None or result is self._judged:
            return None
        self._judged = result
        heading = f"Verdict on the last sweep, of {escape(str(result.session_id))}"
        return f'<div class="rl-heading">{heading}</div>{result.verdict()._repr_html_()}'

    def _badge_text(self, status: ReplayStatus) -> str:
        if status.running:
            # JSON has no infinity: a running replay without a factor plays as fast as possible.
            speed = "∞" if status.speed_factor in (None, math.inf) else f"{status.speed_factor:g}"
            return badge(f"REPLAY MODE · {status.session_id} · {speed}×", replay=True)
        replay = self.lab.config.run_mode == "REPLAY"
        mode = (
            "REPLAY MODE" if replay else "no logs yet" if self._mode is None else self._mode.replace("_", " ")
        )
        return badge(f"{mode} · no replay runs", replay=replay)

    def _new_manifests(self) -> list[ReplayManifest] | None:
        """List the sessions; None where nothing changed since the last call (a thousand manifests take a while)."""
        places = (self.lab.root.sessions_dir, self.lab.root.replay_sessions_index)
        seen = tuple(place.stat().st_mtime_ns if place.exists() else 0 for place in places)
        if seen == self._seen:
            return None
        self._seen = seen
        return self.lab.sessions.list_sessions()

    # Clicks

    def _selected(self, session_id: str | None) -> None:
        self.actions.offer(session_id, running=self._status.running)
        manifest = self.table.manifest(session_id) if session_id else None
        self.params.widget.layout.display = "none" if manifest is None else ""
        if manifest is None or session_id is None:
            return
        if not self._status.running:
            self.controls.set_speed(manifest.speed_factor)
        try:
            recorded = self.lab.sessions.open(session_id).recorded_params
        except (ReplaylabError, OSError) as problem:
            self._complain(problem)
            return
        base, source = (recorded, "recorded") if recorded else (self.lab.config.trading, "configured")
        self.params.offer(base, source, self.given)

    def _run(self) -> None:
        session_id = self.table.selected
        if session_id is None:
            return
        changes = self.params.changes()
        if changes is None:
            self.params.widget.selected_index = 0
            self.controls.complain("a parameter is invalid: see its message")
            return
        options = {
            "params": changes,
            "speed_factor": float(self.controls.speed.value),
            "inject_mode": self.actions.mode.value,
            "loop": self.actions.loop.value,
        }
        self._starting = self.run.disabled = True
        self.controls.say(f"starting {session_id} ...")

        def work() -> None:
            if self.replay is not None:
                self.replay.wait(_END_S)
            replay = ReplayProcess.start(
                self.lab.root,
                session_id,
                default_params=self.lab.config.trading,
                default_scoring=self.lab.config.scoring,
                run_mode=self.lab.config.run_mode,
                **options,
            )
            # Meanwhile a newer panel may have taken over.
            (_SHOWN.get(str(self.lab.root)) or self).replay = replay

        def done(_: None, __: list[str]) -> None:
            self._starting = False
            self.controls.say("")
            self.tabs.selected_index = OVERVIEW
            # The slider may have moved since: a browser sends its changes late, behind the click on Run.
            if (speed := float(self.controls.speed.value)) != options["speed_factor"]:
                self._tell(lambda control: control.set_speed(speed), quiet=True)

        def failed(problem: Exception) -> None:
            self._starting = False
            self._complain(problem)

        self._jobs.submit(work, done, failed)

    def _pause(self) -> None:
        paused = self._status.paused
        self._tell(lambda control: control.resume() if paused else control.pause())

    def _stop(self) -> None:
        self.controls.stop.disabled = True
        self._jobs.submit(
            self.control.stop,
            lambda was, _: self.controls.say("replay stopped" if was else "no replay is running"),
            self._complain,
        )

    def _tell(self, command: Callable[[ReplayControl], object], *, quiet: bool = False) -> None:
        if not (self._status.running or (self.replay is not None and self.replay.running)):
            if not quiet:
                self.controls.complain("no replay is running")
            return
        self._jobs.submit(lambda: command(self.control), lambda *_: self.controls.say(""), self._complain)

    def _seek(self, to: int | str) -> None:
        """Go to the newest place that was asked for, once the seek before it has ended."""
        self._wanted = to

    def _go(self) -> None:
        if self._wanted is None or self._seeking:
            return
        to, self._wanted = self._wanted, None
        self._seeking = True

        def done(*_: Any) -> None:
            self._seeking = False

        def failed(problem: Exception) -> None:
            self._seeking = False
            self._complain(problem)

        self._jobs.submit(lambda: self.control.seek(to), done, failed)

    def _bookmark(self, name: str, index: int | None) -> None:
        session_id = self._status.session_id
        if session_id is None:
            return

        # The next status shows it.
        self._jobs.submit(
            lambda: self.lab.sessions.open(session_id).set_bookmark(name, index),
            lambda *_: None,
            self._complain,
        )

    def _load_chart(self) -> None:
        """Draw the session that is played, else the chosen one, else the last one; again where a run has ended."""
        status = self._status
        shown = status.session_id if status.running else self.table.selected or status.session_id
        manifest = self.table.manifest(shown)
        if shown is None or manifest is None:
            return
        self.chart.offer(list(manifest.symbols))
        ended = status.run_id if shown == status.session_id and not status.running else None
        wanted = (shown, manifest.created_at, ended, self.chart.symbol.value)
        if wanted == self.chart.wanted:
            return
        self.chart.wanted = wanted
        self.chart.loading(shown)

        def work() -> Any:
            from replaylab.notebook.chart import Chart

            runs: dict[str, Any] = {"recorded": None}
            if ended is not None:
                runs = {"this run": ReplayRun.open(self.lab.root, shown, ended), **runs}
            return Chart(
                self.lab.sessions.open(shown), runs, symbol=wanted[-1], cache_dir=self.lab.config.cache_path
            )

        def done(chart: Any, _: list[str]) -> None:
            if wanted == self.chart.wanted:
                self.chart.show(chart)

        def failed(problem: Exception) -> None:
            if wanted == self.chart.wanted:
                self.chart.fail(problem)

        self._jobs.submit(work, done, failed)

    def _build(self, request: BuildRequest) -> None:
        self.form.create.disabled = True
        self.form.say("building ...")

        def work() -> ReplayManifest:
            manifest = self.lab.build_replay_session(
                request.start,
                request.end,
                request.symbols,
                include_types=request.include_types,
                max_events=request.max_events,
                session_id=request.session_id,
                notes=request.notes,
                progress=False,
            )
            if manifest.total_events == 0:
                self.lab.sessions.delete_session(manifest.session_id)
                raise SessionError(
                    "the range holds no events of these symbols and types: no session was built"
                )
            return manifest

        def done(manifest: ReplayManifest, warnings: list[str]) -> None:
            self.form.create.disabled = False
            self.form.result.value = note(
                f"built {manifest.session_id}: {manifest.total_events:,} events"
            ) + "".join(f" {error(text)}" for text in warnings)
            self.table.filter.value = ""
            self.table.set_manifests(self.lab.sessions.list_sessions())
            self.table.select(manifest.session_id)

        def failed(problem: Exception) -> None:
            self.form.create.disabled = False
            self.form.result.value = ""
            self.form.refused(problem)

        self._jobs.submit(work, done, failed)

    def _load(self) -> None:
        session_id = self.table.selected
        if session_id is None:
            return
        self.detail.loading(session_id)
        self.tabs.selected_index = DETAIL
        self._jobs.submit(
            lambda: describe(self.lab.sessions.open(session_id)),
            lambda detail, _: self.detail.show(detail),
            self.detail.fail,
        )

    def _load_track(self, session_id: str) -> None:
        """Read the prices of a session, once, and again where it was rebuilt under the same id."""
        path = self.lab.root.session_events(session_id)
        wanted = (session_id, path.stat().st_mtime_ns if path.is_file() else 0)
        if wanted == self._track_of:
            return
        self._track_of = wanted
        self.live.track = None
        self.live.start_from({})

        def done(found: tuple[MarketTrack | None, dict[str, str]], _: list[str]) -> None:
            if self._track_of == wanted:
                self.live.track, regimes = found
                self.live.start_from(regimes)

        def work() -> tuple[MarketTrack | None, dict[str, str]]:
            try:
                regimes = self.lab.sessions.open(session_id).initial_regimes
            except (ReplaylabError, OSError):
                regimes = {}
            return MarketTrack.load(self.lab.sessions, session_id), regimes

        self._jobs.submit(work, done, self._complain)

    def _load_result(self, status: ReplayStatus) -> None:
        """Show the result of a run once it has ended, and nothing while it plays."""
        run_id, session_id = status.run_id, status.session_id
        if status.running or run_id is None or session_id is None:
            if status.running and self._result_of is not None:
                self._result_of = None
                self.result.clear()
            return
        if run_id == self._result_of:
            return
        self._result_of = run_id

        def done(result: RunResult, _: list[str]) -> None:
            if self._result_of == run_id:
                self.result.show(result)

        self._jobs.submit(lambda: run_result(self.lab.root, session_id, run_id), done, self._complain)

    def _delete(self, session_id: str) -> None:
        self._jobs.submit(
            lambda: self.lab.sessions.delete_session(session_id),
            lambda *_: self.table.set_manifests(self.lab.sessions.list_sessions()),
            self._complain,
        )

    def _complain(self, problem: Exception) -> None:
        self.controls.complain(str(problem))

    def halt(self) -> None:
        """Stop redrawing; a replay that was started here continues."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        self._follower.close()

    def close(self) -> None:
        """Stop the replay that was started here and remove the panel."""
        self.halt()
        if self.replay is not None:
            self.replay.stop()
        self.widget.close()


# The panel that redraws itself, by data root.
_SHOWN: WeakValueDictionary[str, Panel] = WeakValueDictionary()


class Jobs:
    """Background jobs of the panel; results are delivered where ``collect`` is called, so no callback ever waits."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._ready: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether a job runs, or its result is not yet collected."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return bool(self._threads) or not self._ready.empty()

    def submit(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, list[str]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Run ``work`` in a thread; ``collect`` then calls ``done(result, warnings)`` or ``failed(error)``."""

        def run() -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                try:
                    result = work()
                except (ReplaylabError, OSError, ValueError) as error:
                    self._ready.put(partial(failed, error))
                    return
            texts = [str(item.message) for item in caught if issubclass(item.category, UserWarning)]
            self._ready.put(partial(done, result, texts))

        thread = threading.Thread(target=run, name="replaylab-panel-job", daemon=True)
        self._threads.append(thread)
        thread.start()

    def collect(self) -> None:
        """Deliver finished results, in the calling thread."""
        while True:
            try:
                finish = self._ready.get_nowait()
            except queue.Empty:
                return
            finish()

    def settle(self, timeout: float = 60.0) -> bool:
        """Wait for all jobs and deliver their results. Returns whether all ended in time."""
        limit = time.monotonic() + timeout
        while self.busy and time.monotonic() < limit:
            for thread in self._threads:
                thread.join(0.01)
            self.collect()
        return not self.busy
