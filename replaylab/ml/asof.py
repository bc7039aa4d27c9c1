"""Point-in-time joins: what was the last value known at a decision, and how old was it.

A value counts from the event that carries it, in session order. Where a payload says when it was received
(``receivedAt``, ISO) and that is later than the event's own time, it counts only for decisions strictly after that
moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import TimeError
from replaylab.features import usable_number
from replaylab.timestamps import parse_ns

__all__ = ["Known", "known_rows", "number_columns", "payloads"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_ANY = msgspec.json.Decoder()
_BLOCK = 4096


@dataclass(frozen=True)
class Known:
    """Events of one kind and symbol in the order in which they became known.

    ``since``: the first event position at which a decision knows it; ``ts``: its own time; ``rows``: its position.
    """

    since: Ints
    ts: Ints
    rows: Ints
    texts: list[str]

    def last(self, decision_index: Ints) -> Ints:
        """Return, per decision, the place of the last event known; −1 where there is none yet."""
        return np.searchsorted(self.since, decision_index, side="right").astype(np.int64) - 1

    def take(self, values: npt.NDArray[Any], place: Ints, empty: Any = np.nan) -> npt.NDArray[Any]:
        """Return ``values`` (one per event) at places; ``empty`` at −1."""
        if not len(values):
            return np.full(len(place), empty, dtype=values.dtype)
        return np.where(place >= 0, values[np.maximum(place, 0)], empty)

    def age_s(self, decision_ts: Ints, place: Ints) -> Floats:
        """Return seconds since the time of the event at each place; nan at −1."""
        age: Floats = np.where(place >= 0, (decision_ts - self.take(self.ts, place, 0)) / 1e9, np.nan)
        return age


def known_rows(events: pl.DataFrame, ts: Ints, mask: pl.Series, *, own: bool = False) -> Known:
    """Return the events under ``mask``. ``own``: made by this system, so known at once whatever they say."""
    rows = np.flatnonzero(mask.fill_null(value=False).to_numpy()).astype(np.int64)
    texts = events["payload"].gather(rows)
    since = rows.copy()
    if not own:
        for place in np.flatnonzero(texts.str.contains('"receivedAt"', literal=True).to_numpy()):
            received = _received(texts[int(place)])
            if received is not None and received > ts[rows[place]]:
                since[place] = np.searchsorted(ts, received, side="right")
    order = np.argsort(since, kind="stable")
    kept = texts.gather(order).to_list()
    return Known(since[order], ts[rows][order], rows[order], kept)


def payloads(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield parsed payloads; an empty one where a text is no JSON object."""
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        try:
            # One call for thousands of texts costs a fraction of a call each.
            found: list[Any] = _ANY.decode(f"[{','.join(block)}]")
        except (msgspec.DecodeError, TypeError):
            found = []
        if len(found) != len(block):
            found = [_payload(text) for text in block]
        for payload in found:
            yield payload if isinstance(payload, dict) else {}


def number_columns(records: Iterable[Mapping[str, Any]], count: int, key: str) -> dict[str, Floats]:
    """Return the numbers in the object under ``key`` of ``count`` records as columns by name; nan where not usable."""
    columns: dict[str, Floats] = {}
    for row, record in enumerate(records):
        numbers = record.get(key)
        if not isinstance(numbers, dict):
            continue
        for name, value in numbers.items():
            number = usable_number(value)
            if number is not None:
                if name not in columns:
                    columns[name] = np.full(count, np.nan)
                columns[name][row] = number
    return dict(sorted(columns.items()))


def _payload(text: str) -> Any:
    try:
        return _ANY.decode(text)
    except (msgspec.DecodeError, TypeError):
        return None


def _received(text: str) -> int | None:
    value = next(payloads([text])).get("receivedAt")
    try:
        return parse_ns(value) if isinstance(value, str) else None
    except TimeError:
        return None
