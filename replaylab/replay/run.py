"""What a run leaves behind: a folder in the layout of a data root, and ``run.json``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab import frames
from replaylab.paths import DataRoot

__all__ = ["ReplayRun"]


class ReplayRun:
    """One run of a session, finished or under way.

    >>> run = engine.last_run                       # doctest: +SKIP
    >>> run.trades, run.orders, run.events          # doctest: +SKIP
    >>> run.digest                                  # doctest: +SKIP

    The tables are read from the run's own logs when asked for. ``record`` is ``run.json``: parameters, outcome,
    counts, unusable events, lateness, digest. ``root`` is the run's folder as a data root, for every loader.
    """

    def __init__(
        self, root: DataRoot, record: dict[str, Any], give: Callable[[pl.DataFrame], Any] | None = None
    ) -> None:
        self.root = root
        self.record = record
        self._give = give or (lambda frame: frame)

    @classmethod
    def open(cls, root: DataRoot, session_id: str, run_id: str) -> ReplayRun:
        """Return a run of an earlier time. Raises FileNotFoundError."""
        home = root.run(session_id, run_id)
        return cls(home, orjson.loads((home.path / "run.json").read_bytes()))

    def __repr__(self) -> str:
        counts = self.record.get("counts", {})
        return (
            f"ReplayRun({self.id!r}, {self.record['outcome']}, {self.record['eventsEmitted']} events, "
            f"{counts.get('trades', 0)} trades)"
        )

    @property
    def id(self) -> str:
        return str(self.record["runId"])

    @property
    def path(self) -> Path:
        return self.root.path

    @property
    def digest(self) -> str:
        """SHA-256 over all that the run emitted: equal for equal sessions and parameters, at any speed."""
        return str(self.record["digest"])

    @property
    def unusable(self) -> dict[str, int]:
        """Events by type whose payload lacked what the model needs."""
        return dict(self.record["unusable"])

    @cached_property
    def trades(self) -> Any:
        """Closed trades: the columns of ``frames.load_trades``."""
        return self._give(frames.load_trades(self.root).frame)

    @cached_property
    def orders(self) -> Any:
        """Every order with each of its statuses: the columns of ``frames.load_orders``."""
        return self._give(frames.load_orders(self.root).frame)

    @cached_property
    def events(self) -> Any:
        """State events, by symbol: the columns of ``frames.load_events``."""
        return self._give(frames.load_events(self.root).frame)
