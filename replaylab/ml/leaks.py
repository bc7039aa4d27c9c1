"""Checks that a dataset does not know the future. Each returns findings; none means that it found nothing.

::

    check_no_lookahead(session)                                 # features, recomputed on what was there then
    check_label_times(data); check_duplicates(data)
    check_splits(cv, data, embargo=30.0)
    shuffled_baseline(evaluate, y, chance=0.5)                  # the whole pipeline, with labels that mean nothing

A check that finds nothing proves only that this kind of leak is not there on this data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from html import escape
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import DatasetError
from replaylab.ml.dataset import describe, features
from replaylab.ml.decisions import SessionLike, as_polars
from replaylab.ml.splits import duration_ns, interval_arrays, touches

_KEYS = ("event_index", "timestamp", "symbol")


@dataclass(frozen=True)
class Finding:
    """One leak: which check found it, where, how many rows, and what it means."""

    check: str
    where: str
    rows: int
    message: str


class Findings(list[Finding]):
    """What a check found, a list; ``checked`` names what was checked.

    >>> Findings([], "40 columns, 12 cuts")
    nothing leaks: 40 columns, 12 cuts
    """

    def __init__(self, found: Iterable[Finding], checked: str) -> None:
        super().__init__(found)
        self.checked = checked

    def __repr__(self) -> str:
        if not self:
            return f"nothing leaks: {self.checked}"
        lines = (f"\n  {one.check}, {one.where}: {one.rows:,} rows: {one.message}" for one in self)
        return f"{len(self)} leaks in {self.checked}:{''.join(lines)}"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


class Splitter(Protocol):
    """Anything with scikit-learn's ``split``."""

    def split(self, data: Any, /) -> Iterable[tuple[Any, Any]]: ...


@dataclass(frozen=True)
class _Prefix:
    """The first events of a session: all that was there then."""

    events: pl.DataFrame
    initial_state: Mapping[str, Any] | None


def check_no_lookahead(
    session: SessionLike, build: Callable[[Any], pl.DataFrame] = features, *, cuts: int | Sequence[int] = 5
) -> Findings:
    """Recompute the features on prefixes of the session: every row of a prefix must be the same to the bit.

    ``build``: from a session to a frame with ``event_index``, ``timestamp`` and ``symbol``; yours, if you add columns.
    ``cuts``: how many prefixes, spread evenly, or their lengths in events. Names each column that knew more.
    """
    events = session.events
    if isinstance(cuts, int):
        lengths = [round(events.height * (k + 1) / (cuts + 1)) for k in range(cuts)]
    else:
        lengths = list(cuts)
    if any(not 0 <= length <= events.height for length in lengths):
        raise DatasetError(f"cuts are lengths from 0 to {events.height}, found {lengths}")
    full = as_polars(build(session))
    keys = [name for name in _KEYS if name in full.columns]
    if len(keys) < len(_KEYS):
        raise DatasetError(f"build must return the columns {', '.join(_KEYS)}, found {full.columns}")
    state = getattr(session, "initial_state", None)
    rows: dict[str, int] = {}
    lost = 0
    for length in lengths:
        part = as_polars(build(_Prefix(events.head(length), state)))
        partner = part.select(*keys).join(
            full.with_row_index("at"), on=keys, how="left", maintain_order="left", nulls_equal=True
        )
        if partner.height != part.height:
            raise DatasetError(
                "event_index, timestamp and symbol do not name a row of their own: see check_duplicates"
            )
        lost += partner["at"].null_count()
        there = partner["at"].is_not_null()
        for name in full.columns:
            if name in keys:
                continue
            then = (
                part[name]
                if name in part.columns
                else pl.Series(name, [None] * part.height, full.schema[name])
            )
            differs = ~then.cast(full.schema[name]).eq_missing(partner[name]) & there
            if differs.any():
                rows[name] = max(rows.get(name, 0), int(differs.sum()))
    findings = [
        Finding("no_lookahead", name, count, "the value changes when later events are taken away")
        for name, count in rows.items()
    ]
    if lost:
        findings.append(
            Finding("no_lookahead", "rows", lost, "a row of a prefix is not among the rows of the whole")
        )
    return Findings(findings, f"{len(full.columns) - len(keys)} columns, {len(lengths)} cuts")


def check_label_times(data: pl.DataFrame) -> Findings:
    """Check that each row's features end where its label begins: timestamp ≤ t_start ≤ entry_time, t_start ≤ t_end."""
    rules = {
        "timestamp": (pl.col("timestamp") > pl.col("t_start"), "features are from after the label began"),
        "entry_time": (pl.col("entry_time") < pl.col("t_start"), "the entry is before the decision"),
        "t_end": (pl.col("t_end") < pl.col("t_start"), "the label ends before it begins"),
        "label": (
            pl.col("label").is_not_null() & pl.col("t_end").is_null(),
            "a label without an end: what it overlaps is unknown",
        ),
    }
    data = as_polars(data)
    missing = [name for name in ("timestamp", "t_start", "t_end") if name not in data.columns]
    if missing:
        raise DatasetError(f"the data has no column {', '.join(missing)}")
    findings = []
    for name, (broken, message) in rules.items():
        if name in data.columns:
            count = int(data.select(broken.fill_null(value=False).sum()).item())
            if count:
                findings.append(Finding("label_times", name, count, message))
    return Findings(
        findings, f"{data.height:,} rows, {sum(name in data.columns for name in rules)} rules of times"
    )


def check_duplicates(data: pl.DataFrame) -> Findings:
    """Find rows that say the same twice: same symbol, time and features. Overlapping sessions give such rows."""
    data = as_polars(data)
    names = [column.name for column in describe(data.columns) if column.role == "feature"]
    keys = [name for name in ("timestamp", "symbol") if name in data.columns]
    repeated = int(data.select(*keys, *names).is_duplicated().sum())
    message = "the same rows twice: one may train, the other test"
    found = [Finding("duplicates", ", ".join(keys), repeated, message)] if repeated else []
    return Findings(found, f"{data.height:,} rows, {len(names)} features")


def check_splits(
    cv: Splitter,
    data: Any,
    *,
    t_start: Any = None,
    t_end: Any = None,
    embargo: float | timedelta = 0.0,
) -> Findings:
    """Check every split of ``cv``: no row in both sets, no training label that touches a test label or its embargo.

    ``t_start`` and ``t_end`` default to the columns of ``data``. Works on any splitter, also scikit-learn's own.
    """
    start, end = interval_arrays(
        *(data[n] if v is None else v for n, v in (("t_start", t_start), ("t_end", t_end)))
    )
    gap = duration_ns(embargo, "embargo")
    findings = []
    number = -1
    for number, (train, test) in enumerate(cv.split(np.zeros((len(start), 1)))):
        train, test = np.asarray(train), np.asarray(test)
        both = len(np.intersect1d(train, test))
        if both:
            findings.append(Finding("splits", f"split {number}", both, "rows in train and test"))
        bad = int(touches(start[train], end[train], start[test], end[test], gap).sum())
        if bad:
            findings.append(
                Finding(
                    "splits", f"split {number}", bad, "training labels overlap the test time or its embargo"
                )
            )
    return Findings(findings, f"{number + 1} splits of {len(start):,} rows")


@dataclass(frozen=True)
class Baseline:
    """Outcome of a shuffled-label baseline.

    ``score``: with the true labels; ``shuffled``: with shuffled ones. ``p_value``: share of all runs (the true one
    included) at least as good as the true one: high means that there is nothing to see. ``findings``: not empty when
    shuffled labels score clearly above chance, which only a leak in the evaluation can bring about.
    """

    score: float
    shuffled: npt.NDArray[np.float64]
    p_value: float
    findings: list[Finding]


def shuffled_baseline(
    evaluate: Callable[[npt.NDArray[Any]], float],
    y: npt.ArrayLike,
    *,
    chance: float,
    n: int = 20,
    block: int = 1,
    seed: int = 0,
) -> Baseline:
    """Run the whole pipeline again with labels that mean nothing.

    ``evaluate``: from labels to one score, higher better, with everything that reads labels inside it: feature
    selection, scaling, tuning, cross-validation. ``chance``: the score of a guess. ``block``: shuffle blocks of
    that many neighbouring rows, which keeps their dependence. A finding: the mean of ``n`` shuffled scores lies more
    than three of its standard errors above ``chance``.
    """
    labels = np.asarray(y)
    if n < 2 or block < 1:
        raise DatasetError(f"expected n ≥ 2 and block ≥ 1, found {n} and {block}")
    rng = np.random.default_rng(seed)
    pieces = np.array_split(np.arange(len(labels)), max(1, len(labels) // block))
    scores = np.array(
        [
            float(evaluate(labels[np.concatenate([pieces[k] for k in rng.permutation(len(pieces))])]))
            for _ in range(n)
        ]
    )
    score = float(evaluate(labels))
    error = float(scores.std(ddof=1)) / np.sqrt(n)
    excess = float(scores.mean()) - chance
    findings = []
    if excess > max(3 * error, 1e-9):
        message = f"labels that mean nothing score {scores.mean():.3f}, chance is {chance:.3f}: the evaluation leaks"
        findings.append(Finding("shuffled_baseline", "evaluation", len(labels), message))
    return Baseline(score, scores, float((1 + (scores >= score).sum()) / (n + 1)), findings)
