"""Combinations in the kernels' form, and which of them share a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Rows"]

Array = npt.NDArray[Any]
Codes = tuple[Array, int]


@dataclass(frozen=True)
class Rows:
    """``params``: a PARAMS row per combination. ``codes``: for each column that varies, (code per row, how many)."""

    params: Array
    codes: dict[str, Codes]

    def __len__(self) -> int:
        return len(self.params)

    def part(self, chosen: slice | Array) -> Rows:
        """Return some of the rows."""
        return Rows(self.params[chosen], {name: (code[chosen], n) for name, (code, n) in self.codes.items()})

    def number(self, *columns: str | Codes) -> Codes:
        """Return codes of the distinct combinations of some columns (or of earlier codes), and how many there are."""
        code, total = np.zeros(len(self.params), dtype=np.int64), 1
        for column in columns:
            if isinstance(column, str) and column not in self.codes:
                continue
            more, count = self.codes[column] if isinstance(column, str) else column
            if count > 1:
                code, total = _dense(code * count + more, total * count)
        return code, total


def _dense(code: Array, total: int) -> Codes:
    """Codes without gaps; by flags where that is cheaper than sorting."""
    if total > 4 * len(code) + 65_536:
        values, inverse = np.unique(code, return_inverse=True)
        return inverse, len(values)
    used = np.zeros(total, dtype=bool)
    used[code] = True
    return (np.cumsum(used) - 1)[code], int(used.sum())
