"""Bybit's downloads of order books, ``YYYY-MM-DD_SYMBOL_ob500.data.zip``: a websocket message per line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from replaylab.errors import HistoryError
from replaylab.importers.books import SLICE_ROWS
from replaylab.importers.bybit_messages import BybitSymbol, take_message
from replaylab.importers.clocks import Clock
from replaylab.importers.intake import Intake

__all__ = ["read"]


def read(files: Iterable[Path], intake: Intake) -> None:
    """Read order book archives of any depth, in the order given; also raw captures without an envelope."""
    clock = Clock("exchange time", None, ("ms",))
    symbols: dict[str, BybitSymbol] = {}
    for file in intake.open(files):
        for block in file.blocks():
            for number, line in enumerate(block.data.splitlines(), block.first_line):
                intake.file.lines += 1
                if line.strip():
                    _line(line, number, intake, symbols, clock)
                else:
                    intake.file.blank += 1
                if number % 1024 == 0:
                    for one in symbols.values():
                        one.hand_over(intake, SLICE_ROWS // 10)
        for one in symbols.values():
            one.hand_over(intake)
    for one in symbols.values():
        one.finish(intake)


def _line(line: bytes, number: int, intake: Intake, symbols: dict[str, BybitSymbol], clock: Clock) -> None:
    try:
        message = orjson.loads(line)
        topic = message["topic"]
        name = topic.rpartition(".")[2]
    except (ValueError, KeyError, TypeError, AttributeError):
        intake.reject(number, "expected a JSON object with a topic", line)
        return
    if not topic.startswith(("orderbook.", "publicTrade.")) or not intake.wants(name):
        intake.file.other += 1
        return
    try:
        rows = take_message(symbols.setdefault(name, BybitSymbol(name)), message, number, None, clock, intake)
    except HistoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        intake.reject(number, f"no field {error}" if isinstance(error, KeyError) else str(error), line)
        return
    if rows:
        intake.file.rows_in_lines += 1
    else:
        intake.file.other += 1
