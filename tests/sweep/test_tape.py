"""Packing: what becomes a price, what is unusable, and the cache that spares the second packing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from replaylab import Lab
from replaylab.errors import PriceError, SessionError
from replaylab.sessions import Session
from replaylab.sweep import pack, sweep
from replaylab.sweep.model_loop import run_loop
from replaylab.sweep.tape_file import open_tape
from tests import oracle
from tests.strategies import RandomSession, make_session


def session_of(*events: tuple[str, str | None, dict[str, Any]], **options: Any) -> RandomSession:
    raw = [(1_000 * k, kind, symbol, payload) for k, (kind, symbol, payload) in enumerate(events)]
    return RandomSession(raw, options.get("initial_state", {}), options.get("price_source", "auto"))


SCORE = ("SCORING_UPDATE", "A", {"score": 0.9})


@dataclass
class Stored:
    """A session on disk, as far as a sweep reads it."""

    events: pl.DataFrame
    path: Path
    digest: str
    initial_state: dict[str, Any] | None = None


@pytest.mark.parametrize("seed", range(30))
def test_prices_are_those_of_the_oracle(seed: int) -> None:
    session = make_session(seed, 500, 3)
    tape = pack(session, session.price_source)
    chosen = oracle.read_inputs(session.raw, session.price_source, session.initial_state).prices
    for k, name in enumerate(tape.symbols):
        part = slice(tape.arrays.price_from[k], tape.arrays.price_from[k + 1])
        found = dict(
            zip(tape.arrays.price_index[part].tolist(), tape.arrays.price[part].tolist(), strict=True)
        )
        assert found == chosen[name]


@pytest.mark.parametrize("seed", range(12))
def test_the_size_of_blocks_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Books and prices that continue in the next block, levels that wait in files: the same tape to the byte."""
    session = make_session(seed, 400, 3)
    for source in ("auto", "book", "score", session.price_source):
        found = []
        for block, spilled in ((1 << 16, 1 << 17), (7, 64)):
            monkeypatch.setattr("replaylab.sweep.tape._BLOCK", block)
            monkeypatch.setattr("replaylab.sweep.tape._SPILLED", spilled)
            try:
                tape = pack(session, source)
            except PriceError as error:
                found.append(str(error))
                continue
            arrays = {name: (a.dtype, a.tobytes()) for name, a in tape.arrays._asdict().items()}
            found.append((arrays, tape.symbols, tape.regimes, tape.prices, tape.unusable))
        assert found[0] == found[1]


def test_a_large_session_is_packed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tape of its events, which are never held; an event out of order is found between blocks, too."""
    lab = Lab.sample()
    lab.build_replay_session("2025-11-18T10:00", "2025-11-18T10:20", ["AIUSDT", "BTCUSDT"], session_id="s")
    whole = lab.session("s")
    expected = pack(whole.events, initial_state=whole.initial_state)
    monkeypatch.setattr("replaylab.sessions.session._BLOCK_BYTES", 20_000)
    monkeypatch.setattr(Session, "events", property(lambda _: pytest.fail("the events were loaded")))
    session = lab.session("s")
    blocks = list(session.event_blocks())
    assert len(blocks) > 10
    assert pl.concat(blocks).equals(whole._loaded.frame.select(blocks[0].columns))
    found = pack(session)
    for name, array in expected.arrays._asdict().items():
        if name != "symbol":  # the frame alone knows no instruments
            assert array.tobytes() == getattr(found.arrays, name).tobytes(), name
    about = session.root.session_meta("s")
    without = {
        key: value for key, value in json.loads(about.read_bytes()).items() if not key.startswith("events")
    }
    about.write_text(json.dumps(without))
    path = session.root.session_events("s")
    lines = path.read_bytes().splitlines(keepends=True)
    first = path.read_bytes()[:20_000].count(b"\n")
    for at in (first - 1, first, first + 1):
        path.write_bytes(b"".join([*lines[:at], lines[-1], *lines[at:-1]]))
        with pytest.raises(SessionError, match=rf"events.jsonl:{at + 2}: the event at .* comes after one"):
            list(lab.session("s").event_blocks())


def test_unusable_payloads_are_counted() -> None:
    session = session_of(
        ("MARKET_TRADE", "A", {"price": 1.0}),
        ("MARKET_TRADE", "A", {"price": "1.0"}),
        ("MARKET_TRADE", None, {"price": 1.0}),
        ("REGIME_UPDATE", "A", {"regime": 1}),
        ("SCORING_UPDATE", "A", {"score": True}),
        SCORE,
    )
    tape = pack(session)
    assert tape.unusable == {"MARKET_TRADE": 2, "REGIME_UPDATE": 1, "SCORING_UPDATE": 1}
    assert tape.arrays.price.tolist() == [1.0]


def test_a_payload_that_is_not_an_object_is_unusable() -> None:
    frame = session_of(("MARKET_TRADE", "A", {"price": 1.0}), ("MARKET_TRADE", "A", {}), SCORE).events
    frame = frame.with_columns(payload=pl.Series([frame["payload"][0], "[1, 2", frame["payload"][2]]))
    assert pack(frame).unusable == {"MARKET_TRADE": 1}


def test_a_symbol_without_prices_is_refused_with_what_to_include() -> None:
    with pytest.raises(PriceError, match=r"for A.*MARKET_TRADE.*MARKET_BOOK"):
        pack(session_of(SCORE))
    with pytest.raises(PriceError, match=r"no prices from source book"):
        pack(session_of(("MARKET_TRADE", "A", {"price": 1.0}), SCORE), "book")


def test_an_unknown_price_source_or_symbol_is_refused() -> None:
    session = session_of(("MARKET_TRADE", "AAA", {"price": 1.0}))
    with pytest.raises(PriceError, match="Did you mean 'trade'"):
        pack(session, "trades")
    with pytest.raises(PriceError, match="Did you mean 'AAA'"):
        pack(session, {"AAB": "trade"})


def test_the_second_opening_maps_the_first_ones_file(tmp_path: Path) -> None:
    """Same arrays, without packing: the events are not read."""
    session = make_session(5, 400, 2)
    stored = Stored(session.events, tmp_path / "session", "digest", session.initial_state)
    first, ref = open_tape(stored, cache_dir=tmp_path)
    assert ref is not None
    assert ref.path is not None
    assert ref.path.parent == tmp_path / "tapes"
    stored.events = None  # type: ignore[assignment]
    second, _ = open_tape(stored, cache_dir=tmp_path)
    for name, left, right in zip(first.arrays._fields, first.arrays, second.arrays, strict=True):
        assert left.dtype == right.dtype, name
        assert left.tobytes() == right.tobytes(), name
    assert (first.symbols, first.regimes, first.sources) == (second.symbols, second.regimes, second.sources)


def test_another_digest_or_initial_state_is_packed_again(tmp_path: Path) -> None:
    """The new tape replaces the old one's file."""

    def opened(*about: Any) -> Any:
        return open_tape(Stored(about[0].events, tmp_path / "session", *about[1:]), cache_dir=tmp_path)[0]

    one, two = make_session(5, 400, 2), make_session(11, 300, 2)
    opened(one, "one")
    assert opened(two, "two").n_events == two.events.height
    blocked = {"symbols": {"AAA": {"tradingBlocked": True}}}
    assert (
        opened(two, "two", blocked).arrays.score_blocked.sum() > opened(two, "two").arrays.score_blocked.sum()
    )
    assert len(list((tmp_path / "tapes").iterdir())) == 4, "tape and levels of books, each with its checksum"


def test_a_torn_cache_file_is_packed_again(tmp_path: Path) -> None:
    """At whatever length it is cut off."""
    session = make_session(5, 400, 2)
    stored = Stored(session.events, tmp_path / "session", "digest")
    tape, ref = open_tape(stored, cache_dir=tmp_path)
    assert ref is not None
    assert ref.path is not None
    for cut in (0, 10, 30, 400, ref.path.stat().st_size // 2):
        left = ref.path.read_bytes()[:cut]
        # A new file: the old one is mapped.
        ref.path.unlink()
        ref.path.write_bytes(left)
        assert np.array_equal(open_tape(stored, cache_dir=tmp_path)[0].arrays.price, tape.arrays.price)


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """The sweep runs on the packed tape."""
    session = make_session(5, 400, 2)
    file = tmp_path / "no-folder"
    file.write_text("")
    tape, ref = open_tape(Stored(session.events, tmp_path, "digest"), cache_dir=file)
    assert ref is None
    assert tape.n_events == session.events.height


def test_a_mapped_tape_sweeps_like_a_packed_one(tmp_path: Path) -> None:
    """A tape on disk and one in memory have the same types: nothing is compiled twice."""
    session = make_session(9, 3000, 2)
    stored = Stored(session.events, tmp_path / "session", "digest", session.initial_state)
    grid = {"sl_pct": [0.1, 0.3], "tp2_pct": [0.3, 0.5]}
    first = sweep(stored, grid, progress=False, cache_dir=tmp_path).frame
    compiled = len(run_loop.signatures)
    second = sweep(stored, grid, progress=False, cache_dir=tmp_path).frame
    assert len(run_loop.signatures) == compiled
    assert first.equals(second)
    assert first["n_trades"].sum() > 10


@pytest.mark.parametrize("wrong", [None, 5, ["book"]])
def test_a_price_source_that_is_none_is_refused(wrong: Any) -> None:
    events = session_of(SCORE, ("MARKET_TRADE", "A", {"price": 1.0})).events
    with pytest.raises(PriceError, match='price_source: expected "auto"'):
        pack(events, wrong)


@pytest.mark.parametrize(
    "state",
    [
        {"symbols": []},
        {"symbols": {"A": 5}},
        {"symbols": {"A": None}},
        {"symbols": {"A": {"regime": ["CALM"], "tradingBlocked": "no", "book": {"bids": 5}}}},
        {"symbols": {"A": {"regime": 5, "tradingBlocked": 1, "book": 5}}},
    ],
)
@pytest.mark.parametrize("source", ["trade", "book"])
def test_a_malformed_initial_state_says_nothing(state: dict[str, Any], source: str) -> None:
    """As in the trading system: trades are those of a session without one."""
    book = {"bids": [[99.0, 1]], "asks": [[101.0, 1]], "kind": "delta"}
    events = [SCORE] + [("MARKET_TRADE", "A", {"price": 100.0}), ("MARKET_BOOK", "A", book)] * 2
    sound = pack(session_of(*events).events, source)
    odd = pack(session_of(*events).events, source, state)
    assert len(sound.arrays.price) == 2
    for name in ("price", "price_index", "score_regime", "score_blocked"):
        assert np.array_equal(getattr(sound.arrays, name), getattr(odd.arrays, name)), name
