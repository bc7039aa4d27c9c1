"""Prices of a session by position, so that a screen can show the market as it stood at any event."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from replaylab.errors import ReplaylabError

__all__ = ["MarketTrack"]


class MarketTrack:
    """The prices of one session: traded prices, else those that the scores carry.

    ``frame``: columns index, timestamp, symbol, price, in the order of the session.
    """

    def __init__(self, events: pl.DataFrame) -> None:
        rows = events.with_row_index("index").filter(
            pl.col("type").is_in(["MARKET_TRADE", "SCORING_UPDATE"]) & pl.col("symbol").is_not_null()
        )
        price = pl.col("payload").str.json_path_match("$.price").cast(pl.Float64, strict=False)
        off = pl.col("payload").str.json_path_match("$.offMarket").fill_null("") == "true"
        priced = rows.with_columns(price=price).filter(
            pl.col("price").is_finite() & (pl.col("price") > 0) & ~off
        )
        traded = priced.filter(pl.col("type") == "MARKET_TRADE")["symbol"].unique()
        self.frame = priced.filter(
            (pl.col("type") == "MARKET_TRADE") | ~pl.col("symbol").is_in(traded.implode())
        ).select("index", "timestamp", "symbol", "price")
        self._by_symbol = {
            str(key[0]): (part["index"].to_numpy(), part["price"].to_numpy())
            for key, part in self.frame.partition_by("symbol", as_dict=True).items()
        }

    @classmethod
    def load(cls, lab: Any, session_id: str) -> MarketTrack | None:
        """The track of a session, or None where it cannot be read (any more)."""
        try:
            return cls(lab.session(session_id).events)
        except (ReplaylabError, OSError):
            return None

    @property
    def symbols(self) -> list[str]:
        return sorted(self._by_symbol)

    def price(self, symbol: str, position: int) -> float | None:
        """The last price among the first ``position`` events."""
        if symbol not in self._by_symbol:
            return None
        index, price = self._by_symbol[symbol]
        place = int(np.searchsorted(index, position)) - 1
        return float(price[place]) if place >= 0 else None

    def until(self, symbol: str, position: int) -> pl.DataFrame:
        """Timestamps and prices of a symbol among the first ``position`` events."""
        return self.frame.filter((pl.col("symbol") == symbol) & (pl.col("index") < position))
