"""Run the rows of a grid: method, memory, threads, the workers of an executor, and compilation ahead of time.

On other processes and machines, through any ``concurrent.futures.Executor``, a task carries its rows of the grid, not
the tape: a worker opens the tape's file if it can; else it answers that it has none, and gets it with its next task,
once. A row's results depend on nothing but tape and parameters, so a task that is lost with its worker is run again in
this process.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab import __version__
from replaylab.compiled import callback, inlined_rule, one_at_a_time, was_compiled
from replaylab.errors import ConfigError, SweepError, did_you_mean
from replaylab.params import TradingParams
from replaylab.sessions import feature_frame
from replaylab.sweep.evidence import compile_statistics
from replaylab.sweep.fills import RAW, REASONS, STOP_LEVEL, TARGET_LEVEL, N, wide_row
from replaylab.sweep.grid import DECLARED, Grid, Rows
from replaylab.sweep.model_chain import run_chain, run_plain
from replaylab.sweep.model_loop import (
    HELD,
    NO_RULE,
    TRADE,
    RuleArrays,
    displayed,
    market_fill,
    run_loop,
    run_position,
)
from replaylab.sweep.result import Clock, metrics
from replaylab.sweep.tables import Numbered, Plan, is_plain, number_tables, prepare
from replaylab.sweep.tape import Tape, pack
from replaylab.sweep.tape_file import TapeRef, read_tape
from replaylab.trading import ExitRule, LevelRule, OpenTrade, as_answer, as_rule

Array = npt.NDArray[Any]
METHODS = ("auto", "tables", "index", "loop")
# Rows that are packed, run and turned into metrics together: bounds memory, far beyond what tables need to pay.
PART = 131_072
_log = logging.getLogger("replaylab.sweep")

# Estimates for choosing, in ns per event (loop) or per trade and search; only their ratios matter, and only for time:
# the results are the same.
_EVENT_NS = 4.0
_TRADE_NS = 40.0
_SEARCH_NS = 70.0
# Rows that a thread runs at a time.
_SHARE = 512
# Below this many combinations × events a loop is done before another kernel is loaded.
_SMALL = 5e6
_PILOTS = 8
# Rows of one task: enough that tables pay, few enough that all workers have some.
_MOST, _FEWEST, _TASKS = 16_384, 256, 64
# Tapes that this process has, as a worker: the last few sessions.
_tapes: dict[str, Tape] = {}


def parts(rows: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows that are run together."""
    for start in range(0, rows, PART):
        yield start, min(start + PART, rows)


def run_rows(
    tape: Tape,
    grid: Grid,
    base: TradingParams,
    method: str = "auto",
    *,
    threads: int = 1,
    memory: float = 1e9,
    done: Callable[[int], Any] = lambda rows: None,
    say: Callable[[str], Any] = lambda text: None,
    clock: Clock | None = None,
    rule: BoundRule | None = None,
) -> tuple[Array, str]:
    """Return the raw sums of every row of a grid, and the method that was used.

    ``method``: "tables", "index", "loop" or "auto", which estimates what is fastest; the sums are the same to the
    bit. ``memory``: bytes that first-touch tables may take. ``done`` is called with counts of finished rows, ``say``
    with what is being waited for. ``clock``: rows also hold the PnL of its periods, behind ``RAW + CLOCK`` sums.
    ``rule``: an exit rule; only the loop runs it, unless it is a level rule.
    """
    if method not in METHODS:
        raise SweepError(
            f"method: expected {', '.join(METHODS)}, found {method!r}.{did_you_mean(method, METHODS)}"
        )
    asked = NO_RULE if rule is None else rule.arrays()
    if rule is not None and not isinstance(rule.rule, LevelRule):
        if method not in ("auto", "loop"):
            raise SweepError(
                f'method: an exit rule runs in the loop, method="auto" or "loop"; found {method!r}'
            )
        method = "loop"
    allowed = _allowed_table(tape, grid.regime_sets(base))
    rows = grid.pack(base)
    _check_fills(tape, rows.params, base)
    raw = _sums(len(rows), clock)
    numbered = number_tables(tape, rows) if method in ("auto", "tables") else None
    if method == "auto":
        method = _choose(tape, allowed, rows, numbered, asked, say)
    if method == "loop":
        _compile("the plain loop", run_loop, _warm_loop, say)
        arrays, none, params = tape.arrays, np.empty(0, dtype=TRADE), rows.params
        _share(raw, threads, done, lambda a, b: run_loop(arrays, allowed, params[a:b], raw[a:b], none, asked))
        if rule is not None:
            rule.raise_problem(asked)
        return raw, method
    _compile("the sweep", run_chain, _warm_chain, say)
    used = set()
    for start, stop, tables in _fitting(tape, rows, numbered if method == "tables" else None, memory):
        used.add("tables" if tables else "index")
        some = rows.part(slice(start, stop))
        plan, keys = prepare(tape, allowed, some, tables)
        plain = rule is None and tables is not None and is_plain(tape, some.params)
        if plain:
            _compile("the sweep of targets and stops", run_plain, _warm_chain, say)
        work = _Chain(plan, some.params, keys, raw[start:stop], None if plain else asked)
        # Each range of rows reads all tables: where they are beyond the nearest cache, few ranges are better.
        large = plain and plan.table.nbytes > 1e6
        most = max(_SHARE, -(-len(some) // (2 * threads))) if large else _SHARE
        _share(raw[start:stop], threads, done, work, most)
    if asked.problem[0]:
        # The loop asks at the prices of trades alone: it raises if the rule is at fault there.
        return run_rows(
            tape, grid, base, "loop", threads=threads, memory=memory, say=say, clock=clock, rule=rule
        )
    return raw, "+".join(sorted(used, reverse=True))


@dataclass(frozen=True)
class _Chain:
    """Some rows of a chain kernel; ``rule=None``: of the kernel for targets and stops alone."""

    plan: Plan
    params: Array
    keys: Array
    raw: Array
    rule: RuleArrays | None

    def __call__(self, a: int, b: int) -> None:
        if self.rule is None:
            run_plain(self.plan, self.params[a:b], self.keys[a:b], self.raw[a:b])
        else:
            run_chain(self.plan, self.params[a:b], self.keys[a:b], self.raw[a:b], self.rule)


def _share(
    raw: Array, threads: int, done: Callable[[int], Any], work: Callable[[int, int], Any], most: int = _SHARE
) -> None:
    """Run ``work`` on ranges of up to ``most`` rows, on threads; small ranges, because neighbours cost alike."""
    step = max(1, min(most, len(raw) // (threads * 16))) if most == _SHARE else most
    ranges = [(a, min(a + step, len(raw))) for a in range(0, len(raw), step)]
    if threads == 1:
        for a, b in ranges:
            work(a, b)
            done(b - a)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="sweep") as pool:
        futures = [(pool.submit(work, a, b), b - a) for a, b in ranges]
        try:
            for future, rows in futures:
                future.result()
                done(rows)
        except BaseException:
            # An interrupt in a notebook ends the sweep now, not after all rows.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _choose(
    tape: Tape,
    allowed: Array,
    rows: Rows,
    numbered: Numbered | None,
    rule: RuleArrays,
    say: Callable[[str], Any],
) -> str:
    """Estimate from a few rows how many trades a row has, and from that what each method costs."""
    events = len(tape.arrays.order)
    if events * len(rows) < _SMALL or numbered is None:
        return "loop"
    _compile("the sweep", run_chain, _warm_chain, say)
    pilots = rows.part(np.linspace(0, len(rows) - 1, _PILOTS).astype(np.int64))
    raw = np.zeros((len(pilots), RAW))
    plan, keys = prepare(tape, allowed, pilots, None)
    run_chain(plan, pilots.params, keys, raw, rule)
    trades = float(raw[:, N].mean())
    params = pilots.params
    searches = (
        2.0 + (~np.isnan(params["trailing_activation_pct"])).mean() + (params["tp1_fraction"] > 0).mean()
    )
    # How many rows share a level: with none shared (random samples) a table is only a detour.
    shared = len(rows) * (searches + 1.0) / max(1, numbered.rows)
    loop = events * _EVENT_NS + trades * _TRADE_NS
    index = trades * (_TRADE_NS + searches * _SEARCH_NS)
    table = trades * (_TRADE_NS + searches * _SEARCH_NS / min(shared, 8.0)) if shared >= 2.0 else np.inf
    cheapest = min(loop, index, table)
    return "loop" if cheapest == loop else "tables" if cheapest == table else "index"


def _fitting(
    tape: Tape, rows: Rows, numbered: Numbered | None, memory: float
) -> list[tuple[int, int, Numbered | None]]:
    """Ranges of rows with tables that fit into memory; neighbours share levels, so halves need less."""
    if numbered is None:
        return [(0, len(rows), None)]
    candidates = int(np.count_nonzero(np.abs(tape.arrays.score) >= rows.params["entry_threshold"].min()))
    ranges: list[tuple[int, int, Numbered | None]] = []
    waiting = [(0, len(rows), numbered)]
    while waiting:
        start, stop, tables = waiting.pop()
        if tables.nbytes(candidates) <= memory:
            ranges.append((start, stop, tables))
        elif stop - start <= 256:
            ranges.append((start, stop, None))
        else:
            middle = (start + stop) // 2
            for a, b in ((middle, stop), (start, middle)):
                waiting.append((a, b, number_tables(tape, rows.part(slice(a, b)))))
    return ranges


def _compile(name: str, kernel: Any, warm: Callable[[], None], say: Callable[[str], Any]) -> None:
    if was_compiled(kernel):
        return
    text = f"compiling {name} (once per installation, some thirty seconds)"
    _log.info(text)
    say(text)
    with one_at_a_time():
        warm()
    say("")


def run_on(
    executor: Executor,
    tape: Tape,
    ref: TapeRef | None,
    grid: Grid,
    base: TradingParams,
    options: Mapping[str, Any],
    *,
    done: Callable[[int], Any] = lambda rows: None,
    say: Callable[[str], Any] = lambda text: None,
) -> tuple[Array, str]:
    """Return what ``run_rows`` returns, computed by the workers of ``executor``.

    ``options``: its ``method``, ``memory`` and ``clock``. ``ref``: what ``open_tape`` returned with the tape; where
    there is no file, tasks name the tape by its contents.
    """
    # A forked worker that compiles would wait forever for threads that only this process has, and others for its lock.
    _compile("the plain loop", run_loop, _warm_loop, say)
    _compile("the sweep", run_chain, _warm_chain, say)
    named = ref or _by_contents(tape)
    raw = _sums(grid.rows, options.get("clock"))
    step = min(_MOST, max(_FEWEST, -(-grid.rows // _TASKS)))
    todo = [(a, min(a + step, grid.rows)) for a in range(0, grid.rows, step)][::-1]
    running: dict[Future[Any], tuple[int, int]] = {}
    used: set[str] = set()
    lost: list[BaseException] = []

    def submit(rows: tuple[int, int], shipped: Tape | None) -> None:
        part = grid.part(*rows)
        running[executor.submit(_work, named, shipped, part, base, options)] = rows

    def here(rows: tuple[int, int], error: BaseException) -> None:
        # An error of the sweep itself is raised by doing it again.
        lost.append(error)
        keep(rows, run_rows(tape, grid.part(*rows), base, **options))

    def keep(rows: tuple[int, int], result: tuple[Array, str]) -> None:
        raw[rows[0] : rows[1]] = result[0]
        used.add(result[1])
        done(rows[1] - rows[0])

    # An executor does not say how many workers it has: tasks in flight double with each result. At first few answer
    # that they lack the tape.
    width = 1
    try:
        while todo or running:
            while todo and len(running) < width and not lost:
                rows = todo.pop()
                try:
                    submit(rows, None)
                except Exception as error:  # a pool that is broken or shut down
                    here(rows, error)
            if not running:
                # No worker is left.
                while todo:
                    rows = todo.pop()
                    keep(rows, run_rows(tape, grid.part(*rows), base, **options))
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                rows = running.pop(future)
                try:
                    result = future.result()
                    if result is None:
                        submit(rows, tape)
                    else:
                        keep(rows, result)
                        width *= 2
                except Exception as error:  # a worker died, or the network did
                    here(rows, error)
    finally:
        for future in running:
            future.cancel()
    if lost:
        warnings.warn(
            f"a worker was lost ({type(lost[0]).__name__}: {lost[0]}): its rows were run in this process",
            RuntimeWarning,
            stacklevel=3,
        )
    return raw, "+".join(sorted(used))


def _by_contents(tape: Tape) -> TapeRef:
    digest = hashlib.sha256(repr((tape.symbols, tape.regimes, tape.prices, tape.instruments)).encode())
    for array in tape.arrays:
        digest.update(np.ascontiguousarray(array).data)
    return TapeRef(digest.hexdigest())


def _work(
    ref: TapeRef, shipped: Tape | None, grid: Grid, base: TradingParams, options: Mapping[str, Any]
) -> tuple[Array, str] | None:
    """Run some rows in a worker; None: this worker has no such tape."""
    tape = _tapes.get(ref.key) or shipped or read_tape(ref)
    if tape is None:
        return None
    if ref.key not in _tapes:
        while len(_tapes) >= 4:
            _tapes.pop(next(iter(_tapes)))
        _tapes[ref.key] = tape
    return run_rows(tape, grid, base, **options)


def _sums(rows: int, clock: Clock | None) -> Array:
    """Return raw sums of nothing yet; with a clock, rows that are wide enough for the PnL by period."""
    return np.zeros((rows, RAW)) if clock is None else np.tile(wide_row(*clock), (rows, 1))


def _allowed_table(tape: Tape, sets: list[tuple[str, ...] | None]) -> Any:
    """Return [regime set, regime + 1] → whether entries are allowed; column 0 is "no regime yet"."""
    table = np.zeros((max(1, len(sets)), len(tape.regimes) + 1), dtype=np.bool_)
    for k, names in enumerate(sets):
        for name in names or ():
            if name in tape.regimes:
                table[k, tape.regimes.index(name) + 1] = True
    return table


def rule_identity(rule: ExitRule) -> str:
    """Return what two equal rules have in common: code, what the code refers to, values, and features."""
    seen: set[int] = set()
    source = rule.source
    if callable(source):
        source = _identity_of(source, seen)
    elif source is not None:
        used = feature_frame(source, rule.features)
        source = hashlib.sha256(used.hash_rows().to_numpy().tobytes()).hexdigest()
    level = (rule.kind, rule.step_ns) if isinstance(rule, LevelRule) else ()
    return repr((_identity_of(rule.function, seen), dict(rule.values), rule.features, source, level))


def _identity_of(value: Any, seen: set[int]) -> Any:
    """Return a value by its content: of functions the code, closures and globals; of others what repr shows."""
    value = getattr(value, "py_func", value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, ExitRule):
        return rule_identity(value)
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [_identity_of(one, seen) for one in value.co_consts]
    if not isinstance(value, FunctionType):
        return repr(value)
    if value.__module__.startswith("replaylab.") or id(value) in seen:
        return value.__module__, value.__qualname__, __version__
    seen.add(id(value))
    names = {name for code in _codes(value.__code__) for name in code.co_names}
    held = [(name, value.__globals__[name]) for name in sorted(names) if name in value.__globals__]
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    parts = (value.__code__, value.__defaults__, *(one for _, one in held), *cells)
    return [name for name, _ in held], [_identity_of(part, seen) for part in parts]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions inside it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


@dataclass(frozen=True)
class FeatureTable:
    """Rows of features by symbol, by the time from which they are known."""

    rows: Mapping[str, tuple[Array, Array]]
    width: int
    _nothing: Array = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_nothing", np.full(max(1, self.width), np.nan))

    @classmethod
    def of(cls, rule: ExitRule, session: Any) -> FeatureTable:
        """Return the features that a rule reads of a session; raises what ``feature_frame`` does."""
        names = rule.features
        if not names:
            return cls({}, 0)
        frame = rule.source(session) if callable(rule.source) else rule.source
        if frame is None:
            raise ConfigError(
                f"{rule.function.__name__} reads {', '.join(names)}: name the DataFrame with rule.on(frame), or run it "
                "through a Lab, which computes lab.features(session)"
            )
        rows = {}
        for (symbol,), part in feature_frame(frame, names).group_by("symbol", maintain_order=True):
            times = part["timestamp"].to_physical().to_numpy()
            rows[str(symbol)] = (times, np.ascontiguousarray(part.select(names).to_numpy()))
        return cls(rows, len(names))

    def at(self, symbol: str, ts: int) -> Array:
        """Return the last row known at ``ts``; NaN before the first."""
        known = self.rows.get(symbol)
        place = -1 if known is None else int(np.searchsorted(known[0], ts, side="right")) - 1
        return self._nothing if known is None or place < 0 else known[1][place]

    def along(self, symbol: str, ts: Array) -> Array:
        """Return the rows known at each of many times."""
        found = np.full((len(ts), max(1, self.width)), np.nan)
        known = self.rows.get(symbol)
        if known is not None:
            places = np.searchsorted(known[0], ts, side="right") - 1
            inside = places >= 0
            found[inside] = known[1][places[inside]]
        return found


@dataclass(frozen=True)
class BoundRule:
    """An exit rule with its features at every price of a tape. It travels to workers; its address does not."""

    rule: ExitRule
    features: Array

    @classmethod
    def of(cls, rule: ExitRule | None, tape: Tape, session: Any) -> BoundRule | None:
        """Return a rule bound to a tape; None without one. Raises ConfigError for what is no rule."""
        rule = as_rule(rule)
        if rule is None:
            return None
        if not rule.features:
            return cls(rule, np.zeros((1, 1)))
        table, starts = FeatureTable.of(rule, session), tape.arrays.price_from
        unknown = [name for name in tape.symbols if name not in table.rows]
        if unknown:
            warnings.warn(
                f"the features of {rule!r} have no row for {', '.join(unknown)}: it sees NaN", stacklevel=2
            )
        parts = [
            table.along(name, tape.arrays.price_ts[starts[k] : starts[k + 1]])
            for k, name in enumerate(tape.symbols)
        ]
        # Without a symbol that has scores there is no part.
        return cls(rule, np.concatenate([np.empty((0, len(rule.features))), *parts]))

    def arrays(self) -> RuleArrays:
        """Return what a kernel calls; compiles the rule when first asked in this process."""
        rule = self.rule
        address = np.array([_address(rule)])
        numbers = np.array([float(value) for value in rule.values.values()] or [0.0])
        level = np.zeros(2, dtype=np.int64)
        if isinstance(rule, LevelRule):
            level[:] = STOP_LEVEL if rule.kind == "stop" else TARGET_LEVEL, rule.step_ns
        return RuleArrays(address, numbers, self.features, np.zeros(15), level)

    def raise_problem(self, asked: RuleArrays) -> None:
        """Raise SweepError where a kernel found the rule at fault: what it returned or raised, at which trade."""
        if not asked.problem[0]:
            return
        _, entry, index, row, *seen = asked.problem.tolist()
        view = self.rule.view(*self.features[int(row)]) if self.rule.features else None
        try:
            found = f"returned {self.rule.ask(OpenTrade(*seen[:10]), seen[10], view)!r}"
        except Exception as error:  # the user's own
            found = f"raised {type(error).__name__}: {error}"
        raise SweepError(
            f"{self.rule!r} {found} for the trade that entered at event {int(entry)}, at event {int(index)} (price "
            f"{seen[10]:g}): expected HOLD, CLOSE or a price above 0"
        )


# Whatever the user's rule raises, numba has no other clause: ``raise_problem`` asks the rule again and names it.
_CALL = """
def entry(t, f, p):
    try:
        return number(rule({seen}{features}{values}))
    except Exception:
        return nan
"""
_addresses: dict[Any, Any] = {}


def _address(rule: ExitRule) -> int:
    """Return the address of a rule's function in this process."""
    function, level = rule.function, isinstance(rule, LevelRule)
    # A global or a closure that changed makes another function.
    key = (function, repr(_identity_of(function, set())), rule.features, rule.compiled, level)
    if key not in _addresses:
        trade = f"OpenTrade({', '.join(f't[{n}]' for n in range(10))}), t[10]"
        row = f", Features({', '.join(f'f[{n}]' for n in range(len(rule.features)))})"
        source = _CALL.format(
            seen="t[0], t[1], t[3]" if level else trade,
            features=row if rule.features else "",
            values="".join(f", p[{n}]" for n in range(len(rule.values))),
        )
        names = {"OpenTrade": OpenTrade, "nan": np.nan, "Features": rule.view}
        make = _compiled_rule if rule.compiled else _plain_rule
        _addresses[key] = make(function, source, names)
    return int(_addresses[key].address)


def _compiled_rule(function: Any, source: str, names: dict[str, Any]) -> Any:
    try:
        return callback(source, {**names, "rule": inlined_rule(function), "number": float})
    except Exception as error:  # of many kinds
        text = re.sub(r"\x1b\[[0-9;]*m", "", f"{error}") or type(error).__name__
        returned = re.search(r">>> float\((.+)\)", text)
        if returned:
            text = f"it returns {returned[1]}, expected HOLD, CLOSE or a price, a number, at every return."
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        where = next((line for line in lines if line.startswith("File ")), "")
        what = next((line for line in lines if not line.startswith(("File ", "Failed in"))), lines[0])
        raise SweepError(
            f"{function.__name__}: numba cannot compile this rule: {what} {where}".rstrip()
            + " @exit_rule(compiled=False) runs the Python function, slowly"
        ) from None


def _plain_rule(function: Any, source: str, names: dict[str, Any]) -> Any:
    """Return a callback into Python: every call takes the interpreter's lock."""
    scope: dict[str, Any] = {**names, "rule": function, "number": as_answer}
    exec(source, scope)
    numbers = ctypes.POINTER(ctypes.c_double)
    called = ctypes.CFUNCTYPE(ctypes.c_double, numbers, numbers, numbers)(scope["entry"])
    address = ctypes.cast(called, ctypes.c_void_p).value
    return SimpleNamespace(address=address, keep=called)


def trades_of(
    tape: Tape, params: TradingParams, rule: BoundRule | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the trades of one parameter set, in order of their entries, and its metrics."""
    grid = Grid({}, {}, 1, {})
    packed = grid.pack(params).params
    _check_fills(tape, packed, params)
    allowed = _allowed_table(tape, grid.regime_sets(params))
    raw = np.zeros((1, RAW))
    # Every trade has a score that it came from, and a price that filled it.
    recorded = np.zeros(min(len(tape.arrays.score), len(tape.arrays.price)) + 1, dtype=TRADE)
    asked = NO_RULE if rule is None else rule.arrays()
    n = run_loop(tape.arrays, allowed, packed, raw, recorded, asked)
    if rule is not None:
        rule.raise_problem(asked)
    return _frame(tape, params, np.sort(recorded[:n], order=["entry_index"])), metrics(raw).row(0, named=True)


class Position(NamedTuple):
    """How a position ended: ``price`` is that of what was left (``left`` of its quantity) after a TP1.

    ``decided_ts``: when its last exit was decided or its stop was touched; ``exit_at``: the price event of the exit.
    """

    exit_ts: int
    decided_ts: int
    exit_at: int
    close_price: float
    price: float
    tp1_price: float
    tp1_qty: float
    left: float
    funding: float
    reason: str


class Positions:
    """Single positions under one parameter set: what the model does from an entry that the caller chooses.

    >>> positions = Positions(tape, params)                                                     # doctest: +SKIP
    >>> positions.run(at=120, entry=100.5, qty=-0.2).reason                                     # doctest: +SKIP
    'TP2'

    ``at`` is a row of the tape's prices, ``qty`` in base currency and negative for a SHORT. The rules are those of the
    plain loop, whose steps this runs.
    """

    def __init__(self, tape: Tape, params: TradingParams) -> None:
        self.tape = tape
        self._packed = Grid({}, {}, 1, {}).pack(params).params
        _check_fills(tape, self._packed, params)
        self._held = np.zeros(1, dtype=HELD)

    def run(self, at: int, entry: float, qty: float, *, maker: bool = False) -> Position:
        """Run a position from its entry to its end. ``maker``: a limit order opened it."""
        symbol = self._symbol(at)
        run_position(self.tape.arrays, self._packed, symbol, at, entry, qty, maker, self._held, NO_RULE)
        held = {name: self._held[0][name].item() for name in Position._fields}
        return Position(**{**held, "reason": REASONS[held["reason"]]})

    def market_fill(self, at: int, qty: float) -> float:
        """Return the price of a market order that buys ``qty`` (sells, where negative) at a price event."""
        side = 1.0 if qty > 0.0 else -1.0
        return float(market_fill(self.tape.arrays, self._packed, self._symbol(at), at, abs(float(qty)), side))

    def displayed(self, at: int, limit: float, *, sells: bool) -> float | None:
        """Return the quantity ahead of a limit order that arrives at a price event; None where it is not visible."""
        found = displayed(self.tape.arrays, self._packed, at, limit, 1.0 if sells else -1.0)
        return None if found < 0.0 else float(found)

    def _symbol(self, at: int) -> int:
        return int(np.searchsorted(self.tape.arrays.price_from, at, side="right")) - 1


def _check_fills(tape: Tape, params: Array, base: TradingParams) -> None:
    """Raise PriceError where a fill model of any row lacks the data that it needs."""
    fields = [DECLARED[name] for name in ("market_fill", "limit_fill", "rounding")]
    shape = [len(field.choices) for field in fields]
    rows = np.ravel_multi_index([params[field.name] for field in fields], shape)
    for code in np.flatnonzero(np.bincount(rows)):
        chosen = zip(fields, np.unravel_index(code, shape), strict=True)
        changes = {field.name: field.choices[number] for field, number in chosen}
        tape.prices.check_fills(base.replace(**changes), tape.instruments)


def _frame(tape: Tape, params: TradingParams, t: Any) -> pl.DataFrame:
    utc = pl.Datetime("ns", "UTC")
    whole = {name: np.ascontiguousarray(t[name]) for name in t.dtype.names}
    return pl.DataFrame(
        {
            "symbol": pl.Series([tape.symbols[k] for k in t["symbol"]], dtype=pl.String),
            "side": pl.Series(np.where(t["direction"] > 0, "LONG", "SHORT").tolist(), dtype=pl.String),
            "entry_index": whole["entry_index"].astype(np.int64),
            "exit_index": whole["exit_index"].astype(np.int64),
            "entry_time": pl.Series(whole["entry_ts"]).cast(utc),
            "exit_time": pl.Series(whole["exit_ts"]).cast(utc),
            "entry_price": whole["entry_price"],
            "close_price": whole["close_price"],
            "qty": whole["qty"],
            "leverage": pl.Series([params.leverage] * len(t), dtype=pl.Float64),
            "reason": pl.Series([REASONS[k] for k in t["reason"]], dtype=pl.String),
            "tp1_filled": t["tp1_filled"] == 1,
            "fees": whole["fees"],
            "funding": whole["funding"],
            "thin": t["thin"] == 1,
            "realized_pnl": whole["realized_pnl"],
            "gap_pnl": pl.Series(whole["gap_pnl"], nan_to_null=True),
            "mfe": whole["mfe"],
            "mae": whole["mae"],
            "duration_seconds": (t["exit_ts"] - t["entry_ts"]) / 1e9,
        }
    )


def warm_up() -> None:
    """Compile all kernels, or load them when that was done before: the first sweep then does not wait.

    >>> warm_up()

    Once per installation and version; some forty seconds on two cores, of which a second process uses one. Processes
    that do it at the same time wait for each other.
    """
    with one_at_a_time():
        second = None
        if not was_compiled(run_loop):
            code = "from replaylab.sweep import run; run._warm_loop()"
            second = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
        _warm_chain()
        if second is not None:
            second.wait()
        _warm_loop()  # loads what the second process wrote; compiles it where that one failed
    compile_statistics()


def _warm_loop() -> None:
    tape = _tiny_tape()
    trades_of(tape, TradingParams())
    positions = Positions(tape, TradingParams())
    positions.run(0, positions.market_fill(0, 1.0), 1.0)
    positions.displayed(0, 1.0, sells=True)


def _warm_chain() -> None:
    tape, params = _tiny_tape(), TradingParams()
    rows = Grid({}, {}, 1, {}).pack(params)
    plan, keys = prepare(tape, _allowed_table(tape, [None]), rows, number_tables(tape, rows))
    run_chain(plan, rows.params, keys, np.zeros((1, RAW)), NO_RULE)
    run_plain(plan, rows.params, keys, np.zeros((1, RAW)))


def _tiny_tape() -> Tape:
    events = pl.DataFrame(
        {
            "timestamp": [1, 2, 3],
            "type": ["MARKET_TRADE", "SCORING_UPDATE", "MARKET_TRADE"],
            "symbol": ["A"] * 3,
            "payload": ['{"price":100}', '{"score":1}', '{"price":101}'],
        }
    )
    return pack(events.with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC"))))
