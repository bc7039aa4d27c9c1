"""Scoring parameters as axes of a sweep: the scores are made anew once per setting, then swept as usual.

::

    result = sweep_scoring(session, {"gain": [1.0, 1.5, 2.0]}, {"entry_threshold": [0.4, 0.6]})
    result.heatmap("scoring.gain", "entry_threshold")

    backtest(rescored(session, model))                   # a model of your own in place of the recorded scores
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm.auto import tqdm

from replaylab.errors import ConfigError, SweepError, did_you_mean
from replaylab.features import MarketTape, pack_market, score_series
from replaylab.params import ScoringParams, TradingParams
from replaylab.sweep.engine import backtest, sweep
from replaylab.sweep.result import SweepResult
from replaylab.sweep.tape import PriceSource, SessionLike

__all__ = ["Rescored", "rescored", "sweep_scoring"]

_SIGNALS = ("SCORING_UPDATE", "REGIME_UPDATE")
_PREFIX = "scoring."


@dataclass(frozen=True)
class Rescored:
    """A session whose scores and regimes were made anew; ``sweep`` and ``backtest`` take it as they take a session.

    ``place[i]`` is the position that event ``i`` had in the session itself, −1 for a new signal.
    """

    events: pl.DataFrame
    initial_state: Mapping[str, Any] | None
    id: str | None
    place: npt.NDArray[np.int64]

    def in_session(self, trades: pl.DataFrame) -> pl.DataFrame:
        """Return trades with ``entry_index`` and ``exit_index`` as positions in the session itself."""
        places = pl.Series(self.place)
        return trades.with_columns(
            pl.Series(name, places.gather(trades[name])) for name in ("entry_index", "exit_index")
        )


def rescored(
    session: SessionLike | pl.DataFrame, scoring: Any = None, *, tapes: Mapping[str, MarketTape] | None = None
) -> Rescored:
    """Return the session with the signals that ``scoring`` makes of its market data in place of the recorded ones.

    ``scoring``: ScoringParams, or a model with ``predict``. The signals stand where FULL_DECISION computes them: after
    all events of their time, by symbol, a changed regime before the score. They carry no price, so prices must come
    from trades or the book. ``tapes``: what ``pack_market`` made of the session with ``scoring.book_levels``, where
    many settings are tried. Raises SweepError for a session without market data.
    """
    events = session if isinstance(session, pl.DataFrame) else session.events
    state = getattr(session, "initial_state", None)
    scores = score_series(events if tapes is None else tapes, scoring, initial_state=state)
    if scores.is_empty():
        raise SweepError("no scores can be made: the session holds no market data, or none after the warm-up")
    ts = events["timestamp"].dt.timestamp("ns").to_numpy()
    at = scores["timestamp"].dt.timestamp("ns").to_numpy()
    scores = scores.with_columns(place=pl.Series(np.searchsorted(ts, at, side="right") - 1))
    symbols = (state or {}).get("symbols") or {}
    first = pl.DataFrame(
        {"symbol": list(symbols), "before": [(entry or {}).get("regime") for entry in symbols.values()]},
        schema={"symbol": pl.String, "before": pl.String},
    )
    regimes = (
        scores.join(first, on="symbol", how="left", maintain_order="left")
        .with_columns(last=pl.coalesce(pl.col("regime").shift(1).over("symbol"), "before"))
        .filter(pl.col("regime").ne_missing(pl.col("last")))
    )
    kept = events.with_row_index("place").filter(~pl.col("type").is_in(_SIGNALS))
    new = [
        _signals(regimes, "REGIME_UPDATE", pl.concat_str(pl.lit('{"regime":"'), "regime", pl.lit('"}')), 1),
        _signals(
            scores,
            "SCORING_UPDATE",
            pl.concat_str(pl.lit('{"score":'), pl.col("score").cast(pl.String), pl.lit("}")),
            2,
        ),
    ]
    old = kept.select(
        pl.col("place").cast(pl.Int64), "timestamp", "type", "symbol", "payload", rank=pl.lit(0, pl.Int8)
    )
    # One of the session's own events has a place of its own, so symbol and rank order the new ones alone.
    merged = pl.concat([old, *new]).sort("place", pl.col("rank") > 0, "symbol", "rank", maintain_order=True)
    place = merged.select(pl.when(pl.col("rank") == 0).then("place").otherwise(-1)).to_series().to_numpy()
    name = getattr(session, "id", None)
    return Rescored(
        merged.select("timestamp", "type", "symbol", "payload"),
        state,
        name if isinstance(name, str) else None,
        place,
    )


def sweep_scoring(
    session: SessionLike | pl.DataFrame,
    scoring_grid: Mapping[str, Any] | Sequence[ScoringParams],
    grid: Any,
    params: TradingParams | None = None,
    price_source: PriceSource = "auto",
    progress: bool = True,
    *,
    scoring: ScoringParams | None = None,
    **options: Any,
) -> SweepResult:
    """Run every combination of scoring settings and trading parameters over a session's market data.

    ``scoring_grid``: fields of ScoringParams with their values (all combinations), or a list of ScoringParams.
    ``scoring``: the settings that are no axis; None: the session's recorded ones, or the defaults. ``grid``,
    ``params``, ``price_source`` and further options: those of ``sweep``. In the result the axes of the first are called
    ``scoring.<field>`` and vary slowest; ``result.trades(row)`` has positions in the session itself. Raises SweepError
    and ConfigError.
    """
    if price_source == "score":
        raise SweepError(
            'scores that are made anew carry no price: price_source is "auto", "trade" or "book"'
        )
    base = scoring or getattr(session, "recorded_scoring", None) or ScoringParams()
    settings, axes = _settings(scoring_grid, base)
    events = session if isinstance(session, pl.DataFrame) else session.events
    give = options.pop("give", None)
    tapes: dict[int, Mapping[str, MarketTape]] = {}

    @lru_cache(maxsize=2)
    def again(number: int) -> Rescored:
        levels = settings[number].book_levels
        if levels not in tapes:
            state = getattr(session, "initial_state", None)
            tapes[levels] = pack_market(events, levels, initial_state=state)
        return rescored(session, settings[number], tapes=tapes[levels])

    results = [
        sweep(again(number), grid, params, price_source, progress=False, **options)
        for number in tqdm(range(len(settings)), unit="scoring", disable=not progress)
    ]
    rows = results[0].data.height
    columns = pl.DataFrame({name: [getattr(chosen, name) for chosen in settings] for name in axes})
    columns = columns.rename({name: _PREFIX + name for name in axes})
    frames = [columns[[number] * rows].hstack(result.data) for number, result in enumerate(results)]

    def trades_of_row(row: int) -> pl.DataFrame:
        number, inner = divmod(row, rows)
        chosen = results[number].params_of(inner)
        return again(number).in_session(backtest(again(number), chosen, price_source).trades)

    return SweepResult(
        data=pl.concat(frames),
        axes={**{_PREFIX + name: values for name, values in axes.items()}, **results[0].axes},
        params=results[0].params,
        session_id=results[0].session_id,
        digest=getattr(session, "digest", None),
        left_out=results[0].left_out,
        method=results[0].method,
        span=results[0].span,
        trades_of_row=trades_of_row,
        **({} if give is None else {"give": give}),
    )


def _settings(
    grid: Mapping[str, Any] | Sequence[ScoringParams], base: ScoringParams
) -> tuple[list[ScoringParams], dict[str, list[Any]]]:
    """Every scoring setting, and the axes by which they differ."""
    fields = ScoringParams.__struct_fields__
    if isinstance(grid, Mapping):
        axes = {}
        for name, values in grid.items():
            field = str(name).removeprefix(_PREFIX)
            if field not in fields:
                raise SweepError(
                    f"the scoring grid has an axis {name!r}, which is no setting.{did_you_mean(field, fields)}"
                )
            listed = values.tolist() if hasattr(values, "tolist") else values
            axes[field] = list(listed) if isinstance(listed, Sequence) else [listed]
        settings = [
            base.replace(**dict(zip(axes, chosen, strict=True))) for chosen in product(*axes.values())
        ]
    else:
        settings = list(grid)
        for chosen in settings:
            if not isinstance(chosen, ScoringParams):
                raise ConfigError(f"the scoring grid holds {chosen!r}, which is no ScoringParams")
        names = [name for name in fields if len({getattr(chosen, name) for chosen in settings}) > 1]
        axes = {name: sorted({getattr(chosen, name) for chosen in settings}) for name in names}
    if not settings:
        raise SweepError("the scoring grid is empty")
    return settings, axes


def _signals(frame: pl.DataFrame, kind: str, payload: pl.Expr, rank: int) -> pl.DataFrame:
    return frame.select(
        pl.col("place").cast(pl.Int64),
        "timestamp",
        pl.lit(kind).alias("type"),
        "symbol",
        payload.alias("payload"),
        rank=pl.lit(rank, pl.Int8),
    )
