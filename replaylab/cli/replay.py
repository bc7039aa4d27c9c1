"""Commands that replay: replay, status, steer, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from replaylab.cli.terminal import (
    Data,
    Json,
    Param,
    Scoring,
    SessionId,
    complain,
    frame_dicts,
    on_terminal,
    open_existing,
    open_lab,
    parse_params,
    print_frame,
    print_json,
    print_table,
    say,
)
from replaylab.errors import ConfigError


def replay(
    session: SessionId,
    data: Data = None,
    speed: Annotated[
        str | None,
        typer.Option(
            help="Speed factor: 10 is ten times faster, inf as fast as it can. The session's if not given."
        ),
    ] = None,
    inject_mode: Annotated[
        str,
        typer.Option(help="SCORING_ONLY: recorded signals; FULL_DECISION: decide again from market data."),
    ] = "SCORING_ONLY",
    strict: Annotated[
        bool, typer.Option("--strict", help="SCORING_UPDATE and REGIME_UPDATE alone, no market data.")
    ] = False,
    loop: Annotated[bool, typer.Option("--loop", help="Start again at the end.")] = False,
    param: Param = None,
    scoring: Scoring = None,
    json: Json = False,
) -> None:
    """Play a session through the trading system; Ctrl-C stops it cleanly.

    What the run records goes into the session's own folder, never into the live logs.

    [bold]Examples[/bold]

    replaylab replay 2025-11-18T10-11-BTCUSDT --speed 20

    replaylab replay 2025-11-18T10-11-BTCUSDT --speed inf --param entry_threshold=0.5 --json
    """
    engine: Any = open_lab(data).engine(parse_params(param), parse_params(scoring, "--scoring") or None)
    engine.start_session(
        session, speed_factor=_speed(speed), loop=loop, inject_mode=inject_mode, strict=strict
    )
    try:
        _follow(engine)
        # The status says that it ended a moment before the run's record is there.
        engine.wait()
    except KeyboardInterrupt:
        engine.stop()
        engine.wait()
        raise
    final = engine.get_status()
    run = engine.last_run
    if json:
        print_json(
            {
                "status": final,
                "digest": run.digest,
                "realizedPnl": run.record["realizedPnl"],
                "params": run.record["params"],
                "paramsSource": run.params_source,
                "changes": run.record["changes"],
                "assumptions": run.assumptions,
                "path": str(run.path),
                "trades": frame_dicts(run.trades),
            }
        )
    else:
        if run.trades.height:
            print_frame(run.trades.select(*_TRADE_COLUMNS), title="Closed trades")
        say(f"{run.trades.height:,} closed trades, realised PnL {run.record['realizedPnl']:,.2f}")
        say(run.assumptions)
        say(f"digest {run.digest}")
        say(f"logs in {run.path}")
    if final.error:
        complain(final.error)
        raise typer.Exit(1)


_TRADE_COLUMNS = (
    "timestamp",
    "symbol",
    "side",
    "entry_price",
    "close_price",
    "qty",
    "realized_pnl",
    "reason",
    "duration_seconds",
)


def _speed(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        factor = float("inf" if value == "max" else value)
    except ValueError:
        factor = math.nan
    if not factor > 0:
        raise ConfigError(f"speed {value}: expected a number above 0, or inf", field="speed_factor")
    return factor


def _follow(engine: Any) -> None:
    """Wait for the end; on a terminal with a progress bar."""
    if not on_terminal():
        while engine.get_status().running:
            engine.wait(timeout=0.5)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[at]}  {task.fields[late]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        first = engine.get_status()
        bar = progress.add_task("", total=first.total_events, at="", late="")
        while True:
            engine.wait(timeout=0.1)
            now = engine.get_status()
            late = f"late p99 {now.lateness.p99:.2f} ms" if now.lateness else ""
            progress.update(
                bar,
                completed=now.current_event_index,
                total=now.total_events,
                at=now.last_event_timestamp or "",
                late=late,
            )
            if not now.running:
                return


def status(
    data: Data = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until the replay ends.")] = False,
    json: Json = False,
) -> None:
    """Show the replay of this data root, whichever process runs it.

    [bold]Examples[/bold]

    replaylab status

    replaylab status --json
    """
    from replaylab.replay import read_status

    root = open_existing(data).root
    now = read_status(root)
    while watch and now.running:
        _show(now, as_json=json)
        time.sleep(1.0)
        now = read_status(root)
    _show(now, as_json=json)


def _show(now: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(now)
        return
    plain = now.to_dict()
    late = plain.pop("lateness", None)
    if late:
        plain["lateness"] = ", ".join(f"{name} {value:.3f} ms" for name, value in late.items())
    print_table(("field", "value"), plain.items())


def steer(
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="pause, resume, step, seek or speed.")],
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="[VALUE]",
            help="step: number of events (default 1), or decision: to the next one. seek: an index or a time. "
            "speed: a factor, or inf.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Pause, resume, step, seek or change the speed of the replay of this data root, whichever process runs it.

    [bold]Examples[/bold]

    replaylab steer pause

    replaylab steer seek 2025-11-18T10:30:00Z

    replaylab steer speed 60
    """
    from replaylab.replay import ReplayControl

    control, target = ReplayControl(open_existing(data).root), value or ""
    commands: dict[str, Callable[[], object]] = {
        "pause": control.pause,
        "resume": control.resume,
        "step": lambda: (
            control.step(1, "decision") if value == "decision" else control.step(int(value or "1"))
        ),
        "seek": lambda: control.seek(int(target) if target.isdecimal() else target),
        "speed": lambda: control.set_speed(_speed(value) or 1.0),
    }
    if command not in commands:
        raise typer.BadParameter(f"{command!r}: expected one of {', '.join(commands)}")
    if (value is None) != (command in ("pause", "resume")) and command != "step":
        raise typer.BadParameter(f"{command} takes {'no' if value else 'one'} value")
    commands[command]()
    _show(control.status(), as_json=json)


def stop(data: Data = None, json: Json = False) -> None:
    """Stop the replay of this data root, whichever process runs it. Exit code 1 where none runs.

    [bold]Example[/bold]

    replaylab stop
    """
    from replaylab.replay import ReplayControl

    success = ReplayControl(open_existing(data).root).stop()
    message = "replay stopped" if success else "no replay is running"
    if json:
        print_json({"success": success, "message": message})
    elif success:
        say(message)
    else:
        complain(message)
    if not success:
        raise typer.Exit(1)
