"""Import exchange history: one reader per archive, one signature, shared validation.

>>> from replaylab.importers import import_history
>>> report = import_history("data", "binance-capture", ["btcusdt_20240718.gz"])       # doctest: +SKIP
>>> print(report)                                                                     # doctest: +SKIP

An import is all or nothing, and may be repeated: what is in the history already is counted and not added.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from replaylab.errors import HistoryError, did_you_mean
from replaylab.history import Staging
from replaylab.importers.files import find_files
from replaylab.importers.foreign_logs import LogImportReport, import_logs, suggest_mapping
from replaylab.importers.foreign_sources import PRESETS, mapping_text
from replaylab.importers.intake import (
    ClockName,
    FileReport,
    Gap,
    ImportReport,
    Intake,
    Reject,
    Skew,
    TapeReport,
)
from replaylab.paths import DataRoot

__all__ = [
    "FORMATS",
    "PRESETS",
    "FileReport",
    "Format",
    "Gap",
    "ImportReport",
    "LogImportReport",
    "Reject",
    "Skew",
    "TapeReport",
    "import_history",
    "import_logs",
    "mapping_text",
    "suggest_mapping",
]


# Work that takes longer shows a bar.
_SHOWN_AFTER_S = 1.0
_MAX_MESSAGE = 2_000  # characters; what a file says may be as long as the file


class Format(NamedTuple):
    """An archive: what it is, and the function ``read(files, intake, **options)`` that reads it."""

    about: str
    module: str
    function: str

    @property
    def read(self) -> Any:
        """The reader; its module loads now."""
        return getattr(import_module(f"replaylab.importers.{self.module}"), self.function)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the format's own options."""
        found = inspect.signature(self.read).parameters.values()
        return tuple(one.name for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY)


FORMATS: dict[str, Format] = {
    "binance-agg-trades": Format("Binance downloads of aggregated trades", "binance", "read_aggregated"),
    "binance-capture": Format("Binance websocket lines after a local time", "binance", "read_capture"),
    "binance-trades": Format("Binance downloads of trades", "binance", "read_single"),
    "bybit-book": Format("Bybit downloads of order books (ob200, ob500)", "bybit", "read_book"),
    "bybit-capture": Format(
        "Bybit v5 websocket messages with local time and connection", "bybit", "read_capture"
    ),
    "bybit-trades": Format("Bybit downloads of trades, derivatives and spot", "bybit", "read_table"),
    "book-table": Format("tables of book levels, in columns or a row each", "book_tables", "read_book_table"),
    "csv": Format("any delimited text with named columns", "columns", "read_csv"),
    "funding": Format(
        "funding settlements: Binance and Bybit files, Tardis derivative_ticker, any table",
        "funding",
        "read_funding",
    ),
    "instruments": Format(
        "exchangeInfo of Binance, instruments-info of Bybit (JSON)", "funding", "read_instruments"
    ),
    "json": Format("trades as JSON: ccxt, freqtrade, Kraken, an object a line", "columns", "read_json"),
    "parquet": Format("any Parquet file with named columns", "columns", "read_parquet"),
    "tardis-book": Format("Tardis incremental_book_L2 files", "book_tables", "read_tardis"),
    "tardis-trades": Format("Tardis trades files", "book_tables", "read_trades_of_tardis"),
}


def import_history(
    root: str | os.PathLike[str] | DataRoot,
    fmt: str,
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    symbol: str | None = None,
    progress: bool = True,
    *,
    clock: ClockName = "exchange",
    save_as: str | None = None,
    gap_s: float = 60.0,
    contract_size: float | None = None,
    max_rejects: float = 0.01,
    market: str | None = None,
    timestamp: str | None = None,
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    price: str | None = None,
    qty: str | None = None,
    side: str | None = None,
    buyer_maker: str | None = None,
    trade_id: str | None = None,
    received_at: str | None = None,
    buy_word: str | None = None,
    sell_word: str | None = None,
    delimiter: str | None = None,
    columns: str | list[str] | None = None,
    funding_rate: str | None = None,
    mark_price: str | None = None,
) -> ImportReport:
    """Import files of an exchange archive into the history of ``root`` and report what was found.

    >>> import_history("data", "binance-trades", "BTCUSDT-trades-2025-01-01.zip")          # doctest: +SKIP
    >>> import_history("data", "parquet", ["a.parquet"], symbol="BTCUSDT", qty="quantity")  # doctest: +SKIP

    ``fmt``: one of :data:`FORMATS`. Files may be plain, gz, zst or zip, folders, or patterns such as
    ``"*.zip"``; ``NAME.CHECKSUM`` next to a file is verified. ``symbol`` picks one symbol, or names it
    where the file does not; ``save_as`` stores it under another name. ``clock`` chooses which time becomes
    ``timestamp``: the exchange's or that of receipt; both are kept. A pause of more than ``gap_s`` seconds is reported
    as a gap. ``contract_size``: quantities are contracts of so much quote currency, and are stored in base currency
    (known by itself for Binance COIN-M and Bybit inverse). Ticks and lots go to ``system/instruments.json``.
    ``max_rejects``: a file is refused where a larger share of its lines (default 1 %, one line at least) is rejected
    for one reason.

    The options from ``market`` on belong to some formats (``FORMATS[fmt].options``); for csv, json, parquet, book-table
    and funding they name columns. Raises HistoryError for an unknown format, an option of another format, and files
    that contradict themselves or the format, with file and line; the history is then as it was before.
    """
    options = {
        name: value
        for name, value in {
            "market": market,
            "timestamp": timestamp,
            "timestamp_unit": timestamp_unit,
            "time_zone": time_zone,
            "price": price,
            "qty": qty,
            "side": side,
            "buyer_maker": buyer_maker,
            "trade_id": trade_id,
            "received_at": received_at,
            "buy_word": buy_word,
            "sell_word": sell_word,
            "delimiter": delimiter,
            "columns": columns,
            "funding_rate": funding_rate,
            "mark_price": mark_price,
        }.items()
        if value is not None
    }
    chosen = FORMATS.get(fmt)
    if chosen is None:
        raise HistoryError(f"no format {fmt!r}: there are {', '.join(FORMATS)}.{did_you_mean(fmt, FORMATS)}")
    for name in options:
        if name not in chosen.options:
            known = (*chosen.options, "symbol", "clock", "save_as", "gap_s", "contract_size", "max_rejects")
            raise HistoryError(f"{fmt} has no option {name!r}: there are {', '.join(known)}")
    if clock not in ("exchange", "receive"):
        raise HistoryError(f'clock is "exchange" or "receive", found {clock!r}')
    if contract_size is not None and not 0 < contract_size < float("inf"):
        raise HistoryError(f"contract_size is a number above 0, found {contract_size!r}")
    if not 0 <= gap_s <= 1e9:
        raise HistoryError(f"gap_s is a number of seconds from 0 to 1e9, found {gap_s!r}")
    if not 0 <= max_rejects <= 1:
        raise HistoryError(f"max_rejects is a share of the lines from 0 to 1, found {max_rejects!r}")
    paths = find_files([files] if isinstance(files, str | os.PathLike) else files)
    if not paths:
        raise HistoryError("no files to import")
    report = ImportReport(fmt, clock)
    bar = _progress_bar(paths) if progress else None
    try:
        with Staging(DataRoot(root)) as staging:
            advance = bar.update if bar is not None else None
            intake = Intake(
                staging,
                report,
                clock,
                symbol=symbol,
                save_as=save_as,
                gap_s=gap_s,
                contract_size=contract_size,
                max_rejects=max_rejects,
                progress=advance,
            )
            chosen.read(paths, intake, **options)
            intake.finish()
    except HistoryError as error:
        if len(str(error)) <= _MAX_MESSAGE:
            raise
        raise HistoryError(f"{str(error)[: _MAX_MESSAGE - 4]} ...") from None
    finally:
        if bar is not None:
            bar.close()
    return report


def _progress_bar(paths: list[Path]) -> Any:
    from tqdm.auto import tqdm

    total = sum(path.stat().st_size for path in paths if path.exists())
    return tqdm(total=total, unit="B", unit_scale=True, desc="import", delay=_SHOWN_AFTER_S)
