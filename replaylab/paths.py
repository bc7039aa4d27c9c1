"""Where each file of a data root lives. The one place where a symbol or session id becomes a file name."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from replaylab.errors import UnsafeNameError

__all__ = ["SNAPSHOTS", "DataRoot", "is_safe_name", "safe_name"]

SNAPSHOTS = ("risk", "tpsl", "execution", "health")
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MARKS = frozenset("._-+@=")


def safe_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it may become a file name, else raise UnsafeNameError.

    >>> safe_name("BTCUSDT", "symbol")
    'BTCUSDT'

    Allowed are letters and digits of any script (exchanges list symbols in Chinese) and ``. _ - + @ =``,
    not starting with a dot or a hyphen, at most 200 bytes in UTF-8, in Unicode normal form C.
    """
    if not isinstance(name, str) or not name:
        raise UnsafeNameError(f"a {what} must be a text that is not empty, found {name!r}")
    bad = sorted({mark for mark in name if not (mark.isalnum() or mark in _MARKS)})
    if bad:
        raise UnsafeNameError(
            f"{what} {name!r} holds {''.join(bad)!r}: only letters, digits and . _ - + @ = are allowed"
        )
    if name[0] in ".-":
        raise UnsafeNameError(f"{what} {name!r} may not start with {name[0]!r}")
    if unicodedata.normalize("NFC", name) != name:
        raise UnsafeNameError(f"{what} {name!r} is not in Unicode normal form C")
    if len(name.encode()) > 200:
        raise UnsafeNameError(f"{what} {name[:40]!r}... is longer than 200 bytes")
    return name


def is_safe_name(name: str) -> bool:
    """Tell whether a file name may be a symbol's or a session's."""
    try:
        safe_name(name)
    except UnsafeNameError:
        return False
    return True


@dataclass(frozen=True)
class DataRoot:
    """The files of one data root; computes paths, touches no disk.

    >>> DataRoot("data").events("BTCUSDT").as_posix().endswith("data/events/BTCUSDT.jsonl")
    True

    A run of a replay has the same layout, so it is a DataRoot too: ``root.run(session_id, run_id)``.
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str] | DataRoot) -> None:
        raw = path.path if isinstance(path, DataRoot) else Path(path)
        object.__setattr__(self, "path", raw.expanduser().absolute())

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def relative(self, path: Path) -> str:
        """Return ``path`` as text relative to the root, with forward slashes."""
        return path.relative_to(self.path).as_posix()

    # Logs: JSON Lines, appended to.
    def events(self, symbol: str) -> Path:
        return self.events_dir / f"{safe_name(symbol, 'symbol')}.jsonl"

    def trades_log(self, day: str) -> Path:
        return self.trades_log_dir / f"day-{_safe_day(day)}.jsonl"

    def orders(self, day: str) -> Path:
        return self.orders_dir / f"day-{_safe_day(day)}.jsonl"

    @property
    def events_dir(self) -> Path:
        return self.path / "events"

    @property
    def trades_log_dir(self) -> Path:
        return self.path / "trades_log"

    @property
    def orders_dir(self) -> Path:
        return self.path / "orders"

    # Rolling files of one symbol: JSON.
    def market_trades(self, symbol: str) -> Path:
        return self.path / "trades" / f"{safe_name(symbol, 'symbol')}.json"

    def order_book(self, symbol: str) -> Path:
        return self.path / "orderbook" / f"{safe_name(symbol, 'symbol')}.json"

    def metrics(self, symbol: str) -> Path:
        return self.path / "metrics" / f"{safe_name(symbol, 'symbol')}.json"

    # system/
    @property
    def system_dir(self) -> Path:
        return self.path / "system"

    def snapshot(self, name: str) -> Path:
        if name not in SNAPSHOTS:
            raise UnsafeNameError(f"no snapshot {name!r}: there are {', '.join(SNAPSHOTS)}")
        return self.system_dir / f"{name}_snapshot.json"

    @property
    def replay_sessions_index(self) -> Path:
        return self.system_dir / "replay_sessions.json"

    @property
    def trading_params(self) -> Path:
        return self.system_dir / "trading_params.jsonl"

    @property
    def replay_status(self) -> Path:
        return self.system_dir / "replay_status.json"

    # Replay sessions and their runs.
    @property
    def sessions_dir(self) -> Path:
        return self.path / "replay" / "sessions"

    def session_dir(self, session_id: str) -> Path:
        return self.sessions_dir / safe_name(session_id, "session id")

    def manifest(self, session_id: str) -> Path:
        return self.session_dir(session_id) / "manifest.json"

    def session_events(self, session_id: str) -> Path:
        return self.session_dir(session_id) / "events.jsonl"

    def session_meta(self, session_id: str) -> Path:
        return self.session_dir(session_id) / "meta.json"

    def runs_dir(self, session_id: str) -> Path:
        return self.session_dir(session_id) / "runs"

    def run(self, session_id: str, run_id: str) -> DataRoot:
        return DataRoot(self.runs_dir(session_id) / safe_name(run_id, "run id"))

    # Additions to the specification's tree.
    def history_dir(self, kind: str, symbol: str) -> Path:
        """``kind`` is "trades" or "book"; one Parquet file per UTC day inside."""
        return self.path / "history" / kind / safe_name(symbol, "symbol")

    @property
    def summary_dir(self) -> Path:
        return self.path / "summary"

    @property
    def archive_dir(self) -> Path:
        return self.path / "archive"


def _safe_day(day: str) -> str:
    if not isinstance(day, str) or not _DAY.fullmatch(day):
        raise UnsafeNameError(f"expected a day as YYYY-MM-DD, found {day!r}")
    return day
