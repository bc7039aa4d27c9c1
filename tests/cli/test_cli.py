"""Every command, as a person or a script gives it: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from replaylab.cli import app
from replaylab.cli.terminal import print_table
from replaylab.importers.synthetic import write_synthetic
from replaylab.lab import Lab
from replaylab.paths import DataRoot
from replaylab.replay import read_status
from replaylab.sessions import build_replay_session
from tests.roots import END, START, SYMBOLS, signal_root

COMMANDS = (
    *(
        "demo",
        "import",
        "sim",
        "build",
        "sessions",
        "replay",
        "status",
        "stop",
        "backtest",
        "sweep",
        "export",
    ),
    *("retention", "verify", "recover", "health", "serve", "warm-up"),
)
SESSION = "a-minute"
Call = Callable[..., Result]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    root = signal_root(tmp_path_factory.mktemp("cli") / "data")
    build_replay_session(root, START, END, list(SYMBOLS), session_id=SESSION, notes="a note")
    return root


@pytest.fixture
def root(template: DataRoot, tmp_path: Path) -> DataRoot:
    import shutil

    shutil.copytree(template.path, tmp_path / "data")
    return DataRoot(tmp_path / "data")


@pytest.fixture
def call(root: DataRoot, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command on the data root of the test, which the environment names."""
    monkeypatch.setenv("REPLAYLAB_DATA", str(root))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_command_of_the_contract_is_there() -> None:
    listed = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f" {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"replaylab {name}" in " ".join(result.stdout.split())


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from replaylab.cli import app; "
        "bad = {'polars', 'pandas', 'numba', 'matplotlib', 'jupyter_server', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    import replaylab

    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == f"replaylab {replaylab.__version__}"


def test_the_data_root_option_wins_over_the_environment(call: Call, tmp_path: Path) -> None:
    """--data after the command, --data before it, REPLAYLAB_DATA: in this order."""
    assert len(data(call("sessions", "--json"))) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert data(call("sessions", "--json", "--data", empty)) == []
    assert data(call("--data", empty, "sessions", "--json")) == []
    assert not list(empty.iterdir()), "looking makes nothing"


def test_sessions_table(call: Call) -> None:
    result = call("sessions")
    assert result.exit_code == 0
    for expected in (SESSION, "BTCUSDT, ETHUSDT", "1,202", "a note"):
        assert expected in result.stdout


def test_one_session_in_detail(call: Call) -> None:
    result = call("sessions", SESSION)
    assert "SCORING_UPDATE" in result.stdout
    assert "600" in result.stdout
    assert data(call("sessions", SESSION, "--json"))["totalEvents"] == 1202


def test_deleting_asks_and_does(call: Call, root: DataRoot) -> None:
    assert call("sessions", SESSION, "--delete").exit_code == 1, "no answer is no"
    assert root.session_dir(SESSION).is_dir()
    assert call("sessions", SESSION, "--delete", "--yes").exit_code == 0
    assert not root.session_dir(SESSION).exists()


def test_an_error_is_one_line_on_stderr(call: Call) -> None:
    for words in (
        ("sessions", "nope"),
        ("replay", "nope"),
        ("backtest", "nope"),
        ("sessions", "../evil"),
        ("replay", SESSION, "--speed", "-1"),
        ("replay", SESSION, "--param", "sl_pct=-1"),
        ("sweep", SESSION, "--grid", "entry_treshold=1"),
        ("build", "--from", "x", "--to", END, "--symbol", "BTCUSDT"),
        ("build", "--from", START, "--to", END, "--symbol", "XRPUSDT"),
    ):
        result = call(*words)
        assert result.exit_code == 1, words
        assert result.stdout == ""
        assert result.stderr.startswith("error: "), words
        assert result.stderr.count("\n") == 1, result.stderr
        assert "Traceback" not in result.stderr


def test_a_wrong_command_line_ends_with_2(call: Call) -> None:
    assert call("nonsense").exit_code == 2
    assert call("build", "--from", START).exit_code == 2
    assert call("sessions", "--delete").exit_code == 2


def test_build(call: Call, root: DataRoot) -> None:
    words = ("build", "--from", START, "--to", END, "--symbol", "BTCUSDT,ETHUSDT", "--type", "SCORING_UPDATE")
    manifest = data(call(*words, "--max-events", "5", "--id", "five", "--notes", "hello", "--json"))
    assert (manifest["totalEvents"], manifest["notes"]) == (5, "hello")
    assert manifest["eventTypes"] == ["SCORING_UPDATE"]
    again = call(*words, "--id", "five")
    assert again.exit_code == 1
    assert "five" in again.stderr
    assert call(*words, "--id", "five", "--if-exists", "replace").exit_code == 0


def test_replay_at_infinite_speed(call: Call, root: DataRoot) -> None:
    """The digest of a run is that of every run with the same parameters; other parameters, other trades."""
    first = data(call("replay", SESSION, "--speed", "inf", "--json"))
    second = data(call("replay", SESSION, "--speed", "5000", "--json"))
    assert first["digest"] == second["digest"]
    assert first["trades"]
    assert Path(first["path"]).is_dir()
    other = data(call("replay", SESSION, "--speed", "inf", "--param", "entry_threshold=5", "--json"))
    assert other["trades"] == []
    shown = call("replay", SESSION, "--speed", "inf")
    assert "closed trades, realised PnL" in shown.stdout
    assert shown.stderr == "", "no progress bar in a pipe"
    assert not list(root.trades_log_dir.glob("*")), "the live logs stay as they were"


def test_backtest_agrees_with_the_replay(call: Call, tmp_path: Path) -> None:
    replayed = data(call("replay", SESSION, "--speed", "inf", "--param", "sl_pct=0.1", "--json"))["trades"]
    swept = data(call("backtest", SESSION, "--param", "sl_pct=0.1", "--json"))
    assert swept["metrics"]["n_trades"] == len(swept["trades"]) == len(replayed)
    written = tmp_path / "trades.parquet"
    assert call("backtest", SESSION, "-o", written).exit_code == 0
    assert pl.read_parquet(written).height > 0


def test_sweep(call: Call, tmp_path: Path) -> None:
    grid = ("--grid", "entry_threshold=0.5,0.9", "--grid", "tp1_pct=0.1:0.3:3", "--param", "tp2_pct=1")
    result = data(call("sweep", SESSION, *grid, "-o", tmp_path / "all.parquet", "--best", "2", "--json"))
    assert result["combinations"] == 6
    assert len(result["best"]) == 2
    assert pl.read_parquet(tmp_path / "all.parquet").height == 6
    assert call("sweep", SESSION, *grid, "-o", tmp_path / "all.csv").exit_code == 0
    assert pl.read_csv(tmp_path / "all.csv").height == 6
    table = call("sweep", SESSION, *grid)
    assert "entry_threshold" in table.stdout
    assert table.stderr == "", "no progress bar in a pipe"
    assert call("sweep", SESSION, *grid, "--by", "luck").exit_code == 1


def test_fidelity_and_what_if(call: Call, tmp_path: Path) -> None:
    """On logs of a simulation fidelity finds nothing; other parameters change trades, and fidelity exits with 1."""
    lab = Lab(tmp_path / "sim")
    write_synthetic(lab.root, hours=0.1)
    sim = lab.run_sim(params={"entry_threshold": 0.3, "tp1_pct": 0.05, "tp2_pct": 0.1, "sl_pct": 0.05})
    session = lab.build_replay_session(sim.start, sim.end, list(sim.symbols), session_id="short").session_id
    place = ("--data", lab.root.path)
    same = data(call("what-if", session, "--json", *place))
    assert sum(row["trades"] for row in same["summary"]) == len(same["trades"]) > 0
    other = data(call("what-if", session, "-p", "sl_pct=0.02", "-o", tmp_path / "t.csv", "--json", *place))
    assert {row["status"] for row in other["trades"]} != {"same"}
    assert (tmp_path / "t.csv").is_file()
    found = call("fidelity", session, "--json", *place)
    assert json.loads(found.stdout)["shares"]["trades"] == 1.0, found.stdout
    changed = call("fidelity", session, "-p", "sl_pct=0.02", *place)
    assert (changed.exit_code, "Differences" in changed.stdout) == (1, True)
    for command in ("fidelity", "what-if"):
        assert call(command, "nope", *place).exit_code == 1


def test_status_and_stop_without_a_replay(call: Call) -> None:
    assert data(call("status", "--json"))["running"] is False
    stopped = call("stop", "--json")
    assert stopped.exit_code == 1
    assert json.loads(stopped.stdout) == {"success": False, "message": "no replay is running"}


def start(root: DataRoot, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from replaylab.cli import main; main()", *words, "--data", str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_replay_is_seen_and_stopped_from_another_terminal(call: Call, root: DataRoot) -> None:
    process = start(root, "replay", SESSION, "--speed", "1")
    wait_until(lambda: read_status(root).running)
    assert data(call("status", "--json"))["sessionId"] == SESSION
    assert SESSION in call("status").stdout
    assert call("stop").exit_code == 0
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "digest" in out


def test_a_replay_is_steered_from_another_terminal(call: Call, root: DataRoot) -> None:
    process = start(root, "replay", SESSION, "--speed", "1")
    wait_until(lambda: read_status(root).running)
    assert data(call("steer", "pause", "--json"))["paused"] is True
    at = read_status(root).current_event_index
    assert data(call("steer", "step", "5", "--json"))["currentEventIndex"] == at + 5
    assert data(call("steer", "seek", "700", "--json"))["currentEventIndex"] == 700
    assert data(call("steer", "seek", "2025-11-18T10:00:50Z", "--json"))["currentEventIndex"] > 900
    assert data(call("steer", "speed", "7", "--json"))["speedFactor"] == 7
    for words in (("step", "0"), ("seek", "99999"), ("speed", "0")):
        refused = call("steer", *words)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    for words in (("dance",), ("pause", "3"), ("seek",)):
        assert call("steer", *words).exit_code == 2
    assert call("steer", "speed", "inf").exit_code == 0
    assert call("steer", "resume").exit_code == 0
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert call("steer", "pause").exit_code == 1


def test_ctrl_c_ends_a_replay_in_good_order(root: DataRoot) -> None:
    """Exit code 130, one line, and a run whose record is complete."""
    process = start(root, "replay", SESSION, "--speed", "1")
    wait_until(lambda: read_status(root).current_event_index > 5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "error: interrupted\n")
    after = read_status(root)
    assert (after.running, after.error) == (False, None)
    record = json.loads((root.run(SESSION, after.run_id or "").path / "run.json").read_bytes())
    assert record["endedAt"]


def test_a_reader_that_goes_away_is_no_error(root: DataRoot) -> None:
    """`replaylab sessions | head -1`: no traceback."""
    command = f"{sys.executable} -c 'from replaylab.cli import main; main()' sessions --json --data {root} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_health(call: Call) -> None:
    assert data(call("health", "--json"))["services"]["logging"]["status"] == "OK"
    call("replay", "does-not-exist")
    failed = call("health")
    assert failed.exit_code == 1
    assert "does-not-exist" in failed.stdout
    assert "status ERROR: replay" in failed.stderr


def test_verify_and_recover(call: Call, root: DataRoot, tmp_path: Path) -> None:
    """verify: 0 clean, 1 with findings. recover: 0 nothing lost, 3 something lost, 1 failed."""
    clean = call("verify", root)
    assert (clean.exit_code, "findings: 0" in clean.stdout) == (0, True)
    log = root.events("BTCUSDT")
    assert call("recover", log, "-o", tmp_path / "whole.jsonl").exit_code == 0
    assert (tmp_path / "whole.jsonl").read_bytes() == log.read_bytes()
    with log.open("ab") as file:
        file.write(b'{"timestamp": "2025-11-18T10:0')
    damaged = call("verify", log)
    assert (damaged.exit_code, "findings: 1" in damaged.stdout) == (1, True)
    assert json.loads(call("verify", log, "--json").stdout)["findings"]
    before = log.read_bytes()
    assert call("recover", log, "-o", tmp_path / "saved.jsonl").exit_code == 3
    assert log.read_bytes() == before
    for words in (
        (log, "-o", tmp_path / "saved.jsonl"),
        (root.events("GONE"), "-o", tmp_path / "gone.jsonl"),
        (root.events_dir, "-o", tmp_path / "gone.jsonl"),
    ):
        failed = call("recover", *words)
        assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1), words
    assert call("recover", log).exit_code == 2, "a wrong command line"
    assert not (tmp_path / "gone.jsonl").exists()


def test_retention(call: Call, root: DataRoot, tmp_path: Path) -> None:
    old = root.trades_log("2020-01-01")
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_bytes(b"")
    plan = data(call("retention", "--dry-run", "--now", "2025-11-18T12:00:00Z", "--json"))
    assert "trades_log/day-2020-01-01.jsonl" in plan["deletedFiles"]
    assert old.exists()
    settings = tmp_path / "replaylab.toml"
    settings.write_text("[retention]\ntradesLogDays = 36500\n", encoding="utf-8")
    assert call("retention", "--now", "2025-11-18T12:00:00Z", "--config", settings).exit_code == 0
    assert old.exists(), "the settings of the file hold"
    settings.write_text("[retention]\ntradesLogDay = 1\n", encoding="utf-8")
    refused = call("retention", "--config", settings)
    assert (refused.exit_code, "replaylab.toml" in refused.stderr) == (1, True)
    shown = call("retention", "--now", "2025-11-18T12:00:00Z")
    assert shown.exit_code == 0
    assert not old.exists()


@pytest.mark.parametrize("command", ["retention", "health", "status", "stop"])
def test_a_root_that_is_not_there_is_named(call: Call, root: DataRoot, command: str) -> None:
    """A misspelt root is no root in good order: one line with its whole path, and exit code 1."""
    (root.path / "file").touch()
    for name, what in (("typo", "does not exist"), ("file", "is no folder")):
        result = call(command, "--data", root.path / name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {root.path / name}: this data root {what}; give another")
        assert result.stderr.count("\n") == 1
    assert not (root.path / "typo").exists()


def test_import_and_sim(call: Call, root: DataRoot, tmp_path: Path) -> None:
    """The line of the documentation: a Parquet tape with names of its own columns, then SIM over it."""
    tape = pl.DataFrame(
        {
            "time": [1_763_460_000_000 + 250 * n for n in range(400)],
            "px": [100.0 + (n % 20) * 0.05 for n in range(400)],
            "size": [1.0 + n % 3 for n in range(400)],
        }
    )
    tape.write_parquet(tmp_path / "tape.parquet")
    columns = ("--timestamp", "time", "--price", "px", "--qty", "size", "--timestamp-unit", "ms")
    imported = call("import", "parquet", tmp_path / "tape.parquet", "--symbol", "XRPUSDT", *columns)
    assert imported.exit_code == 0, imported.output
    assert "400" in imported.stdout
    sim = data(call("sim", "--symbol", "XRPUSDT", "--scoring", "interval_ms=1000", "--json"))
    assert sim["events"] > 0
    assert root.events("XRPUSDT").is_file()
    assert call("import", "nonsense", tmp_path / "tape.parquet").exit_code == 1


def test_optimise(call: Call, tmp_path: Path) -> None:
    axes = ("-s", "sl_pct=0.05:0.5:0.05", "-s", "max_hold_s=none,60")
    found = data(call("optimise", SESSION, *axes, "--trials", "12", "--min-trades", "0", "--json"))
    assert found["combinations"] == 12
    assert found["verdict"]["level"] in ("insufficient", "luck", "fails_out_of_sample", "supported")
    shown = call("optimise", SESSION, *axes, "--trials", "12", "-o", tmp_path / "all.parquet")
    assert "Best of 12 by net_pnl" in shown.stdout
    assert pl.read_parquet(tmp_path / "all.parquet").height == 12
    for wrong, message in (
        ("sl_pct=0.1:x", "LOW:HIGH"),
        ("sl_pt=0.1:0.2", "sl_pct"),
        ("sl_pct=0.5:0.1", "low < high"),
    ):
        refused = call("optimise", SESSION, "-s", wrong)
        assert refused.exit_code == 1
        assert message in refused.stderr


def test_export(call: Call, tmp_path: Path) -> None:
    result = call("export", SESSION, "-o", tmp_path / "features.parquet")
    assert result.exit_code == 0, result.output
    assert {"label", "barrier"} <= set(pl.read_parquet_schema(tmp_path / "features.parquet"))
    options = ("--tp-pct", "0.3", "--sl-pct", "none", "--side", "score", "-f", "flow_half_life_s=2")
    assert call("export", SESSION, "-o", tmp_path / "own.parquet", *options).exit_code == 0
    card = json.loads((tmp_path / "own.parquet.json").read_bytes())
    assert card["options"]["labels"] == {"tp_pct": 0.3, "sl_pct": None, "max_hold_s": 60, "side": "score"}
    bare = data(call("export", SESSION, "-o", tmp_path / "bare", "--at", "1s", "--no-labels", "--json"))
    assert bare["rows"] > 0
    assert "label" not in pl.read_parquet_schema(bare["files"][0])
    wrong = call("export", SESSION, "-o", tmp_path / "x.parquet", "--side", "up")
    assert wrong.exit_code == 1
    assert "side" in wrong.stderr


def test_broken_logs_are_named(call: Call, root: DataRoot) -> None:
    root.manifest(SESSION).write_text("{")
    shown = call("sessions", SESSION)
    assert shown.exit_code == 1
    assert "manifest.json" in shown.stderr


def test_a_missing_file_is_one_line(call: Call, tmp_path: Path) -> None:
    result = call("import", "binance-capture", tmp_path / "not-there.gz", "--symbol", "X")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "not-there.gz" in result.stderr
    assert os.linesep not in result.stderr.rstrip()


def test_the_documentation_names_commands_and_options_that_exist() -> None:
    """Every command line in docs/cli.md parses: known commands, known options."""
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    lines = [
        line.removeprefix("$ ").split("#")[0].split() for line in page.splitlines() if line.startswith("$ ")
    ]
    assert len(lines) > 6
    for words in lines:
        assert words[1] in COMMANDS
        shown = CliRunner().invoke(app, [words[1], "--help"]).stdout
        for option in (word for word in words[2:] if word.startswith("-")):
            assert f" {option} " in shown, f"{' '.join(words)}: {option}"
    named = [line.split("`")[1].split()[0] for line in page.splitlines() if line.startswith("| `")]
    assert set(COMMANDS) <= {*named, "stop", "recover"}


def test_tables_on_a_terminal_fit_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers stay whole, times fold between date and time of day, columns without room are named below."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    names = ["entry_threshold", "started", "net_pnl", "n_trades", "sharpe_per_trade", "max_drawdown", "fees"]
    rows = [[0.123456, "2025-11-18T10:20:00.000Z", -1234.56789, 1_234_567, 0.00012345, -98765.4, 1.5e7]]
    print_table([*names, "profit_factor", "expectancy"], [[*rows[0], 1.0, 2.0]])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(len(line) for line in shown.splitlines()) <= 80
    for whole in ("0.123456", "-1,234.57", "1,234,567", "0.00012345", "2025-11-18", "10:20:00.000Z"):
        assert whole in shown
    assert "not shown: " in shown
    assert "expectancy" in shown.split("not shown: ")[1]
