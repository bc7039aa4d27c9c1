"""Sessions from DataFrames: events that a user made in a notebook become a session like any other.

>>> session = as_session(events)                                    # doctest: +SKIP
>>> save_session_frame("data", events, session_id="mine")           # doctest: +SKIP
"""

from __future__ import annotations

import atexit
import hashlib
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

import orjson
import polars as pl

from replaylab.errors import SessionError, SessionExistsError, did_you_mean
from replaylab.features import InitialState
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot, safe_name
from replaylab.records import ReplayManifest
from replaylab.sessions.build import move_into_place, numbered, recorded_instruments
from replaylab.sessions.options import BuildOptions, generated_id
from replaylab.sessions.session import EVENT_SCHEMA, Session
from replaylab.sessions.sources import iso_strings
from replaylab.sessions.store import SessionStore, build_folder, json_bytes, write_index
from replaylab.timestamps import iso, now_ns, parse_ns

_COLUMNS = tuple(EVENT_SCHEMA)
_SIGNALS = ("timestamp", "symbol", "score", "price", "regime")


class EventFrame(Protocol):
    """A DataFrame with the columns of ``session.events``: polars, pandas, pyarrow, anything that exports Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


# A Session, a session id, a manifest, or a DataFrame of events.
AnySession: TypeAlias = Session | str | ReplayManifest | EventFrame


def as_session(value: AnySession, store: SessionStore | None = None) -> Session:
    """Return the Session of a Session, an id or manifest (of ``store``), or a DataFrame of events.

    >>> as_session(lab.session("my-session").events.head(1000))                    # doctest: +SKIP

    A frame (polars, pandas, pyarrow, anything with ``__arrow_c_stream__``) has the columns of ``session.events``:
    timestamp (datetimes or ISO strings, ascending), type, symbol (or null), payload (JSON strings, dicts or structs;
    null fields of structs are left out). Other columns are not used. It is written to a scratch data root that is
    deleted when the process ends; the same events give the same session. Ticks and lots of its symbols are those of
    ``store``'s data root, where there is a store. Raises SessionError with the row at fault.
    """
    # A view with pandas tables, as Lab(frame="pandas") returns it.
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, Session):
        return value
    if isinstance(value, str | ReplayManifest):
        if store is None:
            raise SessionError(
                f"session {value!r} is only a name here: pass a Session, or use lab.session(...)"
            )
        return store.open(value)
    frame = event_frame(value)
    lines = event_lines(frame)
    known = {} if store is None else recorded_instruments(store.root, _symbols(frame))
    name = f"frame-{hashlib.sha256(lines + json_bytes(known)).hexdigest()[:16]}"
    root = _scratch_root()
    if not root.manifest(name).is_file():
        meta = {"instruments": known} if known else {}
        # Another thread may write the same events at the same time.
        with suppress(SessionExistsError):
            _write(root, frame, lines, name, _draft(frame, None, "MANUAL", 1.0, None), meta)
    return Session(root, name)


def save_session_frame(
    root: str | PathLike[str] | DataRoot,
    frame: Any,
    session_id: str | None = None,
    notes: str | None = None,
    initial_state: Mapping[str, Any] | None = None,
    *,
    instruments: Mapping[str, Mapping[str, Any]] | None = None,
    recorded_params: TradingParams | None = None,
    recorded_scoring: ScoringParams | None = None,
    created_by: Literal["MANUAL", "AUTO", "TEST"] = "MANUAL",
    speed_factor: float = 1.0,
    span: tuple[str, str] | None = None,
) -> ReplayManifest:
    """Write a DataFrame of events as a session of ``root`` and return its manifest.

    >>> save_session_frame("data", session.events.head(1000), "first-thousand")          # doctest: +SKIP

    ``frame`` as in :func:`as_session`. ``initial_state``: as in ``meta.json`` (docs/formats.md); None starts from
    nothing. ``instruments``: ticks and lots by symbol; None takes those of the root, {} none. ``span``: from and to of
    the manifest (ISO), by default the first to just after the last event; a frame without events needs it. Raises
    SessionError, SessionExistsError (the id is taken), UnsafeNameError.
    """
    events = event_frame(frame)
    if events.is_empty() and span is None:
        raise SessionError("the frame has no events: a session needs at least one")
    InitialState.read(initial_state)
    meta: dict[str, Any] = {}
    if initial_state is not None:
        meta["initialState"] = dict(initial_state)
    if instruments is None:
        instruments = recorded_instruments(DataRoot(root), _symbols(events))
    if instruments:
        meta["instruments"] = {symbol: dict(entry) for symbol, entry in instruments.items()}
    if recorded_params is not None or recorded_scoring is not None:
        recorded: dict[str, Any] = {"timestamp": _span(events, span)[0]}
        if recorded_params is not None:
            recorded["params"] = recorded_params.to_dict()
        if recorded_scoring is not None:
            recorded["scoring"] = recorded_scoring.to_dict()
        meta["recordedParams"] = recorded
    manifest = _draft(events, notes, created_by, speed_factor, span)
    data = DataRoot(root)
    data_name = session_id if session_id is not None else _generated(events, manifest)
    _write(data, events, event_lines(events), data_name, manifest, meta, fixed=session_id is not None)
    write_index(data)
    return manifest


def event_frame(value: Any) -> pl.DataFrame:
    """Return a frame as timestamp (ns UTC), type, symbol, payload (JSON string). Raises SessionError."""
    frame = _polars(value, _COLUMNS, "a session: a Session, a session id, a manifest, or a DataFrame")
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise SessionError(
            f"a frame of events has the columns {', '.join(_COLUMNS)}; {', '.join(missing)} is missing, found "
            f"{', '.join(frame.columns) or 'none'}"
        )
    try:
        frame = frame.select(
            _times(frame["timestamp"]),
            pl.col("type").cast(pl.String),
            pl.col("symbol").cast(pl.String),
            _payloads(frame["payload"]),
        )
    except pl.exceptions.PolarsError as error:
        raise SessionError(f"a column of the events has the wrong type: {error}") from None
    for bad, what in (
        (frame["timestamp"].is_null(), "no timestamp"),
        (frame["type"].is_null() | (frame["type"] == ""), "no type"),
        (frame["symbol"] == "", "an empty symbol"),
        (frame["payload"].is_null(), "no payload"),
        (frame["timestamp"].diff().dt.total_nanoseconds() < 0, "a timestamp before that of the row above"),
    ):
        if (row := bad.fill_null(False).arg_max()) is not None and bad.fill_null(False)[row]:
            raise SessionError(f"row {row} of the events has {what}: {frame.row(row)}")
    return frame


def signal_frame(value: Any) -> pl.DataFrame:
    """Return a user's signals by time, symbol and row: timestamp (ns UTC), symbol, score, and price and regime if any.

    >>> signal_frame(pl.DataFrame({"timestamp": ["2025-11-18T10:00Z"], "symbol": ["A"], "score": [1]}))["score"][0]
    1.0

    ``score`` is signed (+ LONG, − SHORT); a null score of a row with a regime is a change of regime alone. ``price`` in
    quote currency may be null. Raises SessionError with the row at fault.
    """
    frame = _polars(value, _SIGNALS, "a DataFrame of signals")
    optional = {"price": pl.Float64, "regime": pl.String}
    kinds = {"symbol": pl.String, "score": pl.Float64, **optional}
    missing = [name for name in ("timestamp", "symbol", "score") if name not in frame.columns]
    if missing:
        raise SessionError(
            "signals have the columns timestamp, symbol, score and, if known, price and regime; "
            f"{', '.join(missing)} is missing, found {', '.join(frame.columns) or 'none'}"
        )
    kept = [name for name in kinds if name in frame.columns]
    try:
        frame = frame.select(_times(frame["timestamp"]), *(pl.col(name).cast(kinds[name]) for name in kept))
    except pl.exceptions.PolarsError as error:
        raise SessionError(f"a column of the signals has the wrong type: {error}") from None
    regime = (
        frame["regime"] if "regime" in frame.columns else pl.Series([None]).new_from_index(0, frame.height)
    )
    unknown = frame["score"].is_null() & regime.is_null()
    checks = [
        (frame["timestamp"].is_null(), "no timestamp"),
        (frame["symbol"].fill_null("") == "", "no symbol"),
        (unknown, "no score"),
        (~frame["score"].fill_null(0.0).is_finite(), "a score that is not finite"),
    ]
    if "price" in frame.columns:
        price = frame["price"].fill_null(1.0)
        checks.append((~(price.is_finite() & (price > 0)), "a price that is not above 0"))
    for bad, what in checks:
        if bad.any():
            row = bad.arg_max() or 0
            raise SessionError(f"row {row} of the signals has {what}: {frame.row(row)}")
    return frame.sort("timestamp", "symbol", maintain_order=True)


def feature_frame(value: Any, names: Sequence[str]) -> pl.DataFrame:
    """Return a user's features by time: timestamp (ns UTC), symbol, and the named columns as numbers, NaN for null.

    Raises SessionError for a column that is missing or of a wrong type, and for a row without a time or a symbol.
    """
    wanted = ("timestamp", "symbol", *names)
    frame = _polars(value, wanted, "a DataFrame of features")
    for name in wanted:
        if name not in frame.columns:
            raise SessionError(f"the features have no column {name!r}.{did_you_mean(name, frame.columns)}")
    numbers = (pl.col(name).cast(pl.Float64).fill_null(math.nan) for name in names)
    try:
        frame = frame.select(_times(frame["timestamp"]), pl.col("symbol").cast(pl.String), *numbers)
    except pl.exceptions.PolarsError as error:
        raise SessionError(f"a column of the features has the wrong type: {error}") from None
    for name in ("timestamp", "symbol"):
        if frame[name].null_count():
            raise SessionError(f"row {frame[name].is_null().arg_max()} of the features has no {name}")
    return frame.sort("timestamp", maintain_order=True)


def event_lines(frame: pl.DataFrame) -> bytes:
    """Return the lines of ``events.jsonl`` of a checked frame."""
    if frame.is_empty():
        return b""
    stamps = iso_strings(frame["timestamp"].dt.timestamp("ns"))
    quoted = frame.select(
        *(
            pl.col(name).replace_strict(
                {text: orjson.dumps(text).decode() for text in frame[name].drop_nulls().unique()},
                default="null",
                return_dtype=pl.String,
            )
            for name in ("type", "symbol")
        )
    )
    lines = pl.select(
        pl.format(
            '{}{}","type":{},"symbol":{},"payload":{}{}',
            pl.lit('{"timestamp":"'),
            stamps,
            quoted["type"],
            quoted["symbol"].fill_null("null"),
            frame["payload"],
            pl.lit("}\n"),
        )
    ).to_series()
    return "".join(lines.to_list()).encode()


def _polars(value: Any, names: Sequence[str], what: str) -> pl.DataFrame:
    if isinstance(value, pl.DataFrame):
        return value
    if isinstance(value, pl.LazyFrame):
        return value.collect()
    columns = getattr(value, "columns", None)
    if type(value).__module__.partition(".")[0] == "pandas" and columns is not None:
        # Payloads stay objects: a struct would give every dict the keys of all.
        wanted = [name for name in names if name in columns]
        series = [
            pl.Series(name, value[name].tolist(), dtype=pl.Object)
            if name == "payload"
            else _of_pandas(value, name)
            for name in wanted
        ]
        return pl.DataFrame(series)
    if hasattr(value, "__arrow_c_stream__"):
        return pl.DataFrame(value)
    raise SessionError(f"expected {what} with the columns {', '.join(names)}; found {type(value).__name__}")


def _of_pandas(frame: Any, name: str) -> pl.Series:
    found = pl.from_pandas(frame[[name]])[name]
    return cast("pl.Series", found)


def _symbols(frame: pl.DataFrame) -> list[str]:
    return sorted(frame["symbol"].drop_nulls().unique().to_list())


def _times(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return pl.Series("timestamp", [None if text is None else parse_ns(text) for text in values]).cast(
            EVENT_SCHEMA["timestamp"]
        )
    if not isinstance(values.dtype, pl.Datetime):
        raise SessionError(f"timestamps are datetimes or ISO strings, found {values.dtype}")
    utc = (
        values.dt.replace_time_zone("UTC")
        if values.dtype.time_zone is None
        else values.dt.convert_time_zone("UTC")
    )
    return utc.dt.cast_time_unit("ns").alias("timestamp")


def _payloads(values: pl.Series) -> pl.Series:
    texts = []
    for row, value in enumerate(values.to_list()):
        try:
            payload = orjson.loads(value) if isinstance(value, str) else value
            if not isinstance(payload, Mapping):
                raise ValueError("expected a JSON object")
            if isinstance(value, str):
                texts.append(value.replace("\n", " "))
            else:
                kept = (
                    {k: v for k, v in payload.items() if v is not None}
                    if values.dtype == pl.Struct
                    else payload
                )
                texts.append(orjson.dumps(kept, option=orjson.OPT_SERIALIZE_NUMPY).decode())
        except (ValueError, TypeError) as error:
            raise SessionError(
                f"row {row} of the events has an unusable payload {value!r:.80}: {error}"
            ) from None
    return pl.Series("payload", texts, dtype=pl.String)


def _span(frame: pl.DataFrame, span: tuple[str, str] | None) -> tuple[str, str]:
    if span is not None:
        return span
    ns = frame["timestamp"].dt.timestamp("ns")
    return iso(ns[0]), iso(ns[-1] + 1)


def _draft(
    frame: pl.DataFrame, notes: str | None, created_by: str, speed_factor: float, span: tuple[str, str] | None
) -> ReplayManifest:
    first, last = _span(frame, span)
    return ReplayManifest.from_dict(
        {
            "sessionId": "draft",
            "createdAt": first if created_by == "TEST" else iso(now_ns()),
            "createdBy": created_by,
            "sourceDateRange": {"from": first, "to": last},
            "symbols": _symbols(frame),
            "eventTypes": sorted(frame["type"].unique().to_list()),
            "speedFactor": speed_factor,
            "notes": notes,
            "totalEvents": frame.height,
        }
    )


def _generated(frame: pl.DataFrame, manifest: ReplayManifest) -> str:
    ns = frame["timestamp"].dt.timestamp("ns")
    # To the second: a range of nanoseconds makes no name.
    end = -(-(ns[-1] + 1) // 1_000_000_000) * 1_000_000_000
    symbols = manifest.symbols or ["all"]
    return generated_id(BuildOptions(ns[0], end, "", "", tuple(symbols), None, None))


def _write(
    root: DataRoot,
    frame: pl.DataFrame,
    lines: bytes,
    name: str,
    manifest: ReplayManifest,
    meta: dict[str, Any],
    *,
    fixed: bool = True,
) -> None:
    safe_name(name, "session id")
    if fixed and root.session_dir(name).exists():
        raise SessionExistsError(f"session {name!r} exists: choose another id, or delete it first")
    counts = dict(sorted(frame.group_by("type").len().iter_rows()))
    facts = {
        "formatVersion": 1,
        "totalEvents": frame.height,
        "eventCounts": counts,
        "eventsSha256": hashlib.sha256(lines).hexdigest(),
        "eventsBytes": len(lines),
    }
    with build_folder(root) as folder:
        (folder / "events.jsonl").write_bytes(lines)
        (folder / "meta.json").write_bytes(json_bytes(facts | meta))
        move_into_place(root, folder, manifest, [name] if fixed else numbered(name), "error")


@cache
def _scratch_root() -> DataRoot:
    """Return the data root of sessions that are only frames; deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="replaylab-frames-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return DataRoot(folder)
