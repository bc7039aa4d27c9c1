"""Ticks, lots, minimum notional and contract size of each symbol: ``system/instruments.json``.

>>> save_instruments("data", {"BTCUSDT": {"tickSize": 0.1, "lotSize": 0.001, "inferred": False}})   # doctest: +SKIP
[]

Importers write it, from the exchange's own information where files have it, else inferred from the decimals of prices
and quantities (``inferred`` true). It may be edited: set ``inferred`` to false, and no import changes the entry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from replaylab.errors import HistoryError
from replaylab.fsio import lock, write_atomic
from replaylab.paths import DataRoot, safe_symbol

FIELDS = ("tickSize", "lotSize", "minNotionalUsd", "contractSize")
# With more decimals than that a number was computed, and says nothing of a tick.
_MOST_DECIMALS = 12
Instrument = dict[str, Any]


def load_instruments(root: str | os.PathLike[str] | DataRoot) -> dict[str, Instrument]:
    """Return ``{symbol: {tickSize, lotSize, minNotionalUsd, contractSize, inferred}}``; {} where there is no file.

    Prices in quote currency, lots in base currency, contract size in quote currency per contract. A value that is not
    a finite number above 0 is None. Raises HistoryError for a file that is not such an object.
    """
    path = DataRoot(root).instruments
    if not path.is_file():
        return {}
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise HistoryError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise HistoryError(f"{path}: expected an object of objects, by symbol")
    return {symbol: normalised(entry) for symbol, entry in sorted(found.items())}


def normalised(entry: Mapping[str, Any]) -> Instrument:
    """Return an entry with every field; a value that is not a finite number above 0 is None."""
    return {name: _positive(entry.get(name)) for name in FIELDS} | {"inferred": entry.get("inferred") is True}


def save_instruments(
    root: str | os.PathLike[str] | DataRoot, found: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Merge entries into ``system/instruments.json``; return a sentence for each that changed or contradicts.

    An inferred entry is refined by another inferred one (the finer tick and lot) and replaced by the exchange's
    information. An entry that is not inferred is never changed. Raises HistoryError, UnsafeNameError.
    """
    data = DataRoot(root)
    if not found:
        return []
    with lock(data.system_dir / ".instruments.lock"):
        known = load_instruments(data)
        notes = []
        merged = dict(known)
        for symbol, entry in found.items():
            old, new = known.get(safe_symbol(symbol)), normalised(entry)
            if old is None:
                merged[symbol] = new
            elif old["inferred"]:
                merged[symbol] = _refined(old, new) if new["inferred"] else new
                if merged[symbol] != old:
                    notes.append(
                        f"{symbol}: instrument changed from {_shown(old)} to {_shown(merged[symbol])}"
                    )
            elif not new["inferred"] and new != old:
                notes.append(
                    f"{symbol}: the instrument stays {_shown(old)}; the exchange's information says {_shown(new)}. "
                    "Delete the entry from instruments.json to accept that"
                )
        if merged != known:
            data_bytes = orjson.dumps(dict(sorted(merged.items())), option=orjson.OPT_INDENT_2)
            write_atomic(data.instruments, data_bytes + b"\n")
    return notes


def decimals_of(values: npt.NDArray[np.float64], at_least: int = 0) -> int | None:
    """Return the fewest decimals (≥ ``at_least``) that write every number exactly; None for more than 12.

    >>> decimals_of(np.array([0.5, 91500.25, 3.0]))
    2
    """
    for decimals in range(at_least, _MOST_DECIMALS + 1):
        scale = 10.0**decimals
        # A decimal number with so many digits is the double nearest to a whole number divided by an exact power of ten.
        with np.errstate(over="ignore"):  # of a price near the end of the range
            exact = bool((np.round(values * scale) / scale == values).all())
        if exact:
            return decimals
    return None


def step_of(decimals: int | None) -> float | None:
    """Return the step of numbers with so many decimals: 2 gives 0.01."""
    return None if decimals is None else float(f"1e-{decimals}")


def _refined(old: Instrument, new: Instrument) -> Instrument:
    """Return the finer steps of two inferred entries."""
    merged = {**old}
    for name in FIELDS:
        values = [entry[name] for entry in (old, new) if entry[name] is not None]
        merged[name] = min(values, default=None)
    return merged


def _positive(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) and value > 0 else None


def _shown(entry: Instrument) -> str:
    values = ", ".join(f"{name} {entry[name]:g}" for name in FIELDS if entry[name] is not None)
    return (values or "nothing") + (" (inferred)" if entry["inferred"] else "")
