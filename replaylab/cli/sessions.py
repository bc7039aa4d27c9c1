"""Commands that bring data in and make sessions: import, sim, build, sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from replaylab.cli.terminal import (
    Data,
    Json,
    Param,
    Scoring,
    frame_dicts,
    on_terminal,
    open_lab,
    parse_params,
    print_frame,
    print_json,
    print_table,
    say,
    split,
)
from replaylab.errors import HistoryError, SessionNotFoundError

Symbols = Annotated[
    list[str] | None,
    typer.Option("--symbol", "-s", help="Symbol; repeatable, or with commas.", show_default=False),
]
Start = Annotated[
    str | None, typer.Option("--from", help="First moment, ISO, UTC if no zone.", show_default=False)
]
End = Annotated[str | None, typer.Option("--to", help="End, ISO; itself not included.", show_default=False)]


def import_logs(
    source: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE...", help="SQLite, CSV, JSON, JSON Lines or Parquet files."),
    ],
    data: Data = None,
    preset: Annotated[
        str | None, typer.Option(help="A known program, one of those below.", show_default=False)
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file that says what the columns mean.", show_default=False)
    ] = None,
    symbol: Annotated[
        str | None, typer.Option("--symbol", "-s", help="This symbol only, or its name where none is given.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help='Of several strategies: the one to import, or "*" for all.')
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would be written, and write nothing.")] = False,
    suggest: Annotated[bool, typer.Option(help="Print a mapping proposed by the names of columns.")] = False,
    max_rejects: Annotated[
        float, typer.Option(help="Share of rows that may be rejected for one reason.")
    ] = 0.01,
    json: Json = False,
) -> None:
    """Bring the log of another program in: signals, orders, fills, trades. A second run adds only what is new.

    Presets: freqtrade, ccxt-trades, ccxt-orders, bybit-executions, bybit-closed-pnl, binance-user-trades,
    binance-income, hummingbot.

    [bold]Examples[/bold]

    replaylab import-logs tradesv3.sqlite --preset freqtrade --data bot

    replaylab import-logs bot.sqlite --suggest > bot.toml

    replaylab import-logs bot.sqlite --mapping bot.toml --dry-run
    """
    from replaylab.importers import mapping_text, suggest_mapping

    if suggest:
        found = suggest_mapping(source)
        if not found:
            raise HistoryError("no table looks like signals, orders, fills or trades: see docs/your-bot.md")
        print_json(found) if json else say(mapping_text(found))
        return
    report = open_lab(data).import_logs(
        source, preset, mapping, symbol, strategy, dry_run, max_rejects=max_rejects
    )
    if json:
        print_json(report.to_dict())
        return
    say(str(report))
    if dry_run:
        for log, frame in report.preview.items():
            print_frame(frame, title=f"{log}: first lines")


def import_(
    fmt: Annotated[str, typer.Argument(metavar="FORMAT", help="One of the formats below.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Files, folders, patterns; .gz, .zip, .zst as they are."),
    ],
    data: Data = None,
    symbol: Annotated[
        str | None, typer.Option("--symbol", "-s", help="Symbol, where the file does not name it.")
    ] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the time (csv, parquet).")] = None,
    timestamp_unit: Annotated[str | None, typer.Option(help="Unit of the time: s, ms, us or ns.")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Zone of times without an offset, such as Europe/Berlin.")
    ] = None,
    price: Annotated[str | None, typer.Option(help="Column of the price (csv, parquet).")] = None,
    qty: Annotated[str | None, typer.Option(help="Column of the quantity (csv, parquet).")] = None,
    side: Annotated[str | None, typer.Option(help="Column of the taker's side (csv, parquet).")] = None,
    buyer_maker: Annotated[
        str | None, typer.Option(help="Column that is true where the buyer was the maker (csv, parquet).")
    ] = None,
    trade_id: Annotated[str | None, typer.Option(help="Column of the trade id (csv, parquet).")] = None,
    received_at: Annotated[str | None, typer.Option(help="Column of the local time (csv, parquet).")] = None,
    buy_word: Annotated[str | None, typer.Option(help="Word of the side column for a buy.")] = None,
    sell_word: Annotated[str | None, typer.Option(help="Word of the side column for a sell.")] = None,
    market: Annotated[str | None, typer.Option(help="linear or spot (bybit-capture).")] = None,
    funding_rate: Annotated[str | None, typer.Option(help="Column of the rate (funding).")] = None,
    mark_price: Annotated[str | None, typer.Option(help="Column of the mark price (funding).")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Character between columns (csv), found if not given.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of the columns in order, with commas, where there is no header.")
    ] = None,
    max_rejects: Annotated[
        float, typer.Option(help="Share of lines that may be rejected for one reason.")
    ] = 0.01,
    contract_size: Annotated[
        float | None, typer.Option(help="Quote currency of one contract, where quantities are contracts.")
    ] = None,
    clock: Annotated[
        Literal["exchange", "receive"], typer.Option(help="Time to sort by: exchange or receive.")
    ] = "exchange",
    save_as: Annotated[str | None, typer.Option(help="Store the symbol under this name.")] = None,
    gap_s: Annotated[float, typer.Option(help="Report pauses longer than this many seconds.")] = 60.0,
    json: Json = False,
) -> None:
    """Bring exchange history in as market data of this data root.

    Formats: bybit-trades, bybit-book, bybit-capture, binance-trades, binance-agg-trades, binance-capture,
    tardis-trades, tardis-book, csv, json, parquet, book-table, funding, instruments. Importing a file again changes
    nothing. Folders are read whole; NAME.CHECKSUM next to a file is verified.

    [bold]Examples[/bold]

    replaylab import binance-capture btcusdt_20240718.gz --symbol BTCUSDT

    replaylab import parquet tape.parquet --symbol BTCUSDT --timestamp time --timestamp-unit ms --price px --qty size
    """
    report = open_lab(data).import_history(
        fmt,
        files,
        symbol=symbol,
        progress=on_terminal() and not json,
        clock=clock,
        save_as=save_as,
        gap_s=gap_s,
        contract_size=contract_size,
        max_rejects=max_rejects,
        market=market,
        timestamp=timestamp,
        timestamp_unit=timestamp_unit,
        time_zone=time_zone,
        price=price,
        qty=qty,
        side=side,
        buyer_maker=buyer_maker,
        trade_id=trade_id,
        received_at=received_at,
        buy_word=buy_word,
        sell_word=sell_word,
        delimiter=delimiter,
        columns=columns,
        funding_rate=funding_rate,
        mark_price=mark_price,
    )
    if json:
        print_json(report)
    else:
        say(str(report))


def sim(
    data: Data = None,
    symbol: Symbols = None,
    start: Start = None,
    end: End = None,
    param: Param = None,
    scoring: Scoring = None,
    write_market: Annotated[
        bool, typer.Option("--write-market", help="Write metrics/, trades/ and orderbook/ too.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move the logs of an earlier simulation to replaced/ first.")
    ] = False,
    json: Json = False,
) -> None:
    """Trade over the imported market data in SIM mode, as though live; writes the logs of this root.

    [bold]Examples[/bold]

    replaylab sim --symbol BTCUSDT --param entry_threshold=0.5

    replaylab sim --symbol BTCUSDT --param entry_threshold=0.4 --replace
    """
    lab = open_lab(data)
    result = lab.run_sim(
        symbols=split(symbol),
        start=start,
        end=end,
        params=parse_params(param),
        scoring=parse_params(scoring, "--scoring") or None,
        write_market=write_market,
        overlap="replace" if replace else "error",
        progress=on_terminal() and not json,
    )
    summary = {
        "events": result.events.height,
        "orders": result.orders.height,
        "trades": result.trades.height,
        "realizedPnl": result.trades["realized_pnl"].sum() if result.trades.height else 0.0,
    }
    if json:
        print_json({**summary, "tradeLog": frame_dicts(result.trades)})
    else:
        say(
            f"{summary['events']:,} state events, {summary['orders']:,} order records, "
            f"{summary['trades']:,} closed trades, realised PnL {summary['realizedPnl']:,.2f}"
        )
        say(f"logs in {lab.root}" + (f"; the earlier ones in {result.replaced}" if result.replaced else ""))


def build(
    start: Annotated[
        str, typer.Option("--from", help="First moment, ISO, UTC if no zone.", show_default=False)
    ],
    end: Annotated[str, typer.Option("--to", help="End, ISO; itself not included.", show_default=False)],
    symbol: Annotated[
        list[str],
        typer.Option("--symbol", "-s", help="Symbol; repeatable, or with commas.", show_default=False),
    ],
    data: Data = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            "-t",
            help="Event type, also EXECUTION_*; repeatable. All if not given.",
            show_default=False,
        ),
    ] = None,
    max_events: Annotated[
        int | None, typer.Option(help="Keep only the first N events.", min=0, show_default=False)
    ] = None,
    session_id: Annotated[
        str | None, typer.Option("--id", help="Session id; made from range and symbols if not given.")
    ] = None,
    notes: Annotated[str | None, typer.Option(help="A note to keep with it.")] = None,
    speed: Annotated[
        float, typer.Option(help="Speed factor that the session is played at by default.")
    ] = 1.0,
    if_exists: Annotated[str, typer.Option(help="error, reuse or replace.")] = "error",
    json: Json = False,
) -> None:
    """Build a replay session from the logs and market data of a time range.

    [bold]Example[/bold]

    replaylab build --from 2025-11-18T10:00 --to 2025-11-18T11:00 --symbol BTCUSDT,ETHUSDT
    """
    lab = open_lab(data)
    manifest = lab.build_replay_session(
        start,
        end,
        split(symbol) or [],
        include_types=split(types),
        max_events=max_events,
        session_id=session_id,
        notes=notes,
        speed_factor=speed,
        if_exists=if_exists,  # type: ignore[arg-type]  # checked there, with the allowed words
        progress=on_terminal(),
    )
    if json:
        print_json({**manifest.to_dict(), "warnings": lab.session(manifest).warnings})
    else:
        say(manifest.session_id)
        say(f"{_total(manifest)} events of {', '.join(manifest.symbols)}: {', '.join(manifest.event_types)}")


def sessions(
    session: Annotated[
        str | None, typer.Argument(metavar="[SESSION]", help="Show this one in detail.", show_default=False)
    ] = None,
    data: Data = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the session named, its runs too.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Accept the events of the session named as they are now.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting.")] = False,
    json: Json = False,
) -> None:
    """List the replay sessions, show one in detail, or delete one.

    The events of a session are compared with the digest that its build recorded; a session that was edited on
    purpose is accepted with --rehash.

    [bold]Examples[/bold]

    replaylab sessions

    replaylab sessions 2025-11-18T10-11-BTCUSDT

    replaylab sessions 2025-11-18T10-11-BTCUSDT --delete --yes
    """
    store = open_lab(data).sessions
    if session is None:
        if delete or rehash:
            raise typer.BadParameter(f"{'--delete' if delete else '--rehash'} needs the name of a session")
        _list(store.list_sessions(), as_json=json, data=data)
        return
    if not store.root.session_dir(session).is_dir():
        raise SessionNotFoundError(f"there is no session {session!r} in {data}: see replaylab sessions")
    if delete:
        if not yes:
            typer.confirm(f"Delete session {session} and its runs?", abort=True)
        store.delete_session(session)
        say(f"deleted {session}")
        return
    manifest = store.rehash(session) if rehash else store.get_session(session)
    if manifest is None:
        raise SessionNotFoundError(f"session {session!r} in {data} has no manifest.json: build or delete it")
    if rehash:
        say(f"{session}: {_total(manifest)} events accepted")
    elif json:
        print_json(manifest)
    else:
        _detail(store.open(session), manifest)


def _total(manifest: Any) -> str:
    total = manifest.to_dict().get("totalEvents")
    return "?" if total is None else f"{total:,}"


def _list(manifests: list[Any], *, as_json: bool, data: Path | None) -> None:
    if as_json:
        print_json([manifest.to_dict() for manifest in manifests])
        return
    if not manifests:
        say(f"no sessions in {data}: make one with replaylab build")
        return
    print_table(
        ("session", "from", "to", "symbols", "events", "speed", "notes"),
        [
            (
                manifest.session_id,
                manifest.source_date_range.from_,
                manifest.source_date_range.to,
                manifest.symbols,
                _total(manifest),
                manifest.speed_factor,
                manifest.notes or "",
            )
            for manifest in manifests
        ],
    )


def _detail(session: Any, manifest: Any) -> None:
    plain = manifest.to_dict()
    between = plain.pop("sourceDateRange")
    print_table(("field", "value"), [*plain.items(), ("from", between["from"]), ("to", between["to"])])
    counts = session.events.group_by("type", "symbol").len().sort("type", "symbol")
    print_table(("type", "symbol", "events"), counts.rows())
    if session.rejects.height:
        say(f"{session.rejects.height} lines could not be read")
    for message in session.warnings:
        say(f"warning: {message}")
