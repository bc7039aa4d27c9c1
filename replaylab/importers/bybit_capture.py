"""Bybit v5 captures: JSON Lines of ``{"t", "conn", "ts", "data": "<raw message>"}``, as cryptofeed records them.

``ts`` is local time in decimal seconds. The address of a connection (in its ``connect`` line) tells the market. Linear
and inverse contracts keep their symbol; the same symbol on the spot market is another one and gets ``@spot`` after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from replaylab.errors import HistoryError, TimeError
from replaylab.importers.books import SLICE_ROWS
from replaylab.importers.bybit_messages import BybitSymbol, take_message
from replaylab.importers.clocks import Clock
from replaylab.importers.intake import Intake
from replaylab.timestamps import decimal_to_ns

__all__ = ["read"]

_MARKETS = ("linear", "inverse", "spot", "option")


def read(files: Iterable[Path], intake: Intake, *, market: str | None = None) -> None:
    """Read captures in the order given; ``market`` ("linear", "inverse", "spot") takes one market only."""
    if market is not None and market not in _MARKETS:
        raise HistoryError(f"market is one of {', '.join(_MARKETS)}, found {market!r}")
    clock = Clock("exchange time", None, ("ms",))
    symbols: dict[str, BybitSymbol] = {}
    markets: dict[str, str] = {}
    for file in intake.open(files):
        for block in file.blocks():
            for number, line in enumerate(block.data.splitlines(), block.first_line):
                intake.file.lines += 1
                if line.strip():
                    _line(line, number, intake, symbols, markets, clock, market)
                else:
                    intake.file.blank += 1
            for one in symbols.values():
                one.hand_over(intake, SLICE_ROWS)
        for one in symbols.values():
            one.hand_over(intake)
    for one in symbols.values():
        one.finish(intake)


def _line(
    line: bytes,
    number: int,
    intake: Intake,
    symbols: dict[str, BybitSymbol],
    markets: dict[str, str],
    clock: Clock,
    only: str | None,
) -> None:
    try:
        envelope = orjson.loads(line)
        kind, connection = envelope["t"], envelope.get("conn", "")
        if kind == "connect":
            markets[connection] = str(envelope.get("addr", "")).rstrip("/").rpartition("/")[2]
        message = _message(envelope)
    except (ValueError, KeyError, TypeError, AttributeError):
        intake.reject(number, "expected a JSON object with t, conn, ts and data", line)
        return
    topic = str(message.get("topic", ""))
    place = markets.get(connection, "linear")
    if not topic.startswith(("orderbook.", "publicTrade.")) or (only is not None and place != only):
        intake.file.other += 1
        return
    plain = topic.rpartition(".")[2]
    name = f"{plain}@spot" if place == "spot" else plain
    if not intake.wants(name):
        intake.file.other += 1
        return
    try:
        # The text of the float is the text of the file, which has 17 digits at the most.
        received = decimal_to_ns(repr(envelope["ts"]), "s")
        rows = take_message(
            symbols.setdefault(name, BybitSymbol(name)), message, number, received, clock, intake
        )
    except TimeError as error:
        intake.reject(number, f"ts: {error}", line)
        return
    except HistoryError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        intake.reject(number, f"no field {error}" if isinstance(error, KeyError) else str(error), line)
        return
    if rows:
        intake.file.rows_in_lines += 1
    else:
        intake.file.other += 1


def _message(envelope: dict[str, Any]) -> dict[str, Any]:
    """The message inside, or nothing where the line is a header, a request or an answer to one."""
    if envelope["t"] not in ("recv", "ws") or not isinstance(envelope.get("data"), str):
        return {}
    message = orjson.loads(envelope["data"])
    return message if isinstance(message, dict) else {}
