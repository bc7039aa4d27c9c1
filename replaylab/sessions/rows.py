"""Rows on their way into a session: one narrow frame for every source, and the JSON texts of payloads.

All sources become frames of the columns in ``ROW_SCHEMA``; sorted by ``SORT_KEYS`` they are the session.
Texts of numbers are written by one JSON encoder, so that a session is the same to the byte on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import polars as pl

from replaylab.timestamps import iso

__all__ = [
    "ROW_SCHEMA",
    "SORT_KEYS",
    "SOURCE_RANK",
    "book_payloads",
    "iso_texts",
    "json_lines",
    "rows_frame",
    "trade_payloads",
]

ROW_SCHEMA: Mapping[str, pl.DataType] = {
    "ts": pl.Int64(),  # ns since 1970
    "rank": pl.Int8(),  # SOURCE_RANK of where it comes from
    "symbol": pl.String(),
    "seq": pl.Int64(),  # line or order within its source
    "type": pl.String(),
    "stamp": pl.String(),  # the timestamp's text
    "payload": pl.String(),  # JSON
}
SORT_KEYS = ("ts", "rank", "symbol", "seq")
# What causes comes before what it caused: prices, then signals, then orders, then the closed trade.
SOURCE_RANK = {"book": 0, "trades": 1, "metrics": 2, "events": 3, "orders": 4, "trades_log": 5}


def rows_frame(
    ts: pl.Series,
    rank: int,
    symbol: str | pl.Series,
    seq: pl.Series,
    event_type: str | pl.Series,
    payload: pl.Series,
    stamp: pl.Series | None = None,
) -> pl.DataFrame:
    """Return a frame of ``ROW_SCHEMA``; scalars are repeated, a missing ``stamp`` is written from ``ts``."""
    return pl.DataFrame({"ts": ts.cast(pl.Int64), "seq": seq.cast(pl.Int64), "payload": payload}).select(
        "ts",
        pl.lit(rank, pl.Int8).alias("rank"),
        (pl.lit(symbol) if isinstance(symbol, str) else symbol).alias("symbol"),
        "seq",
        (pl.lit(event_type) if isinstance(event_type, str) else event_type).alias("type"),
        (iso_texts(ts) if stamp is None else stamp).alias("stamp"),
        "payload",
    )


def iso_texts(ts: pl.Series) -> pl.Series:
    """Return the ISO texts of nanoseconds since 1970, the same as ``timestamps.iso`` gives one by one."""
    ns = ts.cast(pl.Int64)
    if len(ns) < 64:
        return pl.Series("stamp", [iso(value) for value in ns.to_list()], dtype=pl.String)
    moment = pl.col("ns").cast(pl.Datetime("ns"))
    whole_ms, whole_us = pl.col("ns") % 1_000_000 == 0, pl.col("ns") % 1_000 == 0
    frame = pl.DataFrame({"ns": ns})
    if frame.select(whole_ms.all()).item():
        text = moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
    else:
        text = (
            pl.when(whole_ms)
            .then(moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
            .when(whole_us)
            .then(moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
            .otherwise(moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"))
        )
    return frame.select(text.alias("stamp")).to_series()


def trade_payloads(frame: pl.DataFrame) -> pl.Series:
    """Return MARKET_TRADE payloads of a frame with price, qty, side, trade_id and optionally off_market."""
    texts = pl.DataFrame(
        {
            "price": _number_texts(frame["price"]),
            "qty": _number_texts(frame["qty"]),
            "side": _json_texts(frame["side"]),
            "id": _json_texts(frame["trade_id"]),
        }
    )
    end = pl.lit("}")
    if "off_market" in frame.columns:
        off = frame["off_market"].fill_null(False)
        end = pl.when(off).then(pl.lit(',"offMarket":true}')).otherwise(pl.lit("}"))
    parts = [
        pl.lit('{"price":'),
        pl.col("price"),
        pl.lit(',"qty":'),
        pl.col("qty"),
        pl.lit(',"side":'),
        pl.col("side"),
        pl.lit(',"tradeId":'),
        pl.col("id"),
        end,
    ]
    return texts.select(pl.concat_str(parts).alias("payload")).to_series()


def book_payloads(frame: pl.DataFrame) -> pl.Series:
    """Return MARKET_BOOK payloads of a frame with bids and asks (pairs, or JSON text) and optionally kind."""
    kinds = frame["kind"].to_list() if "kind" in frame.columns else ["snapshot"] * frame.height
    bids, asks = (_level_texts(frame[side]) for side in ("bids", "asks"))
    texts = [
        f'{{"bids":{bid},"asks":{ask},"kind":"{kind}"}}'
        for bid, ask, kind in zip(bids, asks, kinds, strict=True)
    ]
    return pl.Series("payload", texts, dtype=pl.String)


def json_lines(rows: pl.DataFrame) -> bytes:
    """Return the lines of ``events.jsonl`` for sorted rows, each with its newline."""
    if rows.is_empty():
        return b""
    quoted = {kind: orjson.dumps(kind).decode() for kind in rows["type"].unique().to_list()}
    lines = rows.select(
        pl.concat_str(
            [
                pl.lit('{"timestamp":"'),
                pl.col("stamp"),
                pl.lit('","type":'),
                pl.col("type").replace_strict(quoted, return_dtype=pl.String),
                # A symbol was checked to be a safe file name: nothing in it needs escaping.
                pl.lit(',"symbol":"'),
                pl.col("symbol"),
                pl.lit('","payload":'),
                pl.col("payload"),
                pl.lit("}\n"),
            ]
        )
    ).to_series()
    return "".join(lines.to_list()).encode()


def _number_texts(values: pl.Series) -> pl.Series:
    if values.is_empty():
        return pl.Series([], dtype=pl.String)
    data: Any = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    text = orjson.dumps(data.astype("float64", copy=True), option=orjson.OPT_SERIALIZE_NUMPY)
    return pl.Series(text[1:-1].decode().split(","), dtype=pl.String)


def _json_texts(values: pl.Series) -> pl.Series:
    """Return each text as JSON; most hold nothing to escape, and need no encoder one by one."""
    texts = values.cast(pl.String)
    odd = texts.str.contains(r'["\\\x00-\x1f]').fill_null(False)
    frame = pl.DataFrame({"text": texts})
    plain = frame.select(
        pl.when(pl.col("text").is_null())
        .then(pl.lit("null"))
        .otherwise(pl.concat_str([pl.lit('"'), pl.col("text"), pl.lit('"')]))
    ).to_series()
    if not odd.any():
        return plain
    return pl.Series(
        [
            orjson.dumps(text).decode() if strange else easy
            for text, strange, easy in zip(texts.to_list(), odd.to_list(), plain.to_list(), strict=True)
        ],
        dtype=pl.String,
    )


def _level_texts(levels: pl.Series) -> list[str]:
    if levels.dtype == pl.String:
        return levels.to_list()
    return [orjson.dumps(pairs).decode() for pairs in levels.to_list()]
