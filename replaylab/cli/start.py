"""Commands to begin with: demo, serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from replaylab.cli.common import Data, Json, print_json, say

__all__ = ["demo", "serve", "show_version"]


def _version(wanted: bool) -> None:
    if wanted:
        from replaylab import __version__

        say(f"replaylab {__version__}")
        raise typer.Exit


show_version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
]


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and pictures.")] = Path(
        "demo-results"
    ),
    json: Json = False,
) -> None:
    """The main job from end to end on sample data, in about a minute.

    Simulates live trading over a generated market, builds a session from the logs, replays it, sweeps it, and
    leaves tables and pictures.

    [bold]Example[/bold]

    replaylab demo -o results
    """
    from replaylab import demo as story

    summary = story.run(output, say=None if json else say)
    if json:
        print_json(summary)


def serve(
    data: Data = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8899,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token that clients send. One is made and printed if not given.", show_default=False
        ),
    ] = None,
    ip: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration, TOML or JSON; retention.dailyAt in it cleans up daily.", show_default=False
        ),
    ] = None,
) -> None:
    """Serve the HTTP API under /api/replay, with Jupyter's authentication. Ctrl-C ends it.

    [bold]Example[/bold]

    replaylab serve --data data --port 8899 --token secret

    curl -H 'Authorization: token secret' http://127.0.0.1:8899/api/replay/status
    """
    command = [sys.executable, "-m", "replaylab.server", f"--Replaylab.data_root={data}"]
    command += [f"--ServerApp.port={port}", f"--ServerApp.ip={ip}"]
    if config is not None:
        command.append(f"--Replaylab.config_path={config.absolute()}")
    if token is not None:
        # In the environment and not in the arguments, which every user of the machine can read.
        os.environ["JUPYTER_TOKEN"] = token
    sys.stdout.flush()
    # The server takes the place of this process, so that signals reach it and its exit code is ours.
    os.execv(sys.executable, command)
