"""Nothing in trading/ reads the wall clock, files or the environment, and no router trades in a replay."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import orjson
import polars as pl
import pytest

import replaylab.trading
from replaylab.errors import ConfigError, InterlockError, PriceError
from replaylab.params import TradingParams
from replaylab.records import ReplayEvent
from replaylab.timestamps import iso
from replaylab.trading import OrderRouter, TradingSystem, formulas, resolve_prices

FOLDER = Path(replaylab.trading.__file__).parent
ALLOWED = {
    "__future__",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "fractions",
    "functools",
    "heapq",
    "itertools",
    "keyword",
    "math",
    "msgspec",
    "numbers",
    "orjson",
    "statistics",
    "typing",
    "replaylab.errors",
    "replaylab.features",
    "replaylab.features.catalogue",
    "replaylab.features.formulas",
    "replaylab.features.score_state",
    "replaylab.params",
    "replaylab.records",
    "replaylab.timestamps",
}
FORBIDDEN = {"now_ns", "open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_trading_imports_only_what_cannot_read_the_world(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {name.name for name in node.names} <= ALLOWED
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module in ALLOWED or str(node.module).startswith("replaylab.trading")
            assert not {name.name for name in node.names} & FORBIDDEN
        elif isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN


def test_a_run_does_not_ask_for_the_time(
    play: Callable[..., Any], random_session: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every clock of the time module broken, a session runs as before."""

    def broken(*_: object) -> float:
        raise AssertionError("the wall clock was read")

    events = random_session(500)
    before = play(events, TradingParams(entry_threshold=0.3))
    for clock in ("time", "time_ns", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, broken)
    monkeypatch.setattr("replaylab.timestamps.now_ns", broken)
    after = play(events, TradingParams(entry_threshold=0.3), recorder=kept)
    monkeypatch.undo()
    assert after.trades == before.trades != []


def test_a_live_router_cannot_be_made_in_a_replay() -> None:
    with pytest.raises(InterlockError, match="REPLAY"):
        OrderRouter("LIVE", run_mode="REPLAY")
    with pytest.raises(InterlockError):
        TradingSystem(mode="LIVE", run_mode="REPLAY")
    assert OrderRouter("SIM", run_mode="REPLAY").mode == "SIM"
    with pytest.raises(ConfigError, match="mode"):
        OrderRouter("PAPER")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="FULL_DECISION"):
        TradingSystem(inject_mode="FULL")
    with pytest.raises(ConfigError, match="BTCUSDT"):
        TradingSystem(price_sources={"BTCUSDT": "trades"})
    with pytest.raises(ConfigError, match="Did you mean 'trade'"):
        resolve_prices([], "trades")


def test_price_sources_are_chosen_by_usable_events_only() -> None:
    one_sided = {"bids": [[1.0, 1.0]], "asks": []}
    events: list[Any] = [
        ("MARKET_TRADE", "A", {"price": "1"}),
        ("MARKET_BOOK", "A", {"bids": [[1.0, 1.0]], "asks": [[2.0, 1.0]]}),
        ("MARKET_BOOK", "B", one_sided),
        ("SCORING_UPDATE", "B", {"score": 1.0, "price": 3.0}),
        ("MARKET_BOOK", "C", one_sided),
        ("MARKET_TRADE", "D", {"price": 2.0, "offMarket": True}),
        ("SCORING_UPDATE", "E", {"price": 3.0}),
        ("MARKET_TRADE", "E", {"price": 2}),
    ]
    found = resolve_prices(events)
    assert found.sources == {"A": "book", "B": "score", "E": "trade"}
    assert found.books == {"A"}
    assert resolve_prices(events, {"E": "score"}).sources == {"A": "book", "B": "score", "E": "score"}
    assert resolve_prices(events, "book").sources == {"A": "book"}


def test_a_frame_resolves_as_its_events_do() -> None:
    """Also where the first usable price of a symbol comes after many unusable ones."""
    bad, good = {"price": "1"}, {"price": 1.0}
    one_sided, both = {"bids": [[1.0, 1.0]], "asks": []}, {"bids": [], "asks": [[2.0, 1.0]], "kind": "delta"}
    events: list[Any] = [
        *[("MARKET_TRADE", "A", bad)] * 40,
        ("MARKET_TRADE", None, good),
        *[("MARKET_BOOK", "B", one_sided)] * 40,
        ("MARKET_TRADE", "A", good),
        ("MARKET_BOOK", "B", both),
    ]
    frame = pl.DataFrame(
        [(kind, symbol, orjson.dumps(payload).decode()) for kind, symbol, payload in events],
        schema=["type", "symbol", "payload"],
        orient="row",
    )
    for wish in ("auto", "trade", "book", {"A": "book"}):
        assert resolve_prices(frame, wish) == resolve_prices(events, wish)
    assert resolve_prices(frame).sources == {"A": "trade", "B": "book"}
    initial = {"symbols": {"A": {"book": {"bids": [[1.0, 1.0]], "asks": [[2.0, 1.0]]}}, "B": {"book": 5}}}
    assert resolve_prices(events, initial_state=initial).books == {"A", "B"}


def test_missing_prices_and_books_are_refused_with_the_symbol_and_the_types_to_include() -> None:
    events: list[Any] = [("MARKET_TRADE", "A", {"price": 1.0}), ("SCORING_UPDATE", "B", {"score": 1.0})]
    found = resolve_prices(events)
    found.require(["A"])
    with pytest.raises(PriceError, match=r"for B\..*MARKET_TRADE or MARKET_BOOK") as caught:
        found.require(["A", "B"])
    assert caught.value.symbol == "B"
    with pytest.raises(PriceError, match=r"from source score .*for A, B\..*SCORING_UPDATE"):
        resolve_prices(events, "score").require(["A", "B"])
    with pytest.raises(PriceError, match=r"price_source names 'AB'.*Did you mean '[AB]'"):
        resolve_prices(events, {"AB": "trade"})
    assert found.market_fill("A", "auto") == "print"
    found.check_fills(TradingParams())
    for field, fill in (("market_fill", "book"), ("market_fill", "quote"), ("limit_fill", "queue")):
        with pytest.raises(PriceError, match=r"A has no order book.*MARKET_BOOK"):
            found.check_fills(TradingParams(**{field: fill}))
        with pytest.raises(PriceError, match="A has no order book"):
            TradingSystem(TradingParams(**{field: fill}), price_sources=found)
    events.append(("MARKET_BOOK", "A", {"bids": [[1.0, 1.0]], "asks": [[2.0, 1.0]]}))
    found = resolve_prices(events)
    assert found.market_fill("A", "auto") == "book"
    queue = TradingParams(market_fill="book", limit_fill="queue")
    found.check_fills(queue, {"A": {"tickSize": 0.5}})
    with pytest.raises(PriceError, match="found tickSize None"):
        found.check_fills(queue)
    with pytest.raises(PriceError, match="source book, expected trade"):
        resolve_prices(events, "book").check_fills(queue)


def test_records_and_events_are_the_same_way_in(random_session: Any) -> None:
    events = random_session(500)
    sources = resolve_prices([(kind, symbol, payload) for _, kind, symbol, payload in events]).sources
    by_record = TradingSystem(TradingParams(entry_threshold=0.3), price_sources=sources)
    by_event = TradingSystem(TradingParams(entry_threshold=0.3), price_sources=sources)
    for index, (ts, kind, symbol, payload) in enumerate(events):
        by_record.handle_event(ReplayEvent(timestamp=iso(ts), type=kind, symbol=symbol, payload=payload))
        by_event.on_event(index, ts, kind, symbol, payload)
    by_record.finish()
    by_event.finish()
    assert by_record.trades == by_event.trades != []


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(formulas, inspect.isfunction)])
def test_formulas_compile_and_give_the_same_bits(name: str) -> None:
    """Each scalar function compiled by numba returns what Python returns, value and type."""
    function = getattr(formulas, name)
    compiled = numba.njit(function)
    count = function.__code__.co_argcount
    for step in range(50):
        values: list[Any] = [0.1 + ((step + 1) * 7919 * (place + 3)) % 1000 / 7.3 for place in range(count)]
        if name == "duration_seconds":
            values = [int(value * 1e15) for value in values]
        expected, found = function(*values), compiled(*values)
        assert (expected, type(expected)) == (found, type(found))


def test_trading_loads_without_the_heavy_libraries() -> None:
    """A live system that only trades loads neither numpy, polars, pandas nor numba."""
    code = (
        "import sys, replaylab.trading\n"
        "found = {'numpy', 'polars', 'pandas', 'numba'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
