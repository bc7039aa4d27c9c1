"""Commands of research: backtest, sweep, what-if, fidelity, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from replaylab.cli.terminal import (
    Data,
    Json,
    Param,
    SessionId,
    SessionIds,
    frame_dicts,
    on_terminal,
    open_lab,
    parse_grid,
    parse_params,
    parse_space,
    print_frame,
    print_json,
    print_table,
    say,
    split,
)
from replaylab.errors import SweepError
from replaylab.fsio import atomic_path

if TYPE_CHECKING:
    from replaylab.sweep import SweepResult

InjectMode = Annotated[
    Literal["SCORING_ONLY", "FULL_DECISION"],
    typer.Option(help="SCORING_ONLY: recorded signals; FULL_DECISION: signals computed from market data."),
]
PriceSource = Annotated[str, typer.Option(help="Where prices come from: auto, trade, book or score.")]
_BEST_COLUMNS = ("net_pnl", "n_trades", "win_rate", "profit_factor", "max_drawdown", "sharpe_per_trade")


def backtest(
    session: SessionId,
    data: Data = None,
    param: Param = None,
    price_source: PriceSource = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the trades here: .parquet or .csv.")
    ] = None,
    json: Json = False,
) -> None:
    """Run one set of parameters over a session, at the speed of a sweep.

    [bold]Example[/bold]

    replaylab backtest 2025-11-18T10-11-BTCUSDT --param sl_pct=0.2 --param trailing_activation_pct=0.3
    """
    result = open_lab(data).backtest(session, parse_params(param), price_source=price_source)
    if output is not None:
        _write(result.trades, output)
    if json:
        print_json({"metrics": dict(result.metrics), "trades": frame_dicts(result.trades)})
        return
    print_table(("metric", "value"), dict(result.metrics).items())
    if output is not None:
        say(f"trades in {output}")


def sweep(
    session: SessionIds,
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid",
            "-g",
            metavar="NAME=VALUES",
            help="Axis: 0.5,0.6,none or FIRST:LAST:COUNT. Repeatable.",
            show_default=False,
        ),
    ],
    data: Data = None,
    param: Param = None,
    price_source: PriceSource = "auto",
    by: Annotated[str, typer.Option(help="Metric that ranks the combinations.")] = "net_pnl",
    best: Annotated[int, typer.Option(help="How many of the best to show.", min=1)] = 10,
    min_trades: Annotated[int, typer.Option(help="Combinations with fewer trades come last.", min=0)] = 30,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all combinations here: .parquet or .csv.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Of several sessions: keep the sums of each here; a second run takes them."),
    ] = None,
    json: Json = False,
) -> None:
    """Try every combination of a grid of parameters over a session, or over several together.

    [bold]Examples[/bold]

    replaylab sweep 2025-11-18T10-11-BTCUSDT --grid entry_threshold=0.5,0.6 --grid tp1_pct=0.1:1.0:10

    replaylab sweep 2025-11-18T10-11-BTCUSDT -g sl_pct=0.1:0.5:5 -p max_hold_s=600 -o out.parquet

    replaylab sweep monday tuesday wednesday -g sl_pct=0.1:0.5:5 --folder study
    """
    axes = parse_grid(grid)
    result = open_lab(data).sweep(
        session[0] if len(session) == 1 else session,
        axes,
        params=parse_params(param),
        price_source=price_source,
        progress=on_terminal(),
        folder=folder,
    )
    _show(result, by, best, min_trades, output, json=json)


def optimise(
    session: SessionIds,
    space: Annotated[
        list[str],
        typer.Option(
            "--space",
            "-s",
            metavar="NAME=RANGE",
            help="Axis: LOW:HIGH, LOW:HIGH:STEP, or choices 0.5,0.6,none. Repeatable.",
            show_default=False,
        ),
    ],
    data: Data = None,
    param: Param = None,
    metric: Annotated[str, typer.Option(help="Metric that is maximised.")] = "net_pnl",
    trials: Annotated[int, typer.Option(help="How many sets to try.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Equal seeds try equal sets.")] = 0,
    price_source: PriceSource = "auto",
    best: Annotated[int, typer.Option(help="How many of the best to show.", min=1)] = 10,
    min_trades: Annotated[int, typer.Option(help="Sets with fewer trades count as worse.", min=0)] = 30,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all sets here: .parquet or .csv.")
    ] = None,
    json: Json = False,
) -> None:
    """Search a space of parameters with feedback: each batch of sets is chosen with what the earlier ones gave.

    [bold]Examples[/bold]

    replaylab optimise 2025-11-18T10-11-BTCUSDT -s entry_threshold=0.3:0.9 -s sl_pct=0.05:0.5:0.05

    replaylab optimise monday tuesday -s max_hold_s=none,60 -s sl_pct=0.1:0.5 --trials 1000 --metric expectancy
    """
    result = open_lab(data).optimise(
        session[0] if len(session) == 1 else session,
        parse_space(space),
        metric,
        trials,
        parse_params(param),
        seed=seed,
        min_trades=min_trades,
        price_source=price_source,
        progress=on_terminal(),
    )
    _show(result, metric, best, min_trades, output, json=json)


def _show(
    result: SweepResult, by: str, best: int, min_trades: int, output: Path | None, *, json: bool
) -> None:
    """Print the best rows and the verdict; write all rows."""
    if by not in result.frame.columns:
        raise SweepError(f"--by {by}: no such metric; there are {', '.join(result.frame.columns)}")
    if output is not None:
        if output.suffix == ".csv":
            _write(result.frame, output)
        else:
            with atomic_path(output) as part:
                result.save(part)
    top = result.best(best, by, min_trades)
    if json:
        judged = result.verdict(min_trades).to_dict()
        print_json({"combinations": result.frame.height, "best": frame_dicts(top), "verdict": judged})
        return
    # The axes that vary; in 80 columns a table shows some six numbers.
    varied = [name for name in result.axes if len(result.axes[name]) > 1]
    columns = [name for name in (*varied, *_BEST_COLUMNS, by) if name in top.columns]
    print_frame(top.select(list(dict.fromkeys(columns))), title=f"Best of {result.frame.height:,} by {by}")
    few = top.height - int(top["enough_trades"].sum())
    if few:
        say(f"the last {few} of these have fewer than {min_trades} trades: they rank after all others")
    say(repr(result.verdict(min_trades)))
    if output is not None:
        say(f"all combinations in {output}")


def what_if(
    session: SessionId,
    data: Data = None,
    param: Param = None,
    price_source: PriceSource = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the trades here: .parquet or .csv.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare the trades that were logged with those of changed parameters: same, changed, avoided, added.

    [bold]Example[/bold]

    replaylab what-if 2025-11-18T10-11-BTCUSDT -p sl_pct=0.5
    """
    found = open_lab(data).what_if(session, parse_params(param), price_source=price_source)
    if output is not None:
        _write(found.trades, output)
    if json:
        summary = frame_dicts(found.summary)
        print_json({"difference": found.difference, "summary": summary, "trades": frame_dicts(found.trades)})
        return
    print_frame(found.summary, title="Trades by status (PnL in USD)")
    say(f"PnL difference {found.difference:+,.2f} USD")
    say(found.assumptions)


def fidelity(
    session: SessionId,
    data: Data = None,
    inject_mode: InjectMode = "SCORING_ONLY",
    param: Param = None,
    price_source: PriceSource = "auto",
    json: Json = False,
) -> None:
    """Replay a session under its recorded parameters and compare every trade, order and decision with the logs.

    Exit code 1 where something differs.

    [bold]Example[/bold]

    replaylab fidelity 2025-11-18T10-11-BTCUSDT --inject-mode FULL_DECISION
    """
    found = open_lab(data).fidelity(
        session, inject_mode, params=parse_params(param) or None, price_source=price_source
    )
    if json:
        print_json(found.to_dict())
    else:
        print_frame(found.summary, title=found.headline)
        if found.differences.height:
            print_frame(found.differences, title="Differences", limit=20)
    if not found.is_identical:
        raise typer.Exit(1)


def reconcile(
    session: SessionId,
    data: Data = None,
    param: Param = None,
    price_source: PriceSource = "auto",
    tolerance: Annotated[
        float, typer.Option(help="Difference (USD) up to which live and model agree.", min=0.0)
    ] = 0.01,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the trades here: .parquet or .csv.")
    ] = None,
    json: Json = False,
) -> None:
    """Split live PnL minus model PnL by cause: signals, missed entries, delays, prices, quantity, fees, funding.

    Exit code 0 where they agree within --tolerance, 1 where they differ, 3 where the model does not describe the bot.

    [bold]Examples[/bold]

    replaylab reconcile 2025-11-18T10-11-BTCUSDT

    replaylab reconcile 2025-11-18T10-11-BTCUSDT -p latency_ms=80 -o trades.csv
    """
    found = open_lab(data).reconcile(
        session, parse_params(param), price_source=price_source, progress=on_terminal()
    )
    if output is not None:
        _write(found.trades, output)
    if json:
        print_json(found.to_dict())
    else:
        if not found.is_described:
            say("the model does not describe this bot:")
            for line in found.reasons or ["no reason found"]:
                say(f"  {line}")
        say(found.summary)
        print_frame(found.causes, title="Live minus model by cause (PnL in USD)")
        for line in (*found.notes, found.assumptions):
            say(line)
    if not found.is_described:
        raise typer.Exit(3)
    # A difference of causes that cancel out is a difference.
    if float(found.causes["pnl"].abs().sum()) > tolerance:
        raise typer.Exit(1)


def calibrate(
    session: SessionIds,
    data: Data = None,
    price_source: PriceSource = "auto",
    json: Json = False,
) -> None:
    """Learn latency, slippage, fees and how limit orders fill from the order log, for one session or several.

    [bold]Examples[/bold]

    replaylab calibrate 2025-11-18T10-11-BTCUSDT

    replaylab calibrate monday tuesday --json
    """
    found = open_lab(data).calibrate(session, price_source=price_source, progress=on_terminal())
    if json:
        print_json(found.to_dict())
        return
    print_frame(found.table, title=f"Estimates from {found.orders:,} orders (95 % intervals)")
    if found.fills.height:
        print_frame(found.fills, title="Forecasts of limit fills: wrong share out of sample, share filled")
    for note in found.notes:
        say(note)
    if found.changes:
        say("as parameters: " + " ".join(f"-p {name}={value}" for name, value in found.changes.items()))


def _write(frame: Any, path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise SweepError(f"{path}: expected a name that ends in .parquet or .csv")
    # Ctrl-C leaves no half of a file.
    with atomic_path(path) as part:
        (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(part)


def export(
    session: SessionIds,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder, or Parquet file, to write.", show_default=False),
    ],
    data: Data = None,
    at: Annotated[
        str, typer.Option(help="A row per score (scoring), or per period, such as 1s.")
    ] = "scoring",
    symbol: Annotated[
        list[str] | None,
        typer.Option("--symbol", "-s", help="Symbol; repeatable, or with commas.", show_default=False),
    ] = None,
    tp_pct: Annotated[str, typer.Option(help="Target of the labels, % of the entry price; or none.")] = "0.2",
    sl_pct: Annotated[str, typer.Option(help="Stop of the labels, %; or none.")] = "0.15",
    max_hold_s: Annotated[str, typer.Option(help="Time barrier of the labels, seconds; or none.")] = "60",
    side: Annotated[str, typer.Option(help="Side of the labels: long, short, or score.")] = "long",
    labels: Annotated[bool, typer.Option(help="Write labels.")] = True,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature", "-f", help="Look-back of features, such as flow_half_life_s=2.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write features and labels of sessions as a Parquet dataset for machine learning.

    [bold]Examples[/bold]

    replaylab export 2025-11-18T10-11-BTCUSDT -o features.parquet

    replaylab export monday tuesday -o dataset --tp-pct 0.3 --max-hold-s none --side score

    replaylab export monday -o grid.parquet --at 1s --no-labels -f flow_half_life_s=2
    """
    from replaylab.features import FeatureParams

    barriers = {"tp_pct": tp_pct, "sl_pct": sl_pct, "max_hold_s": max_hold_s}
    chosen: dict[str, Any] = {
        **parse_params([f"{name}={value}" for name, value in barriers.items()], "labels"),
        "side": side,
    }
    found = open_lab(data).export_features(
        session,
        output,
        labels=chosen if labels else None,
        at=at,
        symbols=split(symbol),
        params=FeatureParams.of(parse_params(feature, "--feature"), "--feature") if feature else None,
        progress=on_terminal(),
    )
    if json:
        print_json(
            {"path": str(found.path), "rows": found.rows, "files": [str(file) for file in found.files]}
        )
    else:
        say(f"{found.rows:,} rows of features in {output}")
