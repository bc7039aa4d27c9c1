"""Summaries of each day's log: a few hundred bytes that remain after its lines are deleted.

``summary/<log>/day-YYYY-MM-DD.json`` for trades_log and orders, ``summary/events/<symbol>/day-YYYY-MM-DD.json`` for
state events. Each holds one account per source, since a day file that was deleted may come back with late lines:
sources add up, and one whose file is still there (the clean-up died between the two steps) does not count twice.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import polars as pl

from replaylab import frames
from replaylab.archive.listing import LineTimes
from replaylab.frames import TIMESTAMP, Fingerprint, Loaded, ReplacedError, begins_with, open_log, until_whole
from replaylab.fsio import write_atomic
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key, iso, now_ns

SCORE_BINS = 20
_log = logging.getLogger("replaylab.archive")


class SymbolSummary(msgspec.Struct, rename="camel", omit_defaults=True):
    """One symbol's part of a day. Money in quote currency; ``score_bins`` are 20 equal bins over −1 to 1."""

    rows: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    wins: int = 0
    losses: int = 0
    realized_pnl: float = 0.0
    fees: float = 0.0
    notional_usd: float = 0.0
    exit_reasons: dict[str, int] = {}
    statuses: dict[str, int] = {}
    event_types: dict[str, int] = {}
    score_count: int = 0
    score_sum: float = 0.0
    score_min: float | None = None
    score_max: float | None = None
    score_bins: list[int] = []


class Account(msgspec.Struct, rename="camel"):
    """What one source file held: every line is a row, a reject or blank.

    While ``pending``, its lines may still be in the source too: the account is written before they are removed.
    """

    file: str
    bytes: int
    sha256: str
    fingerprint: Fingerprint
    lines: int
    rows: int
    rejects: int
    blank: int
    symbols: dict[str, SymbolSummary]
    pending: bool = True


class Summary(msgspec.Struct, rename="camel"):
    """One file under ``summary/``."""

    version: int
    log: str
    day: str
    written_at: str
    accounts: list[Account]


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_SUMMARY = msgspec.json.Decoder(Summary)


def summary_path(root: DataRoot, log: str, day: str) -> Path:
    """Return the summary of a day; ``log`` is "trades_log", "orders" or "events/<symbol>"."""
    return root.summary_dir / log / f"day-{day}.json"


def read_summary(path: Path) -> Summary | None:
    """Return a summary, or None where there is none; raises ValueError for a file that is none."""
    try:
        return _SUMMARY.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: not a summary: {error}") from None


def add_account(root: DataRoot, log: str, day: str, account: Account) -> None:
    """Write ``account`` into the summary of its day, synced. Where it raises OSError or ValueError, lines must stay."""
    counted = sum(part.rows for part in account.symbols.values())
    if account.rows != counted or account.lines != counted + account.rejects + account.blank:
        raise ValueError(f"{account.file}: the summary of {day} does not add up to its lines; they are kept")
    path = summary_path(root, log, day)
    old = read_summary(path)
    _write(path, Summary(1, log, day, iso(now_ns()), [*(old.accounts if old else []), account]))


def check_account(root: DataRoot, log: str, day: str, account: Account) -> None:
    """Raise ValueError unless the summary on the disk holds ``account``."""
    path = summary_path(root, log, day)
    summary = read_summary(path)
    if summary is None or account not in summary.accounts:
        raise ValueError(f"{account.file}: {path} does not match the file; the file is kept")


def has_account(root: DataRoot, log: str, day: str, sha256: str) -> bool:
    """Return whether the summary of a day counts lines of the source with this digest; raises ValueError."""
    summary = read_summary(summary_path(root, log, day))
    return summary is not None and any(account.sha256 == sha256 for account in summary.accounts)


def drop_accounts(root: DataRoot, log: str, names: str, is_stale: Callable[[Account], bool]) -> None:
    """Remove pending accounts whose lines never left the log, from the summaries with ``names`` (a pattern)."""
    for path in sorted((root.summary_dir / log).glob(names)):
        try:
            summary = read_summary(path)
        except ValueError as error:
            # An unreadable summary cannot be counted or extended; its lines stay in the log.
            _log.warning("%s", error)
            continue
        if summary is None:
            continue
        kept = [account for account in summary.accounts if not (account.pending and is_stale(account))]
        if not kept:
            path.unlink()
        elif len(kept) < len(summary.accounts):
            summary.accounts = kept
            _write(path, summary)


def settle_accounts(root: DataRoot, log: str, day: str) -> None:
    """Mark the accounts of a day as settled: their lines have left the sources."""
    path = summary_path(root, log, day)
    summary = read_summary(path)
    if summary is not None:
        for account in summary.accounts:
            account.pending = False
        _write(path, summary)


def summarise(frames: Iterable[pl.DataFrame]) -> dict[str, SymbolSummary]:
    """Return the summaries by symbol of frames of one log: closed trades, orders or state events."""
    found: dict[str, SymbolSummary] = {}
    for frame in frames:
        parts = frame.group_by("symbol", maintain_order=True)
        found = merge_symbols(found, {str(symbol): _of_one(part) for (symbol,), part in parts})
    return found


@dataclass
class Tally:
    """Counts lines as they are read."""

    bytes: int = 0
    lines: int = 0
    rows: int = 0
    rejects: int = 0
    blank: int = 0
    symbols: dict[str, SymbolSummary] = field(default_factory=dict)

    def add(self, loaded: Loaded, size: int) -> None:
        """Add lines that are ``size`` bytes of text."""
        self.bytes += size
        self.lines += loaded.lines
        self.rows += loaded.rows
        self.rejects += loaded.rejects.height
        self.blank += loaded.blank
        self.symbols = merge_symbols(self.symbols, summarise([loaded.frame]))

    def account(self, file: str, content: Fingerprint, sha256: str) -> Account:
        """Return the account of these lines; ``content`` and ``sha256`` are of all that was read of the source."""
        return Account(
            file=file,
            bytes=self.bytes,
            sha256=sha256,
            fingerprint=content,
            lines=self.lines,
            rows=self.rows,
            rejects=self.rejects,
            blank=self.blank,
            symbols=self.symbols,
        )


def merge(parts: Iterable[SymbolSummary]) -> SymbolSummary:
    """Return several summaries of one symbol as one."""
    total = SymbolSummary()
    for part in parts:
        total.rows += part.rows
        total.first_ns = _least(total.first_ns, part.first_ns)
        total.last_ns = _most(total.last_ns, part.last_ns)
        total.wins += part.wins
        total.losses += part.losses
        total.realized_pnl += part.realized_pnl
        total.fees += part.fees
        total.notional_usd += part.notional_usd
        for name in ("exit_reasons", "statuses", "event_types"):
            counts = dict(getattr(total, name))
            for key, count in getattr(part, name).items():
                counts[key] = counts.get(key, 0) + count
            setattr(total, name, counts)
        total.score_count += part.score_count
        total.score_sum += part.score_sum
        total.score_min = _least(total.score_min, part.score_min)
        total.score_max = _most(total.score_max, part.score_max)
        total.score_bins = [
            left + right
            for left, right in zip(
                total.score_bins or [0] * len(part.score_bins),
                part.score_bins or [0] * len(total.score_bins),
                strict=True,
            )
        ]
    return total


def merge_symbols(
    left: dict[str, SymbolSummary], right: dict[str, SymbolSummary]
) -> dict[str, SymbolSummary]:
    """Return the summaries of the symbols of both."""
    return {
        symbol: merge([side[symbol] for side in (left, right) if symbol in side])
        for symbol in sorted({*left, *right})
    }


def _write(path: Path, summary: Summary) -> None:
    write_atomic(path, msgspec.json.encode(summary) + b"\n", sync=True)
    if read_summary(path) != summary:
        raise ValueError(f"{path}: the summary on disk is not what was written")


def _of_one(frame: pl.DataFrame) -> SymbolSummary:
    part = SymbolSummary(rows=frame.height)
    times = frame["timestamp"].to_physical()
    part.first_ns, part.last_ns = _whole(times.min()), _whole(times.max())
    if "realized_pnl" in frame.columns:
        pnl = frame["realized_pnl"]
        part.wins, part.losses = int((pnl > 0).sum()), int((pnl < 0).sum())
        part.realized_pnl = float(pnl.sum())
        part.fees = float(frame["fees"].fill_null(0).sum())
        part.exit_reasons = _counts(frame["reason"])
    elif "notional_usd" in frame.columns:
        part.notional_usd = float(frame["notional_usd"].sum())
        part.statuses = _counts(frame["status"])
    else:
        part.event_types = _counts(frame["event_type"])
        _add_scores(part, frame)
    return part


def _add_scores(part: SymbolSummary, frame: pl.DataFrame) -> None:
    texts = frame.filter(pl.col("event_type") == "SCORING_UPDATE")["extra"].to_list()
    values = (orjson.loads(text).get("score") for text in texts)
    found = [
        float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if not found:
        return
    part.score_count, part.score_sum = len(found), sum(found)
    part.score_min, part.score_max = min(found), max(found)
    part.score_bins = [0] * SCORE_BINS
    for value in found:
        place = int((max(-1.0, min(1.0, value)) + 1.0) / 2.0 * SCORE_BINS)
        part.score_bins[min(place, SCORE_BINS - 1)] += 1


def _counts(series: pl.Series) -> dict[str, int]:
    known = series.drop_nulls()
    return dict(sorted(zip(*known.value_counts().get_columns(), strict=True))) if known.len() else {}


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _least(left: Any, right: Any) -> Any:
    return right if left is None else left if right is None else min(left, right)


def _most(left: Any, right: Any) -> Any:
    return right if left is None else left if right is None else max(left, right)


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

    ``exit_reasons``, ``statuses`` and ``event_types`` are JSON counts, ``score_bins`` are 20 equal bins of the
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
    """Return the summaries, each with its (inode, mtime), which differ after every write."""
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
                f"{error}; its day is left out: restore it, or move it out of {root.summary_dir}",
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
