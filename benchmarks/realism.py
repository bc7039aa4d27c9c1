"""What the assumptions about fills are worth: the same decisions, filled by one model after the other.

    REPLAYLAB_REAL_DATA=/path/to/captures python benchmarks/realism.py
    REPLAYLAB_HFTBACKTEST=/path/to/venv/bin/python ... python benchmarks/realism.py     # and the queue, beside a peer

Data: recorded captures (Binance BTCUSDT perpetual and NEXOUSDT spot, Bybit ETHUSDT perpetual). Decisions come at fixed
intervals, LONG and SHORT alike, so that a mean of 0 before costs is expected: what is left is what execution costs.
Each decision is run alone, whatever the positions before it. The base is what a simple backtest assumes: fills at the
next print plus 1 bp, limits filled at a touch, no holes, no ticks, no latency. Each other row changes one of these, the
last two all. (Through and queue come with ticks: between two ticks nothing can trade, so that touch and through are the
same there.) Net is after fees of 5.5 (taker) and 2 bps (maker). "Flips" is the share of decisions that win under one of
base and row and lose under the other, before fees.

What this does not show: minutes of one market are no statistics, and the numbers depend on targets and stops. Market
impact beyond the visible book is in no row.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from realism_queue import Seen, compare, orders_of

from replaylab import Config, Lab, TradingParams
from replaylab.history import load_instruments
from replaylab.sessions import save_session_frame

SIMPLE = {
    "market_fill": "print",
    "limit_fill": "touch",
    "max_gap_s": None,
    "rounding": "none",
    "slippage_bps": 1.0,
}
BOOK = {"market_fill": "book", "slippage_bps": None}
LATE = {"latency_ms": 100.0, "stop_latency_ms": 100.0}
TRUE = {**BOOK, **LATE, "max_gap_s": 900.0, "rounding": "exchange"}
ROWS: dict[str, dict[str, Any]] = {
    "base: print + 1 bp, touch": {},
    "market fills: book": BOOK,
    "ticks and lots": {"rounding": "exchange"},
    "ticks, limit fills: through": {"limit_fill": "through", "rounding": "exchange"},
    "ticks, limit fills: queue": {"limit_fill": "queue", "rounding": "exchange"},
    "holes of 15 min": {"max_gap_s": 900.0},
    "latency 100 ms": LATE,
    "all, through": {**TRUE, "limit_fill": "through"},
    "all, queue": {**TRUE, "limit_fill": "queue"},
}
# Life of an order beside the peer: short, so that the queue decides.
QUEUE_TTL_S = 10.0
LIMITS: dict[str, dict[str, Any]] = {
    f"filled by {fill}": {"limit_fill": fill} for fill in ("touch", "through", "queue")
}
HOLES: dict[str, dict[str, Any]] = {
    "base: no pause is a hole": {},
    "holes of 15 min": {"max_gap_s": 900.0},
}


class Market(NamedTuple):
    """A capture: how to import it, and decisions that suit its pace. ``level_pct``: target and stop."""

    format: str
    files: list[str]
    symbol: str
    options: dict[str, Any]
    every_s: float
    hold_s: float
    level_pct: float


MARKETS = [
    Market(
        "binance-capture",
        ["binance-capture/btcusdt_20240718.gz", "binance-capture/btcusdt_20240719.gz"],
        "BTCUSDT",
        {},
        2.0,
        60.0,
        0.03,
    ),
    Market(
        "binance-capture",
        ["binance-capture/nexousdt_20240723.dat.gz", "binance-capture/nexousdt_20240724.dat.gz"],
        "NEXOUSDT",
        {},
        120.0,
        900.0,
        0.4,
    ),
    Market(
        "bybit-capture",
        ["bybit/bybit-v5-capture.jsonl.zst"],
        "ETHUSDT",
        {"market": "linear"},
        0.5,
        10.0,
        0.05,
    ),
]


def decided(events: pl.DataFrame, market: Market) -> tuple[pl.DataFrame, int]:
    """Add a regime and two scores, up and down, at each decision time; return the events and the number of regimes.

    Decisions of one regime are far apart: a run that allows one regime and one side has each of them alone.
    """
    ts = events["timestamp"].dt.epoch("ns")
    # Half a millisecond after a whole one: no decision shares its time with an event of the capture.
    first = int(ts[0]) // 1_000_000 * 1_000_000 + 500_000
    times = np.arange(first, int(ts[-1]), int(market.every_s * 1e9), dtype=np.int64)[1:]
    regimes = int(np.ceil(2.5 * market.hold_s / market.every_s))
    rows = []
    for k, moment in enumerate(times.tolist()):
        rows.append((moment, "REGIME_UPDATE", f'{{"regime":"{k % regimes}"}}'))
        rows += [(moment, "SCORING_UPDATE", f'{{"score":{score}}}') for score in ("1.0", "-1.0")]
    added = pl.DataFrame(rows, schema=["ns", "type", "payload"], orient="row").select(
        timestamp=pl.col("ns").cast(pl.Datetime("ns", "UTC")),
        type="type",
        symbol=pl.lit(market.symbol),
        payload="payload",
    )
    whole = pl.concat([events.select(added.columns), added]).sort("timestamp", maintain_order=True)
    return whole, regimes


def outcomes(lab: Lab, session: Any, params: TradingParams) -> pl.DataFrame:
    """Return a row per decision that became a trade: its number, its side, the return in bps, what it met."""
    kinds = session.events["type"]
    decisions = np.flatnonzero((kinds == "REGIME_UPDATE").to_numpy())
    regimes = session.events["payload"].gather(decisions)
    found = []
    notional = pl.col("entry_price") * pl.col("qty")
    for regime in regimes.unique(maintain_order=True):
        mine = np.flatnonzero((regimes == regime).to_numpy())
        for side in ("LONG", "SHORT"):
            one = params.replace(
                allowed_regimes=(json.loads(regime)["regime"],),
                allow_long=side == "LONG",
                allow_short=side == "SHORT",
            )
            trades = lab.backtest(session, one).trades
            place = np.searchsorted(decisions[mine], trades["entry_index"].to_numpy(), side="left") - 1
            found.append(
                trades.select(
                    decision=pl.Series(mine[place], dtype=pl.Int64),
                    side="side",
                    bps=pl.col("realized_pnl") / notional * 1e4,
                    won=pl.col("realized_pnl") + pl.col("fees") > 0,
                    thin="thin",
                    gap=pl.col("reason") == "DATA_GAP",
                )
            )
    return pl.concat(found)


def show(name: str, rows: dict[str, dict[str, Any]], lab: Lab, session: Any, base: TradingParams) -> None:
    """Print a table: one row per assumption; the first is what the others are compared with."""
    print(f"\n{name}, {base.notional_usd:,.0f} USD\n")
    print(
        "| assumption | trades | net bps a trade | against the first row | flips | thin | ended by a hole |"
    )
    print("|---|---|---|---|---|---|---|")
    plain = None
    for label, changes in rows.items():
        found = outcomes(lab, session, base.replace(**changes))
        plain = found if plain is None else plain
        both = plain.join(found, on=["decision", "side"], suffix="_new")
        flips = (both["won"] != both["won_new"]).mean() or 0.0
        move = (both["bps_new"] - both["bps"]).mean()
        shares = [flips, found["thin"].mean() or 0.0, found["gap"].mean() or 0.0]
        print(
            f"| {label} | {found.height:,} | {found['bps'].mean():+.2f} | {move:+.2f} | "
            + " | ".join(f"{100 * share:.1f} %" for share in shares)
            + " |",
            flush=True,
        )


def holed(events: pl.DataFrame) -> pl.DataFrame:
    """Leave out 20 minutes of every hour, as a recorder that fails."""
    return events.filter(~pl.col("timestamp").dt.minute().is_between(20, 39))


def prepared(lab: Lab, market: Market, folder: Path) -> pl.DataFrame:
    """Import a capture and return its events."""
    files = [folder / name for name in market.files]
    lab.import_history(market.format, files, market.symbol, **market.options)
    market_data = ["MARKET_TRADE", "MARKET_BOOK"]
    span = ("2020-01-01", "2030-01-01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no signals in these roots
        manifest = lab.build_replay_session(*span, [market.symbol], include_types=market_data)
    return lab.session(manifest).events


def report(market: Market, folder: Path, scratch: Path, peer: str | None) -> None:
    lab = Lab(scratch / market.symbol, config=Config(cache_dir=str(scratch / "cache")))
    captured = prepared(lab, market, folder)
    instruments = load_instruments(lab.root)
    base = TradingParams(
        tp1_fraction=0.0,
        tp1_pct=market.level_pct,
        tp2_pct=market.level_pct,
        sl_pct=market.level_pct,
        max_hold_s=market.hold_s,
        entry_threshold=0.5,
        **SIMPLE,
    )
    events, regimes = decided(captured, market)
    save_session_frame(lab.root, events, "decided", instruments=instruments)
    session = lab.session("decided")
    print(f"\n## {market.symbol}: {captured.height:,} events, {regimes} regimes", flush=True)
    print(lab.backtest(session, TradingParams()).assumptions)
    for notional in (1_000.0, 100_000.0):
        sized = base.replace(notional_usd=notional)
        show("Market entries, targets and stops", ROWS, lab, session, sized)
        resting = sized.replace(entry_order="LIMIT", entry_ttl_s=market.hold_s, **BOOK, rounding="exchange")
        show("Limit entries at the own best quote", LIMITS, lab, session, resting)
    if market.symbol == "NEXOUSDT":
        events, _ = decided(holed(captured), market)
        save_session_frame(lab.root, events, "holed", instruments=instruments)
        show("Recorder off for 20 minutes of each hour", HOLES, lab, lab.session("holed"), base)
    if market.symbol == "BTCUSDT" and peer is None:
        print("\nhftbacktest: skipped. Set REPLAYLAB_HFTBACKTEST to a Python that has it.")
    elif market.symbol == "BTCUSDT" and peer is not None:
        queue = base.replace(
            entry_order="LIMIT", entry_ttl_s=QUEUE_TTL_S, **BOOK, limit_fill="queue", rounding="exchange"
        )
        found = set(outcomes(lab, session, queue).select("decision", "side").iter_rows())
        seen = Seen(session)
        orders = orders_of(seen, base.notional_usd, QUEUE_TTL_S)
        sides = ["LONG" if order.side > 0 else "SHORT" for order in orders]
        # Two orders to a decision: up, then down.
        ours = [(k // 2, side) in found for k, side in enumerate(sides)]
        compare(seen, orders, ours, peer)


def main() -> None:
    real = os.environ.get("REPLAYLAB_REAL_DATA")
    places = [] if not real else [Path(real), Path(real) / "real"]
    folder = next((place for place in places if (place / "binance-capture").is_dir()), None)
    if folder is None:
        print("realism: skipped. Set REPLAYLAB_REAL_DATA to the folder with the recorded captures.")
        return
    with tempfile.TemporaryDirectory() as scratch:
        for market in MARKETS:
            missing = [name for name in market.files if not (folder / name).is_file()]
            if missing:
                print(f"{market.symbol}: skipped, {folder / missing[0]} is not there")
            elif not sys.argv[1:] or market.symbol in sys.argv[1:]:
                report(market, folder, Path(scratch), os.environ.get("REPLAYLAB_HFTBACKTEST"))


if __name__ == "__main__":
    main()
