"""Grids: which combinations of parameters a sweep runs, and which are neighbours of each other.

::

    make_grid({"entry_threshold": [0.5, 0.6], "max_hold_s": [None, 60.0]})      # product; the last axis varies fastest
    make_grid(pl.DataFrame({"tp1_pct": [0.1, 0.2], "sl_pct": [0.3, 0.1]}))      # a row per combination
    make_grid(sample({"tp1_pct": (0.05, 0.5), "sl_pct": (0.05, 0.5)}, 4096))    # Sobol points in ranges

``None`` switches a rule off where the parameter allows it. A regime set is a list of names, or one string with ``|``
between them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import SweepError, did_you_mean
from replaylab.params import TradingParams, contradictions
from replaylab.sweep.fills import PARAMS

Array = npt.NDArray[Any]
Codes = tuple[Array, int]
# Its results alone are about 15 GB of memory.
MOST_COMBINATIONS = 50_000_000
FIELDS = TradingParams.__struct_fields__
DECLARED = {declared.name: declared for declared in TradingParams.declarations()}
_WHOLE = [name for name in FIELDS if DECLARED[name].kind == "whole"]
_DTYPES = {
    "flag": pl.Boolean,
    "whole": pl.Int64,
    "names": pl.String,
    "choice": pl.String,
    "number": pl.Float64,
}


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


@dataclass(frozen=True)
class Grid:
    """Combinations: ``axes[name]`` are an axis's values, ``codes[name][row]`` which of them a row has.

    ``left_out`` counts contradictory combinations by what contradicts.
    """

    axes: dict[str, list[Any]]
    codes: dict[str, Array]
    rows: int
    left_out: dict[str, int]

    def columns(self) -> dict[str, pl.Series]:
        """Return the columns of the grid for a result frame; a regime set as one string with ``|``."""
        columns = {}
        for name, values in self.axes.items():
            if name == "allowed_regimes":
                values = [None if value is None else "|".join(value) for value in values]
            series = pl.Series(name, values, dtype=_DTYPES[DECLARED[name].kind])
            columns[name] = series.gather(pl.Series(self.codes[name]))
        return columns

    def part(self, start: int, stop: int) -> Grid:
        """Return a range of the rows as a grid of their own."""
        return self.rows_at(slice(start, stop), stop - start)

    def rows_at(self, chosen: slice | Array, count: int) -> Grid:
        """Return ``count`` chosen rows as a grid of their own."""
        return Grid(self.axes, {name: code[chosen] for name, code in self.codes.items()}, count, {})

    def params_of(self, row: int, base: TradingParams) -> TradingParams:
        """Return the full parameters of one combination."""
        return base.replace(**{name: values[self.codes[name][row]] for name, values in self.axes.items()})

    def regime_sets(self, base: TradingParams) -> list[tuple[str, ...] | None]:
        """Return the regime sets that occur; ``pack`` numbers them in this order."""
        values: list[tuple[str, ...] | None] = self.axes.get("allowed_regimes", [base.allowed_regimes])
        return values

    def pack(self, base: TradingParams) -> Rows:
        """Return the combinations in the kernels' form."""
        packed = np.zeros(self.rows, dtype=PARAMS)
        codes: dict[str, tuple[Array, int]] = {}
        for name in FIELDS:
            values = self.axes.get(name, [getattr(base, name)])
            column, numbers = _numbers(name, values)
            if len(values) == 1:
                packed[column] = numbers[0]
            else:
                packed[column] = numbers[self.codes[name]]
                codes[column] = (self.codes[name], len(values))
        rows = Rows(packed, codes)
        codes["filter"] = rows.number("allow_long", "allow_short", "allowed_regimes_set")
        packed["filter"] = codes["filter"][0]
        return rows


def _numbers(name: str, values: Sequence[Any]) -> tuple[str, Array]:
    """The PARAMS column of a field and its values in that form."""
    declared = DECLARED[name]
    if name == "allowed_regimes":
        return declared.column, np.array([-1 if value is None else k for k, value in enumerate(values)])
    return declared.column, np.array([declared.packed(value) for value in values])


def make_grid(grid: Any, base: TradingParams | None = None) -> Grid:
    """Return the combinations of a mapping (product), a polars or pandas DataFrame (a row each), or a ``Grid``.

    Raises SweepError for an unknown axis (with the closest name), an empty axis or a value that ``TradingParams``
    refuses. Combinations that contradict themselves, such as tp2_pct < tp1_pct, are left out with a warning that counts
    them.
    """
    base = base or TradingParams()
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, Mapping):
        axes = {name: _values(name, values) for name, values in _named(grid).items()}
        rows = math.prod(len(values) for values in axes.values())
        if rows > MOST_COMBINATIONS:
            raise SweepError(
                f"the grid has {rows:,} combinations, of {len(axes)} axes; a sweep runs at most "
                f"{MOST_COMBINATIONS:,}: take fewer values, or draw from ranges with replaylab.sweep.sample"
            )
        codes = _product({name: len(values) for name, values in axes.items()})
    else:
        if isinstance(grid, pl.LazyFrame):
            grid = grid.collect()
        frame = grid if isinstance(grid, pl.DataFrame) else _from_pandas(grid)
        _named(dict.fromkeys(frame.columns))
        axes, codes, rows = {}, {}, frame.height
        for name in frame.columns:
            axes[name], codes[name] = _column(name, frame[name])
        if rows == 0:
            raise SweepError("the grid has no rows")
    return _without_contradictions(axes, codes, rows, base)


def sample(
    ranges: Mapping[str, Any],
    n: int,
    *,
    method: str = "sobol",
    seed: int | None = 0,
    log: Sequence[str] = (),
) -> pl.DataFrame:
    """Return ``n`` combinations drawn from ranges: a DataFrame to sweep.

    >>> sample({"tp1_pct": (0.1, 0.5), "max_hold_s": [None, 60.0]}, 4).shape
    (4, 2)

    A tuple of two numbers is a range, a list is a choice. ``method``: "sobol" (SciPy's scrambled points, which fill
    many dimensions evenly; a power of two is best) or "random". Axes named in ``log`` are drawn evenly in the
    logarithm. The same seed gives the same rows.
    """
    from scipy.stats import qmc

    _named(ranges)
    if n < 1 or method not in ("sobol", "random"):
        raise SweepError(f"expected n ≥ 1 and method sobol or random, found {n} and {method!r}")
    generator = np.random.default_rng(seed)
    if method == "sobol":
        engine = qmc.Sobol(len(ranges), rng=generator)
        points = engine.random_base2(max(0, int(n - 1).bit_length()))[:n]
    else:
        points = generator.random((n, len(ranges)))
    columns = []
    for k, (name, wanted) in enumerate(ranges.items()):
        u = points[:, k]
        if (
            isinstance(wanted, tuple)
            and len(wanted) == 2
            and all(isinstance(x, (int, float)) for x in wanted)
        ):
            low, high = float(wanted[0]), float(wanted[1])
            if not low <= high or (name in log and low <= 0):
                raise SweepError(f"{name}: expected a range (low, high), above 0 in log, found {wanted!r}")
            drawn = low * (high / low) ** u if name in log else low + (high - low) * u
            columns.append(pl.Series(name, np.rint(drawn).astype(np.int64) if name in _WHOLE else drawn))
        else:
            choices = _values(name, wanted)
            codes = np.minimum((u * len(choices)).astype(np.int64), len(choices) - 1)
            if name == "allowed_regimes":
                choices = [None if choice is None else "|".join(choice) for choice in choices]
            columns.append(pl.Series(name, choices).gather(pl.Series(codes)))
    return pl.DataFrame(columns)


def _named(grid: Mapping[Any, Any]) -> Mapping[str, Any]:
    for name in grid:
        if name not in FIELDS:
            raise SweepError(
                f"the grid has an axis {name!r}, which is no parameter.{did_you_mean(str(name), FIELDS)}"
            )
    return grid


def _values(name: str, values: Any) -> list[Any]:
    """An axis's values, each checked as TradingParams would."""
    if values is None or isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        values = [values]
    listed = list(values.tolist() if hasattr(values, "tolist") else values)
    if not listed:
        raise SweepError(f"{name}: the axis has no values")
    return [checked_value(name, value) for value in listed]


def checked_value(name: str, value: Any) -> Any:
    """Return a value as the declaration of the field takes it; raises SweepError."""
    if name == "allowed_regimes" and isinstance(value, str):
        value = [part for part in value.split("|") if part]
    try:
        return DECLARED[name].check(value)
    except ValueError as error:
        raise SweepError(f"grid: {name}: expected {error}, found {value!r}") from None


def _column(name: str, column: pl.Series) -> tuple[list[Any], Array]:
    """Distinct values of a grid's column, and each row's code."""
    if column.dtype == pl.List:
        joined = [None if value is None else "|".join(value) for value in column.to_list()]
        column = pl.Series(name, joined, dtype=pl.String)
    distinct = column.unique(maintain_order=True)
    codes = column.replace_strict(distinct, pl.Series(range(len(distinct))), return_dtype=pl.Int32).to_numpy()
    if distinct.dtype.is_float() and len(distinct) > 1000:
        # Every field's bounds are an interval: the ends decide for all that lies between.
        numbers = distinct.drop_nulls()
        for value in (numbers.min(), numbers.max(), *([None] if distinct.null_count() else [])):
            checked_value(name, value)
        if not bool(numbers.is_finite().all()) or name in _WHOLE:
            return [checked_value(name, value) for value in distinct.to_list()], codes
        return distinct.cast(pl.Float64).to_list(), codes
    return [checked_value(name, value) for value in distinct.to_list()], codes


def _product(sizes: Mapping[str, int]) -> dict[str, Array]:
    total = int(np.prod(list(sizes.values()), dtype=np.int64))
    codes, repeat = {}, total
    for name, size in sizes.items():
        repeat //= size
        codes[name] = np.resize(np.repeat(np.arange(size, dtype=np.int32), repeat), total)
    return codes


def _from_pandas(grid: Any) -> pl.DataFrame:
    if not hasattr(grid, "columns"):
        raise SweepError(
            "grid: expected a mapping of parameter names to values, or a DataFrame with a row per combination; "
            f"found {type(grid).__name__}"
        )
    frame: pl.DataFrame = pl.from_pandas(grid)
    return frame


def _without_contradictions(
    axes: dict[str, list[Any]], codes: dict[str, Array], rows: int, base: TradingParams
) -> Grid:
    values: dict[str, Any] = {
        name: np.array(axes[name])[codes[name]] if name in axes else getattr(base, name)
        for fields, _ in contradictions({name: getattr(base, name) for name in FIELDS}).values()
        for name in fields
    }
    kept = np.ones(rows, dtype=bool)
    left_out: dict[str, int] = {}
    for reason, (_, wrong) in contradictions(values).items():
        dropped = kept & np.broadcast_to(wrong, rows)
        if dropped.any():
            left_out[reason] = int(dropped.sum())
            kept &= ~dropped
    if not left_out:
        return Grid(axes, codes, rows, {})
    counted = ", ".join(f"{count:,} of {rows:,} combinations have {why}" for why, count in left_out.items())
    if not kept.any():
        raise SweepError(f"all combinations contradict themselves, nothing is left to run: {counted}")
    warnings.warn(f"{counted} and are left out", UserWarning, stacklevel=4)
    places = np.flatnonzero(kept)
    return Grid(axes, {name: code[places] for name, code in codes.items()}, len(places), left_out)


def _dense(code: Array, total: int) -> Codes:
    """Codes without gaps; by flags where that is cheaper than sorting."""
    if total > 4 * len(code) + 65_536:
        values, inverse = np.unique(code, return_inverse=True)
        return inverse, len(values)
    used = np.zeros(total, dtype=bool)
    used[code] = True
    return (np.cumsum(used) - 1)[code], int(used.sum())


def plateaus(frame: pl.DataFrame, axes: Sequence[str], value: str) -> pl.DataFrame:
    """Return ``frame`` with ``neighbours``, ``neighbour_mean``, ``neighbour_min`` and ``robustness``.

    >>> grid = pl.DataFrame({"sl_pct": [0.1, 0.2, 0.3], "net_pnl": [5.0, 5.0, 5.0]})
    >>> plateaus(grid, ["sl_pct"], "net_pnl")["robustness"].to_list()
    [5.0, 5.0, 5.0]

    Neighbours of a combination on a grid are those one step away on one axis, the others equal. Numbers are ordered;
    categories, booleans and ``None`` ("rule off") are not: between them there is no step. Rows that lie on no grid
    (random or Sobol samples) take the nearest rows instead, in ranks per axis scaled to 0..1.

    ``neighbours`` counts them. ``robustness`` = mean − standard deviation (population) of ``value`` over the row and
    its neighbours, in the unit of ``value``: it equals the value on a flat plateau and falls far below it on a lone
    peak. A missing ``value`` counts as absent; a row without neighbours has null there. Raises SweepError.
    """
    for name in (*axes, value):
        if name not in frame.columns:
            raise SweepError(f"no column {name!r}.{did_you_mean(name, frame.columns)}")
    values = frame[value].cast(pl.Float64).to_numpy()
    steps, ordered = _steps(frame, axes)
    pairs = _grid_pairs(steps, ordered)
    # A grid of n rows and d axes has some n·d such pairs; a random sample hardly any.
    if len(pairs) < frame.height // 2 and any(ordered):
        pairs = _nearest_pairs(steps, ordered)
    count, total, squares, lowest = _gather(pairs, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        own = np.isfinite(values)
        members = count + own
        centre = (total + np.where(own, values, 0.0)) / members
        spread = (squares + np.where(own, values**2, 0.0)) / members - centre**2
        robustness = centre - np.sqrt(np.maximum(spread, 0.0))
    alone = count == 0
    return frame.with_columns(
        pl.Series("neighbours", count.astype(np.int64)),
        _nullable("neighbour_mean", mean, alone),
        _nullable("neighbour_min", lowest, alone),
        _nullable("robustness", robustness, alone | ~own),
    )


def _steps(frame: pl.DataFrame, axes: Sequence[str]) -> tuple[Array, list[bool]]:
    """Return the step number of each row on each axis (rows, axes), and which axes are ordered."""
    steps = np.empty((frame.height, len(axes)), dtype=np.int64)
    ordered = []
    for column, name in enumerate(axes):
        series = frame[name]
        numeric = series.dtype.is_numeric()
        if numeric:
            rank = series.rank("dense")
        else:
            plain = series.map_elements(str, return_dtype=pl.String) if series.dtype == pl.Object else series
            names = plain.hash() if plain.dtype.is_nested() else plain.cast(pl.String, strict=False)
            rank = names.rank("dense")
        steps[:, column] = rank.cast(pl.Int64).fill_null(0).to_numpy() - 1
        ordered.append(numeric)
    return steps, ordered


def _grid_pairs(steps: Array, ordered: list[bool]) -> Array:
    """Return pairs (row, neighbour one step up on one axis); each pair once."""
    sizes = steps.max(axis=0, initial=0) + 2
    if float(np.prod(sizes.astype(np.float64))) > 2**62:
        return np.empty((0, 2), dtype=np.int64)
    weights = np.concatenate([np.cumprod(sizes[::-1].astype(np.int64))[::-1][1:], [1]]).astype(np.int64)
    keys = (steps + 1) @ weights
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    found = []
    for axis, is_ordered in enumerate(ordered):
        if not is_ordered:
            continue
        rows = np.flatnonzero(steps[:, axis] >= 0)
        wanted = keys[rows] + weights[axis]
        rows, wanted = (part[steps[rows, axis] + 2 < sizes[axis]] for part in (rows, wanted))
        place = np.searchsorted(sorted_keys, wanted)
        hit = (place < len(keys)) & (sorted_keys[np.minimum(place, len(keys) - 1)] == wanted)
        found.append(np.column_stack([rows[hit], order[place[hit]]]))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _nearest_pairs(steps: Array, ordered: list[bool]) -> Array:
    """Return pairs (row, near row) within rows of the same categories: twice as many as there are ordered axes."""
    numeric = steps[:, ordered].astype(np.float64)
    scale = np.maximum(numeric.max(axis=0, initial=0.0), 1.0)
    off = numeric < 0  # None: as far from every number as the axis is long
    from scipy.spatial import KDTree

    points = np.where(off, 2.0, numeric / scale)
    kind = np.column_stack([steps[:, [not flag for flag in ordered]], off.astype(np.int64)])
    _, group = np.unique(kind, axis=0, return_inverse=True)
    wanted = 2 * sum(ordered)
    found = [np.empty((0, 2), dtype=np.int64)]
    for number in range(int(group.max(initial=-1)) + 1):
        rows = np.flatnonzero(group.ravel() == number)
        take = min(wanted, len(rows) - 1)
        if take < 1:
            continue
        _, near = KDTree(points[rows]).query(points[rows], k=take + 1)
        # The row itself goes last. Where duplicates hide it among its neighbours, the furthest is last already.
        itself = near == np.arange(len(rows))[:, None]
        others = np.take_along_axis(near, np.argsort(itself, axis=1, kind="stable"), axis=1)
        found.append(np.column_stack([np.repeat(rows, take), rows[others[:, :take].ravel()]]))
    one_way = np.concatenate(found)
    return np.unique(np.sort(one_way, axis=1), axis=0)


def _gather(pairs: Array, values: Array) -> tuple[Array, Array, Array, Array]:
    """Return count, sum, sum of squares and minimum of the finite values of each row's neighbours."""
    rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
    others = values[np.concatenate([pairs[:, 1], pairs[:, 0]])]
    usable = np.isfinite(others)
    rows, others = rows[usable], others[usable]
    size = len(values)
    lowest = np.full(size, np.inf)
    np.minimum.at(lowest, rows, others)
    count, total, squares = (
        np.bincount(rows, weights=weights, minlength=size).astype(np.float64)
        for weights in (np.ones(len(rows)), others, others**2)
    )
    return count, total, squares, lowest


def _nullable(name: str, values: Array, missing: Array) -> pl.Series:
    return pl.Series(name, np.where(missing, np.nan, values)).fill_nan(None)
