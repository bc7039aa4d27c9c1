"""The command line: `replaylab COMMAND`, one command per job. No logic of its own.

    $ replaylab demo
    $ replaylab sessions --data data
    $ replaylab sweep SESSION --grid entry_threshold=0.5,0.6 --grid tp1_pct=0.1:1.0:10

Exit codes: 0 done; 1 refused or failed, with one line on stderr; 2 the command line itself is wrong; 130 interrupted.
``verify``, ``recover`` and ``health`` say more in theirs: see ``docs/cli.md``.
"""

from __future__ import annotations

import typer

from replaylab.cli.operations import (
    demo,
    health,
    recover,
    retention,
    serve,
    show_version,
    verify,
    warm_up,
)
from replaylab.cli.replay import replay, status, steer, stop
from replaylab.cli.research import backtest, calibrate, export, fidelity, optimise, reconcile, sweep, what_if
from replaylab.cli.sessions import build, import_, import_logs, sessions, sim
from replaylab.cli.terminal import CommandGroup, DataOfAll

__all__ = ["app", "main"]

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Record algorithmic trading, play it again, and see what other parameters would have done.",
    epilog="Begin with: [bold]replaylab demo[/bold]",
)


@app.callback()
def options(data: DataOfAll = None, version: show_version = False) -> None:
    """Options in front of the command."""


START, MAKE, PLAY, RESEARCH, KEEP = "Start", "Make sessions", "Replay", "Research", "Keep data in order"
for panel, name, command in (
    (START, "demo", demo),
    (START, "serve", serve),
    (MAKE, "import", import_),
    (MAKE, "import-logs", import_logs),
    (MAKE, "sim", sim),
    (MAKE, "build", build),
    (MAKE, "sessions", sessions),
    (PLAY, "replay", replay),
    (PLAY, "status", status),
    (PLAY, "steer", steer),
    (PLAY, "stop", stop),
    (RESEARCH, "backtest", backtest),
    (RESEARCH, "sweep", sweep),
    (RESEARCH, "optimise", optimise),
    (RESEARCH, "what-if", what_if),
    (RESEARCH, "fidelity", fidelity),
    (RESEARCH, "reconcile", reconcile),
    (RESEARCH, "calibrate", calibrate),
    (RESEARCH, "export", export),
    (RESEARCH, "warm-up", warm_up),
    (KEEP, "retention", retention),
    (KEEP, "verify", verify),
    (KEEP, "recover", recover),
    (KEEP, "health", health),
):
    app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line of this process; ends it with the documented exit code."""
    app(prog_name="replaylab")
