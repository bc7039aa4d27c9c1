"""Commands that run and maintain an installation: demo, serve, warm-up, retention, verify, recover, health."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from replaylab.cli.terminal import Data, Json, complain, open_existing, print_json, print_table, say


def retention(
    data: Data = None,
    now: Annotated[
        str | None, typer.Option(help="Act as though it were this moment, ISO.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration, TOML or JSON, with the retention settings.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    json: Json = False,
) -> None:
    """Delete what is older than the retention settings of --config; summaries are written first.

    Without --config the defaults hold, and nothing is archived. Exit code 1 where a file could not be handled.

    [bold]Examples[/bold]

    replaylab retention --dry-run

    30 3 * * *  replaylab retention --data /srv/bot/data --config /srv/bot/replaylab.toml --json   (a line for cron)
    """
    report = open_existing(data, config).run_retention(now=now, dry_run=dry_run)
    if json:
        print_json(report)
    else:
        rows = [(name, "would be deleted" if dry_run else "deleted") for name in report.deleted_files]
        rows += [(item.file, item.error) for item in report.errors]
        if rows:
            print_table(("file", "what"), rows)
        say(
            f"{len(report.deleted_files)} deleted, {len(report.kept_files)} kept, {len(report.errors)} errors"
            + (" (nothing was changed)" if dry_run else "")
        )
    if report.errors:
        raise typer.Exit(1)


def verify(
    path: Annotated[Path, typer.Argument(help="A data root, a folder or one log file.", exists=True)],
    json: Json = False,
) -> None:
    """Check every line of every log against the documented formats.

    Exit code 0: clean. 1: findings, listed in a table. A file or folder in which there is nothing to check is one.

    [bold]Example[/bold]

    replaylab verify data
    """
    from replaylab.archive import verify as check

    report = check(path)
    if json:
        print_json(report)
    else:
        if report.findings.height:
            print_table(report.findings.columns, report.findings.rows())
        others = f"; {report.skipped:,} files of other kinds were not checked" if report.skipped else ""
        say(f"{report.files:,} files, {report.lines:,} lines, findings: {report.findings.height:,}{others}")
    if report.findings.height:
        raise typer.Exit(1)


def recover(
    file: Annotated[Path, typer.Argument(help="A damaged log file; it is never changed.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the good lines go.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Copy all that can be read of a damaged log.

    Exit code 0: nothing was lost. 3: something was, with a report of what. 1: failed, and nothing was written.

    [bold]Example[/bold]

    replaylab recover events/BTCUSDT.jsonl -o recovered.jsonl
    """
    from replaylab.archive import recover as rescue

    report = rescue(file, output)
    if json:
        print_json(report)
    else:
        if report.lost.height:
            print_table(report.lost.columns, report.lost.rows())
        more = f" ({report.unlisted:,} of them not listed)" if report.unlisted else ""
        lost = report.lost.height + report.unlisted
        say(f"{report.kept:,} records kept, {lost:,} lines lost or damaged{more}; in {output}")
    if report.lost.height:
        raise typer.Exit(3)


def health(data: Data = None, json: Json = False) -> None:
    """Show the health of logging, replay and retention. Exit code 1 where one has the status ERROR.

    [bold]Example[/bold]

    replaylab health --json
    """
    snapshot = open_existing(data).health()
    if json:
        print_json(snapshot)
    else:
        print_table(
            ("service", "status", "since", "message"),
            [
                (name, service.status, service.last_update_at, service.message or "")
                for name, service in snapshot.services.items()
            ],
        )
    failed = [name for name, service in snapshot.services.items() if service.status == "ERROR"]
    if failed:
        complain(f"status ERROR: {', '.join(failed)}")
        raise typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from replaylab import __version__

        say(f"replaylab {__version__}")
        raise typer.Exit


show_version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
]


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and plots.")] = Path(
        "demo-results"
    ),
    json: Json = False,
) -> None:
    """The main job from end to end on sample data, in about a minute.

    Simulates live trading over a generated market, builds a session from the logs, replays it, sweeps it, and
    leaves tables and plots.

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
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="No authentication; on 127.0.0.1 only.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration, TOML or JSON; retention.dailyAt in it cleans up daily.", show_default=False
        ),
    ] = None,
) -> None:
    """Serve the dashboard at / and the HTTP API under /api/replay, with Jupyter's authentication. Ctrl-C ends it.

    [bold]Example[/bold]

    replaylab serve --data data --port 8899 --token secret

    curl -H 'Authorization: token secret' http://127.0.0.1:8899/api/replay/status
    """
    command = [sys.executable, "-m", "replaylab.server.app", f"--Replaylab.data_root={data}"]
    command += [f"--ServerApp.port={port}", f"--ServerApp.ip={ip}"]
    if config is not None:
        command.append(f"--Replaylab.config_path={config.absolute()}")
    if insecure_no_auth:
        command.append("--ApiServer.insecure_no_auth=True")
    if token is not None or insecure_no_auth:
        # In the environment and not in the arguments, which every user of the machine can read.
        os.environ["REPLAYLAB_TOKEN"] = token or ""
    sys.stdout.flush()
    # The server takes the place of this process, so that signals reach it and its exit code is ours.
    os.execv(sys.executable, command)


def warm_up() -> None:
    """Compile the code of sweeps and of reading large logs once, so that the first of them does not wait for it.

    [bold]Example[/bold]

    replaylab warm-up
    """
    from replaylab.frames import warm_up as compile_reader
    from replaylab.sweep import warm_up as compile_sweeps

    compile_sweeps()
    compile_reader()
