"""Any file of a data root damaged in any way: whatever is called works, or says in words what is wrong."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replaylab import Lab
from replaylab.archive import daily_summary, run_retention, verify
from replaylab.config import Config
from replaylab.errors import ReplaylabError
from replaylab.notebook import Panel
from replaylab.replay import ReplayEngine, ReplayRun, RunFollower, read_status
from replaylab.sessions import build_replay_session
from tests.roots import END, START, SYMBOLS, signal_root

# Values of other kinds, sizes and times than any field has.
ODD: list[Any] = [
    *(None, True, -1, 0, 1e308, 10**30, -(10**18), 4_194_305, "", "x" * 70_000, "\0", "../..", [], {}, [[]]),
    *({"a": {}}, "2025-13-45T99:99:99Z", "2025-11-18T10:00:00+99:00", "NaN"),
]


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON with one place replaced, or one field removed."""
    if isinstance(value, dict) and value and chance.random() < 0.75:
        name, kind = chance.choice(list(value)), chance.random()
        if kind < 0.15:
            return {field: one for field, one in value.items() if field != name}
        deeper = kind < 0.5 and isinstance(value[name], dict | list)
        return {**value, name: changed(value[name], chance) if deeper else chance.choice(ODD)}
    if isinstance(value, list) and value and chance.random() < 0.75:
        at = chance.randrange(len(value))
        one = changed(value[at], chance) if chance.random() < 0.5 else chance.choice(ODD)
        return [*value[:at], one, *value[at + 1 :]]
    return chance.choice(ODD)


def damaged(path: Path, chance: random.Random) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.8:
        return json.dumps(changed(json.loads(data), chance)).encode()
    if path.suffix == ".jsonl" and chance.random() < 0.6:
        lines = data.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(changed(json.loads(lines[at]), chance)).encode()
        return b"\n".join(lines) + b"\n"
    at = chance.randrange(len(data) + 1)
    return chance.choice(
        [
            data[:at],
            data[:at] + chance.randbytes(4) + data[at + 4 :],
            b"",
            data[:at] + bytes(99) + data[at:],
            data + data[at:],
        ]
    )


def calls(lab: Lab, number: int) -> dict[str, Callable[[], Any]]:
    """What a user would do next."""

    def play() -> None:
        asyncio.run(ReplayEngine(lab.root).run_session("s", speed_factor=float("inf")))

    def panel() -> None:
        made = Panel(lab)
        try:
            made.tick()
            made.table.select("s")
            made._load()
            made.settle(30)
        finally:
            made.close()

    def shown() -> None:
        lab._repr_html_()
        lab.sessions.open("s")._repr_html_()

    often: dict[str, Callable[[], Any]] = {
        "list": lab.sessions.list_sessions,
        "open": lambda: lab.sessions.open("s").events,
        "show": shown,
        "check": lambda: lab.sessions.open("s").check(),
        "parameters": lambda: lab.sessions.open("s").recorded_params,
        "events": lambda: lab.events("BTCUSDT"),
        "health": lab.health,
        "status": lambda: read_status(lab.root),
        "verify": lambda: verify(lab.root),
        "runs": lambda: [
            (run.totals, run.trade_records(), run.trades) for run in ReplayRun.all(lab.root, "s")
        ],
        "follow": lambda: RunFollower(lab.root).poll(),
        "sweep": lambda: lab.sweep("s", {"sl_pct": [0.1, 0.2]}, progress=False),
        "retention": lambda: run_retention(lab.root, dry_run=True),
        "summary": lambda: daily_summary(lab.root),
    }
    seldom = {
        "replay": (6, play),
        "panel": (4, panel),
        "delete": (5, lambda: lab.sessions.delete_session("s")),
    }
    return often | {name: call for name, (every, call) in seldom.items() if number % every == 0}


def survive(folder: Path, count: int) -> int:
    """Damage one file of a root again and again; returns how many calls were refused in words."""
    whole = signal_root(folder / "whole", seconds=10)
    build_replay_session(whole, START, END, list(SYMBOLS), session_id="s")
    asyncio.run(ReplayEngine(whole).run_session("s", speed_factor=float("inf")))
    Lab(whole).health(write=True)
    files = sorted(path.relative_to(whole.path) for path in whole.path.rglob("*") if path.is_file())
    chance = random.Random(count)
    refusals = 0
    for number in range(count):
        root = folder / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        path = root / chance.choice([file for file in files if file.suffix in (".json", ".jsonl")])
        path.write_bytes(damaged(path, chance))
        lab = Lab(root, config=Config(cache_dir=str(folder / "cache")))
        for name, call in calls(lab, number).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    call()
                except (ReplaylabError, OSError) as error:
                    refusals += 1
                    words = str(error)
                except Exception as error:
                    raise AssertionError(
                        f"{name} after {path.relative_to(root)} was damaged: {error!r}"
                    ) from error
                else:
                    words = ""
            assert len(words) < 3_000, name
    return refusals


def test_a_damaged_file_of_a_root_is_reported_in_words(tmp_path: Path) -> None:
    assert survive(tmp_path, 25) > 10


@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_500_damaged_roots(tmp_path: Path) -> None:
    refusals = survive(tmp_path, 500)
    print(
        f"damaged files of a root: 500 injected, 500 survived: {refusals} calls refused in words, 0 raw errors"
    )


def test_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    root = signal_root(tmp_path, seconds=5)
    build_replay_session(root, START, END, list(SYMBOLS), session_id="s")
    for _ in range(2):
        asyncio.run(ReplayEngine(root).run_session("s", speed_factor=float("inf")))
    first, second = ReplayRun.all(root, "s")
    (first.path / "run.json").write_text("{")
    again = ReplayRun.all(root, "s")
    assert [run.id for run in again] == [first.id, second.id]
    assert [run.record["outcome"] for run in again] == ["died", "finished"]
    assert "run.json cannot be read" in again[0].record["error"]
    assert again[1].totals == second.totals
    log = next(second.root.trades_log_dir.glob("*.jsonl"), None)
    if log is not None:
        trades = second.trade_records()
        with log.open("ab") as file:
            file.write(b'{"timestamp":"2025-')
        assert ReplayRun.open(root, "s", second.id).trade_records() == trades
