"""Closed trades of a foreign log: rebuilt from fills, compared with its own, completed from prices and funding."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from replaylab import history
from replaylab.errors import HistoryError
from replaylab.importers.foreign_sources import FIELDS, dtype_of
from replaylab.importers.intake import ImportReport
from replaylab.paths import DataRoot
from replaylab.timestamps import iso

# A quantity below this share of the position is the rest of a rounding, not a position.
_DUST = 1e-9
# A price of another pair is used for fees up to this age, in ns.
_OLD_PRICE = 3_600_000_000_000
_UTC = pl.Datetime("ns", "UTC")
_TRADES = {
    **dict.fromkeys(("timestamp", "entry_time"), pl.Int64),
    **dict.fromkeys(("symbol", "strategy", "side"), pl.String),
    **dict.fromkeys(("entry_price", "close_price", "qty", "realized_pnl", "fees", "leverage"), pl.Float64),
    "mode": pl.String,
}
_UNKNOWN = {
    **dict.fromkeys(("funding", "mfe", "mae", "duration_seconds"), pl.Float64),
    "reason": pl.String,
}


@dataclass
class _Position:
    """An open position of one symbol (in hedge mode: of one side), at average cost; ``held`` is signed."""

    start: int
    held: float = 0.0
    entered: float = 0.0
    entry_value: float = 0.0
    exited: float = 0.0
    exit_value: float = 0.0
    # None: a fee in a currency that is not converted.
    fees: float | None = 0.0
    leverage: float | None = None
    mode: str | None = None

    def add(self, signed: float, price: float, fee: float | None) -> None:
        self.held += signed
        self.entered += abs(signed)
        self.entry_value += abs(signed) * price
        self._pay(fee)

    def reduce(self, part: float, price: float, fee: float | None) -> bool:
        """Close a part; return whether nothing is left but the rest of a rounding."""
        self.held -= math.copysign(part, self.held)
        self.exited += part
        self.exit_value += part * price
        self._pay(fee)
        return abs(self.held) <= _DUST * self.entered

    def trade(self, symbol: str, strategy: str | None, ts: int, side: str) -> tuple[Any, ...]:
        entry, close = self.entry_value / self.entered, self.exit_value / self.exited
        gain = self.exit_value - self.entry_value * (self.exited / self.entered)
        pnl = (gain if side == "LONG" else -gain) - (self.fees or 0.0)
        values = (ts, self.start, symbol, strategy, side, entry, close, self.exited, pnl)
        return (*values, self.fees, self.leverage, self.mode)

    def _pay(self, fee: float | None) -> None:
        self.fees = None if self.fees is None or fee is None else self.fees + fee


def with_converted_fees(root: DataRoot, fills: pl.DataFrame, report: ImportReport) -> pl.DataFrame:
    """Convert fees in a third currency (BNB) at the last price before the fill, where the history has that pair.

    The pair is the currency and the end of the symbol: BNBUSDT for a fee in BNB on BTCUSDT. A price older than an hour
    is not used.
    """
    pairs = fills.filter(pl.col("fee").is_not_null()).select("symbol", "fee_currency").drop_nulls().unique()
    known = history.symbols(root, "trades")
    for symbol, given in pairs.sort("symbol", "fee_currency").iter_rows():
        currency = given.upper()
        if symbol.startswith(currency) or symbol.endswith(currency):
            continue
        pair = next(
            (p for p in known if p.startswith(currency) and symbol.endswith(p[len(currency) :])), None
        )
        if pair is None or pair == currency:
            continue
        mine = (pl.col("symbol") == symbol) & (pl.col("fee_currency") == given)
        part = fills.filter(mine).sort("timestamp")
        first, last = int(part["timestamp"][0]) - _OLD_PRICE, int(part["timestamp"][-1]) + 1
        tape = history.scan_trades(root, pair, *(iso(ns) for ns in (first, last)))
        prices = (
            tape.filter(~pl.col("off_market"))
            .select(pl.col("timestamp").dt.timestamp("ns"), rate="price")
            .collect()
        )
        rates = part.join_asof(prices.sort("timestamp"), on="timestamp", tolerance=_OLD_PRICE)
        converted = rates.filter(pl.col("rate").is_not_null()).select(
            "row", fee_quote=pl.col("fee") * pl.col("rate"), quote=pl.lit(pair[len(currency) :])
        )
        report.note(f"fees of {converted.height:,} fills in {given} were converted at the prices of {pair}")
        fills = fills.join(converted, on="row", how="left", maintain_order="left").with_columns(
            fee=pl.coalesce("fee_quote", "fee"), fee_currency=pl.coalesce("quote", "fee_currency")
        )
        fills = fills.drop("fee_quote", "quote")
    return fills


def in_base_currency(log: str, frame: pl.DataFrame, report: ImportReport) -> pl.DataFrame:
    """Convert quantities in contracts of a base currency: what was paid is price · quantity · contract size.

    The size of a symbol's contracts is that of its rows with all three. Raises HistoryError where they have several:
    contracts in quote currency, or a cost of another kind.
    """
    price, qty, cost = {
        "fills": ("price", "qty", "cost"),
        "orders": ("avg_fill_price", "filled_qty", "notional_usd"),
    }[log]
    factor = (pl.col(cost) / (pl.col(price) * pl.col(qty))).alias("factor")
    priced = frame.filter((pl.col(price) > 0) & (pl.col(qty) > 0) & (pl.col(cost) > 0))
    sizes = (
        priced.select("symbol", factor)
        .group_by("symbol")
        .agg(size=pl.col("factor").median(), low=pl.col("factor").min(), high=pl.col("factor").max())
    )
    # Costs may be rounded: small ones differ by some percent. Where one fits, no row is in contracts.
    sizes = sizes.filter((pl.col("low") > 1.05) | (pl.col("high") < 0.95))
    for symbol, size, low, high in sizes.sort("symbol").iter_rows():
        if high > 1.05 * low:
            raise HistoryError(
                f"{symbol}: cost is {low:.6g} to {high:.6g} times price · quantity: contracts that are not in base "
                "currency. Convert the quantities first, or leave cost out of the mapping"
            )
        size = float(f"{size:.3g}")
        report.note(f"{symbol}: quantities are contracts of {size:g}, converted to base currency")
        own = pl.col("symbol") == symbol
        names = [name for name in ("qty", "filled_qty") if name in frame.columns]
        frame = frame.with_columns(pl.when(own).then(pl.col(n) * size).otherwise(n).alias(n) for n in names)
    return frame


def rebuild_trades(fills: pl.DataFrame, report: ImportReport) -> pl.DataFrame:
    """Return the closed trades that fills make, at average cost; what is still open at the end is reported.

    A fill beyond the position closes it and opens one of the other side. With ``position_side`` LONG or SHORT (hedge
    mode) each side is a position of its own. Fees in the base currency reduce the quantity; fees in a third currency
    make the trade's fees null.
    """
    positions: dict[tuple[Any, ...], _Position] = {}
    rows: list[tuple[Any, ...]] = []
    foreign: Counter[str] = Counter()
    ordered = fills.sort("timestamp", "row", maintain_order=True)
    names = (
        "timestamp",
        "symbol",
        "strategy",
        "side",
        "price",
        "qty",
        "fee",
        "fee_currency",
        "position_side",
    )
    for ts, symbol, strategy, side, price, qty, fee, currency, held, leverage, mode in ordered.select(
        *names, "leverage", "mode"
    ).iter_rows():
        size, cost = qty, fee
        if fee is not None and currency and not symbol.endswith(currency.upper()):
            if symbol.startswith(currency.upper()):
                size, cost = qty - fee if side == "BUY" else qty, fee * price
            else:
                cost = None
                foreign[currency] += 1
        key = (symbol, strategy, held.upper() if held and held.upper() in ("LONG", "SHORT") else "")
        signed = size if side == "BUY" else -size
        position = positions.get(key)
        if position is not None and position.held * signed < 0.0:
            over = abs(signed) - abs(position.held)
            part = min(abs(signed), abs(position.held)) if over > _DUST * position.entered else abs(signed)
            direction = "LONG" if position.held > 0.0 else "SHORT"
            share = part / abs(signed)
            if position.reduce(part, price, None if cost is None else cost * share):
                rows.append(position.trade(symbol, strategy, ts, direction))
                del positions[key]
            signed = math.copysign(abs(signed) - part, signed)
            cost = None if cost is None else cost * (1.0 - share)
        if signed:
            position = positions.setdefault(key, _Position(ts, leverage=leverage, mode=mode))
            position.add(signed, price, cost)
    still = sorted({key[0] for key in positions})
    if still:
        report.note(f"positions that are open at the end of the fills are not trades: {', '.join(still)}")
    if foreign:
        listed = ", ".join(f"{count:,} in {name}" for name, count in foreign.items())
        report.note(
            f"fees in another currency are not converted ({listed}): fees of those trades are null and their PnL is "
            f"without them; import the prices of that currency first (such as {next(iter(foreign)).upper()}USDT)"
        )
    return pl.DataFrame(rows, schema=_TRADES, orient="row").with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in _UNKNOWN.items()
    )


def compare_trades(own: pl.DataFrame, rebuilt: pl.DataFrame) -> pl.DataFrame:
    """Return the source's own trades beside the rebuilt ones that closed nearest to them (at most 1 s apart)."""
    keys = ["symbol", "side"]
    left = own.sort("timestamp").select(*keys, "timestamp", "realized_pnl", own="timestamp")
    right = rebuilt.sort("timestamp").select(
        *keys, "timestamp", rebuilt_pnl="realized_pnl", rebuilt="timestamp"
    )
    found = left.join_asof(
        right, on="timestamp", by=keys, strategy="nearest", tolerance=1_000_000_000, check_sortedness=False
    )
    alone = right.join(found.select(*keys, "rebuilt"), on=[*keys, "rebuilt"], how="anti")
    table = pl.concat([found, alone.select(*keys, "timestamp", "rebuilt_pnl", "rebuilt")], how="diagonal")
    return table.select(
        pl.col("timestamp").cast(_UTC),
        *keys,
        pnl_source="realized_pnl",
        pnl_rebuilt="rebuilt_pnl",
        difference=pl.col("rebuilt_pnl") - pl.col("realized_pnl"),
    ).sort("timestamp")


def orders_of_fills(fills: pl.DataFrame) -> pl.DataFrame:
    """Return fills as order lines: the filled quantity so far; the last fill of an order counts as FILLED."""
    order = pl.coalesce("order_id", "trade_id", pl.format("fill-{}", "row"))
    frame = fills.sort("timestamp", "row", maintain_order=True).with_columns(order_id=order)
    total = pl.col("qty").sum().over("symbol", "order_id")
    filled = pl.col("qty").cum_sum().over("symbol", "order_id")
    last = pl.int_range(pl.len()).over("symbol", "order_id") == pl.len().over("symbol", "order_id") - 1
    value = (pl.col("qty") * pl.col("price")).cum_sum().over("symbol", "order_id")
    kind = pl.when(pl.col("maker") == "true").then(pl.lit("LIMIT")).otherwise(pl.lit("MARKET"))
    nothing = {name: pl.lit(None, dtype_of(declared)) for name, declared in FIELDS["orders"].items()}
    return frame.select(
        "row",
        *("timestamp", "symbol", "strategy", "order_id", "side", "price", "mode"),
        type=kind,
        qty=total,
        filled_qty=pl.when(last).then(total).otherwise(filled),
        avg_fill_price=value / filled,
        status=pl.when(last).then(pl.lit("FILLED")).otherwise(pl.lit("PARTIALLY_FILLED")),
        source=pl.lit("IMPORT"),
        **{
            name: nothing[name]
            for name in (
                *("updated_at", "exchange_order_id", "time_in_force", "trigger_price", "reduce_only"),
                *("notional_usd", "last_error"),
            )
        },
    )


def with_orders_of_fills(
    orders: pl.DataFrame | None, fills: pl.DataFrame, report: ImportReport
) -> pl.DataFrame:
    """Return the orders, and those that only the fills name."""
    if orders is None or orders.is_empty():
        return orders_of_fills(fills)
    known = pl.col("order_id").is_in(orders["order_id"].implode()).fill_null(value=False)
    others = orders_of_fills(fills.filter(~known))
    if others.height:
        report.note(f"{others.height:,} fills are of orders that the source does not list")
    return pl.concat([orders, others], how="diagonal")


def with_funding(trades: pl.DataFrame, payments: pl.DataFrame, report: ImportReport) -> pl.DataFrame:
    """Add funding payments to the trades that were open at their time; amounts that were paid are negative."""
    if trades.is_empty() or trades["funding"].is_not_null().any():
        return trades
    trades = trades.with_row_index("place")
    opened = trades.select("place", "symbol", "entry_time", closed="timestamp").sort("entry_time")
    held = payments.sort("timestamp").join_asof(
        opened,
        left_on="timestamp",
        right_on="entry_time",
        by="symbol",
        strategy="backward",
        check_sortedness=False,
    )
    inside = held.filter(pl.col("timestamp") <= pl.col("closed"))
    paid = inside.group_by("place").agg(paid=pl.col("amount").sum())
    if inside.height < payments.height:
        report.note(f"{payments.height - inside.height:,} funding payments belong to no closed trade")
    joined = trades.join(paid, on="place", how="left", maintain_order="left")
    return joined.with_columns(
        funding=pl.col("paid"), realized_pnl=pl.col("realized_pnl") + pl.col("paid").fill_null(0.0)
    ).drop("place", "paid")


def with_excursions(root: DataRoot, trades: pl.DataFrame, report: ImportReport) -> pl.DataFrame:
    """Compute MFE and MAE of trades without them, where the history has prices between entry and exit."""
    lacking = trades.filter(pl.col("mfe").is_null() & pl.col("entry_time").is_not_null())
    if lacking.is_empty():
        return trades
    best, worst = trades["mfe"].to_list(), trades["mae"].to_list()
    numbered = trades.with_row_index("place").filter(
        pl.col("mfe").is_null() & pl.col("entry_time").is_not_null()
    )
    known = set(history.symbols(root, "trades"))
    computed = 0
    for (symbol,), part in numbered.group_by("symbol", maintain_order=True):
        if symbol not in known:
            continue
        first, last = int(part["entry_time"].min()), int(part["timestamp"].max()) + 1  # type: ignore[arg-type]
        tape = history.scan_trades(root, str(symbol), *(iso(ns) for ns in (first, last)))
        prints = tape.select(pl.col("timestamp").dt.timestamp("ns"), "price").collect()
        times, prices = prints["timestamp"].to_numpy(), prints["price"].to_numpy()
        for place, start, end, side, entry, qty in part.select(
            "place", "entry_time", "timestamp", "side", "entry_price", "qty"
        ).iter_rows():
            low, high = np.searchsorted(times, start), np.searchsorted(times, end, side="right")
            if low == high:
                continue
            direction = 1.0 if side == "LONG" else -1.0
            moves = direction * (prices[low:high] - entry) * qty
            best[place], worst[place] = max(float(moves.max()), 0.0), min(float(moves.min()), 0.0)
            computed += 1
    if computed:
        report.note(f"MFE and MAE of {computed:,} trades were computed from the prices in history/")
    return trades.with_columns(
        pl.Series("mfe", best, dtype=pl.Float64), pl.Series("mae", worst, dtype=pl.Float64)
    )
