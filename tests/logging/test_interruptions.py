"""Few descriptors, exceptions at any moment, forks, and the end of the interpreter: nothing hangs, no line is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from replaylab.config import LoggingConfig
from replaylab.logging import FileStreamManager, Logger
from tests.logging import sample_records as sample
from tests.logging.test_adversity import events, wait_until

REPOSITORY = Path(__file__).parents[2]
RAISING = pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="Python 3.14 runs handlers between the acquisition of a lock and its `with` block: docs/durability.md",
)
SETTINGS = ("{}", "{'queue': True}", "{'durability': 'fsync'}", "{'queue': True, 'queue_size': 3}")


def run(code: str, *arguments: object, timeout: float = 120) -> tuple[str, str]:
    """Run code in a process of its own, so that a hang is a failed test; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    return done.stdout, done.stderr


def reasons(path: Path) -> list[str]:
    """The reasons of the whole lines: a process that ends in the middle of a write may leave a fragment."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [orjson.loads(line)["reason"] for line in lines if line.endswith(b"}\n")]


def count(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


# Descriptors


@pytest.mark.parametrize("settings", SETTINGS[:3])
@pytest.mark.parametrize("limit", [64, 256])
def test_500_symbols_under_a_small_limit_of_open_files_lose_no_line(
    tmp_path: Path, limit: int, settings: str
) -> None:
    """``ulimit -n 256`` is what macOS gives a program."""
    code = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
        from replaylab.config import LoggingConfig
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample
        most = 0
        with Logger(sys.argv[1], LoggingConfig(**eval(sys.argv[3]))) as logger:
            for n in range(2):
                handles = []
                for k in range(500):
                    symbol = f"S{k}USDT"
                    handles.append(logger.log_state_event(symbol, sample.state_event(symbol, reason=str(n))))
                    most = max(most, logger.stats().open_files)
                for handle in handles:
                    handle.result(60)
            assert logger.stats().failures == 0
        print(most)
    """
    most, _ = run(code, tmp_path, limit, settings)
    assert int(most) <= limit // 2
    for k in range(500):
        assert reasons(tmp_path / "events" / f"S{k}USDT.jsonl") == ["0", "1"]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """The rest of the program holds every descriptor that the system gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count("/proc/self/fd") + 40, hard))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_the_program_holds_all_descriptors_open_logs_make_room(tmp_path: Path) -> None:
    """A file of another logger is closed for it; snapshots and new symbols are written all the same."""
    other = Logger(tmp_path / "other")
    other.log_state_event("BTCUSDT", sample.state_event())
    with Logger(tmp_path / "one") as logger:
        with no_descriptor_left():
            for k in range(5):
                symbol = f"S{k}USDT"
                logger.log_state_event(symbol, sample.state_event(symbol)).result()
                logger.write_risk_snapshot(sample.snapshots()["risk"]).result()
        assert logger.stats().lines == 5
        assert logger.health().status == "OK"
    other.log_state_event("BTCUSDT", sample.state_event()).result()
    assert len(events(tmp_path / "other")) == 2
    other.close()


def test_where_nothing_can_be_opened_the_call_itself_raises(tmp_path: Path) -> None:
    """A bot that drops its handles must not lose every line with one warning.

    In a process of its own: another logger of this one would close a file to make room.
    """
    code = """
        import errno, sys
        from pathlib import Path
        from replaylab.errors import LogWriteError
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample
        from tests.logging.test_interruptions import no_descriptor_left

        def refused(call, *arguments):
            try:
                call(*arguments)
            except LogWriteError as error:
                assert error.errno == errno.EMFILE and "Too many open files" in str(error), error
                return True
            return False

        logger = Logger(sys.argv[1])
        with no_descriptor_left():
            state = refused(logger.log_state_event, "BTCUSDT", sample.state_event())
            snapshot = refused(logger.write_risk_snapshot, sample.snapshots()["risk"])
        logger.log_state_event("BTCUSDT", sample.state_event()).result()
        logger.close()
        print(state, snapshot)
    """
    assert run(code, tmp_path)[0].split() == ["True", "True"]
    assert len(events(tmp_path)) == 1


def test_the_number_of_open_files_follows_the_limit_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, most in ((20, 10), (40, 20), (resource.RLIM_INFINITY, 60)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        streams = FileStreamManager()
        for k in range(60):
            streams.append_line(tmp_path / f"{limit}-{k}", "{}")
        assert streams.open_files == most
        streams.close()


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 0.5e-9])
def test_any_timeout_of_a_handle_is_taken(tmp_path: Path, timeout: float) -> None:
    """Infinity waits for as long as it takes; the shortest either finds the line written or raises TimeoutError."""
    for settings in (LoggingConfig(), LoggingConfig(queue=True), LoggingConfig(durability="fsync")):
        with Logger(tmp_path, settings) as logger:
            handle = logger.log_state_event("BTCUSDT", sample.state_event())
            with contextlib.suppress(TimeoutError):
                handle.result(timeout)
                assert handle.done()
            with contextlib.suppress(TimeoutError):
                logger.flush(timeout)


# Loggers that are not closed


def test_200_queue_loggers_that_nobody_closed_are_finalised(tmp_path: Path) -> None:
    """Their lines are written, and their threads and descriptors go with them."""
    tasks, files = count("/proc/self/task"), count("/proc/self/fd")
    for n in range(200):
        logger = Logger(tmp_path / str(n), LoggingConfig(queue=True))
        logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n)))
        if n % 2:
            logger.self = logger  # type: ignore[attr-defined]
    del logger
    gc.collect()
    wait_until(lambda: count("/proc/self/task") <= tasks)
    assert count("/proc/self/fd") <= files
    for n in range(200):
        assert [event["reason"] for event in events(tmp_path / str(n))] == [str(n)]


def test_a_handle_outlives_its_logger(tmp_path: Path) -> None:
    handles = [
        Logger(tmp_path, LoggingConfig(durability="fsync")).log_trade(sample.trade()) for _ in range(3)
    ]
    for handle in handles:
        handle.result(5)


# Exceptions at any moment


INTERRUPT = """
    import json, os, random, resource, signal, sys, threading, time
    import faulthandler, logging
    from replaylab.config import LoggingConfig
    from replaylab.logging import Logger
    from tests.logging import sample_records as sample

    class Stop(Exception):
        pass

    root, settings, count, again = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
    faulthandler.dump_traceback_later(float(sys.argv[5]), exit=True)
    # An exception of a signal handler in __del__ or in a callback is printed and swallowed by Python.
    sys.unraisablehook = lambda *_: None
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    logger = Logger(root, LoggingConfig(**settings))
    armed, stops, calls, acknowledged = False, 0, 0, set()
    chance, risk = random.Random(1), sample.snapshots()["risk"]

    def handler(*_):
        if armed:
            if chance.random() < 0.1:
                logger.log_state_event("ETHUSDT", sample.state_event("ETHUSDT"))
            raise Stop

    def elsewhere():
        logger.log_state_event("BTCUSDT", sample.state_event(reason="elsewhere")).result(20)
        done.append(1)

    signal.signal(signal.SIGALRM, handler)
    while stops < count:
        try:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0006), again)
                while True:
                    calls += 1
                    handle = logger.log_state_event("BTCUSDT", sample.state_event(reason=str(calls)))
                    if calls % 5 == 0:
                        handle.result()
                        acknowledged.add(str(calls))
                    if calls % 31 == 0:
                        logger.flush()
                    if calls % 50 == 0:
                        logger.write_risk_snapshot(risk)
                    if calls % 97 == 0:
                        logger.write_tape("BTCUSDT", [])
                    if calls % 501 == 0:
                        logger.close()
            finally:
                armed = False
        except Stop:
            stops += 1
            if stops % 500 == 0:
                done = []
                thread = threading.Thread(target=elsewhere)
                thread.start()
                thread.join(30)
                assert done, "another thread hangs"
    signal.setitimer(signal.ITIMER_REAL, 0)
    logger.close(30)
    Logger(root).log_state_event("BTCUSDT", sample.state_event(reason="another logger"))
    lines = [json.loads(line)["reason"] for line in open(f"{root}/events/BTCUSDT.jsonl")]
    assert not acknowledged - set(lines), "acknowledged lines are missing"
    plain = [line for line in lines if line != "elsewhere"]
    assert len(plain) == len(set(plain)), "a line is there twice"
    assert len(os.listdir("/proc/self/fd")) < 40, "descriptors are left open"
    print(stops)
"""


def interrupt(root: Path, settings: str, times: int, again: float) -> int:
    printed, _ = run(INTERRUPT, root, settings, times, again, 500, timeout=600)
    return int(printed)


@RAISING
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_handler_that_raises_at_any_moment_leaves_nothing_locked_lost_or_open(
    tmp_path: Path, settings: str
) -> None:
    """Ctrl-C in log calls, results, flushes and closes: other threads and loggers continue."""
    assert interrupt(tmp_path, settings, 1500, 0.003) == 1500


@RAISING
@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_100_000_interrupts(tmp_path: Path) -> None:
    done = 0
    for settings, again in itertools.product(SETTINGS, (0.003, 0.0004)):
        done += interrupt(tmp_path / f"{settings}{again}", settings, 12_500, again)
    print(f"interrupts: {done} injected, {done} survived: 0 hangs, 0 acknowledged lines lost, 0 twice")


# Forks


FORKS = """
    import os, signal, sys, threading, time
    from replaylab.config import LoggingConfig
    from replaylab.logging import Logger
    from tests.logging import sample_records as sample

    logger = Logger(sys.argv[1], LoggingConfig(**eval(sys.argv[2])))
    risk, ends, last = sample.snapshots()["risk"], False, None

    def busy():
        # Threads that hold every lock of a logger: streams, new keys, redactions, rolling files, snapshots.
        global last
        n = 0
        while not ends:
            n += 1
            extra = {f"k{n % 300}": 1, "apiKey": 2} if n % 3 else {f"z{n}": 1}
            last = logger.log_state_event("BTCUSDT", sample.state_event(extra=extra))
            if n % 5 == 0:
                logger.write_risk_snapshot(risk)
            if n % 7 == 0:
                logger.write_tape("BTCUSDT", [])
            logger.stats()

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    bad = 0
    for n in range(int(sys.argv[3])):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            status = 1
            try:
                try:
                    last.result(10)
                except OSError as error:
                    assert "parent" in str(error), error
                event = sample.state_event(reason=f"child {n}", extra={f"n{n}": {"a": 1}, "apiKey": 1})
                logger.log_state_event("BTCUSDT", event).result(10)
                logger.write_tape("ETHUSDT", []).result(10)
                logger.write_risk_snapshot(risk).result(10)
                logger.health()
                logger.close()
                status = 0
            finally:
                os._exit(status)
        bad += os.waitpid(child, 0)[1] != 0
    ends = True
    for thread in threads:
        thread.join()
    logger.close()
    print(bad)
"""


def fork(root: Path, settings: str, times: int) -> None:
    printed, problems = run(FORKS, root, settings, times, timeout=600)
    assert int(printed) == 0, problems[-2000:]
    found = reasons(root / "events" / "BTCUSDT.jsonl")
    assert sorted(reason for reason in found if "child" in reason) == sorted(
        f"child {n}" for n in range(times)
    )


@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_a_forked_child_logs_whatever_lock_another_thread_held(tmp_path: Path, settings: str) -> None:
    """And a handle of the parent's line is refused there; it is not waited for."""
    fork(tmp_path, settings, 40)


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_1_200_forks(tmp_path: Path) -> None:
    for settings in SETTINGS[:2]:
        fork(tmp_path / settings, settings, 600)
    print("forks beside threads that log: 1200 injected, 1200 survived")


# The end of the interpreter


END = """
    import atexit, os, sys, threading, time
    root, settings, place, order, beside = sys.argv[1:]

    def last():
        logger.log_state_event("BTCUSDT", sample.state_event(reason="atexit"))
        logger.log_trade(sample.trade())

    if order == "first":
        atexit.register(last)  # called after the handlers of replaylab
    from replaylab.config import LoggingConfig
    from replaylab.logging import Logger
    from tests.logging import sample_records as sample
    if order == "second":
        atexit.register(last)
    logger, risk = Logger(root, LoggingConfig(**eval(settings))), sample.snapshots()["risk"]

    class Dying:
        def __init__(self):
            self.logger, self.event, self.risk, self.write = logger, sample.state_event, risk, os.write

        def __del__(self):
            self.write(1, b"called")
            self.logger.log_state_event("BTCUSDT", self.event(reason="del", extra={"apiKey": 1, "new": 2}))
            self.logger.log_state_event("BTCUSDT", self.event(reason="result")).result()
            self.logger.write_risk_snapshot(self.risk)
            self.logger.flush()
            self.logger.close()
            self.logger.log_state_event("BTCUSDT", self.event(reason="after close"))

    class Holder:
        pass

    if place == "global":
        one = Dying()
    elif place == "class":
        Holder.one = Dying()
    elif place == "cycle":
        one = Dying()
        one.self = one
        import gc
        gc.disable()
        del one
    elif place == "builtins":
        import builtins
        builtins.one = Dying()
    elif place == "module":
        sample.one = Dying()
    if beside == "busy":
        def busy():
            while True:
                logger.log_state_event("BTCUSDT", sample.state_event(reason="busy", extra={"pad": "x" * 9999}))
                logger.log_state_event("ETHUSDT", sample.state_event("ETHUSDT", extra={"apiKey": 1}))
                logger.write_tape("BTCUSDT", [])

        for _ in range(3):
            threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.05)
    logger.log_state_event("BTCUSDT", sample.state_event(reason="main"))
"""
PLACES = ("global", "class", "cycle", "builtins", "module")


def end(root: Path, *how: str) -> None:
    """Where Python calls ``__del__`` at all (not for what a daemon thread still refers to), its lines are there."""
    called, problems = run(END, root, *how, timeout=60)
    found = reasons(root / "events" / "BTCUSDT.jsonl")
    want = ["main", "atexit", *(("del", "result", "after close") if called else ())]
    assert [found.count(reason) for reason in want] == [1] * len(want), (how, problems[-2000:])
    assert len(list((root / "trades_log").iterdir())) == 1


@pytest.mark.parametrize("settings", SETTINGS[:3])
@pytest.mark.parametrize(
    ("place", "order", "beside"),
    [("global", "first", "alone"), ("module", "second", "alone"), ("builtins", "first", "busy")],
)
def test_a_line_of_the_last_moment_is_written(
    tmp_path: Path, settings: str, place: str, order: str, beside: str
) -> None:
    """In atexit handlers, and in ``__del__`` when all other threads are frozen where they were."""
    end(tmp_path, settings, place, order, beside)


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_240_ends_of_the_interpreter(tmp_path: Path) -> None:
    how = [*itertools.product(SETTINGS[:3], PLACES, ("first", "second"), ("alone", "busy"))] * 4
    for n, kind in enumerate(how):
        end(tmp_path / str(n), *kind)
    print(f"ends of the interpreter: {len(how)} injected, {len(how)} survived: 0 hangs, 0 lines lost")


def test_what_waits_is_written_when_the_main_thread_ends_by_an_exception(tmp_path: Path) -> None:
    code = """
        import sys
        from replaylab.config import LoggingConfig
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample
        logger = Logger(sys.argv[1], LoggingConfig(queue=True, max_delay_ms=500))
        for n in range(100):
            logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n)))
        sys.exit(0)
    """
    run(code, tmp_path)
    assert reasons(tmp_path / "events" / "BTCUSDT.jsonl") == [str(n) for n in range(100)]


def test_a_signal_that_ends_the_program_through_sys_exit_writes_what_waits(tmp_path: Path) -> None:
    """As many programs handle SIGTERM."""
    code = """
        import os, signal, sys
        from replaylab.config import LoggingConfig
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        logger = Logger(sys.argv[1], LoggingConfig(queue=True, max_delay_ms=500))
        for n in range(100):
            logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n)))
        os.kill(os.getpid(), signal.SIGTERM)
    """
    run(code, tmp_path)
    assert reasons(tmp_path / "events" / "BTCUSDT.jsonl") == [str(n) for n in range(100)]


def test_threads_that_log_the_first_record_of_its_kind_at_once_do_not_crash_the_process(
    tmp_path: Path,
) -> None:
    """msgspec completes a type at its first use, and crashed in every fourth process when threads did so at once."""
    code = """
        import sys, threading
        sys.setswitchinterval(1e-6)
        from replaylab.logging import Logger
        from tests.logging import sample_records as sample
        logger, snapshots, start = Logger(sys.argv[1]), sample.snapshots(), threading.Barrier(8)
        acts = [
            lambda: logger.log_trade(sample.trade()),
            lambda: logger.log_order(sample.order()),
            lambda: logger.write_risk_snapshot(snapshots["risk"]),
            lambda: logger.write_tpsl_snapshot(snapshots["tpsl"]),
        ]
        threads = [threading.Thread(target=lambda n=n: (start.wait(), acts[n % 4]())) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    for n in range(6):
        run(code, tmp_path / str(n))


def test_waiters_that_give_up_all_the_time_disturb_no_writer(tmp_path: Path) -> None:
    """Threads that poll handles, each with a limit that is over at any moment, also while the line is acknowledged."""
    with Logger(tmp_path, LoggingConfig(queue=True)) as logger:
        handles = [logger.log_state_event("BTCUSDT", sample.state_event(reason="first"))]
        ends = threading.Event()

        def poll(limit: float) -> None:
            while not ends.is_set():
                with contextlib.suppress(TimeoutError):
                    handles[-1].result(limit)

        threads = [threading.Thread(target=poll, args=(n * 0.00003,)) for n in range(6)]
        for thread in threads:
            thread.start()
        handles.extend(
            logger.log_state_event("BTCUSDT", sample.state_event(reason=str(n))) for n in range(3000)
        )
        for handle in handles:
            handle.result(20)
        ends.set()
        for thread in threads:
            thread.join(20)
        assert logger.stats().failures == 0
        assert logger._writer is not None
        assert not logger._writer._waiters
    assert [event["reason"] for event in events(tmp_path)] == ["first", *(str(n) for n in range(3000))]


def test_many_threads_and_tasks_wait_for_the_same_handles(tmp_path: Path) -> None:
    """Without a limit, at the very moment at which a handle is finished: all are woken, and nothing is kept of them."""
    sys.setswitchinterval(1e-5)
    try:
        with Logger(tmp_path, LoggingConfig(queue=True)) as logger:
            handles = [logger.log_state_event("BTCUSDT", sample.state_event())]
            ends = threading.Event()

            def wait() -> None:
                while not ends.is_set():
                    handles[-1].result()

            async def wait_all() -> None:
                while not ends.is_set():
                    await asyncio.gather(*(handles[-1] for _ in range(3)))

            threads = [threading.Thread(target=wait) for _ in range(5)]
            threads += [threading.Thread(target=asyncio.run, args=(wait_all(),)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(4000):
                handles[0] = logger.log_state_event("BTCUSDT", sample.state_event())
            ends.set()
            for thread in threads:
                thread.join(20)
            assert not any(thread.is_alive() for thread in threads)
            assert logger._writer is not None
            assert not logger._writer._waiters
    finally:
        sys.setswitchinterval(0.005)


def test_threads_wait_for_handles_of_one_another(tmp_path: Path) -> None:
    """Many waiters of one handle, with and without a limit: each is woken once."""
    with Logger(tmp_path, LoggingConfig(queue=True, max_delay_ms=100)) as logger:
        handle = logger.log_state_event("BTCUSDT", sample.state_event())
        with pytest.raises(TimeoutError):
            handle.result(0.001)
        threads = [threading.Thread(target=handle.result, args=(limit,)) for limit in (None, 5, 5, None)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)
        assert handle.done()
