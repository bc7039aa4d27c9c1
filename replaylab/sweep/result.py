"""What a sweep and a backtest hand back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq

from replaylab.errors import SweepError, did_you_mean
from replaylab.params import TradingParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Backtest", "SweepResult"]

_METADATA = b"replaylab.sweep"


def _same(frame: pl.DataFrame) -> Any:
    return frame


@dataclass
class Backtest:
    """One combination: ``trades`` (a row per trade), ``figures`` (by name), ``equity`` (timestamp, equity)."""

    trades: Any
    figures: dict[str, Any]
    equity: Any
    params: TradingParams
    session_id: str | None = None


@dataclass
class SweepResult:
    """The figures of every combination, and the trades of any.

    ``axes`` maps the grid's columns to their distinct values. ``left_out`` counts contradictory combinations that
    were not run.
    """

    data: pl.DataFrame
    axes: dict[str, list[Any]]
    params: TradingParams
    session_id: str | None = None
    digest: str | None = None
    trades_of: Callable[[TradingParams], pl.DataFrame] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    method: str = ""
    give: Callable[[pl.DataFrame], Any] = _same

    @property
    def frame(self) -> Any:
        """A row per combination: the grid's columns, then the figures."""
        return self.give(self.data)

    def params_of(self, row: int) -> TradingParams:
        """Return the full parameters of one row of ``frame``."""
        if not 0 <= row < self.data.height:
            raise SweepError(f"row {row}: this result has rows 0 to {self.data.height - 1}")
        values = self.data.select(self.axes.keys()).row(row, named=True)
        regimes = values.get("allowed_regimes")
        if regimes is not None:
            values["allowed_regimes"] = tuple(name for name in regimes.split("|") if name)
        return self.params.replace(**values)

    def trades(self, row: int) -> Any:
        """Return the trades of one row of ``frame``, in order of their exits."""
        params = self.params_of(row)
        if self.trades_of is None:
            raise SweepError(
                "a loaded result holds figures alone: run the backtest of params_of(row) for trades"
            )
        return self.give(self.trades_of(params))

    def best(self, n: int = 10, by: str = "net_pnl") -> Any:
        """Return the ``n`` rows with the highest ``by``, best first, with their ``row`` numbers."""
        self._column(by)
        ranked = self.data.with_row_index("row").sort(
            by, descending=True, nulls_last=True, maintain_order=True
        )
        return self.give(ranked.head(n))

    def heatmap(self, x: str, y: str, value: str = "net_pnl") -> Figure:
        """Draw ``value`` over two axes; over the other axes it is the best."""
        from matplotlib.figure import Figure

        for name in (x, y, value):
            self._column(name)
        table = self.data.group_by(x, y).agg(pl.col(value).max())
        grid = table.sort(x, y).pivot(x, index=y, values=value).sort(y)
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(grid.drop(y).to_numpy().astype(float), origin="lower", aspect="auto")
        axes.set_xticks(range(grid.width - 1), grid.columns[1:], rotation=45, ha="right")
        axes.set_yticks(range(grid.height), [str(name) for name in grid[y].to_list()])
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        figure.colorbar(image, label=value)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the frame as Parquet, with parameters, session and digest in its metadata."""
        table = self.data.to_arrow()
        about = {
            "params": self.params.to_dict(),
            "axes": list(self.axes),
            "session_id": self.session_id,
            "digest": self.digest,
            "left_out": self.left_out,
            "method": self.method,
        }
        metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(about).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), os.fspath(path))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepResult:
        """Return a saved result: figures without trades."""
        table = pq.read_table(os.fspath(path))
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        if _METADATA not in metadata:
            raise SweepError(f"{path}: not a saved sweep")
        about = json.loads(metadata[_METADATA])
        data = pl.DataFrame(table)
        return cls(
            data=data,
            axes={name: data[name].unique(maintain_order=True).to_list() for name in about["axes"]},
            params=TradingParams.from_dict(about["params"]),
            session_id=about["session_id"],
            digest=about["digest"],
            left_out=about["left_out"],
            method=about["method"],
        )

    def _column(self, name: str) -> None:
        if name not in self.data.columns:
            raise SweepError(f"no column {name!r}.{did_you_mean(name, self.data.columns)}")
