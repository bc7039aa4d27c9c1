"""All days at a glance: what summaries say of days that are gone, and the logs of those that are still there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import polars as pl

from replaylab import frames
from replaylab.archive.pieces import LineTimes
from replaylab.archive.summary import Account, SymbolSummary, merge, read_summary, summarise
from replaylab.frames.files import ReplacedError
from replaylab.frames.fingerprint import begins_with
from replaylab.frames.loaded import TIMESTAMP
from replaylab.frames.sources import open_log, until_whole
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key

__all__ = ["DAILY_SCHEMA", "daily_summary"]

DAILY_SCHEMA = pl.Schema(
    [
        ("day", pl.Date()),
        ("log", pl.String()),
        ("symbol", pl.String()),
        ("rows", pl.Int64()),
        ("rejects", pl.Int64()),
        ("first_timestamp", TIMESTAMP),
        ("last_timestamp", TIMESTAMP),
        ("wins", pl.Int64()),
        ("losses", pl.Int64()),
        ("win_rate", pl.Float64()),
        ("realized_pnl", pl.Float64()),
        ("fees", pl.Float64()),
        ("notional_usd", pl.Float64()),
        ("exit_reasons", pl.String()),
        ("statuses", pl.String()),
        ("event_types", pl.String()),
        ("score_count", pl.Int64()),
        ("score_mean", pl.Float64()),
        ("score_min", pl.Float64()),
        ("score_max", pl.Float64()),
        ("score_bins", pl.List(pl.Int64())),
    ]
)
Key = tuple[str, str, str | None]
_SUMMARIES = "**/day-*.json"
_TRIES = 5


def daily_summary(root: DataRoot | str | os.PathLike[str], *, live: bool = True) -> pl.DataFrame:
    """Return a row per day, log and symbol, also of days whose files are gone.

    >>> daily_summary("data").filter(log="trades_log").select("day", "realized_pnl")      # doctest: +SKIP

    ``exit_reasons``, ``statuses`` and ``event_types`` are JSON texts of counts, ``score_bins`` are 20 equal bins of the
    score over −1 to 1. Lines that could not be read are counted in ``rejects`` of a row without a symbol.
    ``live=False`` reads the summaries alone, and not the logs that are still there.
    """
    place = DataRoot(root)
    # What a clean-up takes away between the reading of summaries and of logs would be in neither, so it is seen.
    for _ in range(_TRIES):
        before = _versions(place)
        frame = _read(place, live=live)
        if _versions(place) == before:
            break
    return frame


def _versions(root: DataRoot) -> dict[Path, tuple[int, int]]:
    """Return which summaries there are, each with what changes when it is written anew."""
    found = {}
    for path in root.summary_dir.glob(_SUMMARIES):
        # A summary is replaced, never removed, and a link may point to nothing.
        with suppress(FileNotFoundError):
            state = path.stat()
            found[path] = (state.st_ino, state.st_mtime_ns)
    return found


def _read(place: DataRoot, *, live: bool) -> pl.DataFrame:
    parts: dict[Key, list[SymbolSummary]] = {}
    rejects: dict[Key, int] = {}
    for log, day, account in _accounts(place):
        if live and account.pending and _is_still_there(place, account):
            continue
        for symbol, part in account.symbols.items():
            parts.setdefault((day, log, symbol), []).append(part)
        if account.rejects:
            rejects[day, log, None] = rejects.get((day, log, None), 0) + account.rejects
    if live:
        for log, day, symbols, refused in _live(place):
            for symbol, part in symbols.items():
                parts.setdefault((day, log, symbol), []).append(part)
            if refused:
                rejects[day, log, None] = rejects.get((day, log, None), 0) + refused
    rows = [_row(key, merge(found), 0) for key, found in parts.items()]
    rows += [_row(key, SymbolSummary(), count) for key, count in rejects.items()]
    frame = pl.DataFrame(rows, schema=DAILY_SCHEMA, orient="row") if rows else DAILY_SCHEMA.to_frame()
    return frame.sort("day", "log", "symbol", nulls_last=True)


def _accounts(root: DataRoot) -> Iterator[tuple[str, str, Account]]:
    for path in sorted(root.summary_dir.glob(_SUMMARIES)):
        try:
            summary = read_summary(path)
        except (OSError, ValueError) as error:
            warnings.warn(
                f"{error}; what it says of its day is left out: restore it, or move it out of {root.summary_dir}",
                stacklevel=5,
            )
            continue
        if summary is not None:
            log = summary.log.split("/")[0]
            yield from ((log, summary.day, account) for account in summary.accounts)


def _is_still_there(root: DataRoot, account: Account) -> bool:
    file = open_log(root.path / account.file)
    if file is None:
        return False
    with file:
        return begins_with(file.fileno(), account.fingerprint)


def _live(root: DataRoot) -> Iterator[tuple[str, str, dict[str, SymbolSummary], int]]:
    for log in ("trades_log", "orders"):
        for path, loaded in frames.scan_days(root, log):
            if _is_archived(root, path):
                continue
            day = path.stem.removeprefix("day-")
            yield log, day, summarise([loaded.frame]), loaded.rejects.height
    for symbol in frames.list_symbols(root):
        yield from until_whole(partial(_events_of, root, symbol))


def _events_of(root: DataRoot, symbol: str) -> list[tuple[str, str, dict[str, SymbolSummary], int]]:
    found: list[tuple[str, str, dict[str, SymbolSummary], int]] = []
    times: LineTimes | None = None
    for path, loaded in frames.scan_event_files(root, symbol):
        if _is_archived(root, path):
            continue
        days = loaded.frame.with_columns((pl.col("timestamp").to_physical() // NS_PER_DAY).alias("_day"))
        for (number,), part in days.group_by("_day", maintain_order=True):
            found.append(("events", date_key(int(str(number)) * NS_PER_DAY), summarise([part]), 0))
        # A line that cannot be read is of the day with which it would leave the log.
        times = times or LineTimes(_mtime_ns(path))
        refused = times.of(loaded.frame, loaded.rejects["line"].to_numpy()) // NS_PER_DAY
        for number, count in zip(*np.unique(refused, return_counts=True), strict=True):
            found.append(("events", date_key(int(number) * NS_PER_DAY), {}, int(count)))
    return found


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        raise ReplacedError(f"{path}: this log was removed while it was read; read it again") from None


def _is_archived(root: DataRoot, path: Path) -> bool:
    return path.is_relative_to(root.archive_dir)


def _row(key: Key, total: SymbolSummary, rejects: int) -> dict[str, object]:
    day, log, symbol = key
    closed = total.wins + total.losses
    is_trades = log == "trades_log"
    return {
        "day": pl.Series([day]).str.to_date()[0],
        "log": log,
        "symbol": symbol,
        "rows": total.rows,
        "rejects": rejects,
        "first_timestamp": total.first_ns,
        "last_timestamp": total.last_ns,
        "wins": total.wins if is_trades else None,
        "losses": total.losses if is_trades else None,
        "win_rate": total.wins / closed if closed else None,
        "realized_pnl": total.realized_pnl if is_trades else None,
        "fees": total.fees if is_trades else None,
        "notional_usd": total.notional_usd if log == "orders" else None,
        "exit_reasons": orjson.dumps(total.exit_reasons).decode() if total.exit_reasons else None,
        "statuses": orjson.dumps(total.statuses).decode() if total.statuses else None,
        "event_types": orjson.dumps(total.event_types).decode() if total.event_types else None,
        "score_count": total.score_count,
        "score_mean": total.score_sum / total.score_count if total.score_count else None,
        "score_min": total.score_min,
        "score_max": total.score_max,
        "score_bins": total.score_bins or None,
    }
